"""Write videos and pictures with OpenCV: VP9 in WebM for browsers and Weights & Biases, GIF and PNG."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np

FPS = 20
SEEN, IMAGINED = (44, 160, 44), (214, 39, 40)  # RGB of the bar over observed and over imagined frames
BAR = 4  # height of the bar in pixels
GAP = 2  # pixels between two pictures


def write_webm(path: Path, frames: Sequence[np.ndarray], fps: int = FPS) -> None:
    """Write frames (H, W, 3) of uint8, RGB, as a video. VP9 needs even sides, so an odd side repeats its last row.

    Raises:
        ValueError: if there are no frames, if their sizes differ, or if this build of OpenCV cannot write VP9.
    """
    even = [np.pad(frame, [(0, side % 2) for side in frame.shape[:2]] + [(0, 0)], "edge") for frame in frames]
    if not even:
        raise ValueError(f"{path}: there are no frames to show")
    path.parent.mkdir(parents=True, exist_ok=True)
    if len({frame.shape for frame in even}) > 1:
        raise ValueError(f"{path}: all frames of a video must have the same size")
    partial = path.with_name(f"{path.stem}.partial.webm")
    height, width = even[0].shape[:2]
    with _quiet():  # OpenCV prints a wrong warning about the codec
        writer = cv2.VideoWriter(str(partial), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"VP90"), fps, (width, height))
    if not writer.isOpened():
        raise ValueError(f"{path}: this build of OpenCV cannot write VP9. The one of pip install opencv-python can.")
    for frame in even:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    os.replace(partial, path)


def check_webm() -> None:
    """Check that videos can be written, before the user spends time on one that cannot be repeated.

    Raises:
        ValueError: if this build of OpenCV cannot write VP9.
    """
    with TemporaryDirectory() as folder:
        write_webm(Path(folder) / "film.webm", [np.zeros((16, 16, 3), np.uint8)])


def write_gif(path: Path, frames: Sequence[np.ndarray], fps: int = FPS) -> None:
    """Write frames (H, W, 3) of uint8, RGB, as an animation that repeats.

    Raises:
        ValueError: if there are no frames.
    """
    if not len(frames):
        raise ValueError(f"{path}: there are no frames to show")
    path.parent.mkdir(parents=True, exist_ok=True)
    animation = cv2.Animation()
    animation.frames = [cv2.cvtColor(frame, cv2.COLOR_RGB2BGR) for frame in frames]
    animation.durations = [round(1000 / fps)] * len(frames)
    partial = path.with_name(f"{path.stem}.partial.gif")
    cv2.imwriteanimation(str(partial), animation)
    os.replace(partial, path)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write a picture (H, W, 3) of uint8, RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.partial.png")
    cv2.imwrite(str(partial), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    os.replace(partial, path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress what a C library prints to standard error while this context lasts."""
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
    """Join rows of pictures of one size to one picture, with white gaps."""
    padded = [[np.pad(each, ((0, GAP), (0, GAP), (0, 0)), constant_values=255) for each in row] for row in rows]
    return np.concatenate([np.concatenate(row, 1) for row in padded], 0)


def marked(frame: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Return the frame with a bar of that colour above it."""
    bar = np.broadcast_to(np.asarray(colour, np.uint8), (BAR, frame.shape[1], 3))
    return np.concatenate([bar, frame], 0)
