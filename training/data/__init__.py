"""Datasets and their readers: CSV, NPZ, Minari, recordings; splits and overlap."""
