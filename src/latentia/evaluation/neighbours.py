"""Nearest neighbours: precision and recall, density and coverage, and whether samples are copies. In float64.

Distances are Euclidean, worked out block by block: memory grows with n, not with n^2.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from latentia.errors import DataError, UsageError
from latentia.evaluation.features import check_features

_ROWS, _COLUMNS, _SQUARE = 512, 2048, 2048  # of a block of distances
_GROUP = 32  # neighbouring columns of which only the least matters at first
# Two roundings of one distance agree to about this, relative to the largest square. So a ball of radius 0 has copies.
_SLACK = 1e-13


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
    return _nearest(*_centred(queries, points), k, exclude_self)


def precision_recall(*, real: torch.Tensor, fake: torch.Tensor, k: int = 3, density_k: int = 5) -> PrecisionRecall:
    """Precision, recall, density and coverage from balls around images, each up to its k-th nearest of its own set.

    With B_k(x) the closed ball around x up to its k-th neighbour, not counting x itself: precision is the share of fake
    images in any real B_k, recall the share of real images in any fake B_k, density `sum_ij [fake_j in B_k(real_i)] /
    (k n_fake)` and coverage the share of real B_k that hold a fake image. Compare only at equal n.

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
    real, fake = _centred(real, fake)
    scale = max(float(real.square().sum(1).max()), float(fake.square().sum(1).max()))
    own = _nearest(real, real, max(k, density_k), True)[0].square() + _SLACK * scale  # (n, K), squared radii
    radius, density_radius = own[:, k - 1], own[:, density_k - 1]
    fake_radius = _nearest(fake, fake, k, True)[0][:, k - 1].square() + _SLACK * scale

    precise = torch.zeros(len(fake), dtype=torch.bool)
    recalled, covered = (torch.zeros(len(real), dtype=torch.bool) for _ in range(2))
    inside = 0
    for rows, columns, squares in _blocks(real, fake):
        # Bytes are reduced many times faster than booleans.
        precise[columns] |= (squares <= radius[rows, None]).view(torch.uint8).amax(0).bool()
        recalled[rows] |= (squares <= fake_radius[columns]).view(torch.uint8).amax(1).bool()
        within = squares <= density_radius[rows, None]
        covered[rows] |= within.view(torch.uint8).amax(1).bool()
        inside += int(within.count_nonzero())
    return PrecisionRecall(
        *(float(share.double().mean()) for share in (precise, recalled)),
        inside / (density_k * len(fake)),
        float(covered.double().mean()),
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


def _centred(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in float64 about a common origin: |x|^2 + |y|^2 - 2 x.y loses digits far from it."""
    origin = b.double().mean(0)
    return a.double() - origin, b.double() - origin


def _blocks(x: torch.Tensor, y: torch.Tensor, within: bool = False) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Rows, columns and squared distances (rows, columns) of the blocks; good to about 1e-15 of the largest square.

    `within` one set, x, each pair comes once: the blocks are square, and those below the diagonal are left out.
    """
    height, width = (_SQUARE, _SQUARE) if within else (_ROWS, _COLUMNS)
    # |x|^2 + |y|^2 - 2 x.y as one product: (x, |x|^2, 1) . (-2 y, 1, |y|^2)
    one = torch.ones(1, dtype=torch.float64)
    left = torch.cat([x, x.square().sum(1, keepdim=True), one.expand(len(x), 1)], 1)
    right = torch.cat([-2 * y, one.expand(len(y), 1), y.square().sum(1, keepdim=True)], 1)
    for i in range(0, len(x), height):
        for j in range(i if within else 0, len(y), width):
            rows, columns = slice(i, i + height), slice(j, j + width)
            yield rows, columns, left[rows] @ right[columns].T


def _nearest(x: torch.Tensor, y: torch.Tensor, k: int, exclude_self: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """`nearest` of centred float64 features."""
    best = torch.full((len(x), k), torch.inf, dtype=torch.float64)
    index = torch.zeros(len(x), k, dtype=torch.int64)

    def improve(rows: slice, start: int, squares: torch.Tensor) -> None:
        values, found = _least(squares, k)
        values, found = torch.cat([best[rows], values], 1), torch.cat([index[rows], found + start], 1)
        best[rows], chosen = values.topk(k, 1, largest=False)
        index[rows] = found.gather(1, chosen)

    for rows, columns, squares in _blocks(x, y, within=exclude_self):
        if exclude_self and rows == columns:
            squares.fill_diagonal_(torch.inf)
        elif exclude_self:
            improve(columns, rows.start, squares.T)
        improve(rows, columns.start, squares)
    # Once more from differences, in which nothing cancels: a copy is at distance 0.
    size = max(1, _ROWS * _COLUMNS // (k * x.shape[1]))
    exact = torch.cat([(a[:, None] - y[i]).square().sum(2).sqrt() for a, i in zip(x.split(size), index.split(size))])
    exact, order = exact.sort(1)
    return exact, index.gather(1, order)


def _least(squares: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k least entries of each row (all, if there are fewer) and where they stand."""
    width = squares.shape[1]
    if width <= 4 * k * _GROUP:
        return squares.topk(min(k, width), 1, largest=False)
    # The k least entries lie within the k groups with the least minima, or among what is left over at the end.
    groups = squares[:, : width - width % _GROUP].unflatten(1, (-1, _GROUP))
    chosen = groups.amin(2).topk(k, 1, largest=False).indices  # (rows, k)
    within = (chosen[:, :, None] * _GROUP + torch.arange(_GROUP)).flatten(1)  # (rows, k * 32)
    rest = torch.arange(width - width % _GROUP, width).expand(len(squares), -1)
    columns = torch.cat([within, rest], 1)
    values, place = squares.gather(1, columns).topk(k, 1, largest=False)
    return values, columns.gather(1, place)
