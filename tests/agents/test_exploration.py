"""Who acts and who learns when, and what the explorer wants."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from worldmodel.agents import ActorCriticConfig, ExplorationConfig, Plan2Explore
from worldmodel.agents.exploration.ensemble import EnsembleConfig
from worldmodel.envs.testing.exact import ExactPendulum
from worldmodel.specs import OBSERVATION, ActionSpec
from worldmodel.types import Batch, Rollout

TORQUE = ActionSpec((1,), low=(-2.0,), high=(2.0,))
SMALL_ENSEMBLE = EnsembleConfig(hidden=8, members=3)
SMALL = ActorCriticConfig(hidden=8, starts=4, horizon=2)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def steps(feature: Tensor, control: Tensor) -> Batch:
    """Replayed steps whose observation is the feature (B, T, F)."""
    flags = torch.zeros(feature.shape[:2], dtype=torch.bool)
    zeros = torch.zeros(feature.shape[:2])
    return Batch({OBSERVATION: feature}, control, zeros, flags, flags, flags, zeros + 1)


def rollout(feature: Tensor, control: Tensor) -> Rollout:
    pair = torch.stack([feature, feature], 1)
    zeros = torch.zeros(len(feature), 1)
    return Rollout(pair, control.unsqueeze(1), zeros, zeros, zeros + 1)


def test_the_explorer_collects_and_the_task_is_evaluated() -> None:
    model = ExactPendulum()
    behaviour = Plan2Explore(ExplorationConfig(steps=10, ensemble=SMALL_ENSEMBLE), SMALL, model.feature_size, TORQUE)
    with torch.no_grad():
        for actor, mean in ((behaviour.explorer, 2.0), (behaviour.task, -2.0)):
            for net in (actor.actor, actor.slow_actor):
                net[-1].weight.zero_()
                net[-1].bias.copy_(torch.tensor([mean, -20.0]))
    state = model.initial(4)
    for taken, explores in ((0, True), (9, True), (10, False)):
        behaviour.begin_step(taken)
        assert bool((behaviour.act(model, state, ()).control > 0).all()) == explores
        assert (behaviour.act(model, state, (), deterministic=True).control < 0).all()


def test_all_three_learn_and_the_explorer_stops_with_exploration() -> None:
    model = ExactPendulum()
    behaviour = Plan2Explore(ExplorationConfig(steps=10, ensemble=SMALL_ENSEMBLE), SMALL, model.feature_size, TORQUE)
    x = torch.randn(2, 5, 2)
    states = model._at(x)
    batch = steps(x, torch.rand(2, 5, 1))

    def moved() -> list[bool]:
        parts = (behaviour.disagreement, behaviour.task.critic, behaviour.explorer.critic)
        before = [[p.clone() for p in part.parameters()] for part in parts]
        for _ in range(2):
            behaviour.learn(model, states, batch)
        pairs = zip(before, parts, strict=True)
        return [any(not torch.equal(p, q) for p, q in zip(old, part.parameters(), strict=True)) for old, part in pairs]

    assert moved() == [True, True, True]
    behaviour.begin_step(10)
    assert moved() == [True, True, False]


@pytest.mark.parametrize("wrong", [{"weight": 0.0}, {"steps": 0}])
def test_settings_that_make_no_sense_are_named(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ExplorationConfig(**wrong)  # type: ignore[arg-type]


def test_one_actor_for_both_wants_the_reward_and_never_stops_exploring() -> None:
    with pytest.raises(ValueError, match="positive where no other actor learns it: 0"):
        ExplorationConfig(separate=False)
    with pytest.raises(ValueError, match=r"steps is of no effect.*: 10"):
        ExplorationConfig(separate=False, task=1.0, steps=10)
    model = ExactPendulum()
    config = ExplorationConfig(separate=False, task=2.0, weight=3.0, ensemble=SMALL_ENSEMBLE)
    behaviour = Plan2Explore(config, SMALL, model.feature_size, TORQUE)
    assert behaviour.task is behaviour.explorer
    trajectory = rollout(torch.randn(5, model.feature_size), torch.rand(5, 1))._replace(reward=torch.ones(5, 1))
    expected = 3 * behaviour.disagreement.spread(trajectory.features[:, :-1], trajectory.actions) + 2
    torch.testing.assert_close(behaviour.intrinsic(trajectory), expected)


def test_recorded_rewards_are_not_the_explorers() -> None:
    """Its critic would take them for disagreement; that of the task learns from them."""
    model, config = ExactPendulum(), replace(SMALL, replay_value=0.3, starts=0)
    behaviour = Plan2Explore(ExplorationConfig(ensemble=SMALL_ENSEMBLE), config, model.feature_size, TORQUE)
    x = torch.randn(2, 5, 2)
    metrics = behaviour.learn(model, model._at(x), steps(x, torch.rand(2, 5, 1)))
    assert "actor_critic/replay_loss" in metrics and "exploration/replay_loss" not in metrics
