"""Heads: one file for each part of `registry/head.yaml`."""
