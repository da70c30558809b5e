"""Atari 2600 games of the Arcade Learning Environment (Bellemare et al. 2013). Needs the extra `atari`.

The games are preprocessed as for Atari 100k (Kaiser et al. 2020; Machado et al. 2018 define the terms) with
Gymnasium's `AtariPreprocessing`. Each action is repeated for four frames. The observation is the maximum of the last
two frames, because the console draws some sprites only in every other frame. An episode begins with up to 30 frames
without an action. :class:`worldmodel.envs.rendering.images.Images` changes colour and size afterwards.
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
    """Make a game from its name, such as "pong" or "ms_pacman".

    Observations are images (210, 160, 3) of uint8. An episode is truncated after 108,000 frames.

    Args:
        sticky: the probability that a frame repeats the action of the previous frame (Machado et al. 2018: 0.25).
        full_actions: whether to offer all 18 actions of the console, also those without an effect in this game.
        frame_skip: the number of frames per step.
        noops: the largest number of frames without an action at the beginning of an episode. The number is drawn
            at random.
        endless: whether to remove the limit on the number of frames.
    Raises:
        ValueError: if ale-py is not installed, if it has no such game, or if a number is out of range.
    """
    if not 0 <= sticky < 1:
        raise ValueError(f"{PREFIX}{name}: sticky must be a probability below 1, got {sticky}")
    if frame_skip < 1 or noops < 0:
        raise ValueError(
            f"{PREFIX}{name}: frame_skip must be at least 1 and noops at least 0, got {frame_skip} and {noops}"
        )
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
    """Report the number of frames of each step, and return the true last frame of an episode.

    If an episode ends within a step, `AtariPreprocessing` returns an earlier frame. A lost game would then look like
    one that goes on.
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
    """Return {name: id}, the names of all games and the ids under which `ale_py` registers them."""
    try:
        import ale_py
    except ImportError as error:
        raise ValueError(f"{PREFIX} games need ale-py: pip install 'worldmodel[atari]' ({error})") from error
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # it would print its version for every environment
    gym.register_envs(ale_py)
    mine = (spec for spec in gym.registry.values() if spec.namespace == "ALE" and spec.version == 5)
    return {spec.kwargs["game"]: spec.id for spec in mine}
