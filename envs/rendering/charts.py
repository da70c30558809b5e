"""A picture of what is imagined where observations are no pictures: every number of them, over the episode."""

from collections.abc import Sequence

import cv2
import numpy as np

SIZE = (160, 240)  # height and width
MARGIN = 8
LINES = 12  # of the first numbers, where there are more
LETTERS = 17  # pixels from one index to the next, and
LETTER = 7  # of each letter of a name
ROUNDING = 1e-6  # share of the size of a number: a difference that is none
COLOURS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (255, 127, 14), (148, 103, 189), (23, 190, 207))  # RGB


def chart(trace: np.ndarray, low: np.ndarray, high: np.ndarray, names: Sequence[str] = ()) -> np.ndarray:
    """A line for each of the first numbers over L steps, of which those that are not yet known are NaN.

    Their names stand above them in their colours, as many as fit; where they have none and there are several, indices.

    Args:
        trace: (L, D). low, high: (D,), where each line meets the lower and the upper edge; where they are equal, half
            a unit below and above.
    Returns:
        (160, 240, 3) uint8, RGB.
    """
    height, width = SIZE
    frame = np.full((height, width, 3), 255, np.uint8)
    cv2.rectangle(frame, (MARGIN, MARGIN), (width - MARGIN, height - MARGIN), (221, 221, 221))
    across = np.linspace(MARGIN, width - MARGIN, max(len(trace), 2))[: len(trace)]
    varies = high - low > ROUNDING * np.maximum(np.abs(low), np.abs(high))
    share = (trace - low) / np.where(varies, high - low, 1) + np.where(varies, 0, 0.5)
    down = height - MARGIN - share * (height - 2 * MARGIN)
    for number, column in enumerate(down.T[:LINES]):
        known = np.isfinite(column)
        points = np.stack([across[known], np.clip(column[known], 0, height - 1)], -1).round().astype(np.int32)
        colour = COLOURS[number % len(COLOURS)]
        if len(points) > 1:
            cv2.polylines(frame, [points], False, colour, 1, cv2.LINE_AA)
        if len(points):
            cv2.circle(frame, tuple(map(int, points[-1])), 3, colour, -1, cv2.LINE_AA)
    _write(frame, names or ([str(number) for number in range(trace.shape[1])] if trace.shape[1] > 1 else []))
    return frame


def _write(frame: np.ndarray, names: Sequence[str]) -> None:
    """Names of the lines, from left to right."""
    across = 2 * MARGIN
    for number, name in enumerate(names[:LINES]):
        written = name.encode("ascii", "replace").decode()  # all that the letters of OpenCV can
        if number and across + LETTER * len(written) > frame.shape[1] - MARGIN:
            break
        colour, place = COLOURS[number % len(COLOURS)], (across, 2 * MARGIN + 2)
        cv2.putText(frame, written, place, cv2.FONT_HERSHEY_SIMPLEX, 0.35, colour, 1, cv2.LINE_AA)
        across += max(LETTERS, LETTER * len(written) + LETTERS - LETTER)
