"""Recorded time steps: the replay in memory or on the disk, its archive, and how to add whole episodes."""
