"""The encoder of observations, and the heads that emit vectors and discrete variables."""

from itertools import accumulate
from typing import cast

import torch
from torch import Tensor, nn

from worldmodel.networks.images import ImageEncoder
from worldmodel.networks.layers import MLP, LayerConfig
from worldmodel.networks.outputs import Normalizer, Output, symlog
from worldmodel.specs import ObservationSpec, ObservationSpecs


def entrance(spec: ObservationSpec, layer: LayerConfig, vector_input: str, image_depth: int) -> tuple[nn.Module, int]:
    """What an encoder does to the values of one key before anything else, and how many numbers it makes of them."""
    if spec.image:
        images = ImageEncoder(spec.shape, image_depth, layer)
        return images, images.size
    if spec.binary:
        return Binary(), spec.width
    if spec.classes:
        return nn.Identity(), sum(spec.classes)
    return Symlog() if vector_input == "symlog" else Normalizer(spec.width), spec.width


def codes(index: Tensor, classes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Indices (..., G) of variables with so many classes -> their one-hot codes, concatenated (..., sum of classes)."""
    ends = list(accumulate(classes))
    first = torch.tensor([0, *ends[:-1]], device=index.device)
    empty = torch.zeros(*index.shape[:-1], ends[-1], device=index.device, dtype=dtype)
    return empty.scatter(-1, index + first, 1.0)


class Symlog(nn.Module):
    """See :func:`worldmodel.networks.outputs.symlog`: large values of any unit, with none to be measured
    (DreamerV3)."""

    def forward(self, x: Tensor) -> Tensor:
        return symlog(x)


class Binary(nn.Module):
    """0 and 1, recorded as indices or drawn as numbers -> -1 and 1, so that "off" is not silence."""

    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * x - 1.0


class Encoder(nn.Module):
    """{key: (..., width)} -> embedding (..., E): standardised vectors, discrete codes and images through an MLP.

    Images have been through convolutions then. A binary variable is its own code; one of more classes is given by its
    index, or already as a one-hot code.

    The norm after the first layer, where there is one, bounds what an outlier can do.

    Args:
        beside: whether what convolutions make of images goes past the perceptron, which is of vectors alone.
    """

    mlp: MLP | None  # none where images are all there is, and go past it

    def __init__(
        self,
        specs: ObservationSpecs,
        hidden: int,
        layers: int,
        layer: LayerConfig | None = None,
        vector_input: str = "standardised",
        image_depth: int = 16,
        beside: bool = False,
    ) -> None:
        super().__init__()
        self.keys = list(specs)
        self.classes = [() if spec.binary else spec.classes for spec in specs.values()]
        coded = [sum(classes) for classes in self.classes]  # width of their one-hot codes
        self.accepted = [(spec.width, code or spec.width) for spec, code in zip(specs.values(), coded, strict=True)]
        given = (layer or LayerConfig(), vector_input, image_depth)
        entrances, self.widths = zip(*(entrance(spec, *given) for spec in specs.values()), strict=True)
        self.entrances = nn.ModuleList(entrances)
        self.passing = self.images if beside else []  # by their places
        self.entering = [place for place in range(len(self.keys)) if place not in self.passing]
        entering = sum(self.widths[place] for place in self.entering)
        self.mlp = MLP(entering, hidden, layers, layer=layer) if self.entering else None
        self.size = (hidden if self.entering else 0) + sum(self.widths[place] for place in self.passing)

    @torch.no_grad()
    def fit(self, obs: dict[str, Tensor], mask: Tensor, keep: bool = False) -> None:
        """Take the units of every vector and image that is among recorded observations (B, T, width).

        With `keep` the first layer is rescaled so that every observation has the embedding it had.
        """
        begins = 0
        for place, (key, module) in enumerate(zip(self.keys, self.entrances, strict=True)):
            width = self.widths[place] if place in self.entering else 0
            if key in obs and isinstance(module, ImageEncoder):
                module.normalizer.fit(obs[key], mask)
            elif key in obs and isinstance(module, Normalizer):
                ratio, shift = module.fit(obs[key], mask)
                if keep:
                    first = cast(nn.Linear, cast(MLP, self.mlp)[0])
                    weight = first.weight[:, begins : begins + width]
                    first.bias.add_(weight @ shift)
                    weight.mul_(ratio)
            begins += width

    def entered(self, obs: dict[str, Tensor]) -> list[Tensor]:
        """{key: (..., width)} -> of each key (..., W_k), what `forward` gives the perceptron.

        Raises:
            ValueError: if a key is missing, or has another width than its spec says.
        """
        parts = []
        for key, classes, widths, module in zip(self.keys, self.classes, self.accepted, self.entrances, strict=True):
            if key not in obs:
                raise ValueError(f"observation '{key}' is missing, there are {sorted(obs)}")
            if obs[key].shape[-1] not in widths:
                raise ValueError(f"observation '{key}' is {widths[0]} numbers wide, got {tuple(obs[key].shape)}")
            value = module(obs[key])
            if classes and not value.is_floating_point():
                value = codes(value, classes, cast(nn.Linear, cast(MLP, self.mlp)[0]).weight.dtype)
            parts.append(value)
        return parts

    def embed(self, parts: list[Tensor]) -> Tensor:
        """What :meth:`entered` gives -> (..., E)."""
        passing = [parts[place] for place in self.passing]
        if self.mlp is None:
            return torch.cat(passing, -1)
        embedding = self.mlp(torch.cat([parts[place] for place in self.entering], -1))
        return torch.cat([embedding, *passing], -1) if passing else embedding

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        return self.embed(self.entered(obs))

    @property
    def images(self) -> list[int]:
        """Which of the keys are images, by their places."""
        return [place for place, module in enumerate(self.entrances) if isinstance(module, ImageEncoder)]


class Head(nn.Module):
    """An emission of the latent state: a network whose result an :class:`Output` reads as a distribution.

    Args:
        net: (..., F) -> (..., P).
    """

    def __init__(self, net: nn.Module, output: Output) -> None:
        super().__init__()
        self.net, self.output = net, output

    @staticmethod
    def of_vectors(
        inputs: int,
        hidden: int,
        layers: int,
        output: Output,
        output_scale: float = 1.0,
        layer: LayerConfig | None = None,
    ) -> "Head":
        """With a multi-layer perceptron."""
        return Head(MLP(inputs, hidden, layers, output.parameters_size, output_scale, layer, output.linear), output)

    def forward(self, feature: Tensor) -> Tensor:
        return self.net(feature)

    @property
    def last(self) -> nn.Linear:
        """The layer of a perceptron that gives the output's parameters."""
        return cast(nn.Linear, cast(MLP, self.net)[-1])

    def fit(self, value: Tensor, mask: Tensor, keep: bool = False) -> None:
        """Take the output's units from recorded values (..., width); with `keep` its predictions stay."""
        self.output.fit(value, mask, self.last if keep and isinstance(self.net, MLP) else None)

    def log_prob(self, feature: Tensor, value: Tensor) -> Tensor:
        """(..., F), (..., width) -> (...)."""
        return self.output.log_prob(self.net(feature), value)

    def sample(self, feature: Tensor) -> Tensor:
        """(..., F) -> a draw as an encoder takes it; see :class:`worldmodel.networks.outputs.Output`."""
        return self.output.sample(self.net(feature))

    def mean(self, feature: Tensor) -> Tensor:
        """(..., F) -> (..., width)."""
        return self.output.mean(self.net(feature))
