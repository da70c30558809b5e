"""What a run says: metrics, files, Weights & Biases, progress."""
