"""Calls in chunks of one size, so that a sample gives the same bytes whatever stands beside it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CHUNK = 64


def in_chunks(function: Callable[..., Any], *columns: Tensor | None, size: int = CHUNK) -> Any:
    """`function(*columns)` in chunks of `size` rows, the last one padded with zeros.

    Libraries choose their kernels by the shape of a batch and round differently with each, so only calls of one shape
    give a sample the same bytes in every batch.

    Args:
        function: rows of all columns -> a tensor, or a tuple of tensors, with one row for each.
        *columns: (n, ...) each; `None` is handed on as it is.
        size: rows of each call. Default 64.

    Returns:
        What `function` gives, its rows joined.

    Example:
        >>> in_chunks(lambda x: 2 * x, torch.arange(5.0), size=2)
        tensor([0., 2., 4., 6., 8.])
    """
    n = next(len(column) for column in columns if column is not None)

    def rows(column: Tensor | None) -> list[Tensor | None]:
        if column is None:
            return [None] * max(-(-n // size), 1)
        return [*torch.cat([column, column.new_zeros(-n % size, *column.shape[1:])]).split(size)]

    parts = [function(*chunk) for chunk in zip(*map(rows, columns))]
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)[:n]
    return tuple(torch.cat(column)[:n] for column in zip(*parts))
