"""A Weights & Biases run that never stops a training run: online where that works, else offline.

An offline run that goes on is written anew, as a whole: `wandb sync` appends what a second file of the same run holds,
and so would upload twice what was done again after a kill.
"""

import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

Mode = Literal["auto", "online", "offline", "disabled"]

CONNECT_SECONDS = 20.0  # before a run that cannot reach the server goes on offline
FINISH_SECONDS = 120.0  # before a run stops waiting for its last upload; everything is in its folder too
WRITE_SECONDS = 10.0  # before it stops waiting for the end of its file, which comes some hundredths after `finish`
SYNCED = ".synced"  # ends the name of a mark that `wandb sync` leaves beside the file
OFFLINE, OLD = "offline-run-", "old-"  # begin the names of folders in `wandb/`; the second those that `sync` leaves out
BLOCK = 2**15  # bytes of the blocks of a .wandb file, whose records are framed as in LevelDB's logs
PREAMBLE = FRAME = 7  # bytes before the first of them, and at the head of each


def start_wandb(
    run_dir: Path, mode: Mode, say: Callable[[str], None], known: str | None = None, **about: Any
) -> "wandb.Run | None":
    """Start a run whose files lie in `run_dir/wandb`, or None where it is disabled.

    One that goes on is to be given all rows that have not :func:`arrived`.

    Args:
        known: the id that it has had; it goes on under that.
        mode: "auto" follows the environment variable WANDB_MODE, and without it is online where a key is found.
        say: gets exactly one line, unless disabled: the run's address, or how to upload it later.
        about: what `wandb.init` takes to describe the run: project, name, tags, config.
    """
    wanted = os.environ.get("WANDB_MODE", "auto") if mode == "auto" else mode
    if wanted == "disabled":
        return None
    run, reason = None, "as asked"
    if wanted not in ("offline", "dryrun"):  # dryrun: what W&B called it once
        run, reason = _online(run_dir, {**about, "id": known, "resume": "allow"} if known else about)
    if run is None:
        if known:
            set_old_aside(run_dir, known)
        run, problem = _attempt(run_dir, "offline", {**about, "id": known} if known else about)
        if run is None:
            say(f"Weights & Biases: off ({problem}); metrics.jsonl has everything")
            return None
        say(f"Weights & Biases: offline ({reason}). To upload this run later: wandb sync {run.settings.sync_dir}")
    else:
        say(f"Weights & Biases: {run.url}")
    run.define_metric("global_step")
    run.define_metric("*", step_metric="global_step")
    return run


def arrived(run: "wandb.Run", run_dir: Path) -> int:
    """How many rows the service has of a run that goes on; offline, as far as its folder tells.

    What an online run has written counts: it was sent, or lies there to be sent.
    """
    if not run.offline:
        return run.starting_step
    folder = run_dir / "wandb"
    sent = [Path(str(mark).removesuffix(SYNCED)) for mark in folder.glob(f"{OFFLINE}*-{run.id}/*{SYNCED}")]
    return max(map(rows_in, [*sent, *folder.glob(f"run-*-{run.id}/*.wandb")]), default=0)


def set_old_aside(run_dir: Path, name: str) -> None:
    """Give the offline files of a run that have not been uploaded names under which `wandb sync` does not find them."""
    for folder in (run_dir / "wandb").glob(f"{OFFLINE}*-{name}"):
        if not list(folder.glob(f"*{SYNCED}")):
            folder.rename(folder.with_name(f"{OLD}{folder.name}"))


def remove_old(run_dir: Path, name: str) -> None:
    """Remove what :func:`set_old_aside` has set aside: all of it has been written again."""
    for folder in (run_dir / "wandb").glob(f"{OLD}{OFFLINE}*-{name}"):
        shutil.rmtree(folder, ignore_errors=True)


def _online(run_dir: Path, about: Mapping[str, Any]) -> "tuple[wandb.Run | None, str]":
    """An online run, or None and why there is none."""
    import wandb

    wandb.setup(wandb.Settings(silent=True))  # or else the look for a key talks, too
    try:
        if not wandb.login(prompt=False, verify=False):
            return None, "no API key found; `wandb login` stores one"
    except wandb.Error as error:
        return None, first_line(error)
    return _attempt(run_dir, "online", about)


def _attempt(
    run_dir: Path, mode: Literal["online", "offline"], about: Mapping[str, Any]
) -> "tuple[wandb.Run | None, str]":
    """A run, or None and why there is none."""

    try:
        return _init(run_dir, mode, about), ""
    except Exception as error:  # whatever is wrong with it: the run goes on
        return None, first_line(error)


def finish_wandb(run: "wandb.Run", say: Callable[[str], None]) -> None:
    """End a run; where the network does not take the rest of it in time, `say` how to upload it later.

    The file of an offline run then has all its content, so that it can be copied.
    """
    try:
        run.finish()
    except TimeoutError:
        say(f"Weights & Biases: not all of it could be uploaded. To do that later: wandb sync {run.settings.sync_dir}")
        return
    if not run.offline:
        return
    file, until = Path(run.settings.sync_file), time.monotonic() + WRITE_SECONDS
    while not is_whole(file):
        if time.monotonic() > until:
            say(f"Weights & Biases: {file} has no end after {WRITE_SECONDS:.0f} seconds; metrics.jsonl has everything")
            return
        time.sleep(0.01)


def is_whole(file: Path) -> bool:
    """Whether the last record of a .wandb file is that of the run's end."""
    try:
        with file.open("rb") as content:
            size = content.seek(0, os.SEEK_END)
            content.seek(max((size - 1) // BLOCK - 1, 0) * BLOCK)  # the last record may lie in two blocks
            *_, last = [None, *records(content.read(), content.tell() <= 2 * BLOCK)]
    except FileNotFoundError:
        return False
    return last is not None and last.HasField("exit")


def rows_in(file: Path) -> int:
    """Rows up to the last one in a .wandb file, those before its first one included."""
    steps = (record.history.step.num for record in records(file.read_bytes()) if record and record.HasField("history"))
    return max(steps, default=-1) + 1


def records(content: bytes, begins: bool = True) -> "Iterator[Record | None]":
    """The records of a .wandb file from the border of a block on; None where one is not whole.

    Args:
        begins: whether this is the beginning of the file.
    """
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2 as messages

    place, record = PREAMBLE if begins else 0, b""
    while place + FRAME <= len(content):
        left = BLOCK - place % BLOCK
        if left < FRAME:  # no room for another frame: zeros
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)  # after a checksum
        part = content[place + FRAME : place + FRAME + length]
        record = part if kind in (1, 2) else record + part  # whole, or the first part; the middle, or the last
        place += FRAME + length
        try:
            whole = messages.Record.FromString(record) if kind in (1, 4) else None  # type: ignore[attr-defined]
        except DecodeError:  # it is cut off, or began before
            whole = None
        yield whole if place <= len(content) else None
    if place < len(content):
        yield None


def first_line(error: Exception) -> str:
    """What an error says, in short."""
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


def _init(run_dir: Path, mode: Literal["online", "offline"], about: Mapping[str, Any]) -> "wandb.Run":
    import wandb  # takes half a second: only where it is used

    settings = wandb.Settings(
        console="off",  # the terminal belongs to our own progress line
        silent=True,
        reinit="create_new",  # the run is ours alone, even beside one that the user has open
        init_timeout=CONNECT_SECONDS,
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=True,
    )
    return wandb.init(dir=run_dir, mode=mode, settings=settings, **about)
