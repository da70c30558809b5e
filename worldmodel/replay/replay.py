"""Sequence replay: one ring of arrivals per environment, and windows of consecutive arrivals out of them.

Every stored step has the same chance of being replayed. A window may start at any stored step; one that runs
past the newest step goes on at the oldest of the same environment, and that seam carries `is_first` with its null
control and no reward, so that nothing crosses it. Each step is then covered by exactly T of the equally likely
windows, wherever it lies.

Where the rows are, in memory or in files, is the storage's concern and makes no difference to what is sampled.
"""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel.kernels.memory import untouched
from worldmodel.replay.archive import read_archive, write_archive
from worldmodel.replay.disk import Disk
from worldmodel.replay.places import Places, moved
from worldmodel.replay.storage import FLAGS, OBS, Column, Memory, Storage, arrival_columns, row_bytes
from worldmodel.specs import ActionSpec, ObservationSpecs
from worldmodel.types import Arrival, Batch

LATENT = "latent"  # the column of states that a model inferred
LATENT_BYTES = 2  # of each of its numbers


class SequenceReplay:
    """Stores arrivals and samples batches of windows.

    It begins in memory; :meth:`move` takes it to the disk, :meth:`open` goes on with what is there.

    Args:
        obs_specs, action_spec: what a row holds.
        num_envs: independent streams; a window never mixes two of them.
        capacity: steps kept over all streams; the oldest are forgotten first.
        seed: of the sampling order.
        online: every window of new steps is replayed once as soon as it is whole, before others (DreamerV3's queue).
        capacity_bytes: the same in bytes of rows; the lesser of the two counts. Latent states are not in it.
    Raises:
        ValueError: if the capacity does not hold one step per environment.
    """

    def __init__(
        self,
        obs_specs: ObservationSpecs,
        action_spec: ActionSpec,
        num_envs: int,
        capacity: int,
        seed: int = 0,
        online: bool = False,
        capacity_bytes: int | None = None,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"a replay has the rows of one environment at least: {num_envs}")
        if capacity < num_envs:
            raise ValueError(f"replay capacity {capacity} is below the {num_envs} environments: raise replay.capacity")
        columns = arrival_columns(obs_specs, action_spec)
        room = capacity if capacity_bytes is None else capacity_bytes // row_bytes(columns)
        if room < num_envs:
            raise ValueError(
                f"replay capacity_bytes {capacity_bytes} holds no step of each of {num_envs} environments, "
                f"{row_bytes(columns)} bytes each: raise replay.capacity_bytes"
            )
        self.storage: Storage = Memory(columns, num_envs, min(capacity, room) // num_envs)
        self.obs_specs, self.action_spec, self.keys = obs_specs, action_spec, list(obs_specs)
        self.rng = np.random.default_rng(seed)
        self.online = online
        self.served: np.ndarray  # (num_envs,) rows that the queue has handed out
        self.known: np.ndarray  # (num_envs, length) of which steps there is a latent state
        self._forget()

    def __len__(self) -> int:
        """Steps stored now."""
        return int(self.storage.stored.sum())

    @property
    def length(self) -> int:
        """Steps that are kept of each stream."""
        return self.storage.length

    @property
    def written(self) -> np.ndarray:
        """(num_envs,) rows ever added to each stream."""
        return self.storage.written

    @property
    def row_bytes(self) -> int:
        """Of one step."""
        return row_bytes(self.storage.columns)

    @property
    def max_bytes(self) -> int:
        """Of all steps, once the rings are full."""
        return self.storage.num_envs * self.length * self.row_bytes

    def nbytes(self, keys: Iterable[str]) -> int:
        """Bytes of everything stored, with these observations alone."""
        left_out = {OBS + key for key in self.keys} - {OBS + key for key in keys}
        columns = {name: column for name, column in self.storage.columns.items() if name not in left_out}
        return len(self) * row_bytes(columns)

    @property
    def obs(self) -> dict[str, np.ndarray]:
        """{key: (num_envs, L, width)}: the slots of every ring, at least those that hold something."""
        return {key: self.storage.array(OBS + key) for key in self.keys}

    def add(self, rows: Arrival, envs: np.ndarray) -> None:
        """Append one row to the stream of each environment index in `envs` (n,), without repeats.

        Raises:
            ValueError: if rows have other keys or widths than the specs say.
        """
        cells = {OBS + key: values for key, values in rows.obs.items()}
        cells |= {"prev_action": rows.prev_action, "reward": rows.reward}
        self.known[envs, self.written[envs] % self.length] = False
        self.storage.append(cells | {name: getattr(rows, name) for name in FLAGS}, envs)

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
        stored = self.storage.stored
        if not stored.any():
            raise ValueError("the replay is empty: collect before sampling")
        new = self._queued(batch_size, window) if self.online and rng is None else []
        start = (rng or self.rng).integers(stored.sum(), size=batch_size - len(new))
        env, first = self._numbered(start)
        if new:
            env = np.concatenate([[each for each, _ in new], env])
            first = np.concatenate([[age for _, age in new], first])
        return self._places(env[:, None], (first[:, None] + np.arange(window)) % stored[env][:, None])

    def _numbered(self, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Stored steps by number, one stream after the other -> environment, and age: steps after its oldest."""
        stored = self.storage.stored
        ends = np.cumsum(stored)
        env = np.searchsorted(ends, step, side="right")
        return env, step - (ends - stored)[env]

    def _queued(self, batch_size: int, window: int) -> list[tuple[int, int]]:
        """(environment, age of the first step) of windows that have not been replayed, oldest first."""
        oldest, new = self.storage.oldest, list[tuple[int, int]]()
        self.served = np.maximum(self.served, oldest)
        while len(new) < batch_size:
            whole = np.flatnonzero(self.written - self.served >= window)
            if not len(whole):
                break
            env = int(whole[self.served[whole].argmin()])  # the one that has waited for the longest
            new.append((env, int(self.served[env] - oldest[env])))
            self.served[env] += window
        return new

    def stream(self, env: int, start: int = 0, stop: int | None = None, keys: Iterable[str] | None = None) -> Batch:
        """What is stored of one environment as one window (1, L, ...), oldest first.

        Args:
            start, stop: which of its steps, by default all. keys: observations that are wanted, by default all.
        """
        age = np.arange(self.storage.stored[env])[None, start:stop]
        return self.gather(self._places(np.full_like(age, env), age), keys=keys)

    def everything(self, keys: Iterable[str] | None = None, every: int = 1) -> Batch:
        """Every stored step as one window (1, L, ...), one stream after the other.

        Args:
            keys: observations that are wanted; by default all.
            every: 2 for every second step, and so on.
        """
        env, age = self._numbered(np.arange(0, len(self), every))
        return self.gather(self._places(env[None], age[None]), keys=keys)

    def episodes(self) -> np.ndarray:
        """The stored episodes, or what is left of them: rows (environment, first age, age after the last)."""
        found = []
        for env, stored in enumerate(self.storage.stored):
            begins = [*np.flatnonzero(self.stream(env, keys=()).is_first[0].numpy()), stored]
            found += [(env, *ends) for ends in pairwise(begins)]
        return np.array(found, np.int64).reshape(-1, 3)

    def within_episodes(self, window: int) -> Places:
        """Where the windows lie that are inside one episode, end to end from its beginning: (B, window), or none."""
        found = [
            (env, start) for env, begin, end in self.episodes() for start in range(begin, end - window + 1, window)
        ]
        env, start = np.array(found, np.int64).reshape(-1, 2).T
        return self._places(env[:, None], start[:, None] + np.arange(window))

    def rest_of_episode(self, step: int) -> Places:
        """Where a stored step and those after it in its episode lie: (1, left).

        Args:
            step: its number, from the oldest on, one stream after the other.
        Raises:
            ValueError: if there is no such step.
        """
        env, age = self._stored(step)
        ends = [int(end) for where, begin, end in self.episodes() if where == env and begin <= age < end]
        return self._places(np.array([[env]]), np.arange(age, ends[0])[None])

    def history(self, step: int, window: int) -> Places:
        """Where a stored step and those before it in its stream lie, at most `window`: (1, <= window).

        Args:
            step: its number, as of :meth:`rest_of_episode`.
        Raises:
            ValueError: if there is no such step.
        """
        env, age = self._stored(step)
        return self._places(np.array([[env]]), np.arange(max(age - window + 1, 0), age + 1)[None])

    def _stored(self, step: int) -> tuple[int, int]:
        """(environment, age) of the step with this number."""
        if not 0 <= step < len(self):
            raise ValueError(f"the replay holds steps 0 to {len(self) - 1}, not {step}")
        (env,), (age,) = self._numbered(np.array([step]))
        return int(env), int(age)

    def _places(self, env: np.ndarray, age: np.ndarray) -> Places:
        """Environments and steps after the oldest of their rings, (B, T) or broadcastable to it."""
        env, age = np.broadcast_arrays(env, age)
        return Places(env, (self.storage.oldest[env] + age) % self.length, age == 0)

    def gather(self, places: Places, device: torch.device | str = "cpu", keys: Iterable[str] | None = None) -> Batch:
        """The steps at these places: (B, T, ...); `keys` are the observations that are wanted, by default all."""
        env, slot, seam = places

        def tensor(name: str, at_seam: Any = None) -> torch.Tensor:
            rows = self.storage.take(name, env, slot)
            if at_seam is not None:
                rows[seam] = at_seam
            return moved(torch.from_numpy(rows), device)

        obs = {key: tensor(OBS + key) for key in (self.keys if keys is None else keys)}
        reward = tensor("reward", 0)
        first, last, terminal = (tensor(name, True if name == "is_first" else None) for name in FLAGS)
        return Batch(obs, tensor("prev_action", 0), reward, first, last, terminal, torch.ones_like(reward))

    def remember(self, places: Places, latents: torch.Tensor) -> None:
        """Store the latent states (B, T, D) inferred at these places, until their steps are forgotten.

        Those that are not finite, as float16, are not known afterwards.
        """
        if self.latents is None:
            self.storage.add_beside(LATENT, Column(np.dtype(np.float16), (latents.shape[-1],)))
        rows = latents.detach().half().cpu()
        self.storage.put(LATENT, places.env, places.slot, rows.numpy())
        self.known[places.env, places.slot] = rows.isfinite().all(-1).numpy()

    @property
    def latents(self) -> np.ndarray | None:
        """(num_envs, L, D) in the slots of the steps, once there are any; `known` says which."""
        return self.storage.array(LATENT) if LATENT in self.storage.beside else None

    def newest(self) -> Places:
        """The step last added to each environment: (num_envs, 1)."""
        return self._places(np.arange(len(self.written))[:, None], (self.storage.stored - 1)[:, None])

    def context(self, places: Places, device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor] | None:
        """The latent states (B, D) stored of the steps before these windows, and which are known (B,); None at first.

        What the model of that time inferred, as DreamerV3 begins its windows: older than the model is now, but of
        everything seen before.
        """
        if self.latents is None:
            return None
        env, slot = places.env[:, 0], (places.slot[:, 0] - 1) % self.length
        known = self.known[env, slot] & ~places.seam[:, 0]
        latents = self.storage.take(LATENT, env, np.where(known, slot, 0)).astype(np.float32)
        return torch.from_numpy(latents).to(device), torch.from_numpy(known).to(device)

    # Files.

    def move(self, folder: str | Path) -> None:
        """Keep the rows in files from now on, in a new folder: see :mod:`worldmodel.replay.disk`.

        Latent states stay behind; they are soon inferred anew.

        Raises:
            ValueError: if the folder holds a replay, or the disk has no room for a full one.
        """
        disk = Disk.create(Path(folder), self.storage.columns, self.storage.num_envs, self.length)
        disk.adopt(self.storage)
        self.storage = disk
        self.known[:] = False

    def open(self, folder: str | Path) -> None:
        """Hold the rows that a replay kept in this folder, in rings of its capacity.

        No file is changed before a row is added.

        Raises:
            ValueError: if there are none, they are damaged, or hold other keys, widths or another number of
                environments.
        """
        self.storage = Disk.open(Path(folder), self.storage.columns, self.storage.num_envs)
        self._forget()

    def _forget(self) -> None:
        """What was done with other rows than those that are held now."""
        self.served = np.zeros(self.storage.num_envs, np.int64)
        self.known = untouched((self.storage.num_envs, self.length), np.dtype(bool))

    # To go on as if nothing had happened.

    def cut(self, envs: np.ndarray) -> None:
        """End the running episodes of these environments (n,) where they are, truncated."""
        envs = envs[self.storage.stored[envs] > 0]
        slot = (self.written[envs] - 1) % self.length
        self.storage.begin_writing()
        self.storage.put("is_last", envs, slot, np.ones(len(envs), bool))

    def training_state(self) -> dict[str, Any]:
        """What sampling depends on besides the rows, as nested mappings of arrays and numbers: latent states too."""
        env, slot, there = self._by_age()
        state = {
            "random": self.rng.bit_generator.state,
            "written": self.written.copy(),
            "served": self.served - self.storage.oldest,
            "known": self.known[env, slot] & there,
            "is_last": self.storage.take("is_last", *self._ends()),
        }
        if self.latents is None:
            return state
        known = state["known"]  # of the others there may not even be a place yet
        return {**state, "latents": self.storage.take(LATENT, np.where(known, env, 0), np.where(known, slot, 0))}

    def load_training_state(self, state: Mapping[str, Any]) -> bool:
        """Go on from what :meth:`training_state` gave, with the rows of that time or, in files, those and later ones.

        The later ones are forgotten, unless they have taken the place of older ones: then all stay as they are.

        Returns:
            Whether the rows are those of that time.
        """
        if isinstance(self.storage, Disk):
            overwritten = self.storage.begun - self.length > np.maximum(state["written"] - self.length, 0)
            if overwritten.any():
                self.rng.bit_generator.state, self.served = state["random"], self.written.copy()
                return False
            self.storage.roll_back(state["written"])
            self.storage.put("is_last", *self._ends(), state["is_last"])  # a cut changes a row that was there before
        self.rng.bit_generator.state = state["random"]
        self.served = self.storage.oldest + state["served"]
        env, slot, there = self._by_age()
        known, latents = state["known"], state.get("latents")
        if latents is not None:
            self.storage.add_beside(LATENT, Column(np.dtype(np.float16), latents.shape[2:]))
            self.storage.put(LATENT, env, slot, latents)
        self.known[env, slot] = known & there
        return True

    def _ends(self) -> tuple[np.ndarray, np.ndarray]:
        """Environments (n,) that have rows, and the slots of the newest ones."""
        envs = np.flatnonzero(self.storage.stored)
        return envs, (self.written[envs] - 1) % self.length

    def _by_age(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Environments (num_envs, 1), slots (num_envs, L) of their rows by age, and which of these there are."""
        stored = self.storage.stored
        age = np.arange(stored.max(initial=0))
        slot = (self.storage.oldest[:, None] + age) % self.length
        return np.arange(len(stored))[:, None] + np.zeros_like(slot), slot, age < stored[:, None]

    def flush(self) -> None:
        """Return when what is kept in files would survive a power failure; it survives the process in any case."""
        self.storage.flush()

    def save(self, file: str | Path) -> None:
        """Write every stored step, oldest first, as an `.npz` archive; latent states are soon inferred anew.

        See :func:`worldmodel.replay.archive.write_archive`. It replaces an older file in one step, so that a crash
        leaves
        one of the two.
        """
        write_archive(Path(file), self.storage)

    def load(self, file: str | Path) -> None:
        """Replace the content by what :meth:`save` wrote; a smaller replay keeps the newest steps.

        Raises:
            ValueError: if the file is damaged, or holds other keys, widths or another number of environments.
        """
        loaded = Memory(self.storage.columns, self.storage.num_envs, self.length)
        read_archive(Path(file), loaded)  # what is held stays if this fails
        if isinstance(self.storage, Disk):
            self.storage.replace(loaded)
        else:
            self.storage = loaded
        self._forget()
