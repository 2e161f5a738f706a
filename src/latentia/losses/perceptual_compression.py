"""Perceptual compression, the loss of latent diffusion's autoencoder: reconstruction, KL, perceptual, adversarial."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from latentia.errors import check_choice, check_range
from latentia.functional.adversarial import discriminator_loss, discriminator_metrics, generator_loss
from latentia.functional.distributions import gaussian_kl
from latentia.losses.conditions import item_of
from latentia.rng import Rng

RECONSTRUCTIONS = ("l1", "mse")
Perceptual = Callable[[Tensor, Tensor], Tensor]


def perceptual_compression_loss(
    autoencoder: Any,
    batch: Mapping[str, Any],
    rng: Rng,
    *,
    latent_shape: tuple[int, ...],
    reconstruction: str = "l1",
    kl_weight: float = 1e-6,
    perceptual: Perceptual | None = None,
    perceptual_weight: float = 1.0,
    discriminator: Any = None,
    adversarial_weight: float = 0.1,
    objective: str = "hinge",
) -> dict[str, Tensor]:
    r"""\(\overline{|x - \hat x|} + \lambda_K \mathrm{KL} / D + \lambda_P\, d(x, \hat x) + \lambda_A L_G(\hat x)\).

    D are the values of an image, so that all terms are per value and the weights do not depend on its size. With
    "mse" the first two are \(2\sigma^2 / D\) times the negative ELBO of Gaussian pixels with
    \(\beta = \lambda_K / (2\sigma^2)\) (`beta_of_mse_weight` of \(\lambda_K / D\)): 1e-6 is an autoencoder whose
    latents are held together, and no generative model.

    Args:
        autoencoder: `GaussianAutoencoder`, may be wrapped for several processes.
        batch: "x" (B, C, H, W) in [-1, 1].
        rng: the randomness of this micro-batch.
        latent_shape: (D, h, w) of the latents of such images.
        reconstruction: "l1" (default), mean absolute difference, or "mse", mean square, of values in [-1, 1].
        kl_weight: lambda_K, at least 0. Default 1e-6.
        perceptual: (images, reconstructions) -> (B,), a distance with derivatives, such as
            `latentia.evaluation.perceptual_loss` with its `model`; `None` (default): none.
        perceptual_weight: lambda_P. Default 1.
        discriminator: `PatchDiscriminator`, may be wrapped; `None` (default): no adversarial term.
        adversarial_weight: lambda_A. Default 0.1. It is fixed: a weight that follows the ratio of two gradients would
            differ between micro-batches and between processes.
        objective: one of `latentia.functional.adversarial.OBJECTIVES` whose generator needs no real logits. Default
            "hinge".

    Returns:
        "loss"; "reconstruction", per value; "kl", nats per image; "perceptual", "adversarial", before their weights,
        where they are part of it; "latent_std" of this micro-batch.

    Raises:
        UsageError: a negative weight, an unknown name, or "relativistic", which needs the logits of real images.

    Rombach et al., 2021, 2112.10752, eq. 25; Taming Transformers (Esser et al., 2020, 2012.09841), section 3.1.

    Example:
        >>> from latentia.models.autoencoder_kl import GaussianAutoencoder, autoencoder_kl
        >>> network = GaussianAutoencoder(autoencoder_kl(16, 1, (8, 8)))
        >>> batch, rng = {"x": torch.rand(2, 1, 16, 16) * 2 - 1}, Rng(0, 0, 2, 0, 2)
        >>> values = perceptual_compression_loss(network, batch, rng, latent_shape=(4, 8, 8), kl_weight=0.5)
        >>> bool((values["loss"] - values["reconstruction"] - 0.5 * values["kl"] / 256).abs() < 1e-5)
        True
    """
    weights = {"kl_weight": kl_weight, "perceptual_weight": perceptual_weight, "adversarial_weight": adversarial_weight}
    for name, value in weights.items():
        check_range(name, value, 0)
    check_choice("reconstruction", reconstruction, RECONSTRUCTIONS)
    x = item_of(batch, "x")
    out = autoencoder(x, rng.normal("posterior", latent_shape))
    x_hat = out.reconstruction.to(x.dtype)
    gap = x_hat - x
    error = (gap.abs() if reconstruction == "l1" else gap.square()).flatten(1).mean(1).mean()
    kl = gaussian_kl(out.mean.to(x.dtype), out.log_variance.to(x.dtype)).flatten(1).sum(1).mean()
    loss = error + kl_weight * kl / x[0].numel()
    values = {"reconstruction": error, "kl": kl, "latent_std": out.z.to(x.dtype).std()}
    if perceptual is not None:
        values["perceptual"] = perceptual(x, x_hat).mean()
        loss = loss + perceptual_weight * values["perceptual"]
    if discriminator is not None:
        values["adversarial"] = generator_loss(discriminator(x_hat).logits.to(x.dtype), objective=objective).mean()
        loss = loss + adversarial_weight * values["adversarial"]
    return {"loss": loss, **{key: value.detach() for key, value in values.items()}}


def patch_discriminator_loss(
    discriminator: Any,
    autoencoder: Any,
    batch: Mapping[str, Any],
    rng: Rng,
    *,
    latent_shape: tuple[int, ...],
    objective: str = "hinge",
) -> dict[str, Tensor]:
    """The loss of the patch discriminator: images are real, their reconstructions, of the same noise, are not.

    Arguments are as for `perceptual_compression_loss`. The autoencoder gets no gradient.

    Returns:
        "loss"; "real" and "fake", mean logits; "accuracy_real" and "accuracy_fake", shares of patches.

    Example:
        >>> from latentia import PatchDiscriminator
        >>> from latentia.models.autoencoder_kl import GaussianAutoencoder, autoencoder_kl
        >>> network, patches = GaussianAutoencoder(autoencoder_kl(16, 1, (8, 8))), PatchDiscriminator(1, (8, 8))
        >>> batch, rng = {"x": torch.rand(2, 1, 16, 16) * 2 - 1}, Rng(0, 0, 2, 0, 2)
        >>> sorted(patch_discriminator_loss(patches, network, batch, rng, latent_shape=(4, 8, 8)))
        ['accuracy_fake', 'accuracy_real', 'fake', 'loss', 'real']
    """
    x = item_of(batch, "x")
    with torch.no_grad():
        fake = autoencoder(x, rng.normal("posterior", latent_shape)).reconstruction.to(x.dtype)
    # One pass for both: images of a batch do not depend on each other here, and two would need two synchronisations.
    real_logits, fake_logits = discriminator(torch.cat([x, fake])).logits.to(x.dtype).chunk(2)
    loss = discriminator_loss(real_logits, fake_logits, objective).mean()
    return {"loss": loss, **discriminator_metrics(real_logits, fake_logits, objective)}
