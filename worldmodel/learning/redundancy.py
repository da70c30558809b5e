"""Images without a decoder: what is asked of the latent state instead of pixels (R2-Dreamer, 2026; Barlow Twins, 2021).

A linear map of the state has to agree, entry by entry, with what the encoder's convolutions have made of the image.
The convolutions are not moved by that: they are a target here, and learn through the posterior, like all that makes
z_t out of x_t. Nothing is said about pixels, so that the size of an object in its picture is of no consequence.
"""

from torch import Tensor

from worldmodel.kernels.precision import exact

SMALLEST = 1e-8
"""Added to variances: an entry that is the same in the whole batch agrees with nothing."""


def standardised(x: Tensor, mask: Tensor) -> Tensor:
    """(N, D) -> the same with mean 0 and variance 1 over the rows where mask (N, 1) is 1; zero in the others."""
    count = mask.sum()
    x = (x - (x * mask).sum(0) / count) * mask
    return x * (x.square().sum(0) / count + SMALLEST).rsqrt()


@exact
def redundancy(projected: Tensor, seen: Tensor, mask: Tensor, off_diagonal: float) -> Tensor:
    """A scalar without a unit: sum_i (1 - c_ii)^2 + lambda sum_{i != j} c_ij^2 (derivation Eq. 83).

    c_ij is the correlation of entry i of `projected` with entry j of `seen` over all recorded steps of a batch
    (Zbontar et al. 2021, Eq. 1 and 2). It is zero where both say the same and no entry what another says, and D where
    they have nothing to do with each other. Scales and offsets are of no consequence.

    Args:
        projected: (B, T, D), of the latent state. seen: (B, T, D), of the image.
        mask: (B, T), 1 for a recorded step.
        off_diagonal: lambda.
    """
    rows = mask.reshape(-1, 1)
    own, other = (standardised(x.reshape(len(rows), -1), rows) for x in (projected, seen))
    correlation = own.T @ other / rows.sum()
    agreement = correlation.diagonal()
    pairs = correlation.square().sum() - agreement.square().sum()
    return (1 - agreement).square().sum() + off_diagonal * pairs
