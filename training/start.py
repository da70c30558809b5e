"""Train a run from a config to its end, and resume one that was interrupted."""

import errno
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from worldmodel.envs import EnvironmentFault
from worldmodel.kernels.memory import room_for_tensors
from worldmodel.training.config.config import load_config, to_mapping, too_short
from worldmodel.training.config.schema import dump_yaml
from worldmodel.training.evaluation.imagined_vs_real import promise
from worldmodel.training.logging.logger import Logger, films_of
from worldmodel.training.logging.progress import Progress, whisper
from worldmodel.training.loop.evaluations import describe
from worldmodel.training.loop.interrupt import Interrupt, patient
from worldmodel.training.loop.loop import Loop
from worldmodel.training.loop.trainer import Trainer
from worldmodel.training.report.films import film
from worldmodel.training.run.checkpoint import numbers, remove
from worldmodel.training.run.errors import diverged
from worldmodel.training.run.folder import (
    CHECKPOINT_FOLDER,
    CONFIG_FILE,
    METRICS_FILE,
    REPLAY_FOLDER,
    begun,
    check_layout,
    free_folder,
    read_config,
    saved_config,
    set_aside,
    short,
)
from worldmodel.training.run.lock import alone
from worldmodel.training.run.process import left_as_found
from worldmodel.training.run.run import TRAINING_FILE, Run
from worldmodel.training.run.tree import fitting_state, load_tree
from worldmodel.training.run.weights import write_text_atomic

if TYPE_CHECKING:
    from worldmodel.agents.sb3.behaviour import SB3Behaviour

PATIENCE = 300.0  # seconds during which the last save of a run is tried again
AGAIN = 5.0  # seconds between two attempts
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors that the user can remove in that time
OVERWRITTEN = (
    "the full replay has lost old steps since the checkpoint, so the rest differs from that of an uninterrupted run"
)


def train(
    config: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), run: str | Path | None = None, **values: Any
) -> Run:
    """Train a world model and an agent in its imagination, and evaluate the agent at the end.

    The call restores the number of threads of torch, random states, warning filters and memory settings.

    Args:
        config: a YAML file, or a mapping, of differences from the defaults.
        overrides: `["--section.key", "value", ...]`, as on the command line.
        run: the folder to make; by default a free one under `runs/`, named after the config.
        values: `seed=1` or whole sections as mappings.
    Returns:
        The run. It is saved in its folder, also after an error or an interrupt.
    Raises:
        ValueError: before training, for a config, an environment or a folder that cannot be used. During training,
            only as an `EnvironmentFault`, if an environment fails more often than `env.restarts` allows.
    """
    resolved = load_config(config, overrides, **values)
    name = short(resolved.env.id) if isinstance(config, Mapping) else Path(config).stem
    with left_as_found():
        torch.set_num_threads(resolved.training.threads)
        made = Run.create(free_folder(name) if run is None else run, resolved)
        loop = Loop(Trainer(made), film=film)
        begun(made, name if run is None else None)
        with alone(made.folder):
            return finish(loop)


def resume(folder: str | Path, steps: int | None = None, device: str | None = None, videos: bool | None = None) -> Run:
    """Continue an interrupted run from its last checkpoint, or from the start if it has none.

    The result equals that of an uninterrupted run bit for bit, weights and metrics, on the CPU and in environments that
    repeat themselves with the same seed. In other environments the running episode counts as truncated. A finished run
    can get more steps.

    Args:
        steps: environment steps in all; by default those of its config.
        device: by default the one used so far. Settings that `auto` chose for the first device stay.
        videos: whether to film evaluations from now on; by default as its config says.
    Raises:
        ValueError: if the folder holds no run, if another process trains it, if something else is in the place of a
            part of it, if none of its checkpoints can be used, or if it has taken all its steps.
    """
    folder = Path(folder)
    saved_config(folder, "train")
    check_layout(folder)
    with alone(folder), left_as_found():
        return _resume(folder, steps, device, videos)


def _resume(folder: Path, steps: int | None, device: str | None, videos: bool | None) -> Run:
    """See :func:`resume`."""
    loop = (_last if numbers(folder / CHECKPOINT_FOLDER) else _anew)(folder, device)
    config = loop.config
    config.training.steps = steps or config.training.steps
    config.evaluation.videos = config.evaluation.videos if videos is None else videos
    overshot = loop.steps - config.training.steps  # all environments take the last step, so there can be a few more
    if overshot >= (0 if loop.finished else config.env.num_envs):
        raise ValueError(f"{folder} has taken {loop.steps} steps. To continue, give it more with --training.steps.")
    loop.trainer.run.check_rows(config.training.steps)
    loop.finished = False
    if config.behaviour.name == "sb3":
        from worldmodel.training.run.sb3_behaviour import imagined_steps  # this import takes a second

        cast("SB3Behaviour", loop.trainer.run.behaviour).reach(imagined_steps(config, config.training.steps))
    write_text_atomic(folder / CONFIG_FILE, dump_yaml(to_mapping(config)))
    return finish(loop)


def _last(folder: Path, device: str | None) -> Loop:
    """Return a loop that continues from the last checkpoint of a run."""
    run = Run.load(folder, device, at_checkpoint=True)
    torch.set_num_threads(run.config.training.threads)
    assert run.checkpoint is not None
    state = load_tree(run.checkpoint.folder / TRAINING_FILE)
    if not isinstance(state, dict) or "loop" not in state:
        raise ValueError(f"{folder} was saved without the state of its training, so it can be used but not resumed")
    with fitting_state(run.checkpoint.folder / TRAINING_FILE):
        loop = Loop(Trainer(run, state["trainer"]), film=film)
        loop.load_state(state["loop"])
    for number in numbers(folder / CHECKPOINT_FOLDER):
        if number > int(run.checkpoint.folder.name):  # damaged
            remove(folder / CHECKPOINT_FOLDER / f"{number:05d}")
    torch.set_rng_state(state["random"]["cpu"])
    if state["random"]["cuda"] is not None and loop.cuda:
        torch.cuda.set_rng_state(state["random"]["cuda"], run.agent.device)
    return loop


def _anew(folder: Path, device: str | None) -> Loop:
    """Return a loop that starts a run without checkpoint again, with the same seed.

    Its records are kept in another folder: its checkpoints may have been removed by hand.
    """
    config = read_config(folder, saved_config(folder, "train"), load_config)
    config.training.device = device or config.training.device
    torch.set_num_threads(config.training.threads)
    run = Run(folder, config)  # raises for a config that cannot be used, before anything is moved
    aside = set_aside(folder, (METRICS_FILE, REPLAY_FOLDER))
    kept = f". Its earlier records are kept in {aside}" if aside else ""
    whisper(f"{folder} holds no checkpoint, so the run starts again with the same seed{kept}")
    run.keep_rows()
    loop = Loop(Trainer(run), film=film)
    loop.record.logged = {"bytes": 0, "seconds": 0.0, "wandb": None}
    return loop


def finish(loop: "Loop") -> Run:
    """Train to the end, evaluate, and return the run."""
    run, steps = loop.trainer.run, loop.config.training.steps
    with (
        closing(loop.trainer.envs),
        room_for_tensors(),
        Progress(steps, loop.steps) as progress,
        opened(loop, progress) as interrupt,
    ):
        for line in (run.summary, *run.decided, *too_short(run.config)):
            progress.note(line)
        if loop.steps:
            lost = (
                f"; {loop.trainer.collector.lost} running episode(s) count as truncated"
                if loop.trainer.collector.lost
                else ""
            )
            full = f"; {OVERWRITTEN}" if loop.trainer.overwritten else ""
            progress.note(f"resumed at {loop.steps} environment steps{lost}{full}")
        if not loop.run(steps) and interrupt.asked:
            raise KeyboardInterrupt
        if run.config.evaluation.final_episodes:
            evaluations = loop.evaluations
            result = evaluations.play("final", lambda: run.evaluate(say=progress.note, lent=evaluations.lent))
            progress.note(f"final evaluation on unseen seeds: {describe(result)}")
            if line := promise(result):
                progress.note(line)
        interrupt.at_once = True
        loop.finished = True
        if loop.config.evaluation.videos and not films_of(run.folder, loop.steps).exists():
            film(run, loop.record.logger, progress, loop.steps)
    return run


def insist(save: Callable[[], None], say: Callable[[str], None], folder: Path, interrupt: Interrupt) -> None:
    """Save, and try again for `PATIENCE` seconds if the disk is full. If the user stops the run, stop trying.

    Raises:
        OSError: if the disk stays full, or for another reason.
    """
    until, said = time.monotonic() + PATIENCE, False
    while True:
        try:
            return save()
        except OSError as error:
            full = error.errno in FULL
            if not full or interrupt.asked or time.monotonic() >= until:
                rest = f"worldmodel train --resume {folder} continues from the last checkpoint"
                once = "when there is space on the disk, " if full else ""
                raise OSError(error.errno, f"{error.strerror}: not saved; {once}{rest}") from error
            if not said:
                say(
                    f"not saved ({error}). Free some disk space: saving is tried again for {PATIENCE / 60:.0f} minutes."
                )
            said = True
            time.sleep(AGAIN)


@contextmanager
def opened(loop: "Loop", progress: Progress) -> Iterator[Interrupt]:
    """Open the logger of a loop for this context, and save the run at its end, also after an error.

    Raises:
        FloatingPointError: if the training diverged.
        RuntimeError: instead of a `ValueError`, which would mean wrong input; input was checked before.
    """
    run = loop.trainer.run
    logger = Logger(run.folder, run.config.logger, to_mapping(run.config), progress.note, loop.record.logged)
    loop.record.open(logger, progress)
    try:
        with patient(progress.note, loop.interrupt):
            try:
                yield loop.interrupt
            finally:
                loop.interrupt.at_once = False  # a first signal does not stop the save
                _closed(loop)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(f"to continue: worldmodel train --resume {run.folder}") from interrupt
    except EnvironmentFault:
        raise
    except torch.linalg.LinAlgError as error:
        raise diverged(run.env_steps, "a covariance") from error
    except ValueError as error:
        raise RuntimeError(f"training stopped at {run.env_steps} environment steps") from error


def _closed(loop: "Loop") -> None:
    """Save the run and close its logger."""
    folder, record = loop.trainer.run.folder, loop.record
    before = numbers(folder / CHECKPOINT_FOLDER)[-1:]
    try:
        insist(loop.save, record.note, folder, loop.interrupt)
    finally:
        record.logged = record.logger.position()
        record.logger.close()
    last = numbers(folder / CHECKPOINT_FOLDER)[-1:]
    if last == before:  # an update was interrupted, or the last one was not finite
        weights = "the weights are those of the last checkpoint" if last else "there is no checkpoint yet"
        record.note(f"the records are saved in {folder}; {weights}")
    elif record.progress.live:
        record.note(f"run saved in {folder}")
