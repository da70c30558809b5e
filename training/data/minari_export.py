"""Our recordings as a Minari dataset. Needs the optional package `minari`."""

import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import Env, Space, spaces

from worldmodel.envs import action_spec, make, observation_specs
from worldmodel.specs import OBSERVATION, ObservationSpec, observed
from worldmodel.training.config.config import load_config
from worldmodel.training.config.data_config import MINARI, DataConfig
from worldmodel.training.data.dataset import Dataset
from worldmodel.training.data.dataset_io import read
from worldmodel.training.data.minari_data import import_minari
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


def export(source: str, target: str) -> int:
    """Write a recording, or the replay of a run, as the Minari dataset `target`; returns the number of episodes.

    From a run folder, observations and actions are those of its environment. From an .npz file alone they are what a
    model sees: flat vectors or indices, and controls in [-1, 1] or one-hot codes.

    Raises:
        ValueError: if minari is missing, the recording cannot be read, or the dataset exists.
    """
    minari = import_minari()
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
