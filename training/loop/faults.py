"""What a run does about updates that are not finite.

The learners skip such an update (:class:`worldmodel.learning.learner.Learner`). This module counts them. The first
ones leave a report in `RUN/faults/`. After too many since the last checkpoint, the weights and optimizers of that
checkpoint return with a lower learning rate; everything recorded stays. In the end the run stops.
"""

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from worldmodel.kernels.precision import products_in
from worldmodel.training.loop.trainer import Trainer
from worldmodel.training.loop.updater import Update, Updater
from worldmodel.training.run.checkpoint import find
from worldmodel.training.run.folder import CHECKPOINT_FOLDER
from worldmodel.training.run.run import REPLAY_COPY, TRAINING_FILE
from worldmodel.training.run.tree import load_tree
from worldmodel.training.run.weights import save_tensors, write_text_atomic

if TYPE_CHECKING:  # Stable-Baselines3 takes a while to import
    from worldmodel.agents.build import Trained
    from worldmodel.agents.sb3.behaviour import SB3Behaviour

FAULTS = "faults"  # the folder of the reports
REPORTS = 3  # that a run writes at most: the first ones show the cause
SLOWER = 0.5  # each return to a checkpoint multiplies the learning rate by this


class LearningFaults:
    """Counts the updates that were not finite, and decides what follows.

    Args:
        say: shows a line to the user at each decision.
    """

    def __init__(self, trainer: Trainer, say: Callable[[str], None]) -> None:
        self.trainer, self.config, self.say = trainer, trainer.config.training, say
        self.skipped = 0  # updates so far
        self.recent = 0  # of these since the last checkpoint
        self.restored = 0  # returns to a checkpoint so far
        self.sound = True  # whether the last update was finite

    def count(self, skipped: int, reason: str = "") -> None:
        """Count updates that were not finite. The last update is one of them.

        Args:
            skipped: how many.
            reason: why, if it is known.
        Raises:
            FloatingPointError: if there are too many.
        """
        self.sound = False
        if self.skipped < REPORTS:
            self._report(reason)
        self.skipped += skipped
        self.recent += skipped
        if self.recent > self.config.skips:
            self.restore(f"{self.recent} updates were not finite")

    def restore(self, problem: str) -> None:
        """Return to the weights and optimizers of the last checkpoint, with a lower learning rate.

        Raises:
            FloatingPointError: after `training.restores` returns, and if there is no checkpoint.
        """
        run, steps, self.sound = self.trainer.run, self.trainer.envs.steps, False
        if self.restored >= self.config.restores:
            raise self.stop(f"{problem}, after {self.restored} return(s) to a checkpoint")
        try:
            checkpoint, _ = find(run.folder / CHECKPOINT_FOLDER, leave_out=(REPLAY_COPY,))
        except ValueError as error:
            raise self.stop(f"{problem}, before there was a checkpoint to return to") from error
        kept = run.env_steps
        run.take(checkpoint)
        run.env_steps = kept  # the steps recorded since then are kept
        self.trainer.updater.load_state(load_tree(checkpoint.folder / TRAINING_FILE)["trainer"]["learned"])
        self.trainer.collector.forget_states()
        self.restored, self.recent, self.sound = self.restored + 1, 0, True
        self.slow_down()
        self.say(
            f"{steps:>7} steps: {problem}; the weights of checkpoint {checkpoint.folder.name} ({checkpoint.env_steps} "
            f"steps) are restored, and the learning rate is multiplied by {SLOWER**self.restored:g}"
        )

    def stop(self, problem: str) -> FloatingPointError:
        """Return the error that ends the run."""
        return FloatingPointError(
            f"training diverged by step {self.trainer.run.env_steps}: {problem}. First try a new run with a lower "
            "learner.lr, or a lower learning rate of the behaviour. Another cause can be very large rewards or "
            f"observations. The records are kept; reports are in {self.trainer.run.folder / FAULTS}."
        )

    def slow_down(self) -> None:
        """Lower the learning rate of every optimizer according to the number of returns."""
        factor = SLOWER**self.restored
        run = self.trainer.run
        for learner in self.trainer.learners():
            learner.slow_down(factor)
        if run.config.behaviour.name == "sb3":
            cast("SB3Behaviour", run.behaviour).slow_down(factor)

    def metrics(self) -> dict[str, float]:
        """Return the counts that are not 0, for the log."""
        named = {"training/skipped_updates": self.skipped, "training/restored_checkpoints": self.restored}
        return {name: count for name, count in named.items() if count}

    def state(self) -> list[int]:
        """Return the counts."""
        return [self.skipped, self.recent, self.restored, int(self.sound)]

    def load_state(self, state: list[int]) -> None:
        """Continue from what :meth:`state` returned."""
        self.skipped, self.recent, self.restored = state[:3]
        self.sound = bool(state[3])
        self.slow_down()

    def _report(self, reason: str) -> None:
        """Write a report on the last update, and tell the user where it is."""
        run, updater = self.trainer.run, self.trainer.updater
        folder = run.folder / FAULTS / f"update-{updater.updates:07d}"
        skipped = f"{self.trainer.envs.steps:>7} steps: an update was not finite and is skipped"
        try:
            self.say(f"{skipped}, {write_report(folder, updater, reason)}; see {folder}")
        except OSError as error:  # the disk is full: this must not end the run
            self.say(f"{skipped}; its report could not be written ({error})")


def write_report(folder: Path, updater: Updater, reason: str = "") -> str:
    """Save the batch of the last update, and a list of where its numbers were not finite.

    `report.json` lists everything that is not finite: arrays of the batch, parameters, outputs of modules in the order
    of their computation, metrics and gradients. For the outputs the update is repeated on a copy of the behaviour.
    `batch.safetensors` holds the batch.

    Returns:
        A text that names the first of them.
    """
    run, update = updater.run, updater.last
    modules = {"world_model": run.model, "behaviour": run.behaviour}
    named = [(f"{name}.{key}", p) for name, module in modules.items() for key, p in module.named_parameters()]
    found: dict[str, list[str]] = {}
    if update is not None:
        tensors = {**{f"obs/{key}": value for key, value in update.batch.obs.items()}, **_others(update)}
        found["batch"] = [name for name, value in tensors.items() if not bool(value.isfinite().all())]
        save_tensors(folder / "batch.safetensors", tensors)
    found["parameters"] = [name for name, parameter in named if not bool(parameter.isfinite().all())]
    gradients = [name for name, p in named if p.grad is not None and not bool(p.grad.isfinite().all())]
    if update is not None:
        found["outputs"], found["metrics"] = _repeated(updater, update)
    found["gradients"] = gradients
    first = next(((kind, names[0]) for kind, names in found.items() if names), None)
    about: dict[str, Any] = {"env_steps": run.env_steps, "update": updater.updates, "reason": reason, "first": first}
    write_text_atomic(folder / "report.json", json.dumps({**about, "not_finite": found}, indent=1) + "\n")
    return reason or ("and the repeated update is finite" if first is None else f"first in {first[0]} '{first[1]}'")


def _others(update: Update) -> dict[str, Tensor]:
    fields = {name: value for name, value in update.batch._asdict().items() if isinstance(value, Tensor)}
    if update.start is None:
        return fields
    start = {f"start/{name}": value for name, value in update.start._asdict().items() if isinstance(value, Tensor)}
    return {**fields, **start}


def _repeated(updater: Updater, update: Update) -> tuple[list[str], list[str]]:
    """Repeat an update; return the names of the outputs, in order, and of the metrics that are not finite."""
    run = updater.run
    outputs: list[str] = []
    metrics: Mapping[str, Tensor] = {}
    with torch.random.fork_rng(devices=[run.agent.device] if run.agent.device.type == "cuda" else []):
        torch.set_rng_state(update.random)
        try:
            products = products_in(run.config.learner.precision, run.agent.device.type)
            with _watched({"world_model": run.model}, outputs), products:
                _, (states, metrics) = updater.loss(update.batch, update.now, update.start)
            if run.config.behaviour.name != "sb3":  # a copy of it would copy the environment
                other = copy.deepcopy(cast("Trained", run.behaviour))
                with _watched({"behaviour": other}, outputs):
                    detached = type(states)(*(field.detach() for field in states))
                    metrics = {**metrics, **other.learn(run.model, detached, update.batch)}
        except (ArithmeticError, ValueError, RuntimeError) as error:  # the update fails again
            outputs.append(str(error).splitlines()[0])
    return outputs, [name for name, value in metrics.items() if not bool(value.isfinite().all())]


@contextmanager
def _watched(modules: Mapping[str, nn.Module], found: list[str]) -> Iterator[None]:
    """In this context, add the name of each module whose output is not finite to `found`, once."""

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            values = output if isinstance(output, tuple | list) else [output]
            broken = any(isinstance(value, Tensor) and not bool(value.isfinite().all()) for value in values)
            if broken and name not in found:
                found.append(name)

        return hook

    hooks = [
        part.register_forward_hook(watch(f"{name}.{inner}" if inner else name))
        for name, module in modules.items()
        for inner, part in module.named_modules()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
