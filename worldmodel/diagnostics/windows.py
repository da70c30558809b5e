"""Functions that cut, crop and select windows of recorded sequences."""

from collections.abc import Callable

import torch
from torch import Tensor

from worldmodel.types import Batch


def each(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """Return the batch with `change` applied to each of its tensors."""
    return Batch({key: change(value) for key, value in batch.obs.items()}, *(change(leaf) for leaf in batch[1:]))


def crop(batch: Batch, start: int, stop: int | None = None) -> Batch:
    """Return the steps from `start` to `stop` of every window."""
    return each(batch, lambda leaf: leaf[:, start:stop])


def unbroken(batch: Batch, start: int) -> Batch:
    """Return the windows in which all steps from `start` on are recorded and none of them begins an episode.

    Raises:
        ValueError: if there is no such window.
    """
    bad = batch.is_first | (batch.mask == 0)
    whole = ~bad[:, start:].any(1)
    if not whole.any():
        raise ValueError(
            f"in each of the {len(whole)} windows of {bad.shape[1]} steps, an episode ends after step {start}. "
            "Use shorter windows."
        )
    return each(batch, lambda leaf: leaf[whole])


def cut(stream: Batch, length: int, stride: int | None) -> Batch:
    """Cut a stream (1, L, ...) into windows (B, length, ...) that lie inside one episode. B may be 0.

    Args:
        stream: the recorded steps. length: the number of steps of a window.
        stride: the distance between the starts of two windows, counted from the beginning of their episode or of the
            stream. With a stride of `length`, they share no step. None gives one window for each episode, its
            beginning.
    """
    steps = stream.reward.shape[1]
    time = torch.arange(steps, device=stream.reward.device)
    begins = stream.is_first[0] | (stream.mask[0] == 0)
    begun = torch.where(begins, time, 0).cummax(0).values  # the first step of the episode of each step
    start = time[: max(steps - length + 1, 0)]
    inside = begun[start + length - 1] <= start
    late = start - begun[start]
    start = start[inside & (late % stride == 0 if stride else late == 0)]
    rows = start.unsqueeze(1) + torch.arange(length, device=start.device)
    return each(stream, lambda leaf: leaf[0][rows])
