"""The checkpoints of a run: numbered folders that are either complete or absent, with a checksum for each file.

    checkpoint/00007/  manifest.json  model.safetensors  behaviour.safetensors  training.safetensors  replay.npz

A new checkpoint is written under another name. It is renamed to its number in one step, after all of its files have
reached the disk. A checkpoint is never changed afterwards. Whatever ends the process, the last checkpoint or the one
before it can be read.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from worldmodel.training.run.weights import sync_folder, write_text_atomic

MANIFEST_FILE = "manifest.json"
NAME_PATTERN = re.compile(r"[0-9]{5,}")  # of the folder of a checkpoint
FORMAT_VERSION = 2  # of new checkpoints; all earlier formats can be read
PARTIAL_SUFFIX = ".partial"  # ends the name of a checkpoint that is being written


class DamagedError(ValueError):
    """The error of a file whose content differs from what was written."""


@dataclass(frozen=True)
class Checkpoint:
    """The content of the manifest in the folder of a checkpoint."""

    folder: Path
    env_steps: int  # environment steps after which the weights were saved
    mean_return: float | None  # of an evaluation of these weights, if there was one
    files: dict[str, tuple[int, str]]  # {name: (bytes, SHA-256)}

    @staticmethod
    def read(folder: Path) -> "Checkpoint":
        """Read the manifest in a folder.

        Raises:
            DamagedError: if it cannot be read.
            ValueError: if a later version of worldmodel wrote it in a newer format.
        """
        file = folder / MANIFEST_FILE
        try:
            found = json.loads(file.read_text())
            made, by = int(found["format"]), found["worldmodel"]
            files = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in found["files"].items()}
            score = None if found["mean_return"] is None else float(found["mean_return"])
            checkpoint = Checkpoint(folder, int(found["env_steps"]), score, files)
            if checkpoint.env_steps < 0 or any(Path(name).name != name for name in files):
                raise ValueError(f"{checkpoint.env_steps} steps, {sorted(files)}")
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
            raise DamagedError(f"{file} cannot be read: {error!r}") from error
        if made > FORMAT_VERSION:
            raise ValueError(
                f"{file} has format {made} and was written by worldmodel {by}. This version reads formats up to "
                f"{FORMAT_VERSION}. Install a newer version."
            )
        return checkpoint

    def check(self, leave_out: Collection[str] = ()) -> None:
        """Compare every file, except those in `leave_out`, with its size and checksum in the manifest.

        Raises:
            DamagedError: if a file differs. The message names the first one.
        """
        for name, (size, digest) in self.files.items():
            file = self.folder / name
            if name in leave_out:
                continue
            if not file.is_file():
                raise DamagedError(f"{file} is missing")
            if file.stat().st_size != size:
                raise DamagedError(f"{file} has {file.stat().st_size} bytes instead of {size}")
            if sha256(file) != digest:
                raise DamagedError(f"{file} was changed after it was written: its checksum differs")


@contextmanager
def new_checkpoint(root: Path, env_steps: int, mean_return: float | None = None) -> Iterator[Path]:
    """Yield a folder to fill. It then becomes the newest checkpoint under `root`; after an error it is removed."""
    for leftover in root.glob(f"*{PARTIAL_SUFFIX}"):
        if NAME_PATTERN.fullmatch(leftover.stem):
            remove(leftover)
    target = root / f"{max(numbers(root), default=0) + 1:05d}"
    partial = target.with_name(target.name + PARTIAL_SUFFIX)
    partial.mkdir(parents=True)
    try:
        yield partial
        _seal(partial, {"env_steps": env_steps, "mean_return": mean_return})
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_folder(root)


def _seal(folder: Path, about: dict[str, Any]) -> None:
    """Write the manifest of all files in a folder, and wait until everything has reached the disk."""
    files = {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in sorted(folder.iterdir())}
    whole = {"format": FORMAT_VERSION, **versions(), **about, "files": files}
    write_text_atomic(folder / MANIFEST_FILE, json.dumps(whole, indent=1) + "\n")
    sync_folder(folder)


def numbers(root: Path) -> list[int]:
    """Return the numbers of the checkpoints under `root`, the oldest first."""
    return sorted(int(folder.name) for folder in root.glob("*") if NAME_PATTERN.fullmatch(folder.name))


def remove(path: Path) -> None:
    """Remove a folder and everything in it, or a file or link that was put in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def find(root: Path, which: str = "latest", leave_out: Collection[str] = ()) -> tuple[Checkpoint, list[str]]:
    """Return an undamaged checkpoint, and the problems of the damaged ones that would have been preferred to it.

    Args:
        which: "latest", "best" for the highest return in its evaluation, or a number.
        leave_out: names of files that are not needed and not checked.
    Raises:
        ValueError: if there is no such checkpoint, or a later version of worldmodel wrote it.
    """
    known, problems = [], []
    for number in reversed(numbers(root)):
        try:
            known.append(Checkpoint.read(root / f"{number:05d}"))
        except DamagedError as error:
            problems.append(str(error))
    if which == "best":
        known = sorted((one for one in known if one.mean_return is not None), key=_mean_return, reverse=True)
    elif which != "latest":
        known = [one for one in known if which.isdecimal() and int(one.folder.name) == int(which)]
    for checkpoint in known:
        try:
            checkpoint.check(leave_out)
        except DamagedError as error:
            problems.append(str(error))
        else:
            return checkpoint, problems
    raise ValueError(f"{root.parent} holds no {_described(root, which)}." + "".join(f" {line}." for line in problems))


def _mean_return(checkpoint: Checkpoint) -> float:
    assert checkpoint.mean_return is not None
    return checkpoint.mean_return


def _described(root: Path, which: str) -> str:
    """Return the part of a message that says what was not found, and what there is."""
    if not numbers(root):
        return "complete checkpoint: the run stopped before its first save, or files were removed"
    there = ", ".join(map(str, numbers(root)))
    if which == "latest":
        return "usable checkpoint"
    if which == "best":
        return f"usable checkpoint with an evaluation. The run has the checkpoints {there}"
    return f"usable checkpoint '{which}'. The run has the checkpoints latest, best, {there}"


def prune(root: Path, keep: int, drop: Collection[str]) -> None:
    """Remove all checkpoints except the newest `keep` and the best.

    If the best one is not among the newest, its files in `drop` are removed as well.
    """
    there = numbers(root)
    old = {number: _read(root / f"{number:05d}") for number in there[:-keep]}
    new = [_read(root / f"{number:05d}") for number in there[-keep:]]
    evaluated = [one for one in (*old.values(), *new) if one is not None and one.mean_return is not None]
    best = max(reversed(evaluated), key=_mean_return, default=None)  # the newest one of equals, as in `find`
    for number, checkpoint in old.items():
        if checkpoint is None or checkpoint is not best:
            remove(root / f"{number:05d}")
            continue
        for name in drop:
            (checkpoint.folder / name).unlink(missing_ok=True)


def _read(folder: Path) -> Checkpoint | None:
    try:
        return Checkpoint.read(folder)
    except ValueError:
        return None


def sha256(file: Path) -> str:
    """Return the SHA-256 checksum of a file without reading it into memory as a whole."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def versions() -> dict[str, str | None]:
    """Return the versions of worldmodel and torch that write a checkpoint."""
    try:
        ours = version("worldmodel")
    except PackageNotFoundError:
        ours = None
    return {"worldmodel": ours, "torch": torch.__version__}
