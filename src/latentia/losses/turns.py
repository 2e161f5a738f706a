"""What a turn of either player is made of: conditions, noise, fakes, judgement, penalties."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from latentia.errors import UsageError, did_you_mean
from latentia.losses.diffusion import unet_config
from latentia.losses.gradient_penalty import interpolated, one_centred_penalty, zero_centred_penalty
from latentia.rng import Rng

PRIORS = ("normal", "uniform")
Conditions = dict[str, Tensor]
_THRESHOLDS = {"least_squares": 0.5, "minimax": 0.0, "non_saturating": 0.0, "hinge": 0.0}


def labels_of(batch: dict[str, Any], classes: int) -> Tensor:
    """The labels of a batch, which must be there and in [0, classes)."""
    if "labels" not in batch:
        raise UsageError(f"labels are missing: a network of {classes} classes needs them beside its images.")
    labels = batch["labels"]
    if not bool((labels.amin() >= 0) & (labels.amax() < classes)):
        raise UsageError(f"labels must be from 0 to {classes - 1}; got {int(labels.amin())} to {int(labels.amax())}.")
    return labels


def conditions_of(network, batch: dict[str, Any], text_encoder: Callable | None) -> Conditions:
    """What the network has to be told of this batch, by its configuration."""
    config, told = unet_config(network), {}
    if getattr(config, "num_class_embeds", None) is not None:
        told["class_labels"] = labels_of(batch, config.num_class_embeds)
    if getattr(config, "text_embed_dim", None) is not None:
        if "captions" not in batch or text_encoder is None:
            missing = "captions are missing beside the images" if "captions" not in batch else "text_encoder is missing"
            raise UsageError(f"{missing}: this network is told captions. Give a HashedWords, and data with captions.")
        with torch.no_grad():
            told["text_embeds"] = text_encoder(batch["captions"])
    return told


def others(told: Conditions, batch: dict[str, Any], rng: Rng, classes: int | None) -> tuple[Conditions, Tensor]:
    """Labels of any other class, and captions of another image of this batch; and whether they do differ, (B,)."""
    wrong, different = {}, torch.zeros(0)
    if "class_labels" in told and classes is not None:
        if classes < 2:
            raise UsageError("mismatched needs at least two classes; this network has one.")
        shift = 1 + (rng.uniform("mismatched labels") * (classes - 1)).long().clamp(max=classes - 2)
        wrong["class_labels"] = (told["class_labels"] + shift) % classes
        different = torch.ones_like(wrong["class_labels"], dtype=torch.bool)
    if "text_embeds" in told:
        text = told["text_embeds"]
        if len(text) < 2:
            raise UsageError("mismatched takes the caption of another image of the batch; got a batch of one.")
        wrong["text_embeds"] = text.roll(1, 0)  # neighbours in a batch are as random as any two
        apart = (text != wrong["text_embeds"]).any(1)
        different = apart | different if len(different) else apart
    return wrong, different


def fakes(generator, batch: dict[str, Any], rng: Rng, prior: str, text_encoder, turn: str) -> Tensor:
    """As many generated samples as there are real ones."""
    if prior not in PRIORS:
        raise UsageError(f"prior must be one of {PRIORS}; got {prior!r}.{did_you_mean(prior, PRIORS)}")
    shape = (unet_config(generator).latent_dim,)
    z = rng.normal(f"{turn} latents", shape) if prior == "normal" else 2 * rng.uniform(f"{turn} latents", shape) - 1
    return generator(z.to(batch["x"].dtype), **conditions_of(generator, batch, text_encoder)).sample


def shown(x: Tensor, rng: Rng, augment: Callable | None, sigma: float, stream: str) -> Tensor:
    """What the discriminator is shown in place of x: augmented, then with noise."""
    if not 0 <= sigma < float("inf"):
        raise UsageError(f"instance_noise must be at least 0 and finite; got {sigma}.")
    if augment is not None:
        x = augment(x, rng, f"{stream} augmented")
    return x + sigma * rng.normal(f"{stream} noise", tuple(x.shape[1:])).to(x.dtype) if sigma else x


def judge(discriminator, samples: Sequence[Tensor], told: Sequence[Conditions]) -> list:
    """The discriminator's output for each set of samples: one pass for all, unless they would see each other.

    With batch norm each set is a batch of its own. Such passes before one backward pass are safe under several
    processes with the batch norm of `models.layers.discriminator`; torch's own fails there, as
    the second pass overwrites buffers that the first still needs.
    """
    unit = getattr(unet_config(discriminator), "pack", 1)
    unit *= getattr(unet_config(discriminator), "minibatch_std", None) or 1
    if has_batch_norm(discriminator) or any(len(x) % unit for x in samples):  # the network says what is wrong with it
        return [discriminator(x, **conditions) for x, conditions in zip(samples, told)]
    together = {key: torch.cat([conditions[key] for conditions in told]) for key in told[0]}
    out = discriminator(torch.cat([*samples]), **together)
    parts = {key: value.chunk(len(samples)) for key, value in out.items() if value is not None}
    return [type(out)(**{key: part[i] for key, part in parts.items()}) for i in range(len(samples))]


def has_batch_norm(network: nn.Module) -> bool:
    """Whether the samples of a batch see each other in training."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


def players_ready(discriminator, generator, batch, rng, prior, text_encoder, turn, replay, **weights: float):
    """Real and generated samples for the discriminator's turn, with gradients where a penalty asks for them."""
    for name, value in weights.items():
        if not 0 <= value < float("inf"):
            raise UsageError(f"{name} must be at least 0 and finite; got {value}.")
    if any(weights.values()) and has_batch_norm(discriminator):
        given = ", ".join(f"{name}={value:g}" for name, value in weights.items())
        raise UsageError(
            f"A gradient penalty ({given}) is of each image by itself, but batch norm mixes those of a batch. Build "
            'the discriminator with norm="none", "instance" or "spectral", or set the penalties to 0.'
        )
    with torch.no_grad():
        fake = fakes(generator, batch, rng, prior, text_encoder, turn)
        fake = fake if replay is None else replay(fake, rng)
    real = batch["x"].detach()
    return real.requires_grad_(weights["r1"] > 0), fake.detach().requires_grad_(weights["r2"] > 0)


def penalties(
    discriminator, real: Tensor, fake: Tensor, judged: Sequence, told: Conditions, rng: Rng, r1, r2, gp
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of the penalties, and the mean of each that has a weight."""
    sizes = {}
    if r1:
        sizes["r1"] = zero_centred_penalty(judged[0].logits, real).mean()
    if r2:
        sizes["r2"] = zero_centred_penalty(judged[1].logits, fake).mean()
    if gp:
        between = interpolated(real, fake, rng)
        sizes["gp"] = one_centred_penalty(discriminator(between, **told).logits, between).mean()
    weights = {"r1": r1 / 2, "r2": r2 / 2, "gp": gp}
    return sum((weights[key] * size for key, size in sizes.items()), real.new_zeros(())), sizes


def verdict(objective: str, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """Mean logits, and how often the discriminator is right: against the game's threshold, or between the means."""
    real, fake = real.detach(), fake.detach()
    means = real.mean(), fake.mean()
    threshold = _THRESHOLDS.get(objective, (means[0] + means[1]) / 2)
    accuracy = {"accuracy_real": (real > threshold).float().mean(), "accuracy_fake": (fake <= threshold).float().mean()}
    return {"real": means[0], "fake": means[1], **accuracy}


def margins(objective: str, real: Tensor, fake: Tensor) -> Tensor:
    """How far real logits are above the game's threshold or, where only differences count, above those of fakes."""
    return (real - _THRESHOLDS.get(objective, fake)).detach()
