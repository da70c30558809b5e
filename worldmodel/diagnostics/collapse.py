"""A test of whether a model uses its latent variable, and which quantities are missing in it.

If the posterior equals the prior, the latent variable carries no information. A partial collapse is harder to see:
the model explains one quantity, often a slow one, as noise with a large predicted standard deviation. The ELBO hardly
shows this. It shows in the share of the variance of this quantity that the reconstruction from the posterior explains.

A head can also fail to decode what the latent state holds. A linear map from the latent state reveals this case.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from worldmodel.diagnostics.emissions import emissions, images, is_discrete
from worldmodel.model import WorldModel
from worldmodel.networks.encoder import Head
from worldmodel.networks.images import pixels
from worldmodel.types import Batch

ACTIVE_VARIANCE = 0.01
"""A unit is active if the variance of its posterior mean over the data exceeds this (Burda et al. 2016, Section 5.2).

Their prior is N(0, I). Here the prior changes over time. A unit can vary with the prior and still carry no information
about the data.
"""

ACTIVE_NATS = 0.01
"""A unit is active if KL(q || p), averaged over the steps, exceeds this."""

REPRESENTED = 0.5
"""An observed quantity is represented if the reconstruction explains this share of its variance."""

MAX_NAMED = 8
"""The largest number of quantities that a verdict names, the worst ones first."""

NOT_HELD = "Unless this is noise, raise its weight or the free nats of the objective, or train longer"
NOT_SAID = "Give the head more layers or units, or train longer. A larger latent state does not help"


class Collapse(NamedTuple):
    """The information that the posterior carries. The R^2 of a constant quantity is NaN: it has no variance."""

    kl: Tensor  # (U,) nats per step, for each latent dimension or one-hot group
    variance: Tensor  # (U,) variance of the posterior mean over the data, for each latent dimension or group
    explained: dict[str, Tensor]  # {emission: (W,)} R^2 of the reconstruction; (1,) for classes and images
    names: Mapping[str, Sequence[str]] = MappingProxyType({})  # {emission: names of its entries}, if there are any

    @property
    def active_by_kl(self) -> Tensor:
        return (self.kl > ACTIVE_NATS).sum()

    @property
    def active_by_variance(self) -> Tensor:
        return (self.variance > ACTIVE_VARIANCE).sum()

    def missing(self, threshold: float = REPRESENTED) -> dict[str, float]:
        """Return {quantity: R^2} of the quantities that are not represented.

        Pure noise is in the list too, although a model is right not to represent it.
        """
        return {name: r2 for name, r2 in labelled(self.explained, self.names).items() if r2 < threshold}

    def verdict(self, probed: Mapping[str, Tensor] | None = None, threshold: float = REPRESENTED) -> str:
        """Return the verdict.

        It begins with one of these:

        * `healthy`: all quantities are represented;
        * `posterior collapse`: the posterior carries no information;
        * `partial collapse`: some quantities are not represented. The verdict names them;
        * `no quantity is represented, ...`: the posterior carries information, but the reconstruction shows none of
          it. The model needs more training, or the emissions ignore the latent state;
        * `nothing varies`: all quantities are constant.

        If a linear map can read a quantity from the latent state, the quantity counts as represented. The verdict then
        says that the head does not decode it.

        Args:
            probed: the R^2 of such a map by emission; see :func:`worldmodel.diagnostics.probe.linear_probe`.
            threshold: the share of variance from which a quantity counts as represented.
        """
        varying = [r2 for r2 in labelled(self.explained, self.names).values() if not math.isnan(r2)]
        if not varying:
            return "nothing varies"
        if not self.active_by_kl:
            return "posterior collapse"
        missing = self.missing(threshold)
        if not missing:
            return "healthy"
        held = {name: r2 for name, r2 in self._read(probed or {}).items() if name in missing and r2 >= threshold}
        lost = {name: r2 for name, r2 in missing.items() if name not in held}
        lines = []
        if lost:
            partly = "partial collapse. Not represented"
            wholly = "no quantity is represented, although the posterior carries information"
            named = listed({name: f"{name} (R^2 {r2:.2f})" for name, r2 in lost.items()}, lost)
            lines.append(f"{wholly if len(lost) == len(varying) else partly}: {named}. {NOT_HELD}")
        if held:
            described = {
                name: f"{name} (R^2 {missing[name]:.2f} by its head, {r2:.2f} by a linear map)"
                for name, r2 in held.items()
            }
            named = listed(described, {name: missing[name] for name in held})
            lines.append(f"the latent state holds what the head does not decode: {named}. {NOT_SAID}")
        return ". Also, ".join(lines)

    def _read(self, probed: Mapping[str, Tensor]) -> dict[str, float]:
        """Return `probed` under the names of `explained`.

        Where `explained` has one number for all entries, it is the mean over the entries that vary.
        """
        pooled = {
            name: r2.nanmean(0, keepdim=True) if len(self.explained[name]) == 1 else r2
            for name, r2 in probed.items()
            if name in self.explained
        }
        return labelled(pooled, self.names)


def listed(described: Mapping[str, str], order: Mapping[str, float]) -> str:
    """Return the descriptions of the `MAX_NAMED` quantities with the lowest values of `order`, sorted by name."""
    first = sorted(sorted(order, key=lambda name: order[name])[:MAX_NAMED])
    rest = f" and {len(described) - MAX_NAMED} others" if len(described) > MAX_NAMED else ""
    return ", ".join(described[name] for name in first) + rest


@torch.no_grad()
def collapse(model: WorldModel, batch: Batch) -> Collapse:
    """Infer the posterior over a batch (B, T) and measure the information that it carries."""
    inference = model.observe(batch)
    feature = model.feature(inference.states)
    recorded = batch.mask > 0
    kl = model.dynamics.latent.kl_by_unit(inference.posterior, inference.prior)[recorded].mean(0)
    mean = model.dynamics.latent.mean_by_unit(inference.posterior)[recorded]
    explained = {}
    for name, emission in emissions(model, batch).items():
        rows = emission.recorded
        value, guess = emission.numbers[rows], emission.head.mean(feature[rows])
        explained[name] = r2(value, guess, pooled=is_discrete(emission.head))
    for name, head in images(model).items():
        explained[name] = r2_of_images(head, feature[recorded], batch.obs[name][recorded])
    return Collapse(kl, mean.var(0, correction=0).sum(-1), explained)


def r2_of_images(head: Head, feature: Tensor, image: Tensor, chunk: int = 256) -> Tensor:
    """Return the explained share of the variance of all pixels together: (n, F), (n, W) -> (1,).

    A few images are decoded at a time.
    """
    mean = torch.stack([pixels(part).mean(0) * len(part) for part in image.split(chunk)]).sum(0) / len(image)
    left = whole = torch.zeros((), device=feature.device)
    for features, recorded in zip(feature.split(chunk), image.split(chunk), strict=True):
        shown = pixels(recorded)
        left = left + (shown - head.mean(features)).square().sum()
        whole = whole + (shown - mean).square().sum()
    return torch.where(whole > 0, 1 - left / whole, torch.nan).unsqueeze(0)


def r2(value: Tensor, guess: Tensor, pooled: bool = False) -> Tensor:
    """Return the explained share of variance, (n, W), (n, W) -> (W,), or of all entries together (1,) if `pooled`.

    It is NaN if the value is constant.
    """
    left, whole, square = (value - guess).square().mean(0), value.var(0, correction=0), value.square().mean(0)
    if pooled:
        left, whole, square = (each.sum(0, keepdim=True) for each in (left, whole, square))
    return torch.where(whole > 1e-10 * square, 1 - left / whole, torch.nan)  # relative: units differ


def labelled(values: dict[str, Tensor], names: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Return the entries of emissions by name: {emission: (W,)} -> {name of an entry: number}.

    An entry without a name is called after its emission with its index, such as "observation[0]". A single entry has
    no index.
    """
    named: dict[str, float] = {}
    for emission, entries in values.items():
        indexed = [emission] if len(entries) == 1 else [f"{emission}[{i}]" for i in range(len(entries))]
        own = names.get(emission, indexed)
        named |= zip(own if len(own) == len(entries) else indexed, entries.tolist(), strict=True)
    return named
