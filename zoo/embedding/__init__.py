"""Embeddings: one file for each part of `registry/embedding.yaml`."""
