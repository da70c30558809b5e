"""When the normalizers of a run are fitted, and values that an output without a normalizer cannot predict."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from worldmodel.envs.contract.faults import named
from worldmodel.envs.recording.alignment import Recorder
from worldmodel.model import REWARD, WorldModel
from worldmodel.networks.outputs import SymlogNormal, TwoHot
from worldmodel.training.run.run import Run
from worldmodel.types import Batch

ROOM = (
    2**28
)  # bytes of records that normalizers are fitted to; of more records, every second row is used, or third, ...
SMALL = 2e-3  # symlog is the identity below this value, and the error of the output is about 1 there
FAR = 100.0  # standard deviations, at least: at most one value in 10,000 is farther from its mean (Chebyshev)


class Normalization:
    """Fits the normalizers of the model and the behaviour of a run to everything recorded.

    It fits them again each time the number of recorded steps has doubled since the prefill, and as soon as a value is
    far outside (see :class:`Reach`).
    """

    def __init__(self, run: Run, recorder: Recorder) -> None:
        self.run, self.recorder = run, recorder
        self.reach = Reach()
        self._warnings = list[str]()
        self._unsuited = set[str]()  # emissions that a warning has named

    def fit(self, keep: bool) -> None:
        """Fit all normalizers but those of images.

        Args:
            keep: whether the outputs of model and behaviour keep their meaning, as the weights were trained before.
        """
        replay, model = self.run.replay, self.run.model
        keys = [key for key in model.keys if key not in model.image_keys]
        recorded = replay.everything(keys, -(-replay.nbytes(keys) // ROOM) or 1)
        model.fit_normalizers(recorded, keep)
        self.run.behaviour.fit_normalizers(recorded, keep)
        self.reach.take(model, len(replay))
        told = unsuited(model, recorded)
        self._warnings += [line for name, line in told.items() if name not in self._unsuited]
        self._unsuited |= told.keys()
        self._warnings += self.recorder.pop_blurred()

    def refit(self, before: int, steps: int, observation: Any, reward: np.ndarray) -> None:
        """Fit again if the number of steps has doubled, or if the last values are far outside.

        Args:
            before, steps: environment steps before and after the last step of the environments.
            observation, reward: batched results of that step.
        """
        prefill = max(self.run.config.training.prefill, 1)
        doubled = (steps // prefill).bit_length() > (before // prefill).bit_length()
        if doubled or self.reach.exceeded(observation, reward):
            self.fit(keep=True)

    def pop_warnings(self) -> list[str]:
        """Return what the user should know of the values recorded since the last call."""
        warnings, self._warnings = self._warnings, []
        return warnings


class Reach:
    """The range of values that the normalizers of a model are made for.

    Of n recorded values none is farther than sqrt(n - 1) standard deviations from their mean. A value beyond three
    times that differs in size from everything before, such as the first movement of something that was at rest. The
    standard deviation at least triples when it is measured again with such a value. So this happens rarely, however
    fast values grow.
    """

    def __init__(self) -> None:
        self.rows = 0  # that the normalizers were fitted to; 0 before the first fit
        self.bounds: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.known: dict[str, float] = {}  # the largest values outside the bounds, so that each counts once

    def take(self, model: WorldModel, rows: int) -> None:
        """Take the bounds from the normalizers of a model, which were fitted to so many rows."""
        self.rows, far = rows, max(FAR, 3 * math.sqrt(rows))
        measured = {key: (each.loc.cpu().numpy(), each.scale.cpu().numpy()) for key, each in model.normalizers.items()}
        self.bounds = {key: (loc - far * scale, loc + far * scale) for key, (loc, scale) in measured.items()}

    def exceeded(self, observation: Any, reward: np.ndarray) -> bool:
        """Return True if an entry of a batched observation, or a reward (n,), lies outside the bounds."""
        values: Mapping[str, Any] = {REWARD: reward, **named(observation)}
        found = False
        for key, (low, high) in self.bounds.items():
            rows = np.reshape(values[key], (len(reward), -1))
            outside = np.abs(rows)[(rows < low) | (rows > high)]
            if outside.max(initial=0) > 3 * self.known.get(key, 0):
                self.known[key], found = float(outside.max()), True
        return found


def unsuited(model: WorldModel, batch: Batch) -> dict[str, str]:
    """Return {emission: warning} for values that are too small or too large for an output without a normalizer."""
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
                f"The largest absolute value of {name} so far is {largest:.3g}, too {size} for a {kind} output. "
                f"Such an output suits values of about 1. Rescale it, or set model.{key} to normal."
            )
    return found
