"""A replay of time steps: one ring of rows for each environment, from which windows of consecutive rows are sampled.

Every stored time step has the same chance of being replayed (:mod:`worldmodel.replay.sampling`). A window that runs
past the newest step continues at the oldest step of the same environment. At this seam `is_first` is true and the
action and the reward are zero, so a model does not learn a transition across it.

The storage keeps the rows in memory or in files. What is sampled does not depend on this choice.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel.replay.archive import write_archive
from worldmodel.replay.disk import Disk
from worldmodel.replay.files import loaded, moved_to_disk, was_overwritten
from worldmodel.replay.latents import LatentStates
from worldmodel.replay.places import Places, moved
from worldmodel.replay.sampling import WindowSampler
from worldmodel.replay.storage import FLAGS, OBS, Memory, Storage, row_bytes, time_step_columns
from worldmodel.replay.timeline import Timeline
from worldmodel.specs import ActionSpec, ObservationSpecs
from worldmodel.types import Batch, TimeStep


class SequenceReplay:
    """Stores time steps and samples batches of windows.

    A new replay keeps its rows in memory. :meth:`move` moves them to the disk, and :meth:`open` continues with the
    rows that are in a folder.

    Args:
        obs_specs, action_spec: the content of a row.
        num_envs: the number of environments. A window never mixes the steps of two of them.
        capacity: the largest number of steps over all environments. The oldest steps are overwritten first.
        seed: the seed of the sampling order.
        online: if True, every window of new steps is replayed once, before random ones, as soon as it is complete.
        capacity_bytes: the same limit in bytes of rows, without latent states. The lower of the two limits applies.
    Raises:
        ValueError: if the capacity does not hold one step per environment.
    """

    storage: Storage
    timeline: Timeline
    latents: LatentStates

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
            raise ValueError(f"the number of environments is {num_envs}, but a replay needs at least one environment")
        if capacity < num_envs:
            raise ValueError(
                f"replay.capacity is {capacity}, but there are {num_envs} environments. Raise replay.capacity."
            )
        columns = time_step_columns(obs_specs, action_spec)
        room = capacity if capacity_bytes is None else capacity_bytes // row_bytes(columns)
        if room < num_envs:
            raise ValueError(
                f"replay.capacity_bytes is {capacity_bytes}, but one time step of each of the {num_envs} environments "
                f"takes {num_envs * row_bytes(columns)} bytes. Raise replay.capacity_bytes."
            )
        self.obs_specs, self.action_spec, self.keys = obs_specs, action_spec, list(obs_specs)
        self.sampler = WindowSampler(num_envs, seed, online)
        self._hold(Memory(columns, num_envs, min(capacity, room) // num_envs))

    def _hold(self, storage: Storage) -> None:
        """Keep the rows in this storage from now on. Their latent states are unknown."""
        self.storage, self.timeline, self.latents = storage, Timeline(storage), LatentStates(storage)

    def __len__(self) -> int:
        """Return the number of stored time steps."""
        return len(self.timeline)

    @property
    def length(self) -> int:
        """The largest number of steps that are kept of each environment."""
        return self.storage.length

    @property
    def written(self) -> np.ndarray:
        """The number of rows ever added to each environment: (num_envs,)."""
        return self.storage.written

    @property
    def row_bytes(self) -> int:
        """The size of one row in bytes."""
        return row_bytes(self.storage.columns)

    @property
    def max_bytes(self) -> int:
        """The size of all rows in bytes, once the rings are full."""
        return self.storage.num_envs * self.length * self.row_bytes

    def nbytes(self, keys: Iterable[str]) -> int:
        """Return the size in bytes of all stored rows, counting only these observation keys."""
        left_out = {OBS + key for key in self.keys} - {OBS + key for key in keys}
        columns = {name: column for name, column in self.storage.columns.items() if name not in left_out}
        return len(self) * row_bytes(columns)

    @property
    def obs(self) -> dict[str, np.ndarray]:
        """The observations in the slots of the rings, {key: (num_envs, L, width)}. Unused slots may be missing."""
        return {key: self.storage.array(OBS + key) for key in self.keys}

    def add(self, rows: TimeStep, envs: np.ndarray) -> None:
        """Append one row to the stream of each environment in `envs` (n,), which must not repeat.

        Raises:
            ValueError: if the rows have other keys or widths than the specs say.
        """
        cells = {OBS + key: values for key, values in rows.obs.items()}
        cells |= {"prev_action": rows.prev_action, "reward": rows.reward}
        self.latents.known[envs, self.written[envs] % self.length] = False
        self.storage.append(cells | {name: getattr(rows, name) for name in FLAGS}, envs)

    # Sampling and reading.

    def sample(
        self,
        batch_size: int,
        window: int,
        device: torch.device | str = "cpu",
        rng: np.random.Generator | None = None,
    ) -> Batch:
        """Return `batch_size` windows of `window` steps, uniform over the stored steps: (B, T, ...).

        Args:
            device: where the tensors are.
            rng: another random generator. If it is given, the replay's own sampling order and its queue of new
                windows do not change.
        Raises:
            ValueError: if nothing is stored yet.
        """
        return self.gather(self.draw(batch_size, window, rng), device)

    def draw(self, batch_size: int, window: int, rng: np.random.Generator | None = None) -> Places:
        """Return the places of the windows of a batch; see :meth:`sample`."""
        return self.sampler.draw(self.timeline, batch_size, window, rng)

    def gather(self, places: Places, device: torch.device | str = "cpu", keys: Iterable[str] | None = None) -> Batch:
        """Return the time steps at these places: (B, T, ...).

        Args:
            places: of the steps. device: where the tensors are.
            keys: the observations to return, by default all.
        """
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

    def stream(self, env: int, start: int = 0, stop: int | None = None, keys: Iterable[str] | None = None) -> Batch:
        """Return the stored steps of one environment as one window, oldest first: (1, L, ...).

        Args:
            env: the environment. start, stop: which of its steps, by default all.
            keys: the observations to return, by default all.
        """
        return self.gather(self.timeline.stream(env, start, stop), keys=keys)

    def everything(self, keys: Iterable[str] | None = None, every: int = 1) -> Batch:
        """Return every stored step as one window, one environment after the other: (1, L, ...).

        Args:
            keys: the observations to return, by default all.
            every: 2 returns every second step, and so on.
        """
        return self.gather(self.timeline.everything(every), keys=keys)

    def episodes(self) -> np.ndarray:
        """Return the stored parts of episodes; see :meth:`worldmodel.replay.timeline.Timeline.episodes`."""
        return self.timeline.episodes()

    def within_episodes(self, window: int) -> Places:
        """Return the places of windows that lie inside one episode and do not overlap: (B, window). B may be 0."""
        return self.timeline.within_episodes(window)

    def rest_of_episode(self, step: int) -> Places:
        """Return the places of a step and of all later steps of its episode: (1, L).

        Args:
            step: its number, counted from the oldest step of the first environment.
        Raises:
            ValueError: if no step has this number.
        """
        return self.timeline.rest_of_episode(step)

    def history(self, step: int, window: int) -> Places:
        """Return the places of a step and of the steps before it in its stream, at most `window`: (1, <= window).

        Args:
            step: its number, as in :meth:`rest_of_episode`.
        Raises:
            ValueError: if no step has this number.
        """
        return self.timeline.history(step, window)

    def newest(self) -> Places:
        """Return the place of the newest step of each environment: (num_envs, 1)."""
        return self.timeline.newest()

    # Latent states.

    def remember(self, places: Places, latents: torch.Tensor) -> None:
        """Store the latent states (B, T, D) that were inferred at these places, until their steps are overwritten.

        A state that is not finite as float16 is not known afterwards.
        """
        self.latents.put(places, latents)

    def context(self, places: Places, device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the latent states (B, D) stored for the steps before these windows, and which are known (B,).

        An earlier version of the model inferred them, but from everything it had seen before. DreamerV3 starts its
        windows in the same way.

        Returns:
            None if no latent state has been stored yet.
        """
        found = self.latents.before(places)
        if found is None:
            return None
        latents, known = found
        return torch.from_numpy(latents).to(device), torch.from_numpy(known).to(device)

    # Files.

    def move(self, folder: str | Path) -> None:
        """Keep the rows in files from now on, in a new folder; see :mod:`worldmodel.replay.disk`.

        The latent states are dropped. Training soon infers them again.

        Raises:
            ValueError: if the folder already holds a replay, or the disk has no room for a full replay.
        """
        self._hold(moved_to_disk(Path(folder), self.storage))

    def open(self, folder: str | Path) -> None:
        """Use the rows that a replay kept in this folder, in rings of its capacity.

        No file changes before the first row is added.

        Raises:
            ValueError: if the folder holds no replay, the files are damaged, or they hold other keys, widths or
                another number of environments.
        """
        self._hold(Disk.open(Path(folder), self.storage.columns, self.storage.num_envs))
        self.sampler.reset_queue()

    def flush(self) -> None:
        """Wait until the rows in files would survive a power failure. They always survive the end of the process."""
        self.storage.flush()

    def save(self, file: str | Path) -> None:
        """Write every stored step to an `.npz` archive, oldest first; see :mod:`worldmodel.replay.archive`.

        Latent states are not written. An older file is replaced in one step: after a crash, either the old or the
        new file is there.
        """
        write_archive(Path(file), self.storage)

    def load(self, file: str | Path) -> None:
        """Replace the content with a file that :meth:`save` wrote. A smaller replay keeps the newest steps.

        Raises:
            ValueError: if the file is damaged, or holds other keys, widths or another number of environments.
        """
        self._hold(loaded(Path(file), self.storage))
        self.sampler.reset_queue()

    # Resuming a run.

    def cut(self, envs: np.ndarray) -> None:
        """Mark the newest steps of these environments (n,) as the truncated ends of their episodes."""
        envs, slot = self.timeline.ends(envs)
        self.storage.begin_writing()
        self.storage.put("is_last", envs, slot, np.ones(len(envs), bool))

    def training_state(self) -> dict[str, Any]:
        """Return everything that sampling depends on besides the rows, as nested mappings of arrays and numbers."""
        known, latents = self.latents.saved(self.timeline)
        state = {
            "random": self.sampler.rng.bit_generator.state,
            "written": self.written.copy(),
            "served": self.sampler.served - self.storage.oldest,
            "known": known,
            "is_last": self.storage.take("is_last", *self.timeline.ends()),
        }
        return state if latents is None else {**state, "latents": latents}

    def load_training_state(self, state: Mapping[str, Any]) -> bool:
        """Continue from a state that :meth:`training_state` returned.

        The replay must hold the rows of that time. In files there may be later rows too. They are dropped, unless
        they have overwritten rows of that time: then all rows stay, and latent states and the queue are not restored.

        Returns:
            True if the replay now holds exactly the rows of that time.
        """
        if isinstance(self.storage, Disk):
            if was_overwritten(self.storage, state):
                self.sampler.rng.bit_generator.state, self.sampler.served = state["random"], self.written.copy()
                return False
            self.storage.roll_back(state["written"])
            self.storage.put("is_last", *self.timeline.ends(), state["is_last"])  # `cut` changes rows already written
        self.sampler.rng.bit_generator.state = state["random"]
        self.sampler.served = self.storage.oldest + state["served"]
        self.latents.restore(self.timeline, state["known"], state.get("latents"))
        return True
