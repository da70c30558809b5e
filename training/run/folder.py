"""The folder of a run: find a free one, claim it, and read its config."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from worldmodel.replay.disk import LOCK
from worldmodel.training.config.schema import dump_yaml, load_yaml, to_mapping
from worldmodel.training.logging.logger import MEDIA_FOLDER
from worldmodel.training.run.weights import write_new_text

T = TypeVar("T")

CONFIG_FILE = "config.yaml"  # the resolved config; a folder that holds it belongs to a run
METRICS_FILE, CHECKPOINT_FOLDER = "metrics.jsonl", "checkpoint"
REPLAY_FOLDER = "replay"  # holds the replay on the disk (replay.disk), or REPLAY_FILE
REPLAY_FILE = f"{REPLAY_FOLDER}/replay.npz"  # an archive of a replay in memory
RUN_FOLDERS, RUN_FILES = (CHECKPOINT_FOLDER, REPLAY_FOLDER, MEDIA_FOLDER, "wandb", "faults"), (METRICS_FILE, LOCK)
REQUIRED_SECTIONS = ("env", "model", "objective", "learner", "behaviour", "replay", "training", "evaluation", "logger")
"""The sections of the config since the first release. Each is saved completely."""
ASIDE_PREFIX = "before"  # begins the names of folders with recordings of an earlier attempt at the run


class TakenError(ValueError):
    """The error of a folder that already holds a run."""


class Beginning(Protocol):
    """A run that has not begun yet."""

    folder: Path

    def begin(self) -> None:
        """Claim the folder.

        Raises:
            TakenError: if another run has claimed it.
        """
        ...


def begun(run: Beginning, name: str | None) -> None:
    """Let a run claim its folder. If another run was faster, take the next free folder with this name.

    Args:
        name: the name from which folder names are made; None if the user has chosen the folder.
    Raises:
        TakenError: if another run was faster and `name` is None.
    """
    while True:
        try:
            return run.begin()
        except TakenError:
            if name is None:
                raise
            run.folder = free_folder(name)


def unclaimed(folder: str | Path) -> Path:
    """Return the path of a folder for a new run.

    Raises:
        ValueError: if the folder already holds a run, is a file, or cannot be created.
    """
    if not str(folder).strip():
        raise ValueError("The folder of the run has no name. Give it one with --run, or leave --run out.")
    folder = Path(folder)
    try:
        if folder.is_file():
            raise ValueError(f"{folder} is a file. Choose another --run folder, or remove the file.")
        if (folder / CONFIG_FILE).exists():
            raise TakenError(f"{folder} already holds a run. Choose another --run folder, or remove this one.")
    except OSError as error:  # the name is too long
        raise ValueError(f"{folder} cannot hold a run: {error.strerror}. Choose another --run folder.") from error
    check_writable(folder)
    return folder


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written to or created, before there is anything to write.

    Raises:
        ValueError: if the folder cannot be used. The message names the obstacle.
    """
    try:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    except OSError as error:  # the name is too long
        raise ValueError(f"{folder}: {error.strerror}. Choose another folder.") from error
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"{folder}: {there} is not a folder that can be written to. Choose another folder.")


def claim(folder: Path, config: Any) -> None:
    """Claim `folder` for a run by writing its resolved config. If two processes try, one succeeds.

    Raises:
        TakenError: if another run has claimed it before.
        ValueError: if it cannot be created.
        OSError: if the disk is full. The folder then belongs to no run.
    """
    text = dump_yaml(to_mapping(config))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder} cannot hold a run: {error.strerror}. Choose another --run folder.") from error
    try:
        write_new_text(folder / CONFIG_FILE, text)
    except FileExistsError as error:
        raise TakenError(f"{folder} already holds a run. Choose another --run folder.") from error


def saved_config(folder: Path, command: str) -> dict[str, Any]:
    """Read the config file of a run.

    Args:
        command: the command that must have made the run, "train" or "fit".
    Raises:
        ValueError: if the folder holds no run, a run of the other command, or a run whose config is incomplete.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(f"{folder} holds no run: {CONFIG_FILE} is missing")
    mapping = load_yaml(folder / CONFIG_FILE)
    found = "fit" if "data" in mapping else "train"
    if found != command:
        instead = {
            "fit": "A fit has no agent and no environment. `worldmodel imagine` and `worldmodel diagnose` accept it.",
            "train": "`worldmodel train --resume` continues it.",
        }[found]
        raise ValueError(
            f"{folder} holds a run of `worldmodel {found}`, but a run of `worldmodel {command}` is needed. {instead}"
        )
    lost = [name for name in REQUIRED_SECTIONS if name not in mapping] if found == "train" else []
    if lost:
        raise ValueError(
            f"{folder / CONFIG_FILE} has lost the sections {', '.join(lost)}. Put them back. With their defaults this "
            "would be another run."
        )
    return mapping


def check_layout(folder: Path) -> None:
    """Refuse to resume a run in which a file stands in the place of a folder, or a folder in the place of a file.

    Raises:
        ValueError: if there is one. The message names it.
    """
    for name in RUN_FOLDERS:
        if (folder / name).exists() and not (folder / name).is_dir():
            raise ValueError(f"{folder / name} is not a folder. Remove it, or put back the folder of the run.")
    for name in RUN_FILES:
        if (folder / name).is_dir():
            raise ValueError(f"{folder / name} is a folder. Remove it, or put back the file of the run.")


def set_aside(folder: Path, names: Sequence[str]) -> Path | None:
    """Move files and folders of a run into a new folder inside it.

    Returns:
        The new folder, or None if none of the names exists.
    """
    there = [name for name in names if (folder / name).exists()]
    if not there:
        return None
    aside = next(path for k in range(1, 1_000_000) if not (path := folder / f"{ASIDE_PREFIX}-{k}").exists())
    aside.mkdir()
    for name in there:
        (folder / name).rename(aside / name)
    return aside


def read_config(folder: Path, saved: Mapping[str, Any], load: Callable[[Mapping[str, Any]], T]) -> T:
    """Build the config that was saved with a run.

    Raises:
        ValueError: if the config does not fit this version, or was edited and is invalid. The message names its file.
    """
    try:
        return load(saved)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG_FILE}: {error}") from error


def short(env_id: str) -> str:
    """Return the id of an environment as a folder name. It has no colon, which Windows does not allow."""
    return env_id.rpartition("/")[-1].replace(":", "-")


def free_folder(name: str) -> Path:
    """Return the first of `runs/NAME`, `runs/NAME-2`, `runs/NAME-3`, ... that holds no run."""
    folders = (Path("runs") / (name if k == 1 else f"{name}-{k}") for k in range(1, 1_000_000))
    return next(folder for folder in folders if not (folder / CONFIG_FILE).exists())


def link(file: Path, target: Path) -> None:
    """Hard-link `target` to a file that is only replaced and never changed. Copy it if the disk has no hard links."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copy2(file, target)
