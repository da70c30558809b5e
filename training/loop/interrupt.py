"""How a person or a batch system ends a run: when it is ready for it, and at the second call at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Whether the run has been asked to stop."""

    asked = False
    at_once = False  # whether it can stop where it is


@contextmanager
def patient(say: Callable[[str], None]) -> Iterator[Interrupt]:
    """While a run is between two consistent states, the first Ctrl-C or SIGTERM only asks it to stop.

    The second raises `KeyboardInterrupt` where it comes. Outside the main thread, which alone gets signals, nothing is
    asked.

    Args:
        say: is given a line for the person.
    """
    interrupt = Interrupt()

    def handle(number: int, frame: FrameType | None) -> None:
        if interrupt.asked or interrupt.at_once:
            interrupt.asked = True  # whoever calls Python from C may swallow the error: then it ends a little later
            raise KeyboardInterrupt
        interrupt.asked = True
        say(f"{signal.Signals(number).name}: stopping after this step; once more stops at once")

    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = [signal.signal(number, handle) for number in SIGNALS]
    try:
        yield interrupt
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
