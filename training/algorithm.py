"""A world model and the agent in its imagination, in the shape of a Stable-Baselines3 algorithm."""

import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, cast
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv
from rich.console import Console
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.logger import Logger as SB3Logger
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import nn

from agents.sb3 import MetricsWriter
from training.config import load_config
from training.loop import Loop, opened
from training.progress import Progress
from training.run import CHECKPOINT, CONFIG, Run, free_folder
from training.trainer import Trainer
from worldmodel.memory import keep_memory
from worldmodel.replay import SequenceReplay


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

    def __init__(
        self,
        config: str | Path | Mapping[str, Any],
        env: str | None = None,
        overrides: Sequence[str] = (),
        run: str | Path | None = None,
        **values: Any,
    ) -> None:
        given = [*overrides, *(() if env is None else ("--env.id", env))]
        resolved = load_config(config, given, **values)
        name = resolved.env.id.rpartition("/")[-1] if isinstance(config, Mapping) else Path(config).stem
        self._adopt(Run.create(free_folder(name) if run is None else run, resolved))

    def _adopt(self, run: Run) -> None:
        self.run = run
        self.seed = run.config.seed
        self.num_timesteps = run.env_steps
        self.logger = SB3Logger(None, [])
        self.trainer: Trainer | None = None
        self.loop: Loop | None = None
        self.env: VecEnv | None = None

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

    def get_env(self) -> VecEnv:
        """The environments it learns from, for their attributes and methods; :meth:`learn` alone steps them."""
        if self.env is None:
            vector = cast(SyncVectorEnv, self._started().envs.unwrapped)
            self.env = DummyVecEnv([lambda env=env: env for env in vector.envs])  # type: ignore[misc]
        return self.env

    def get_vec_normalize_env(self) -> None:
        """None: the model takes its units from the records itself."""

    def predict(
        self,
        observation: np.ndarray | Mapping[str, np.ndarray],
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """See :meth:`agents.agent.Agent.predict`."""
        return self.run.agent.predict(observation, state, episode_start, deterministic)

    # Learning.

    def _started(self) -> Trainer:
        """What steps the run's environments, from the first call on."""
        if self.trainer is None:
            torch.set_num_threads(self.run.config.training.threads)
            keep_memory()
            self.trainer = Trainer(self.run)
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

        Args:
            callback: called after every step of the environments, at which it may end the training.
            log_interval: environment steps between two rows of metrics, instead of the config's.
            tb_log_name: of no use here; accepted because Stable-Baselines3's algorithms do.
            reset_num_timesteps: whether `num_timesteps` counts from 0 again. What was learned stays.
            progress_bar: whether progress is shown.
        Raises:
            ValueError: if `total_timesteps` or `log_interval` is below 1.
        """
        if total_timesteps < 1 or (log_interval is not None and log_interval < 1):
            raise ValueError(f"total_timesteps and log_interval must be at least 1: {total_timesteps}, {log_interval}")
        trainer = self._started()
        if not (self.run.folder / CONFIG).exists():
            self.run.begin()
        if log_interval is not None:
            self.run.config.training.log_every = log_interval
        if reset_num_timesteps:
            self.num_timesteps = 0
        until, console = trainer.envs.steps + total_timesteps, None if progress_bar else Console(quiet=True)
        with Progress(until, trainer.envs.steps, console) as progress, opened(trainer, progress) as logger:
            self.logger = SB3Logger(None, [MetricsWriter(logger.log)])
            if self.loop is None:
                self.loop = Loop(trainer, logger, progress, evaluates=False)
            self.loop.logger, self.loop.progress = logger, progress
            asked = self._callback(callback)
            asked.on_training_start({"self": self, "total_timesteps": total_timesteps}, globals())
            asked.on_rollout_start()
            self.loop.run(until, lambda: self._on_step(asked))
            asked.on_rollout_end()
            asked.on_training_end()
        return self

    def _callback(self, callback: MaybeCallback) -> BaseCallback:
        several = CallbackList(callback) if isinstance(callback, list) else callback
        one = several if isinstance(several, BaseCallback) else ConvertCallback(several)
        one.init_callback(self)  # type: ignore[arg-type]
        return one

    def _on_step(self, callback: BaseCallback) -> bool:
        trainer = self._started()
        self.num_timesteps += trainer.envs.num_envs
        callback.update_locals(
            {"self": self, "rewards": trainer.reward, "dones": trainer.start, "new_obs": trainer.observation}
            | {"infos": [{} for _ in trainer.start]}
        )
        return callback.on_step()

    # On disk.

    def save(self, path: str | Path | io.BufferedIOBase) -> None:
        """Config, weights and counters, without the replay, as one zip file; `.zip` is added where it is missing."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            self.run.write(folder)
            with ZipFile(_zipped(path), "w") as archive:
                for file in sorted(folder.rglob("*")):
                    if file.is_file():
                        archive.write(file, file.relative_to(folder).as_posix())

    @classmethod
    def load(cls, path: str | Path | io.BufferedIOBase, env: str | None = None, device: str | None = None) -> Self:
        """What :meth:`save` wrote; nothing in it is executed.

        Args:
            env: the id of another environment with the same spaces.
        Raises:
            ValueError: if it is another file, or does not fit the environment.
        """
        with tempfile.TemporaryDirectory() as name:
            try:
                with ZipFile(_zipped(path)) as archive:
                    names = [one for one in archive.namelist() if one == CONFIG or one.startswith(f"{CHECKPOINT}/")]
                    archive.extractall(name, names)
            except (BadZipFile, FileNotFoundError) as error:
                raise ValueError(f"{path}: no saved agent ({error})") from error
            run = Run.load(name, device, env)
        run.folder = free_folder(run.config.env.id.rpartition("/")[-1])
        agent = cls.__new__(cls)
        agent._adopt(run)
        return agent

    def save_replay_buffer(self, path: str | Path) -> None:
        """Everything recorded."""
        self.run.replay.save(Path(path))

    def load_replay_buffer(self, path: str | Path) -> None:
        """What :meth:`save_replay_buffer` wrote."""
        self.run.replay.load(Path(path))


def _zipped(path: Any) -> Any:
    if not isinstance(path, str | Path):
        return path
    path = Path(path)
    path = path if path.suffix == ".zip" else path.with_name(path.name + ".zip")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
