"""A discriminator in a training step: augmentation of its input, number of passes, gradient penalties."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from latentia.errors import UsageError, check_choice, check_range, format_number
from latentia.functional.gradient_penalty import one_centred_penalty, zero_centred_penalty
from latentia.losses.conditions import Conditions, TextEncoder, conditions_of, item_of
from latentia.losses.networks import config_of, has_batch_norm, unwrap
from latentia.rng import Rng

PRIORS = ("normal", "uniform")
Augment = Callable[[Tensor, Rng, str], Tensor]


def generate(
    generator: Any, batch: Mapping[str, Any], rng: Rng, prior: str, text_encoder: TextEncoder | None, stream: str
) -> Tensor:
    """As many generated samples as there are real ones, of new noise and of the batch's own conditions.

    Args:
        generator: called through `forward`; may be wrapped for several processes.
        batch: "x", whose number and dtype count, and the conditions that the generator takes.
        rng: the randomness of this micro-batch.
        prior: of the noise, "normal" or "uniform", on [-1, 1].
        text_encoder: captions -> (B, text_embed_dim), or None.
        stream: a name for this use of the randomness.

    Raises:
        UsageError: an unknown prior, or conditions that are missing.

    Example:
        >>> from latentia import MLPGenerator
        >>> generate(MLPGenerator(), {"x": torch.zeros(4, 2)}, Rng(0, 0, 4, 0, 4), "normal", None, "z").shape
        torch.Size([4, 2])
    """
    check_choice("prior", prior, PRIORS)
    shape = (config_of(generator).latent_dim,)
    z = rng.normal(f"{stream} latents", shape) if prior == "normal" else 2 * rng.uniform(f"{stream} latents", shape) - 1
    return generator(z.to(item_of(batch, "x").dtype), **conditions_of(generator, batch, text_encoder)).sample


def timesteps_of(discriminator: Any, augment: Augment | None, rng: Rng) -> Conditions:
    """The times of diffused samples, as an argument of the discriminator's `forward`; nothing without diffusion.

    Args:
        discriminator: has `num_timesteps` in its configuration if it is conditioned on times.
        augment: has `timesteps(rng)` if it diffuses.
        rng: the randomness of this micro-batch.

    Raises:
        UsageError: diffusion, and a discriminator that is not conditioned on times.

    Example:
        >>> from latentia import MLPDiscriminator
        >>> from latentia.losses.diffusion_augmentation import DiffusionAugmentation
        >>> timesteps_of(MLPDiscriminator(num_timesteps=1000), DiffusionAugmentation(), Rng(0, 0, 4, 0, 4)).keys()
        dict_keys(['timesteps'])
    """
    draw = getattr(augment, "timesteps", None)
    timesteps = None if draw is None else draw(rng)
    if timesteps is None:
        return {}
    if getattr(config_of(discriminator), "num_timesteps", None) is None:
        raise UsageError(
            "augment diffuses samples, so the discriminator must be conditioned on their time; build it with "
            f"num_timesteps, the longest chain. Got {type(unwrap(discriminator)).__name__} without."
        )
    return {"timesteps": timesteps}


def augment_with_noise(x: Tensor, rng: Rng, augment: Augment | None, sigma: float, stream: str) -> Tensor:
    """The input of the discriminator in place of x: augmented, then with Gaussian noise of deviation `sigma`.

    Raises:
        UsageError: a negative or infinite `sigma`.

    Example:
        >>> x = torch.zeros(4, 2)
        >>> torch.equal(augment_with_noise(x, Rng(0, 0, 4, 0, 4), None, 0.0, "real"), x)
        True
    """
    check_range("instance_noise", sigma, 0)
    if augment is not None:
        x = augment(x, rng, f"{stream} augmented")
    return x + sigma * rng.normal(f"{stream} noise", tuple(x.shape[1:])).to(x.dtype) if sigma else x


def discriminate(
    discriminator: Any, samples: Sequence[Tensor], conditions: Sequence[Conditions], **options: str
) -> list[Any]:
    """The discriminator's output for each set of samples: one pass for all, unless they would depend on each other.

    With batch norm each set is a batch of its own. Such passes before one backward pass are safe under several
    processes with the batch norm of `models.layers.norm`; torch's own fails there, as the second pass overwrites
    buffers that the first still needs.

    Args:
        discriminator: called through `forward`; may be wrapped for several processes.
        samples: sets of one size, (B, ...) each.
        conditions: of each set, arguments of the discriminator's `forward`.
        **options: arguments of it for all sets, such as `feature_layer`.

    Example:
        >>> from latentia import MLPDiscriminator
        >>> real, fake = discriminate(MLPDiscriminator(), [torch.zeros(4, 2), torch.ones(4, 2)], [{}, {}])
        >>> real.logits.shape
        torch.Size([4])
    """
    config = config_of(discriminator)
    unit = getattr(config, "pack", 1) * (getattr(config, "minibatch_std", None) or 1)
    if has_batch_norm(discriminator) or any(len(x) % unit for x in samples):  # the network says what is wrong with it
        return [discriminator(x, **condition, **options) for x, condition in zip(samples, conditions)]
    together = {key: torch.cat([condition[key] for condition in conditions]) for key in conditions[0]}
    out = discriminator(torch.cat([*samples]), **together, **options)
    parts = {key: value.chunk(len(samples)) for key, value in out.items() if value is not None}
    return [type(out)(**{key: part[i] for key, part in parts.items()}) for i in range(len(samples))]


def real_and_generated(
    discriminator: Any,
    generator: Any,
    batch: Mapping[str, Any],
    rng: Rng,
    prior: str,
    text_encoder: TextEncoder | None,
    stream: str,
    replay: Callable[[Tensor, Rng], Tensor] | None,
    weights: Mapping[str, float],
) -> tuple[Tensor, Tensor]:
    """Both sets of samples for a step of the discriminator, with gradients where a penalty asks for them.

    Args:
        weights: of the penalties, "r1", "r2" and "gp".

    Other arguments are as for `generate` and `gan_discriminator_loss`.

    Raises:
        UsageError: a negative weight, or penalties of a discriminator with batch norm.
    """
    for name, value in weights.items():
        check_range(name, value, 0)
    if any(weights.values()) and has_batch_norm(discriminator):
        given = ", ".join(f"{name}={format_number(value)}" for name, value in weights.items())
        raise UsageError(
            f"A gradient penalty ({given}) is of each image by itself, but batch norm mixes those of a batch. Build "
            'the discriminator with norm="none", "instance" or "spectral", or set the penalties to 0.'
        )
    with torch.no_grad():
        fake = generate(generator, batch, rng, prior, text_encoder, stream)
        fake = fake if replay is None else replay(fake, rng)
    real = item_of(batch, "x").detach()
    return real.requires_grad_(weights["r1"] > 0), fake.detach().requires_grad_(weights["r2"] > 0)


def interpolate_randomly(real: Tensor, fake: Tensor, rng: Rng) -> Tensor:
    r"""\(\hat x = u x + (1 - u) G(z)\), u ~ U[0, 1) for each sample; ready for `one_centred_penalty`.

    Improved Training of Wasserstein GANs (Gulrajani et al., 2017, 1704.00028), section 4.

    Example:
        >>> interpolate_randomly(torch.ones(2, 3), torch.ones(2, 3), Rng(0, 0, 2, 0, 2)).requires_grad
        True
    """
    u = rng.uniform("interpolated").to(real.dtype).view(-1, *[1] * (real.ndim - 1))
    return torch.lerp(fake.detach(), real.detach(), u).requires_grad_(True)


def gradient_penalties(
    discriminator: Any,
    real: Tensor,
    fake: Tensor,
    samples: Sequence[Tensor],
    outputs: Sequence[Any],
    conditions: Conditions,
    rng: Rng,
    weights: Mapping[str, float],
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""\(\frac{r_1}{2} R_1 + \frac{r_2}{2} R_2 + g\, \mathrm{GP}\), and the mean of each that has a weight.

    Args:
        real, fake: from `real_and_generated`.
        samples: what the discriminator sees in place of them. The penalty of WGAN-GP is between these.
        outputs: of the discriminator at both.
        conditions: of both, with their times if they are diffused.
        weights: "r1", "r2" and "gp".
    """
    means = {}
    if weights["r1"]:
        means["r1"] = zero_centred_penalty(outputs[0].logits, real).mean()
    if weights["r2"]:
        means["r2"] = zero_centred_penalty(outputs[1].logits, fake).mean()
    if weights["gp"]:
        between = interpolate_randomly(samples[0], samples[1], rng)
        means["gp"] = one_centred_penalty(discriminator(between, **conditions).logits, between).mean()
    factors = {"r1": weights["r1"] / 2, "r2": weights["r2"] / 2, "gp": weights["gp"]}
    return sum((factors[key] * mean for key, mean in means.items()), real.new_zeros(())), means
