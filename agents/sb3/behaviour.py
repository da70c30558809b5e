"""A behaviour that an algorithm of Stable-Baselines3 learns in imagination.

The imagined environment is a `VecEnv` whose observations are latent features. To the algorithm it looks like any
other environment. Learning takes place in rounds between the updates of the world model. Each round begins new
imagined episodes with the current model. Weights, optimizers, buffers and schedules continue from the last round.
"""

import copy
import inspect
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from stable_baselines3 import DQN, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import TrainFrequencyUnit
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from worldmodel.agents.acting.behaviour import Decision, Memory
from worldmodel.agents.acting.noise import disturbed
from worldmodel.agents.exploration.ensemble import Disagreement
from worldmodel.agents.sb3.config import ALGORITHMS, CONTRIB, SB3Config
from worldmodel.model import LatentModel
from worldmodel.specs import ActionSpec
from worldmodel.types import Batch, State

LINEAR = "lin_"  # as in RL Zoo
SCHEDULED = ("learning_rate", "clip_range", "clip_range_vf")
NOISE = 0.1  # default for deterministic policies
KEPT_ROUNDS = 20  # default size of a buffer in rounds; features of older models would mislead the algorithm
NUMBERS = (int, float, np.floating, np.integer)


def algorithm_class(name: str) -> type[BaseAlgorithm]:
    """Return the class of an algorithm.

    Raises:
        ValueError: if it cannot be imported, or if it is not an on-policy or off-policy algorithm.
    """
    module, _, cls = name.rpartition(":") if ":" in name else (ALGORITHMS[name], "", name)
    try:
        found = getattr(import_module(module), cls)
    except Exception as error:  # code of the user can raise any error
        remedy = "pip install 'worldmodel[contrib]' " if module == CONTRIB else ""
        raise ValueError(f"behaviour.sb3.algorithm: {name} cannot be imported: {remedy}({error})") from error
    if not (isinstance(found, type) and issubclass(found, OnPolicyAlgorithm | OffPolicyAlgorithm)):
        raise ValueError(f"behaviour.sb3.algorithm: {name} is not an on-policy or off-policy algorithm")
    return found


def arguments(config: SB3Config, on_policy: bool) -> dict[str, Any]:
    """Convert the settings of a config to the keyword arguments of an algorithm.

    "lin_VALUE" becomes a schedule, and a list `train_freq` becomes a tuple. In `policy_kwargs`, the name of an
    activation or an optimizer becomes a class of torch. The replay buffer of an off-policy algorithm holds a limited
    number of rounds by default.

    Raises:
        ValueError: if a setting cannot be converted.
    """
    settings = {name: _read(name, value) for name, value in copy.deepcopy(config.settings).items()}
    policy = settings.get("policy_kwargs") or {}
    if not isinstance(policy, dict):
        raise ValueError(f"behaviour.sb3.settings.policy_kwargs must map names to values, got {policy!r}")
    for name, home in (("activation_fn", nn), ("optimizer_class", torch.optim)):
        if isinstance(policy.get(name), str):
            if not hasattr(home, policy[name]):
                raise ValueError(f"behaviour.sb3.settings.policy_kwargs.{name}: torch has no '{policy[name]}'")
            policy[name] = getattr(home, policy[name])
    if settings.get("optimize_memory_usage"):
        raise ValueError(
            "behaviour.sb3.settings.optimize_memory_usage: remove it. Its buffer would use the first observation of a "
            "round as the successor of the last observation of the round before"
        )
    if on_policy:
        settings.setdefault("n_steps", max(config.steps // config.envs, 1))
    else:
        settings.setdefault("buffer_size", KEPT_ROUNDS * config.steps)
    return settings


def _read(name: str, value: Any) -> Any:
    if name == "train_freq" and isinstance(value, list):
        return tuple(value)
    if isinstance(value, str) and value.startswith(LINEAR) and name not in SCHEDULED:
        raise ValueError(
            f"behaviour.sb3.settings.{name}: '{value}' is a schedule, but only {', '.join(SCHEDULED)} can have one"
        )
    if not isinstance(value, str) or name not in SCHEDULED:
        return value
    try:
        if not value.startswith(LINEAR):
            raise ValueError(value)
        return LinearSchedule(float(value.removeprefix(LINEAR)), 0.0, 1.0)
    except ValueError as error:
        raise ValueError(f"behaviour.sb3.settings.{name} must be a number or lin_NUMBER, got '{value}'") from error


@cache
def in_rounds(cls: Any) -> Any:
    """Return a subclass of `cls` whose schedules run over `lifetime` steps of many rounds, not over each round."""

    class InRounds(cls):
        born = 0  # the step in which the schedules began
        lifetime = 1
        factor = 1.0  # multiplies the learning rate

        def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
            lived = min(num_timesteps - self.born, self.lifetime)
            super()._update_current_progress_remaining(lived, self.lifetime)

        def _update_learning_rate(self, optimizers: Any) -> None:
            super()._update_learning_rate(optimizers)
            for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
                for group in optimizer.param_groups:
                    group["lr"] *= self.factor

    InRounds.__name__ = InRounds.__qualname__ = cls.__name__
    return InRounds


def exploration_noise(config: SB3Config) -> float:
    """Return the exploration noise of a config; see :class:`SB3Config`."""
    if config.noise is not None:
        return config.noise
    cls = algorithm_class(config.algorithm)
    return NOISE if issubclass(cls, TD3 | DQN) or cls.__name__ == "QRDQN" else 0.0


def build_algorithm(config: SB3Config, dream: VecEnv, device: str) -> BaseAlgorithm:
    """Make an algorithm with new weights, drawn with torch's random numbers.

    Raises:
        ValueError: if it cannot be imported, does not accept its settings, or does not support the action space.
    """
    cls = algorithm_class(config.algorithm)
    settings = arguments(config, issubclass(cls, OnPolicyAlgorithm))
    noise = exploration_noise(config)
    if noise and issubclass(cls, TD3):
        shape = dream.action_space.shape or ()
        settings["action_noise"] = NormalActionNoise(np.zeros(shape), np.full(shape, noise))
    _check_numbers(cls, settings)
    try:
        made = in_rounds(cls)("MlpPolicy", dream, device=device, **settings)
    except Exception as error:  # the constructor can raise any error for unexpected settings
        raise ValueError(f"behaviour.sb3: {config.algorithm} could not be created: {error}") from error
    if hasattr(made.policy, "lstm_actor"):
        raise ValueError(f"behaviour.sb3: {config.algorithm} is recurrent. Use one without a memory of its own")
    return made


def _check_numbers(cls: Any, settings: Mapping[str, Any]) -> None:
    """Raise an error if a setting is text where a number is needed. The algorithm would fail only in a round."""
    for name, parameter in inspect.signature(cls).parameters.items():
        value, number = settings.get(name), type(parameter.default) in (int, float)
        if number and isinstance(value, str | Mapping):
            raise ValueError(f"behaviour.sb3.settings.{name}: {cls.__name__} needs a number, got {value!r}")


class SB3Behaviour(nn.Module):
    """Acts with the policy of an algorithm that learns in imagination.

    The random numbers of a round depend only on `seed` and on the number of the round. So neither the rest of the run
    nor an interruption changes what is learned.

    Args:
        dream: the imagined environment. Its observations are features of the world model, its actions are those of the
            real environment. It is reset with a seed at the beginning of each round.
        lifetime: the number of imagined steps of all rounds, over which schedules run; see :meth:`live`.
        ensemble: an ensemble that learns together with the algorithm. The imagined environment subtracts its
            disagreement from the reward.
    Raises:
        ValueError: see :func:`build_algorithm`.
    """

    def __init__(
        self,
        config: SB3Config,
        action_spec: ActionSpec,
        dream: VecEnv,
        lifetime: int,
        seed: int = 0,
        device: str = "cpu",
        ensemble: Disagreement | None = None,
    ) -> None:
        super().__init__()
        self.config, self.action_spec, self.dream, self.seed = config, action_spec, dream, seed
        self.ensemble = ensemble
        self.algorithm, self.noise = build_algorithm(config, dream, device), exploration_noise(config)
        self.first = np.asarray(action_spec.start).reshape(action_spec.shape) if any(action_spec.start) else None
        self.live(lifetime)
        self.policy = self.algorithm.policy  # a submodule, so that it is saved
        self.metrics: dict[str, float] = {}  # the metrics of the last round
        self.algorithm.set_logger(Logger(None, [MetricsWriter(lambda metrics, _: self.metrics.update(metrics))]))
        self.updates = self.rounds = 0

    def check_rounds(self) -> None:
        """Check that a round is a whole number of rollouts. Otherwise rounds are longer, and schedules end too early.

        Raises:
            ValueError: if it is not, if a rollout has no steps, or if its length is given in episodes.
        """
        algorithm, config = self.algorithm, self.config
        if isinstance(algorithm, OnPolicyAlgorithm):
            name, size = "n_steps", algorithm.n_steps
        else:
            every: Any = algorithm.train_freq  # type: ignore[attr-defined]
            if every.unit == TrainFrequencyUnit.EPISODE:
                raise ValueError("behaviour.sb3.settings.train_freq must be a number of steps, not of episodes")
            name, size = "train_freq", every.frequency
        if size < 1:
            raise ValueError(f"behaviour.sb3.settings.{name} must be at least 1, got {size}")
        rollout = size * config.envs
        if config.steps % rollout:
            raise ValueError(
                f"behaviour.sb3.steps is {config.steps}, which is not a multiple of the {rollout} steps of a rollout "
                f"({name} {size} x envs {config.envs})"
            )

    def live(self, steps: int, again: bool = True) -> None:
        """Let schedules end after this many more imagined steps. They restart if `again` is set, else they continue."""
        algorithm: Any = self.algorithm
        algorithm.born = algorithm.num_timesteps if again else algorithm.born
        self.reach(algorithm.num_timesteps - algorithm.born + steps)

    def reach(self, steps: int) -> None:
        """Let schedules that have begun run over this many imagined steps in total."""
        self.algorithm.lifetime = max(steps, 1)  # type: ignore[attr-defined]

    def initial(self, count: int) -> Memory:
        return ()

    @torch.no_grad()
    def act(self, model: LatentModel, state: State, memory: Memory, deterministic: bool = False) -> Decision:
        """Return valid actions of the policy, with exploration noise unless `deterministic`."""
        feature = model.feature(state)
        sound = feature.isfinite().all(-1)
        seen = torch.nan_to_num(feature).cpu().numpy()
        actions, _ = self.policy.predict(seen, deterministic=deterministic)
        actions = actions if self.first is None else actions + self.first  # SB3 counts from 0
        control = torch.from_numpy(self.action_spec.encode(actions)).to(feature.device)
        if self.noise and not deterministic:
            control = disturbed(self.action_spec, control, self.noise)
        return Decision(control, memory, sound)

    def fit_normalizers(self, batch: Batch, keep: bool = False) -> None:
        """Do nothing: the scale of features does not depend on the units of the environment."""

    def learn(self, model: LatentModel, states: State, batch: Batch) -> dict[str, Tensor]:
        """Update the ensemble from replayed states (B, T, ...), and after every `every` updates learn for a round."""
        metrics: dict[str, Tensor] = {}
        if self.ensemble is not None:
            metrics, report = self.ensemble.learner.update(model.feature(states), batch)
            metrics["ensemble/skipped"] = report["skipped"]
        self.updates += 1
        if self.updates % self.config.every == 0:
            self.practise()
            metrics |= of_the_dream(self.metrics)
        return metrics

    def slow_down(self, factor: float) -> None:
        """Multiply the learning rate by `factor` from now on."""
        self.algorithm.factor = factor  # type: ignore[attr-defined]

    def practise(self) -> None:
        """Learn for one round. Raise FloatingPointError if imagined values or the policy are not finite."""
        self.rounds += 1
        self.metrics.clear()
        with self.randomness():
            self.algorithm.set_env(self.dream)  # drop the episodes of an older model
            try:
                self.algorithm.learn(self.config.steps, log_interval=None, reset_num_timesteps=False)  # type: ignore[arg-type]
            except ValueError as error:  # raised by a distribution or by the imagined environment for NaN
                if not any(sign in str(error) for sign in ("invalid values", "nan")):
                    raise
                raise FloatingPointError(
                    f"round {self.rounds} in imagination diverged: imagined values or the policy are not finite. First "
                    "try a lower learner.lr or behaviour.sb3.settings.learning_rate"
                ) from error
            self.algorithm.dump_logs()
        self.cut_episodes()

    def cut_episodes(self) -> None:
        """Mark the newest steps of a replay buffer as the last of their episodes. The next round begins new ones."""
        buffer = getattr(self.algorithm, "replay_buffer", None)
        if isinstance(buffer, ReplayBuffer) and buffer.handle_timeout_termination and buffer.size():
            newest = (buffer.pos - 1) % buffer.buffer_size
            # An episode that has ended keeps its kind of end, because no value follows a termination.
            buffer.timeouts[newest] = np.maximum(buffer.timeouts[newest], 1 - buffer.dones[newest])

    @contextmanager
    def randomness(self) -> Iterator[None]:
        """Seed the global generators of NumPy and torch for this round, and restore them afterwards."""
        seed = int(np.random.SeedSequence([self.seed, self.rounds]).generate_state(1)[0])
        device, before = self.algorithm.device, np.random.get_state()
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            np.random.seed(seed)
            self.algorithm.action_space.seed(seed)
            self.dream.seed(seed % 2**31)
            try:
                yield
            finally:
                np.random.set_state(before)

    # The state that is needed to continue learning, without the weights.

    def training_state(self) -> dict[str, Any]:
        """Return optimizers, counters, recent episodes and the replay buffer, as mappings of tensors and numbers."""
        algorithm, buffer = self.algorithm, getattr(self.algorithm, "replay_buffer", None)
        modules, variables = algorithm._get_torch_save_params()
        state: dict[str, Any] = {
            "rounds": [self.updates, self.rounds],
            "numbers": {name: value for name, value in vars(algorithm).items() if _counted(name, value)},
            "modules": {name: _at(algorithm, name).state_dict() for name in modules if name != "policy"},
            "variables": {name: _at(algorithm, name).detach() for name in variables},
            "episodes": [{key: float(each[key]) for key in ("r", "l")} for each in algorithm.ep_info_buffer or ()],
        }
        if buffer is not None:
            size = buffer.size()
            rows = {name: array[:size] for name, array in vars(buffer).items() if isinstance(array, np.ndarray)}
            state["buffer"] = {"at": [int(buffer.pos), int(buffer.full)], "rows": rows}
        if self.ensemble is not None:
            state["ensemble"] = self.ensemble.learner.state()
        return state

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Restore a state returned by :meth:`training_state`."""
        self.updates, self.rounds = state["rounds"]
        vars(self.algorithm).update(state["numbers"])
        recent = self.algorithm._stats_window_size
        episodes = [{**each, "r": np.float32(each["r"])} for each in state["episodes"]]  # SB3 averages them in float32
        self.algorithm.ep_info_buffer = deque(episodes, recent)
        self.algorithm.ep_success_buffer = deque(maxlen=recent)
        for name, content in state["modules"].items():
            _at(self.algorithm, name).load_state_dict(content)
        for name, value in state["variables"].items():
            _at(self.algorithm, name).data.copy_(value)
        if "buffer" in state:
            buffer = self.algorithm.replay_buffer  # type: ignore[attr-defined]
            buffer.pos, buffer.full = state["buffer"]["at"][0], bool(state["buffer"]["at"][1])
            for name, rows in state["buffer"]["rows"].items():
                getattr(buffer, name)[: len(rows)] = rows
        if self.ensemble is not None:
            self.ensemble.learner.load(state["ensemble"])


def _counted(name: str, value: Any) -> bool:
    return type(value) in (int, float) and name != "start_time"  # every round sets start_time again


def _at(algorithm: BaseAlgorithm, dotted: str) -> Any:
    """Return a nested attribute of an algorithm, such as `actor.optimizer`."""
    value: Any = algorithm
    for name in dotted.split("."):
        value = getattr(value, name)
    return value


class MetricsWriter(KVWriter):
    """Passes the numbers that Stable-Baselines3 logs to another logger, under the same names.

    Args:
        log: a function of the metrics by name, and of the environment step.

    Example:
        model.set_logger(Logger(None, [MetricsWriter(run_logger.log)]))
    """

    def __init__(self, log: Callable[[dict[str, float], int], None]) -> None:
        self.log = log

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.log({name: float(value) for name, value in key_values.items() if isinstance(value, NUMBERS)}, step)

    def close(self) -> None:
        """Do nothing: there are no open files."""


def of_the_dream(metrics: Mapping[str, float]) -> dict[str, Tensor]:
    """Return the metrics as tensors. All but `train/*` get the prefix `dream/`."""
    named = {name if name.startswith("train/") else f"dream/{name}": value for name, value in metrics.items()}
    return {name: torch.tensor(value) for name, value in named.items()}
