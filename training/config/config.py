"""The config of a run.

Each default stands in a dataclass next to the class that it configures. A YAML file lists the values that differ.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from worldmodel.agents import BehaviourConfig
from worldmodel.envs import EnvConfig
from worldmodel.envs.make import MOST_ENVS
from worldmodel.learning.learner import LearnerConfig
from worldmodel.learning.objective import ObjectiveConfig
from worldmodel.model import ModelConfig
from worldmodel.training.config.schema import ConfigError, build, load_yaml, merge, parse_overrides, to_mapping
from worldmodel.training.logging.logger import LoggerConfig
from worldmodel.validation import THREADS, at_most

T = TypeVar("T")

DECIDE_AT_ONCE = ("actor_critic", "plan2explore")  # behaviours that need one pass through a network per decision
MAX_CAPACITY = 10**9  # time steps in a replay
MAX_EPISODES = 10**6  # episodes in an evaluation

BYTES_PER_UNIT = {"": 1} | {f"{letter}B": 1000**power for power, letter in enumerate("kMGT", 1)}
BYTES_PER_UNIT |= {f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)}
SIZE_PATTERN = re.compile(r"([0-9]+(?:\.[0-9]+)?(?:e[0-9]+)?) ?(|[kMGT]B|[KMGT]iB)")


def byte_count(size: int | str) -> int:
    """Return the number of bytes that 8000, "8GB" or "500 MiB" stands for.

    Raises:
        ValueError: if `size` has none of these forms.
    """
    found = SIZE_PATTERN.fullmatch(str(size))
    if found is None:
        units = ", ".join(filter(None, BYTES_PER_UNIT))
        raise ValueError(f"{size!r} is not a number of bytes. Write 8000, or a number with one of the units {units}.")
    return int(float(found[1]) * BYTES_PER_UNIT[found[2]])


@dataclass
class ReplayConfig:
    """What the replay stores, and how it is sampled."""

    capacity: int = 100_000  # time steps: environment steps, and one more per episode for its reset
    capacity_bytes: int | str | None = None  # a number, "8GB" or "500MiB"; the smaller of the two limits applies
    disk: bool = False  # keep the recorded steps in files in the run folder instead of in memory
    batch_size: int = 64  # windows per update
    window: int = 16  # time steps per window
    online: bool = False  # replay each new step once before older ones (DreamerV3's queue)
    # true: a window begins from the state that was last inferred for the step before it (DreamerV3). The logged ELBO
    # then bounds log p of the window given that state, so it cannot be compared with one from z_0.
    # false: a window begins from z_0.
    context: bool = False

    def __post_init__(self) -> None:
        if min(self.capacity, self.batch_size, self.window) < 1:
            raise ValueError("capacity, batch_size and window must be at least 1.")
        at_most(self, capacity=MAX_CAPACITY)
        if self.max_bytes is not None and self.max_bytes < 1:
            raise ValueError(f"capacity_bytes is {self.capacity_bytes}. It must be at least 1.")

    @property
    def max_bytes(self) -> int | None:
        """Return `capacity_bytes` as a number."""
        return None if self.capacity_bytes is None else byte_count(self.capacity_bytes)


@dataclass
class TrainingConfig:
    """The loop that collects experience and learns from it."""

    steps: int = 5_000  # total number of environment steps, including the prefill
    prefill: int = 200  # environment steps with random actions before the first update
    replay_ratio: float = 256.0  # replayed steps per environment step
    pretrain: int = 50  # updates on the prefill before the policy acts for the first time
    joint: bool = False  # train model and actor-critic with one loss and one optimizer, `learner` (DreamerV3)
    acting: Literal["eager", "compiled", "auto"] = "eager"  # compiled: compiling the policy takes half a minute
    overlap: bool = False  # update while the environments take their next step in other processes (env.timeout)
    threads: int = 1  # of torch; more threads compete with other busy processes, such as environments
    device: str = "cpu"
    log_every: int = 100  # environment steps between two rows of metrics
    keep: int = 2  # number of newest checkpoints to keep, each with its replay; the best one is kept as well
    skips: int = 10  # non-finite updates after a checkpoint before its weights are restored with half the lr
    restores: int = 2  # such restorations before the run stops

    def __post_init__(self) -> None:
        if min(self.steps, self.prefill, self.threads, self.log_every, self.keep) < 1 or self.pretrain < 0:
            raise ValueError("steps, prefill, threads, log_every and keep must be at least 1, pretrain at least 0.")
        if min(self.skips, self.restores) < 0:
            raise ValueError(f"skips is {self.skips} and restores is {self.restores}. Both must be at least 0.")
        if self.acting not in ("eager", "compiled", "auto"):
            raise ValueError(f"acting is '{self.acting}'. It must be eager, compiled or auto.")
        at_most(self, threads=THREADS)
        if self.replay_ratio <= 0:
            raise ValueError(f"replay_ratio is {self.replay_ratio}. It must be positive.")


@dataclass
class EvaluationConfig:
    """Deterministic evaluation on seeds that training never uses, by default in separate environments."""

    every: int = 500  # environment steps between two evaluations
    episodes: int = 20  # per evaluation; 0: write a checkpoint instead of evaluating
    final_episodes: int = 20  # of the final evaluation, on seeds that are used nowhere else; 0: no final evaluation
    num_envs: int = 32  # maximum number of evaluation environments, in addition to those of training
    # Evaluate in the training environments, for simulators of which only one can exist. Each evaluation truncates the
    # running episodes, so choose `every` several episodes long.
    reuse_envs: bool = False
    milestones: list[int] = field(default_factory=list)  # environment steps at which the final episodes are played too
    videos: bool = False  # make the videos of `worldmodel imagine` at each evaluation, in RUN/media/STEPS and on W&B

    def __post_init__(self) -> None:
        if min(self.every, self.num_envs) < 1 or min(self.episodes, self.final_episodes) < 0:
            raise ValueError("every and num_envs must be at least 1, episodes and final_episodes at least 0.")
        if self.milestones and not self.final_episodes:
            raise ValueError(
                "Each milestone plays final_episodes episodes, and final_episodes is 0. Raise it, or remove milestones."
            )
        if self.videos and self.reuse_envs:
            raise ValueError(
                "videos need a separate environment, but reuse_envs allows none. Switch one of them off. "
                "`worldmodel imagine` can make the videos after the run."
            )
        if min(self.milestones, default=1) < 1:
            raise ValueError(f"milestones is {self.milestones}. It lists numbers of environment steps, 1 or more each.")
        at_most(self, episodes=MAX_EPISODES, final_episodes=MAX_EPISODES, num_envs=MOST_ENVS)


@dataclass
class Config:
    """The config of one run."""

    seed: int = 0
    env: EnvConfig = field(default_factory=EnvConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)  # of the world model
    behaviour: BehaviourConfig = field(default_factory=BehaviourConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)

    @property
    def side_by_side(self) -> int:
        """Return the maximum number of environments of an evaluation; if it reuses those of training, their number."""
        return self.env.num_envs if self.evaluation.reuse_envs else self.evaluation.num_envs

    @property
    def updates_per_step(self) -> float:
        """Return the number of world-model updates per environment step after the prefill."""
        return self.training.replay_ratio / (self.replay.batch_size * self.replay.window)

    def __post_init__(self) -> None:
        if self.training.joint and self.behaviour.name != "actor_critic":
            raise ValueError(
                f"training.joint works only with behaviour.name actor_critic, but it is {self.behaviour.name}. "
                "Set training.joint to false."
            )
        if self.training.overlap and self.env.timeout is None:
            raise ValueError(
                "training.overlap needs environments in separate processes. Set env.timeout to the seconds that a "
                "step may take, or set training.overlap to false."
            )
        if self.training.acting == "compiled" and self.behaviour.name not in DECIDE_AT_ONCE:
            raise ValueError(
                "training.acting: compiled works only with actor-critics, but behaviour.name is "
                f"{self.behaviour.name}. Set training.acting to eager. To compile the search of a planner, set "
                "behaviour.planner.compile."
            )
        if self.behaviour.actor_critic.replay_value and self.replay.window < 2:
            raise ValueError(
                "behaviour.actor_critic.replay_value learns from the step after each replayed step, but replay.window "
                f"is {self.replay.window}. Set replay.window to 2 or more, or replay_value to 0."
            )
        if self.replay.context and self.objective.bound != "elbo":
            raise ValueError(
                f"replay.context works only with objective.bound elbo, but it is {self.objective.bound}. "
                "Change one of them."
            )
        if self.evaluation.reuse_envs and self.env.life_loss == "end":
            raise ValueError(
                "With env.life_loss: end, an episode of the training environments ends with every lost life, so "
                "evaluations with evaluation.reuse_envs would end there too. Change one of the two settings."
            )
        if not 0 <= self.seed <= (most := self.env.evaluation_seeds[0] - self.env.num_envs):
            raise ValueError(f"seed is {self.seed}. It must lie from 0 to {most}, below env.evaluation_seeds.")


def too_short(config: Config) -> list[str]:
    """Return a warning for each part of the config that the run is too short for.

    This is not an error, since a run can be given more steps later.
    """
    training, behaviour = config.training, config.behaviour
    updates = int(training.pretrain + max(training.steps - training.prefill, 0) * config.updates_per_step)
    explored, every = behaviour.exploration.steps, behaviour.sb3.every
    lines = []
    if training.prefill >= training.steps:
        lines.append(
            f"training.prefill ({training.prefill}) uses up all of training.steps ({training.steps}). Every recorded "
            f"action is random, and the only updates are the {training.pretrain} of training.pretrain."
        )
    unplayed = [step for step in config.evaluation.milestones if not training.prefill < step <= training.steps]
    if unplayed:
        lines.append(
            f"evaluation.milestones {unplayed} are never played. They lie within training.prefill ({training.prefill}) "
            f"or beyond training.steps ({training.steps})."
        )
    if behaviour.name == "plan2explore" and explored is not None and explored <= training.prefill:
        lines.append(
            f"behaviour.exploration.steps ({explored}) end within training.prefill ({training.prefill}), so all "
            "exploration is random."
        )
    if behaviour.name == "sb3" and updates < every:
        lines.append(
            f"behaviour.sb3.every ({every}) exceeds the {updates} updates of this run, so "
            f"{behaviour.sb3.algorithm} never learns."
        )
    return [f"warning: {line}" for line in lines]


def load_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), **values: Any) -> Config:
    """Build a config from a YAML file, or a mapping, of differences from the defaults.

    Args:
        overrides: `["--section.key", "value", ...]`, as on the command line. They take precedence over the file.
        values: top-level keys such as `seed`, or sections as mappings. They take precedence over both.
    Raises:
        ConfigError: if a key or a value does not fit. The message names the key.
    """
    return resolve(Config, source, overrides, **values)


def resolve(cls: type[T], source: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), **values: Any) -> T:
    """Build a config of the dataclass `cls`; see :func:`load_config`."""
    mapping = source if isinstance(source, Mapping) else load_yaml(source)
    return build(cls, merge(merge(mapping, parse_overrides(overrides)), values))


__all__ = ["Config", "ConfigError", "EvaluationConfig", "ReplayConfig", "TrainingConfig", "load_config", "to_mapping"]
