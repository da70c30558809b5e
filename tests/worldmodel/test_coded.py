"""Sums of columns are the products with one-hot codes, in value and gradient, and nothing else is taken for a code."""

import shutil
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from worldmodel.agents import ActorCritic, ActorCriticConfig
from worldmodel.dynamics import DynamicsConfig
from worldmodel.dynamics.rssm import RSSM, RSSMConfig
from worldmodel.imagination import rollout
from worldmodel.kernels import coded
from worldmodel.kernels.coded import Coded, are_codes, dense, in_time, linear, ones, parts
from worldmodel.model import ModelConfig, WorldModel
from worldmodel.networks.latents import LatentConfig
from worldmodel.networks.layers import MLP, Logits
from worldmodel.specs import ActionSpec, ObservationSpec

GROUPS, CLASSES, REST = 3, 5, 4
NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it does not pay."""
    monkeypatch.setattr(coded, "LEAST", 0)
    monkeypatch.setattr(coded, "ROWS", 0)


def drawn(*shape: int, rest: int = REST, codes_first: bool = False) -> Coded:
    codes = F.one_hot(torch.randint(CLASSES, (*shape, GROUPS)), CLASSES).flatten(-2).float()
    return Coded(torch.randn(*shape, rest), codes, ones(codes, CLASSES), codes_first)


@pytest.mark.parametrize("rest", [REST, 0])
@pytest.mark.parametrize("codes_first", [True, False])
def test_a_sum_of_columns_is_the_product(codes_first: bool, rest: int) -> None:
    features = drawn(6, 7, rest=rest, codes_first=codes_first)
    weight = torch.randn(9, dense(features).shape[-1], requires_grad=True)
    bias = torch.randn(9, requires_grad=True)
    outer = torch.randn(6, 7, 9)
    results = []
    for given in (features, dense(features)):
        out = linear(given, weight, bias)
        results.append([out, *torch.autograd.grad((out.sin() * outer).sum(), (weight, bias))])
    torch.testing.assert_close(results[0], results[1])
    assert results[0][0].grad_fn is not None and "SumOfColumns" in results[0][0].grad_fn.name()
    assert torch.equal(linear(features, weight.detach(), bias.detach()), results[0][0])


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=[pytest.mark.slow, NEEDS_COMPILER])])
@pytest.mark.parametrize("codes_first", [True, False])
@pytest.mark.parametrize(
    ("threads", "least", "summed"), [(1, CLASSES, True), (2, CLASSES, False), (1, CLASSES + 1, False)]
)
def test_a_compiled_gradient_of_columns_is_the_product(
    threads: int, least: int, summed: bool, codes_first: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is a sum, without one: on one thread, of many classes."""
    monkeypatch.setattr(coded, "CLASSES", least)
    torch.compiler.reset()
    features, outer = drawn(6, 7, codes_first=codes_first), torch.randn(6, 7, 9)
    weight, bias = torch.randn(9, REST + GROUPS * CLASSES, requires_grad=True), torch.randn(9, requires_grad=True)

    def gradients(function: Any) -> tuple[tuple[Tensor, ...], int]:
        """Of weight and bias, and how many operations were those of products."""
        out = function(features, weight, bias)
        with FlopCounterMode(display=False) as counter:
            found = torch.autograd.grad((out * outer).sum(), (weight, bias))
        return found, counter.get_total_flops()

    torch.set_num_threads(threads)
    try:
        expected, whole = gradients(linear)
        found, few = gradients(torch.compile(linear, backend=backend, fullgraph=True))
    finally:
        torch.set_num_threads(1)
    torch.testing.assert_close(found, expected)
    assert whole == 2 * 6 * 7 * 9 * (REST + GROUPS * CLASSES)
    if backend == "aot_eager":
        assert few == (2 * 6 * 7 * 9 * REST if summed else whole)


def test_a_sum_changes_no_weight() -> None:
    features, weight = drawn(3), torch.randn(1, REST + GROUPS * CLASSES)  # one row: its transpose is no copy
    before = weight.clone()
    linear(features, weight, torch.ones(1))
    assert torch.equal(weight, before)


@pytest.mark.parametrize("part", ["rest", "codes"])
def test_gradients_that_must_reach_the_features_do(part: str) -> None:
    features = drawn(5)
    weight = torch.randn(2, dense(features).shape[-1])
    start, stop = (0, REST) if part == "rest" else (REST, None)
    followed = getattr(features, part).requires_grad_()
    (gradient,) = torch.autograd.grad(linear(features, weight, torch.zeros(2)).sum(), followed)
    torch.testing.assert_close(gradient, weight.sum(0)[start:stop].expand(5, -1))


@pytest.mark.parametrize("hidden_layers", [0, 1, 2])
def test_a_perceptron_takes_either(hidden_layers: int) -> None:
    features = drawn(4, 2)
    net = MLP(REST + GROUPS * CLASSES, 8, hidden_layers, 5, kind=Logits)
    torch.testing.assert_close(net(features), net(dense(features)))


def test_which_entries_are_ones() -> None:
    codes = torch.tensor([[0.0, 1, 0, 0, 0, 1], [1, 0, 0, 0, 1, 0]])
    assert ones(codes, 3).tolist() == [[1, 5], [0, 4]]


def test_steps_in_time() -> None:
    some = drawn(3, 6)
    part = in_time(some, -2)
    assert isinstance(part, Coded) and all(each.is_contiguous() for each in parts(part))
    assert torch.equal(dense(part), dense(some)[:, -2:].transpose(0, 1))
    assert torch.equal(part.ones, some.ones[:, -2:].transpose(0, 1))
    stood = some._replace(rest=dense(part).transpose(0, 1))  # in memory step by step: no copy
    assert dense(in_time(stood.rest, 1)).data_ptr() == stood.rest[:, 1:].data_ptr()


@pytest.mark.parametrize(
    ("group", "is_code"),
    [
        ([0.0, 1, 0], True),
        ([0.0, 0, 0], False),
        ([1.0, 1, -1], False),
        ([2 / 3, 2 / 3, -1 / 3], False),
        ([0.0, 2, 0], False),
        ([0.5, 0.5, 0], False),
        ([1.0, 1e-6, 0], False),
        ([float("nan"), 1, 0], False),
    ],
)
def test_what_is_a_code(group: list[float], is_code: bool) -> None:
    assert are_codes(torch.tensor([[0, 0, 1, *group]]), 3) == is_code


def built(family: Any, cell: Any = "norm") -> WorldModel:
    torch.manual_seed(0)
    sizes = DynamicsConfig("rssm", rssm=RSSMConfig(deter=8, hidden=8, cell=cell))
    latent = LatentConfig(family, size=6, groups=3, classes=4)
    config = ModelConfig(sizes, latent, hidden=8, encoder_layers=1, head_layers=1)
    model = WorldModel.build(config, {"x": ObservationSpec((2,))}, ActionSpec((1,), (3,)))
    for head in (model.reward, model.cont):
        assert head is not None
        nn.init.normal_(head.last.weight)  # the first begins at zero
    return model


def test_an_initial_state_is_no_code_and_reduced_precision_takes_none() -> None:
    """Class indices above 256 would be rounded in bfloat16."""
    model = built("onehot")
    start = model.initial(4)
    assert isinstance(model.coded(start), Tensor)
    with torch.no_grad():
        state = model.imagine(start, torch.zeros(4, 3))
        assert isinstance(model.coded(state), Coded)
        with torch.autocast("cpu", torch.bfloat16):
            assert isinstance(model.coded(state, sampled=True), Tensor)


@pytest.mark.parametrize(
    ("family", "begun", "known"), [("onehot", True, True), ("onehot", False, False), ("gaussian", True, False)]
)
def test_imagination_is_the_same(family: Any, begun: bool, known: bool) -> None:
    """From states that were sampled; an initial one, whose z is zero, is no code, and neither is a Gaussian one."""
    model = built(family)
    start = model.initial(7)
    if begun:
        with torch.no_grad():
            start = model.imagine(start, torch.eye(3)[torch.arange(7) % 3])
    weight, seen = torch.randn(3, model.feature_size), list[type]()

    def policy(features: Any) -> tuple[Tensor, Tensor]:
        seen.append(type(features))
        params = linear(features, weight, torch.zeros(3))
        return F.one_hot(params.argmax(-1), 3).float(), params

    found = []
    for asked in (True, False):
        torch.manual_seed(4)
        found.append(rollout(model, start, policy, 5, through=False, coded=asked))
    assert seen == [Coded if known else Tensor] * 5 + [Tensor] * 5
    assert isinstance(found[0].known, Coded) == known and isinstance(found[1].known, Tensor)
    torch.testing.assert_close(found[0].features, found[1].features)
    for one, other in zip(found[0][1:], found[1][1:], strict=True):
        torch.testing.assert_close(one, other)
    if isinstance(found[0].known, Coded):
        assert torch.equal(found[0].known.ones, ones(found[0].known.codes, 4))


def test_it_is_taken_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of large weights, for many rows."""
    weight, bias = torch.randn(9, REST + GROUPS * CLASSES, requires_grad=True), torch.randn(9)
    entries = 9 * GROUPS * CLASSES
    for least, rows, summed in ((entries, 42, True), (entries + 1, 42, False), (0, 43, False)):
        monkeypatch.setattr(coded, "LEAST", least)
        monkeypatch.setattr(coded, "ROWS", rows)
        maker = linear(drawn(6, 7), weight, bias).grad_fn
        assert maker is not None and ("SumOfColumns" in maker.name()) == summed


CELLS = pytest.mark.parametrize("cell", ["norm", "plain", "blocks"])


def sampled(model: WorldModel) -> tuple[Any, Tensor, Tensor]:
    """A state whose codes are known, which entries are 1, and controls."""
    control = torch.eye(3)[torch.arange(7) % 3]
    with torch.no_grad():
        state = model.imagine(model.initial(7), control)
    known = model.coded(state)
    assert isinstance(known, Coded)
    return state, known.ones, control


@CELLS
def test_what_follows_a_state_whose_codes_are_known(cell: Any) -> None:
    """The product with z_{t-1} is a sum of columns, in value and gradient."""
    model = built("onehot", cell)
    state, which, control = sampled(model)
    dynamics = cast(RSSM, model.dynamics)
    weights, found = list(dynamics.core.parameters()), []
    for context in (dynamics.advance(state, control), dynamics.advance_coded(state, control, which)):
        found.append([context.deter, *torch.autograd.grad(context.deter.sin().sum(), weights)])
    torch.testing.assert_close(*found)
    unread = state._replace(latent=torch.zeros_like(state.latent))  # it is the classes that tell what z was
    torch.testing.assert_close(dynamics.advance_coded(unread, control, which).deter, found[0][0])


@CELLS
def test_the_gradient_of_z_is_lost_in_no_sum(cell: Any) -> None:
    model, gradients = built("onehot", cell), []
    state, which, control = sampled(model)
    for known in (None, which):
        z = state.latent.clone().requires_grad_()
        deter = model.imagine(state._replace(latent=z), control, ones=known).deter
        gradients.append(torch.autograd.grad(deter.sum(), z)[0])
    torch.testing.assert_close(*gradients)


@CELLS
def test_a_layer_that_is_watched_is_called(cell: Any) -> None:
    model, seen = built("onehot", cell), list[str]()
    state, which, control = sampled(model)
    for name, module in cast(RSSM, model.dynamics).core.named_modules():
        module.register_forward_hook(lambda *_, name=name: seen.append(name))
    for known in (None, which):
        model.imagine(state, control, ones=known)
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :] and "" in seen
    assert ("of_latent" if cell == "blocks" else "input.0") in seen


def test_imagination_tells_which_codes_it_is_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the state that it goes on from; and what is imagined stands in memory step by step."""
    model, told = built("onehot"), list[tuple[Any, Any]]()
    state, _, _ = sampled(model)
    imagine = model.dynamics.imagine

    def watched(state: Any, control: Tensor, sample: bool = True, ones: Tensor | None = None) -> Any:
        told.append((state.latent, ones))
        return imagine(state, control, sample, ones)

    monkeypatch.setattr(model.dynamics, "imagine", watched)
    imagined = rollout(model, state, lambda feature: (torch.eye(3)[[0] * 7],) * 2, 4, through=False, coded=True)
    assert len(told) == 4 and all(torch.equal(ones(latent, 4), which) for latent, which in told)
    assert isinstance(imagined.known, Coded)
    assert all(part.transpose(0, 1).is_contiguous() for part in parts(imagined.known))


@pytest.mark.parametrize("bootstrap", ["own", "slow"])
def test_actor_and_critic_learn_the_same(bootstrap: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, results = built("onehot"), []
    with torch.no_grad():
        start = model.imagine(model.initial(6), torch.eye(3)[torch.arange(6) % 3])
    config = ActorCriticConfig(hidden=8, horizon=4, bootstrap=bootstrap, value_output="twohot", slow_regulariser=1.0)
    for codes in (True, False):
        if not codes:
            monkeypatch.setattr(WorldModel, "coded", lambda self, state, sampled=True: self.feature(state))
        torch.manual_seed(1)
        learner = ActorCritic(config, model.feature_size, ActionSpec((1,), (3,)))
        nn.init.normal_(learner.critic.last.weight)  # it begins at zero
        torch.manual_seed(2)
        loss, metrics = learner.loss(model, start, torch.ones(6))
        results.append([loss, *metrics.values(), *torch.autograd.grad(loss, learner.trained)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
