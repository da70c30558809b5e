"""Windows of recorded sequences: cut, crop and choose them."""

from collections.abc import Callable

import torch
from torch import Tensor

from worldmodel.types import Batch


def each(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with every tensor of it changed in the same way."""
    return Batch({key: change(value) for key, value in batch.obs.items()}, *(change(leaf) for leaf in batch[1:]))


def crop(batch: Batch, start: int, stop: int | None = None) -> Batch:
    """Steps `start` to `stop` of every window."""
    return each(batch, lambda leaf: leaf[:, start:stop])


def unbroken(batch: Batch, start: int) -> Batch:
    """The windows in which steps `start` and later are recorded and begin no episode.

    Raises:
        ValueError: if there is none.
    """
    bad = batch.is_first | (batch.mask == 0)
    whole = ~bad[:, start:].any(1)
    if not whole.any():
        raise ValueError(
            f"each of the {len(whole)} windows of {bad.shape[1]} steps has an episode's end after step {start}: "
            "take shorter ones"
        )
    return each(batch, lambda leaf: leaf[whole])


def cut(stream: Batch, length: int, stride: int | None) -> Batch:
    """A stream (1, L, ...) -> every window (B, length, ...) that lies inside one episode.

    Windows begin every `stride` steps from the start of their episode, or of the stream; with a stride of `length`
    they share no step. Without a stride there is one for each episode, its beginning. There may be none.
    """
    steps = stream.reward.shape[1]
    time = torch.arange(steps, device=stream.reward.device)
    begins = stream.is_first[0] | (stream.mask[0] == 0)
    begun = torch.where(begins, time, 0).cummax(0).values  # when the episode of each step began
    start = time[: max(steps - length + 1, 0)]
    inside = begun[start + length - 1] <= start
    late = start - begun[start]
    start = start[inside & (late % stride == 0 if stride else late == 0)]
    rows = start.unsqueeze(1) + torch.arange(length, device=start.device)
    return each(stream, lambda leaf: leaf[0][rows])
