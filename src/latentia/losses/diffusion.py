"""Objectives of diffusion models: predict what was added, at times drawn so that the effort lies where it counts."""

import torch
import torch.nn.functional as F
from torch import Tensor

from latentia.errors import UsageError, did_you_mean
from latentia.rng import Rng

TIME_SAMPLING = ("uniform", "logit_normal")
WEIGHTING = ("none", "min_snr")


def sample_times(rng: Rng, sampling: str = "uniform", loc: float = 0.0, scale: float = 1.0) -> Tensor:
    r"""One time in [0, 1) for each image, 0 without noise, spread evenly over the batch.

    \(u_i = (u_0 + i / B) \bmod 1\) is stratified, so that a batch sees every part of the time axis and the loss is
    less noisy (Variational Diffusion Models, Kingma et al., 2021, 2107.00630, appendix I.1). It is mapped through the
    inverse distribution function of the wanted density.

    Args:
        rng: the randomness of this micro-batch.
        sampling: "uniform", or "logit_normal": \(t = \sigma(\text{loc} + \text{scale} \cdot z)\) with z ~ N(0, 1)
            (Scaling Rectified Flow Transformers, Esser et al., 2024, 2403.03206, eq. 19).
        loc, scale: of the logit-normal density; a smaller `loc` means less noise. Defaults 0 and 1.

    Returns:
        float32 of shape (count,).

    Raises:
        UsageError: unknown `sampling`.

    Example:
        >>> sample_times(Rng(0, 0, 4, 0, 4)).mul(4).floor().sort().values
        tensor([0., 1., 2., 3.])
    """
    if sampling not in TIME_SAMPLING:
        raise UsageError(
            f'time_sampling must be one of {TIME_SAMPLING}; got "{sampling}".{did_you_mean(sampling, TIME_SAMPLING)}'
        )
    u = rng.stratified("timesteps")
    if sampling == "logit_normal":
        u = torch.sigmoid(loc + scale * torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6)))
    return u


def sample_timesteps(
    rng: Rng, num_train_timesteps: int, sampling: str = "uniform", loc: float = 0.0, scale: float = 1.0
) -> Tensor:
    """The times of `sample_times` as steps: int64 of shape (count,), in [0, num_train_timesteps - 1].

    Example:
        >>> t = sample_timesteps(Rng(0, 0, 1000, 0, 1000), 1000)
        >>> sorted(t.tolist()) == list(range(1000))
        True
    """
    u = sample_times(rng, sampling, loc, scale)
    return (u * num_train_timesteps).long().clamp_(max=num_train_timesteps - 1)


def snr_weight(scheduler, t: Tensor, weighting: str = "none", snr_gamma: float = 5.0) -> Tensor:
    r"""The weight of each image's squared error in the network's own prediction space.

    "min_snr" gives the clean-image error the weight \(\min(\mathrm{SNR}_t, \gamma)\) (Hang et al., 2023, 2303.09556,
    section 3.4), which is \(/\mathrm{SNR}\) for epsilon and \(/(\mathrm{SNR} + 1)\) for v-prediction.

    Args:
        scheduler: has `alphas_cumprod` and `config.prediction_type`.
        t: time steps, int64, shape (B,).
        weighting: "none" (1 everywhere) or "min_snr".
        snr_gamma: gamma, default 5.

    Returns:
        float32 of shape (B,).
    """
    if weighting not in WEIGHTING:
        raise UsageError(
            f'loss_weighting must be one of {WEIGHTING}; got "{weighting}".{did_you_mean(weighting, WEIGHTING)}'
        )
    if weighting == "none":
        return torch.ones(len(t), device=t.device)
    alpha_bar = scheduler.alphas_cumprod.to(t.device)[t]
    snr = alpha_bar / (1 - alpha_bar)
    per_x0 = {"sample": torch.ones_like(snr), "epsilon": snr, "v_prediction": snr + 1}[scheduler.config.prediction_type]
    return (snr.clamp(max=snr_gamma) / per_x0.clamp(min=1e-8)).float()


def bound_term(scheduler, prediction: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, last: Tensor) -> Tensor:
    r"""One term of the variational bound, in nats per image, summed over pixels.

    \(L_{t-1} = \mathrm{KL}(q(x_{t-1} \mid x_t, x_0) \,\|\, p_\theta(x_{t-1} \mid x_t))\), and at the last step
    \(L_0 = -\log p_\theta(x_0 \mid x_1)\) of pixels with 256 levels (DDPM, 2006.11239, eq. 5 and 13).

    Args:
        scheduler: a `DDPMScheduler`; its `variance_type` says what variance p has.
        prediction: the network's output at (x_t, t).
        x0, x_t: clean and noisy images, (B, C, H, W); x0 in [-1, 1].
        t: time steps, (B,) or ().
        last: whether t is the last step, from which x_0 itself is drawn; bool, (B,) or ().

    Returns:
        float32 of shape (B,).
    """
    mean, log_variance, _ = scheduler.reverse(prediction, t, x_t)
    true_mean, true_log_variance = scheduler.posterior(x0, t, x_t)
    gap = (true_mean - mean).square() * (-log_variance).exp()
    kl = 0.5 * (log_variance - true_log_variance + (true_log_variance - log_variance).exp() + gap - 1)
    normal = torch.distributions.Normal(mean.float(), (0.5 * log_variance).exp().float())
    half = 1 / 255  # a level is 2 / 255 wide; the outermost reach to infinity
    above = torch.where(x0 > 0.999, 1.0, normal.cdf(x0.float() + half))
    below = torch.where(x0 < -0.999, 0.0, normal.cdf(x0.float() - half))
    nll = -(above - below).clamp(min=1e-12).log()
    return torch.where(last.view(-1, *[1] * (x0.ndim - 1)), nll, kl.float()).flatten(1).sum(1)


def diffusion_loss(
    unet,
    scheduler,
    batch: dict,
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
        unet: called as `unet(x_t, t, **condition)`, with `class_labels`, `encoder_hidden_states` and
            `encoder_attention_mask` where the batch has them.
        scheduler: a `DDPMScheduler` or `DDIMScheduler`.
        batch: "x" in [-1, 1], (B, C, H, W); "labels" (B,) if the network has classes; "text", hidden states
            (B, L, D), and "text_mask" (B, L), True for tokens, if it is told texts.
        rng: the randomness of this micro-batch.
        time_sampling, time_loc, time_scale: see `sample_times`.
        weighting, snr_gamma: see `snr_weight`.
        class_dropout: share of images whose label is replaced by "no class", and whose text by `empty_text`, so that
            classifier-free guidance can contrast the two (Ho and Salimans, 2022, 2207.12598). In [0, 1], default 0.1.
        empty_text: hidden states (L, D) and mask (L,) of the empty text; needed with "text", unless the dropout is 0.

    Returns:
        "loss"; of a network with learned variances (twice the channels) the hybrid loss, with its parts "simple" and
        "vlb" (nats per pixel and step). Its times should be uniform, as the bound is a sum over all of them.

    DDPM (Ho et al., 2020, 2006.11239), eq. 14.

    Example:
        >>> from latentia import DDPMScheduler, UNet2D
        >>> unet = UNet2D(sample_size=8, in_channels=1, block_out_channels=(32,))
        >>> batch = {"x": torch.rand(4, 1, 8, 8) * 2 - 1}
        >>> diffusion_loss(unet, DDPMScheduler(), batch, Rng(0, 0, 4, 0, 4))["loss"].item() > 0
        True
    """
    x0 = batch["x"]
    eps = rng.normal("noise", x0.shape[1:])
    t = sample_timesteps(rng, scheduler.config.num_train_timesteps, time_sampling, time_loc, time_scale)
    condition = _condition(unet, batch, rng, class_dropout, empty_text)
    x_t = scheduler.add_noise(x0, eps, t)
    prediction = unet(x_t, t, **condition).sample.float()
    channels = x0.shape[1]
    error = F.mse_loss(prediction[:, :channels], scheduler.target(x0, eps, t), reduction="none").flatten(1).mean(1)
    simple = (snr_weight(scheduler, t, weighting, snr_gamma) * error).mean()
    if prediction.shape[1] == channels:
        return {"loss": simple}
    # L_hybrid = L_simple + 0.001 L_vlb, where L_vlb trains the variances only (2102.09672, eq. 16).
    frozen_mean = torch.cat([prediction[:, :channels].detach(), prediction[:, channels:]], dim=1)
    vlb = bound_term(scheduler, frozen_mean, x0, x_t, t, t == 0).mean() / x0[0].numel()
    return {"loss": simple + 1e-3 * scheduler.config.num_train_timesteps * vlb, "simple": simple, "vlb": vlb}


def flow_matching_loss(
    unet,
    batch: dict,
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
        unet: called as `unet(x_t, num_train_timesteps * t, **condition)`, the time a real number.
        batch: as for `diffusion_loss`, the images about of unit variance.
        rng: the randomness of this micro-batch.
        num_train_timesteps: the scheduler's unit of time. Default 1000.
        time_sampling, time_loc, time_scale: see `sample_times`. Default logit-normal, as the middle is the hardest.
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
    x0 = batch["x"]
    eps = rng.normal("noise", x0.shape[1:])
    t = sample_times(rng, time_sampling, time_loc, time_scale)
    condition = _condition(unet, batch, rng, class_dropout, empty_text)
    x_t = torch.lerp(x0, eps, t.view(-1, *[1] * (x0.ndim - 1)))
    prediction = unet(x_t, num_train_timesteps * t, **condition).sample.float()
    return {"loss": F.mse_loss(prediction, eps - x0)}


def _condition(unet, batch: dict, rng: Rng, dropout: float, empty_text) -> dict[str, Tensor]:
    """The labels and texts that a network is told, those of a share of the images hidden."""
    told: dict[str, Tensor] = {}
    labels = batch.get("labels") if getattr(unet_config(unet), "num_class_embeds", None) is not None else None
    if labels is not None or "text" in batch:
        hidden = rng.uniform("class_dropout") < dropout
    if labels is not None:
        told["class_labels"] = torch.where(hidden, unet_config(unet).num_class_embeds, labels)
    if "text" in batch:
        if empty_text is None and dropout > 0:
            raise UsageError("empty_text is missing: a share of the texts is hidden, which `class_dropout=0` forbids.")
        text, mask = batch["text"], batch["text_mask"]
        if empty_text is not None:
            text = torch.where(hidden[:, None, None], empty_text[0].to(text), text)
            mask = torch.where(hidden[:, None], empty_text[1].to(mask), mask)
        told |= {"encoder_hidden_states": text, "encoder_attention_mask": mask}
    return told


def unet_config(unet):
    """The configuration of a network that may be wrapped for several processes."""
    return getattr(unet, "module", unet).config
