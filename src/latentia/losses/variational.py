"""Variational losses in nats per image, summed over pixels: ELBO, beta-VAE, free bits, capacity, IWAE.

How a weight on the KL beside a mean squared error relates to beta and to the variance of the pixels: see
`latentia.functional.bounds.beta_of_mse_weight`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from latentia.errors import UsageError, check_choice, check_range
from latentia.functional.bounds import (
    bits_per_dim,
    effective_sample_size,
    hierarchical_kl,
    importance_weighted_bound,
)
from latentia.functional.checks import check_values
from latentia.functional.distributions import log_likelihood, log_normal
from latentia.losses.conditions import item_of, labels_of
from latentia.losses.networks import config_of
from latentia.rng import Rng

GRADIENTS = ("standard", "doubly_reparameterised")
ACTIVE = 0.01  # a unit is active if its posterior mean varies by more over the images (1509.00519, section 5.2)


def elbo_loss(
    vae: Any,
    batch: Mapping[str, Any],
    rng: Rng,
    *,
    beta: float = 1.0,
    free_bits: float = 0.0,
    capacity: float | None = None,
    capacity_weight: float = 10.0,
) -> dict[str, Tensor]:
    r"""The negative evidence lower bound: \(-E_{q(z|x)} \log p(x|z) + \beta\, \mathrm{KL}(q(z|x) \| p(z))\).

    The regulariser is, for each image, one of

    - \(\beta \sum_j \max(\mathrm{KL}_j, \lambda)\), with free bits \(\lambda\) below which a dimension costs nothing
      more (Kingma et al., 2016, 1606.04934, eq. 15, there of the batch's mean; here of each image, so that a split
      into micro-batches changes nothing);
    - \(\gamma |\mathrm{KL} - C|\), with capacity C (Burgess et al., 2018, 1804.03599, eq. 8).

    Of a hierarchy the KL of the layers below the topmost is that of one sample, see
    `latentia.functional.bounds.hierarchical_kl`: unbiased for the ELBO, while free bits and capacity, which are not
    linear in it, are biased by its noise.

    For a Bernoulli decoder grey pixels are binarised anew at each step: a value v is white with probability
    (v + 1) / 2 (dynamic binarisation). Pixels that are black or white already stay as they are.

    Args:
        vae: called as `vae(images, noise, class_labels=...)`.
        batch: "x" in [-1, 1], (B, C, H, W), and "labels" (B,) if the network has classes.
        rng: the randomness of this micro-batch.
        beta: weight of the KL; 1 (default) is the ELBO, more disentangles (Higgins et al., 2017), 0 gives an
            autoencoder with noise.
        free_bits: lambda, nats for each dimension of z, of whatever layer, default 0.
        capacity: C, nats; `None` (default): no capacity. A growing C is a function of `rng.position`.
        capacity_weight: gamma, default 10.

    Returns:
        "loss"; "nats", the negative ELBO itself whatever beta is, with its two parts "reconstruction" and "kl";
        "bits_per_dim"; "active_units" of this batch. Of a hierarchy also "kl_1", "active_units_1", ... of each layer,
        from the image upwards; the posterior mean of a layer above the first is taken at the samples below it, so that
        with few samples its variance contains their noise.

    Raises:
        UsageError: a negative weight, a capacity beside beta or free bits, images outside [-1, 1], labels out of
            range.

    Auto-Encoding Variational Bayes (Kingma and Welling, 2013, 1312.6114), eq. 10.

    Example:
        >>> from latentia import VAE
        >>> vae = VAE(sample_size=8, latent_dim=4)
        >>> values = elbo_loss(vae, {"x": torch.rand(4, 1, 8, 8) * 2 - 1}, Rng(0, 0, 4, 0, 4), beta=4.0)
        >>> bool(values["nats"] == values["reconstruction"] + values["kl"])
        True
    """
    weights = {"beta": beta, "free_bits": free_bits, "capacity": capacity or 0.0, "capacity_weight": capacity_weight}
    for name, value in weights.items():
        check_range(name, value, 0)
    if capacity is not None and (beta != 1 or free_bits):
        raise UsageError(
            f"capacity has a weight of its own, capacity_weight; leave beta at 1 and free_bits at 0. Got beta={beta} "
            f"and free_bits={free_bits}."
        )
    x, out, config, sizes = _forward(vae, batch, rng, ())
    reconstruction = -log_likelihood(config.likelihood, x, out.location, out.log_scale)  # (B,)
    by_dimension = hierarchical_kl(out.z, out.mean, out.log_variance, sizes)  # (B, D)
    kl = by_dimension.sum(1)
    if capacity is not None:
        regulariser = capacity_weight * (kl - capacity).abs()
    else:
        regulariser = beta * (by_dimension.clamp(min=free_bits).sum(1) if free_bits else kl)
    loss, error = (reconstruction + regulariser).mean(), reconstruction.mean()
    return {"loss": loss, **_metrics(out, x, config, sizes, error + kl.mean(), by_dimension, reconstruction=error)}


def iwae_loss(
    vae: Any, batch: Mapping[str, Any], rng: Rng, *, samples: int = 5, gradient: str = "standard"
) -> dict[str, Tensor]:
    r"""The negative importance weighted bound: \(-E \log \frac1k \sum_i \frac{p(x, z_i)}{q(z_i|x)}\), \(z_i \sim q\).

    One sample gives the ELBO. The gradient of "standard" is the bound's own; for the encoder its signal vanishes
    against its noise as k grows. "doubly_reparameterised" replaces the encoder's part by
    \(\sum_i \tilde w_i^2 \frac{\partial \log w_i}{\partial z_i} \frac{\partial z_i}{\partial \phi}\), which has the
    same expectation and less variance. It needs the gradient at z alone, so the network must not be compiled. Of
    a hierarchy z_i is all layers: the first factor holds their samples apart, with log q(z_2|z_1) a function of both,
    and only the second runs from layer to layer; see `StochasticHierarchy.with_constant_posterior` in
    `latentia.models.layers.stochastic`.

    Args:
        vae, batch, rng: as for `elbo_loss`; a Bernoulli decoder's pixels are binarised likewise.
        samples: k, at least 1. Default 5.
        gradient: "standard" (default) or "doubly_reparameterised".

    Returns:
        "loss" = "nats", the negative bound; "elbo_nats", the negative ELBO from the same samples; "kl";
        "bits_per_dim"; "active_units", their posterior means being means over the k samples; both of each layer as for
        `elbo_loss`; "effective_samples", \(1 / \sum_i \tilde w_i^2\).

    Importance Weighted Autoencoders (Burda et al., 2015, 1509.00519), eq. 8 and 14; Doubly Reparameterized Gradient
    Estimators (Tucker et al., 2018, 1810.04152), eq. 7; of a hierarchy: Generalized Doubly Reparameterized Gradient
    Estimators (Bauer and Mnih, 2021, 2101.11046).

    Example:
        >>> from latentia import VAE
        >>> vae = VAE(sample_size=8, latent_dim=4)
        >>> values = iwae_loss(vae, {"x": torch.rand(4, 1, 8, 8) * 2 - 1}, Rng(0, 0, 4, 0, 4), samples=3)
        >>> bool(values["nats"] <= values["elbo_nats"])
        True
    """
    check_range("samples", samples, 1)
    check_choice("gradient", gradient, GRADIENTS)
    double = gradient == "doubly_reparameterised"  # z depends on the encoder still, q's density on z alone
    x, out, config, sizes = _forward(vae, batch, rng, (samples,), **({"constant_posterior": True} if double else {}))
    mean, log_variance = (p if p.ndim == out.z.ndim else p[:, None] for p in (out.mean, out.log_variance))
    likelihood = log_likelihood(config.likelihood, x, out.location, out.log_scale)  # (B, K)
    log_w = likelihood + log_normal(out.z) - log_normal(out.z, mean, log_variance)
    w = log_w.detach().softmax(1)
    bound = importance_weighted_bound(log_w.detach())
    # The decoder's gradient is sum_i w_i dlog w_i; at z it is scaled once more, on its way to the encoder.
    surrogate = -(w * log_w).sum(1)
    for layer in out.layers if double else ():
        if layer.z.requires_grad:
            layer.z.register_hook(lambda g: w[..., None] * g)
    loss = (surrogate - surrogate.detach() - bound).mean()
    by_dimension = hierarchical_kl(out.z, out.mean, out.log_variance, sizes)
    values = _metrics(out, x, config, sizes, -bound.mean(), by_dimension)
    ess = effective_sample_size(log_w.detach())
    return {"loss": loss, **values, "elbo_nats": -log_w.detach().mean(), "effective_samples": ess.mean()}


def _forward(
    vae: Any, batch: Mapping[str, Any], rng: Rng, samples: tuple[int, ...], **options: bool
) -> tuple[Tensor, Any, Any, tuple[int, ...]]:
    """The images, binarised for Bernoulli pixels, the output, the configuration and the dimensions of each layer."""
    config, x = config_of(vae), item_of(batch, "x")
    sizes = (config.latent_dim,) if isinstance(config.latent_dim, int) else tuple(config.latent_dim)
    check_values("images", x, -1, 1, advice="Scale pixels v of 0 to 255 by v / 127.5 - 1.")
    labelled = config.num_class_embeds is not None and "labels" in batch
    labels = labels_of(batch, config.num_class_embeds) if labelled else None
    if config.likelihood == "bernoulli":
        x = torch.where(rng.uniform("binarise", x.shape[1:]) < (x + 1) / 2, 1.0, -1.0).to(x.dtype)
    noise = rng.normal("posterior", (*samples, sum(sizes))).to(x.dtype)
    return x, vae(x, noise, class_labels=labels, **options), config, sizes


def _metrics(
    out: Any, x: Tensor, config: Any, sizes: Sequence[int], nats: Tensor, kl: Tensor, **parts: Tensor
) -> dict[str, Tensor]:
    means = [layer.mean if layer.mean.ndim == 2 else layer.mean.mean(1) for layer in out.layers]
    active = [(mean.var(0, correction=0) > ACTIVE).sum() for mean in means]
    values = {
        "nats": nats, **parts, "kl": kl.sum(1).mean(),
        "bits_per_dim": bits_per_dim(nats, x[0].numel(), density=config.likelihood == "gaussian"),
        "active_units": torch.stack(active).sum(),
    }  # fmt: skip
    for layer, (part, units) in enumerate(zip(kl.split(sizes, 1), active), 1) if len(sizes) > 1 else ():
        values |= {f"kl_{layer}": part.sum(1).mean(), f"active_units_{layer}": units}
    return {key: value.detach() for key, value in values.items()}
