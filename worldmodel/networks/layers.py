"""Hidden layers: the norms and activations of the papers, multi-layer perceptrons, and the posterior's network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """In the precision of its own weights, also where autocast makes products in another: as GPUs have it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class RMSNorm(nn.RMSNorm):
    """x / rms(x) times a learned scale (Zhang and Sennrich 2019), eps as in DreamerV3; precision as LayerNorm."""

    def __init__(self, size: int) -> None:
        super().__init__(size, eps=1e-4)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


NORMS: dict[str, Callable[[int], nn.Module] | None] = {"layer": LayerNorm, "rms": RMSNorm, "none": None}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"silu": nn.SiLU, "elu": nn.ELU, "relu": nn.ReLU}


@dataclass
class LayerConfig:
    """What follows the linear map of a hidden layer."""

    norm: Literal["layer", "rms", "none"] = "layer"  # DreamerV3: rms; PlaNet, Dreamer V1 and V2: none
    activation: Literal["silu", "elu", "relu"] = "silu"  # DreamerV3: silu, V1 and V2: elu, PlaNet: relu

    def __post_init__(self) -> None:
        if self.norm not in NORMS or self.activation not in ACTIVATIONS:
            raise ValueError(
                f"norm is one of {', '.join(NORMS)} and activation of {', '.join(ACTIVATIONS)}: "
                f"'{self.norm}', '{self.activation}'"
            )

    def after(self, width: int) -> list[nn.Module]:
        """The modules behind a linear map to that many units."""
        norm = NORMS[self.norm]
        return [*([] if norm is None else [norm(width)]), ACTIVATIONS[self.activation]()]


ROW = 16
"""Numbers of 4 bytes in 64, where a row of a matrix begins best."""
UNLIKELY = -1e30  # a logit whose class has no share in any softmax, and with which 0 times its logarithm is still 0


class Logits(nn.Linear):
    """A linear map to the logits of many classes, (..., inputs) -> (..., at least `outputs`).

    Computed for a multiple of 16, of which those that are added are `UNLIKELY`: a product whose rows begin anywhere, as
    255 wide ones do, takes twice as long on a CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        more = -self.out_features % ROW
        # Not padded: a compiler would do that again for every row.
        bias = torch.cat([self.bias, self.bias.new_full((more,), UNLIKELY)])
        return F.linear(x, F.pad(self.weight, (0, 0, 0, more)), bias)


class MLP(nn.Sequential):
    """`layers` times (Linear, norm, activation), then a Linear to `outputs`: (..., inputs) -> (..., outputs).

    The biases stand before the norms because a norm forgets the length of its input: without them an observation and
    its double would look the same. With `outputs=None` the last hidden layer is the result. `output_scale` shrinks
    the initial last layer; 0 makes the first prediction of every input the same (DreamerV3 starts reward and value
    there). `kind`: the class of that layer. The result has the precision of the weights, whatever autocast's products.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        layers: int,
        outputs: int | None = None,
        output_scale: float = 1.0,
        layer: LayerConfig | None = None,
        kind: type[nn.Linear] = nn.Linear,
    ) -> None:
        layer, modules = layer or LayerConfig(), list[nn.Module]()
        for width in [inputs] + [hidden] * (layers - 1) if layers else []:
            modules += [nn.Linear(width, hidden), *layer.after(hidden)]
        if outputs is not None:
            last = kind(hidden if layers else inputs, outputs)
            with torch.no_grad():
                last.weight.mul_(output_scale)
                last.bias.zero_()
            modules.append(last)
        super().__init__(*modules)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(cast(nn.Linear, self[0]).weight.dtype)


class PosteriorNet(nn.Module):
    """context (..., C), evidence -> parameters (..., outputs), through one hidden layer.

    The first layer is split in two, so that the evidence's share of it is one product for all t, outside the loop.
    """

    def __init__(
        self, context: int, evidence: int, hidden: int, outputs: int, layer: LayerConfig | None = None
    ) -> None:
        super().__init__()
        self.of_evidence = nn.Linear(evidence, hidden)
        self.of_context = nn.Linear(context, hidden, bias=False)
        self.out = nn.Sequential(*(layer or LayerConfig()).after(hidden), nn.Linear(hidden, outputs))

    def share(self, evidence: Tensor) -> Tensor:
        """(..., evidence) -> (..., hidden): what `forward` takes."""
        return self.of_evidence(evidence)

    def forward(self, context: Tensor, share: Tensor) -> Tensor:
        return cast(Tensor, self.out(self.of_context(context) + share)).to(self.of_context.weight.dtype)
