"""The command line as a person or a script uses it."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from worldmodel.training import Run
from worldmodel.training.cli import main
from worldmodel.training.config.config import load_config
from worldmodel.training.config.schema import load_yaml
from worldmodel.training.evaluation.evaluation import Evaluation
from worldmodel.training.logging.logger import REPOSITORY

TINY: dict[str, Any] = {
    "env": {"id": "worldmodel/Counter-v0", "kwargs": {"length": 5, "continuous": True}},
    "model": {"hidden": 8, "latent": {"size": 4}, "dynamics": {"rssm": {"deter": 8, "hidden": 8}}},
    "behaviour": {"actor_critic": {"hidden": 8, "starts": 4, "horizon": 2}},
    "replay": {"batch_size": 2, "window": 4, "capacity": 500},
    "training": {"steps": 30, "prefill": 20, "pretrain": 1, "replay_ratio": 1, "log_every": 10},
    "evaluation": {"every": 1000, "episodes": 1, "final_episodes": 2},
    "logger": {"wandb": "disabled"},
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    return str(file)


@pytest.fixture(scope="module")
def finished(config: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    overrides = ["--training.steps", "25", "--behaviour.actor_critic.learner.lr=3e-4", "--logger.tags", "[a, b c]"]
    assert main(["train", config, "--seed", "7", "--run", str(folder), *overrides]) == 0
    return folder


def python(*arguments: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True)


# ---------------------------------------------------------------------------------------------------- train


def test_train_applies_file_options_and_overrides(finished: Path) -> None:
    made = Run.load(finished)
    assert made.config.seed == 7
    assert made.config.training.steps == made.env_steps == 25
    assert made.config.behaviour.actor_critic.learner.lr == 3e-4
    assert made.config.logger.tags == ["a", "b c"]
    assert made.config.env.kwargs == TINY["env"]["kwargs"] and made.config.replay.window == 4


def test_train_speaks_on_standard_error_alone(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", config, "--run", str(tmp_path / "run")]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "final evaluation on unseen seeds: return" in captured.err
    assert f"run saved in {tmp_path / 'run'}" in captured.err


def test_train_finds_free_folders_named_after_the_config(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["train", config, "--training.steps", "1"]) == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["tiny", "tiny-2"]


def test_an_environment_beside_the_user_is_found(config: str, tmp_path: Path) -> None:
    """`module:EnvId` of a file in the working directory, in a process of its own."""
    (tmp_path / "my_envs.py").write_text(
        "import gymnasium\nfrom worldmodel.envs.testing.probes import Counter\n"
        "gymnasium.register('Mine-v0', entry_point=Counter)\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); "
        "from worldmodel.training.cli import main; sys.exit(main())"
    )
    arguments = ["train", config, "--env.id", "my_envs:Mine-v0", "--training.steps", "6", "--run", "out"]
    result = python("-P", "-c", code, *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "checkpoint" / "00001" / "manifest.json").is_file()


# -------------------------------------------------------------------------------------------------- evaluate


def test_evaluate_ends_with_one_line_of_json(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(finished), "--episodes", "3", "--json"]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert found.keys() >= {"mean_return", "std_return", "returns", "env_steps"}
    assert found["env_steps"] == 25 and len(found["returns"]) == 3
    assert found["mean_return"] == pytest.approx(np.mean(found["returns"]))
    assert found["std_return"] == pytest.approx(np.std(found["returns"]))
    assert found["returns"] == [15.0] * 3  # Counter pays 1 + 2 + 3 + 4 + 5


def test_evaluate_without_json_is_for_people(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(finished), "--episodes", "2"]) == 0
    out = capsys.readouterr().out
    assert "return 15.0 ± 0 over 2 episodes" in out and "25 environment steps" in out and "{" not in out


def test_evaluate_plays_as_many_episodes_as_the_config_says(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(finished)]) == 0
    assert f"over {Run.load(finished).config.evaluation.final_episodes} episodes" in capsys.readouterr().out


def test_evaluate_writes_json_of_returns_that_are_infinite(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    endless = Evaluation([float("inf"), 1.0], [2, 2], imagined=[float("nan"), 1.0])
    monkeypatch.setattr(Run, "evaluate", lambda run, episodes: endless)
    assert main(["evaluate", str(finished), "--json"]) == 0

    def refuse(word: str) -> None:
        raise AssertionError(word)

    found = json.loads(capsys.readouterr().out.splitlines()[-1], parse_constant=refuse)
    assert found["mean_return"] is None and found["returns"] == [None, 1.0] and found["imagined_return"] is None


@pytest.mark.parametrize("arguments", [["--episodes", "many"], ["--training.steps", "3"], ["--jsn"]])
def test_evaluate_refuses_what_it_does_not_know(finished: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", str(finished), *arguments])
    assert caught.value.code == 2


def test_evaluate_refuses_no_episodes(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(finished), "--episodes", "0"]) == 2
    assert "episodes is 0" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------- collect


@pytest.mark.parametrize("num_envs", [1, 3])
def test_collect_writes_aligned_time_steps(config: str, tmp_path: Path, num_envs: int) -> None:
    """Counter shows time and the last action, and pays the time: every row can be checked by itself."""
    out = tmp_path / "deep" / "data.npz"
    overrides = ["--env.num_envs", str(num_envs)]
    assert main(["collect", config, "--steps", "12", "--out", str(out), "--seed", "3", *overrides]) == 0
    with np.load(out, allow_pickle=False) as archive:
        data = dict(archive)
    assert data["stored"].tolist() == [12 // num_envs + 1 + (12 // num_envs) // 5] * num_envs
    assert sum((~data["is_first"][env, : data["stored"][env]]).sum() for env in range(num_envs)) == 12
    for env in range(num_envs):
        rows = {name: array[env, : data["stored"][env]] for name, array in data.items() if name != "stored"}
        count, echo = rows["obs/observation"].T
        first, last = rows["is_first"], rows["is_last"]
        assert first[0] and (first[1:] == last[:-1]).all()
        later = ~first[1:]
        assert (count[1:][later] == count[:-1][later] + 1).all()
        assert (rows["reward"] == np.where(first, 0, count)).all()
        np.testing.assert_allclose(2 * rows["prev_action"][:, 0], echo, atol=1e-6)  # controls are actions / 2
        assert (rows["prev_action"][first] == 0).all() and np.unique(echo).size > 2
        assert (rows["is_terminal"] == last).all()


def test_collect_repeats_itself(config: str, tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.npz" for name in "abc"]
    for file, seed in zip(files, ("1", "1", "2"), strict=True):
        assert main(["collect", config, "--steps", "8", "--out", str(file), "--seed", seed]) == 0
    first, again, other = (np.load(file)["prev_action"] for file in files)
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@pytest.mark.parametrize(("steps", "name"), [("0", "data.npz"), ("5", "data.csv"), ("5", "taken.npz")])
def test_collect_refuses(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: str, name: str
) -> None:
    (tmp_path / "taken.npz").write_text("mine")
    assert main(["collect", config, "--steps", steps, "--out", str(tmp_path / name)]) == 2
    assert ("steps" if steps == "0" else name) in capsys.readouterr().err
    assert (tmp_path / "taken.npz").read_text() == "mine"


# ----------------------------------------------------------------------------------------- help, and configs


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["diagnose", "--help"]])
def test_help_is_fast_and_imports_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom worldmodel.training.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert end.code == 0\n"
        "print(sorted({'torch', 'wandb', 'gymnasium', 'numpy', 'rich'} & set(sys.modules)))"
    )
    began = time.perf_counter()
    result = python("-c", code, *arguments)
    seconds = time.perf_counter() - began
    assert result.returncode == 0, result.stderr
    assert "usage: worldmodel" in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"
    assert seconds < 1.5


def test_no_command_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert "command" in capsys.readouterr().err


CONFIGS = sorted(
    file for file in (REPOSITORY / "configs").rglob("*.yaml") if "data" not in load_yaml(file)
)  # not of fits


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_config_builds(file: Path) -> None:
    """Down to the networks, which a value that only fits its type would not."""
    try:
        assert Run(Path("unused"), load_config(file)).summary
    except ValueError as error:
        if "pip install 'worldmodel[" not in str(error):
            raise
        pytest.skip(str(error))  # it names the extra


def test_the_configs_that_the_readme_names_exist() -> None:
    assert {"pendulum", "cartpole"} <= {file.stem for file in CONFIGS}
