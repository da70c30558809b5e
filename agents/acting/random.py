"""A behaviour with uniform random actions, which collects the first data."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.agents.acting.behaviour import Decision, Memory
from worldmodel.model import LatentModel
from worldmodel.specs import ActionSpec
from worldmodel.types import State


class RandomBehaviour(nn.Module):
    """Uniform random actions: in [-1, 1]^A, or one category per discrete variable."""

    def __init__(self, action_spec: ActionSpec) -> None:
        super().__init__()
        self.action_spec = action_spec

    def initial(self, count: int) -> Memory:
        return ()

    def act(self, model: LatentModel, state: State, memory: Memory, deterministic: bool = False) -> Decision:
        """Return actions (N, A) for N states. They are random also with `deterministic`."""
        count, device = len(state[0]), state[0].device
        return Decision(self.draw(count, device), memory, torch.ones(count, dtype=torch.bool, device=device))

    def draw(self, count: int, device: torch.device) -> Tensor:
        """Sample actions (count, A)."""
        if not self.action_spec.classes:
            return torch.rand(count, self.action_spec.width, device=device) * 2 - 1
        draws = [(n, torch.randint(n, (count,), device=device)) for n in self.action_spec.classes]
        return torch.cat([F.one_hot(index, n).float() for n, index in draws], -1)
