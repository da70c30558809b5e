"""Which windows of a recording are also in another: a model is judged on what it has not learned from."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

STEP = np.uint64(0x9E3779B97F4A7C15)  # odd, so that powers of it modulo 2^64 all differ from 0


def fingerprints(obs: Mapping[str, Tensor], length: int) -> np.ndarray:
    """{key: (B, L, ...)} -> (B, max(L - length + 1, 0)) uint64: a number for each window of so many steps.

    Equal windows have equal numbers, and two different ones have the same number once in 2^64 times.
    """
    steps = sum(_rows(obs[key], k) for k, key in enumerate(sorted(obs)))
    assert isinstance(steps, np.ndarray), "no observations"
    count = max(steps.shape[1] - length + 1, 0)
    found = np.zeros((len(steps), count), np.uint64)
    for i in range(length):  # modulo 2^64, as all of this
        found = found * STEP + steps[:, i : i + count]
    return found


def _rows(values: Tensor, key: int) -> np.ndarray:
    """(B, L, ...) -> (B, L) uint64: a number for each row, of its bytes."""
    flat = values.flatten(2).cpu()
    flat = flat + 0.0 if flat.is_floating_point() else flat  # -0 is 0
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
    """{key: (B, T, ...)} -> (B,) bool: whether a window is none of those of T steps whose fingerprints are known."""
    first = next(iter(obs.values()))
    own = fingerprints(obs, first.shape[1])[:, 0]
    return torch.from_numpy(~np.isin(own, known)).to(first.device)
