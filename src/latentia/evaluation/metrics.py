"""The table of metrics: each a function of n images and a reference, with a title, a direction and an interval.

A metric's real-data score is the same function with n held-out real images in the place of the generated ones, so a
metric that is added to `METRICS` has a real-data score, a row in every table and a flag at once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar

import torch
from torch import Tensor

from latentia.errors import UsageError, did_you_mean
from latentia.evaluation.classes import class_divergence, class_entropies, inception_score, missing_classes
from latentia.evaluation.diversity import vendi_score
from latentia.evaluation.frechet import Moments, frechet_distance, moments_of
from latentia.evaluation.frechet_uncertainty import frechet_distance_infinity, frechet_interval
from latentia.evaluation.kernel import kernel_distance, kernel_distance_with_error
from latentia.evaluation.prdc import authenticity, nearest, precision_recall
from latentia.evaluation.samples import Sample
from latentia.evaluation.two_sample import classifier_accuracy, two_sample_test

T = TypeVar("T")
Interval = tuple[float, float]
_TRAINED_ON = 2000  # at most so many images train and test the plain classifier of "train_on_synthetic"


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
        group: heading that it stands under on a page.
        meaning: one sentence for a reader who does not know it.
        headline: whether a page shows it first, unfolded.
    """

    title: str
    better: Literal["lower", "higher", "real"]
    value: Callable[[Pair], float]
    interval: Callable[[Pair], Interval] | None = None
    needs: tuple[str, ...] = ()
    least: int = 2
    group: str = "Other"
    meaning: str = ""
    headline: bool = False


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
        group="Distance",
        meaning="Distance between Gaussians fitted to the features of samples and real images; biased at small n.",
        headline=True,
    ),
    "fd_infinity": Metric(
        "Frechet distance, n to infinity",
        "lower",
        lambda pair: frechet_distance_infinity(pair.sample.features, pair.moments, seed=pair.seed),
        group="Distance",
        meaning="The Fréchet distance extrapolated to infinitely many images: without its bias, with more variance.",
    ),
    "kid": Metric(
        "Kernel distance",
        "lower",
        lambda pair: kernel_distance(pair.sample.features, pair.equal),
        _kid_interval,
        least=4,
        group="Distance",
        meaning="Squared maximum mean discrepancy of the features; unbiased, so it may be negative.",
    ),
    "precision": Metric(
        "Precision",
        "higher",
        _precision,
        _share(_precision),
        least=6,
        group="Quality",
        meaning="Share of samples that lie among real images in feature space.",
        headline=True,
    ),
    "recall": Metric(
        "Recall",
        "higher",
        _recall,
        _share(_recall),
        least=6,
        group="Diversity",
        meaning="Share of real images that lie among samples in feature space.",
        headline=True,
    ),
    "density": Metric(
        "Density",
        "higher",
        lambda pair: pair.manifold.density,
        least=6,
        group="Quality",
        meaning="As precision, counting how many real images are near; less sensitive to outliers.",
    ),
    "coverage": Metric(
        "Coverage",
        "higher",
        _coverage,
        _share(_coverage),
        least=6,
        group="Diversity",
        meaning="Share of real images with a sample near them; less sensitive to outliers than recall.",
    ),
    "vendi": Metric(
        "Vendi score",
        "real",
        lambda pair: vendi_score(pair.sample.features),
        group="Diversity",
        meaning="Effective number of different images, from the eigenvalues of their similarities.",
    ),
    "two_sample": Metric(
        "Two-sample accuracy",
        "lower",
        lambda pair: pair.separation.accuracy,
        lambda pair: (pair.separation.low, pair.separation.high),
        group="Distance",
        meaning="How often a classifier separates samples from real images; 0.5 is chance.",
    ),
    "authenticity": Metric(
        "Authenticity",
        "real",
        _authenticity,
        _share(_authenticity),
        group="Copying",
        meaning="Share of samples that are not near-copies; below that of real images, some are copied.",
        headline=True,
    ),
    "nearest_distance": Metric(
        "Distance to nearest real image",
        "real",
        lambda pair: float(nearest(pair.sample.features, pair.reference.features)[0].median()),
        group="Copying",
        meaning="Median distance to the nearest real image in feature space; copies are nearer than real images are.",
    ),
    "sharpness": Metric(
        "Sharpness",
        "real",
        _mean(_sharpness),
        _normal(_sharpness),
        ("sharpness",),
        group="Quality",
        meaning="Mean energy of the gradients: too low is blur, too high is noise.",
    ),
    "inception_score": Metric(
        "Inception score",
        "higher",
        lambda pair: _inception(pair)[0],
        _inception_interval,
        _CLASSES,
        group="Classes",
        meaning="High where each sample is clearly of one class and all classes are equally frequent.",
    ),
    "confidence": Metric(
        "Confidence",
        "real",
        _mean(_confidence),
        _normal(_confidence),
        _CLASSES,
        group="Classes",
        meaning="Mean probability of the most likely class.",
    ),
    "entropy": Metric(
        "Class entropy",
        "real",
        _mean(_entropy),
        _normal(_entropy),
        _CLASSES,
        group="Classes",
        meaning="Mean entropy of the class probabilities of an image, in nats; low where its class is clear.",
    ),
    "marginal_entropy": Metric(
        "Marginal entropy",
        "real",
        lambda pair: float(class_entropies(pair.logits)["marginal_entropy"]),
        needs=_CLASSES,
        group="Classes",
        meaning="Entropy of the mean class probabilities, in nats; high where all classes occur.",
    ),
    "class_divergence": Metric(
        "Class divergence",
        "lower",
        lambda pair: class_divergence(pair.logits, pair.real_logits),
        needs=_CLASSES,
        group="Classes",
        meaning="Divergence of the class histogram from that of real images, in nats.",
    ),
    "missing_classes": Metric(
        "Missing classes",
        "lower",
        lambda pair: float(len(missing_classes(pair.logits, pair.real_logits))),
        needs=_CLASSES,
        group="Classes",
        meaning="Number of classes that real images have and no sample.",
    ),
    "label_agreement": Metric(
        "Class agreement",
        "higher",
        _agreement,
        _share(_agreement),
        ("logits", "labels"),
        group="Classes",
        meaning="Share of samples that the classifier puts into the class that was asked for.",
    ),
    "train_on_synthetic": Metric(
        "Train on synthetic, test on real",
        "higher",
        lambda pair: pair.usefulness,
        needs=("labels", "pixels"),
        group="Classes",
        meaning="Accuracy on real images of a plain classifier trained on the samples alone.",
    ),
}


def check_metrics(names: Sequence[str] | None) -> dict[str, Metric]:
    """The metrics of these keys, all for None; UsageError for none, or with the nearest key for an unknown one."""
    if isinstance(names, str):
        raise UsageError(f'metrics must be a list of names; got a text. Give ["{names}"].')
    if names is not None and not names:
        raise UsageError(f"metrics must name at least one of {', '.join(METRICS)}, or be left out for all.")
    for name in names or ():
        if name not in METRICS:
            raise UsageError(
                f'A metric must be one of {", ".join(METRICS)}. Got "{name}".{did_you_mean(name, METRICS)}'
            )
    return {key: METRICS[key] for key in (METRICS if names is None else dict.fromkeys(names))}
