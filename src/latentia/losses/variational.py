"""Variational bounds: ELBO, beta, free bits, capacity, importance weighted. In nats per picture, summed over pixels.

How a weight on the KL beside a mean squared error relates to beta and to the variance of the pixels: see
`beta_of_mse_weight`.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from latentia.errors import UsageError, did_you_mean
from latentia.losses.diffusion import unet_config
from latentia.rng import Rng

GRADIENTS = ("standard", "doubly_reparameterised")
ACTIVE = 0.01  # a unit is active if its posterior mean varies by more over the pictures (1509.00519, section 5.2)


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    r"""KL(N(mu, sigma^2) || N(0, 1)) of each dimension, in nats: \((\mu^2 + \sigma^2 - 1 - \log\sigma^2) / 2\).

    Args:
        mean, log_variance: of one shape.

    Returns:
        That shape; never negative.

    Auto-Encoding Variational Bayes (Kingma and Welling, 2013, 1312.6114), appendix B.

    Example:
        >>> gaussian_kl(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0]))
        tensor([0.5000, 0.0000])
    """
    return 0.5 * (mean.square() + torch.expm1(log_variance) - log_variance)


def level_kl(out, sizes: Sequence[int]) -> Tensor:
    r"""KL(q(z|x) || p(z)) of each dimension, in nats: exact of the topmost level, a sample's of those below it.

    q of the topmost level depends on nothing above, so given the levels below its KL has a closed form. A lower
    level's prior is given by the level above, which was inferred from that very sample: in
    \(E_q[\log q(z_l|z_{l-1}) - \log p(z_l|z_{l+1})]\) the two do not separate, and the difference of the two at the
    sample takes its place. It may be negative; its mean over samples is the KL.

    Args:
        out: a `VAEOutput`, of one sample or of K, over which the mean is taken.
        sizes: dimensions of each level, from the picture upwards.

    Returns:
        (B, D); never negative of one level.

    Importance Weighted Autoencoders (Burda et al., 2015, 1509.00519), section 2.

    Example:
        >>> from latentia import VAE
        >>> vae = VAE(sample_size=8, latent_dim=(4, 2), hidden_sizes=((8,), (8,)))
        >>> level_kl(vae(torch.zeros(3, 1, 8, 8), torch.randn(3, 6)), (4, 2)).shape
        torch.Size([3, 6])
    """
    mean, log_variance = _beside(out)
    below = sum(sizes[:-1])
    z, m, lv = (part[..., :below] for part in (out.z, mean, log_variance))
    sampled = 0.5 * (z.square() - (z - m).square() * (-lv).exp() - lv)
    exact = gaussian_kl(mean[..., below:], log_variance[..., below:])
    return torch.cat([kl if kl.ndim == 2 else kl.mean(1) for kl in (sampled, exact)], 1)


def log_normal(z: Tensor, mean: Tensor | float = 0.0, log_variance: Tensor | float = 0.0) -> Tensor:
    """log N(z; mean, e^log_variance), summed over the last dimension."""
    log_variance = torch.as_tensor(log_variance, dtype=z.dtype, device=z.device)
    return -0.5 * ((z - mean).square() * (-log_variance).exp() + log_variance + math.log(2 * math.pi)).sum(-1)


def log_likelihood(decoder: str, images: Tensor, location: Tensor, log_scale: Tensor | None = None) -> Tensor:
    r"""log p(x|z) in nats per picture, summed over its values.

    "bernoulli": of pixels at -1 (black) and 1 (white), \(t l - \log(1 + e^l)\), t = (x + 1) / 2. "gaussian": a density
    on [-1, 1]. "discretized_logistic": the probability of one of 256 levels, those of the ends reaching to infinity
    (Kingma et al., 2016, 1606.04934, appendix).

    Args:
        decoder: one of the three.
        images: (B, C, H, W), in [-1, 1].
        location, log_scale: as in `VAEOutput`; `location` may be (B, K, C, H, W).

    Returns:
        (B,) or (B, K).

    Example:
        >>> x = torch.ones(1, 1, 2, 2)
        >>> log_likelihood("bernoulli", x, torch.zeros(1, 1, 2, 2)) / math.log(2)  # four fair coins
        tensor([-4.])
    """
    if location.ndim == images.ndim + 1:
        images = images[:, None]
    return _LIKELIHOODS[decoder](images, location, log_scale).sum((-3, -2, -1))


def _bernoulli(x: Tensor, logits: Tensor, _: Tensor | None) -> Tensor:
    return (x + 1) / 2 * logits - F.softplus(logits)


def _gaussian(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    return -0.5 * ((x - mean) / log_scale.exp()).square() - log_scale - 0.5 * math.log(2 * math.pi)


def _discretized_logistic(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    # log(s(a) - s(b)) = log s(a) + log s(-b) + log(1 - e^(b - a)) exactly, for a > b and s the logistic function: no
    # difference of nearly equal numbers, and no clamp.
    scale, half = log_scale.exp(), 1 / 255
    above, below = (x + half - mean) / scale, (x - half - mean) / scale
    ends = torch.where(x <= -1 + half, 0.0, F.logsigmoid(-below)) + torch.where(x >= 1 - half, 0.0, F.logsigmoid(above))
    inside = (x > -1 + half) & (x < 1 - half)
    return ends + torch.where(inside, torch.log(-torch.expm1(-2 * half / scale)), 0.0)


_LIKELIHOODS = {"bernoulli": _bernoulli, "gaussian": _gaussian, "discretized_logistic": _discretized_logistic}


def beta_of_mse_weight(kl_weight: float, dimensions: int, observation_std: float = 1.0) -> float:
    r"""The beta that a loss `mean squared error + kl_weight * KL` has for Gaussian pixels: \(\lambda D / (2\sigma^2)\).

    A Gaussian decoder has \(-\log p(x|z) = \lVert x - \hat x \rVert^2 / (2\sigma^2) + \text{const}\). The mean squared
    error is that norm over D, so \(\mathrm{MSE} + \lambda \mathrm{KL} = \frac{2\sigma^2}{D} \left(-\log p(x|z) +
    \frac{\lambda D}{2\sigma^2} \mathrm{KL}\right) + \text{const}\): the ELBO with this beta. Equivalently it is the
    plain ELBO, beta = 1, of pixels with variance \(\sigma^2 = \lambda D / 2\).

    Args:
        kl_weight: lambda, on the KL summed over the latent.
        dimensions: D, values of a picture over which the squared error is averaged.
        observation_std: sigma, in the units of the pixels.

    Example:
        >>> beta_of_mse_weight(0.00025, 3 * 64 * 64)  # a common choice for 64 x 64 faces
        1.536
    """
    return kl_weight * dimensions / (2 * observation_std**2)


def elbo_loss(
    vae,
    batch: dict,
    rng: Rng,
    *,
    beta: float = 1.0,
    free_bits: float = 0.0,
    capacity: float | None = None,
    capacity_weight: float = 10.0,
) -> dict[str, Tensor]:
    r"""The negative evidence lower bound: \(-E_{q(z|x)} \log p(x|z) + \beta\, \mathrm{KL}(q(z|x) \| p(z))\).

    The regulariser is, for each picture, one of

    - \(\beta \sum_j \max(\mathrm{KL}_j, \lambda)\), with free bits \(\lambda\) below which a dimension costs nothing
      more (Kingma et al., 2016, 1606.04934, eq. 15, there of the batch's mean; here of each picture, so that a split
      into micro-batches changes nothing);
    - \(\gamma |\mathrm{KL} - C|\), with capacity C (Burgess et al., 2018, 1804.03599, eq. 8).

    Of several levels the KL of those below the topmost is that of one sample, see `level_kl`: unbiased for the ELBO,
    while free bits and capacity, which bend it, then bend its noise too.

    For a Bernoulli decoder grey pixels are binarised anew at each step: a value v is white with probability
    (v + 1) / 2 (dynamic binarisation). Pixels that are black or white already stay as they are.

    Args:
        vae: called as `vae(images, noise, class_labels=...)`.
        batch: "x" in [-1, 1], (B, C, H, W), and "labels" (B,) if the network has classes.
        rng: the randomness of this micro-batch.
        beta: weight of the KL; 1 (default) is the ELBO, more disentangles (Higgins et al., 2017), 0 gives an
            autoencoder with noise.
        free_bits: lambda, nats for each dimension of z, of whatever level, default 0.
        capacity: C, nats; `None` (default): no capacity. A growing C is a function of `rng.position`.
        capacity_weight: gamma, default 10.

    Returns:
        "loss"; "nats", the negative ELBO itself whatever beta is, with its two parts "reconstruction" and "kl";
        "bits_per_dim"; "active_units" of this batch. Of several levels also "kl_1", "active_units_1", ... of each, from
        the picture upwards; the posterior mean of a level above the first is taken at the samples below it, so that
        with few samples its variance contains their noise.

    Raises:
        UsageError: a negative weight, a capacity beside beta or free bits, pictures outside [-1, 1], labels out of
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
        if not 0 <= value < math.inf:
            raise UsageError(f"{name} must be at least 0 and finite; got {value}.")
    if capacity is not None and (beta != 1 or free_bits):
        raise UsageError(
            f"capacity has a weight of its own, capacity_weight; leave beta at 1 and free_bits at 0. Got beta={beta} "
            f"and free_bits={free_bits}."
        )
    x, out, config, sizes = _forward(vae, batch, rng, ())
    reconstruction = -log_likelihood(config.decoder, x, out.location, out.log_scale)  # (B,)
    by_dimension = level_kl(out, sizes)  # (B, D)
    kl = by_dimension.sum(1)
    if capacity is not None:
        regulariser = capacity_weight * (kl - capacity).abs()
    else:
        regulariser = beta * (by_dimension.clamp(min=free_bits).sum(1) if free_bits else kl)
    loss, error = (reconstruction + regulariser).mean(), reconstruction.mean()
    return {"loss": loss, **_metrics(out, x, config, sizes, error + kl.mean(), by_dimension, reconstruction=error)}


def iwae_loss(vae, batch: dict, rng: Rng, *, samples: int = 5, gradient: str = "standard") -> dict[str, Tensor]:
    r"""The negative importance weighted bound: \(-E \log \frac1k \sum_i \frac{p(x, z_i)}{q(z_i|x)}\), \(z_i \sim q\).

    One sample gives the ELBO. The gradient of "standard" is the bound's own; for the encoder its signal vanishes
    against its noise as k grows. "doubly_reparameterised" replaces the encoder's part by
    \(\sum_i \tilde w_i^2 \frac{\partial \log w_i}{\partial z_i} \frac{\partial z_i}{\partial \phi}\), which has the
    same expectation and less variance. It needs the gradient at z alone, so the network must not be compiled. Of
    several levels z_i is all of them: the first factor holds their samples apart, with log q(z_2|z_1) a function of
    both, and only the second runs from level to level; see `models.layers.stochastic.Levels.with_constant_posterior`.

    Args:
        vae, batch, rng: as for `elbo_loss`; a Bernoulli decoder's pixels are binarised likewise.
        samples: k, at least 1. Default 5.
        gradient: "standard" (default) or "doubly_reparameterised".

    Returns:
        "loss" = "nats", the negative bound; "elbo_nats", the negative ELBO from the same samples; "kl";
        "bits_per_dim"; "active_units", their posterior means being means over the k samples; both of each level as for
        `elbo_loss`; "effective_samples", \(1 / \sum_i \tilde w_i^2\).

    Importance Weighted Autoencoders (Burda et al., 2015, 1509.00519), eq. 8 and 14; Doubly Reparameterized Gradient
    Estimators (Tucker et al., 2018, 1810.04152), eq. 7; of several levels: Generalized Doubly Reparameterized Gradient
    Estimators (Bauer and Mnih, 2021, 2101.11046).

    Example:
        >>> from latentia import VAE
        >>> vae = VAE(sample_size=8, latent_dim=4)
        >>> values = iwae_loss(vae, {"x": torch.rand(4, 1, 8, 8) * 2 - 1}, Rng(0, 0, 4, 0, 4), samples=3)
        >>> bool(values["nats"] <= values["elbo_nats"])
        True
    """
    if samples < 1:
        raise UsageError(f"samples must be at least 1; got {samples}.")
    if gradient not in GRADIENTS:
        raise UsageError(f'gradient must be one of {GRADIENTS}; got "{gradient}".{did_you_mean(gradient, GRADIENTS)}')
    double = gradient == "doubly_reparameterised"  # z depends on the encoder still, q's density on z alone
    x, out, config, sizes = _forward(vae, batch, rng, (samples,), **({"constant_posterior": True} if double else {}))
    mean, log_variance = _beside(out)
    likelihood = log_likelihood(config.decoder, x, out.location, out.log_scale)  # (B, K)
    log_w = likelihood + log_normal(out.z) - log_normal(out.z, mean, log_variance)
    w = log_w.detach().softmax(1)
    bound = log_w.detach().logsumexp(1) - math.log(samples)
    # The decoder's gradient is sum_i w_i dlog w_i; at z it is scaled once more, on its way to the encoder.
    surrogate = -(w * log_w).sum(1)
    for level in out.levels if double else ():
        if level.z.requires_grad:
            level.z.register_hook(lambda g: w[..., None] * g)
    loss = (surrogate - surrogate.detach() - bound).mean()
    values = _metrics(out, x, config, sizes, -bound.mean(), level_kl(out, sizes))
    ess = 1 / w.square().sum(1)
    return {"loss": loss, **values, "elbo_nats": -log_w.detach().mean(), "effective_samples": ess.mean()}


def _forward(vae, batch: dict, rng: Rng, samples: tuple[int, ...], **options: bool):
    config, x = unet_config(vae), batch["x"]
    sizes = (config.latent_dim,) if isinstance(config.latent_dim, int) else tuple(config.latent_dim)
    if not bool((x.amin() >= -1) & (x.amax() <= 1)):
        raise UsageError(
            f"images must lie in [-1, 1] (a Bernoulli decoder's (x + 1) / 2 in [0, 1]); got {float(x.amin()):g} to "
            f"{float(x.amax()):g}. Scale pixels v of 0 to 255 by v / 127.5 - 1."
        )
    labels = batch["labels"] if config.num_class_embeds is not None and "labels" in batch else None
    if labels is not None and not bool((labels.amin() >= 0) & (labels.amax() < config.num_class_embeds)):
        raise UsageError(
            f"labels must be from 0 to {config.num_class_embeds - 1}; got {int(labels.amin())} to {int(labels.amax())}."
        )
    if config.decoder == "bernoulli":
        x = torch.where(rng.uniform("binarise", x.shape[1:]) < (x + 1) / 2, 1.0, -1.0).to(x.dtype)
    noise = rng.normal("posterior", (*samples, sum(sizes))).to(x.dtype)
    return x, vae(x, noise, class_labels=labels, **options), config, sizes


def _beside(out) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of q that broadcast over the samples."""
    return tuple(p if p.ndim == out.z.ndim else p[:, None] for p in (out.mean, out.log_variance))


def _metrics(
    out, x: Tensor, config, sizes: Sequence[int], nats: Tensor, kl: Tensor, **parts: Tensor
) -> dict[str, Tensor]:
    width = math.log(256 / 2) if config.decoder == "gaussian" else 0.0  # a density per unit of [-1, 1], of 256 levels
    means = [level.mean if level.mean.ndim == 2 else level.mean.mean(1) for level in out.levels]
    active = [(mean.var(0, correction=0) > ACTIVE).sum() for mean in means]
    values = {
        "nats": nats, **parts, "kl": kl.sum(1).mean(), "bits_per_dim": (nats / x[0].numel() + width) / math.log(2),
        "active_units": sum(active),
    }  # fmt: skip
    for level, (part, units) in enumerate(zip(kl.split(sizes, 1), active), 1) if len(sizes) > 1 else ():
        values |= {f"kl_{level}": part.sum(1).mean(), f"active_units_{level}": units}
    return {key: value.detach() for key, value in values.items()}
