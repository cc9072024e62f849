"""Self-contained pages of runs, rows and comparisons. What data or a model says is text there, never markup."""
