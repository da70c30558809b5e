"""The agent behind Stable-Baselines3's `predict`: its memory, its actions, and what it refuses."""

import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from worldmodel import ModelConfig, WorldModel
from worldmodel.agents import ActorCritic, ActorCriticConfig, Agent, RandomBehaviour
from worldmodel.dynamics import DKFConfig, DynamicsConfig, RSSMConfig
from worldmodel.envs import action_spec, observation_specs
from worldmodel.networks.latents import LatentConfig
from worldmodel.specs import ActionSpec

BOX = spaces.Box(-1, 1, (3,), np.float32)
DICT = spaces.Dict({"x": spaces.Box(-1, 1, (2, 2), np.float32), "phase": spaces.Discrete(3, start=5)})
ASYMMETRIC = spaces.Box(np.array([-0.1, 2.0, -7.0]), np.array([0.3, 2.5, 1e3]), dtype=np.float64)
ACTIONS = {
    "box": ASYMMETRIC,
    "box 2d": spaces.Box(-0.3, 0.7, (2, 3), np.float32),
    "discrete": spaces.Discrete(4, start=-2),
    "multidiscrete": spaces.MultiDiscrete([2, 5, 3]),
    "multibinary": spaces.MultiBinary(4),
}


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def untrained(
    observation: spaces.Space[Any], action: spaces.Space[Any], member: str = "rssm", random: bool = False
) -> Agent:
    """A tiny agent with weights large enough that its actions depend on what it saw."""
    specs, control = observation_specs(observation), action_spec(action)
    sizes = DynamicsConfig(member, rssm=RSSMConfig(deter=8, hidden=16), dkf=DKFConfig(hidden=16))
    config = ModelConfig(sizes, LatentConfig("gaussian", size=4), hidden=16, encoder_layers=1, head_layers=1)
    model = WorldModel.build(config, specs, control)
    if random:
        return Agent(model, RandomBehaviour(control), specs, control)
    behaviour = ActorCritic(ActorCriticConfig(hidden=16, actor_layers=1, critic_layers=1), model.feature_size, control)
    with torch.no_grad():
        for parameter in behaviour.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return Agent(model, behaviour, specs, control)


def observations(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 3)).astype(np.float32)


# --------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("member", ["rssm", "dkf"])
def test_single_and_batch_give_the_same_answers(member: str) -> None:
    agent = untrained(BOX, ASYMMETRIC, member)
    episode = [observations(3, seed) for seed in range(4)]
    state, batch = None, []
    for obs in episode:
        actions, state = agent.predict(obs, state, deterministic=True)
        batch.append(actions)
    for env in range(3):
        state = None
        for t, obs in enumerate(episode):
            action, state = agent.predict(obs[env], state, deterministic=True)
            assert action.shape == (3,) and batch[t].shape == (3, 3)
            np.testing.assert_allclose(action, batch[t][env], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("member", ["rssm", "dkf"])
def test_memory_matters_and_a_reset_erases_it(member: str) -> None:
    """Environment 0 restarts at the third observation, environment 1 goes on."""
    agent = untrained(BOX, ASYMMETRIC, member)
    state = None
    for seed in range(2):
        _, state = agent.predict(observations(2, seed), state, deterministic=True)
    now = observations(2, seed=2)
    restarted, after = agent.predict(now, state, np.array([True, False]), deterministic=True)
    fresh, after_fresh = agent.predict(now, deterministic=True)
    np.testing.assert_array_equal(restarted[0], fresh[0])
    assert np.abs(restarted[1] - fresh[1]).max() > 1e-3
    for field, fresh_field in zip(after.latent, after_fresh.latent, strict=True):
        assert torch.equal(field[0], fresh_field[0])
    later = observations(2, seed=3)
    again, _ = agent.predict(later, after, np.zeros(2, bool), deterministic=True)
    fresh_again, _ = agent.predict(later, after_fresh, np.zeros(2, bool), deterministic=True)
    np.testing.assert_array_equal(again[0], fresh_again[0])


def test_the_last_answer_is_part_of_the_memory_except_at_a_reset() -> None:
    agent = untrained(BOX, ASYMMETRIC)
    _, state = agent.predict(observations(2), deterministic=True)
    other = state._replace(control=-state.control)
    first = np.array([True, False])
    now = observations(2, seed=1)
    answer, changed = (agent.predict(now, each, first, deterministic=True)[0] for each in (state, other))
    np.testing.assert_array_equal(answer[0], changed[0])
    assert np.abs(answer[1] - changed[1]).max() > 1e-4


def test_without_a_state_every_observation_is_a_first_one() -> None:
    agent = untrained(BOX, ASYMMETRIC)
    now = observations(2)
    stated, _ = agent.predict(now, None, np.zeros(2, bool), deterministic=True)
    np.testing.assert_array_equal(stated, agent.predict(now, deterministic=True)[0])


def test_deterministic_repeats_itself_and_sampling_does_not() -> None:
    agent = untrained(BOX, ASYMMETRIC)
    now = observations(2)
    first, second = (agent.predict(now, deterministic=True)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    first, second = (agent.predict(now)[0] for _ in range(2))
    assert not np.array_equal(first, second)


def test_predict_leaves_its_arguments_alone_and_needs_no_gradient() -> None:
    agent = untrained(BOX, ASYMMETRIC)
    now = observations(2)
    _, state = agent.predict(now)
    before = [field.clone() for field in (*state.latent, state.control)]
    kept = now.copy()
    agent.predict(now, state, np.array([True, True]))
    np.testing.assert_array_equal(now, kept)
    assert all(torch.equal(a, b) for a, b in zip(before, (*state.latent, state.control), strict=True))
    assert not any(field.requires_grad for field in (*state.latent, state.control))


# -------------------------------------------------------------------------------------------------- actions


@pytest.mark.parametrize("random", [False, True], ids=["actor", "random"])
@pytest.mark.parametrize("name", ACTIONS)
def test_actions_lie_in_the_action_space(name: str, random: bool) -> None:
    space = ACTIONS[name]
    agent = untrained(BOX, space, random=random)
    for deterministic in (True, False):
        actions, _ = agent.predict(observations(50), deterministic=deterministic)
        assert len(actions) == 50
        for action in actions:
            assert space.contains(action), action
        single, _ = agent.predict(observations(1)[0], deterministic=deterministic)
        assert space.contains(single), single
    assert len(np.unique(np.stack([np.ravel(a) for a in actions]), axis=0)) > 1


def test_dict_observations_single_and_batch() -> None:
    agent = untrained(DICT, spaces.Discrete(4))
    rows = [DICT.sample() for _ in range(5)]
    stacked = {key: np.stack([row[key] for row in rows]) for key in DICT.spaces}
    batch, _ = agent.predict(stacked, deterministic=True)
    singles = [agent.predict(row, deterministic=True)[0] for row in rows]
    assert batch.shape == (5,)
    np.testing.assert_array_equal(batch, singles)


def test_random_behaviour_is_uniform_over_a_box() -> None:
    spec = action_spec(spaces.Box(-1, 3, (2,), np.float32))
    controls = RandomBehaviour(spec).draw(20_000, torch.device("cpu"))
    actions = spec.decode(controls.numpy())
    for entry in actions.T:
        shares = np.histogram(entry, bins=8, range=(-1, 3))[0] / len(entry)
        np.testing.assert_allclose(shares, 1 / 8, atol=0.015)
    assert abs(np.corrcoef(actions.T)[0, 1]) < 0.03


def test_random_behaviour_is_uniform_over_categories() -> None:
    spec = ActionSpec((2,), classes=(2, 5), start=(0, 3))
    controls = RandomBehaviour(spec).draw(20_000, torch.device("cpu"))
    actions = spec.decode(controls.numpy())
    for entry, (count, start) in zip(actions.T, [(2, 0), (5, 3)], strict=True):
        values, counts = np.unique(entry, return_counts=True)
        assert values.tolist() == list(range(start, start + count))
        np.testing.assert_allclose(counts / len(entry), 1 / count, atol=0.02)


# ------------------------------------------------------------------------------------------- Stable-Baselines3


@pytest.mark.parametrize(("env_id", "limit"), [("Pendulum-v1", 15), ("CartPole-v1", 30)])
@pytest.mark.parametrize("count", [0, 3], ids=["env", "DummyVecEnv"])
def test_sb3_evaluates_it_unchanged(env_id: str, limit: int, count: int) -> None:
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import DummyVecEnv

    def env() -> gym.Env:
        return Monitor(gym.make(env_id, max_episode_steps=limit))

    target: Any = DummyVecEnv([env] * count) if count else env()
    agent: Any = untrained(target.observation_space, target.action_space)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        returns, lengths = evaluate_policy(agent, target, n_eval_episodes=5, return_episode_rewards=True)
        assert np.isfinite(evaluate_policy(agent, target, n_eval_episodes=2, deterministic=False)[0])
    target.close()
    assert len(returns) == len(lengths) == 5
    assert lengths == [limit] * 5 if env_id == "Pendulum-v1" else lengths == returns


def test_sb3_tells_the_agent_where_episodes_start() -> None:
    """Every episode shows the same observations, so a deterministic agent that forgets acts the same in each."""
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.monitor import Monitor

    taken: list[list[np.ndarray]] = []

    class Same(gym.Env):
        observation_space, action_space = BOX, spaces.Box(-1, 1, (2,), np.float32)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            taken.append([])
            return observations(1, seed=0)[0], {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            taken[-1].append(action)
            return observations(1, seed=len(taken[-1]))[0], 0.0, False, len(taken[-1]) == 4, {}

    evaluate_policy(untrained(BOX, Same.action_space), Monitor(Same()), n_eval_episodes=3)  # type: ignore[arg-type]
    first, *others = [np.stack(actions) for actions in taken if actions]
    assert len(others) == 2 and all(np.array_equal(first, other) for other in others)
    assert len(np.unique(first, axis=0)) == 4


# -------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("shape", [(4,), (2, 4), (), (2, 2, 3), (3, 1)])
def test_a_wrong_shape_is_refused_with_both(shape: tuple[int, ...]) -> None:
    agent = untrained(BOX, ASYMMETRIC)
    with pytest.raises(ValueError) as caught:
        agent.predict(np.zeros(shape, np.float32))
    assert str(shape) in str(caught.value) and "(3,)" in str(caught.value) and "'observation'" in str(caught.value)


@pytest.mark.parametrize(
    ("observation", "given"),
    [
        ({"x": np.zeros((2, 2))}, "['x']"),
        ({"x": np.zeros((2, 2)), "phase": 5, "y": 0}, "['phase', 'x', 'y']"),
        (np.zeros((2, 2)), "['observation']"),
    ],
)
def test_wrong_keys_are_refused_with_both(observation: Any, given: str) -> None:
    agent = untrained(DICT, spaces.Discrete(2))
    with pytest.raises(ValueError) as caught:
        agent.predict(observation)
    assert given in str(caught.value) and "['phase', 'x']" in str(caught.value)


def test_a_mixture_of_single_and_batch_is_refused() -> None:
    agent = untrained(DICT, spaces.Discrete(2))
    with pytest.raises(ValueError, match="batches"):
        agent.predict({"x": np.zeros((4, 2, 2)), "phase": np.int64(5)})
