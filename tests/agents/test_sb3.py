"""Algorithms of Stable-Baselines3 in a dream of true dynamics: in rounds, repeatable, whatever happens between."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import Logger

from worldmodel.agents.exploration.ensemble import Disagreement, EnsembleConfig
from worldmodel.agents.sb3.behaviour import MetricsWriter, SB3Behaviour
from worldmodel.agents.sb3.config import ALGORITHMS, CONTRIB, SB3Config
from worldmodel.envs import ImaginedVectorEnv, action_spec
from worldmodel.envs.imagined.sb3 import ImaginedVecEnv
from worldmodel.envs.testing.exact import ExactCartPole, ExactPendulum, ExactState
from worldmodel.specs import OBSERVATION
from worldmodel.training.run.tree import load_tree, save_tree
from worldmodel.training.run.weights import load_module, save_module
from worldmodel.types import Batch, Rollout

TORQUE, PUSH = gym.spaces.Box(-2, 2, (1,), np.float32), gym.spaces.Discrete(2)
SMALL: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}}
OFF: dict[str, Any] = {**SMALL, "batch_size": 8, "buffer_size": 64, "learning_starts": 8}
ON: dict[str, Any] = {**SMALL, "n_steps": 4}
SETTINGS: dict[str, dict[str, Any]] = {
    "A2C": ON,
    "PPO": {**ON, "batch_size": 8, "n_epochs": 2},
    "TRPO": {**ON, "batch_size": 8},
    "DQN": {**OFF, "train_freq": 1},
    "QRDQN": {**OFF, "train_freq": 1},
    "SAC": OFF,
    "TD3": OFF,
    "DDPG": OFF,
    "TQC": OFF,
    "CrossQ": OFF,
}
MODEL = ExactPendulum()


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def begin(model: Any, count: int) -> ExactState:
    return model._at(torch.rand(count, model.size) * 0.1)


def behaviour(
    algorithm: str = "SAC", lifetime: int = 1000, ensemble: Disagreement | None = None, **changes: Any
) -> SB3Behaviour:
    """With new weights, the same for every call of a test."""
    if ALGORITHMS.get(algorithm) == CONTRIB:
        pytest.importorskip(CONTRIB)
    discrete = "DQN" in algorithm
    model, space = (ExactCartPole(), PUSH) if discrete else (MODEL, TORQUE)
    settings = {**SETTINGS.get(algorithm, OFF), **changes.pop("settings", {})}
    config = SB3Config(algorithm, settings, envs=4, horizon=5, every=2, steps=16, **changes)
    envs = ImaginedVectorEnv(model, space, lambda count: begin(model, count), config.envs, config.horizon)
    torch.manual_seed(1)
    return SB3Behaviour(config, action_spec(space), ImaginedVecEnv(envs), lifetime, 7, ensemble=ensemble)


def weights(made: SB3Behaviour) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in made.state_dict().values()]


def same(one: list[torch.Tensor], two: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("algorithm", SETTINGS)
def test_every_algorithm_learns_in_rounds_and_answers_with_valid_controls(algorithm: str) -> None:
    made = behaviour(algorithm)
    before = weights(made)
    for _ in range(3):
        made.practise()
    assert made.algorithm.num_timesteps == 3 * 16 and not same(before, weights(made))
    model = ExactCartPole() if "DQN" in algorithm else MODEL
    state = begin(model, 6)
    for deterministic in (True, False):
        decision = made.act(model, state, (), deterministic)
        assert decision.control.shape == (6, made.action_spec.width) and decision.sound.all()
        assert decision.control.abs().max() <= 1
    again = made.act(model, state, (), True).control
    torch.testing.assert_close(again, made.act(model, state, (), True).control)


@pytest.mark.parametrize("algorithm", SETTINGS)
def test_a_pause_changes_nothing(algorithm: str, tmp_path: Path) -> None:
    """Two rounds, saved, read into another, two more there: bit for bit as four; whatever else is drawn in between."""
    through = behaviour(algorithm)
    for _ in range(4):
        through.practise()
    first = behaviour(algorithm)
    for _ in range(2):
        first.practise()
        torch.rand(3), np.random.rand(3)
    save_module(tmp_path / "weights", first)
    save_tree(tmp_path / "rest", first.training_state())
    second = behaviour(algorithm)
    load_module(tmp_path / "weights", second)
    second.load_training_state(load_tree(tmp_path / "rest"))
    for _ in range(2):
        second.practise()
    assert same(weights(through), weights(second)) and not same(weights(first), weights(second))
    assert second.algorithm.num_timesteps == through.algorithm.num_timesteps


def test_a_round_leaves_the_random_numbers_of_everyone_else_alone() -> None:
    made = behaviour()
    torch.manual_seed(5), np.random.seed(5)
    made.practise()
    drawn = torch.rand(3), np.random.rand(3)
    torch.manual_seed(5), np.random.seed(5)
    assert torch.equal(drawn[0], torch.rand(3)) and (drawn[1] == np.random.rand(3)).all()


def test_returns_of_several_steps_do_not_reach_into_the_next_round() -> None:
    made = behaviour("SAC", settings={"n_steps": 3, "buffer_size": 400})
    for _ in range(3):
        made.practise()
    buffer = made.algorithm.replay_buffer  # type: ignore[attr-defined]
    ends = (buffer.dones + buffer.timeouts)[: buffer.pos].astype(bool)
    assert buffer.pos == 12 and ends[3::4].all() and not ends[[0, 1, 2]].any()
    free = (buffer.dones * (1 - buffer.timeouts))[: buffer.pos]
    assert (free == 0).all()  # a pendulum never ends: a value follows everywhere
    buffer.dones[buffer.pos - 1], buffer.timeouts[buffer.pos - 1] = 1, 0  # as if all had terminated there
    made.cut_episodes()
    assert (buffer.timeouts[buffer.pos - 1] == 0).all()


def test_a_schedule_runs_over_all_rounds() -> None:
    """In the middle of its life the learning rate is half of what it was; SB3 alone has it near 0 in every round."""
    made = behaviour("PPO", lifetime=64, settings={"learning_rate": "lin_0.01"})
    rates = []
    for _ in range(5):
        made.practise()
        rates.append(made.metrics["train/learning_rate"])
    np.testing.assert_allclose(rates, [0.0075, 0.005, 0.0025, 0, 0], atol=1e-9)


def test_every_round_begins_new_episodes_of_the_model_of_today() -> None:
    made = behaviour()
    seeds: list[Any] = []
    envs = made.dream.envs  # type: ignore[attr-defined]
    reset = envs.reset
    envs.reset = lambda **given: (seeds.append(given["seed"]), reset(**given))[1]
    for _ in range(2):
        made.practise()
    assert len(seeds) == 2 and None not in seeds and seeds[0] != seeds[1]


def test_a_schedule_can_be_given_a_life_of_another_length_or_a_second_one() -> None:
    made = behaviour("PPO", lifetime=32, settings={"learning_rate": "lin_0.01"})
    rates = []
    for change in (None, None, lambda: made.live(32, again=False), None, lambda: made.live(64)):
        if change:
            change()
        made.practise()
        rates.append(made.metrics["train/learning_rate"])
    np.testing.assert_allclose(rates, [0.005, 0, 0.01 / 4, 0, 0.0075], atol=1e-9)


def test_yaml_can_say_what_stable_baselines3_wants_as_a_class_or_a_tuple() -> None:
    made = behaviour(
        "SAC", settings={"policy_kwargs": {"net_arch": [8], "activation_fn": "Tanh"}, "train_freq": [2, "step"]}
    )
    assert any(isinstance(module, torch.nn.Tanh) for module in made.policy.modules())
    assert made.algorithm.train_freq.frequency == 2  # type: ignore[attr-defined]
    assert behaviour("SAC", settings={"policy_kwargs": None}).algorithm.policy_kwargs["use_sde"] is False
    assert behaviour("stable_baselines3.sac.sac:SAC").algorithm.__class__.__name__ == "SAC"


def test_a_round_is_a_whole_number_of_rollouts() -> None:
    with pytest.raises(
        ValueError, match=r"steps is 16, which is not a multiple of the 12 steps of a rollout .*n_steps 3 x envs 4"
    ):
        behaviour("PPO", settings={"n_steps": 3}).check_rounds()
    chosen = SB3Config("PPO", {"policy_kwargs": {"net_arch": [8]}}, envs=4, horizon=5, every=2, steps=16)
    envs = ImaginedVectorEnv(MODEL, TORQUE, lambda count: begin(MODEL, count), 4, 5)
    made = SB3Behaviour(chosen, action_spec(TORQUE), ImaginedVecEnv(envs), 100)
    made.practise()
    assert made.algorithm.num_timesteps == 16
    assert behaviour("SAC", settings={"buffer_size": 1000}).algorithm.buffer_size == 1000  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("algorithm", "settings", "said"),
    [
        ("SAC", {"train_freq": 3}, r"not a multiple of the 12 steps of a rollout \(train_freq 3 x envs 4\)"),
        ("SAC", {"train_freq": [1, "episode"]}, "train_freq must be a number of steps"),
        ("SAC", {"train_freq": [1, "week"]}, "train_freq.*week"),
        ("SAC", {"train_freq": 0}, "train_freq must be at least 1, got 0"),
        ("A2C", {"n_steps": 0}, "n_steps must be at least 1, got 0"),
        ("PPO", {"n_steps": 0}, r"PPO could not be created: .*n_steps"),
        ("PPO", {"n_steps": "four"}, "n_steps: PPO needs a number, got 'four'"),
        ("PPO", {"policy_kwargs": 3}, "policy_kwargs must map names to values, got 3"),
    ],
)
def test_rounds_that_would_last_longer_or_never_begin_are_refused(
    algorithm: str, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        behaviour(algorithm, settings=settings).check_rounds()


def test_actions_that_do_not_begin_at_0_are_counted_from_0_in_the_dream() -> None:
    """The model sees the environment's own; the policy is asked which of its choices, the first being 0."""
    space = gym.spaces.Discrete(2, start=-3)
    envs = ImaginedVecEnv(ImaginedVectorEnv(ExactCartPole(), space, lambda n: begin(ExactCartPole(), n), 4, 5))
    plain = ImaginedVecEnv(ImaginedVectorEnv(ExactCartPole(), PUSH, lambda n: begin(ExactCartPole(), n), 4, 5))
    seen = []
    for each in (envs, plain):
        each.seed(3)
        each.reset()
        seen.append(each.step(np.array([0, 1, 1, 0]))[0])
    np.testing.assert_array_equal(*seen)
    assert envs.action_space == PUSH
    config = SB3Config("PPO", ON, envs=4, horizon=5, every=2, steps=16)
    made = SB3Behaviour(config, action_spec(space), envs, 100)
    made.practise()
    state = begin(ExactCartPole(), 50)
    control = made.act(ExactCartPole(), state, (), True).control
    chosen, _ = made.policy.predict(ExactCartPole().feature(state).numpy(), deterministic=True)
    np.testing.assert_array_equal(control.argmax(-1).numpy(), chosen)


def test_noise_fits_actions_of_any_shape() -> None:
    space = gym.spaces.Box(-1, 1, (1, 1), np.float32)
    envs = ImaginedVecEnv(ImaginedVectorEnv(MODEL, space, lambda n: begin(MODEL, n), 4, 5))
    config = SB3Config("TD3", {**OFF, "learning_starts": 0}, envs=4, horizon=5, every=2, steps=16, noise=0.1)
    made = SB3Behaviour(config, action_spec(space), envs, 100)
    made.practise()
    assert made.algorithm.replay_buffer.actions[:4].std() > 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("validated", [True, False])
def test_a_dream_that_is_no_number_ends_with_advice(validated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether torch's distributions look at their parameters or not."""
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", validated)
    made = behaviour("SAC", settings={"learning_starts": 0})
    with torch.no_grad():
        for parameter in made.policy.actor.parameters():  # type: ignore[union-attr]
            parameter.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"round 1 in imagination diverged.*sb3\.settings\.learning_rate"):
        made.practise()


def test_learning_comes_with_every_so_many_updates_and_says_what_sb3_says() -> None:
    made = behaviour("PPO")
    first = made.learn(MODEL, None, None)  # type: ignore[arg-type]
    second = made.learn(MODEL, None, None)  # type: ignore[arg-type]
    assert first == {} and made.rounds == 1
    assert "train/explained_variance" in second and "dream/time/fps" in second and "time/fps" not in second
    assert all(value.shape == () for value in second.values())


def test_the_ensemble_learns_beside_it_and_is_saved() -> None:
    ensemble = Disagreement(EnsembleConfig(members=2, hidden=4), MODEL.feature_size, action_spec(TORQUE))
    made = behaviour(ensemble=ensemble, penalty=1.0)
    zeros, flags = torch.zeros(3, 5), torch.zeros(3, 5, dtype=torch.bool)
    states = MODEL._at(torch.randn(3, 5, 2))
    batch = Batch({OBSERVATION: states.x}, torch.randn(3, 5, 1), zeros, flags, flags, flags, zeros + 1)
    before = copy.deepcopy(ensemble.net)
    metrics = made.learn(MODEL, states, batch)
    assert float(metrics["ensemble/error"]) > 0 and "ensemble.net.0.weight" in made.state_dict()
    assert not torch.equal(before[0].weight, ensemble.net[0].weight)
    moments = made.training_state()["ensemble"]["optimizer"]["state"][0]["exp_avg"]
    assert moments.abs().sum() > 0


def test_what_the_ensemble_disagrees_about_is_worth_less() -> None:
    ensemble = Disagreement(EnsembleConfig(members=3, hidden=4), MODEL.feature_size, action_spec(TORQUE))

    def stepped(penalty: Any) -> np.ndarray:
        fixed = MODEL._at(torch.linspace(0, 1, 4).unsqueeze(-1).expand(4, 2))
        envs = ImaginedVectorEnv(MODEL, TORQUE, lambda _: fixed, 4, 5, penalty=penalty)
        envs.reset(seed=0)
        return envs.step(np.full((4, 1), 0.5))[1]

    price = stepped(None) - stepped(lambda feature, control: 2 * ensemble.spread(feature, control))
    feature = MODEL.feature(MODEL._at(torch.linspace(0, 1, 4).unsqueeze(-1).expand(4, 2)))
    expected = 2 * ensemble.spread(feature, torch.full((4, 1), 0.25))
    np.testing.assert_allclose(price, expected.detach().numpy(), rtol=1e-4)


def test_a_deterministic_policy_explores_by_noise() -> None:
    state = begin(MODEL, 200)
    for noise, spread in ((0.0, 0.0), (0.3, 0.2)):
        made = behaviour("TD3", noise=noise)
        assert (made.algorithm.action_noise is not None) == (noise > 0)  # type: ignore[attr-defined]
        control = made.act(MODEL, state, ()).control
        assert float((control - made.act(MODEL, state, (), True).control).std()) >= spread
    assert (behaviour("DQN").noise, behaviour("TD3").noise, behaviour("SAC").noise) == (0.1, 0.1, 0.0)
    greedy, noisy = behaviour("DQN", noise=0.0), behaviour("DQN", noise=0.5)
    places = begin(ExactCartPole(), 200)
    assert torch.equal(
        greedy.act(ExactCartPole(), places, ()).control, greedy.act(ExactCartPole(), places, (), True).control
    )
    differs = noisy.act(ExactCartPole(), places, ()).control != noisy.act(ExactCartPole(), places, (), True).control
    assert 0.1 < differs.any(-1).float().mean() < 0.4  # of half that are drawn anew, half are what they were


def test_features_that_are_no_numbers_are_reported_and_answered_with_a_valid_control() -> None:
    made = behaviour()
    state = begin(MODEL, 3)
    state.x[1] = float("nan")
    decision = made.act(MODEL, state, ())
    assert decision.sound.tolist() == [True, False, True]
    assert decision.control.isfinite().all() and decision.control.abs().max() <= 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"algorithm": "SCA"}, "unknown algorithm 'SCA': use one of A2C"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"penalty": -1.0}, "penalty must not be negative"),
        ({"settings": {"seed": 3}}, "settings must not contain seed"),
    ],
)
def test_settings_that_make_no_sense_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SB3Config(**wrong)


@pytest.mark.parametrize(
    ("algorithm", "settings", "message"),
    [
        ("SAC", {"n_epochs": 3}, "SAC could not be created: .*n_epochs"),
        ("SAC", {"learning_rate": "lin_fast"}, "settings.learning_rate must be a number or lin_NUMBER, got 'lin_fast'"),
        ("SAC", {"learning_rate": "fast"}, "a number or lin_NUMBER, got 'fast'"),
        (
            "SAC",
            {"gamma": "lin_0.9"},
            "settings.gamma: 'lin_0.9' is a schedule, but only learning_rate, .* can have one",
        ),
        ("SAC", {"policy_kwargs": {"activation_fn": "Relu"}}, "policy_kwargs.activation_fn: torch has no 'Relu'"),
        ("SAC", {"optimize_memory_usage": True}, "settings.optimize_memory_usage: remove it"),
        ("nowhere:SAC", {}, "nowhere:SAC cannot be imported"),
        ("gymnasium:Env", {}, "is not an on-policy or off-policy algorithm"),
        ("sb3_contrib:RecurrentPPO", {"n_steps": 4, "batch_size": 8}, "is recurrent|cannot be|could not be"),
    ],
)
def test_what_an_algorithm_does_not_take_is_named(algorithm: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        behaviour(algorithm, settings=settings)


def test_actions_that_an_algorithm_cannot_choose_are_refused() -> None:
    envs = ImaginedVecEnv(ImaginedVectorEnv(ExactCartPole(), PUSH, lambda n: begin(ExactCartPole(), n), 2, 5))
    with pytest.raises(ValueError, match="SAC could not be created: The algorithm only supports"):
        SB3Behaviour(SB3Config("SAC"), action_spec(PUSH), envs, 100)


def test_a_logger_of_another_kind_gets_the_numbers_under_their_names() -> None:
    rows: list[tuple[dict[str, float], int]] = []
    logger = Logger(None, [MetricsWriter(lambda metrics, step: rows.append((metrics, step)))])
    logger.record("train/loss", np.float32(0.5))
    logger.record("rollout/ep_rew_mean", 3)
    logger.record("name", "text")
    logger.dump(12)
    assert rows == [({"train/loss": 0.5, "rollout/ep_rew_mean": 3.0}, 12)]


def test_spread_and_rollout_speak_of_the_same_steps() -> None:
    """The penalty is what Plan2Explore rewards: of the state in which a control is chosen."""
    ensemble = Disagreement(EnsembleConfig(members=2, hidden=4), MODEL.feature_size, action_spec(TORQUE))
    features, zeros = torch.randn(2, 3, MODEL.feature_size), torch.zeros(2, 2)
    trajectory = Rollout(features, torch.randn(2, 2, 1), zeros, zeros, zeros)
    spread = ensemble.spread(trajectory.features[:, :-1], trajectory.actions)
    torch.testing.assert_close(spread[:, 1], ensemble.spread(features[:, 1], trajectory.actions[:, 1]))
