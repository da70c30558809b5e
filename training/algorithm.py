"""A world model and the agent in its imagination, in the shape of a Stable-Baselines3 algorithm."""

import io
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, cast
from zipfile import ZipFile

import numpy as np
import torch
from gymnasium import Space
from gymnasium.vector import SyncVectorEnv
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.logger import Logger as SB3Logger
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs
from torch import nn

from worldmodel.agents.sb3.behaviour import MetricsWriter, SB3Behaviour
from worldmodel.kernels.memory import room_for_tensors
from worldmodel.replay.replay import SequenceReplay
from worldmodel.training.config.config import load_config
from worldmodel.training.evaluation.evaluation import SUCCESS
from worldmodel.training.logging.progress import Progress
from worldmodel.training.loop.loop import RECENT, Loop
from worldmodel.training.loop.trainer import Trainer
from worldmodel.training.run.checkpoint import MANIFEST, PARTIAL
from worldmodel.training.run.folder import CHECKPOINT, CONFIG, begun, free_folder, short
from worldmodel.training.run.imagined import imagined_steps
from worldmodel.training.run.lock import alone
from worldmodel.training.run.process import left_as_found
from worldmodel.training.run.run import BEHAVIOUR, MODEL, TRAINING, Run
from worldmodel.training.run.tree import fitting_state, load_tree
from worldmodel.training.start import opened
from worldmodel.validation import check_memory

SAVED = {CONFIG, *(f"{CHECKPOINT}/00001/{name}" for name in (MODEL, BEHAVIOUR, TRAINING, MANIFEST))}  # in its zip file


class WorldModelAgent:
    """Is made, trained, asked, saved and loaded as an algorithm of Stable-Baselines3 is.

        agent = WorldModelAgent("configs/pendulum.yaml", env="Pendulum-v1", seed=1)
        agent.learn(2_500, callback=EvalCallback(eval_env), progress_bar=True)
        agent.save("pendulum")
        actions, state = WorldModelAgent.load("pendulum").predict(obs, state, episode_start, deterministic=True)

    Stable-Baselines3's `evaluate_policy` and callbacks work as they are: `predict` returns a memory and takes it back,
    as recurrent policies do. What is recorded, and the metrics, go into a run folder like that of `worldmodel train`.

    Args:
        config: a YAML file, or a mapping, of differences from the defaults.
        env: the id of another environment than the config's.
        overrides: as on the command line, `["--section.key", "value", ...]`.
        run: the folder to make; by default a free one under `runs/`. Nothing is written before :meth:`learn`.
        values: `seed=1` or whole sections as mappings.
    Raises:
        ValueError: for a config, an environment or a folder that cannot be used.
    """

    random: torch.Tensor | None  # torch's random state, with which it learns on; that of the process where it has none

    def __init__(
        self,
        config: str | Path | Mapping[str, Any],
        env: str | None = None,
        overrides: Sequence[str] = (),
        run: str | Path | None = None,
        **values: Any,
    ) -> None:
        given = [*overrides, *(() if env is None else ("--env.id", named(env)))]
        resolved = load_config(config, given, **values)
        name = short(resolved.env.id) if isinstance(config, Mapping) else Path(config).stem
        with left_as_found():
            made = Run.create(free_folder(name) if run is None else run, resolved)
            self._adopt(made, name if run is None else None)
            self.random = torch.get_rng_state()

    def _adopt(self, run: Run, name: str | None) -> None:
        """Be the agent of this run; of a free folder called `name`, once there is something to write, or of its own."""
        self.run, self.name, self.claimed = run, name, False
        self.steps_before = 0  # of the run, that `num_timesteps` does not count
        self.seed = run.config.seed
        self.num_timesteps = run.env_steps
        self.logger = SB3Logger(None, [])
        self.learning = self.closed = False
        self.born = time.monotonic()
        self.ep_info_buffer: deque[dict[str, float]] = deque(maxlen=RECENT)  # of the episodes that ended last
        self.ep_success_buffer: deque[Any] = deque(maxlen=RECENT)  # what they said of their success
        self.random = None
        self.trainer: Trainer | None = None
        self.learned: dict[str, Any] | None = None  # what an earlier trainer gave as such
        self.loop: Loop | None = None
        self.env: VecEnv | None = None

    def __repr__(self) -> str:
        return f"<WorldModelAgent {self.run.config.env.id} after {self.run.env_steps} environment steps>"

    # What Stable-Baselines3's functions and callbacks ask for.

    @property
    def policy(self) -> nn.Module:
        """What has learned to act."""
        return self.run.behaviour

    @property
    def device(self) -> torch.device:
        return self.run.agent.device

    @property
    def replay_buffer(self) -> SequenceReplay:
        return self.run.replay

    @property
    def n_envs(self) -> int:
        return self.run.config.env.num_envs

    @property
    def observation_space(self) -> Space[Any]:
        return self.get_env().observation_space

    @property
    def action_space(self) -> Space[Any]:
        return self.get_env().action_space

    def get_env(self) -> VecEnv:
        """The environments it learns from. Whoever steps them ends their episodes: :meth:`learn` begins new ones."""
        if self.env is None:
            vector = cast(SyncVectorEnv, self._started().envs.unwrapped)
            self.env = Lent([lambda env=env: env for env in vector.envs])  # type: ignore[misc]
        return self.env

    def dump_logs(self) -> None:
        """Write what has been measured since the last row of metrics; after :meth:`learn`, which does so, nothing."""
        if self.loop is not None and self.learning:
            self.loop.log()

    def close(self) -> None:
        """Close the environments it learned from: it can be asked then, saved, and learn no more."""
        self.closed = True
        if self.trainer is not None:
            self.trainer.envs.close()

    def get_vec_normalize_env(self) -> None:
        """None: the model takes its units from the records itself."""

    def predict(
        self,
        observation: np.ndarray | Mapping[str, np.ndarray],
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """See :meth:`worldmodel.agents.agent.Agent.predict`."""
        return self.run.agent.predict(observation, state, episode_start, deterministic)

    # Learning.

    def _started(self) -> Trainer:
        """What steps the run's environments, from the first call on."""
        if self.trainer is None:
            self.trainer = Trainer(self.run)
            if self.learned is not None:
                self.trainer.learn_on(self.learned)
        return self.trainer

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = None,
        tb_log_name: str = "",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Collect, learn and imagine for `total_timesteps` more environment steps; evaluation is a callback's task.

        The run's folder gets a checkpoint at every `evaluation.every` steps, as one of `worldmodel train` does.

        Args:
            callback: called after every step of the environments, at which it may end the training. The whole call is
                one rollout. Its `locals` are those of an algorithm of theirs as far as they are of the environments:
                actions, rewards, dones, new_obs and infos. An info is what the environment said, and beside it
                `episode` as of a `Monitor`, `terminal_observation` and `TimeLimit.truncated`.
            log_interval: environment steps between two rows of metrics, instead of the config's.
            tb_log_name: of no use here; accepted because Stable-Baselines3's algorithms do.
            reset_num_timesteps: whether `num_timesteps` counts from 0 again, and learning rates that fall begin anew.
                What was learned stays.
            progress_bar: whether progress is shown. What goes wrong on the way is told in any case.
        Raises:
            ValueError: if `total_timesteps` or `log_interval` is below 1, or the agent is closed.
        """
        if total_timesteps < 1 or (log_interval is not None and log_interval < 1):
            raise ValueError(f"total_timesteps and log_interval must be at least 1: {total_timesteps}, {log_interval}")
        if self.closed:
            raise ValueError("the agent is closed, and its environments with it: save it, and load it to learn on")
        self.run.check_rows(self.run.env_steps + total_timesteps)
        with left_as_found():
            torch.set_num_threads(self.run.config.training.threads)
            if self.random is not None:
                torch.set_rng_state(self.random)
            try:
                self._learn(total_timesteps, callback, log_interval, reset_num_timesteps, progress_bar)
            finally:
                self.random = torch.get_rng_state()
        return self

    def _learn(
        self, total_timesteps: int, callback: MaybeCallback, log_interval: int | None, anew: bool, progress_bar: bool
    ) -> None:
        """See :meth:`learn`."""
        trainer = self._started()
        self._claim()
        if anew:
            self.num_timesteps, self.steps_before = 0, self.run.env_steps
            self.ep_info_buffer.clear()
            self.ep_success_buffer.clear()
        self._begin_what_was_used()
        if isinstance(self.run.behaviour, SB3Behaviour):
            steps = imagined_steps(self.run.config, total_timesteps, trainer.prefilled)
            self.run.behaviour.live(steps, anew)
        loop = self.loop = self.loop or Loop(trainer, evaluates=False)
        if anew:
            loop.begun = None
        until = trainer.envs.steps + total_timesteps
        shown = Progress(until, trainer.envs.steps, live=progress_bar)
        folder = alone(self.run.folder)
        with folder, room_for_tensors(), shown as progress, opened(loop, progress), self._logging(loop):
            loop.log_every = log_interval or self.run.config.training.log_every
            asked = self._callback(callback)
            asked.on_training_start({"self": self, "total_timesteps": total_timesteps}, globals())
            asked.on_rollout_start()
            if not loop.run(until, lambda: self._on_step(asked)) and loop.interrupt.asked:
                raise KeyboardInterrupt
            asked.on_rollout_end()
            asked.on_training_end()

    @contextmanager
    def _logging(self, loop: Loop) -> Iterator[None]:
        """Let callbacks write into the loop's record, while that is open."""
        writer = MetricsWriter(lambda metrics, step: loop.logger.log(metrics, self.steps_before + step))
        self.logger, self.learning = SB3Logger(None, [writer]), True
        try:
            yield
        finally:
            self.logger, self.learning = SB3Logger(None, []), False

    def _claim(self) -> None:
        """Make the folder, the first time that there is something to write."""
        if not self.claimed:
            self.run.folder = self.run.folder if self.name is None else free_folder(self.name)
            begun(self.run, self.name)
            self.claimed = True

    def _callback(self, callback: MaybeCallback) -> BaseCallback:
        several = CallbackList(callback) if isinstance(callback, list) else callback
        one = several if isinstance(several, BaseCallback) else ConvertCallback(several)
        one.init_callback(self)  # type: ignore[arg-type]
        return one

    def _on_step(self, callback: BaseCallback) -> bool:
        trainer = self._started()
        self.num_timesteps = self.run.env_steps - self.steps_before  # a failed step is none
        infos, dones = self._infos(trainer), trainer.start.copy()
        self.ep_info_buffer.extend(info["episode"] for info in infos if "episode" in info)
        ended = (info for info, done in zip(infos, dones, strict=True) if done)
        self.ep_success_buffer.extend(info[SUCCESS] for info in ended if info.get(SUCCESS) is not None)
        now = {"actions": trainer.actions, "rewards": trainer.reward, "dones": dones, "new_obs": trainer.observation}
        callback.update_locals({"self": self, "infos": infos, **now})
        goes_on = callback.on_step()
        self._begin_what_was_used()
        return goes_on

    def _infos(self, trainer: Trainer) -> list[dict[str, Any]]:
        """What each environment said in the last step, with what Stable-Baselines3 puts beside it."""
        infos = [{**env.said, "TimeLimit.truncated": bool(trainer.limited[i])} for i, env in enumerate(trainer.lent)]
        for env in np.flatnonzero(trainer.start):
            infos[env]["terminal_observation"] = trainer.finals[env]
        for episode in trainer.ended:
            seconds = round(time.monotonic() - self.born, 6)
            infos[episode.env]["episode"] = {"r": round(episode.total_reward, 6), "l": episode.length, "t": seconds}
        return infos

    def _begin_what_was_used(self) -> None:
        """Let episodes begin anew where somebody else has stepped the environments, as in an evaluation in them."""
        if isinstance(self.env, Lent) and self.env.used:
            self._started().begin_episodes()
            self.env.used = False

    # On disk.

    def save(self, path: str | Path | io.BufferedIOBase) -> None:
        """Config, weights and counters as one zip file; `.zip` is added where it is missing.

        What was recorded is not in it, see :meth:`save_replay_buffer`; an algorithm that learns in the dream brings its
        own memory of it.
        """
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            learned = self.learned if self.trainer is None else self.trainer.learned()
            behaviour, returns = self.run.behaviour.training_state(), asdict(self.run.returns)
            self.run.write(folder, {"behaviour": behaviour, "trainer": {"learned": learned}, "returns": returns})
            target = _zipped(path)
            if not isinstance(target, Path):
                _pack(folder, target)
                return
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(target.name + PARTIAL)
            try:
                _pack(folder, partial)
                partial.replace(target)  # what was saved there before stays until all of it is written
            finally:
                partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path | io.BufferedIOBase, env: str | None = None, device: str | None = None) -> Self:
        """What :meth:`save` wrote; nothing in it is executed.

        Args:
            env: the id of another environment with the same spaces.
            device: another than the one it was trained on; "auto" is that one.
        Raises:
            ValueError: if it is another file, or does not fit the environment.
        """
        with tempfile.TemporaryDirectory() as name:
            try:
                with ZipFile(_zipped(path)) as archive:
                    found = [one for one in archive.infolist() if one.filename in SAVED]
                    check_memory(sum(one.file_size for one in found), "its files", "this is no agent saved here")
                    archive.extractall(name, found)
            except Exception as error:  # of zipfile and zlib, which have no error in common for a damaged file
                raise ValueError(f"{path}: no saved agent ({error or type(error).__name__})") from error
            if CONFIG not in [one.filename for one in found]:
                raise ValueError(f"{path}: no saved agent (there is no {CONFIG} in it)")
            run = Run.load(name, None if device == "auto" else device, None if env is None else named(env))
            assert run.checkpoint is not None
            with fitting_state(run.checkpoint.folder / TRAINING):
                learned = load_tree(run.checkpoint.folder / TRAINING)["trainer"]["learned"]
        agent = cls.__new__(cls)
        agent._adopt(run, short(run.config.env.id))
        agent.learned = learned
        return agent

    def save_replay_buffer(self, path: str | Path) -> None:
        """Everything recorded."""
        self.run.replay.save(Path(path))

    def load_replay_buffer(self, path: str | Path) -> None:
        """What :meth:`save_replay_buffer` wrote, instead of what is there; running episodes end with that."""
        self.run.replay.load(Path(path))
        if self.trainer is not None:
            self.trainer.begin_episodes()


class Lent(DummyVecEnv):
    """Environments of someone else, who is told by `used` that their episodes are no longer what they were."""

    used = False

    def reset(self) -> VecEnvObs:
        self.used = True
        return super().reset()

    def step_async(self, actions: np.ndarray) -> None:
        self.used = True
        super().step_async(actions)


def named(env: Any) -> str:
    """The id of an environment.

    Raises:
        ValueError: for an environment itself: copies of it could not be made.
    """
    if not isinstance(env, str):
        raise ValueError(f"env is the id of an environment, 'Pendulum-v1' or 'module:Id', not a {type(env).__name__}")
    return env


def _pack(folder: Path, target: Path | io.BufferedIOBase) -> None:
    """Everything in a folder, as a zip file."""
    with ZipFile(target, "w") as archive:  # type: ignore[arg-type]
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder).as_posix())


def _zipped(path: Any) -> Any:
    if not isinstance(path, str | Path):
        return path
    path = Path(path)
    return path if path.suffix == ".zip" or not path.name else path.with_name(path.name + ".zip")
