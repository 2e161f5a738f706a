"""Unpaired image-to-image translation (CycleGAN): adversarial terms of both directions, cycles and identities."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from latentia.errors import check_range
from latentia.functional.adversarial import generator_loss
from latentia.losses.augmentation import ReplayPool
from latentia.losses.conditions import item_of
from latentia.losses.translation import StepImages, real_or_made
from latentia.rng import Rng


def cycle_loss(
    translator: Any,
    discriminator_a: Any,
    discriminator_b: Any,
    batch: Mapping[str, Any],
    rng: Rng,
    *,
    objective: str = "least_squares",
    adversarial_weight: float = 1.0,
    cycle_weight: float = 10.0,
    identity_weight: float = 5.0,
    made: StepImages | None = None,
) -> dict[str, Tensor]:
    r"""\(\lambda_A (L_{G} + L_{F}) + \lambda_C (\overline{|F(G(a)) - a|} + \overline{|G(F(b)) - b|}) + \lambda_I L_I\).

    G is the forward direction from domain a to b, F the backward one;
    \(L_I = \overline{|G(b) - b|} + \overline{|F(a) - a|}\).

    Args:
        translator: `CycleTranslator`, may be wrapped for several processes.
        discriminator_a, discriminator_b: of images of a domain, `PatchDiscriminator`, may be wrapped.
        batch: "condition", images of domain a (B, C, H, W), and "x", of b, (B, D, H, W), in [-1, 1].
        rng: the randomness of this micro-batch, of dropout.
        objective: one of `latentia.functional.adversarial.OBJECTIVES`. Default "least_squares", as in the paper.
        adversarial_weight: lambda_A, at least 0. Default 1.
        cycle_weight: lambda_C. Default 10.
        identity_weight: lambda_I. Default 5; 0: no identity, for domains of other channels or colours.
        made: gets the outputs of both directions, for `cycle_discriminator_loss`; `None` (default): nobody does.

    Returns:
        "loss"; "forward" and "backward", adversarial; "cycle_a", "cycle_b", "identity", mean absolute differences of
        values in [-1, 1], before their weights.

    Raises:
        UsageError: a negative weight, an unknown name.

    Zhu et al., 2017, 1703.10593, eq. 1 to 3 and section 5.2 (identity).

    Example:
        >>> from latentia import CycleTranslator, PatchDiscriminator
        >>> cycle = CycleTranslator(1, 1, block_out_channels=(4, 8), num_res_blocks=1)
        >>> patches = [PatchDiscriminator(1, (4, 8)) for _ in range(2)]
        >>> batch = {key: torch.rand(2, 1, 16, 16) * 2 - 1 for key in ("x", "condition")}
        >>> sorted(cycle_loss(cycle, *patches, batch, Rng(0, 0, 2, 0, 2)))
        ['backward', 'cycle_a', 'cycle_b', 'forward', 'identity', 'loss']
    """
    weights = {
        "adversarial_weight": adversarial_weight,
        "cycle_weight": cycle_weight,
        "identity_weight": identity_weight,
    }
    for name, value in weights.items():
        check_range(name, value, 0)
    a, b = item_of(batch, "condition"), item_of(batch, "x")
    out = translator(a, b, identity=bool(identity_weight), dropout_seeds=rng.seeds("dropout"))
    to_b, to_a = out.forward.to(b.dtype), out.backward.to(a.dtype)
    if made is not None:
        made.put(rng, to_a, to_b)
    values = {
        "forward": _adversarial(discriminator_b, to_b, b, objective),
        "backward": _adversarial(discriminator_a, to_a, a, objective),
        "cycle_a": (out.cycled_a.to(a.dtype) - a).abs().flatten(1).mean(1).mean(),
        "cycle_b": (out.cycled_b.to(b.dtype) - b).abs().flatten(1).mean(1).mean(),
    }
    loss = adversarial_weight * (values["forward"] + values["backward"])
    loss = loss + cycle_weight * (values["cycle_a"] + values["cycle_b"])
    if identity_weight:
        same = [(out.same_a, a), (out.same_b, b)]
        values["identity"] = sum(
            ((x.to(y.dtype) - y).abs().flatten(1).mean(1).mean() for x, y in same), start=torch.zeros_like(loss)
        )
        loss = loss + identity_weight * values["identity"]
    return {"loss": loss, **{key: value.detach() for key, value in values.items()}}


def _adversarial(discriminator: Any, fake: Tensor, real: Tensor, objective: str) -> Tensor:
    if objective != "relativistic":
        return generator_loss(discriminator(fake).logits.to(fake.dtype), objective=objective).mean()
    fake_logits, real_logits = discriminator(torch.cat([fake, real])).logits.to(fake.dtype).chunk(2)
    return generator_loss(fake_logits, real_logits.detach(), objective).mean()


def cycle_discriminator_loss(
    discriminator: Any,
    domain: str,
    batch: Mapping[str, Any],
    rng: Rng,
    *,
    made: StepImages,
    objective: str = "least_squares",
    replay: ReplayPool | None = None,
) -> dict[str, Tensor]:
    """The loss of the discriminator of one domain: its images are real, those translated to it are not.

    Args:
        discriminator: `PatchDiscriminator`, may be wrapped.
        domain: "a", of "condition", or "b", of "x".
        batch, rng, objective: as for `cycle_loss`.
        made: which got the outputs of this step from `cycle_loss`.
        replay: gives earlier outputs for half of these, as in the paper, section 4; `None` (default): none.

    Returns:
        As `translation_discriminator_loss`.

    Example:
        >>> from latentia import PatchDiscriminator
        >>> batch = {key: torch.rand(2, 1, 16, 16) * 2 - 1 for key in ("x", "condition")}
        >>> made, rng = StepImages(), Rng(0, 0, 2, 0, 2)
        >>> made.put(rng, torch.zeros(2, 1, 16, 16), torch.zeros(2, 1, 16, 16))
        >>> sorted(cycle_discriminator_loss(PatchDiscriminator(1, (4, 8)), "a", batch, rng, made=made))
        ['accuracy_fake', 'accuracy_real', 'fake', 'loss', 'real']
    """
    place = ("a", "b").index(domain)
    real, fake = item_of(batch, ("condition", "x")[place]), made.take(rng)[place]
    if replay is not None:
        fake = replay(fake, rng)
    return real_or_made(discriminator, torch.cat([real, fake]), objective)
