"""Samples as sequences of values: raster order, checks of tokens, and how a token is picked."""

import math
from collections.abc import Callable

from torch import Tensor

from latentia.errors import UsageError
from latentia.functional.checks import check_indices

Pick = Callable[[Tensor, Tensor], Tensor]  # logits (B, K) and numbers in [0, 1) (B,) -> indices, int64 (B,)
MAX_VALUES = 2**16  # of one sample, which is sampled value by value


def check_tokens(tokens: Tensor, levels: int) -> None:
    """Raises a `UsageError` unless tokens are integers in [0, levels); on a CPU, as another device would wait.

    Example:
        >>> check_tokens(torch.tensor([2]), 2)
        Traceback (most recent call last):
        latentia.errors.UsageError: tokens must be from 0 to 1; got 2 to 2.
    """
    if tokens.device.type == "cpu":
        check_indices("tokens", tokens, levels)


def check_length(shape: tuple[int, ...]) -> int:
    """The number of values of a sample; UsageError if there are more than 65 536.

    Example:
        >>> check_length((3, 8, 8))
        192
    """
    values = math.prod(shape)
    if values > MAX_VALUES:
        raise UsageError(f"shape must hold at most {MAX_VALUES} values; got {shape}, which holds {values}.")
    return values


def raster(images: Tensor) -> Tensor:
    """The values of images in raster order, the channels of a pixel one after the other: (B, C, H, W) -> (B, H W C).

    Example:
        >>> raster(torch.arange(8).view(1, 2, 2, 2)).tolist()
        [[0, 4, 1, 5, 2, 6, 3, 7]]
    """
    return images.permute(0, 2, 3, 1).flatten(1)


def unraster(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `raster`: (B, H W C, ...) -> (B, C, H, W, ...).

    Example:
        >>> images = torch.arange(8).view(1, 2, 2, 2)
        >>> torch.equal(unraster(raster(images), (2, 2, 2)), images)
        True
    """
    channels, height, width = shape
    return values.unflatten(1, (height, width, channels)).movedim(3, 1)
