"""A Weights & Biases run that never stops a training run: online where that works, else offline."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import wandb

Mode = Literal["auto", "online", "offline", "disabled"]

CONNECT_SECONDS = 20.0  # before a run that cannot reach the server goes on offline
FINISH_SECONDS = 120.0  # before a run stops waiting for its last upload; everything is in its folder too


def start_wandb(run_dir: Path, mode: Mode, say: Callable[[str], None], **about: Any) -> "wandb.Run | None":
    """Start a run whose files lie in `run_dir/wandb`, or None where it is disabled.

    Args:
        mode: "auto" follows the environment variable WANDB_MODE, and without it is online where a key is found.
        say: gets exactly one line, unless disabled: the run's address, or how to upload it later.
        about: what `wandb.init` takes to describe the run: project, name, tags, config.
    """
    wanted = os.environ.get("WANDB_MODE", "auto") if mode == "auto" else mode
    if wanted == "disabled":
        return None
    run, reason = None, "as asked"
    if wanted not in ("offline", "dryrun"):  # dryrun: what W&B called it once
        run, reason = _online(run_dir, about)
    if run is None:
        run, problem = _attempt(run_dir, "offline", about)
        if run is None:
            say(f"Weights & Biases: off ({problem}); metrics.jsonl has everything")
            return None
        say(f"Weights & Biases: offline ({reason}). To upload this run later: wandb sync {run.settings.sync_dir}")
    else:
        say(f"Weights & Biases: {run.url}")
    run.define_metric("global_step")
    run.define_metric("*", step_metric="global_step")
    return run


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
    """End a run; where the network does not take the rest of it in time, `say` how to upload it later."""
    try:
        run.finish()
    except TimeoutError:
        say(f"Weights & Biases: not all of it could be uploaded. To do that later: wandb sync {run.settings.sync_dir}")


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
