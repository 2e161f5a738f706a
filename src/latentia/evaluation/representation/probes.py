"""Probes: accuracy of simple classifiers on a code."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch

from latentia.errors import UsageError
from latentia.evaluation.features.base import check_features
from latentia.rng import seed_from

C = 0.1  # inverse strength of the L2 penalty on standardised codes; between what suits 100 and 10 000 labels
MAX_ITER = 1000
TEST_SHARE = 0.2

Labelled = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Probe:
    """Accuracy of one probe, in [0, 1].

    Args:
        mean: over the runs.
        low, high: its 95 % interval, the wider one of two: Student's t over the runs, for another split or choice of
            labels, and Wilson's, for another test set of `n_test` images.
        values: of the runs, each with a seed of its own.
        n_train, n_test: labelled images for training and for testing in each run.
        note: what to know before trusting the number; empty if nothing.
    """

    mean: float
    low: float
    high: float
    values: tuple[float, ...]
    n_train: int
    n_test: int
    note: str = ""

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]" + (f" ({self.note})" if self.note else "")


def linear_probe(
    codes: torch.Tensor, labels: torch.Tensor, *, test: Labelled | None = None, seeds: int = 5, seed: int = 0
) -> Probe:
    """Accuracy of logistic regression on a code.

    scikit-learn's, multinomial, solver lbfgs, L2 with C = 0.1, at most 1000 iterations, on codes of which each
    dimension has mean 0 and variance 1 over the images learned from.

    Args:
        codes: (n, D).
        labels: integers (n,), at least two classes and five images of each.
        test: codes and labels of a test set. Without it, a fifth of the images is one, another in each run, classes in
            proportion; then the code should come from an encoder that saw none of them.
        seeds: runs; one is enough for a `test` of its own, so there it is one.
        seed: of the splits.

    Raises:
        UsageError: shapes that do not fit, too few images of a class, or a class in `test` that is not in `labels`.
        NumericsError: codes are NaN or infinite.

    References:
        "Understanding intermediate layers using linear classifier probes", Alain and Bengio 2016, arXiv:1610.01644.

    Example:
        >>> codes, labels = torch.randn(100, 3), torch.arange(2).repeat(50)
        >>> linear_probe(codes + 9 * labels[:, None], labels).mean
        1.0
    """
    return _probe(_fit_linear, codes, labels, test, seeds if test is None else 1, seed)


def knn_probe(
    codes: torch.Tensor,
    labels: torch.Tensor,
    *,
    k: int = 5,
    test: Labelled | None = None,
    seeds: int = 5,
    seed: int = 0,
) -> Probe:
    """Accuracy of the majority of the k nearest codes, Euclidean.

    Codes are taken as they are: to bring each dimension to variance 1 would let the near-constant border pixels of an
    image count as much as its middle, and the raw-pixel baseline would look worse than it is.

    Args:
        k: neighbours, at most the number of codes learned from.
        codes, labels, test, seeds, seed: as for `linear_probe`.

    Raises:
        UsageError, NumericsError: as `linear_probe`; or k is out of range.

    Example:
        >>> codes, labels = torch.randn(100, 3), torch.arange(2).repeat(50)
        >>> knn_probe(codes + 9 * labels[:, None], labels, k=3).mean
        1.0
    """

    def fit(x, y, everything):
        from sklearn.neighbors import KNeighborsClassifier

        if not 1 <= k <= len(x):
            raise UsageError(f"`k` must be between 1 and the number of codes learned from, {len(x)}. Got {k}.")
        return KNeighborsClassifier(k, algorithm="brute").fit(x, y).score, ""

    return _probe(fit, codes, labels, test, seeds if test is None else 1, seed)


def few_label_probe(
    codes: torch.Tensor,
    labels: torch.Tensor,
    *,
    n_few: int = 100,
    test: Labelled | None = None,
    seeds: int = 5,
    seed: int = 0,
) -> Probe:
    """`linear_probe` that learns from `n_few` labels, as many of each class as can be, anew in each run.

    The codes of all images to learn from, without their labels, give the mean and variance of each dimension.

    Args:
        n_few: labels, at least one of each class.
        codes, labels, test, seeds, seed: as for `linear_probe`, but that each seed is a run also with `test`.

    Raises:
        UsageError, NumericsError: as `linear_probe`; or a class has fewer images than its share of `n_few`.

    Example:
        >>> codes, labels = torch.randn(100, 3), torch.arange(2).repeat(50)
        >>> few_label_probe(codes + 9 * labels[:, None], labels, n_few=4).n_train
        4
    """
    return _probe(_fit_linear, codes, labels, test, seeds, seed, n_few)


def _probe(
    fit: Callable[..., tuple[Callable[..., float], str]],
    codes: torch.Tensor,
    labels: torch.Tensor,
    test: Labelled | None,
    seeds: int,
    seed: int,
    n_few: int | None = None,
) -> Probe:
    """Mean over runs of a classifier: `fit(x, y, all_x)` gives its `score(x, y)` and a note."""
    x, y = _check(codes, labels, "labels")
    if seeds < 1:
        raise UsageError(f"`seeds` must be at least 1. Got {seeds}.")
    if y.unique().numel() < 2:
        raise UsageError(f"`labels` must hold at least two classes. Got only {int(y[0])}.")
    if test is not None:
        x_test, y_test = _check(*test, "test")
        if x_test.shape[1] != x.shape[1]:
            raise UsageError(f"`test` must hold codes of dimension {x.shape[1]}. Got {x_test.shape[1]}.")
        if unknown := sorted({*y_test.tolist()} - {*y.tolist()}):
            raise UsageError(f"`test` must hold only classes of `labels`. Got {unknown[:5]} too.")
    values, notes, n_train, n_test = [], set(), 0, 0
    for run in range(seeds):
        generator = torch.Generator().manual_seed(seed_from(seed, "probe", run))
        learn = torch.arange(len(y))
        if test is None:
            held_out, learn = _stratified(y, generator, share=TEST_SHARE)
            x_test, y_test = x[held_out], y[held_out]
        chosen = learn if n_few is None else learn[_stratified(y[learn], generator, count=n_few)[0]]
        score, note = fit(x[chosen].numpy(), y[chosen].numpy(), x[learn].numpy())
        values.append(float(score(x_test.numpy(), y_test.numpy())))
        notes |= {note} - {""}
        n_train, n_test = len(chosen), len(x_test)
    mean, low, high = _interval(values, n_test)
    return Probe(mean, low, high, tuple(values), n_train, n_test, "; ".join(sorted(notes)))


def _fit_linear(x, y, everything):
    """`score(x, y)` of logistic regression, and a note if it did not converge."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(everything)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        classifier = LogisticRegression(C=C, max_iter=MAX_ITER).fit(scaler.transform(x), y)
    for warning in caught:
        if not issubclass(warning.category, ConvergenceWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    short = any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    note = (
        f"logistic regression had not converged after {MAX_ITER} iterations, so this is a lower bound" if short else ""
    )
    return make_pipeline(scaler, classifier).score, note


def _stratified(
    labels: torch.Tensor, generator: torch.Generator, *, share: float = 0.0, count: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Chosen rows and the rest: a share of each class, or `count` rows spread evenly over the classes."""
    classes = labels.unique().tolist()
    if count and count < len(classes):
        raise UsageError(f"`n_few` must be at least one of each of the {len(classes)} classes. Got {count}.")
    chosen, rest = [], []
    for i, label in enumerate(classes):
        rows = (labels == label).nonzero().flatten()
        wanted = count // len(classes) + (i < count % len(classes)) if count else round(share * len(rows))
        if not 1 <= wanted <= len(rows) or (share and wanted == len(rows)):
            raise UsageError(
                f"`labels` must hold at least {wanted if count else 5} images of each class to choose from. Class "
                f"{label} has {len(rows)}."
            )
        rows = rows[torch.randperm(len(rows), generator=generator)]
        chosen.append(rows[:wanted])
        rest.append(rows[wanted:])
    return torch.cat(chosen), torch.cat(rest)


def _interval(values: list[float], n: int) -> tuple[float, float, float]:
    """Mean and 95 % interval: the wider one of Wilson's for n test images and Student's t over the values."""
    from scipy.stats import t

    runs, mean, z = len(values), sum(values) / len(values), 1.959964
    centre = (mean + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(mean * (1 - mean) / n + z**2 / (4 * n**2))
    low, high = centre - half, centre + half
    if runs > 1:
        variance = sum((value - mean) ** 2 for value in values) / (runs - 1)
        half = float(t.ppf(0.975, runs - 1)) * math.sqrt(variance / runs)
        low, high = min(low, mean - half), max(high, mean + half)
    return mean, max(0.0, low), min(1.0, high)


def _check(codes: torch.Tensor, labels: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    check_features(codes)
    labels = torch.as_tensor(labels)
    if labels.ndim != 1 or labels.is_floating_point() or len(labels) != len(codes):
        raise UsageError(
            f"`{name}` must hold an integer for each of the {len(codes)} codes. Got {labels.dtype} "
            f"{tuple(labels.shape)}."
        )
    return codes.detach().double().cpu(), labels.long().cpu()
