"""The diffusion loss: predict the noise, the velocity or the clean image at random times."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latentia.errors import UsageError
from latentia.functional.bounds import diffusion_bound_term
from latentia.functional.diffusion import snr_weight
from latentia.functional.masks import masked_mean
from latentia.losses.conditions import dropped_conditions, item_of
from latentia.losses.times import sample_timesteps
from latentia.rng import Rng


def bound_term(scheduler: Any, prediction: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, last: Tensor) -> Tensor:
    r"""One term of the variational bound of a diffusion model, in nats per image, summed over pixels.

    Args:
        scheduler: a `DDPMScheduler`; its `variance_type` says what variance p has.
        prediction: the network's output at (x_t, t).
        x0, x_t: clean and noisy images, (B, C, H, W); x0 in [-1, 1].
        t: time steps, (B,) or ().
        last: whether t is the last step, from which x_0 itself is drawn; bool, (B,) or ().

    Returns:
        float32 of shape (B,); see `latentia.functional.bounds.diffusion_bound_term`.

    Example:
        >>> from latentia import DDPMScheduler
        >>> x, t = torch.zeros(2, 1, 4, 4), torch.tensor([0, 9])
        >>> bound_term(DDPMScheduler(), x, x, x, t, t == 0).shape
        torch.Size([2])
    """
    _check_scheduler(scheduler, "reverse", "DDPMScheduler")
    mean, log_variance, _ = scheduler.reverse(prediction, t, x_t)
    posterior_mean, posterior_log_variance = scheduler.posterior(x0, t, x_t)
    return diffusion_bound_term(x0, mean, log_variance, posterior_mean, posterior_log_variance, last)


def _check_scheduler(scheduler: Any, method: str, kind: str = "DDPMScheduler or DDIMScheduler") -> None:
    if not hasattr(scheduler, method):
        given = f"{type(scheduler).__module__.split('.')[0]}.{type(scheduler).__name__}"
        raise UsageError(
            f"scheduler must be a {kind} of latentia, which has {method}; got {given}. With the same noise schedule: "
            "latentia.DDPMScheduler.from_config(scheduler.config)."
        )


def diffusion_loss(
    unet: Any,
    scheduler: Any,
    batch: Mapping[str, Any],
    rng: Rng,
    *,
    time_sampling: str = "uniform",
    time_loc: float = 0.0,
    time_scale: float = 1.0,
    weighting: str = "none",
    snr_gamma: float = 5.0,
    class_dropout: float = 0.1,
    empty_text: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Tensor]:
    r"""\(L_\text{simple} = \mathbb{E}_{x_0, \epsilon, t}\, w_t \lVert y_t - f_\theta(x_t, t) \rVert^2\).

    \(x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon\), and \(y_t\) is what the scheduler's
    `prediction_type` says: the noise, the velocity or the clean image. The norm is a mean over pixels.

    Args:
        unet: called as `unet(x_t, t, **conditions)`, with `class_labels`, `encoder_hidden_states`,
            `encoder_attention_mask` and `condition` where the batch has them.
        scheduler: a `DDPMScheduler` or `DDIMScheduler`.
        batch: "x" in [-1, 1], (B, C, H, W); "labels" (B,) if the network has classes; "text", hidden states
            (B, L, D), and "text_mask" (B, L), True for tokens, if it is conditioned on texts; "condition",
            (B, C, H, W) in [-1, 1], if it is conditioned on images.
        rng: the randomness of this micro-batch.
        time_sampling, time_loc, time_scale: see `latentia.losses.times.sample_times`.
        weighting, snr_gamma: see `latentia.functional.diffusion.snr_weight`.
        class_dropout: share of images whose label is replaced by "no class", and whose text by `empty_text`, so that
            classifier-free guidance can contrast the two (Ho and Salimans, 2022, 2207.12598). In [0, 1], default 0.1.
        empty_text: hidden states (L, D) and mask (L,) of the empty text; needed with "text", unless the dropout is 0.

    Returns:
        "loss"; of a network with learned variances (twice the channels) the hybrid loss, with its parts "simple" and
        "vlb" (nats per pixel and step). Its times should be uniform, as the bound is a sum over all of them.

    Raises:
        UsageError: a batch without what the network needs, a label out of its range, or a scheduler that is not one of
            latentia, or not a `DDPMScheduler` with learned variances.

    DDPM (Ho et al., 2020, 2006.11239), eq. 14.

    Example:
        >>> from latentia import DDPMScheduler, UNet2D
        >>> unet = UNet2D(sample_size=8, in_channels=1, block_out_channels=(32,))
        >>> batch = {"x": torch.rand(4, 1, 8, 8) * 2 - 1}
        >>> diffusion_loss(unet, DDPMScheduler(), batch, Rng(0, 0, 4, 0, 4))["loss"].item() > 0
        True
    """
    x0 = item_of(batch, "x")
    _check_scheduler(scheduler, "target")
    eps = rng.normal("noise", x0.shape[1:])
    t = sample_timesteps(rng, scheduler.config.num_train_timesteps, time_sampling, time_loc, time_scale)
    conditions = dropped_conditions(unet, batch, rng, class_dropout, empty_text)
    x_t = scheduler.add_noise(x0, eps, t)
    prediction = unet(x_t, t, **conditions).sample.float()
    channels = x0.shape[1]
    errors = F.mse_loss(prediction[:, :channels], scheduler.target(x0, eps, t), reduction="none")
    counts = conditions.get("step_mask")
    error = errors.flatten(1).mean(1) if counts is None else masked_mean(errors, counts)
    alpha_bar = scheduler.alphas_cumprod.to(t.device)[t]
    simple = (snr_weight(alpha_bar, scheduler.config.prediction_type, weighting, snr_gamma) * error).mean()
    if prediction.shape[1] == channels:
        return {"loss": simple}
    # L_hybrid = L_simple + 0.001 L_vlb, where L_vlb trains the variances only (2102.09672, eq. 16).
    frozen_mean = torch.cat([prediction[:, :channels].detach(), prediction[:, channels:]], dim=1)
    vlb = bound_term(scheduler, frozen_mean, x0, x_t, t, t == 0).mean() / x0[0].numel()
    return {"loss": simple + 1e-3 * scheduler.config.num_train_timesteps * vlb, "simple": simple, "vlb": vlb}
