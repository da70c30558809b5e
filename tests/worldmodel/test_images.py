"""Convolutions for every size, pixels as a density, and models that see several kinds of things at once."""

import math

import pytest
import torch
from torch import Tensor, nn

from worldmodel.learning.objective import ObjectiveConfig, objective
from worldmodel.model import ModelConfig, WorldModel
from worldmodel.networks.images import ImageDecoder, ImageEncoder, Pixels, pixels, stages
from worldmodel.networks.layers import LayerConfig
from worldmodel.specs import ActionSpec, ObservationSpec
from worldmodel.types import Batch

ACTION = ActionSpec((1,), low=(-1.0,), high=(1.0,))
MIXED = {
    "eye": ObservationSpec((32, 32, 3), image=True),
    "map": ObservationSpec((32, 64, 1), image=True),
    "x": ObservationSpec((2,)),
    "on": ObservationSpec((3,), classes=(2, 2, 2), start=(0, 0, 0)),
    "k": ObservationSpec((2,), classes=(3, 4), start=(0, 0)),
}


def window(specs: dict[str, ObservationSpec], count: int = 2, steps: int = 3) -> Batch:
    def values(spec: ObservationSpec) -> Tensor:
        if spec.image:
            return torch.randint(0, 256, (count, steps, spec.width), dtype=torch.uint8)
        if spec.classes:
            return torch.stack([torch.randint(0, n, (count, steps)) for n in spec.classes], -1)
        return torch.randn(count, steps, spec.width)

    zeros, flags = torch.zeros(count, steps), torch.zeros(count, steps, dtype=torch.bool)
    obs = {key: values(spec) for key, spec in specs.items()}
    return Batch(obs, torch.randn(count, steps, 1), torch.randn(count, steps), flags, flags, flags, zeros + 1)


@pytest.mark.parametrize(
    ("side", "halved", "smallest"), [(16, 2, 4), (32, 3, 4), (48, 3, 6), (64, 4, 4), (96, 4, 6), (128, 5, 4)]
)
@pytest.mark.parametrize("norm", ["layer", "none"])
def test_any_size_goes_in_and_comes_out(side: int, halved: int, smallest: int, norm: str) -> None:
    shape, layer = (side, side, 3), LayerConfig(norm)  # type: ignore[arg-type]
    encoder, decoder = ImageEncoder(shape, 2, layer), ImageDecoder(5, shape, 2, layer)
    assert stages(shape) == halved and encoder.size == 2 * 2 ** (halved - 1) * smallest**2
    image = torch.randint(0, 256, (2, 3, side * side * 3), dtype=torch.uint8)
    assert encoder(image).shape == (2, 3, encoder.size)
    assert decoder(torch.randn(2, 3, 5)).shape == (2, 3, side * side * 3)


@pytest.mark.parametrize("shape", [(30, 30, 3), (64, 50, 3), (100, 100, 1)])
def test_sizes_that_cannot_be_halved_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"{shape[0]} x {shape[1]} pixels cannot be halved.*env.image_size"):
        stages(shape)


def test_pixels_stay_where_they_are() -> None:
    """Rows, columns and channels are not mixed up on the way through convolutions: a pixel moves what is near it."""
    shape = (32, 32, 3)
    encoder = ImageEncoder(shape, 2, LayerConfig("none"))
    blank = torch.zeros(32, 32, 3, dtype=torch.uint8)
    dotted = blank.clone()
    dotted[3, 29, 1] = 255
    change = (encoder(dotted.reshape(1, -1)) - encoder(blank.reshape(1, -1))).view(8, 4, 4).abs().sum(0)
    assert (change > 0).nonzero()[:, 0].max() <= 1 and (change > 0).nonzero()[:, 1].min() >= 2
    decoder = ImageDecoder(4, shape, 2, LayerConfig("none"))
    with torch.no_grad():
        decoder.first.weight.zero_()
        decoder.first.bias.zero_()
        corner = decoder.first.bias.view(4, 4, -1)  # rows, columns, channels of the smallest picture
        corner[0, 3] = 10.0
    lit = decoder(torch.zeros(1, 4)).view(*shape)
    with torch.no_grad():
        corner.zero_()
    moved = (lit - decoder(torch.zeros(1, 4)).view(*shape)).abs().sum(-1) > 0
    assert moved.nonzero()[:, 0].max() < 16 and moved.nonzero()[:, 1].min() >= 16


def test_the_density_of_pixels_is_that_of_a_normal_in_fractions() -> None:
    recorded = torch.randint(0, 256, (4, 6), dtype=torch.uint8)
    params = torch.rand(4, 6)
    for std in (1.0, 0.1):
        expected = torch.distributions.Normal(params + 0.5, std).log_prob(recorded / 255).sum(-1)
        torch.testing.assert_close(Pixels(6, std).log_prob(params, recorded), expected)
        torch.testing.assert_close(Pixels(6, std).log_prob(params, recorded / 255), expected)
    assert torch.equal(Pixels(6).mean(params), params + 0.5)  # before there are units
    drawn = Pixels(6, 0.1, learned=True).sample(params.expand(20_000, 4, 6))
    torch.testing.assert_close(drawn.std(0), torch.full((4, 6), 0.1), rtol=0.05, atol=0)
    weight = Pixels(6, 3.0)  # of the pictures in the objective, and of no picture's noise
    assert torch.equal(weight.sample(params), weight.mean(params))


def test_the_units_of_images_are_the_mean_picture_and_one_scale_and_stay() -> None:
    torch.manual_seed(0)
    recorded = torch.randint(0, 256, (2, 50, 12), dtype=torch.uint8)
    recorded[..., 0] = 255  # never moves
    mask = torch.ones(2, 50)
    mask[1, 40:] = 0
    output, params = Pixels(12, 2.0), torch.randn(5, 12)
    output.fit(recorded, mask)
    rows = recorded[mask > 0] / 255
    loc, scale = rows.mean(0), rows.var(0, correction=0).mean().sqrt()
    value = recorded[0, :5]
    expected = torch.distributions.Normal(loc + scale * params, 2 * scale).log_prob(value / 255).sum(-1)
    torch.testing.assert_close(output.log_prob(params, value), expected)
    torch.testing.assert_close(output.mean(params), loc + scale * params)
    torch.testing.assert_close(output.mean(output.normalizer(value)), value / 255)
    output.fit(recorded // 2, mask)
    torch.testing.assert_close(output.normalizer.loc, loc)
    still = Pixels(12)
    with pytest.raises(ValueError, match="no recorded picture"):
        still.fit(recorded, torch.zeros(2, 50))
    still.fit(torch.full((1, 3, 12), 7, dtype=torch.uint8), torch.ones(1, 3))
    assert float(still.normalizer.scale) == 1


def test_a_learned_sigma_finds_the_size_of_the_error() -> None:
    output = Pixels(50, learned=True)
    optimizer = torch.optim.Adam(output.parameters(), lr=0.05)
    value = torch.rand(400, 50)
    for _ in range(300):
        loss = -output.log_prob(torch.zeros(50), value).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(output.log_std.detach().exp()) == pytest.approx(math.sqrt(1 / 12), rel=0.02)
    assert not list(Pixels(50).parameters())


@pytest.mark.parametrize("dynamics", ["rssm", "vrnn"])
def test_images_vectors_and_classes_at_once(dynamics: str) -> None:
    """Every key is seen and explained; `vrnn` feeds its own pictures back."""
    torch.manual_seed(0)
    config = ModelConfig(hidden=8, image_depth=2)
    config.dynamics.name = dynamics  # type: ignore[assignment]
    model = WorldModel.build(config, MIXED, ACTION)
    batch = window(MIXED)
    model.fit_normalizers(batch)
    loss, inference, elbo, _ = objective(model, batch, ObjectiveConfig())
    assert set(elbo.log_likelihood) == {*MIXED, "reward", "continue"} and loss.isfinite().all()
    loss.mean().backward()
    for key, entrance in zip(model.encoder.keys, model.encoder.entrances, strict=True):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in entrance.parameters()), key
    for key, head in zip(model.keys, model.decoders, strict=True):
        assert all(p.grad is not None for p in head.parameters()), key
    changed = model.observe(batch._replace(obs={**batch.obs, "eye": 255 - batch.obs["eye"]})).posterior
    assert not torch.allclose(changed, inference.posterior)
    state = type(inference.states)(*(field[:, -1] for field in inference.states))
    seen = model.predict(model.feature(model.imagine(state, batch.prev_action[:, 0]))).obs
    assert {key: value.shape[-1] for key, value in seen.items()} == {"eye": 3072, "map": 2048, "x": 2, "on": 3, "k": 7}
    model.fit_normalizers(batch, keep=True)  # an image has no units that could change
    torch.testing.assert_close(
        model.predict(model.feature(state)).obs["eye"], model.predict(model.feature(state)).obs["eye"]
    )


def test_a_picture_is_learned() -> None:
    """Two pictures in turn: after some updates the posterior's decoder shows which is which."""
    torch.manual_seed(0)
    spec = {"eye": ObservationSpec((16, 16, 1), image=True)}
    model = WorldModel.build(ModelConfig(hidden=16, image_depth=4, image_std=1.0), spec, ACTION, heads=False)
    batch = window(spec, 8, 4)
    pair = torch.randint(0, 2, (2, 256), dtype=torch.uint8) * 255
    which = torch.randint(0, 2, (8, 4))
    batch = batch._replace(obs={"eye": pair[which]})
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(150):
        loss = objective(model, batch, ObjectiveConfig()).loss
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    shown = model.predict(model.feature(model.observe(batch).states)).obs["eye"]
    wrong = (shown - pixels(pair[which])).square().mean((-1, -2))
    other = (shown - pixels(pair[1 - which])).square().mean((-1, -2))
    assert wrong.max() < 0.1 < other.min()


def test_norms_are_those_of_the_other_layers() -> None:
    assert any(
        isinstance(module, nn.GroupNorm) for module in ImageEncoder((32, 32, 1), 2, LayerConfig("layer")).modules()
    )
    assert not any(
        isinstance(module, nn.GroupNorm) for module in ImageEncoder((32, 32, 1), 2, LayerConfig("none")).modules()
    )
