"""Distances between sets of images, and the report that puts each beside what real images get at the same n.

All in float64. A Frechet distance of n images is biased upwards by an amount that depends on n, on the reference and on
the extractor, so a bare number says nothing: compare it with the floor of its own report, and only reports of equal n
and equal `extractor_sha256` with each other.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from latentia.errors import NumericsError, UsageError
from latentia.evaluation.features import FeatureExtractor, Predictions, check_features, predict
from latentia.random import seed_from

SPLITS = 5  # random (held-out, reference) splits of the real images that a report averages over
_CHUNK = 4096  # rows that are held in float64 at once
# A covariance may have eigenvalues down to -1e-8 times its largest one: rounding of float64 sums over float32 features.
_EIGENVALUE_TOLERANCE = 1e-8


class Moments:
    """Count, mean and covariance of features, gathered chunk by chunk.

    Chunks are merged by their own means (Chan, Golub and LeVeque 1983), so a large common offset costs no digits.

    Example:
        >>> moments = Moments()
        >>> for chunk in torch.randn(10, 3).split(4):
        ...     moments.update(chunk)
        >>> moments.n, tuple(moments.covariance.shape)
        (10, (3, 3))
    """

    def __init__(self) -> None:
        self.n = 0
        self.mean = torch.zeros(())  # (D,) from the first update on
        self.scatter = torch.zeros(())  # (D, D), sum of (x - mean)(x - mean)^T

    def update(self, features: torch.Tensor) -> None:
        """Take in features (n, D), any float type."""
        check_features(features)
        for chunk in features.split(_CHUNK):
            x = chunk.double()
            mean = x.mean(0)
            centred = x - mean
            self.merge(len(x), mean, centred.T @ centred)

    def merge(self, n: int, mean: torch.Tensor, scatter: torch.Tensor) -> None:
        """Take in the count, mean (D,) and scatter (D, D) of other features, for example of another process."""
        if self.n == 0:
            self.mean, self.scatter = torch.zeros_like(mean), torch.zeros_like(scatter)
        if mean.shape != self.mean.shape:
            raise UsageError(
                f"Features must have the dimension of the earlier ones, {len(self.mean)}. Got {len(mean)}."
            )
        total = self.n + n
        delta = mean - self.mean
        self.scatter = self.scatter + scatter + torch.outer(delta, delta) * (self.n * n / total)
        self.mean = self.mean + delta * (n / total)
        self.n = total

    @property
    def covariance(self) -> torch.Tensor:
        """Unbiased covariance (D, D), divided by n - 1."""
        if self.n < 2:
            raise UsageError(f"A covariance needs n >= 2 images. Got {self.n}.")
        return self.scatter / (self.n - 1)


def frechet_distance(a: torch.Tensor | Moments, b: torch.Tensor | Moments) -> float:
    """Frechet distance of the Gaussians fitted to two sets of features.

    Args:
        a, b: features (n, D), n >= 2, or their `Moments`.

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
    a, b = (part if isinstance(part, Moments) else _moments(part) for part in (a, b))
    covariance_a, covariance_b = a.covariance, b.covariance
    if len(a.mean) != len(b.mean):
        raise UsageError(f"`a` and `b` must have the same feature dimension. Got {len(a.mean)} and {len(b.mean)}.")
    return frechet_distance_of_gaussians(a.mean, covariance_a, b.mean, covariance_b)


def frechet_distance_of_gaussians(
    mean_a: torch.Tensor, covariance_a: torch.Tensor, mean_b: torch.Tensor, covariance_b: torch.Tensor
) -> float:
    """`|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2)`, the squared 2-Wasserstein distance.

    With `S_a = A A^T` and `S_b = B B^T` the trace equals `min_U |A - B U|^2` over orthogonal U, and the best U comes
    from the singular vectors of `A^T B`. This cannot be negative, and nothing cancels when the Gaussians are close.

    Args:
        mean_a, mean_b: (D,).
        covariance_a, covariance_b: (D, D), symmetric, positive semi-definite. Eigenvalues down to -1e-8 times the
            largest entry pass as rounding and count as 0.

    Raises:
        NumericsError: a covariance is not finite, not symmetric or has a clearly negative eigenvalue.

    Example:
        >>> zero, one = torch.zeros(3), torch.eye(3)
        >>> round(frechet_distance_of_gaussians(zero, one, zero + 2, 9 * one), 9)  # 3 * 2^2 + 3 * (1 - 3)^2
        24.0
    """
    root_a, root_b = _root("covariance_a", covariance_a), _root("covariance_b", covariance_b)
    left, _, right = torch.linalg.svd(root_a.T @ root_b)
    rotation = (left @ right).T  # U that brings B nearest to A
    shift = mean_a.double() - mean_b.double()
    return float(shift.square().sum() + (root_a - root_b @ rotation).square().sum())


def _root(name: str, covariance: torch.Tensor) -> torch.Tensor:
    """A with A A^T = covariance."""
    covariance = covariance.double()
    scale = covariance.abs().max()
    if not (scale.isfinite() and (covariance - covariance.T).abs().max() <= 1e-8 * scale):
        raise NumericsError(f"`{name}` must be finite and symmetric.")
    values, vectors = torch.linalg.eigh(covariance)
    if values[0] < -_EIGENVALUE_TOLERANCE * scale:
        raise NumericsError(f"`{name}` must be positive semi-definite. Its least eigenvalue is {float(values[0]):.3g}.")
    return vectors * values.clamp(min=0).sqrt()


def kernel_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Kernel distance (KID): unbiased squared MMD under `k(x, y) = (x.y / D + 1)^3`.

    Its mean does not depend on n and is 0 for equal distributions, so single values may be negative.

    Args:
        a, b: features (n, D) and (m, D), n, m >= 2.

    References:
        "Demystifying MMD GANs", Binkowski et al. 2018, arXiv:1801.01401, equation 4.

    Example:
        >>> round(kernel_distance(torch.zeros(4, 2), torch.ones(3, 2)), 9)  # 1 + (1 + 1)^3 - 2
        7.0
    """
    for features in (a, b):
        check_features(features)
        if len(features) < 2:
            raise UsageError(f"A kernel distance needs n >= 2 images in each set. Got {len(features)}.")
    if a.shape[1] != b.shape[1]:
        raise UsageError(f"`a` and `b` must have the same feature dimension. Got {a.shape[1]} and {b.shape[1]}.")
    a, b = a.double(), b.double()
    n, m, dimension = len(a), len(b), a.shape[1]

    def total(x: torch.Tensor, y: torch.Tensor) -> float:
        return sum(float(((rows @ y.T) / dimension + 1).pow(3).sum()) for rows in x.split(_CHUNK))

    def diagonal(x: torch.Tensor) -> float:
        return float((x.square().sum(1) / dimension + 1).pow(3).sum())

    within_a = (total(a, a) - diagonal(a)) / (n * (n - 1))
    within_b = (total(b, b) - diagonal(b)) / (m * (m - 1))
    return within_a + within_b - 2 * total(a, b) / (n * m)


def inception_score(logits: torch.Tensor, splits: int = 10, *, seed: int = 0) -> tuple[float, float]:
    """`exp E_x KL(p(c|x) || p(c))`: between 1 (all images alike, or all unsure) and K (sure of each, classes balanced).

    Args:
        logits: (n, K).
        splits: equal parts, drawn at random, whose scores are averaged. The score of a part is biased by its size.
        seed: of the random parts.

    Returns:
        Mean and standard deviation over the parts.

    References:
        "Improved Techniques for Training GANs", Salimans et al. 2016, arXiv:1606.03498, section 4.

    Example:
        >>> mean, deviation = inception_score(1e4 * torch.eye(10), splits=1)
        >>> round(mean, 9), deviation
        (10.0, 0.0)
    """
    check_features(logits)
    if not 1 <= splits <= len(logits):
        raise UsageError(f"`splits` must be between 1 and the number of images, {len(logits)}. Got {splits}.")
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed_from(seed, "inception score")))
    scores = torch.stack(
        [
            (class_entropies(part)["marginal_entropy"] - class_entropies(part)["entropy"]).exp()
            for part in logits[order].tensor_split(splits)
        ]
    )
    return float(scores.mean()), float(scores.std(correction=0))


def class_entropies(logits: torch.Tensor) -> dict[str, torch.Tensor]:
    """Quality and diversity as the classifier sees them.

    Args:
        logits: (n, K).

    Returns:
        Float64 scalars: `confidence` E max_c p(c|x), `entropy` E H(p(c|x)) in nats, low when each image is clearly
        of one class; `marginal_entropy` H(E p(c|x)) in nats, ln K for balanced classes and 0 for a single one.

    Example:
        >>> {key: round(value.item(), 4) for key, value in class_entropies(1e4 * torch.eye(10)).items()}
        {'confidence': 1.0, 'entropy': 0.0, 'marginal_entropy': 2.3026}
    """
    log_p = logits.double().log_softmax(1)
    p = log_p.exp()
    return {
        "confidence": p.amax(1).mean(),
        "entropy": torch.special.entr(p).sum(1).mean(),
        "marginal_entropy": torch.special.entr(p.mean(0)).sum(),
    }


@dataclass(frozen=True)
class Report:
    """What `score` found. Every `floor` and `real_` value is what real images get at the same n.

    Args:
        fd, fd_sd: Frechet distance of the generated images to the reference; mean and sd over the random splits. A
            value clearly below the floor means copies of the real images.
        floor, floor_sd: the same distance of n held-out real images to the same references.
        kid, kid_floor: kernel distance to n reference images, likewise with sd; may be negative.
        inception_score, real_inception_score: with their sd over `inception_splits` parts.
        confidence, entropy, marginal_entropy: see `class_entropies`; entropies in nats.
        class_counts, real_class_counts: images per most likely class, of the n generated and of all real images.
        n, n_real: how many images were compared.
        feature_dim: width D of the features.
        low_sample: n < 2 D, where the covariance is poorly known and the floor lies high; trust `kid` rather than `fd`.
        extractor, extractor_sha256, seed: what has to be equal for two reports to compare.
    """

    fd: float
    fd_sd: float
    floor: float
    floor_sd: float
    kid: float
    kid_sd: float
    kid_floor: float
    kid_floor_sd: float
    inception_score: float
    inception_score_sd: float
    real_inception_score: float
    real_inception_score_sd: float
    inception_splits: int
    confidence: float
    entropy: float
    marginal_entropy: float
    class_counts: list[int]
    real_class_counts: list[int]
    n: int
    n_real: int
    feature_dim: int
    low_sample: bool
    extractor: str
    extractor_sha256: str
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for JSON and model cards."""
        return asdict(self)

    def text(self) -> str:
        """One line for the terminal."""
        label = f"n={self.n}, low-sample" if self.low_sample else f"n={self.n}"
        return (
            f"FD({label}) {self.fd:.3g} ± {self.fd_sd:.2g}, real {self.floor:.3g} ± {self.floor_sd:.2g} | "
            f"KID {self.kid:.3g} ± {self.kid_sd:.2g}, real {self.kid_floor:.3g} ± {self.kid_floor_sd:.2g} | "
            f"IS {self.inception_score:.3g} ± {self.inception_score_sd:.2g}, real {self.real_inception_score:.3g} | "
            f"{self.extractor} {self.extractor_sha256[:8]}"
        )


def score(
    images: torch.Tensor | Iterable[torch.Tensor] | Predictions,
    real: torch.Tensor | Iterable[torch.Tensor] | Predictions,
    extractor: FeatureExtractor,
    *,
    seed: int = 0,
) -> Report:
    """Measure n generated images against N real ones, beside the floor that n real images reach.

    For each of 5 random splits of the real images into n held-out ones H and the rest R it takes FD(generated, R) and
    the floor FD(H, R): the same n and the same reference, so that the two differ by the generator alone.

    Args:
        images: generated, (n, C, H, W) in [-1, 1], or an iterable of such batches, or `predict(...)` of them; n >= 2.
        real: N real images likewise, N >= 2 n, so that a reference is never smaller than what is measured. To score
            repeatedly against the same images, pass `predict(real, extractor)` made once.
        extractor: of both, from `load_extractor` or your own.
        seed: of the random splits.

    Raises:
        UsageError: n < 2, N < 2 n, or images of a wrong shape, type or range.
        DataError: images hold NaN.
        NumericsError: features hold NaN.

    Example:
        >>> from latentia.evaluation import load_extractor
        >>> noise, real = torch.rand(20, 1, 8, 8) * 2 - 1, torch.rand(90, 1, 8, 8) * 2 - 1
        >>> report = score(noise, real, load_extractor("digits"))
        >>> report.n, report.low_sample
        (20, True)
    """
    features, logits = predict(images, extractor)
    real_features, real_logits = predict(real, extractor)
    n, total, dimension = len(features), len(real_features), features.shape[1]
    if n < 2:
        raise UsageError(f"`images` must hold at least 2 images. Got {n}.")
    if total < 2 * n:
        raise UsageError(
            f"`real` must hold at least twice as many images as `images`, 2 * {n} = {2 * n}, so that {n} can be held "
            f"out and a reference of no smaller size remains. Got {total}; pass images[:{total // 2}] or more real "
            "images."
        )
    # One part below 100 images: tenths would hold fewer images than there are classes.
    inception_splits = 10 if n >= 100 else 1
    generated = _moments(features)
    rows = []
    for split in range(SPLITS):
        generator = torch.Generator().manual_seed(seed_from(seed, "held-out", split))
        held_out, rest = torch.randperm(total, generator=generator).tensor_split([n])
        reference = _moments(real_features[rest])
        rows.append(
            [
                frechet_distance(generated, reference),
                frechet_distance(real_features[held_out], reference),
                kernel_distance(features, real_features[rest[:n]]),
                kernel_distance(real_features[held_out], real_features[rest[:n]]),
                *inception_score(real_logits[held_out], inception_splits, seed=seed),
            ]
        )
    table = torch.tensor(rows, dtype=torch.float64)
    fd, floor, kid, kid_floor, real_is, real_is_sd = table.mean(0).tolist()
    fd_sd, floor_sd, kid_sd, kid_floor_sd = table[:, :4].std(0).tolist()
    inception, inception_sd = inception_score(logits, inception_splits, seed=seed)
    return Report(
        fd=fd,
        fd_sd=fd_sd,
        floor=floor,
        floor_sd=floor_sd,
        kid=kid,
        kid_sd=kid_sd,
        kid_floor=kid_floor,
        kid_floor_sd=kid_floor_sd,
        inception_score=inception,
        inception_score_sd=inception_sd,
        real_inception_score=real_is,
        real_inception_score_sd=real_is_sd,
        inception_splits=inception_splits,
        **{key: float(value) for key, value in class_entropies(logits).items()},
        class_counts=class_counts(logits),
        real_class_counts=class_counts(real_logits),
        n=n,
        n_real=total,
        feature_dim=dimension,
        low_sample=n < 2 * dimension,
        extractor=extractor.name,
        extractor_sha256=extractor.sha256,
        seed=seed,
    )


def class_counts(logits: torch.Tensor) -> list[int]:
    """How many of the images (n, K) are most likely of each of the K classes."""
    return torch.bincount(logits.argmax(1), minlength=logits.shape[1]).tolist()


def _moments(features: torch.Tensor) -> Moments:
    moments = Moments()
    moments.update(features)
    return moments
