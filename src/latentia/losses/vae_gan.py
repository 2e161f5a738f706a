"""VAE-GAN: a VAE whose decoder is a generator, and whose reconstruction error is of a discriminator's features."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from latentia.errors import check_range
from latentia.functional.adversarial import discriminator_loss, discriminator_metrics, generator_loss
from latentia.functional.bounds import hierarchical_kl
from latentia.losses.conditions import conditions_of, item_of
from latentia.losses.discrimination import discriminate
from latentia.losses.networks import config_of
from latentia.rng import Rng


def vae_gan_loss(
    vae: Any,
    discriminator: Any,
    batch: Mapping[str, Any],
    rng: Rng,
    *,
    gamma: float = 1e-2,
    feature_layer: str | None = None,
    objective: str = "non_saturating",
) -> dict[str, Tensor]:
    r"""The losses of encoder and decoder, in one backward pass, each with the gradient that the paper gives it.

    With \(L_{prior} = \mathrm{KL}(q(z|x) \| p(z))\), \(L_{llike} = \frac12 \lVert D_l(x) - D_l(\tilde x) \rVert^2\),
    the negative log-density of a Gaussian of variance 1 on a layer of the discriminator but for a constant, and
    \(L_{adv}\), the generator's loss of reconstructions and of samples, with half the weight each:

    - the encoder minimises \(L_{prior} + L_{llike}\),
    - the decoder \(\gamma L_{llike} + L_{adv}\).

    The loss is \(L_{prior} + \gamma L_{llike} + L_{adv}\), where \(\gamma L_{llike}\) reaches the encoder with
    \(1 / \gamma\) times its gradient, and \(L_{adv}\) does not reach it, as it is of latents without derivatives.

    Args:
        vae: `VAE`, may be wrapped for several processes. `likelihood="none"` says that its decoder is no density.
        discriminator: `DCGANDiscriminator`, likewise. Its weights get no gradient in the phase of the VAE.
        batch: "x" (B, C, H, W) in [-1, 1], and "labels" (B,) where a network has classes.
        rng: the randomness of this micro-batch.
        gamma: weight of the likelihood against the adversarial loss, of the decoder alone, positive. Default 0.01.
        feature_layer: one of `discriminator.feature_layers`; `None` (default): the input of the last layer.
        objective: one of `latentia.functional.adversarial.OBJECTIVES`. With "minimax" \(L_{adv}\) is minus the
            discriminator's loss, as in the paper; "non_saturating" (default) has a larger gradient where the
            discriminator is right.

    Returns:
        "loss"; "kl", nats per image; "likelihood", \(L_{llike}\) per image; "adversarial"; "error", the squared error
        of a pixel.

    Raises:
        UsageError: a gamma out of range, unknown names, labels that are missing.

    Autoencoding beyond pixels using a learned similarity metric (Larsen et al., 2015, 1512.09300), eq. 6 to 8 and
    algorithm 1.

    Example:
        >>> from latentia import VAE, DCGANDiscriminator
        >>> vae = VAE(sample_size=8, latent_dim=4, likelihood="none")
        >>> discriminator = DCGANDiscriminator(sample_size=8, block_out_channels=(4, 8), norm="spectral")
        >>> batch, rng = {"x": torch.rand(4, 1, 8, 8) * 2 - 1}, Rng(0, 0, 4, 0, 4)
        >>> sorted(vae_gan_loss(vae, discriminator, batch, rng, feature_layer="down_blocks.0"))
        ['adversarial', 'error', 'kl', 'likelihood', 'loss']
    """
    check_range("gamma", gamma, 0, closed="neither")
    x, conditions = item_of(batch, "x"), conditions_of(vae, batch, None)
    out = vae(x, _noise(vae, rng, x, "posterior"), **conditions, decoder_gradient=1 / gamma)
    z = torch.cat([out.z.detach(), _noise(vae, rng, x, "prior").to(out.z.dtype)])
    twice = {key: value.repeat(2) for key, value in conditions.items()}
    again, sampled = vae(None, latents=z, **twice).reconstruction.chunk(2)  # no gradient of these reaches the encoder
    samples = [x, out.reconstruction.to(x.dtype), again.to(x.dtype), sampled.to(x.dtype)]
    options = {} if feature_layer is None else {"feature_layer": feature_layer}
    seen = discriminate(discriminator, samples, [conditions_of(discriminator, batch, None)] * 4, **options)
    features, features_again = (each.features.to(x.dtype) for each in seen[:2])
    likelihood = (features.detach() - features_again).square().sum(1).mean() / 2
    kl = hierarchical_kl(out.z, out.mean, out.log_variance, _sizes(vae)).sum(1).mean()
    real = seen[0].logits.to(x.dtype).detach()
    adversarial = sum(generator_loss(each.logits.to(x.dtype), real, objective).mean() / 2 for each in seen[2:])
    error = (samples[1] - x).square().mean()
    values = {"kl": kl, "likelihood": likelihood, "adversarial": adversarial, "error": error}
    return {"loss": kl + gamma * likelihood + adversarial, **{key: value.detach() for key, value in values.items()}}


def vae_gan_discriminator_loss(
    discriminator: Any, vae: Any, batch: Mapping[str, Any], rng: Rng, *, objective: str = "non_saturating"
) -> dict[str, Tensor]:
    """The discriminator's loss: images are real, their reconstructions and samples of the prior are not.

    The two kinds of generated images have half the weight each. Arguments are as for `vae_gan_loss`. The VAE gets no
    gradient.

    Returns:
        "loss"; "real", "fake" and "sampled", mean logits of images, reconstructions and samples; "accuracy_real" and
        "accuracy_fake", of images and reconstructions.

    Example:
        >>> from latentia import VAE, DCGANDiscriminator
        >>> vae = VAE(sample_size=8, latent_dim=4, likelihood="none")
        >>> discriminator = DCGANDiscriminator(sample_size=8, block_out_channels=(4, 8), norm="spectral")
        >>> batch, rng = {"x": torch.rand(4, 1, 8, 8) * 2 - 1}, Rng(0, 0, 4, 0, 4)
        >>> sorted(vae_gan_discriminator_loss(discriminator, vae, batch, rng))
        ['accuracy_fake', 'accuracy_real', 'fake', 'loss', 'real', 'sampled']
    """
    x, conditions = item_of(batch, "x"), conditions_of(vae, batch, None)
    with torch.no_grad():
        again = vae(x, _noise(vae, rng, x, "posterior"), **conditions).reconstruction.to(x.dtype)
        sampled = vae(None, latents=_noise(vae, rng, x, "prior"), **conditions).reconstruction.to(x.dtype)
    seen = discriminate(discriminator, [x, again, sampled], [conditions_of(discriminator, batch, None)] * 3)
    real, *fakes = (each.logits.to(x.dtype) for each in seen)
    loss = sum(discriminator_loss(real, fake, objective).mean() / 2 for fake in fakes)
    metrics = discriminator_metrics(real, fakes[0], objective)
    return {"loss": loss, **metrics, "sampled": fakes[1].detach().mean()}


def _sizes(vae: Any) -> tuple[int, ...]:
    """Dimensions of each stochastic layer."""
    latent_dim = config_of(vae).latent_dim
    return (latent_dim,) if isinstance(latent_dim, int) else tuple(latent_dim)


def _noise(vae: Any, rng: Rng, x: Tensor, stream: str) -> Tensor:
    """N(0, I) of all stochastic layers side by side, (B, D)."""
    return rng.normal(stream, (sum(_sizes(vae)),)).to(x.dtype)
