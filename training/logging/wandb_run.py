"""A Weights & Biases run that never stops a training run. It is online if that works, else offline.

When an offline run is resumed, its file is written again from the beginning. A second file would not do: `wandb sync`
appends its rows, so the steps that were repeated after a kill would be uploaded twice.
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

CONNECT_SECONDS = 20.0  # to wait for the server before the run continues offline
FINISH_SECONDS = 120.0  # to wait for the last upload; all data is in the run folder too
WRITE_SECONDS = 10.0  # to wait for the end of an offline file, which appears some hundredths of a second after `finish`
SYNCED_SUFFIX = ".synced"  # ends the name of the mark that `wandb sync` leaves next to an uploaded file
OFFLINE_PREFIX, OLD_PREFIX = (
    "offline-run-",
    "old-",
)  # begin the names of folders in `wandb/`; the second those that `sync` leaves out
BLOCK_BYTES = 2**15  # size of a block of a .wandb file, whose records are framed as in the logs of LevelDB
PREAMBLE_BYTES = FRAME_BYTES = 7  # at the beginning of the file, and at the beginning of each record


def start_wandb(
    run_dir: Path, mode: Mode, say: Callable[[str], None], known: str | None = None, **about: Any
) -> "wandb.Run | None":
    """Start a run with its files in `run_dir/wandb`. Return None if it is disabled.

    The caller must log again all rows of a resumed run that have not :func:`arrived`.

    Args:
        known: the id of the run to resume; None for a new run.
        mode: "auto" follows the environment variable WANDB_MODE. Without it, the run is online if a key is found.
        say: receives exactly one line, unless disabled: the address of the run, or how to upload it later.
        about: the arguments of `wandb.init` that describe the run: project, name, tags, config.
    """
    wanted = os.environ.get("WANDB_MODE", "auto") if mode == "auto" else mode
    if wanted == "disabled":
        return None
    run, reason = None, "as configured"
    if wanted not in ("offline", "dryrun"):  # dryrun is the old name of offline
        run, reason = _online(run_dir, {**about, "id": known, "resume": "allow"} if known else about)
    if run is None:
        if known:
            set_old_aside(run_dir, known)
        run, problem = _attempt(run_dir, "offline", {**about, "id": known} if known else about)
        if run is None:
            say(f"Weights & Biases: switched off ({problem}). metrics.jsonl has all metrics.")
            return None
        say(f"Weights & Biases: offline ({reason}). To upload this run later: wandb sync {run.settings.sync_dir}")
    else:
        say(f"Weights & Biases: {run.url}")
    run.define_metric("global_step")
    run.define_metric("*", step_metric="global_step")
    return run


def arrived(run: "wandb.Run", run_dir: Path) -> int:
    """Return how many rows of a resumed run the service has. For an offline run, the files in its folder tell.

    Rows in the files of an earlier online run count, since they were sent or will be.
    """
    if not run.offline:
        return run.starting_step
    folder = run_dir / "wandb"
    sent = [
        Path(str(mark).removesuffix(SYNCED_SUFFIX))
        for mark in folder.glob(f"{OFFLINE_PREFIX}*-{run.id}/*{SYNCED_SUFFIX}")
    ]
    return max(map(rows_in, [*sent, *folder.glob(f"run-*-{run.id}/*.wandb")]), default=0)


def set_old_aside(run_dir: Path, name: str) -> None:
    """Rename the offline files of a run that have not been uploaded, so that `wandb sync` does not find them."""
    for folder in (run_dir / "wandb").glob(f"{OFFLINE_PREFIX}*-{name}"):
        if not list(folder.glob(f"*{SYNCED_SUFFIX}")):
            folder.rename(folder.with_name(f"{OLD_PREFIX}{folder.name}"))


def remove_old(run_dir: Path, name: str) -> None:
    """Remove the files that :func:`set_old_aside` has renamed, after all of their rows were written again."""
    for folder in (run_dir / "wandb").glob(f"{OLD_PREFIX}{OFFLINE_PREFIX}*-{name}"):
        shutil.rmtree(folder, ignore_errors=True)


def _online(run_dir: Path, about: Mapping[str, Any]) -> "tuple[wandb.Run | None, str]":
    """Return an online run, or None and the reason."""
    import wandb

    wandb.setup(wandb.Settings(silent=True))  # the search for a key would print messages
    try:
        if not wandb.login(prompt=False, verify=False):
            return None, "no API key found; `wandb login` stores one"
    except wandb.Error as error:
        return None, first_line(error)
    return _attempt(run_dir, "online", about)


def _attempt(
    run_dir: Path, mode: Literal["online", "offline"], about: Mapping[str, Any]
) -> "tuple[wandb.Run | None, str]":
    """Return a run, or None and the reason."""

    try:
        return _init(run_dir, mode, about), ""
    except Exception as error:  # a failure of Weights & Biases must not stop the run
        return None, first_line(error)


def finish_wandb(run: "wandb.Run", say: Callable[[str], None]) -> None:
    """End a run. If the last upload takes too long, `say` how to upload the rest later.

    Afterwards the file of an offline run is complete, so it can be copied.
    """
    try:
        run.finish()
    except TimeoutError:
        say(f"Weights & Biases: the upload is incomplete. To finish it later: wandb sync {run.settings.sync_dir}")
        return
    if not run.offline:
        return
    file, until = Path(run.settings.sync_file), time.monotonic() + WRITE_SECONDS
    while not is_whole(file):
        if time.monotonic() > until:
            say(
                f"Weights & Biases: {file} is still incomplete after {WRITE_SECONDS:.0f} seconds. "
                "metrics.jsonl has all metrics."
            )
            return
        time.sleep(0.01)


def is_whole(file: Path) -> bool:
    """Return whether a .wandb file ends with the record of the end of the run."""
    try:
        with file.open("rb") as content:
            size = content.seek(0, os.SEEK_END)
            content.seek(max((size - 1) // BLOCK_BYTES - 1, 0) * BLOCK_BYTES)  # the last record may span two blocks
            *_, last = [None, *records(content.read(), content.tell() <= 2 * BLOCK_BYTES)]
    except FileNotFoundError:
        return False
    return last is not None and last.HasField("exit")


def rows_in(file: Path) -> int:
    """Return the number of the last row in a .wandb file plus one, or 0 if it has no rows."""
    steps = (record.history.step.num for record in records(file.read_bytes()) if record and record.HasField("history"))
    return max(steps, default=-1) + 1


def records(content: bytes, begins: bool = True) -> "Iterator[Record | None]":
    """Yield the records of a .wandb file from the start of a block on, and None for an incomplete record.

    Args:
        begins: whether `content` starts at the beginning of the file.
    """
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2 as messages

    place, record = PREAMBLE_BYTES if begins else 0, b""
    while place + FRAME_BYTES <= len(content):
        left = BLOCK_BYTES - place % BLOCK_BYTES
        if left < FRAME_BYTES:  # no room for another frame; the rest of the block is zeros
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)  # after a checksum
        part = content[place + FRAME_BYTES : place + FRAME_BYTES + length]
        record = part if kind in (1, 2) else record + part  # 1: whole, 2: first part, 3: middle part, 4: last part
        place += FRAME_BYTES + length
        try:
            whole = messages.Record.FromString(record) if kind in (1, 4) else None  # type: ignore[attr-defined]
        except DecodeError:  # it is incomplete, or began before `content`
            whole = None
        yield whole if place <= len(content) else None
    if place < len(content):
        yield None


def first_line(error: Exception) -> str:
    """Return the first line of the message of an error, or its type if there is no message."""
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


def _init(run_dir: Path, mode: Literal["online", "offline"], about: Mapping[str, Any]) -> "wandb.Run":
    import wandb  # takes half a second, so import it only when it is used

    settings = wandb.Settings(
        console="off",  # the progress display uses the terminal
        silent=True,
        reinit="create_new",  # independent of a run that the user may have open
        init_timeout=CONNECT_SECONDS,
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=True,
    )
    return wandb.init(dir=run_dir, mode=mode, settings=settings, **about)
