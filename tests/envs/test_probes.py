"""The known answers of the probes are true."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from worldmodel.envs.testing.probes import ConstantReward, Counter, DelayedReward, Identity, LinearGaussian

GAMMA = 0.9


@pytest.mark.filterwarnings("ignore:.*Box observation space m")  # infinite bounds are meant
@pytest.mark.parametrize("continuous", [None, True])
@pytest.mark.parametrize("name", ["Counter", "Identity", "DelayedReward", "ConstantReward", "LinearGaussian"])
def test_gymnasium_accepts_it(name: str, continuous: bool | None) -> None:
    if continuous and name not in ("Counter", "Identity"):
        pytest.skip("has one kind of action")
    kwargs = {"continuous": True} if continuous else {}
    check_env(
        gym.make(f"worldmodel.envs.testing.probes:worldmodel/{name}-v0", **kwargs).unwrapped, skip_render_check=True
    )


def run(env: gym.Env, actions: list) -> tuple[list, list[float], bool, bool]:
    """Observations, rewards and how the last step ended."""
    observation, _ = env.reset(seed=3)
    observations, rewards, terminated, truncated = [observation], [], False, False
    for action in actions:
        assert not (terminated or truncated)
        observation, reward, terminated, truncated, _ = env.step(action)
        observations.append(observation)
        rewards.append(float(reward))
    return observations, rewards, terminated, truncated


def discounted(rewards: list[float]) -> float:
    return sum(GAMMA**i * reward for i, reward in enumerate(rewards))


def test_counter_tells_episodes_apart() -> None:
    env = Counter(length=2, ending="truncate", offset=10)
    observations, rewards, terminated, truncated = run(env, [1, 2])
    np.testing.assert_array_equal(observations, [[10, 0], [11, 1], [12, 2]])
    assert (rewards, terminated, truncated) == ([11, 12], False, True)
    np.testing.assert_array_equal(env.reset()[0], [14, 0])


def test_identity() -> None:
    env = Identity(n=5, length=200)
    env.reset(seed=0)
    seen = int(env.seen)
    rewards = []
    for time in range(200):
        observation, reward, terminated, truncated, _ = env.step(seen if time % 2 else (seen + 1) % 5)
        seen = int(observation)
        rewards.append(reward)
    assert rewards == [float(time % 2) for time in range(200)] and terminated and not truncated


def test_continuous_identity_of_a_constant() -> None:
    _, rewards, *_ = run(Identity(continuous=True, length=4000), [np.zeros(1, np.float32)] * 4000)
    assert np.mean(rewards) == pytest.approx(2 / 3, abs=0.03)  # five standard errors


@pytest.mark.parametrize("first", [0, 1])
def test_delayed_reward(first: int) -> None:
    observations, rewards, terminated, _ = run(DelayedReward(length=4), [first, 1 - first, 0, 1])
    assert terminated and rewards == [0, 0, 0, first]
    assert discounted(rewards) == pytest.approx(first * GAMMA**3)
    np.testing.assert_array_equal(np.ravel(observations), [0, 0.25, 0.5, 0.75, 1])


@pytest.mark.parametrize("ending", ["terminate", "truncate"])
def test_constant_reward(ending: str) -> None:
    _, rewards, terminated, truncated = run(ConstantReward(length=6, ending=ending), [0] * 6)
    assert (terminated, truncated) == (ending == "terminate", ending == "truncate")
    for time in range(6):
        bootstrap = GAMMA ** (6 - time) / (1 - GAMMA) if truncated else 0
        known = 1 / (1 - GAMMA) if truncated else (1 - GAMMA ** (6 - time)) / (1 - GAMMA)
        assert discounted(rewards[time:]) + bootstrap == pytest.approx(known)


@pytest.mark.parametrize(("length", "ending"), [(0, "terminate"), (3, "stop")])
def test_bad_arguments(length: int, ending: str) -> None:
    with pytest.raises(ValueError, match="length must be"):
        Counter(length, ending)  # type: ignore[arg-type]


def test_linear_gaussian_impulse_response() -> None:
    """Same noise, one control more: the difference is C A^k B, worked out by hand."""
    still, *_ = run(LinearGaussian(), [np.zeros(1, np.float32)] * 4)
    pushed, *_ = run(LinearGaussian(), [np.ones(1, np.float32)] + [np.zeros(1, np.float32)] * 3)
    difference = np.ravel(pushed) - np.ravel(still)
    np.testing.assert_allclose(difference, [0, -1, 0.7 * -1 + 0.8 * 0.1, 0.7 * -0.62 + 0.8 * 0.01, -0.2974], atol=1e-5)


def test_linear_gaussian_evidence() -> None:
    """A Kalman filter over a long run gives the evidence of the table, to three standard errors."""
    steps = 6000
    env = LinearGaussian(length=steps)
    controls = np.random.default_rng(0).uniform(-2.5, 2.5, steps).astype(np.float32)
    observations, *_ = run(env, list(controls[:, None]))
    transition, control, emission = np.array([[0.7, 0.8], [0, 0.1]]), np.array([-1, 0.1]), np.array([1.0, 0])
    mean, covariance, evidence = np.zeros(2), np.zeros((2, 2)), []
    for u, x in zip([0.0, *controls], np.ravel(observations), strict=True):
        mean, covariance = transition @ mean + control * u, transition @ covariance @ transition.T + 0.25 * np.eye(2)
        variance = emission @ covariance @ emission + 1
        error = x - emission @ mean
        evidence.append(-0.5 * (np.log(2 * np.pi * variance) + error**2 / variance))
        gain = covariance @ emission / variance
        mean, covariance = mean + gain * error, covariance - np.outer(gain, emission @ covariance)
    assert np.mean(evidence) == pytest.approx(-1.657723, abs=3 * np.std(evidence) / np.sqrt(steps))
