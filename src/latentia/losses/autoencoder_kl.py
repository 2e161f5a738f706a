"""Objectives of the autoencoder under latent diffusion: reconstruct, look alike, fool a critic of patches."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from latentia.errors import UsageError, did_you_mean
from latentia.losses.adversarial import discriminator_loss, generator_loss
from latentia.losses.turns import verdict
from latentia.losses.variational import gaussian_kl
from latentia.rng import Rng

RECONSTRUCTIONS = ("l1", "mse")
Perceptual = Callable[[Tensor, Tensor], Tensor]


def autoencoder_kl_loss(
    autoencoder,
    batch: dict,
    rng: Rng,
    *,
    latent_shape: tuple[int, ...],
    reconstruction: str = "l1",
    kl_weight: float = 1e-6,
    perceptual: Perceptual | None = None,
    perceptual_weight: float = 1.0,
    discriminator=None,
    adversarial_weight: float = 0.1,
    objective: str = "hinge",
) -> dict[str, Tensor]:
    r"""\(\overline{|x - \hat x|} + \lambda_K \mathrm{KL} / D + \lambda_P\, d(x, \hat x) + \lambda_A L_G(\hat x)\).

    D are the values of a picture, so that all terms are per value and the weights do not depend on its size. With
    "mse" the first two are \(2\sigma^2 / D\) times the negative ELBO of Gaussian pixels with
    \(\beta = \lambda_K / (2\sigma^2)\) (`beta_of_mse_weight` of \(\lambda_K / D\)): 1e-6 is an autoencoder whose
    latents are held together, and no generative model.

    Args:
        autoencoder: `GaussianAutoencoder`, may be wrapped for several processes.
        batch: "x" (B, C, H, W) in [-1, 1].
        rng: the randomness of this micro-batch.
        latent_shape: (D, h, w) of the latents of such pictures.
        reconstruction: "l1" (default), mean absolute difference, or "mse", mean square, of values in [-1, 1].
        kl_weight: lambda_K, at least 0. Default 1e-6.
        perceptual: (images, reconstructions) -> (B,), a distance with derivatives, such as
            `latentia.evaluation.perceptual_loss` with its `model`; `None` (default): none.
        perceptual_weight: lambda_P. Default 1.
        discriminator: `PatchDiscriminator`, may be wrapped; `None` (default): nobody to fool, yet or at all.
        adversarial_weight: lambda_A. Default 0.1. It is fixed: a weight that follows the ratio of two gradients would
            differ between micro-batches and between processes.
        objective: the game, one of `latentia.losses.adversarial.OBJECTIVES` that judges fakes alone. Default "hinge".

    Returns:
        "loss"; "reconstruction", per value; "kl", nats per picture; "perceptual", "adversarial", before their weights,
        where they are part of it; "latent_std" of this micro-batch.

    Raises:
        UsageError: a negative weight, an unknown name, or "relativistic", which compares fakes with real pictures.

    Rombach et al., 2021, 2112.10752, eq. 25; Taming Transformers (Esser et al., 2020, 2012.09841), section 3.1.

    Example:
        >>> from latentia.models.autoencoder_kl import GaussianAutoencoder, autoencoder_kl
        >>> network = GaussianAutoencoder(autoencoder_kl(16, 1, (8, 8)))
        >>> batch, rng = {"x": torch.rand(2, 1, 16, 16) * 2 - 1}, Rng(0, 0, 2, 0, 2)
        >>> values = autoencoder_kl_loss(network, batch, rng, latent_shape=(4, 8, 8), kl_weight=0.5)
        >>> bool((values["loss"] - values["reconstruction"] - 0.5 * values["kl"] / 256).abs() < 1e-5)
        True
    """
    weights = {"kl_weight": kl_weight, "perceptual_weight": perceptual_weight, "adversarial_weight": adversarial_weight}
    for name, value in weights.items():
        if not 0 <= value < math.inf:
            raise UsageError(f"{name} must be at least 0 and finite; got {value}.")
    if reconstruction not in RECONSTRUCTIONS:
        hint = did_you_mean(str(reconstruction), RECONSTRUCTIONS)
        raise UsageError(f"reconstruction must be one of {RECONSTRUCTIONS}; got {reconstruction!r}.{hint}")
    x = batch["x"]
    out = autoencoder(x, rng.normal("posterior", latent_shape))
    again = out.reconstruction.to(x.dtype)
    gap = again - x
    error = (gap.abs() if reconstruction == "l1" else gap.square()).flatten(1).mean(1).mean()
    kl = gaussian_kl(out.mean.to(x.dtype), out.log_variance.to(x.dtype)).flatten(1).sum(1).mean()
    loss = error + kl_weight * kl / x[0].numel()
    values = {"reconstruction": error, "kl": kl, "latent_std": out.z.to(x.dtype).std()}
    if perceptual is not None:
        values["perceptual"] = perceptual(x, again).mean()
        loss = loss + perceptual_weight * values["perceptual"]
    if discriminator is not None:
        values["adversarial"] = generator_loss(discriminator(again).logits.to(x.dtype), objective=objective).mean()
        loss = loss + adversarial_weight * values["adversarial"]
    return {"loss": loss, **{key: value.detach() for key, value in values.items()}}


def patch_discriminator_loss(
    discriminator,
    autoencoder,
    batch: dict,
    rng: Rng,
    *,
    latent_shape: tuple[int, ...],
    objective: str = "hinge",
) -> dict[str, Tensor]:
    """What the critic of patches minimises: pictures are real, their reconstructions, of the same noise, are not.

    Arguments are as for `autoencoder_kl_loss`. The autoencoder gets no gradient.

    Returns:
        "loss"; "real" and "fake", mean logits; "accuracy_real" and "accuracy_fake", shares of patches.

    Example:
        >>> from latentia import PatchDiscriminator
        >>> from latentia.models.autoencoder_kl import GaussianAutoencoder, autoencoder_kl
        >>> network, critic = GaussianAutoencoder(autoencoder_kl(16, 1, (8, 8))), PatchDiscriminator(1, (8, 8))
        >>> batch, rng = {"x": torch.rand(2, 1, 16, 16) * 2 - 1}, Rng(0, 0, 2, 0, 2)
        >>> sorted(patch_discriminator_loss(critic, network, batch, rng, latent_shape=(4, 8, 8)))
        ['accuracy_fake', 'accuracy_real', 'fake', 'loss', 'real']
    """
    x = batch["x"]
    with torch.no_grad():
        fake = autoencoder(x, rng.normal("posterior", latent_shape)).reconstruction.to(x.dtype)
    # One pass for both: pictures of a batch do not see each other here, and two would need two synchronisations.
    real_logits, fake_logits = discriminator(torch.cat([x, fake])).logits.to(x.dtype).chunk(2)
    loss = discriminator_loss(real_logits, fake_logits, objective).mean()
    return {"loss": loss, **verdict(objective, real_logits, fake_logits)}
