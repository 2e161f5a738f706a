"""The table of metrics: each a function of n images and a reference, with a title, a direction and an interval.

A metric's real-data score is the same function with n held-out real images in the place of the generated ones, so a
metric that is added to `METRICS` has a real-data score, a row in every table and a flag at once.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from latentia.errors import UsageError, did_you_mean
from latentia.evaluation.classes import class_divergence, class_entropies, inception_score, missing_classes
from latentia.evaluation.diversity import vendi_score
from latentia.evaluation.features.base import FeatureExtractor, Predictions, predict
from latentia.evaluation.frechet import Moments, frechet_distance, moments_of
from latentia.evaluation.frechet_uncertainty import frechet_distance_infinity, frechet_interval
from latentia.evaluation.kernel import kernel_distance, kernel_distance_with_error
from latentia.evaluation.pairs import sharpness
from latentia.evaluation.prdc import authenticity, nearest, precision_recall
from latentia.evaluation.two_sample import classifier_accuracy, two_sample_test

T = TypeVar("T")
Interval = tuple[float, float]
_TRAINED_ON = 2000  # at most so many images train and test the plain classifier of "train_on_synthetic"
_SIDE = 28  # pixels of the images that it is trained on


@dataclass(frozen=True)
class Sample:
    """Measurements of n images, a row for each, on the CPU.

    Args:
        features: (n, D).
        logits: (n, K), or None if the extractor has no classes.
        sharpness: (n,), gradient energy; None if only features are at hand.
        labels: (n,), the classes given to the generator or, of real images, the true ones; or None.
        pixels: (n, P), the images at most 28 x 28, for a plain classifier; only where there are labels.
    """

    features: Tensor
    logits: Tensor | None = None
    sharpness: Tensor | None = None
    labels: Tensor | None = None
    pixels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: Any) -> "Sample":
        return self.map(lambda column: column[rows])

    def map(self, function: Callable[[Tensor], Tensor]) -> "Sample":
        """A `Sample` of the results of `function` on each column that is there."""
        rest = {field.name: getattr(self, field.name) for field in fields(self)[1:]}
        there = {name: function(column) for name, column in rest.items() if column is not None}
        return Sample(function(self.features), **there)

    @staticmethod
    def cat(parts: Sequence["Sample"]) -> "Sample":
        """The rows of all parts, one after the other; the parts have the same columns."""
        names = [field.name for field in fields(Sample) if getattr(parts[0], field.name) is not None]
        return Sample(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


class Pair:
    """n images and a reference, with intermediate results that several metrics share.

    Args:
        sample: n images.
        reference: at least n real images, in random order.
        seed: of whatever is random in a metric.
    """

    def __init__(self, sample: Sample, reference: Sample, seed: int):
        self.sample, self.reference, self.seed = sample, reference, seed

    @cached_property
    def equal(self) -> Tensor:
        """Features of as many reference images as the sample has."""
        return self.reference.features[: len(self.sample.features)]

    @cached_property
    def moments(self) -> Moments:
        return moments_of(self.reference.features)

    @cached_property
    def manifold(self):
        return precision_recall(real=self.equal, fake=self.sample.features)

    @cached_property
    def separation(self):
        return two_sample_test(real=self.equal, fake=self.sample.features, seed=self.seed)

    @cached_property
    def usefulness(self) -> float:
        made, real = self.sample[:_TRAINED_ON], self.reference[-_TRAINED_ON:]
        labels, real_labels = _known(made.labels), _known(real.labels)
        if len(labels.unique()) == 1:  # a classifier of one class predicts it always
            return float((real_labels == labels[0]).double().mean())
        return classifier_accuracy(_known(made.pixels), labels, _known(real.pixels), real_labels)

    @cached_property
    def probabilities(self) -> Tensor:
        return self.logits.double().softmax(1)

    @property
    def logits(self) -> Tensor:
        return _known(self.sample.logits)

    @property
    def real_logits(self) -> Tensor:
        return _known(self.reference.logits)


def _known(column: T | None) -> T:
    """A column that is in `Metric.needs`, so that the metric is not called without it."""
    assert column is not None
    return column


@dataclass(frozen=True)
class Metric:
    """One row of a report.

    Args:
        title: what a table calls it.
        better: "lower", "higher", or "real": the nearer to what real images get, the better.
        value: the metric of a pair.
        interval: 95 % interval over samples of this size, the reference being given; None if there is none.
        needs: columns of `Sample` without which it does not apply.
        least: images without which it does not apply.
    """

    title: str
    better: Literal["lower", "higher", "real"]
    value: Callable[[Pair], float]
    interval: Callable[[Pair], Interval] | None = None
    needs: tuple[str, ...] = ()
    least: int = 2


def _share(of: Callable[[Pair], float]) -> Callable[[Pair], Interval]:
    """Wilson's interval for a share of the n images."""

    def interval(pair: Pair) -> Interval:
        p, n, z = of(pair), len(pair.sample.features), 1.96
        centre, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        return (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)

    return interval


def _normal(of: Callable[[Pair], Tensor]) -> Callable[[Pair], Interval]:
    """The normal interval for the mean of one number per image."""

    def interval(pair: Pair) -> Interval:
        values = of(pair).double()
        half = 1.96 * float(values.std()) / math.sqrt(len(values))
        return float(values.mean()) - half, float(values.mean()) + half

    return interval


def _mean(of: Callable[[Pair], Tensor]) -> Callable[[Pair], float]:
    return lambda pair: float(of(pair).double().mean())


def _inception(pair: Pair) -> tuple[float, float]:
    n = len(pair.sample.features)
    # One part below 100 images: tenths would hold fewer images than there are classes.
    return inception_score(pair.logits, 10 if n >= 100 else 1, seed=pair.seed)


def _inception_interval(pair: Pair) -> Interval:
    mean, sd = _inception(pair)
    return mean - 1.96 * sd / math.sqrt(10), mean + 1.96 * sd / math.sqrt(10)


def _kid_interval(pair: Pair) -> Interval:
    value, error = kernel_distance_with_error(pair.sample.features, pair.equal)
    return value - 1.96 * error, value + 1.96 * error


def _confidence(pair: Pair) -> Tensor:
    return pair.probabilities.amax(1)


def _entropy(pair: Pair) -> Tensor:
    return torch.special.entr(pair.probabilities).sum(1)


def _sharpness(pair: Pair) -> Tensor:
    return _known(pair.sample.sharpness)


def _agreement(pair: Pair) -> float:
    return float((pair.logits.argmax(1) == _known(pair.sample.labels)).double().mean())


def _precision(pair: Pair) -> float:
    return pair.manifold.precision


def _recall(pair: Pair) -> float:
    return pair.manifold.recall


def _coverage(pair: Pair) -> float:
    return pair.manifold.coverage


def _authenticity(pair: Pair) -> float:
    return authenticity(fake=pair.sample.features, train=pair.reference.features)


_CLASSES = ("logits",)
METRICS: dict[str, Metric] = {
    "fd": Metric(
        "Frechet distance",
        "lower",
        lambda pair: frechet_distance(pair.sample.features, pair.moments),
        lambda pair: frechet_interval(pair.sample.features, pair.moments, seed=pair.seed),
    ),
    "fd_infinity": Metric(
        "Frechet distance, n to infinity",
        "lower",
        lambda pair: frechet_distance_infinity(pair.sample.features, pair.moments, seed=pair.seed),
    ),
    "kid": Metric(
        "Kernel distance",
        "lower",
        lambda pair: kernel_distance(pair.sample.features, pair.equal),
        _kid_interval,
        least=4,
    ),
    "precision": Metric("Precision", "higher", _precision, _share(_precision), least=6),
    "recall": Metric("Recall", "higher", _recall, _share(_recall), least=6),
    "density": Metric("Density", "higher", lambda pair: pair.manifold.density, least=6),
    "coverage": Metric("Coverage", "higher", _coverage, _share(_coverage), least=6),
    "vendi": Metric("Vendi score", "real", lambda pair: vendi_score(pair.sample.features)),
    "two_sample": Metric(
        "Two-sample accuracy",
        "lower",
        lambda pair: pair.separation.accuracy,
        lambda pair: (pair.separation.low, pair.separation.high),
    ),
    "authenticity": Metric("Authenticity", "real", _authenticity, _share(_authenticity)),
    "nearest_distance": Metric(
        "Distance to nearest real image",
        "real",
        lambda pair: float(nearest(pair.sample.features, pair.reference.features)[0].median()),
    ),
    "sharpness": Metric("Sharpness", "real", _mean(_sharpness), _normal(_sharpness), ("sharpness",)),
    "inception_score": Metric(
        "Inception score", "higher", lambda pair: _inception(pair)[0], _inception_interval, _CLASSES
    ),
    "confidence": Metric("Confidence", "real", _mean(_confidence), _normal(_confidence), _CLASSES),
    "entropy": Metric("Class entropy", "real", _mean(_entropy), _normal(_entropy), _CLASSES),
    "marginal_entropy": Metric(
        "Marginal entropy",
        "real",
        lambda pair: float(class_entropies(pair.logits)["marginal_entropy"]),
        needs=_CLASSES,
    ),
    "class_divergence": Metric(
        "Class divergence",
        "lower",
        lambda pair: class_divergence(pair.logits, pair.real_logits),
        needs=_CLASSES,
    ),
    "missing_classes": Metric(
        "Missing classes",
        "lower",
        lambda pair: float(len(missing_classes(pair.logits, pair.real_logits))),
        needs=_CLASSES,
    ),
    "label_agreement": Metric("Class agreement", "higher", _agreement, _share(_agreement), ("logits", "labels")),
    "train_on_synthetic": Metric(
        "Train on synthetic, test on real", "higher", lambda pair: pair.usefulness, needs=("labels", "pixels")
    ),
}


def check_metrics(names: Sequence[str] | None) -> dict[str, Metric]:
    """The metrics of these keys, all for None; UsageError with the nearest key for an unknown one."""
    for name in names or ():
        if name not in METRICS:
            raise UsageError(
                f'A metric must be one of {", ".join(METRICS)}. Got "{name}".{did_you_mean(name, METRICS)}'
            )
    return {key: METRICS[key] for key in (METRICS if names is None else dict.fromkeys(names))}


Images = Tensor | Iterable[Tensor] | Predictions | Sample


def measure(
    images: Images,
    extractor: FeatureExtractor,
    labels: Sequence[int] | Tensor | None = None,
    *,
    predictions: Predictions | None = None,
) -> Sample:
    """Measure images once for all metrics; a `Sample` passes through.

    Args:
        images: (n, C, H, W) in [-1, 1] on any device, an iterable of such batches, `predict(...)` of them, or a
            `Sample`.
        extractor: from `load_extractor` or your own.
        labels: the n classes given to the generator or, of real images, the true ones.
        predictions: of the extractor, if they are known already.

    Raises:
        UsageError: images of a wrong shape, type or range, or another number of labels.
        DataError: images hold NaN.
        NumericsError: features hold NaN.

    Example:
        >>> from latentia.evaluation import load_extractor
        >>> measure(torch.zeros(3, 1, 8, 8), load_extractor("digits")).sharpness
        tensor([0., 0., 0.], dtype=torch.float64)
    """
    if isinstance(images, Sample):
        return images
    energy: list[Tensor] = []
    pixels: list[Tensor] = []

    def batches(given: Tensor | Iterable[Tensor]) -> Iterable[Tensor]:
        for batch in [given] if isinstance(given, Tensor) else given:
            yield batch
            energy.append(sharpness(batch).cpu())  # after the extractor has checked the batch
            if labels is not None:
                height, width = (min(_SIDE, side) for side in batch.shape[2:])
                pixels.append(adaptive_avg_pool2d(batch.float(), (height, width)).flatten(1).cpu())

    if isinstance(images, Predictions):
        found = predict(images, extractor)
    elif predictions is None:
        found = predict(batches(images), extractor)
    else:
        found = predictions
        deque(batches(images), maxlen=0)
    n = len(found.features)
    if labels is not None and len(labels) != n:
        raise UsageError(f"`labels` must hold one class per image, {n}. Got {len(labels)}.")
    return Sample(
        found.features.cpu(),
        None if found.logits is None else found.logits.cpu(),
        torch.cat(energy) if energy else None,
        None if labels is None else torch.as_tensor(labels).cpu(),
        torch.cat(pixels) if pixels else None,
    )
