"""Stacks: one file for each part of `registry/stack.yaml`."""
