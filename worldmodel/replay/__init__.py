"""Recorded time steps: the replay in memory or on disk, its archive, and adding whole episodes."""
