"""One process at a time trains a run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows, where nobody is kept from it
    fcntl = None  # type: ignore[assignment]

LOCK = "lock"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes from training the run in this folder, until this one is done or dead.

    Raises:
        ValueError: if another one trains it.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"{folder}: another process is training this run") from error
        yield
    finally:
        os.close(descriptor)
