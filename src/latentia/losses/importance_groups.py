"""Groups of importance samples, and other weights for encoder and decoder: MIWAE, CIWAE and PIWAE."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from latentia.errors import check_range
from latentia.functional.bounds import importance_weighted_bound
from latentia.functional.distributions import log_normal
from latentia.losses.variational import Seen, bound_values, run_vae, weighted_values
from latentia.rng import Rng


def miwae_loss(vae: Any, batch: Mapping[str, Any], rng: Rng, *, groups: int = 3, samples: int = 5) -> dict[str, Tensor]:
    r"""The mean of M importance weighted bounds of k samples each, negative: MIWAE.

    More groups reduce the noise of the encoder's gradient, more samples tighten the bound. With one group it is
    `latentia.losses.variational.iwae_loss` of k samples, with one sample the ELBO of M samples.

    Args:
        vae, batch, rng: as for `latentia.losses.variational.elbo_loss`.
        groups: M, at least 1. Default 3.
        samples: k of each group, at least 1. Default 5.

    Returns:
        As `iwae_loss`; "effective_samples" is of a group.

    Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018, 1802.04537), section 5.

    Example:
        >>> from latentia import VAE
        >>> from latentia.losses.variational import iwae_loss
        >>> vae, batch = VAE(sample_size=8, latent_dim=4), {"x": torch.rand(4, 1, 8, 8) * 2 - 1}
        >>> one, other = (loss(vae, batch, Rng(0, 0, 4, 0, 4), samples=3, **options)["loss"] for loss, options in (
        ...     (miwae_loss, {"groups": 1}), (iwae_loss, {})))
        >>> bool(one == other)
        True
    """
    seen, log_w = _grouped(vae, batch, rng, groups, samples)
    w = log_w.detach().softmax(2).flatten(1) / groups
    bound = importance_weighted_bound(log_w.detach().flatten(0, 1)).view(-1, groups).mean(1)
    return weighted_values(seen, log_w.flatten(1), w, bound, groups)


def ciwae_loss(
    vae: Any, batch: Mapping[str, Any], rng: Rng, *, samples: int = 5, elbo_share: float = 0.05
) -> dict[str, Tensor]:
    r"""A mean of two bounds, negative: \(\beta\, \mathrm{ELBO} + (1 - \beta)\, \mathrm{IWAE}_k\), CIWAE.

    The first keeps a signal for the encoder, which the second loses as k grows.

    Args:
        vae, batch, rng: as for `latentia.losses.variational.elbo_loss`.
        samples: k, of both bounds, at least 1. Default 5.
        elbo_share: beta, in [0, 1]; 0 is `iwae_loss`, 1 the ELBO of k samples. Default 0.05.

    Returns:
        As `iwae_loss`, "nats" being the mean of both bounds.

    Rainforth et al., 2018, 1802.04537, section 5.

    Example:
        >>> from latentia import VAE
        >>> vae, batch = VAE(sample_size=8, latent_dim=4), {"x": torch.rand(4, 1, 8, 8) * 2 - 1}
        >>> values = ciwae_loss(vae, batch, Rng(0, 0, 4, 0, 4), elbo_share=1.0)
        >>> bool(torch.allclose(values["nats"], values["elbo_nats"]))
        True
    """
    check_range("elbo_share", elbo_share, 0, 1)
    seen, log_w = _grouped(vae, batch, rng, 1, samples)
    log_w = log_w.flatten(1)
    w = elbo_share / samples + (1 - elbo_share) * log_w.detach().softmax(1)
    bound = elbo_share * log_w.detach().mean(1) + (1 - elbo_share) * importance_weighted_bound(log_w.detach())
    return weighted_values(seen, log_w, w, bound)


def piwae_loss(vae: Any, batch: Mapping[str, Any], rng: Rng, *, groups: int = 3, samples: int = 5) -> dict[str, Tensor]:
    r"""Decoder and encoder with bounds of their own: the decoder maximises IWAE of M k samples, the encoder MIWAE.

    In one pass: the gradient at each latent is scaled by the ratio of both weights on its way to the encoder. It needs
    the gradient at z alone, so the network must not be compiled.

    Args:
        vae, batch, rng: as for `latentia.losses.variational.elbo_loss`; the network has one stochastic layer.
        groups: M, at least 1; 1 is `iwae_loss`. Default 3.
        samples: k of each group, at least 1. Default 5.

    Returns:
        As `iwae_loss`; "nats" is the bound of the decoder.

    Raises:
        UsageError: several stochastic layers, or a learned prior.

    Rainforth et al., 2018, 1802.04537, section 5.

    Example:
        >>> from latentia import VAE
        >>> vae, batch = VAE(sample_size=8, latent_dim=4), {"x": torch.rand(4, 1, 8, 8) * 2 - 1}
        >>> values = piwae_loss(vae, batch, Rng(0, 0, 4, 0, 4))
        >>> bool(values["nats"] <= values["elbo_nats"])
        True
    """
    seen, log_w = _grouped(vae, batch, rng, groups, samples)
    seen.require("piwae", one_layer=True)
    encoder = (log_w.detach().softmax(2) / groups).flatten(1)
    log_w = log_w.flatten(1)
    bound, w = importance_weighted_bound(log_w.detach()), log_w.detach().softmax(1)
    decoder = w.clamp(min=torch.finfo(w.dtype).eps)  # less would not change a sum near 1, and the ratio stays finite
    if seen.out.layers[0].z.requires_grad:
        seen.out.layers[0].z.register_hook(lambda g: (encoder / decoder)[..., None] * g)
    # -log q(z|x) = (log variance) / 2 + (noise)^2 / 2 + constant has no derivative through z.
    scale = 0.5 * seen.out.log_variance.sum(1, keepdim=True)
    surrogate = -(decoder * (seen.log_likelihood + log_normal(seen.out.z)) + encoder * scale).sum(1)
    return bound_values(seen, log_w, surrogate, bound)


def _grouped(vae: Any, batch: Mapping[str, Any], rng: Rng, groups: int, samples: int) -> tuple[Seen, Tensor]:
    """M groups of k samples of each image, and their log-weights (B, M, k)."""
    check_range("groups", groups, 1)
    check_range("samples", samples, 1)
    seen = run_vae(vae, batch, rng, (groups * samples,))
    return seen, seen.log_weights().unflatten(1, (groups, samples))
