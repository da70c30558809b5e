"""Whole runs, tiny ones: what they leave, that they repeat, and that every combination of parts trains."""

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file

from worldmodel.agents import ActorCritic, Agent, Decision, RandomBehaviour
from worldmodel.envs import EnvConfig, action_spec, make, observation_specs
from worldmodel.envs.testing.exact import ExactCartPole, ExactModel, ExactPendulum
from worldmodel.envs.wrappers.episodes import EVALUATION_SEEDS, evaluation_seeds
from worldmodel.imagination import starts
from worldmodel.model import WorldModel
from worldmodel.training import Run, train
from worldmodel.training.config.config import load_config, too_short
from worldmodel.training.config.schema import merge
from worldmodel.training.evaluation.evaluation import Evaluation, _successes, evaluate
from worldmodel.training.evaluation.imagined_vs_real import promise
from worldmodel.training.loop.evaluations import PERIODIC, describe
from worldmodel.training.loop.loop import Loop
from worldmodel.training.loop.trainer import Trainer
from worldmodel.training.run.checkpoint import find
from worldmodel.training.run.run import FINAL_STREAM
from worldmodel.training.run.tree import load_tree, save_tree
from worldmodel.types import Batch

TINY: dict[str, Any] = {
    "seed": 0,
    "env": {"id": "Pendulum-v1", "time_limit": 20},
    "model": {
        "hidden": 16,
        "encoder_layers": 1,
        "head_layers": 1,
        "latent": {"size": 4, "groups": 3, "classes": 3},
        "dynamics": {"name": "rssm", "rssm": {"deter": 16, "hidden": 16}, "dkf": {"hidden": 16}},
    },
    "behaviour": {"actor_critic": {"hidden": 16, "actor_layers": 1, "critic_layers": 1, "starts": 8, "horizon": 3}},
    "replay": {"batch_size": 4, "window": 8, "capacity": 1000},
    "training": {"steps": 60, "prefill": 24, "pretrain": 2, "replay_ratio": 8, "log_every": 10, "threads": 1},
    "evaluation": {"every": 30, "episodes": 2, "final_episodes": 3},
    "logger": {"wandb": "disabled"},
}
NAMES = [
    "rollout/ep_rew_mean",
    "eval/mean_reward",
    "time/fps",
    "world_model/elbo",
    "world_model/kl",
    "world_model/log_likelihood/observation",
    "world_model/log_likelihood/reward",
    "world_model/log_likelihood/continue",
    "imagination/return",
    "final/mean_reward",
]
CLOCKS = ("seconds", "time/fps", "time/evaluation_seconds")  # what may differ between two equal runs


class Rooms(gym.Env[Any, Any]):
    """A dictionary observation and a discrete action that starts at 1; ends by termination after 7 steps."""

    observation_space = spaces.Dict({"at": spaces.Box(-9, 9, (2,), np.float32), "room": spaces.Discrete(3, start=5)})
    action_space = spaces.Discrete(2, start=1)

    def observe(self) -> Any:
        return {"at": np.array([self.time, -1], np.float32), "room": np.int64(5 + self.time % 3)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.time += 1
        return self.observe(), float(action), self.time == 7, False, {}


class Judged(Rooms):
    """Says of each episode whether it was a success: of those from even seeds. Meanwhile it says no."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.even = seed is not None and seed % 2 == 0
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        *rest, terminated, truncated, _ = super().step(action)
        return (*rest, terminated, truncated, {"is_success": terminated and self.even})  # type: ignore[return-value]


gym.register("test-train/Rooms-v0", entry_point=Rooms)
gym.register("test-train/Judged-v0", entry_point=Judged)


def run(folder: Path, **changes: Any) -> Run:
    return train(merge(TINY, changes), run=folder)


CHECKPOINT_FILES = (
    "manifest.json",
    "model.safetensors",
    "behaviour.safetensors",
    "training.safetensors",
    "replay.npz",
)


def latest(folder: Path) -> Path:
    return find(folder / "checkpoint")[0].folder


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCKS} for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = ("model", "behaviour")
    return {f"{f}.{k}": v for f in files for k, v in load_file(latest(folder) / f"{f}.safetensors").items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tmp_path_factory.mktemp("runs") / "pendulum")


# --------------------------------------------------------------------------------------------- what is left


def test_run_folder(trained: Run) -> None:
    """The newest two checkpoints; an older one only where it is the best."""
    files = {str(path.relative_to(trained.folder)) for path in trained.folder.rglob("*") if path.is_file()}
    assert {file for file in files if not file.startswith("checkpoint/00001/")} == {
        "config.yaml",
        "lock",
        "metrics.jsonl",
        "replay/replay.npz",
        *(f"checkpoint/{number:05d}/{name}" for number in (2, 3) for name in CHECKPOINT_FILES),
    }
    assert (latest(trained.folder) / "replay.npz").samefile(trained.folder / "replay/replay.npz")
    assert load_config(trained.folder / "config.yaml") == trained.config
    assert trained.env_steps == 60


def test_a_run_says_what_it_is(trained: Run) -> None:
    assert repr(trained) == f"<Run {trained.folder}: Pendulum-v1 after 60 environment steps>"


def test_metric_names(trained: Run) -> None:
    found = rows(trained.folder)
    seen = {name for line in (trained.folder / "metrics.jsonl").read_text().splitlines() for name in json.loads(line)}
    assert seen >= set(NAMES)
    assert {row["global_step"] for row in found if "world_model/elbo" in row} == {30, 40, 50, 60}
    assert [row["global_step"] for row in found if "eval/mean_reward" in row] == [30, 60]
    assert all(value is not None for row in found for value in row.values())
    for row in found:
        if "world_model/elbo" in row:
            fit = sum(v for name, v in row.items() if name.startswith("world_model/log_likelihood/"))
            assert row["world_model/elbo"] == pytest.approx(fit - row["world_model/kl"], rel=1e-4, abs=1e-4)


def test_recorded_returns_are_those_of_the_environment(trained: Run) -> None:
    """The mean in the log is that of the episodes in the replay: rewards arrive where they belong."""
    stream = trained.replay.stream(0)
    episode = stream.is_first[0].cumsum(0)
    ended = episode[stream.is_last[0]]
    returns = [stream.reward[0][episode == k].sum().item() for k in ended]
    logged = [row["rollout/ep_rew_mean"] for row in rows(trained.folder) if "rollout/ep_rew_mean" in row]
    assert len(returns) == 3 and logged[-1] == pytest.approx(np.mean(returns), rel=1e-4)
    assert not stream.is_terminal.any()  # Pendulum only ever runs out of time


def test_offline_wandb_lives_in_the_run_folder(tmp_path: Path) -> None:
    made = run(tmp_path / "run", logger={"wandb": "offline"}, training={"steps": 30})
    assert len(list(made.folder.glob("wandb/offline-run-*/*.wandb"))) == 1
    assert (made.folder / "metrics.jsonl").stat().st_size > 0


# ----------------------------------------------------------------------------------------------- repetition


def test_same_seed_same_run(trained: Run, tmp_path: Path) -> None:
    torch.rand(3)  # where the global random state stood before must not matter
    again = run(tmp_path / "again")
    assert equal(weights(trained.folder), weights(again.folder))
    assert rows(trained.folder) == rows(again.folder)
    with np.load(trained.folder / "replay/replay.npz") as a, np.load(again.folder / "replay/replay.npz") as b:
        assert all(np.array_equal(a[name], b[name]) for name in a.files)


def test_different_seed_different_run(trained: Run, tmp_path: Path) -> None:
    other = run(tmp_path / "other", seed=1)
    assert not equal(weights(trained.folder), weights(other.folder))
    assert not torch.equal(trained.replay.stream(0).obs["observation"], other.replay.stream(0).obs["observation"])


def test_watching_more_closely_changes_nothing(trained: Run, tmp_path: Path) -> None:
    often = run(tmp_path / "often", evaluation={"every": 7, "episodes": 3}, training={"log_every": 3})
    assert len([row for row in rows(often.folder) if "eval/mean_reward" in row]) > 4
    assert equal(weights(trained.folder), weights(often.folder))


def test_a_milestone_plays_the_final_episodes_and_changes_nothing_else(trained: Run, tmp_path: Path) -> None:
    made = run(tmp_path / "milestones", evaluation={"milestones": [25, 30]}, training={"keep": 5})
    found = [row for row in rows(made.folder) if "milestone/mean_reward" in row]
    assert [row["global_step"] for row in found] == [25, 30]
    then = Run.load(made.folder, checkpoint="1")
    assert then.env_steps == 30 and found[1]["milestone/mean_reward"] == then.evaluate().mean
    others = [row for row in rows(made.folder) if row not in found]
    assert others == rows(trained.folder)


def test_milestones_are_numbers_of_steps_that_a_run_takes() -> None:
    config = load_config({"evaluation": {"milestones": [200, 201, 5000, 5001]}})
    assert too_short(config) == [
        "warning: evaluation.milestones [200, 5001] are never played. They lie within training.prefill (200) or beyond "
        "training.steps (5000)."
    ]
    with pytest.raises(
        ValueError, match=r"milestones is \[100, 0\]\. It lists numbers of environment steps, 1 or more each"
    ):
        load_config({"evaluation": {"milestones": [100, 0]}})


# ---------------------------------------------------------------------------------------------- reading back


def test_loaded_run_is_the_same(trained: Run) -> None:
    loaded = Run.load(trained.folder)
    assert loaded.config == trained.config and loaded.env_steps == trained.env_steps
    ours, theirs = trained.replay.stream(0), loaded.replay.stream(0)
    assert torch.equal(ours.obs["observation"], theirs.obs["observation"])
    assert all(torch.equal(a, b) for a, b in zip(ours[1:], theirs[1:], strict=True))
    states: list[Any] = [None, None]
    for seed in range(4):
        obs = np.random.default_rng(seed).uniform(-1, 1, (5, 3)).astype(np.float32)
        answers = []
        for i, each in enumerate((trained, loaded)):
            action, states[i] = each.agent.predict(obs, states[i], deterministic=True)
            answers.append(action)
        np.testing.assert_array_equal(*answers)


def test_loaded_run_evaluates_as_at_the_end_of_training(trained: Run) -> None:
    (final,) = [row for row in rows(trained.folder) if "final/mean_reward" in row]
    result = Run.load(trained.folder).evaluate()
    assert len(result.returns) == 3 and result.lengths == [20] * 3
    assert result.mean == final["final/mean_reward"] and result.std == final["final/std_reward"]
    assert result == trained.evaluate()
    assert trained.evaluate(2).returns == pytest.approx(result.returns[:2], rel=1e-4)


def test_final_seeds_are_not_those_of_training(trained: Run) -> None:
    assert not set(evaluation_seeds(50, PERIODIC)) & set(evaluation_seeds(50, FINAL_STREAM))
    low, high = EVALUATION_SEEDS
    assert all(low <= seed < high <= 2**31 for seed in evaluation_seeds(50, FINAL_STREAM))
    assert evaluate(trained.agent, trained.config.env, 2, PERIODIC).mean != pytest.approx(trained.evaluate(2).mean)


# ------------------------------------------------------------------------------------------------- schedule


class Silent:
    """Stands in for logger and progress."""

    def log(self, metrics: Any, step: int) -> None: ...

    def note(self, text: str) -> None: ...

    def update(self, step: int, **fields: float) -> None: ...


@pytest.mark.parametrize(
    ("ratio", "num_envs", "expected"),
    [(8.0, 1, 2 + 9), (24.0, 1, 2 + 27), (1.0, 1, 2 + 1), (8.0, 4, 2 + 9)],
)
def test_updates_follow_the_replay_ratio(tmp_path: Path, ratio: float, num_envs: int, expected: int) -> None:
    """36 steps after the prefill, 4 x 8 replayed steps per update: pretrain + 36 ratio / 32 updates."""
    changes = {"training": {"replay_ratio": ratio}, "env": {"num_envs": num_envs}, "evaluation": {"every": 1000}}
    made = Run.create(tmp_path / "run", load_config(merge(TINY, changes)))
    trainer = Trainer(made)
    loop, silent = Loop(trainer), Silent()
    loop.record.logger = loop.record.progress = silent  # type: ignore[assignment]
    loop.run(60)
    assert trainer.updater.updates == expected
    assert made.env_steps == 60


def test_units_follow_the_records_each_time_they_double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[tuple[int, bool]] = []
    original = WorldModel.fit_normalizers

    def fit_normalizers(model: WorldModel, batch: Batch, keep: bool = False) -> None:
        original(model, batch, keep)
        fitted.append((batch.reward.shape[1], keep))

    monkeypatch.setattr(WorldModel, "fit_normalizers", fit_normalizers)
    made = run(tmp_path / "run", training={"steps": 60, "prefill": 12}, evaluation={"every": 1000})
    assert fitted == [(12 + 1, False), (24 + 2, True), (48 + 3, True)]  # steps, and resets every 20 of them
    rows = made.replay.obs["observation"][0, : 48 + 3]
    np.testing.assert_allclose(made.model.encoder.entrances[0].scale, rows.std(0), rtol=1e-4)


def test_a_run_shorter_than_its_prefill_still_ends_well_and_says_what_it_is(tmp_path: Path, capsys: Any) -> None:
    made = run(tmp_path / "run", training={"steps": 20, "prefill": 400})
    assert made.env_steps == 20
    assert "warning: training.prefill (400) uses up all of training.steps (20). Every" in capsys.readouterr().err
    assert any("world_model/elbo" in row for row in rows(made.folder))
    assert Run.load(made.folder).evaluate(1).lengths == [20]


def test_what_a_run_is_too_short_for_is_told() -> None:
    paid = {"steps": 300, "prefill": 200, "pretrain": 4, "replay_ratio": 32.0}  # 4 + 100 * 32 / 320 = 14 updates
    base = {"training": paid, "replay": {"batch_size": 20, "window": 16}}
    assert too_short(load_config(base)) == []
    for steps, told in ((200, 1), (201, 0), (None, 0)):
        behaviour: dict[str, Any] = {"name": "plan2explore", "exploration": {"steps": steps}}
        assert len(too_short(load_config({**base, "behaviour": behaviour}))) == told
        assert too_short(load_config({**base, "behaviour": {**behaviour, "name": "actor_critic"}})) == []
    warning = "warning: behaviour.sb3.every (15) exceeds the 14 updates of this run, so SAC never learns."
    for every, lines in ((14, []), (15, [warning])):
        found = too_short(load_config({**base, "behaviour": {"name": "sb3", "sb3": {"every": every}}}))
        assert found == lines


def test_every_update_reaches_the_log(tmp_path: Path) -> None:
    """Also those after the last multiple of log_every."""
    made = run(tmp_path / "run", training={"steps": 27, "log_every": 1000})
    assert any("world_model/elbo" in row for row in rows(made.folder))


def test_every_learning_rate_falls_as_the_run_goes_on(tmp_path: Path) -> None:
    """Of the model as logged, and of the actor-critic by its own config, each to its own share at the last step."""
    learner, actor_critic = {"lr": 0.01, "final_lr_ratio": 0.1}, {"learner": {"lr": 0.02, "final_lr_ratio": 0.5}}
    made = run(tmp_path / "run", learner=learner, behaviour={"actor_critic": actor_critic})
    rates = {row["global_step"]: row["world_model/lr"] for row in rows(made.folder) if "world_model/lr" in row}
    assert {steps: rates[steps] for steps in (30, 60)} == pytest.approx({30: 0.0085, 60: 0.001})  # of 36 steps
    assert isinstance(made.behaviour, ActorCritic)
    assert made.behaviour.learner.lr == pytest.approx(0.01)


def test_a_run_that_ends_with_its_prefill_learns_at_the_full_rate(tmp_path: Path) -> None:
    made = run(tmp_path / "run", learner={"lr": 0.01, "final_lr_ratio": 0}, training={"steps": 24})
    assert [row["world_model/lr"] for row in rows(made.folder) if "world_model/lr" in row] == [0.01]


class Watched(RandomBehaviour):
    """Random actions; keeps the recurrent memories it was shown."""

    def act(self, model: Any, state: Any, memory: Any, deterministic: bool = False) -> Decision:
        self.memories = [*getattr(self, "memories", []), state.deter.clone()]
        return super().act(model, state, memory, deterministic)


def test_memory_restarts_with_every_episode_that_is_collected(tmp_path: Path) -> None:
    """At a first observation the memory h_1 is that of the initial state alone; later it depends on what was seen."""
    env = {"id": "test-train/Rooms-v0", "time_limit": None, "num_envs": 2}
    trainer = Trainer(Run.create(tmp_path / "run", load_config(merge(TINY, {"env": env}))))
    watched = Watched(trainer.run.action_spec)
    for _ in range(20):
        trainer.collect(watched)
    fresh = [t for t, memory in enumerate(watched.memories) if torch.allclose(memory, watched.memories[0])]
    assert fresh == [0, 7, 14]


def test_imagination_starts_from_truncated_states_but_not_from_terminal_ones(tmp_path: Path) -> None:
    trainer = Trainer(Run.create(tmp_path / "run", load_config(TINY)))
    trainer.prefill(24)
    batch = trainer.run.replay.sample(4, 8)
    flags = torch.zeros(2, 4, 8, dtype=torch.bool)
    flags[0, :, 2] = flags[1, 0, 2] = flags[0, 1, 5] = flags[1, 1, 5] = True
    batch = batch._replace(is_last=flags[0], is_terminal=flags[1])
    states = trainer.run.model.observe(batch).states
    begin, alive = starts(states, batch, 32)
    assert (alive == 0).sum() == 2 and (alive == 1).sum() == 30
    dead = {tuple(row) for row in begin.latent[alive == 0].tolist()}
    assert dead == {tuple(states.latent[0, 2].tolist()), tuple(states.latent[1, 5].tolist())}


# --------------------------------------------------------------------------------------------- combinations

ENVS: dict[str, dict[str, Any]] = {
    "pendulum": {"id": "Pendulum-v1", "time_limit": 20},
    "cartpole": {"id": "CartPole-v1", "time_limit": 20},
    "dict": {"id": "test-train/Rooms-v0", "time_limit": None},
}
SHORT = {"training": {"steps": 30, "prefill": 24}, "evaluation": {"every": 1000, "final_episodes": 1}}


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize("family", ["gaussian", "onehot"])
@pytest.mark.parametrize("member", ["rssm", "dkf"])
def test_every_member_family_and_environment_trains(tmp_path: Path, member: str, family: str, env: str) -> None:
    model = {"dynamics": {"name": member}, "latent": {"family": family}}
    made = run(tmp_path / "run", env=ENVS[env], model=model, **SHORT)
    before = Run.create(tmp_path / "untrained", made.config)
    for trained, fresh in ((made.model, before.model), (made.behaviour, before.behaviour)):
        moved = [not torch.equal(a, b) for a, b in zip(trained.parameters(), fresh.parameters(), strict=True)]
        assert any(moved) and all(p.isfinite().all() for p in trained.parameters())
    metrics = next(row for row in rows(made.folder) if "world_model/elbo" in row)
    keys = ("at", "room") if env == "dict" else ("observation",)
    assert all(f"world_model/log_likelihood/{key}" in metrics for key in keys)
    assert all(value is not None for value in metrics.values())


@pytest.mark.parametrize("member", ["dvbf", "kvae", "storn", "vrnn", "srnn", "rvae"])
def test_every_member_that_can_act_trains(tmp_path: Path, member: str) -> None:
    """With the defaults of its section, on a dictionary of numbers and classes; and it can be loaded and used."""
    made = run(tmp_path / "run", env=ENVS["dict"], model={"dynamics": {"name": member}}, **SHORT)
    assert all(p.isfinite().all() for p in (*made.model.parameters(), *made.behaviour.parameters()))
    assert Run.load(made.folder).evaluate(1).lengths == [7]


@pytest.mark.parametrize(("member", "why"), [("dsae", "cannot filter"), ("vae", "cannot imagine")])
def test_members_that_cannot_act_are_refused(tmp_path: Path, member: str, why: str) -> None:
    with pytest.raises(ValueError, match=rf"{member} as configured {why}.*rssm"):
        run(tmp_path / "run", model={"dynamics": {"name": member}})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("env", "gradient"), [("pendulum", "score"), ("cartpole", "pathwise")])
def test_the_other_gradient_trains(tmp_path: Path, env: str, gradient: str) -> None:
    made = run(tmp_path / "run", env=ENVS[env], behaviour={"actor_critic": {"gradient": gradient}}, **SHORT)
    assert all(p.isfinite().all() for p in made.behaviour.parameters())


def test_several_environments(tmp_path: Path) -> None:
    made = run(tmp_path / "run", env={"num_envs": 3}, training={"steps": 61})
    assert made.env_steps == 63  # all three step together
    for env in range(3):
        stream = made.replay.stream(env)
        assert (~stream.is_first).sum() == 21 and stream.is_first[0, 0] and stream.is_last.sum() == 1
    starts = [made.replay.stream(env).obs["observation"][0, 0] for env in range(3)]
    assert not torch.equal(starts[0], starts[1]) and not torch.equal(starts[1], starts[2])


def test_action_repeat_counts_decisions_and_frames(tmp_path: Path) -> None:
    made = run(tmp_path / "run", env={"action_repeat": 3, "time_limit": 10})
    assert made.env_steps == 60
    frames = [row["time/frames"] for row in rows(made.folder) if "time/frames" in row]
    assert frames[-1] == 180
    assert made.evaluate(1).lengths == [10]


@pytest.mark.parametrize(("model", "env"), [(ExactPendulum(), "Pendulum-v1"), (ExactCartPole(), "CartPole-v1")])
def test_with_true_dynamics_the_imagined_return_is_the_real_one(model: ExactModel, env: str) -> None:
    """Of the same episodes, one that ends early among them, for a behaviour that never changes its mind."""
    config = EnvConfig(env, time_limit=50)
    spaces_of = make(config)
    spec = action_spec(spaces_of.action_space)

    class Stubborn(RandomBehaviour):
        def act(self, model: Any, state: Any, memory: Any, deterministic: bool = False) -> Decision:
            count = len(state.x)
            control = torch.ones(count, 1) * 0.3 if env == "Pendulum-v1" else torch.tensor([[0.0, 1.0]] * count)
            return Decision(control, memory, torch.ones(count, dtype=torch.bool))

    agent = Agent(model, Stubborn(spec), observation_specs(spaces_of.observation_space), spec)  # type: ignore[arg-type]
    result = evaluate(agent, config, 5, 1, imagine=True)
    np.testing.assert_allclose(result.imagined, result.returns, rtol=1e-3)
    assert result.gap is not None and result.gap < 1e-3 and "warning" not in promise(result)
    assert evaluate(agent, config, 5, 1).imagined is None


def test_successes_are_counted_where_an_environment_tells_of_them(tmp_path: Path) -> None:
    env = {"id": "test-train/Judged-v0", "time_limit": None}
    made = train(merge(TINY, {"env": env, "evaluation": {"final_episodes": 5}}), run=tmp_path / "run")
    even = [seed % 2 == 0 for seed in evaluation_seeds(5, FINAL_STREAM)]
    result = made.evaluate()
    assert list(result.successes) == even and result.success_rate == np.mean(even) and 0 < sum(even) < 5
    assert f"over 5 episodes, success rate {np.mean(even):.0%}" in describe(result)
    assert [row["final/success_rate"] for row in rows(made.folder) if "final/success_rate" in row] == [np.mean(even)]
    assert Run.load(run(tmp_path / "silent").folder).evaluate(1).success_rate is None


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ([True, False], [1, 0]),
        ([np.float32(0.0), np.float32(1.0)], [0, 1]),
        ([np.array([True]), np.array([False])], [1, 0]),
        ([None, True], [np.nan, 1]),
        (["no", "yes"], [np.nan, np.nan]),
        ([{"door": True}, {"door": False}], [np.nan, np.nan]),
        ([np.array([True, False]), np.array([True, True])], [np.nan, np.nan]),
    ],
)
def test_a_success_is_a_truth_value_or_nothing_is_said(said: list[Any], found: list[float]) -> None:
    """As Gymnasium puts together what environments say by that name, whatever they mean."""
    infos: dict[str, Any] = {}
    merged = gym.vector.SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2)._add_info
    for env, each in enumerate(said):
        infos = merged(infos, {"is_success": each}, env)
    np.testing.assert_array_equal(_successes(infos, 2), found)
    assert np.isnan(_successes({}, 2)).all()


def test_of_some_episodes_it_is_said_how_many_tell() -> None:
    assert "over 3 episodes, success rate 50% in the 2 that report it" in describe(
        Evaluation([1.0] * 3, [1] * 3, successes=[True, False])
    )


def test_rounds_of_a_run_from_before_they_were_checked_can_be_read(tmp_path: Path) -> None:
    """A new run is refused where they are no whole number of rollouts."""
    sb3 = {"envs": 8, "steps": 16, "every": 2, "horizon": 3, "settings": {"learning_starts": 4}}
    made = run(tmp_path / "run", behaviour={"name": "sb3", "sb3": sb3})
    text = (made.folder / "config.yaml").read_text()
    (made.folder / "config.yaml").write_text(text.replace("steps: 16", "steps: 20"))
    assert Run.load(made.folder).config.behaviour.sb3.steps == 20
    with pytest.raises(
        ValueError, match=r"steps is 20, which is not a multiple of the 8 steps of a rollout \(train_freq 1 x"
    ):
        run(tmp_path / "other", behaviour={"name": "sb3", "sb3": {**sb3, "steps": 20}})


@pytest.mark.parametrize("algorithm", ["SAC", "PPO", "TD3"])
def test_an_algorithm_of_sb3_trains_in_a_run_and_repeats(tmp_path: Path, algorithm: str) -> None:
    settings = {"n_steps": 2, "batch_size": 8} if algorithm == "PPO" else {"learning_starts": 4, "buffer_size": 100}
    sb3 = {"algorithm": algorithm, "envs": 4, "horizon": 3, "every": 2, "steps": 8, "settings": settings}
    changes = {"behaviour": {"name": "sb3", "sb3": {**sb3, "penalty": 0.1, "noise": 0.1}}}
    one, two = (train(merge(TINY, changes), run=tmp_path / name) for name in ("one", "two"))
    rows = [json.loads(line) for line in (one.folder / "metrics.jsonl").read_text().splitlines()]
    assert any("train/learning_rate" in row and "dream/rollout/ep_rew_mean" in row for row in rows)
    assert "final/imagined_reward" in rows[-1]
    for name in ("model.safetensors", "behaviour.safetensors"):
        assert (latest(one.folder) / name).read_bytes() == (latest(two.folder) / name).read_bytes()
    one_state, two_state = (load_tree(latest(run.folder) / "training.safetensors")["behaviour"] for run in (one, two))
    save_tree(tmp_path / "a", one_state)
    save_tree(tmp_path / "b", two_state)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    again = Run.load(one.folder)
    assert again.evaluate(2).returns == one.evaluate(2).returns


def test_a_model_that_denies_the_end_is_found_out(tmp_path: Path) -> None:
    """Imagined up to the time limit, not only as far as real episodes went."""

    class Endless(ExactCartPole):
        def transition(self, x: torch.Tensor, control: torch.Tensor) -> Any:
            x, reward, ended = super().transition(x, control)
            return x, reward, torch.zeros_like(ended)

    class Push(RandomBehaviour):
        def act(self, model: Any, state: Any, memory: Any, deterministic: bool = False) -> Decision:
            count = len(state.x)
            return Decision(torch.tensor([[0.0, 1.0]] * count), memory, torch.ones(count, dtype=torch.bool))

    config = EnvConfig("CartPole-v1")
    env = make(config)
    spec = action_spec(env.action_space)
    agent = Agent(Endless(), Push(spec), observation_specs(env.observation_space), spec)  # type: ignore[arg-type]
    result = evaluate(agent, config, 3, 1, imagine=True)
    assert result.imagined == [500.0] * 3 and max(result.returns) < 15 and "overestimates" in promise(result)
