"""What lies in a run folder: config, checkpoints, weights, locks; the run built from it."""
