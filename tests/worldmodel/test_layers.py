"""Hidden layers against their formulas, and what a config of them may not be."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.networks.encoder import Encoder
from worldmodel.networks.layers import MLP, LayerConfig, Logits, PosteriorNet
from worldmodel.specs import ObservationSpec

NORMED = {
    "none": lambda x: x,
    "layer": lambda x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt(),
    "rms": lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-4).sqrt(),
}
ACTIVE = {"silu": F.silu, "elu": F.elu, "relu": F.relu}


@pytest.mark.parametrize("norm", NORMED)
@pytest.mark.parametrize("activation", ACTIVE)
def test_a_hidden_layer_is_linear_then_norm_then_activation(norm: str, activation: str) -> None:
    torch.manual_seed(0)
    layer = LayerConfig(norm, activation)  # type: ignore[arg-type]
    x, share = torch.randn(5, 3), torch.randn(5, 8)

    def hidden(y: Tensor) -> Tensor:
        return ACTIVE[activation](NORMED[norm](y))

    mlp = MLP(3, 8, 2, 4, layer=layer)
    first, second, last = (module for module in mlp if isinstance(module, nn.Linear))
    torch.testing.assert_close(mlp(x), last(hidden(second(hidden(first(x))))))
    posterior = PosteriorNet(3, 6, 8, 4, layer)
    last = posterior.out[-1]
    torch.testing.assert_close(posterior(x, share), last(hidden(posterior.of_context(x) + share)))


@pytest.mark.parametrize("wrong", [{"norm": "batch"}, {"activation": "tanh"}])
def test_a_layer_names_what_it_does_not_know(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=f"'{next(iter(wrong.values()))}'"):
        LayerConfig(**wrong)  # type: ignore[arg-type]


def test_symlog_inputs_need_no_units() -> None:
    encoder = Encoder({"x": ObservationSpec((1,))}, 4, 1, vector_input="symlog")
    x = torch.tensor([[0.0], [9.0], [-99.0]])
    before = encoder({"x": x})
    encoder.fit({"x": x}, torch.ones(3))
    torch.testing.assert_close(encoder({"x": x}), before)
    torch.testing.assert_close(before, encoder.mlp(torch.tensor([[0.0], [2.302585], [-4.605170]])))


@pytest.mark.parametrize("classes", [5, 16, 255])
def test_logits_of_many_classes_are_a_linear_map_and_classes_that_cannot_be(classes: int) -> None:
    torch.manual_seed(0)
    logits, x = Logits(7, classes), torch.randn(3, 2, 7)
    found = logits(x)
    assert found.shape[-1] % 16 == 0
    torch.testing.assert_close(found[..., :classes], F.linear(x, logits.weight, logits.bias))
    assert (found.softmax(-1)[..., classes:] == 0).all()
    found.log_softmax(-1)[..., 0].sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in logits.parameters())


def test_convolved_images_go_past_the_perceptron_where_they_stand_beside_vectors() -> None:
    """As in PlaNet and Dreamer V1 to V3: what enters is the perceptron of vectors, then each image's convolutions."""
    specs = {
        "image": ObservationSpec((8, 8, 1), image=True),
        "x": ObservationSpec((2,)),
        "k": ObservationSpec((), (3,), (0,)),
    }
    encoder = Encoder(specs, 6, 2, image_depth=2, beside=True)
    obs = {"image": torch.randint(256, (5, 64)), "x": torch.randn(5, 2), "k": torch.randint(3, (5, 1))}
    encoder.fit(obs, torch.ones(5))
    images, vectors, codes = encoder.entered(obs)
    assert encoder.size == 6 + images.shape[-1] and encoder.mlp is not None
    expected = torch.cat([encoder.mlp(torch.cat([vectors, codes], -1)), images], -1)
    torch.testing.assert_close(encoder(obs), expected)
    encoder.fit(obs | {"x": 3 * obs["x"] + 1}, torch.ones(5), keep=True)  # new units, what was learned stays
    torch.testing.assert_close(encoder(obs), expected)
    alone = Encoder({"image": specs["image"]}, 6, 2, image_depth=2, beside=True)
    assert alone.size == images.shape[-1] and not [name for name, _ in alone.named_parameters() if "mlp" in name]
    torch.testing.assert_close(alone(obs), alone.entered(obs)[0])
