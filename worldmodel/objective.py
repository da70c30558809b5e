"""What is optimised. The ELBO itself stays exact; weights, free nats and balance make an objective, not a bound."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from worldmodel.model import WorldModel
from worldmodel.types import Batch, Elbo, Inference


@dataclass
class ObjectiveConfig:
    """loss = - sum_k weight_k log p_k + beta max(free_nats, KL). With free_nats 0, else defaults, it is -ELBO.

    Without free nats a run can fall into a collapse that costs it the exact ELBO as well: what changes slowly (the
    cart's position) is at first cheaper to call noise, by a large predicted sigma, than to carry in z_t.
    """

    beta: float = 1.0
    free_nats: float = 1.0  # nats per step below which the KL is not pushed (Kingma et al. 2016; PlaNet 3, V3 1)
    balance: float | None = None  # share of the KL whose gradient goes to p, the rest to q (DreamerV2, Eq. 2)
    weights: dict[str, float] = field(default_factory=dict)  # by emission: an observation key, reward, continue

    def __post_init__(self) -> None:
        if self.beta < 0 or self.free_nats < 0:
            raise ValueError(f"beta and free_nats must not be negative: {self.beta}, {self.free_nats}")
        if self.balance is not None and not 0 <= self.balance <= 1:
            raise ValueError(f"balance must lie in [0, 1]: {self.balance}")


def trained_kl(model: WorldModel, inference: Inference, config: ObjectiveConfig) -> Tensor:
    """(B, T): the KL as it is trained, its gradient split between prior and posterior.

        balance KL(sg q || p) + (1 - balance) max(free_nats, KL(q || sg p))

    Without balance both shares are whole, and the value is max(free_nats, KL), counted once.

    Free nats hold for the posterior alone: a prior that is not pushed either would stop learning the dynamics just
    where they are almost known.
    """
    kl = model.dynamics.latent.kl
    to_prior = kl(inference.posterior.detach(), inference.prior)
    to_posterior = kl(inference.posterior, inference.prior.detach()).clamp(min=config.free_nats)
    if config.balance is None:
        return to_posterior + (to_prior - to_prior.detach())
    return config.balance * to_prior + (1 - config.balance) * to_posterior


def check_weights(model: WorldModel, config: ObjectiveConfig) -> None:
    """Refuse weights of what the model does not emit.

    Raises:
        ValueError: naming them and what there is.
    """
    unknown = sorted(config.weights.keys() - set(model.emissions))
    if unknown:
        raise ValueError(f"objective.weights names {unknown}; the model emits {sorted(model.emissions)}")


def objective(model: WorldModel, batch: Batch, config: ObjectiveConfig) -> tuple[Tensor, Inference, Elbo]:
    """The loss of every step (B, T), with the inference and the exact ELBO it was computed from.

    Raises:
        ValueError: if `config.weights` names no emission of the model.
    """
    check_weights(model, config)
    inference = model.observe(batch)
    elbo = model.elbo(batch, inference)
    fit = torch.stack([config.weights.get(key, 1.0) * log for key, log in elbo.log_likelihood.items()]).sum(0)
    loss = config.beta * trained_kl(model, inference, config) * batch.mask - fit
    assert loss.shape == batch.reward.shape, (loss.shape, batch.reward.shape)
    return loss, inference, elbo
