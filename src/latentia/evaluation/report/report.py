"""The report: every metric of a set of images, each beside what real images get at the same n.

A Frechet distance of n images is biased upwards by an amount that depends on n, on the reference and on the extractor,
and so are most other metrics, so a bare number says nothing: compare it with the real-data score of its own report, and
only reports of equal n and equal `extractor_sha256` with each other.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from latentia.errors import UsageError, did_you_mean
from latentia.evaluation.classes import class_counts
from latentia.evaluation.features.base import FeatureExtractor
from latentia.evaluation.metrics import Interval, Pair, check_metrics
from latentia.evaluation.samples import Images, Sample, measure
from latentia.rng import seed_from

SPLITS = 5  # random (held-out, reference) splits of the real images that a report averages over


@dataclass(frozen=True)
class Score:
    """One metric.

    Args:
        title, better: of the `Metric`.
        value: mean over the random splits.
        low, high: 95 % interval over samples of n images; None where the metric has none.
        real: real-data score: what n held-out real images get, mean over the splits.
        real_low, real_high: mean ± 1.96 standard deviations over the splits: where other real images would lie.
    """

    title: str
    better: str
    value: float
    low: float | None
    high: float | None
    real: float
    real_low: float
    real_high: float


@dataclass(frozen=True)
class Report:
    """Result of `score`.

    Args:
        scores: by key of `METRICS`, only those that apply.
        class_counts, real_class_counts: images per most likely class, of the n generated and of all real images; None
            without classes.
        n, n_real: how many images were compared.
        feature_dim: width D of the features.
        low_sample: n < 2 D, where the covariance is poorly known and the real-data score of "fd" is high; trust "kid"
            rather than "fd".
        notes: what a reader should know before believing the numbers.
        extractor, extractor_sha256, preprocessing, seed: what has to be equal for two reports to compare.

    Example:
        >>> from latentia.evaluation import load_extractor
        >>> noise, real = torch.rand(20, 1, 8, 8) * 2 - 1, torch.rand(90, 1, 8, 8) * 2 - 1
        >>> report = score(noise, real, load_extractor("digits"), metrics=["kid"])
        >>> report["kid"].value < 100, report.low_sample
        (True, True)
    """

    scores: dict[str, Score]
    class_counts: list[int] | None
    real_class_counts: list[int] | None
    n: int
    n_real: int
    feature_dim: int
    low_sample: bool
    notes: list[str]
    extractor: str
    extractor_sha256: str
    preprocessing: str
    seed: int

    def __getitem__(self, key: str) -> Score:
        if key not in self.scores:
            raise UsageError(
                f'`key` must be one of {", ".join(self.scores)}. Got "{key}".{did_you_mean(key, self.scores)}'
            )
        return self.scores[key]

    def _repr_html_(self) -> str:
        from latentia.evaluation.report.page import small_table

        return small_table([{"source": "images", **self.to_dict()}])

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for JSON and model cards."""
        return asdict(self)

    def for_card(self) -> list[dict[str, Any]]:
        """The metrics as `latentia.model_card` takes them."""
        shared = {"n": self.n, "extractor": self.extractor, "extractor_sha256": self.extractor_sha256}
        return [
            {"type": key, "name": s.title, "value": s.value, "low": s.low, "high": s.high, "real": s.real, **shared}
            for key, s in self.scores.items()
        ]

    def text(self) -> str:
        """One line for the terminal: value, and in brackets what real images get."""
        label = f"n={self.n}, low-sample" if self.low_sample else f"n={self.n}"
        parts = [f"{name} {s.value:.3g} (real {s.real:.3g})" for name, s in self.scores.items()]
        return f"{label} | {' | '.join(parts)} | {self.extractor} {self.extractor_sha256[:8]}"

    def table(self) -> str:
        """A table for the terminal, with what the numbers rest on below it."""
        head = ("metric", "value", "95 % interval", "real-data score", "better")
        rows = [head]
        for s in self.scores.values():
            interval = "" if s.low is None else f"{s.low:.4g} to {s.high:.4g}"
            real = f"{s.real:.4g} ({s.real_low:.3g} to {s.real_high:.3g})"
            rows.append((s.title, f"{s.value:.4g}", interval, real, {"real": "as real"}.get(s.better, s.better)))
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        lines.insert(1, "─" * max(map(len, lines)))
        lines += [
            f"n = {self.n} against {self.n_real - self.n} of {self.n_real} real images, {SPLITS} random splits; "
            f"features: {self.extractor} {self.extractor_sha256[:8]}, {self.feature_dim} wide",
            *(f"note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)


def score(
    images: Images,
    real: Images,
    extractor: FeatureExtractor,
    *,
    metrics: Sequence[str] | None = None,
    labels: Sequence[int] | Tensor | None = None,
    seed: int = 0,
) -> Report:
    """Measure n generated images against N real ones, each metric beside its real-data score.

    For each of 5 random splits of the real images into n held-out ones H and the rest R, every metric is taken of
    (generated, R) and of (H, R): the same n and the same reference, so that the two differ by the generator alone.
    Where a metric wants sets of equal size, R gives its first n images.

    Args:
        images: generated, (n, C, H, W) in [-1, 1], an iterable of such batches, or `measure(...)` of them; n >= 2.
        real: N real images likewise, N >= 2 n, so that a reference is never smaller than what is measured. To score
            repeatedly against the same images, pass `measure(real, extractor)` made once.
        extractor: of both, from `load_extractor` or your own.
        metrics: keys of `METRICS`; default all that apply, without those that need classes where there are none.
        labels: the n classes given to the generator.
        seed: of the random splits.

    Raises:
        UsageError: n < 2, N < 2 n, a metric that is unknown or does not apply, or images of a wrong shape or range.
        DataError: images hold NaN.
        NumericsError: features hold NaN.

    Example:
        >>> from latentia.evaluation import load_extractor
        >>> noise, real = torch.rand(20, 1, 8, 8) * 2 - 1, torch.rand(90, 1, 8, 8) * 2 - 1
        >>> report = score(noise, real, load_extractor("digits"), metrics=["fd", "kid"])
        >>> report.n, list(report.scores)
        (20, ['fd', 'kid'])
    """
    chosen = check_metrics(metrics)
    sample, whole = measure(images, extractor, labels), measure(real, extractor)
    n, total, dimension = len(sample.features), len(whole.features), sample.features.shape[1]
    if n < 2:
        raise UsageError(f"`images` must hold at least 2 images. Got {n}.")
    if total < 2 * n:
        raise UsageError(
            f"`real` must hold at least twice as many images as `images`, 2 * {n} = {2 * n}, so that {n} can be held "
            f"out and a reference of no smaller size remains. Got {total}; pass images[:{total // 2}] or more real "
            "images."
        )
    applying = {}
    for key, metric in chosen.items():
        lacking = [name for name in metric.needs if getattr(sample, name) is None or getattr(whole, name) is None]
        if not lacking and n >= metric.least:
            applying[key] = metric
        elif metrics is not None and not lacking:
            raise UsageError(f'The metric "{key}" needs at least {metric.least} images. Got {n}; sample more.')
        elif metrics is not None:
            raise UsageError(
                f'The metric "{key}" needs {" and ".join(metric.needs)} of both sides, and {" and ".join(lacking)} '
                "cannot be had here; leave it out."
            )
    values: dict[str, list[Interval]] = {key: [] for key in applying}
    intervals: dict[str, Interval] = {}
    for split in range(SPLITS):
        generator = torch.Generator().manual_seed(seed_from(seed, "held-out", split))
        held_out, rest = torch.randperm(total, generator=generator).tensor_split([n])
        reference = whole[rest]
        made, other = Pair(sample, reference, seed), Pair(whole[held_out], reference, seed)
        other.__dict__["moments"] = made.moments  # of the same reference
        for key, metric in applying.items():
            values[key].append((metric.value(made), metric.value(other)))
            if split == 0 and metric.interval is not None:
                intervals[key] = metric.interval(made)
    scores = {}
    for key, metric in applying.items():
        table = torch.tensor(values[key], dtype=torch.float64)  # (SPLITS, 2)
        (value, own), spread = table.mean(0).tolist(), 1.96 * float(table[:, 1].std())
        # The interval was taken against the first reference; the value is a mean over all of them.
        shift = value - values[key][0][0]
        low, high = (round(end + shift, 12) for end in intervals[key]) if key in intervals else (None, None)
        scores[key] = Score(metric.title, metric.better, value, low, high, own, own - spread, own + spread)
    return Report(
        scores=scores,
        class_counts=None if sample.logits is None else class_counts(sample.logits),
        real_class_counts=None if whole.logits is None else class_counts(whole.logits),
        n=n,
        n_real=total,
        feature_dim=dimension,
        low_sample=n < 2 * dimension,
        notes=_notes(sample, n, dimension, any("Frechet" in score.title for score in scores.values())),
        extractor=extractor.name,
        extractor_sha256=extractor.sha256,
        preprocessing=extractor.preprocessing,
        seed=seed,
    )


def _notes(sample: Sample, n: int, dimension: int, frechet: bool) -> list[str]:
    notes = []
    if frechet and n < 2 * dimension:
        notes.append(
            f"n = {n} is less than twice the {dimension} features, so Frechet distances are mostly bias; look at the "
            "kernel distance, or sample more."
        )
    same = n - len(torch.unique(sample.features, dim=0))
    if same:
        notes.append(
            f"{same} of {n} images repeat another one exactly: the generator has collapsed, or is seeded alike."
        )
    return notes
