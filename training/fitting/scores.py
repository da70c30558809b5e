"""How well a model explains recorded sequences, in the units that the literature uses."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldmodel.kernels.precision import doubled
from worldmodel.learning.bounds import log_likelihood
from worldmodel.learning.objective import ObjectiveConfig, particle_bound
from worldmodel.model import WorldModel
from worldmodel.training.data.dataset import Dataset
from worldmodel.types import Batch

ROWS = 16_384  # of padded sequences, samples included, that are scored at once
NUMBERS = 2**24  # in their observations: a thousand small pictures
CHUNK = 50  # samples at once
WIDE = 1e6  # numbers from here on are written with an exponent
NOISE = 0  # seed of the samples: the same for every score, so that two differ by the weights alone


class Score(NamedTuple):
    """Nats per frame; a frame is a row of a sequence. The log-likelihood is None where it was not estimated."""

    sequences: int
    frames: int
    elbo: float  # total over total frames
    elbo_by_sequence: float  # mean over sequences of each one's mean: the {...} of the literature
    elbo_by_dimension: float  # the first, over the numbers that one frame holds
    bound: float | None = None  # total over total frames, of IWAE or FIVO where that was trained instead of the ELBO
    log_likelihood: float | None = None  # total over total frames, importance-sampled

    @property
    def trained(self) -> float:
        """The bound that was trained: what says which weights are the best."""
        return self.elbo if self.bound is None else self.bound


@torch.no_grad()
def score(
    model: WorldModel,
    dataset: Dataset,
    device: torch.device | str = "cpu",
    samples: int = 0,
    objective: ObjectiveConfig | None = None,
) -> Score:
    """The exact ELBO of whole sequences, and beside it whatever else is asked for.

    The random state of torch is left as it was, so that scoring more often does not change what is learned.

    Args:
        samples: of an importance-sampled log-likelihood; 0: none.
        objective: its bound is taken as well, if that is not the ELBO.
    """
    with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
        torch.manual_seed(NOISE)
        elbo = _totals(lambda batch: model.elbo(batch).total, dataset, device)
        bound = sampled = None
        if objective is not None and objective.bound != "elbo":
            bound = _totals(lambda batch: particle_bound(model, batch, objective), dataset, device, objective.particles)
        if samples:
            sampled = _totals(lambda batch: log_likelihood(model, batch, samples, CHUNK), dataset, device, CHUNK)
    frames = int(dataset.lengths.sum())
    per_frame, width = float(elbo.sum() / frames), sum(spec.width for spec in dataset.obs_specs.values())
    return Score(
        len(dataset),
        frames,
        per_frame,
        float((elbo / dataset.lengths).mean()),
        per_frame / max(width, 1),
        None if bound is None else float(bound.sum() / frames),
        None if sampled is None else float(sampled.sum() / frames),
    )


def _totals(
    per_step: Callable[[Batch], Tensor], dataset: Dataset, device: torch.device | str, copies: int = 1
) -> np.ndarray:
    """(S,): the sum over time of what `per_step` (B, T) says of each sequence, of which it makes so many copies."""
    totals = np.zeros(len(dataset))
    rows = min(ROWS, NUMBERS // max(sum(spec.width for spec in dataset.obs_specs.values()), 1))
    for chosen in _groups(dataset.lengths, rows // copies):
        batch = dataset.padded(chosen, device)
        steps = per_step(batch)
        assert steps.shape == batch.reward.shape, (steps.shape, batch.reward.shape)
        totals[chosen] = doubled(steps).sum(1).numpy()
    return totals


def _groups(lengths: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    """Indices of sequences of similar length, as many at once as stay below `rows` when padded, at least one."""
    waiting = list(np.argsort(-lengths, kind="stable"))
    while waiting:
        count = max(rows // int(lengths[waiting[0]]), 1)
        yield np.array(waiting[:count])
        waiting = waiting[count:]


def as_results(scores: Mapping[str, Score]) -> dict[str, dict[str, float]]:
    """What `results.json` holds: a log-likelihood only where there is one."""
    return {
        part: {name: value for name, value in found._asdict().items() if value is not None}
        for part, found in scores.items()
    }


def table(results: Mapping[str, Mapping[str, float]]) -> str:
    """For a person: a line per part, with the columns that any part has."""
    heads = {
        "sequences": "sequences",
        "frames": "frames",
        "elbo": "ELBO",
        "elbo_by_sequence": "{by sequence}",
        "elbo_by_dimension": "per dimension",
        "bound": "trained bound",
        "log_likelihood": "log p",
    }
    names = [name for name in heads if any(name in found for found in results.values())]
    lines = ["nats per frame" + "".join(f"{heads[name]:>15}" for name in names)]
    for part, found in results.items():
        cells = (
            f"{cell(found[name], 4, ','):>15}" if name.startswith(("elbo", "bound", "log")) else f"{found[name]:>15,}"
            for name in names
        )
        lines.append(f"{part:<14}" + "".join(cells))
    return "\n".join(lines)


def cell(number: float, digits: int = 3, thousands: str = "") -> str:
    """A number in a table, empty where there is none; where many digits would stand before its point, three in all."""
    if math.isnan(number):
        return ""
    return f"{number:.3g}" if abs(number) >= WIDE else f"{number:{thousands}.{digits}f}"
