"""The training loop: collecting, updating, evaluating, and what happens when something fails."""
