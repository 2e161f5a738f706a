"""Objectives of image-to-image translation by closed forms: terms, weights, gradients, and the pool of a cycle."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from latentia import CycleTranslator, ImageTranslator, PatchDiscriminator
from latentia.errors import UsageError
from latentia.functional.adversarial import OBJECTIVES
from latentia.losses.augmentation import ReplayPool
from latentia.losses.cycle import cycle_discriminator_loss, cycle_loss
from latentia.losses.translation import StepImages, translation_discriminator_loss, translation_loss
from latentia.models.translator import CycleOutput
from latentia.rng import Rng

B = 4
RNG = Rng(0, 0, B, 0, B)


def pairs(channels: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {key: torch.rand(B, channels, 16, 16, generator=generator) * 2 - 1 for key in ("x", "condition")}


def translator(**config) -> ImageTranslator:
    torch.manual_seed(0)
    return ImageTranslator(1, 1, block_out_channels=(4, 8), **config)


def patches(channels: int = 2) -> PatchDiscriminator:
    torch.manual_seed(1)
    return PatchDiscriminator(channels, (4, 8))


def test_l1_alone_is_the_mean_absolute_difference():
    network, batch = translator(), pairs()
    values = translation_loss(network, batch, RNG, l1_weight=7.0)
    error = (network(batch["condition"]).sample - batch["x"]).abs().mean()
    torch.testing.assert_close(values["loss"], 7 * error)
    assert values.keys() == {"loss", "l1"}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_terms_add_up_with_their_weights_in_every_objective(objective):
    weights = {"l1_weight": 3.0, "mse_weight": 6.0, "adversarial_weight": 0.5, "feature_weight": 2.0}
    weights["perceptual_weight"] = 4.0
    values = translation_loss(
        translator(), pairs(), RNG, discriminator=patches(), objective=objective,
        perceptual=lambda a, b: (a - b).square().flatten(1).mean(1), **weights,
    )  # fmt: skip
    total = sum(weight * values[name.removesuffix("_weight")] for name, weight in weights.items())
    torch.testing.assert_close(values["loss"], total)


def test_features_are_compared_layer_by_layer():
    network, critic, batch = translator(), patches(), pairs()
    values = translation_loss(network, batch, RNG, discriminator=critic, feature_weight=1.0)
    made, expected = network(batch["condition"]).sample, []
    fake, real = (torch.cat([batch["condition"], y], 1) for y in (made, batch["x"]))
    for layer in critic.layers:
        fake, real = layer(fake), layer(real)
        if isinstance(layer, nn.LeakyReLU):
            expected.append((fake - real).abs().mean())
    assert len(expected) == 2
    torch.testing.assert_close(values["feature"], torch.stack(expected).mean())


def test_a_blind_discriminator_has_the_loss_of_chance():
    class Zero(nn.Module):
        def forward(self, x):
            return SimpleNamespace(logits=torch.zeros(len(x), 1, 2, 2))

    made = StepImages()
    values = translation_loss(translator(), pairs(), RNG, discriminator=Zero(), l1_weight=0.0, made=made)
    torch.testing.assert_close(values["loss"], torch.tensor(math.log(2)))
    found = translation_discriminator_loss(Zero(), pairs(), RNG, made=made)
    torch.testing.assert_close(found["loss"], torch.tensor(math.log(2)))  # half of 2 log 2


def test_the_discriminator_sees_the_outputs_of_its_step():
    network, critic, made = translator(dropout=0.5), patches(), StepImages()
    translation_loss(network, pairs(), RNG, discriminator=critic, made=made)
    (output,) = made.take(RNG)
    assert not output.requires_grad and output.shape == (B, 1, 16, 16)
    translation_discriminator_loss(critic, pairs(), RNG, made=made)["loss"].backward()
    assert all(weight.grad is None for weight in network.parameters())
    assert all(weight.grad is not None for weight in critic.parameters())


def test_parts_of_a_step_have_the_dropout_of_the_whole():
    network, batch = translator(dropout=0.5), pairs()
    whole, parts = StepImages(), StepImages()
    translation_loss(network, batch, RNG, made=whole)
    for start in (0, 2):
        part = {key: value[start : start + 2] for key, value in batch.items()}
        rng = Rng(0, 0, B, start, 2)
        translation_loss(network, part, rng, made=parts)
        torch.testing.assert_close(parts.take(rng)[0], whole.take(RNG)[0][start : start + 2])


class Mirror(nn.Module):
    """A cycle whose two directions are x -> -x, so that the way there and back is the image itself."""

    def forward(self, a, b, identity=False, dropout_seeds=None):
        return CycleOutput(-a, -b, a, b, -a if identity else None, -b if identity else None)


def test_a_perfect_cycle_costs_only_its_identity():
    batch, critic = pairs(), patches(1)
    values = cycle_loss(Mirror(), critic, critic, batch, RNG, adversarial_weight=0.0, identity_weight=1.0)
    assert values["cycle_a"] == values["cycle_b"] == 0
    changed = sum(2 * batch[key].abs().mean() for key in ("x", "condition"))
    torch.testing.assert_close(values["identity"], changed)
    torch.testing.assert_close(values["loss"], changed)
    plain = cycle_loss(Mirror(), critic, critic, batch, RNG, identity_weight=0.0)
    assert "identity" not in plain
    for key, sign in (("forward", "condition"), ("backward", "x")):
        torch.testing.assert_close(plain[key], (critic(-batch[sign]).logits - 1).square().mean().detach())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_cycle_trains_both_directions_in_every_objective(objective):
    torch.manual_seed(0)
    network = CycleTranslator(1, 1, block_out_channels=(4, 8), num_res_blocks=1)
    cycle_loss(network, patches(1), patches(1), pairs(), RNG, objective=objective)["loss"].backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in network.parameters())


def test_the_pool_gives_earlier_outputs_to_its_own_discriminator():
    batch, critic, made, pool = pairs(), patches(1), StepImages(), ReplayPool(B, (1, 16, 16))
    old = -torch.ones(B, 1, 16, 16)
    for step, images in ((0, old), (1, -old)):
        rng = Rng(0, step * B, B, 0, B)
        made.put(rng, images, torch.zeros_like(images))
        cycle_discriminator_loss(critic, "a", batch, rng, made=made, replay=pool)
        seen = pool(made.take(rng)[0], rng)
        pool.update({}, rng)
    assert {*seen.unique().tolist()} == {-1.0, 1.0}


def test_weights_without_sense_are_refused():
    for words, options in (
        ("l1_weight must be at least 0; got -1", {"l1_weight": -1}),
        ("feature_weight must be 0 without a discriminator; got 1", {"feature_weight": 1}),
        ("objective must be", {"objective": "ns", "discriminator": patches()}),
    ):
        with pytest.raises(UsageError, match=words):
            translation_loss(translator(), pairs(), RNG, **options)
    with pytest.raises(UsageError, match="cycle_weight must be at least 0"):
        cycle_loss(Mirror(), patches(1), patches(1), pairs(), RNG, cycle_weight=-1.0)
