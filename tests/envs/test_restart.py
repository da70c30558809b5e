"""An environment that fails is replaced, and nothing that did not happen is recorded."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from worldmodel.envs import (
    EnvConfig,
    EnvironmentFault,
    RecordEnvTrajectories,
    RecordTrajectories,
    RepeatableEpisodes,
    Restart,
)
from worldmodel.envs.contract.faults import FAULT
from worldmodel.envs.contract.spaces import action_spec, observation_specs
from worldmodel.envs.wrappers.basic import CheckContract
from worldmodel.envs.wrappers.episodes import (
    EVALUATION_SEEDS,
    SEED,
    another_seed,
    episode_seed,
    evaluation_seeds,
    unforeseen_seed,
)
from worldmodel.replay.replay import SequenceReplay

ACTION = np.zeros(1, np.float32)
IN_PROCESS = (
    *("nan", "inf", "shape", "dtype", "class", "missing", "reward nan", "reward inf", "reward shape"),
    *("exception", "mute", "tuple", "end", "info"),
)
SAID = {
    "nan": "observation 'x' of environment 1 at step 3 is not finite",
    "inf": "observation 'x' of environment 1 at step 3 is not finite",
    "shape": "observation 'x' of environment 1 at step 3 has shape (3,), but its space has shape (2,)",
    "dtype": "observation 'x' of environment 1 at step 3 has dtype <U1, which is not numeric",
    "class": "observation 'phase' of environment 1 at step 3 is outside its space",
    "missing": "observation 'phase' of environment 1 at step 3 is missing",
    "reward nan": "the reward of environment 1 at step 3 is not finite",
    "reward inf": "the reward of environment 1 at step 3 is not finite",
    "reward shape": "the reward of environment 1 at step 3 has shape (2,) and dtype float64, but must be a number",
    "exception": "RuntimeError: the simulator died (failing.py, line ",
    "mute": "Mute: (its message cannot be printed) (failing.py, line ",
    "end": "'terminated' has shape (2,) and dtype bool, but must be True or False, in environment 1 at step 3",
    "info": "'info' is a NoneType, but must be a dictionary, in environment 1 at step 3",
    "tuple": "ValueError: not enough values to unpack (expected 5, got 4) (basic.py, line ",
}


@pytest.fixture
def restarting(failing: Any) -> Callable[..., Restart]:
    """Environments that fail at step 3 of an episode from one of `seeds`, and are replaced then."""

    def made(how: str, index: int = 0, limit: int = 10, proven: bool = False, **given: Any) -> Restart:
        return Restart(lambda: CheckContract(failing.Failing(how, **given), index), index, limit, proven)

    return made


def replay_of(env: Any, num_envs: int) -> SequenceReplay:
    return SequenceReplay(observation_specs(env.observation_space), action_spec(env.action_space), num_envs, 1000)


def marks(replay: SequenceReplay, env: int) -> tuple[list[int], list[int], list[int]]:
    """Which rows of an environment are first, last and terminal."""
    stream = replay.stream(env)
    flags = (stream.is_first, stream.is_last, stream.is_terminal)
    first, last, terminal = ([int(row) for row in flag[0].nonzero().flatten()] for flag in flags)
    return first, last, terminal


@pytest.mark.parametrize("how", IN_PROCESS)
def test_the_episode_ends_before_the_step_that_failed(how: str, restarting: Any, failing: Any) -> None:
    """Of three environments the second fails in its third step; the others do not notice."""
    makers = [lambda i=i: restarting(how, i, seeds=[2]) for i in range(3)]
    envs = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
    replay = replay_of(restarting(""), 3)
    recorded = RecordTrajectories(envs, replay.add, replay.cut)
    recorded.reset(seed=[1, 2, 3])
    actions = np.random.default_rng(0).uniform(-1, 1, (11, 3, 1)).astype(np.float32)
    for action in actions:
        recorded.step(action)
    new = another_seed(2, 1)
    (text,) = recorded.pop_failures()
    assert SAID[how] in text and text.endswith("last seed: 2). Restarted with another seed (failure 1 of at most 10)")
    assert recorded.faults == 1 and recorded.steps == recorded.frames == 3 * 11 - 1
    # Reset, 8 steps, reset, 3 steps; and reset, 2 steps, (the failed one,) reset, 8 steps, reset.
    assert replay.storage.stored.tolist() == [13, 13, 13]
    assert marks(replay, 0) == marks(replay, 2) == ([0, 9], [8], [8])
    assert marks(replay, 1) == ([0, 3, 12], [2, 11], [11])
    episodes = [(episode.env, episode.length, episode.total_reward) for episode in recorded.pop_episodes()]
    rewards = {env: 8 * failing.reward_of(seed) for env, seed in ((0, 1), (2, 3), (1, new))}
    assert episodes == [(env, 8, pytest.approx(total)) for env, total in rewards.items()]
    single = failing.Failing()  # what the new environment shows, from its seed and the same actions
    expected = [single.reset(seed=new)[0]["x"], *(single.step(action[1])[0]["x"] for action in actions[3:])]
    stream = replay.stream(1)
    np.testing.assert_array_equal(stream.obs["x"][0, 3:12], expected)
    np.testing.assert_allclose(stream.prev_action[0, 4:12], actions[3:, 1], atol=1e-6)
    assert not stream.prev_action[0, 3].any() and stream.reward[0, 3] == 0


def test_in_the_step_after_the_reset(restarting: Any) -> None:
    """The episode is its reset alone: first and last."""
    env = restarting("exception", seeds=[2], at=1)
    replay = replay_of(env, 1)
    recorded = RecordTrajectories(SyncVectorEnv([lambda: env], autoreset_mode="SameStep"), replay.add, replay.cut)
    recorded.reset(seed=[2])
    recorded.step(ACTION[None])
    assert marks(replay, 0) == ([0, 1], [0], []) and recorded.steps == 0


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_in_other_autoreset_modes(mode: AutoresetMode, restarting: Any) -> None:
    makers = [lambda i=i: restarting("nan", i, seeds=[2]) for i in range(2)]
    envs = SyncVectorEnv(makers, autoreset_mode=mode)
    replay = replay_of(restarting(""), 2)
    recorded = RecordTrajectories(envs, replay.add, replay.cut)
    recorded.reset(seed=[1, 2])
    for _ in range(5):
        _, _, terminated, truncated, _ = recorded.step(np.zeros((2, 1), np.float32))
        if mode is AutoresetMode.DISABLED and (terminated | truncated).any():
            recorded.reset(options={"reset_mask": terminated | truncated})
    steps = 5 if mode is AutoresetMode.DISABLED else 4  # where the reset takes one
    assert marks(replay, 0) == ([0], [], []) and marks(replay, 1) == ([0, 3], [2], [])
    assert recorded.steps == 5 + steps - 1 and recorded.faults == 1 and recorded.pop_episodes() == []


def test_a_single_environment(restarting: Any) -> None:
    env = restarting("exception", seeds=[2])
    replay = replay_of(env, 1)
    recorded = RecordEnvTrajectories(env, replay.add, replay.cut)
    recorded.reset(seed=2)
    ends = [recorded.step(ACTION)[3] for _ in range(3)]
    recorded.reset()
    recorded.step(ACTION)
    assert ends == [False, False, True] and recorded.faults == 1 and recorded.steps == 3
    assert marks(replay, 0) == ([0, 3], [2], [])


def test_without_a_cut_the_next_row_begins_an_episode(restarting: Any, rows: Any) -> None:
    env = restarting("exception", seeds=[2])
    recorded = RecordTrajectories(SyncVectorEnv([lambda: env], autoreset_mode="SameStep"), rows.add)
    recorded.reset(seed=[2])
    for _ in range(4):
        recorded.step(ACTION[None])
    assert [bool(row.is_first) for row in rows.of[0]] == [True, False, False, True, False]
    assert not any(row.is_last for row in rows.of[0])


# ------------------------------------------------------------------------------------------------- in a reset


@pytest.mark.parametrize("how", ["exception", "nan", "class"])
def test_a_reset_that_fails_tries_other_seeds(how: str, restarting: Any) -> None:
    second, third = another_seed(6, 1), another_seed(6, 2)
    env = restarting(how, at=0, seeds=[6, second])
    env.reset(seed=1)
    observation, info = env.reset(seed=6)
    assert info[SEED] == third and len(info[FAULT]) == env.faults == 2
    assert [text.rpartition("(")[2] for text in info[FAULT]] == [f"failure {n} of at most 10)" for n in (1, 2)]
    np.testing.assert_array_equal(observation["x"], restarting("").reset(seed=third)[0]["x"])


def test_failures_of_resets_are_counted_where_a_step_ended_the_episode(restarting: Any) -> None:
    """The recorder hears of them, and of the failed step before them, in one step."""
    env = restarting("exception", seeds=[2, another_seed(2, 1)])
    broken = [True]

    def fails_once(factory: Any = env.factory) -> gym.Env[Any, Any]:
        if broken.pop() if broken else False:
            raise OSError("no licence")
        return factory()

    env.factory = fails_once
    recorded = RecordTrajectories(SyncVectorEnv([lambda: env], autoreset_mode="SameStep"), lambda *_: None)
    recorded.reset(seed=[2])
    for _ in range(3):
        recorded.step(ACTION[None])
    first, second = recorded.pop_failures()
    assert "the simulator died" in first and "OSError: no licence" in second and recorded.faults == 2
    assert "2 of at most 10" in second and recorded.pop_failures() == []


@pytest.mark.parametrize("how", ["exception", "nan"])
def test_the_very_first_reset_is_not_tried_again(how: str, restarting: Any) -> None:
    env = restarting(how, at=0, seeds=[2])
    with pytest.raises(EnvironmentFault, match=r"environment 0 failed in its first reset: .*(died|not finite)"):
        env.reset(seed=2)
    proven = restarting(how, at=0, seeds=[2], proven=True)
    assert proven.reset(seed=2)[1][SEED] == another_seed(2, 1)


def test_what_cannot_be_made_at_all_is_an_error_of_its_own() -> None:
    def factory() -> gym.Env[Any, Any]:
        raise ValueError("unknown environment")

    with pytest.raises(ValueError, match=r"^unknown environment$") as found:
        Restart(factory)
    assert not isinstance(found.value, EnvironmentFault)


# ------------------------------------------------------------------------------------------------- the limit


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_the_limit_is_exact(limit: int, failing: Any) -> None:
    env = Restart(lambda: failing.Failing("exception", at=2, seeds=range(2**32)), 4, limit)
    env.reset(seed=0)
    for _ in range(limit):
        env.step(ACTION)
        assert env.step(ACTION)[3]
        env.reset()
    env.step(ACTION)
    with pytest.raises(EnvironmentFault, match=f"environment 4 has failed {limit + 1} time.*env.restarts") as found:
        env.step(ACTION)
    assert isinstance(found.value.__cause__, RuntimeError) and f"allows {limit}:" in str(found.value)
    assert "RuntimeError: the simulator died (failing.py, line" in str(found.value)


def test_environments_that_cannot_be_made_again_reach_the_limit(failing: Any) -> None:
    made = [failing.Failing("exception", seeds=[2])]
    env = Restart(lambda: made.pop(), limit=5)
    env.reset(seed=2)
    for _ in range(3):
        env.step(ACTION)
    assert env.faults == 1
    with pytest.raises(EnvironmentFault, match=r"has failed 6 time.* IndexError: pop from empty list"):
        env.reset()


def test_each_environment_is_closed_once_even_one_that_cannot_be(failing: Any) -> None:
    made: list[Any] = []

    class Clings(failing.Failing):
        def close(self) -> None:
            super().close()
            raise OSError("cannot close")

    def factory() -> gym.Env[Any, Any]:
        made.append(Clings("exception", seeds=[2]))
        return made[-1]

    env = Restart(factory)
    env.reset(seed=2)
    for _ in range(3):
        env.step(ACTION)
    assert [each.closed for each in made] == [1]
    env.close()
    env.reset()
    assert [each.closed for each in made] == [1, 0]
    env.close()
    assert [each.closed for each in made] == [1, 1]


def test_an_interrupt_is_no_failure(failing: Any) -> None:
    class Interrupted(failing.Failing):
        def step(self, action: Any) -> Any:
            raise KeyboardInterrupt

    env = Restart(Interrupted)
    env.reset(seed=1)
    with pytest.raises(KeyboardInterrupt):
        env.step(ACTION)
    assert env.faults == 0


# ------------------------------------------------------------------------------------------ it repeats itself


def test_the_same_seeds_lead_to_the_same_episodes(restarting: Any) -> None:
    """Of an environment that fails at every even seed, in step 3 or in the reset."""
    for at in (3, 0):
        streams = []
        for _ in range(2):
            env = RepeatableEpisodes(restarting("exception", at=at, limit=100))
            found, (observation, _) = [], env.reset(seed=7)
            for _ in range(60):
                found.append(observation["x"])
                observation, _, terminated, truncated, _ = env.step(ACTION)
                if terminated or truncated:
                    observation, _ = env.reset()
            assert env.env.faults > 2  # type: ignore[attr-defined]
            streams.append(found)
        np.testing.assert_array_equal(*streams)


def test_a_position_remembers_what_the_episode_really_began_from(restarting: Any) -> None:
    """So that it can be taken up by another process, whose first reset it is."""
    given = episode_seed(7, 1)
    env = RepeatableEpisodes(restarting("exception", at=0, seeds=[given]))
    env.reset(seed=7)
    env.reset()
    reached = [env.step(np.full(1, value, np.float32))[0] for value in (0.3, -0.5)][-1]
    position = env.position()
    assert position["began"] == another_seed(given, 1)
    other = RepeatableEpisodes(restarting("exception", at=0, seeds=[given]))
    np.testing.assert_array_equal(other.go_to(position)["x"], reached["x"])
    np.testing.assert_array_equal(other.reset()[0]["x"], env.reset()[0]["x"])


def test_an_episode_that_fails_on_the_way_is_not_taken_up(restarting: Any) -> None:
    env = RepeatableEpisodes(restarting(""))
    env.reset(seed=2)
    for _ in range(4):
        env.step(ACTION)
    assert RepeatableEpisodes(restarting("exception", seeds=[2])).go_to(env.position()) is None


RANGES = [EVALUATION_SEEDS, (2**31, 2**32), (60_000, 65_536)]


@pytest.mark.parametrize("evaluation", RANGES)
def test_other_seeds_stay_on_their_side(evaluation: tuple[int, int]) -> None:
    """Training and evaluation never share one, and no simulator is given one that it does not take."""
    low, high = evaluation
    for seed in (0, 1, low - 1):
        seeds = [another_seed(seed, tries, evaluation) for tries in range(1, 50)]
        seeds += [episode_seed(seed, episode, low) for episode in range(1, 1000)]
        assert all(0 <= each < low for each in seeds) and len(set(seeds)) > 1000
    for seed in (low, high - 1):
        seeds = [another_seed(seed, tries, evaluation) for tries in range(1, 50)]
        assert all(low <= each < high for each in seeds) and len(set(seeds)) > 45


def test_seeds_that_nobody_gave_are_those_of_training(restarting: Any) -> None:
    """Of 32 bits they would be too large for half of all simulators, every second time."""
    assert all(0 <= unforeseen_seed(60_000) < 60_000 for _ in range(50))
    env = restarting("")
    assert 0 <= env.seed < EVALUATION_SEEDS[0] and 0 <= RepeatableEpisodes(env, 5).seed < 5


def test_older_seeds_can_be_asked_for() -> None:
    """Evaluations from 2^31 on, and trainings whose seeds may be any below."""
    drawn = np.random.SeedSequence(2).generate_state(20)
    assert evaluation_seeds(20, 2, (2**31, 2**32)) == [int(seed) | 2**31 for seed in drawn]
    for episode in range(1, 1000):
        drawn = np.random.SeedSequence([3, episode]).generate_state(1)
        assert episode_seed(3, episode, 2**31) == int(drawn[0]) >> 1


@pytest.mark.parametrize("given", [[1], [0, 5], [5, 5], [7, 2**32 + 1]])
def test_a_range_of_seeds_that_is_none(given: list[int]) -> None:
    with pytest.raises(ValueError, match=r"env.evaluation_seeds must be two increasing numbers.*\["):
        EnvConfig(evaluation_seeds=given)
