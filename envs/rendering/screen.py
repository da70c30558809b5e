"""The rendered images of an imagined environment."""

from collections.abc import Mapping

import cv2
import numpy as np

from worldmodel.envs.rendering.charts import chart
from worldmodel.specs import ObservationSpecs

SIDE = 96  # a small image is enlarged by a whole factor to about this many pixels


def picture(image: np.ndarray) -> np.ndarray:
    """Convert an image (H, W, C) in [0, 1] to (H', W', 3) of uint8. Enlarge a small image by a whole factor."""
    image = np.clip(image * 255, 0, 255).round().astype(np.uint8)
    image = np.repeat(image, 3, -1) if image.shape[-1] == 1 else image[..., :3]
    factor = max(SIDE // image.shape[0], 1)
    size = (image.shape[1] * factor, image.shape[0] * factor)
    return cv2.resize(image, size, interpolation=cv2.INTER_NEAREST) if factor > 1 else np.ascontiguousarray(image)


class Screen:
    """Renders N episodes: the decoded image if an image is observed, otherwise a chart of all observed values.

    Args:
        specs: the specs of the observations. Without them, all values are drawn in a chart.
    """

    def __init__(self, num_envs: int, specs: ObservationSpecs | None) -> None:
        self.num_envs = num_envs
        images = [(key, spec.shape) for key, spec in (specs or {}).items() if spec.image]
        self.image = images[0] if images else None
        self.now: np.ndarray | None = None  # the last image (N, width)
        self.trace: list[np.ndarray] = []  # values (N, D) of each step since the oldest episode began
        self.age = np.zeros(num_envs, np.int64)

    def see(self, age: np.ndarray, means: Mapping[str, np.ndarray]) -> None:
        """Take in the decoded observations of one step.

        Args:
            age: (N,) the number of steps since each episode began.
            means: {key: (N, width)} the decoded observations.
        """
        if self.image is not None:
            self.now = means[self.image[0]]
            return
        self.trace.append(np.concatenate([means[key] for key in sorted(means)], 1))
        self.age = age.copy()
        del self.trace[: -int(age.max()) - 1]

    def frames(self) -> tuple[np.ndarray, ...]:
        """Return an image (H, W, 3) of uint8 for each episode."""
        if self.image is not None and self.now is not None:
            return tuple(picture(row.reshape(self.image[1])) for row in self.now)
        known = np.full((len(self.trace), *self.trace[0].shape), np.nan, np.float32)
        for env, age in enumerate(self.age):
            known[: age + 1, env] = [step[env] for step in self.trace[len(self.trace) - age - 1 :]]
        low, high = np.nanmin(known, (0, 1)), np.nanmax(known, (0, 1))
        return tuple(chart(known[:, env], low, high) for env in range(self.num_envs))
