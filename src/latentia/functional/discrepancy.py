"""Distances of two sets of points: kernels and the maximum mean discrepancy, the sliced Wasserstein distance."""

from collections.abc import Callable

import torch
from torch import Tensor

from latentia.errors import UsageError, check_choice

SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
KERNELS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "rbf": lambda squared, width: (-squared / width).exp(),
    "imq": lambda squared, width: width / (width + squared),
}


def kernel_matrix(a: Tensor, b: Tensor, kernel: str = "imq") -> Tensor:
    r"""The kernel of each pair of points, a mean over seven widths \(C = 2 D s\), s from 0.1 to 10.

    "rbf" is \(e^{-\lVert a - b \rVert^2 / C}\), "imq", the inverse multiquadric, \(C / (C + \lVert a - b \rVert^2)\),
    whose tails are heavier. \(2 D\) is the mean squared distance of two points of N(0, I).

    Args:
        a, b: (N, D) and (M, D).
        kernel: "imq" (default) or "rbf".

    Returns:
        (N, M), in (0, 1].

    Wasserstein Auto-Encoders (Tolstikhin et al., 2017, 1711.01558), section 4, and its published code for the widths.

    Example:
        >>> kernel_matrix(torch.zeros(1, 2), torch.zeros(1, 2), "rbf")
        tensor([[1.]])
    """
    check_choice("kernel", kernel, KERNELS)
    squared = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()  # exactly 0 for equal points
    return torch.stack([KERNELS[kernel](squared, 2 * a.shape[1] * scale) for scale in SCALES]).mean(0)


def maximum_mean_discrepancy(a: Tensor, b: Tensor, kernel: str = "imq") -> Tensor:
    r"""The squared maximum mean discrepancy of two distributions, from a sample of each; unbiased, so it may be < 0.

    \(\frac{1}{N (N - 1)} \sum_{i \ne j} k(a_i, a_j) + \frac{1}{M (M - 1)} \sum_{i \ne j} k(b_i, b_j) -
    \frac{2}{N M} \sum_{i, j} k(a_i, b_j)\).

    Args:
        a, b: (N, D) and (M, D), N and M at least 2.
        kernel: as for `kernel_matrix`.

    Returns:
        ().

    Raises:
        UsageError: an unknown kernel, or fewer than two points.

    A Kernel Two-Sample Test (Gretton et al., 2012, JMLR 13), eq. 3.

    Example:
        >>> far = maximum_mean_discrepancy(torch.zeros(4, 2), torch.full((4, 2), 1e6))  # no kernel joins them
        >>> round(float(far), 3)
        2.0
    """
    if min(len(a), len(b)) < 2:
        raise UsageError(
            f"a maximum mean discrepancy needs at least 2 points of each set; got {len(a)} and {len(b)}. Take larger "
            "batches."
        )
    within = [(kernel_matrix(x, x, kernel).sum() - len(x)) / (len(x) * (len(x) - 1)) for x in (a, b)]  # k(x, x) = 1
    return within[0] + within[1] - 2 * kernel_matrix(a, b, kernel).mean()


def sliced_wasserstein(a: Tensor, b: Tensor, directions: Tensor) -> Tensor:
    r"""The squared sliced Wasserstein-2 distance, \(\frac1P \sum_p W_2^2\) of the points on P lines.

    \(W_2^2\) on a line is the mean squared distance of points paired by their order: the best pairing.

    Args:
        a, b: (N, D), as many of each.
        directions: (P, D), not zero; they are scaled to unit length. Those of N(0, I) are uniform on the sphere.

    Returns:
        ().

    Raises:
        UsageError: different numbers of points.

    Sliced-Wasserstein Autoencoder (Kolouri et al., 2018, 1804.01947), eq. 8.

    Example:
        >>> a = torch.tensor([[0.0], [2.0]])
        >>> sliced_wasserstein(a, a.flip(0) + 1, torch.ones(1, 1))
        tensor(1.)
    """
    if len(a) != len(b):
        raise UsageError(
            f"a and b must be as many points for a sliced Wasserstein distance; got {len(a)} and {len(b)}."
        )
    unit = directions / directions.norm(dim=1, keepdim=True)
    return ((a @ unit.T).sort(0).values - (b @ unit.T).sort(0).values).square().mean()
