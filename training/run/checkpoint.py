"""The checkpoints of a run: numbered folders, each of them whole or not there, and proven to be what was written.

    checkpoint/00007/  manifest.json  model.safetensors  behaviour.safetensors  training.safetensors  replay.npz

A new one is written beside the others and takes its number in one step, after everything in it has reached the disk.
None is ever changed, so that whatever ends a process, the last one or the one before can be read.
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

MANIFEST = "manifest.json"
NAME = re.compile(r"[0-9]{5,}")  # of a checkpoint
FORMAT = 2  # of checkpoints; later ones read all that came before
PARTIAL = ".partial"  # ends the name of a checkpoint that is being written


class DamagedError(ValueError):
    """A file is not what was written."""


@dataclass(frozen=True)
class Checkpoint:
    """What a manifest says of the folder it lies in."""

    folder: Path
    env_steps: int  # that the weights have been trained for
    mean_return: float | None  # of an evaluation of these weights
    files: dict[str, tuple[int, str]]  # {name: (bytes, SHA-256)}

    @staticmethod
    def read(folder: Path) -> "Checkpoint":
        """What the manifest in this folder says.

        Raises:
            DamagedError: if it cannot be read.
            ValueError: if it is of a later version than this one.
        """
        file = folder / MANIFEST
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
        if made > FORMAT:
            raise ValueError(
                f"{file} is of format {made}, written by worldmodel {by}; this version reads up to {FORMAT}"
            )
        return checkpoint

    def check(self, leave_out: Collection[str] = ()) -> None:
        """Compare every file but those left out with what the manifest says of it.

        Raises:
            DamagedError: naming the first that is not what was written.
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
                raise DamagedError(f"{file} is not what was written: its checksum differs")


@contextmanager
def new_checkpoint(root: Path, env_steps: int, mean_return: float | None = None) -> Iterator[Path]:
    """A folder to fill, which becomes the newest checkpoint under `root` at the end; after an error it is gone."""
    for leftover in root.glob(f"*{PARTIAL}"):
        if NAME.fullmatch(leftover.stem):
            remove(leftover)
    target = root / f"{max(numbers(root), default=0) + 1:05d}"
    partial = target.with_name(target.name + PARTIAL)
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
    """Write the manifest of everything in a folder, and have all of it reach the disk."""
    files = {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in sorted(folder.iterdir())}
    whole = {"format": FORMAT, **versions(), **about, "files": files}
    write_text_atomic(folder / MANIFEST, json.dumps(whole, indent=1) + "\n")
    sync_folder(folder)


def numbers(root: Path) -> list[int]:
    """Of the checkpoints under `root`, the oldest first."""
    return sorted(int(folder.name) for folder in root.glob("*") if NAME.fullmatch(folder.name))


def remove(path: Path) -> None:
    """A folder with all that is in it; or what somebody put in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def find(root: Path, which: str = "latest", leave_out: Collection[str] = ()) -> tuple[Checkpoint, list[str]]:
    """A checkpoint whose files are what was written, and what is wrong with others that would have come first.

    Args:
        which: "latest", "best" by the return of its evaluation, or a number.
        leave_out: files that are not needed, nor looked at.
    Raises:
        ValueError: if there is none, or a later version has written it.
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
    raise ValueError(f"{root.parent} holds no {_described(root, which)}" + "".join(f"; {line}" for line in problems))


def _mean_return(checkpoint: Checkpoint) -> float:
    assert checkpoint.mean_return is not None
    return checkpoint.mean_return


def _described(root: Path, which: str) -> str:
    """What was not found, and what is there."""
    if not numbers(root):
        return "complete checkpoint: the run stopped before its first save, or files were removed"
    there = ", ".join(map(str, numbers(root)))
    if which == "latest":
        return "checkpoint that could be used"
    if which == "best":
        return f"evaluated checkpoint that could be used; the run has {there}"
    return f"checkpoint '{which}' that could be used; the run has latest, best, {there}"


def prune(root: Path, keep: int, drop: Collection[str]) -> None:
    """Remove all but the newest `keep` and the best; of the best, if it is no longer new, also the files in `drop`."""
    there = numbers(root)
    old = {number: _read(root / f"{number:05d}") for number in there[:-keep]}
    new = [_read(root / f"{number:05d}") for number in there[-keep:]]
    evaluated = [one for one in (*old.values(), *new) if one is not None and one.mean_return is not None]
    best = max(reversed(evaluated), key=_mean_return, default=None)  # of equals the newest, as `find` has it
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
    """The checksum of a file of any size."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def versions() -> dict[str, str | None]:
    """Of what writes."""
    try:
        ours = version("worldmodel")
    except PackageNotFoundError:
        ours = None
    return {"worldmodel": ours, "torch": torch.__version__}
