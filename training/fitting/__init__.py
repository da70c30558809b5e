"""Fit a model to recorded data, and score it."""
