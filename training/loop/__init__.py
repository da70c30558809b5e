"""The training loop: collecting, updating, and what happens when something fails."""
