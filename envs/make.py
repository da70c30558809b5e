"""EnvConfig -> environments: what of an environment is configured, and in which order it is put around it."""

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

MOST_ENVS, MOST_STEPS, LARGEST_IMAGE = 10_000, 10**7, 256  # stepped one by one; of an episode; pixels a side
DAY = 86_400  # seconds

LifeLoss = Literal["ignore", "end"]


@dataclass
class EnvConfig:
    """One environment, and how many of it.

    Raises:
        ValueError: if a number is too small or too large, no network takes `image_size`, or `kwargs` sets what has a
            field of its own.
    """

    id: str = "Pendulum-v1"  # of Gymnasium; "module:Id" where importing the module registers it; or of a suite, as
    # "dmc:walker_walk", "atari:pong", "crafter:reward", "MiniGrid-DoorKey-5x5-v0": README, Suites
    num_envs: int = 1  # environments stepped together
    kwargs: dict[str, Any] = field(default_factory=dict)  # of the environment's constructor, as they are written: keys
    # below may be numbers, and `!!python/tuple [3, 4]` is a tuple
    action_repeat: int = 1  # times an action is taken: PlaNet 2-8; "atari:" takes it for 4 frames by itself
    record_state: bool = False  # also what the simulator knows, for `worldmodel diagnose`; no model sees it
    time_limit: int | None = None  # environment steps; None keeps the registered limit, which counts frames
    pixels: bool = False  # observe what the environment draws, and nothing else
    image_size: int = 64  # pixels a side of every image that is observed: 4, 5 or 6 doubled, as 32, 64, 96 and 128
    grey: bool = False  # whether images lose their colour: a third of the memory
    life_loss: LifeLoss = "ignore"  # in training; "end": a lost life of Atari ends an episode. Evaluations are of games
    restarts: int = 10  # of a failed environment, before the run stops; 0: at the first. A resumed run counts anew
    evaluation_seeds: list[int] = field(default_factory=lambda: list(EVALUATION_SEEDS))  # resets of evaluations begin
    # from seeds between these two, those of training from seeds below both; docs/own.md, Seeds
    timeout: float | None = None  # seconds for one step or reset; if given, each environment, of evaluations too, lives
    # in a process of its own, whose hang or death costs an episode, not the run

    def __post_init__(self) -> None:
        for name in ("num_envs", "action_repeat", "time_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"env.{name} must be at least 1, got {value}")
        if len(self.evaluation_seeds) != 2 or not 1 <= self.evaluation_seeds[0] < self.evaluation_seeds[1] <= 2**32:
            raise ValueError(
                "env.evaluation_seeds are two numbers, the first seed of evaluations and the one after the last, from "
                f"1 to 2^32: {self.evaluation_seeds}"
            )
        if self.restarts < 0:
            raise ValueError(f"env.restarts must be at least 0, got {self.restarts}")
        if self.timeout is not None and not 0 < self.timeout <= DAY:
            known = f"above 0 seconds and at most a day ({DAY}), or null for no process"
            raise ValueError(f"env.timeout must be {known}, got {self.timeout}")
        at_most(self, num_envs=MOST_ENVS, action_repeat=1_000, time_limit=MOST_STEPS, image_size=LARGEST_IMAGE)
        if self.image_size < SMALLEST_IMAGE:
            raise ValueError(f"env.image_size must be at least {SMALLEST_IMAGE}, got {self.image_size}")
        stages((self.image_size, self.image_size, 1))
        if self.life_loss not in get_args(LifeLoss):
            raise ValueError(f"env.life_loss is one of {', '.join(get_args(LifeLoss))}, got {self.life_loss}")
        for name, instead in (("max_episode_steps", "time_limit"), ("render_mode", "pixels")):
            if name in self.kwargs:
                raise ValueError(f"env.kwargs may not hold {name}: set env.{instead}")


def make(config: EnvConfig, index: int = 0, draw: bool = False, training: bool = False) -> gym.Env[Any, Any]:
    """One environment of `config`, named `index` in the errors about it.

    With `draw` its `render()` gives pictures (H, W, 3), also where it is not `config.pixels` that are observed. Only
    with `training` is it the one to learn from, of which `config.life_loss` may end episodes: all others are the task.
    Unless lives end them, its episodes can be played again then
    (:class:`worldmodel.envs.wrappers.episodes.RepeatableEpisodes`), and where
    it fails another one takes its place (:class:`worldmodel.envs.wrappers.restart.Restart`).

    A given `time_limit` replaces the registered one and counts environment steps. The registered one counts frames,
    so that repeating actions leaves the task as long as its author made it.

    Raises:
        ValueError: if the environment is unknown, not installed, or does not take `config.kwargs`; if it shows no image
            and `config` says how large or grey one is to be.
    """
    if not training:
        return CheckContract(_built(config, draw), index)
    env = _replaced(config, index, training)
    # Games that a lost life interrupts go on without a reset: they have no seed of their own.
    return RepeatableEpisodes(env, config.evaluation_seeds[0]) if config.life_loss != "end" else env


def _replaced(config: EnvConfig, index: int, training: bool) -> Restart:
    """One environment that is made anew where it fails. What an evaluation plays in has been learned from before."""
    build = partial(_built, config, training=training)

    def fresh() -> gym.Env[Any, Any]:
        return CheckContract(build() if config.timeout is None else ProcessEnv(build, config.timeout), index)

    return Restart(fresh, index, config.restarts, not training, config.evaluation_seeds)


def _built(config: EnvConfig, draw: bool = False, training: bool = False) -> gym.Env[Any, Any]:
    """An environment with all that `config` puts around it; see :func:`make`."""
    limit = None if config.time_limit is None else -1
    env = by_id(config.id, config.kwargs, limit, draw or config.pixels)
    if isinstance(env.observation_space, spaces.Tuple):
        env = Keyed(env)
    if config.action_repeat > 1:
        env = ActionRepeat(env, config.action_repeat)
    if config.time_limit is not None:
        env = TimeLimit(env, config.time_limit)
    if config.life_loss == "end":
        console(env)  # refuses what has no lives, before anyone learns
        env = EndWithLife(env) if training else env
    env = Rendered(env, config.record_state) if config.pixels else symbolic(env)
    if any(layout(space) for space in named(env.observation_space).values()):
        env = Images(env, config.image_size, config.grey)
    else:
        _refuse_of_images(config)
    return RecordState(env) if config.record_state else env


def _refuse_of_images(config: EnvConfig) -> None:
    """What would do nothing where no image is observed, and was set for one."""
    for name in ("image_size", "grey"):
        if getattr(config, name) != getattr(EnvConfig, name):
            raise ValueError(
                f"env.{name} is {getattr(config, name)}, and no observation of {config.id} is an image: set env.pixels "
                f"to true to observe what it draws, or leave env.{name} out"
            )


def time_limit(config: EnvConfig, env: gym.Env[Any, Any]) -> int | None:
    """Environment steps after which an episode of `env`, made of `config`, is truncated; None where it does not say."""
    if config.time_limit is not None:
        return config.time_limit
    limit = env.spec.max_episode_steps if env.spec is not None else None
    return None if limit is None else -(-limit // config.action_repeat)


def make_vector(config: EnvConfig, num_envs: int | None = None, training: bool = False) -> SameStepVectorEnv:
    """`num_envs` environments of `config` (its own number by default), reset in the step that ends an episode.

    Infos are not merged, so that whatever one holds costs nothing; :func:`worldmodel.envs.contract.infos.said` reads
    them. An environment
    that fails is replaced, as FAULT says in the infos of the last step, or in those of a reset; see
    :class:`worldmodel.envs.wrappers.restart.Restart`. `training`: see :func:`make`.

    Raises:
        ValueError: as :func:`make`.
    """
    count = config.num_envs if num_envs is None else num_envs
    if count < 1:
        raise ValueError(f"num_envs must be at least 1, got {count}")
    factories: list[Callable[[], gym.Env[Any, Any]]] = [
        partial(make, config, index, training=True) if training else partial(_replaced, config, index, training=False)
        for index in range(count)
    ]
    return SameStepVectorEnv(factories)
