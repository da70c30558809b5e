"""A world model and the agent in its imagination, with the interface of a Stable-Baselines3 algorithm."""

import io
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from gymnasium import Space
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger as SB3Logger
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from worldmodel.agents.sb3.behaviour import MetricsWriter, SB3Behaviour
from worldmodel.kernels.memory import room_for_tensors
from worldmodel.replay.replay import SequenceReplay
from worldmodel.training.algorithm.archive import unpacked, write_archive
from worldmodel.training.algorithm.rollout import Rollout, one_callback
from worldmodel.training.config.config import load_config
from worldmodel.training.logging.progress import Progress
from worldmodel.training.loop.loop import Loop
from worldmodel.training.loop.trainer import Trainer
from worldmodel.training.run.folder import begun, free_folder, short
from worldmodel.training.run.lock import alone
from worldmodel.training.run.process import left_as_found
from worldmodel.training.run.run import TRAINING_FILE, Run
from worldmodel.training.run.sb3_behaviour import imagined_steps
from worldmodel.training.run.tree import fitting_state, load_tree
from worldmodel.training.start import opened


class WorldModelAgent:
    """A world model and an agent, used as an algorithm of Stable-Baselines3 is used.

        agent = WorldModelAgent("configs/pendulum.yaml", env="Pendulum-v1", seed=1)
        agent.learn(2_500, callback=EvalCallback(eval_env), progress_bar=True)
        agent.save("pendulum")
        actions, state = WorldModelAgent.load("pendulum").predict(obs, state, episode_start, deterministic=True)

    The `evaluate_policy` and the callbacks of Stable-Baselines3 work as they are: `predict` returns a memory and takes
    it back, as recurrent policies do. The records and the metrics go into a run folder like that of `worldmodel train`.

    Args:
        config: a YAML file, or a mapping, of differences from the defaults.
        env: the id of an environment to use instead of the config's.
        overrides: as on the command line, `["--section.key", "value", ...]`.
        run: the folder to make; by default a free one under `runs/`. Nothing is written before :meth:`learn`.
        values: `seed=1` or whole sections as mappings.
    Raises:
        ValueError: for a config, an environment or a folder that cannot be used.
    """

    random: torch.Tensor | None  # torch's random state between calls of `learn`; None: use that of the process

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
        """Become the agent of a run. With a name, its folder is chosen when there is something to write."""
        self.run, self.name, self.claimed = run, name, False
        self.steps_before = 0  # environment steps of the run that `num_timesteps` does not count
        self.seed = run.config.seed
        self.num_timesteps = run.env_steps
        self.logger = SB3Logger(None, [])
        self.learning = self.closed = False
        self.rollout = Rollout()
        self.random = None
        self.trainer: Trainer | None = None
        self.learned: dict[str, Any] | None = None  # the state of the updates of an earlier trainer
        self.loop: Loop | None = None

    def __repr__(self) -> str:
        return f"<WorldModelAgent {self.run.config.env.id} after {self.run.env_steps} environment steps>"

    # What the functions and callbacks of Stable-Baselines3 use.

    @property
    def policy(self) -> nn.Module:
        """The behaviour that learns."""
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

    @property
    def ep_info_buffer(self) -> deque[dict[str, float]]:
        """Return, length and time of the last episodes."""
        return self.rollout.episodes

    @property
    def ep_success_buffer(self) -> deque[Any]:
        """What the last episodes reported as their success."""
        return self.rollout.successes

    def get_env(self) -> VecEnv:
        """Return the environments of training. If you step them, :meth:`learn` begins new episodes in them."""
        return self.rollout.lend(self._started().collector)

    def dump_logs(self) -> None:
        """Write what was measured since the last row of metrics. :meth:`learn` does so at its end."""
        if self.loop is not None and self.learning:
            self.loop.log()

    def close(self) -> None:
        """Close the environments of training. The agent can still predict and be saved, but not learn."""
        self.closed = True
        if self.trainer is not None:
            self.trainer.envs.close()

    def get_vec_normalize_env(self) -> None:
        """Return None: the model normalizes by itself."""

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
        """Return the trainer of the run. The first call makes it, and its environments."""
        if self.trainer is None:
            self.trainer = Trainer(self.run)
            if self.learned is not None:
                self.trainer.updater.load_state(self.learned)
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
        """Collect, learn and imagine for `total_timesteps` more environment steps. A callback can evaluate.

        Every `evaluation.every` steps the run folder gets a checkpoint, as that of `worldmodel train` does.

        Args:
            callback: called after every step of the environments. It may end the training there. The whole call is one
                rollout. The `locals` are those of a Stable-Baselines3 algorithm that concern the environments: actions,
                rewards, dones, new_obs and infos. An info holds what the environment returned, and also `episode` as
                from a `Monitor`, `terminal_observation` and `TimeLimit.truncated`.
            log_interval: environment steps between two rows of metrics, instead of the config's.
            tb_log_name: ignored; the algorithms of Stable-Baselines3 have it.
            reset_num_timesteps: whether `num_timesteps` counts from 0 again, and falling learning rates start again.
                What was learned stays.
            progress_bar: whether to show progress. Problems are shown in any case.
        Raises:
            ValueError: if `total_timesteps` or `log_interval` is below 1, or the agent is closed.
        """
        if total_timesteps < 1 or (log_interval is not None and log_interval < 1):
            raise ValueError(f"total_timesteps and log_interval must be at least 1: {total_timesteps}, {log_interval}")
        if self.closed:
            raise ValueError("The agent is closed, and so are its environments. To learn more, save it and load it.")
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
            self.rollout.clear()
        self.rollout.begin_what_was_used(trainer.collector)
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
            asked = one_callback(callback)
            asked.init_callback(self)  # type: ignore[arg-type]
            asked.on_training_start({"self": self, "total_timesteps": total_timesteps}, globals())
            asked.on_rollout_start()
            if not loop.run(until, lambda: self._on_step(asked)) and loop.interrupt.asked:
                raise KeyboardInterrupt
            asked.on_rollout_end()
            asked.on_training_end()

    @contextmanager
    def _logging(self, loop: Loop) -> Iterator[None]:
        """Let callbacks write into the metrics of the loop while this context lasts."""
        writer = MetricsWriter(lambda metrics, step: loop.record.logger.log(metrics, self.steps_before + step))
        self.logger, self.learning = SB3Logger(None, [writer]), True
        try:
            yield
        finally:
            self.logger, self.learning = SB3Logger(None, []), False

    def _claim(self) -> None:
        """Make the run folder, the first time that there is something to write."""
        if not self.claimed:
            self.run.folder = self.run.folder if self.name is None else free_folder(self.name)
            begun(self.run, self.name)
            self.claimed = True

    def _on_step(self, callback: BaseCallback) -> bool:
        """Call the callback after a step of the environments; return whether to continue."""
        collector = self._started().collector
        self.num_timesteps = self.run.env_steps - self.steps_before  # a failed step does not count
        callback.update_locals({"self": self, **self.rollout.step(collector)})
        goes_on = callback.on_step()
        self.rollout.begin_what_was_used(collector)
        return goes_on

    # On disk.

    def save(self, path: str | Path | io.BufferedIOBase) -> None:
        """Write config, weights and counters as one zip file. `.zip` is added to the path if it is missing.

        The replay is not in it; see :meth:`save_replay_buffer`. An algorithm of Stable-Baselines3 that learns in
        imagination saves its own replay buffer in it.
        """
        learned = self.learned if self.trainer is None else self.trainer.updater.state()
        behaviour, returns = self.run.behaviour.training_state(), asdict(self.run.returns)
        write_archive(self.run, {"behaviour": behaviour, "trainer": {"learned": learned}, "returns": returns}, path)

    @classmethod
    def load(cls, path: str | Path | io.BufferedIOBase, env: str | None = None, device: str | None = None) -> Self:
        """Read what :meth:`save` wrote. Nothing in the file is executed.

        Args:
            env: the id of another environment with the same spaces.
            device: by default the one that it was trained on; "auto" means the same.
        Raises:
            ValueError: if it is another file, or does not fit the environment.
        """
        with unpacked(path) as folder:
            run = Run.load(folder, None if device == "auto" else device, None if env is None else named(env))
            assert run.checkpoint is not None
            with fitting_state(run.checkpoint.folder / TRAINING_FILE):
                learned = load_tree(run.checkpoint.folder / TRAINING_FILE)["trainer"]["learned"]
        agent = cls.__new__(cls)
        agent._adopt(run, short(run.config.env.id))
        agent.learned = learned
        return agent

    def save_replay_buffer(self, path: str | Path) -> None:
        """Write everything recorded."""
        self.run.replay.save(Path(path))

    def load_replay_buffer(self, path: str | Path) -> None:
        """Replace the records by those that :meth:`save_replay_buffer` wrote. Running episodes end."""
        self.run.replay.load(Path(path))
        if self.trainer is not None:
            self.trainer.collector.begin_episodes()


def named(env: Any) -> str:
    """Return the id of an environment.

    Raises:
        ValueError: for an environment itself, of which no copies can be made.
    """
    if not isinstance(env, str):
        raise ValueError(
            f"env must be the id of an environment, such as 'Pendulum-v1' or 'module:Id', not a {type(env).__name__}"
        )
    return env
