"""Evaluations in environments that not everything can be asked of: of few seeds, alive once, or not to be played in."""

from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from envs.episodes import EVALUATION_SEEDS, evaluation_seeds
from training import Run, train
from training.imagine import lived
from training.run import FINAL
from training.schema import merge

TINY: dict[str, Any] = {
    "model": {"hidden": 8, "latent": {"size": 4}, "dynamics": {"rssm": {"deter": 8, "hidden": 8}}},
    "behaviour": {"actor_critic": {"hidden": 8, "starts": 4, "horizon": 2}},
    "replay": {"batch_size": 2, "window": 4},
    "training": {"steps": 40, "prefill": 20, "pretrain": 1, "replay_ratio": 1, "log_every": 10},
    "evaluation": {"every": 20, "episodes": 3, "final_episodes": 4},
    "logger": {"wandb": "disabled"},
}


class Corridor(gym.Env[Any, Any]):
    """Observes the step it is at; each action brings the reward 1, and the fifth step is the last."""

    observation_space = spaces.Box(0, 10, (1,), np.float32)
    action_space = spaces.Discrete(2)
    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        return np.full(1, self.time, np.float32), 1.0, self.time == 5, False, {}

    def render(self) -> np.ndarray:
        return np.full((16, 16, 3), self.time, np.uint8)


class Signed(Corridor):
    """Takes seeds below `bound` alone, as a simulator in C whose seed is an `int`."""

    given: ClassVar[list[int]] = []

    def __init__(self, bound: int = 2**31, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.bound = bound

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None and not 0 <= seed < self.bound:
            raise OverflowError(f"{seed} does not fit")
        if seed is not None:
            Signed.given.append(seed)
        return super().reset(seed=seed, options=options)


gym.register("test-evaluation/Corridor-v0", entry_point=Corridor)
gym.register("test-evaluation/Signed-v0", entry_point=Signed)


def run(folder: Path, name: str, **changes: Any) -> Run:
    return train(merge(merge(TINY, {"env": {"id": f"test-evaluation/{name}-v0"}}), changes), run=folder)


@pytest.mark.parametrize(("bound", "evaluation"), [(2**31, list(EVALUATION_SEEDS)), (2**16, [60_000, 2**16])])
def test_a_simulator_of_few_seeds_is_trained_and_evaluated(bound: int, evaluation: list[int], tmp_path: Path) -> None:
    """No seed is larger than it takes, and none of an evaluation is one of training."""
    Signed.given.clear()
    env = {"kwargs": {"bound": bound}, "evaluation_seeds": evaluation, "num_envs": 2, "restarts": 0}
    made = run(tmp_path / "run", "Signed", env=env, seed=evaluation[0] - 2)
    final = evaluation_seeds(4, FINAL, evaluation)
    assert Signed.given[-4:] == final and made.evaluate().returns == [5.0] * 4
    assert len(lived(made, evaluation_seeds(2, 4, evaluation), 3)) == 2
    low = evaluation[0]
    trained = [seed for seed in Signed.given if seed < low]
    assert trained[:2] == [low - 2, low - 1] and len(trained) >= 10
    assert all(low <= seed < bound for seed in set(Signed.given) - set(trained))


def test_a_seed_of_training_is_none_of_an_evaluation(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"from 0 to {EVALUATION_SEEDS[0] - 1}"):
        run(tmp_path / "run", "Corridor", seed=EVALUATION_SEEDS[0])
