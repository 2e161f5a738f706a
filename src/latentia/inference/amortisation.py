"""Posteriors of single images by optimisation through any decoder, and the amortisation gap of an encoder."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from latentia.errors import Count, Positive, Seed, UsageError, check_arguments
from latentia.functional.distributions import LIKELIHOODS, log_likelihood, log_mixture, log_normal
from latentia.inference.fit import Fit
from latentia.inference.gaussian import Gaussians, balanced_noise, fit_gaussians
from latentia.rng import seed_from


@dataclass(frozen=True)
class AmortisationGap:
    """Bounds of log p(x) by an encoder's posteriors and by optimised ones, in nats, (B,) each.

    Example:
        >>> gap = AmortisationGap(torch.tensor([-3.0, -2.0]), torch.tensor([-2.5, -2.0]))
        >>> gap.nats, gap.standard_error
        (0.25, 0.25)
    """

    encoder: Tensor
    optimised: Tensor

    @property
    def nats(self) -> float:
        """Mean over the images of the optimised bound minus the encoder's."""
        return float((self.optimised - self.encoder).mean())

    @property
    def standard_error(self) -> float | None:
        """Of that mean, from the spread over images; `None` of a single image."""
        return (
            float((self.optimised - self.encoder).std() / len(self.encoder) ** 0.5) if len(self.encoder) > 1 else None
        )


@check_arguments
def infer_latents(
    vae: Any,
    x: Tensor,
    class_labels: Tensor | None = None,
    *,
    start: Gaussians | None = None,
    covariance: Literal["diag", "full"] = "diag",
    steps: Count = 300,
    samples: Count = 8,
    learning_rate: Positive = 0.02,
    seed: Seed = 0,
) -> Fit[Gaussians]:
    """Infer the posterior of the latents of each image by optimisation, without the encoder.

    Args:
        vae: a network of continuous latents whose prior is N(0, I) or learned: `vae(None, latents=z)` gives the
            parameters of p(x | z), as a `latentia.VAE`. Of a hierarchy z holds all stochastic layers.
        x: images (B, C, H, W) in [-1, 1]; of a Bernoulli decoder black and white ones.
        class_labels: (B,), if the network is conditioned on them.
        start: the Gaussians to start from; `None` (default): N(0, I).
        covariance: "diag" (default), as most encoders have, or "full".
        steps, samples, learning_rate, seed: as for `latentia.inference.gaussian.fit_gaussians`. Default 300, 8, .02, 0.

    Returns:
        A Gaussian for each image and the mean bound of log p(x) before each step and at the end.

    Raises:
        UsageError: a decoder without a density of pixels, or categorical latents.
        NumericsError: the density is not finite.

    Stochastic Variational Inference (Hoffman et al., 2013, 1206.7051); of single images: Inference Suboptimality in
    Variational Autoencoders (Cremer, Li and Duvenaud, 2018, 1801.03558).

    Example:
        >>> from latentia import VAE
        >>> vae = VAE(sample_size=4, latent_dim=2, hidden_sizes=(8,))
        >>> fit = infer_latents(vae, torch.ones(3, 1, 4, 4), steps=5)
        >>> fit.model.means.shape, len(fit.bounds)
        (torch.Size([3, 2]), 6)
    """
    _check_density(vae)
    prior = _detached(vae.prior_parameters())
    if start is None:
        sizes = vae.config.latent_dim
        shape = len(x), sizes if isinstance(sizes, int) else sum(sizes)
        start = Gaussians(x.new_zeros(shape), x.new_ones(shape))

    def log_joint(z: Tensor) -> Tensor:
        return _log_likelihood(vae, x, z, class_labels) + _log_prior(z, prior)

    options: dict[str, Any] = {"steps": steps, "samples": samples, "learning_rate": learning_rate, "seed": seed}
    return fit_gaussians(log_joint, start, covariance=covariance, **options)


@check_arguments
def amortisation_gap(
    vae: Any,
    x: Tensor,
    class_labels: Tensor | None = None,
    *,
    covariance: Literal["diag", "full"] = "diag",
    evaluation_samples: Count = 128,
    seed: Seed = 0,
    **options: Any,
) -> AmortisationGap:
    r"""What an encoder loses against posteriors that are optimised for each image, in nats.

    The optimisation starts at the encoder's posterior, and an image keeps that where the end is no better on samples of
    its own; so the gap is at least 0 but for the noise of the samples on which both bounds are then measured.

    Args:
        vae: as for `infer_latents`, with `vae.encode(x)` and one stochastic layer.
        x: images (B, C, H, W) in [-1, 1]; of a Bernoulli decoder black and white ones.
        class_labels: (B,), if the network is conditioned on them.
        covariance: of the optimised posteriors: "diag" (default), the encoder's own family, or "full".
        evaluation_samples: of each bound. Default 128.
        seed: of all samples. Default 0.
        **options: `steps`, `samples` and `learning_rate` of `infer_latents`.

    Raises:
        UsageError: several stochastic layers, whose posterior is no Gaussian, a decoder without a density of pixels,
            or categorical latents.

    Cremer, Li and Duvenaud, 2018, 1801.03558, eq. 5.

    Example:
        >>> from latentia import VAE
        >>> vae = VAE(sample_size=4, latent_dim=2, hidden_sizes=(8,))
        >>> gap = amortisation_gap(vae, torch.ones(3, 1, 4, 4), steps=50)
        >>> gap.encoder.shape, gap.nats > -1e-3
        (torch.Size([3]), True)
    """
    _check_density(vae)
    sizes = vae.config.latent_dim
    if not isinstance(sizes, int) and len(sizes) > 1:
        raise UsageError(
            f"vae must have one stochastic layer for a gap; got latent_dim={tuple(sizes)}. Compare the bounds of "
            "infer_latents with its ELBO."
        )
    with torch.no_grad():
        labels = () if class_labels is None else (class_labels,)
        mean, log_variance = vae.encode(x, *labels)
        start = Gaussians(mean, (0.5 * log_variance).exp())
    fitted = infer_latents(vae, x, class_labels, start=start, covariance=covariance, seed=seed, **options).model

    prior = _detached(vae.prior_parameters())
    generator = torch.Generator(mean.device).manual_seed(seed_from(seed, "amortisation gap"))

    @torch.no_grad()
    def bounds() -> tuple[Tensor, Tensor]:
        noise = balanced_noise(evaluation_samples, mean, generator)
        both = []
        for q in (start, fitted):
            samples = q.sample(noise)
            values = torch.cat([_log_likelihood(vae, x, part, class_labels) for part in samples.split(16)]).double()
            kl = q.kl_from_standard_normal() if prior is None else q.log_prob(samples) - _log_prior(samples, prior)
            both.append((values - kl.double()).mean(0))
        return both[0], both[1]

    before, after = bounds()
    better = after > before
    before, after = bounds()
    return AmortisationGap(before, torch.where(better, after, before))


def _check_density(vae: Any) -> None:
    likelihood = vae.config.likelihood
    if likelihood not in LIKELIHOODS:
        raise UsageError(
            f"vae must have a density of pixels, a likelihood of {', '.join(LIKELIHOODS)}; got {likelihood}."
        )
    categories, posterior = tuple(vae.config.categories), vae.config.posterior
    if categories or posterior != "gaussian":
        raise UsageError(
            f"vae must have latents that a Gaussian can describe; got categories={categories} and "
            f'posterior="{posterior}".'
        )


def _detached(prior: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
    return None if prior is None else (prior[0].detach(), prior[1].detach())


def _log_prior(z: Tensor, prior: tuple[Tensor, Tensor] | None) -> Tensor:
    return log_normal(z) if prior is None else log_mixture(z, *prior)


def _log_likelihood(vae: Any, x: Tensor, z: Tensor, class_labels: Tensor | None) -> Tensor:
    """log p(x | z), (S, B), of samples z (S, B, D)."""
    labels = {} if class_labels is None else {"class_labels": class_labels.repeat(len(z))}
    out = vae(None, latents=z.flatten(0, 1), **labels)
    images = x.expand(len(z), *x.shape).flatten(0, 1)
    return log_likelihood(vae.config.likelihood, images, out.location, out.log_scale).unflatten(0, z.shape[:2])
