"""A picture of what is imagined where observations are no pictures: every number of them, over the episode."""

import cv2
import numpy as np

SIZE = (160, 240)  # height and width
MARGIN = 8
LINES = 12  # of the first numbers, where there are more
LETTERS = 17  # pixels from one index to the next
TINY = 1e-8  # a difference that is none
COLOURS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (255, 127, 14), (148, 103, 189), (23, 190, 207))  # RGB


def chart(trace: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """A line for each of the first numbers over L steps, of which those that are not yet known are NaN.

    Where there are several, their indices stand above them in their colours.

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
    varies = high - low > TINY
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
        if trace.shape[1] > 1:
            place = (2 * MARGIN + LETTERS * number, 2 * MARGIN + 2)
            cv2.putText(frame, str(number), place, cv2.FONT_HERSHEY_SIMPLEX, 0.35, colour, 1, cv2.LINE_AA)
    return frame
