"""Images as observations: a convolutional encoder, its mirror, and p(x_t | z_t) over pixels.

To a model an image is numbers in [0, 1]. It is recorded and carried as uint8, (..., H W C) with the channels last, and
becomes a float where it enters a network, once per update.
"""

import math

import torch
from torch import Tensor, nn

from worldmodel.distributions import LOG_2PI
from worldmodel.layers import LayerConfig
from worldmodel.outputs import Output

SMALLEST = 6  # pixels a side that are not halved any further: 32, 64 and 128 end at 4, 96 at 6
LARGEST = 255.0


def pixels(image: Tensor) -> Tensor:
    """A recorded image, uint8, or an imagined one, in [0, 1] already -> [0, 1]."""
    return image if image.is_floating_point() else image.float() / LARGEST


def stages(shape: tuple[int, ...]) -> int:
    """How often an image (H, W, C) is halved.

    Raises:
        ValueError: if it cannot be halved down to where the networks end.
    """
    height, width, _ = shape
    count = max(math.ceil(math.log2(min(height, width) / SMALLEST)), 0)
    if not count or height % 2**count or width % 2**count:
        raise ValueError(
            f"an image of {height} x {width} pixels cannot be halved down to {SMALLEST} or fewer: resize it to 32, 64, "
            "96 or 128 a side (env.image_size)"
        )
    return count


class ChannelNorm(nn.GroupNorm):
    """Over channels and pixels of one image, with a scale and an offset per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels)


def after(channels: int, layer: LayerConfig) -> list[nn.Module]:
    """What follows a convolution: the norm of other layers, over channels, and their activation."""
    activation = layer.after(channels)[-1]
    return [activation] if layer.norm == "none" else [ChannelNorm(channels), activation]


class ImageEncoder(nn.Sequential):
    """(..., H W C) -> (..., size): convolutions of 4 x 4 pixels that halve the image while they double the channels.

    Args:
        shape: (H, W, C). depth: channels after the first convolution.
    Raises:
        ValueError: as :func:`stages`.
    """

    def __init__(self, shape: tuple[int, ...], depth: int, layer: LayerConfig) -> None:
        height, width, channels = shape
        modules: list[nn.Module] = []
        for stage in range(stages(shape)):
            wider = depth * 2**stage
            modules += [nn.Conv2d(channels, wider, 4, 2, 1), *after(wider, layer)]
            channels = wider
        super().__init__(*modules)
        self.shape = shape
        self.size = channels * (height >> stages(shape)) * (width >> stages(shape))

    def forward(self, image: Tensor) -> Tensor:
        batch = image.shape[:-1]
        x = pixels(image).reshape(-1, *self.shape).movedim(-1, 1) - 0.5  # channels stay last in memory: faster on a CPU
        return super().forward(x).flatten(1).view(*batch, -1)


class ImageDecoder(nn.Module):
    """(..., F) -> (..., H W C), the mirror of :class:`ImageEncoder`."""

    def __init__(self, inputs: int, shape: tuple[int, ...], depth: int, layer: LayerConfig) -> None:
        super().__init__()
        count = stages(shape)
        self.shape, self.small = shape, (shape[0] >> count, shape[1] >> count)
        channels = depth * 2 ** (count - 1)
        self.first = nn.Linear(inputs, channels * self.small[0] * self.small[1])
        modules: list[nn.Module] = []
        for stage in reversed(range(count - 1)):
            narrower = depth * 2**stage
            modules += [nn.ConvTranspose2d(channels, narrower, 4, 2, 1), *after(narrower, layer)]
            channels = narrower
        self.rest = nn.Sequential(*modules, nn.ConvTranspose2d(channels, shape[-1], 4, 2, 1))

    def forward(self, feature: Tensor) -> Tensor:
        x = self.first(feature).view(-1, *self.small, self.first.out_features // (self.small[0] * self.small[1]))
        return self.rest(x.movedim(-1, 1)).movedim(1, -1).reshape(*feature.shape[:-1], -1) + 0.5


class Pixels(Output):
    """N(mu, sigma^2) for each pixel in [0, 1], sigma one number: fixed, or learned.

    Dreamer has a fixed sigma of 1, with which an image is worth few nats: half of what its pixels vary, squared. A
    learned one is the optimum sigma^2 = E (x - mu)^2 (Rybkin et al. 2021): all that can be foreseen is worth its bits.

    Args:
        std: sigma, or where it begins.
    """

    def __init__(self, width: int, std: float = 1.0, learned: bool = False) -> None:
        super().__init__()
        self.width = self.parameters_size = width
        log_std = torch.tensor(math.log(std))
        if learned:
            self.log_std = nn.Parameter(log_std)
        else:
            self.register_buffer("log_std", log_std)

    def log_prob(self, params: Tensor, value: Tensor) -> Tensor:
        error = ((pixels(value) - params) * torch.exp(-self.log_std)).square().sum(-1)
        return -0.5 * error - self.width * (self.log_std + 0.5 * LOG_2PI)

    def mean(self, params: Tensor) -> Tensor:
        return params

    def sample(self, params: Tensor) -> Tensor:
        return torch.addcmul(params, torch.randn_like(params), self.log_std.exp())
