"""EnvConfig -> environments, with errors that say what to install or what was meant."""

import difflib
import importlib
import os
import sys
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit

from envs.faults import named
from envs.images import Images, Rendered
from envs.spaces import SMALLEST_IMAGE, layout
from envs.suites import dm_control
from envs.wrappers import ActionRepeat, CheckObservation, RecordState

PLUGINS = {  # id prefix: (module that registers the ids, what pip installs it from)
    "ALE/": ("ale_py", "ale-py"),
    "BabyAI-": ("minigrid", "minigrid"),
    "MiniGrid-": ("minigrid", "minigrid"),
    "dm_control/": ("shimmy", "shimmy[dm-control]"),
}

MUJOCO = ("mujoco", "imageio")  # what Gymnasium's own robots import


@dataclass
class EnvConfig:
    """One environment, and how many of it.

    Raises:
        ValueError: if a number is below 1, or `kwargs` sets what has a field of its own.
    """

    id: str = "Pendulum-v1"  # of Gymnasium; "module:Id" where importing the module registers it; "dmc:domain_task"
    num_envs: int = 1  # environments stepped together
    kwargs: dict[str, Any] = field(default_factory=dict)  # of the environment's constructor
    action_repeat: int = 1  # frames per environment step; PlaNet uses 2-8, Atari 4
    record_state: bool = False  # also what the simulator knows, for `worldmodel diagnose`; no model sees it
    time_limit: int | None = None  # environment steps; None keeps the registered limit, which counts frames
    pixels: bool = False  # observe what the environment draws, and nothing else
    image_size: int = 64  # pixels a side of every image among the observations; the networks take 32, 64, 96 and 128
    grey: bool = False  # whether images lose their colour: a third of the memory

    def __post_init__(self) -> None:
        for name in ("num_envs", "action_repeat", "time_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"env.{name} must be at least 1, got {value}")
        if self.image_size < SMALLEST_IMAGE:
            raise ValueError(f"env.image_size must be at least {SMALLEST_IMAGE}, got {self.image_size}")
        for name, instead in (("max_episode_steps", "time_limit"), ("render_mode", "pixels")):
            if name in self.kwargs:
                raise ValueError(f"env.kwargs may not hold {name}: set env.{instead}")


def make(config: EnvConfig, index: int = 0, draw: bool = False) -> gym.Env[Any, Any]:
    """One environment of `config`, named `index` in the errors about it.

    With `draw` its `render()` gives pictures (H, W, 3), also where it is not `config.pixels` that are observed.

    A given `time_limit` replaces the registered one and counts environment steps. The registered one counts frames,
    so that repeating actions leaves the task as long as its author made it.

    Raises:
        ValueError: if the environment is unknown, not installed, or does not take `config.kwargs`.
    """
    env = _registered(config, None if config.time_limit is None else -1, draw or config.pixels)
    if config.action_repeat > 1:
        env = ActionRepeat(env, config.action_repeat)
    if config.time_limit is not None:
        env = TimeLimit(env, config.time_limit)
    if config.pixels:
        env = Rendered(env, config.record_state)
    if any(layout(space) for space in named(env.observation_space).values()):
        env = Images(env, config.image_size, config.grey)
    if config.record_state:
        env = RecordState(env)
    return CheckObservation(env, index)


def time_limit(config: EnvConfig) -> int | None:
    """Environment steps after which an episode is truncated; None where that is not known beforehand."""
    if config.time_limit is not None:
        return config.time_limit
    env = make(config)
    limit = env.spec.max_episode_steps if env.spec is not None else None
    env.close()
    return None if limit is None else -(-limit // config.action_repeat)


def make_vector(config: EnvConfig, num_envs: int | None = None) -> SyncVectorEnv:
    """`num_envs` environments of `config` (its own number by default), reset in the step that ends an episode.

    Raises:
        ValueError: as :func:`make`.
    """
    count = config.num_envs if num_envs is None else num_envs
    if count < 1:
        raise ValueError(f"num_envs must be at least 1, got {count}")
    factories = [lambda index=index: make(config, index) for index in range(count)]
    return SyncVectorEnv(factories, autoreset_mode=AutoresetMode.SAME_STEP)


def _registered(config: EnvConfig, max_episode_steps: int | None, draw: bool) -> gym.Env[Any, Any]:
    """`gymnasium.make`, with its many errors told as one kind; or a task of another suite."""
    drawn: dict[str, Any] = {"render_mode": "rgb_array"} if draw else {}
    draw_without_display()
    if config.id.startswith(dm_control.PREFIX):
        return _of_dm_control(config, drawn)
    name = _import_home(config.id)
    try:
        return gym.make(name, max_episode_steps=max_episode_steps, **config.kwargs, **drawn)
    except gym.error.DependencyNotInstalled as error:  # its message holds the pip command
        raise ValueError(f"environment '{config.id}' is not installed: {error}") from error
    except (gym.error.UnregisteredEnv, gym.error.DeprecatedEnv) as error:
        raise ValueError(_unknown(config.id, name)) from error
    except ImportError as error:
        remedy = ": pip install 'worldmodel[mujoco]'" if error.name in MUJOCO else ""
        raise ValueError(f"environment '{config.id}' needs a package that is missing: {error}{remedy}") from error
    except TypeError as error:
        given = {**config.kwargs, **drawn}
        raise ValueError(f"environment '{config.id}' does not take kwargs {given}: {error}") from error
    except gym.error.Error as error:
        raise ValueError(f"environment '{config.id}': {error}") from error


def draw_without_display() -> None:
    """Tell pygame and MuJoCo how to draw where there is no display, before they are imported: they ask only once."""
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        os.environ.setdefault("MUJOCO_GL", "egl")


def _of_dm_control(config: EnvConfig, drawn: dict[str, Any]) -> gym.Env[Any, Any]:
    try:
        return dm_control.DMControl(config.id.removeprefix(dm_control.PREFIX), **config.kwargs, **drawn)
    except TypeError as error:
        raise ValueError(f"environment '{config.id}' does not take kwargs {config.kwargs}: {error}") from error


def _import_home(env_id: str) -> str:
    """Import the module that registers an id, where it has one; return the id without it."""
    module, colon, name = env_id.rpartition(":")
    if colon:
        try:
            importlib.import_module(module)
        except Exception as error:  # the module is the user's: anything can go wrong in it
            problem = f"{type(error).__name__}: {error}"
            raise ValueError(f"module '{module}' of environment '{env_id}' cannot be imported: {problem}") from error
        return name
    for prefix, (plugin, package) in PLUGINS.items():
        if env_id.startswith(prefix):
            try:
                importlib.import_module(plugin)
            except ImportError as error:
                raise ValueError(
                    f"environment '{env_id}' is not installed: pip install \"{package}\" ({error})"
                ) from error
    return env_id


def _unknown(env_id: str, name: str) -> str:
    registered = {known.lower(): known for known in gym.registry}
    near = [registered[match] for match in difflib.get_close_matches(name.lower(), registered, n=3)]
    hint = f"did you mean {', '.join(near)}?" if near else "no registered id is near it."
    return f"unknown environment '{env_id}': {hint} An id of another package is written 'module:Id'"
