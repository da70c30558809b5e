"""Progress is one live line on a terminal and a few plain lines in a log."""

from io import StringIO

import pytest
from rich.console import Console

from worldmodel.training.logging import progress as module
from worldmodel.training.logging.progress import Progress


def console(terminal: bool) -> Console:
    return Console(file=StringIO(), force_terminal=terminal, width=160, legacy_windows=False)


def written(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_a_log_gets_notes_and_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now, log = [0.0], console(terminal=False)
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with Progress(5_000, start=100, console=log) as progress:
        progress.update(110, elbo=-3.0)
        now[0] = 31.0
        progress.update(410, ret=-180.26, elbo=-3.0)
        progress.update(420, ret=-180.0)
        progress.note("eval at 420 steps: [mean] -200")
    assert written(log) == ("410/5000 steps  ret -180.3  elbo -3  10 steps/s\neval at 420 steps: [mean] -200\n")


def test_a_terminal_shows_steps_fields_speed_and_time_left() -> None:
    terminal = console(terminal=True)
    with Progress(5_000, console=terminal) as progress:
        progress.update(1_000)
        progress.update(2_000, ret=-180.0)
        progress.bar.refresh()
        progress.note("a note stays")
    shown = written(terminal)
    assert "2000/5000" in shown and "ret -180" in shown and "steps/s" in shown and "a note stays" in shown


def test_an_error_inside_takes_the_bar_away() -> None:
    terminal = console(terminal=True)
    with pytest.raises(KeyboardInterrupt), Progress(10, console=terminal):
        raise KeyboardInterrupt
    assert "\x1b[?25h" in written(terminal)  # the cursor is back
