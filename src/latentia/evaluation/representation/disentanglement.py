"""Disentanglement: how far single dimensions of a code stand for single known factors of the images.

All scores need a set of images whose factors are known, such as `latentia.data.Factors`. Without such labels none of
them can be computed, and no objective makes a code disentangled without them (Locatello et al. 2019,
arXiv:1811.12359, theorem 1).
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch

from latentia.errors import NumericsError, UsageError
from latentia.evaluation.features.base import check_features
from latentia.evaluation.representation.factor_scores import (
    attribute_predictability_gap,
    dci,
    interventional_robustness,
    mutual_information_gap,
    off_diagonal_correlation,
)
from latentia.functional.pixels import from_uint8
from latentia.rng import seed_from

GROUP = 64  # images, or pairs, behind each point of the two group scores
PRUNED = 0.01  # dimensions with less than this share of the largest standard deviation carry nothing
_CHUNK = 2048  # images that are rendered and represented at once

Represent = Callable[[torch.Tensor], torch.Tensor]


class FactorSet(Protocol):
    """Images with K known factors of variation.

    Attributes:
        names: of the K factors.
        sizes: how many values each has.
        ordered: whether the values of each are a scale (a size, an angle) rather than kinds (a shape).
    """

    names: Sequence[str]
    sizes: Sequence[int]
    ordered: Sequence[bool]

    def render(self, indices: torch.Tensor) -> torch.Tensor:
        """Images (N, C, H, W), uint8, of factor indices (N, K), int64."""
        ...


@dataclass(frozen=True)
class Disentanglement:
    """Result of `disentanglement_scores`. All scores lie in [0, 1] and higher is better, but for the correlations.

    Args:
        mig: `mutual_information_gap`.
        sap: `attribute_predictability_gap`.
        dci_disentanglement, dci_completeness, dci_informativeness: `dci`.
        beta_vae, factor_vae: accuracies of guessing which factor was fixed; a blind guess reaches `chance`.
        irs: `interventional_robustness`.
        correlation, correlation_max: mean and largest |correlation| of two dimensions, 0 best; see
            `off_diagonal_correlation`.
        chance: 1 / K.
        active, dimension: dimensions that the scores are made of, and all.
        n, groups, seed: what was asked for.
    """

    mig: float
    sap: float
    dci_disentanglement: float
    dci_completeness: float
    dci_informativeness: float
    beta_vae: float
    factor_vae: float
    irs: float
    correlation: float
    correlation_max: float
    chance: float
    active: int
    dimension: int
    n: int
    groups: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON and model cards."""
        return asdict(self)

    def text(self) -> str:
        """One line for the terminal."""
        return (
            f"MIG {self.mig:.3f} | SAP {self.sap:.3f} | DCI {self.dci_disentanglement:.3f}, "
            f"{self.dci_completeness:.3f}, {self.dci_informativeness:.3f} | BetaVAE {self.beta_vae:.3f}, FactorVAE "
            f"{self.factor_vae:.3f} (chance {self.chance:.3f}) | IRS {self.irs:.3f} | |corr| {self.correlation:.3f}, "
            f"max {self.correlation_max:.3f} | {self.active} of {self.dimension} dimensions active, n={self.n}"
        )


def disentanglement_scores(
    represent: Represent, factors: FactorSet, *, n: int = 10_000, groups: int = 800, seed: int = 0
) -> Disentanglement:
    """Every score of a code, from images of `factors`.

    A dimension whose standard deviation is below 1 % of the largest one is left out of every score: what a collapsed
    dimension of a VAE still varies is noise, and scores that normalise each dimension would take it for a signal.

    Args:
        represent: images (B, C, H, W), float32 in [-1, 1], to codes (B, D). For a VAE, the mean of the posterior.
        factors: such as `latentia.data.Factors()`.
        n: images for all scores but the two of groups; at least 10 per value of the largest factor.
        groups: points that the BetaVAE and FactorVAE classifiers learn from; half as many more test them. Both together
            draw 1.5 * groups * 3 * 64 images, 230 400 at the default.
        seed: of the images and the classifiers.

    Raises:
        UsageError: an argument is out of range, or `represent` does not return (B, D).
        NumericsError: codes are NaN or infinite, or the code is the same for all images.

    Example:
        >>> from latentia.data import Factors
        >>> colours = lambda images: images.amax((2, 3))  # (B, 3)
        >>> scores = disentanglement_scores(colours, Factors(), n=200, groups=60)
        >>> scores.dimension, scores.mig < 0.5
        (3, True)
    """
    sizes = _sizes(factors)
    if n < 10 * max(sizes):
        raise UsageError(f"`n` must be at least 10 per value of the largest factor, {10 * max(sizes)}. Got {n}.")
    _check_groups(groups, len(sizes))
    indices = _uniform(sizes, (n,), seed, "factors")
    codes = _represent(represent, factors, indices)
    active = active_dimensions(codes)
    if not active.any():
        raise NumericsError(
            f"All {n} images have the same code of {codes.shape[1]} dimensions: the encoder has collapsed."
        )

    def represent_active(images: torch.Tensor) -> torch.Tensor:
        return represent(images)[:, active]

    z = codes[:, active]
    three = dci(z, indices, factors.ordered, seed=seed)
    correlation, correlation_max = off_diagonal_correlation(z)
    return Disentanglement(
        mig=mutual_information_gap(z, indices),
        sap=attribute_predictability_gap(z, indices, factors.ordered, seed=seed),
        dci_disentanglement=three.disentanglement,
        dci_completeness=three.completeness,
        dci_informativeness=three.informativeness,
        beta_vae=beta_vae_score(represent_active, factors, groups=groups, seed=seed),
        factor_vae=factor_vae_score(represent_active, factors, z.std(0), groups=groups, seed=seed),
        irs=interventional_robustness(z, indices),
        correlation=correlation,
        correlation_max=correlation_max,
        chance=1 / len(sizes),
        active=int(active.sum()),
        dimension=codes.shape[1],
        n=n,
        groups=groups,
        seed=seed,
    )


def active_dimensions(codes: torch.Tensor) -> torch.Tensor:
    """Which of the D dimensions of codes (n, D) vary: standard deviation above 1 % of the largest. Bool (D,)."""
    deviation = codes.double().std(0, correction=0)
    # Rounding leaves a constant some 1e-16 of its size.
    return deviation > torch.maximum(PRUNED * deviation.max(), 1e-12 * codes.double().abs().amax(0))


def beta_vae_score(represent: Represent, factors: FactorSet, *, groups: int = 800, seed: int = 0) -> float:
    """BetaVAE score: which factor do 64 pairs of images share? A linear classifier is asked.

    For each point a factor k is drawn; the two images of each of its 64 pairs agree in factor k and in nothing else
    but by chance. The point is the mean over pairs of `|z_1 - z_2|`, its class is k. The classifier is scikit-learn's
    logistic regression (lbfgs, C = 1) on standardised points.

    Args:
        represent: images (B, C, H, W), float32 in [-1, 1], to codes (B, D).
        factors: such as `latentia.data.Factors()`.
        groups: points to learn from, at least 10 per factor; half as many more are for testing.
        seed: of the images.

    Returns:
        Accuracy on the points not learned from: 1 / K by chance, 1 at best.

    References:
        "beta-VAE", Higgins et al. 2017 (ICLR), section 3.

    Example:
        >>> from latentia.data import Factors
        >>> score = beta_vae_score(lambda images: images.flatten(1)[:, ::64], Factors(), groups=60)
        >>> 0 <= score <= 1
        True
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    sizes = _sizes(factors)
    held = _held(groups, len(sizes), seed, "beta vae")
    first = _uniform(sizes, (len(held), GROUP), seed, "beta vae, first")  # (groups, pairs, K)
    second = _uniform(sizes, (len(held), GROUP), seed, "beta vae, second")
    same = torch.nn.functional.one_hot(held, len(sizes)).bool()[:, None]
    second = torch.where(same, first, second)
    parts = []
    # A few groups at a time: codes may be as wide as images.
    for pairs in torch.stack([first, second], 1).split(_CHUNK // (2 * GROUP)):
        z = _represent(represent, factors, pairs.flatten(0, 2)).view(len(pairs), 2, GROUP, -1)
        parts.append((z[:, 0] - z[:, 1]).abs().mean(1))
    points, classes = torch.cat(parts).numpy(), held.numpy()
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return float(classifier.fit(points[:groups], classes[:groups]).score(points[groups:], classes[groups:]))


def factor_vae_score(
    represent: Represent, factors: FactorSet, deviation: torch.Tensor, *, groups: int = 800, seed: int = 0
) -> float:
    """FactorVAE score: which factor do 64 images share? The dimension that varies least votes.

    For each point a factor k is drawn and 64 images that agree in it. The vote is the dimension with the least variance
    after division by `deviation` squared. Each dimension stands for the factor that it voted for most often.

    Args:
        represent: images (B, C, H, W), float32 in [-1, 1], to codes (B, D).
        factors: such as `latentia.data.Factors()`.
        deviation: standard deviation > 0 of each dimension over all images, (D,).
        groups: votes to learn from, at least 10 per factor; half as many more are for testing.
        seed: of the images.

    Returns:
        Share of right votes among those not learned from: 1 / K by chance, 1 at best.

    References:
        "Disentangling by Factorising", Kim and Mnih 2018, arXiv:1802.05983, section 4.

    Example:
        >>> from latentia.data import Factors
        >>> score = factor_vae_score(lambda images: images.amax((2, 3)), Factors(), torch.ones(3), groups=60)
        >>> 0 <= score <= 1
        True
    """
    sizes = _sizes(factors)
    if not (deviation > 0).all():
        raise UsageError("`deviation` must be above 0. A constant dimension would win every vote; leave it out.")
    held = _held(groups, len(sizes), seed, "factor vae")
    indices = _uniform(sizes, (len(held), GROUP), seed, "factor vae, images")  # (groups, images, K)
    same = torch.nn.functional.one_hot(held, len(sizes)).bool()[:, None]
    indices = torch.where(same, indices[:, :1], indices)
    parts = []
    for images in indices.split(_CHUNK // GROUP):
        z = _represent(represent, factors, images.flatten(0, 1)).view(len(images), GROUP, -1)
        parts.append((z.var(1) / deviation.cpu().double().square()).argmin(1))
    votes = torch.cat(parts)
    table = torch.zeros(len(deviation), len(sizes), dtype=torch.int64)
    table.index_put_((votes[:groups], held[:groups]), torch.tensor(1), accumulate=True)
    return float((table.argmax(1)[votes[groups:]] == held[groups:]).double().mean())


def _sizes(factors: FactorSet) -> tuple[int, ...]:
    sizes = tuple(factors.sizes)
    if not len(factors.names) == len(sizes) == len(factors.ordered) >= 2 or min(sizes) < 2:
        raise UsageError(
            "`factors` must have at least two factors of at least two values each, and as many `names`, `sizes` and "
            f"`ordered`. Got sizes {sizes}."
        )
    return sizes


def _check_groups(groups: int, count: int) -> None:
    if groups < 10 * count:
        raise UsageError(f"`groups` must be at least 10 per factor, {10 * count}. Got {groups}.")


def _held(groups: int, count: int, seed: int, stream: str) -> torch.Tensor:
    """The factor that each point holds fixed; the test points are last."""
    _check_groups(groups, count)
    generator = torch.Generator().manual_seed(seed_from(seed, stream))
    return torch.randint(count, (groups + groups // 2,), generator=generator)


def _uniform(sizes: Sequence[int], shape: tuple[int, ...], seed: int, stream: str) -> torch.Tensor:
    """Independent uniform factor indices (*shape, K)."""
    generator = torch.Generator().manual_seed(seed_from(seed, stream))
    return torch.stack([torch.randint(size, shape, generator=generator) for size in sizes], -1)


@torch.no_grad()
def _represent(represent: Represent, factors: FactorSet, indices: torch.Tensor) -> torch.Tensor:
    """Codes (n, D), float64, of the images with factor indices (n, K)."""
    parts = []
    for part in indices.split(_CHUNK):
        codes = represent(from_uint8(factors.render(part)))
        if not isinstance(codes, torch.Tensor) or codes.ndim != 2 or len(codes) != len(part):
            given = f"shape {tuple(codes.shape)}" if isinstance(codes, torch.Tensor) else type(codes).__name__
            raise UsageError(
                f"`represent` must return a tensor (B, D) for B = {len(part)} images. Got {given}; flatten what an "
                "encoder returns, as in `lambda images: model.encode(images).flatten(1)`."
            )
        check_features(codes)
        parts.append(codes.double().cpu())
    return torch.cat(parts)
