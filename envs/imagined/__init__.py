"""The learned model as an environment: imagined episodes for agents and Stable-Baselines3."""
