"""Latent states that a model inferred at stored time steps, kept beside the rows of a replay."""

import numpy as np
import torch

from worldmodel.kernels.memory import untouched
from worldmodel.replay.places import Places
from worldmodel.replay.storage import Column, Storage
from worldmodel.replay.timeline import Timeline

LATENT = "latent"  # the name of the column
LATENT_BYTES = 2  # bytes of one stored number: float16


class LatentStates:
    """The latent states of the time steps in one storage. No file holds them after the process has ended.

    Args:
        storage: the rings whose slots the states share. The column is added to it with the first states.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.known = untouched((storage.num_envs, storage.length), np.dtype(bool))  # which slots have a state

    @property
    def array(self) -> np.ndarray | None:
        """The states by slot (num_envs, L, D), of which only the `known` ones count. None before the first ones."""
        return self.storage.array(LATENT) if LATENT in self.storage.beside else None

    def put(self, places: Places, latents: torch.Tensor) -> None:
        """Store the states (B, T, D) of these places as float16.

        A state that is not finite as float16 is not known afterwards.
        """
        if self.array is None:
            self._add_column(latents.shape[-1:])
        rows = latents.detach().half().cpu()
        self.storage.put(LATENT, places.env, places.slot, rows.numpy())
        self.known[places.env, places.slot] = rows.isfinite().all(-1).numpy()

    def before(self, places: Places) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the states (B, D) of the steps before these windows, and which of them are known (B,).

        Returns:
            None if no state has been stored yet.
        """
        if self.array is None:
            return None
        env, slot = places.env[:, 0], (places.slot[:, 0] - 1) % self.storage.length
        known = self.known[env, slot] & ~places.seam[:, 0]
        return self.storage.take(LATENT, env, np.where(known, slot, 0)).astype(np.float32), known

    def saved(self, timeline: Timeline) -> tuple[np.ndarray, np.ndarray | None]:
        """Return by age rank which states are known (num_envs, L), and the states (num_envs, L, D) if there are any."""
        env, slot, stored = timeline.by_rank()
        known = self.known[env, slot] & stored
        if self.array is None:
            return known, None
        # The ring may not have grown yet to slots without a state: read slot 0 instead.
        return known, self.storage.take(LATENT, np.where(known, env, 0), np.where(known, slot, 0))

    def restore(self, timeline: Timeline, known: np.ndarray, latents: np.ndarray | None) -> None:
        """Hold what :meth:`saved` returned."""
        env, slot, stored = timeline.by_rank()
        if latents is not None:
            self._add_column(latents.shape[2:])
            self.storage.put(LATENT, env, slot, latents)
        self.known[env, slot] = known & stored

    def _add_column(self, shape: tuple[int, ...]) -> None:
        self.storage.add_beside(LATENT, Column(np.dtype(np.float16), tuple(shape)))
