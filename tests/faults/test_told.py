"""Whatever goes wrong in a command is told in one line; where it came from, only to who asks."""

import errno
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from worldmodel.training import cli
from worldmodel.training.config.config import load_config
from worldmodel.training.logging.logger import REPOSITORY
from worldmodel.training.run.folder import claim

MANY = "line one\nline two\x1b[31m" + "x" * 9000


def failing(error: BaseException) -> Any:
    def command(*_: Any) -> None:
        raise error

    return command


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("lr must be positive: -1"), "lr must be positive: -1"),
        (FloatingPointError("training diverged by step 3"), "training diverged by step 3"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), "No space left on device: runs/x"),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system"),
        (PermissionError(errno.EACCES, "Permission denied", "runs/x"), "Permission denied: runs/x"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "Broken pipe"),  # not of standard output
        (MemoryError("Unable to allocate 3 TiB"), "out of memory (Unable to allocate 3 TiB): lower the sizes"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), "out of memory (DefaultCPUAllocator"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "out of memory (CUDA"),
        (caused(RuntimeError("stopped at 3"), ValueError("odd")), "RuntimeError: stopped at 3, from ValueError: odd"),
        (KeyError("nobody\nforesaw"), "KeyError: 'nobody\\nforesaw' (--debug shows where)"),
        (AssertionError(), "AssertionError: (--debug shows where)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
@pytest.mark.parametrize("debug", [False, True], ids=["plain", "debug"])
def test_every_failure_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, said: str, debug: bool
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "evaluate", failing(error))
    assert cli.main(["evaluate", "run", *["--debug"] * debug]) == 2
    captured = capsys.readouterr()
    *before, last = captured.err.splitlines()
    said = said.removesuffix(" (--debug shows where)") if debug else said
    assert last.startswith(f"worldmodel evaluate: error: {said}") and captured.out == ""
    assert ("Traceback (most recent call last):" in before and any("in command" in line for line in before)) == debug
    assert debug or not before


@pytest.mark.parametrize("command", [*cli.COMMANDS])
def test_every_command_takes_debug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setitem(cli.COMMANDS, command, failing(ValueError("wrong")))
    given = {
        "train": ["c.yaml"],
        "fit": ["c.yaml", "d.csv"],
        "collect": ["c.yaml", "--steps", "1", "--out", "x.npz"],
        "export": ["a", "minari:b-v0"],
    }
    assert cli.main([command, *given.get(command, ["run"]), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_no_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(cli.COMMANDS, "evaluate", failing(KeyboardInterrupt()))
    assert cli.main(["evaluate", "run", "--debug"]) == 130
    assert capsys.readouterr().err == "worldmodel evaluate: interrupted\n"


def test_a_message_leaves_the_terminal_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "evaluate", failing(ValueError(MANY)))
    assert cli.main(["evaluate", "run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "line one line two\\x1b[31mxxx" in line and " ... " in line and len(line) < 2_100


def test_wrong_arguments_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["evaluate"], ["evaluate", "run", "--episodes", "many"], ["evaluate", "run", "--x.y", "3"], []):
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        (line,) = capsys.readouterr().err.splitlines()
        assert end.value.code == 2 and line.startswith("worldmodel") and "error: " in line and "--help" in line


@pytest.mark.parametrize("size", [10, 100_000], ids=["at the end", "on the way"])
def test_nobody_listens(size: int) -> None:
    """In a process of its own whose output is closed at once, as by `| true`."""
    code = (
        f"import sys\nfrom worldmodel.training import cli\ncli.COMMANDS['evaluate'] = lambda *_: print('x' * {size})\n"
        "sys.stdin.read()\nsys.exit(cli.main(['evaluate', 'run']))"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, text=True, **pipes) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == "" and process.wait() == 141


# ---------------------------------------------------------------------------------------------- the disk


def test_a_disk_that_takes_nothing_is_given_no_run(tmp_path: Path) -> None:
    """A file that cannot grow is what a full disk looks like."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            claim(tmp_path / "run", load_config({}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    "out", ["c.yaml/x.npz", "n" * 300 + ".npz", "c.yaml", "there.npz", "/proc/x/y.npz", ".npz/", ""]
)
def test_nothing_is_recorded_for_a_place_that_cannot_be_written(commands: Any, tiny: dict[str, Any], out: str) -> None:
    Path("c.yaml").write_text(yaml.safe_dump(tiny))
    np.savez("there.npz", x=1)
    if out.startswith("/proc"):  # which says that it can be written to, and cannot
        outcome = commands.run(["collect", "c.yaml", "--steps", "5", "--out", out])
        assert outcome.code == 2 and len(outcome.err.splitlines()) == 1
    else:
        assert commands.refusal(["collect", "c.yaml", "--steps", "5", "--out", out], "out") is not None


@pytest.mark.parametrize("steps", ["0", "-1", "x", "1e400", str(2**70), "10000000000000"])
def test_no_recording_is_longer_than_the_memory(commands: Any, tiny: dict[str, Any], steps: str) -> None:
    Path("c.yaml").write_text(yaml.safe_dump(tiny))
    assert commands.refusal(["collect", "c.yaml", "--steps", steps, "--out", "x.npz"], "steps") is not None
