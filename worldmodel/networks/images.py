"""Images as observations: a convolutional encoder, its mirror, and p(x_t | z_t) over pixels.

To a model an image is numbers in [0, 1]. It is recorded and carried as uint8, (..., H W C) with the channels last, and
becomes a float where it enters a network, once per update.
"""

import math

import torch
from torch import Tensor, nn

from worldmodel.kernels.channel_norm import channel_norm
from worldmodel.kernels.convolutions import Doubling, Halving
from worldmodel.networks.latents import LOG_2PI
from worldmodel.networks.layers import LayerConfig
from worldmodel.networks.outputs import Output

SMALLEST = 6  # pixels a side that are not halved any further: 32, 64 and 128 end at 4, 96 at 6
LARGEST = 255.0
ENOUGH = 2000  # pictures to take units from
SAME = 1e-3  # of white: pictures that differ by less are all the same


def pixels(image: Tensor) -> Tensor:
    """A recorded image, uint8, or an imagined one, in [0, 1] already -> [0, 1]."""
    return image if image.is_floating_point() else image.float() / LARGEST


class ImageNormalizer(nn.Module):
    """(..., W) -> (x - loc) / scale: the mean picture, and one scale, the root mean square of what differs from it.

    What stands still in every picture is gone then, and what moves is all that the networks see and have to say.
    Without this a small object on a large background is not found in thousands of updates; with it, in a hundred.

    They are taken from the first records and stay: no pixel can leave [0, 1], however far the world is explored.
    """

    loc: Tensor
    scale: Tensor
    taken: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("loc", torch.full((width,), 0.5))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("taken", torch.tensor(False))

    @torch.no_grad()
    def fit(self, value: Tensor, mask: Tensor) -> None:
        """Take them from recorded images (..., W) where mask (...) is set, unless they have been taken before.

        Raises:
            ValueError: if the mask leaves nothing to take them from.
        """
        if bool(self.taken):
            return
        rows = value[mask > 0]
        if not len(rows):
            raise ValueError("no recorded picture to take units from: record some first")
        rows = pixels(rows[:: max(len(rows) // ENOUGH, 1)])
        spread = rows.var(0, correction=0).mean().sqrt()
        self.loc.copy_(rows.mean(0))
        self.scale.copy_(torch.where(spread > SAME, spread, torch.ones_like(spread)))
        self.taken.fill_(True)

    def forward(self, image: Tensor) -> Tensor:
        return (pixels(image) - self.loc) / self.scale

    def inverse(self, x: Tensor) -> Tensor:
        return x * self.scale + self.loc


def stages(shape: tuple[int, ...]) -> int:
    """How often an image (H, W, C) is halved.

    Raises:
        ValueError: if it cannot be halved down to where the networks end.
    """
    height, width, _ = shape
    count = max(math.ceil(math.log2(min(height, width) / SMALLEST)), 0)
    if not count or height % 2**count or width % 2**count:
        raise ValueError(
            f"an image of {height} x {width} pixels cannot be halved down to 4, 5 or 6: resize it to 32, 64, 96 or 128 "
            "a side (env.image_size), or to another size that is 4, 5 or 6 doubled"
        )
    return count


class ChannelNorm(nn.GroupNorm):
    """Over channels and pixels of one image, with a scale and an offset per channel, in their precision."""

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels)

    def forward(self, x: Tensor) -> Tensor:
        return channel_norm(x.to(self.weight.dtype), self.weight, self.bias, self.eps)


def after(channels: int, layer: LayerConfig) -> list[nn.Module]:
    """What follows a convolution: the activation of other layers, and, where they have a norm, :class:`ChannelNorm`."""
    activation = layer.after(channels)[-1]
    return [activation] if layer.norm == "none" else [ChannelNorm(channels), activation]


class ImageEncoder(nn.Module):
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
            modules += [Halving(channels, wider), *after(wider, layer)]
            channels = wider
        super().__init__()
        self.net = nn.Sequential(*modules)
        self.normalizer = ImageNormalizer(height * width * shape[-1])
        self.shape = shape
        self.size = channels * (height >> stages(shape)) * (width >> stages(shape))

    def forward(self, image: Tensor) -> Tensor:
        batch = image.shape[:-1]
        x = self.normalizer(image).reshape(-1, *self.shape)
        x = x.movedim(-1, 1)  # channels stay last in memory, which is faster on a CPU
        return self.net(x).flatten(1).view(*batch, -1).to(self.normalizer.loc.dtype)


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
            modules += [Doubling(channels, narrower), *after(narrower, layer)]
            channels = narrower
        self.rest = nn.Sequential(*modules, Doubling(channels, shape[-1]))

    def forward(self, feature: Tensor) -> Tensor:
        x = self.first(feature).view(-1, *self.small, self.first.out_features // (self.small[0] * self.small[1]))
        image = self.rest(x.movedim(-1, 1)).movedim(1, -1).reshape(*feature.shape[:-1], -1)
        return image.to(self.first.weight.dtype)


class Pixels(Output):
    """N(mu, sigma^2) for each pixel in [0, 1], both in the image's own units, sigma one number: fixed, or learned.

    To foretell everything that varies in an image of W numbers is then worth W / (2 sigma^2) nats whatever it shows.
    Dreamer's sigma of 1 in units of white, on a pendulum that covers little of its picture, makes that 18 nats, and
    its models see nothing of it. A learned sigma is the optimum sigma^2 = E (x - mu)^2 (Rybkin et al. 2021).

    A sigma that is fixed weighs pictures against everything else and tells nobody's noise: a sample is then the mean.

    Args:
        std: sigma, or where it begins.
    """

    def __init__(self, width: int, std: float = 1.0, learned: bool = False) -> None:
        super().__init__()
        self.width = self.parameters_size = width
        self.normalizer = ImageNormalizer(width)
        log_std, self.learned = torch.tensor(math.log(std)), learned
        if learned:
            self.log_std = nn.Parameter(log_std)
        else:
            self.register_buffer("log_std", log_std)

    def log_prob(self, params: Tensor, value: Tensor) -> Tensor:
        error = ((self.normalizer(value) - params) * torch.exp(-self.log_std)).square().sum(-1)
        return -0.5 * error - self.width * (self.log_std + self.normalizer.scale.log() + 0.5 * LOG_2PI)

    def mean(self, params: Tensor) -> Tensor:
        return self.normalizer.inverse(params)

    def sample(self, params: Tensor) -> Tensor:
        if self.learned:
            params = torch.addcmul(params, torch.randn_like(params), self.log_std.exp())
        return self.normalizer.inverse(params)

    def fit(self, value: Tensor, mask: Tensor, layer: nn.Linear | None = None) -> None:
        """Take the units from recorded images; once: see :class:`ImageNormalizer`."""
        self.normalizer.fit(value, mask)
