"""Everything a run can be told. Each default stands beside the class it belongs to; a YAML file lists differences."""

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

DECIDE_AT_ONCE = ("actor_critic", "plan2explore")  # behaviours whose decisions are one pass through a network
MOST_ROWS, MOST_EPISODES = 10**9, 10**6  # of a replay, of an evaluation

UNITS = {"": 1} | {f"{letter}B": 1000**power for power, letter in enumerate("kMGT", 1)}
UNITS |= {f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)}
SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?(?:e[0-9]+)?) ?(|[kMGT]B|[KMGT]iB)")


def byte_count(size: int | str) -> int:
    """8000, "8GB" or "500 MiB" -> a number of bytes.

    Raises:
        ValueError: if it is none of these.
    """
    found = SIZE.fullmatch(str(size))
    if found is None:
        units = ", ".join(filter(None, UNITS))
        raise ValueError(f"{size!r} is no number of bytes: write 8000, or a number and one of {units}")
    return int(float(found[1]) * UNITS[found[2]])


@dataclass
class ReplayConfig:
    """What is stored and how it is replayed."""

    capacity: int = 100_000  # arrivals: environment steps, and one more per episode for its reset
    capacity_bytes: int | str | None = None  # of arrivals, or as "8GB", "500MiB"; the lesser of the two counts
    disk: bool = False  # kept in files in the run folder instead of in memory
    batch_size: int = 64  # windows per update
    window: int = 16  # steps per window
    online: bool = False  # new steps are replayed once before others (DreamerV3's queue)
    context: bool = False  # windows begin from the state last inferred of the step before (DreamerV3), else from z_0;
    # the ELBO in the log then bounds log p of a window given that state, and does not compare with one from z_0

    def __post_init__(self) -> None:
        if min(self.capacity, self.batch_size, self.window) < 1:
            raise ValueError("capacity, batch_size and window must be at least 1")
        at_most(self, capacity=MOST_ROWS)
        if self.max_bytes is not None and self.max_bytes < 1:
            raise ValueError(f"capacity_bytes must be at least 1: {self.capacity_bytes}")

    @property
    def max_bytes(self) -> int | None:
        """`capacity_bytes` as a number."""
        return None if self.capacity_bytes is None else byte_count(self.capacity_bytes)


@dataclass
class TrainingConfig:
    """The collect-learn loop."""

    steps: int = 5_000  # environment steps in all, the prefill included
    prefill: int = 200  # environment steps with random actions before the first update
    replay_ratio: float = 256.0  # replayed steps per environment step
    pretrain: int = 50  # updates on the prefill before the policy acts for the first time
    joint: bool = False  # one loss and one optimiser, `learner`, for model and actor-critic (DreamerV3)
    acting: Literal["eager", "compiled", "auto"] = "eager"  # decisions, by torch.compile: half a minute to build
    overlap: bool = False  # updates while environments in processes of their own, env.timeout, take the next step
    threads: int = 1  # of torch; more fight with every other busy process, environments included
    device: str = "cpu"
    log_every: int = 100  # environment steps between two rows of metrics
    keep: int = 2  # checkpoints, the newest, each with the replay as it was; the best is kept as well
    skips: int = 10  # updates that were not finite, since a checkpoint, before its weights return with half the lr
    restores: int = 2  # such returns before the run stops

    def __post_init__(self) -> None:
        if min(self.steps, self.prefill, self.threads, self.log_every, self.keep) < 1 or self.pretrain < 0:
            raise ValueError("steps, prefill, threads, log_every and keep must be at least 1, pretrain at least 0")
        if min(self.skips, self.restores) < 0:
            raise ValueError(f"skips and restores must be at least 0: {self.skips}, {self.restores}")
        if self.acting not in ("eager", "compiled", "auto"):
            raise ValueError(f"acting is eager, compiled or auto: '{self.acting}'")
        at_most(self, threads=THREADS)
        if self.replay_ratio <= 0:
            raise ValueError(f"replay_ratio must be positive: {self.replay_ratio}")


@dataclass
class EvaluationConfig:
    """Deterministic evaluation on seeds of its own and, unless told otherwise, in environments of its own."""

    every: int = 500  # environment steps between two evaluations
    episodes: int = 20  # of each; 0: there is none, and a checkpoint in its place
    final_episodes: int = 20  # of the last one, on seeds used nowhere else; 0: there is none
    num_envs: int = 32  # environments side by side at most, beside those of training
    reuse_envs: bool = False  # play in those of training instead, as where a simulator can live only once: each
    # evaluation ends their running episodes, truncated, so that `every` should be several episodes
    milestones: list[int] = field(default_factory=list)  # environment steps; each plays the final episodes as well
    videos: bool = False  # with each, what `worldmodel imagine` makes: in RUN/media/STEPS, and on Weights & Biases

    def __post_init__(self) -> None:
        if min(self.every, self.num_envs) < 1 or min(self.episodes, self.final_episodes) < 0:
            raise ValueError("every and num_envs must be at least 1, episodes and final_episodes at least 0")
        if self.milestones and not self.final_episodes:
            raise ValueError("milestones play final_episodes, which are 0: give their number, or no milestones")
        if self.videos and self.reuse_envs:
            raise ValueError(
                "videos are filmed in an environment of their own, and reuse_envs leaves none: switch one of them off; "
                "worldmodel imagine films a run when it has ended"
            )
        if min(self.milestones, default=1) < 1:
            raise ValueError(f"milestones are numbers of environment steps, 1 or more: {self.milestones}")
        at_most(self, episodes=MOST_EPISODES, final_episodes=MOST_EPISODES, num_envs=MOST_ENVS)


@dataclass
class Config:
    """One run."""

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
        """Environments that an evaluation may play in at once: as many as there were, where it would reuse them."""
        return self.env.num_envs if self.evaluation.reuse_envs else self.evaluation.num_envs

    @property
    def updates_per_step(self) -> float:
        """Of the world model, that an environment step pays for once the prefill is over."""
        return self.training.replay_ratio / (self.replay.batch_size * self.replay.window)

    def __post_init__(self) -> None:
        if self.training.joint and self.behaviour.name != "actor_critic":
            raise ValueError(f"training.joint is for behaviour.name actor_critic, not {self.behaviour.name}")
        if self.training.overlap and self.env.timeout is None:
            raise ValueError(
                "training.overlap is for environments in processes of their own: set env.timeout, the seconds that a "
                "step may take, or overlap to false"
            )
        if self.training.acting == "compiled" and self.behaviour.name not in DECIDE_AT_ONCE:
            raise ValueError(
                f"training.acting: compiled is for actor-critics, not behaviour.name {self.behaviour.name}; the search "
                "of a planner is compiled by behaviour.planner.compile"
            )
        if self.behaviour.actor_critic.replay_value and self.replay.window < 2:
            raise ValueError(
                "behaviour.actor_critic.replay_value learns from what follows a replayed step, and replay.window is "
                f"{self.replay.window}: make it 2 or more, or replay_value 0"
            )
        if self.replay.context and self.objective.bound != "elbo":
            raise ValueError(f"replay.context is for objective.bound elbo, not {self.objective.bound}")
        if self.evaluation.reuse_envs and self.env.life_loss == "end":
            raise ValueError(
                "evaluation.reuse_envs would end evaluations with a lost life, as env.life_loss: end ends the episodes "
                "of training: set one of them otherwise"
            )
        if not 0 <= self.seed <= (most := self.env.evaluation_seeds[0] - self.env.num_envs):
            raise ValueError(f"seed must lie from 0 to {most}, below env.evaluation_seeds: {self.seed}")


def too_short(config: Config) -> list[str]:
    """A line for each part of a run that it is too short for: no mistake, since it can be given more steps."""
    training, behaviour = config.training, config.behaviour
    updates = int(training.pretrain + max(training.steps - training.prefill, 0) * config.updates_per_step)
    explored, every = behaviour.exploration.steps, behaviour.sb3.every
    lines = []
    if training.prefill >= training.steps:
        lines.append(
            f"training.prefill {training.prefill} takes all of training.steps {training.steps}: every recorded action "
            f"is random, and all that is learned comes from the {training.pretrain} update(s) of training.pretrain"
        )
    unplayed = [step for step in config.evaluation.milestones if not training.prefill < step <= training.steps]
    if unplayed:
        lines.append(
            f"evaluation.milestones {unplayed} are never played: they lie in training.prefill {training.prefill} or "
            f"beyond training.steps {training.steps}"
        )
    if behaviour.name == "plan2explore" and explored is not None and explored <= training.prefill:
        lines.append(
            f"behaviour.exploration.steps {explored} end with training.prefill {training.prefill}: nothing is explored "
            "but at random"
        )
    if behaviour.name == "sb3" and updates < every:
        lines.append(
            f"behaviour.sb3.every {every} is more than the {updates} updates of this run: "
            f"{behaviour.sb3.algorithm} never learns"
        )
    return [f"warning: {line}" for line in lines]


def load_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), **values: Any) -> Config:
    """A config from a YAML file (or a mapping) of differences.

    Args:
        overrides: `["--section.key", "value", ...]`, as on the command line; they win over the file.
        values: top-level keys such as `seed` or sections given as mappings; they win over both.
    Raises:
        ConfigError: naming the key, for anything that does not fit.
    """
    return resolve(Config, source, overrides, **values)


def resolve(cls: type[T], source: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), **values: Any) -> T:
    """A config of the dataclass `cls`; see :func:`load_config`."""
    mapping = source if isinstance(source, Mapping) else load_yaml(source)
    return build(cls, merge(merge(mapping, parse_overrides(overrides)), values))


__all__ = ["Config", "ConfigError", "EvaluationConfig", "ReplayConfig", "TrainingConfig", "load_config", "to_mapping"]
