"""Encoded sets in; rows read back from their batches as text out, for `alignkit inspect`."""
