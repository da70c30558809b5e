"""The folder of a run: which are free, whose they are, and what is said of them."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from training.schema import dump_yaml, load_yaml, to_mapping
from training.weights import write_new_text

CONFIG = "config.yaml"  # the resolved config; where it is, the folder is taken


def unclaimed(folder: str | Path) -> Path:
    """A folder for a new run.

    Raises:
        ValueError: if it already holds one, or is a file.
    """
    folder = Path(folder)
    if folder.is_file() or (folder / CONFIG).exists():
        raise ValueError(f"{folder} already holds a run: choose another --run folder, or remove it")
    return folder


def claim(folder: Path, config: Any) -> None:
    """Make `folder` that of a run, by writing its resolved config: of two that try, one succeeds.

    Raises:
        ValueError: if another run claimed it before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        write_new_text(folder / CONFIG, dump_yaml(to_mapping(config)))
    except FileExistsError as error:
        raise ValueError(f"{folder} already holds a run: choose another --run folder") from error


def saved_config(folder: Path, command: str) -> dict[str, Any]:
    """What the config file of a run says.

    Args:
        command: what made the run, "train" or "fit".
    Raises:
        ValueError: if the folder holds no run, or one of the other kind.
    """
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} holds no run: {CONFIG} is missing")
    mapping = load_yaml(folder / CONFIG)
    found = "fit" if "data" in mapping else "train"
    if found != command:
        raise ValueError(f"{folder} holds a run of `worldmodel {found}`; one of `worldmodel {command}` is needed here")
    return mapping


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


def whisper(line: str) -> None:
    """Tell a person something on standard error, where no progress is shown."""
    print(line, file=sys.stderr)
