"""The settings of an algorithm of Stable-Baselines3 that learns in imagination. This module does not import it."""

from dataclasses import dataclass, field
from typing import Any

from worldmodel.agents.exploration.ensemble import EnsembleConfig
from worldmodel.validation import CANDIDATES, HORIZON, at_most

OURS, CONTRIB = "stable_baselines3", "sb3_contrib"
ALGORITHMS = {
    **dict.fromkeys(("A2C", "DDPG", "DQN", "PPO", "SAC", "TD3"), OURS),
    **dict.fromkeys(("CrossQ", "QRDQN", "TQC", "TRPO"), CONTRIB),
}
RESERVED = ("env", "policy", "seed", "device", "verbose", "tensorboard_log", "action_noise", "_init_setup_model")


@dataclass
class SB3Config:
    """An algorithm of Stable-Baselines3 that learns in imagination."""

    algorithm: str = "SAC"  # one of ALGORITHMS, or your own class as "module:Class"
    settings: dict[str, Any] = field(default_factory=dict)  # its keyword arguments; "lin_3e-4" falls linearly to 0
    envs: int = 64  # number of parallel imagined episodes
    horizon: int = 15  # imagined steps after which an episode is truncated
    every: int = 10  # updates of the world model between two rounds
    steps: int = 2048  # imagined steps of a round, summed over all episodes. Must be a whole number of rollouts, each
    # with n_steps (on-policy; by default a round is one rollout) or train_freq steps in every episode
    noise: float | None = None  # exploration noise, see agents/acting/noise.py; null: 0.1 for deterministic policies
    penalty: float = 0.0  # weight of the ensemble's disagreement, which is subtracted from the imagined reward
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS and ":" not in self.algorithm:
            known = ", ".join(ALGORITHMS)
            raise ValueError(
                f"unknown algorithm '{self.algorithm}': use one of {known}, or write your own as module:Class"
            )
        for name in ("envs", "horizon", "every", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        at_most(self, envs=CANDIDATES, horizon=HORIZON)
        if min(self.noise or 0.0, self.penalty) < 0:
            raise ValueError(f"noise and penalty must not be negative, got {self.noise} and {self.penalty}")
        for name in RESERVED:
            if name in self.settings:
                raise ValueError(f"settings must not contain {name}, because the run sets it")
