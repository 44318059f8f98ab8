"""Data: one file for each part of `registry/data.yaml`, and what they share."""
