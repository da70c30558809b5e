"""Search for the plan with the highest score: CEM, iCEM, MPPI, random shooting, gradient refinement.

An optimizer does not depend on a model or an environment. It needs a function from plans to scores, and a family of
plan distributions. It solves N problems at once. One search:

    theta <- the prior, or the result of the last search shifted by one step
    repeat: sample plans from theta, compute their scores, fit theta to the best plans

A score that is not finite counts as the worst of all. If no score is finite, the search keeps theta. The result
reports every problem in which a score was NaN or +inf, or in which no score was finite.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from worldmodel.agents.planning.plans import PlanFamily, colour, plan_family
from worldmodel.specs import ActionSpec
from worldmodel.validation import CANDIDATES, HORIZON, at_most

Score = Callable[[Tensor], Tensor]
"""A function from plans (N, K, H, A) to scores (N, K), which are maximized."""


class Plans(NamedTuple):
    """The state that one search passes on to the next."""

    params: Tensor  # (N, H, P), parameters of the family
    elites: Tensor  # (N, E, H, A), plans that become candidates again


class Search(NamedTuple):
    """The result of a search."""

    plan: Tensor  # (N, H, A), the best plan, always valid
    plans: Plans  # the state for the next search, one step later
    sound: Tensor  # (N,) bool: False if a score was NaN or +inf, or if no score was finite


@dataclass
class RandomShootingConfig:
    """The best of many random plans (Richards 2005), a baseline."""

    candidates: int = 500

    def __post_init__(self) -> None:
        _at_least_one(self, "candidates")


@dataclass
class CEMConfig:
    """The cross-entropy method as in PlaNet (Hafner et al. 2019, Algorithm 2)."""

    iterations: int = 10
    candidates: int = 1000
    elites: int = 100
    std: float = 1.0  # of the first candidates, for continuous actions
    warm_start: bool = False  # begin with the last plan, shifted by one step; PlaNet begins with the prior

    def __post_init__(self) -> None:
        _at_least_one(self, "iterations", "candidates", "elites")
        _elites_fit(self.elites, self.candidates)
        _positive(self, "std")


@dataclass
class ICEMConfig:
    """CEM with noise correlated over time, kept elites, and a shrinking population (Pinneri et al. 2020).

    It suits few candidates and smooth plans. A very precise optimum needs white noise and a constant population (beta
    0, decay 1), or gradient refinement. When the last plan is shifted, its new last step is drawn from the prior; the
    authors repeat the step before it.
    """

    iterations: int = 3
    candidates: int = 64  # in the first iteration; at least twice the elites
    elites: int = 10
    std: float = 1.0  # of the first candidates, for continuous actions; the paper has 0.5
    beta: float = 2.0  # the noise has the power spectrum f^-beta; 0: white noise
    decay: float = 1.3  # the population is divided by this in each iteration, down to twice the elites
    keep: float = 0.3  # share of the elites that become candidates again in the next iteration and the next search
    momentum: float = 0.1  # weight of the old parameters in the new ones

    def __post_init__(self) -> None:
        _at_least_one(self, "iterations", "candidates", "elites")
        _elites_fit(self.elites, self.candidates, 2)
        _positive(self, "std")
        if not (0 <= self.beta < math.inf and 1 <= self.decay < math.inf):
            raise ValueError(
                f"beta must be at least 0 and decay at least 1, both finite, got {self.beta} and {self.decay}"
            )
        if not (0 <= self.keep <= 1 and 0 <= self.momentum < 1):
            raise ValueError(f"keep must lie in [0, 1] and momentum in [0, 1), got {self.keep} and {self.momentum}")


@dataclass
class MPPIConfig:
    """Model predictive path integral control as in TD-MPC2 (Williams et al. 2015; Hansen et al. 2024).

    There are three differences from TD-MPC2. It explores with the final std of the search; here all planners add
    `planner.noise`. Its policy proposals replace some candidates; here they are added to them. Its deterministic
    answer is sampled; here it is the center of the distribution.
    """

    iterations: int = 6
    candidates: int = 512
    elites: int = 64
    temperature: float = 0.5  # weights are proportional to exp(temperature * score)
    min_std: float = 0.05  # for continuous actions
    max_std: float = 2.0  # also the std of the first candidates

    def __post_init__(self) -> None:
        _at_least_one(self, "iterations", "candidates", "elites")
        _elites_fit(self.elites, self.candidates)
        _positive(self, "temperature", "max_std")
        if not 0 <= self.min_std <= self.max_std:
            raise ValueError(f"min_std must lie in [0, max_std], got {self.min_std} and {self.max_std}")


class Optimizer:
    """The search that all optimizers share. A subclass defines the noise, the weights of the elites, and the answer.

    Args:
        family: the family of plan distributions.
        spec: the spec of the actions.
        horizon: the number of steps of a plan, H.
        iterations: the number of iterations of a search.
        candidates: the number of candidates of an iteration.
        elites: the number of best candidates that the distribution is fitted to.
    """

    warm_start = True
    kept = 0  # number of elites that become candidates again
    momentum = 0.0

    def __init__(
        self, family: PlanFamily, spec: ActionSpec, horizon: int, iterations: int, candidates: int, elites: int
    ) -> None:
        self.family, self.spec, self.horizon = family, spec, horizon
        self.iterations, self.candidates, self.elites = iterations, candidates, elites

    def initial(self, count: int, device: torch.device) -> Plans:
        """Return the state before the first search of an episode: the prior, with random plans as elites."""
        params = self.family.prior(count, self.horizon, device)
        return Plans(params, self.family.sample(params, self.noise(count, self.kept, device)))

    @torch.no_grad()
    def search(self, score: Score, plans: Plans, proposals: Tensor | None = None, greedy: bool = True) -> Search:
        """Search for the plan with the highest score.

        Args:
            score: the function to maximize.
            plans: the state from the last search, or from :meth:`initial`.
            proposals: more candidates (N, L, H, A) for every iteration, for example from a policy.
            greedy: whether to return the best estimate, also if the optimizer would otherwise sample its answer.
        """
        params, again = plans
        count, device = len(params), params.device
        given = [] if proposals is None else [proposals]
        sound = torch.ones(count, dtype=torch.bool, device=device)
        for iteration in range(self.iterations):
            middle = self.family.mode(params)
            drawn = self.family.sample(params, self.noise(count, self.population(iteration), device))
            more = [middle.unsqueeze(1)] if self.last_middle(iteration) else []
            considered = torch.cat([drawn, again, *more, *given], 1)
            value = score(considered).float()
            assert value.shape == considered.shape[:2], (value.shape, considered.shape)
            sound = sound & (value < torch.inf).all(1)  # False for NaN too
            elites, weights = self.chosen(considered, value, middle)
            known = weights[:, :1, None] > 0  # whether any score is finite
            fitted = self.family.fit(elites, weights / weights.sum(1, keepdim=True))
            params = torch.where(known, torch.lerp(fitted, params, self.momentum), params)
            again = elites[:, : self.kept]
        plan = torch.where(known, self.answer(params, elites, weights, greedy), self.family.mode(params))
        return Search(plan, self.shifted(Plans(params, again)), sound & known.flatten())

    def chosen(self, considered: Tensor, value: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
        """Return the elites (N, E, H, A), best first, and their weights (N, E).

        An elite whose score is not finite is replaced by `middle` and has weight 0.

        Args:
            considered: plans (N, K, H, A).
            value: their scores (N, K).
            middle: the central plans (N, H, A).
        """
        value, index = torch.where(value.isfinite(), value, -torch.inf).topk(self.elites, 1)
        elites = considered.gather(1, index[..., None, None].expand(-1, -1, *considered.shape[2:]))
        usable = value.isfinite()
        elites = torch.where(usable[..., None, None], elites, middle.unsqueeze(1))
        return elites, torch.where(usable, self.weights(value - value[:, :1]), 0)

    def population(self, iteration: int) -> int:
        """Return the number of candidates to sample."""
        return self.candidates

    def last_middle(self, iteration: int) -> bool:
        """Return True if the center of the distribution is itself a candidate."""
        return False

    def noise(self, count: int, candidates: int, device: torch.device) -> Tensor:
        """Return standard normal noise (N, K, H, A)."""
        return torch.randn(count, candidates, self.horizon, self.spec.width, device=device)

    def weights(self, below: Tensor) -> Tensor:
        """Return positive weights (N, E) of the elites, here equal ones. They need not sum to 1.

        Args:
            below: the scores minus the best score, in decreasing order (N, E).
        """
        return torch.ones_like(below)

    def answer(self, params: Tensor, elites: Tensor, weights: Tensor, greedy: bool) -> Tensor:
        """Return the plans (N, H, A) found by the search, here the best elite of the last iteration."""
        return elites[:, 0]

    def shifted(self, plans: Plans) -> Plans:
        """Shift the state by one step: drop the first action, and draw the last one from the prior."""
        count, device = len(plans.params), plans.params.device
        if not self.warm_start:
            return self.initial(count, device)
        prior = self.family.prior(count, self.horizon, device)
        params = torch.cat([self.family.widen(plans.params[:, 1:]), prior[:, -1:]], 1)
        last = self.family.sample(prior, self.noise(count, plans.elites.shape[1], device))[:, :, -1:]
        return Plans(params, torch.cat([plans.elites[:, :, 1:], last], 2))


class RandomShooting(Optimizer):
    """Returns the best of plans sampled from the prior."""

    warm_start = False

    def __init__(self, config: RandomShootingConfig, spec: ActionSpec, horizon: int) -> None:
        super().__init__(plan_family(spec), spec, horizon, 1, config.candidates, 1)

    def noise(self, count: int, candidates: int, device: torch.device) -> Tensor:
        """Return uniform noise for continuous actions, so that plans cover the box evenly: the prior's std is 1."""
        if self.spec.classes:
            return super().noise(count, candidates, device)
        return torch.rand(count, candidates, self.horizon, self.spec.width, device=device) * 2 - 1


class CEM(Optimizer):
    """Fits a distribution to the elites with equal weights, and returns its center."""

    def __init__(self, config: CEMConfig, spec: ActionSpec, horizon: int) -> None:
        family = plan_family(spec, config.std)
        super().__init__(family, spec, horizon, config.iterations, config.candidates, config.elites)
        self.warm_start = config.warm_start

    def answer(self, params: Tensor, elites: Tensor, weights: Tensor, greedy: bool) -> Tensor:
        return self.family.mode(params)


class ICEM(Optimizer):
    """A variant of CEM that needs fewer candidates. Returns the best plan of the last iteration."""

    def __init__(self, config: ICEMConfig, spec: ActionSpec, horizon: int) -> None:
        family = plan_family(spec, config.std)
        super().__init__(family, spec, horizon, config.iterations, config.candidates, config.elites)
        self.kept, self.momentum, self.decay = round(config.keep * config.elites), config.momentum, config.decay
        self.colour = colour(horizon, config.beta)

    def population(self, iteration: int) -> int:
        return max(round(self.candidates * self.decay**-iteration), 2 * self.elites)

    def last_middle(self, iteration: int) -> bool:
        return iteration == self.iterations - 1

    def noise(self, count: int, candidates: int, device: torch.device) -> Tensor:
        white = torch.randn(count, candidates, self.spec.width, self.horizon, device=device)
        return (white @ self.colour.to(device)).mT


class MPPI(Optimizer):
    """Weights the elites by exp(temperature * score). Returns the center, or an elite sampled by its weight."""

    def __init__(self, config: MPPIConfig, spec: ActionSpec, horizon: int) -> None:
        family = plan_family(spec, config.max_std, config.min_std, config.max_std)
        super().__init__(family, spec, horizon, config.iterations, config.candidates, config.elites)
        self.temperature = config.temperature

    def weights(self, below: Tensor) -> Tensor:
        return (self.temperature * below).exp()

    def answer(self, params: Tensor, elites: Tensor, weights: Tensor, greedy: bool) -> Tensor:
        if greedy:
            return self.family.mode(params)
        usable = torch.where(weights.sum(1, keepdim=True) > 0, weights, 1)  # if all are 0, the caller uses the old plan
        index = usable.multinomial(1)[..., None, None]
        return elites.gather(1, index.expand(-1, 1, *elites.shape[2:])).squeeze(1)


def refined(score: Score, plan: Tensor, steps: int, rate: float) -> Tensor:
    """Improve continuous plans (N, H, A) by gradient ascent on a differentiable score. Return the best plan found.

    Each step changes every entry by at most `rate`. The gradient is divided by its largest entry, so the unit of the
    score does not matter. Without a gradient, the plan is not changed.
    """
    best, best_value = plan, torch.full_like(plan[:, 0, 0], -torch.inf)
    for step in range(steps + 1):
        with torch.enable_grad():
            plan = plan.detach().requires_grad_()
            value = score(plan.unsqueeze(1)).squeeze(1)
            slope = torch.autograd.grad(value.sum(), plan, allow_unused=True)[0] if value.requires_grad else None
        value = torch.where(value.isfinite(), value, -torch.inf).detach().to(best_value)
        better = value > best_value
        best = torch.where(better[:, None, None], plan.detach(), best)
        best_value = torch.where(better, value, best_value)
        if slope is None or step == steps:
            break
        size = slope.abs().amax((1, 2), keepdim=True)
        move = torch.where(size > 0, slope / size, 0).nan_to_num()
        plan = (plan.detach() + rate * move).clamp(-1, 1)
    return best


def _at_least_one(config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
        at_most(config, **{name: HORIZON if name == "iterations" else CANDIDATES})


def _positive(config: object, *names: str) -> None:
    for name in names:
        if not 0 < getattr(config, name) < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {getattr(config, name)}")


def _elites_fit(elites: int, candidates: int, times: int = 1) -> None:
    if times * elites > candidates:
        at_least = f"{times} times the elites" if times > 1 else "the elites"
        raise ValueError(f"candidates must be at least {at_least}, got {candidates} candidates and {elites} elites")
