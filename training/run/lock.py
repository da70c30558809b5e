"""A lock that lets only one process at a time train a run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from worldmodel.replay.disk import LOCK, locked


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Prevent other processes from training the run in this folder until this one has finished or died.

    Raises:
        ValueError: if another process is training it.
    """
    descriptor = locked(folder / LOCK, f"{folder}: another process is training this run")
    try:
        yield
    finally:
        os.close(descriptor)
