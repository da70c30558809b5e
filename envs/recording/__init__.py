"""Recorders, which align actions and observations in every autoreset mode."""
