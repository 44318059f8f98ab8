"""Tasks: one file for each part of `registry/task.yaml`."""
