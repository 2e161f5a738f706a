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
