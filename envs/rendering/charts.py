"""Charts of vector observations over the steps of an episode."""

from collections.abc import Sequence

import cv2
import numpy as np

SIZE = (160, 240)  # height and width
MARGIN = 8
LINES = 12  # largest number of lines
LETTERS = 17  # pixels from one index to the next
LETTER = 7  # pixels per letter of a name
ROUNDING = 1e-6  # relative difference below which two numbers count as equal
COLOURS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (255, 127, 14), (148, 103, 189), (23, 190, 207))  # RGB


def chart(trace: np.ndarray, low: np.ndarray, high: np.ndarray, names: Sequence[str] = ()) -> np.ndarray:
    """Draw a line for each of the first entries of a vector over L steps.

    The names of the entries are written above the lines in the same colours, as many as fit. Without names, the
    indices are written instead, if there are several entries.

    Args:
        trace: the values (L, D); NaN where a value is not known.
        low: (D,) values at the lower edge.
        high: (D,) values at the upper edge. Where `low` and `high` are equal, the edges lie half a unit below and
            above.
    Returns:
        An RGB image (160, 240, 3) of uint8.
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
    """Write the names of the lines from left to right."""
    across = 2 * MARGIN
    for number, name in enumerate(names[:LINES]):
        written = name.encode("ascii", "replace").decode()  # OpenCV's fonts have only ASCII letters
        if number and across + LETTER * len(written) > frame.shape[1] - MARGIN:
            break
        colour, place = COLOURS[number % len(COLOURS)], (across, 2 * MARGIN + 2)
        cv2.putText(frame, written, place, cv2.FONT_HERSHEY_SIMPLEX, 0.35, colour, 1, cv2.LINE_AA)
        across += max(LETTERS, LETTER * len(written) + LETTERS - LETTER)
