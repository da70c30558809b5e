"""Searching for the best plan, over a score function alone: CEM, iCEM, MPPI, random shooting, gradient refinement.

An optimiser knows neither model nor environment: it is given a function from plans to scores, and a family that draws
plans, and plans for N problems at once. One search:

    theta <- prior, or what the last search left, one step on
    repeat: draw plans from theta, score them, fit theta to the best

Scores that are not finite count as the worst of all; where none is, the search keeps its theta. It says so wherever one
was no number or infinitely good, which no sound model predicts.
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
"""Plans (N, K, H, A) -> (N, K): what is to be maximised."""


class Plans(NamedTuple):
    """What one search leaves to the next."""

    params: Tensor  # (N, H, P) of the family
    elites: Tensor  # (N, E, H, A): plans to be considered again


class Search(NamedTuple):
    """The result of a search."""

    plan: Tensor  # (N, H, A), valid
    plans: Plans  # to be handed to the next search, one step later
    sound: Tensor  # (N,) bool: False where a score was no number or +inf, or none was finite


@dataclass
class RandomShootingConfig:
    """The best of many random plans (Richards 2005): the baseline."""

    candidates: int = 500

    def __post_init__(self) -> None:
        _at_least_one(self, "candidates")


@dataclass
class CEMConfig:
    """The cross-entropy method as PlaNet has it (Hafner et al. 2019, Algorithm 2)."""

    iterations: int = 10
    candidates: int = 1000
    elites: int = 100
    std: float = 1.0  # of the first candidates, of continuous actions
    warm_start: bool = False  # from the last plan, shifted by a step; PlaNet begins afresh

    def __post_init__(self) -> None:
        _at_least_one(self, "iterations", "candidates", "elites")
        _elites_fit(self.elites, self.candidates)
        _positive(self, "std")


@dataclass
class ICEMConfig:
    """CEM with noise correlated over time, elites that are kept, and a shrinking population (Pinneri et al. 2020).

    Made for few candidates and smooth plans. An optimum of high precision needs white noise and a constant population
    (beta 0, decay 1), or gradient refinement. Where the last plan is shifted, its new last step is open; the authors
    repeat the one before.
    """

    iterations: int = 3
    candidates: int = 64  # of the first iteration; at least twice the elites
    elites: int = 10
    std: float = 1.0  # of the first candidates, of continuous actions; the paper has 0.5
    beta: float = 2.0  # power spectrum f^-beta of the noise; 0 is white
    decay: float = 1.3  # of the population, per iteration, down to twice the elites
    keep: float = 0.3  # share of the elites that the next iteration, and the next search, considers again
    momentum: float = 0.1  # share of the old mean and std in the new ones

    def __post_init__(self) -> None:
        _at_least_one(self, "iterations", "candidates", "elites")
        _elites_fit(self.elites, self.candidates, 2)
        _positive(self, "std")
        if not (0 <= self.beta < math.inf and 1 <= self.decay < math.inf):
            raise ValueError(f"beta must be at least 0, decay 1, both finite: {self.beta}, {self.decay}")
        if not (0 <= self.keep <= 1 and 0 <= self.momentum < 1):
            raise ValueError(f"keep must lie in [0, 1], momentum in [0, 1): {self.keep}, {self.momentum}")


@dataclass
class MPPIConfig:
    """Model predictive path integral control, as TD-MPC2 has it (Williams et al. 2015; Hansen et al. 2024).

    Where TD-MPC2 explores with the std that the search ends with, all planners here add `planner.noise`; proposals of a
    policy come on top of the candidates, not out of them; and a deterministic answer is the middle, not a draw.
    """

    iterations: int = 6
    candidates: int = 512
    elites: int = 64
    temperature: float = 0.5  # weights are proportional to exp(temperature * score)
    min_std: float = 0.05  # of continuous actions
    max_std: float = 2.0  # also of the first candidates

    def __post_init__(self) -> None:
        _at_least_one(self, "iterations", "candidates", "elites")
        _elites_fit(self.elites, self.candidates)
        _positive(self, "temperature", "max_std")
        if not 0 <= self.min_std <= self.max_std:
            raise ValueError(f"min_std must lie in [0, max_std]: {self.min_std}, {self.max_std}")


class Optimiser:
    """The search that all share; each says how it draws, how it weighs the elites and what it answers.

    Args:
        family: of the plans. horizon: H. iterations, candidates, elites: of each search.
    """

    warm_start = True
    kept = 0  # elites that the next iteration considers again
    momentum = 0.0

    def __init__(
        self, family: PlanFamily, spec: ActionSpec, horizon: int, iterations: int, candidates: int, elites: int
    ) -> None:
        self.family, self.spec, self.horizon = family, spec, horizon
        self.iterations, self.candidates, self.elites = iterations, candidates, elites

    def initial(self, count: int, device: torch.device) -> Plans:
        """Before the first search of an episode: nothing is known, and the elites are any plans."""
        params = self.family.prior(count, self.horizon, device)
        return Plans(params, self.family.sample(params, self.noise(count, self.kept, device)))

    @torch.no_grad()
    def search(self, score: Score, plans: Plans, proposals: Tensor | None = None, greedy: bool = True) -> Search:
        """Look for the plan with the highest score.

        Args:
            plans: of the last search, or `initial`.
            proposals: plans (N, L, H, A) from elsewhere, such as a policy's, to be considered in every iteration.
            greedy: whether an optimiser that draws its answer shall give its best estimate instead.
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
            known = weights[:, :1, None] > 0  # the best is
            fitted = self.family.fit(elites, weights / weights.sum(1, keepdim=True))
            params = torch.where(known, torch.lerp(fitted, params, self.momentum), params)
            again = elites[:, : self.kept]
        plan = torch.where(known, self.answer(params, elites, weights, greedy), self.family.mode(params))
        return Search(plan, self.shifted(Plans(params, again)), sound & known.flatten())

    def chosen(self, considered: Tensor, value: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
        """The elites (N, E, H, A) of plans (N, K, H, A) with scores (N, K), best first, and their weights (N, E).

        Those without a finite score have no weight, and `middle` (N, H, A) stands in their place.
        """
        value, index = torch.where(value.isfinite(), value, -torch.inf).topk(self.elites, 1)
        elites = considered.gather(1, index[..., None, None].expand(-1, -1, *considered.shape[2:]))
        usable = value.isfinite()
        elites = torch.where(usable[..., None, None], elites, middle.unsqueeze(1))
        return elites, torch.where(usable, self.weights(value - value[:, :1]), 0)

    def population(self, iteration: int) -> int:
        """How many candidates are drawn."""
        return self.candidates

    def last_middle(self, iteration: int) -> bool:
        """Whether the middle of the distribution is itself a candidate."""
        return False

    def noise(self, count: int, candidates: int, device: torch.device) -> Tensor:
        """(N, K, H, A) of standard normals."""
        return torch.randn(count, candidates, self.horizon, self.spec.width, device=device)

    def weights(self, below: Tensor) -> Tensor:
        """(N, E) scores less the best of them, in falling order -> positive weights, of any sum: all alike."""
        return torch.ones_like(below)

    def answer(self, params: Tensor, elites: Tensor, weights: Tensor, greedy: bool) -> Tensor:
        """(N, H, A): the plan, from what the last iteration found: the best."""
        return elites[:, 0]

    def shifted(self, plans: Plans) -> Plans:
        """One step on: the first control is taken, the last one open."""
        count, device = len(plans.params), plans.params.device
        if not self.warm_start:
            return self.initial(count, device)
        prior = self.family.prior(count, self.horizon, device)
        params = torch.cat([self.family.widen(plans.params[:, 1:]), prior[:, -1:]], 1)
        last = self.family.sample(prior, self.noise(count, plans.elites.shape[1], device))[:, :, -1:]
        return Plans(params, torch.cat([plans.elites[:, :, 1:], last], 2))


class RandomShooting(Optimiser):
    """The best of plans drawn from the prior."""

    warm_start = False

    def __init__(self, config: RandomShootingConfig, spec: ActionSpec, horizon: int) -> None:
        super().__init__(plan_family(spec), spec, horizon, 1, config.candidates, 1)

    def noise(self, count: int, candidates: int, device: torch.device) -> Tensor:
        """For a box, whose prior is N(0, 1) here, noise that is uniform covers it evenly."""
        if self.spec.classes:
            return super().noise(count, candidates, device)
        return torch.rand(count, candidates, self.horizon, self.spec.width, device=device) * 2 - 1


class CEM(Optimiser):
    """Fits a distribution to the elites, all alike, and answers with its middle."""

    def __init__(self, config: CEMConfig, spec: ActionSpec, horizon: int) -> None:
        family = plan_family(spec, config.std)
        super().__init__(family, spec, horizon, config.iterations, config.candidates, config.elites)
        self.warm_start = config.warm_start

    def answer(self, params: Tensor, elites: Tensor, weights: Tensor, greedy: bool) -> Tensor:
        return self.family.mode(params)


class ICEM(Optimiser):
    """CEM that wastes less: for few candidates. Answers with the best plan of the last iteration."""

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


class MPPI(Optimiser):
    """Weighs the elites by exp(temperature * score); answers with the middle, or with one of them drawn by weight."""

    def __init__(self, config: MPPIConfig, spec: ActionSpec, horizon: int) -> None:
        family = plan_family(spec, config.max_std, config.min_std, config.max_std)
        super().__init__(family, spec, horizon, config.iterations, config.candidates, config.elites)
        self.temperature = config.temperature

    def weights(self, below: Tensor) -> Tensor:
        return (self.temperature * below).exp()

    def answer(self, params: Tensor, elites: Tensor, weights: Tensor, greedy: bool) -> Tensor:
        if greedy:
            return self.family.mode(params)
        usable = torch.where(weights.sum(1, keepdim=True) > 0, weights, 1)  # none is: the caller falls back
        index = usable.multinomial(1)[..., None, None]
        return elites.gather(1, index.expand(-1, 1, *elites.shape[2:])).squeeze(1)


def refined(score: Score, plan: Tensor, steps: int, rate: float) -> Tensor:
    """Gradient ascent on a differentiable score, from a plan (N, H, A) of a box; the best of all plans on the way.

    Each step moves every number by at most `rate`: the gradient is divided by its largest entry, so that the unit of
    the score does not matter. Where there is no gradient the plan stays.
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
            raise ValueError(f"{name} must be at least 1: {getattr(config, name)}")
        at_most(config, **{name: HORIZON if name == "iterations" else CANDIDATES})


def _positive(config: object, *names: str) -> None:
    for name in names:
        if not 0 < getattr(config, name) < math.inf:
            raise ValueError(f"{name} must be positive and finite: {getattr(config, name)}")


def _elites_fit(elites: int, candidates: int, times: int = 1) -> None:
    if times * elites > candidates:
        at_least = f"{times} times the elites" if times > 1 else "the elites"
        raise ValueError(f"candidates must be at least {at_least}: {candidates} candidates, {elites} elites")
