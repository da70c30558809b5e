"""One place where parameters change: gradient, clipping, optimizer step, and the switch for compilation."""

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from worldmodel.kernels.compiling import check_compiler, compiled, compiled_methods
from worldmodel.kernels.precision import PRECISIONS, Precision, products_in
from worldmodel.learning.laprop import LaProp, clip_adaptively


@dataclass
class LearnerConfig:
    """How gradients become steps. The defaults are Adam's, with a global gradient norm as in Dreamer V1."""

    optimizer: Literal["adam", "laprop"] = "adam"  # laprop: DreamerV3's
    lr: float = 1e-3
    warmup: int = 0  # updates over which lr rises from 0; DreamerV3 has 1000
    final_lr_ratio: float = 1.0  # share of lr to which it falls, on a straight line, until learning ends
    eps: float = 1e-5  # DreamerV3: 1e-20
    clip: float = 100.0  # global gradient norm (Dreamer V1)
    adaptive_clip: float | None = None  # instead, of each tensor: gradient norm per norm of the tensor (V3: 0.3)
    weight_decay: float = 0.0  # share of every weight that is taken away per update, in units of lr
    compile: Literal["off", "step", "update", "auto"] = "off"  # by torch: the loss in parts, or whole
    precision: Precision = "float32"  # of the products of an update: half of it is for GPUs; weights stay float32

    def __post_init__(self) -> None:
        compile = ("off", "step", "update", "auto")
        for name, choices in {"optimizer": ("adam", "laprop"), "compile": compile, "precision": PRECISIONS}.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is one of {', '.join(choices)}: '{getattr(self, name)}'")
        if not all(0 < value < math.inf for value in (self.lr, self.eps, self.clip)):
            raise ValueError(f"lr, eps and clip must be positive and finite: {self.lr}, {self.eps}, {self.clip}")
        if self.adaptive_clip is not None and self.adaptive_clip <= 0:
            raise ValueError(f"adaptive_clip must be positive, or null for a global norm: {self.adaptive_clip}")
        if self.adaptive_clip is not None and self.clip != LearnerConfig.clip:
            raise ValueError(
                f"clip is of no effect beside adaptive_clip {self.adaptive_clip}, leave it out: {self.clip}"
            )
        if min(self.weight_decay, self.warmup) < 0:
            raise ValueError(f"weight_decay and warmup must not be negative: {self.weight_decay}, {self.warmup}")
        if not 0 <= self.final_lr_ratio <= 1:
            raise ValueError(f"final_lr_ratio must lie in [0, 1]: {self.final_lr_ratio}")


def build_optimizer(parameters: list[nn.Parameter], config: LearnerConfig) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), or LaProp."""
    if config.optimizer == "laprop":
        return LaProp(parameters, config.lr, eps=config.eps, weight_decay=config.weight_decay)
    decay = config.weight_decay
    return torch.optim.AdamW(parameters, lr=config.lr, eps=config.eps, weight_decay=decay, fused=True)


class Learner:
    """Minimises a loss over its own parameters only; others that the loss depends on receive no gradient.

    A step whose loss or gradient is not finite is skipped: parameters and optimizer stay as they were.

    Args:
        loss: Maps any arguments to (scalar loss, anything). It must not change what it reads.
        parameters: What is trained.
        steps: Maps the arguments of the loss to the methods that `compile: step` compiles, each with its owner. By
            default the whole loss is compiled, which suits a loss without a loop over time.
    Raises:
        ValueError: if the loss is to be compiled and nothing can, or `auto` was left undecided.
    """

    def __init__(
        self,
        loss: Callable[..., tuple[Tensor, Any]],
        parameters: Iterable[nn.Parameter],
        config: LearnerConfig,
        steps: Callable[..., Iterable[tuple[object, str]]] | None = None,
    ) -> None:
        self.parameters, self.config = list(parameters), config
        self.optimizer = build_optimizer(self.parameters, config)
        self.updates = 0
        self.progress = 0.0  # share of all learning that is done, told before an update by whoever knows when it ends
        self.factor = 1.0  # of the learning rate, see `slow_down`
        self.plain = loss  # as it was given
        self.loss = self._as_configured(loss, steps)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Learner":
        """A copy computes its loss as it was given: what is compiled belongs to the weights of the original."""
        other = memo[id(self)] = object.__new__(type(self))
        others = {name: value for name, value in vars(self).items() if name != "loss"}
        vars(other).update(copy.deepcopy(others, memo))
        other.loss = other.plain
        return other

    def _as_configured(
        self, loss: Callable[..., tuple[Tensor, Any]], steps: Callable[..., Iterable[tuple[object, str]]] | None
    ) -> Callable[..., tuple[Tensor, Any]]:
        if self.config.compile == "auto":
            raise ValueError("compile: auto is decided by whoever knows how long is learned: set off, step or update")
        if self.config.compile == "off":
            return loss
        if self.config.compile == "update":
            return compiled(loss, "learner.compile", fullgraph=True, dynamic=False)
        if steps is None:
            return compiled(loss, "learner.compile", dynamic=False)
        check_compiler("learner.compile")

        def by_steps(*args: Any) -> tuple[Tensor, Any]:
            with compiled_methods(steps(*args), self.parameters[0].device.type):
                return loss(*args)

        return by_steps

    @property
    def lr(self) -> float:
        """The learning rate of update n, with w updates of warm-up and a share p of all learning done.

        lr (1/w + (1 - 1/w) min(n/w, 1)) (1 - (1 - final_lr_ratio) p) factor
        """
        config = self.config
        rise = 1 / config.warmup if config.warmup else 1.0
        risen = rise + (1 - rise) * min(self.updates / max(config.warmup, 1), 1.0)
        fallen = 1 - (1 - config.final_lr_ratio) * min(self.progress, 1.0)
        return config.lr * risen * fallen * self.factor

    def update(self, *args: Any) -> tuple[Any, dict[str, Tensor]]:
        """One step, or none.

        Returns:
            The second result of the loss, detached by its maker, and {"loss", "grad_norm", "skipped"}, the last being
            1 where the step was skipped, else 0.
        """
        with products_in(self.config.precision, self.parameters[0].device.type):
            loss, aux = self.loss(*args)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=self.parameters)
        norm = self.clipped()
        skipped = (~(loss.detach().isfinite() & norm.isfinite())).float()
        self.optimizer.found_inf = skipped  # type: ignore[attr-defined]  # read on the device: nothing waits for it
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.optimizer.step()
        self.updates += 1
        return aux, {"loss": loss.detach(), "grad_norm": norm, "skipped": skipped}

    def slow_down(self, factor: float) -> None:
        """Let the learning rate be `factor` times what the config says, from now on."""
        self.factor = factor

    def state(self) -> dict[str, Any]:
        """What the next step depends on besides the parameters, as nested mappings of tensors and numbers."""
        return {"optimizer": self.optimizer.state_dict(), "updates": self.updates, "factor": self.factor}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.factor = state["factor"]
        if "updates" in state:
            self.updates = state["updates"]
        elif state["warmup"] is not None:  # format 1: that of a scheduler, where there was one
            self.updates = state["warmup"]["last_epoch"]

    def clipped(self) -> Tensor:
        """Clip the gradients; returns their global norm before."""
        if self.config.adaptive_clip is None:
            return nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
        return clip_adaptively(self.parameters, self.config.adaptive_clip)
