"""Datasets, their readers (CSV, .npz, Minari, recordings), their division into parts, and the overlap of recordings."""
