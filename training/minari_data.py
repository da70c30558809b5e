"""Sequences from a Minari dataset, and our recordings as one. Needs the optional package `minari`."""

import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import Env, Space, spaces

from envs import action_spec, make, observation_specs
from envs.faults import numbers, value_faults
from envs.spaces import as_dict, one_line
from training.config import load_config
from training.data_config import DataConfig
from training.dataset import Dataset, recorded
from training.dataset_io import MINARI, read
from training.recordings import check_controls, check_finite, chosen_keys
from worldmodel.digits import Range
from worldmodel.spaces import (
    OBSERVATION,
    ActionSpec,
    ObservationSpec,
    ObservationSpecs,
    encode_observation,
    keyed,
    observed,
)
from worldmodel.types import Batch

CONFIG = "config.yaml"  # in a run folder
DATASET = re.compile(MINARI + r"([-\w][-\w/]*[-\w]/)?[-\w]+-v\d+", re.ASCII)
BAD_DATASET = (
    ValueError,
    TypeError,
    AttributeError,
    ImportError,
    OSError,
)  # of minari: malformed names, missing formats


def _minari() -> Any:
    try:
        import minari
    except ImportError as error:
        raise ValueError(f"{MINARI} datasets need the package minari: pip install 'worldmodel[minari]'") from error
    return minari


# ------------------------------------------------------------------------------------------------ reading


def read_minari(name: str, source: DataConfig) -> Dataset:
    """The episodes of a dataset that Minari finds on this machine, with controls as a recording has them.

    Raises:
        ValueError: if minari or the dataset is missing, or its spaces are not supported.
    """
    minari = _minari()
    where = MINARI + name
    try:
        dataset = minari.load_dataset(name)
    except FileNotFoundError as error:
        raise ValueError(f"{where} is not on this machine; `minari download {name}` fetches it: {error}") from error
    except Exception as error:  # of minari and its formats, which have no error in common for a damaged file
        raise ValueError(f"{where} cannot be read: {error or type(error).__name__}") from error
    specs, control = _specs(where, dataset.observation_space, source), _control(where, dataset.action_space)
    check_controls(where, control.width, source)
    ranges = {key: Range(spec.width) for key, spec in specs.items() if not (spec.classes or spec.image)}
    sequences, names = _episodes(where, dataset, specs, control, ranges)
    if not sequences:
        raise ValueError(f"{where}: holds no episode")
    offsets = {key: seen.offset for key, seen in ranges.items() if seen.offset}
    if offsets:  # known only now; read once more, since of the numbers before digits are lost
        specs = {**specs, **{key: replace(specs[key], offset=offset) for key, offset in offsets.items()}}
        sequences, names = _episodes(where, dataset, specs, control, {})
    return Dataset.of(specs, sequences, names, from_env=True)


def _episodes(
    where: str, dataset: Any, specs: ObservationSpecs, control: ActionSpec, ranges: Mapping[str, Range]
) -> tuple[list[Batch], list[str]]:
    """Every episode and its name; `ranges` are shown what is observed, in the precision it is stored in.

    Raises:
        ValueError: naming the episode that cannot be read.
    """
    sequences, names = list[Batch](), list[str]()
    try:
        for episode in dataset.iterate_episodes():
            names.append(f"{where}, episode {len(names) + 1}")
            sequences.append(_sequence(names[-1], specs, control, episode))
            for key, seen in ranges.items():
                values = np.asarray(keyed(specs, episode.observations)[key])
                seen.see(values.reshape(len(values), -1))
    except Exception as error:  # see above
        place = names[-1] if names else where
        reason = str(error).removeprefix(f"{place}, ")
        raise ValueError(f"{place}, cannot be read: {reason or type(error).__name__}") from error
    return sequences, names


def _specs(where: str, space: Space[Any], source: DataConfig) -> ObservationSpecs:
    """Of the observation keys that are chosen; what the others are is of no interest.

    Raises:
        ValueError: if one of them is of a space that no model takes, with those that are not.
    """
    whole = as_dict(space)
    parts = whole.spaces if isinstance(whole, spaces.Dict) else {OBSERVATION: whole}
    specs, refused = dict[str, ObservationSpec](), dict[str, ValueError]()
    for key, part in parts.items():
        try:
            specs[key] = observation_specs(spaces.Dict({key: part}))[key]
        except ValueError as error:
            refused[key] = error
    keys = chosen_keys(where, list(parts), source)
    for key in keys:
        if key in refused:
            others = list(observed(specs))
            remedy = f"choose others by data.observations, as {others}" if others else "it holds nothing to learn from"
            raise ValueError(
                f"{where}: observation '{key}', {one_line(parts[key])}, is not supported: {remedy}"
            ) from refused[key]
    return {key: specs[key] for key in keys}


def _control(where: str, space: Space[Any]) -> ActionSpec:
    try:
        return action_spec(space)
    except ValueError as error:
        raise ValueError(
            f"{where}: the action space {one_line(space)} is not supported: convert the dataset to actions of a "
            "bounded Box of floats, Discrete, MultiDiscrete or MultiBinary"
        ) from error


def _sequence(name: str, specs: ObservationSpecs, control: ActionSpec, episode: Any) -> Batch:
    """x_1..x_T with u_0..u_{T-1}: an episode of T - 1 steps has T observations, and nothing leads to the first.

    Raises:
        ValueError: naming the episode and what in it is of another length than the rewards, or outside its space.
    """
    obs = encode_observation(specs, episode.observations)
    actions, steps = np.asarray(episode.actions), len(episode.rewards)
    lengths = {key: len(values) - 1 for key, values in obs.items()}
    lengths |= {"actions": len(actions), "terminations": len(episode.terminations)}
    for key, length in lengths.items():
        if length != steps:
            raise ValueError(f"{name}, '{key}' is of {length} steps, the rewards are of {steps}")
    rewards, terminations = (_column(name, key, getattr(episode, key)) for key in ("rewards", "terminations"))
    if faults := value_faults(specs, obs):
        raise ValueError(f"{name}, row {min(faults) + 1}: '{faults[min(faults)][0]}' {faults[min(faults)][1]}")
    if control.classes:
        index = actions.reshape(steps, -1) - np.asarray(control.start)
        if ((index < 0) | (index >= np.asarray(control.classes))).any():
            raise ValueError(f"{name}: an action is outside its space")
    check_finite(name, "rewards", rewards)
    controls = control.encode(actions)
    check_finite(name, "actions", controls)
    before = np.zeros((1, control.width), np.float32)
    return recorded(
        obs,
        np.concatenate([before, controls]),
        np.concatenate([[0], rewards]),
        np.concatenate([[False], terminations.astype(bool)]),
    )


def _column(name: str, key: str, values: Any) -> np.ndarray:
    """One number for each step; each of an array (steps, 1) is one, too."""
    column = numbers(values, len(values))
    if column is None:
        raise ValueError(f"{name}, '{key}' has the shape {np.shape(values)}, which is not one number a step")
    return column


# ---------------------------------------------------------------------------------------------- exporting


def export(source: str, target: str) -> int:
    """Write a recording, or the replay of a run, as the Minari dataset `target`; returns the number of episodes.

    From a run folder, observations and actions are those of its environment. From an .npz file alone they are what a
    model sees: flat vectors or indices, and controls in [-1, 1] or one-hot codes.

    Raises:
        ValueError: if minari is missing, the recording cannot be read, or the dataset exists.
    """
    minari = _minari()
    if not DATASET.fullmatch(target):  # minari itself leaves an empty dataset behind when it finds out
        raise ValueError(f"'{target}': export writes to {MINARI}NAME-vN, for example {MINARI}pendulum/random-v0")
    recording = read(DataConfig(file=source))
    env = _environment(Path(source))
    encoded = _Encoded(recording) if env is None else _Native(env)
    buffers = [_buffer(encoded, recording.part(index)) for index in range(len(recording))]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it would like to know an author, an algorithm, a permanent link
            minari.create_dataset_from_buffers(
                target.removeprefix(MINARI),
                buffers,
                env=None if env is None else env.unwrapped,  # without wrappers of ours, which others do not have
                observation_space=encoded.observation_space,
                action_space=encoded.action_space,
                description="recorded by worldmodel",
            )
    except BAD_DATASET as error:
        raise ValueError(f"{target} cannot be written: {error}") from error
    finally:
        if env is not None:
            env.close()
    return len(buffers)


def _environment(source: Path) -> Env[Any, Any] | None:
    """The environment that a run folder recorded; None for a file."""
    if not (source / CONFIG).is_file():
        return None
    return make(replace(load_config(source / CONFIG).env, record_state=False))


class _Native:
    """Observations and actions as the environment has them."""

    def __init__(self, env: Env[Any, Any]) -> None:
        space = env.observation_space
        self.observation_space: Space[Any] = spaces.Dict(observed(space)) if isinstance(space, spaces.Dict) else space
        self.action_space = env.action_space
        self.specs, self.control = observation_specs(self.observation_space), action_spec(env.action_space)

    def observations(self, obs: Mapping[str, np.ndarray]) -> Any:
        values = {key: self._decoded(key, rows) for key, rows in obs.items()}
        return values if isinstance(self.observation_space, spaces.Dict) else values[OBSERVATION]

    def _decoded(self, key: str, rows: np.ndarray) -> np.ndarray:
        spec = self.specs[key]
        rows = rows + np.asarray(spec.start, rows.dtype) if spec.classes else rows
        return rows.reshape(len(rows), *spec.shape)

    def actions(self, controls: np.ndarray) -> np.ndarray:
        return self.control.decode(controls)


class _Encoded:
    """Observations and controls as a model has them."""

    def __init__(self, recording: Dataset) -> None:
        self.specs = recording.obs_specs
        found = {key: _space(spec) for key, spec in self.specs.items()}
        self.single = list(found) == [OBSERVATION]
        self.observation_space: Space[Any] = found[OBSERVATION] if self.single else spaces.Dict(found)
        self.action_space: Space[Any] = spaces.Box(-1, 1, (recording.control_width,), np.float32)

    def observations(self, obs: Mapping[str, np.ndarray]) -> Any:
        values = {
            key: rows.reshape(len(rows), *self.specs[key].shape) if self.specs[key].image else rows
            for key, rows in obs.items()
        }
        return values[OBSERVATION] if self.single else values

    def actions(self, controls: np.ndarray) -> np.ndarray:
        return controls


def _space(spec: ObservationSpec) -> Space[Any]:
    """Of one observation as a model has it; pictures are not flat for anyone else."""
    if spec.image:
        return spaces.Box(0, 255, spec.shape, np.uint8)
    return spaces.MultiDiscrete(list(spec.classes)) if spec.classes else spaces.Box(-np.inf, np.inf, spec.shape)


def _buffer(encoded: _Native | _Encoded, rows: Batch) -> Any:
    """One episode as Minari keeps it: T observations, and T - 1 of everything else."""
    from minari.data_collector import EpisodeBuffer

    terminations = rows.is_terminal[0, 1:].numpy()
    truncations = np.zeros_like(terminations)
    truncations[-1] = not terminations[-1]  # the recording ends there, whether the episode would go on or not
    return EpisodeBuffer(
        observations=encoded.observations({key: values[0].numpy() for key, values in rows.obs.items()}),
        actions=encoded.actions(rows.prev_action[0, 1:].numpy()),
        rewards=rows.reward[0, 1:].tolist(),
        terminations=terminations.tolist(),
        truncations=truncations.tolist(),
    )
