"""Nearest neighbours: precision and recall, density and coverage, and whether samples are copies. As in float64.

Distances are Euclidean, worked out block by block: memory grows with n, not with n^2. A first pass in float32 bounds
each from below and above, rigorously; what the bounds leave open is worked out in float64, which thus decides all.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from latentia.errors import DataError, UsageError
from latentia.evaluation.features.base import check_features

_ROWS, _COLUMNS, _SQUARE = 512, 2048, 2560  # of a block of distances
_GROUP = 32  # neighbouring columns of which only the least matters at first
_NUMBERS = 2**16  # of which differences are taken at once
_SPARE = 2  # candidates beyond the k nearest, so that the bounds seldom leave open which these are
_SLACK = 1e-13  # two roundings of one squared distance agree to about this, relatively


class PrecisionRecall(NamedTuple):
    """Quality and variety, apart; 1 is best.

    Attributes:
        precision: share of generated images within the real ones' balls, in [0, 1]: are they realistic?
        recall: share of real images within the generated ones' balls, in [0, 1]: is all there is to generate generated?
        density: how many real balls a generated image lies in, over k; about 1 where the distributions agree, >= 0.
        coverage: share of real balls that hold a generated image, in [0, 1].
    """

    precision: float
    recall: float
    density: float
    coverage: float


class Memorisation(NamedTuple):
    """How much nearer the training images are to generated ones than to held-out ones.

    Attributes:
        ratio: median distance of generated images to their nearest training image over that of held-out images:
            0 for copies, about 1 for a generator that has not memorised, above 1 for images unlike any.
        copied: share of generated images that are nearer to a training image than the nearest 1 % of the held-out ones:
            1 for copies, about 0.01 where nothing was memorised. It sees a few copies, which the median does not.
    """

    ratio: float
    copied: float


def nearest(
    queries: torch.Tensor, points: torch.Tensor, k: int = 1, *, exclude_self: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k nearest points of each query.

    Args:
        queries: (n, D).
        points: (m, D).
        k: how many, between 1 and m, or m - 1 where self is excluded.
        exclude_self: `queries` are `points`, row by row, and none is its own neighbour. A duplicate of it may be.

    Returns:
        Distances (n, k), float64, ascending, and indices (n, k), int64, into `points`.

    Raises:
        UsageError: k out of range, another D, or sets of different size where self is excluded.
        NumericsError: a feature is NaN or infinite.

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [3.0]])
        >>> distances, indices = nearest(torch.tensor([[0.9]]), points, 2)
        >>> indices.tolist(), [round(value, 6) for value in distances[0].tolist()]
        ([[1, 0]], [0.1, 0.9])
    """
    _check_same_width(queries=queries, points=points)
    n, m = len(queries), len(points)
    if exclude_self and n != m:
        raise UsageError(f"`queries` must be `points` where self is excluded. Got {n} and {m} images.")
    available = m - 1 if exclude_self else m
    if not 1 <= k <= available:
        raise UsageError(
            f"`k` must be between 1 and the number of other images, {available}. Got {k}; lower it, or give more "
            "images."
        )
    return _nearest(queries.cpu().double(), points.cpu().double(), k, exclude_self)


def precision_recall(*, real: torch.Tensor, fake: torch.Tensor, k: int = 3, density_k: int = 5) -> PrecisionRecall:
    """Precision, recall, density and coverage from balls around images, each up to its k-th nearest of its own set.

    With B_k(x) the closed ball around x up to its k-th neighbour, not counting x itself: precision is the share of fake
    images in any real B_k, recall the share of real images in any fake B_k, density `sum_ij [fake_j in B_k(real_i)] /
    (k n_fake)` and coverage the share of real B_k that hold a fake image. An image with k copies in its set has a ball
    of radius 0, which holds what is equal to it. Compare only at equal n.

    Args:
        real: features (n, D).
        fake: features of generated images, (m, D). The order matters: exchanged, precision and recall are, too.
        k: of precision and recall, between 1 and n - 1 and m - 1.
        density_k: of density and coverage, between 1 and n - 1.

    Returns:
        `(precision, recall, density, coverage)`.

    Raises:
        UsageError: k out of range, or another D.
        NumericsError: a feature is NaN or infinite.

    References:
        "Improved Precision and Recall Metric for Assessing Generative Models", Kynkaanniemi et al. 2019,
        arXiv:1904.06991, equations 1 and 2. "Reliable Fidelity and Diversity Metrics for Generative Models", Naeem et
        al. 2020, arXiv:2002.09797, equations 3 and 4 (there the balls are open).

    Example:
        >>> real = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
        >>> narrow = precision_recall(real=real, fake=0.3 * real)  # good images of little variety
        >>> narrow.precision > 0.95 and narrow.recall < 0.3
        True
    """
    _check_same_width(real=real, fake=fake)
    for name, value, largest in (
        ("k", k, min(len(real), len(fake)) - 1),
        ("density_k", density_k, len(real) - 1),
    ):
        if not 1 <= value <= largest:
            raise UsageError(
                f"`{name}` must be between 1 and the number of other images, {largest}. Got {value}; lower it, or give "
                "more images."
            )
    real, fake = real.cpu().double(), fake.cpu().double()
    own = _nearest(real, real, max(k, density_k), True)[0].square() * (1 + _SLACK)  # (n, K), squared radii
    radius, density_radius = own[:, k - 1], own[:, density_k - 1]
    fake_radius = _nearest(fake, fake, k, True)[0][:, k - 1].square() * (1 + _SLACK)

    precise = torch.zeros(len(fake), dtype=torch.bool)
    recalled, covered = (torch.zeros(len(real), dtype=torch.bool) for _ in range(2))
    inside = 0
    for i, j, squares in _near(real, fake, [radius, density_radius], fake_radius):
        precise[j[squares <= radius[i]]] = True
        recalled[i[squares <= fake_radius[j]]] = True
        within = i[squares <= density_radius[i]]
        covered[within] = True
        inside += len(within)
    return PrecisionRecall(
        precision=float(precise.double().mean()),
        recall=float(recalled.double().mean()),
        density=inside / (density_k * len(fake)),
        coverage=float(covered.double().mean()),
    )


def authenticity(*, fake: torch.Tensor, train: torch.Tensor) -> float:
    """Share of generated images further from their nearest training image than that is from its own nearest one.

    Args:
        fake: features of generated images, (n, D).
        train: features of the images that the generator was trained on, (m, D), m >= 2.

    Returns:
        In [0, 1]; times 100 it is AuthPct. 0 for copies; what held-out images reach is the value to compare with (0.5
        in one dimension, more in many).

    Raises:
        UsageError: fewer than 2 training images, or another D.
        NumericsError: a feature is NaN or infinite.

    References:
        "How Faithful is your Synthetic Data?", Alaa et al. 2022, arXiv:2102.08921, "authenticity".

    Example:
        >>> train = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
        >>> authenticity(fake=train, train=train), authenticity(fake=train + 100, train=train)
        (0.0, 1.0)
    """
    distances, indices = nearest(fake, train)
    if len(train) < 2:
        raise UsageError(f"`train` must hold at least 2 images. Got {len(train)}.")
    closest, inverse = indices[:, 0].unique(return_inverse=True)
    own = nearest(train[closest], train, 2)[0][:, 1]  # the first is the image itself
    return float((distances[:, 0] > own[inverse]).double().mean())


def memorisation(*, fake: torch.Tensor, train: torch.Tensor, held_out: torch.Tensor) -> Memorisation:
    """Are generated images nearer to the training images than fresh real images are?

    Args:
        fake: features of generated images, (n, D).
        train: features of the images that the generator was trained on, (m, D).
        held_out: features of real images of the same source that it was not trained on, (h, D); 100 or more.

    Returns:
        `(ratio, copied)`, see `Memorisation`. Training images as `fake` give (0, 1), held-out ones about (1, 0.01).

    Raises:
        UsageError: another D.
        NumericsError: a feature is NaN or infinite.
        DataError: half or more of the held-out images are training images.

    Example:
        >>> points = torch.randn(900, 4, generator=torch.Generator().manual_seed(0))
        >>> train, held_out, fresh = points.split(300)
        >>> memorisation(fake=train, train=train, held_out=held_out)
        Memorisation(ratio=0.0, copied=1.0)
        >>> 0.8 < memorisation(fake=fresh, train=train, held_out=held_out).ratio < 1.25
        True
    """
    near, neutral = (nearest(part, train)[0][:, 0] for part in (fake, held_out))
    if neutral.median() == 0:
        raise DataError(
            "`held_out` must hold images that are not in `train`. Half or more of them are: split the data again."
        )
    copied = (near < neutral.quantile(0.01)) | (near == 0)
    return Memorisation(float(near.median() / neutral.median()), float(copied.double().mean()))


def _check_same_width(**sets: torch.Tensor) -> None:
    for features in sets.values():
        check_features(features)
    (first, a), (second, b) = sets.items()
    if a.shape[1] != b.shape[1]:
        raise UsageError(
            f"`{first}` and `{second}` must have the same feature dimension. Got {a.shape[1]} and {b.shape[1]}."
        )


class _Bounds:
    """Lower bounds of squared distances, in one product: true ones lie in [low, low + 2 e (|x|^2 + |y|^2 + tiny)].

    `(x, (1 - e) |x|^2, 1) . (-2 y, 1, (1 - e) |y|^2)` has D + 2 terms whose absolute values add up to at most
    2 (|x|^2 + |y|^2). Rounded to unit roundoff u, in whatever order, it is off by at most that times (D + 2) u /
    (1 - (D + 2) u) (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1); a few u more are for
    rounding x and y themselves. Both sets are moved to a common origin, which changes no distance but makes |x| and |y|
    small, and scaled by a power of two, which changes no digit but keeps float32 from overflowing. What underflows is
    less than `tiny`.

    Args:
        x, y: (n, D) and (m, D), float64; the same object if distances are within one set.
        dtype: of the product.
    """

    def __init__(self, x: torch.Tensor, y: torch.Tensor, dtype: torch.dtype):
        self.within = x is y
        origin = y.mean(0) if self.within else (x.mean(0) + y.mean(0)) / 2
        moved = [z - origin for z in ((x,) if self.within else (x, y))]
        lengths = [z.norm(dim=1) for z in moved]
        self.unit = 2.0 ** -math.frexp(max(float(length.max()) for length in lengths))[1]
        width = x.shape[1]
        share = (width + 10) * torch.finfo(dtype).eps / 2
        self.e = 2 * share / (1 - share)
        tiny = 4 * width * torch.finfo(dtype).tiny / self.e
        norms = [(length * self.unit).square() + tiny for length in lengths]
        parts = []
        for z, norm in zip(moved, norms):
            part = torch.ones(len(z), width + 2, dtype=dtype)
            part[:, :width] = z.mul_(self.unit)
            part[:, width] = (1 - self.e) * (norm - tiny) - self.e * tiny
            parts.append(part)
        self.norm_x, self.norm_y, self.left = norms[0], norms[-1], parts[0]
        self.right = torch.cat([-2 * parts[-1][:, :width], parts[-1][:, [width + 1, width]]], 1)

    def blocks(self, height: int, width: int) -> Iterator[tuple[slice, slice, torch.Tensor]]:
        """Rows, columns and bounds. Within one set each pair comes once: no blocks below the diagonal."""
        for i in range(0, len(self.left), height):
            for j in range(i if self.within else 0, len(self.right), width):
                rows, columns = slice(i, i + height), slice(j, j + width)
                yield rows, columns, self.left[rows] @ self.right[columns].T


def _first_pass() -> torch.dtype:
    """float32, unless torch was allowed to multiply it in fewer digits than it has."""
    return torch.float32 if torch.get_float32_matmul_precision() == "highest" else torch.float64


def _distances(x: torch.Tensor, y: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
    """Of the pairs (i, j), from differences, in which nothing cancels: a copy is at distance 0."""
    size = max(1, _NUMBERS // x.shape[1])
    return torch.cat([y[b].sub_(x[a]).norm(dim=1) for a, b in zip(i.split(size), j.split(size))])


def _near(
    x: torch.Tensor, y: torch.Tensor, radii: list[torch.Tensor], other_radius: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Pairs i, j that may lie within a ball, and squared distances on the right side of every radius.

    Args:
        x, y: (n, D) and (m, D), float64.
        radii: squared, of balls around x, (n,) each.
        other_radius: squared, of balls around y, (m,).
    """
    bounds = _Bounds(x, y, _first_pass())
    radii, other_radius = [r * bounds.unit**2 for r in radii], other_radius * bounds.unit**2
    above = 1 + 2 * torch.finfo(bounds.left.dtype).eps  # so that no rounding of a radius loses a pair
    largest = (torch.stack(radii).amax(0) * above).to(bounds.left.dtype)
    other_largest = (other_radius * above).to(bounds.left.dtype)
    for rows, columns, low in bounds.blocks(_ROWS, _COLUMNS):
        near = (low <= largest[rows, None]) | (low <= other_largest[columns])
        place = torch.from_numpy(np.flatnonzero(near.numpy()))
        if not len(place):
            continue
        i, j = place // low.shape[1] + rows.start, place % low.shape[1] + columns.start
        margin = bounds.e * (bounds.norm_x[i] + bounds.norm_y[j])
        squares = low.flatten()[place].double() + margin
        open_ = (squares - other_radius[j]).abs() <= margin
        for radius in radii:
            open_ |= (squares - radius[i]).abs() <= margin
        squares[open_] = (_distances(x, y, i[open_], j[open_]) * bounds.unit).square()
        yield i, j, squares / bounds.unit**2


def _nearest(x: torch.Tensor, y: torch.Tensor, k: int, exclude_self: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """`nearest` of float64 features."""
    y, own = (x, torch.arange(len(x))) if exclude_self else (y, None)
    others = len(y) - exclude_self
    wide = min(k + _SPARE, others)
    bounds = _Bounds(x, y, _first_pass())
    last, index = _candidates(bounds, wide, own)
    distances, index = _sorted(x, y, index)
    if wide < others and bounds.left.dtype == torch.float32:
        # No other point is nearer than the last candidate's bound. Rows whose k-th is not either are searched again.
        kth = (distances[:, k - 1] * bounds.unit).square()
        unsure = ((kth >= last) & (kth > 0)).nonzero().flatten()
        for rows in unsure.split(_ROWS) if len(unsure) else ():
            again = _candidates(_Bounds(x[rows], y, torch.float64), wide, None if own is None else own[rows])[1]
            distances[rows], index[rows] = _sorted(x[rows], y, again)
    return distances[:, :k], index[:, :k]


def _candidates(bounds: _Bounds, k: int, own: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The greatest of the k least bounds of each row, float64 (n,), and where these stand, (n, k).

    Args:
        bounds: of n rows.
        k: how many.
        own: the column of each row that is itself, which does not count; None if there is none.
    """
    n = len(bounds.left)
    best = torch.full((n, k), torch.inf, dtype=bounds.left.dtype)
    index = torch.zeros(n, k, dtype=torch.int64)

    def improve(rows: slice, start: int, values: torch.Tensor, found: torch.Tensor) -> None:
        values, found = torch.cat([best[rows], values], 1), torch.cat([index[rows], found + start], 1)
        best[rows], chosen = values.topk(k, 1, largest=False)
        index[rows] = found.gather(1, chosen)

    for rows, columns, low in bounds.blocks(*(_SQUARE, _SQUARE) if bounds.within else (_ROWS, _COLUMNS)):
        if own is not None:
            place = own[rows] - columns.start
            here = ((place >= 0) & (place < low.shape[1])).nonzero().flatten()
            low[here, place[here]] = torch.inf
        improve(rows, columns.start, *_least(low, k))
        if bounds.within and rows != columns:
            improve(columns, rows.start, *_least(low.T, k))
    return best[:, -1].double(), index


def _sorted(x: torch.Tensor, y: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances of each row to its candidates (n, k), ascending, and the candidates in that order."""
    size = max(1, _NUMBERS // (index.shape[1] * x.shape[1]))
    parts = [y[i].sub_(a[:, None]).norm(dim=2) for a, i in zip(x.split(size), index.split(size))]
    distances, order = torch.cat(parts).sort(dim=1, stable=True)
    return distances, index.gather(1, order)


def _least(low: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k least entries of each row (all, if there are fewer) and where they stand."""
    width = low.shape[1]
    if width <= 4 * k * _GROUP:
        return low.topk(min(k, width), 1, largest=False)
    # The k least entries lie within the k groups with the least minima, or among what is left over at the end.
    groups = low[:, : width - width % _GROUP].unflatten(1, (-1, _GROUP)).amin(2)
    chosen = groups.topk(k, 1, largest=False).indices  # (rows, k)
    within = (chosen[:, :, None] * _GROUP + torch.arange(_GROUP)).flatten(1)  # (rows, k * 32)
    rest = torch.arange(width - width % _GROUP, width).expand(len(low), -1)
    columns = torch.cat([within, rest], 1)
    values, place = low.gather(1, columns).topk(k, 1, largest=False)
    return values, columns.gather(1, place)
