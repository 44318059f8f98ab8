"""Blocks: one file for each part of `registry/block.yaml`."""
