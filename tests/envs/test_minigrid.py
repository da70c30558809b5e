"""MiniGrid in symbols: every cell is categories, and a mission is the words that differ."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from worldmodel.envs import EnvConfig, make, observation_specs

minigrid = pytest.importorskip("minigrid", reason="needs the extra: pip install 'worldmodel[minigrid]'")
KEY, DOOR, LOCKED = 5, 4, 2  # as MiniGrid's papers number objects and states


def test_cells_are_categories_in_their_places() -> None:
    env, own = make(EnvConfig("MiniGrid-DoorKey-5x5-v0")), gym.make("MiniGrid-DoorKey-5x5-v0")
    space: Any = env.observation_space
    assert {key: int(each.nvec.max()) for key, each in space.items() if key != "direction"} == {
        "object": 11,
        "colour": 6,
        "state": 3,
    }
    assert all(spec.classes for spec in observation_specs(space).values())
    seen, expected = env.reset(seed=0)[0], own.reset(seed=0)[0]
    rng, objects = np.random.default_rng(0), set()
    for _ in range(100):
        assert space.contains(seen)
        for place, part in enumerate(("object", "colour", "state")):
            np.testing.assert_array_equal(seen[part], expected["image"][..., place])
        assert seen["direction"] == expected["direction"]
        objects |= set(seen["object"].ravel().tolist())
        doors = seen["state"][seen["object"] == DOOR]
        assert set(doors.tolist()) <= {0, 1, LOCKED}
        action = int(rng.integers(7))
        seen, *ends = env.step(action)
        expected, reward, *_ = own.step(action)
        assert ends[0] == reward
    assert {KEY, DOOR} <= objects


def test_a_mission_is_the_words_that_differ() -> None:
    env = make(EnvConfig("MiniGrid-PutNear-6x6-N2-v0"))
    assert env.observation_space["mission"] == spaces.MultiDiscrete([6, 3, 6, 3])  # type: ignore[index]
    own: Any = env.unwrapped
    colours, kinds = ("blue", "green", "grey", "purple", "red", "yellow"), ("key", "ball", "box")
    for seed in range(5):
        seen, _ = env.reset(seed=seed)
        a, b, c, d = seen["mission"]
        assert own.mission == f"put the {colours[a]} {kinds[b]} near the {colours[c]} {kinds[d]}"
    assert "mission" not in make(EnvConfig("MiniGrid-Empty-5x5-v0")).observation_space.spaces  # type: ignore[attr-defined]


def test_missions_that_are_sentences_are_refused_and_can_be_left_unseen() -> None:
    with pytest.raises(ValueError, match=r"missions of .*BabyAI-GoToObj-v0.* set env\.pixels"):
        make(EnvConfig("BabyAI-GoToObj-v0"))
    picture = make(EnvConfig("BabyAI-GoToObj-v0", pixels=True, image_size=32))
    assert picture.reset(seed=0)[0].shape == (32, 32, 3)


def test_what_a_wrapper_of_ones_own_shows_stays_as_it_is() -> None:
    from minigrid.wrappers import ImgObsWrapper

    own = "test-minigrid/Image-v0"
    gym.register(own, lambda **given: ImgObsWrapper(gym.make("MiniGrid-Empty-5x5-v0", **given)))
    assert make(EnvConfig(own)).observation_space == spaces.Box(0, 255, (7, 7, 3), np.uint8)
