"""What can be read off the latent state by a linear map: whether it holds a quantity that is known from elsewhere."""

from collections.abc import Mapping

import torch
from torch import Tensor

from worldmodel.diagnostics.baselines import least_squares
from worldmodel.diagnostics.collapse import r2
from worldmodel.model import WorldModel
from worldmodel.types import Batch

RIDGES = (1e-6, 1e-4, 1e-2, 1.0)
"""Penalties that are tried, in mean squares of the standardised features."""


@torch.no_grad()
def linear_probe(
    model: WorldModel, batch: Batch, states: Mapping[str, Tensor], folds: int = 5, skip: int = 0
) -> dict[str, Tensor]:
    """R^2 (D,) of known states (B, T, D), by name, from features of the sampled posterior: see :func:`probe`.

    Args:
        skip: steps at the beginning of each sequence that count for nothing: one picture does not show a velocity.
    """
    feature = model.feature(model.observe(batch).states)[:, skip:]
    return {name: probe(feature, state[:, skip:], batch.mask[:, skip:], folds) for name, state in states.items()}


def probe(feature: Tensor, target: Tensor, mask: Tensor, folds: int = 5) -> Tensor:
    """(B, T, F), (B, T, D), (B, T) -> (D,): R^2 of ridge regression on sequences that it was not fitted to.

    Every sequence is predicted by a fit to the other folds, since neighbouring steps of one sequence know each other.
    The ridge with the best R^2 is taken, for each of the D by itself.

    Raises:
        ValueError: if there are fewer sequences than folds.
    """
    count = len(feature)
    if not 2 <= folds <= count:
        raise ValueError(f"folds must lie between 2 and the {count} sequences: {folds}")
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
