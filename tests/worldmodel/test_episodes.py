"""Episodes that are given as arrays are those that the recorder records."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from worldmodel import SequenceReplay, add_episode
from worldmodel.envs import RecordTrajectories, action_spec, observation_specs
from worldmodel.specs import ActionSpec, ObservationSpec

IMAGE = ObservationSpec((4, 4, 3), image=True)
TWO = {"x": ObservationSpec((2,)), "k": ObservationSpec((), classes=(3,), start=(1,))}
PUSH = ActionSpec((), classes=(4,), start=(0,))


def replay_of(obs: Any = TWO, control: ActionSpec = PUSH) -> SequenceReplay:
    return SequenceReplay(obs, control, num_envs=2, capacity=1000)


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_they_are_the_rows_that_the_recorder_makes(name: str) -> None:
    """By termination, as of a pole, and by a time limit."""
    envs = gym.make_vec(name, 1, vectorization_mode="sync", vector_kwargs={"autoreset_mode": "SameStep"})
    env = gym.make(name)
    specs, control = observation_specs(env.observation_space), action_spec(env.action_space)
    seen, given = (SequenceReplay(specs, control, 1, 1000) for _ in range(2))
    recorder = RecordTrajectories(envs, seen.add)
    recorder.reset(seed=3)
    env.action_space.seed(1)
    observation, _ = env.reset(seed=3)
    observations, actions, rewards, over = [observation], [], [], False
    while not over:
        actions.append(env.action_space.sample())
        observation, reward, terminated, truncated, _ = env.step(actions[-1])
        over = terminated or truncated
        observations.append(observation)
        rewards.append(reward)
        recorder.step(np.stack([actions[-1]]))
    add_episode(given, observations, actions, rewards, terminated)
    theirs, ours = seen.stream(0), given.stream(0)
    assert bool(ours.is_terminal[0, -1]) == (name == "CartPole-v1") and len(given) == len(actions) + 1
    for a, b in zip(theirs[1:], ours[1:], strict=True):
        torch.testing.assert_close(a[:, : len(given)], b)  # then the recorder's next episode begins
    torch.testing.assert_close(theirs.obs["observation"][:, : len(given)], ours.obs["observation"])


def test_dictionaries_images_and_several_streams() -> None:
    replay = replay_of({**TWO, "eye": IMAGE})
    eye = np.arange(3 * 48, dtype=np.uint8).reshape(3, 4, 4, 3)
    obs = {"x": np.ones((3, 2)), "k": [1, 2, 3], "eye": eye, "unknown": None}
    for env in (1, 1, 0):
        add_episode(replay, obs, [3, 0], [1, 2], env=env)
    assert replay.written.tolist() == [3, 6]
    rows = replay.stream(1)
    assert rows.is_first[0].tolist() == [True, False, False] * 2 and not rows.is_terminal.any()
    assert rows.obs["k"][0, :, 0].tolist() == [0, 1, 2] * 2 and rows.reward[0].tolist() == [0, 1, 2] * 2
    assert rows.obs["eye"][0, :3].flatten().tolist() == eye.flatten().tolist()
    assert rows.prev_action[0, 1].tolist() == [0, 0, 0, 1] and not rows.prev_action[0, 3].any()


def test_rewards_may_be_a_column() -> None:
    """An array that holds one number is that number."""
    replay = replay_of()
    add_episode(replay, {"x": np.zeros((3, 2)), "k": [1, 2, 3]}, [3, 0], [np.array([1.0]), np.array([2.0])])
    assert replay.stream(0).reward[0].tolist() == [0, 1, 2]


GOOD: dict[str, Any] = {
    "observations": {"x": np.zeros((3, 2)), "k": [1, 2, 3]},
    "actions": [0, 3],
    "rewards": [0.0, 1.0],
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rewards": []}, r"rewards have the shape \(0,\)"),
        ({"rewards": [[0.0, 1.0], [1.0, 0.0]]}, r"rewards have the shape \(2, 2\)"),
        ({"rewards": [0.0, np.nan]}, r"the reward of step 1 is not finite"),
        ({"actions": [0, 3, 1]}, r"shape of actions must be \(2,\), for 2 rows, but it is \(3,\)"),
        ({"actions": [0, 4]}, r"action \[4\] does not exist"),
        ({"observations": {"x": np.zeros((3, 2))}}, r"observations \['k'\] are missing, there are only \['x'\]"),
        (
            {"observations": np.zeros((3, 2))},
            r"observations \['x', 'k'\] are missing, there are only \['observation'\]",
        ),
        ({"observations": {"x": np.zeros((2, 2)), "k": [1, 2, 3]}}, r"shape of 'x' must be \(3, 2\), for 3 rows"),
        ({"observations": {"x": np.zeros((3, 2)), "k": [1, 2, 4]}}, r"'k' is not one of its classes in row 2"),
        ({"observations": {"x": np.full((3, 2), np.inf), "k": [1, 2, 3]}}, r"'x' is not finite in row 0"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_of_it_is_kept(changes: dict[str, Any], said: str) -> None:
    replay = replay_of()
    with pytest.raises(ValueError, match=said):
        add_episode(replay, **{**GOOD, **changes})
    assert not len(replay)
    add_episode(replay, **GOOD)
    assert len(replay) == 3


def test_a_torque_that_is_no_number_is_refused() -> None:
    replay = replay_of({"x": ObservationSpec((1,))}, ActionSpec((1,), low=(-1.0,), high=(1.0,)))
    with pytest.raises(ValueError, match="the action of step 0 is not finite"):
        add_episode(replay, {"x": [[0.0], [0.0]]}, [[np.nan]], [0.0])
