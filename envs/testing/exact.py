"""Exact models: the true dynamics of known environments, with the interface of a latent model.

A planner or an agent can use an exact model in place of a learned one. This tests it without model errors, and shows
the best result that it can reach. The latent state is the state of the environment, which the observation contains.
"""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from worldmodel.envs.testing.probes import LinearQuadratic, Tree
from worldmodel.specs import OBSERVATION
from worldmodel.types import Prediction


class ExactState(NamedTuple):
    x: Tensor  # (..., S)
    reward: Tensor  # (..., 1), received on reaching x
    cont: Tensor  # (..., 1): 0 if the episode has ended


class ExactModel(ABC):
    """The base class of exact models; see :class:`worldmodel.model.LatentModel`.

    A subclass defines `read`, `transition` and the sizes. After the end of an episode all rewards are 0.
    """

    size: int  # S
    dtype = torch.float32
    discount = 1.0

    @abstractmethod
    def read(self, observation: Tensor) -> Tensor:
        """Convert observations (N, width) to states x (N, S)."""

    @abstractmethod
    def transition(self, x: Tensor, control: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the next states (N, S), the rewards (N,), and which episodes end (N,).

        Args:
            x: the states (N, S).
            control: the encoded actions (N, A).
        """

    @property
    def feature_size(self) -> int:
        """The width of a feature, F."""
        return self.size + 2

    def _at(self, x: Tensor) -> ExactState:
        return ExactState(x, torch.zeros_like(x[..., :1]), torch.ones_like(x[..., :1]))

    def initial(self, batch_size: int) -> ExactState:
        return self._at(torch.zeros(batch_size, self.size, dtype=self.dtype))

    def filter(
        self, state: ExactState, obs: dict[str, Tensor], prev_action: Tensor, is_first: Tensor, sample: bool = True
    ) -> ExactState:
        return self._at(self.read(obs[OBSERVATION]))

    def imagine(self, state: ExactState, control: Tensor, sample: bool = True) -> ExactState:
        x, reward, ended = self.transition(state.x, control)
        alive = state.cont > 0
        return ExactState(x, torch.where(alive, reward.unsqueeze(-1), 0), state.cont * ~ended.unsqueeze(-1))

    def feature(self, state: ExactState) -> Tensor:
        return torch.cat(state, -1)

    def predict(self, feature: Tensor, decode: bool = True) -> Prediction:
        """Predict the observation (x itself), the reward, and the probability that the episode continues."""
        x, reward, cont = feature.split([self.size, 1, 1], -1)
        return Prediction({OBSERVATION: x} if decode else {}, reward.squeeze(-1), cont.squeeze(-1))


class ExactPendulum(ExactModel):
    """`Pendulum-v1`: x = (theta, theta'). The action is the torque in units of 2 Nm."""

    size = 2

    def read(self, observation: Tensor) -> Tensor:
        cos, sin, velocity = observation.unbind(-1)
        return torch.stack([torch.atan2(sin, cos), velocity], -1)

    def transition(self, x: Tensor, control: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        angle, velocity = x.unbind(-1)
        torque = 2 * control.squeeze(-1).clamp(-1, 1)
        centred = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
        reward = -(centred.square() + 0.1 * velocity.square() + 0.001 * torque.square())
        velocity = (velocity + (15 * angle.sin() + 3 * torque) * 0.05).clamp(-8, 8)
        return torch.stack([angle + 0.05 * velocity, velocity], -1), reward, torch.zeros_like(reward, dtype=torch.bool)


class ExactCartPole(ExactModel):
    """`CartPole-v1`: x is the observation, with two discrete actions.

    The episode ends when the pole or the cart leaves its range.
    """

    size = 4

    def read(self, observation: Tensor) -> Tensor:
        return observation

    def transition(self, x: Tensor, control: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        place, speed, angle, turn = x.unbind(-1)
        force = 10 * (control[..., 1] - control[..., 0])
        sin, cos = angle.sin(), angle.cos()
        push = (force + 0.05 * turn.square() * sin) / 1.1
        turning = (9.8 * sin - cos * push) / (0.5 * (4 / 3 - 0.1 * cos.square() / 1.1))
        speeding = push - 0.05 * turning * cos / 1.1
        moved = [place + 0.02 * speed, speed + 0.02 * speeding, angle + 0.02 * turn, turn + 0.02 * turning]
        ended = (moved[0].abs() > 2.4) | (moved[2].abs() > 12 * math.pi / 180)
        return torch.stack(moved, -1), torch.ones_like(place), ended


class ExactLinearQuadratic(ExactModel):
    """:class:`worldmodel.envs.testing.probes.LinearQuadratic`, in double precision."""

    size = 2
    dtype = torch.float64

    def __init__(self) -> None:
        self.A, self.B, self.Q, self.R = (
            torch.from_numpy(matrix)
            for matrix in (LinearQuadratic.A, LinearQuadratic.B, LinearQuadratic.Q, LinearQuadratic.R)
        )

    def read(self, observation: Tensor) -> Tensor:
        return observation.double()

    def transition(self, x: Tensor, control: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        u = LinearQuadratic.BOUND * control.double()
        cost = (x @ self.Q * x).sum(-1) + (u @ self.R * u).sum(-1)
        return x @ self.A.mT + u @ self.B.mT, -cost, torch.zeros_like(cost, dtype=torch.bool)


class ExactTree(ExactModel):
    """:class:`worldmodel.envs.testing.probes.Tree`: x is the number of the node.

    A plan must not be longer than the depth of the tree.
    """

    size = 1

    def __init__(self, env: Tree) -> None:
        self.env, self.rewards = env, torch.from_numpy(env.rewards).float()
        self.ends = torch.from_numpy(env.ends)

    def read(self, observation: Tensor) -> Tensor:
        return observation.float()

    def transition(self, x: Tensor, control: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        branch = control.argmax(-1)
        node = (x.squeeze(-1).long() * self.env.branches + 1 + branch).clamp(max=len(self.rewards) - 1)
        return node.unsqueeze(-1).float(), self.rewards[node], self.ends[node]
