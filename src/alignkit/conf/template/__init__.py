"""Shipped chat templates: a Jinja file and its option."""
