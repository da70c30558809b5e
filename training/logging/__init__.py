"""The output of a run: metrics, their file, Weights & Biases and the progress display."""
