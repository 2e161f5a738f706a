"""The contract of a data set, the same for every modality: images, latents, points, tables, and what comes.

The training loop needs `batch` and `fingerprint`. A run also prints, counts and describes the data, and builds networks
for its `shape`, `label_names` and `captions`. A class that has the members of `Dataset` can be trained on with no other
change; it does not have to derive from anything here.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from latentia.errors import DataError, UsageError, counted


@runtime_checkable
class Dataset(Protocol):
    """Elements of one shape in the order of an endless, shuffled stream.

    Position p of the stream is element p % n of epoch p // n. Each epoch is a permutation of all n elements that
    depends on (seed, epoch) alone, and everything random about an element, such as a flip, on (seed, position) alone.
    Nothing is dropped at the end of an epoch.

    Attributes:
        modality: what an element is: "image", "latent", "point", "table row", "text window", "sequence" or
            "clip".
        shape: of one element, without the batch dimension: (C, H, W) of images, (D,) of points and rows.
        fingerprint: changes with the content; a checkpoint is resumed only on data of the same fingerprint.
        endless: whether the data have no length: a stream, or samples from a distribution.
        has_captions: whether batches hold captions.
        labels: int64 (n,), class of each element in the order of the source; None without labels, or if endless.
        label_names: name of each class; batches hold labels if and only if this is not None.
        captions: text of each element in the order of the source; None without captions, or if endless.
    """

    modality: str
    endless: bool
    label_names: list[str] | None

    @property
    def has_captions(self) -> bool: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def labels(self) -> Tensor | None: ...

    @property
    def captions(self) -> list[str] | None: ...

    def __len__(self) -> int:
        """Number of elements n; UsageError if endless."""
        ...

    def batch(self, start: int, stop: int, *, seed: int = 0, device: str | torch.device = "cpu") -> dict[str, Any]:
        """Positions [start, stop) of the stream of `seed`; the same however the stream is cut into batches.

        Args:
            start, stop: 0 <= start <= stop, unbounded; a batch may span epochs. B = stop - start.
            seed: of the order and of everything random about the elements.
            device: where every tensor of the batch is put.

        Returns:
            {"x": float32 (B, *shape)}, with "labels" (int64 (B,)) and "captions" (list of B texts) where the data set
            has them; a data set may add more keys, of B rows each.

        Raises:
            UsageError: not 0 <= start <= stop.
        """
        ...

    def require(self, n: int) -> None:
        """DataError if there are fewer than n elements, one global batch over all processes and accumulation."""
        ...

    def describe(self) -> dict[str, Any]:
        """Facts about the data for a model card, ready for JSON: see `description`, and the source."""
        ...


def description(data: Dataset) -> dict[str, Any]:
    """The part of `Dataset.describe` that all data sets share.

    Example:
        >>> from latentia.data import PlaneData
        >>> description(PlaneData("ring"))["modality"]
        'point'
    """
    return {
        "modality": data.modality,
        "shape": list(data.shape),
        "label_names": data.label_names,
        "captions": data.has_captions,
        "fingerprint": data.fingerprint,
    }


def require(data: Dataset, n: int) -> None:
    """`Dataset.require` for data with a length: DataError if it holds fewer than n elements."""
    if len(data) < n:
        raise DataError(
            f"the data set holds {counted(len(data), data.modality)}, fewer than one global batch of {n}, so that one "
            f"step would see some twice. Lower the batch size to {len(data)} at most, or add data."
        )


def check_annotations(
    count: int,
    labels: Sequence[int] | Tensor | None,
    label_names: Sequence[str] | None,
    captions: Sequence[str] | None,
) -> tuple[Tensor | None, list[str] | None, list[str] | None]:
    """Labels, names of the classes and captions of `count` elements, as a data set holds them.

    Args:
        count: number of elements.
        labels: `count` integers in [0, len(label_names)), or None.
        label_names: names of the classes; default "0", "1", ... up to the largest label.
        captions: `count` texts, or None.

    Returns:
        Labels as int64 (count,), names and captions as lists; None where there are none.

    Raises:
        UsageError: another number of labels or captions, a label outside its range, or names without labels.

    Example:
        >>> check_annotations(3, [0, 2, 0], None, None)
        (tensor([0, 2, 0]), ['0', '1', '2'], None)
    """
    for name, values in (("labels", labels), ("captions", captions)):
        if values is not None and len(values) != count:
            raise UsageError(f"{name} must be one for each of the {count} elements; got {len(values)}.")
    texts = None if captions is None else list(captions)
    if labels is None:
        if label_names is not None:
            raise UsageError(f"label_names need labels; got {len(label_names)} names and no labels.")
        return None, None, texts
    try:
        classes = torch.as_tensor(labels)
        if classes.is_floating_point() or classes.is_complex() or classes.ndim != 1:
            raise TypeError(f"{classes.dtype} of shape {tuple(classes.shape)}")
        classes = classes.long()
    except (TypeError, ValueError, RuntimeError) as error:  # of torch, for texts and integers beyond 64 bits
        raise UsageError(f"labels must be integers, one for each element; got {error}.") from error
    low, high = int(classes.min()), int(classes.max())
    names = [str(i) for i in range(high + 1)] if label_names is None else list(label_names)
    if low < 0 or high >= len(names):
        raise UsageError(f"labels must lie in [0, {len(names)}); got {low} to {high}.")
    return classes, names, texts


def annotate(batch: dict[str, Any], data: Dataset, rows: Tensor, device: str | torch.device) -> dict[str, Any]:
    """Add the labels and captions of elements to a batch, where the data set has them.

    Args:
        batch: gets "labels" on `device` and "captions".
        data: whose `labels` and `captions` are taken.
        rows: int64 (B,), which elements, on the CPU.
        device: of the batch.

    Returns:
        The same batch.
    """
    if data.labels is not None:
        batch["labels"] = data.labels[rows].to(device, non_blocking=True)
    if data.captions is not None:
        batch["captions"] = [data.captions[row] for row in rows.tolist()]
    return batch
