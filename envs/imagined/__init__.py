"""The learned model as an environment: imagined episodes for agents and for Stable-Baselines3."""
