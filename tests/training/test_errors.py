"""Bad input is refused before anything is trained, in one line that names it; bad luck leaves what was recorded."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium import spaces

from worldmodel.envs import EnvironmentFault
from worldmodel.training import Run, train
from worldmodel.training.cli import main
from worldmodel.training.config.config import load_config
from worldmodel.training.config.schema import merge
from worldmodel.training.logging.logger import REPOSITORY
from worldmodel.training.run.checkpoint import numbers

TINY: dict[str, Any] = {
    "env": {"id": "Pendulum-v1", "time_limit": 20},
    "model": {
        "hidden": 8,
        "latent": {"size": 4},
        "dynamics": {"name": "rssm", "rssm": {"deter": 8, "hidden": 8}, "dkf": {"hidden": 8}},
    },
    "behaviour": {"actor_critic": {"hidden": 8, "starts": 4, "horizon": 2}},
    "replay": {"batch_size": 2, "window": 4, "capacity": 500},
    "training": {"steps": 40, "prefill": 8, "pretrain": 1, "replay_ratio": 1, "log_every": 10},
    "evaluation": {"every": 1000, "episodes": 1, "final_episodes": 1},
    "logger": {"wandb": "disabled"},
}


class Breaks(gym.Env[Any, Any]):
    """Goes wrong in the way `how` at step `at` of its first episode; episodes are truncated after `length`."""

    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, how: str = "", at: int = 10**9, length: int = 1000) -> None:
        self.observation_space = spaces.Dict({"x": spaces.Box(-9, 9, (2,), np.float32)})
        self.how, self.at, self.length, self.steps, self.time = how, at, length, 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return {"x": np.full(2, np.nan if self.at == 0 else 0, np.float32)}, {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.steps, self.time = self.steps + 1, self.time + 1
        observation, reward = {"x": np.full(2, self.time / 100, np.float32)}, 0.5
        if self.steps == self.at:
            if self.how == "interrupt":
                raise KeyboardInterrupt
            if self.how == "crash":
                raise RuntimeError("the simulator died")
            observation = {"nan": {"x": np.array([0, np.nan])}, "shape": {"x": np.zeros(3)}}.get(self.how, observation)
            reward = np.nan if self.how == "reward" else reward
        return observation, reward, False, self.time == self.length, {}


class Unsupported(Breaks):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Dict({"talk": spaces.Text(5)})


gym.register("test-errors/Breaks-v0", entry_point=Breaks)
gym.register("test-errors/Unsupported-v0", entry_point=Unsupported)


def config_file(folder: Path, **changes: Any) -> str:
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(merge(TINY, changes)))
    return str(file)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on standard error of a command that must fail with 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith(f"worldmodel {arguments[0]}: error: ")
    return line


def breaking(folder: Path, how: str, at: int, **changes: Any) -> str:
    """A run that ends at the first fault."""
    env = {"id": "test-errors/Breaks-v0", "kwargs": {"how": how, "at": at}, "time_limit": None, "restarts": 0}
    return config_file(folder, env=env, **changes)


# ------------------------------------------------------------------------------------ before any training


@pytest.mark.parametrize(
    ("changes", "overrides", "said"),
    [
        ({}, ["--env.id", "Pendulm-v1"], ["Pendulm-v1", "did you mean", "Pendulum-v1"]),
        ({}, ["--env.id", "no_such_module:Env-v0"], ["no_such_module", "cannot be imported"]),
        ({"env": {"id": "test-errors/Unsupported-v0"}}, [], ["'talk'", "Text", "not supported"]),
        ({}, ["--model.latnet.size", "4"], ["model.latnet", "did you mean model.latent?"]),
        ({"behaviour": {"planner": {"horizn": 3}}}, [], ["planner.horizn", "mean behaviour.planner.horizon"]),
        ({"starts": 3}, [], ["'starts'", "did you mean behaviour.actor_critic.starts?"]),
        ({}, ["--behaviour.planner.horizon", "three"], ["behaviour.planner.horizon", "'three'", "int"]),
        ({}, ["--training.steps", "-5"], ["training", "steps", "at least 1"]),
        ({}, ["--model.dynamics.name", "rsm"], ["model.dynamics", "rsm", "vae, dkf"]),
        ({}, ["--objective.weights", "{rewrd: 2.0}"], ["rewrd", "reward"]),
        (
            {"model": {"dynamics": {"name": "dkf", "dkf": {"posterior": "smoother"}}}},
            [],
            ["model.dynamics.dkf.posterior", "dkf as configured cannot filter", "to filter"],
        ),
        ({}, ["--env.kwargs", "{gravty: 1.0}"], ["Pendulum-v1", "gravty"]),
        ({}, ["--training.device", "abacus"], ["training.device", "abacus", "Use cpu instead"]),
        ({}, ["30"], ["'30'", "--section.key value"]),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_bad_configs_are_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    overrides: list[str],
    said: list[str],
) -> None:
    line = refusal(capsys, "train", config_file(tmp_path, **changes), "--run", str(tmp_path / "run"), *overrides)
    assert all(part in line for part in said), line
    assert not (tmp_path / "run").exists()


def test_a_missing_config_names_those_that_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config_file(tmp_path)
    line = refusal(capsys, "train", str(tmp_path / "other.yaml"))
    assert "other.yaml" in line and "tiny.yaml" in line


def test_a_user_sees_one_line_and_no_traceback(tmp_path: Path) -> None:
    """In a process of its own, where warnings and other libraries can speak too."""
    command = [sys.executable, "-c", "import sys; from worldmodel.training.cli import main; sys.exit(main())"]
    arguments = ["train", config_file(tmp_path, env={"id": "CartPol-v1"}), "--run", str(tmp_path / "run")]
    result = subprocess.run([*command, *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert "CartPole-v1" in line


# ------------------------------------------------------------------------------------------------ run folders


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(TINY, run=folder)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def copied(finished: Path, folder: Path) -> Path:
    for name, data in content(finished).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def only(folder: Path) -> Path:
    """The newest checkpoint of a run, which has no other any more."""
    *others, newest = numbers(folder / "checkpoint")
    for number in others:
        shutil.rmtree(folder / f"checkpoint/{number:05d}")
    return folder / f"checkpoint/{newest:05d}"


def test_a_folder_that_holds_a_run_is_kept(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(finished)
    line = refusal(capsys, "train", config_file(tmp_path), "--run", str(finished))
    assert str(finished) in line and "already holds a run" in line and "--run" in line
    assert content(finished) == before


def test_a_run_may_not_be_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_file(tmp_path)
    refusal(capsys, "train", config, "--run", config)
    assert load_config(config).seed == 0  # still a config


@pytest.mark.parametrize("folder", ["empty", "missing"])
def test_evaluating_no_run(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    line = refusal(capsys, "evaluate", str(tmp_path / folder))
    assert str(tmp_path / folder) in line and "holds no run" in line


def test_a_run_stopped_before_its_first_save(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_bytes((finished / "config.yaml").read_bytes())
    line = refusal(capsys, "evaluate", str(tmp_path))
    assert "no complete checkpoint" in line and "before its first save" in line


@pytest.mark.parametrize("name", ["model", "behaviour"])
def test_missing_weights(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    folder = copied(finished, tmp_path)
    (only(folder) / f"{name}.safetensors").unlink()
    assert f"{name}.safetensors" in refusal(capsys, "evaluate", str(folder))


def test_cut_weights(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied(finished, tmp_path)
    file = only(folder) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:500])
    assert "model.safetensors" in refusal(capsys, "evaluate", str(folder))


def test_a_checkpoint_of_another_shape(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The names that do not fit follow on lines of their own."""
    folder = copied(finished, tmp_path)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["model"]["latent"]["size"] = 5
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["evaluate", str(folder)]) == 2
    error = capsys.readouterr().err
    first = error.splitlines()[0]
    assert first.startswith("worldmodel evaluate: error: ") and "model.safetensors" in first and "WorldModel" in first
    assert "in the file" in error and "in the module" in error and "Traceback" not in error


def test_a_replay_of_another_environment(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied(finished, tmp_path)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["env"]["num_envs"] = 2
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert "replay.npz" in refusal(capsys, "evaluate", str(folder))


# ---------------------------------------------------------------------------- while it runs: faults, interrupts


def recorded(folder: Path) -> int:
    """Rows in the replay on disk."""
    with np.load(folder / "replay/replay.npz", allow_pickle=False) as archive:
        assert np.isfinite(archive["obs/x"]).all() and np.isfinite(archive["reward"]).all()
        return int(archive["stored"].sum())


@pytest.mark.parametrize("at", [5, 17], ids=["in the prefill", "in training"])
@pytest.mark.parametrize(("how", "said"), [("nan", "'x'"), ("shape", "'x'"), ("reward", "reward")])
def test_a_fault_is_named_and_what_was_recorded_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, said: str, at: int
) -> None:
    run = tmp_path / "run"
    assert main(["train", breaking(tmp_path, how, at), "--run", str(run)]) == 2
    captured = capsys.readouterr()
    line = captured.err.splitlines()[-1]
    assert line.startswith("worldmodel train: error: ") and "Traceback" not in captured.err
    assert said in line and f"step {at}" in line and "environment 0" in line
    assert recorded(run) == at  # the reset and the at - 1 sound steps after it
    assert load_config(run / "config.yaml").env.id == "test-errors/Breaks-v0"
    loaded = Run.load(run)
    assert len(loaded.replay) == at and loaded.env_steps == at - 1


@pytest.mark.filterwarnings("ignore:.*observation space:UserWarning")
def test_a_fault_at_the_reset_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(capsys, "train", breaking(tmp_path, "nan", 0), "--run", str(tmp_path / "run"))
    assert "'x' of environment 0 at step 0 is not finite" in line


def test_a_fault_is_an_exception_of_its_own_in_python(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match=r"'x'.* at step 9"):
        train(breaking(tmp_path, "nan", 9), run=tmp_path / "run")
    assert recorded(tmp_path / "run") == 9


def test_a_crash_of_the_environment_says_where_and_leaves_a_run(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match=r"the simulator died \(test_errors.py, line \d+\)") as found:
        train(breaking(tmp_path, "crash", 15), run=tmp_path / "run")
    assert isinstance(found.value.__cause__, RuntimeError)
    assert recorded(tmp_path / "run") == 15


def test_an_interrupt_leaves_a_loadable_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    changes = {"training": {"log_every": 2}}
    assert main(["train", breaking(tmp_path, "interrupt", 21, **changes), "--run", str(run)]) == 130
    captured = capsys.readouterr()
    assert (
        captured.err.splitlines()[-1] == f"worldmodel train: interrupted; to continue: worldmodel train --resume {run}"
    )
    loaded = Run.load(run)
    assert recorded(run) == len(loaded.replay) == 21 and loaded.env_steps == 20
    assert [json.loads(line)["global_step"] for line in (run / "metrics.jsonl").read_text().splitlines()][-1] == 20
    action, _ = loaded.agent.predict({"x": np.zeros(2, np.float32)}, deterministic=True)
    assert np.isfinite(action).all()


def test_collecting_keeps_what_came_before_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "data.npz"
    assert main(["collect", breaking(tmp_path, "nan", 6), "--steps", "20", "--out", str(out)]) == 2
    assert "'x' of environment 0 at step 6 is not finite" in capsys.readouterr().err
    with np.load(out) as archive:
        assert archive["stored"].tolist() == [6]


def test_collecting_leaves_no_file_where_nothing_was_recorded(tmp_path: Path, capsys: Any) -> None:
    """Which would be in the way of the next attempt."""
    out = tmp_path / "data.npz"
    assert main(["collect", breaking(tmp_path, "nan", 0), "--steps", "20", "--out", str(out)]) == 2
    assert "at step 0 is not finite" in capsys.readouterr().err and not out.exists()


# ------------------------------------------------------------------------------------ what a run keeps


def test_a_diverged_run_says_so_and_keeps_the_last_good_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", config_file(tmp_path), "--run", str(run), "--learner.lr", "1e30"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "diverged by step" in line and "not finite" in line
    assert not (run / "checkpoint").exists()  # there were no good ones yet
    assert (run / "replay" / "replay.npz").is_file()


def test_two_runs_cannot_claim_one_folder(tmp_path: Path) -> None:
    config = load_config(TINY)
    first, second = (Run.create(tmp_path / "run", config) for _ in range(2))
    first.begin()
    with pytest.raises(ValueError, match="already holds a run"):
        second.begin()


def test_overrides_may_stand_before_the_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(capsys, "train", "--training.steps", "many", config_file(tmp_path))
    assert "training.steps" in line and "'many'" in line
