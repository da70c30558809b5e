"""A file that grows by whole lines, and never loses one to a disk that is full for a while."""

import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any


def json_safe(value: Any) -> Any:
    """A number, or lists and mappings of them: JSON has no NaN and no infinity, so that null stands for these."""
    if isinstance(value, dict):
        return {name: json_safe(each) for name, each in value.items()}
    if isinstance(value, list):
        return [json_safe(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Lines:
    """Appends lines to a file; what cannot be written waits in memory for the next attempt.

    Args:
        keep: bytes of an existing file that stay; by default all.
        say: gets a line for a person when writing begins to fail, and when it works again.
    """

    def __init__(self, file: Path, keep: int | None, say: Callable[[str], None]) -> None:
        self.file, self.say = file, say
        self.descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        there = os.fstat(self.descriptor).st_size
        self.written = self._whole(there if keep is None else min(keep, there))  # bytes of whole lines
        if keep is not None and there < keep:
            say(f"{file} is shorter than it was at the checkpoint: {keep - there} bytes of its lines are gone")
        elif keep is not None and self.written != keep:
            say(f"{file} was changed since the checkpoint: lines may be missing in it, or be there twice")
        os.ftruncate(self.descriptor, self.written)
        self.waiting = b""

    def _whole(self, count: int) -> int:
        """So many bytes of the file, and what belongs to the line in which they end; without it if that has no end."""
        with os.fdopen(os.dup(self.descriptor), "rb") as content:
            before = content.read(count)
            if not before or before.endswith(b"\n"):
                return count
            rest = content.readline()
        return count + len(rest) if rest.endswith(b"\n") else before.rfind(b"\n") + 1

    def write(self, line: str) -> None:
        """Append a line that ends with a line feed, and those that wait.

        Raises:
            ValueError: if the file is closed.
        """
        if self.descriptor < 0:
            raise ValueError(f"{self.file} is closed")
        failed, self.waiting = bool(self.waiting), self.waiting + line.encode()
        problem = self._attempt()
        if problem and not failed:
            self.say(f"{self.file} cannot be written ({problem}): its lines are kept in memory, and tried again")
        if failed and not problem:
            self.say(f"{self.file} can be written again: nothing is missing in it")

    def flush(self) -> None:
        """Write what waits, and have all of it reach the disk, as far as that has room."""
        if self.waiting and not self._attempt():
            self.say(f"{self.file} can be written again: nothing is missing in it")
        with suppress(OSError):
            os.fsync(self.descriptor)

    def _attempt(self) -> str:
        """Write what waits; why not, if that fails, and then nothing of it is in the file."""
        rest = memoryview(self.waiting)
        try:
            os.lseek(self.descriptor, self.written, os.SEEK_SET)
            while rest:
                rest = rest[os.write(self.descriptor, rest) :]
        except OSError as error:
            os.ftruncate(self.descriptor, self.written)
            return error.strerror or str(error)
        self.written += len(self.waiting)
        self.waiting = b""
        return ""

    def close(self) -> None:
        """Try a last time, and say what could not be written."""
        if self.waiting and (problem := self._attempt()):
            self.say(f"{self.file}: {self.waiting.count(10)} line(s) could not be written ({problem})")
        os.close(self.descriptor)
        self.descriptor = -1  # the number may soon be that of another file
