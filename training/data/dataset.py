"""Datasets of recorded sequences, and the batches that are taken from them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from worldmodel.networks.outputs import Normalizer
from worldmodel.specs import ObservationSpec, ObservationSpecs
from worldmodel.types import Batch, join


def recorded(
    obs: dict[str, np.ndarray],
    control: np.ndarray,
    reward: np.ndarray | None = None,
    is_terminal: np.ndarray | None = None,
) -> Batch:
    """Return one sequence as a batch (1, L, ...).

    The first row is a reset, so its control and its reward are set to 0. The arrays are copied.

    Args:
        obs: the observations x_t, {key: (L, width)}.
        control: (L, A), the controls u_{t-1} that led to the observations.
        reward: (L,), by default 0.
        is_terminal: (L,), by default False.
    """
    length = len(control)
    at = np.arange(length)
    reward = np.zeros(length, np.float32) if reward is None else reward
    terminal = np.zeros(length, bool) if is_terminal is None else is_terminal
    columns = (
        np.where(at[:, None] == 0, 0, control).astype(np.float32),
        np.where(at == 0, 0, reward).astype(np.float32),
        at == 0,
        at == length - 1,
        terminal,
        np.ones(length, np.float32),
    )
    tensors = {key: torch.from_numpy(values.copy())[None] for key, values in obs.items()}
    return Batch(tensors, *(torch.from_numpy(column.copy())[None] for column in columns))


@dataclass(frozen=True)
class Dataset:
    """S recorded sequences with the same observations and controls.

    Each row is a time step: the observation x_t with the control u_{t-1} that led to it. The first row of each sequence
    has `is_first` and a zero control.
    """

    obs_specs: ObservationSpecs
    rows: Batch  # (1, N, ...): all sequences, one after the other
    lengths: np.ndarray  # (S,) number of rows of each sequence; their sum is N
    names: list[str]  # the origin of each sequence, for messages
    from_env: bool = False  # recorded from an environment: has rewards and ends, and controls in [-1, 1] or one-hot
    control_offset: tuple[float, ...] = ()  # subtracted from each control, as for observations; empty means 0
    notes: tuple[str, ...] = ()  # lines that tell the user how the sequences were read

    @staticmethod
    def of(
        specs: ObservationSpecs,
        sequences: Sequence[Batch],
        names: list[str],
        from_env: bool = False,
        control_offset: tuple[float, ...] = (),
        notes: tuple[str, ...] = (),
    ) -> "Dataset":
        """Build a dataset from at least one sequence (1, L, ...), each with at least one row."""
        lengths = np.array([each.reward.shape[1] for each in sequences])
        assert len(names) == len(lengths) and lengths.min() > 0, (names, lengths)
        return Dataset(specs, join(sequences, 1), lengths, names, from_env, control_offset, notes)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def control_width(self) -> int:
        """Return the number A of control entries, 0 if there are no controls."""
        return self.rows.prev_action.shape[-1]

    @property
    def begins(self) -> np.ndarray:
        """Return the index of the first row of each sequence, (S,)."""
        return np.cumsum(self.lengths) - self.lengths

    # Datasets derived from this one.

    def part(self, sequence: int, start: int = 0, stop: int | None = None) -> Batch:
        """Return rows `start` to `stop` of one sequence as a separate sequence (1, L, ...)."""
        stop = int(self.lengths[sequence]) if stop is None else stop
        index = self.begins[sequence] + np.arange(start, stop)
        cut = self._gather(index[None], np.ones((1, stop - start), bool))
        cut.is_first[:, 0], cut.is_last[:, -1] = True, True
        cut.prev_action[:, 0], cut.reward[:, 0] = 0, 0
        return cut

    def chosen(self, sequences: Sequence[int]) -> "Dataset":
        """Return a dataset of the sequences with these indices, in this order."""
        names = [self.names[index] for index in sequences]
        return self.of_same_kind([self.part(index) for index in sequences], names)

    def of_same_kind(self, sequences: Sequence[Batch], names: list[str]) -> "Dataset":
        """Return a dataset of other sequences (1, L, ...) with the same observations and controls."""
        return Dataset.of(self.obs_specs, sequences, names, self.from_env, self.control_offset, self.notes)

    def normalized(self, normalizer: Normalizer) -> "Dataset":
        """Return the dataset with normalized controls. The zero controls of resets stay 0."""
        control = normalizer(self.rows.prev_action) * ~self.rows.is_first.unsqueeze(-1)
        return replace(self, rows=self.rows._replace(prev_action=control))

    # Batches.

    def everything(self, device: torch.device | str = "cpu") -> Batch:
        """Return all rows as one window (1, N, ...), one sequence after the other."""
        return self._gather(np.arange(self.lengths.sum())[None], np.ones((1, self.lengths.sum()), bool), device)

    def windows(self, count: int, window: int, rng: np.random.Generator, device: torch.device | str = "cpu") -> Batch:
        """Return random windows (count, window, ...), each within one sequence of at least `window` rows.

        A window that would begin before its sequence or end after it is moved inside. A row near a border is therefore
        drawn at least as often as one in the middle, and the first transition is learned too.
        """
        slack = self.lengths + window - 1  # number of positions at which a window overlaps the sequence
        place = rng.integers(slack.sum(), size=count)
        ends = np.cumsum(slack)
        sequence = np.searchsorted(ends, place, side="right")
        start = place - (ends - slack)[sequence] - (window - 1)
        start = np.clip(start, 0, self.lengths[sequence] - window)
        index = (self.begins[sequence] + start)[:, None] + np.arange(window)
        return self._gather(index, np.ones_like(index, bool), device)

    def padded(self, sequences: Sequence[int] | np.ndarray, device: torch.device | str = "cpu") -> Batch:
        """Return whole sequences (len(sequences), length of the longest, ...), padded at the end."""
        chosen = np.asarray(sequences)
        lengths = self.lengths[chosen][:, None]
        at = np.arange(lengths.max())
        index = self.begins[chosen][:, None] + np.minimum(at, lengths - 1)
        return self._gather(index, at < lengths, device)

    def alike(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return the indices of about `count` sequences of similar length, which need little padding.

        All sequences are equally likely. The lengths are perturbed by about 10 %, so the groups differ each time.
        """
        order = np.argsort(self.lengths * np.exp(0.1 * rng.standard_normal(len(self))), kind="stable")
        groups = np.array_split(order, math.ceil(len(self) / count))
        return groups[rng.integers(len(groups))]

    def _gather(self, index: np.ndarray, inside: np.ndarray, device: torch.device | str = "cpu") -> Batch:
        """Return the rows with the indices (B, T). Rows not `inside` become padding.

        Padding is masked, has `is_first`, and has zero control and reward.
        """
        rows, keep = torch.from_numpy(index), torch.from_numpy(inside).to(device)

        def take(column: Tensor) -> Tensor:
            return column[0, rows].to(device)

        _, control, reward, first, last, terminal, mask = self.rows
        return Batch(
            {key: take(column) for key, column in self.rows.obs.items()},
            take(control) * keep.unsqueeze(-1),
            take(reward) * keep,
            take(first) | ~keep,
            take(last) & keep,
            take(terminal) & keep,
            take(mask) * keep,
        )


def control_normalizer(dataset: Dataset) -> Normalizer:
    """Return the normalizer of the controls of a dataset, fitted to all rows except resets.

    The actions of an environment are already scaled, and their normalizer is the identity.
    """
    normalizer = Normalizer(dataset.control_width)
    if dataset.control_width and not dataset.from_env and not bool(dataset.rows.is_first.all()):
        normalizer.fit(dataset.rows.prev_action, ~dataset.rows.is_first)
    return normalizer


def matching(
    other: Dataset, specs: ObservationSpecs, control_width: int, part: str, control_offset: Sequence[float] = ()
) -> Dataset:
    """Return `other` with the observation keys, classes and offsets of the training data.

    Keys are matched by name if the names are the same, else by their order. Images must have the same names.

    Raises:
        ValueError: if the widths, types or classes differ. The message names `part` and a file.
    """
    where = f"{part}: {other.names[0]}"
    keys = list(specs if specs.keys() == other.obs_specs.keys() else other.obs_specs)
    theirs = {key: other.obs_specs[key] for key in keys}
    filmed = any(spec.image for spec in (*specs.values(), *theirs.values()))
    if (filmed and theirs.keys() != specs.keys()) or [*map(_kind, theirs.values())] != [*map(_kind, specs.values())]:
        remedy = " Record it from the same environment, with the same env.image_size and env.grey." if filmed else ""
        raise ValueError(
            f"{where}: this part observes {_described(theirs)}, but the training data observes {_described(specs)}."
            f"{remedy}"
        )
    if other.control_width != control_width:
        raise ValueError(
            f"{where}: this part has {other.control_width} controls, but the training data has {control_width}."
        )
    for (key, ours), spec in zip(specs.items(), theirs.values(), strict=True):
        if any(found > known for found, known in zip(spec.classes, ours.classes, strict=True)):
            raise ValueError(
                f"{where}: '{key}' has classes {spec.classes}, but the training data has {ours.classes}. Train on data "
                "with all classes."
            )
    obs = {
        name: moved(other.rows.obs[key], other.obs_specs[key].offset, specs[name].offset)
        for name, key in zip(specs, keys, strict=True)
    }
    control = moved(other.rows.prev_action, other.control_offset, control_offset) * ~other.rows.is_first.unsqueeze(-1)
    rows = other.rows._replace(obs=obs, prev_action=control)
    return replace(other, obs_specs=specs, rows=rows, control_offset=tuple(control_offset))


def moved(values: Tensor, offset: Sequence[float], other: Sequence[float]) -> Tensor:
    """Return rows (..., W), from which `offset` was subtracted, with `other` subtracted instead.

    See :mod:`worldmodel.digits`.
    """
    if tuple(offset) == tuple(other):
        return values
    nothing = np.zeros(values.shape[-1])
    difference = np.asarray(offset or nothing, np.float64) - np.asarray(other or nothing, np.float64)
    return (values.double() + torch.from_numpy(difference)).to(values.dtype)


def _kind(spec: ObservationSpec) -> tuple[int | tuple[int, ...], bool]:
    return spec.shape if spec.image else spec.width, bool(spec.classes)


def _described(specs: ObservationSpecs) -> str:
    return ", ".join(f"'{key}' ({_what(spec)})" for key, spec in specs.items())


def _what(spec: ObservationSpec) -> str:
    if spec.image:
        return f"images of {' x '.join(map(str, spec.shape))}"
    return f"{spec.width} {'discrete ' if spec.classes else ''}values"
