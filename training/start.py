"""From a config to a finished run, at once or in as many parts as it takes."""

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
from worldmodel.training.evaluation.returns import promise
from worldmodel.training.logging.logger import Logger, films_of
from worldmodel.training.logging.progress import Progress, whisper
from worldmodel.training.loop.interrupt import Interrupt, patient
from worldmodel.training.loop.loop import Loop, describe
from worldmodel.training.loop.trainer import Trainer
from worldmodel.training.report.films import film
from worldmodel.training.run.checkpoint import numbers, remove
from worldmodel.training.run.errors import diverged
from worldmodel.training.run.folder import (
    CHECKPOINT,
    CONFIG,
    METRICS,
    ROWS,
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
from worldmodel.training.run.run import TRAINING, Run
from worldmodel.training.run.tree import fitting_state, load_tree
from worldmodel.training.run.weights import write_text_atomic

if TYPE_CHECKING:
    from worldmodel.agents.sb3.behaviour import SB3Behaviour

PATIENCE = 300.0  # seconds for which the last save of a run is tried again
AGAIN = 5.0  # seconds between two attempts
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what somebody can mend in that time
OVERWRITTEN = "its replay is full and has moved on since the checkpoint, so that what follows is not what it would be"


def train(
    config: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), run: str | Path | None = None, **values: Any
) -> Run:
    """Train a world model and an agent in its imagination, and evaluate it at the end.

    It leaves the process as it was: threads of torch, random states, filters of warnings and memory.

    Args:
        config: a YAML file, or a mapping, of differences from the defaults.
        overrides: `["--section.key", "value", ...]`, as on the command line.
        run: the folder to make; by default a free one under `runs/`, named after the config.
        values: `seed=1` or whole sections as mappings.
    Returns:
        The run, saved in its folder, whatever ended it: an error or an interrupt leaves what was recorded there.
    Raises:
        ValueError: before anything is trained, for a config, an environment or a folder that cannot be used; later
            only as an `EnvironmentFault`, for an environment that fails more often than `env.restarts` allows.
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
    """Go on with an interrupted run from its last checkpoint, as if nothing had happened since; without one, from 0.

    On the CPU, and in environments that repeat themselves when they are seeded, it ends with the weights and the
    metrics of a run that was never interrupted, bit for bit. Where an environment does not, its running episode counts
    as truncated. A finished run can be given more steps.

    Args:
        steps: environment steps in all; by default those of its config.
        device: another than the one it was trained on until now. What `auto` chose for that one stays.
        videos: whether evaluations are filmed from here on; by default as its config says.
    Raises:
        ValueError: if the folder holds no run, another process trains it, something else lies where a part of it
            belongs, none of its checkpoints can be used, or it has taken all its steps.
    """
    folder = Path(folder)
    saved_config(folder, "train")
    check_layout(folder)
    with alone(folder), left_as_found():
        return _resume(folder, steps, device, videos)


def _resume(folder: Path, steps: int | None, device: str | None, videos: bool | None) -> Run:
    loop = (_last if numbers(folder / CHECKPOINT) else _anew)(folder, device)
    config = loop.config
    config.training.steps = steps or config.training.steps
    config.evaluation.videos = config.evaluation.videos if videos is None else videos
    overshot = loop.steps - config.training.steps  # all environments take the last step
    if overshot >= (0 if loop.finished else config.env.num_envs):
        raise ValueError(f"{folder} has taken {loop.steps} steps: give it more than that with --training.steps")
    loop.trainer.run.check_rows(config.training.steps)
    loop.finished = False
    if config.behaviour.name == "sb3":
        from worldmodel.training.run.imagined import imagined_steps  # which takes a second to import

        cast("SB3Behaviour", loop.trainer.run.behaviour).reach(imagined_steps(config, config.training.steps))
    write_text_atomic(folder / CONFIG, dump_yaml(to_mapping(config)))
    return finish(loop)


def _last(folder: Path, device: str | None) -> Loop:
    """What goes on from the last checkpoint of a run."""
    run = Run.load(folder, device, at_checkpoint=True)
    torch.set_num_threads(run.config.training.threads)
    assert run.checkpoint is not None
    state = load_tree(run.checkpoint.folder / TRAINING)
    if not isinstance(state, dict) or "loop" not in state:
        raise ValueError(f"{folder} holds a run that was saved to be used, not to be resumed")
    with fitting_state(run.checkpoint.folder / TRAINING):
        loop = Loop(Trainer(run, state["trainer"]), film=film)
        loop.load_state(state["loop"])
    for number in numbers(folder / CHECKPOINT):
        if number > int(run.checkpoint.folder.name):  # damaged
            remove(folder / CHECKPOINT / f"{number:05d}")
    torch.set_rng_state(state["random"]["cpu"])
    if state["random"]["cuda"] is not None and loop.cuda:
        torch.cuda.set_rng_state(state["random"]["cuda"], run.agent.device)
    return loop


def _anew(folder: Path, device: str | None) -> Loop:
    """What begins a run once more that has no checkpoint: as it was begun, with the same seed.

    Most have ended before their first; of others somebody has removed them, and what they had recorded is precious.
    """
    config = read_config(folder, saved_config(folder, "train"), load_config)
    config.training.device = device or config.training.device
    torch.set_num_threads(config.training.threads)
    run = Run(folder, config)  # refuses what cannot be begun, before anything is moved
    aside = set_aside(folder, (METRICS, ROWS))
    kept = f"; what it had recorded is kept in {aside}" if aside else ""
    whisper(f"{folder} holds no checkpoint: it begins once more, with the same seed{kept}")
    run.keep_rows()
    loop = Loop(Trainer(run), film=film)
    loop.logged = {"bytes": 0, "seconds": 0.0, "wandb": None}
    return loop


def finish(loop: "Loop") -> Run:
    """Train to the end and evaluate."""
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
            lost = f"; {loop.trainer.lost} running episode(s) count as truncated" if loop.trainer.lost else ""
            full = f"; {OVERWRITTEN}" if loop.trainer.overwritten else ""
            progress.note(f"goes on at {loop.steps} environment steps{lost}{full}")
        if not loop.run(steps) and interrupt.asked:
            raise KeyboardInterrupt
        if run.config.evaluation.final_episodes:
            result = loop.play("final", lambda: run.evaluate(say=progress.note, lent=loop.lent))
            progress.note(f"final evaluation on unseen seeds: {describe(result)}")
            if line := promise(result):
                progress.note(line)
        interrupt.at_once = True
        loop.finished = True
        if loop.config.evaluation.videos and not films_of(run.folder, loop.steps).exists():
            film(run, loop.logger, progress, loop.steps)
    return run


def insist(save: Callable[[], None], say: Callable[[str], None], folder: Path, interrupt: Interrupt) -> None:
    """Save what would be lost otherwise: a disk that is full is tried again for `PATIENCE` seconds.

    Whoever has asked the run to stop does not wait for that: then one attempt is all.

    Raises:
        OSError: if it stays full, or for another reason.
    """
    until, said = time.monotonic() + PATIENCE, False
    while True:
        try:
            return save()
        except OSError as error:
            full = error.errno in FULL
            if not full or interrupt.asked or time.monotonic() >= until:
                rest = f"worldmodel train --resume {folder} does again what came after the last checkpoint"
                once = "once there is room, " if full else ""
                raise OSError(error.errno, f"{error.strerror}: not saved; {once}{rest}") from error
            if not said:
                say(f"not saved ({error}): tried again for {PATIENCE / 60:.0f} minutes, in which space can be made")
            said = True
            time.sleep(AGAIN)


@contextmanager
def opened(loop: "Loop", progress: Progress) -> Iterator[Interrupt]:
    """A loop with a logger, until whatever ends it: then what was recorded and learned is saved.

    Raises:
        FloatingPointError: if the training diverged.
        RuntimeError: from a `ValueError` that is no mistake in what the user gave, which was found before.
    """
    run = loop.trainer.run
    logger = Logger(run.folder, run.config.logger, to_mapping(run.config), progress.note, loop.logged)
    loop.logger, loop.progress = logger, progress
    loop.began = time.monotonic() - (loop.logged["seconds"] if loop.logged else 0.0)
    try:
        with patient(progress.note) as loop.interrupt:
            try:
                yield loop.interrupt
            finally:
                loop.interrupt.at_once = False  # a first call lets it be saved
                _closed(loop)
    except KeyboardInterrupt as interrupt:  # wherever it came
        raise KeyboardInterrupt(f"to go on: worldmodel train --resume {run.folder}") from interrupt
    except EnvironmentFault:
        raise
    except torch.linalg.LinAlgError as error:
        raise diverged(run.env_steps, "a covariance") from error
    except ValueError as error:
        raise RuntimeError(f"training stopped at {run.env_steps} environment steps") from error


def _closed(loop: "Loop") -> None:
    """Save the run, and finish its records."""
    folder, say = loop.trainer.run.folder, loop.progress.note
    before = numbers(folder / CHECKPOINT)[-1:]
    try:
        insist(loop.save, say, folder, loop.interrupt)
    finally:
        loop.logged = loop.logger.position()
        loop.logger.close()
    last = numbers(folder / CHECKPOINT)[-1:]
    if last == before:  # an update has been interrupted, or the last one was not finite
        weights = "the weights there are those of its last checkpoint" if last else "there is no checkpoint of it yet"
        say(f"what was recorded is saved in {folder}; {weights}")
    elif loop.progress.live:
        say(f"run saved in {folder}")
