"""The games of two players: what a discriminator and a generator minimise, of logits and of a batch."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latentia.errors import UsageError, did_you_mean
from latentia.losses.diffusion import unet_config
from latentia.losses.turns import (
    conditions_of,
    fakes,
    judge,
    labels_of,
    margins,
    others,
    penalties,
    players_ready,
    shown,
    verdict,
)
from latentia.rng import Rng

WITH_LABELS = ("minimax", "non_saturating", "least_squares")
Range = tuple[float, float]


def _relativistic(real: Tensor, fake: Tensor) -> Tensor:
    return F.softplus(fake - real)


def _binary(r, f, t, s):  # cross-entropy against the labels t and s; softplus(-r) + softplus(f) for 1 and 0
    return F.softplus(-r) + (1 - t) * r + F.softplus(f) - s * f


# name -> what the discriminator minimises of (real, fake, their labels), and the generator of (fake, real), of logits.
_GAMES: dict[str, tuple[Callable[..., Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "minimax": (_binary, lambda f, r: -F.softplus(f)),
    "non_saturating": (_binary, lambda f, r: F.softplus(-f)),
    "least_squares": (lambda r, f, t, s: (r - t).square() + (f - s).square(), lambda f, r: (f - 1).square()),
    "hinge": (lambda r, f, t, s: F.relu(1 - r) + F.relu(1 + f), lambda f, r: -f),
    "wasserstein": (lambda r, f, t, s: f - r, lambda f, r: -f),
    "relativistic": (lambda r, f, t, s: _relativistic(r, f), lambda f, r: _relativistic(f, r)),
}
OBJECTIVES = tuple(_GAMES)


def discriminator_loss(
    real: Tensor,
    fake: Tensor,
    objective: str = "non_saturating",
    real_label: Tensor | float = 1.0,
    fake_label: Tensor | float = 0.0,
) -> Tensor:
    r"""What the discriminator minimises, for each pair of a real and a fake image.

    Args:
        real, fake: its logits, (B,) or (B, ...) if it judges patches, whose losses are averaged.
        objective: one of `OBJECTIVES`.
        real_label, fake_label: what it should say of them, 1 and 0 by default; see `noisy_labels`.

    Returns:
        (B,), nats for the three games of probabilities.

    Raises:
        UsageError: an unknown objective, or labels for one that has none.

    Generative Adversarial Networks (Goodfellow et al., 2014, 1406.2661), eq. 1; Least Squares GAN (Mao et al., 2016,
    1611.04076), eq. 9; Geometric GAN (Lim and Ye, 2017, 1705.02894), hinge; Wasserstein GAN (Arjovsky et al., 2017,
    1701.07875), eq. 2; The GAN is dead (Huang et al., 2025, 2501.05441), relativistic pairing.

    Example:
        >>> discriminator_loss(torch.zeros(2), torch.zeros(2)) / math.log(2)  # it cannot tell them
        tensor([2., 2.])
    """
    game = _game(objective)[0]
    plain = all(not isinstance(v, Tensor) and v == usual for v, usual in ((real_label, 1), (fake_label, 0)))
    if not plain and objective not in WITH_LABELS:
        raise UsageError(
            f'objective="{objective}" has no labels that could be smoothed or flipped; those of {WITH_LABELS} have.'
        )
    return _per_image(game(real, fake, real_label, fake_label))


def generator_loss(fake: Tensor, real: Tensor | None = None, objective: str = "non_saturating") -> Tensor:
    """What the generator minimises, for each fake image; arguments as for `discriminator_loss`.

    `real` is needed by "relativistic" alone.

    Example:
        >>> generator_loss(torch.tensor([0.5]), objective="hinge")
        tensor([-0.5000])
    """
    if objective == "relativistic" and real is None:
        raise UsageError('objective="relativistic" compares fake with real images; give the logits of `real` too.')
    return _per_image(_game(objective)[1](fake, real))


def noisy_labels(
    rng: Rng, real: Range = (0.9, 0.9), fake: Range = (0.0, 0.0), flip: float = 0.0
) -> tuple[Tensor, Tensor]:
    """What the discriminator is told of each real and each fake image, instead of 1 and 0.

    Args:
        rng: the randomness of this micro-batch.
        real, fake: ranges that labels are drawn from. Default 0.9 and 0: smoothed on the real side alone, as a fake
            label above 0 would draw the generator to where it is already. Others were (0.7, 1.2) and (0, 0.3).
        flip: probability that a pair's two labels change places. Default 0.

    Returns:
        Labels of the real and of the fake images, (B,) each.

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
    if not 0 <= flip <= 1:
        raise UsageError(f"flip must be a probability in [0, 1]; got {flip}.")
    t, s = (a + (b - a) * rng.uniform(f"{name} label") for name, (a, b) in (("real", real), ("fake", fake)))
    flipped = rng.uniform("flipped labels") < flip
    return torch.where(flipped, s, t), torch.where(flipped, t, s)


def feature_matching(real: Tensor, fake: Tensor) -> Tensor:
    r"""\(\lVert E f(x) - E f(G(z)) \rVert^2\) of features (B, F), with the means of this micro-batch.

    Salimans et al., 2016, 1606.03498, section 3.1.

    Example:
        >>> feature_matching(torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [5.0]]))
        tensor(9.)
    """
    return (real.mean(0) - fake.mean(0)).square().sum()


def annealed(position: int, images: int, start: float, end: float = 0.0) -> float:
    """From `start` at image 0 linearly to `end` at image `images`, and there it stays; of `rng.position`.

    Example:
        >>> [annealed(position, 1000, 0.1) for position in (0, 500, 2000)]
        [0.1, 0.05, 0.0]
    """
    return start + (end - start) * min(position / max(images, 1), 1.0)


def gan_discriminator_loss(
    discriminator,
    generator,
    batch: dict[str, Any],
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
    augment: Callable[[Tensor, Rng, str], Tensor] | None = None,
    collect: Callable[[Tensor, Rng], None] | None = None,
    replay: Callable[[Tensor, Rng], Tensor] | None = None,
    text_encoder: Callable[[Sequence[str]], Tensor] | None = None,
) -> dict[str, Tensor]:
    r"""The discriminator's turn: \(L_D + \frac{r_1}{2} R_1 + \frac{r_2}{2} R_2 + g\, \mathrm{GP}\).

    The default, the relativistic game with both zero-centred penalties, is the one that has been shown to converge and
    to leave no mode out.

    Real and generated pictures are judged in one pass, unless the discriminator has batch norm: then in one pass each,
    so that its statistics are never of a mixture, from which it could tell them.

    Args:
        discriminator, generator: called through `forward` alone; may be wrapped for several processes.
        batch: "x", images (B, C, H, W) in [-1, 1] or vectors (B, D); "labels" (B,) and "captions" where a network is
            conditional.
        rng: the randomness of this micro-batch.
        objective: one of `OBJECTIVES`. Default "relativistic".
        prior: of the noise, "normal" (default) or "uniform", on [-1, 1].
        r1, r2: weights of the penalties at real and at generated pictures. Default 1.
        gp: weight of the penalty of WGAN-GP, in its paper 10. Default 0.
        real_label, fake_label, flip: as in `noisy_labels`; default labels are 1 and 0.
        mismatched: whether a real picture with another one's label or caption counts as fake too, with half the weight
            of the fakes each: (c, real) +, (c, fake) -, (c', real) -. Default False.
        aux_weight: weight of the auxiliary classifier's cross-entropy, if there is one. Default 1.
        instance_noise: sigma of the noise added to whatever is judged; see `annealed`. Default 0.
        augment: (images, rng, stream) -> images, shown to the discriminator in their place; its gradient passes.
        collect: is shown how far logits of real pictures are above the game's threshold or, where only differences
            count, above those of fakes: `AdaptiveAugmentation.collect`.
        replay: `ReplayPool`, which gives old fakes back for some of the new.
        text_encoder: captions -> (B, text_embed_dim), for networks that are told captions.

    Returns:
        "loss"; "real" and "fake", mean logits; "accuracy_real" and "accuracy_fake", against the game's own threshold,
        or, where only differences count, the middle of the two means; "r1", "r2", "gp", mean penalties of those
        that are asked for; "mismatched", mean logit; "class_accuracy" of real pictures.

    Raises:
        UsageError: unknown names, penalties of a discriminator with batch norm, labels or captions that are missing,
            a replay of conditional fakes.

    The GAN is dead; long live the GAN! (Huang et al., 2025, 2501.05441), eq. 2 and section 2; mismatched pairs:
    Generative Adversarial Text to Image Synthesis (Reed et al., 2016, 1605.05396), algorithm 1; auxiliary classifier:
    Odena et al., 2016, 1610.09585, eq. 2; instance noise: Sonderby et al., 2016, 1610.04490, section 3.

    Example:
        >>> from latentia import MLPDiscriminator, MLPGenerator
        >>> batch, rng = {"x": torch.randn(4, 2)}, Rng(0, 0, 4, 0, 4)
        >>> sorted(gan_discriminator_loss(MLPDiscriminator(), MLPGenerator(), batch, rng))
        ['accuracy_fake', 'accuracy_real', 'fake', 'loss', 'r1', 'r2', 'real']
    """
    told, config = conditions_of(discriminator, batch, text_encoder), unet_config(discriminator)
    if replay is not None and told:
        raise UsageError("replay gives back fakes that were made for other labels; leave it out of a conditional game.")
    if mismatched and not told:
        raise UsageError("mismatched needs a discriminator that is told labels or captions, and this one is not.")
    weights = {"r1": r1, "r2": r2, "gp": gp}
    real, fake = players_ready(
        discriminator, generator, batch, rng, prior, text_encoder, "discriminator", replay, **weights
    )
    samples = [shown(real, rng, augment, instance_noise, "real"), shown(fake, rng, augment, instance_noise, "fake")]
    conditions, different = [told, told], None
    if mismatched:
        wrong, different = others(told, batch, rng, getattr(config, "num_class_embeds", None))
        samples, conditions = [*samples, samples[0]], [told, told, wrong]
    judged = judge(discriminator, samples, conditions)
    real_out, fake_out = judged[:2]
    labels: tuple[Tensor | float, Tensor | float] = (1.0, 0.0)
    if (tuple(real_label), tuple(fake_label), flip) != ((1, 1), (0, 0), 0):
        drawn = noisy_labels(rng, real_label, fake_label, flip)
        several = [1] * (real_out.logits.ndim - 1)  # patches
        labels = tuple(t[:: getattr(config, "pack", 1)].to(real.dtype).view(-1, *several) for t in drawn)
    loss = discriminator_loss(real_out.logits, fake_out.logits, objective, *labels)
    values = verdict(objective, real_out.logits, fake_out.logits)
    if different is not None:
        other = discriminator_loss(real_out.logits, judged[2].logits, objective, *labels)
        loss = torch.where(different, (loss + other) / 2, loss)
        values["mismatched"] = judged[2].logits.mean()
    total = loss.mean()
    if collect is not None:
        collect(margins(objective, real_out.logits, fake_out.logits), rng)
    if real_out.class_logits is not None:
        classes = labels_of(batch, config.num_aux_classes)
        total = total + aux_weight * sum(F.cross_entropy(out.class_logits, classes) for out in judged[:2])
        values["class_accuracy"] = (real_out.class_logits.argmax(1) == classes).float().mean()
    penalty, sizes = penalties(discriminator, real, fake, judged, told, rng, **weights)
    return {"loss": total + penalty, **{key: value.detach() for key, value in (values | sizes).items()}}


def gan_penalty_loss(
    discriminator,
    generator,
    batch: dict[str, Any],
    rng: Rng,
    *,
    interval: int = 16,
    prior: str = "normal",
    r1: float = 1.0,
    r2: float = 1.0,
    gp: float = 0.0,
    augment: Callable[[Tensor, Rng, str], Tensor] | None = None,
    text_encoder: Callable[[Sequence[str]], Tensor] | None = None,
) -> dict[str, Tensor]:
    """The penalties alone, times `interval`: a lazy regulariser, for a phase that runs every `interval` steps.

    The discriminator's own phase then has `r1=0, r2=0`. Other arguments are as for `gan_discriminator_loss`.

    Analyzing and Improving the Image Quality of StyleGAN (Karras et al., 2019, 1912.04958), section 3.1.

    Example:
        >>> from latentia import MLPDiscriminator, MLPGenerator
        >>> batch, rng = {"x": torch.randn(4, 2)}, Rng(0, 0, 4, 0, 4)
        >>> values = gan_penalty_loss(MLPDiscriminator(), MLPGenerator(), batch, rng, interval=4)
        >>> bool((values["loss"] - 4 * (values["r1"] + values["r2"]) / 2).abs() < 1e-6)
        True
    """
    if interval < 1:
        raise UsageError(f"interval must be at least 1; got {interval}.")
    told, weights = conditions_of(discriminator, batch, text_encoder), {"r1": r1, "r2": r2, "gp": gp}
    real, fake = players_ready(discriminator, generator, batch, rng, prior, text_encoder, "penalty", None, **weights)
    samples = [shown(x, rng, augment, 0.0, f"penalty {name}") for name, x in (("real", real), ("fake", fake))]
    judged = judge(discriminator, samples, [told, told])
    penalty, sizes = penalties(discriminator, real, fake, judged, told, rng, **weights)
    # Every parameter must be reached, or several processes would wait for its gradient.
    reached = sum(0 * v.sum() for out in judged for v in (out.logits, out.class_logits) if v is not None)
    return {"loss": interval * penalty + reached, **{key: value.detach() for key, value in sizes.items()}}


def gan_generator_loss(
    discriminator,
    generator,
    batch: dict[str, Any],
    rng: Rng,
    *,
    objective: str = "relativistic",
    prior: str = "normal",
    top_k: float = 1.0,
    matching_weight: float = 0.0,
    aux_weight: float = 1.0,
    instance_noise: float = 0.0,
    augment: Callable[[Tensor, Rng, str], Tensor] | None = None,
    text_encoder: Callable[[Sequence[str]], Tensor] | None = None,
) -> dict[str, Tensor]:
    """The generator's turn; arguments that are not named here are as for `gan_discriminator_loss`.

    Args:
        top_k: share of the fakes, those with the highest logits, that the generator learns from, in (0, 1]. Default 1.
        matching_weight: weight of `feature_matching`. Default 0.
        aux_weight: weight of the auxiliary classifier's cross-entropy on fakes. Default 1.

    Returns:
        "loss"; "fake", the mean logit; "fooled", the share of fakes judged real; "matching", "class_accuracy".

    Top-k Training of GANs (Sinha et al., 2020, 2002.06224), section 3.

    Example:
        >>> from latentia import MLPDiscriminator, MLPGenerator
        >>> batch, rng = {"x": torch.randn(4, 2)}, Rng(0, 0, 4, 0, 4)
        >>> sorted(gan_generator_loss(MLPDiscriminator(), MLPGenerator(), batch, rng, top_k=0.5))
        ['fake', 'fooled', 'loss']
    """
    if not 0 < top_k <= 1:
        raise UsageError(f"top_k must be a share in (0, 1]; got {top_k}.")
    told, real = conditions_of(discriminator, batch, text_encoder), batch["x"]
    fake = fakes(generator, batch, rng, prior, text_encoder, "generator")
    out = discriminator(shown(fake, rng, augment, instance_noise, "generator's fake"), **told)
    against = None
    if objective == "relativistic" or matching_weight:
        with torch.no_grad():
            against = discriminator(shown(real, rng, augment, instance_noise, "generator's real"), **told)
    compared = None if against is None else against.logits
    values = generator_loss(out.logits, compared, objective)
    best = _per_image(out.logits.detach()).topk(math.ceil(top_k * len(values))).indices
    loss = (values[best] if top_k < 1 else values).mean()
    logged = {"fake": out.logits.mean()}
    if compared is not None or objective != "wasserstein":
        logged["fooled"] = (
            1 - verdict(objective, out.logits if compared is None else compared, out.logits)["accuracy_fake"]
        )
    if against is not None and matching_weight:
        logged["matching"] = feature_matching(against.features, out.features)
        loss = loss + matching_weight * logged["matching"]
    if out.class_logits is not None:
        classes = labels_of(batch, unet_config(discriminator).num_aux_classes)
        loss = loss + aux_weight * F.cross_entropy(out.class_logits, classes)
        logged["class_accuracy"] = (out.class_logits.argmax(1) == classes).float().mean()
    return {"loss": loss, **{key: value.detach() for key, value in logged.items()}}


def _game(objective: str):
    if objective not in _GAMES:
        raise UsageError(f"objective must be one of {OBJECTIVES}; got {objective!r}.{did_you_mean(objective, _GAMES)}")
    return _GAMES[objective]


def _per_image(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1) if values.ndim > 1 else values
