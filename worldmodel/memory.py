"""One setting of the C library that a loop over large tensors needs."""

import torch

LARGEST = 31 * 2**20
"""Bytes; glibc takes no block above 32 MiB for this."""


def keep_memory() -> None:
    """Let freed tensors of up to 31 MB be used again, instead of being handed back and asked for anew every time.

    glibc returns large blocks to the system until it has seen one as large freed; then it keeps such (`mallopt(3)`,
    the dynamic threshold). Without it, PlaNet's search has 35,000 page faults, a seventh of its time. Costs nothing,
    and does nothing where the C library is another.
    """
    torch.empty(LARGEST, dtype=torch.uint8)  # freed at once
