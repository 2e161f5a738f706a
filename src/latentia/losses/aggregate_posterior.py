"""VAE objectives that shape the aggregated posterior q(z): WAE, SWAE, InfoVAE, beta-TCVAE, FactorVAE, DIP-VAE.

All are nats per image: the reconstruction, summed over pixels, and a term of the latents of the micro-batch, which
should therefore be large. A split into micro-batches is another estimate of that term.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latentia.errors import UsageError, check_choice, check_range
from latentia.functional.discrepancy import maximum_mean_discrepancy, sliced_wasserstein
from latentia.functional.total_correlation import kl_terms
from latentia.losses.variational import Cost, Seen, run_vae
from latentia.rng import Rng

DIP_KINDS = ("i", "ii")


def wae_loss(
    vae: Any,
    batch: Mapping[str, Any],
    rng: Rng,
    *,
    regulariser_weight: float = 500.0,
    kernel: str = "imq",
    cost: Cost | None = None,
) -> dict[str, Tensor]:
    r"""Wasserstein autoencoder: \(c(x, G(\mu(x))) + \lambda\, \mathrm{MMD}(q(z), p(z))\), with a deterministic encoder.

    The posterior's deviations are not trained, so that "nats" says little.

    Args:
        vae, batch, rng: as for `latentia.losses.variational.elbo_loss`.
        regulariser_weight: lambda, nats per unit of the squared discrepancy. Default 500.
        kernel: "imq" (default) or "rbf", see `latentia.functional.discrepancy.kernel_matrix`.
        cost: c; `None` (default): \(-\log p(x|z)\).

    Returns:
        "loss"; "discrepancy", the squared maximum mean discrepancy of latents and prior; and as `elbo_loss`.

    Raises:
        UsageError: a negative weight, an unknown kernel, a batch of one; and as `elbo_loss`.

    Wasserstein Auto-Encoders (Tolstikhin et al., 2017, 1711.01558), eq. 4 and algorithm 2.

    Example:
        >>> from latentia import VAE
        >>> vae, batch = VAE(sample_size=8, latent_dim=4), {"x": torch.rand(4, 1, 8, 8) * 2 - 1}
        >>> bool(wae_loss(vae, batch, Rng(0, 0, 4, 0, 4))["loss"] > 0)
        True
    """
    check_range("regulariser_weight", regulariser_weight, 0)
    seen = run_vae(vae, batch, rng, None)
    return _with(seen, regulariser_weight, "discrepancy", _mmd(seen, rng, kernel, "wae"), cost)


def swae_loss(
    vae: Any,
    batch: Mapping[str, Any],
    rng: Rng,
    *,
    regulariser_weight: float = 100.0,
    projections: int = 100,
    cost: Cost | None = None,
) -> dict[str, Tensor]:
    r"""Sliced Wasserstein autoencoder: \(c(x, G(\mu(x))) + \lambda\, \mathrm{SW}_2^2(q(z), p(z))\), deterministic.

    Args:
        vae, batch, rng, cost: as for `wae_loss`.
        regulariser_weight: lambda, nats per unit of the squared distance. Default 100.
        projections: random directions, at least 1. Default 100.

    Returns:
        "loss"; "discrepancy", the squared sliced Wasserstein distance; and as `elbo_loss`.

    Sliced-Wasserstein Autoencoder (Kolouri et al., 2018, 1804.01947), eq. 14.

    Example:
        >>> from latentia import VAE
        >>> vae, batch = VAE(sample_size=8, latent_dim=4), {"x": torch.rand(4, 1, 8, 8) * 2 - 1}
        >>> bool(swae_loss(vae, batch, Rng(0, 0, 4, 0, 4))["discrepancy"] >= 0)
        True
    """
    check_range("regulariser_weight", regulariser_weight, 0)
    check_range("projections", projections, 1)
    seen = run_vae(vae, batch, rng, None)
    seen.require("swae")
    z, prior = seen.out.z, _prior(seen, rng)
    directions = Rng(rng.seed, rng.position, 1, 0, 1, rng.device).normal("directions", (projections, z.shape[1]))[0]
    return _with(seen, regulariser_weight, "discrepancy", sliced_wasserstein(z, prior, directions.to(z.dtype)), cost)


def info_vae_loss(
    vae: Any,
    batch: Mapping[str, Any],
    rng: Rng,
    *,
    regulariser_weight: float = 500.0,
    alpha: float = 0.0,
    kernel: str = "imq",
    cost: Cost | None = None,
) -> dict[str, Tensor]:
    r"""InfoVAE: \(-E \log p(x|z) + (1 - \alpha)\, \mathrm{KL}(q(z|x) \| p(z)) + (\alpha + \lambda - 1)\,
    \mathrm{MMD}(q(z), p(z))\).

    At alpha 0 and lambda 1 it is the ELBO; at alpha 1 nothing is asked of each posterior, only of all together.

    Args:
        vae, batch, rng, kernel, cost: as for `wae_loss`, with samples of q(z|x).
        regulariser_weight: lambda, at least 1 - alpha. Default 500.
        alpha: weight of the mutual information of images and latents, at most 1; negative values reduce it. Default 0.

    Returns:
        "loss"; "discrepancy"; and as `elbo_loss`.

    Raises:
        UsageError: a discrepancy of negative weight; and as `wae_loss`.

    InfoVAE (Zhao et al., 2017, 1706.02262), eq. 6 and 7.

    Example:
        >>> from latentia import VAE
        >>> from latentia.losses.variational import elbo_loss
        >>> vae, batch, rng = VAE(sample_size=8, latent_dim=4), {"x": torch.rand(4, 1, 8, 8)}, Rng(0, 0, 4, 0, 4)
        >>> one, other = info_vae_loss(vae, batch, rng, regulariser_weight=1.0), elbo_loss(vae, batch, rng)
        >>> bool(one["loss"] == other["loss"])
        True
    """
    check_range("alpha", alpha, high=1)
    check_range(
        "regulariser_weight", regulariser_weight, 1 - alpha, advice=f"1 - alpha is {1 - alpha:g}, below which it would "
        "push latents away from the prior."
    )  # fmt: skip
    seen = run_vae(vae, batch, rng)
    discrepancy = _mmd(seen, rng, kernel, "info_vae")
    loss = (seen.error(cost) + (1 - alpha) * seen.kl.sum(1)).mean() + (alpha + regulariser_weight - 1) * discrepancy
    return {"loss": loss, **seen.metrics(), "discrepancy": discrepancy.detach()}


def beta_tc_loss(
    vae: Any,
    batch: Mapping[str, Any],
    rng: Rng,
    *,
    dataset_size: int,
    regulariser_weight: float = 6.0,
    information_weight: float = 1.0,
    dimension_weight: float = 1.0,
    sampling: str = "stratified",
    cost: Cost | None = None,
) -> dict[str, Tensor]:
    r"""beta-TCVAE: \(-E \log p(x|z) + \alpha\, I_q(z; x) + \beta\, \mathrm{TC}(z) + \gamma \sum_j
    \mathrm{KL}(q(z_j) \| p(z_j))\).

    The three terms add up to the KL, so that with weights of 1 it is the ELBO with a KL of one sample.

    Args:
        vae, batch, rng, cost: as for `wae_loss`, with samples of q(z|x); the network has one stochastic layer.
        dataset_size: number of training images, see `latentia.functional.total_correlation.kl_terms`.
        regulariser_weight: beta, of the total correlation. Default 6.
        information_weight: alpha, of the mutual information. Default 1.
        dimension_weight: gamma, of each dimension's KL. Default 1.
        sampling: "stratified" (default) or "weighted".

    Returns:
        "loss"; "mutual_information", "total_correlation" and "dimension_wise", nats; and as `elbo_loss`.

    Raises:
        UsageError: a negative weight, several stochastic layers, a batch of one, more images in it than in the data.

    Isolating Sources of Disentanglement in VAEs (Chen et al., 2018, 1802.04942), eq. 4.

    Example:
        >>> from latentia import VAE
        >>> vae, batch = VAE(sample_size=8, latent_dim=4), {"x": torch.rand(4, 1, 8, 8) * 2 - 1}
        >>> values = beta_tc_loss(vae, batch, Rng(0, 0, 4, 0, 4), dataset_size=100)
        >>> bool(values["mutual_information"] < 5)  # at most the logarithm of the data set's size, 4.6
        True
    """
    weights = {"information_weight": information_weight, "regulariser_weight": regulariser_weight}
    for name, value in (weights | {"dimension_weight": dimension_weight}).items():
        check_range(name, value, 0)
    seen = run_vae(vae, batch, rng)
    seen.require("beta_tc", one_layer=True)
    terms = kl_terms(seen.out.z, seen.out.mean, seen.out.log_variance, dataset_size, sampling)
    factors = (information_weight, regulariser_weight, dimension_weight)
    regulariser = sum(factor * term for factor, term in zip(factors, terms))
    means = {name: term.mean().detach() for name, term in terms._asdict().items()}
    return {"loss": (seen.error(cost) + regulariser).mean(), **seen.metrics(), **means}


def factor_vae_loss(
    vae: Any,
    discriminator: Any,
    batch: Mapping[str, Any],
    rng: Rng,
    *,
    regulariser_weight: float = 10.0,
    cost: Cost | None = None,
) -> dict[str, Tensor]:
    r"""FactorVAE: the negative ELBO and \(\gamma\, E_{q(z)} \log\frac{D(z)}{1 - D(z)}\), the total correlation.

    Args:
        vae, batch, rng, cost: as for `wae_loss`, with samples of q(z|x).
        discriminator: `MLPDiscriminator(in_dim=D)`, trained by `factor_discriminator_loss`: its logit is the logarithm
            of the ratio of q(z) and \(\prod_j q(z_j)\). It gets no gradient in the phase of the VAE.
        regulariser_weight: gamma, at least 0. Default 10.

    Returns:
        "loss"; "total_correlation", nats as the discriminator estimates them; and as `elbo_loss`.

    Raises:
        UsageError: no discriminator, a negative weight; and as `elbo_loss`.

    Disentangling by Factorising (Kim and Mnih, 2018, 1802.05983), eq. 2 and 3, algorithm 2.

    Example:
        >>> from latentia import VAE, MLPDiscriminator
        >>> vae, batch = VAE(sample_size=8, latent_dim=4), {"x": torch.rand(4, 1, 8, 8) * 2 - 1}
        >>> values = factor_vae_loss(vae, MLPDiscriminator(in_dim=4), batch, Rng(0, 0, 4, 0, 4))
        >>> bool(values["total_correlation"].isfinite())
        True
    """
    check_range("regulariser_weight", regulariser_weight, 0)
    _check_discriminator(discriminator)
    seen = run_vae(vae, batch, rng)
    correlation = discriminator(seen.out.z).logits.to(seen.x.dtype).mean()
    loss = (seen.error(cost) + seen.kl.sum(1)).mean() + regulariser_weight * correlation
    return {"loss": loss, **seen.metrics(), "total_correlation": correlation.detach()}


def factor_discriminator_loss(discriminator: Any, vae: Any, batch: Mapping[str, Any], rng: Rng) -> dict[str, Tensor]:
    r"""The discriminator of FactorVAE: latents are real, those with each dimension permuted over the batch are not.

    The permuted ones are other samples of the same posteriors. The VAE gets no gradient.

    Args:
        discriminator, vae, batch, rng: as for `factor_vae_loss`.

    Returns:
        "loss", the mean cross-entropy of a latent; "accuracy", 0.5 where the dimensions are independent.

    Raises:
        UsageError: no discriminator, or a batch of one.

    Kim and Mnih, 2018, 1802.05983, algorithms 1 and 2.

    Example:
        >>> from latentia import VAE, MLPDiscriminator
        >>> vae, batch = VAE(sample_size=8, latent_dim=4), {"x": torch.rand(4, 1, 8, 8) * 2 - 1}
        >>> sorted(factor_discriminator_loss(MLPDiscriminator(in_dim=4), vae, batch, Rng(0, 0, 4, 0, 4)))
        ['accuracy', 'loss']
    """
    _check_discriminator(discriminator)
    with torch.no_grad():
        z = run_vae(vae, batch, rng, (2,)).out.z
    _check_batch(z, "factor")
    order = rng.uniform("permutation", (z.shape[2],)).argsort(0)
    real, fake = discriminator(torch.cat([z[:, 0], z[:, 1].gather(0, order)])).logits.to(z.dtype).chunk(2)
    loss = (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2
    accuracy = ((real > 0).float().mean() + (fake <= 0).float().mean()) / 2
    return {"loss": loss, "accuracy": accuracy.detach()}


def dip_vae_loss(
    vae: Any,
    batch: Mapping[str, Any],
    rng: Rng,
    *,
    kind: str = "ii",
    regulariser_weight: float = 10.0,
    diagonal_weight: float = 10.0,
    cost: Cost | None = None,
) -> dict[str, Tensor]:
    r"""DIP-VAE: the negative ELBO and \(\lambda_{od} \sum_{i \ne j} C_{ij}^2 + \lambda_d \sum_i (C_{ii} - 1)^2\).

    C is the covariance over the batch of the posterior means ("i"), or of the latents, with the mean of the posterior
    variances added ("ii").

    Args:
        vae, batch, rng, cost: as for `wae_loss`, with samples of q(z|x).
        kind: "i" or "ii" (default).
        regulariser_weight: \(\lambda_{od}\), of covariances off the diagonal. Default 10.
        diagonal_weight: \(\lambda_d\), of variances that are not 1. Default 10; the paper takes ten times the other for
            "i".

    Returns:
        "loss"; "off_diagonal" and "diagonal", the two sums before their weights; and as `elbo_loss`.

    Raises:
        UsageError: a negative weight, an unknown kind, a batch of one; and as `elbo_loss`.

    Variational Inference of Disentangled Latent Concepts (Kumar et al., 2017, 1711.00848), eq. 6 and 7.

    Example:
        >>> from latentia import VAE
        >>> vae, batch = VAE(sample_size=8, latent_dim=4), {"x": torch.rand(4, 1, 8, 8) * 2 - 1}
        >>> bool(dip_vae_loss(vae, batch, Rng(0, 0, 4, 0, 4))["off_diagonal"] >= 0)
        True
    """
    check_choice("kind", kind, DIP_KINDS)
    check_range("regulariser_weight", regulariser_weight, 0)
    check_range("diagonal_weight", diagonal_weight, 0)
    seen = run_vae(vae, batch, rng)
    mean, log_variance = seen.out.mean, seen.out.log_variance
    _check_batch(mean, "dip")
    centred = mean - mean.mean(0)
    covariance = centred.T @ centred / len(mean)
    if kind == "ii":
        covariance = covariance + log_variance.exp().mean(0).diag()
    variances = covariance.diagonal()
    off_diagonal = covariance.square().sum() - variances.square().sum()
    diagonal = (variances - 1).square().sum()
    penalty = regulariser_weight * off_diagonal + diagonal_weight * diagonal
    parts = {"off_diagonal": off_diagonal.detach(), "diagonal": diagonal.detach()}
    return {"loss": (seen.error(cost) + seen.kl.sum(1)).mean() + penalty, **seen.metrics(), **parts}


def _with(seen: Seen, weight: float, name: str, term: Tensor, cost: Cost | None) -> dict[str, Tensor]:
    loss = seen.error(cost).mean() + weight * term
    return {"loss": loss, **seen.metrics(), name: term.detach()}


def _prior(seen: Seen, rng: Rng) -> Tensor:
    """A sample of N(0, I) for each latent."""
    return rng.normal("prior", (seen.out.z.shape[1],)).to(seen.out.z.dtype)


def _mmd(seen: Seen, rng: Rng, kernel: str, objective: str) -> Tensor:
    seen.require(objective)
    return maximum_mean_discrepancy(seen.out.z, _prior(seen, rng), kernel)


def _check_batch(latents: Tensor, objective: str) -> None:
    if len(latents) < 2:
        raise UsageError(
            f"{objective} needs at least 2 images in a batch, as it compares their latents; got {len(latents)}. Take "
            "larger batches."
        )


def _check_discriminator(discriminator: Any) -> None:
    if discriminator is None:
        raise UsageError(
            "discriminator must be a network of latents, such as MLPDiscriminator(in_dim=latent_dim), for factor; got "
            "None. beta_tc estimates the same term without one."
        )
