"""Resolve the value `auto` of the compilation settings.

The choice is made before a run begins and is saved in its config.
"""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from worldmodel.kernels.compiling import Learning, choose_acting, choose_learning, has_compiler
from worldmodel.learning.learner import LearnerConfig
from worldmodel.training.config.config import DECIDE_AT_ONCE, Config
from worldmodel.training.config.fit_config import FitConfig

OPERATOR_SECONDS = 0.1  # seconds that Python and the calls of operators take in one update of any size
FLOP_PER_WEIGHT = 70  # floating-point operations per time step and per hidden unit squared
FLOP_PER_SECOND = 60e9  # of one CPU core


def learners(section: Any, path: str = "") -> Iterator[tuple[str, LearnerConfig]]:
    """Yield every learner config of `section` with its dotted key."""
    for field in fields(section):
        value, where = getattr(section, field.name), f"{path}{field.name}"
        if isinstance(value, LearnerConfig):
            yield where, value
        elif is_dataclass(value):
            yield from learners(value, f"{where}.")


def update_seconds(hidden: int, rows: int) -> float:
    """Estimate the seconds that one update takes on one CPU core.

    The estimate is right within a factor of two for the sizes S and M of benchmarks/update.py and for
    `configs/pendulum.yaml`. It leaves out the convolutions of images, which are not faster when compiled.

    Args:
        hidden: number of units in each layer.
        rows: number of time steps per update, replayed and imagined ones together.
    """
    return OPERATOR_SECONDS + rows * FLOP_PER_WEIGHT * hidden**2 / FLOP_PER_SECOND


def decide(config: Config | FitConfig) -> list[str]:
    """Replace every `auto` in a config. Return a line for each choice, with its reason."""
    said = []
    if isinstance(config, FitConfig):
        device, updates = config.fit.device, float(config.fit.updates)
        seconds = OPERATOR_SECONDS  # the lengths of the sequences are not known yet
    else:
        training, replay = config.training, config.replay
        replayed, imagines = replay.batch_size * replay.window, config.behaviour.actor_critic
        device, updates = training.device, training.steps * config.updates_per_step
        starts = min(imagines.starts or replayed, replayed)
        imagined = starts * imagines.horizon if config.behaviour.name in DECIDE_AT_ONCE else 0
        seconds = update_seconds(config.model.hidden, replayed + imagined)
        if training.acting == "auto":
            decisions = training.steps / config.env.num_envs if config.behaviour.name in DECIDE_AT_ONCE else 0
            training.acting, why = choose_acting(decisions)
            said.append(f"training.acting: {training.acting}, because {why}")
    mode: Learning
    undecided = {where: learner for where, learner in learners(config) if learner.compile == "auto"}
    if undecided:
        if isinstance(config, FitConfig) and config.data.window is None:
            mode, why = "off", "whole sequences differ in length, and each length would be compiled separately"
        else:
            mode, why = choose_learning(device, updates, seconds)
        for learner in undecided.values():
            learner.compile = mode
        said.append(f"{', '.join(f'{where}.compile' for where in undecided)}: {mode}, because {why}")
    return said


def taken_along(config: Config, device: str) -> list[str]:
    """Return a line for each compilation setting that was chosen for another kind of device.

    Args:
        config: the config of the run, on its new device.
        device: the device on which the run was trained before.
    """
    if torch.device(device).type == torch.device(config.training.device).type:
        return []
    return [f"{where}.compile: {learner.compile}, as chosen for {device}" for where, learner in learners(config)]


def without_compiler(config: Config) -> list[str]:
    """Switch compilation off if this machine has no C++ compiler. Return a line about it if anything changed."""
    compiled = {where: learner for where, learner in learners(config) if learner.compile in ("step", "update")}
    if has_compiler() or not (compiled or config.training.acting == "compiled"):
        return []
    for learner in compiled.values():
        learner.compile = "off"
    config.training.acting = "eager"
    return ["There is no C++ compiler on this machine. Nothing is compiled from here on."]
