"""Find the windows of a recording that also occur in another, since a model must be judged on data it has not seen."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

HASH_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so none of its powers modulo 2^64 is 0


def fingerprints(obs: Mapping[str, Tensor], length: int) -> np.ndarray:
    """Return a hash for each window of `length` time steps.

    Equal windows have equal hashes. Two different windows have the same hash with probability 2^-64.

    Args:
        obs: observations {key: (B, L, ...)}.
    Returns:
        (B, max(L - length + 1, 0)) uint64.
    """
    steps = sum(_rows(obs[key], k) for k, key in enumerate(sorted(obs)))
    assert isinstance(steps, np.ndarray), "no observations"
    count = max(steps.shape[1] - length + 1, 0)
    found = np.zeros((len(steps), count), np.uint64)
    for i in range(length):  # all arithmetic here is modulo 2^64
        found = found * HASH_MULTIPLIER + steps[:, i : i + count]
    return found


def _rows(values: Tensor, key: int) -> np.ndarray:
    """Return a hash of the bytes of each row, (B, L, ...) -> (B, L) uint64."""
    flat = values.flatten(2).cpu()
    flat = flat + 0.0 if flat.is_floating_point() else flat  # turn -0 into 0, which has other bytes
    numbers = np.ascontiguousarray(flat.numpy()).view(np.uint8)
    width = -(-numbers.shape[-1] // 8)
    padded = np.zeros((*numbers.shape[:-1], 8 * width), np.uint8)
    padded[..., : numbers.shape[-1]] = numbers
    words = padded.view(np.uint64)
    weights = np.random.default_rng(key).integers(0, 2**64, (2, width), np.uint64, endpoint=False) | np.uint64(1)
    mixed = (words ^ (words >> np.uint64(29))) * weights[0]
    mixed ^= mixed >> np.uint64(32)
    return (mixed * weights[1]).sum(-1, dtype=np.uint64)


def unseen(obs: Mapping[str, Tensor], known: np.ndarray) -> Tensor:
    """Return whether each window of T time steps is new, {key: (B, T, ...)} -> (B,) bool.

    Args:
        known: the :func:`fingerprints` of the windows of T time steps that are not new.
    """
    first = next(iter(obs.values()))
    own = fingerprints(obs, first.shape[1])[:, 0]
    return torch.from_numpy(~np.isin(own, known)).to(first.device)
