"""Make environments from an `EnvConfig`: the settings, and the order in which the wrappers are applied."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import gymnasium as gym
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

from worldmodel.envs.contract.faults import named
from worldmodel.envs.contract.spaces import SMALLEST_IMAGE, layout
from worldmodel.envs.ids import by_id
from worldmodel.envs.rendering.images import Images, Rendered
from worldmodel.envs.suites.minigrid import symbolic
from worldmodel.envs.wrappers.basic import ActionRepeat, CheckContract, Keyed, RecordState
from worldmodel.envs.wrappers.episodes import EVALUATION_SEEDS, RepeatableEpisodes
from worldmodel.envs.wrappers.lives import EndWithLife, console
from worldmodel.envs.wrappers.process import ProcessEnv
from worldmodel.envs.wrappers.restart import Restart
from worldmodel.envs.wrappers.vector import SameStepVectorEnv
from worldmodel.networks.images import stages
from worldmodel.validation import at_most

MOST_ENVS = 10_000  # they are stepped one after the other
MOST_STEPS = 10**7  # of an episode
LARGEST_IMAGE = 256  # pixels a side
DAY = 86_400  # seconds

LifeLoss = Literal["ignore", "end"]


@dataclass
class EnvConfig:
    """The settings of an environment, and the number of copies.

    Raises:
        ValueError: if a number is too small or too large, if no network accepts `image_size`, or if `kwargs` sets
            something that has its own field.
    """

    id: str = "Pendulum-v1"  # an id of Gymnasium; "module:Id" if importing the module registers it; or an id of a
    # suite: "dmc:walker_walk", "atari:pong", "crafter:reward", "MiniGrid-DoorKey-5x5-v0" (README, Suites)
    num_envs: int = 1  # number of environments that are stepped together
    kwargs: dict[str, Any] = field(default_factory=dict)  # arguments of the environment's constructor, passed
    # unchanged: nested keys may be numbers, and `!!python/tuple [3, 4]` is a tuple
    action_repeat: int = 1  # how often each action is repeated (PlaNet: 2-8); "atari:" already repeats it for 4 frames
    record_state: bool = False  # also record the simulator's state for `worldmodel diagnose`; the model does not see it
    time_limit: int | None = None  # in environment steps; None keeps the registered limit, which counts frames
    pixels: bool = False  # replace the observation by the rendered image
    image_size: int = 64  # pixels a side of every observed image: 4, 5 or 6 times a power of two (32, 64, 96, 128)
    grey: bool = False  # convert images to grey, which needs a third of the memory
    life_loss: LifeLoss = "ignore"  # "end": in training, a lost life in Atari ends the episode; evaluations play on
    restarts: int = 10  # failures of an environment before the run stops (0: at the first); resuming resets the count
    evaluation_seeds: list[int] = field(default_factory=lambda: list(EVALUATION_SEEDS))  # evaluations reset with seeds
    # from the first to below the second; training uses seeds below the first (docs/own.md, Seeds)
    timeout: float | None = None  # seconds for one step or reset. If set, each environment runs in its own process,
    # also in evaluations; a process that hangs or dies costs one episode, not the run

    def __post_init__(self) -> None:
        for name in ("num_envs", "action_repeat", "time_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"env.{name} must be at least 1, got {value}")
        if len(self.evaluation_seeds) != 2 or not 1 <= self.evaluation_seeds[0] < self.evaluation_seeds[1] <= 2**32:
            raise ValueError(
                "env.evaluation_seeds must be two increasing numbers from 1 to 2^32 (the first seed of evaluations, "
                f"and the seed after the last), got {self.evaluation_seeds}"
            )
        if self.restarts < 0:
            raise ValueError(f"env.restarts must be at least 0, got {self.restarts}")
        if self.timeout is not None and not 0 < self.timeout <= DAY:
            allowed = f"above 0 and at most {DAY} seconds (a day), or null to use no separate process"
            raise ValueError(f"env.timeout must be {allowed}, got {self.timeout}")
        at_most(self, num_envs=MOST_ENVS, action_repeat=1_000, time_limit=MOST_STEPS, image_size=LARGEST_IMAGE)
        if self.image_size < SMALLEST_IMAGE:
            raise ValueError(f"env.image_size must be at least {SMALLEST_IMAGE}, got {self.image_size}")
        stages((self.image_size, self.image_size, 1))
        if self.life_loss not in get_args(LifeLoss):
            raise ValueError(f"env.life_loss must be one of {', '.join(get_args(LifeLoss))}, got {self.life_loss}")
        for name, instead in (("max_episode_steps", "time_limit"), ("render_mode", "pixels")):
            if name in self.kwargs:
                raise ValueError(f"env.kwargs must not contain {name}: set env.{instead} instead")


def make(config: EnvConfig, index: int = 0, draw: bool = False, training: bool = False) -> gym.Env[Any, Any]:
    """Make one environment from `config`.

    With `training`, the environment is replaced by a new one when it fails
    (:class:`worldmodel.envs.wrappers.restart.Restart`), and lost lives may end its episodes (`config.life_loss`).
    Unless they do, its episodes can be replayed (:class:`worldmodel.envs.wrappers.episodes.RepeatableEpisodes`).
    Without `training`, the environment is the task itself.

    A given `time_limit` replaces the registered one and counts environment steps. The registered limit counts frames,
    so repeating actions does not change the length of the task.

    Args:
        index: the number of the environment in error messages.
        draw: whether `render()` must return images (H, W, 3), also without `config.pixels`.
        training: whether the environment is used to collect training data.
    Raises:
        ValueError: if the environment is unknown, is not installed, or does not accept `config.kwargs`; or if it
            returns no image although `config` sets `image_size` or `grey`.
    """
    if not training:
        return CheckContract(_built(config, draw), index)
    env = _replaced(config, index, training)
    # A game goes on after a lost life, so its later episodes have no seed of their own.
    return RepeatableEpisodes(env, config.evaluation_seeds[0]) if config.life_loss != "end" else env


def _replaced(config: EnvConfig, index: int, training: bool) -> Restart:
    """Make one environment that is replaced when it fails.

    An environment for evaluation counts as proven, because training has already used it.
    """
    build = partial(_built, config, training=training)

    def fresh() -> gym.Env[Any, Any]:
        return CheckContract(build() if config.timeout is None else ProcessEnv(build, config.timeout), index)

    return Restart(fresh, index, config.restarts, not training, config.evaluation_seeds)


def _built(config: EnvConfig, draw: bool = False, training: bool = False) -> gym.Env[Any, Any]:
    """Make an environment with the wrappers that `config` asks for; see :func:`make`."""
    limit = None if config.time_limit is None else -1
    env = by_id(config.id, config.kwargs, limit, draw or config.pixels)
    if isinstance(env.observation_space, spaces.Tuple):
        env = Keyed(env)
    if config.action_repeat > 1:
        env = ActionRepeat(env, config.action_repeat)
    if config.time_limit is not None:
        env = TimeLimit(env, config.time_limit)
    if config.life_loss == "end":
        console(env)  # raises an error early if the environment has no lives
        env = EndWithLife(env) if training else env
    env = Rendered(env, config.record_state) if config.pixels else symbolic(env)
    if any(layout(space) for space in named(env.observation_space).values()):
        env = Images(env, config.image_size, config.grey)
    else:
        _refuse_of_images(config)
    return RecordState(env) if config.record_state else env


def _refuse_of_images(config: EnvConfig) -> None:
    """Raise an error if the config sets an option for images, but no image is observed."""
    for name in ("image_size", "grey"):
        if getattr(config, name) != getattr(EnvConfig, name):
            raise ValueError(
                f"env.{name} is {getattr(config, name)}, but no observation of {config.id} is an image. Set env.pixels "
                f"to true to observe the rendered image, or remove env.{name}"
            )


def time_limit(config: EnvConfig, env: gym.Env[Any, Any]) -> int | None:
    """Return after how many environment steps an episode of `env` is truncated, or None if that is not known.

    Args:
        config: the config that `env` was made from.
    """
    if config.time_limit is not None:
        return config.time_limit
    limit = env.spec.max_episode_steps if env.spec is not None else None
    return None if limit is None else -(-limit // config.action_repeat)


def make_vector(config: EnvConfig, num_envs: int | None = None, training: bool = False) -> SameStepVectorEnv:
    """Make a vector of environments, each of which is reset in the step that ends its episode.

    The infos are not merged; :func:`worldmodel.envs.contract.infos.said` reads them. An environment that fails is
    replaced (:class:`worldmodel.envs.wrappers.restart.Restart`). The key FAULT then describes the failure in the
    infos of the last step or of the reset.

    Args:
        num_envs: the number of environments; `config.num_envs` by default.
        training: see :func:`make`.
    Raises:
        ValueError: see :func:`make`.
    """
    count = config.num_envs if num_envs is None else num_envs
    if count < 1:
        raise ValueError(f"num_envs must be at least 1, got {count}")
    factories: list[Callable[[], gym.Env[Any, Any]]] = [
        partial(make, config, index, training=True) if training else partial(_replaced, config, index, training=False)
        for index in range(count)
    ]
    return SameStepVectorEnv(factories)
