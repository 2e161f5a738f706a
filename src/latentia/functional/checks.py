"""Checks of the values of tensors, each of which reads a value back from its device."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from latentia.errors import UsageError, format_number

_unread = False


@contextmanager
def unread_values(active: bool = True) -> Iterator[None]:
    """Take all conditions on values for true meanwhile, in all threads: to read one makes an accelerator wait.

    Args:
        active: `False` changes nothing. Default True.

    Example:
        >>> with unread_values():
        ...     is_false(torch.tensor(1) > 2)
        False
    """
    global _unread
    before = _unread
    _unread = before or active
    try:
        yield
    finally:
        _unread = before


def is_false(condition: Tensor) -> bool:
    """Whether a condition on values fails; never where there are no values: on `meta`, while torch.compile traces, and
    within `unread_values`.

    Args:
        condition: bool, ().

    Example:
        >>> is_false(torch.tensor(1) > 2), is_false(torch.tensor(1, device="meta") > 2)
        (True, False)
    """
    return not (condition.is_meta or torch.compiler.is_compiling() or _unread) and not bool(condition)


def check_values(name: str, values: Tensor, low: float, high: float, *, advice: str = "") -> None:
    """Raises a `UsageError` unless all values are in [low, high]; NaN is not.

    Args:
        name: what the argument is called.
        values: any shape, not empty.
        low, high: both ends belong to the range.
        advice: what to do instead, a sentence that follows the rule. Default none.

    Example:
        >>> check_values("images", torch.zeros(2), -1, 1)
        >>> check_values("images", torch.tensor([0.0, 255.0]), -1, 1)
        Traceback (most recent call last):
        latentia.errors.UsageError: images must be in [-1, 1]; got values from 0 to 255.
    """
    least, most = values.detach().amin(), values.detach().amax()
    if is_false((least >= low) & (most <= high)):
        lowest, highest, first, last = (format_number(value) for value in (low, high, least.item(), most.item()))
        raise UsageError(
            f"{name} must be in [{lowest}, {highest}]; got values from {first} to {last}.{advice and ' ' + advice}"
        )


def check_indices(name: str, indices: Tensor, count: int) -> None:
    """Raises a `UsageError` unless all are integers in [0, count).

    Example:
        >>> check_indices("labels", torch.tensor([0, 10]), 10)
        Traceback (most recent call last):
        latentia.errors.UsageError: labels must be from 0 to 9; got 0 to 10.
    """
    if indices.is_floating_point():
        raise UsageError(f"{name} must be integers; got {indices.dtype}.")
    least, most = indices.amin(), indices.amax()
    if is_false((least >= 0) & (most < count)):
        raise UsageError(f"{name} must be from 0 to {count - 1}; got {int(least)} to {int(most)}.")


def check_latents(latents: Tensor, latent_dim: int) -> None:
    """Raises a `UsageError` unless latents are vectors (B, latent_dim).

    Example:
        >>> check_latents(torch.zeros(2, 3), 4)
        Traceback (most recent call last):
        latentia.errors.UsageError: latents must be of shape (B, latent_dim=4); got (2, 3).
    """
    if latents.ndim != 2 or latents.shape[1] != latent_dim:
        raise UsageError(f"latents must be of shape (B, latent_dim={latent_dim}); got {tuple(latents.shape)}.")
