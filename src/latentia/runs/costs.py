"""Costs of a reconstruction by name, for images of one shape: what a training script minimises besides a likelihood."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from latentia.errors import UsageError, check_choice
from latentia.evaluation import extractor_for, ms_ssim, perceptual_loss
from latentia.evaluation.pairs import MS_SSIM_WEIGHTS, SSIM_WINDOW
from latentia.losses.vae_objectives import log_cosh_cost, similarity_cost

Reconstruction = Literal["likelihood", "log_cosh", "ms_ssim", "perceptual"]


def reconstruction_cost(
    name: str, shape: tuple[int, int, int], device: str | torch.device = "cpu"
) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The cost (images, reconstructions) -> (B,) of that name, which is `None` for "likelihood".

    Args:
        name: "likelihood"; "log_cosh", summed over the values of an image; "ms_ssim", one minus the multi-scale
            structural similarity, with as many of five scales as fit; or "perceptual", the distance in the layers of
            the shipped classifier; the last two times the number of values.
        shape: of an image, (C, H, W).
        device: of the classifier. Default "cpu".

    Raises:
        UsageError: an unknown name, images below 3 x 3 for "ms_ssim", no classifier for such images.

    Example:
        >>> x = torch.zeros(2, 1, 8, 8)
        >>> reconstruction_cost("ms_ssim", (1, 8, 8))(x, x)
        tensor([0., 0.])
    """
    check_choice("reconstruction", name, ("likelihood", "log_cosh", "ms_ssim", "perceptual"))
    if name == "likelihood":
        return None
    if name == "log_cosh":
        return log_cosh_cost
    if name == "ms_ssim":
        side = min(shape[1:])
        window = min(SSIM_WINDOW, side - 1 + side % 2)
        if window < 3:
            raise UsageError(f"reconstruction ms_ssim needs images of at least 3 x 3 pixels; got {shape[1:]}.")
        scales = max(n for n in range(1, len(MS_SSIM_WEIGHTS) + 1) if side >> (n - 1) >= window)
        return partial(similarity_cost, similarity=partial(ms_ssim, scales=scales, window=window))
    extractor: Any = extractor_for(shape, device)  # one that has a model
    if extractor is None:
        raise UsageError(
            f"reconstruction perceptual must be left out for images of {' x '.join(map(str, shape))}: no shipped "
            "classifier fits them. Take ms_ssim."
        )
    distance = partial(perceptual_loss, model=extractor.model.requires_grad_(False))
    return partial(similarity_cost, similarity=lambda a, b: 1 - distance(a, b))
