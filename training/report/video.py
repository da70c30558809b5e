"""Moving pictures on disk, by OpenCV alone: VP9 in WebM for browsers and Weights & Biases, GIF, and a strip as PNG."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np

FPS = 20
SEEN, IMAGINED = (44, 160, 44), (214, 39, 40)  # RGB: what a model was shown, and what it foretells
BAR = 4  # pixels of such a mark
GAP = 2


def write_webm(path: Path, frames: Sequence[np.ndarray], fps: int = FPS) -> None:
    """Frames (H, W, 3) of uint8, RGB; one row or column is repeated where a side is odd, which VP9 cannot have.

    Raises:
        ValueError: if there are none, or of several sizes, or this build of OpenCV cannot write VP9.
    """
    even = [np.pad(frame, [(0, side % 2) for side in frame.shape[:2]] + [(0, 0)], "edge") for frame in frames]
    if not even:
        raise ValueError(f"{path}: there is nothing to show")
    path.parent.mkdir(parents=True, exist_ok=True)
    if len({frame.shape for frame in even}) > 1:
        raise ValueError(f"{path}: pictures of several sizes make no film")
    partial = path.with_name(f"{path.stem}.partial.webm")
    height, width = even[0].shape[:2]
    with _quiet():  # it says that the container does not know its own codec, and then writes a good file
        writer = cv2.VideoWriter(str(partial), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"VP90"), fps, (width, height))
    if not writer.isOpened():
        raise ValueError(f"{path}: this OpenCV cannot write VP9; pip install opencv-python has one that can")
    for frame in even:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    os.replace(partial, path)


def check_webm() -> None:
    """To be asked before a film is made that nobody can make again.

    Raises:
        ValueError: if this build of OpenCV cannot write VP9.
    """
    with TemporaryDirectory() as folder:
        write_webm(Path(folder) / "film.webm", [np.zeros((16, 16, 3), np.uint8)])


def write_gif(path: Path, frames: Sequence[np.ndarray], fps: int = FPS) -> None:
    """Frames (H, W, 3) of uint8, RGB, repeated for ever.

    Raises:
        ValueError: if there are none.
    """
    if not len(frames):
        raise ValueError(f"{path}: there is nothing to show")
    path.parent.mkdir(parents=True, exist_ok=True)
    animation = cv2.Animation()
    animation.frames = [cv2.cvtColor(frame, cv2.COLOR_RGB2BGR) for frame in frames]
    animation.durations = [round(1000 / fps)] * len(frames)
    partial = path.with_name(f"{path.stem}.partial.gif")
    cv2.imwriteanimation(str(partial), animation)
    os.replace(partial, path)


def write_png(path: Path, picture: np.ndarray) -> None:
    """One picture (H, W, 3) of uint8, RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.partial.png")
    cv2.imwrite(str(partial), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    os.replace(partial, path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what a library in C prints to the standard error."""
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def tiled(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Pictures of one size, row by row, with white between them."""
    padded = [[np.pad(each, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for each in row] for row in rows]
    return np.concatenate([np.concatenate(row, 1) for row in padded], 0)


def marked(frame: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """With a bar of that colour above it."""
    bar = np.broadcast_to(np.asarray(colour, np.uint8), (BAR, frame.shape[1], 3))
    return np.concatenate([bar, frame], 0)
