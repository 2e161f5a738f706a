"""Mode coverage and mode collapse: which of the known modes are reached, how evenly, and what falls between them.

The protocols that numbers are published for: 2500 samples of the ring and the grid (VEEGAN and PacGAN), 10 000 in Dive
into Deep Learning, 26 000 of Stacked MNIST. Coverage grows with the number of samples, so compare at equal n.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from latentia.errors import UsageError
from latentia.evaluation.features.base import FeatureExtractor, check_features, predict

PLANE_SAMPLES = 2_500  # VEEGAN's and PacGAN's, of ring and grid
STACKED_SAMPLES = 26_000  # VEEGAN's and PacGAN's, of Stacked MNIST
_CHUNK = 4096  # rows whose distances are held at once


@dataclass(frozen=True)
class Modes:
    """Result of `mode_coverage` for n points and K modes. Divergences in nats, 0 is best.

    Args:
        covered: modes with at least one high-quality point, 0 ... K; K is best.
        total: K.
        high_quality: share of points within `within` standard deviations of their nearest centre, in [0, 1].
        real_high_quality: what true samples score; no generator should score clearly more.
        reverse_kl: KL(generated || true) over the K modes, of the high-quality points alone; infinite if there are
            none. It says how evenly modes are used, and nothing of the points that miss them all.
        real_reverse_kl: its mean for true samples at the same number of points, (K - 1) / 2n to first order.
        off_mode_kl: KL(generated || true) over K + 1 bins, the last for points that miss all modes. The stricter one.
        real_off_mode_kl: its mean for true samples, K / 2n to first order.
        median_distance: Euclidean, of the points to the centre that is theirs; unit of the points.
        counts: high-quality points of each mode.
        n: how many points were measured.
    """

    covered: int
    total: int
    high_quality: float
    real_high_quality: float
    reverse_kl: float
    real_reverse_kl: float
    off_mode_kl: float
    real_off_mode_kl: float
    median_distance: float
    counts: list[int]
    n: int


def mode_coverage(
    points: torch.Tensor,
    centres: torch.Tensor,
    sigma: float | torch.Tensor,
    *,
    weights: torch.Tensor | None = None,
    within: float = 3.0,
) -> Modes:
    """How a sample covers the modes of a Gaussian mixture whose modes stand apart.

    A point belongs to the centre that is nearest in standard deviations. It is of high quality if that is within
    `within` of them; a mode is covered if one such point belongs to it.

    Args:
        points: generated, (n, D). `PLANE_SAMPLES` of them, 2500, for numbers that compare with papers.
        centres: (K, D) of the modes, further apart than 2 * within * sigma.
        sigma: standard deviation of all modes; or (K, 1) or (K, D), of each mode and axis.
        weights: (K,) shares of the modes, which need not add up to 1. Default: equal.
        within: radius in standard deviations, default 3.0: true samples score 0.9889 in two dimensions, 1 - e^(-9/2).

    Raises:
        UsageError: shapes that do not fit, sigma, weights or within not positive.
        NumericsError: a point is NaN or infinite.

    References:
        "VEEGAN", Srivastava et al. 2017, arXiv:1705.07761, section 4.1 (modes, high quality); "PacGAN", Lin et al.
        2017, arXiv:1712.04086, section 4.1 (reverse KL); "Dive into Deep Learning", Zhang et al., arXiv:2106.11342,
        chapter on generative adversarial networks (the bin of points off all modes, the median distance).

    Example:
        >>> centres = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
        >>> modes = mode_coverage(torch.tensor([[0.0, 0.01], [0.02, 0.0], [0.5, 0.5]]), centres, sigma=0.01)
        >>> modes.covered, modes.counts, round(modes.high_quality, 4), round(modes.reverse_kl, 4)
        (1, [2, 0], 0.6667, 0.6931)
    """
    check_features(points)
    check_features(centres)
    total, dimension = centres.shape
    if points.shape[1] != dimension:
        raise UsageError(f"`points` must have the dimension of `centres`, {dimension}. Got {points.shape[1]}.")
    deviations = torch.as_tensor(sigma, dtype=torch.float64).cpu()
    if deviations.ndim not in (0, 2) or (
        deviations.ndim == 2 and tuple(deviations.shape) not in {(total, 1), (total, dimension)}
    ):
        raise UsageError(
            f"`sigma` must be one number, or of shape ({total}, 1) or ({total}, {dimension}). "
            f"Got shape {tuple(deviations.shape)}."
        )
    if not (bool((deviations > 0).all()) and bool(deviations.isfinite().all()) and 0 < within < math.inf):
        raise UsageError(f"`sigma` and `within` must be positive. Got {deviations.tolist()} and {within}.")
    deviations = deviations.expand(total, dimension)
    means = centres.cpu().double()
    true = _shares(weights, total)

    nearest, scaled, plain = [], [], []
    for rows in points.cpu().double().split(_CHUNK):
        gaps = rows[:, None] - means  # (rows, K, D)
        least = (gaps / deviations).square().sum(2).sqrt().min(1)
        nearest.append(least.indices)
        scaled.append(least.values)
        plain.append(gaps.square().sum(2).sqrt().gather(1, least.indices[:, None]).squeeze(1))
    n, mode = len(points), torch.cat(nearest)
    good = torch.cat(scaled) <= within
    counts = torch.bincount(mode[good], minlength=total)
    inside = float(torch.special.gammainc(*torch.tensor([dimension / 2, within**2 / 2], dtype=torch.float64)))
    hits = int(good.sum())
    return Modes(
        covered=int((counts > 0).sum()),
        total=total,
        high_quality=hits / n,
        real_high_quality=inside,
        reverse_kl=_divergence(counts, true) if hits else math.inf,
        real_reverse_kl=(total - 1) / (2 * n * inside),
        off_mode_kl=_divergence(
            torch.cat([counts, torch.tensor([n - hits])]), torch.cat([inside * true, true.new_tensor([1 - inside])])
        ),
        real_off_mode_kl=total / (2 * n),
        median_distance=float(torch.cat(plain).median()),
        counts=counts.tolist(),
        n=n,
    )


@dataclass(frozen=True)
class StackedModes:
    """Result of `stacked_modes` for n images.

    Args:
        covered: combinations of classes that occur, 0 ... `total`; more is better.
        total: combinations that there are, 1000 for digits.
        kl: KL(generated || true) over them in nats, 0 is best.
        real_kl: its mean for true samples at the same n, (total - 1) / 2n to first order: 0.0192 at 26 000.
        counts: images of each combination.
        n: how many images were measured.
    """

    covered: int
    total: int
    kl: float
    real_kl: float
    counts: list[int]
    n: int


def stacked_logits(images: torch.Tensor | Iterable[torch.Tensor], extractor: FeatureExtractor) -> torch.Tensor:
    """Logits of a classifier of grey images for each channel: (n, C, K).

    Args:
        images: (n, C, H, W) in [-1, 1], or an iterable of such batches. Coverage is published for `STACKED_SAMPLES`
            images, 26 000.
        extractor: of (1, H, W), such as `load_extractor("mnist")`.

    Example:
        >>> from latentia.evaluation import load_extractor
        >>> stacked_logits(torch.rand(5, 3, 8, 8) * 2 - 1, load_extractor("digits")).shape
        torch.Size([5, 3, 10])
    """
    batches = [images] if isinstance(images, torch.Tensor) else images
    parts = []
    for batch in batches:
        if batch.ndim != 4:
            raise UsageError(f"`images` must have shape (n, C, H, W). Got {tuple(batch.shape)}.")
        logits = predict(batch.flatten(0, 1)[:, None], extractor).logits
        if logits is None:
            raise UsageError(f"`extractor` must be a classifier. {extractor.name} knows no classes.")
        parts.append(logits.unflatten(0, batch.shape[:2]))
    if not parts:
        raise UsageError("`images` must hold at least one batch. Got an empty iterable.")
    return torch.cat(parts)


def stacked_modes(logits: torch.Tensor, weights: torch.Tensor | None = None) -> StackedModes:
    """How many of the K^C combinations of classes a sample of stacked images reaches, and how evenly.

    The count depends on the classifier, which sees a class in any noise, and on n: state both.

    Args:
        logits: (n, C, K) from `stacked_logits`, n = `STACKED_SAMPLES` for numbers that compare with papers.
        weights: (K^C,) shares of the combinations among real images, first channel first, for example the `counts` of
            `stacked_modes` of real images. Default: equal, as PacGAN has it.

    Raises:
        UsageError: another shape.
        NumericsError: logits are NaN or infinite.

    References:
        "Unrolled Generative Adversarial Networks", Metz et al. 2016, arXiv:1611.02163, section 3.3; "PacGAN", Lin et
        al. 2017, arXiv:1712.04086, section 4.2.

    Example:
        >>> modes = stacked_modes(torch.eye(10)[torch.tensor([[1, 2, 3], [1, 2, 3], [9, 9, 9]])])
        >>> modes.covered, modes.total, modes.counts[123], modes.counts[999]
        (2, 1000, 2, 1)
    """
    if logits.ndim != 3 or not logits.numel():
        raise UsageError(f"`logits` must have shape (n, C, K), n >= 1. Got {tuple(logits.shape)}.")
    check_features(logits.flatten(1))
    n, channels, classes = logits.shape
    total = classes**channels
    place = classes ** torch.arange(channels - 1, -1, -1)
    counts = torch.bincount((logits.argmax(2) * place.to(logits.device)).sum(1), minlength=total).cpu()
    return StackedModes(
        covered=int((counts > 0).sum()),
        total=total,
        kl=_divergence(counts, _shares(weights, total)),
        real_kl=(total - 1) / (2 * n),
        counts=counts.tolist(),
        n=n,
    )


class Birthday(NamedTuple):
    """Result of `birthday_test`.

    Args:
        duplicates: pairs of samples closer than the threshold.
        support: about how many different samples there are, 1 / P(two are duplicates); infinite without any
            duplicate, which says only that it is not much below n^2 / 2.
        batch: the number of samples among which duplicates appear with probability 1/2, 1.18 sqrt(support).
    """

    duplicates: int
    support: float
    batch: float


def birthday_test(features: torch.Tensor, threshold: float) -> Birthday:
    """The size of a generator's support, from how often two samples are the same.

    All pairs of the n samples are looked at, instead of a few batches of them: of N equally likely samples two are the
    same with probability 1/N.

    Args:
        features: (n, D) of samples, n >= 2: pixels or an extractor's features.
        threshold: Euclidean distance below which two are called the same, such as the 1 % quantile of the distances of
            real images to their nearest other one.

    References:
        "Do GANs actually learn the distribution? An empirical study", Arora and Zhang 2017,
        arXiv:1706.08224.

    Example:
        >>> test = birthday_test(torch.arange(10.0).repeat(2)[:, None], threshold=0.5)
        >>> test.duplicates, round(test.support, 6)
        (10, 19.0)
    """
    check_features(features)
    n = len(features)
    if n < 2 or not threshold > 0:
        raise UsageError(f"A birthday test needs n >= 2 and `threshold` > 0. Got n = {n} and threshold = {threshold}.")
    x = features.cpu().double()
    close = 0
    for start in range(0, n, _CHUNK):
        rows = x[start : start + _CHUNK]
        exact = "donot_use_mm_for_euclid_dist"  # a product would leave 1e-8 between equal rows
        close += int((torch.cdist(rows, x[start:], compute_mode=exact) < threshold).triu(1).sum())
    support = n * (n - 1) / 2 / close if close else math.inf
    return Birthday(close, support, math.sqrt(2 * math.log(2) * support))


def _shares(weights: torch.Tensor | None, total: int) -> torch.Tensor:
    """Weights (total,) in float64 that add up to 1; equal by default."""
    if weights is None:
        return torch.full((total,), 1 / total, dtype=torch.float64)
    shares = torch.as_tensor(weights, dtype=torch.float64).cpu()
    if shares.shape != (total,) or not bool((shares >= 0).all()) or not 0 < float(shares.sum()) < math.inf:
        raise UsageError(
            f"`weights` must be {total} numbers >= 0, not all of them 0. Got shape {tuple(shares.shape)}, sum "
            f"{float(shares.sum()):.4g}."
        )
    return shares / shares.sum()


def _divergence(counts: torch.Tensor, true: torch.Tensor) -> float:
    """KL(counts / sum || true) in nats; infinite where something was counted that cannot be."""
    share = counts.double() / counts.sum()
    return float(torch.where(share > 0, share * (share / true).log(), 0.0).sum().clamp(min=0))
