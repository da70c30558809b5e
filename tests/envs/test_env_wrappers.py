import numpy as np
import pytest

from envs import ActionRepeat
from envs.probes import Counter
from envs.wrappers import FRAMES


def test_action_repeat_sums_rewards_and_stops_at_the_end() -> None:
    env = ActionRepeat(Counter(length=5), repeat=3)
    env.reset(seed=0)
    observation, reward, terminated, _, info = env.step(2)
    np.testing.assert_array_equal(observation, [3, 2])
    assert (reward, terminated, info[FRAMES]) == (1 + 2 + 3, False, 3)
    observation, reward, terminated, _, info = env.step(1)
    np.testing.assert_array_equal(observation, [5, 1])
    assert (reward, terminated, info[FRAMES]) == (4 + 5, True, 2)


def test_action_repeat_below_one() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        ActionRepeat(Counter(), repeat=0)
