"""Masks of padded sequences."""

import torch
from torch import Tensor

from latentia.errors import UsageError
from latentia.functional.checks import is_false


def length_mask(lengths: Tensor, steps: int) -> Tensor:
    """True for the first `lengths[i]` of `steps` elements of sequence i: bool, (B, steps).

    Args:
        lengths: integers from 1 to `steps`, shape (B,).
        steps: T, the padded length.

    Raises:
        UsageError: a length of 0 or beyond `steps`.

    Example:
        >>> length_mask(torch.tensor([1, 3]), 3).int().tolist()
        [[1, 0, 0], [1, 1, 1]]
    """
    if is_false((lengths.min() >= 1) & (lengths.max() <= steps)):
        raise UsageError(
            f"lengths must be from 1 to {steps}, the padded length; got values from {int(lengths.min())} to "
            f"{int(lengths.max())}. Leave empty sequences out and cut long ones."
        )
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of each sequence over its channels and the steps that count, (B,); the others get no gradient.

    Args:
        values: (B, C, T).
        mask: bool (B, T), True for steps that count, at least one of each sequence.

    Example:
        >>> masked_mean(torch.tensor([[[1.0, 3.0, 100.0]]]), torch.tensor([[True, True, False]]))
        tensor([2.])
    """
    weight = mask[:, None].to(values.dtype)
    kept = torch.where(mask[:, None], values, 0)  # no product, as 0 times infinity is no number
    return kept.sum((1, 2)) / (weight.sum((1, 2)) * values.shape[1])
