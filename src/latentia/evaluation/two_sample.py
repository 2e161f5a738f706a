"""Classifier two-sample test, train on synthetic test on real, and augmentation with synthetic images."""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from latentia.errors import DataError, UsageError
from latentia.evaluation.features.base import check_features
from latentia.rng import seed_from

if TYPE_CHECKING:
    import numpy as np

_SPREAD = 50  # principal components at most: enough for small images, few enough for some hundred of them


class TwoSampleTest(NamedTuple):
    """Outcome of a classifier two-sample test.

    Attributes:
        accuracy: of real against generated on held-out images; 0.5 is perfect for the generator, 1 worst.
        low, high: confidence interval of the accuracy (Clopper and Pearson), for this classifier.
        n_test: images it was tested on, half of them real.
    """

    accuracy: float
    low: float
    high: float
    n_test: int


class TrainOnSynthetic(NamedTuple):
    """Accuracies on the same real test images, in [0, 1].

    Attributes:
        synthetic: of a classifier trained on `n_train` generated images.
        real: of one trained on as many real images.
        n_train: of each.
    """

    synthetic: float
    real: float
    n_train: int


class Augmentation(NamedTuple):
    """Accuracies on the same real test images, in [0, 1].

    Attributes:
        real: of a classifier trained on `n_real` real images alone.
        augmented: of one trained on these and `n_synthetic` generated ones.
        n_real, n_synthetic: images of either kind.
    """

    real: float
    augmented: float
    n_real: int
    n_synthetic: int


def two_sample_test(
    *, real: torch.Tensor, fake: torch.Tensor, confidence_level: float = 0.95, seed: int = 0
) -> TwoSampleTest:
    """Classifier two-sample test: held-out accuracy of a new classifier of real against generated images.

    Equally many of either are chosen at random; half of them train a logistic regression on at most 50 principal
    components, the other half tests it. It finds differences that are linear in its inputs: features make a sensitive
    test, pixels a weak one. Below 0.5 it is chance, or the same images are in both sets.

    Args:
        real: features (n, D) or images (n, C, H, W), any range, n >= 20.
        fake: generated ones likewise, (m, ...), m >= 20.
        confidence_level: of the confidence interval, in (0, 1).
        seed: of the random halves.

    Returns:
        `(accuracy, low, high, n_test)`.

    Raises:
        UsageError: too few images, another shape, or `confidence_level` outside (0, 1).
        NumericsError: a value is NaN or infinite.

    References:
        "Revisiting Classifier Two-Sample Tests", Lopez-Paz and Oquab 2017, arXiv:1610.06545, section 3.

    Example:
        >>> real, fake = (torch.randn(200, 4, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
        >>> two_sample_test(real=real, fake=fake + 9).accuracy
        1.0
        >>> result = two_sample_test(real=real, fake=fake)
        >>> result.low < 0.5 < result.high
        True
    """
    from scipy.stats import binomtest

    if not 0 < confidence_level < 1:
        raise UsageError(f"`confidence_level` must lie between 0 and 1. Got {confidence_level}; write 0.95 for 95 %.")
    sets = _rows(real=real, fake=fake)
    size = min(map(len, sets.values())) // 2 * 2
    if size < 20:
        raise UsageError(f"A two-sample test needs at least 20 images of either kind. Got {size}.")
    train, test = [], []
    for name, rows in sets.items():
        first, second = rows[_order(len(rows), seed, name)[:size]].split(size // 2)
        train.append(first)
        test.append(second)
    labels = torch.arange(2).repeat_interleave(size // 2)
    right = round(classifier_accuracy(torch.cat(train), labels, torch.cat(test), labels) * size)
    interval = binomtest(right, size).proportion_ci(confidence_level)
    return TwoSampleTest(right / size, float(interval.low), float(interval.high), size)


def train_on_synthetic(
    *,
    synthetic: torch.Tensor,
    synthetic_labels: torch.Tensor,
    real: torch.Tensor,
    real_labels: torch.Tensor,
    test: torch.Tensor,
    test_labels: torch.Tensor,
    seed: int = 0,
) -> TrainOnSynthetic:
    """Train on synthetic, test on real: accuracy of a classifier trained on generated images, and on real ones.

    Logistic regression on at most 50 principal components, once on generated and once on as many real images.

    Args:
        synthetic, synthetic_labels: features (n, D) or images (n, C, H, W) and the classes they are of, integers (n,).
        real, real_labels: real training images and their classes; of the larger set as many are
            chosen as the smaller has.
        test, test_labels: real images that neither generator nor classifier was trained on.
        seed: of the choice.

    Returns:
        `(synthetic, real, n_train)`: the accuracy after training on either.

    Raises:
        UsageError: shapes differ, or labels are no integers (n,).
        DataError: what is trained on holds a single class.
        NumericsError: a value is NaN or infinite.

    References:
        "Real-valued (Medical) Time Series Generation with Recurrent Conditional GANs", Esteban et al. 2017,
        arXiv:1706.02633, "TSTR".

    Example:
        >>> def blobs(seed):
        ...     labels = torch.arange(60) % 3
        ...     noise = torch.randn(60, 3, generator=torch.Generator().manual_seed(seed))
        ...     return 9 * torch.eye(3)[labels] + noise, labels
        >>> (a, la), (b, lb), (c, lc) = blobs(1), blobs(2), blobs(3)
        >>> train_on_synthetic(synthetic=a, synthetic_labels=la, real=b, real_labels=lb, test=c, test_labels=lc)
        TrainOnSynthetic(synthetic=1.0, real=1.0, n_train=60)
    """
    rows = _rows(synthetic=synthetic, real=real, test=test)
    classes = _labels(rows, synthetic=synthetic_labels, real=real_labels, test=test_labels)
    size = min(len(synthetic), len(real))

    def accuracy(name: str) -> float:
        chosen = _order(len(rows[name]), seed, name)[:size]
        return classifier_accuracy(rows[name][chosen], classes[name][chosen], rows["test"], classes["test"])

    return TrainOnSynthetic(accuracy("synthetic"), accuracy("real"), size)


def augment_with_synthetic(
    *,
    synthetic: torch.Tensor,
    synthetic_labels: torch.Tensor,
    real: torch.Tensor,
    real_labels: torch.Tensor,
    test: torch.Tensor,
    test_labels: torch.Tensor,
    n_real: int = 100,
    seed: int = 0,
) -> Augmentation:
    """Augmentation: accuracy after training on few real images with all generated ones, and on the few alone.

    Args:
        synthetic, synthetic_labels, real, real_labels, test, test_labels: as of `train_on_synthetic`.
        n_real: real images, chosen at random, at most as many as there are.
        seed: of the choice.

    Returns:
        `(real, augmented, n_real, n_synthetic)`: the accuracy without and with the generated images.

    Raises:
        UsageError: shapes differ, labels are no integers (n,), or there are fewer than `n_real` real images.
        DataError: what is trained on holds a single class.
        NumericsError: a value is NaN or infinite.

    Example:
        >>> x, labels = 9 * torch.eye(3).repeat(40, 1), torch.arange(120) % 3
        >>> named = dict(synthetic=x, synthetic_labels=labels, real=x, real_labels=labels, test=x, test_labels=labels)
        >>> augment_with_synthetic(**named)
        Augmentation(real=1.0, augmented=1.0, n_real=100, n_synthetic=120)
    """
    rows = _rows(synthetic=synthetic, real=real, test=test)
    classes = _labels(rows, synthetic=synthetic_labels, real=real_labels, test=test_labels)
    if not 2 <= n_real <= len(real):
        raise UsageError(f"`n_real` must be between 2 and the number of real images, {len(real)}. Got {n_real}.")
    chosen = _order(len(real), seed, "few")[:n_real]
    few, few_labels = rows["real"][chosen], classes["real"][chosen]
    alone = classifier_accuracy(few, few_labels, rows["test"], classes["test"])
    both, both_labels = torch.cat([few, rows["synthetic"]]), torch.cat([few_labels, classes["synthetic"]])
    return Augmentation(
        alone, classifier_accuracy(both, both_labels, rows["test"], classes["test"]), n_real, len(synthetic)
    )


def _rows(**sets: torch.Tensor) -> dict[str, torch.Tensor]:
    """Each set as (n, D), float64."""
    rows = {
        name: part.flatten(1) if isinstance(part, torch.Tensor) and part.ndim > 2 else part
        for name, part in sets.items()
    }
    for part in rows.values():
        check_features(part)
    if len(shapes := {tuple(part.shape[1:]) for part in sets.values()}) > 1:
        raise UsageError(f"{', '.join(f'`{name}`' for name in sets)} must be of equal shape. Got {sorted(shapes)}.")
    return {name: part.cpu().double() for name, part in rows.items()}


def _labels(rows: dict[str, torch.Tensor], **labels: torch.Tensor) -> dict[str, torch.Tensor]:
    for name, part in labels.items():
        if part.shape != (len(rows[name]),) or part.is_floating_point():
            raise UsageError(
                f"`{name}_labels` must be one integer per image, ({len(rows[name])},). Got {part.dtype} of shape "
                f"{tuple(part.shape)}."
            )
    return {name: part.cpu() for name, part in labels.items()}


def _order(n: int, seed: int, name: str) -> torch.Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed_from(seed, "two-sample", name)))


def classifier_accuracy(
    train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, test_labels: torch.Tensor
) -> float:
    """Share of the test rows that a new classifier gets right: PCA, standardised, and logistic regression.

    Args:
        train, test: (n, D) and (m, D), float64 or float32.
        labels, test_labels: (n,) and (m,), integers.

    Raises:
        DataError: fewer than two classes to train on.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(labels.unique()) < 2:
        raise DataError("A classifier must be trained on at least 2 classes. Got 1; give images of every class.")
    x, y = _arrays(train, labels)
    components = min(_SPREAD, *x.shape)
    steps: list[Any] = [PCA(components, svd_solver="full"), StandardScaler(), LogisticRegression(max_iter=1000)]
    return float(make_pipeline(*steps).fit(x, y).score(*_arrays(test, test_labels)))


def _arrays(x: torch.Tensor, labels: torch.Tensor) -> tuple["np.ndarray", "np.ndarray"]:
    return x.cpu().numpy(), labels.cpu().numpy()
