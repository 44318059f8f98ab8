"""Data: one file for each part of `registry/data.yaml`."""
