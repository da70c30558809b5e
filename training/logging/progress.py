"""The progress display of a run: one live line on a terminal, or a few plain lines in a log file."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

PLAIN_SECONDS = 30.0  # between two lines if there is no terminal


class Progress:
    """A progress display on standard error, which leaves standard output to the result of the command.

        with Progress(total_steps=5_000) as progress:
            progress.update(step, ret=-180.0, elbo=-3.2)
            progress.note("eval at 200 steps: -180 +- 60")

    Args:
        total_steps: the number of environment steps at which the run ends.
        start: the step at which it starts or resumes. The speed counts only later steps.
        console: the console to write to, for tests.
        unit: the name of what is counted, if not environment steps.
        live: whether to show the progress. Notes are shown in any case.
    """

    def __init__(
        self, total_steps: int, start: int = 0, console: Console | None = None, unit: str = "steps", live: bool = True
    ) -> None:
        self.total_steps, self.start, self.unit, self.live = total_steps, start, unit, live
        self.console = console or Console(stderr=True, highlight=False)
        self.bar = Bar(
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
            _Speed(unit),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not live or not self.console.is_terminal or self.console.is_dumb_terminal,
        )
        self.task = self.bar.add_task("steps", total=total_steps, completed=start, shown="")
        self.began = self.spoke = time.monotonic()

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def update(self, step: int, **fields: float) -> None:
        """Show that the run has reached `step` environment steps, with the names and values of `fields`."""
        shown = "  ".join(f"{name} {value:.4g}" for name, value in fields.items())
        self.bar.update(self.task, completed=step, shown=shown)
        if self.live and self.bar.disable and time.monotonic() - self.spoke >= PLAIN_SECONDS:
            self.note(f"{step}/{self.total_steps} {self.unit}  {shown}  {self._speed(step):.0f} {self.unit}/s")

    def note(self, text: str) -> None:
        """Print a permanent line above the bar or in the log. Line breaks in the text become spaces."""
        self.spoke = time.monotonic()
        plain = "".join(letter if letter.isprintable() else " " for letter in text)
        self.console.print(plain, markup=False, soft_wrap=True)

    def _speed(self, step: int) -> float:
        return (step - self.start) / max(time.monotonic() - self.began, 1e-9)


class _Speed(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.0f} {self.unit}/s" if task.speed else "")


def whisper(line: str) -> None:
    """Print a line for the user on standard error, outside of a progress display."""
    print(line, file=sys.stderr)
