"""From a config to a finished run: the collect-learn loop, and what a person sees of it."""

import math
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs import EnvironmentFault
from training.checkpoint import write_text_atomic
from training.config import Config, load_config, to_mapping
from training.evaluation import Evaluation, evaluate
from training.imagine import MEDIA, ImagineConfig, imagine
from training.interrupt import Interrupt, patient
from training.lock import alone
from training.logger import Averages, Logger
from training.progress import Progress
from training.run import CONFIG, TRAINING, Run, checkpoint_of, fitting_state, free_folder, saved_config
from training.schema import dump_yaml
from training.trainer import OnStep, Trainer, diverged, unbothered
from training.tree import load_tree
from worldmodel.memory import keep_memory

PERIODIC = 3  # stream of evaluation seeds during training; 1 served while the settings were chosen
UNSOUND = "the model predicts returns that are not finite; the actions taken are valid all the same"
TRUSTED = 0.1  # of the real return: how far the imagined one may be from it before a run warns
RECENT = 100  # episodes in the running mean of returns, as in Stable-Baselines3


def train(
    config: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), run: str | Path | None = None, **values: Any
) -> Run:
    """Train a world model and an agent in its imagination, and evaluate it at the end.

    Args:
        config: a YAML file, or a mapping, of differences from the defaults.
        overrides: `["--section.key", "value", ...]`, as on the command line.
        run: the folder to make; by default a free one under `runs/`, named after the config.
        values: `seed=1` or whole sections as mappings.
    Returns:
        The run, saved in its folder, whatever ended it: an error or an interrupt leaves what was recorded there.
    Raises:
        ValueError: before anything is trained, for a config, an environment or a folder that cannot be used; later
            only as an `EnvironmentFault`, for an observation or a reward that breaks the environment's contract.
    """
    resolved = load_config(config, overrides, **values)
    name = resolved.env.id.rpartition("/")[-1] if isinstance(config, Mapping) else Path(config).stem
    prepare(resolved)
    made = Run.create(free_folder(name) if run is None else run, resolved)
    loop = Loop(Trainer(made))
    made.begin()
    with alone(made.folder):
        return finish(loop)


def resume(folder: str | Path, steps: int | None = None) -> Run:
    """Go on with an interrupted run from its last checkpoint, as if nothing had happened since.

    On the CPU, and in environments that repeat themselves when they are seeded, it ends with the weights and the
    metrics of a run that was never interrupted, bit for bit. Where an environment does not, its running episode counts
    as truncated. A finished run can be given more steps.

    Args:
        steps: environment steps in all; by default those of its config.
    Raises:
        ValueError: if the folder holds no run, another process trains it, it has no complete checkpoint, or has taken
            all its steps.
    """
    folder = Path(folder)
    saved_config(folder, "train")
    with alone(folder):
        return _resume(folder, steps)


def _resume(folder: Path, steps: int | None) -> Run:
    run = Run.load(folder, at_checkpoint=True)
    prepare(run.config)
    state = load_tree(checkpoint_of(folder) / TRAINING)
    if not isinstance(state, dict) or "trainer" not in state:
        raise ValueError(f"{folder} holds a run that was saved to be used, not to be resumed")
    run.config.training.steps = steps or run.config.training.steps
    with fitting_state(checkpoint_of(folder) / TRAINING):
        loop = Loop(Trainer(run, state))
        loop.load_state(state["loop"])
    if loop.finished and loop.steps >= run.config.training.steps:
        raise ValueError(f"{folder} has taken its {loop.steps} steps: give it more with --training.steps")
    loop.finished = False
    write_text_atomic(folder / CONFIG, dump_yaml(to_mapping(run.config)))
    torch.set_rng_state(state["random"]["cpu"])
    if state["random"]["cuda"] is not None and loop.cuda:
        torch.cuda.set_rng_state(state["random"]["cuda"], run.agent.device)
    return finish(loop)


def prepare(config: Config) -> None:
    """Tell torch and the system how a run computes."""
    torch.set_num_threads(config.training.threads)
    keep_memory()


def finish(loop: "Loop") -> Run:
    """Train to the end and evaluate."""
    run, steps = loop.trainer.run, loop.config.training.steps
    with closing(loop.trainer.envs), Progress(steps, loop.steps) as progress, opened(loop, progress) as interrupt:
        progress.note(run.summary)
        if loop.steps:
            lost = f"; {loop.trainer.lost} running episode(s) count as truncated" if loop.trainer.lost else ""
            progress.note(f"goes on at {loop.steps} environment steps{lost}")
        if not loop.run(steps) and interrupt.asked:
            raise KeyboardInterrupt(f"; to go on: worldmodel train --resume {run.folder}")
        interrupt.at_once = True
        result = run.evaluate()
        final = {name.replace("eval/", "final/"): value for name, value in evaluation_metrics(result).items()}
        loop.logger.log(final, run.env_steps)
        loop.finished = True
        progress.note(f"final evaluation on unseen seeds: {describe(result)}")
        if line := promise(result):
            progress.note(line)
    return run


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
    try:
        with patient(progress.note) as loop.interrupt:
            yield loop.interrupt
    except EnvironmentFault:
        raise
    except torch.linalg.LinAlgError as error:
        raise diverged(run.env_steps, "a covariance") from error
    except ValueError as error:
        raise RuntimeError(f"training stopped at {run.env_steps} environment steps") from error
    finally:
        loop.save()
        loop.logged = logger.position()
        logger.close()
        progress.note(f"run saved in {run.folder}")


class Loop:
    """When to update, log and evaluate; what a person sees of it."""

    logger: Logger  # both while it is opened
    progress: Progress

    def __init__(self, trainer: Trainer, evaluates: bool = True) -> None:
        self.trainer, self.evaluates = trainer, evaluates
        self.interrupt = Interrupt()
        self.config, self.cuda = trainer.config, trainer.run.agent.device.type == "cuda"
        self.logged: Mapping[str, Any] | None = None  # where the logger of this run stands, if it had one before
        self.finished = False
        self.evaluation_due = False  # one that has been interrupted
        self.averages = Averages()
        self.recent: deque[tuple[float, int]] = deque(maxlen=RECENT)
        self.shown: dict[str, float] = {}
        self.began = time.monotonic()
        self.due = 0.0  # updates that have been paid for
        self.log_every = self.config.training.log_every

    @property
    def steps(self) -> int:
        return self.trainer.envs.steps

    def run(self, until: int, on_step: OnStep = unbothered) -> bool:
        """Prefill, then one environment step and the updates it pays for. Called again, it goes on.

        Args:
            until: environment steps in all. on_step: called after each; the loop ends when it answers False.
        Returns:
            Whether it never did, and nobody interrupted.
        """
        config, replay = self.config.training, self.config.replay
        goes_on = True
        if not self.trainer.prefilled:
            goes_on = self.trainer.prefill(min(config.prefill, until), lambda: self.stepped(on_step))
            self.due = float(config.pretrain) if self.trainer.prefilled else 0.0
        per_step = config.replay_ratio / (replay.batch_size * replay.window)
        if self.evaluation_due:
            self.evaluate()
        while goes_on:
            while self.due >= 1 and not self.interrupt.asked:
                self.averages.add(self.trainer.update())
                self.due -= 1
                self.progress.update(self.steps, **self.shown)
            before = self.steps
            if before >= until or self.interrupt.asked:
                break
            unsound = self.trainer.unsound
            self.trainer.collect(self.trainer.run.behaviour)
            if self.trainer.unsound > unsound == 0:
                self.progress.note(f"{self.steps:>7} steps: {UNSOUND}")
            self.trainer.refit_units(before)
            self.due += per_step * (self.steps - before)
            goes_on = self.stepped(on_step)
            self.report(before)
        if self.averages.counts and not self.interrupt.asked:  # what the last steps paid for, or the prefill
            self.log()
        return goes_on and not self.interrupt.asked

    def stepped(self, on_step: OnStep) -> bool:
        """After each step of the environments: whether to go on."""
        self.recent.extend((episode.total_reward, episode.length) for episode in self.trainer.ended)
        return on_step() and not self.interrupt.asked

    def report(self, before: int) -> None:
        """Log and evaluate where the last step crossed a multiple of the configured interval."""
        if self.steps // self.log_every > before // self.log_every:
            self.log()
        if self.evaluates and self.steps // self.config.evaluation.every > before // self.config.evaluation.every:
            self.evaluate()

    def log(self) -> None:
        metrics = self.averages.pop()
        broken = [name for name, value in metrics.items() if name.endswith("loss") and not math.isfinite(value)]
        if self.recent:
            returns, lengths = zip(*self.recent, strict=True)
            metrics |= {"rollout/ep_rew_mean": float(np.mean(returns)), "rollout/ep_len_mean": float(np.mean(lengths))}
        if self.trainer.unsound:
            metrics["rollout/unsound_decisions"] = self.trainer.unsound
        metrics["time/fps"] = self.steps / (time.monotonic() - self.began)
        metrics["time/frames"] = self.trainer.envs.frames
        metrics["replay/steps"] = len(self.trainer.run.replay)
        self.logger.log(metrics, self.steps)
        if broken:
            raise diverged(self.steps, ", ".join(broken))
        names = {"return": "rollout/ep_rew_mean", "elbo": "world_model/elbo"}
        self.shown |= {name: metrics[key] for name, key in names.items() if key in metrics}

    def evaluate(self) -> None:
        config = self.config.evaluation
        self.evaluation_due = self.interrupt.at_once = True  # it may take long, and disturbs nothing
        result = evaluate(self.trainer.run.agent, self.config.env, config.episodes, PERIODIC)
        self.evaluation_due = self.interrupt.at_once = False
        self.logger.log({**evaluation_metrics(result), "time/frames": self.trainer.envs.frames}, self.steps)
        self.progress.note(f"{self.steps:>7} steps: evaluation {describe(result)}")
        self.save()
        if config.videos:
            film(self.trainer.run, self.logger, self.progress, self.steps)

    def save(self) -> None:
        """Write what was recorded and learned, and what going on from here needs."""
        self.trainer.run.save(None if self.trainer.doing == "updating" else self.state())

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, besides weights and recorded rows; see :func:`resume`."""
        cuda = torch.cuda.get_rng_state(self.trainer.run.agent.device) if self.cuda else None
        return {
            "behaviour": self.trainer.run.behaviour.training_state(),
            "trainer": self.trainer.state(),
            "loop": {
                "due": self.due,
                "sums": self.averages.sums,
                "counts": dict(self.averages.counts),
                "recent": list(self.recent),
                "shown": self.shown,
                "logged": self.logger.position(),
                "finished": self.finished,
                "evaluation_due": self.evaluation_due,
            },
            "random": {"cpu": torch.get_rng_state(), "cuda": cuda},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave as "loop"."""
        self.due, self.shown, self.logged = state["due"], state["shown"], state["logged"]
        self.averages.sums, self.averages.counts = state["sums"], Counter(state["counts"])
        self.recent.extend((total, length) for total, length in state["recent"])
        self.began = time.monotonic() - state["logged"]["seconds"]
        self.finished, self.evaluation_due = state["finished"], state["evaluation_due"]


def film(run: Run, logger: Logger, progress: Progress, steps: int) -> None:
    """What the model foretells now, in moving pictures."""
    try:
        made = imagine(run, ImagineConfig(), run.folder / MEDIA / f"{steps:07d}")
    except ValueError as error:  # of episodes that are still too short
        progress.note(f"{steps:>7} steps: no videos, {error}")
        return
    logger.films([path for path in made if path.suffix == ".webm"], steps)


def evaluation_metrics(result: Evaluation) -> dict[str, float]:
    """Under the names people know from Stable-Baselines3."""
    metrics = {
        "eval/mean_reward": result.mean,
        "eval/std_reward": result.std,
        "eval/mean_ep_length": float(np.mean(result.lengths)),
    }
    return metrics if result.promise is None else {**metrics, "eval/imagined_reward": result.promise}


def describe(result: Evaluation) -> str:
    """One line for a person."""
    unsound = "" if result.unsound is None else f"; at step {result.unsound} {UNSOUND}"
    return f"return {result.mean:.1f} ± {result.std:.1f} over {len(result.returns)} episodes{unsound}"


def promise(result: Evaluation) -> str:
    """One line for a person: whether what the model promised came true."""
    if result.promise is None:
        return ""
    if result.gap is None:
        return f"the model imagines {result.promise:.1f} for the same episodes"
    line = f"the model imagines {result.promise:.1f} for the same episodes, {result.gap:.0%} from what they are"
    if result.gap <= TRUSTED:
        return line
    what = "promises more than" if result.promise > result.mean else "does not know"
    return f"warning: {line}: it {what} what the world holds"
