"""What an environment must hold to: its spaces, its values, its infos, and how a fault is told."""
