"""Wrappers of one idea each."""
