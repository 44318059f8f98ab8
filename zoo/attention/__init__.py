"""Attentions: one file for each part of `registry/attention.yaml`."""
