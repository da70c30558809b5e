"""Any algorithm of Stable-Baselines3 as a behaviour."""
