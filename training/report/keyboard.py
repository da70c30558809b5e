"""Keys as actions, and pictures as text, to play a model in a terminal."""

import string
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np

from worldmodel.specs import ActionSpec

PAIRS = ("ad", "sw", "jl", "ki", "fh", "gt", "vb", "yu")  # the keys that lower and raise each entry of an action
CHOICES = string.digits + string.ascii_lowercase.translate(str.maketrans("", "", "npq"))  # of a discrete action
AGENT, NEW, QUIT, SAME = "p", "n", "q", " "
COLUMNS = 64  # characters in a row of a picture; each is two pixels high


class Keyboard:
    """Maps keys to actions.

    A continuous entry takes its lower or upper bound for the step of its key. In other steps it is 0, or the bound that
    is nearest to 0. A single discrete action has a key for each value. Each entry of several discrete actions has two
    keys that count it down and up; it keeps its value.

    Raises:
        ValueError: if the action has more entries or values than there are keys.
    """

    def __init__(self, spec: ActionSpec) -> None:
        self.spec = spec
        self.single = len(spec.classes) == 1
        entries = 1 if self.single else len(spec.classes) or spec.width
        if entries > len(PAIRS) or (self.single and spec.classes[0] > len(CHOICES)):
            raise ValueError(
                f"There are not enough keys for actions of {entries} entries"
                + (f" of {spec.classes[0]} values" if self.single else "")
                + ". `worldmodel imagine` shows what the agent does."
            )
        self.keys = CHOICES[: spec.classes[0]] if self.single else "".join(PAIRS[:entries])
        self.choice = np.zeros(entries, np.int64)

    def help(self) -> str:
        """Return a line of text that explains the keys."""
        if self.single:
            first = self.spec.start[0] if self.spec.start else 0
            what = f"{self.keys[0]} to {self.keys[-1]}: take action {first} to {first + len(self.keys) - 1}"
        else:
            pairs = PAIRS[: len(self.choice)]
            what = ". ".join(f"{pair[0]}: move entry {i} down. {pair[1]}: move it up" for i, pair in enumerate(pairs))
        space = "repeat the last action" if self.spec.classes else "take a step with no action"
        return f"{what}. Space: {space}. p: let the agent act. n: new episode. q: quit."

    def action(self, key: str) -> np.ndarray | None:
        """Return the action (*shape) of a key in the form of the environment; None for a key without a meaning."""
        at = self.keys.find(key)
        if at < 0 and key != SAME:
            return None
        if not self.spec.classes:
            control = self.spec.encode(np.zeros((1, *self.spec.shape), np.float32))
            if key != SAME:
                control[0, at // 2] = 2 * (at % 2) - 1
            return self.spec.decode(control)[0]
        if key != SAME:
            if self.single:
                self.choice[0] = at
            else:
                self.choice[at // 2] += 2 * (at % 2) - 1
        self.choice = np.clip(self.choice, 0, np.asarray(self.spec.classes) - 1)
        start = np.asarray(self.spec.start or 0, np.int64)
        return (self.choice + start).reshape(self.spec.shape)


@contextmanager
def typed() -> Iterator[Iterator[str]]:
    """Give the keys that are pressed, without Enter. From a pipe, give its characters except the ends of lines.

    Raises:
        ValueError: if the terminal cannot read single keys.
    """
    if not sys.stdin.isatty():
        yield (key for line in sys.stdin for key in line.rstrip("\n"))
        return
    try:
        import termios
        import tty
    except ImportError as error:
        raise ValueError("This terminal cannot read single keys. Pipe them, as in `echo aaddq | ...`.") from error
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield iter(lambda: sys.stdin.read(1), "")
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def blocks(picture: np.ndarray, columns: int = COLUMNS) -> str:
    """Return a picture (H, W, 3) of uint8 as lines of half blocks in true colour, two pixels in a character."""
    rows = max(round(picture.shape[0] * columns / picture.shape[1] / 2), 1)
    small = cv2.resize(picture, (columns, 2 * rows), interpolation=cv2.INTER_AREA)
    lines = []
    for upper, lower in zip(small[::2].tolist(), small[1::2].tolist(), strict=True):
        cells = [
            f"\x1b[38;2;{r};{g};{b}m\x1b[48;2;{R};{G};{B}m▀" for (r, g, b), (R, G, B) in zip(upper, lower, strict=True)
        ]
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)
