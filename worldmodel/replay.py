"""Sequence replay: one ring of arrivals per environment, and windows of consecutive arrivals out of them.

Every stored step has the same chance of being replayed. A window may start at any stored step; one that runs
past the newest step goes on at the oldest of the same environment, and that seam carries `is_first` with its null
control and no reward, so that nothing crosses it. Each step is then covered by exactly T of the equally likely
windows, wherever it lies.
"""

from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch

from worldmodel.spaces import ActionSpec, ObservationSpecs
from worldmodel.types import Arrival, Batch, join

FLAGS = ("is_first", "is_last", "is_terminal")


class Places(NamedTuple):
    """Where the steps of B windows lie."""

    env: np.ndarray  # (B, T)
    slot: np.ndarray  # (B, T) in the ring of that environment
    seam: np.ndarray  # (B, T) bool: the oldest step of its ring, what came before it is forgotten


class SequenceReplay:
    """Stores arrivals and samples batches of windows.

    Args:
        obs_specs, action_spec: what a row holds.
        num_envs: independent streams; a window never mixes two of them.
        capacity: steps kept over all streams; the oldest are forgotten first.
        seed: of the sampling order.
        online: every window of new steps is replayed once as soon as it is whole, before others (DreamerV3's queue).
    Raises:
        ValueError: if `capacity` does not hold one step per environment.
    """

    def __init__(
        self,
        obs_specs: ObservationSpecs,
        action_spec: ActionSpec,
        num_envs: int,
        capacity: int,
        seed: int = 0,
        online: bool = False,
    ) -> None:
        if capacity < num_envs:
            raise ValueError(f"replay capacity {capacity} is below the {num_envs} environments: raise replay.capacity")
        self.length = capacity // num_envs  # of each ring
        self.written = np.zeros(num_envs, np.int64)  # rows ever added to each ring
        self.rng = np.random.default_rng(seed)
        rows = (num_envs, self.length)
        self.obs = {key: np.zeros((*rows, spec.width), spec.dtype) for key, spec in obs_specs.items()}
        self.prev_action = np.zeros((*rows, action_spec.width), np.float32)
        self.reward = np.zeros(rows, np.float32)
        self.flags = {name: np.zeros(rows, bool) for name in FLAGS}
        self.online, self.served = online, np.zeros(num_envs, np.int64)  # rows that the queue has handed out
        self.latents: np.ndarray | None = None  # (num_envs, L, D) of the first L slots, once there are any
        self.known = np.zeros(rows, bool)  # which of them

    def __len__(self) -> int:
        """Steps stored now."""
        return int(self._stored().sum())

    def _stored(self) -> np.ndarray:
        return np.minimum(self.written, self.length)

    def add(self, rows: Arrival, envs: np.ndarray) -> None:
        """Append one row to the stream of each environment index in `envs` (n,), without repeats."""
        slot = self.written[envs] % self.length
        for key, values in rows.obs.items():
            self.obs[key][envs, slot] = values
        self.prev_action[envs, slot] = rows.prev_action
        self.reward[envs, slot] = rows.reward
        for name in FLAGS:
            self.flags[name][envs, slot] = getattr(rows, name)
        self.known[envs, slot] = False
        self.written[envs] += 1

    def sample(
        self,
        batch_size: int,
        window: int,
        device: torch.device | str = "cpu",
        rng: np.random.Generator | None = None,
    ) -> Batch:
        """`batch_size` windows of `window` steps: (B, T, ...), uniform over stored steps.

        Args:
            rng: of someone who only looks: the replay's own order, and the queue of new windows, stay as they are.
        Raises:
            ValueError: if nothing is stored yet.
        """
        return self.gather(self.draw(batch_size, window, rng), device)

    def draw(self, batch_size: int, window: int, rng: np.random.Generator | None = None) -> Places:
        """Where the windows of a batch lie; see :meth:`sample`."""
        stored = self._stored()
        if not stored.any():
            raise ValueError("the replay is empty: collect before sampling")
        new = self._queued(batch_size, window) if self.online and rng is None else []
        start = (rng or self.rng).integers(stored.sum(), size=batch_size - len(new))
        ends = np.cumsum(stored)
        env = np.searchsorted(ends, start, side="right")
        first = start - (ends - stored)[env]  # steps after the oldest of its ring
        if new:
            env = np.concatenate([[each for each, _ in new], env])
            first = np.concatenate([[age for _, age in new], first])
        return self._places(env[:, None], (first[:, None] + np.arange(window)) % stored[env][:, None])

    def _queued(self, batch_size: int, window: int) -> list[tuple[int, int]]:
        """(environment, age of the first step) of windows that have not been replayed, oldest first."""
        oldest, new = np.maximum(self.written - self.length, 0), list[tuple[int, int]]()
        self.served = np.maximum(self.served, oldest)
        for env in range(len(self.written)):
            while self.written[env] - self.served[env] >= window and len(new) < batch_size:
                new.append((env, int(self.served[env] - oldest[env])))
                self.served[env] += window
        return new

    def stream(self, env: int) -> Batch:
        """Everything stored of one environment as one window (1, L, ...), oldest first."""
        age = np.arange(self._stored()[env])[None]
        return self.gather(self._places(np.full_like(age, env), age))

    def everything(self) -> Batch:
        """Every stored step as one window (1, L, ...), one stream after the other."""
        return join([self.stream(env) for env in range(len(self.written))], 1)

    def _places(self, env: np.ndarray, age: np.ndarray) -> Places:
        """Environments and steps after the oldest of their rings, (B, T) or broadcastable to it."""
        env, age = np.broadcast_arrays(env, age)
        return Places(env, (np.maximum(self.written - self.length, 0)[env] + age) % self.length, age == 0)

    def gather(self, places: Places, device: torch.device | str = "cpu") -> Batch:
        """The steps at these places: (B, T, ...)."""
        env, slot, seam = places

        def tensor(array: np.ndarray, at_seam: Any = None) -> torch.Tensor:
            rows = array[env, slot]
            if at_seam is not None:
                rows[seam] = at_seam
            return torch.from_numpy(rows).to(device)

        obs = {key: tensor(array) for key, array in self.obs.items()}
        reward = tensor(self.reward, 0)
        first, last, terminal = (tensor(self.flags[name], True if name == "is_first" else None) for name in FLAGS)
        return Batch(obs, tensor(self.prev_action, 0), reward, first, last, terminal, torch.ones_like(reward))

    def remember(self, places: Places, latents: torch.Tensor) -> None:
        """Store the latent states (B, T, D) inferred at these places, until their steps are forgotten."""
        self.latents = self._with_room(int(places.slot.max()) + 1, latents.shape[-1])
        self.latents[places.env, places.slot] = latents.detach().cpu().numpy()
        self.known[places.env, places.slot] = True

    def _with_room(self, slots: int, width: int) -> np.ndarray:
        """The array of latent states, grown to hold so many slots: a whole ring of them may exceed the memory."""
        held = 0 if self.latents is None else self.latents.shape[1]
        if self.latents is not None and slots <= held:
            return self.latents
        grown = np.zeros((len(self.written), min(max(slots, 2 * held, 1024), self.length), width), np.float16)
        if self.latents is not None:
            grown[:, :held] = self.latents
        return grown

    def newest(self) -> Places:
        """The step last added to each environment: (num_envs, 1)."""
        return self._places(np.arange(len(self.written))[:, None], (self._stored() - 1)[:, None])

    def context(self, places: Places, device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor] | None:
        """The latent states (B, D) stored of the steps before these windows, and which are known (B,); None at first.

        What the model of that time inferred, as DreamerV3 begins its windows: older than the model is now, but of
        everything seen before.
        """
        if self.latents is None:
            return None
        env, slot = places.env[:, 0], (places.slot[:, 0] - 1) % self.length
        known = self.known[env, slot] & ~places.seam[:, 0]
        latents = self.latents[env, np.where(known, slot, 0)].astype(np.float32)
        return torch.from_numpy(latents).to(device), torch.from_numpy(known).to(device)

    def _arrays(self) -> dict[str, np.ndarray]:
        named = {f"obs/{key}": array for key, array in self.obs.items()}
        return named | {"prev_action": self.prev_action, "reward": self.reward} | self.flags

    def save(self, file: Path) -> None:
        """Write every stored step, oldest first, as an `.npz` archive; latent states are soon inferred anew.

        It holds `obs/KEY`, `prev_action`, `reward` and the three flags, each (num_envs, L, ...), and `stored`, the
        number of rows of each environment that count. It replaces an older file in one step, so that a crash
        leaves one of the two.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        stored = self._stored()
        age = np.arange(stored.max(initial=0))
        slot = (np.maximum(self.written - self.length, 0)[:, None] + age) % self.length
        env = np.arange(len(stored))[:, None]
        partial = file.with_name(f"{file.stem}.partial.npz")
        np.savez(partial, stored=stored, **{name: array[env, slot] for name, array in self._arrays().items()})
        partial.replace(file)

    def load(self, file: Path) -> None:
        """Replace the content by what :meth:`save` wrote; a smaller replay keeps the newest steps.

        Raises:
            ValueError: if the file is damaged, or holds other keys, widths or another number of environments.
        """
        try:
            with np.load(file, allow_pickle=False) as archive:
                saved = {name: archive[name] for name in archive.files}
        except (BadZipFile, EOFError, OSError, ValueError) as error:
            raise ValueError(f"{file} cannot be read as a replay: {error}") from error
        arrays = self._arrays()
        if set(saved) != {"stored", *arrays}:
            raise ValueError(f"{file} holds {sorted(saved)}; this replay needs {sorted(arrays)}")
        for name, array in arrays.items():
            if saved[name].shape[2:] != array.shape[2:] or len(saved[name]) != len(array):
                raise ValueError(f"{file}: '{name}' is {saved[name].shape}, which does not fit into {array.shape}")
        for env, stored in enumerate(saved["stored"]):
            kept = min(stored, self.length)
            for name, array in arrays.items():
                array[env, :kept] = saved[name][env, stored - kept : stored]
            self.written[env] = kept
