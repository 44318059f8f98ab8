"""Norms: one file for each part of `registry/norm.yaml`."""
