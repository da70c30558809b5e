"""The block GRU against its formula, block by block, in NumPy."""

import numpy as np
import pytest
import torch
from torch import nn

from worldmodel.networks.recurrent import BlockGRU, BlockLinear


def sigma(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def normed(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-4) * scale


def test_block_linear_is_a_block_diagonal_matrix() -> None:
    torch.manual_seed(0)
    layer, x = BlockLinear(6, 9, 3), torch.randn(2, 5, 6)
    whole = torch.block_diag(*layer.weight)
    nn.init.normal_(layer.bias)
    torch.testing.assert_close(layer(x), x @ whole + layer.bias)
    with pytest.raises(ValueError, match="6 inputs and 8 outputs cannot be divided into 3 blocks"):
        BlockLinear(6, 8, 3)


def test_block_gru_golden_numbers() -> None:
    torch.manual_seed(0)
    core = BlockGRU(latent=4, control=2, hidden=3, size=6, blocks=2).double()
    for parameter in core.parameters():
        nn.init.normal_(parameter, std=0.7)
    z, u, h = (torch.randn(5, size, dtype=torch.float64) for size in (4, 2, 6))
    u[0, 0] = 4.0  # counts as 1
    p = {name: value.detach().numpy() for name, value in core.state_dict().items()}
    zn, un, hn = (value.numpy() for value in (z, u / u.abs().clamp(min=1), h))

    def entered(name: str, k: int, x: np.ndarray) -> np.ndarray:
        y = normed(x @ p[f"{name}.weight"].T + p[f"{name}.bias"], p[f"norms.{k}.weight"])
        return y * sigma(y)

    x = np.concatenate([entered("of_memory", 0, hn), entered("of_latent", 1, zn), entered("of_control", 2, un)], -1)
    inner = [np.concatenate([hn[:, 3 * b : 3 * b + 3], x], -1) @ p["inner.weight"][b] for b in range(2)]
    y = normed(np.concatenate(inner, -1) + p["inner.bias"], p["norm.weight"])
    y = y * sigma(y)
    expected = np.empty_like(hn)
    for b in range(2):
        gates = y[:, 3 * b : 3 * b + 3] @ p["gates.weight"][b] + p["gates.bias"][9 * b : 9 * b + 9]
        reset, candidate, update = np.split(gates, 3, -1)
        share = sigma(update - 1)
        block = hn[:, 3 * b : 3 * b + 3]
        expected[:, 3 * b : 3 * b + 3] = share * np.tanh(sigma(reset) * candidate) + (1 - share) * block
    np.testing.assert_allclose(core(z, u, h).detach().numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("size", "hidden", "classes"), [(512, 64, 4), (2048, 256, 16), (4096, 512, 32)], ids=["1m", "12m", "50m"]
)
def test_block_gru_sizes_are_those_of_the_paper(size: int, hidden: int, classes: int) -> None:
    """Counted from the shapes that the paper's code makes for these sizes, with 32 variables and 6 actions."""
    blocks, latent, control = 8, 32 * classes, 6
    core = BlockGRU(latent, control, hidden, size, blocks)
    entering = sum((width + 1 + 1) * hidden for width in (size, latent, control))  # weights, biases, norms
    per_block = size // blocks
    inner = blocks * (per_block + 3 * hidden) * per_block + size + size
    gates = blocks * per_block * 3 * per_block + 3 * size
    assert sum(p.numel() for p in core.parameters()) == entering + inner + gates
