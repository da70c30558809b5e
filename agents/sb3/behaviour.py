"""A behaviour that an algorithm of Stable-Baselines3 learns inside the dream.

The dream is a `VecEnv` whose observations are latent features; the algorithm does not know that nothing in it is real.
Learning comes in rounds, between the updates of the world model: each begins new imagined episodes, as the model of
today dreams them, while weights, optimisers, buffers and schedules go on from where the last round left them.
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
NOISE = 0.1  # of deterministic policies, if none is given
KEPT_ROUNDS = 20  # in a buffer whose size is not given: features of older models lead astray
NUMBERS = (int, float, np.floating, np.integer)


def algorithm_class(name: str) -> type[BaseAlgorithm]:
    """The class of an algorithm.

    Raises:
        ValueError: if it cannot be imported, or is none that can learn here.
    """
    module, _, cls = name.rpartition(":") if ":" in name else (ALGORITHMS[name], "", name)
    try:
        found = getattr(import_module(module), cls)
    except Exception as error:  # the module may be the user's: anything can go wrong in it
        remedy = "pip install 'worldmodel[contrib]' " if module == CONTRIB else ""
        raise ValueError(f"behaviour.sb3.algorithm: {name} cannot be imported: {remedy}({error})") from error
    if not (isinstance(found, type) and issubclass(found, OnPolicyAlgorithm | OffPolicyAlgorithm)):
        raise ValueError(f"behaviour.sb3.algorithm: {name} is no on-policy or off-policy algorithm")
    return found


def arguments(config: SB3Config, on_policy: bool) -> dict[str, Any]:
    """The keyword arguments of an algorithm, from what a YAML file can say.

    "lin_VALUE" becomes a schedule, a list `train_freq` a tuple, and in `policy_kwargs` the names of an activation or an
    optimiser the classes of torch. An off-policy algorithm keeps no more than some rounds.

    Raises:
        ValueError: for what cannot be read so.
    """
    settings = {name: _read(name, value) for name, value in copy.deepcopy(config.settings).items()}
    policy = settings.get("policy_kwargs") or {}
    if not isinstance(policy, dict):
        raise ValueError(f"behaviour.sb3.settings.policy_kwargs: {policy!r} is no mapping of names to values")
    for name, home in (("activation_fn", nn), ("optimizer_class", torch.optim)):
        if isinstance(policy.get(name), str):
            if not hasattr(home, policy[name]):
                raise ValueError(f"behaviour.sb3.settings.policy_kwargs.{name}: torch has no '{policy[name]}'")
            policy[name] = getattr(home, policy[name])
    if settings.get("optimize_memory_usage"):
        raise ValueError(
            "behaviour.sb3.settings.optimize_memory_usage: its buffer takes what a round begins with for what followed "
            "the round before, leave it out"
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
        raise ValueError(f"behaviour.sb3.settings.{name}: only {', '.join(SCHEDULED)} can fall, not '{value}'")
    if not isinstance(value, str) or name not in SCHEDULED:
        return value
    try:
        if not value.startswith(LINEAR):
            raise ValueError(value)
        return LinearSchedule(float(value.removeprefix(LINEAR)), 0.0, 1.0)
    except ValueError as error:
        raise ValueError(f"behaviour.sb3.settings.{name}: '{value}' is no number, nor lin_ and one") from error


@cache
def in_rounds(cls: Any) -> Any:
    """The algorithm `cls` with schedules over `lifetime` steps of many rounds, from `born` on, not over each anew."""

    class InRounds(cls):
        born = 0
        lifetime = 1
        factor = 1.0  # of the learning rate

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
    """See :class:`SB3Config`."""
    if config.noise is not None:
        return config.noise
    cls = algorithm_class(config.algorithm)
    return NOISE if issubclass(cls, TD3 | DQN) or cls.__name__ == "QRDQN" else 0.0


def build_algorithm(config: SB3Config, dream: VecEnv, device: str) -> BaseAlgorithm:
    """An algorithm with new weights, which come from torch's random numbers.

    Raises:
        ValueError: if it cannot be imported, does not take its settings, or cannot choose such actions.
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
    except Exception as error:  # whatever its constructor makes of settings that it does not expect
        raise ValueError(f"behaviour.sb3: {config.algorithm} cannot be made: {error}") from error
    if hasattr(made.policy, "lstm_actor"):
        raise ValueError(f"behaviour.sb3: {config.algorithm} has a memory of its own; the latent state is one already")
    return made


def _check_numbers(cls: Any, settings: Mapping[str, Any]) -> None:
    """Refuse words where an algorithm has a number, which it would find out in the first round."""
    for name, parameter in inspect.signature(cls).parameters.items():
        value, number = settings.get(name), type(parameter.default) in (int, float)
        if number and isinstance(value, str | Mapping):
            raise ValueError(f"behaviour.sb3.settings.{name}: {value!r} is no number, which {cls.__name__} has there")


class SB3Behaviour(nn.Module):
    """Acts with the policy of an algorithm that learns in a dream.

    Everything that a round draws depends on `seed` and on the number of the round alone: neither the rest of the run
    nor a pause in between changes what is learned.

    Args:
        dream: observations are features of the world model, actions those of the environment. It is reset with a seed
            at the beginning of each round.
        lifetime: imagined steps of all rounds, over which schedules run; see :meth:`live`.
        ensemble: learns beside the algorithm; the dream takes its disagreement from the reward.
    Raises:
        ValueError: as :func:`build_algorithm`.
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
        self.policy = self.algorithm.policy  # part of this module: saved with it
        self.metrics: dict[str, float] = {}  # logged in the last round
        self.algorithm.set_logger(Logger(None, [MetricsWriter(lambda metrics, _: self.metrics.update(metrics))]))
        self.updates = self.rounds = 0

    def check_rounds(self) -> None:
        """Refuse rounds that are no whole number of rollouts: they last longer, and schedules end before the run.

        Raises:
            ValueError: if they are none, or a rollout is of no step, or of episodes.
        """
        algorithm, config = self.algorithm, self.config
        if isinstance(algorithm, OnPolicyAlgorithm):
            name, size = "n_steps", algorithm.n_steps
        else:
            every: Any = algorithm.train_freq  # type: ignore[attr-defined]
            if every.unit == TrainFrequencyUnit.EPISODE:
                raise ValueError("behaviour.sb3.settings.train_freq: rounds are of steps, give it a number of them")
            name, size = "train_freq", every.frequency
        if size < 1:
            raise ValueError(f"behaviour.sb3.settings.{name} must be at least 1: {size}")
        rollout = size * config.envs
        if config.steps % rollout:
            raise ValueError(
                f"behaviour.sb3.steps: a round of {config.steps} steps is no whole number of rollouts of {rollout} "
                f"({name} {size} x envs {config.envs})"
            )

    def live(self, steps: int, again: bool = True) -> None:
        """Let schedules run over this many imagined steps from now on: `again` from their start, or as they go on."""
        algorithm: Any = self.algorithm
        algorithm.born = algorithm.num_timesteps if again else algorithm.born
        self.reach(algorithm.num_timesteps - algorithm.born + steps)

    def reach(self, steps: int) -> None:
        """Let schedules that have begun run over this many imagined steps in all."""
        self.algorithm.lifetime = max(steps, 1)  # type: ignore[attr-defined]

    def initial(self, count: int) -> Memory:
        return ()

    @torch.no_grad()
    def act(self, model: LatentModel, state: State, memory: Memory, deterministic: bool = False) -> Decision:
        """What the policy answers, in a valid range; with noise unless `deterministic`."""
        feature = model.feature(state)
        sound = feature.isfinite().all(-1)
        seen = torch.nan_to_num(feature).cpu().numpy()
        actions, _ = self.policy.predict(seen, deterministic=deterministic)
        actions = actions if self.first is None else actions + self.first  # SB3 counts from 0
        control = torch.from_numpy(self.action_spec.encode(actions)).to(feature.device)
        if self.noise and not deterministic:
            control = disturbed(self.action_spec, control, self.noise)
        return Decision(control, memory, sound)

    def fit_units(self, batch: Batch, keep: bool = False) -> None:
        """Features have no units of the environment."""

    def learn(self, model: LatentModel, states: State, batch: Batch) -> dict[str, Tensor]:
        """The ensemble from replayed states (B, T, ...); and, with every so many of them, a round in the dream."""
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
        """Let the learning rate be `factor` times what it would be, from now on."""
        self.algorithm.factor = factor  # type: ignore[attr-defined]

    def practise(self) -> None:
        """One round of learning."""
        self.rounds += 1
        self.metrics.clear()
        with self.randomness():
            self.algorithm.set_env(self.dream)  # without episodes that an older model dreamt
            try:
                self.algorithm.learn(self.config.steps, log_interval=None, reset_num_timesteps=False)  # type: ignore[arg-type]
            except ValueError as error:  # a distribution's, whose parameters are no numbers, or the dream's of actions
                if not any(sign in str(error) for sign in ("invalid values", "nan")):
                    raise
                raise FloatingPointError(
                    f"round {self.rounds} in the dream diverged: what it dreams of, or the policy, is not finite. A "
                    "lower learner.lr or behaviour.sb3.settings.learning_rate is the first thing to try"
                ) from error
            self.algorithm.dump_logs()
        self.cut_episodes()

    def cut_episodes(self) -> None:
        """Mark the newest steps of a replay buffer as the last of their episodes: the next round begins others."""
        buffer = getattr(self.algorithm, "replay_buffer", None)
        if isinstance(buffer, ReplayBuffer) and buffer.handle_timeout_termination and buffer.size():
            newest = (buffer.pos - 1) % buffer.buffer_size
            # Where an episode was over anyway, what is known of its end stays: no value follows a termination.
            buffer.timeouts[newest] = np.maximum(buffer.timeouts[newest], 1 - buffer.dones[newest])

    @contextmanager
    def randomness(self) -> Iterator[None]:
        """Random numbers of this round, as SB3 draws them: from NumPy's and torch's global generators."""
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

    # What is needed to go on learning, besides the weights.

    def training_state(self) -> dict[str, Any]:
        """Optimisers, counters, recent episodes and the replay buffer, as nested mappings of tensors and numbers."""
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
        """Go on from what :meth:`training_state` returned."""
        self.updates, self.rounds = state["rounds"]
        vars(self.algorithm).update(state["numbers"])
        recent = self.algorithm._stats_window_size
        episodes = [{**each, "r": np.float32(each["r"])} for each in state["episodes"]]  # as they are averaged
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
    return type(value) in (int, float) and name != "start_time"  # a clock's, set anew by every round


def _at(algorithm: BaseAlgorithm, dotted: str) -> Any:
    """`actor.optimizer` of an algorithm."""
    value: Any = algorithm
    for name in dotted.split("."):
        value = getattr(value, name)
    return value


class MetricsWriter(KVWriter):
    """Hands the numbers that Stable-Baselines3 logs to a logger of another kind, under their own names.

    Args:
        log: metrics by name, and the environment steps they belong to.

    Example:
        model.set_logger(Logger(None, [MetricsWriter(run_logger.log)]))
    """

    def __init__(self, log: Callable[[dict[str, float], int], None]) -> None:
        self.log = log

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.log({name: float(value) for name, value in key_values.items() if isinstance(value, NUMBERS)}, step)

    def close(self) -> None:
        """Nothing is held open here."""


def of_the_dream(metrics: Mapping[str, float]) -> dict[str, Tensor]:
    """`train/*` as it is; what is said of environment and speed as `dream/*`, beside those of the world."""
    named = {name if name.startswith("train/") else f"dream/{name}": value for name, value in metrics.items()}
    return {name: torch.tensor(value) for name, value in named.items()}
