"""Kernel distance (KID): the maximum mean discrepancy under a cubic kernel, unbiased. In float64."""

import math
from typing import NamedTuple

import torch

from latentia.errors import UsageError
from latentia.evaluation.features.base import check_features

_BLOCK = 1024  # rows and columns of the kernel matrix that are held at once


class KernelDistance(NamedTuple):
    """`value` and `standard_error` of a kernel distance; both in the unit of the kernel, which has none."""

    value: float
    standard_error: float


def kernel_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Kernel distance (KID): unbiased squared MMD under `k(x, y) = (x.y / D + 1)^3`.

    Its mean does not depend on n and is 0 for equal distributions, so single values may be negative.

    Args:
        a, b: features (n, D) and (m, D), n, m >= 2. Memory beyond a float64 copy of them is bounded.

    Returns:
        The distance; smaller is better.

    Raises:
        UsageError: fewer than 2 rows, or another D.
        NumericsError: a feature is NaN or infinite.

    References:
        "Demystifying MMD GANs", Binkowski et al. 2018, arXiv:1801.01401, equation 4.

    Example:
        >>> round(kernel_distance(torch.zeros(4, 2), torch.ones(3, 2)), 9)  # 1 + (1 + 1)^3 - 2
        7.0
    """
    a, b = _check(a, b, least=2)
    n, m = len(a), len(b)
    within_a = float(_row_sums(a)[0].sum()) / (n * (n - 1))
    within_b = float(_row_sums(b)[0].sum()) / (m * (m - 1))
    return within_a + within_b - 2 * float(_row_sums(a, b)[0].sum()) / (n * m)


def kernel_distance_with_error(a: torch.Tensor, b: torch.Tensor) -> KernelDistance:
    """`kernel_distance` and its standard error, from all pairs instead of random subsets.

    The Hoeffding decomposition of the estimator, with `h_a(x) = E k(x, x') - E k(x, y)` and a kernel that is centred on
    both sides, k~, gives `4 Var h_a / n + 4 Var h_b / m + 2 E k~_aa^2 / n^2 + 2 E k~_bb^2 / m^2 + 4 E k~_ab^2 / (n m)`.
    The last three terms are all there is where the distributions agree; the variances of the row means hold them twice
    and are reduced by them.

    Args:
        a, b: features (n, D) and (m, D), n, m >= 4.

    Returns:
        `(value, standard_error)`: `value` is that of `kernel_distance`; the error is of one such pair of samples, over
        fresh draws of both.

    Raises:
        UsageError: fewer than 4 rows, or another D.
        NumericsError: a feature is NaN or infinite.

    References:
        "Generative Models and Model Criticism via Optimized Maximum Mean Discrepancy", Sutherland et al. 2017,
        arXiv:1611.04488, for the variance of the unbiased estimator.

    Example:
        >>> a, b = (torch.randn(500, 4, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
        >>> value, error = kernel_distance_with_error(a, b)
        >>> abs(value) < 3 * error
        True
    """
    a, b = _check(a, b, least=4)
    n, m = len(a), len(b)
    rows_a, squares_a = _row_sums(a)
    rows_b, squares_b = _row_sums(b)
    cross_a, squares_ab = _row_sums(a, b)
    cross_b = _row_sums(b, a)[0]
    within_a, within_b, cross = rows_a.sum() / (n * (n - 1)), rows_b.sum() / (m * (m - 1)), cross_a.sum() / (n * m)
    rows_a, rows_b, cross_a, cross_b = rows_a / (n - 1), rows_b / (m - 1), cross_a / m, cross_b / n
    first = 4 * ((rows_a - cross_a).var() / n + (rows_b - cross_b).var() / m)
    centred_aa = squares_a / (n * (n - 1)) - 2 * rows_a.square().mean() + within_a**2
    centred_bb = squares_b / (m * (m - 1)) - 2 * rows_b.square().mean() + within_b**2
    centred_ab = squares_ab / (n * m) - cross_a.square().mean() - cross_b.square().mean() + cross**2
    second = 2 * centred_aa / n**2 + 2 * centred_bb / m**2 + 4 * centred_ab / (n * m)
    variance = max(float(first - second), float(second), 0.0)
    return KernelDistance(float(within_a + within_b - 2 * cross), math.sqrt(variance))


def _check(a: torch.Tensor, b: torch.Tensor, least: int) -> tuple[torch.Tensor, torch.Tensor]:
    for features in (a, b):
        check_features(features)
        if len(features) < least:
            raise UsageError(f"A kernel distance needs n >= {least} images in each set. Got {len(features)}.")
    if a.shape[1] != b.shape[1]:
        raise UsageError(f"`a` and `b` must have the same feature dimension. Got {a.shape[1]} and {b.shape[1]}.")
    return a.cpu().double(), b.cpu().double()


def _row_sums(x: torch.Tensor, y: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum over y of k(x, y) for each x, and sum of all k^2. Without y over the other x, none of which meets itself."""
    sums, squares = x.new_zeros(len(x)), x.new_zeros(())
    for i, rows in enumerate(x.split(_BLOCK)):
        for j, columns in enumerate((x if y is None else y).split(_BLOCK)):
            base = torch.addmm(x.new_ones(()), rows, columns.T, alpha=1 / x.shape[1])
            kernel = base.square().mul_(base)
            if y is None and i == j:
                kernel.fill_diagonal_(0)
            sums[i * _BLOCK : i * _BLOCK + len(rows)] += kernel.sum(1)
            squares += kernel.square_().sum()
    return sums, squares
