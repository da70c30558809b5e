"""The run folder: its config, checkpoints, weights and lock, and the run that is built from it."""
