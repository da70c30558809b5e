"""What a posterior costs, and which of two models explains the same data better."""

import torch
from torch import Tensor

from worldmodel.diagnostics.emissions import has_density
from worldmodel.diagnostics.scores import Paired, paired
from worldmodel.learning.bounds import log_likelihood, repeated
from worldmodel.model import WorldModel
from worldmodel.types import Batch


@torch.no_grad()
def sequence_elbo(model: WorldModel, batch: Batch, samples: int = 8) -> Tensor:
    """(B,): the exact ELBO of each sequence in nats per recorded step, its expectation taken over `samples`."""
    if model.image_keys:  # a copy for each sample would not fit into memory
        total = torch.stack([model.elbo(batch).total for _ in range(samples)]).mean(0)
    else:
        total = model.elbo(repeated(batch, samples)).total.unflatten(0, (-1, samples)).mean(1)
    return per_step(total, batch)


@torch.no_grad()
def posterior_gap(model: WorldModel, batch: Batch, samples: int = 100) -> Paired:
    """The importance-sampled log-likelihood less the ELBO, in nats per step: the price of an inexact posterior.

    At least zero in expectation, and zero for the exact posterior; with few samples it is underestimated.
    """
    return paired(per_step(log_likelihood(model, batch, samples), batch), sequence_elbo(model, batch))


def compare(
    model: WorldModel, other: WorldModel, batch: Batch, others: Batch | None = None, samples: int = 8
) -> Paired:
    """The ELBO of `model` less that of `other` in nats per step, sequence by sequence.

    For models of the same emissions. With a filter and a smoother it is what the future adds to the posterior.
    `others`: the same batch as the other model takes it, if that has other units.

    Raises:
        ValueError: if the two do not explain the same things, or one by a density what the other has a mass for.
    """
    if set(model.emissions) != set(other.emissions):
        raise ValueError(f"two models of different things: {model.emissions} and {other.emissions}")
    of_other = dict(other.heads)
    for name, head in model.heads:
        if has_density(head) != has_density(of_other[name]):
            kinds = " and ".join(type(each.output).__name__ for each in (head, of_other[name]))
            raise ValueError(f"the likelihoods of '{name}' do not compare, a density and a mass: {kinds}")
    others = batch if others is None else others
    return paired(sequence_elbo(model, batch, samples), sequence_elbo(other, others, samples))


def per_step(total: Tensor, batch: Batch) -> Tensor:
    """(B, T), zero where padded -> (B,): the mean over recorded steps."""
    return total.sum(1) / batch.mask.sum(1)
