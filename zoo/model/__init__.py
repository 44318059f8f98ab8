"""Models: one file for each part of `registry/model.yaml`."""
