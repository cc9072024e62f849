"""The `data` section in; encoded sets out, with a ledger in which every source row stands once."""
