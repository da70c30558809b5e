"""Lambda returns and the scale they are measured in."""

import torch
from torch import Tensor, nn


def lambda_returns(reward: Tensor, cont: Tensor, value: Tensor, discount: float, lambda_: float | Tensor) -> Tensor:
    """Returns of imagined states s_0..s_{H-1}.

        R_h = r_h + discount c_h ((1 - lambda) v_{h+1} + lambda R_{h+1}),    R_H = v_H

    Args:
        reward: (N, H), r_h received on arriving at s_{h+1}.
        cont: (N, H), c_h, the probability that the return goes on after s_{h+1}.
        value: (N, H + 1), v_0..v_H; v_0 is not used.
        lambda_: one number, or one of each step (N, H): 0 where nothing is known beyond s_{h+1}.
    Returns:
        (N, H). Schulman et al. 2016; Hafner et al. 2020, Eq. 6, with the index of an arrival.
    """
    steps = discount * cont
    trust = lambda_ if isinstance(lambda_, Tensor) else torch.full_like(reward, lambda_)
    future, returns = value[:, -1], []
    for h in reversed(range(reward.shape[1])):
        future = reward[:, h] + steps[:, h] * torch.lerp(value[:, h + 1], future, trust[:, h])
        returns.append(future)
    return torch.stack(returns[::-1], 1)


def discount_weights(start: Tensor, cont: Tensor, discount: float) -> Tensor:
    """Probability, discounted, that s_0..s_{H-1} are reached: (N,), (N, H) -> (N, H), without gradient.

    w_0 is that of the start, w_h = w_{h-1} discount c_{h-1}: an action never weighs its own outcome.
    """
    steps = torch.cat([start.unsqueeze(1), discount * cont[:, :-1]], 1)
    return steps.cumprod(1).detach()


def percentile_spread(returns: Tensor) -> Tensor:
    """P95 - P5 of a batch of returns (any shape), without gradient."""
    low, high = torch.quantile(returns.detach().flatten(), returns.new_tensor([0.05, 0.95]))
    return high - low


class ReturnScale(nn.Module):
    """max(floor, EMA of P95 - P5 of the returns): the unit of advantages (DreamerV3, Eq. 7).

    Large returns are scaled down; small ones are not blown up beyond the floor, so that noise stays noise. A spread
    that is not finite is left out: the average would never recover.

    Args:
        floor: DreamerV3's is 1, for rewards of about that size; see :meth:`lower_floor`.
        corrected: whether the average is corrected for its start at zero, as Adam's moments are. DreamerV3's is not:
            its scale grows from the floor, over about 1 / rate updates.
    """

    spread: Tensor
    seen: Tensor
    floor: Tensor

    def __init__(self, rate: float = 0.01, floor: float = 1.0, corrected: bool = True) -> None:
        super().__init__()
        self.rate, self.corrected = rate, corrected
        self.register_buffer("floor", torch.tensor(floor), persistent=False)
        self.register_buffer("spread", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))

    def lower_floor(self, largest: Tensor) -> None:
        """Let the floor be the size of the largest reward where that is below 1, so that no unit is too small to learn.

        Args:
            largest: absolute reward of all that were recorded; with none above 0 the floor is 1.
        """
        self.floor.copy_(torch.where(largest > 0, largest, torch.ones_like(largest)).clamp(max=1.0))

    def after(self, spread: Tensor) -> Tensor:
        """The scale once the spread of a batch is in the average; nothing changes yet."""
        total, seen = self._averages(spread)
        return torch.maximum(total / seen.clamp(min=1e-8) if self.corrected else total, self.floor)

    @torch.no_grad()
    def update(self, spread: Tensor) -> None:
        """Take the spread of a batch into the average."""
        total, seen = self._averages(spread)
        self.spread.copy_(total)
        self.seen.copy_(seen)

    def _averages(self, spread: Tensor) -> tuple[Tensor, Tensor]:
        rate = self.rate * spread.isfinite()
        return self.spread.lerp(spread.nan_to_num(0, 0, 0), rate), self.seen.lerp(torch.ones_like(self.seen), rate)
