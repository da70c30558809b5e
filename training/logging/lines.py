"""A file that grows by whole lines, and loses none if the disk is full for a while."""

import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any


def json_safe(value: Any) -> Any:
    """Return a value with None in place of NaN and infinity, which JSON lacks. The value may be a list or a dict."""
    if isinstance(value, dict):
        return {name: json_safe(each) for name, each in value.items()}
    if isinstance(value, list):
        return [json_safe(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Lines:
    """A writer that appends lines to a file. Lines that cannot be written wait in memory for the next attempt.

    Args:
        keep: the number of bytes of an existing file to keep; None keeps all of them.
        say: receives a message for the user when writing begins to fail, and when it works again.
    """

    def __init__(self, file: Path, keep: int | None, say: Callable[[str], None]) -> None:
        self.file, self.say = file, say
        self.descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        there = os.fstat(self.descriptor).st_size
        self.written = self._whole(there if keep is None else min(keep, there))  # bytes of whole lines
        if keep is not None and there < keep:
            say(f"{file} is shorter than it was at the checkpoint: {keep - there} bytes are missing.")
        elif keep is not None and self.written != keep:
            say(f"{file} was changed after the checkpoint: lines may be missing or duplicated.")
        os.ftruncate(self.descriptor, self.written)
        self.waiting = b""

    def _whole(self, count: int) -> int:
        """Return `count` rounded up to the end of its line, or down if that line has no end."""
        with os.fdopen(os.dup(self.descriptor), "rb") as content:
            before = content.read(count)
            if not before or before.endswith(b"\n"):
                return count
            rest = content.readline()
        return count + len(rest) if rest.endswith(b"\n") else before.rfind(b"\n") + 1

    def write(self, line: str) -> None:
        """Append the waiting lines, and a line that ends with a line feed.

        Raises:
            ValueError: if the file is closed.
        """
        if self.descriptor < 0:
            raise ValueError(f"{self.file} is closed")
        failed, self.waiting = bool(self.waiting), self.waiting + line.encode()
        problem = self._attempt()
        if problem and not failed:
            self.say(f"{self.file} cannot be written ({problem}). Its lines are kept in memory and written later.")
        if failed and not problem:
            self.say(f"{self.file} can be written again. No line is missing.")

    def flush(self) -> None:
        """Write the waiting lines, and wait until everything has reached the disk, as far as it has room."""
        if self.waiting and not self._attempt():
            self.say(f"{self.file} can be written again. No line is missing.")
        with suppress(OSError):
            os.fsync(self.descriptor)

    def _attempt(self) -> str:
        """Write the waiting lines. Return "" on success, else the reason; the file then has none of them."""
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
        """Try to write the waiting lines a last time, report the lines that are lost, and close the file."""
        if self.waiting and (problem := self._attempt()):
            self.say(f"{self.file}: {self.waiting.count(10)} line(s) could not be written ({problem}).")
        os.close(self.descriptor)
        self.descriptor = -1  # the system may give the number to another file
