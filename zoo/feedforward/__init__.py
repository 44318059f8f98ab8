"""Feed-forwards: one file for each part of `registry/feedforward.yaml`."""
