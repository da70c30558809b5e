"""A run that is interrupted and resumed ends as if it never had been."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from worldmodel.agents import Agent
from worldmodel.envs import EnvConfig, RepeatableEpisodes, make
from worldmodel.training import Run, train
from worldmodel.training.cli import main
from worldmodel.training.config.config import load_config
from worldmodel.training.evaluation.evaluation import evaluate
from worldmodel.training.loop import evaluations
from worldmodel.training.loop import loop as loops
from worldmodel.training.start import resume

TINY: dict[str, Any] = {
    "env": {"id": "Pendulum-v1", "time_limit": 30, "num_envs": 2},
    "model": {"hidden": 8, "latent": {"size": 4}, "dynamics": {"rssm": {"deter": 8, "hidden": 8}}},
    "behaviour": {"actor_critic": {"hidden": 8, "starts": 4, "horizon": 2}},
    "replay": {"batch_size": 2, "window": 4},
    "training": {"steps": 100, "prefill": 20, "pretrain": 2, "replay_ratio": 3, "log_every": 10},
    "evaluation": {"every": 40, "episodes": 2, "final_episodes": 2},
    "logger": {"wandb": "disabled"},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "gaussian": {},
    "plan2explore": {"behaviour": {**TINY["behaviour"], "name": "plan2explore"}},
    "few-shot": {"behaviour": {**TINY["behaviour"], "name": "plan2explore", "exploration": {"steps": 30}}},
    "planner": {
        "behaviour": {
            "name": "planner",
            "planner": {
                "horizon": 2,
                "terminal_value": True,
                "discount": 0.99,
                "icem": {"candidates": 8, "elites": 2, "iterations": 1},
            },
            "actor_critic": {"hidden": 8, "starts": 4, "horizon": 2},
        }
    },
    "v3": {
        "model": {**TINY["model"], "latent": {"family": "onehot", "groups": 2, "classes": 3}},
        "learner": {"optimizer": "laprop", "warmup": 10, "final_lr_ratio": 0.5, "adaptive_clip": 0.3},
        "behaviour": {
            "actor_critic": {"hidden": 8, "starts": 0, "horizon": 2, "gradient": "score", "replay_value": 0.3}
        },
        "replay": {"batch_size": 2, "window": 4, "online": True, "context": True},
        "training": {**TINY["training"], "joint": True},
    },
    "full ring": {"replay": {"batch_size": 2, "window": 4, "capacity": 40}},
    "disk": {"replay": {"batch_size": 2, "window": 4, "disk": True, "context": True}},
    "seldom": {  # rows of metrics that no update precedes
        "learner": {"final_lr_ratio": 0},
        "training": {**TINY["training"], "replay_ratio": 0.25, "log_every": 5},
    },
    "discrete": {"env": {"id": "CartPole-v1", "time_limit": 30}},
    "pink": {"behaviour": {"actor_critic": {"hidden": 8, "starts": 4, "horizon": 2, "noise": "pink"}}},
    "sb3": {
        "behaviour": {
            "name": "sb3",
            "sb3": {
                "algorithm": "SAC",
                "envs": 4,
                "horizon": 3,
                "every": 2,
                "steps": 8,
                "penalty": 0.1,
                "settings": {"learning_starts": 4, "buffer_size": 100},
            },
        }
    },
    "overlap": {
        "env": {**TINY["env"], "timeout": 60.0},
        "training": {**TINY["training"], "overlap": True, "replay_ratio": 9, "pretrain": 6},
    },
    "pixels": {
        "env": {"id": "Pendulum-v1", "time_limit": 30, "pixels": True, "image_size": 32},
        "model": {**TINY["model"], "image_depth": 2},
    },
}


Same = Callable[[Path, Path], None]


class Killed(BaseException):
    """As if by kill -9: nobody saves anything."""


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def killed(monkeypatch: pytest.MonkeyPatch, when: Callable[[Any], bool]) -> None:
    """Let the process die before the step of the environments in which `when` is true of the trainer."""

    def dies(trainer: Any, behaviour: Any) -> None:
        if when(trainer):
            monkeypatch.setattr(loops.Loop, "save", lambda self: None)
            raise Killed
        collect(trainer, behaviour)

    collect = loops.Trainer.collect
    monkeypatch.setattr(loops.Trainer, "collect", dies)


SELDOM = ("plan2explore", "full ring", "seldom", "discrete", "pink", "pixels")  # what others have most of


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupted."""
    return train(TINY, run=tmp_path_factory.mktemp("runs") / "whole", seed=5).folder


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SELDOM else name for name in VARIANTS]
)
def test_a_killed_run_goes_on_bit_for_bit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assert_same_run: Same
) -> None:
    """From its last checkpoint, after 40 (or 80) steps; what came after that is done again."""
    config = {**TINY, **VARIANTS[name]}
    whole = train(config, run=tmp_path / "whole", seed=5).folder
    for death in (57, 91) if name == "gaussian" else (57,):
        folder = tmp_path / f"killed{death}"
        with monkeypatch.context() as patch:
            killed(patch, lambda trainer, death=death: trainer.envs.steps >= death)  # type: ignore[misc]
            with pytest.raises(Killed):
                train(config, run=folder, seed=5)
        torch.rand(3)  # whatever the other process has drawn
        resume(folder)
        assert_same_run(whole, folder)


@pytest.mark.parametrize("death", [7, 33, 61])
def test_a_run_that_is_asked_to_stop_goes_on_from_there(
    death: int,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    assert_same_run: Same,
) -> None:
    """In the prefill and later; SIGTERM is what batch systems send."""
    collect, sent = loops.Trainer.collect, []

    def asks(trainer: Any, behaviour: Any) -> None:
        if trainer.envs.steps >= death and not sent:
            sent.append(os.kill(os.getpid(), signal.SIGTERM))
        collect(trainer, behaviour)

    monkeypatch.setattr(loops.Trainer, "collect", asks)
    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt, match=f"to continue: worldmodel train --resume {folder}"):
        train(TINY, run=folder, seed=5)
    assert "SIGTERM: stopping after this step" in capsys.readouterr().err
    assert Run.load(folder).env_steps < death + 4
    assert main(["train", "--resume", str(folder)]) == 0
    assert "resumed at" in capsys.readouterr().err
    assert_same_run(whole, folder)


@pytest.mark.parametrize("place", ["loop.evaluations.evaluate", "run.run.evaluate"])
def test_a_call_to_stop_that_is_swallowed_in_an_evaluation_is_obeyed_after_it(
    place: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assert_same_run: Same
) -> None:
    """What a handler raises is lost where C asks Python for something and takes an error for a no."""

    def swallows(*args: Any, **options: Any) -> Any:
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(f"worldmodel.training.{place}", swallows)
        with pytest.raises(KeyboardInterrupt, match="to continue"):
            train(TINY, run=tmp_path / "stopped", seed=5)
    assert Run.load(tmp_path / "stopped").env_steps == (40 if "loop" in place else 100)
    resume(tmp_path / "stopped")
    assert_same_run(whole, tmp_path / "stopped")


def test_a_run_that_is_asked_to_stop_while_its_environments_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assert_same_run: Same
) -> None:
    """The updates of that step are made and the step is recorded: otherwise they would be made of other rows."""
    config = {**TINY, **VARIANTS["overlap"]}
    update, seen = loops.Trainer.update, []

    def asks(trainer: Any) -> Any:
        seen.append((trainer.envs.steps, trainer.collector.pending is not None))
        if trainer.envs.steps >= 33 and trainer.collector.pending is not None and armed:
            os.kill(os.getpid(), signal.SIGTERM)
            armed.clear()
        return update(trainer)

    armed: list[bool] = []
    monkeypatch.setattr(loops.Trainer, "update", asks)
    whole = train(config, run=tmp_path / "whole", seed=5).folder
    assert [overlapped for _, overlapped in seen] == [20 < step < 100 for step, _ in seen]  # not of the prefill
    assert len(seen) > 60
    armed.append(True)
    with pytest.raises(KeyboardInterrupt):
        train(config, run=tmp_path / "stopped", seed=5)
    assert 33 < Run.load(tmp_path / "stopped").env_steps < 40
    resume(tmp_path / "stopped")
    assert_same_run(whole, tmp_path / "stopped")


def test_a_finished_run_takes_more_steps_or_says_that_it_is_finished(tmp_path: Path, capsys: Any) -> None:
    folder = train(TINY, run=tmp_path / "run", seed=5).folder
    assert main(["train", "--resume", str(folder)]) == 2
    assert "has taken 100 steps. To continue, give it more with --training.steps" in capsys.readouterr().err
    assert main(["train", "--resume", str(folder), "--training.steps", "140"]) == 0
    assert Run.load(folder).env_steps == 140 and Run.load(folder).config.training.steps == 140
    finals = [row for row in rows(folder) if "final/mean_reward" in row]
    assert [row["global_step"] for row in finals] == [100, 140]


def test_videos_are_switched_on_and_off_where_a_run_goes_on(tmp_path: Path) -> None:
    """Nothing that is learned depends on them."""
    folder, films = train(TINY, run=tmp_path / "run").folder, tmp_path / "run/media"
    for videos, steps in (("true", 140), ("false", 180)):
        options = [f"--training.steps={steps}", f"--evaluation.videos={videos}"]
        assert main(["train", "--resume", str(folder), *options]) == 0
        assert load_config(folder / "config.yaml").evaluation.videos is (videos == "true")
    assert films.is_dir() and not (films / "0000180").exists()


def test_a_run_goes_on_on_another_device(tmp_path: Path, capsys: Any) -> None:
    """Here from the CPU to itself by another name; where there is none, the config and the run stay as they are."""
    folder = train(TINY, run=tmp_path / "run", seed=5).folder
    more = ["train", "--resume", str(folder), "--training.steps", "140"]
    assert main([*more, "--training.device", "abacus"]) == 2
    assert "training.device: 'abacus' cannot be used here" in capsys.readouterr().err
    assert Run.load(folder).config.training.device == "cpu"
    assert main([*more, "--training.device", "cpu:0"]) == 0
    assert Run.load(folder).config.training.device == "cpu:0" and Run.load(folder).env_steps == 140
    shutil.rmtree(folder / "checkpoint")
    before = sorted(path.name for path in folder.iterdir())
    assert main([*more, "--training.device", "abacus"]) == 2
    assert sorted(path.name for path in folder.iterdir()) == before


class Forgetful(gym.Env[np.ndarray, np.ndarray]):
    """Its observations are drawn from no seed."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        return np.random.default_rng().uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self.reset()[0], 0.0, False, False, {}


def test_an_episode_that_cannot_be_taken_up_counts_as_truncated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    gym.register("Forgetful-v0", Forgetful)
    config = {**TINY, "env": {"id": "Forgetful-v0", "time_limit": 30, "num_envs": 2}}
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        killed(patch, lambda trainer: trainer.envs.steps >= 50)
        with pytest.raises(Killed):
            train(config, run=folder)
    run = resume(folder)
    assert "resumed at 40 environment steps; 2 running episode(s) count as truncated" in capsys.readouterr().err
    for env in range(2):
        stream = run.replay.stream(env)
        ends = stream.is_last[0].nonzero().flatten().tolist()
        assert ends[0] == 20 and stream.is_first[0, 21] and not stream.is_terminal.any()  # 20 steps each, and a reset
    gym.registry.pop("Forgetful-v0")


def test_a_fault_in_the_environment_leaves_a_run_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that was recorded is lost; the episode in which it happened ends there."""
    step = loops.Trainer.collect

    def fails(trainer: Any, behaviour: Any) -> None:
        if trainer.envs.steps == 50:
            trainer.collector.doing = "collecting"
            raise OSError("the simulator is gone")
        step(trainer, behaviour)

    with monkeypatch.context() as patch:
        patch.setattr(loops.Trainer, "collect", fails)
        with pytest.raises(OSError, match="gone"):
            train(TINY, run=tmp_path / "run")
    assert len(Run.load(tmp_path / "run").replay) == 52  # 25 steps of each environment, and its reset
    run = resume(tmp_path / "run")
    assert run.env_steps == 100 and [int(stream) for stream in run.replay.storage.stored] == [
        52,
        52,
    ]  # and another reset


def test_rows_that_took_the_place_of_older_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A full ring on the disk cannot be brought back: nothing more is lost, and new episodes begin."""
    config = {**TINY, "replay": {"batch_size": 2, "window": 4, "disk": True, "capacity": 20, "online": True}}
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        killed(patch, lambda trainer: trainer.envs.steps >= 78)  # more than a ring after the checkpoint
        with pytest.raises(Killed):
            train(config, run=folder)
    run = resume(folder)
    assert "resumed at 40 environment steps; 2 running episode(s) count as truncated" in capsys.readouterr().err
    assert run.env_steps == 100 and len(run.replay) == 20
    steps = [row["global_step"] for row in rows(folder)]
    assert steps == sorted(steps)


def test_an_evaluation_that_is_interrupted_is_made_again(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assert_same_run: Same
) -> None:
    """It is left at once: it may take long. The final one as well."""
    evaluate, calls = evaluations.evaluate, []

    def asks(*given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*given, **named)

    folder = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(evaluations, "evaluate", asks)
        with pytest.raises(KeyboardInterrupt):
            train(TINY, run=folder, seed=5)
        assert len(calls) == 1 and Run.load(folder).env_steps == 40
    resume(folder)
    assert_same_run(whole, folder)


@pytest.mark.parametrize("call", [1, 2])
def test_a_milestone_that_is_interrupted_is_made_again(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assert_same_run: Same
) -> None:
    """And the evaluation that comes with it, whichever of the two is interrupted."""
    config = {**TINY, "evaluation": {**TINY["evaluation"], "milestones": [40]}}
    whole = train(config, run=tmp_path / "whole", seed=5).folder
    evaluate, calls = evaluations.evaluate, []

    def asks(*given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(evaluations, "evaluate", asks)
        with pytest.raises(KeyboardInterrupt):
            train(config, run=tmp_path / "stopped", seed=5)
    resume(tmp_path / "stopped")
    assert_same_run(whole, tmp_path / "stopped")
    assert len([row for row in rows(whole) if "milestone/mean_reward" in row]) == 1


def test_seconds_of_evaluations_are_counted_on_and_apart_from_those_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes half a second longer here; training takes what it takes, in both parts of the run."""
    evaluate, calls = evaluations.evaluate, []

    def slow(*given: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)
        return evaluate(*given, **named)

    monkeypatch.setattr(evaluations, "evaluate", slow)
    with pytest.raises(KeyboardInterrupt):
        train(TINY, run=tmp_path / "run", seed=5)
    resume(tmp_path / "run")
    spent = [row["time/evaluation_seconds"] for row in rows(tmp_path / "run") if "time/evaluation_seconds" in row]
    assert spent == sorted(spent) and spent[0] >= 0.5
    assert spent[-1] >= 0.5 * (len(calls) - 1)  # the second was left at once
    last = rows(tmp_path / "run")[-1]
    assert 0 < last["seconds"] - spent[-1] < last["seconds"] - 0.5 * (len(calls) - 1)


def test_a_call_to_stop_just_before_an_evaluation_does_not_wait_for_it(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assert_same_run: Same
) -> None:
    log = loops.Loop.log

    def asks(loop: Any) -> None:
        log(loop)
        if loop.steps == 40:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loops.Loop, "log", asks)
        patch.setattr(evaluations, "evaluate", lambda *_, **__: pytest.fail("it waited for an evaluation"))
        with pytest.raises(KeyboardInterrupt):
            train(TINY, run=tmp_path / "stopped", seed=5)
    resume(tmp_path / "stopped")
    assert_same_run(whole, tmp_path / "stopped")


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assert_same_run: Same
) -> None:
    for name in ("gaussian", "disk"):
        config = {**TINY, **VARIANTS[name]}
        whole, folder = train(config, run=tmp_path / f"whole {name}", seed=5).folder, tmp_path / name
        with monkeypatch.context() as patch:
            killed(patch, lambda trainer: trainer.envs.steps >= 30)
            with pytest.raises(Killed):
                train(config, run=folder, seed=5)
        assert not (folder / "checkpoint").exists() and (folder / "metrics.jsonl").read_text()
        resume(folder)
        assert_same_run(whole, folder)


def test_a_call_to_stop_during_the_last_save_lets_it_be_finished(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assert_same_run: Same
) -> None:
    """A second one stops at once, and the line says how to go on."""
    save = loops.Loop.save

    def asked(times: int) -> Callable[..., None]:
        def saves(loop: Any, mean_return: float | None = None) -> None:
            for _ in range(times if loop.finished else 0):
                os.kill(os.getpid(), signal.SIGTERM)
            save(loop, mean_return)

        return saves

    monkeypatch.setattr(loops.Loop, "save", asked(1))
    assert_same_run(whole, train(TINY, run=tmp_path / "once", seed=5).folder)
    monkeypatch.setattr(loops.Loop, "save", asked(2))
    with pytest.raises(KeyboardInterrupt, match="to continue: worldmodel train --resume"):
        train(TINY, run=tmp_path / "twice", seed=5)
    monkeypatch.undo()
    resume(tmp_path / "twice")
    assert_same_run(whole, tmp_path / "twice")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "RUN", "configs/pendulum.yaml"], "takes no config, --run or --seed"),
        (["--resume", "RUN", "--seed", "3"], "takes no config, --run or --seed"),
        (
            ["--resume", "RUN", "--learner.lr", "1e-3"],
            "cannot change the config except by --training.steps, --training.device, --eval",
        ),
        (
            ["--resume", "RUN", "--training.threads", "2"],
            "cannot change the config except by --training.steps, --training.device, --eval",
        ),
        *(
            (["--resume", "RUN", f"--training.steps={steps}"], "must be a whole number of at least 1")
            for steps in ("many", "1e30", ".inf", ".nan", "[1]", "0", "1.5", "true")
        ),
        (["--resume", "RUN", "--evaluation.every", "5"], "cannot change the config except by --training.steps, "),
        (["--resume", "RUN", "--evaluation.videos", "3"], "--evaluation.videos must be true or false, not 3"),
        (["--resume", "nowhere"], "holds no run"),
        ([], "No config is given"),
    ],
)
def test_what_cannot_be_resumed_is_refused(arguments: list[str], message: str, capsys: Any) -> None:
    assert main(["train", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_an_episode_is_played_again() -> None:
    """To the very observation; and the next one follows as it would have."""
    env = make(EnvConfig(id="CartPole-v1"), training=True)
    assert isinstance(env, RepeatableEpisodes)
    env.reset(seed=3)
    first, _ = env.reset()
    second, _ = env.reset()
    assert not np.array_equal(first, second)
    for action in (0, 1, 1, 0):
        reached, *_ = env.step(action)
    position, (following, _) = env.position(), env.reset()
    again = make(EnvConfig(id="CartPole-v1"), training=True)
    np.testing.assert_array_equal(again.go_to(position), reached)
    np.testing.assert_array_equal(again.reset()[0], following)


def test_a_second_call_while_an_action_is_chosen_costs_time_and_no_exactness(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assert_same_run: Same
) -> None:
    """Random numbers have been drawn then that the step before did not have: the checkpoint before is the last."""
    predict, calls = Agent.predict, []

    def interrupted(agent: Any, *given: Any, **named: Any) -> Any:
        result = predict(agent, *given, **named)
        evaluates = named.get("deterministic", len(given) > 3 and given[3])
        calls.extend([] if evaluates else [1])
        if len(calls) == 28 and not evaluates:  # of 50; the last checkpoint was after 20
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Agent, "predict", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(TINY, run=tmp_path / "run", seed=5)
    resume(tmp_path / "run")
    assert_same_run(whole, tmp_path / "run")


def test_a_decision_of_weights_that_are_gone_is_carried_out_and_its_states_forgotten(tmp_path: Path) -> None:
    trainer = loops.Trainer(Run.create(tmp_path / "run", load_config({**TINY, **VARIANTS["overlap"]})))
    behaviour = trainer.run.behaviour
    trainer.prefill(20)
    trainer.collect(behaviour)
    trainer.decide(behaviour)
    assert trainer.collector.pending is not None
    _, decided = trainer.collector.pending
    trainer.collector.forget_states()
    assert trainer.collector.acting is None
    trainer.collect(behaviour)
    assert trainer.collector.acting is not None and trainer.collector.pending is None
    assert torch.equal(trainer.collector.acting.control, decided.control) and bool(decided.latent[0].any())
    assert not any(bool(field.any()) for field in trainer.collector.acting.latent)
    trainer.envs.close()


def test_a_final_evaluation_is_made_up_for_where_the_last_step_went_beyond(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assert_same_run: Same
) -> None:
    """All environments take it: three of them 102 steps instead of 100."""
    config = {**TINY, "env": {**TINY["env"], "num_envs": 3}}
    whole, folder = train(config, run=tmp_path / "whole", seed=5).folder, tmp_path / "run"

    def broken(run: Run, **given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "evaluate", broken)
        train(config, run=folder, seed=5)
    assert Run.load(folder).env_steps == 102
    resume(folder)
    assert_same_run(whole, folder)
    for steps in (None, 99, 102):
        with pytest.raises(ValueError, match="has taken 102 steps"):
            resume(folder, steps)
    assert resume(folder, 103).env_steps == 105


def test_schedules_of_the_dream_go_on_along_the_longer_line(tmp_path: Path) -> None:
    sb3 = {"algorithm": "PPO", "envs": 4, "horizon": 3, "every": 2, "steps": 8}
    sb3["settings"] = {"learning_rate": "lin_0.01", "batch_size": 4}
    folder = train({**TINY, "behaviour": {"name": "sb3", "sb3": sb3}}, run=tmp_path / "run").folder
    resume(folder, 200)
    rates = [row["train/learning_rate"] for row in rows(folder) if "train/learning_rate" in row]
    half = len(rates) // 2
    assert rates[half - 1] < 0.001 and 0.004 < max(rates[half:]) < 0.006 and rates[-1] < 0.001
