"""One place where parameters change: gradient, clipping, optimiser step, and the switch for compilation."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn


@dataclass
class LearnerConfig:
    """Adam with a global gradient norm, and decoupled weight decay (Loshchilov and Hutter 2019) where it is wanted."""

    lr: float = 1e-3
    eps: float = 1e-5
    clip: float = 100.0  # global gradient norm (Dreamer V1)
    weight_decay: float = 0.0  # share of every weight that is taken away per update, in units of lr
    compile: Literal["off", "update"] = "off"  # torch.compile of the loss: minutes to build, pays on long runs

    def __post_init__(self) -> None:
        if min(self.lr, self.eps, self.clip) <= 0:
            raise ValueError(f"lr, eps and clip must be positive: {self.lr}, {self.eps}, {self.clip}")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must not be negative: {self.weight_decay}")


class Learner:
    """Minimises a loss over its own parameters only; others that the loss depends on receive no gradient.

    Args:
        loss: any arguments -> (scalar loss, anything).
        parameters: what is trained.
    """

    def __init__(
        self, loss: Callable[..., tuple[Tensor, Any]], parameters: Iterable[nn.Parameter], config: LearnerConfig
    ) -> None:
        self.parameters = list(parameters)
        self.clip = config.clip
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.lr, eps=config.eps, weight_decay=config.weight_decay, fused=True
        )
        self.loss = torch.compile(loss, fullgraph=True, dynamic=False) if config.compile == "update" else loss

    def update(self, *args: Any) -> tuple[Any, dict[str, Tensor]]:
        """One step. Returns the second result of the loss, detached by its maker, and {"loss", "grad_norm"}."""
        loss, aux = self.loss(*args)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=self.parameters)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        return aux, {"loss": loss.detach(), "grad_norm": norm}
