"""The folder of a run: which are free, whose they are, and what is said of them."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from worldmodel.replay.disk import LOCK
from worldmodel.training.config.schema import dump_yaml, load_yaml, to_mapping
from worldmodel.training.logging.logger import MEDIA
from worldmodel.training.run.weights import write_new_text

T = TypeVar("T")

CONFIG = "config.yaml"  # the resolved config; where it is, the folder is taken
METRICS, CHECKPOINT, ROWS = "metrics.jsonl", "checkpoint", "replay"
FOLDERS, FILES = (CHECKPOINT, ROWS, MEDIA, "wandb", "faults"), (METRICS, LOCK)
SECTIONS = ("env", "model", "objective", "learner", "behaviour", "replay", "training", "evaluation", "logger")
"""Of the config of a run since the first release; each is written whole."""
ASIDE = "before"  # begins the names of folders with what an earlier beginning of the run had recorded


class TakenError(ValueError):
    """A folder holds a run already."""


class Beginning(Protocol):
    """A run that is to be made."""

    folder: Path

    def begin(self) -> None:
        """Claim the folder.

        Raises:
            TakenError: if another run has claimed it.
        """
        ...


def begun(run: Beginning, name: str | None) -> None:
    """Let a run claim its folder; where another one was quicker, the next that is free of those with this name.

    Raises:
        TakenError: if it was quicker, and the folder has no such name: the user has chosen it.
    """
    while True:
        try:
            return run.begin()
        except TakenError:
            if name is None:
                raise
            run.folder = free_folder(name)


def unclaimed(folder: str | Path) -> Path:
    """A folder for a new run.

    Raises:
        ValueError: if it already holds one, is a file, or cannot be made.
    """
    if not str(folder).strip():
        raise ValueError("the folder of a run has no name: give one with --run, or leave that out")
    folder = Path(folder)
    try:
        if folder.is_file():
            raise ValueError(f"{folder} is a file: choose another --run folder, or remove it")
        if (folder / CONFIG).exists():
            raise TakenError(f"{folder} already holds a run: choose another --run folder, or remove it")
    except OSError as error:  # a name too long
        raise ValueError(f"{folder} can hold no run: {error.strerror}; choose another --run folder") from error
    check_writable(folder)
    return folder


def check_writable(folder: Path) -> None:
    """Refuse a folder that files cannot be put into, and that cannot be made either, before there is anything to write.

    Raises:
        ValueError: naming what is in the way.
    """
    try:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    except OSError as error:  # a name too long
        raise ValueError(f"{folder}: {error.strerror}: choose another folder") from error
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"{folder}: {there} is no folder that can be written to: choose another")


def claim(folder: Path, config: Any) -> None:
    """Make `folder` that of a run, by writing its resolved config: of two that try, one succeeds.

    Raises:
        TakenError: if another run claimed it before.
        ValueError: if it cannot be made.
        OSError: if the disk is full; the folder is no run then.
    """
    text = dump_yaml(to_mapping(config))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder} can hold no run: {error.strerror}; choose another --run folder") from error
    try:
        write_new_text(folder / CONFIG, text)
    except FileExistsError as error:
        raise TakenError(f"{folder} already holds a run: choose another --run folder") from error


def saved_config(folder: Path, command: str) -> dict[str, Any]:
    """What the config file of a run says.

    Args:
        command: what made the run, "train" or "fit".
    Raises:
        ValueError: if the folder holds no run, one of the other kind, or one whose config was cut off.
    """
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} holds no run: {CONFIG} is missing")
    mapping = load_yaml(folder / CONFIG)
    found = "fit" if "data" in mapping else "train"
    if found != command:
        instead = {
            "fit": "a fit has no agent and no environment; `worldmodel imagine` and `worldmodel diagnose` take it",
            "train": "`worldmodel train --resume` goes on with it",
        }[found]
        raise ValueError(
            f"{folder} holds a run of `worldmodel {found}`; one of `worldmodel {command}` is needed here: {instead}"
        )
    lost = [name for name in SECTIONS if name not in mapping] if found == "train" else []
    if lost:
        raise ValueError(
            f"{folder / CONFIG} has lost what it said of {', '.join(lost)}: put it back; with their defaults it "
            "would be another run"
        )
    return mapping


def check_layout(folder: Path) -> None:
    """Refuse a run in which a file lies where a folder belongs, or the other way round, before it goes on.

    Raises:
        ValueError: naming it.
    """
    for name in FOLDERS:
        if (folder / name).exists() and not (folder / name).is_dir():
            raise ValueError(f"{folder / name} is no folder: remove it, or put back the folder of the run")
    for name in FILES:
        if (folder / name).is_dir():
            raise ValueError(f"{folder / name} is a folder: remove it, or put back the file of the run")


def set_aside(folder: Path, names: Sequence[str]) -> Path | None:
    """Move files and folders of a run out of its way, into a new folder in it; None if none of them is there."""
    there = [name for name in names if (folder / name).exists()]
    if not there:
        return None
    aside = next(path for k in range(1, 1_000_000) if not (path := folder / f"{ASIDE}-{k}").exists())
    aside.mkdir()
    for name in there:
        (folder / name).rename(aside / name)
    return aside


def read_config(folder: Path, saved: Mapping[str, Any], load: Callable[[Mapping[str, Any]], T]) -> T:
    """The config that was saved with a run.

    Raises:
        ValueError: naming its file, if it does not fit this version, or was changed into what it cannot be.
    """
    try:
        return load(saved)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error


def short(env_id: str) -> str:
    """An environment's id as the name of a folder, which on Windows may hold no colon."""
    return env_id.rpartition("/")[-1].replace(":", "-")


def free_folder(name: str) -> Path:
    """`runs/NAME`, or the first of `runs/NAME-2`, `runs/NAME-3`, ... that holds no run."""
    folders = (Path("runs") / (name if k == 1 else f"{name}-{k}") for k in range(1, 1_000_000))
    return next(folder for folder in folders if not (folder / CONFIG).exists())


def link(file: Path, target: Path) -> None:
    """Another name for a file that is only ever replaced, never changed; a copy where the disk knows no such names."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copy2(file, target)
