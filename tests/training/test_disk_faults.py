"""A disk that is full, for a while or for good: training goes on, or stops, and nothing recorded is lost."""

import errno
import json
import os
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldmodel.training import Run, start, train
from worldmodel.training.cli import main
from worldmodel.training.config.schema import dump_yaml
from worldmodel.training.logging import lines, wandb_run
from worldmodel.training.logging.lines import Lines
from worldmodel.training.logging.logger import REPOSITORY, Logger, LoggerConfig
from worldmodel.training.loop.interrupt import Interrupt
from worldmodel.training.run.checkpoint import numbers
from worldmodel.training.start import resume

TINY: dict[str, Any] = {
    "env": {"id": "Pendulum-v1", "time_limit": 30},
    "model": {"hidden": 8, "latent": {"size": 4}, "dynamics": {"rssm": {"deter": 8, "hidden": 8}}},
    "behaviour": {"actor_critic": {"hidden": 8, "starts": 4, "horizon": 2}},
    "replay": {"batch_size": 2, "window": 4},
    "training": {"steps": 60, "prefill": 20, "pretrain": 0, "replay_ratio": 8, "log_every": 10},
    "evaluation": {"every": 20, "episodes": 1, "final_episodes": 1},
    "logger": {"wandb": "disabled"},
}
PYTHON: dict[str, Any] = {
    "cwd": REPOSITORY,
    "env": {**os.environ, "PYTHONPATH": str(REPOSITORY)},
    "capture_output": True,
    "text": True,
}
DYING = """
import os, signal, sys
from pathlib import Path
from worldmodel.training.logging.logger import Logger, LoggerConfig

logger = Logger(Path(sys.argv[1]), LoggerConfig(wandb="offline"), {})
logger.log({"x": 1}, 1)
for process in Path("/proc").glob("[0-9]*"):
    status = process / "stat"
    if status.is_file() and int(status.read_text().rpartition(")")[2].split()[1]) == os.getpid():
        os.kill(int(process.name), signal.SIGKILL)
for step in range(2, 200):
    logger.log({"x": step}, step)
logger.close()
"""
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Disk:
    """A disk that is full while `full`, and then takes part of what is written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full, self.write, self.fsync = False, os.write, os.fsync
        monkeypatch.setattr(lines.os, "write", self.written)  # type: ignore[attr-defined]
        monkeypatch.setattr(os, "fsync", self.synced)

    def written(self, descriptor: int, content: Any) -> int:
        if self.full and len(content) < 10:
            raise FULL
        return self.write(descriptor, content[: len(content) // 2] if self.full else content)

    def synced(self, descriptor: int) -> None:
        if self.full:
            raise FULL
        self.fsync(descriptor)


def test_lines_wait_for_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No line is lost, none is torn, and a person is told twice: when it begins, and when it is over."""
    said: list[str] = []
    file, disk = Lines(tmp_path / "lines", None, said.append), Disk(monkeypatch)
    for number in range(10):
        disk.full = 3 <= number < 7
        file.write(f"this is line {number}\n")
        if disk.full:
            assert (tmp_path / "lines").read_text().endswith("line 2\n")
    file.close()
    assert (tmp_path / "lines").read_text() == "".join(f"this is line {number}\n" for number in range(10))
    assert len(said) == 2 and "No space left" in said[0] and "No line is missing" in said[1]


def test_what_never_could_be_written_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    file, disk = Lines(tmp_path / "lines", None, said.append), Disk(monkeypatch)
    file.write("this is a line\n")
    disk.full = True
    file.write("this is another\n")
    file.write("and one more\n")
    file.close()
    assert (tmp_path / "lines").read_text() == "this is a line\n" and "2 line(s) could not be written" in said[-1]


def test_lines_that_wait_are_written_before_anyone_asks_where_the_file_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else they would come after that place, and be taken for what a resumed run does again."""
    disk, config = Disk(monkeypatch), LoggerConfig(wandb="disabled")
    logger = Logger(tmp_path, config, {}, say=lambda line: None)
    for step in (1, 2):
        disk.full = step == 2
        logger.log({"x": step}, step)
    disk.full = False
    position = logger.position()
    logger.close()
    again = Logger(tmp_path, config, {}, say=lambda line: None, since=position)
    again.log({"x": 3}, 3)
    again.close()
    assert [row["x"] for row in rows(tmp_path)] == [1, 2, 3]


def test_a_file_that_lost_lines_is_told(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "lines").write_text("one line\n")
    Lines(tmp_path / "lines", 15, said.append).close()
    assert said == [f"{tmp_path / 'lines'} is shorter than it was at the checkpoint: 6 bytes are missing."]


@pytest.mark.parametrize(
    ("content", "keep", "left"),
    [
        ("edited by hand\nb\nc\n", 4, "edited by hand\n"),  # the line in which the checkpoint ends stays whole
        ("a\nb\nedited by hand\n", 4, "a\nb\n"),
        ("a\nedited by hand", 4, "a\n"),  # and one without an end goes
        ("edited by hand", 4, ""),
    ],
)
def test_a_file_that_was_edited_keeps_whole_lines(content: str, keep: int, left: str, tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "lines").write_text(content)
    lines = Lines(tmp_path / "lines", keep, said.append)
    lines.write("next\n")
    lines.close()
    assert (tmp_path / "lines").read_text() == left + "next\n"
    assert bool(said) == (len(left) != keep) and all("was changed after the checkpoint" in line for line in said)


def test_who_asks_a_run_to_stop_does_not_wait_for_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does any other fault of the disk."""
    interrupt, attempts = Interrupt(), []

    def fails(problem: int) -> None:
        attempts.append(problem)
        raise OSError(problem, os.strerror(problem))

    monkeypatch.setattr(start, "AGAIN", 0.01)
    for problem, interrupt.asked in ((errno.ENOSPC, True), (errno.ENOTDIR, False)):
        with pytest.raises(OSError, match=r"not saved; .*worldmodel train --resume"):
            start.insist(partial(fails, problem), print, tmp_path, interrupt)
    assert len(attempts) == 2


def test_training_goes_on_while_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """From before the evaluation at 40 steps until after it. It ends as if nothing had been."""
    whole = train(TINY, run=tmp_path / "whole", seed=3).folder
    capsys.readouterr()
    disk, collect = Disk(monkeypatch), start.Trainer.collect

    def watched(trainer: Any, behaviour: Any) -> None:
        collect(trainer, behaviour)
        disk.full = 35 <= trainer.envs.steps < 45

    monkeypatch.setattr(start.Trainer, "collect", watched)
    folder = train(TINY, run=tmp_path / "run", seed=3).folder
    said = capsys.readouterr().err
    assert "40 steps: not saved" in said and "training continues" in said and "No line is missing" in said
    assert [row["global_step"] for row in rows(folder)] == [row["global_step"] for row in rows(whole)]
    assert len(numbers(folder / "checkpoint")) >= 2 and not list(folder.rglob("*partial*"))
    one, two = ({**Run.load(each).model.state_dict()} for each in (whole, folder))
    assert all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("recovers", [True, False])
def test_the_last_save_waits_for_room(
    recovers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """For some minutes. Where none comes, the checkpoint before is left, from which the run goes on."""
    disk, save = Disk(monkeypatch), start.Loop.save
    monkeypatch.setattr(start, "AGAIN", 0.02)
    monkeypatch.setattr(start, "PATIENCE", 0.1)
    attempts = []

    def watched(loop: Any, mean_return: float | None = None) -> None:
        if loop.finished:
            attempts.append(loop.steps)
            disk.full = len(attempts) < 3 or not recovers
        save(loop, mean_return)

    monkeypatch.setattr(start.Loop, "save", watched)
    config = tmp_path / "tiny.yaml"
    config.write_text(dump_yaml(TINY))
    assert main(["train", str(config), "--run", str(tmp_path / "run")]) == (0 if recovers else 2)
    said = capsys.readouterr().err
    assert "Free some disk space" in said and ("No space left" in said.splitlines()[-1]) == (not recovers)
    assert len(attempts) >= 3
    monkeypatch.undo()
    assert Run.load(tmp_path / "run").env_steps == 60
    if recovers:
        with pytest.raises(ValueError, match="has taken 60 steps"):
            resume(tmp_path / "run")
    else:
        assert resume(tmp_path / "run").env_steps == 60  # evaluated once more


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs limits on the size of files")
def test_a_real_limit_of_the_system(tmp_path: Path) -> None:
    """No file may have more than 6,000 bytes: weights do not fit, and metrics do."""
    config = tmp_path / "tiny.yaml"
    config.write_text(dump_yaml(TINY))
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000));"
        "from worldmodel.training import cli, start; start.PATIENCE = start.AGAIN = 0.1; sys.exit(cli.main())"
    )
    command = [sys.executable, "-c", code, "train", str(config), "--run", str(tmp_path / "run")]
    done = subprocess.run(command, **PYTHON)
    assert done.returncode == 2, done.stderr
    assert "File too large" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert "40 steps: not saved" in done.stderr and "60 steps: not saved" in done.stderr
    assert [row["global_step"] for row in rows(tmp_path / "run")][-1] == 60
    assert not numbers(tmp_path / "run/checkpoint") and not list((tmp_path / "run").rglob("*partial*"))


@pytest.mark.parametrize("where", ["file/run", "/proc/run"])
def test_a_folder_that_cannot_be_made_is_told_before_training(where: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").write_text("")
    config = tmp_path / "tiny.yaml"
    config.write_text(dump_yaml(TINY))
    assert main(["train", str(config), "--run", str(tmp_path / where)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("worldmodel train: error: ") and where in line


def test_weights_and_biases_that_dies_does_not_take_the_run_with_it(tmp_path: Path) -> None:
    """Its service, the child of a process of its own here, is killed between two rows."""
    (tmp_path / "script.py").write_text(DYING)
    done = subprocess.run([sys.executable, str(tmp_path / "script.py"), str(tmp_path / "run")], **PYTHON)
    assert [row["global_step"] for row in rows(tmp_path / "run")] == list(range(1, 200)), done.stderr
    said = done.stdout.splitlines()
    assert "offline" in said[0] and "switched off" in said[1] and len(said) == 2


def test_what_could_not_be_uploaded_in_time_is_told(tmp_path: Path) -> None:
    said: list[str] = []

    class Slow:
        class settings:
            sync_dir = "run/wandb/offline"

        def finish(self) -> None:
            raise TimeoutError

    wandb_run.finish_wandb(Slow(), said.append)  # type: ignore[arg-type]
    assert said == ["Weights & Biases: the upload is incomplete. To finish it later: wandb sync run/wandb/offline"]
