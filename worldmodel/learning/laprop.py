"""The optimizer of DreamerV3: LaProp, with gradients clipped relative to what they change."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


class LaProp(torch.optim.Optimizer):
    """Momentum of normalised gradients (Ziyin et al. 2020, Algorithm 1), where Adam normalises the momentum.

        v_t = b_2 v_{t-1} + (1 - b_2) g_t^2
        m_t = b_1 m_{t-1} + (1 - b_1) g_t / (sqrt(v_t / (1 - b_2^t)) + eps)
        theta_t = theta_{t-1} - lr (m_t / (1 - b_1^t) + weight_decay theta_{t-1})

    A gradient is normalised before it is remembered, so that no later one changes what it counts for: a sudden large
    gradient does not make the steps after it tiny. No step is larger than lr / sqrt(1 - b_2), which is reached where
    gradients have been nothing for long. DreamerV3 has eps = 1e-20.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-20,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient; none where the attribute `found_inf` is set to 1.

        The name is that of torch's own optimizers, which read it from a gradient scaler.
        """
        skipped: Tensor | None = getattr(self, "found_inf", None)
        if skipped is not None and skipped.device.type == "cpu":
            if skipped:
                return
            skipped = None
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._update_unless(skipped, parameters, group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state, on the devices of the parameters; torch leaves a `step` where it was."""
        super().load_state_dict(state_dict)
        for parameter, state in self.state.items():
            state["step"] = state["step"].to(parameter.device)

    def _update_unless(self, skipped: Tensor | None, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Where nobody is to wait for what a device finds, the update is made and, if need be, taken back there."""
        changed = [*parameters, *(value for each in parameters for value in self._state(each))]
        if skipped is None:
            self._update(parameters, group)
            return
        before = [value.clone() for value in changed]
        self._update(parameters, group)
        for value, old in zip(changed, before, strict=True):
            value.copy_(torch.where(skipped > 0, old, value))

    def _state(self, parameter: Tensor) -> Iterable[Tensor]:
        """What is remembered of a parameter; nothing yet at first."""
        if not self.state[parameter]:
            zero = torch.zeros((), device=parameter.device)
            mean, square = torch.zeros_like(parameter), torch.zeros_like(parameter)
            self.state[parameter].update(step=zero, mean=mean, square=square)
        return self.state[parameter].values()

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        steps, means, squares = ([self.state[p][name] for p in parameters] for name in ("step", "mean", "square"))
        (first, second), lr = group["betas"], group["lr"]
        torch._foreach_add_(steps, 1)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
        taken = torch.stack(steps)  # all at once what a device would be asked for tensor by tensor
        scale = torch._foreach_div(squares, (1 - second**taken).unbind())
        torch._foreach_sqrt_(scale)
        torch._foreach_add_(scale, group["eps"])
        torch._foreach_lerp_(means, torch._foreach_div(gradients, scale), 1 - first)
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        torch._foreach_sub_(parameters, torch._foreach_mul(means, (lr / (1 - first**taken)).unbind()))


@torch.no_grad()
def clip_adaptively(parameters: Sequence[Tensor], limit: float, least: float = 1e-3) -> Tensor:
    """Scale each gradient down to at most `limit` times the norm of its parameter (Brock et al. 2021, by tensor).

    A parameter counts as having a norm of `least` at least, so that one that begins at zero can leave it. DreamerV3
    has limit = 0.3.

    Returns:
        The global norm of the gradients as they were.
    """
    found = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
    gradients = [gradient for _, gradient in found]
    sizes, norms = (torch.stack(torch._foreach_norm(each)) for each in ([one for one, _ in found], gradients))
    factors = (limit * sizes.clamp(min=least) / norms.clamp(min=1e-30)).clamp(max=1.0)
    torch._foreach_mul_(gradients, factors.unbind())
    return norms.norm()
