"""Distances between sets of points in few dimensions: transport, energy distance, GAN Lab's grid. In float64."""

from typing import NamedTuple

import torch

from latentia.errors import UsageError
from latentia.evaluation.features.base import check_features
from latentia.rng import seed_from

EXACT_LIMIT = 2_000  # points whose assignment takes about a second; time grows with the cube
LAB_SAMPLES = 12_000  # real points that GAN Lab's divergences are taken to
_CHUNK = 1024  # rows whose distances are held at once


def wasserstein2(a: torch.Tensor, b: torch.Tensor) -> float:
    """2-Wasserstein distance of two samples of equal size, `W2^2 = min over permutations s of mean |a_i - b_s(i)|^2`.

    Exact: by sorting in one dimension, by linear assignment in more. The distance of two samples of the same
    distribution is not 0 and falls slowly with n, like n^(-1/4) where modes stand apart, so print it beside.

    Args:
        a, b: (n, D), with n <= 2000 (`EXACT_LIMIT`) if D > 1; `sliced_wasserstein2` takes more.

    Returns:
        W2 >= 0, unit of the points. Its square compares with `frechet_distance`, which it equals for Gaussians.

    Raises:
        UsageError: different shapes, or too many points.
        NumericsError: a point is NaN or infinite.

    References:
        "Computational Optimal Transport", Peyre and Cuturi 2018, arXiv:1803.00567, section 2.2.

    Example:
        >>> points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
        >>> wasserstein2(points, points.flip(0) + torch.tensor([3.0, 4.0]))
        5.0
    """
    _check_pair(a, b, equal=True)
    if a.shape[1] == 1:
        return float(_sorted_cost(a.cpu().double(), b.cpu().double()).sqrt())
    if len(a) > EXACT_LIMIT:
        raise UsageError(
            f"The assignment of n points takes n^3 steps, so n must be at most {EXACT_LIMIT}. Got {len(a)}; pass "
            f"a[:{EXACT_LIMIT}] and b[:{EXACT_LIMIT}], or use sliced_wasserstein2."
        )
    from scipy.optimize import linear_sum_assignment

    x, y = a.double().cpu(), b.double().cpu()
    rows, columns = linear_sum_assignment(_distances(x, y).square().numpy())
    return float((x[rows] - y[columns]).square().sum(1).mean().sqrt())


def sliced_wasserstein2(a: torch.Tensor, b: torch.Tensor, projections: int = 500, seed: int = 0) -> float:
    """Sliced 2-Wasserstein distance: the root of the mean over directions of W2^2 of the projections.

    Cheap at any n, and not an estimate of W2: it is at most W2, and a shift by m counts |m| / sqrt(D) instead of |m|.

    Args:
        a, b: (n, D).
        projections: random directions, default 500.
        seed: of the directions; distances compare at equal seed and number.

    Raises:
        UsageError: different shapes, or `projections` < 1.

    References:
        "Sliced and Radon Wasserstein Barycenters of Measures", Bonneel et al. 2015.

    Example:
        >>> points = torch.rand(100, 3)
        >>> round(sliced_wasserstein2(points, points.flip(0)), 9)
        0.0
    """
    _check_pair(a, b, equal=True)
    if projections < 1:
        raise UsageError(f"`projections` must be at least 1. Got {projections}.")
    generator = torch.Generator().manual_seed(seed_from(seed, "sliced"))
    directions = torch.randn(a.shape[1], projections, generator=generator, dtype=torch.float64)
    x, y = a.cpu().double(), b.cpu().double()
    costs = [_sorted_cost(x @ part, y @ part) for part in (directions / directions.norm(dim=0)).split(50, 1)]
    return float(torch.cat(costs).mean().sqrt())


def energy_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Energy distance `2 E|x - y| - E|x - x'| - E|y - y'|`, unbiased: pairs of different points only.

    Its mean does not depend on n and is 0 only for equal distributions, so single values may be negative. The biased
    form, which counts each point with itself and is never negative, exceeds it by `E|x - x'| / n + E|y - y'| / m`. Some
    print its square root.

    Args:
        a, b: (n, D) and (m, D), n, m >= 2, of any number: distances are taken in blocks.

    Returns:
        The distance, unit of the points.

    Raises:
        UsageError: fewer than 2 points, or another D.
        NumericsError: a point is NaN or infinite.

    References:
        "Energy statistics: a class of statistics based on distances", Szekely and Rizzo 2013.

    Example:
        >>> energy_distance(torch.tensor([[0.0], [0.0]]), torch.tensor([[3.0], [3.0], [3.0]]))
        6.0
    """
    _check_pair(a, b)
    if min(len(a), len(b)) < 2:
        raise UsageError(f"An energy distance needs n >= 2 points in each set. Got {len(a)} and {len(b)}.")
    x, y, n, m = a.cpu().double(), b.cpu().double(), len(a), len(b)

    def total(left: torch.Tensor, right: torch.Tensor) -> float:
        return sum(float(_distances(rows, right).sum()) for rows in left.split(_CHUNK))

    return 2 * total(x, y) / (n * m) - total(x, x) / (n * (n - 1)) - total(y, y) / (m * (m - 1))


class GridDivergences(NamedTuple):
    """Divergences of two histograms, in bits; 0 is best. `js` is at most about 1."""

    kl: float
    js: float


def grid_divergences(
    points: torch.Tensor, real: torch.Tensor, *, cells: int = 30, smoothing: float = 1e-4
) -> GridDivergences:
    """KL(real || generated) and Jensen-Shannon divergence of histograms on [0, 1]^2, as GAN Lab shows them.

    With p and q the shares of the real and the generated points per cell, m = (p + q) / 2 and s = `smoothing` added to
    each, `KL = sum (p + s) log2((p + s) / (q + s))` and `JS = sum [(p + s) log2((p + s) / (m + s)) +
    (q + s) log2((q + s) / (m + s))] / 2`, not normalised again. A perfect generator does not reach 0: with 150 points
    the JS of GAN Lab's shapes is 0.07 to 0.35, so print that of real points at the same n. Here all points outside the
    square share one further cell; GAN Lab drops them, which rewards a generator that leaves the square.

    Args:
        points: generated, (n, 2).
        real: (m, 2), in GAN Lab the first of 12 000 (`LAB_SAMPLES`).
        cells: along each axis, default 30, GAN Lab's.
        smoothing: s > 0, default 1e-4, GAN Lab's.

    Raises:
        UsageError: points of another dimension, `cells` < 1 or `smoothing` <= 0.
        NumericsError: a point is NaN or infinite.

    References:
        "GAN Lab", Kahng et al. 2018, arXiv:1809.01587; the numbers 30 and 1e-4 are those of its program.

    Example:
        >>> left, right = torch.full((10, 2), 0.25), torch.full((10, 2), 0.75)
        >>> round(grid_divergences(left, right).js, 2), grid_divergences(left, left).js
        (1.0, 0.0)
    """
    _check_pair(points, real, names="`points` and `real`")
    if points.shape[1] != 2:
        raise UsageError(f"`points` must have shape (n, 2). Got {tuple(points.shape)}.")
    if cells < 1 or not smoothing > 0:
        raise UsageError(f"`cells` must be at least 1 and `smoothing` positive. Got {cells} and {smoothing}.")
    p, q = (_histogram(part, cells) for part in (real, points))
    m = (p + q) / 2 + smoothing
    p, q = p + smoothing, q + smoothing
    js = (p * (p / m).log2() + q * (q / m).log2()).sum() / 2
    return GridDivergences(float((p * (p / q).log2()).sum()), float(js))


def _histogram(points: torch.Tensor, cells: int) -> torch.Tensor:
    """Shares of the points per cell of [0, 1)^2, and of those outside it: (cells^2 + 1,)."""
    place = (points.cpu().double() * cells).floor()
    inside = ((place >= 0) & (place < cells)).all(1)
    index = torch.where(inside, place[:, 0] + cells * place[:, 1], cells**2).long()
    return torch.bincount(index, minlength=cells**2 + 1).double() / len(points)


def _distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """(n, m), from differences: a product loses eight digits where points nearly coincide."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _sorted_cost(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """W2^2 of each column."""
    return (x.sort(0).values - y.sort(0).values).square().mean(0)


def _check_pair(a: torch.Tensor, b: torch.Tensor, *, equal: bool = False, names: str = "`a` and `b`") -> None:
    check_features(a)
    check_features(b)
    if a.shape[1] != b.shape[1]:
        raise UsageError(f"{names} must have the same dimension. Got {a.shape[1]} and {b.shape[1]}.")
    if equal and len(a) != len(b):
        raise UsageError(f"{names} must hold equally many points. Got {len(a)} and {len(b)}; cut the longer one.")
