"""Image-to-image translation of pairs (pix2pix): L1, adversarial, feature matching and perceptual terms."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from latentia.errors import UsageError, check_range
from latentia.functional.adversarial import discriminator_loss, discriminator_metrics, generator_loss
from latentia.losses.conditions import item_of
from latentia.rng import Rng

Perceptual = Callable[[Tensor, Tensor], Tensor]


class StepImages:
    """The images that a generator's phase made, for the discriminator's phase of the same step, which follows.

    So each image is made once in a step. Nothing is kept from step to step.

    Example:
        >>> made, rng = StepImages(), Rng(0, 0, 2, 0, 2)
        >>> made.put(rng, torch.zeros(2, 1))
        >>> [x.shape for x in made.take(rng)]
        [torch.Size([2, 1])]
    """

    def __init__(self) -> None:
        self._parts: dict[int, tuple[Tensor, ...]] = {}  # first image of the micro-batch -> its images

    def put(self, rng: Rng, *images: Tensor) -> None:
        """Keep the images of this micro-batch, without their graph."""
        self._parts[rng.start] = tuple(x.detach() for x in images)

    def take(self, rng: Rng) -> tuple[Tensor, ...]:
        """Those of this micro-batch."""
        return self._parts[rng.start]


def translation_loss(
    translator: Any,
    batch: Mapping[str, Any],
    rng: Rng,
    *,
    discriminator: Any = None,
    objective: str = "non_saturating",
    l1_weight: float = 100.0,
    mse_weight: float = 0.0,
    adversarial_weight: float = 1.0,
    feature_weight: float = 0.0,
    perceptual: Perceptual | None = None,
    perceptual_weight: float = 1.0,
    made: StepImages | None = None,
) -> dict[str, Tensor]:
    r"""L1, squared, adversarial, feature and perceptual terms of pairs of an input x and a target y.

    \(\lambda_1 \overline{|y - G(x)|} + \lambda_2 \overline{(y - G(x))^2} + \lambda_A L_G + \lambda_F L_F +
    \lambda_P\, d(y, G(x))\).

    Args:
        translator: `ImageTranslator`, may be wrapped for several processes.
        batch: "condition", inputs (B, C, H, W), and "x", targets (B, D, H, W), in [-1, 1].
        rng: the randomness of this micro-batch, of dropout.
        discriminator: of pairs, input and target as channels of one image: `PatchDiscriminator` of C + D channels, may
            be wrapped; `None` (default): no adversarial term and no features.
        objective: one of `latentia.functional.adversarial.OBJECTIVES`. Default "non_saturating", as in pix2pix.
        l1_weight: lambda_1, at least 0. Default 100.
        mse_weight: lambda_2, at least 0. Default 0.
        adversarial_weight: lambda_A. Default 1.
        feature_weight: lambda_F, of the mean absolute difference of the discriminator's activations. Default 0.
        perceptual: (targets, outputs) -> (B,), a distance with derivatives, such as
            `latentia.evaluation.perceptual_loss` with its `model`; `None` (default): none.
        perceptual_weight: lambda_P. Default 1.
        made: gets the outputs, for `translation_discriminator_loss`; `None` (default): nobody does.

    Returns:
        "loss"; "l1", mean absolute difference of values in [-1, 1]; "mse", "adversarial", "feature", "perceptual",
        before their weights, where they are part of it.

    Raises:
        UsageError: a negative weight, an unknown name, a weight of features without a discriminator.

    pix2pix (Isola et al., 2016, 1611.07004), eq. 4; feature matching: pix2pixHD (Wang et al., 2017, 1711.11585), eq. 4.

    Example:
        >>> from latentia import ImageTranslator, PatchDiscriminator
        >>> translator, patches = ImageTranslator(1, 1, block_out_channels=(4, 8)), PatchDiscriminator(2, (4, 8))
        >>> batch = {key: torch.rand(2, 1, 16, 16) * 2 - 1 for key in ("x", "condition")}
        >>> sorted(translation_loss(translator, batch, Rng(0, 0, 2, 0, 2), discriminator=patches, feature_weight=1.0))
        ['adversarial', 'feature', 'l1', 'loss']
    """
    weights = {
        "l1_weight": l1_weight,
        "mse_weight": mse_weight,
        "adversarial_weight": adversarial_weight,
        "feature_weight": feature_weight,
        "perceptual_weight": perceptual_weight,
    }
    for name, value in weights.items():
        check_range(name, value, 0)
    if feature_weight and discriminator is None:
        raise UsageError(f"feature_weight must be 0 without a discriminator; got {feature_weight}.")
    x, y = item_of(batch, "condition"), item_of(batch, "x")
    output = translator(x, rng.seeds("dropout")).sample.to(y.dtype)
    if made is not None:
        made.put(rng, output)
    l1 = (output - y).abs().flatten(1).mean(1).mean()
    loss, values = l1_weight * l1, {"l1": l1}
    if mse_weight:
        values["mse"] = (output - y).square().flatten(1).mean(1).mean()
        loss = loss + mse_weight * values["mse"]
    if discriminator is not None:
        fake_logits, real_logits, feature = _seen(discriminator, x, y, output, objective, bool(feature_weight))
        values["adversarial"] = generator_loss(fake_logits, real_logits, objective).mean()
        loss = loss + adversarial_weight * values["adversarial"]
        if feature is not None:
            values["feature"] = feature.mean()
            loss = loss + feature_weight * values["feature"]
    if perceptual is not None:
        values["perceptual"] = perceptual(y, output).mean()
        loss = loss + perceptual_weight * values["perceptual"]
    return {"loss": loss, **{key: value.detach() for key, value in values.items()}}


def _seen(
    discriminator: Any, x: Tensor, y: Tensor, output: Tensor, objective: str, features: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Logits of output and of target, and the sums of absolute differences of their features, as far as needed."""
    fake = torch.cat([x, output], 1)
    if objective != "relativistic" and not features:
        return discriminator(fake).logits.to(y.dtype), None, None
    both = discriminator(torch.cat([fake, torch.cat([x, y], 1)]), with_features=features)
    fake_logits, real_logits = both.logits.to(y.dtype).chunk(2)
    if not features:
        return fake_logits, real_logits.detach(), None
    of_fake, of_real = both.features.to(y.dtype).chunk(2)
    return fake_logits, real_logits.detach(), (of_fake - of_real.detach()).abs().sum(1)


def translation_discriminator_loss(
    discriminator: Any,
    batch: Mapping[str, Any],
    rng: Rng,
    *,
    made: StepImages,
    objective: str = "non_saturating",
) -> dict[str, Tensor]:
    """The discriminator's loss: pairs of input and target are real, those of input and output are not.

    Args:
        discriminator, batch, rng, objective: as for `translation_loss`.
        made: which got the outputs of this step from `translation_loss`.

    Returns:
        "loss", half of the objective's, so that the discriminator learns half as fast, as in pix2pix, section 3.3;
        "real" and "fake", mean logits; "accuracy_real" and "accuracy_fake", shares of patches.

    Example:
        >>> from latentia import PatchDiscriminator
        >>> batch = {key: torch.rand(2, 1, 16, 16) * 2 - 1 for key in ("x", "condition")}
        >>> made, rng = StepImages(), Rng(0, 0, 2, 0, 2)
        >>> made.put(rng, torch.zeros(2, 1, 16, 16))
        >>> sorted(translation_discriminator_loss(PatchDiscriminator(2, (4, 8)), batch, rng, made=made))
        ['accuracy_fake', 'accuracy_real', 'fake', 'loss', 'real']
    """
    x, y = item_of(batch, "condition"), item_of(batch, "x")
    (output,) = made.take(rng)
    pairs = torch.cat([torch.cat([x, y], 1), torch.cat([x, output], 1)])
    return real_or_made(discriminator, pairs, objective)


def real_or_made(discriminator: Any, images: Tensor, objective: str) -> dict[str, Tensor]:
    """Half the discriminator's loss of images whose first half is real and whose second is not, and its metrics.

    Example:
        >>> from latentia import PatchDiscriminator
        >>> real_or_made(PatchDiscriminator(1, (4, 8)), torch.zeros(4, 1, 16, 16), "least_squares")["loss"].shape
        torch.Size([])
    """
    # One pass for both: images of a batch do not depend on each other here, and two would need two synchronisations.
    real, fake = discriminator(images).logits.to(images.dtype).chunk(2)
    loss = discriminator_loss(real, fake, objective).mean() / 2
    return {"loss": loss, **discriminator_metrics(real, fake, objective)}
