"""Evaluation episodes on separate seeds, and the comparison of their returns with the imagined ones."""
