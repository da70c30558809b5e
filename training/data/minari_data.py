"""Read sequences from a Minari dataset. This needs the optional package `minari`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from worldmodel.digits import Range
from worldmodel.envs import action_spec, observation_specs
from worldmodel.envs.contract.faults import numbers, value_faults
from worldmodel.envs.contract.spaces import as_dict, one_line
from worldmodel.specs import (
    OBSERVATION,
    ActionSpec,
    ObservationSpec,
    ObservationSpecs,
    encode_observation,
    keyed,
    observed,
)
from worldmodel.training.config.data_config import MINARI, DataConfig
from worldmodel.training.data.dataset import Dataset, recorded
from worldmodel.training.data.recordings import check_controls, check_finite, chosen_keys
from worldmodel.types import Batch


def import_minari() -> Any:
    """Import and return the package `minari`.

    Raises:
        ValueError: if it is missing. The message gives the command that installs it.
    """
    try:
        import minari
    except ImportError as error:
        raise ValueError(
            f"{MINARI} datasets need the package minari. Install it: pip install 'worldmodel[minari]'"
        ) from error
    return minari


def read_minari(name: str, source: DataConfig) -> Dataset:
    """Read the episodes of a Minari dataset on this machine. The controls have the form of those in a recording.

    Raises:
        ValueError: if minari or the dataset is missing, or its spaces are not supported.
    """
    minari = import_minari()
    where = MINARI + name
    try:
        dataset = minari.load_dataset(name)
    except FileNotFoundError as error:
        raise ValueError(
            f"{where} is not on this machine: {error}. Download it with `minari download {name}`."
        ) from error
    except Exception as error:  # minari and its formats raise many types of errors for a damaged file
        raise ValueError(f"{where} cannot be read: {error or type(error).__name__}.") from error
    specs, control = _specs(where, dataset.observation_space, source), _control(where, dataset.action_space)
    check_controls(where, control.width, source)
    ranges = {key: Range(spec.width) for key, spec in specs.items() if not (spec.classes or spec.image)}
    sequences, names = _episodes(where, dataset, specs, control, ranges)
    if not sequences:
        raise ValueError(f"{where}: this dataset has no episodes.")
    offsets = {key: seen.offset for key, seen in ranges.items() if seen.offset}
    if offsets:  # read again with the offsets, since the values above have lost digits
        specs = {**specs, **{key: replace(specs[key], offset=offset) for key, offset in offsets.items()}}
        sequences, names = _episodes(where, dataset, specs, control, {})
    return Dataset.of(specs, sequences, names, from_env=True)


def _episodes(
    where: str, dataset: Any, specs: ObservationSpecs, control: ActionSpec, ranges: Mapping[str, Range]
) -> tuple[list[Batch], list[str]]:
    """Read every episode. Return the sequences and their names.

    Args:
        ranges: updated with the observations of each key, in the precision in which they are stored.
    Raises:
        ValueError: if an episode cannot be read. The message names it.
    """
    sequences, names = list[Batch](), list[str]()
    try:
        for episode in dataset.iterate_episodes():
            names.append(f"{where}, episode {len(names) + 1}")
            sequences.append(_sequence(names[-1], specs, control, episode))
            for key, seen in ranges.items():
                values = np.asarray(keyed(specs, episode.observations)[key])
                seen.see(values.reshape(len(values), -1))
    except Exception as error:  # minari and its formats raise many types of errors
        place = names[-1] if names else where
        reason = str(error).removeprefix(f"{place}, ")
        raise ValueError(f"{place} cannot be read: {reason or type(error).__name__}") from error
    return sequences, names


def _specs(where: str, space: Space[Any], source: DataConfig) -> ObservationSpecs:
    """Return the specs of the chosen observation keys. The other keys may have any space.

    Raises:
        ValueError: if the space of a chosen key is not supported. The message lists the keys that are.
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
            remedy = (
                f"Choose others with data.observations, for example {others}."
                if others
                else "The dataset has no observation that is supported."
            )
            raise ValueError(
                f"{where}: the space of the observation '{key}', {one_line(parts[key])}, is not supported. {remedy}"
            ) from refused[key]
    return {key: specs[key] for key in keys}


def _control(where: str, space: Space[Any]) -> ActionSpec:
    try:
        return action_spec(space)
    except ValueError as error:
        raise ValueError(
            f"{where}: the action space {one_line(space)} is not supported. Convert the dataset to actions of a "
            "bounded Box of floats, Discrete, MultiDiscrete or MultiBinary."
        ) from error


def _sequence(name: str, specs: ObservationSpecs, control: ActionSpec, episode: Any) -> Batch:
    """Return an episode as a sequence x_1..x_T with the controls u_0..u_{T-1}.

    An episode of T - 1 steps has T observations. No control leads to the first observation, so u_0 is 0.

    Raises:
        ValueError: if an array has another length than the rewards, or a value lies outside its space. The message
            names the episode and the array.
    """
    obs = encode_observation(specs, episode.observations)
    actions, steps = np.asarray(episode.actions), len(episode.rewards)
    lengths = {key: len(values) - 1 for key, values in obs.items()}
    lengths |= {"actions": len(actions), "terminations": len(episode.terminations)}
    for key, length in lengths.items():
        if length != steps:
            raise ValueError(f"{name}: '{key}' has {length} steps, but the rewards have {steps}.")
    rewards, terminations = (_column(name, key, getattr(episode, key)) for key in ("rewards", "terminations"))
    if faults := value_faults(specs, obs):
        raise ValueError(f"{name}, row {min(faults) + 1}: '{faults[min(faults)][0]}' {faults[min(faults)][1]}.")
    if control.classes:
        index = actions.reshape(steps, -1) - np.asarray(control.start)
        if ((index < 0) | (index >= np.asarray(control.classes))).any():
            raise ValueError(f"{name}: an action lies outside its space.")
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
    """Return one number per step, from an array (steps,) or (steps, 1)."""
    column = numbers(values, len(values))
    if column is None:
        raise ValueError(f"{name}: '{key}' has the shape {np.shape(values)}. It must have one number per step.")
    return column
