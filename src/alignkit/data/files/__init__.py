"""Files to rows: every row as it was read, with its `file:line`."""
