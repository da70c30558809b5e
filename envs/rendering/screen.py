"""What an imagined environment renders."""

from collections.abc import Mapping

import cv2
import numpy as np

from worldmodel.envs.rendering.charts import chart
from worldmodel.specs import ObservationSpecs

SIDE = 96  # pixels that a small image is enlarged to, by a whole factor


def picture(image: np.ndarray) -> np.ndarray:
    """An image (H, W, C) in [0, 1] -> (H', W', 3) of uint8, enlarged by a whole factor where it is small."""
    image = np.clip(image * 255, 0, 255).round().astype(np.uint8)
    image = np.repeat(image, 3, -1) if image.shape[-1] == 1 else image[..., :3]
    factor = max(SIDE // image.shape[0], 1)
    size = (image.shape[1] * factor, image.shape[0] * factor)
    return cv2.resize(image, size, interpolation=cv2.INTER_NEAREST) if factor > 1 else np.ascontiguousarray(image)


class Screen:
    """Shows each of N episodes: the decoded image where one is observed, else a chart of everything that is.

    Args:
        specs: of the observations; without them everything is charted.
    """

    def __init__(self, num_envs: int, specs: ObservationSpecs | None) -> None:
        self.num_envs = num_envs
        images = [(key, spec.shape) for key, spec in (specs or {}).items() if spec.image]
        self.image = images[0] if images else None
        self.now: np.ndarray | None = None  # (N, width) of the image
        self.trace: list[np.ndarray] = []  # (N, D) of each step since the oldest episode began
        self.age = np.zeros(num_envs, np.int64)

    def see(self, age: np.ndarray, means: Mapping[str, np.ndarray]) -> None:
        """Be shown the decoded observations {key: (N, width)} of episodes of that age (N,) in steps."""
        if self.image is not None:
            self.now = means[self.image[0]]
            return
        self.trace.append(np.concatenate([means[key] for key in sorted(means)], 1))
        self.age = age.copy()
        del self.trace[: -int(age.max()) - 1]

    def frames(self) -> tuple[np.ndarray, ...]:
        """(H, W, 3) of uint8 for each episode."""
        if self.image is not None and self.now is not None:
            return tuple(picture(row.reshape(self.image[1])) for row in self.now)
        known = np.full((len(self.trace), *self.trace[0].shape), np.nan, np.float32)
        for env, age in enumerate(self.age):
            known[: age + 1, env] = [step[env] for step in self.trace[len(self.trace) - age - 1 :]]
        low, high = np.nanmin(known, (0, 1)), np.nanmax(known, (0, 1))
        return tuple(chart(known[:, env], low, high) for env in range(self.num_envs))
