"""Products in bfloat16 change what is learned by no more than their rounding, and leave closed forms alone."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.dynamics.kalman import Moments
from worldmodel.dynamics.linear_mixture import KalmanMixture
from worldmodel.kernels import compiling
from worldmodel.kernels.precision import Precision, exact, products_in
from worldmodel.learning.learner import Learner, LearnerConfig
from worldmodel.learning.objective import ObjectiveConfig, objective
from worldmodel.learning.redundancy import redundancy
from worldmodel.model import WorldModel
from worldmodel.networks.images import ChannelNorm, ImageDecoder, ImageEncoder
from worldmodel.networks.latents import FullGaussian
from worldmodel.networks.layers import LayerConfig
from worldmodel.networks.outputs import TwoHot
from worldmodel.networks.recurrent import GRUCell, PlainGRUCell
from worldmodel.types import Batch

Build = Callable[..., WorldModel]
Window = Callable[..., Batch]


def half() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def flat(module: nn.Module) -> Tensor:
    """All its gradients in a row."""
    return torch.cat([weight.grad.flatten() for weight in module.parameters() if weight.grad is not None])


def test_every_member_has_nearly_the_same_elbo_and_gradient(
    build: Build, window: Window, member: str, family: str
) -> None:
    model, batch, found = build(member, family, size=8), window(4, 12), []
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(3)
        model.zero_grad()
        with products_in(precision, "cpu"):
            loss, inference, elbo, _ = objective(model, batch, ObjectiveConfig())
        numbers = loss, elbo.kl, inference.prior, inference.posterior, *inference.states
        assert {number.dtype for number in numbers} == {torch.float32}
        loss.mean().backward()
        found.append((elbo.total.detach().mean(), flat(model)))
    (full, of_full), (rough, of_rough) = found
    assert full != rough
    torch.testing.assert_close(rough, full, rtol=0.02, atol=0)
    assert F.cosine_similarity(of_full, of_rough, 0) > 0.99


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_images_too(norm: str) -> None:
    torch.manual_seed(0)
    layer, shape = LayerConfig(norm), (16, 16, 3)  # type: ignore[arg-type]
    net = nn.Sequential(ImageEncoder(shape, 4, layer), ImageDecoder(128, shape, 4, layer))
    net[0].normalizer.loc.zero_()  # type: ignore[union-attr]
    images, found = torch.randint(256, (5, 16 * 16 * 3), dtype=torch.uint8), []
    for precision in ("float32", "bfloat16"):
        net.zero_grad()
        with products_in(precision, "cpu"):
            y = net(images)
        assert y.dtype == torch.float32
        y.square().sum().backward()
        found.append((y.detach(), flat(net)))
    assert not torch.equal(found[0][0], found[1][0])
    for full, rough in zip(*found, strict=True):
        assert F.cosine_similarity(full.flatten(), rough.flatten(), 0) > 0.999


def test_images_are_normed_in_float32() -> None:
    norm, x = ChannelNorm(2), torch.randn(3, 2, 8, 8).bfloat16()
    torch.testing.assert_close(norm(x), norm(x.float()))


def test_closed_forms_are_not_rounded(build: Build) -> None:
    """What is given is float32; a matrix product of bfloat16 would be off in the third digit."""
    torch.manual_seed(0)
    mixture, weights, control = KalmanMixture(3, 4, 2, 2), torch.rand(5, 3).softmax(-1), torch.randn(5, 2)
    state = Moments(torch.randn(5, 4), torch.eye(4).expand(5, 4, 4))
    twohot = TwoHot()
    logits, latent = torch.randn(5, twohot.parameters_size), FullGaussian(3)
    dvbf = build("dvbf filter").dynamics
    begun = dvbf.Context(torch.randn(5, 4), torch.rand(5, 2).softmax(-1), torch.ones(5, 1))
    params, rows = latent.pack(torch.randn(5, 3), torch.eye(3).expand(5, 3, 3) + 0.3), torch.randn(3, 5, 4)

    never = torch.zeros(5, 1, dtype=torch.bool)

    def twice(moments: Moments) -> Moments:
        return Moments(*(torch.stack([each, each], 1) for each in moments))

    def everything() -> list[Tensor]:
        torch.manual_seed(1)
        ahead = mixture.predict(weights, state, control)
        seen = mixture.update(weights, ahead, torch.ones(5, 2))
        expected = mixture.emit(weights, seen)
        drawn = [latent.sample(params), twohot.mean(logits), twohot.sample(logits)]
        after = mixture.smooth(
            weights[:, None].expand(5, 2, 3), twice(seen), Moments(*(x[:, None] for x in ahead)), never
        )
        moved = [mixture(weights, state.mean, control), dvbf.with_latent(begun, torch.ones(5, 4)).latent]
        return [*ahead, *seen, *after, *expected, *moved, *drawn, redundancy(rows, rows.flip(0), torch.ones(3, 5), 0.1)]

    plain = everything()
    with half():
        within = everything()
    assert all(torch.equal(a, b) for a, b in zip(plain, within, strict=True))


def test_exact_ends_where_the_function_does() -> None:
    left, right = torch.randn(2, 3, 3)
    with half():
        assert exact(torch.mm)(left, right).dtype == torch.float32
        assert torch.mm(left, right).dtype == torch.bfloat16
    assert torch.equal(exact(torch.mm)(left, right), left @ right)


def test_nor_are_their_gradients_where_they_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiler(function, backend="aot_eager"))
    monkeypatch.setattr(compiling, "MADE", {})
    torch.compiler.reset()
    function = compiling._compiled(exact(torch.mm), "cpu")
    left, right = torch.randn(2, 8, 8)
    weight, other = left.clone().requires_grad_(), left.clone().requires_grad_()
    with half():
        y = function(weight, right)
    (y * right).sum().backward()
    (torch.mm(other, right) * right).sum().backward()
    torch.testing.assert_close(weight.grad, other.grad)


def test_the_memory_of_a_plain_cell_is_not_rounded() -> None:
    cell, x, h = PlainGRUCell(4, 4), torch.randn(3, 4), torch.randn(3, 4)
    expected = cell(x, h)
    with half():
        assert torch.equal(cell(x, h), expected)


def test_gradients_of_many_steps_are_not_added_in_bfloat16() -> None:
    torch.manual_seed(0)
    cell, inputs = GRUCell(32, 32), torch.randn(64, 8, 32)

    def gradient(context: object) -> Tensor:
        cell.zero_grad()
        h, total = torch.zeros(8, 32), torch.zeros(())
        with context:  # type: ignore[attr-defined]
            for x in inputs:
                h = cell(x, h)
                total = total + h.square().sum()
        total.backward()
        return flat(cell)

    full = gradient(products_in("float32", "cpu"))
    error, kept = ((gradient(context) - full).norm() for context in (products_in("bfloat16", "cpu"), half()))
    assert 0 < error < 0.8 * kept


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_learner_forms_products_so_and_keeps_its_weights(precision: Precision) -> None:
    layer, found = nn.Linear(3, 2), []

    def loss(x: Tensor) -> tuple[Tensor, None]:
        y = layer(x)
        found.append(y.dtype)
        return y.float().square().sum(), None

    learner = Learner(loss, layer.parameters(), LearnerConfig(precision=precision))
    learner.update(torch.ones(4, 3))
    assert found == [getattr(torch, precision)]
    state = learner.optimizer.state[layer.weight]
    assert {layer.weight.dtype, layer.weight.grad.dtype, state["exp_avg"].dtype} == {torch.float32}  # type: ignore[union-attr]
    assert not torch.is_autocast_enabled("cpu")


def test_another_precision_is_refused() -> None:
    with pytest.raises(ValueError, match=r"precision is one of float32, bfloat16: 'float16'"):
        LearnerConfig(precision="float16")  # type: ignore[arg-type]
