"""The objective is the ELBO under neutral settings, and what its config says otherwise; the learner minimises it."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from worldmodel.learning.bounds import importance_bound
from worldmodel.learning.learner import Learner, LearnerConfig
from worldmodel.learning.objective import ObjectiveConfig, annealed, objective, trained_kl
from worldmodel.model import WorldModel
from worldmodel.types import Batch, Inference

Build = Callable[..., WorldModel]
Window = Callable[..., Batch]


def padded(batch: Batch) -> Batch:
    """The batch with its last step masked out."""
    mask, is_first = batch.mask.clone(), batch.is_first.clone()
    mask[:, -1], is_first[:, -1] = 0, True
    return batch._replace(mask=mask, is_first=is_first)


def test_neutral_objective_is_minus_the_elbo(build: Build, window: Window, member: str, family: str) -> None:
    loss, _, elbo, _ = objective(build(member, family), padded(window(3, 5)), ObjectiveConfig(free_nats=0))
    assert torch.equal(loss, -elbo.total)
    assert (loss[:, -1] == 0).all() and (loss[:, :-1] != 0).all()


def test_beta_weights_and_free_nats_reweight_the_terms(build: Build, window: Window) -> None:
    model, batch = build("rssm"), padded(window(3, 5))
    middle = float(model.elbo(batch).kl[:, :-1].detach().median())
    config = ObjectiveConfig(beta=0.3, free_nats=middle, weights={"reward": 10.0, "phase": 0.0})
    loss, _, elbo, _ = objective(model, batch, config)
    kl, logs = elbo.kl, elbo.log_likelihood
    assert (kl < middle).any() and (kl > middle).any()
    expected = 0.3 * kl.clamp(min=middle) * batch.mask - logs["x"] - 10 * logs["reward"] - logs["continue"]
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(elbo.total, sum(logs.values()) - kl)  # the ELBO beside it stays exact


def test_unknown_emission_in_the_weights_is_named(build: Build, window: Window) -> None:
    with pytest.raises(ValueError, match=r"rewrad.*reward"):
        objective(build("rssm"), window(1, 2), ObjectiveConfig(weights={"rewrad": 1.0}))


@pytest.mark.parametrize(
    ("updates", "beta", "free_nats"), [(0, 0.0, 3.0), (1, 0.25, 2.5), (4, 1.0, 1.0), (100, 1.0, 1.0)]
)
def test_schedule_of_the_objective(build: Build, window: Window, updates: int, beta: float, free_nats: float) -> None:
    config = ObjectiveConfig(anneal=4, free_nats=1.0, free_nats_start=3.0)
    now = annealed(config, updates)
    assert (float(now.beta), float(now.free_nats)) == (beta, free_nats)
    model, batch = build("rssm"), window(2, 3)
    torch.manual_seed(0)
    loss = objective(model, batch, config, now)[0]
    torch.manual_seed(0)
    torch.testing.assert_close(loss, objective(model, batch, ObjectiveConfig(beta=beta, free_nats=free_nats))[0])


def test_without_a_schedule_nothing_changes_with_the_updates() -> None:
    config = ObjectiveConfig(beta=0.5, free_nats=2.0)
    assert [float(x) for x in annealed(config, 0)] == [float(x) for x in annealed(config, 9)] == [0.5, 2.0]


@pytest.mark.parametrize(("bound", "resample"), [("iwae", 0.0), ("fivo", 0.5)])
def test_a_bound_is_trained_as_it_is(build: Build, window: Window, bound: Any, resample: float) -> None:
    model, batch = build("vrnn"), window(2, 3)
    torch.manual_seed(0)
    loss, inference, elbo, _ = objective(model, batch, ObjectiveConfig(bound=bound, particles=3))
    torch.manual_seed(0)
    model.elbo(batch)  # measured beside it
    torch.testing.assert_close(loss, -importance_bound(model, batch, 3, resample))
    assert inference.sample.shape[0] == len(elbo.total) == 2


@pytest.mark.parametrize(("bound", "resample"), [("iwae", 0.0), ("fivo", 0.5)])
def test_an_annealed_bound_of_one_particle_is_the_annealed_elbo(
    build: Build, window: Window, without_noise: Callable[[WorldModel], WorldModel], bound: Any, resample: float
) -> None:
    """log p(x_t | s_t) + beta log p / q of the one sample, here the mode."""
    model, batch = without_noise(build("dkf")), window(2, 3)
    config = ObjectiveConfig(bound=bound, particles=1, resample=resample or 0.5, anneal=10)
    inference = model.observe(batch)
    loss = -importance_bound(model, batch, 1, resample, annealed(config, 3).beta)
    fit = torch.stack(list(model.elbo(batch, inference).log_likelihood.values())).sum(0)
    family, z = model.dynamics.latent, inference.sample
    ratio = family.log_prob(inference.prior, z) - family.log_prob(inference.posterior, z)
    torch.testing.assert_close(-loss, fit + 0.3 * ratio)
    torch.testing.assert_close(objective(model, batch, config, annealed(config, 3))[0], loss)


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            {"free_nats_for": "prior"},
            {"beta": -1.0},
            {"free_nats": -0.5},
            {"balance": 1.5},
            {"free_nats_start": 2.5},
            {"beta_start": -0.75},
        ),
        *(
            {"bound": "evidence"},
            {"particles": 0},
            {"particles": 8},
            {"resample": 0.25},
            {"beta_start": 30.0},
            {"resample": 1.25},
            {"anneal": -3},
        ),
    ],
)
def test_objective_config_refuses_nonsense(wrong: dict[str, Any]) -> None:
    (value,) = wrong.values()
    with pytest.raises(ValueError, match=str(value)):
        ObjectiveConfig(**wrong)


@pytest.mark.parametrize(
    "shape", [{"beta": 0.5}, {"balance": 0.8}, {"weights": {"x": 2.0}}, {"free_nats": 5.0}, {"free_nats_for": "both"}]
)
def test_what_shapes_the_elbo_does_not_go_with_another_bound(shape: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="bound: fivo"):
        ObjectiveConfig(bound="fivo", **shape)


def test_weights_must_be_numbers_and_a_start_is_for_the_elbo(build: Build, window: Window) -> None:
    with pytest.raises(ValueError, match=r"weights\.x must not be negative, and finite: -2"):
        ObjectiveConfig(weights={"x": -2.0})
    model = build("rssm")
    with pytest.raises(ValueError, match="start is for the bound elbo, not iwae"):
        objective(model, window(2, 3), ObjectiveConfig(bound="iwae"), start=model.initial(2))


def leaves(model: WorldModel, batch: Batch) -> Inference:
    """An inference whose prior and posterior parameters are leaves of the graph."""
    inference = model.observe(batch)
    return inference._replace(
        prior=inference.prior.detach().requires_grad_(), posterior=inference.posterior.detach().requires_grad_()
    )


def gradients(value: Tensor, inference: Inference) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value.sum(), [inference.prior, inference.posterior])


@pytest.mark.parametrize("balance", [0.0, 0.8, 1.0])
def test_balance_splits_the_gradient_of_the_kl_but_keeps_its_value(
    build: Build, window: Window, family: str, balance: float
) -> None:
    model = build("rssm", family)
    inference = leaves(model, window(3, 5))
    plain = trained_kl(model, inference, ObjectiveConfig(free_nats=0))
    balanced = trained_kl(model, inference, ObjectiveConfig(free_nats=0, balance=balance))
    torch.testing.assert_close(balanced, plain)
    to_prior, to_posterior = gradients(plain, inference)
    torch.testing.assert_close(gradients(balanced, inference), (balance * to_prior, (1 - balance) * to_posterior))


@pytest.mark.parametrize("balance", [None, 0.8])
def test_free_nats_free_the_posterior_alone(build: Build, window: Window, balance: float | None) -> None:
    model = build("rssm")
    inference = leaves(model, window(3, 5))
    kl = trained_kl(model, inference, ObjectiveConfig(free_nats=0))
    middle = float(kl.detach().median())
    trained = trained_kl(model, inference, ObjectiveConfig(free_nats=middle, balance=balance))
    below = kl < middle
    assert below.any() and not below.all()
    to_prior, to_posterior = gradients(trained, inference)
    assert (to_posterior[below] == 0).all()
    assert (to_posterior[~below].abs().sum(-1) > 0).all() and (to_prior.abs().sum(-1) > 0).all()
    if balance is None:
        torch.testing.assert_close(trained, kl.clamp(min=middle))


def test_free_nats_free_the_prior_as_well_in_version_3(build: Build, window: Window) -> None:
    model = build("rssm", "onehot")
    inference = leaves(model, window(3, 5))
    kl = trained_kl(model, inference, ObjectiveConfig(free_nats=0))
    middle = float(kl.detach().median())
    config = ObjectiveConfig(free_nats=middle, free_nats_for="both", balance=0.8)
    trained = trained_kl(model, inference, config)
    torch.testing.assert_close(trained, kl.clamp(min=middle))
    for gradient in gradients(trained, inference):
        assert (gradient[kl < middle] == 0).all() and (gradient[kl > middle].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("share", [0.9, 1.1])
def test_free_nats_of_the_batch_are_judged_by_its_mean_over_recorded_steps(
    build: Build, window: Window, share: float
) -> None:
    model, batch = build("rssm"), padded(window(3, 5))
    inference = leaves(model, batch)
    kl = trained_kl(model, inference, ObjectiveConfig(free_nats=0))
    mean = float((kl * batch.mask).sum() / batch.mask.sum())
    config = ObjectiveConfig(free_nats=share * mean, free_nats_for="batch")
    trained = trained_kl(model, inference, config, mask=batch.mask)
    expected = mean if share < 1 else share * mean
    assert float((trained * batch.mask).sum() / batch.mask.sum()) == pytest.approx(expected)
    moved = [bool((gradient != 0).any()) for gradient in gradients(trained, inference)]
    assert moved == [share < 1] * 2


# The learner.


class Pair(nn.Module):
    """Two weights whose product must become a target: one is trained, the other belongs to somebody else."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))

    def loss(self, target: Tensor) -> tuple[Tensor, Tensor]:
        error = (self.own * self.other - target).square()
        return error.sum(), error.detach()


def test_learner_minimises_over_its_own_parameters_only() -> None:
    pair = Pair()
    learner = Learner(pair.loss, [pair.own], LearnerConfig(lr=0.1))
    target = torch.tensor([0.0, 2.0, 5.0])
    reports = [learner.update(target) for _ in range(300)]
    torch.testing.assert_close(pair.own.detach(), target, atol=0.01, rtol=0)
    assert torch.equal(pair.other, torch.ones(3)) and pair.other.grad is None
    error, report = reports[0]
    assert torch.equal(error, torch.tensor([1.0, 1.0, 16.0]))
    assert report["loss"] == 18 and not report["loss"].requires_grad
    assert reports[-1][1]["loss"] < 1e-3


@pytest.mark.parametrize(("clip", "used"), [(1.0, 1.0), (100.0, 48**0.5)])
def test_learner_clips_the_global_norm_and_reports_it_unclipped(clip: float, used: float) -> None:
    pair = Pair()
    learner = Learner(pair.loss, pair.parameters(), LearnerConfig(clip=clip))
    _, report = learner.update(torch.tensor([0.0, 2.0, 3.0]))  # gradients (2, -2, -4) of both weights, norm sqrt(48)
    norm = torch.cat([pair.own.grad, pair.other.grad]).norm()
    assert float(report["grad_norm"]) == pytest.approx(48**0.5)
    assert float(norm) == pytest.approx(used, rel=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_weights_that_the_loss_leaves_alone_decay(decay: float) -> None:
    weight = nn.Parameter(torch.tensor([2.0, -4.0]))
    learner = Learner(lambda: ((0 * weight).sum(), None), [weight], LearnerConfig(lr=0.1, weight_decay=decay))
    learner.update()
    torch.testing.assert_close(weight.detach(), torch.tensor([2.0, -4.0]) * (1 - 0.1 * decay))


@pytest.mark.parametrize(
    "wrong",
    [
        *({"lr": 0.0}, {"lr": math.nan}, {"eps": -1.0}, {"clip": 0.0}, {"weight_decay": -0.5}),
        *({"optimizer": "lapropp"}, {"compile": "no"}, {"adaptive_clip": 0.3, "clip": 7.0}),
    ],
    ids=str,
)
def test_learner_config_refuses_nonsense(wrong: dict[str, Any]) -> None:
    *_, value = wrong.values()
    with pytest.raises(ValueError, match=str(value)):
        LearnerConfig(**wrong)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile_switch_gives_the_same_updates(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    compiler, built = torch.compile, []

    def compile_with_backend(loss: Callable, **options: bool) -> Callable:
        built.append(options)
        return compiler(loss, backend=backend, **options)

    monkeypatch.setattr(torch, "compile", compile_with_backend)
    one, two = Pair(), Pair()
    eager = Learner(one.loss, [one.own], LearnerConfig(lr=0.1))
    assert not built
    compiled = Learner(two.loss, [two.own], LearnerConfig(lr=0.1, compile="update"))
    assert built == [{"fullgraph": True, "dynamic": False}]
    target = torch.tensor([0.0, 2.0, 5.0])
    for _ in range(3):
        torch.testing.assert_close(compiled.update(target)[1], eager.update(target)[1])
    torch.testing.assert_close(two.own, one.own)
    assert not torch.equal(two.own, torch.ones(3))
    assert two.other.grad is None


@pytest.mark.parametrize("optimizer", ["adam", "laprop"])
@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_skipped(optimizer: Any, broken: str) -> None:
    """Parameters, moments and step counts stay; the next step is that of a learner that never met it."""
    bad = {"loss": lambda x: x.sum() * torch.inf, "gradient": lambda x: (x - x.detach()).abs().sqrt().sum()}[broken]

    def learned(kinds: str) -> tuple[nn.Parameter, dict[str, Any], list[float]]:
        parameter, queue = nn.Parameter(torch.tensor([3.0, -4.0])), list(kinds)

        def loss() -> tuple[Tensor, None]:
            return (parameter.square().sum() if queue.pop(0) == "." else bad(parameter)), None

        learner = Learner(loss, [parameter], LearnerConfig(optimizer=optimizer, lr=0.1, weight_decay=0.1))
        skipped = [float(learner.update()[1]["skipped"]) for _ in kinds]
        return parameter, learner.state()["optimizer"]["state"][0], skipped

    one, state, skipped = learned(".!.!!.")
    other, expected, _ = learned("...")
    assert skipped == [0, 1, 0, 1, 1, 0]
    assert torch.equal(one, other) and not torch.equal(one, torch.tensor([3.0, -4.0]))
    assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize("warmup", [0, 10])
def test_a_learner_that_is_slowed_down_takes_smaller_steps(warmup: int) -> None:
    """LaProp's first step is lr in every direction; a state that was saved knows how slow it was."""

    def step(factors: list[float]) -> float:
        parameter = nn.Parameter(torch.tensor([1.0]))
        config = LearnerConfig(optimizer="laprop", lr=0.1, warmup=warmup)
        learner = Learner(lambda: (parameter.sum(), None), [parameter], config)
        for factor in factors:
            learner.slow_down(factor)
        state = learner.state()
        again = Learner(lambda: (parameter.sum(), None), [parameter], config)
        again.load(state)
        again.slow_down(factors[-1])  # is what it is
        again.update()
        return 1 - float(parameter)

    whole = step([1.0])
    assert step([0.5]) == pytest.approx(whole / 2, rel=1e-4)
    assert step([0.5, 0.25]) == pytest.approx(whole / 4, rel=1e-4)


def test_the_rate_falls_on_a_straight_line_to_its_last_share() -> None:
    """LaProp's steps down a constant slope are lr long, so the places tell the rates."""
    parameter = nn.Parameter(torch.tensor(0.0))
    config = LearnerConfig(optimizer="laprop", lr=1.0, eps=1e-20, final_lr_ratio=0.2)
    learner = Learner(lambda: (parameter, None), [parameter], config)
    places = [0.0]
    for progress in (0.0, 0.25, 0.5, 1.0, 1.5):  # whoever is trained for longer than was said goes on slowly
        learner.progress = progress
        learner.update()
        places.append(parameter.item())
    assert [before - after for before, after in pairwise(places)] == pytest.approx([1, 0.8, 0.6, 0.2, 0.2], rel=1e-4)


def test_warmup_and_fall_multiply_and_a_saved_learner_knows_both() -> None:
    parameter = nn.Parameter(torch.tensor(0.0))
    config = LearnerConfig(lr=0.1, warmup=4, final_lr_ratio=0)

    def made() -> Learner:
        return Learner(lambda: (parameter, None), [parameter], config)

    learner, again = made(), made()
    learner.update()
    again.load(learner.state())
    learner.progress = again.progress = 0.5
    assert learner.lr == again.lr == pytest.approx(0.1 * (1 / 4 + 3 / 4 * 1 / 4) * 0.5)
    learner.progress = 1.0
    before = parameter.item()
    learner.update()
    assert parameter.item() == before


@pytest.mark.parametrize("ratio", [-0.1, 1.1])
def test_a_share_of_the_rate_lies_between_none_and_all(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"final_lr_ratio must lie in \[0, 1\]"):
        LearnerConfig(final_lr_ratio=ratio)


def test_a_learner_of_the_first_format_is_read() -> None:
    """It had its updates from the scheduler of the warm-up, and none where nothing warmed up."""
    parameter = nn.Parameter(torch.tensor(0.0))
    learner = Learner(lambda: (parameter, None), [parameter], LearnerConfig(lr=0.1, warmup=4))
    state = {"optimizer": learner.state()["optimizer"], "factor": 0.5}
    learner.load({**state, "warmup": {"last_epoch": 2}})
    assert learner.lr == pytest.approx(0.1 * (1 / 4 + 3 / 4 * 2 / 4) * 0.5)
    learner = Learner(lambda: (parameter, None), [parameter], LearnerConfig(lr=0.1))
    learner.load({**state, "warmup": None})
    assert learner.lr == pytest.approx(0.05)
