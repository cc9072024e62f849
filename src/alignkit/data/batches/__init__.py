"""Encoded rows to the tensors of a batch."""
