"""Recurrent cells: a GRU with layer norm (DreamerV2), and one of blocks (DreamerV3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.kernels.precision import exact
from worldmodel.networks.layers import LayerNorm, RMSNorm


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


class PlainGRUCell(nn.GRUCell):
    """Torch's own, without a norm (PlaNet, Dreamer V1), in the precision of its weights.

    Autocast on a GPU would round its memory at every step.
    """

    @exact
    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        return super().forward(input, hx)


class BlockLinear(nn.Module):
    """`blocks` linear maps side by side, (..., inputs) -> (..., outputs), block-diagonal but for what all of them see.

    Args:
        shared: how many numbers every block is given besides its own part of the inputs.
    Raises:
        ValueError: if the sizes cannot be divided into blocks.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int, shared: int = 0) -> None:
        super().__init__()
        if inputs % blocks or outputs % blocks:
            raise ValueError(f"{inputs} inputs and {outputs} outputs cannot be divided into {blocks} blocks")
        self.blocks, self.sizes = blocks, [inputs // blocks, shared]
        seen = sum(self.sizes)
        self.weight = nn.Parameter(torch.empty(blocks, seen, outputs // blocks).uniform_(-(seen**-0.5), seen**-0.5))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, shared: Tensor | None = None) -> Tensor:
        own, others = self.weight.split(self.sizes, 1)
        parts = x.flatten(0, -2).unflatten(-1, (self.blocks, -1)).transpose(0, 1)  # (blocks, N, inputs / blocks)
        y = torch.baddbmm(self.bias.view(self.blocks, 1, -1), parts, own)
        if shared is not None:  # read where it is: a copy for each block took 6 to 18 % of the cell's time
            y = torch.baddbmm(y, shared.flatten(0, -2).expand(self.blocks, -1, -1), others)
        return y.transpose(0, 1).flatten(1).view(*x.shape[:-1], -1)


class BlockGRU(nn.Module):
    """h' from z, u and h, in blocks (DreamerV3, Hafner et al. 2025, Appendix B).

        x = [silu(norm(W_h h)), silu(norm(W_z z)), silu(norm(W_u u))]      shared by all blocks
        r, c, g = B_2 silu(norm(B_1 [h_block, x]))                         within each block
        h' = sigma(g - 1) tanh(sigma(r) c) + (1 - sigma(g - 1)) h

    A memory of D numbers in 8 blocks has an eighth of the recurrent weights of a GRU of that size. Controls outside of
    [-1, 1] are scaled back to it.

    Args:
        latent: Z. control: A. hidden: of the three inputs. size: D. blocks: that D is divided into.
    """

    def __init__(self, latent: int, control: int, hidden: int, size: int, blocks: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.of_memory, self.of_latent = nn.Linear(size, hidden), nn.Linear(latent, hidden)
        self.of_control = nn.Linear(control, hidden)
        self.norms = nn.ModuleList(RMSNorm(hidden) for _ in range(3))
        self.inner, self.norm = BlockLinear(size, size, blocks, shared=3 * hidden), RMSNorm(size)
        self.gates = BlockLinear(size, 3 * size, blocks)

    def forward(self, z: Tensor, control: Tensor, h: Tensor) -> Tensor:
        control = control / control.abs().clamp(min=1).detach()
        inputs = (self.of_memory(h), self.of_latent(z), self.of_control(control))
        x = torch.cat([F.silu(norm(each)) for norm, each in zip(self.norms, inputs, strict=True)], -1)
        x = self.gates(F.silu(self.norm(self.inner(h, x))))
        reset, candidate, update = (part.flatten(-2) for part in x.unflatten(-1, (self.blocks, -1)).chunk(3, -1))
        candidate = torch.tanh(reset.sigmoid() * candidate).to(h.dtype)
        return torch.lerp(h, candidate, (update - 1).sigmoid().to(h.dtype))
