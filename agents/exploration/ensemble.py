"""An ensemble of predictors whose disagreement shows where data is missing (Sekar et al. 2020, Eq. 4)."""

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn

from worldmodel.learning.learner import Learner, LearnerConfig
from worldmodel.networks.recurrent import BlockLinear
from worldmodel.specs import ActionSpec
from worldmodel.types import Batch
from worldmodel.validation import LAYERS, MEMBERS, at_most

EPS = 1e-12  # added under a square root, whose gradient is not finite at 0


@dataclass
class EnsembleConfig:
    """The settings of an ensemble of predictors of the next feature."""

    members: int = 5  # Plan2Explore: 10
    hidden: int = 64  # width of the hidden layers of a member; Plan2Explore: 400
    layers: int = 1  # Plan2Explore: 4
    learner: LearnerConfig = field(default_factory=lambda: LearnerConfig(lr=3e-4))

    def __post_init__(self) -> None:
        if self.members < 2 or min(self.hidden, self.layers) < 1:
            raise ValueError(
                "members must be at least 2 (one member always agrees with itself), and hidden and layers at least 1, "
                f"got {self}"
            )
        at_most(self, members=MEMBERS, layers=LAYERS)


class Disagreement(nn.Module):
    """K predictors of the next feature from a feature and an action. Where they disagree, data is missing.

        mu_k(s_t, u_t) ~ feature(s_{t+1}),   spread(s_t, u_t) = mean over features of std_k mu_k(s_t, u_t)

    All members learn from the same data, but have different initial weights. They agree on known random outcomes,
    because each member predicts the mean. (The paper predicts the next embedding and uses the variance; the authors'
    later code uses the standard deviation.)
    """

    def __init__(self, config: EnsembleConfig, feature_size: int, action_spec: ActionSpec) -> None:
        super().__init__()
        self.members = config.members
        widths = [*[config.hidden] * config.layers, feature_size]
        modules: list[nn.Module] = [nn.Linear(feature_size + action_spec.width, self.members * config.hidden)]
        for inputs, outputs in pairwise(widths):
            modules += [nn.SiLU(), BlockLinear(self.members * inputs, self.members * outputs, self.members)]
        self.net = nn.Sequential(*modules)
        self.learner = Learner(self.loss, self.parameters(), config.learner)

    def forward(self, feature: Tensor, control: Tensor) -> Tensor:
        """Return the K predictions (..., K, F) for features (..., F) and actions (..., A)."""
        predicted = self.net(torch.cat([feature, control], -1)).unflatten(-1, (self.members, -1))
        return predicted.to(feature.dtype)

    def loss(self, feature: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean squared error of all members on replayed features (B, T, F), within episodes."""
        predicted = self(feature[:, :-1], batch.prev_action[:, 1:])
        error = (predicted - feature[:, 1:].unsqueeze(-2)).square().mean((-1, -2))
        inside = (batch.mask * ~batch.is_first)[:, 1:]
        loss = (error * inside).sum() / inside.sum().clamp(min=1)
        return loss, {"ensemble/error": loss.detach()}

    def spread(self, feature: Tensor, control: Tensor) -> Tensor:
        """Return how much the members disagree (...) about the result of actions (..., A) at features (..., F)."""
        predicted = self(feature, control)
        square = (predicted - predicted.mean(-2, keepdim=True)).square().sum(-2) / (self.members - 1)
        return (square + EPS).sqrt().mean(-1)  # torch.std takes seven times as long on a CPU
