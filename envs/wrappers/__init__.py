"""Wrappers of environments. Each has a single purpose."""
