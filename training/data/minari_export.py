"""Write a recording as a Minari dataset. This needs the optional package `minari`."""

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
from worldmodel.training.run.folder import CONFIG_FILE
from worldmodel.types import Batch

DATASET_PATTERN = re.compile(MINARI + r"([-\w][-\w/]*[-\w]/)?[-\w]+-v\d+", re.ASCII)
EXPORT_ERRORS = (
    ValueError,
    TypeError,
    AttributeError,
    ImportError,
    OSError,
)  # minari raises these for malformed names and missing formats


def export(source: str, target: str) -> int:
    """Write a recording, or the replay of a run, as the Minari dataset `target`. Return the number of episodes.

    From a run folder, observations and actions are those of its environment. From an .npz file they are those of a
    model: flat vectors or indices, and actions in [-1, 1] or one-hot vectors.

    Raises:
        ValueError: if minari is missing, the recording cannot be read, or the dataset exists.
    """
    minari = import_minari()
    if not DATASET_PATTERN.fullmatch(target):  # minari would create an empty dataset before it raises an error
        raise ValueError(
            f"'{target}' is not the name of a Minari dataset. Write {MINARI}NAME-vN, for example "
            f"{MINARI}pendulum/random-v0."
        )
    recording = read(DataConfig(file=source))
    env = _environment(Path(source))
    encoded = _Encoded(recording) if env is None else _Native(env)
    buffers = [_buffer(encoded, recording.part(index)) for index in range(len(recording))]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # minari warns if author, algorithm and permanent link are missing
            minari.create_dataset_from_buffers(
                target.removeprefix(MINARI),
                buffers,
                env=None if env is None else env.unwrapped,  # other users do not have our wrappers
                observation_space=encoded.observation_space,
                action_space=encoded.action_space,
                description="recorded by worldmodel",
            )
    except EXPORT_ERRORS as error:
        raise ValueError(f"{target} cannot be written: {error}.") from error
    finally:
        if env is not None:
            env.close()
    return len(buffers)


def _environment(source: Path) -> Env[Any, Any] | None:
    """Return the environment of a run folder, or None for a file."""
    if not (source / CONFIG_FILE).is_file():
        return None
    return make(replace(load_config(source / CONFIG_FILE).env, record_state=False))


class _Native:
    """Convert observations and actions to those of the environment."""

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
    """Leave observations and actions as a model receives them."""

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
    """Return the space of one observation as a model receives it. Images keep their shape (H, W, C)."""
    if spec.image:
        return spaces.Box(0, 255, spec.shape, np.uint8)
    return spaces.MultiDiscrete(list(spec.classes)) if spec.classes else spaces.Box(-np.inf, np.inf, spec.shape)


def _buffer(encoded: _Native | _Encoded, rows: Batch) -> Any:
    """Return one episode in the form of Minari: T observations, and T - 1 rows of everything else."""
    from minari.data_collector import EpisodeBuffer

    terminations = rows.is_terminal[0, 1:].numpy()
    truncations = np.zeros_like(terminations)
    truncations[-1] = not terminations[-1]  # the recording ends here, even if the episode would continue
    return EpisodeBuffer(
        observations=encoded.observations({key: values[0].numpy() for key, values in rows.obs.items()}),
        actions=encoded.actions(rows.prev_action[0, 1:].numpy()),
        rewards=rows.reward[0, 1:].tolist(),
        terminations=terminations.tolist(),
        truncations=truncations.tolist(),
    )
