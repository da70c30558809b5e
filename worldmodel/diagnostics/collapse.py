"""Is the latent variable used, and what does it leave out?

A posterior that equals its prior carries nothing. The quieter failure is partial: one quantity, often one that changes
slowly, is explained as noise by a large predicted sigma. The ELBO hardly shows it; the share of that quantity's
variance that the posterior's reconstruction explains does.

A head may also fail to say what the latent state holds: a linear map reads it off then.
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
They had a prior N(0, I). Here the prior moves: a unit can vary with it, and still be told nothing by the data."""

ACTIVE_NATS = 0.01
"""A unit is active if the data tell it more than this, KL(q || p) averaged over steps."""

REPRESENTED = 0.5
"""An observed quantity is represented if the reconstruction explains this share of its variance."""

NAMED = 8
"""What is not represented is named, of more the worst."""

NOT_HELD = "unless that is noise, raise its weight or the free nats of the objective, or train longer"
NOT_SAID = "more layers or units of its head, or more updates, mend that; a larger latent state does not"


class Collapse(NamedTuple):
    """What the posterior carries. A constant quantity has no variance to explain, and an R^2 that is not a number."""

    kl: Tensor  # (U,) nats per step by latent dimension or one-hot group
    variance: Tensor  # (U,) of the posterior mean over the data, by latent dimension or group
    explained: dict[str, Tensor]  # {emission: (W,)} R^2 of the reconstruction; (1,) of classes and of images
    names: Mapping[str, Sequence[str]] = MappingProxyType({})  # {emission: of its entries}, where they have any

    @property
    def active_by_kl(self) -> Tensor:
        return (self.kl > ACTIVE_NATS).sum()

    @property
    def active_by_variance(self) -> Tensor:
        return (self.variance > ACTIVE_VARIANCE).sum()

    def missing(self, threshold: float = REPRESENTED) -> dict[str, float]:
        """{quantity: R^2} of what is not represented. A pure noise is rightly left out, and is listed as well."""
        return {name: r2 for name, r2 in labelled(self.explained, self.names).items() if r2 < threshold}

    def verdict(self, probed: Mapping[str, Tensor] | None = None, threshold: float = REPRESENTED) -> str:
        """`healthy`, `posterior collapse`, `partial collapse` with what is not represented, or that of everything.

        Where nothing is represented although the posterior is told something, it has not been learned long enough, or
        the emissions do without it. `nothing varies` where there is nothing to represent. What a linear map reads off
        the latent state is represented there: then it is said that the head does not say it.

        Args:
            probed: R^2 of such a map, by emission; see :func:`worldmodel.diagnostics.probe.linear_probe`.
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
            partly = "partial collapse"
            wholly = "nothing is represented, and yet the posterior is told something"
            named = listed(
                {name: f"{name} is not represented (R^2 {r2:.2f})" for name, r2 in lost.items()}, lost, "nor are"
            )
            lines.append(f"{wholly if len(lost) == len(varying) else partly}: {named}; {NOT_HELD}")
        if held:
            told = {
                name: f"{name} (R^2 {missing[name]:.2f} by its head, {r2:.2f} by a linear map)"
                for name, r2 in held.items()
            }
            said = listed(told, {name: missing[name] for name in held}, "and")
            lines.append(f"the latent state holds what the head does not say: {said}; {NOT_SAID}")
        return ". ".join(lines)

    def _read(self, probed: Mapping[str, Tensor]) -> dict[str, float]:
        """`probed` by the names of `explained`; of what that pools it is the mean of the entries that vary."""
        pooled = {
            name: r2.nanmean(0, keepdim=True) if len(self.explained[name]) == 1 else r2
            for name, r2 in probed.items()
            if name in self.explained
        }
        return labelled(pooled, self.names)


def listed(told: Mapping[str, str], order: Mapping[str, float], others: str) -> str:
    """What is told of quantities: of no more than NAMED, those that are first in order, by name."""
    first = sorted(sorted(order, key=lambda name: order[name])[:NAMED])
    rest = f", {others} {len(told) - NAMED} others" if len(told) > NAMED else ""
    return ", ".join(told[name] for name in first) + rest


@torch.no_grad()
def collapse(model: WorldModel, batch: Batch) -> Collapse:
    """Infer the posterior over a batch (B, T) and measure what it carries."""
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
    """(n, F), (n, W) -> (1,): explained share of the variance of all pixels together, a few images at a time."""
    mean = torch.stack([pixels(part).mean(0) * len(part) for part in image.split(chunk)]).sum(0) / len(image)
    left = whole = torch.zeros((), device=feature.device)
    for features, recorded in zip(feature.split(chunk), image.split(chunk), strict=True):
        shown = pixels(recorded)
        left = left + (shown - head.mean(features)).square().sum()
        whole = whole + (shown - mean).square().sum()
    return torch.where(whole > 0, 1 - left / whole, torch.nan).unsqueeze(0)


def r2(value: Tensor, guess: Tensor, pooled: bool = False) -> Tensor:
    """(n, W), (n, W) -> (W,): share of variance explained; (1,), of all entries together, if `pooled`.

    Not a number where the value is constant.
    """
    left, whole, square = (value - guess).square().mean(0), value.var(0, correction=0), value.square().mean(0)
    if pooled:
        left, whole, square = (each.sum(0, keepdim=True) for each in (left, whole, square))
    return torch.where(whole > 1e-10 * square, 1 - left / whole, torch.nan)  # entry by entry: units differ


def labelled(values: dict[str, Tensor], names: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """{emission: (W,)} -> {name of an entry: number}.

    Where its entries have no names, an emission's own with their index, "observation[0]", or alone if there is one.
    """
    named: dict[str, float] = {}
    for emission, entries in values.items():
        indexed = [emission] if len(entries) == 1 else [f"{emission}[{i}]" for i in range(len(entries))]
        own = names.get(emission, indexed)
        named |= zip(own if len(own) == len(entries) else indexed, entries.tolist(), strict=True)
    return named
