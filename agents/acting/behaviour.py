"""The interface of behaviours: learned policies, planners, and random actions."""

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from worldmodel.model import LatentModel
from worldmodel.types import State

Memory = Any
"""The memory of a behaviour between two decisions: a tuple of tensors (N, ...), which may be empty."""


class Decision(NamedTuple):
    """The actions chosen for N environments."""

    control: Tensor  # (N, A): always valid from a planner; finite from a learned policy if its weights are finite
    memory: Memory
    sound: Tensor  # (N,) bool: whether all values behind the action are finite


class Behaviour(Protocol):
    """Chooses actions from latent states."""

    def initial(self, count: int) -> Memory:
        """Return the memory of `count` environments before the first decision of an episode."""
        ...

    def act(self, model: LatentModel, state: State, memory: Memory, deterministic: bool = False) -> Decision:
        """Choose the actions u_t in the latent states (N, ...), given the memory."""
        ...
