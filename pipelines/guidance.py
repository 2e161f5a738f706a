"""Autoguidance: a denoising network that is guided away from a weaker version of itself."""

from typing import Any

import torch
from torch import Tensor

from latentia.errors import UsageError, check_range
from latentia.models.unet import UNet2DOutput

_SHARED = ("in_channels", "num_class_embeds", "condition_channels", "condition_scale", "target_time", "smooth_time")


class Guided:
    r"""A network and a weaker one, called as one: \(f_g + w (f - f_g)\) under the same conditions; it holds no weights.

    A learned variance is that of the network.

    Args:
        unet: the network \(f\).
        guide: \(f_g\), trained for the same task with less capacity or for fewer steps.
        scale: \(w\).

    Autoguidance (Karras et al., 2024, 2406.02507), eq. 3.

    Example:
        >>> from latentia import UNet2D
        >>> unet = UNet2D(sample_size=8, in_channels=1, block_out_channels=(32,))
        >>> x = torch.randn(2, 1, 8, 8)
        >>> torch.equal(Guided(unet, unet, 3.0)(x, 10).sample, unet(x, 10).sample)
        True
    """

    def __init__(self, unet: Any, guide: Any, scale: float):
        self.unet, self.guide, self.scale = unet, guide, scale
        self.config = unet.config

    def __call__(self, sample: Tensor, timestep: Any, **conditions: Any) -> UNet2DOutput:
        strong = self.unet(sample, timestep, **conditions).sample
        weak = self.guide(sample, timestep, **conditions).sample
        channels = sample.shape[1]
        guided = weak[:, :channels] + self.scale * (strong[:, :channels] - weak[:, :channels])
        return UNet2DOutput(torch.cat([guided, strong[:, channels:]], 1))


def check_guide(unet: Any, guide: Any, controlnet: Any = None) -> None:
    """UsageError unless a guide is None, or a network that takes what the network takes."""
    if guide is None:
        return
    if controlnet is not None:
        raise UsageError("guide must be left out with a controlnet, whose features are those of unet alone.")
    for name in _SHARED:
        own, other = ((getattr(part, "config", None) or {}).get(name) for part in (guide, unet))
        if own != other:
            raise UsageError(
                f"guide must be a network for the task of unet; its {name} is {own} and that of unet {other}. Train it "
                "on the same data with the same conditions, smaller or for fewer steps."
            )


def guided(unet: Any, guide: Any, scale: float) -> Any:
    """What is called at each step: the network, guided if `scale` is not 1.

    Raises:
        UsageError: a scale that is not finite, or one other than 1 without a guide.
    """
    check_range("autoguidance_scale", scale)
    if scale == 1:
        return unet
    if guide is None:
        raise UsageError(
            f"autoguidance_scale must be 1 for a pipeline without a guide, a weaker version of its network; got "
            f"{scale}. Give it one, the network of another pipeline: guide of latentia generate, or "
            "pipe.register_modules(guide=other.unet)."
        )
    return Guided(unet, guide, scale)
