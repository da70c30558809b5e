"""What is optimized. The ELBO itself stays exact; weights, free nats and balance make an objective, not a bound."""

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from worldmodel.learning.bounds import importance_bound
from worldmodel.learning.redundancy import redundancy
from worldmodel.model import WorldModel
from worldmodel.types import Batch, Elbo, Inference, State
from worldmodel.validation import MEMBERS, at_most

Metrics = dict[str, Tensor]


@dataclass
class ObjectiveConfig:
    """loss = - sum_k weight_k log p_k + beta max(free_nats, KL). With free_nats 0, else defaults, it is -ELBO.

    Where images have no decoder, what their redundancy counts is added.

    Without free nats a run can fall into a collapse that costs it the exact ELBO as well: what changes slowly (the
    cart's position) is at first cheaper to call noise, by a large predicted sigma, than to carry in z_t.
    """

    beta: float = 1.0
    free_nats: float = 1.0  # nats per step below which the KL is not pushed (Kingma et al. 2016; PlaNet 3, V3 1)
    free_nats_for: Literal["posterior", "both", "batch"] = "posterior"  # both: V3; batch: its mean, of both (V1)
    balance: float | None = None  # share of the KL whose gradient goes to p, the rest to q (DreamerV2, Eq. 2)
    weights: dict[str, float] = field(default_factory=dict)  # by emission: an observation key, reward, continue
    redundancy: float = 0.05  # weight of that of images without a decoder; both numbers are of R2-Dreamer's code
    redundancy_pairs: float = 5e-4  # in it, of each pair of different entries; Barlow Twins have 5e-3
    anneal: int = 0  # updates over which beta goes from beta_start, and free_nats from free_nats_start
    beta_start: float = 0.0  # from below 1 q learns first (Bowman et al. 2016), from above p must: the dynamics
    free_nats_start: float | None = None  # free_nats throughout by default
    bound: Literal["elbo", "iwae", "fivo"] = "elbo"  # the last two take beta_start and anneal alone of these
    particles: int = 4  # of iwae and fivo
    resample: float = 0.5  # effective share of the particles below which fivo resamples them

    def __post_init__(self) -> None:
        if self.bound not in ("elbo", "iwae", "fivo"):
            raise ValueError(f"bound is elbo, iwae or fivo: '{self.bound}'")
        if self.free_nats_for not in ("posterior", "both", "batch"):
            raise ValueError(f"free_nats_for is posterior, both or batch: '{self.free_nats_for}'")
        if self.bound != "elbo" and (self.beta != 1 or self.balance is not None or self.weights):
            raise ValueError(f"beta, balance and weights shape the elbo; with bound: {self.bound} leave them out")
        if self.particles < 1 or not 0 < self.resample <= 1 or self.anneal < 0:
            raise ValueError(
                "particles must be at least 1, resample in (0, 1], anneal not negative: "
                f"{self.particles}, {self.resample}, {self.anneal}"
            )
        at_most(self, particles=MEMBERS)
        if self.free_nats_start is not None and (self.bound != "elbo" or not self.anneal):
            raise ValueError(
                "free_nats_start is of no effect without anneal, or with another bound than the elbo: "
                f"{self.free_nats_start}, {self.anneal}, {self.bound}"
            )
        if self.beta_start and not self.anneal:
            raise ValueError(f"beta_start is of no effect without anneal: {self.beta_start}, {self.anneal}")
        unused = {
            "free_nats": self.bound != "elbo" and self.free_nats not in (0, ObjectiveConfig.free_nats),
            "particles": self.bound == "elbo" and self.particles != ObjectiveConfig.particles,
            "free_nats_for": self.bound != "elbo" and self.free_nats_for != ObjectiveConfig.free_nats_for,
            "resample": self.bound != "fivo" and self.resample != ObjectiveConfig.resample,
        }
        for name in (name for name, is_unused in unused.items() if is_unused):
            raise ValueError(f"{name} is of no effect with bound: {self.bound}: {getattr(self, name)}")
        plain = ("beta", "beta_start", "free_nats", "free_nats_start", "redundancy", "redundancy_pairs")
        numbers = {name: getattr(self, name) or 0.0 for name in plain}
        for name, value in (numbers | {f"weights.{key}": weight for key, weight in self.weights.items()}).items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must not be negative, and finite: {value}")
        if self.balance is not None and not 0 <= self.balance <= 1:
            raise ValueError(f"balance must lie in [0, 1]: {self.balance}")


class Annealed(NamedTuple):
    """The two numbers that a schedule moves, as tensors (), so that a compiled update stays the same."""

    beta: Tensor
    free_nats: Tensor


def annealed(config: ObjectiveConfig, updates: int, device: torch.device | str = "cpu") -> Annealed:
    """beta and free nats after that many updates, linear from their starts."""
    share = min(1.0, updates / config.anneal) if config.anneal else 1.0
    first = config.free_nats if config.free_nats_start is None else config.free_nats_start
    values = (config.beta_start, config.beta), (first, config.free_nats)
    return Annealed(*(torch.tensor(start + share * (end - start), device=device) for start, end in values))


def trained_kl(
    model: WorldModel,
    inference: Inference,
    config: ObjectiveConfig,
    free_nats: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """(B, T): the KL as it is trained, its gradient split between prior and posterior (derivation Eq. 42, 43).

        balance KL(sg q || p) + (1 - balance) max(free_nats, KL(q || sg p))

    Without balance both shares are whole, and the value is max(free_nats, KL), counted once.

    Free nats hold for the posterior alone: a prior that is not pushed either would stop learning the dynamics just
    where they are almost known. The papers spare both, step by step (V3) or in the batch's mean over `mask` (V1).
    """
    kl, free = model.dynamics.latent.kl, config.free_nats if free_nats is None else free_nats
    to_prior = kl(inference.posterior.detach(), inference.prior)
    to_posterior = kl(inference.posterior, inference.prior.detach())
    if config.free_nats_for == "batch":
        mask = torch.ones_like(to_prior) if mask is None else mask
        enough = (to_prior * mask).sum() / mask.sum() > free
        to_prior, to_posterior = (torch.where(enough, each, free) for each in (to_prior, to_posterior))
    else:
        to_posterior = to_posterior.clamp(min=free)
        if config.free_nats_for == "both":
            to_prior = to_prior.clamp(min=free)
    if config.balance is None:
        return to_posterior + (to_prior - to_prior.detach())
    return config.balance * to_prior + (1 - config.balance) * to_posterior


def check_objective(model: WorldModel, config: ObjectiveConfig) -> None:
    """Refuse what a model cannot be trained for.

    Raises:
        ValueError: for weights of what it does not emit, naming them and what there is; for redundancy where every
            image has a decoder; for another bound than the elbo where one has none.
    """
    settings = (config.redundancy, config.redundancy_pairs)
    if model.projector is None and settings != (ObjectiveConfig.redundancy, ObjectiveConfig.redundancy_pairs):
        raise ValueError(
            "objective.redundancy and redundancy_pairs are of no effect without model.images: redundancy, leave them "
            f"out: {settings}"
        )
    if model.projector is not None and config.bound != "elbo":
        raise ValueError(
            f"model.images: redundancy is for objective.bound elbo, not {config.bound}, whose particles are weighed by "
            "what they say of the images"
        )
    unknown = sorted(config.weights.keys() - set(model.emissions))
    if unknown:
        raise ValueError(f"objective.weights names {unknown}; the model emits {sorted(model.emissions)}")


def particle_bound(model: WorldModel, batch: Batch, config: ObjectiveConfig, beta: Tensor | float = 1.0) -> Tensor:
    """(B, T): the increments of IWAE or FIVO, whichever a config names; see :mod:`worldmodel.learning.bounds`."""
    return importance_bound(model, batch, config.particles, config.resample if config.bound == "fivo" else 0.0, beta)


class Objective(NamedTuple):
    """What is optimized, and what it was computed from."""

    loss: Tensor  # (B, T), zero where padded
    inference: Inference
    elbo: Elbo  # exact
    redundancy: Tensor | None  # (): of the whole batch, without its weight; None where every image has a decoder


def objective(
    model: WorldModel,
    batch: Batch,
    config: ObjectiveConfig,
    now: Annealed | None = None,
    start: State | None = None,
) -> Objective:
    """The loss of every step (B, T), derivation Eq. 41, with the inference and the exact ELBO it was computed from.

    The redundancy (Eq. 83) has no value for a step by itself: that of the batch is added to each, so that the mean
    over recorded steps contains it once.

    Args:
        now: beta and free nats of this update; those at the end of the schedule by default.
        start: the state before each window; the initial one by default.
    Raises:
        ValueError: as :func:`check_objective`, or if a start is given with another bound than the elbo, which begins
            from the initial state.
    """
    check_objective(model, config)
    if start is not None and config.bound != "elbo":
        raise ValueError(f"a start is for the bound elbo, not {config.bound}")
    with torch.set_grad_enabled(config.bound == "elbo" and torch.is_grad_enabled()):  # else they are only reported
        seeing = model.projector is not None
        inference, seen = model.observe_images(batch, start) if seeing else (model.observe(batch, start), None)
        elbo = model.elbo(batch, inference)
    beta, free_nats = (config.beta, None) if now is None else now
    if config.bound == "elbo":
        fit = torch.stack([config.weights.get(key, 1.0) * log for key, log in elbo.log_likelihood.items()]).sum(0)
        loss = beta * trained_kl(model, inference, config, free_nats, batch.mask) * batch.mask - fit
    else:
        loss = -particle_bound(model, batch, config, beta)
    shared = None
    if model.projector is not None and seen is not None:
        projected = model.projector(model.feature(inference.states))
        shared = redundancy(projected, seen.detach(), batch.mask, config.redundancy_pairs)
        loss = loss + config.redundancy * shared * batch.mask
    assert loss.shape == batch.reward.shape, (loss.shape, batch.reward.shape)
    return Objective(loss, inference, elbo, shared)


def model_loss(
    model: WorldModel,
    config: ObjectiveConfig,
    batch: Batch,
    now: Annealed | None = None,
    start: State | None = None,
) -> tuple[Tensor, tuple[State, Metrics]]:
    """The mean objective over recorded steps, the posterior states, and the exact ELBO in nats per step.

    Where images have no decoder the ELBO is that of the rest, and `world_model/redundancy` is what is learned of them.

    Args:
        start: the state before each window, given which the ELBO is a bound; see
            :meth:`worldmodel.model.WorldModel.observe`.
    """
    loss, inference, elbo, redundancy = objective(model, batch, config, now, start)
    count = batch.mask.sum()
    terms = {"elbo": elbo.total, "kl": elbo.kl}
    terms |= {f"log_likelihood/{key}": value for key, value in elbo.log_likelihood.items()}
    metrics = {f"world_model/{name}": value.detach().sum() / count for name, value in terms.items()}
    if redundancy is not None:
        metrics["world_model/redundancy"] = redundancy.detach()
    return loss.sum() / count, (inference.states, metrics)
