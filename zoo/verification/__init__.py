"""Ours against the reference, layer by layer."""
