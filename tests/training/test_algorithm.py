"""The whole in the shape of a Stable-Baselines3 algorithm, under its own evaluation and callbacks."""

import json
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from training import WorldModelAgent
from training.config import ConfigError

TINY: dict[str, Any] = {
    "env": {"id": "Pendulum-v1", "time_limit": 20},
    "model": {"hidden": 8, "latent": {"size": 4}, "dynamics": {"rssm": {"deter": 8, "hidden": 8}}},
    "behaviour": {"actor_critic": {"hidden": 8, "starts": 4, "horizon": 2}},
    "replay": {"batch_size": 2, "window": 4},
    "training": {"steps": 40, "prefill": 20, "pretrain": 1, "replay_ratio": 4, "log_every": 10},
    "logger": {"wandb": "disabled"},
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def world() -> Monitor[Any, Any]:
    return Monitor(gym.make("Pendulum-v1", max_episode_steps=20))


def rows(agent: WorldModelAgent) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (agent.run.folder / "metrics.jsonl").read_text().splitlines()]


class Watcher(BaseCallback):
    """Ends the training after so many calls."""

    def __init__(self, last: int = 10**9) -> None:
        super().__init__()
        self.last, self.heard = last, []  # type: ignore[var-annotated]

    def _on_training_start(self) -> None:
        self.heard.append("start")
        assert self.training_env.num_envs == 1 and self.training_env.get_attr("spec")[0].id == "Pendulum-v1"

    def _on_step(self) -> bool:
        assert self.locals["dones"].shape == self.locals["rewards"].shape == (1,)
        self.logger.record("mine/steps", self.num_timesteps)
        self.logger.dump(self.num_timesteps)
        return self.n_calls < self.last

    def _on_training_end(self) -> None:
        self.heard.append("end")


def test_it_learns_under_stable_baselines3s_own_callbacks() -> None:
    agent = WorldModelAgent(TINY, seed=1, run="run")
    assert not Path("run").exists()
    callbacks = [
        EvalCallback(world(), eval_freq=15, n_eval_episodes=2, best_model_save_path="best", verbose=0),
        CheckpointCallback(20, "saved", save_replay_buffer=True),
    ]
    assert agent.learn(40, callback=callbacks) is agent
    assert agent.num_timesteps == 40 == agent.run.env_steps
    assert {file.name for file in Path("saved").iterdir()} == {
        "rl_model_20_steps.zip",
        "rl_model_40_steps.zip",
        "rl_model_replay_buffer_20_steps.pkl",
        "rl_model_replay_buffer_40_steps.pkl",
    }
    evaluated = [row for row in rows(agent) if "eval/mean_reward" in row]
    assert [row["global_step"] for row in evaluated] == [15, 30]  # the callback's; the config's do not come as well
    assert any("world_model/elbo" in row for row in rows(agent))
    best = WorldModelAgent.load("best/best_model")
    mean, _ = evaluate_policy(best, world(), 3)
    assert -400 < mean < 0


def test_a_callback_is_asked_after_every_step_and_may_end_it() -> None:
    agent, watcher = WorldModelAgent(TINY, run="run"), Watcher(last=27)
    agent.learn(40, callback=watcher)
    assert watcher.n_calls == agent.num_timesteps == 27 and watcher.heard == ["start", "end"]
    assert [row["mine/steps"] for row in rows(agent) if "mine/steps" in row] == list(range(1, 28))
    steps: list[int] = []
    agent.learn(13, callback=lambda local, _: steps.append(local["self"].num_timesteps) or True)
    assert steps == list(range(1, 14)) and agent.run.env_steps == 40
    agent.learn(5, reset_num_timesteps=False, log_interval=1)
    assert agent.num_timesteps == 18 and [row["global_step"] for row in rows(agent)][-5:] == list(range(41, 46))


def test_one_that_ends_in_the_prefill_has_learned_nothing() -> None:
    agent = WorldModelAgent(TINY, run="run")
    before = [parameter.clone() for parameter in agent.run.model.parameters()]
    agent.learn(40, callback=Watcher(last=7))
    assert agent.num_timesteps == 7 and len(agent.replay_buffer) == 8
    assert all(torch.equal(p, q) for p, q in zip(before, agent.run.model.parameters(), strict=True))


def test_it_is_saved_as_one_file_and_goes_on_learning_from_its_recordings() -> None:
    agent = WorldModelAgent(TINY, seed=3, run="run").learn(30)
    agent.save("deep/agent")
    agent.save_replay_buffer("buffer")
    with ZipFile("deep/agent.zip") as archive:
        assert set(archive.namelist()) == {
            "config.yaml",
            *(f"checkpoint/{name}" for name in ("model.safetensors", "behaviour.safetensors", "state.json")),
        }
    again = WorldModelAgent.load("deep/agent.zip")
    observation = np.array([0.5, 0.5, 0.1], np.float32)
    one, two = (each.predict(observation, deterministic=True)[0] for each in (agent, again))
    np.testing.assert_array_equal(one, two)
    assert again.num_timesteps == 30 and len(again.replay_buffer) == 0
    again.load_replay_buffer("buffer")
    assert len(again.replay_buffer) == len(agent.replay_buffer)
    again.learn(25, reset_num_timesteps=False)
    assert again.num_timesteps == again.run.env_steps == 55
    assert again.run.folder == Path("runs/Pendulum-v1") and (again.run.folder / "replay/replay.npz").is_file()


def test_an_algorithm_in_the_dream_is_saved_with_its_optimisers() -> None:
    sb3 = {"algorithm": "PPO", "envs": 2, "every": 1, "steps": 8, "settings": {"n_steps": 4, "batch_size": 8}}
    agent = WorldModelAgent({**TINY, "behaviour": {"name": "sb3", "sb3": sb3}}, run="run").learn(30)
    agent.save("agent")
    again = WorldModelAgent.load("agent")
    assert again.run.behaviour.rounds == agent.run.behaviour.rounds > 1
    one, two = (each.policy.algorithm.policy.optimizer.state_dict()["state"] for each in (agent, again))
    assert one and all(torch.equal(one[key]["exp_avg"], two[key]["exp_avg"]) for key in one)


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'learner\.rate'"):
        WorldModelAgent(TINY, overrides=["--learner.rate", "3"])
    with pytest.raises(ValueError, match="unknown environment 'Pendulum-v7'"):
        WorldModelAgent(TINY, env="Pendulum-v7")
    agent = WorldModelAgent(TINY, run="run")
    with pytest.raises(ValueError, match="total_timesteps and log_interval must be at least 1: 0"):
        agent.learn(0)
    with pytest.raises(ValueError, match=r"nowhere: no saved agent"):
        WorldModelAgent.load("nowhere")
    Path("text.zip").write_text("no archive")
    with pytest.raises(ValueError, match=r"text.zip: no saved agent"):
        WorldModelAgent.load("text.zip")
    agent.save("agent")
    with pytest.raises(ValueError, match="was saved from another"):
        WorldModelAgent.load("agent", env="MountainCarContinuous-v0")
