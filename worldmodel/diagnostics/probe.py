"""A linear probe: whether a linear map can read a known quantity from the latent state."""

from collections.abc import Mapping

import torch
from torch import Tensor

from worldmodel.diagnostics.baselines import least_squares
from worldmodel.diagnostics.collapse import r2
from worldmodel.model import WorldModel
from worldmodel.types import Batch

RIDGES = (1e-6, 1e-4, 1e-2, 1.0)
"""The penalties that are tried, in mean squares of the standardized features."""


@torch.no_grad()
def linear_probe(
    model: WorldModel, batch: Batch, states: Mapping[str, Tensor], folds: int = 5, skip: int = 0
) -> dict[str, Tensor]:
    """Return the R^2 (D,) with which features of the posterior predict known states (B, T, D); see :func:`probe`.

    Args:
        model: the model. batch: the sequences (B, T).
        states: the known states by name.
        folds: the number of folds of the cross-validation.
        skip: the number of steps at the beginning of each sequence that are left out. A single image, for example,
            does not show a velocity.
    """
    feature = model.feature(model.observe(batch).states)[:, skip:]
    return {name: probe(feature, state[:, skip:], batch.mask[:, skip:], folds) for name, state in states.items()}


def probe(feature: Tensor, target: Tensor, mask: Tensor, folds: int = 5) -> Tensor:
    """Return the cross-validated R^2 of a ridge regression: (B, T, F), (B, T, D), (B, T) -> (D,).

    Every sequence is predicted by a fit to the other folds. The folds consist of whole sequences, because neighboring
    steps of a sequence are not independent. The best of the `RIDGES` is taken for each of the D targets.

    Raises:
        ValueError: if there are fewer sequences than folds.
    """
    count = len(feature)
    if not 2 <= folds <= count:
        raise ValueError(f"folds must be between 2 and the number of sequences, {count}, but it is {folds}")
    fold = torch.arange(count, device=feature.device) % folds
    recorded = mask > 0
    scores = []
    for ridge in RIDGES:
        guess = torch.empty_like(target)
        for k in range(folds):
            fitted, held = fold != k, fold == k
            rows = recorded[fitted]
            weight = least_squares(feature[fitted][rows], target[fitted][rows], ridge)
            guess[held] = feature[held] @ weight[:-1] + weight[-1]
        scores.append(r2(target[recorded], guess[recorded]))
    return torch.stack(scores).amax(0)
