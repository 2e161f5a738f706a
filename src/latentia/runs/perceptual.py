"""The perceptual term of training objectives: a distance in the layers of a shipped classifier."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from latentia.errors import UsageError, counted
from latentia.evaluation import extractor_for, perceptual_loss


def perceptual_term(
    weight: float, shape: tuple[int, ...], device: torch.device | str
) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The distance in the layers of the shipped classifier for such images, or for those of such channels.

    Args:
        weight: of the term; 0: there is none.
        shape: (C, H, W) of the images.
        device: of the classifier.

    Returns:
        (images, images) -> (B,); None for a weight of 0.

    Raises:
        UsageError: no classifier fits the channels.

    Example:
        >>> perceptual_term(1.0, (1, 8, 8), "cpu")(torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8))
        tensor([0., 0.])
    """
    if weight == 0:
        return None
    fallback = (3, 32, 32) if shape[0] == 3 else (shape[0], 28, 28)
    extractor: Any = extractor_for(shape, device) or extractor_for(fallback, device)  # a classifier, with its `model`
    if extractor is None:
        raise UsageError(
            f"perceptual_weight must be 0 for images of {counted(shape[0], 'channel')}: no classifier fits them."
        )
    return partial(perceptual_loss, model=extractor.model.requires_grad_(False))
