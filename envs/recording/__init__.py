"""The recorder: which action a row holds, across every autoreset mode."""
