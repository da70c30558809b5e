"""A run in the shape of a Stable-Baselines3 algorithm."""
