"""What every behaviour answers: one that was learned, one that plans, one that draws at random."""

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from worldmodel.model import LatentModel
from worldmodel.types import State

Memory = Any
"""What a behaviour carries from one decision to the next: a tuple of tensors (N, ...), empty where it needs none."""


class Decision(NamedTuple):
    """The answer for N environments."""

    control: Tensor  # (N, A): valid always where a behaviour plans; where it was learned, as finite as its weights
    memory: Memory
    sound: Tensor  # (N,) bool: False where numbers that it rests on are not finite


class Behaviour(Protocol):
    """Chooses controls from latent states."""

    def initial(self, count: int) -> Memory:
        """The memory of `count` environments before the first decision of an episode."""
        ...

    def act(self, model: LatentModel, state: State, memory: Memory, deterministic: bool = False) -> Decision:
        """Latent states (N, ...), and what was remembered, to the controls u_t that are taken there."""
        ...
