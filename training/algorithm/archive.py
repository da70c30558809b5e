"""A trained agent as one zip file."""

import io
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from worldmodel.training.run.checkpoint import MANIFEST_FILE, PARTIAL_SUFFIX
from worldmodel.training.run.folder import CHECKPOINT_FOLDER, CONFIG_FILE
from worldmodel.training.run.run import BEHAVIOUR_FILE, MODEL_FILE, TRAINING_FILE, Run
from worldmodel.validation import check_memory

SAVED = {
    CONFIG_FILE,
    *(f"{CHECKPOINT_FOLDER}/00001/{name}" for name in (MODEL_FILE, BEHAVIOUR_FILE, TRAINING_FILE, MANIFEST_FILE)),
}  # in the zip file


def write_archive(run: Run, state: Mapping[str, Any], path: str | Path | io.BufferedIOBase) -> None:
    """Write the config and the weights of a run, and a state, as one zip file.

    Args:
        path: a file, or its path. `.zip` is added if it is missing. A file that exists stays until all is written.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run.write(folder, dict(state))
        target = _zipped(path)
        if not isinstance(target, Path):
            _pack(folder, target)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + PARTIAL_SUFFIX)
        try:
            _pack(folder, partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def unpacked(path: str | Path | io.BufferedIOBase) -> Iterator[Path]:
    """Give a temporary folder with the contents of an archive, in the form of a run folder.

    Raises:
        ValueError: if the file is not such an archive.
    """
    with tempfile.TemporaryDirectory() as name:
        try:
            with ZipFile(_zipped(path)) as archive:
                found = [one for one in archive.infolist() if one.filename in SAVED]
                check_memory(
                    sum(one.file_size for one in found), "its files", "this is not an agent that was saved here"
                )
                archive.extractall(name, found)
        except Exception as error:  # zipfile and zlib have no common error for a damaged file
            raise ValueError(f"{path} is not a saved agent ({error or type(error).__name__})") from error
        if CONFIG_FILE not in [one.filename for one in found]:
            raise ValueError(f"{path} is not a saved agent (it contains no {CONFIG_FILE})")
        yield Path(name)


def _pack(folder: Path, target: Path | io.BufferedIOBase) -> None:
    """Write everything in a folder into a zip file."""
    with ZipFile(target, "w") as archive:  # type: ignore[arg-type]
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder).as_posix())


def _zipped(path: Any) -> Any:
    """Return a path with the suffix `.zip`; a file as it is."""
    if not isinstance(path, str | Path):
        return path
    path = Path(path)
    return path if path.suffix == ".zip" or not path.name else path.with_name(path.name + ".zip")
