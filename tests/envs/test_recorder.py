"""Every row holds the observation and the action that led to it, whatever the autoreset mode."""

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import TransformReward

from worldmodel import envs
from worldmodel.envs.testing.probes import Counter, Identity
from worldmodel.replay.replay import SequenceReplay

MODES = list(AutoresetMode)
STEPS = 40


def record(env: gym.vector.VectorEnv, sink: Any, steps: int = STEPS) -> envs.RecordTrajectories:
    """Take random actions; where the caller must reset, do."""
    recorded = envs.RecordTrajectories(env, sink)
    recorded.reset(seed=0)
    recorded.action_space.seed(0)
    for _ in range(steps):
        *_, terminated, truncated, _ = recorded.step(recorded.action_space.sample())
        ended = terminated | truncated
        if env.metadata["autoreset_mode"] is AutoresetMode.DISABLED and ended.any():
            recorded.reset(options={"reset_mask": ended})
    return recorded


LENGTHS, ENDINGS = (1, 3, 7), ("truncate", "terminate", "truncate")


def counters(mode: AutoresetMode, continuous: bool) -> SyncVectorEnv:
    """Three counters of different lengths and endings, 1000 apart."""
    makers = [
        partial(Counter, length=length, ending=ending, offset=1000.0 * i, continuous=continuous)
        for i, (length, ending) in enumerate(zip(LENGTHS, ENDINGS, strict=True))
    ]
    return SyncVectorEnv(makers, autoreset_mode=mode)


def truth(env: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Time in the episode and count of the first `rows` rows, from the formula of the Counter."""
    length = LENGTHS[env]
    index = np.arange(rows)
    episode, time = index // (length + 1), index % (length + 1)
    return time, 1000 * env + episode * (length + 2) + time


def actions_of(controls: torch.Tensor, continuous: bool) -> torch.Tensor:
    return controls[..., 0] * 2 if continuous else controls.argmax(-1).float()


def replay_of(env: gym.vector.VectorEnv, capacity: int = 1000) -> SequenceReplay:
    specs = envs.observation_specs(env.single_observation_space)
    return SequenceReplay(specs, envs.action_spec(env.single_action_space), env.num_envs, capacity)


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_recorded_stream_is_the_truth(mode: AutoresetMode, continuous: bool) -> None:
    vector = counters(mode, continuous)
    replay = replay_of(vector)
    record(vector, replay.add)
    for env, length in enumerate(LENGTHS):
        stream = replay.stream(env)
        rows = stream.reward.shape[1]
        # one row per step and one per reset; in NEXT_STEP the reset takes the place of a step
        assert rows == 1 + STEPS + (0 if mode is AutoresetMode.NEXT_STEP else STEPS // length)
        time, count = truth(env, rows)
        first, last = time == 0, time == length
        np.testing.assert_array_equal(stream.obs["observation"][0, :, 0], count)
        np.testing.assert_array_equal(stream.is_first[0], first)
        np.testing.assert_array_equal(stream.is_last[0], last)
        np.testing.assert_array_equal(stream.is_terminal[0], last & (ENDINGS[env] == "terminate"))
        np.testing.assert_array_equal(stream.reward[0], np.where(first, 0, count))
        assert not stream.prev_action[0, first].any()
        echo = stream.obs["observation"][0, ~first, 1]
        np.testing.assert_allclose(actions_of(stream.prev_action[0, ~first], continuous), echo, atol=1e-6)
        assert len(echo.unique()) > 2  # the actions vary, so a shifted one would be seen


@pytest.mark.parametrize("mode", MODES)
def test_sampled_windows_are_aligned(mode: AutoresetMode) -> None:
    vector = counters(mode, continuous=False)
    replay = replay_of(vector, capacity=60)  # overwritten several times
    record(vector, replay.add, steps=100)
    batch = replay.sample(500, 12)
    count, echo = batch.obs["observation"].unbind(-1)
    assert ((count // 1000) == (count[:, :1] // 1000)).all()  # one environment per window
    inside = ~batch.is_first[:, 1:]
    assert inside.any() and (count[:, 1:] == count[:, :-1] + 1)[inside].all()
    assert not (batch.is_last[:, :-1] & inside).any()  # nothing follows a last row but a first one
    acted = batch.prev_action.any(-1)
    assert (actions_of(batch.prev_action, False) == echo)[acted].all()
    assert acted[:, 1:][inside].all()
    assert torch.equal(batch.is_last & ~batch.is_terminal, batch.is_last & (count // 1000 != 1))


@pytest.mark.parametrize("mode", MODES)
def test_counts_and_episodes(mode: AutoresetMode, rows: Any) -> None:
    recorded = record(counters(mode, continuous=False), rows.add)
    resets = [STEPS // (n + 1) if mode is AutoresetMode.NEXT_STEP else 0 for n in LENGTHS]
    assert recorded.steps == recorded.frames == 3 * STEPS - sum(resets)
    episodes = recorded.pop_episodes()
    assert recorded.pop_episodes() == []
    for env, length in enumerate(LENGTHS):
        mine = [episode for episode in episodes if episode.env == env]
        assert len(mine) == sum(bool(row.is_last) for row in rows.of[env]) > 2
        assert {episode.length for episode in mine} == {length}
        time, count = truth(env, len(mine) * (length + 1))
        returns = np.where(time == 0, 0, count).reshape(-1, length + 1).sum(1)
        assert [episode.total_reward for episode in mine] == returns.tolist()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("vector_class", [SyncVectorEnv, AsyncVectorEnv])
def test_dictionary_observations(vector_class: Any, mode: AutoresetMode, dict_counter: Any, rows: Any) -> None:
    if vector_class is AsyncVectorEnv and mode is not AutoresetMode.SAME_STEP:
        pytest.skip("starting processes is slow, and only final_obs differs")
    makers = [partial(dict_counter, length=3), partial(dict_counter, length=4, offset=100)]
    record(vector_class(makers, autoreset_mode=mode), rows.add, steps=20).close()
    for env, length, offset in ((0, 3, 0), (1, 4, 100)):
        time = np.arange(len(rows.of[env])) % (length + 1)
        assert [row.obs["x"].tolist() for row in rows.of[env]] == [[offset + t, -t] for t in time]
        assert [row.obs["phase"].tolist() for row in rows.of[env]] == [[t % 3] for t in time]
        assert [bool(row.is_last) for row in rows.of[env]] == (time == length).tolist()


def test_native_vector_environment(rows: Any) -> None:
    """CartPole's own vector form resets in the next step; its Euler step x' = x + 0.02 v tells which rows follow."""
    vector = gym.make_vec("CartPole-v1", num_envs=3, vectorization_mode="vector_entry_point")
    record(vector, rows.add, steps=60)
    for stream in rows.of.values():
        x = np.stack([row.obs["observation"] for row in stream])
        first = np.array([row.is_first for row in stream])
        follows = np.isclose(x[1:, 0], x[:-1, 0] + 0.02 * x[:-1, 1], atol=1e-6)
        np.testing.assert_array_equal(follows, ~first[1:])
        assert first.sum() > 1
        assert all(not row.prev_action.any() and row.reward == 0 for row in stream if row.is_first)


def test_no_reward_at_a_reset_even_if_the_environment_gives_one(rows: Any) -> None:
    vector = TransformReward(counters(AutoresetMode.NEXT_STEP, False), lambda reward: reward + 0.5)
    recorded = record(vector, rows.add)
    assert all(row.reward == (0 if row.is_first else row.obs["observation"][0] + 0.5) for row in rows.of[2])
    assert {episode.total_reward for episode in recorded.pop_episodes() if episode.env == 1} >= {
        1001 + 1002 + 1003 + 1.5
    }


def test_rows_do_not_alias_the_environment(rows: Any) -> None:
    vector = SyncVectorEnv([partial(Counter, length=4)], copy=False, autoreset_mode="SameStep")
    record(vector, rows.add, steps=8)
    assert [row.obs["observation"][0] for row in rows.of[0]] == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 12]


def test_partial_reset_in_mid_episode(rows: Any) -> None:
    recorded = envs.RecordTrajectories(counters(AutoresetMode.SAME_STEP, False), rows.add)
    recorded.reset(seed=0)
    recorded.step(np.zeros(3, int))
    recorded.reset(options={"reset_mask": np.array([False, False, True])})
    recorded.step(np.zeros(3, int))
    assert [bool(row.is_first) for row in rows.of[2]] == [True, False, True, False]
    assert not any(row.is_last for row in rows.of[2])
    assert [row.obs["observation"][0] for row in rows.of[1]] == [1000, 1001, 1002]


def test_an_undeclared_autoreset_mode_is_an_error() -> None:
    vector = counters(AutoresetMode.SAME_STEP, False)
    del vector.metadata["autoreset_mode"]
    with pytest.raises(ValueError, match="autoreset_mode"):
        envs.RecordTrajectories(vector, lambda rows, envs: None)


def test_single_environment(rows: Any) -> None:
    env = envs.RecordEnvTrajectories(Counter(length=3, ending="truncate"), rows.add)
    for actions in ([2, 1, 2], [1], [0, 2, 1]):  # the second episode is abandoned
        env.reset(seed=None if rows.of else 0)
        for action in actions:
            env.step(action)
    stream = rows.of[0]
    assert [row.obs["observation"][0] for row in stream] == [0, 1, 2, 3, 5, 6, 10, 11, 12, 13]
    assert [bool(row.is_first) for row in stream] == [i in (0, 4, 6) for i in range(10)]
    assert [bool(row.is_last) for row in stream] == [i in (3, 9) for i in range(10)]
    assert not any(row.is_terminal for row in stream)
    assert [row.prev_action.argmax() for row in stream if not row.is_first] == [2, 1, 2, 1, 0, 2, 1]
    assert env.steps == 7
    assert env.pop_episodes() == [envs.Episode(6.0, 3, 0), envs.Episode(36.0, 3, 0)]


def test_discrete_observations_of_a_single_environment(rows: Any) -> None:
    env = envs.RecordEnvTrajectories(Identity(n=3, length=30), rows.add)
    env.reset(seed=1)
    env.action_space.seed(2)  # not 1: the same generator would choose the symbols
    for _ in range(30):
        env.step(env.action_space.sample())
    stream = rows.of[0]
    symbols = [int(row.obs["observation"][0]) for row in stream]
    for before, row in zip(symbols, stream[1:], strict=False):
        assert row.reward == (before == row.prev_action.argmax())
    assert 0 < sum(row.reward for row in stream) < 30


class InPlace(Counter):
    """Scales the action it is given, as careless environments do."""

    def step(self, action: Any) -> Any:
        result = super().step(action)
        action *= 0
        return result


def test_an_action_changed_in_place_is_recorded_as_given(rows: Any) -> None:
    env = envs.RecordEnvTrajectories(InPlace(continuous=True), rows.add)
    env.reset()
    env.step(np.array([1.0], np.float32))
    assert rows.of[0][1].prev_action == [0.5]


@pytest.mark.parametrize("vector", [False, True])
def test_frames_count_what_was_really_repeated(vector: bool, rows: Any) -> None:
    config = envs.EnvConfig("worldmodel/Counter-v0", kwargs={"length": 6}, action_repeat=4)
    if vector:
        recorded: Any = envs.RecordTrajectories(envs.make_vector(config, 2), rows.add)
    else:
        recorded = envs.RecordEnvTrajectories(envs.make(config), rows.add)
    recorded.reset()
    for _ in range(2):  # four frames, then the two that are left
        recorded.step(np.zeros(2, int) if vector else 0)
    assert (recorded.steps, recorded.frames) == ((4, 12) if vector else (2, 6))
