"""A run whose environments fail: what is recorded, counted and said, and that it goes on or stops with all of it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from worldmodel.agents import Agent, RandomBehaviour
from worldmodel.envs import EnvConfig, EnvironmentFault
from worldmodel.envs.wrappers.episodes import another_seed, episode_seed, evaluation_seeds
from worldmodel.training import Run, train
from worldmodel.training.cli import main
from worldmodel.training.config.schema import merge
from worldmodel.training.evaluation.evaluation import Evaluation, evaluate
from worldmodel.training.loop import loop as loops
from worldmodel.training.loop.evaluations import PERIODIC, describe
from worldmodel.training.start import resume

ID = "failing:test-failing/Failing-v0"
OF_VALUES = ("nan", "inf", "shape", "dtype", "class", "missing", "reward nan", "reward inf", "reward shape")
TINY: dict[str, Any] = {
    "env": {"id": ID, "num_envs": 2, "restarts": 100},
    "model": {"hidden": 8, "latent": {"size": 4}, "dynamics": {"rssm": {"deter": 8, "hidden": 8}}},
    "behaviour": {"actor_critic": {"hidden": 8, "starts": 4, "horizon": 2}},
    "replay": {"batch_size": 2, "window": 4},
    "training": {"steps": 100, "prefill": 20, "pretrain": 2, "replay_ratio": 3, "log_every": 10},
    "evaluation": {"every": 1000, "episodes": 2, "final_episodes": 2},
    "logger": {"wandb": "disabled"},
}
SHORT = {"training": {"steps": 40, "prefill": 20, "pretrain": 1, "replay_ratio": 1, "log_every": 10}}


class Truth(NamedTuple):
    """What a run must have recorded, found from the seeds alone."""

    first: list[list[int]]  # numbers of the rows of each environment
    last: list[list[int]]
    terminal: list[list[int]]
    faults: int
    returns: list[tuple[float, int]]  # of the episodes that were completed, and their lengths
    steps: int


def truth(failing: Any, until: int, at: int = 3, num_envs: int = 2, seed: int = 0) -> Truth:
    """Episodes of 8 steps, of which those from even seeds fail at step `at`, up to so many environment steps."""
    first, last, terminal = ([[] for _ in range(num_envs)] for _ in range(3))
    rows, number, begun, taken = [0] * num_envs, [-1] * num_envs, [0] * num_envs, [0] * num_envs
    faults, steps, returns = 0, 0, []

    def begin(env: int) -> None:
        nonlocal faults
        number[env] += 1
        given = begun[env] = episode_seed(seed + env, number[env])
        tries = 0
        while at == 0 and begun[env] % 2 == 0:
            faults, tries = faults + 1, tries + 1
            begun[env] = another_seed(given, tries)
        first[env].append(rows[env])
        rows[env], taken[env] = rows[env] + 1, 0

    for env in range(num_envs):
        begin(env)
    while steps < until:
        for env in range(num_envs):
            taken[env] += 1
            if begun[env] % 2 == 0 and taken[env] == at:
                faults += 1
                last[env].append(rows[env] - 1)
                begin(env)
                continue
            rows[env], steps = rows[env] + 1, steps + 1
            if taken[env] == failing.LENGTH:
                last[env].append(rows[env] - 1)
                terminal[env].append(rows[env] - 1)
                returns.append((failing.LENGTH * failing.reward_of(begun[env]), failing.LENGTH))
                begin(env)
    return Truth(first, last, terminal, faults, returns, steps)


def with_env(config: dict[str, Any], how: str, **given: Any) -> dict[str, Any]:
    """The config with environments that fail so."""
    kwargs = {"how": how, **given.pop("kwargs", {})}
    return merge(config, {"env": {"kwargs": kwargs, **given}})


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_recorded(run: Run, expected: Truth) -> None:
    assert run.env_steps == expected.steps
    for env in range(len(expected.first)):
        stream = run.replay.stream(env)
        marks = (stream.is_first, stream.is_last, stream.is_terminal)
        found = [mark[0].nonzero().flatten().tolist() for mark in marks]
        assert found == [expected.first[env], expected.last[env], expected.terminal[env]]
        assert stream.obs["x"].isfinite().all() and stream.reward.isfinite().all()


# --------------------------------------------------------------------------------------------- a run goes on


@pytest.mark.parametrize("how", [*OF_VALUES, "exception", "tuple", "kill", "exit", "sleep"])
def test_every_fault_costs_its_episode_alone(how: str, failing: Any, tmp_path: Path, capsys: Any) -> None:
    """Counted from the seeds: rows, ends, faults, returns, and what a person is told."""
    alone = how in failing.ALONE
    timeout = 0.5 if how == "sleep" else 60.0 if alone else None
    config = with_env(merge(TINY, SHORT), how, timeout=timeout)
    config["evaluation"] |= {"final_episodes": 1, "every": 1000}
    with pytest.MonkeyPatch.context() as patch:
        if alone:  # what it does would end this process
            patch.setattr(Run, "evaluate", lambda run, **given: Evaluation([0.0], [1]))
        run = train(config, run=tmp_path / "run")
    expected = truth(failing, 40)
    assert 3 <= expected.faults < 20
    assert_recorded(Run.load(run.folder), expected)
    logged = metrics(run.folder)
    assert [row for row in logged if "rollout/env_faults" in row][-1]["rollout/env_faults"] == expected.faults
    said = capsys.readouterr().err
    notes = [line for line in said.splitlines() if "failed (" in line and "steps:" in line]
    assert len(notes) == expected.faults
    assert all("Restarted with another seed" in note and "of at most 100" in note for note in notes)


@pytest.mark.parametrize("at", [0, 1, 3])
def test_returns_are_those_of_completed_episodes(at: int, failing: Any, tmp_path: Path) -> None:
    """In resets, in first steps, and later; the first reset of each environment is sound."""
    seed = 1
    config = with_env({**TINY, "env": {**TINY["env"], "num_envs": 1}}, "exception", kwargs={"at": at})
    run = train(config, run=tmp_path / "run", seed=seed)
    expected = truth(failing, 100, at, num_envs=1, seed=seed)
    assert expected.faults > 0
    assert_recorded(run, expected)
    last = [row for row in metrics(run.folder) if "rollout/ep_rew_mean" in row][-1]
    before = truth(failing, last["global_step"], at, num_envs=1, seed=seed)
    assert last["rollout/ep_rew_mean"] == pytest.approx(np.mean([total for total, _ in before.returns]), rel=1e-5)
    assert last["rollout/ep_len_mean"] == failing.LENGTH and last["rollout/env_faults"] == before.faults


def test_a_sound_run_says_nothing_of_faults(failing: Any, tmp_path: Path) -> None:
    run = train(with_env(merge(TINY, SHORT), ""), run=tmp_path / "run")
    assert not any("env_faults" in name for row in metrics(run.folder) for name in row)


def test_a_process_makes_no_difference(
    failing: Any, tmp_path: Path, assert_same_run: Callable[[Path, Path], None]
) -> None:
    """Weights, rows and metrics of a run are the same with environments in processes, faults included."""
    one = train(with_env(merge(TINY, SHORT), "exception"), run=tmp_path / "here").folder
    other = train(with_env(merge(TINY, SHORT), "exception", timeout=60.0), run=tmp_path / "there").folder
    assert_same_run(one, other)


def test_collecting_goes_on_too(failing: Any, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(with_env(TINY, "nan")))
    assert main(["collect", str(file), "--steps", "40", "--out", str(tmp_path / "rows.npz")]) == 0
    expected = truth(failing, 40)
    with np.load(tmp_path / "rows.npz") as archive:
        assert int(archive["stored"].sum()) == expected.steps + sum(len(first) for first in expected.first)
        assert int(archive["is_last"].sum()) == sum(len(last) for last in expected.last)
    assert capsys.readouterr().err.count("is not finite") == expected.faults


# ------------------------------------------------------------------------------------ or stops, and is resumed


@pytest.mark.parametrize("how", ["exception", "nan", "kill"])
def test_at_the_limit_it_stops_with_everything_saved(how: str, failing: Any, tmp_path: Path, capsys: Any) -> None:
    """The third failure of one environment, of which two are allowed."""
    folder, file = tmp_path / "run", tmp_path / "config.yaml"
    seeds = [episode_seed(1, episode) for episode in (1, 2, 3)]
    timeout = 60.0 if how == "kill" else None
    config = with_env(TINY, how, num_envs=1, restarts=2, timeout=timeout, kwargs={"seeds": seeds})
    file.write_text(json.dumps(config))
    assert main(["train", str(file), "--run", str(folder), "--seed", "1"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and f"run saved in {folder}" in said
    line = said.splitlines()[-1]
    assert line.startswith("worldmodel train: error: environment 0 has failed 3 time(s), but env.restarts allows 2: ")
    assert {"exception": "the simulator died", "nan": "'x'", "kill": "SIGKILL"}[how] in line
    run = Run.load(folder)
    # An episode of 8 steps, and three of 2 steps; of the third steps of these there is nothing.
    assert run.env_steps == 8 + 3 * 2 and len(run.replay) == run.env_steps + 4
    assert run.replay.stream(0).is_last[0].nonzero().flatten().tolist() == [8, 11, 14]
    assert main(["train", "--resume", str(folder)]) == 0
    more = Run.load(folder)
    stream = more.replay.stream(0)
    assert more.env_steps == 100 and stream.is_last[0].nonzero().flatten().tolist()[:5] == [8, 11, 14, 17, 26]
    assert metrics(folder)[-2]["rollout/env_faults"] == 2  # made up for, before and after


def test_a_first_reset_that_fails_leaves_no_run(failing: Any, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(with_env(TINY, "exception", kwargs={"at": 0})))
    assert main(["train", str(file), "--run", str(tmp_path / "run"), "--seed", "0"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "environment 0 failed in its first reset: RuntimeError: the simulator died (failing.py, line" in line
    assert not (tmp_path / "run").exists()


class Killed(BaseException):
    """As if by kill -9: nobody saves anything."""


def killed(patch: pytest.MonkeyPatch, death: int) -> None:
    collect = loops.Trainer.collect

    def dies(trainer: Any, behaviour: Any) -> None:
        if trainer.envs.steps >= death:
            raise Killed
        collect(trainer, behaviour)

    patch.setattr(loops.Trainer, "collect", dies)
    patch.setattr(loops.Loop, "save", saves_unless_killed(loops.Loop.save))


def saves_unless_killed(save: Callable[..., None]) -> Callable[..., None]:
    def saving(loop: Any, mean_return: float | None = None) -> None:
        if not isinstance(sys.exception(), Killed):
            save(loop, mean_return)

    return saving


@pytest.mark.parametrize(
    ("at", "disk"),
    [
        (0, False),
        (3, True),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [(0, True), (1, False), (1, True), (3, False)]),
    ],
)
def test_a_killed_run_goes_on_bit_for_bit(
    at: int, disk: bool, failing: Any, tmp_path: Path, assert_same_run: Callable[[Path, Path], None]
) -> None:
    """From checkpoints at which the next step fails or does not, some of an episode from another seed than its own."""
    replay = {"batch_size": 2, "window": 4, "disk": disk, "capacity": 400, "context": disk}
    config = with_env({**TINY, "replay": replay, "evaluation": {**TINY["evaluation"], "every": 22}}, "exception")
    config["env"]["kwargs"]["at"] = at
    config["env"]["num_envs"] = 2 if at else 1
    seed = 5
    whole = train(config, run=tmp_path / "whole", seed=seed).folder
    counted = [row["rollout/env_faults"] for row in metrics(whole) if "rollout/env_faults" in row]
    assert counted[-1] > counted[0] > 0
    for death in (47, 93):
        folder = tmp_path / f"killed{death}"
        with pytest.MonkeyPatch.context() as patch:
            killed(patch, death)
            with pytest.raises(Killed):
                train(config, run=folder, seed=seed)
        resume(folder)
        assert_same_run(whole, folder)


def test_a_failed_step_right_after_a_checkpoint_is_taken_back(
    failing: Any, tmp_path: Path, assert_same_run: Callable[[Path, Path], None]
) -> None:
    """A cut changes a row that the checkpoint counts: resumed, it is as it was until the step fails again."""
    replay = {"batch_size": 2, "window": 4, "disk": True, "capacity": 400}
    config = with_env({**TINY, "replay": replay}, "exception")
    config["env"] |= {"num_envs": 1, "kwargs": {"how": "exception", "seeds": [episode_seed(5, 3)]}}
    config["evaluation"] = {**TINY["evaluation"], "every": 26}  # three episodes and two steps
    whole = train(config, run=tmp_path / "whole", seed=5).folder
    folder = tmp_path / "killed"
    with pytest.MonkeyPatch.context() as patch:
        killed(patch, 27)
        with pytest.raises(Killed):
            train(config, run=folder, seed=5)
    assert Run.load(folder).replay.stream(0).is_last[0, 29]  # as the files are now
    loop = loops.Loop.run
    seen: list[bool] = []

    def looks(self: Any, *given: Any) -> bool:
        seen.append(bool(self.trainer.run.replay.stream(0).is_last[0, -1]))
        return loop(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops.Loop, "run", looks)
        resume(folder)
    assert seen == [False]
    assert_same_run(whole, folder)


# --------------------------------------------------------------------------------------------- evaluations


def random_agent(tmp_path: Path, **env: Any) -> Agent:
    from worldmodel.training.config.config import load_config

    run = Run.create(tmp_path / "none", load_config(merge(TINY, {"env": env})))
    return Agent(run.model, RandomBehaviour(run.action_spec), run.obs_specs, run.action_spec)


@pytest.mark.parametrize(
    ("episodes", "stream", "how"),
    [(1, 1, "exception"), (5, 1, "exception"), (5, 2, "exception"), (40, 2, "exception"), (5, 1, "kill")],
)
def test_an_evaluation_plays_the_next_seeds_instead(
    episodes: int, stream: int, how: str, failing: Any, tmp_path: Path
) -> None:
    """Also where an environment dies: with `env.timeout` that of an evaluation has a process of its own as well."""
    agent = random_agent(tmp_path)
    timeout = 60.0 if how == "kill" else None
    config = EnvConfig(ID, kwargs={"how": how, "length": 6}, restarts=100, timeout=timeout)
    result = evaluate(agent, config, episodes, stream, imagine=True)
    sound, drawn = [], 0
    while len(sound) < episodes:
        size = min(episodes - len(sound), 32)
        seeds = evaluation_seeds(drawn + size, stream)[drawn:]
        sound, drawn = sound + [seed for seed in seeds if seed % 2], drawn + size
    np.testing.assert_allclose(result.returns, [6 * failing.reward_of(seed) for seed in sound])
    assert result.lengths == [6] * episodes and len(result.faults) == drawn - episodes
    assert result.imagined is not None and len(result.imagined) == episodes
    line = describe(result)
    assert (f"failed {len(result.faults)} time(s)" in line) == bool(result.faults)


def test_an_evaluation_whose_resets_fail(failing: Any, tmp_path: Path) -> None:
    seeds = evaluation_seeds(3, 1)
    config = EnvConfig(ID, kwargs={"how": "exception", "at": 0, "seeds": [seeds[1]]})
    result = evaluate(random_agent(tmp_path), config, 3, 1)
    played = [seeds[0], another_seed(seeds[1], 1), seeds[2]]
    np.testing.assert_allclose(result.returns, [8 * failing.reward_of(seed) for seed in played])
    assert len(result.faults) == 1


@pytest.mark.parametrize(("length", "limit", "told"), [(40, None, [9, 18, 36]), (8, None, []), (40, 30, [])])
def test_a_long_wait_for_the_end_of_an_episode_is_told(
    length: int, limit: int | None, told: list[int], failing: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An environment of which nothing says when its episodes end may never end one: the remedy is named meanwhile."""
    monkeypatch.setattr("worldmodel.training.evaluation.evaluation.LONG_EPISODE", 9)
    lines: list[str] = []
    config = EnvConfig(ID, kwargs={"length": length}, time_limit=limit)
    evaluate(random_agent(tmp_path), config, 2, 1, say=lines.append)
    assert lines == [
        f"An evaluation is waiting for an episode of {ID} to end, after {steps} steps. "
        "If its episodes may never end, set env.time_limit."
        for steps in told
    ]


def test_an_evaluation_has_a_limit(failing: Any, tmp_path: Path) -> None:
    agent = random_agent(tmp_path)
    config = EnvConfig(ID, kwargs={"how": "exception", "seeds": evaluation_seeds(40, 1)}, restarts=4)
    with pytest.raises(EnvironmentFault, match=r"The evaluation stops after 5 failures .* the simulator died"):
        evaluate(agent, config, 5, 1)
    assert len(evaluate(agent, EnvConfig(ID, kwargs=config.kwargs, restarts=40), 1, 1).faults) == 40


def test_what_an_evaluation_stops_at_is_taken_up(failing: Any, tmp_path: Path) -> None:
    """All that was recorded and learned is there, and the evaluation is made again."""
    config = with_env(TINY, "exception", kwargs={"seeds": evaluation_seeds(40, PERIODIC)}, restarts=4)
    config["evaluation"] = {"every": 40, "episodes": 2, "final_episodes": 2}
    with pytest.raises(EnvironmentFault, match="The evaluation stops after"):
        train(config, run=tmp_path / "run")
    assert Run.load(tmp_path / "run").env_steps == 40
    with pytest.raises(EnvironmentFault, match="The evaluation stops after"):
        resume(tmp_path / "run")
    file = tmp_path / "run" / "config.yaml"
    file.write_text(file.read_text().replace("restarts: 4", "restarts: 100"))
    assert resume(tmp_path / "run").env_steps == 100
    assert [row["eval/env_faults"] for row in metrics(tmp_path / "run") if "eval/env_faults" in row] == [40, 40]
