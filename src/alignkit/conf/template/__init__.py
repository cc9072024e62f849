"""Shipped chat templates: each is a Jinja file and an option of the same name."""
