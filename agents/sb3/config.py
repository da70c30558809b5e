"""Which algorithm of Stable-Baselines3 learns in the dream, and when. Imports nothing of it."""

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
    """An algorithm of Stable-Baselines3 in the dream."""

    algorithm: str = "SAC"  # of ALGORITHMS, or "module:Class" of one's own
    settings: dict[str, Any] = field(default_factory=dict)  # its keyword arguments; "lin_3e-4" falls linearly to 0
    envs: int = 64  # imagined episodes side by side
    horizon: int = 15  # imagined steps after which an episode is truncated
    every: int = 10  # updates of the world model between two rounds
    steps: int = 2048  # imagined steps of a round, those of all episodes counted: a whole number of rollouts, each of
    # n_steps (on-policy; by default the round is one) or train_freq steps in every episode
    noise: float | None = None  # while exploring, see agents/noise.py; null: 0.1 of deterministic policies, else none
    penalty: float = 0.0  # weight of the ensemble's disagreement, taken from the imagined reward
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS and ":" not in self.algorithm:
            known = ", ".join(ALGORITHMS)
            raise ValueError(f"unknown algorithm '{self.algorithm}': known are {known}, and others as module:Class")
        for name in ("envs", "horizon", "every", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: {getattr(self, name)}")
        at_most(self, envs=CANDIDATES, horizon=HORIZON)
        if min(self.noise or 0.0, self.penalty) < 0:
            raise ValueError(f"noise and penalty must not be negative: {self.noise}, {self.penalty}")
        for name in RESERVED:
            if name in self.settings:
                raise ValueError(f"settings may not hold {name}: the run gives it")
