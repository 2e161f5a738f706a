"""Adversarial losses of a GAN: the discriminator's, the generator's, and gradient penalties in a phase of their own."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latentia.errors import UsageError, check_range
from latentia.functional.adversarial import (
    discriminator_loss,
    discriminator_metrics,
    feature_matching,
    generator_loss,
    mean_over_patches,
    real_margins,
    threshold_of,
)
from latentia.losses.conditions import TextEncoder, conditions_of, item_of, labels_of, mismatched_conditions
from latentia.losses.discrimination import (
    Augment,
    augment_with_noise,
    discriminate,
    generate,
    gradient_penalties,
    real_and_generated,
    timesteps_of,
)
from latentia.losses.networks import config_of
from latentia.rng import Rng

Range = tuple[float, float]


def noisy_labels(
    rng: Rng, real: Range = (0.9, 0.9), fake: Range = (0.0, 0.0), flip: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Labels of real and generated samples, smoothed or flipped, in place of 1 and 0.

    Args:
        rng: the randomness of this micro-batch.
        real, fake: ranges that labels are drawn from. Default 0.9 and 0: smoothed on the real side alone, as a label
            above 0 of generated samples would draw the generator to where it is already. Also used were (0.7, 1.2) and
            (0, 0.3).
        flip: probability that a pair's two labels change places. Default 0.

    Returns:
        Labels of the real and of the generated samples, (B,) each.

    Raises:
        UsageError: a range that runs backwards, a probability outside [0, 1].

    Improved Techniques for Training GANs (Salimans et al., 2016, 1606.03498), section 3.4; How to Train a GAN?
    (Chintala et al., 2016), tip 6.

    Example:
        >>> [label.tolist() for label in noisy_labels(Rng(0, 0, 2, 0, 2))]
        [[0.8999999761581421, 0.8999999761581421], [0.0, 0.0]]
    """
    for name, (low, high) in (("real", real), ("fake", fake)):
        if not -math.inf < low <= high < math.inf:
            raise UsageError(f"{name} must be a range (low, high), both finite; got {(low, high)}.")
    check_range("flip", flip, 0, 1)
    t, s = (a + (b - a) * rng.uniform(f"{name} label") for name, (a, b) in (("real", real), ("fake", fake)))
    flipped = rng.uniform("flipped labels") < flip
    return torch.where(flipped, s, t), torch.where(flipped, t, s)


def gan_discriminator_loss(
    discriminator: Any,
    generator: Any,
    batch: Mapping[str, Any],
    rng: Rng,
    *,
    objective: str = "relativistic",
    prior: str = "normal",
    r1: float = 1.0,
    r2: float = 1.0,
    gp: float = 0.0,
    real_label: Range = (1.0, 1.0),
    fake_label: Range = (0.0, 0.0),
    flip: float = 0.0,
    mismatched: bool = False,
    aux_weight: float = 1.0,
    instance_noise: float = 0.0,
    augment: Augment | None = None,
    collect: Callable[[Tensor, Rng], None] | None = None,
    replay: Callable[[Tensor, Rng], Tensor] | None = None,
    text_encoder: TextEncoder | None = None,
) -> dict[str, Tensor]:
    r"""The discriminator's loss: \(L_D + \frac{r_1}{2} R_1 + \frac{r_2}{2} R_2 + g\, \mathrm{GP}\).

    The default, the relativistic objective with both zero-centred penalties, is the one that has been shown to converge
    and to leave no mode out.

    Real and generated samples pass the discriminator in one batch, unless it has batch norm: then in one batch each, so
    that its statistics are never of a mixture, from which it could tell them apart.

    Args:
        discriminator, generator: called through `forward` alone; may be wrapped for several processes.
        batch: "x", images (B, C, H, W) in [-1, 1] or vectors (B, D); "labels" (B,) and "captions" where a network is
            conditional.
        rng: the randomness of this micro-batch.
        objective: one of `latentia.functional.adversarial.OBJECTIVES`. Default "relativistic".
        prior: of the noise, "normal" (default) or "uniform", on [-1, 1].
        r1, r2: weights of the penalties at real and at generated samples. Default 1.
        gp: weight of the penalty of WGAN-GP, in its paper 10. Default 0.
        real_label, fake_label, flip: as in `noisy_labels`; default labels are 1 and 0.
        mismatched: whether a real image with the label or caption of another counts as fake too, with half the weight
            of generated ones each: (c, real) +, (c, generated) -, (c', real) -. Default False.
        aux_weight: weight of the auxiliary classifier's cross-entropy, if there is one. Default 1.
        instance_noise: sigma of the noise added to all that the discriminator sees; see
            `latentia.functional.schedules.linear_decay`. Default 0.
        augment: (images, rng, stream) -> images, which the discriminator sees instead; its gradient passes. One that
            diffuses, see `DiffusionAugmentation`, gives the discriminator their times too.
        collect: gets how far logits of real samples are above the objective's threshold or, where only differences
            count, above those of generated ones: `AdaptiveAugmentation.collect`.
        replay: `ReplayPool`, which gives old generated samples back for some of the new.
        text_encoder: captions -> (B, text_embed_dim), for networks that are conditioned on captions.

    Returns:
        "loss"; "real" and "fake", mean logits; "accuracy_real" and "accuracy_fake", against the objective's threshold
        or, where only differences count, the middle of the two means; "r1", "r2", "gp", mean penalties of those that
        are asked for; "mismatched", mean logit; "class_accuracy" of real images.

    Raises:
        UsageError: unknown names, penalties of a discriminator with batch norm, labels or captions that are missing,
            a replay of conditional samples.

    The GAN is dead; long live the GAN! (Huang et al., 2025, 2501.05441), eq. 2 and section 2; mismatched pairs:
    Generative Adversarial Text to Image Synthesis (Reed et al., 2016, 1605.05396), algorithm 1; auxiliary classifier:
    Odena et al., 2016, 1610.09585, eq. 2; instance noise: Sonderby et al., 2016, 1610.04490, section 3.

    Example:
        >>> from latentia import MLPDiscriminator, MLPGenerator
        >>> batch, rng = {"x": torch.randn(4, 2)}, Rng(0, 0, 4, 0, 4)
        >>> sorted(gan_discriminator_loss(MLPDiscriminator(), MLPGenerator(), batch, rng))
        ['accuracy_fake', 'accuracy_real', 'fake', 'loss', 'r1', 'r2', 'real']
    """
    conditions, config = conditions_of(discriminator, batch, text_encoder), config_of(discriminator)
    if replay is not None and conditions:
        raise UsageError("replay gives back samples that were made for other labels; leave it out of conditional GANs.")
    if mismatched and not conditions:
        raise UsageError("mismatched needs a discriminator that is conditioned on labels or captions, and this is not.")
    weights = {"r1": r1, "r2": r2, "gp": gp}
    real, fake = real_and_generated(
        discriminator, generator, batch, rng, prior, text_encoder, "discriminator", replay, weights
    )
    samples = [
        augment_with_noise(x, rng, augment, instance_noise, name) for name, x in (("real", real), ("fake", fake))
    ]
    all_conditions, differs = [conditions, conditions], None
    if mismatched:
        wrong, differs = mismatched_conditions(conditions, rng, getattr(config, "num_class_embeds", None))
        samples, all_conditions = [*samples, samples[0]], [*all_conditions, wrong]
    times = timesteps_of(discriminator, augment, rng)
    outputs = discriminate(discriminator, samples, [each | times for each in all_conditions])
    real_logits, fake_logits = outputs[0].logits, outputs[1].logits
    labels: tuple[Tensor | float, ...] = (1.0, 0.0)
    if (tuple(real_label), tuple(fake_label), flip) != ((1, 1), (0, 0), 0):
        drawn = noisy_labels(rng, real_label, fake_label, flip)
        patches = [1] * (real_logits.ndim - 1)
        labels = tuple(t[:: getattr(config, "pack", 1)].to(real.dtype).view(-1, *patches) for t in drawn)
    loss = discriminator_loss(real_logits, fake_logits, objective, *labels)
    metrics = discriminator_metrics(real_logits, fake_logits, objective)
    if differs is not None:
        other = discriminator_loss(real_logits, outputs[2].logits, objective, *labels)
        loss = torch.where(differs, (loss + other) / 2, loss)
        metrics["mismatched"] = outputs[2].logits.mean()
    total = loss.mean()
    if collect is not None:
        collect(real_margins(real_logits, fake_logits, objective), rng)
    if outputs[0].class_logits is not None:
        classes = labels_of(batch, config.num_aux_classes)
        total = total + aux_weight * sum(F.cross_entropy(out.class_logits, classes) for out in outputs[:2])
        metrics["class_accuracy"] = (outputs[0].class_logits.argmax(1) == classes).float().mean()
    penalty, means = gradient_penalties(discriminator, real, fake, samples, outputs, conditions | times, rng, weights)
    return {"loss": total + penalty, **{key: value.detach() for key, value in (metrics | means).items()}}


def gan_penalty_loss(
    discriminator: Any,
    generator: Any,
    batch: Mapping[str, Any],
    rng: Rng,
    *,
    interval: int = 16,
    prior: str = "normal",
    r1: float = 1.0,
    r2: float = 1.0,
    gp: float = 0.0,
    augment: Augment | None = None,
    text_encoder: TextEncoder | None = None,
) -> dict[str, Tensor]:
    """Lazy regularisation: the gradient penalties alone, times `interval`, for a phase every `interval` steps.

    The discriminator's own phase then has `r1=0, r2=0`. Other arguments are as for `gan_discriminator_loss`.

    Analyzing and Improving the Image Quality of StyleGAN (Karras et al., 2019, 1912.04958), section 3.1.

    Example:
        >>> from latentia import MLPDiscriminator, MLPGenerator
        >>> batch, rng = {"x": torch.randn(4, 2)}, Rng(0, 0, 4, 0, 4)
        >>> values = gan_penalty_loss(MLPDiscriminator(), MLPGenerator(), batch, rng, interval=4)
        >>> bool((values["loss"] - 4 * (values["r1"] + values["r2"]) / 2).abs() < 1e-6)
        True
    """
    check_range("interval", interval, 1)
    conditions = conditions_of(discriminator, batch, text_encoder) | timesteps_of(discriminator, augment, rng)
    weights = {"r1": r1, "r2": r2, "gp": gp}
    real, fake = real_and_generated(discriminator, generator, batch, rng, prior, text_encoder, "penalty", None, weights)
    samples = [
        augment_with_noise(x, rng, augment, 0.0, f"penalty {name}") for name, x in (("real", real), ("fake", fake))
    ]
    outputs = discriminate(discriminator, samples, [conditions, conditions])
    penalty, means = gradient_penalties(discriminator, real, fake, samples, outputs, conditions, rng, weights)
    # Every parameter must be reached, or several processes would wait for its gradient.
    reached = sum(0 * v.sum() for out in outputs for v in (out.logits, out.class_logits) if v is not None)
    return {"loss": interval * penalty + reached, **{key: value.detach() for key, value in means.items()}}


def gan_generator_loss(
    discriminator: Any,
    generator: Any,
    batch: Mapping[str, Any],
    rng: Rng,
    *,
    objective: str = "relativistic",
    prior: str = "normal",
    top_k: float = 1.0,
    matching_weight: float = 0.0,
    aux_weight: float = 1.0,
    instance_noise: float = 0.0,
    augment: Augment | None = None,
    text_encoder: TextEncoder | None = None,
) -> dict[str, Tensor]:
    """The generator's loss; arguments that are not named here are as for `gan_discriminator_loss`.

    Args:
        top_k: share of the generated samples, those with the highest logits, that the generator learns from, in (0, 1].
            Default 1.
        matching_weight: weight of `feature_matching`. Default 0.
        aux_weight: weight of the auxiliary classifier's cross-entropy on generated images. Default 1.

    Returns:
        "loss"; "fake", the mean logit; "fooled", the share of generated samples that are taken for real; "matching",
        "class_accuracy".

    Raises:
        UsageError: as for `gan_discriminator_loss`; a share out of its range, feature matching with a discriminator
            that returns no features.

    Top-k Training of GANs (Sinha et al., 2020, 2002.06224), section 3.

    Example:
        >>> from latentia import MLPDiscriminator, MLPGenerator
        >>> batch, rng = {"x": torch.randn(4, 2)}, Rng(0, 0, 4, 0, 4)
        >>> sorted(gan_generator_loss(MLPDiscriminator(), MLPGenerator(), batch, rng, top_k=0.5))
        ['fake', 'fooled', 'loss']
    """
    check_range("top_k", top_k, 0, 1, closed="right")
    conditions = conditions_of(discriminator, batch, text_encoder) | timesteps_of(discriminator, augment, rng)
    fake = generate(generator, batch, rng, prior, text_encoder, "generator")
    out = discriminator(augment_with_noise(fake, rng, augment, instance_noise, "generator's fake"), **conditions)
    real_out = None
    if objective == "relativistic" or matching_weight:
        with torch.no_grad():
            real = augment_with_noise(item_of(batch, "x"), rng, augment, instance_noise, "generator's real")
            real_out = discriminator(real, **conditions)
    real_logits = None if real_out is None else real_out.logits
    values = generator_loss(out.logits, real_logits, objective)
    best = mean_over_patches(out.logits.detach()).topk(math.ceil(top_k * len(values))).indices
    loss = (values[best] if top_k < 1 else values).mean()
    metrics = {"fake": out.logits.mean()}
    if real_logits is not None or threshold_of(objective) is not None:
        compared = out.logits if real_logits is None else real_logits
        metrics["fooled"] = 1 - discriminator_metrics(compared, out.logits, objective)["accuracy_fake"]
    if real_out is not None and matching_weight:
        if out.features is None:
            raise UsageError(
                f"matching_weight={matching_weight} needs the features of the discriminator, and "
                f"{type(out).__name__} of this one has none. Leave it at 0."
            )
        metrics["matching"] = feature_matching(real_out.features, out.features)
        loss = loss + matching_weight * metrics["matching"]
    if out.class_logits is not None:
        classes = labels_of(batch, config_of(discriminator).num_aux_classes)
        loss = loss + aux_weight * F.cross_entropy(out.class_logits, classes)
        metrics["class_accuracy"] = (out.class_logits.argmax(1) == classes).float().mean()
    return {"loss": loss, **{key: value.detach() for key, value in metrics.items()}}
