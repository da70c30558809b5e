"""Where sampled time steps lie in the rings of a replay."""

from typing import NamedTuple

import numpy as np
import torch


class Places(NamedTuple):
    """The places of the time steps of B windows."""

    env: np.ndarray  # (B, T)
    slot: np.ndarray  # (B, T) in the ring of that environment
    seam: np.ndarray  # (B, T) bool: True for the oldest step of its ring, whose predecessor was overwritten


def moved(rows: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Return a copy on the device.

    A copy to a GPU goes through pinned memory, so that the next batch can be drawn while the GPU computes.
    """
    if torch.device(device).type == "cuda":
        return rows.pin_memory().to(device, non_blocking=True)
    return rows.to(device)
