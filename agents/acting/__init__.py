"""What every behaviour shares: its contract, policies and exploration noise."""
