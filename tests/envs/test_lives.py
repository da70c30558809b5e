"""A lost life ends an episode of whoever learns, and of nobody else."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from worldmodel.envs import EnvConfig, RecordTrajectories, action_spec, make, make_vector, observation_specs
from worldmodel.envs.wrappers.basic import FRAMES
from worldmodel.envs.wrappers.lives import EndWithLife
from worldmodel.training.config.config import load_config
from worldmodel.training.evaluation.evaluation import evaluate
from worldmodel.training.loop.loop import Loop
from worldmodel.training.loop.trainer import Trainer
from worldmodel.training.run.run import Run

LOSSES = (3, 5, 9)  # frames at which the three lives of a game are lost; the last is its end
ID = "test-lives/Console-v0"


class Console(gym.Env[Any, Any]):
    """A game of three lives, observed as (frame, game): its console is itself. Every frame is worth 1."""

    observation_space = spaces.Box(0, 99, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.ale, self.games, self.frame = self, 0, 0

    def lives(self) -> int:
        return sum(self.frame < loss for loss in LOSSES)

    def observe(self) -> np.ndarray:
        return np.array([self.frame, self.games], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.games, self.frame = self.games + 1, 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.frame += 1
        return self.observe(), 1.0, self.lives() == 0, False, {FRAMES: 4}


gym.register(ID, Console)


def played(env: gym.Env[Any, Any], steps: int) -> list[tuple[float, ...]]:
    """(frame, game, terminated) of every observation, resets included."""
    seen = [(*env.reset(seed=0)[0], False)]
    for _ in range(steps):
        observation, _, terminated, truncated, _ = env.step(0)
        seen.append((*observation, terminated))
        if terminated or truncated:
            seen.append((*env.reset()[0], False))
    return seen


def test_a_game_goes_on_where_a_life_was_lost() -> None:
    config = EnvConfig(ID, life_loss="end")
    assert played(make(config, training=True), 10) == [
        *((0, 1, False), (1, 1, False), (2, 1, False), (3, 1, True)),
        *((3, 1, False), (4, 1, False), (5, 1, True)),
        *((5, 1, False), (6, 1, False), (7, 1, False), (8, 1, False), (9, 1, True)),
        *((0, 2, False), (1, 2, False)),
    ]
    whole = [(frame, 1, frame == 9) for frame in range(10)]
    assert played(make(config), 9) == [*whole, (0, 2, False)]
    assert played(make(EnvConfig(ID), training=True), 9) == [*whole, (0, 2, False)]


def test_a_seed_or_an_unasked_reset_begins_a_new_game() -> None:
    env = EndWithLife(Console())
    for again in ({"seed": 1}, {}):
        env.reset()
        game = env.unwrapped.games  # type: ignore[attr-defined]
        for _ in range(3 if again else 2):  # a life is lost, or none
            env.step(0)
        np.testing.assert_array_equal(env.reset(**again)[0], [0, game + 1])


def test_a_time_limit_is_one_of_the_game() -> None:
    env = make(EnvConfig(ID, life_loss="end", time_limit=6), training=True)
    env.reset(seed=0)
    ends = []
    for _ in range(6):
        _, _, terminated, truncated, _ = env.step(0)
        ends.append((terminated, truncated))
        if terminated:
            env.reset()
    assert ends == [(False, False)] * 2 + [(True, False), (False, False), (True, False), (False, True)]
    np.testing.assert_array_equal(env.reset()[0], [0, 2])


def test_rows_and_frames_of_lives() -> None:
    envs = make_vector(EnvConfig(ID, life_loss="end"), 1, training=True)
    rows: list[Any] = []
    specs, control = observation_specs(envs.single_observation_space), action_spec(envs.single_action_space)
    recorded = RecordTrajectories(envs, lambda rows_, _: rows.append(rows_))
    recorded.reset(seed=0)
    for _ in range(9):
        recorded.step(np.zeros(1, np.int64))
    assert set(specs) == {"observation"} and control.width == 2
    frames = [float(row.obs["observation"][0, 0]) for row in rows]
    assert frames == [0, 1, 2, 3, 3, 4, 5, 5, 6, 7, 8, 9, 0]
    assert [frames[i] for i, row in enumerate(rows) if row.is_terminal[0]] == [3, 5, 9]
    assert [frames[i] for i, row in enumerate(rows) if row.is_first[0]] == [0, 3, 5, 0]
    assert sum(float(row.reward[0]) for row in rows) == 9 and recorded.frames == 36
    assert [episode.length for episode in recorded.pop_episodes()] == [3, 2, 4]


def test_a_run_learns_from_lives_and_is_evaluated_on_games(tmp_path: Any) -> None:
    small = {
        "env": {"id": ID, "life_loss": "end"},
        "model": {"hidden": 8, "latent": {"size": 2}, "dynamics": {"rssm": {"deter": 8, "hidden": 8}}},
        "behaviour": {"actor_critic": {"hidden": 8, "horizon": 2, "starts": 4}},
        "replay": {"batch_size": 2, "window": 4},
        "training": {"steps": 27, "prefill": 20, "pretrain": 1, "replay_ratio": 1},
        "logger": {"wandb": "disabled"},
    }
    run = Run.create(tmp_path / "run", load_config(small))
    trainer = Trainer(run)

    class Quiet:
        def __getattr__(self, name: str) -> Any:
            return lambda *args, **values: None

    loop = Loop(trainer, evaluates=False)
    loop.record.logger = loop.record.progress = Quiet()  # type: ignore[assignment]
    loop.run(27)
    assert [length for _, length in loop.record.recent] == [3, 2, 4] * 3 and trainer.envs.frames == 4 * 27
    assert evaluate(run.agent, run.config.env, 2, 3).returns == [9, 9]
    final = run.evaluate(2)
    assert final.returns == [9, 9] and final.promise is None  # its model knows of no game beyond a life


def test_what_has_no_lives_is_refused() -> None:
    with pytest.raises(ValueError, match=r"env\.life_loss: .*only Atari games have lives.*CartPole"):
        make(EnvConfig("CartPole-v1", life_loss="end"))
    with pytest.raises(ValueError, match=r"env\.life_loss must be one of ignore, end, got reset"):
        EnvConfig(life_loss="reset")  # type: ignore[arg-type]
