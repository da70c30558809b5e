"""What a diagnosis measures: a trained model of either kind of run, and recordings."""

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldmodel.diagnostics.windows import each
from worldmodel.model import WorldModel
from worldmodel.networks.outputs import Normalizer
from worldmodel.replay.archive import read_arrays
from worldmodel.replay.replay import SequenceReplay
from worldmodel.specs import STATE, ObservationSpec, ObservationSpecs
from worldmodel.training.config.data_config import DataConfig
from worldmodel.training.data.dataset import Dataset
from worldmodel.training.data.dataset_io import read_rows, rows_of
from worldmodel.training.data.overlap import fingerprints
from worldmodel.training.data.recordings import OBS_PREFIX, check_recording
from worldmodel.training.fitting.fit_run import FitRun, is_fit
from worldmodel.training.run.checkpoint import numbers
from worldmodel.training.run.folder import CHECKPOINT_FOLDER, REPLAY_FILE, REPLAY_FOLDER
from worldmodel.training.run.run import Run
from worldmodel.types import Batch

ROOM = 2**29  # bytes that are read of either part: a replay may be larger than the memory
TRAIN_SHARE = 0.8  # of every stream: baselines are fitted to these oldest steps; the rest is measured


class Recording(NamedTuple):
    """Recorded streams, each (1, L, ...), in two parts."""

    train: list[Batch]  # baselines are fitted to it; images may be missing
    held: list[Batch]  # the model is measured on it
    source: str  # the name of the held-out part
    seen: str  # a sentence that says what the model was trained on of it; empty if nothing
    whole: bool = False  # whether the model was only trained on sequences from their beginning
    states: Sequence[str] = ()  # known quantities that are not observed: entries of `obs`, after STATE

    @staticmethod
    def split(
        replay: SequenceReplay, device: torch.device, name: str, seen: str, images: Sequence[str] = ()
    ) -> "Recording":
        """Split each stream into the first TRAIN_SHARE, without images, and the rest, of at most ROOM bytes each."""
        train, held = list[Batch](), list[Batch]()
        most = max(ROOM // replay.row_bytes // len(replay.written), 1)
        vectors = [key for key in replay.keys if key not in images]
        for env, stored in enumerate(replay.storage.stored.tolist()):
            end = int(TRAIN_SHARE * stored)
            parts = replay.stream(env, max(end - most, 0), end, vectors), replay.stream(env, max(end, stored - most))
            for part, streams in zip(parts, (train, held), strict=True):
                streams.append(each(part, lambda leaf: leaf.to(device)))
        states = [key.removeprefix(STATE) for key in replay.obs if key.startswith(STATE)]
        return Recording(train, held, f"{name}: last {1 - TRAIN_SHARE:.0%} of each stream", seen, states=states)


class Subject(NamedTuple):
    """A trained model, and functions that read recordings for it."""

    folder: Path
    model: WorldModel
    obs_specs: ObservationSpecs
    normalizer: Normalizer  # the normalizer of the actions that `read` returns, on the same device
    threads: int
    env_steps: int | None  # of its training; None for a fit
    read: Callable[..., Recording]  # (file or None, names of states): reads a file, or the records of the run
    learned_from: Callable[[int], np.ndarray]  # fingerprints of its windows of so many steps; see data/overlap.py
    control_offset: Sequence[float] = ()  # was subtracted from the actions before they were normalized


def load(folder: str | Path, device: str | None = None, checkpoint: str = "latest") -> Run | FitRun:
    """Read the folder of a run of `train` or `fit`.

    Raises:
        ValueError: if it holds no run, or no such checkpoint.
    """
    if not is_fit(folder):
        return Run.load(folder, device, checkpoint=checkpoint)
    if checkpoint not in ("latest", "best"):
        raise ValueError(f"A fit keeps only its best weights, so there is no checkpoint {checkpoint}.")
    return FitRun.load(folder, device)


def open_subject(folder: str | Path, device: str | None = None, checkpoint: str = "latest") -> Subject:
    """Read a run as :func:`load` does; return it with the functions that read its records.

    Raises:
        ValueError: as :func:`load`.
    """
    run = load(folder, device, checkpoint)
    return _of_fit(run) if isinstance(run, FitRun) else _of_train(run)


def _of_train(run: Run) -> Subject:
    """Return the subject of a run of `train`."""
    where = next(run.model.parameters()).device
    assert run.checkpoint is not None
    last = numbers(run.folder / CHECKPOINT_FOLDER)[-1]
    newest = int(run.checkpoint.folder.name) == last
    part = "these steps" if newest else f"the first {run.env_steps} environment steps"

    def read(file: Path | None = None, states: Sequence[str] = ()) -> Recording:
        if states:
            raise ValueError(
                f"{run.folder}: --state is only for runs of `fit`. Here, env.record_state chooses the states."
            )
        replays = [(run.folder / name).resolve() for name in (REPLAY_FOLDER, REPLAY_FILE)]
        own = file is None or rows_of(file).resolve() in replays
        replay = run.replay if file is None else replay_of(file, run)
        name = str(file or run.folder)
        if not len(replay):
            raise ValueError(f"{name} holds no recorded steps. Give a recording as DATA.")
        seen = f"The model was trained on {part}, and the baselines on the other 80%" if own else ""
        return Recording.split(replay, where, name, seen, run.model.image_keys)

    def learned_from(length: int) -> np.ndarray:
        return np.concatenate([each.ravel() for each in _of_replay(run.replay, length)])

    normalizer, threads = Normalizer(run.action_spec.width).to(where), run.config.training.threads
    return Subject(run.folder, run.model, run.obs_specs, normalizer, threads, run.env_steps, read, learned_from)


def _of_replay(replay: SequenceReplay, length: int) -> Iterator[np.ndarray]:
    """Give the fingerprints of all windows of so many steps, in parts of at most ROOM bytes."""
    most = max(ROOM // replay.row_bytes, length)
    for env, stored in enumerate(replay.storage.stored.tolist()):
        for start in range(0, stored, most):
            yield fingerprints(replay.stream(env, start, start + most + length - 1).obs, length)


def replay_of(file: Path, run: Run) -> SequenceReplay:
    """Read the trajectories of a file of `worldmodel collect`, or of another run.

    Raises:
        ValueError: if the file cannot be read, or does not fit the environment of the model.
    """
    file = rows_of(file)
    arrays = read_rows(file) if file.is_dir() else read_arrays(file)
    check_recording(file, arrays)
    for key, spec in run.obs_specs.items():
        found = arrays.get(OBS_PREFIX + key)
        if spec.classes and found is not None and found.max(initial=0) >= max(spec.classes):
            raise ValueError(
                f"{file}: '{key}' contains the value {found.max()}, but the environment of the model has only values "
                f"below {max(spec.classes)}"
            )
    known = {name: array for name, array in arrays.items() if name.startswith(OBS_PREFIX + STATE)}
    states = {name.removeprefix(OBS_PREFIX): ObservationSpec(array.shape[2:]) for name, array in known.items()}
    stored = arrays["stored"]
    capacity = len(stored) * max(int(stored.max(initial=0)), 1)
    replay = SequenceReplay({**run.obs_specs, **states}, run.action_spec, len(stored), capacity)
    (replay.open if file.is_dir() else replay.load)(file)
    return replay


def _of_fit(run: FitRun) -> Subject:
    """Return the subject of a run of `fit`."""

    def read(file: Path | None = None, states: Sequence[str] = ()) -> Recording:
        parts = run.parts()
        part = "test" if "test" in parts else "validation"
        known = run.states(states, None if file is None else str(file), part) if states else None
        if file is None:
            held, source, seen = parts[part], f"the {part} data of {run.folder}", _seen(run.config.data, part)
        else:
            held, source = run.read(str(file)), str(file)
            own = file.resolve() == Path(str(run.config.data.file)).resolve()
            seen = "The model was fitted to a part of these rows" if own else ""
        rows = held.everything(run.config.fit.device)
        if known is not None:
            rows = rows._replace(obs=rows.obs | _named(known, states, rows))
        whole = run.config.data.window is None
        return Recording([parts["train"].everything(run.config.fit.device)], [rows], source, seen, whole, states)

    def learned_from(length: int) -> np.ndarray:
        parts = run.parts()
        return np.concatenate(
            [fingerprints(parts[part].everything().obs, length).ravel() for part in ("train", "validation")]
        )

    normalizer = copy.deepcopy(run.normalizer).to(run.config.fit.device)  # the run uses its own for datasets on the CPU
    threads = run.config.fit.threads
    offset = run.control_offset
    return Subject(run.folder, run.model, run.obs_specs, normalizer, threads, None, read, learned_from, offset)


def _seen(config: DataConfig, part: str) -> str:
    """Say how a fit has used one of its own parts."""
    if getattr(config, part) is not None:
        own = config.source(part)
        if (own.file, own.observations, own.controls) == (config.file, config.observations, config.controls):
            return "The model was fitted to the same rows"
    return "The best weights of the model were chosen on these rows" if part == "validation" else ""


def _named(known: Dataset, names: Sequence[str], rows: Batch) -> dict[str, Tensor]:
    """Return known quantities as entries of `obs`: one for each column of a CSV file, or array of an .npz file."""
    values = known.everything(rows.reward.device).obs
    if len(values) < len(names):
        (columns,) = values.values()
        values = dict(zip(names, columns.split(1, -1), strict=True))
    return {STATE + name: value.float() for name, value in zip(names, values.values(), strict=True)}
