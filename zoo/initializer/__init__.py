"""Initialisations: one file for each part of `registry/initializer.yaml`."""
