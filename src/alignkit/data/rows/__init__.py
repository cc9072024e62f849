"""Rows as they were read in; a `Conversation` or a `Preference` for each out, or the reason why it is none."""
