"""A conversation to token ids and labels: templates, masks, lengths."""
