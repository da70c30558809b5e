"""Crafter behind Gymnasium's interface is Crafter."""

import numpy as np
import pytest

from worldmodel.envs import EnvConfig, make, make_vector
from worldmodel.envs.suites import crafter as suite

crafter = pytest.importorskip("crafter", reason="needs the extra: pip install 'worldmodel[crafter]'")


UNTIL = 9  # steps after which crafter itself is no longer repeated by its seed


def test_it_is_the_world_that_crafter_makes_and_a_seed_repeats_it() -> None:
    env = suite.Crafter("reward")
    drawn = int(np.random.default_rng(np.random.PCG64(np.random.SeedSequence(3))).integers(2**31 - 1))
    own = crafter.Env(seed=drawn)
    seen = [env.reset(seed=3)[0]]
    np.testing.assert_array_equal(seen[0], own.reset())
    actions = np.random.default_rng(0).integers(17, size=150).tolist()
    for step, action in enumerate(actions):
        observation, reward, terminated, truncated, info = env.step(action)
        seen.append(observation)
        if step < UNTIL:
            expected, wanted, done, told = own.step(action)
            np.testing.assert_array_equal(observation, expected)
            assert (reward, terminated or truncated) == (wanted, done)
            assert info == {"achievements": told["achievements"], "inventory": told["inventory"]}
    assert len(info["achievements"]) == 22
    np.testing.assert_array_equal(env.render(), observation)
    another, _ = env.reset()
    assert not np.array_equal(another, seen[0])
    again = [env.reset(seed=3)[0], *(env.step(action)[0] for action in actions)]
    np.testing.assert_array_equal(again, seen)


def test_the_limit_truncates_and_death_terminates(monkeypatch: pytest.MonkeyPatch) -> None:
    assert suite.LIMIT == 10_000
    monkeypatch.setattr(suite, "LIMIT", 2)
    env = suite.Crafter("reward")
    env.reset(seed=0)
    assert [env.step(0)[2:4] for _ in range(2)] == [(False, False), (False, True)]
    env.world._player.health = 0
    assert env.step(0)[2:4] == (True, False)


def test_without_a_reward_there_is_none() -> None:
    played = {}
    for variant in ("reward", "noreward"):
        envs = make_vector(EnvConfig(f"crafter:{variant}", image_size=32))
        envs.reset(seed=0)
        steps = [envs.step(np.full(1, 1 + step % 6)) for step in range(60)]
        played[variant] = np.array([step[1] for step in steps])
        assert steps[-1][0].shape == (1, 32, 32, 3) and "achievements" in steps[-1][4]
    assert (played["noreward"] == 0).all() and (played["reward"] != 0).any()


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="crafter has no variant 'rewards': did you mean reward"):
        make(EnvConfig("crafter:rewards"))
    with pytest.raises(ValueError, match=r"does not accept kwargs \{'area': 3\}"):
        make(EnvConfig("crafter:reward", kwargs={"area": 3}))
