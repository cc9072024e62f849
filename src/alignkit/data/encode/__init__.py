"""Conversations and pairs in; token ids and labels out, fitted to a length, or the reason why a row is left out."""
