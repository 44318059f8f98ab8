"""Pools: one file for each part of `registry/pool.yaml`."""
