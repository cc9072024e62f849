"""A row to a `Conversation` or a `Preference`: formats, columns, turns."""
