"""One process at a time trains a run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from worldmodel.replay.disk import LOCK, locked


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes from training the run in this folder, until this one is done or dead.

    Raises:
        ValueError: if another one trains it.
    """
    descriptor = locked(folder / LOCK, f"{folder}: another process is training this run")
    try:
        yield
    finally:
        os.close(descriptor)
