"""Disagreement where data is missing."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from worldmodel.agents.exploration.ensemble import Disagreement, EnsembleConfig
from worldmodel.kernels.precision import products_in
from worldmodel.learning.learner import LearnerConfig
from worldmodel.specs import OBSERVATION, ActionSpec
from worldmodel.types import Batch

TORQUE = ActionSpec((1,), low=(-2.0,), high=(2.0,))


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


def test_members_agree_on_what_they_have_seen_and_on_noise_of_a_known_mean() -> None:
    """f' = 0.5 f + u + noise for f in [0, 1]: the reward falls there, and stays high elsewhere."""
    config = EnsembleConfig(members=5, hidden=16, layers=1, learner=LearnerConfig(lr=3e-3))
    ensemble = Disagreement(config, 1, TORQUE)
    seen, strange = torch.rand(200, 1), torch.rand(200, 1) - 4
    control = torch.rand(200, 1) * 2 - 1
    before = ensemble.spread(seen, control).mean()
    for _ in range(600):
        first, u = torch.rand(64, 1), torch.rand(64, 1) * 2 - 1
        then = 0.5 * first + u + 0.3 * torch.randn(64, 1)
        feature, controls = torch.stack([first, then], 1), torch.stack([torch.zeros_like(u), u], 1)
        _, report = ensemble.learner.update(feature, steps(feature, controls))
    assert float(report["loss"]) == pytest.approx(0.09, rel=0.5)  # the variance of the noise
    after = ensemble.spread(seen, control).mean()
    assert after < 0.1 * before and after < 0.1 * ensemble.spread(strange, control).mean()
    predicted = ensemble(seen, control).mean(-2)
    torch.testing.assert_close(predicted, 0.5 * seen + control, rtol=0, atol=0.15)


def test_nothing_is_learned_across_the_border_of_an_episode() -> None:
    ensemble = Disagreement(EnsembleConfig(members=2, hidden=4), 1, TORQUE)
    feature = torch.randn(3, 4, 1)
    batch = steps(feature, torch.randn(3, 4, 1))
    first = torch.zeros(3, 4, dtype=torch.bool)
    first[:, 2] = True
    other = feature.clone()
    other[:, 1:3] += torch.tensor([[0.0], [100.0]])  # what the step to t = 2 alone could see
    plain, _ = ensemble.loss(feature[:, :2], steps(feature[:, :2], batch.prev_action[:, :2]))
    cut = batch._replace(is_first=torch.ones(3, 4, dtype=torch.bool))
    cut.is_first[:, 1] = False
    torch.testing.assert_close(ensemble.loss(other, cut)[0], plain)
    assert float(ensemble.loss(other, batch)[0]) > 100


def test_a_member_is_one_network_of_its_own() -> None:
    ensemble = Disagreement(EnsembleConfig(members=3, hidden=4, layers=2), 2, TORQUE)
    feature, control = torch.randn(5, 2), torch.randn(5, 1)
    predicted = ensemble(feature, control)
    assert predicted.shape == (5, 3, 2) and predicted.std(1).min() > 0
    (gradient,) = torch.autograd.grad(predicted[:, 1].sum(), [ensemble.net[0].weight])
    of_member = gradient.unflatten(0, (3, 4)).abs().sum((1, 2)) > 0
    assert of_member.tolist() == [False, True, False]


@pytest.mark.parametrize("wrong", [{"members": 1}, {"layers": 0}, {"hidden": 0}])
def test_settings_that_make_no_sense_are_named(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EnsembleConfig(**wrong)


def test_disagreement_is_measured_in_float32() -> None:
    ensemble = Disagreement(EnsembleConfig(hidden=8), 4, TORQUE)
    feature, control = torch.randn(5, 4), torch.rand(5, 1)
    with products_in("bfloat16", "cpu"):
        spread = ensemble.spread(feature, control)
    assert spread.dtype == torch.float32
    torch.testing.assert_close(spread, ensemble.spread(feature, control), rtol=0.05, atol=0)
