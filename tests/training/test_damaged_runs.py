"""What somebody or something did to the folder of a run is told, and costs nothing that was recorded."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from worldmodel.training import train
from worldmodel.training.cli import main
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

Same = Callable[[Path, Path], None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, which stays as it is."""
    return train(TINY, run=tmp_path_factory.mktemp("runs") / "whole", seed=5).folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def test_a_run_that_is_being_trained_is_left_alone(folder: Path, capsys: Any) -> None:
    held = f"with alone({str(folder)!r}): print('held', flush=True); input()"
    code = f"from worldmodel.training.run.lock import alone\n{held}"
    code = "from pathlib import Path\n" + code.replace("alone('", "alone(Path('").replace("'): print", "')): print")
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        assert main(["train", "--resume", str(folder), "--training.steps", "120"]) == 2
        assert "another process is training this run" in capsys.readouterr().err
        other.kill()
    assert main(["train", "--resume", str(folder), "--training.steps", "1.2e2"]) == 0


def test_what_was_recorded_is_kept_where_somebody_removed_the_checkpoints(
    whole: Path, folder: Path, capsys: Any, assert_same_run: Same
) -> None:
    """It begins once more beside it, and says so."""
    shutil.rmtree(folder / "checkpoint")
    capsys.readouterr()
    resume(folder)
    said = capsys.readouterr().err
    assert "holds no checkpoint, so the run starts again" in said and f"are kept in {folder / 'before-1'}" in said
    for name in ("metrics.jsonl", "replay/replay.npz"):
        assert (folder / "before-1" / name).read_bytes() == (whole / name).read_bytes()
    shutil.rmtree(folder / "before-1")
    assert_same_run(whole, folder)


@pytest.mark.parametrize("name", ["checkpoint", "replay", "metrics.jsonl", "lock"])
def test_something_else_in_the_place_of_a_part_of_a_run_is_refused(name: str, folder: Path, capsys: Any) -> None:
    capsys.readouterr()
    part = folder / name
    if part.is_dir():
        shutil.rmtree(part)
        part.write_text("hi")
    else:
        part.unlink()
        part.mkdir()
    assert main(["train", "--resume", str(folder), "--training.steps", "120"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert str(part) in said and "Remove it, or put back" in said


def test_a_file_in_the_place_of_the_last_checkpoint_is_a_damaged_one(
    whole: Path, folder: Path, capsys: Any, assert_same_run: Same
) -> None:
    shutil.rmtree(folder / "checkpoint" / "00003")
    (folder / "checkpoint" / "00003").write_text("hi")
    assert main(["train", "--resume", str(folder)]) == 0
    assert "is used instead" in capsys.readouterr().err
    assert_same_run(whole, folder)


def test_what_somebody_put_among_the_checkpoints_stays_and_is_in_nobodys_way(folder: Path, capsys: Any) -> None:
    (folder / "checkpoint" / "notes.partial").write_text("mine")
    (folder / "checkpoint" / "00003" / "manifest.json").write_text('{"format": 1e999}')
    assert main(["train", "--resume", str(folder), "--training.steps", "120"]) == 0
    said = capsys.readouterr().err
    assert "manifest.json cannot be read" in said and "is used instead" in said
    assert (folder / "checkpoint" / "notes.partial").read_text() == "mine"


def test_a_config_of_a_run_that_was_cut_off_is_told(folder: Path, capsys: Any) -> None:
    text = (folder / "config.yaml").read_text()
    for left, lost in (("", "env, model, objective"), (text[: text.index("evaluation:")], "evaluation, logger")):
        (folder / "config.yaml").write_text(left)
        for command in (["train", "--resume", str(folder)], ["evaluate", str(folder)]):
            assert main(command) == 2
            assert f"{folder / 'config.yaml'} has lost the sections {lost}" in capsys.readouterr().err
        assert (folder / "config.yaml").read_text() == left


@pytest.mark.parametrize("file", ["model", "behaviour", "training", "replay", "manifest"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_taken(
    file: str, whole: Path, folder: Path, capsys: Any, assert_same_run: Same
) -> None:
    """As by a bad disk, one bit of one file. What follows the one before is done again, and ends the same."""
    damaged = folder / "checkpoint" / "00003"
    (path,) = damaged.glob(f"{file}.*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert main(["train", "--resume", str(folder)]) == 0
    said = capsys.readouterr().err
    assert str(damaged) in said and "Checkpoint 00002 (environment step 80) is used instead" in said
    assert_same_run(whole, folder)
    assert sorted(path.name for path in (folder / "checkpoint").iterdir())[-2:] == ["00002", "00003"]
