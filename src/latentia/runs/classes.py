"""Classes that a model is asked for in a score or a grid: as often as they occur in the data."""

from collections.abc import Sequence
from typing import Any

from latentia.data.base import Dataset
from latentia.data.order import Numbers, class_shares, in_proportion


def classes_of(pipe: Any, count: int | None, real: Dataset) -> tuple[Numbers | None, Numbers | None, tuple[str, ...]]:
    """What classes to ask a pipeline for, so that they are as frequent as in the data.

    Args:
        pipe: the pipeline; the names of its classes are in its configuration.
        count: of its classes, or None.
        real: the data.

    Returns:
        The numbers of the pipeline's classes to ask for, and those of the data that they have there: None without
        classes, and the latter also where the names differ, as then the classes are asked for in turn. And notes.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from latentia.data import ImageData
        >>> images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
        >>> real = ImageData(images, labels=[0, 0, 0, 1], label_names=["cat", "dog"])
        >>> pipe = SimpleNamespace(config=SimpleNamespace(label_names={"0": "dog", "1": "cat"}))
        >>> asked, labels, _ = classes_of(pipe, 2, real)
        >>> asked(0, 4), labels(0, 4)
        ([1, 1, 0, 1], [0, 0, 1, 0])
    """
    if not count:
        return None, None, ()
    names = [*(getattr(pipe.config, "label_names", None) or {}).values()] or [str(i) for i in range(count)]
    known = real.label_names if real.labels is not None else None
    if known is None or not {*known} <= {*names}:
        has = "has no classes" if known is None else f"has the classes {_listed(known)}"
        note = f"its classes, {_listed(names)}, were asked for in turn, as the data {has}"
        return lambda start, stop: [i % count for i in range(start, stop)], None, (note,)
    labels = in_proportion(class_shares(real))
    return lambda start, stop: [names.index(known[i]) for i in labels(start, stop)], labels, ()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")
