"""The runs of a suite survive whatever ends them, and end with the rows of runs that nobody ended."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

CONFIG = """
env: {id: Pendulum-v1, time_limit: 50}
model: {hidden: 16, latent: {size: 4}, dynamics: {rssm: {deter: 16, hidden: 16}}}
behaviour: {actor_critic: {hidden: 16, starts: 8, horizon: 3}}
replay: {batch_size: 4, window: 8}
training: {steps: 300, prefill: 40, pretrain: 2, replay_ratio: 32, log_every: 10}
evaluation: {every: 50, episodes: 2, final_episodes: 3, milestones: [150]}
logger: {wandb: disabled}
"""
DRIVER = """
import sys
sys.path.insert(0, {benchmarks!r})
import learning
from learning_suites import Curve
learning.SUITES["tiny"] = [Curve("Pendulum-v1", "tiny", {config!r}, ())]
learning.commit_of_code = lambda: {commit!r}
sys.exit(learning.main())
"""


@pytest.fixture(scope="module")
def learning(benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark("learning")


class Suite:
    """The command of a suite of one small task, in a folder."""

    def __init__(self, folder: Path, learning: ModuleType, commit: str = "a" * 40) -> None:
        self.out, self.runs, self.learning, self.commit = folder / "tiny.csv", folder / "runs", learning, commit
        self.config = folder / "tiny.yaml"
        self.config.write_text(CONFIG)
        self.arguments = ["tiny", "--seeds", "3", "--out", str(self.out), "--runs", str(self.runs)]

    def __call__(self, *more: str, commits: Iterator[str] | None = None) -> str:
        """What the command prints in the end, run in this process."""
        suites = {"tiny": [import_module("learning_suites").Curve("Pendulum-v1", "tiny", str(self.config), ())]}
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
            patch.setattr(self.learning, "SUITES", suites)
            patch.setattr(self.learning, "commit_of_code", lambda: next(commits) if commits else self.commit)
            patch.setattr(signal, "signal", lambda *_: None)
            patch.setattr(sys, "argv", ["learning.py", *self.arguments, *more])
            self.learning.main()
        return printed.getvalue()

    def begin(self) -> "subprocess.Popen[str]":
        """The command, in a process of its own."""
        benchmarks = str(Path(self.learning.__file__).parent)
        driver = DRIVER.format(benchmarks=benchmarks, config=str(self.config), commit=self.commit)
        command = [sys.executable, "-c", driver, *self.arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def reaches(self, step: int) -> None:
        """Wait until the run has logged this step."""
        until = time.monotonic() + 120
        while time.monotonic() < until:
            for file in self.runs.glob("*/metrics.jsonl"):
                if any(
                    json.loads(line)["global_step"] >= step for line in file.read_text().splitlines() if line[-1] == "}"
                ):
                    return
            time.sleep(0.02)
        raise AssertionError(f"step {step} was not reached")

    @property
    def folder(self) -> Path:
        return next(path.parent for path in self.runs.glob("*/config.yaml"))

    def trainer(self, parent: int) -> int:
        """The process that a command trains in."""
        of_threads = Path(f"/proc/{parent}/task").glob("*/children")
        return int(" ".join(file.read_text() for file in of_threads).split()[0])


def rows(learning: ModuleType, suite: Suite) -> list[dict[str, str]]:
    """All that was merged, but for what a clock says."""
    files = (suite.out, learning.learning_rows.final_file(suite.out))
    return [{**row, "seconds": ""} for file in files for row in learning.learning_rows.read(file)]


@pytest.fixture(scope="module")
def undisturbed(learning: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Suite:
    suite = Suite(tmp_path_factory.mktemp("undisturbed"), learning)
    assert "done, and its rows are in" in suite()
    return suite


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="children are found by /proc")
def test_ended_by_sigterm_and_by_kill_it_goes_on_to_the_same_rows(
    learning: ModuleType, undisturbed: Suite, tmp_path: Path
) -> None:
    suite = Suite(tmp_path, learning)
    command = suite.begin()
    suite.reaches(80)
    began = time.monotonic()
    command.send_signal(signal.SIGTERM)
    assert "SIGTERM: every run saves itself" in command.communicate(timeout=60)[0] and command.returncode == 1
    assert time.monotonic() - began < 20 and not suite.out.exists()
    stopped = suite("--status")
    assert "stopped at step" in stopped and "last: was stopped" in stopped and "0 done, 0 running, 1 missing" in stopped

    command = suite.begin()
    suite.reaches(200)
    trainer = suite.trainer(command.pid)
    os.kill(trainer, signal.SIGSTOP)
    try:
        assert "running at step" in suite("--status")
        assert f"another process trains it (its number was {trainer})" in suite()
    finally:
        command.kill()
        os.kill(trainer, signal.SIGKILL)
    assert "goes on" in command.communicate(timeout=60)[0]

    assert "done, and its rows are in" in suite()
    assert rows(learning, suite) == rows(learning, undisturbed)
    assert "1 done, 0 running, 0 missing; 0 other run(s)" in suite("--status")


def test_rows_say_which_run_they_are_of(learning: ModuleType, undisturbed: Suite) -> None:
    curve = learning.learning_rows.read(undisturbed.out)
    table = learning.learning_rows.read(learning.learning_rows.final_file(undisturbed.out))
    assert [row["env_steps"] for row in curve] == ["50", "100", "150", "200", "250", "300"]
    assert [row["frames"] for row in table] == ["150", "300"]  # the milestone, and the end
    assert {(row["task"], row["seed"], row["commit"], row["threads"]) for row in curve + table} == {
        ("Pendulum-v1", "3", "a" * 40, "1")
    }
    logged = [json.loads(line) for line in (undisturbed.folder / "metrics.jsonl").read_text().splitlines()]
    last = next(line for line in logged if "final/mean_reward" in line)
    assert float(table[-1]["return"]) == last["final/mean_reward"]
    assert 0 < float(table[-1]["seconds"]) == pytest.approx(last["seconds"] - last["time/evaluation_seconds"], abs=2e-3)
    assert last["time/evaluation_seconds"] > 0


def test_what_is_done_is_not_made_again_and_other_commits_stay_apart(
    learning: ModuleType, undisturbed: Suite, tmp_path: Path
) -> None:
    suite = Suite(tmp_path, learning)
    shutil.copy(undisturbed.out, suite.out)
    final = learning.learning_rows.final_file
    shutil.copy(final(undisturbed.out), final(suite.out))
    assert "1 of 1 runs are in" in suite() and not list(suite.runs.glob("*/config.yaml"))
    newer = Suite(tmp_path, learning, "b" * 40)
    assert "0 done, 0 running, 1 missing; 1 other run(s)" in newer("--status")


def test_a_run_whose_folder_is_lost_begins_again_and_says_so(
    learning: ModuleType, undisturbed: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = Suite(tmp_path, learning)
    assert "3: missing" in suite("--status")
    begun = json.dumps({"time": "", "run": undisturbed.folder.name, "event": "begins", "pid": 1})
    (suite.runs / learning.JOURNAL).write_text(begun + '\n{"time": "cut off')
    assert "lost: begun, and its folder is gone" in suite("--status")
    monkeypatch.setattr(learning, "sys", SimpleNamespace(executable=shutil.which("false")))
    assert "FAILED with exit status 1, see" in suite()
    script = tmp_path / "begins"  # as `worldmodel train` does, and then fails
    script.write_text('#!/bin/sh\nmkdir -p "$8" && touch "$8/config.yaml" && sleep 0.5 && exit 3\n')
    script.chmod(0o755)
    monkeypatch.setattr(learning, "sys", SimpleNamespace(executable=str(script)))
    said = suite()
    assert "begins again: its folder is lost" in said and "FAILED with exit status 3" in said
    assert "last: failed (3)" in suite("--status")
    assert [entry["event"] for entry in learning.journal(suite.runs)][1:] == [
        "begins again: its folder is lost",
        "failed (3)",
    ]


def test_one_run_whose_rows_cannot_be_merged_does_not_end_the_others(
    learning: ModuleType, undisturbed: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = Suite(tmp_path, learning)
    shutil.copytree(undisturbed.folder, suite.runs / undisturbed.folder.name)
    merge = learning.learning_rows.merge

    def full(file: Path, rows: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(learning.learning_rows, "merge", full)
    assert "No space left on device; the same command goes on from here" in suite()
    monkeypatch.setattr(learning.learning_rows, "merge", merge)
    assert "done, and its rows are in" in suite()
    assert rows(learning, suite) == rows(learning, undisturbed)


def test_stopping_reaches_the_runs_where_nobody_reads_what_is_said(
    learning: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: Any, **__: Any) -> None:
        raise BrokenPipeError

    runner, sent = learning.Runner(tmp_path / "out.csv", tmp_path), []
    child = type("Child", (), {"send_signal": lambda _, number: sent.append(number)})
    runner.children.add(child())
    monkeypatch.setattr("builtins.print", closed)
    runner.stop(signal.SIGHUP, None)
    assert sent == [signal.SIGTERM] and runner.stopped
    assert set(learning.STOPS) >= {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


def test_code_that_changes_in_between_makes_no_rows(
    learning: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = Suite(tmp_path, learning)
    commits = iter(["a" * 40, "b" * 40])
    assert "the code is at commit bbbbbbbb now, and this run is of aaaaaaaa" in suite(commits=commits)
    assert not list(suite.runs.glob("*/config.yaml"))


def test_reported_seeds_are_not_looked_at_before_the_config_is_frozen(learning: ModuleType) -> None:
    commit = "0123456789" * 4
    learning.check_seeds("control18", range(1, 4), "", commit)
    learning.check_seeds("classic", range(11, 16), "", commit)
    learning.check_seeds("control18", range(101, 104), "01234567", commit)
    for seeds, frozen, says in (
        (range(1, 6), "", "1-5 are neither"),
        (range(3, 102), "01234567", "neither"),
        (range(101, 103), "", "--frozen names that commit, and this is 01234567"),
        (range(101, 103), "89abcdef", "this is 01234567"),
        (range(101, 103), "0", "this is 01234567"),
    ):
        with pytest.raises(ValueError, match=says):
            learning.check_seeds("control18", seeds, frozen, commit)


def test_a_digest_tells_configs_apart_and_seeds_together(learning: ModuleType) -> None:
    config = {"env": {"id": "Pendulum-v1"}}
    digest = import_module("learning_runs").digest
    found = digest(learning.load_config(config, seed=1))
    assert found == digest(learning.load_config(config, ["--logger.wandb", "disabled"], seed=2))
    assert found != digest(learning.load_config(config, ["--learner.lr", "2e-3"]))


def test_code_that_is_not_committed_makes_no_rows(
    learning: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True, capture_output=True)

    code = tmp_path / "training" / "__init__.py"
    code.parent.mkdir()
    code.write_text("")
    runs = import_module("learning_runs")
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="instead of that of"):
        runs.commit_of_code()
    monkeypatch.setattr(runs.training, "__file__", str(code))
    with pytest.raises(ValueError, match="no git checkout"):
        runs.commit_of_code()
    git("init")
    git("add", ".")
    git("commit", "-m", "begin")
    (tmp_path / "results.csv").write_text("rows are no code")
    commit = runs.commit_of_code()
    assert len(commit) == 40 and (runs.checkout("HEAD", tmp_path / "runs") / "training").is_dir()
    assert runs.checkout("HEAD", tmp_path / "runs").name == commit
    code.write_text("changed = True")
    with pytest.raises(ValueError, match=r"not committed: training/__init__.py"):
        runs.commit_of_code()
    with pytest.raises(ValueError, match="--at never"):
        runs.checkout("never", tmp_path / "runs")


def test_the_suite_holds_the_eighteen_tasks_of_the_published_tables(learning: ModuleType) -> None:
    curves = learning.SUITES["control18"]
    assert len({curve.task for curve in curves}) == 18
    for curve in curves:
        config = learning.load_config(learning.ROOT / curve.config, curve.overrides)
        assert config.env.action_repeat * config.training.steps == 100_000
        assert config.env.action_repeat * config.evaluation.every == 5_000 and config.evaluation.episodes == 10
        assert config.evaluation.milestones == [25_000] and config.evaluation.final_episodes == 50


def test_commands_that_can_make_nothing_say_so(
    learning: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = Suite(tmp_path, learning)
    with pytest.raises(ValueError, match=r"--only acrobat chooses nothing of 'Pendulum-v1 tiny'"):
        suite("--only", "acrobat")
    with pytest.raises(SystemExit):
        suite("--seeds", "3-1")
    assert "the first seed is above the last: 3-1" in capsys.readouterr().err
    with pytest.raises(ValueError, match="Choose another"):
        suite("--out", str(suite.config / "rows.csv"))
    suite.out.write_text("a,b\n")
    with pytest.raises(ValueError, match="holds no learning curves: its first line is 'a,b'"):
        suite()
    with pytest.raises(ValueError, match="control18 runs for weeks: choose a folder outside of"):
        learning.check_place("control18", learning.ROOT / "runs")
    learning.check_place("control18", tmp_path)
    learning.check_place("classic", learning.ROOT / "runs")
