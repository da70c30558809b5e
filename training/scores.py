"""How well a model explains recorded sequences, in the units that the literature uses."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch

from training.dataset import Dataset
from worldmodel.bounds import log_likelihood
from worldmodel.model import WorldModel

ROWS = 16_384  # of padded sequences, samples included, that are scored at once
CHUNK = 50  # samples at once
NOISE = 0  # seed of the samples: the same for every score, so that two differ by the weights alone


class Score(NamedTuple):
    """Nats per frame; a frame is a row of a sequence. The log-likelihood is None where it was not estimated."""

    sequences: int
    frames: int
    elbo: float  # total over total frames
    elbo_by_sequence: float  # mean over sequences of each one's mean: the {...} of the literature
    elbo_by_dimension: float  # the first, over the numbers that one frame holds
    log_likelihood: float | None = None  # total over total frames, importance-sampled


@torch.no_grad()
def score(model: WorldModel, dataset: Dataset, device: torch.device | str = "cpu", samples: int = 0) -> Score:
    """The exact ELBO of whole sequences, and with `samples` an importance-sampled log-likelihood beside it.

    The random state of torch is left as it was, so that scoring more often does not change what is learned.
    """
    with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
        torch.manual_seed(NOISE)
        elbo = _totals(model, dataset, device, samples=0)
        evidence = _totals(model, dataset, device, samples).sum() if samples else None
    frames = int(dataset.lengths.sum())
    per_frame, width = float(elbo.sum() / frames), sum(spec.width for spec in dataset.obs_specs.values())
    return Score(
        len(dataset),
        frames,
        per_frame,
        float((elbo / dataset.lengths).mean()),
        per_frame / max(width, 1),
        None if evidence is None else float(evidence / frames),
    )


def _totals(model: WorldModel, dataset: Dataset, device: torch.device | str, samples: int) -> np.ndarray:
    """(S,): the sum over time of the ELBO of each sequence, or of its log-likelihood."""
    totals = np.zeros(len(dataset))
    for chosen in _groups(dataset.lengths, ROWS // min(max(samples, 1), CHUNK)):
        batch = dataset.padded(chosen, device)
        per_step = log_likelihood(model, batch, samples, CHUNK) if samples else model.elbo(batch).total
        assert per_step.shape == batch.reward.shape, (per_step.shape, batch.reward.shape)
        totals[chosen] = per_step.double().sum(1).cpu().numpy()
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
        "log_likelihood": "log p",
    }
    names = [name for name in heads if any(name in found for found in results.values())]
    lines = ["nats per frame" + "".join(f"{heads[name]:>15}" for name in names)]
    for part, found in results.items():
        cells = (
            f"{found[name]:>15,.4f}" if name.startswith(("elbo", "log")) else f"{found[name]:>15,}" for name in names
        )
        lines.append(f"{part:<14}" + "".join(cells))
    return "\n".join(lines)
