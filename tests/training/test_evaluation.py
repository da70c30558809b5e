"""Evaluations in environments that not everything can be asked of: of few seeds, alive once, or not to be played in."""

import json
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from worldmodel.envs import EnvConfig, make_vector
from worldmodel.envs.wrappers.episodes import EVALUATION_SEEDS, evaluation_seeds
from worldmodel.envs.wrappers.sharing import disturbed
from worldmodel.training import Run, train
from worldmodel.training.config.config import load_config
from worldmodel.training.config.schema import merge
from worldmodel.training.report.imagine import lived
from worldmodel.training.run.run import FINAL_STREAM
from worldmodel.training.start import resume

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


class Alone(Corridor):
    """Lives once at a time, as what holds a licence, a port or a robot does; and refuses to be stepped when closed."""

    alive = most = 0

    def __init__(self) -> None:
        super().__init__()
        if Alone.alive:
            raise RuntimeError("the licence is taken")
        Alone.alive, self.closed = 1, False

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert not self.closed
        return super().step(action)

    def close(self) -> None:
        Alone.alive, self.closed = Alone.alive - (not self.closed), True


class Library(Corridor):
    """A simulator of which a process has one: whichever environment resets it, resets all."""

    state: ClassVar[dict[str, int]] = {}

    @property
    def time(self) -> int:
        return Library.state["time"]

    @time.setter
    def time(self, value: int) -> None:
        Library.state["time"] = value


class Counted(Corridor):
    """Says how many of it have been alive at once."""

    alive = most = 0

    def __init__(self) -> None:
        super().__init__()
        Counted.alive += 1
        Counted.most = max(Counted.most, Counted.alive)

    def close(self) -> None:
        Counted.alive -= 1


gym.register("test-evaluation/Alone-v0", entry_point=Alone)
gym.register("test-evaluation/Library-v0", entry_point=Library)
gym.register("test-evaluation/Counted-v0", entry_point=Counted)
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
    final = evaluation_seeds(4, FINAL_STREAM, evaluation)
    assert set(final) <= set(Signed.given) and made.evaluate().returns == [5.0] * 4
    assert len(lived(made, evaluation_seeds(2, 4, evaluation), 3)) == 2
    low = evaluation[0]
    trained = [seed for seed in Signed.given if seed < low]
    assert trained[:2] == [low - 2, low - 1] and len(trained) >= 10
    assert all(low <= seed < bound for seed in set(Signed.given) - set(trained))


def test_a_seed_of_training_is_none_of_an_evaluation(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"from 0 to {EVALUATION_SEEDS[0] - 1}"):
        run(tmp_path / "run", "Corridor", seed=EVALUATION_SEEDS[0])


# ------------------------------------------------------------------------------------- how many, and which


def metrics(made: Run, name: str) -> list[float]:
    lines = (json.loads(line) for line in (made.folder / "metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


def check_rows(made: Run) -> None:
    """Each row follows from the one before: it is a step later, or of a reset."""
    rows = made.replay.stream(0)
    time, first = rows.obs["observation"][0, :, 0], rows.is_first[0]
    assert bool((time[1:] == torch.where(first[1:], 0, time[:-1] + 1)).all()) and bool(first[0])
    ended = rows.is_last[0]
    assert torch.equal(first[1:], ended[:-1])
    assert torch.equal(rows.is_terminal[0], time == 5)


def test_an_environment_that_can_live_once_is_trained_evaluated_and_resumed(tmp_path: Path) -> None:
    """In the environment of training, whose running episode is truncated then; nothing else of it is recorded."""
    changes = {"evaluation": {"reuse_envs": True, "every": 13}, "env": {"restarts": 0}}
    made = run(tmp_path / "run", "Alone", **changes)
    assert Alone.alive == 0 and made.env_steps == 40
    assert metrics(made, "eval/mean_reward") == [5.0] * 2 and metrics(made, "final/mean_reward") == [5.0]
    check_rows(made)
    rows = made.replay.stream(0)
    truncated = int((rows.is_last & ~rows.is_terminal).sum())
    assert truncated == 3  # at 26, 39 and 40 steps
    again = resume(made.folder, 60)
    check_rows(again)
    assert Run.load(made.folder).evaluate(3).returns == [5.0] * 3 and Alone.alive == 0


def test_reused_environments_are_as_good_as_new_ones(tmp_path: Path) -> None:
    """The seeds are the same, and so are the episodes of an agent; several play side by side."""
    own = run(tmp_path / "own", "Corridor", env={"num_envs": 3})
    reused = run(tmp_path / "reused", "Corridor", env={"num_envs": 3}, evaluation={"reuse_envs": True})
    assert metrics(own, "final/mean_reward") == metrics(reused, "final/mean_reward") == [5.0]
    for env in range(3):
        rows = reused.replay.stream(env)
        assert rows.is_last.sum() > rows.is_terminal.sum()


@pytest.mark.parametrize(("num_envs", "most"), [(1, 2), (2, 3), (32, 5)])
def test_no_more_environments_are_alive_than_are_asked_for(num_envs: int, most: int, tmp_path: Path) -> None:
    """Those that play, beside that of training; the same episodes either way."""
    Counted.alive = Counted.most = 0
    made = run(tmp_path / "run", "Counted", evaluation={"num_envs": num_envs})
    assert Counted.most == most and Counted.alive == 0
    assert metrics(made, "final/mean_reward") == [5.0] and metrics(made, "final/mean_ep_length") == [5.0]


def test_a_run_without_evaluations_saves_checkpoints_and_ends(tmp_path: Path) -> None:
    Counted.alive = Counted.most = 0
    made = run(tmp_path / "run", "Counted", evaluation={"episodes": 0, "final_episodes": 0})
    assert Counted.most == 1 and not metrics(made, "eval/mean_reward") + metrics(made, "final/mean_reward")
    assert len(list((made.folder / "checkpoint").iterdir())) >= 2
    with pytest.raises(ValueError, match=r"final_episodes is 0\. Give a number of episodes"):
        made.evaluate()
    assert made.evaluate(2).returns == [5.0, 5.0]
    assert resume(made.folder, 60).env_steps == 60


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"evaluation": {"episodes": -1}}, "at least 0"),
        ({"evaluation": {"num_envs": 0}}, "num_envs must be at least 1"),
        (
            {"evaluation": {"final_episodes": 0, "milestones": [20]}},
            "final_episodes is 0. Raise it, or remove milestones",
        ),
        ({"evaluation": {"reuse_envs": True, "videos": True}}, "Switch one of them off"),
        ({"evaluation": {"reuse_envs": True}, "env": {"life_loss": "end"}}, "evaluation.reuse_envs would end"),
    ],
)
def test_settings_of_evaluations_that_contradict_each_other(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        load_config(changes)


# ------------------------------------------------------------------------------------------ one state for all


def test_a_simulator_with_one_state_for_all_is_noticed_and_spoils_no_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Evaluations step the world that training stands in: what would come next did not follow from the row before."""
    made = run(tmp_path / "run", "Library", evaluation={"every": 13})
    told = capsys.readouterr()
    said = told.out + told.err
    assert said.count("warning: the environments disturb each other") == 1 and "env.timeout" in said
    assert "over 3 episodes; the environments disturb each other" in said
    check_rows(made)


@pytest.mark.parametrize(("name", "found"), [("Corridor", False), ("Library", True)])
def test_environments_that_disturb_each_other(name: str, found: bool) -> None:
    made = make_vector(EnvConfig(f"test-evaluation/{name}-v0"), 2)
    assert disturbed(made.envs[0], made.envs[1], (5, 6)) is found


def test_of_what_does_not_repeat_itself_nothing_is_known(failing: Any) -> None:
    """Nor of an environment that fails meanwhile: no run stops at that."""
    chance = gym.wrappers.TransformReward(Corridor(), lambda reward: float(np.random.default_rng().random()))
    assert not disturbed(chance, Corridor(), (5, 6))
    fails = make_vector(EnvConfig("failing:test-failing/Failing-v0", kwargs={"how": "exception"}, restarts=0), 2)
    assert not disturbed(fails.envs[0], fails.envs[1], (2, 4))
