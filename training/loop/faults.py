"""What a run does about updates that are not finite: skip, tell, take up the last good checkpoint, and in the end stop.

The learners themselves skip such an update (:class:`worldmodel.learning.learner.Learner`). Here they are counted; the
first ones
leave a report in `RUN/faults/`. After too many of them since the last checkpoint, its weights and optimisers come back
with a lower learning rate, while everything recorded stays.
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
from worldmodel.training.loop.trainer import Trainer, Update
from worldmodel.training.run.checkpoint import find
from worldmodel.training.run.folder import CHECKPOINT
from worldmodel.training.run.run import ROWS_THEN, TRAINING
from worldmodel.training.run.tree import load_tree
from worldmodel.training.run.weights import save_tensors, write_text_atomic

if TYPE_CHECKING:  # Stable-Baselines3 takes a while to import
    from worldmodel.agents.build import Trained
    from worldmodel.agents.sb3.behaviour import SB3Behaviour

FAULTS = "faults"  # the folder of the reports
REPORTS = 3  # that a run writes at most: the first are those that tell something
SLOWER = 0.5  # the learning rate after each return to a checkpoint, as a share of what it was


class LearningFaults:
    """Counts updates that were not finite, and decides what follows.

    Args:
        say: gets a line for a person at each decision.
    """

    def __init__(self, trainer: Trainer, say: Callable[[str], None]) -> None:
        self.trainer, self.config, self.say = trainer, trainer.config.training, say
        self.skipped = 0  # updates, in all
        self.recent = 0  # of these, since the last checkpoint
        self.restored = 0  # times that a checkpoint came back
        self.sound = True  # whether the last update was

    def count(self, skipped: int, reason: str = "") -> None:
        """Take note of updates that were not finite, the last one among them.

        Args:
            reason: why, where it is known.
        Raises:
            FloatingPointError: if they have become too many.
        """
        self.sound = False
        if self.skipped < REPORTS:
            self._report(reason)
        self.skipped += skipped
        self.recent += skipped
        if self.recent > self.config.skips:
            self.restore(f"{self.recent} updates were not finite")

    def restore(self, problem: str) -> None:
        """Go back to the weights and optimisers of the last checkpoint, with a lower learning rate.

        Raises:
            FloatingPointError: if that has been done often enough, or there is no checkpoint.
        """
        run, steps, self.sound = self.trainer.run, self.trainer.envs.steps, False
        if self.restored >= self.config.restores:
            raise self.stop(f"{problem}, after {self.restored} return(s) to a checkpoint")
        try:
            checkpoint, _ = find(run.folder / CHECKPOINT, leave_out=(ROWS_THEN,))
        except ValueError as error:
            raise self.stop(f"{problem}, before there was a checkpoint to return to") from error
        kept = run.env_steps
        run.take(checkpoint)
        run.env_steps = kept  # what was recorded since is still there to learn from
        self.trainer.learn_on(load_tree(checkpoint.folder / TRAINING)["trainer"]["learned"])
        self.trainer.forget_states()
        self.restored, self.recent, self.sound = self.restored + 1, 0, True
        self.slow_down()
        self.say(
            f"{steps:>7} steps: {problem}; the weights of checkpoint {checkpoint.folder.name} ({checkpoint.env_steps} "
            f"steps) return, with {SLOWER**self.restored:g} of the learning rate"
        )

    def stop(self, problem: str) -> FloatingPointError:
        """The error of a run that does not go on."""
        return FloatingPointError(
            f"training diverged by step {self.trainer.run.env_steps}: {problem}. A new run with a lower learner.lr, or "
            "learning rate of the behaviour, is the first thing to try; rewards or observations of huge numbers are "
            f"another cause. What was recorded is kept; reports are in {self.trainer.run.folder / FAULTS}"
        )

    def slow_down(self) -> None:
        """Let every optimiser take the steps that are left to it after so many returns."""
        factor = SLOWER**self.restored
        run = self.trainer.run
        for learner in self.trainer.learners():
            learner.slow_down(factor)
        if run.config.behaviour.name == "sb3":
            cast("SB3Behaviour", run.behaviour).slow_down(factor)

    def metrics(self) -> dict[str, float]:
        """What the log says of them; nothing where there were none."""
        named = {"training/skipped_updates": self.skipped, "training/restored_checkpoints": self.restored}
        return {name: count for name, count in named.items() if count}

    def state(self) -> list[int]:
        return [self.skipped, self.recent, self.restored, int(self.sound)]

    def load_state(self, state: list[int]) -> None:
        """Go on from what :meth:`state` gave."""
        self.skipped, self.recent, self.restored = state[:3]
        self.sound = bool(state[3])
        self.slow_down()

    def _report(self, reason: str) -> None:
        trainer = self.trainer
        folder = trainer.run.folder / FAULTS / f"update-{trainer.updates:07d}"
        skipped = f"{trainer.envs.steps:>7} steps: an update was not finite and is skipped"
        try:
            self.say(f"{skipped}, {write_report(folder, trainer, reason)}; see {folder}")
        except OSError as error:  # of the disk: not what a run ends for
            self.say(f"{skipped}; there is no report of it ({error})")


def write_report(folder: Path, trainer: Trainer, reason: str = "") -> str:
    """Save the batch of the last update, and where in it numbers were first not finite.

    `report.json` lists the arrays of the batch, the parameters, the outputs of modules in the order in which they were
    computed (a repetition of the update, on a copy of the behaviour), the metrics and the gradients that are not
    finite; `batch.safetensors` holds the batch.

    Returns:
        The first of them, for a person.
    """
    update = trainer.last
    run = trainer.run
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
        found["outputs"], found["metrics"] = _repeated(trainer, update)
    found["gradients"] = gradients
    first = next(((kind, names[0]) for kind, names in found.items() if names), None)
    about: dict[str, Any] = {"env_steps": run.env_steps, "update": trainer.updates, "reason": reason, "first": first}
    write_text_atomic(folder / "report.json", json.dumps({**about, "not_finite": found}, indent=1) + "\n")
    return reason or ("for no reason that repeats" if first is None else f"first in {first[0]} '{first[1]}'")


def _others(update: Update) -> dict[str, Tensor]:
    fields = {name: value for name, value in update.batch._asdict().items() if isinstance(value, Tensor)}
    if update.start is None:
        return fields
    start = {f"start/{name}": value for name, value in update.start._asdict().items() if isinstance(value, Tensor)}
    return {**fields, **start}


def _repeated(trainer: Trainer, update: Update) -> tuple[list[str], list[str]]:
    """Outputs of modules, in order, and metrics that are not finite when the update is computed once more."""
    run = trainer.run
    outputs: list[str] = []
    metrics: Mapping[str, Tensor] = {}
    with torch.random.fork_rng(devices=[run.agent.device] if run.agent.device.type == "cuda" else []):
        torch.set_rng_state(update.random)
        try:
            products = products_in(run.config.learner.precision, run.agent.device.type)
            with _watched({"world_model": run.model}, outputs), products:
                _, (states, metrics) = trainer.loss(update.batch, update.now, update.start)
            if run.config.behaviour.name != "sb3":  # whose copy would be another environment
                other = copy.deepcopy(cast("Trained", run.behaviour))
                with _watched({"behaviour": other}, outputs):
                    detached = type(states)(*(field.detach() for field in states))
                    metrics = {**metrics, **other.learn(run.model, detached, update.batch)}
        except (ArithmeticError, ValueError, RuntimeError) as error:  # what went wrong goes wrong again
            outputs.append(str(error).splitlines()[0])
    return outputs, [name for name, value in metrics.items() if not bool(value.isfinite().all())]


@contextmanager
def _watched(modules: Mapping[str, nn.Module], found: list[str]) -> Iterator[None]:
    """While it lasts, each module that gives numbers that are not finite is added to `found`, once."""

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
