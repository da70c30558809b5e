"""Commands with bad input, in this process: what they said, how long they took, and that they left nothing behind."""

import faulthandler
import io
import resource
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium import spaces

from worldmodel.training import cli

SECONDS = 20.0  # of one command; other processes share the machine
ROOM = 6 * 2**30  # bytes that commands may ask for beyond what the process has

TINY: dict[str, Any] = {
    "env": {"id": "Pendulum-v1", "time_limit": 10},
    "model": {
        "hidden": 8,
        "latent": {"size": 4, "groups": 2, "classes": 3},
        "dynamics": {"name": "rssm", "rssm": {"deter": 8, "hidden": 8}, "dkf": {"hidden": 8}},
    },
    "behaviour": {"actor_critic": {"hidden": 8, "starts": 4, "horizon": 2}},
    "replay": {"batch_size": 2, "window": 4, "capacity": 500},
    "training": {"steps": 40, "prefill": 8, "pretrain": 1, "replay_ratio": 1, "log_every": 10},
    "evaluation": {"every": 1000, "episodes": 1, "final_episodes": 1},
    "logger": {"wandb": "disabled"},
}


class Hung(BaseException):
    """A command took too long. No `Exception`: no handler of a command may swallow it."""


class Outcome(NamedTuple):
    """What a command came to."""

    code: int
    err: str
    out: str
    kind: str  # of the error; empty if there was none
    seconds: float


class Shapeless(gym.Env[Any, Any]):
    """Of spaces that no model takes."""

    def __init__(self, observed: str = "text", acts: str = "box") -> None:
        box = spaces.Box(-1, 1, (2,), np.float32)
        known = {
            "box": box,
            "text": spaces.Text(5),
            "sequence": spaces.Sequence(box),
            "graph": spaces.Graph(box, None),
            "tuple": spaces.Tuple((box, spaces.Discrete(2))),
            "dict": spaces.Dict({"a": box, "b": spaces.Dict({"c": box})}),
            "empty": spaces.Box(-1, 1, (0,), np.float32),
            "unbounded": spaces.Box(-np.inf, np.inf, (2,), np.float32),
            "integers": spaces.Box(0, 9, (2,), np.int64),
            "point": spaces.Box(1, 1, (2,), np.float32),
            "none": spaces.Dict({}),
        }
        self.observation_space, self.action_space = known[observed], known[acts]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}


class Fails(Shapeless):
    """Its constructor does not come to an end that anyone foresaw."""

    def __init__(self) -> None:
        raise KeyError("nobody foresaw\nthis")


gym.register("faults/Shapeless-v0", entry_point=Shapeless)
gym.register("faults/Fails-v0", entry_point=Fails)


@dataclass
class Commands:
    """Runs commands in a folder of their own, and counts what they come to."""

    folder: Path
    kinds: list[str]
    counts: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, str] = (0.0, "")

    def run(self, arguments: list[str]) -> Outcome:
        """One command, within its time."""
        self.kinds.clear()
        out, err, began = io.StringIO(), io.StringIO(), time.perf_counter()
        with within(SECONDS), redirect_stdout(out), redirect_stderr(err):
            try:
                code = cli.main(arguments)
            except SystemExit as end:  # of argparse
                code = int(end.code or 0)
                self.kinds.append("usage")
        seconds = time.perf_counter() - began
        self.slowest = max(self.slowest, (seconds, " ".join(arguments)[:200]))
        return Outcome(code, err.getvalue(), out.getvalue(), "".join(self.kinds[-1:]), seconds)

    def refusal(self, arguments: list[str], name: str, mentions: tuple[str, ...] = ()) -> Outcome | None:
        """The outcome of a command that must be refused in one line, as a user's mistake; None if it was accepted.

        Args:
            name: of what is counted. mentions: of which the line must hold at least one.
        """
        before = content(self.folder)
        outcome = self.run(arguments)
        if outcome.code == 0:
            self.counts["accepted"] += 1
            self.clean(before)
            return None
        about = f"{arguments}\n{outcome.err[-3000:]}"
        assert outcome.code == 2, about
        lines = outcome.err.splitlines()
        assert all(line.startswith("  ") for line in lines[1:]) and outcome.out == "", about  # what a list goes on with
        assert lines[0].startswith(f"worldmodel {arguments[0]}: error: ") and "Traceback" not in lines[0], about
        assert len(outcome.err) < 3000 and all(letter.isprintable() for line in lines for letter in line), about
        assert outcome.kind in ("ValueError", "ConfigError", "TakenError", "usage"), (
            f"unforeseen {outcome.kind}: {about}"
        )
        assert not mentions or any(word in lines[0] for word in mentions), f"none of {mentions} in {about}"
        after = content(self.folder)
        assert after == before, f"left behind {sorted(after - before)}, lost {sorted(before - after)}: {about}"
        self.counts[name] += 1
        return outcome

    def clean(self, before: set[str]) -> None:
        """Remove what an accepted command made."""
        for path in sorted(content(self.folder) - before):
            whole = self.folder / path
            if whole.is_dir():
                shutil.rmtree(whole)
            elif whole.exists():
                whole.unlink()

    @property
    def refused(self) -> int:
        """Commands that were."""
        return self.counts.total() - self.counts["accepted"]

    def report(self) -> str:
        """For a person."""
        each = ", ".join(f"{name} {count}" for name, count in sorted(self.counts.items()))
        return f"{self.refused} refused; {each}; slowest {self.slowest[0]:.1f} s: {self.slowest[1]}"


def content(folder: Path) -> set[str]:
    """Every file and folder below one."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise :class:`Hung` after that time; where nothing listens, in a loop of C, end the process with a traceback."""

    def hung(number: int, frame: object) -> None:
        raise Hung(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, hung)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(4 * seconds, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()


@contextmanager
def memory_bounded() -> Iterator[None]:
    """Let allocations beyond ROOM fail: that of a size nobody checked is then an error of a kind nobody expects."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + ROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Commands]:
    """In an empty working directory, with bounded memory; nothing is trained: all that is checked comes before."""
    kinds: list[str] = []
    told = cli.told

    def noted(error: Exception, debug: bool = False) -> str:
        kinds.append(type(error).__name__)
        return told(error, debug)

    monkeypatch.setattr(cli, "told", noted)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    term = signal.getsignal(signal.SIGTERM)
    with memory_bounded():
        yield Commands(tmp_path, kinds)
    signal.signal(signal.SIGTERM, term)


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """`train` and `fit` end when they have claimed their folder."""

    def begun(loop: Any) -> Any:
        loop.trainer.envs.close()
        return loop.trainer.run

    monkeypatch.setattr("worldmodel.training.start.finish", begun)
    monkeypatch.setattr("worldmodel.training.fitting.fit.Fitting.run", lambda self: None)
    monkeypatch.setattr("worldmodel.training.fitting.fit_run.FitRun.finish", lambda self, parts: None)


@pytest.fixture(name="tiny")
def tiny_fixture() -> dict[str, Any]:
    return TINY


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    assert cli.main(["train", str(folder / "tiny.yaml"), "--run", str(folder / "run")]) == 0
    return folder / "run"


Copy = Callable[[], Path]


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Copy:
    """A fresh copy of the finished run, in the place of the last."""

    def copied() -> Path:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(finished, tmp_path / "run")
        return tmp_path / "run"

    return copied
