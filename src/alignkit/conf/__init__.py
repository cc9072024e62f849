"""Defaults and option groups that ship with the package."""
