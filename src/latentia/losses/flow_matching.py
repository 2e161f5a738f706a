"""The flow matching loss: predict the velocity of straight lines from data to noise."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latentia.losses.conditions import dropped_conditions, item_of
from latentia.losses.times import sample_times
from latentia.rng import Rng


def flow_matching_loss(
    unet: Any,
    batch: Mapping[str, Any],
    rng: Rng,
    *,
    num_train_timesteps: int = 1000,
    time_sampling: str = "logit_normal",
    time_loc: float = 0.0,
    time_scale: float = 1.0,
    class_dropout: float = 0.1,
    empty_text: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Tensor]:
    r"""\(\mathbb{E}_{x_0, \epsilon, t} \lVert (\epsilon - x_0) - v_\theta(x_t, t) \rVert^2\) on straight lines.

    \(x_t = (1 - t)\, x_0 + t\, \epsilon\), t in [0, 1): rectified flow, with t = 0 the data, as in diffusers'
    `FlowMatchEulerDiscreteScheduler`, which samples from the network. The norm is a mean over pixels.

    Args:
        unet: called as `unet(x_t, num_train_timesteps * t, **conditions)`, the time a real number.
        batch: as for `latentia.losses.diffusion.diffusion_loss`, the images about of unit variance.
        rng: the randomness of this micro-batch.
        num_train_timesteps: the scheduler's unit of time. Default 1000.
        time_sampling, time_loc, time_scale: see `latentia.losses.times.sample_times`. Default logit-normal, as the
            middle is the hardest.
        class_dropout, empty_text: as in `diffusion_loss`.

    Returns:
        "loss".

    Flow Straight and Fast (Liu et al., 2022, 2209.03003), eq. 1; times: Esser et al., 2024, 2403.03206, section 3.1.

    Example:
        >>> from latentia import UNet2D
        >>> unet = UNet2D(sample_size=8, in_channels=1, block_out_channels=(32,))
        >>> batch = {"x": torch.rand(4, 1, 8, 8) * 2 - 1}
        >>> flow_matching_loss(unet, batch, Rng(0, 0, 4, 0, 4))["loss"].item() > 0
        True
    """
    x0 = item_of(batch, "x")
    eps = rng.normal("noise", x0.shape[1:])
    t = sample_times(rng, time_sampling, time_loc, time_scale)
    conditions = dropped_conditions(unet, batch, rng, class_dropout, empty_text)
    x_t = torch.lerp(x0, eps, t.view(-1, *[1] * (x0.ndim - 1)))
    prediction = unet(x_t, num_train_timesteps * t, **conditions).sample.float()
    return {"loss": F.mse_loss(prediction, eps - x0)}
