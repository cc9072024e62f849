"""Paths in; rows out, each as it was read, with its `file:line` and what is wrong with it."""
