"""From a config to a finished run: the collect-learn loop, and what a person sees of it."""

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs import EnvironmentFault
from training.config import load_config, to_mapping
from training.evaluation import Evaluation, evaluate
from training.imagine import MEDIA, ImagineConfig, imagine
from training.logger import Averages, Logger
from training.progress import Progress
from training.run import Run, free_folder
from training.trainer import OnStep, Trainer, diverged, unbothered
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
    torch.set_num_threads(resolved.training.threads)
    keep_memory()
    name = resolved.env.id.rpartition("/")[-1] if isinstance(config, Mapping) else Path(config).stem
    made = Run.create(free_folder(name) if run is None else run, resolved)
    trainer = Trainer(made)
    made.begin()
    with closing(trainer.envs), Progress(resolved.training.steps) as progress, opened(trainer, progress) as logger:
        progress.note(made.summary)
        Loop(trainer, logger, progress).run(resolved.training.steps)
        result = made.evaluate()
        final = {name.replace("eval/", "final/"): value for name, value in evaluation_metrics(result).items()}
        logger.log(final, made.env_steps)
        progress.note(f"final evaluation on unseen seeds: {describe(result)}")
        if result.promise is not None:
            progress.note(promise(result))
    return made


@contextmanager
def opened(trainer: Trainer, progress: Progress) -> Iterator[Logger]:
    """The logger of a run while it is trained. Whatever ends that, what was recorded and learned is saved.

    Raises:
        FloatingPointError: if the training diverged.
        RuntimeError: from a `ValueError` that is no mistake in what the user gave, which was found before.
    """
    run = trainer.run
    logger = Logger(run.folder, run.config.logger, to_mapping(run.config), progress.note)
    try:
        yield logger
    except EnvironmentFault:
        raise
    except torch.linalg.LinAlgError as error:
        raise diverged(run.env_steps, "a covariance") from error
    except ValueError as error:
        raise RuntimeError(f"training stopped at {run.env_steps} environment steps") from error
    finally:
        run.save()
        logger.close()
        progress.note(f"run saved in {run.folder}")


class Loop:
    """When to update, log and evaluate; what a person sees of it."""

    def __init__(self, trainer: Trainer, logger: Logger, progress: Progress, evaluates: bool = True) -> None:
        self.trainer, self.logger, self.progress, self.evaluates = trainer, logger, progress, evaluates
        self.config = trainer.config
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
            Whether it never did.
        """
        config, replay = self.config.training, self.config.replay
        goes_on = True
        if not self.steps:
            goes_on = self.trainer.prefill(min(config.prefill, until), lambda: self.stepped(on_step))
            self.due = float(config.pretrain)
        per_step = config.replay_ratio / (replay.batch_size * replay.window)
        while goes_on:
            for _ in range(int(self.due)):
                self.averages.add(self.trainer.update())
                self.progress.update(self.steps, **self.shown)
            self.due -= int(self.due)
            before = self.steps
            if before >= until:
                break
            unsound = self.trainer.unsound
            self.trainer.collect(self.trainer.run.behaviour)
            if self.trainer.unsound > unsound == 0:
                self.progress.note(f"{self.steps:>7} steps: {UNSOUND}")
            self.trainer.refit_units(before)
            self.due += per_step * (self.steps - before)
            goes_on = self.stepped(on_step)
            self.report(before)
        if self.averages.counts:  # what the last steps paid for, and all of a run that ends with its prefill
            self.log()
        return goes_on

    def stepped(self, on_step: OnStep) -> bool:
        """After each step of the environments: whether to go on."""
        self.recent.extend((episode.total_reward, episode.length) for episode in self.trainer.ended)
        return on_step()

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
        result = evaluate(self.trainer.run.agent, self.config.env, config.episodes, PERIODIC)
        self.logger.log({**evaluation_metrics(result), "time/frames": self.trainer.envs.frames}, self.steps)
        self.progress.note(f"{self.steps:>7} steps: evaluation {describe(result)}")
        self.trainer.run.save()
        if config.videos:
            film(self.trainer.run, self.logger, self.progress, self.steps)


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
    if result.promise is None or result.gap is None:
        return ""
    line = f"the model imagines {result.promise:.1f} for the same episodes, {result.gap:.0%} from what they are"
    if result.gap <= TRUSTED:
        return line
    what = "promises more than" if result.promise > result.mean else "does not know"
    return f"warning: {line}: it {what} what the world holds"
