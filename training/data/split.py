"""Divide a dataset into training, validation and test data."""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from worldmodel.training.data.dataset import Dataset


def split(dataset: Dataset, shares: Mapping[str, float], seed: int) -> dict[str, Dataset]:
    """Divide a dataset into named parts: several sequences at random, or one sequence into blocks of time.

    The blocks are in the order of `shares`, so the last part lies after all others in time. Every part with a positive
    share gets at least one sequence or row. The other parts are left out.

    Raises:
        ValueError: if there are fewer sequences, or rows of a single sequence, than parts.
    """
    wanted = {name: share for name, share in shares.items() if share > 0}
    whole = int(dataset.lengths[0]) if len(dataset) == 1 else len(dataset)
    if whole < len(wanted):
        what = "rows" if len(dataset) == 1 else "sequences"
        raise ValueError(
            f"{dataset.names[0]}: {whole} {what} cannot be divided into {', '.join(wanted)}. Give more data, set "
            "shares in data.split to 0, or name files in data.validation and data.test."
        )
    counts = apportioned(whole, np.array(list(wanted.values())))
    borders = np.cumsum([0, *counts])
    if len(dataset) == 1:
        pieces = [block(dataset, start, stop) for start, stop in pairwise(borders)]
    else:
        order = np.random.default_rng(seed).permutation(whole)
        pieces = [dataset.chosen(sorted(chosen)) for chosen in np.split(order, borders[1:-1])]
    return dict(zip(wanted, pieces, strict=True))


def apportioned(whole: int, shares: np.ndarray) -> np.ndarray:
    """Divide the number `whole` in proportion to `shares`, with at least one for each.

    The rest after rounding down goes to the largest remainders.
    """
    free = whole - len(shares)
    exact = np.maximum(whole * shares / shares.sum() - 1, 0)
    exact *= free / max(exact.sum(), 1e-12)
    counts = np.floor(exact + 1e-9).astype(int)
    for index in np.argsort(counts - exact, kind="stable")[: free - counts.sum()]:
        counts[index] += 1
    return counts + 1


def block(dataset: Dataset, start: int, stop: int) -> Dataset:
    """Return rows `start` to `stop` of a dataset of one sequence. The first of them loses its control."""
    name = f"{dataset.names[0]}, steps {start + 1}-{stop}"
    return dataset.of_same_kind([dataset.part(0, start, stop)], [name])
