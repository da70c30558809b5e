"""The contract of an environment: its spaces, values and infos, and the errors for a violation."""
