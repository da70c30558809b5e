"""Convolutions of 4 x 4 pixels that halve an image, and their transposes that double one.

On a CPU a transposed convolution to few channels runs at a tenth of what the processor can. Every pixel of the doubled
image is a sum over 2 x 2 pixels of the small one, by one of four kernels, as its row and column are even or odd:

    y[2 i + a, 2 j + b] = sum_{d, e = 0, 1} K_ab[d, e] x[i + a - 1 + d, j + b - 1 + e]

so that one plain convolution of 2 x 2, of four times the channels, has all of it, and a copy brings pairs of pixels to
their places (Shi et al. 2016, "Is the deconvolution layer the same as a convolutional layer?"). The gradient of a
convolution that halves is the same sum. Where images are small, and elsewhere than on a CPU, torch's own are taken for
both.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST = 16  # pixels a side of the small image from which `doubled` is faster

ROWS = torch.tensor([[3, 1], [2, 0]])
"""[a, d]: which row of the 4 x 4 kernel."""
COLUMNS = ROWS.flip(0)
"""[b, e]: which column. Odd ones come first: with the even one to its right that is a pair that y has side by side."""

STRIDE, PADDING, DILATION = [2, 2], [1, 1], [1, 1]


@torch.library.custom_op("worldmodel::doubled", mutates_args=())
def doubled(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(N, C, H, W), (C, D, 4, 4), (D,) -> (N, D, 2 H, 2 W): `conv_transpose2d` with a stride of 2 and a padding of 1.

    To a compiler it is one operator: what it would make of the copy divides indices for every number.
    """
    count, _, height, width = x.shape
    channels = weight.shape[1]
    kernels = weight[:, :, ROWS][:, :, :, :, COLUMNS].permute(2, 4, 1, 0, 3, 5)  # (a, b, D, C, d, e)
    kernels = kernels.reshape(4 * channels, -1, 2, 2).contiguous(memory_format=torch.channels_last)
    every = F.conv2d(x, kernels, bias.repeat(4), padding=1).movedim(1, -1)
    every = every.contiguous().view(count, height + 1, width + 1, 2, 2 * channels)
    y = every.new_empty(count, height, 2, 2 * width, channels)
    pairs = y[..., 1:-1, :].unflatten(3, (width - 1, 2)).flatten(4)
    for a in (0, 1):
        rows = every[:, a : a + height, :, a]
        y[:, :, a, 0], y[:, :, a, -1] = rows[:, :, 0, channels:], rows[:, :, -1, :channels]
        pairs[:, :, a] = rows[:, :, 1:-1]
    return y.flatten(1, 2).movedim(-1, 1)


@doubled.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    count, _, height, width = x.shape
    return x.new_empty(count, 2 * height, 2 * width, weight.shape[1]).movedim(-1, 1)


def of_weights(small: Tensor, large: Tensor, weight: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
    """The gradients of a kernel between images (N, D, H, W) and (N, C, 2 H, 2 W), and of D biases if they are wanted.

    One is an image and the other a gradient, whichever: the sum is the same. What torch has for transposed
    convolutions takes twice as long on a CPU as what it has for plain ones.
    """
    of, wanted = torch.ops.aten.convolution_backward, [False, True, bias]
    return of(small, large, weight, [len(weight)], STRIDE, PADDING, DILATION, False, [0, 0], 1, wanted)[1:]


class _Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, 2, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        of_x = doubled(gradient, weight, weight.new_zeros(weight.shape[1]))
        return of_x, *of_weights(gradient, x, weight, bias=True)


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return doubled(x, weight, bias) if min(x.shape[-2:]) >= LEAST else F.conv_transpose2d(x, weight, bias, 2, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        of_weight, _ = of_weights(x, gradient, weight, bias=False)
        of_bias = gradient.movedim(1, -1).flatten(1, 2).sum(1).sum(0)  # image by image, which is faster
        return F.conv2d(gradient, weight, None, 2, 1), of_weight, of_bias


def ours(x: Tensor) -> bool:
    """Whether the gradients above are taken: of a batch of images on a CPU, in the precision of the weights."""
    return x.device.type == "cpu" and x.dim() == 4 and not torch.is_autocast_enabled("cpu")


class Halving(nn.Conv2d):
    """(N, C, 2 H, 2 W) -> (N, D, H, W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        if not ours(x) or not x.requires_grad or min(x.shape[-2:]) < 2 * LEAST:
            return super().forward(x)
        assert self.bias is not None
        return _Halved.apply(x, self.weight, self.bias)


class Doubling(nn.ConvTranspose2d):
    """(N, C, H, W) -> (N, D, 2 H, 2 W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 4, 2, 1)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if not ours(x):
            return super().forward(x)
        assert self.bias is not None
        return _Doubled.apply(x, self.weight, self.bias)
