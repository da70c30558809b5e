"""Fitting a model to recorded data, and its scores."""
