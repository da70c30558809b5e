"""The cost of an inexact posterior, and a comparison of two models on the same data."""

import torch
from torch import Tensor

from worldmodel.diagnostics.emissions import has_density
from worldmodel.diagnostics.scores import Paired, paired
from worldmodel.learning.bounds import log_likelihood, repeated
from worldmodel.model import WorldModel
from worldmodel.types import Batch


@torch.no_grad()
def sequence_elbo(model: WorldModel, batch: Batch, samples: int = 8) -> Tensor:
    """Return the ELBO of each sequence in nats per recorded step (B,), as the mean over `samples` samples."""
    if model.image_keys:  # copies of the images for all samples would not fit into the memory
        total = torch.stack([model.elbo(batch).total for _ in range(samples)]).mean(0)
    else:
        total = model.elbo(repeated(batch, samples)).total.unflatten(0, (-1, samples)).mean(1)
    return per_step(total, batch)


@torch.no_grad()
def posterior_gap(model: WorldModel, batch: Batch, samples: int = 100) -> Paired:
    """Return the importance-sampled log-likelihood minus the ELBO, in nats per step.

    This is the cost of an inexact posterior. Its expectation is at least 0, and 0 for the exact posterior. With few
    samples it is underestimated.
    """
    return paired(per_step(log_likelihood(model, batch, samples), batch), sequence_elbo(model, batch))


def compare(
    model: WorldModel, other: WorldModel, batch: Batch, others: Batch | None = None, samples: int = 8
) -> Paired:
    """Return the ELBO of `model` minus that of `other` in nats per step, sequence by sequence.

    Both models need the same emissions. For a smoother and a filter, the difference is what future observations add
    to the posterior.

    Args:
        model, other: the two models.
        batch: the data.
        others: the same data in the form that `other` takes, if its units differ.
        samples: the number of samples of each posterior.
    Raises:
        ValueError: if the emissions differ, or if one model has a density and the other a probability mass for one.
    """
    if set(model.emissions) != set(other.emissions):
        raise ValueError(f"the two models have different emissions: {model.emissions} and {other.emissions}")
    of_other = dict(other.heads)
    for name, head in model.heads:
        if has_density(head) != has_density(of_other[name]):
            kinds = " and ".join(type(each.output).__name__ for each in (head, of_other[name]))
            raise ValueError(
                f"the likelihoods of '{name}' cannot be compared, because one is a density and the other a probability "
                f"mass: {kinds}"
            )
    others = batch if others is None else others
    return paired(sequence_elbo(model, batch, samples), sequence_elbo(other, others, samples))


def per_step(total: Tensor, batch: Batch) -> Tensor:
    """Return the mean over the recorded steps, (B, T) -> (B,). `total` must be zero at padded steps."""
    return total.sum(1) / batch.mask.sum(1)
