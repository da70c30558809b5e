"""Multi-layer perceptrons, recurrent cells, and the encoder of vector and discrete observations."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.outputs import Output, Standardise
from worldmodel.spaces import ObservationSpec, ObservationSpecs


class LayerNorm(nn.LayerNorm):
    """In the precision of its own weights, also where autocast makes products in another: as GPUs have it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class MLP(nn.Sequential):
    """`layers` times (Linear, LayerNorm, SiLU), then a Linear to `outputs`: (..., inputs) -> (..., outputs).

    The biases stand before the norms because a norm forgets the length of its input: without them an observation and
    its double would look the same. With `outputs=None` the last hidden layer is the result. `output_scale` shrinks
    the initial last layer; 0 makes the first prediction of every input the same (DreamerV3 starts reward and value
    there).
    """

    def __init__(
        self, inputs: int, hidden: int, layers: int, outputs: int | None = None, output_scale: float = 1.0
    ) -> None:
        modules: list[nn.Module] = []
        for width in [inputs] + [hidden] * (layers - 1) if layers else []:
            modules += [nn.Linear(width, hidden), LayerNorm(hidden), nn.SiLU()]
        if outputs is not None:
            last = nn.Linear(hidden if layers else inputs, outputs)
            with torch.no_grad():
                last.weight.mul_(output_scale)
                last.bias.zero_()
            modules.append(last)
        super().__init__(*modules)


class GRUCell(nn.Module):
    """Gated recurrent unit with layer norm on its gates, as in the Dreamer line (Hafner et al. 2020).

    reset = sigmoid(r), candidate = tanh(reset * c), update = sigmoid(u - 1), h' = update c + (1 - update) h, where
    [r, c, u] = LayerNorm(W x + V h + b). The update gate starts near closed, so that memory is the default.
    """

    def __init__(self, inputs: int, size: int) -> None:
        super().__init__()
        self.of_input = nn.Linear(inputs, 3 * size)
        self.of_memory = nn.Linear(size, 3 * size, bias=False)
        self.norm = LayerNorm(3 * size)
        bound = (inputs + size) ** -0.5  # that of one layer over both
        for parameter in (self.of_input.weight, self.of_input.bias, self.of_memory.weight):
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.step(self.of_input(x), h)

    def step(self, drive: Tensor, h: Tensor) -> Tensor:
        """h' from `of_input(x)`, which can be computed for all t at once where x is known."""
        gates = torch.addmm(drive.flatten(0, -2), h.flatten(0, -2), self.of_memory.weight.mT).view_as(drive)
        reset, candidate, update = self.norm(gates).chunk(3, -1)
        candidate = 2 * (2 * reset.sigmoid() * candidate).sigmoid() - 1  # tanh, five times as fast on a CPU
        return torch.lerp(h, candidate, (update - 1).sigmoid())


class PosteriorNet(nn.Module):
    """context (..., C), evidence -> parameters (..., outputs), through one hidden layer.

    The first layer is split in two, so that the evidence's share of it is one product for all t, outside the loop.
    """

    def __init__(self, context: int, evidence: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.of_evidence = nn.Linear(evidence, hidden)
        self.of_context = nn.Linear(context, hidden, bias=False)
        self.out = nn.Sequential(LayerNorm(hidden), nn.SiLU(), nn.Linear(hidden, outputs))

    def share(self, evidence: Tensor) -> Tensor:
        """(..., evidence) -> (..., hidden): what `forward` takes."""
        return self.of_evidence(evidence)

    def forward(self, context: Tensor, share: Tensor) -> Tensor:
        return self.out(self.of_context(context) + share)


def units_of(spec: ObservationSpec) -> nn.Module:
    """What an encoder does to the values of one key before anything else."""
    if spec.binary:
        return Binary()
    return nn.Identity() if spec.classes else Standardise(spec.width)


class Binary(nn.Module):
    """0 and 1, recorded as indices or drawn as numbers -> -1 and 1, so that "off" is not silence."""

    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * x - 1.0


class Encoder(nn.Module):
    """{key: (..., width)} -> embedding (..., E): standardised vectors and discrete codes through an MLP.

    A binary variable is its own code; one of more classes is given by its index, or already as a one-hot code.

    The norm after the first layer bounds what an outlier can do.
    """

    def __init__(self, specs: ObservationSpecs, hidden: int, layers: int) -> None:
        super().__init__()
        self.keys, self.size = list(specs), hidden
        self.classes = [() if spec.binary else spec.classes for spec in specs.values()]
        self.units = nn.ModuleList(units_of(spec) for spec in specs.values())
        self.widths = [spec.width if spec.binary else sum(spec.classes) or spec.width for spec in specs.values()]
        self.mlp = MLP(sum(self.widths), hidden, layers)

    @torch.no_grad()
    def fit(self, obs: dict[str, Tensor], mask: Tensor, keep: bool = False, complete: bool = False) -> None:
        """Take the units of every vector key from recorded observations (B, T, width).

        With `keep` the first layer is rescaled so that every observation has the embedding it had. `complete`: nothing
        will be recorded after these.
        """
        first = cast(nn.Linear, self.mlp[0])
        for key, units, weight in zip(self.keys, self.units, first.weight.split(self.widths, 1), strict=True):
            if isinstance(units, Standardise):
                ratio, shift = units.fit(obs[key], mask, complete)
                if keep:
                    first.bias.add_(weight @ shift)
                    weight.mul_(ratio)

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        parts = []
        for key, classes, units in zip(self.keys, self.classes, self.units, strict=True):
            value = units(obs[key])
            if classes and not value.is_floating_point():
                parts += [F.one_hot(value[..., i], n).float() for i, n in enumerate(classes)]
            else:
                parts.append(value)
        return self.mlp(torch.cat(parts, -1))


class Head(nn.Module):
    """An emission of the latent state: an MLP whose last layer an :class:`Output` reads as a distribution."""

    def __init__(self, inputs: int, hidden: int, layers: int, output: Output, output_scale: float = 1.0) -> None:
        super().__init__()
        self.mlp = MLP(inputs, hidden, layers, output.parameters_size, output_scale)
        self.output = output

    def forward(self, feature: Tensor) -> Tensor:
        return self.mlp(feature)

    @property
    def last(self) -> nn.Linear:
        """The layer that gives the output's parameters."""
        return cast(nn.Linear, self.mlp[-1])

    def fit(self, value: Tensor, mask: Tensor, keep: bool = False, complete: bool = False) -> None:
        """Take the output's units from recorded values (..., width); with `keep` its predictions stay."""
        self.output.fit(value, mask, self.last if keep else None, complete)

    def log_prob(self, feature: Tensor, value: Tensor) -> Tensor:
        """(..., F), (..., width) -> (...)."""
        return self.output.log_prob(self.mlp(feature), value)

    def sample(self, feature: Tensor) -> Tensor:
        """(..., F) -> a draw as an encoder takes it; see :class:`worldmodel.outputs.Output`."""
        return self.output.sample(self.mlp(feature))

    def mean(self, feature: Tensor) -> Tensor:
        """(..., F) -> (..., width)."""
        return self.output.mean(self.mlp(feature))
