"""When the units of a run are measured again, and values for which an output has no unit."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from worldmodel.envs.contract.faults import named
from worldmodel.model import REWARD, WorldModel
from worldmodel.networks.outputs import SymlogNormal, TwoHot
from worldmodel.types import Batch

SMALL = 2e-3  # below which symlog is the identity: an output that errs by about 1 there tells nothing apart
FAR = 100.0  # units, at least: no more than one in 10,000 of any values is so far from their mean (Chebyshev)


class Reach:
    """The values that the units of a model are made for.

    Of n recorded values none is more than sqrt(n - 1) standard deviations from their mean. A value beyond three times
    that is of another size than everything before, such as the first movement of what was at rest but for noise. Units
    that are taken again with it at least triple, so that this happens rarely, however fast values grow.
    """

    def __init__(self) -> None:
        self.rows = 0  # that units were taken from; 0: none were
        self.bounds: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.known: dict[str, float] = {}  # the largest values that were outside, so that each is told once

    def take(self, model: WorldModel, rows: int) -> None:
        """Be told of new units, taken from so many rows."""
        self.rows, far = rows, max(FAR, 3 * math.sqrt(rows))
        measured = {key: (each.loc.cpu().numpy(), each.scale.cpu().numpy()) for key, each in model.units.items()}
        self.bounds = {key: (loc - far * scale, loc + far * scale) for key, (loc, scale) in measured.items()}

    def exceeded(self, observation: Any, reward: np.ndarray) -> bool:
        """Whether an entry of a batched observation, or a reward (n,), lies outside."""
        values: Mapping[str, Any] = {REWARD: reward, **named(observation)}
        found = False
        for key, (low, high) in self.bounds.items():
            rows = np.reshape(values[key], (len(reward), -1))
            outside = np.abs(rows)[(rows < low) | (rows > high)]
            if outside.max(initial=0) > 3 * self.known.get(key, 0):
                self.known[key], found = float(outside.max()), True
        return found


def unsuited(model: WorldModel, batch: Batch) -> dict[str, str]:
    """{emission: a line for a person}: recorded values that are too small or too large for an output without units."""
    found, values = {}, {**batch.obs, REWARD: batch.reward.unsqueeze(-1)}
    for name, head in model.heads:
        if name not in values or not isinstance(head.output, SymlogNormal | TwoHot):
            continue
        largest = float(values[name][batch.mask > 0].abs().amax())
        most = float(head.output.bins[-1]) if isinstance(head.output, TwoHot) else math.inf
        if 0 < largest < SMALL or largest > most:
            key = "reward_output" if name == REWARD else "vector_output"
            kind, size = ("two-hot" if most < math.inf else "symlog"), "small" if largest < SMALL else "large"
            found[name] = (
                f"{name} has been at most {largest:.3g} until now, too {size} for a {kind} output, whose unit is about "
                f"1: rescale it, or set model.{key} to normal"
            )
    return found
