"""Everything a model says about the observable world, by name, in numbers that can be compared."""

from collections.abc import Iterable
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.model import REWARD, WorldModel
from worldmodel.networks.encoder import Head
from worldmodel.networks.images import Pixels
from worldmodel.networks.outputs import Bernoulli, Categorical, TwoHot
from worldmodel.types import Batch


class Emission(NamedTuple):
    head: Head
    value: Tensor  # (B, T, width) as recorded
    numbers: Tensor  # (B, T, W): the same as one-hot codes where it is categorical, in the order of `head.mean`
    recorded: Tensor  # (B, T) bool: where there is a value; a reset brings no reward


def images(model: WorldModel) -> dict[str, Head]:
    """The heads of pictures, by observation key: of those that are decoded."""
    heads = zip(model.keys, cast(Iterable[Head], model.decoders), strict=True)
    return {key: head for key, head in heads if isinstance(head.output, Pixels)}


def without_images(model: WorldModel, batch: Batch) -> Batch:
    """What is left to copy and to compare, a thousandth of a batch that holds pictures."""
    return batch._replace(obs={key: value for key, value in batch.obs.items() if key not in model.image_keys})


def emissions(model: WorldModel, batch: Batch) -> dict[str, Emission]:
    """Every observation key but those of images, of which no number means anything by itself, and the reward."""
    recorded = batch.mask > 0
    found = {}
    for key, head in zip(model.keys, cast(Iterable[Head], model.decoders), strict=True):
        if isinstance(head.output, Pixels):
            continue
        found[key] = Emission(head, batch.obs[key], numbers(head, batch.obs[key]), recorded)
    if model.reward is not None:
        reward = batch.reward.unsqueeze(-1)
        found[REWARD] = Emission(model.reward, reward, reward, recorded & ~batch.is_first)
    return found


def numbers(head: Head, value: Tensor) -> Tensor:
    """Recorded values (..., width) -> (..., W): indices become one-hot codes, everything else real numbers."""
    if isinstance(head.output, Categorical):
        codes = [F.one_hot(value[..., i].long(), n) for i, n in enumerate(head.output.classes)]
        return torch.cat(codes, -1).to(torch.get_default_dtype())
    return value if value.is_floating_point() else value.to(torch.get_default_dtype())


def is_discrete(head: Head) -> bool:
    """Whether values are classes: intervals and densities then mean nothing."""
    return isinstance(head.output, Bernoulli | Categorical)


def has_density(head: Head) -> bool:
    """Whether `log_prob` is a density over the value itself, so that it compares with that of a Gaussian."""
    return not isinstance(head.output, Bernoulli | Categorical | TwoHot)
