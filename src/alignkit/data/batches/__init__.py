"""Encoded rows in; the tensors of a batch out, and the order of an epoch."""
