"""Measurements of images, made once for all metrics: features, class probabilities, sharpness, labels, pixels."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from latentia.errors import UsageError
from latentia.evaluation.features.base import FeatureExtractor, Predictions, predict
from latentia.evaluation.pairs import sharpness

_SIDE = 28  # pixels of the images that a plain classifier is trained on


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
