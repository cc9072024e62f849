"""Encoded sets of rows, every source row accounted for in the ledger."""
