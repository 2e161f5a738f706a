"""Pixels from bytes and back: uint8 in [0, 255] and floats in [-1, 1]."""

import torch
from torch import Tensor


def from_uint8(pixels: Tensor) -> Tensor:
    """float32 in [-1, 1] of bytes: v / 127.5 - 1, to the same bit on every device.

    Args:
        pixels: uint8, or other numbers in [0, 255], any shape.

    Example:
        >>> from_uint8(torch.tensor([0, 255], dtype=torch.uint8))
        tensor([-1.,  1.])
    """
    # A GPU divides by a number as it multiplies by its rounded inverse; by a tensor it divides, as a CPU does.
    half = torch.full((), 127.5, device=pixels.device)
    return pixels.to(torch.float32, copy=True).div_(half).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Bytes of floats in [-1, 1], rounded to the nearest; what lies outside is clipped. At least float32 inside.

    Example:
        >>> to_uint8(torch.tensor([-1.5, 0.0, 1.0]))
        tensor([  0, 128, 255], dtype=torch.uint8)
    """
    exact = images.to(torch.promote_types(images.dtype, torch.float32))  # bfloat16 has no room for 256 sums
    return ((exact.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_levels(images: Tensor, levels: int) -> Tensor:
    """The level of each value in [-1, 1], of `levels` that cut the range into equal parts; bytes stay bytes with 256.

    Args:
        images: floats in [-1, 1], any shape.
        levels: K, at least 2.

    Returns:
        int64 in [0, K).

    Example:
        >>> to_levels(torch.tensor([-1.0, -0.1, 0.1, 1.0]), 2).tolist()
        [0, 0, 1, 1]
    """
    exact = images.to(torch.promote_types(images.dtype, torch.float32))
    return ((exact + 1) * (levels / 2)).long().clamp(0, levels - 1)


def from_levels(values: Tensor, levels: int) -> Tensor:
    """float32 in [-1, 1] of levels, evenly spaced from -1 to 1; `to_levels` gives the levels back.

    Args:
        values: integers in [0, K), any shape.
        levels: K, at least 2.

    Example:
        >>> from_levels(torch.tensor([0, 1, 2]), 3).tolist()
        [-1.0, 0.0, 1.0]
    """
    half = torch.full((), (levels - 1) / 2, device=values.device)
    return values.to(torch.float32, copy=True).div_(half).sub_(1)
