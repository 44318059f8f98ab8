"""Positions: one file for each part of `registry/position.yaml`."""
