"""The DeepMind Control Suite, where it is installed; and what is said where it is not."""

import sys

import numpy as np
import pytest

from worldmodel.envs import EnvConfig, make, make_vector


def test_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dm_control", None)
    with pytest.raises(ValueError, match=r"dmc: tasks need dm_control: pip install 'worldmodel\[dmc\]'"):
        make(EnvConfig("dmc:cartpole_swingup"))


def test_a_task_behaves_as_the_suite_has_it() -> None:
    suite = pytest.importorskip("dm_control.suite", reason="needs the extra: pip install 'worldmodel[dmc]'")
    env, original = make(EnvConfig("dmc:cartpole_swingup")), suite.load("cartpole", "swingup", {"random": 3})
    observation, _ = env.reset(seed=3)
    expected = original.reset()
    rng = np.random.default_rng(0)
    for _ in range(50):
        for key, value in expected.observation.items():
            np.testing.assert_allclose(observation[key], np.ravel(value), rtol=1e-5, atol=1e-6)
        action = rng.uniform(-1, 1, 1).astype(np.float32)
        observation, reward, terminated, truncated, _ = env.step(action)
        expected = original.step(action)
        assert reward == pytest.approx(expected.reward) and not (terminated or truncated)
    assert env.unwrapped.state_vector().shape == (4,)  # type: ignore[attr-defined]


def test_an_episode_ends_at_its_time_limit_counted_in_frames() -> None:
    pytest.importorskip("dm_control.suite", reason="needs the extra: pip install 'worldmodel[dmc]'")
    envs = make_vector(EnvConfig("dmc:pendulum_swingup", action_repeat=8, record_state=True), 1)
    observation, _ = envs.reset(seed=0)
    assert set(observation) == {"orientation", "velocity", "state/simulator"}
    steps = 0
    while True:
        steps += 1
        _, _, terminated, truncated, _ = envs.step(np.zeros((1, 1), np.float32))
        if truncated[0] or terminated[0]:
            break
    assert steps == 125 and truncated[0] and not terminated[0]


def test_an_unknown_task_is_named_with_the_nearest() -> None:
    pytest.importorskip("dm_control.suite", reason="needs the extra: pip install 'worldmodel[dmc]'")
    with pytest.raises(ValueError, match=r"no task 'cartpole_swing': did you mean cartpole_swingup"):
        make(EnvConfig("dmc:cartpole_swing"))
    with pytest.raises(ValueError, match=r"does not accept kwargs \{'colour': 3\}"):
        make(EnvConfig("dmc:cartpole_swingup", kwargs={"colour": 3}))


def test_a_time_limit_takes_the_place_of_the_task_s_own() -> None:
    """Also one that is longer."""
    pytest.importorskip("dm_control.suite", reason="needs the extra: pip install 'worldmodel[dmc]'")
    env = make(EnvConfig("dmc:pendulum_swingup", action_repeat=8, time_limit=130))
    env.reset(seed=0)
    ends = [env.step(np.zeros(1, np.float32))[2:4] for _ in range(130)]
    assert ends == [(False, False)] * 129 + [(False, True)]
