"""Frechet distance of the Gaussians fitted to two sets of features. Streaming, on the CPU in float64."""

import math

import torch

from latentia.errors import NumericsError, UsageError
from latentia.evaluation.features.base import check_features

_CHUNK = 4096  # rows that are held in float64 at once
_BLOCK = 512  # columns of a scatter matrix that are added at once
# A covariance may have eigenvalues down to -1e-8 times its largest one: rounding of float64 sums over float32 features.
_EIGENVALUE_TOLERANCE = 1e-8
_EPS = torch.finfo(torch.float64).eps
_TOLERANCE = 1e-10  # relative error that the quick form of the distance may have by its own estimate


class Moments:
    """Count, mean and covariance of features, gathered chunk by chunk.

    Chunks are merged by their own means (Chan, Golub and LeVeque 1983), so a large common offset costs no digits. Up to
    n = D the rows themselves are stored, which is less than a covariance and lets a distance work with n x n matrices.

    Args (of the instance, all float64):
        n: images seen.
        mean: (D,).
        scatter: (D, D), sum of (x - mean)(x - mean)^T.
        covariance: (D, D), unbiased, scatter / (n - 1).
        factor: (D, r) with `factor @ factor.T = covariance`, r at most D and at most n - 1 where rows are stored.

    Example:
        >>> moments = Moments()
        >>> for chunk in torch.randn(10, 3).split(4):
        ...     moments.update(chunk)
        >>> moments.n, tuple(moments.covariance.shape)
        (10, (3, 3))
    """

    def __init__(self) -> None:
        self.n = 0
        self._rows: list[torch.Tensor] = []
        self._mean: torch.Tensor | None = None  # where there are no rows
        self._upper: torch.Tensor | None = None  # the scatter matrix; what is left of its diagonal blocks is void
        self._factor: torch.Tensor | None = None

    def update(self, features: torch.Tensor) -> None:
        """Take in features (n, D), of any float type and device; at most 4096 are held in float64 at once."""
        check_features(features)
        self._expect(features.shape[1])
        if self._upper is None and self.n + len(features) <= features.shape[1]:
            self._rows.append(features.detach().to("cpu", torch.float64, copy=True))
            self.n += len(features)
            self._factor = None
            return
        self._gather()
        for chunk in features.detach().split(_CHUNK):
            self._absorb(chunk)

    def merge(self, n: int, mean: torch.Tensor, scatter: torch.Tensor) -> None:
        """Take in the count, mean (D,) and scatter (D, D) of other features, for example of another process."""
        if n == 0:
            return
        self._expect(len(mean))
        self._gather()
        self._shift(n, mean.cpu().double())
        self._gathered[1].add_(scatter.cpu().double())

    @property
    def mean(self) -> torch.Tensor:
        if self.n == 0:
            raise UsageError("A mean needs n >= 1 images. Got 0.")
        return torch.cat(self._rows).mean(0) if self._rows else self._gathered[0]

    @property
    def scatter(self) -> torch.Tensor:
        if self._rows:
            centred = torch.cat(self._rows) - self.mean
            return centred.T @ centred
        if self._upper is None:
            raise UsageError("A scatter matrix needs n >= 1 images. Got 0.")
        return self._upper.triu() + self._upper.triu(1).T

    @property
    def _gathered(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and upper scatter matrix, of which there is something once there are no rows."""
        assert self._mean is not None and self._upper is not None
        return self._mean, self._upper

    @property
    def covariance(self) -> torch.Tensor:
        self._expect_two()
        return self.scatter / (self.n - 1)

    @property
    def factor(self) -> torch.Tensor:
        self._expect_two()
        if self._factor is None and self._rows:
            # Centred rows are linearly dependent; a Householder reflection of 1/sqrt(n) to the first axis leaves n - 1.
            centred = torch.cat(self._rows) - self.mean
            self._factor = (centred[1:] - centred[0] / (math.sqrt(self.n) + 1)).T / math.sqrt(self.n - 1)
        elif self._factor is None:
            self._factor = _root("covariance", self.covariance)
        return self._factor

    def _gather(self) -> None:
        """From rows to mean and scatter matrix."""
        rows, self._rows = self._rows, []
        if rows:
            self.n = 0
            self._absorb(torch.cat(rows))

    def _absorb(self, features: torch.Tensor) -> None:
        x = features.cpu().double()
        mean = x.mean(0)
        x = x - mean
        self._shift(len(x), mean)
        for start in range(0, x.shape[1], _BLOCK):  # half of a symmetric product is enough
            left = x[:, start : start + _BLOCK]
            self._gathered[1][start : start + _BLOCK, start:].addmm_(left.T, x[:, start:])

    def _shift(self, n: int, mean: torch.Tensor) -> None:
        """Count, mean and the scatter that comes from the difference of the means."""
        if self._upper is None:
            self._mean, self._upper = mean.clone(), mean.new_zeros(len(mean), len(mean))
        before, upper = self._gathered
        total, delta = self.n + n, mean - before
        upper.addr_(delta, delta, alpha=self.n * n / total)
        self._mean = before + delta * (n / total)
        self.n, self._factor = total, None

    def _expect(self, dimension: int) -> None:
        known = self._rows[0].shape[1] if self._rows else dimension if self._mean is None else len(self._mean)
        if dimension != known:
            raise UsageError(f"Features must have the dimension of the earlier ones, {known}. Got {dimension}.")

    def _expect_two(self) -> None:
        if self.n < 2:
            raise UsageError(f"A covariance needs n >= 2 images. Got {self.n}.")


def moments_of(features: torch.Tensor) -> Moments:
    """`Moments` of features (n, D) given whole."""
    moments = Moments()
    moments.update(features)
    return moments


def frechet_distance(a: torch.Tensor | Moments, b: torch.Tensor | Moments) -> float:
    """Frechet distance of the Gaussians fitted to two sets of features.

    Args:
        a, b: features (n, D), n >= 2, or their `Moments`. Where n <= D no D x D matrix is formed.

    Returns:
        `frechet_distance_of_gaussians` of the two means and covariances; >= 0, unit of the features squared.

    Raises:
        UsageError: fewer than 2 rows, or another D.
        NumericsError: a feature is NaN or infinite.

    References:
        "GANs Trained by a Two Time-Scale Update Rule", Heusel et al. 2017, arXiv:1706.08500, equation 6.

    Example:
        >>> features = torch.randn(100, 4)
        >>> round(frechet_distance(features, features + 1), 6)
        4.0
    """
    a, b = both_moments(a, b)
    return _distance(a.mean - b.mean, a.factor, b.factor)


def both_moments(a: torch.Tensor | Moments, b: torch.Tensor | Moments) -> tuple[Moments, Moments]:
    """Moments of both sets, of n >= 2 features of equal dimension."""
    a, b = (part if isinstance(part, Moments) else moments_of(part) for part in (a, b))
    for part in (a, b):
        part._expect_two()
    if len(a.mean) != len(b.mean):
        raise UsageError(f"`a` and `b` must have the same feature dimension. Got {len(a.mean)} and {len(b.mean)}.")
    return a, b


def frechet_distance_of_gaussians(
    mean_a: torch.Tensor, covariance_a: torch.Tensor, mean_b: torch.Tensor, covariance_b: torch.Tensor
) -> float:
    """`|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2)`, the squared 2-Wasserstein distance.

    With `S_a = A A^T` and `S_b = B B^T` the trace is `|A|^2 + |B|^2 - 2 |B^T A|_*`, where the nuclear norm is the sum
    of the roots of the eigenvalues of a symmetric matrix. Where that would cost digits, by an estimate from the
    eigenvalues, the trace is taken as `min_U |A - B U|^2` over orthogonal U, the best of which comes from the singular
    vectors of `B^T A`: nothing cancels when the Gaussians are close, and small eigenvalues are not lost.

    Args:
        mean_a, mean_b: (D,).
        covariance_a, covariance_b: (D, D), symmetric, positive semi-definite. Eigenvalues down to -1e-8 times the
            largest entry pass as rounding and count as 0.

    Returns:
        The distance; >= 0.

    Raises:
        NumericsError: a mean or covariance is not finite, or a covariance is not symmetric or has a clearly negative
            eigenvalue.

    Example:
        >>> zero, one = torch.zeros(3), torch.eye(3)
        >>> round(frechet_distance_of_gaussians(zero, one, zero + 2, 9 * one), 9)  # 3 * 2^2 + 3 * (1 - 3)^2
        24.0
    """
    factors = []
    for side, mean, covariance in (("a", mean_a, covariance_a), ("b", mean_b, covariance_b)):
        covariance = covariance.cpu().double()
        low, high = torch.aminmax(covariance)
        scale = torch.maximum(-low, high)
        # Against a random vector, two products with which show any asymmetry without a walk across the columns.
        probe = torch.randn(len(covariance), 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        if not (scale.isfinite() and (covariance @ probe - covariance.T @ probe).abs().max() <= 1e-8 * scale):
            raise NumericsError(f"`covariance_{side}` must be finite and symmetric.")
        if not mean.isfinite().all():
            raise NumericsError(f"`mean_{side}` must be finite.")
        factors.append(_root(f"covariance_{side}", covariance))
    return _distance(mean_a.cpu().double() - mean_b.cpu().double(), *factors)


def _root(name: str, covariance: torch.Tensor) -> torch.Tensor:
    """A (D, r) with A A^T = covariance, r its numerical rank: by Cholesky, or by eigenvalues where it is singular."""
    lower, failed = torch.linalg.cholesky_ex(covariance)
    if not failed:
        return lower
    values, vectors = torch.linalg.eigh(covariance)
    if values[0] < -_EIGENVALUE_TOLERANCE * covariance.abs().max():
        raise NumericsError(f"`{name}` must be positive semi-definite. Its least eigenvalue is {float(values[0]):.3g}.")
    rank = max(1, int((values > len(values) * _EPS * values[-1]).sum()))
    return vectors[:, -rank:] * values[-rank:].clamp(min=0).sqrt()


def _distance(shift: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> float:
    """`|shift|^2 + |A|^2 + |B|^2 - 2 |B^T A|_*` for factors A (D, p) and B (D, q)."""
    if a.shape[1] > b.shape[1]:
        a, b = b, a
    cross = b.T @ a  # (q, p), p <= q
    spread = torch.linalg.vector_norm(a).square() + torch.linalg.vector_norm(b).square()
    values = torch.linalg.eigvalsh(cross.T @ cross)
    distance = shift.square().sum() + spread - 2 * values.clamp(min=0).sqrt().sum()
    # An eigenvalue is wrong by about eps times the largest, its root by that over twice the root; signs are random.
    least = _EPS * values[-1]
    error = 4 * (least * values.clamp(min=least).rsqrt()).norm() + 4 * _EPS * spread
    if error <= _TOLERANCE * distance:
        return float(distance)
    left, _, right = torch.linalg.svd(cross, full_matrices=False)
    turned = b @ left  # (D, p); what of B lies outside has no counterpart in A
    apart = (a - turned @ right).square().sum() + (b - turned @ left.T).square().sum()
    return float(shift.square().sum() + apart)
