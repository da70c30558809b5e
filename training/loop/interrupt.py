"""Stopping a run: after the first signal when it is ready to, after the second at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Whether the run was asked to stop."""

    asked = False
    at_once = False  # whether the first signal may stop it where it is


@contextmanager
def patient(say: Callable[[str], None], interrupt: Interrupt | None = None) -> Iterator[Interrupt]:
    """In this context the first Ctrl-C or SIGTERM only asks the run to stop, so that it can finish its present step.

    The second signal raises `KeyboardInterrupt` at once. Signals reach the main thread alone; in another thread this
    context does nothing.

    Args:
        say: shows a line to the user.
        interrupt: is reset and then used; by default a new one.
    """
    interrupt = interrupt or Interrupt()
    interrupt.asked = interrupt.at_once = False

    def handle(number: int, frame: FrameType | None) -> None:
        if interrupt.asked or interrupt.at_once:
            interrupt.asked = True  # C code that calls Python may swallow the error: then the run ends a little later
            raise KeyboardInterrupt
        interrupt.asked = True
        say(f"{signal.Signals(number).name}: stopping after this step. A second signal stops at once.")

    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = [signal.signal(number, handle) for number in SIGNALS]
    try:
        yield interrupt
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
