"""Objectives of the encoded rows of tables: the ELBO of a `TableVAE`, and diffusion of numbers and categories."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from latentia.errors import check_range
from latentia.functional.distributions import gaussian_kl
from latentia.functional.multinomial import multinomial_bound_term, noisy_probabilities
from latentia.functional.tabular import one_hot_of, row_log_likelihood, split_row
from latentia.losses.conditions import conditions_of, item_of
from latentia.losses.networks import config_of
from latentia.losses.times import sample_timesteps
from latentia.rng import Rng


def table_elbo_loss(vae: Any, batch: Mapping[str, Any], rng: Rng, *, beta: float = 1.0) -> dict[str, Tensor]:
    r"""The negative ELBO of encoded rows: \(-E_{q(z|x)} \log p(x|z) + \beta\, \mathrm{KL}(q(z|x) \| N(0, I))\).

    Args:
        vae: `TableVAE`, called through `forward` alone.
        batch: "x", encoded rows (B, D), whose blocks are one-hot.
        rng: the randomness of this micro-batch.
        beta: weight of the KL. Default 1, the ELBO.

    Returns:
        "loss"; "nats", the negative ELBO whatever beta is, with its parts "reconstruction" and "kl".

    Kingma and Welling, 2013, 1312.6114, eq. 10.

    Example:
        >>> from latentia import TableVAE
        >>> values = table_elbo_loss(TableVAE(3), {"x": torch.randn(4, 3)}, Rng(0, 0, 4, 0, 4))
        >>> bool(values["nats"] == values["reconstruction"] + values["kl"])
        True
    """
    check_range("beta", beta, 0)
    config, x = config_of(vae), item_of(batch, "x")
    out = vae(x, rng.normal("posterior", (config.latent_dim,)))
    error = -row_log_likelihood(x, out.location, out.log_scale, config.categories).mean()
    kl = gaussian_kl(out.mean, out.log_variance).sum(1).mean()
    found = {"nats": error + kl, "reconstruction": error, "kl": kl}
    return {"loss": error + beta * kl, **{name: value.detach() for name, value in found.items()}}


def table_diffusion_loss(denoiser: Any, scheduler: Any, batch: Mapping[str, Any], rng: Rng) -> dict[str, Tensor]:
    r"""Gaussian diffusion of the numbers, and multinomial diffusion of the categories, with one network at one time.

    The numbers cost the mean squared error of what the scheduler's `prediction_type` says; each category T times a term
    of its bound, \(\mathrm{KL}(q(x_{t-1}|x_t, x_0) \| p(x_{t-1}|x_t))\), and all of them together their mean.

    Args:
        denoiser: `MLPDenoiser`, called through `forward` alone.
        scheduler: a `DDPMScheduler` over all of its steps.
        batch: "x", encoded rows (B, D), whose blocks are one-hot; "labels" (B,) if the network has classes.
        rng: the randomness of this micro-batch.

    Returns:
        "loss", with its parts "numbers" and "categories" of those that there are.

    TabDDPM (Kotelnikov et al., 2023, 2209.15421), eq. 3.

    Example:
        >>> from latentia import DDPMScheduler, MLPDenoiser
        >>> batch = {"x": torch.randn(4, 3)}
        >>> sorted(table_diffusion_loss(MLPDenoiser(3), DDPMScheduler(), batch, Rng(0, 0, 4, 0, 4)))
        ['loss', 'numbers']
    """
    categories, x0 = config_of(denoiser).categories, item_of(batch, "x")
    numbers, blocks = split_row(x0, categories)
    steps = scheduler.config.num_train_timesteps
    t = sample_timesteps(rng, steps)
    eps = rng.normal("noise", numbers.shape[1:])
    u = rng.uniform("categories", (max(len(blocks), 1),))
    alpha_bar = scheduler.alphas_cumprod.to(t.device)
    kept = alpha_bar[t]
    noisy = [one_hot_of(noisy_probabilities(block, kept), u[:, j]) for j, block in enumerate(blocks)]
    x_t = torch.cat([scheduler.add_noise(numbers, eps, t), *noisy], 1)
    prediction = denoiser(x_t, t, **conditions_of(denoiser, batch, None)).sample.float()
    values, logits = split_row(prediction, categories)
    found: dict[str, Tensor] = {}
    if numbers.shape[1]:
        found["numbers"] = (values - scheduler.target(numbers, eps, t)).square().mean(1).mean()
    if blocks:
        previous = torch.where(t > 0, alpha_bar[(t - 1).clamp(min=0)], torch.ones_like(kept))
        terms = [
            multinomial_bound_term(clean, dirty, guess, kept / previous, previous)
            for clean, dirty, guess in zip(blocks, noisy, logits)
        ]
        found["categories"] = steps * torch.stack(terms).mean(0).mean()
    return {"loss": torch.stack([*found.values()]).sum(), **{name: value.detach() for name, value in found.items()}}
