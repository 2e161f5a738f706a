"""Shuffled order of the endless sample stream, the random numbers of its positions, and classes in proportion.

Position p is element p % n of epoch p // n. Everything here is a function of (seed, position), so a run is resumed by
its position alone and a batch does not depend on how the stream is cut into batches.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from numbers import Integral
from typing import Any

import numpy as np
import torch

from latentia.errors import UsageError
from latentia.rng import seed_from

Numbers = Callable[[int, int], list[int]]  # (start, stop) -> the classes of images start..stop
_GOLDEN = 0x9E3779B97F4A7C15


@lru_cache(maxsize=4)
def permutation(n: int, seed: int, epoch: int) -> torch.Tensor:
    """The order of epoch `epoch`: int64 (n,), cached for the next batches of the same epoch; do not write to it.

    Example:
        >>> sorted(permutation(5, 0, 3).tolist())
        [0, 1, 2, 3, 4]
    """
    generator = torch.Generator().manual_seed(seed_from(seed, "order", epoch))
    return torch.randperm(n, generator=generator)


def check_positions(start: int, stop: int) -> None:
    """UsageError unless 0 <= start <= stop: the positions of a batch.

    Example:
        >>> check_positions(3, 8)
    """
    if not (isinstance(start, Integral) and isinstance(stop, Integral) and 0 <= start <= stop):
        raise UsageError(f"a batch needs integers 0 <= start <= stop; got start={start}, stop={stop}.")


def indices(start: int, stop: int, n: int, seed: int) -> torch.Tensor:
    """The rows at positions [start, stop): int64 (stop - start,). The range may span epochs.

    Example:
        >>> sorted(indices(3, 8, 5, seed=0)[2:].tolist() + indices(8, 10, 5, seed=0).tolist())
        [0, 1, 2, 3, 4]
    """
    parts = [torch.empty(0, dtype=torch.int64)]
    while start < stop:
        epoch, first = divmod(start, n)
        last = min(n, first + stop - start)
        parts.append(permutation(n, seed, epoch)[first:last])
        start += last - first
    return torch.cat(parts)


def uniform(stream: str, start: int, stop: int, seed: int) -> np.ndarray:
    """U[0, 1) for positions [start, stop): float64 (stop - start,), one number per position and `stream` name.

    The splitmix64 generator (Steele, Lea and Flood 2014) at counter values, hence without a state to carry.

    Example:
        >>> bool((uniform("flip", 0, 8, seed=1)[5:] == uniform("flip", 5, 8, seed=1)).all())
        True
    """
    counter = np.arange(start + 1, stop + 1, dtype=np.uint64)
    z = counter * np.uint64(_GOLDEN) + np.uint64(seed_from(seed, "position", stream))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53


def flip_mask(start: int, stop: int, seed: int) -> np.ndarray:
    """Positions [start, stop) at which an image is flipped left-right, each with probability 1/2: bool (stop - start,).

    Example:
        >>> flip_mask(0, 6, seed=1).tolist()
        [True, True, False, False, False, True]
    """
    return uniform("flip", start, stop, seed) < 0.5


def class_shares(data: Any) -> list[float]:
    """How frequent each class is among the elements of a data set with `labels` and `label_names`.

    Example:
        >>> from types import SimpleNamespace
        >>> class_shares(SimpleNamespace(labels=torch.tensor([0, 0, 0, 1]), label_names=["cat", "dog"]))
        [0.75, 0.25]
    """
    return data.labels.bincount(minlength=len(data.label_names)).double().div(len(data.labels)).tolist()


def in_proportion(shares: Sequence[float]) -> Numbers:
    """A series of classes of which every beginning is as near to these shares as it can be; equal shares go in turn.

    Example:
        >>> in_proportion([0.5, 0.25, 0.25])(0, 8)
        [0, 1, 2, 0, 0, 1, 2, 0]
    """
    series: list[int] = []
    counts = [0] * len(shares)

    def classes(start: int, stop: int) -> list[int]:
        while len(series) < stop:
            lack = [share * (len(series) + 1) - count for share, count in zip(shares, counts)]
            series.append(lack.index(max(lack)))
            counts[series[-1]] += 1
        return series[start:stop]

    return classes


def class_labels_like(labels: Sequence[int] | np.ndarray | None, count: int) -> list[int] | None:
    """`count` labels, spread evenly over those of a data set; None of none.

    Example:
        >>> class_labels_like([0, 0, 1, 2], 2)
        [0, 1]
    """
    return None if labels is None else [int(labels[i * len(labels) // count]) for i in range(count)]
