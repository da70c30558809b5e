"""Score how well a model explains recorded sequences, in the units of the literature."""

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

MAX_SCORED_ROWS = 16_384  # rows of padded sequences that are scored at once, times the number of samples
MAX_SCORED_NUMBERS = 2**24  # numbers in the observations of these rows; a thousand small images have as many
SAMPLES_PER_CHUNK = 50  # samples that are computed at once
EXPONENT_FROM = 1e6  # numbers from here on are written with an exponent
NOISE_SEED = 0  # the same for every score, so that two scores differ only by the weights


class Score(NamedTuple):
    """The score of a dataset, in nats per frame. A frame is a row of a sequence."""

    sequences: int
    frames: int
    elbo: float  # sum over all frames, divided by their number
    elbo_by_sequence: float  # mean over sequences of the mean of each: the {...} of the literature
    elbo_by_dimension: float  # `elbo` divided by the number of values in a frame
    bound: float | None = None  # of IWAE or FIVO, if it was trained instead of the ELBO; averaged like `elbo`
    log_likelihood: float | None = None  # importance-sampled, averaged like `elbo`; None: not estimated

    @property
    def trained(self) -> float:
        """Return the bound that is trained. It decides which weights are the best."""
        return self.elbo if self.bound is None else self.bound


@torch.no_grad()
def score(
    model: WorldModel,
    dataset: Dataset,
    device: torch.device | str = "cpu",
    samples: int = 0,
    objective: ObjectiveConfig | None = None,
) -> Score:
    """Return the exact ELBO of whole sequences, and optionally another bound and the log-likelihood.

    The random state of torch is restored, so scores do not change what is learned.

    Args:
        samples: the number of samples for the importance-sampled log-likelihood; 0: do not estimate it.
        objective: the objective whose bound is computed as well, if it is not the ELBO.
    """
    with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
        torch.manual_seed(NOISE_SEED)
        elbo = _totals(lambda batch: model.elbo(batch).total, dataset, device)
        bound = sampled = None
        if objective is not None and objective.bound != "elbo":
            bound = _totals(lambda batch: particle_bound(model, batch, objective), dataset, device, objective.particles)
        if samples:
            sampled = _totals(
                lambda batch: log_likelihood(model, batch, samples, SAMPLES_PER_CHUNK),
                dataset,
                device,
                SAMPLES_PER_CHUNK,
            )
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
    """Return the sum over time of a quantity for each sequence, (S,).

    Args:
        per_step: computes the quantity for each step of a batch, (B, T).
        copies: the number of copies of each sequence that `per_step` makes.
    """
    totals = np.zeros(len(dataset))
    rows = min(MAX_SCORED_ROWS, MAX_SCORED_NUMBERS // max(sum(spec.width for spec in dataset.obs_specs.values()), 1))
    for chosen in _groups(dataset.lengths, rows // copies):
        batch = dataset.padded(chosen, device)
        steps = per_step(batch)
        assert steps.shape == batch.reward.shape, (steps.shape, batch.reward.shape)
        totals[chosen] = doubled(steps).sum(1).numpy()
    return totals


def _groups(lengths: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    """Yield groups of indices of sequences with similar lengths. A padded group has at most `rows` rows if possible."""
    waiting = list(np.argsort(-lengths, kind="stable"))
    while waiting:
        count = max(rows // int(lengths[waiting[0]]), 1)
        yield np.array(waiting[:count])
        waiting = waiting[count:]


def as_results(scores: Mapping[str, Score]) -> dict[str, dict[str, float]]:
    """Return the content of `results.json`. Scores that are None are left out."""
    return {
        part: {name: value for name, value in found._asdict().items() if value is not None}
        for part, found in scores.items()
    }


def table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Return a text table with one line per part, and a column for each score that any part has."""
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
    """Return a number for a table: "" for NaN, and three digits with an exponent for a large number."""
    if math.isnan(number):
        return ""
    return f"{number:.3g}" if abs(number) >= EXPONENT_FROM else f"{number:{thousands}.{digits}f}"
