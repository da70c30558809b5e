"""Games of the Arcade Learning Environment are what its own interface says they are; and what is asked of it."""

from typing import Any

import cv2
import gymnasium as gym
import numpy as np
import pytest

from worldmodel.envs import EnvConfig, make
from worldmodel.envs.suites import atari
from worldmodel.envs.wrappers.basic import FRAMES

ale_py = pytest.importorskip("ale_py", reason="needs the extra: pip install 'worldmodel[atari]'")


def console(name: str, seed: int = 0) -> Any:
    """The emulator itself, by the seeds of the same reset, in the first frame of a game."""
    ale = ale_py.ALEInterface()
    ale.setLoggerMode(ale_py.LoggerMode.Error)
    ale.setFloat("repeat_action_probability", 0.0)
    _, own = np.random.SeedSequence(seed).generate_state(2)
    ale.setInt("random_seed", np.int32(own))
    ale.loadROM(ale_py.roms.get_rom_path(name))
    ale.reset_game()
    return ale


def test_a_step_is_four_frames_of_which_the_last_two_are_seen_as_one() -> None:
    env, ale = atari.game("space_invaders", noops=0), console("space_invaders")
    seen, _ = env.reset(seed=0)
    np.testing.assert_array_equal(seen, ale.getScreenRGB())
    rng, differs = np.random.default_rng(0), False
    for _ in range(40):
        choice = int(rng.integers(env.action_space.n))  # type: ignore[attr-defined]
        screens, total = [], 0.0
        for _ in range(4):
            total += ale.act(ale.getMinimalActionSet()[choice])
            screens.append(ale.getScreenRGB())
        seen, reward, terminated, truncated, info = env.step(choice)
        np.testing.assert_array_equal(seen, np.maximum(screens[2], screens[3]))
        assert (reward, terminated, truncated, info[FRAMES]) == (total, False, False, 4)
        differs |= bool((screens[2] != screens[3]).any())
    assert differs  # else a maximum could be any of the two


def test_colour_and_size_are_those_of_every_image() -> None:
    screen = console("pong").getScreenRGB()
    env = make(EnvConfig("atari:pong", kwargs={"noops": 0}, image_size=96))
    np.testing.assert_array_equal(env.reset(seed=0)[0], cv2.resize(screen, (96, 96), interpolation=cv2.INTER_AREA))
    grey = make(EnvConfig("atari:pong", kwargs={"noops": 0}, grey=True)).reset(seed=0)[0]
    expected = cv2.resize(cv2.cvtColor(screen, cv2.COLOR_RGB2GRAY), (64, 64), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(grey[..., 0], expected)


def test_a_game_that_ends_within_a_step_shows_its_last_frame_and_counts_the_frames_it_had() -> None:
    env = atari.game("breakout")
    env.reset(seed=0)
    env.action_space.seed(0)
    frames = console_frames = 0
    terminated = False
    while not terminated:
        before = env.unwrapped.ale.getEpisodeFrameNumber()  # type: ignore[attr-defined]
        seen, _, terminated, truncated, info = env.step(env.action_space.sample())
        frames += info[FRAMES]
        console_frames += env.unwrapped.ale.getEpisodeFrameNumber() - before  # type: ignore[attr-defined]
        assert not truncated and (terminated or info[FRAMES] == 4)
    assert frames == console_frames > 400
    np.testing.assert_array_equal(seen, env.unwrapped.ale.getScreenRGB())  # type: ignore[attr-defined]


def test_episodes_begin_with_up_to_thirty_frames_of_no_action() -> None:
    env = atari.game("pong")
    env.reset(seed=0)
    begins = []
    for _ in range(60):
        env.reset()
        begins.append(env.unwrapped.ale.getEpisodeFrameNumber())  # type: ignore[attr-defined]
    assert 1 <= min(begins) < 8 and 24 < max(begins) <= 30


@pytest.mark.parametrize("sticky", [0.0, 0.25])
def test_a_seed_repeats_a_game(sticky: float) -> None:
    def play(seed: int) -> list[np.ndarray]:
        env = make(EnvConfig("atari:space_invaders", kwargs={"sticky": sticky}))
        first, _ = env.reset(seed=seed)
        return [first, *(env.step(step % 4)[0] for step in range(30))]

    once, again, other = play(3), play(3), play(4)
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(once, other, strict=True))


def test_sticky_actions_are_passed_on_and_off_by_default() -> None:
    assert atari.game("pong").unwrapped.ale.getFloat("repeat_action_probability") == 0  # type: ignore[attr-defined]
    sticky = atari.game("pong", sticky=0.25)
    assert sticky.unwrapped.ale.getFloat("repeat_action_probability") == 0.25  # type: ignore[attr-defined]
    for game in (atari.game("pong"), sticky):
        assert game.unwrapped.ale.getInt("max_num_frames_per_episode") == 108_000  # type: ignore[attr-defined]


def test_the_frame_limit_truncates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atari, "LIMIT", 50)
    env = make(EnvConfig("atari:pong", kwargs={"noops": 0}))
    env.reset(seed=0)
    ends = [env.step(0)[2:4] for _ in range(13)]
    assert ends == [(False, False)] * 12 + [(False, True)]


def test_actions_are_those_of_the_game_or_of_the_console() -> None:
    assert make(EnvConfig("atari:pong")).action_space == gym.spaces.Discrete(6)
    assert make(EnvConfig("atari:pong", kwargs={"full_actions": True})).action_space == gym.spaces.Discrete(18)


def test_a_lost_life_of_a_real_game_ends_an_episode_of_training() -> None:
    whole, lives = (make(EnvConfig("atari:breakout", life_loss="end"), training=each) for each in (False, True))
    whole.reset(seed=0)
    lives.reset(seed=0)
    left, game_over = [], False
    while not game_over:
        _, _, game_over, _, info = whole.step(1)
        seen, _, terminated, _, _ = lives.step(1)
        if terminated:
            left.append(info["lives"])
            again, _ = lives.reset()
            assert np.array_equal(again, seen) == (not game_over)
        else:
            assert not game_over
    assert left == [4, 3, 2, 1, 0]


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="ale-py has no game 'MsPacman': did you mean ms_pacman"):
        make(EnvConfig("atari:MsPacman"))
    with pytest.raises(ValueError, match=r"atari:pong: sticky must be a probability below 1, got 1\.5"):
        make(EnvConfig("atari:pong", kwargs={"sticky": 1.5}))
    with pytest.raises(ValueError, match="frame_skip must be at least 1 and noops at least 0, got 0 and 30"):
        make(EnvConfig("atari:pong", kwargs={"frame_skip": 0}))
    with pytest.raises(ValueError, match=r"'atari:pong' does not accept kwargs \{'stick': 0\.25\}"):
        make(EnvConfig("atari:pong", kwargs={"stick": 0.25}))
