"""Class-based metrics from the logits of a classifier: Inception score, entropies, histograms. In float64."""

import torch

from latentia.errors import UsageError
from latentia.evaluation.features.base import check_features
from latentia.rng import seed_from


def inception_score(logits: torch.Tensor, splits: int = 10, *, seed: int = 0) -> tuple[float, float]:
    """`exp E_x KL(p(c|x) || p(c))`: between 1 (all images alike, or all unsure) and K (sure of each, classes balanced).

    Args:
        logits: (n, K).
        splits: random equal parts, whose scores are averaged. The score of a part is biased by its size.
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
    """Confidence and entropies of a classifier: quality and diversity of images.

    Args:
        logits: (n, K).

    Returns:
        Float64 scalars: `confidence` E max_c p(c|x), `entropy` E H(p(c|x)) in nats, low when each image is clearly
        of one class; `marginal_entropy` H(E p(c|x)) in nats, ln K for balanced classes and 0 for a single one.

    Example:
        >>> {key: round(value.item(), 4) for key, value in class_entropies(1e4 * torch.eye(10)).items()}
        {'confidence': 1.0, 'entropy': 0.0, 'marginal_entropy': 2.3026}
    """
    check_features(logits)
    log_p = logits.cpu().double().log_softmax(1)
    p = log_p.exp()
    return {
        "confidence": p.amax(1).mean(),
        "entropy": torch.special.entr(p).sum(1).mean(),
        "marginal_entropy": torch.special.entr(p.mean(0)).sum(),
    }


def class_counts(logits: torch.Tensor) -> list[int]:
    """How many of the images (n, K) are most likely of each of the K classes."""
    check_features(logits)
    return torch.bincount(logits.cpu().argmax(1), minlength=logits.shape[1]).tolist()


def missing_classes(logits: torch.Tensor, real_logits: torch.Tensor) -> list[int]:
    """Classes that real images have and no sample gets: modes that were dropped.

    Args:
        logits: of the generated images, (n, K).
        real_logits: of real images, (m, K).

    Returns:
        Their indices, ascending. With few samples a rare class may be missing by chance.

    Raises:
        UsageError: the two have another K.
        NumericsError: a logit is NaN or infinite.

    Example:
        >>> missing_classes(torch.eye(4)[[0, 1, 1]], torch.eye(4)[[0, 1, 2]])
        [2]
    """
    counts, real_counts = _both_counts(logits, real_logits)
    return ((counts == 0) & (real_counts > 0)).nonzero()[:, 0].tolist()


def class_divergence(logits: torch.Tensor, real_logits: torch.Tensor) -> float:
    """`KL(q || p) = sum_c q_c ln(q_c / p_c)` in nats, q of the generated and p of the real images' class histogram.

    The direction of the mode-counting papers ("reverse KL"): 0 for equal histograms, ln K for a single one of K equally
    frequent classes. A class that samples never get adds nothing by itself (see `missing_classes`); one that only
    samples get is given half a real image, so that the value stays finite.

    Args:
        logits: of the generated images, (n, K); only the most likely class counts.
        real_logits: of real images, (m, K).

    Returns:
        The divergence; >= 0. By chance alone it is about (K - 1) / 2 (1/n + 1/m).

    Raises:
        UsageError: the two have another K.
        NumericsError: a logit is NaN or infinite.

    References:
        "PacGAN: The power of two samples in generative adversarial networks", Lin et al. 2018, arXiv:1712.04086,
        section 4, for the direction.

    Example:
        >>> round(class_divergence(torch.eye(4)[[0, 0]], torch.eye(4)), 4)  # ln 4
        1.3863
    """
    counts, real_counts = _both_counts(logits, real_logits)
    filled = torch.where((counts > 0) & (real_counts == 0), 0.5, real_counts)
    q, p = counts / counts.sum(), filled / filled.sum()
    return max(0.0, float(torch.where(q > 0, q * (q / p).log(), 0.0).sum()))


def _both_counts(logits: torch.Tensor, real_logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    for part in (logits, real_logits):
        check_features(part)
    if logits.shape[1] != real_logits.shape[1]:
        raise UsageError(
            "`logits` and `real_logits` must be of one classifier, with the same number of classes. Got "
            f"{logits.shape[1]} and {real_logits.shape[1]}."
        )
    counts, real_counts = (torch.tensor(class_counts(part), dtype=torch.float64) for part in (logits, real_logits))
    return counts, real_counts
