"""Atari 2600 games of the Arcade Learning Environment (Bellemare et al. 2013). Needs the extra `atari`.

Preprocessed as for Atari 100k (Kaiser et al. 2020; Machado et al. 2018 for the terms) by Gymnasium's own
`AtariPreprocessing`: each action is taken for four frames, the last two are seen as their maximum, since consoles draw
some sprites in every other frame only, and an episode begins with up to 30 frames of no action. Colour and size are
left to :class:`worldmodel.envs.rendering.images.Images`.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from gymnasium.wrappers import AtariPreprocessing

from worldmodel.envs.suites.names import unknown
from worldmodel.envs.wrappers.basic import FRAMES

PREFIX = "atari:"
LIMIT = 108_000  # frames of a game: half an hour


def game(
    name: str,
    sticky: float = 0.0,
    full_actions: bool = False,
    frame_skip: int = 4,
    noops: int = 30,
    render_mode: str | None = None,
    endless: bool = False,
) -> gym.Env[Any, Any]:
    """A game by its name, "pong" or "ms_pacman", seen as (210, 160, 3) uint8 and truncated after 108,000 frames.

    Args:
        sticky: the probability that a frame repeats the action of the frame before instead (Machado et al. 2018: 0.25).
        full_actions: all 18 actions of the console instead of those that have an effect in this game.
        frame_skip: frames per step.
        noops: frames without action that an episode begins with, at most; how many is drawn.
        endless: whether nothing but its end ends a game.
    Raises:
        ValueError: if ale-py is not installed, has no such game, or a number is out of its range.
    """
    if not 0 <= sticky < 1:
        raise ValueError(f"{PREFIX}{name}: sticky is a probability below 1, got {sticky}")
    if frame_skip < 1 or noops < 0:
        raise ValueError(f"{PREFIX}{name}: frame_skip must be at least 1, noops at least 0: {frame_skip}, {noops}")
    games = _games()
    if name not in games:
        raise ValueError(unknown("ale-py", "game", name, games))
    env = gym.make(
        games[name],
        frameskip=1,
        repeat_action_probability=sticky,
        full_action_space=full_actions,
        max_num_frames_per_episode=0 if endless else LIMIT,
        render_mode=render_mode,
    )
    height, width, _ = env.observation_space.shape or ()
    return Counted(AtariPreprocessing(env, noops, frame_skip, screen_size=(width, height), grayscale_obs=False))


class Counted(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Reports the frames of each step, and ends a game with the frame it ended with.

    Where it ends within a step, `AtariPreprocessing` shows what was seen before it: the picture of a loss would be that
    of a game that goes on.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self.ale: Any = env.unwrapped.ale  # type: ignore[attr-defined]

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        before = self.ale.getEpisodeFrameNumber()
        observation, reward, terminated, truncated, info = self.env.step(action)
        if terminated or truncated:
            observation = self.ale.getScreenRGB()
        frames = self.ale.getEpisodeFrameNumber() - before
        return observation, float(reward), terminated, truncated, {**info, FRAMES: frames}


def _games() -> dict[str, str]:
    """{name: the id that `ale_py` registers it under}."""
    try:
        import ale_py
    except ImportError as error:
        raise ValueError(f"{PREFIX} games need ale-py: pip install 'worldmodel[atari]' ({error})") from error
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # its name is no news, with every environment
    gym.register_envs(ale_py)
    mine = (spec for spec in gym.registry.values() if spec.namespace == "ALE" and spec.version == 5)
    return {spec.kwargs["game"]: spec.id for spec in mine}
