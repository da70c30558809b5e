"""What is optimised. The ELBO itself stays exact; weights, free nats and balance make an objective, not a bound."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from worldmodel.model import WorldModel
from worldmodel.types import Batch, Elbo, Inference


@dataclass
class ObjectiveConfig:
    """loss = - sum_k weight_k log p_k + beta max(free_nats, KL). With the neutral values the loss is -ELBO."""

    beta: float = 1.0
    free_nats: float = 0.0  # nats per step below which the KL is not pushed (Kingma et al. 2016; PlaNet 3, V3 1)
    balance: float | None = None  # share of the KL that trains the prior alone (DreamerV2, Eq. 2); None: plain KL
    weights: dict[str, float] = field(default_factory=dict)  # by emission: an observation key, reward, continue

    def __post_init__(self) -> None:
        if self.beta < 0 or self.free_nats < 0:
            raise ValueError(f"beta and free_nats must not be negative: {self.beta}, {self.free_nats}")
        if self.balance is not None and not 0 <= self.balance <= 1:
            raise ValueError(f"balance must lie in [0, 1]: {self.balance}")


def balanced_kl(model: WorldModel, inference: Inference, config: ObjectiveConfig) -> Tensor:
    """(B, T): the KL as it is trained, with the gradient split between prior and posterior, and free nats."""
    kl = model.dynamics.latent.kl
    q, p = inference.posterior, inference.prior
    if config.balance is None:
        return kl(q, p).clamp(min=config.free_nats)
    to_prior = kl(q.detach(), p).clamp(min=config.free_nats)
    to_posterior = kl(q, p.detach()).clamp(min=config.free_nats)
    return config.balance * to_prior + (1 - config.balance) * to_posterior


def objective(model: WorldModel, batch: Batch, config: ObjectiveConfig) -> tuple[Tensor, Inference, Elbo]:
    """The loss of every step (B, T), with the inference and the exact ELBO it was computed from.

    Raises:
        ValueError: if `config.weights` names no emission of the model.
    """
    inference = model.observe(batch)
    elbo = model.elbo(batch, inference)
    unknown = set(config.weights) - set(elbo.log_likelihood)
    if unknown:
        raise ValueError(f"objective.weights names {sorted(unknown)}; the model emits {sorted(elbo.log_likelihood)}")
    fit = torch.stack([config.weights.get(key, 1.0) * log for key, log in elbo.log_likelihood.items()]).sum(0)
    loss = config.beta * balanced_kl(model, inference, config) * batch.mask - fit
    assert loss.shape == batch.reward.shape, (loss.shape, batch.reward.shape)
    return loss, inference, elbo
