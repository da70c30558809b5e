"""Where sampled steps lie in the rings of a replay."""

from typing import NamedTuple

import numpy as np
import torch


class Places(NamedTuple):
    """Where the steps of B windows lie."""

    env: np.ndarray  # (B, T)
    slot: np.ndarray  # (B, T) in the ring of that environment
    seam: np.ndarray  # (B, T) bool: the oldest step of its ring, what came before it is forgotten


def moved(rows: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """A copy on the device; to a GPU by way of pinned memory, so that the next batch is drawn while it computes."""
    if torch.device(device).type == "cuda":
        return rows.pin_memory().to(device, non_blocking=True)
    return rows.to(device)
