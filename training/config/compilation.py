"""What `auto` stands for in a config, where something may be compiled: decided before a run begins, and kept in it."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from worldmodel.kernels.compiling import Learning, choose_acting, choose_learning, has_compiler
from worldmodel.learning.learner import LearnerConfig
from worldmodel.training.config.config import DECIDE_AT_ONCE, Config
from worldmodel.training.config.fit_config import FitConfig

CALLS, PER_WEIGHT, FLOPS = 0.1, 70, 60e9  # of an update on a core: its operators' seconds, its FLOP, its FLOP/s


def learners(section: Any, path: str = "") -> Iterator[tuple[str, LearnerConfig]]:
    """Every learner of a config, with its place."""
    for field in fields(section):
        value, where = getattr(section, field.name), f"{path}{field.name}"
        if isinstance(value, LearnerConfig):
            yield where, value
        elif is_dataclass(value):
            yield from learners(value, f"{where}.")


def update_seconds(hidden: int, rows: int) -> float:
    """Roughly those of an update on a core: of layers so wide, and so many steps replayed and imagined.

    Of sizes S and M of benchmarks/update.py, and of `configs/pendulum.yaml`, it is right to within a factor of two. The
    convolutions of images are left out: compiled, they take as long.
    """
    return CALLS + rows * PER_WEIGHT * hidden**2 / FLOPS


def decide(config: Config | FitConfig) -> list[str]:
    """Replace every `auto` of a config; returns a line for each that says what was chosen, and why."""
    said = []
    if isinstance(config, FitConfig):
        device, updates = config.fit.device, float(config.fit.updates)
        seconds = CALLS  # how long its sequences are is not known yet
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
            mode, why = "off", "whole sequences differ in length, and each would be compiled anew"
        else:
            mode, why = choose_learning(device, updates, seconds)
        for learner in undecided.values():
            learner.compile = mode
        said.append(f"{', '.join(f'{where}.compile' for where in undecided)}: {mode}, because {why}")
    return said


def taken_along(config: Config, device: str) -> list[str]:
    """Lines about what was decided for another kind of device, from which a run comes to that of its config."""
    if torch.device(device).type == torch.device(config.training.device).type:
        return []
    return [f"{where}.compile: {learner.compile}, as on {device}" for where, learner in learners(config)]


def without_compiler(config: Config) -> list[str]:
    """Let a run that was compiled be used where nothing can be; returns a line that says so, if there was need."""
    compiled = {where: learner for where, learner in learners(config) if learner.compile in ("step", "update")}
    if has_compiler() or not (compiled or config.training.acting == "compiled"):
        return []
    for learner in compiled.values():
        learner.compile = "off"
    config.training.acting = "eager"
    return ["there is no C++ compiler: nothing is compiled from here on"]
