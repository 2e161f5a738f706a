"""The contract of a feature extractor: images in, feature vectors whose distributions can be compared out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, Protocol

import torch

from latentia.errors import DataError, NumericsError, UsageError, format_number
from latentia.functional.pixels import from_uint8

_range_is_known = ContextVar("range_is_known", default=False)


class Predictions(NamedTuple):
    """Output of an extractor for N images: `features` (N, D) and `logits` (N, K), both float32.

    `logits` is None where the extractor knows no classes; metrics of classes are then not defined.
    """

    features: torch.Tensor
    logits: torch.Tensor | None


class FeatureExtractor(Protocol):
    """The contract of an extractor; implement it to measure with another network.

    Attributes:
        name: what the report calls it.
        sha256: of its weights file. Distances compare only between equal hashes.
        image_shape: (C, H, W) that it takes, or None for any size in one or three channels.
        preprocessing: what it does to images before the network, in words; "none" if nothing. It changes every number.
        class_names: of the K logits, or None where they have no names or there are none.
    """

    name: str
    sha256: str
    image_shape: tuple[int, int, int] | None
    preprocessing: str
    class_names: list[str] | None

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Features (N, D) and logits (N, K) or None, of images (N, C, H, W) in [-1, 1]; float32."""
        ...


def predict(images: torch.Tensor | Iterable[torch.Tensor] | Predictions, extractor: FeatureExtractor) -> Predictions:
    """Features and logits of images given whole or batch by batch; what is already predicted passes through.

    Args:
        images: (N, C, H, W) in [-1, 1], an iterable of such batches, or `Predictions`.
        extractor: from `load_extractor` or your own.

    Returns:
        `Predictions`, on the CPU. `logits` is None if the extractor knows no classes.

    Raises:
        UsageError: images of a wrong shape, type or range, or none at all.
        DataError: images hold NaN.
        NumericsError: features or logits hold NaN.

    Example:
        >>> from latentia.evaluation import load_extractor
        >>> predict(uint8_batches(torch.zeros(7, 1, 8, 8, dtype=torch.uint8), 4), load_extractor("digits")).logits.shape
        torch.Size([7, 10])
    """
    if isinstance(images, Predictions):
        predictions = images
    else:
        batches = [images] if isinstance(images, torch.Tensor) else images
        parts = [extractor(batch) for batch in batches]
        if not parts:
            raise UsageError("`images` must hold at least one batch. Got an empty iterable.")
        predictions = _join(parts)
    check_features(predictions.features)
    if predictions.logits is not None:
        check_features(predictions.logits)
    return predictions


@torch.no_grad()
def in_batches(
    forward: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]],
    images: torch.Tensor,
    device: torch.device,
    batch_size: int,
) -> Predictions:
    """`forward` of all images in float32 on `device`, `batch_size` at a time; the results on the CPU."""
    # A surrounding autocast would change the numbers, and with them what the distance is compared to.
    with torch.autocast(device.type, enabled=False):
        parts = [forward(batch.to(device, torch.float32)) for batch in images.split(batch_size)]
    return _join((features.float().cpu(), None if k is None else k.float().cpu()) for features, k in parts)


def _join(parts: Iterable[tuple[torch.Tensor, torch.Tensor | None]]) -> Predictions:
    features, logits = zip(*parts)
    return Predictions(torch.cat(features), None if logits[0] is None else torch.cat(logits))


def uint8_batches(images: torch.Tensor, batch_size: int = 1000) -> Iterator[torch.Tensor]:
    """Batches in [-1, 1] of a uint8 tensor, so that a large data set is never held as floats.

    Args:
        images: (N, C, H, W), uint8 in [0, 255].
        batch_size: images per batch.

    Example:
        >>> [tuple(batch.shape) for batch in uint8_batches(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), 3)]
        [(3, 1, 8, 8), (2, 1, 8, 8)]
    """
    if images.dtype != torch.uint8:
        raise UsageError(
            f"`images` must be uint8 in [0, 255]. Got {images.dtype}; floats in [-1, 1] need no conversion."
        )
    return (from_uint8(batch) for batch in images.split(batch_size))


@contextmanager
def known_range() -> Iterator[None]:
    """Within this block bright images are not taken for images in [0, 1] by `check_images`.

    For images whose range is known, as they come from bytes or from a sampler: all of them may happen to be bright.

    Example:
        >>> with known_range():
        ...     check_images(torch.rand(8, 1, 8, 8))
    """
    token = _range_is_known.set(True)
    try:
        yield
    finally:
        _range_is_known.reset(token)


def check_images(images: torch.Tensor, image_shape: Sequence[int] | None = None) -> None:
    """Refuse what is not a float tensor (N, C, H, W) in [-1, 1], N >= 1, of `image_shape` (C, H, W) where given.

    Eight or more images without a single negative value count as [0, 1], except within `known_range`.
    """
    if not isinstance(images, torch.Tensor) or images.ndim != 4 or len(images) == 0:
        given = f"shape {tuple(images.shape)}" if isinstance(images, torch.Tensor) else type(images).__name__
        raise UsageError(f"`images` must be a tensor (N, C, H, W) with at least one image. Got {given}.")
    if image_shape is not None and tuple(images.shape[1:]) != tuple(image_shape):
        raise UsageError(
            f"`images` must have the extractor's (C, H, W) = {tuple(image_shape)}. Got {tuple(images.shape[1:])}; "
            "generate at that size, or load an extractor that was trained on yours."
        )
    if not images.is_floating_point():
        raise UsageError(
            f"`images` must be floats in [-1, 1]. Got {images.dtype}; for bytes in [0, 255] pass "
            "`uint8_batches(images)`, or convert with x / 127.5 - 1."
        )
    low, high = (float(value) for value in torch.aminmax(images))
    if not -1e30 < low <= high < 1e30:
        bad = int((~images.isfinite()).flatten(1).any(1).sum())
        raise DataError(
            f"`images` must be finite. {bad} of {len(images)} hold NaN or infinity: the network that made them has "
            "diverged, or overflowed in half precision."
        )
    if low < -1.001 or high > 1.001:
        raise UsageError(
            f"`images` must lie in [-1, 1]. Got [{format_number(low, 4)}, {format_number(high, 4)}]; for [0, 255] "
            "convert with x / 127.5 - 1, for a sampler that overshoots clamp to [-1, 1] as pipelines do."
        )
    # A few images may well be bright all over, as the last batch of a data set, and constant ones are no range at all.
    if low >= 0 and high > low and len(images) >= 8 and not _range_is_known.get():
        raise UsageError(
            f"`images` must lie in [-1, 1]. Got [{low:.4g}, {high:.4g}], which looks like [0, 1]: "
            f"none of {len(images)} images has a value below 0. Convert with x * 2 - 1."
        )


def check_features(features: torch.Tensor) -> None:
    """Refuse what is not a finite matrix (n, D), n >= 1."""
    if not isinstance(features, torch.Tensor):
        kind = type(features).__name__
        raise UsageError(f"Features and logits must be tensors (n, D); got {kind}. Convert it: torch.as_tensor(x).")
    if features.ndim != 2 or len(features) == 0:
        raise UsageError(f"Features and logits must have shape (n, D), n >= 1. Got {tuple(features.shape)}.")
    if not features.isfinite().all():
        bad = int((~features.isfinite()).any(1).sum())
        raise NumericsError(
            f"Features and logits must be finite. {bad} of {len(features)} images have NaN or infinity: the extractor "
            "overflowed (half precision?) or its weights are not finite."
        )
