"""The emissions of a model by name, as numbers that can be compared: its observations and its reward."""

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
    numbers: Tensor  # (B, T, W): the values in the order of `head.mean`; one-hot features if they are categorical
    recorded: Tensor  # (B, T) bool: where there is a value; a reset has no reward


def images(model: WorldModel) -> dict[str, Head]:
    """Return the heads of the decoded images by observation key."""
    heads = zip(model.keys, cast(Iterable[Head], model.decoders), strict=True)
    return {key: head for key, head in heads if isinstance(head.output, Pixels)}


def without_images(model: WorldModel, batch: Batch) -> Batch:
    """Return the batch without its images, which take almost all of its memory."""
    return batch._replace(obs={key: value for key, value in batch.obs.items() if key not in model.image_keys})


def emissions(model: WorldModel, batch: Batch) -> dict[str, Emission]:
    """Return the emissions of all observation keys and of the reward.

    Images are left out, because a single pixel has no meaning by itself.
    """
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
    """Convert recorded values (..., width) -> (..., W): indices to one-hot features, others to real numbers."""
    if isinstance(head.output, Categorical):
        codes = [F.one_hot(value[..., i].long(), n) for i, n in enumerate(head.output.classes)]
        return torch.cat(codes, -1).to(torch.get_default_dtype())
    return value if value.is_floating_point() else value.to(torch.get_default_dtype())


def is_discrete(head: Head) -> bool:
    """Return whether the values are classes, for which intervals and densities have no meaning."""
    return isinstance(head.output, Bernoulli | Categorical)


def has_density(head: Head) -> bool:
    """Return whether `log_prob` is a density of the value itself, so that it can be compared with a Gaussian."""
    return not isinstance(head.output, Bernoulli | Categorical | TwoHot)
