"""The whole in the shape of a Stable-Baselines3 algorithm, under its own evaluation and callbacks."""

import copy
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast
from zipfile import ZipFile

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from worldmodel.envs.wrappers.episodes import episode_seed
from worldmodel.training import Run, WorldModelAgent
from worldmodel.training.config.config import ConfigError
from worldmodel.training.run.folder import short

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


def test_an_agent_says_what_it_is() -> None:
    assert repr(WorldModelAgent(TINY)) == "<WorldModelAgent Pendulum-v1 after 0 environment steps>"


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
            *(
                f"checkpoint/00001/{name}"
                for name in ("model.safetensors", "behaviour.safetensors", "training.safetensors", "manifest.json")
            ),
        }
    again = WorldModelAgent.load("deep/agent.zip")
    observation = np.array([0.5, 0.5, 0.1], np.float32)
    one, two = (each.predict(observation, deterministic=True)[0] for each in (agent, again))
    np.testing.assert_array_equal(one, two)
    assert again.num_timesteps == 30 and len(again.replay_buffer) == 0
    again.load_replay_buffer("buffer")
    assert len(again.replay_buffer) == len(agent.replay_buffer)
    assert again.trainer is None
    again.learn(25, reset_num_timesteps=False)
    assert again.num_timesteps == again.run.env_steps == 55
    assert [row["global_step"] for row in rows(again)][-1] == 55 and min(row["global_step"] for row in rows(again)) > 30
    assert again.run.folder == Path("runs/Pendulum-v1") and (again.run.folder / "replay/replay.npz").is_file()


def test_a_save_that_fails_leaves_what_was_saved_before(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = WorldModelAgent(TINY, seed=3, run="run").learn(30)
    agent.save("agent")
    before = Path("agent.zip").read_bytes()

    def full(archive: ZipFile, *given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ZipFile, "write", full)
    with pytest.raises(OSError, match="No space left"):
        agent.save("agent")
    assert Path("agent.zip").read_bytes() == before and [path.name for path in Path().glob("agent*")] == ["agent.zip"]


def test_an_algorithm_in_the_dream_is_saved_with_its_optimizers() -> None:
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
    with pytest.raises(ValueError, match=r"nowhere is not a saved agent"):
        WorldModelAgent.load("nowhere")
    Path("text.zip").write_text("no archive")
    with pytest.raises(ValueError, match=r"text.zip is not a saved agent"):
        WorldModelAgent.load("text.zip")
    agent.save("agent")
    with pytest.raises(ValueError, match="these weights do not fit this"):
        WorldModelAgent.load("agent", env="MountainCarContinuous-v0")


def test_two_agents_never_share_a_folder_and_nothing_is_written_before_they_learn() -> None:
    one, two = WorldModelAgent(TINY, seed=1), WorldModelAgent(TINY, seed=2)
    assert not Path("runs").exists()
    one.learn(25)
    two.learn(25)
    assert (one.run.folder, two.run.folder) == (Path("runs/Pendulum-v1"), Path("runs/Pendulum-v1-2"))
    assert (short("ALE/Pong-v5"), short("pointmass:PointMass-v0")) == ("Pong-v5", "pointmass-PointMass-v0")
    assert "seed: 2" in (two.run.folder / "config.yaml").read_text()
    one.save("agent")
    loaded = [WorldModelAgent.load("agent") for _ in range(2)]
    for each in loaded:
        each.learn(5)
    assert len({each.run.folder for each in loaded}) == 2
    three = WorldModelAgent(TINY, run="taken")
    WorldModelAgent(TINY, run="taken").learn(5)
    with pytest.raises(ValueError, match="taken already holds a run"):
        three.learn(5)


def test_its_own_environments_may_be_used_for_an_evaluation_between() -> None:
    """What was done in between is no part of the recording: new episodes begin."""
    agent = WorldModelAgent(TINY, run="run").learn(25)
    rows_before = len(agent.replay_buffer)
    evaluate_policy(agent, agent.get_env(), 1, warn=False)
    assert len(agent.replay_buffer) == rows_before
    agent.learn(3, reset_num_timesteps=False)
    batch = agent.replay_buffer.stream(0)
    assert bool(batch.is_first[0, rows_before]) and len(agent.replay_buffer) == rows_before + 4
    agent.close()


def test_schedules_run_over_the_steps_of_a_call() -> None:
    sb3 = {"algorithm": "PPO", "envs": 2, "every": 1, "steps": 8}
    sb3["settings"] = {"n_steps": 4, "batch_size": 8, "learning_rate": "lin_0.01"}
    agent = WorldModelAgent({**TINY, "behaviour": {"name": "sb3", "sb3": sb3}}, run="run")

    def rates() -> list[float]:
        return [row["train/learning_rate"] for row in rows(agent) if "train/learning_rate" in row]

    agent.learn(100, log_interval=10)
    first = rates()
    assert first[0] > 0.008 and first[-1] < 0.002 and first == sorted(first, reverse=True)
    agent.learn(50, log_interval=10)
    assert rates()[len(first)] > 0.007 and rates()[-1] < 0.002


def test_a_rate_that_falls_does_so_in_every_call_unless_it_continues_the_one_before() -> None:
    """From the end of the prefill on; whether the agent was saved in between is of no consequence."""
    prefill = TINY["training"]["prefill"]
    agent = WorldModelAgent({**TINY, "learner": {"lr": 0.01, "final_lr_ratio": 0}}, run="run")

    def rates(steps: int, **options: bool) -> list[float]:
        agent.learn(steps, log_interval=10, **options)
        return list(
            {row["global_step"]: row["world_model/lr"] for row in rows(agent) if "world_model/lr" in row}.values()
        )[-4:]

    def line(begun: int, end: int, steps: list[int]) -> list[float]:
        return pytest.approx([0.01 * (end - step) / (end - begun) for step in steps])  # type: ignore[return-value]

    assert rates(60) == line(prefill, 60, [30, 40, 50, 60])
    assert rates(60) == line(60, 120, [90, 100, 110, 120])
    assert rates(60, reset_num_timesteps=False) == line(60, 180, [150, 160, 170, 180])
    agent.save("saved.zip")
    agent = WorldModelAgent.load("saved.zip")
    assert rates(60) == line(prefill, 60, [30, 40, 50, 60])


def test_one_axis_of_steps_and_the_episodes_that_callbacks_read() -> None:
    class Listener(Watcher):
        def _on_step(self) -> bool:
            self.heard += [info["episode"] for info in self.locals["infos"] if "episode" in info]
            return super()._on_step()

    agent, listener = WorldModelAgent(TINY, run="run"), Listener()
    agent.learn(25)
    agent.learn(40, callback=[listener, EvalCallback(world(), eval_freq=15, n_eval_episodes=1, verbose=0)])
    steps = [row["global_step"] for row in rows(agent)]
    assert steps == sorted(steps) and agent.n_envs == 1 and agent.action_space.shape == (1,)
    episodes = [each for each in listener.heard if isinstance(each, dict)]
    assert len(episodes) == 2 and all(each["l"] == 20 and each["r"] < 0 for each in episodes)


class Telling(gym.Env[Any, Any]):
    """Counts its steps; ends after 6, or is cut off after 4 where its seed is odd, and tells more than anybody asks."""

    observation_space = gym.spaces.Box(0, 10, (1,), np.float32)
    action_space = gym.spaces.Discrete(2, start=1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.time, self.odd = 0, bool((seed or 0) % 2)
        return np.zeros(1, np.float32), {"begun": True}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        over, cut = self.time == 6, self.odd and self.time == 4
        info = {"time": self.time, "is_success": over, "what": f"step {self.time}"}
        return np.full(1, self.time, np.float32), float(action), over, cut, info


gym.register("test-algorithm/Telling-v0", entry_point=Telling)
TELLING = {"env": {"id": "test-algorithm/Telling-v0", "num_envs": 2, "time_limit": None}}


class Copying(BaseCallback):
    """Keeps what it hears of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        keys = ("actions", "rewards", "dones", "new_obs", "infos")
        self.heard.append({key: copy.deepcopy(self.locals[key]) for key in keys})
        return True


def test_callbacks_hear_of_each_step_what_an_algorithm_of_theirs_tells_them() -> None:
    """The same actions in Stable-Baselines3's own vector of monitored environments give the same locals."""
    agent, listener = WorldModelAgent({**TINY, **TELLING}, run="run"), Copying()
    agent.learn(60, callback=listener)
    assert len(listener.heard) == 30
    theirs = DummyVecEnv([lambda: Monitor(Telling()) for _ in range(2)])
    seeds = [[episode_seed(env, episode) for episode in range(9)] for env in range(2)]
    theirs.reset()
    number = [0, 0]
    for env in range(2):
        cast(Any, theirs.envs[env]).unwrapped.odd = bool(seeds[env][0] % 2)
    successes = 0
    for heard in listener.heard:
        observation, rewards, dones, infos = theirs.step(heard["actions"])
        np.testing.assert_array_equal(heard["new_obs"], observation)
        np.testing.assert_array_equal(heard["rewards"], rewards)
        np.testing.assert_array_equal(heard["dones"], dones)
        for env, (mine, other) in enumerate(zip(heard["infos"], infos, strict=True)):
            assert mine.keys() == other.keys()
            for key in ("time", "is_success", "what", "TimeLimit.truncated"):
                assert mine[key] == other[key]
            if dones[env]:
                np.testing.assert_array_equal(mine["terminal_observation"], other["terminal_observation"])
                assert (mine["episode"]["r"], mine["episode"]["l"]) == (other["episode"]["r"], other["episode"]["l"])
                assert mine["episode"]["t"] > 0
                successes += mine["is_success"]
                number[env] += 1
                cast(Any, theirs.envs[env]).unwrapped.odd = bool(seeds[env][number[env]] % 2)
    told = [bool(each) for each in agent.ep_success_buffer]
    assert sum(number) == len(agent.ep_info_buffer) == len(told) and sum(told) == successes
    assert 0 < successes < sum(number)


def test_callbacks_that_stop_do_so_where_they_would_stop_their_own() -> None:
    """By episodes, by a reward, by no improvement; and one that is called every so many steps."""
    count = Copying()
    agent = WorldModelAgent({**TINY, **TELLING}, run="episodes")
    agent.learn(60, callback=[count, StopTrainingOnMaxEpisodes(max_episodes=2)])
    assert sum(int(heard["dones"].sum()) for heard in count.heard) >= 4  # two for each environment
    assert sum(int(heard["dones"].sum()) for heard in count.heard[:-1]) < 4

    agent, called = WorldModelAgent({**TINY, **TELLING}, run="reward"), Copying()
    reached = EvalCallback(
        Monitor(Telling()),
        eval_freq=5,
        n_eval_episodes=2,
        callback_on_new_best=StopTrainingOnRewardThreshold(5.0),
        verbose=0,
    )
    agent.learn(60, callback=[reached, EveryNTimesteps(4, called)])
    assert agent.num_timesteps == 10 and reached.best_mean_reward >= 6  # each action brings 1 at least
    assert len(called.heard) == 2
    assert [row["eval/success_rate"] for row in rows(agent) if "eval/success_rate" in row] == [1.0]

    agent = WorldModelAgent({**TINY, **TELLING}, run="improvement")
    never = StopTrainingOnNoModelImprovement(max_no_improvement_evals=0, min_evals=1)
    agent.learn(60, callback=EvalCallback(Monitor(Telling()), eval_freq=5, callback_after_eval=never, verbose=0))
    assert agent.num_timesteps <= 30


def test_a_callback_that_plays_in_the_environments_of_training_spoils_no_row() -> None:
    class Plays(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls % 7 == 0:
                evaluate_policy(self.model, self.training_env, 2, warn=False)
            return True

    agent = WorldModelAgent({**TINY, **TELLING}, run="run")
    agent.learn(60, callback=Plays())
    for env in range(2):
        rows = agent.replay_buffer.stream(env)
        time, first = rows.obs["observation"][0, :, 0], rows.is_first[0]
        assert bool((time[1:] == torch.where(first[1:], 0, time[:-1] + 1)).all())
        assert len(time) > 30


def test_the_callback_of_weights_and_biases_works(monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb
    from wandb.integration.sb3 import WandbCallback

    monkeypatch.setenv("WANDB_SILENT", "true")
    with wandb.init(mode="offline", project="test"):
        agent = WorldModelAgent(TINY, run="run")
        agent.learn(25, callback=WandbCallback(gradient_save_freq=10, model_save_path="models", model_save_freq=10))
    assert Path("models/model.zip").is_file()
    assert WorldModelAgent.load("models/model").num_timesteps == 25


def test_a_dream_goes_on_as_it_would_have_with_its_recordings(tmp_path: Path) -> None:
    """With a replay that is saved and read, a round after loading is bit for bit the round without."""
    sb3 = {"algorithm": "SAC", "envs": 2, "every": 1, "steps": 8, "settings": {"batch_size": 4, "learning_starts": 4}}
    agent = WorldModelAgent({**TINY, "behaviour": {"name": "sb3", "sb3": sb3}}, run="run").learn(30)
    agent.save("agent")
    agent.save_replay_buffer("buffer")
    again = WorldModelAgent.load("agent")
    again.load_replay_buffer("buffer")
    for each in (agent, again):
        each.policy.practise()  # type: ignore[operator]
    states = [each.policy.state_dict() for each in (agent, again)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_what_cannot_be_loaded_leaves_no_trace_and_names_the_users_file(tmp_path: Path) -> None:
    from stable_baselines3 import PPO

    with pytest.raises(ValueError, match="made/by/load/agent is not a saved agent"):
        WorldModelAgent.load("made/by/load/agent")
    assert not Path("made").exists()
    PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8).save("theirs")
    with pytest.raises(ValueError, match=r"theirs is not a saved agent \(it contains no config.yaml\)"):
        WorldModelAgent.load("theirs")
    with pytest.raises(ValueError, match="is not a saved agent"):
        WorldModelAgent.load(".")
    with pytest.raises(ValueError, match=r"env must be the id of an environment.* not a Monitor"):
        WorldModelAgent(TINY, env=world())  # type: ignore[arg-type]


def test_what_is_loaded_learns_on_as_what_was_saved() -> None:
    """Weights and optimizers: the next update of both is the same, on the same rows."""
    agent = WorldModelAgent(TINY, seed=3, run="run").learn(30)
    agent.save("agent")
    agent.save_replay_buffer("buffer")
    again = WorldModelAgent.load("agent")
    again.load_replay_buffer("buffer")
    results = []
    for each in (agent, again):
        trainer = each._started()
        each.run.replay.sampler.rng = np.random.default_rng(1)
        each.run.replay.sampler.served[:] = 0
        torch.manual_seed(1)
        trainer.update()
        results.append({**each.run.model.state_dict(), **{f"b/{k}": v for k, v in each.policy.state_dict().items()}})
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


class Ends(BaseCallback):
    """By an error."""

    def _on_step(self) -> bool:
        raise RuntimeError("enough")


@pytest.mark.parametrize("callback", [None, Ends()], ids=["done", "failed"])
def test_after_learning_nothing_is_written_any_more(callback: BaseCallback | None) -> None:
    """Into a file, say, that has been given the number of the closed one."""
    agent = WorldModelAgent(TINY, run="run")
    with nullcontext() if callback is None else pytest.raises(RuntimeError, match="enough"):
        agent.learn(25, callback=callback)
    there = rows(agent)
    assert agent.loop is not None
    with open("other.txt", "w+") as other:
        agent.dump_logs()
        agent.logger.record("mine", 1)
        agent.logger.dump(5)
        with pytest.raises(ValueError, match=r"metrics.jsonl is closed"):
            agent.loop.log()
        assert other.read() == "" and rows(agent) == there


def test_one_that_is_closed_learns_no_more() -> None:
    agent = WorldModelAgent(TINY, run="run").learn(25)
    agent.close()
    with pytest.raises(ValueError, match="The agent is closed"):
        agent.learn(5)
    assert agent.predict(np.zeros(3, np.float32))[0].shape == (1,)


def test_what_is_loaded_into_a_replay_does_not_run_into_the_episode_of_the_moment() -> None:
    one = WorldModelAgent(TINY, run="one").learn(25)
    one.save_replay_buffer("buffer")
    two = WorldModelAgent(TINY, run="two", seed=5)
    assert two.observation_space.shape == (3,)  # its environments have begun an episode
    for _ in range(2):
        two.load_replay_buffer("buffer")
        two.learn(3, reset_num_timesteps=False)
        first = two.replay_buffer.stream(0).is_first[0]
        assert len(first) == len(one.replay_buffer) + 4 and bool(first[len(one.replay_buffer)])


def test_schedules_of_the_dream_end_with_the_steps_that_were_given() -> None:
    """Of which the first only fill the replay."""
    sb3 = {"algorithm": "PPO", "envs": 4, "horizon": 3, "every": 2, "steps": 8}
    sb3["settings"] = {"learning_rate": "lin_0.01", "batch_size": 4}
    agent = WorldModelAgent({**TINY, "behaviour": {"name": "sb3", "sb3": sb3}}, run="run")
    agent.learn(60)
    algorithm = agent.run.behaviour.algorithm
    assert algorithm.num_timesteps == algorithm.lifetime > 0
    agent.learn(20)
    assert algorithm.num_timesteps - algorithm.born == algorithm.lifetime


@pytest.mark.parametrize("progress_bar", [False, True])
def test_what_goes_wrong_is_told_with_and_without_a_bar(
    progress_bar: bool, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(run: Run, *given: Any) -> None:
        raise OSError(28, "No space left on device")

    agent = WorldModelAgent({**TINY, "evaluation": {"every": 30}})
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", full)
        patch.setattr("worldmodel.training.start.PATIENCE", 0.0)
        with pytest.raises(OSError, match="not saved"):
            agent.learn(40, progress_bar=progress_bar)
    assert "30 steps: not saved" in capsys.readouterr().err
    agent.learn(1, progress_bar=progress_bar)
    assert ("run saved in" in capsys.readouterr().err) is progress_bar


def test_what_was_learned_is_kept_while_it_learns() -> None:
    """Whoever pulls the plug loses no more than the steps since the last checkpoint."""
    agent = WorldModelAgent({**TINY, "evaluation": {"every": 10}}, run="run")

    def unplugged(_: Any, __: Any) -> bool:
        if agent.num_timesteps < 35:
            return True
        found = Run.load("run")
        assert found.env_steps == 30 and len(found.replay) >= 30
        return False

    agent.learn(60, callback=unplugged)
    assert agent.num_timesteps == 35


def test_a_loaded_agent_remembers_that_it_has_explored() -> None:
    behaviour = {**TINY["behaviour"], "name": "plan2explore", "exploration": {"steps": 25}}
    agent = WorldModelAgent({**TINY, "behaviour": behaviour}, run="run").learn(30)
    agent.save("agent")
    found = WorldModelAgent.load("agent")
    for each in (agent.policy, found.policy, Run.load("run").behaviour):
        assert not each.exploring
    found.learn(10)
    assert not found.policy.exploring
