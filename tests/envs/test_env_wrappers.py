from typing import Any

import numpy as np
import pytest
import torch

from worldmodel.envs import (
    ActionRepeat,
    EnvConfig,
    RecordTrajectories,
    action_spec,
    make,
    make_vector,
    observation_specs,
)
from worldmodel.envs.testing.probes import Counter
from worldmodel.envs.wrappers.basic import FRAMES, RecordState
from worldmodel.replay.replay import SequenceReplay


def test_action_repeat_sums_rewards_and_stops_at_the_end() -> None:
    env = ActionRepeat(Counter(length=5), repeat=3)
    env.reset(seed=0)
    observation, reward, terminated, _, info = env.step(2)
    np.testing.assert_array_equal(observation, [3, 2])
    assert (reward, terminated, info[FRAMES]) == (1 + 2 + 3, False, 3)
    observation, reward, terminated, _, info = env.step(1)
    np.testing.assert_array_equal(observation, [5, 1])
    assert (reward, terminated, info[FRAMES]) == (4 + 5, True, 2)


def test_action_repeat_counts_the_frames_that_are_reported() -> None:
    class Skipping(Counter):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            *result, info = super().step(action)
            return *result, {**info, FRAMES: 4}  # type: ignore[return-value]

    env = ActionRepeat(Skipping(length=5), repeat=3)
    env.reset(seed=0)
    assert [env.step(0)[-1][FRAMES] for _ in range(2)] == [12, 8]


def test_action_repeat_below_one() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        ActionRepeat(Counter(), repeat=0)


@pytest.mark.parametrize(("name", "width"), [("CartPole-v1", 4), ("Pendulum-v1", 2)])
def test_the_simulators_state_is_recorded_beside_the_observation_it_belongs_to(name: str, width: int) -> None:
    envs = make_vector(EnvConfig(name, num_envs=2, record_state=True, time_limit=30))
    specs, control = observation_specs(envs.single_observation_space), action_spec(envs.single_action_space)
    replay = SequenceReplay(specs, control, 2, 1000)
    recorded = RecordTrajectories(envs, replay.add)
    recorded.action_space.seed(0)
    recorded.reset(seed=0)
    for _ in range(100):
        recorded.step(recorded.action_space.sample())
    rows = replay.everything().obs
    observation, state = rows["observation"], rows[RecordState.key]
    assert state.shape == (*observation.shape[:2], width)
    if name == "Pendulum-v1":
        state = torch.stack([state[..., 0].cos(), state[..., 0].sin(), state[..., 1]], -1)
    torch.testing.assert_close(observation, state, rtol=0, atol=1e-5)


def test_an_environment_without_a_state_says_so() -> None:
    with pytest.raises(ValueError, match=r"record_state: .*Counter.* begins with 'state/'"):
        make(EnvConfig("worldmodel/Counter-v0", record_state=True))
