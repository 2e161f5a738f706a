"""The games of two players: closed forms, penalties, conditions, and that processes make no difference."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from children import ended, enter, ranks
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel

from latentia import DCGANDiscriminator, DCGANGenerator, HashedWords, MLPDiscriminator, MLPGenerator
from latentia.errors import UsageError
from latentia.functional.adversarial import OBJECTIVES, discriminator_loss, feature_matching, generator_loss
from latentia.functional.gradient_penalty import one_centred_penalty, zero_centred_penalty
from latentia.functional.schedules import linear_decay
from latentia.losses.adversarial import gan_discriminator_loss, gan_generator_loss, gan_penalty_loss, noisy_labels
from latentia.losses.augmentation import AdaptiveAugmentation, ReplayPool, random_augment
from latentia.losses.discrimination import discriminate, interpolate_randomly
from latentia.losses.weight_clipping import clip_weights
from latentia.rng import Rng

LN2 = math.log(2)


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def generator(**config) -> DCGANGenerator:
    base = {"sample_size": 8, "latent_dim": 4, "block_out_channels": (4, 6)}
    return DCGANGenerator(**base | config).double()


def discriminator(**config) -> DCGANDiscriminator:
    base = {"sample_size": 8, "block_out_channels": (4, 6), "norm": "instance"}
    d = DCGANDiscriminator(**base | config).double()
    with torch.no_grad():
        d.head.to_logit.weight.mul_(50)  # else all logits are nearly 0
    return d


def batch_of(n: int = 8, **more) -> dict:
    generator = torch.Generator().manual_seed(3)
    return {"x": torch.rand(n, 1, 8, 8, generator=generator, dtype=torch.float64) * 2 - 1, **more}


def draws(n: int = 8, position: int = 0, first: int = 0, count: int | None = None) -> Rng:
    return Rng(0, position, n, first, n if count is None else count)


# ------------------------------------------------------------ the games


def test_the_toy_of_understanding_deep_learning():
    """Chapter 15: x = 7.5 + noise, G(z) = z + 3, D(x) = sigmoid(-2 + x), ten of each."""
    real = 7.5 + torch.from_numpy(np.random.RandomState(0).normal(size=10)) - 2
    fake = torch.from_numpy(np.random.RandomState(1).normal(size=10)) + 3 - 2
    both = discriminator_loss(real, fake, "non_saturating")
    assert both.sum().item() == pytest.approx(13.814757170851447, abs=1e-12)
    assert torch.equal(both, discriminator_loss(real, fake, "minimax"))
    assert -generator_loss(fake, objective="minimax").sum().item() == pytest.approx(13.78437035945412, abs=1e-12)
    assert generator_loss(fake, objective="non_saturating").sum().item() == pytest.approx(4.755779267515122, abs=1e-12)


def test_at_equilibrium_the_value_is_minus_log_four():
    zero = t(0.0)
    assert -discriminator_loss(zero, zero, "minimax").item() == pytest.approx(-math.log(4))
    assert F.softplus(-zero).item() == pytest.approx(0.6931, abs=1e-4)
    assert generator_loss(zero, objective="minimax").item() == pytest.approx(-LN2)
    assert generator_loss(zero, zero, "relativistic").item() == pytest.approx(LN2)
    assert discriminator_loss(t(0.5), t(0.5), "least_squares").item() == 0.25 + 0.25


def test_the_best_discriminator_is_the_share_of_the_data():
    p, q = t(5, 3, 2, 1) / 11, t(1, 2, 3, 5) / 11
    logits = (p / q).log().requires_grad_()  # sigmoid of it: p / (p + q)

    def value(logits, objective):  # E_p and E_q of the two parts of the loss
        far = logits.detach()
        real = discriminator_loss(logits, far, objective) - discriminator_loss(far, far, objective)
        fake = discriminator_loss(far, logits, objective) - discriminator_loss(far, far, objective)
        return (p * real + q * fake).sum()

    assert torch.autograd.grad(value(logits, "minimax"), logits)[0].abs().max() < 1e-12
    shares = (p / (p + q)).requires_grad_()
    assert torch.autograd.grad(value(shares, "least_squares"), shares)[0].abs().max() < 1e-12
    # There the game is worth 2 JS(p, q) - log 4.
    mix = (p + q) / 2
    js = ((p * (p / mix).log()).sum() + (q * (q / mix).log()).sum()) / 2
    worth = -(p * F.softplus(-logits)).sum() - (q * F.softplus(logits)).sum()
    assert worth.item() == pytest.approx((2 * js - math.log(4)).item())


def test_a_trained_discriminator_is_the_share_of_the_data():
    torch.manual_seed(0)
    d = MLPDiscriminator(in_dim=1, hidden_sizes=(16,))
    optimizer = torch.optim.Adam(d.parameters(), lr=1e-2)
    for _ in range(400):
        real, fake = torch.randn(512, 1), torch.randn(512, 1) + 1.5
        optimizer.zero_grad()
        discriminator_loss(d(real).logits, d(fake).logits).mean().backward()
        optimizer.step()
    x = torch.linspace(-2, 3.5, 100)[:, None]
    true = torch.sigmoid(1.5**2 / 2 - 1.5 * x[:, 0])
    assert (d(x).logits.sigmoid() - true).abs().max() < 0.05


def test_only_the_non_saturating_loss_moves_away_from_bad_fakes():
    for logit in (-12.0, -3.0, 0.0, 2.0):
        f = t(logit).requires_grad_()
        gradients = [
            torch.autograd.grad(generator_loss(f, objective=o).sum(), f)[0] for o in ("non_saturating", "minimax")
        ]
        assert (gradients[0] / gradients[1]).item() == pytest.approx(math.exp(-logit))  # (1 - D) / D
        step = 1e-5
        for value, objective in zip(gradients, ("non_saturating", "minimax")):
            ends = [generator_loss(t(logit + s), objective=objective) for s in (step, -step)]
            assert value.item() == pytest.approx(((ends[0] - ends[1]) / (2 * step)).item(), abs=1e-8)


@pytest.mark.parametrize(
    ("objective", "d", "g"),
    [
        ("minimax", math.log1p(math.exp(-1.5)) + math.log1p(math.exp(-0.5)), -math.log1p(math.exp(-0.5))),
        ("non_saturating", math.log1p(math.exp(-1.5)) + math.log1p(math.exp(-0.5)), math.log1p(math.exp(0.5))),
        ("least_squares", 0.25 + 0.25, 2.25),
        ("hinge", 0.0 + 0.5, 0.5),
        ("wasserstein", -2.0, 0.5),
        ("relativistic", math.log1p(math.exp(-2)), math.log1p(math.exp(2))),
    ],
)
def test_each_game_has_its_closed_form(objective, d, g):
    real, fake = t(1.5), t(-0.5)
    assert discriminator_loss(real, fake, objective).item() == pytest.approx(d)
    assert generator_loss(fake, real, objective).item() == pytest.approx(g)
    patches = discriminator_loss(real.expand(3, 2, 2), fake.expand(3, 2, 2), objective)
    assert patches.shape == (3,) and patches[0].item() == pytest.approx(d)


def test_labels_are_smoothed_on_the_real_side_alone_and_flipped():
    n = 4000
    real, fake = noisy_labels(draws(n))
    assert ((real - 0.9).abs() < 1e-6).all() and not fake.any()
    real, fake = noisy_labels(draws(n), (0.7, 1.2), (0.0, 0.3), flip=0.1)
    flipped = real < 0.5
    assert flipped.float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert 0.7 <= real[~flipped].min() < 0.71 and 1.19 < real[~flipped].max() <= 1.2 and real[flipped].max() <= 0.3
    assert (fake[flipped] >= 0.7).all() and (fake[~flipped] <= 0.3).all()
    # Hand values: -0.9 log s(r) - 0.1 log(1 - s(r)) - log(1 - s(f)).
    r, f, s = t(1.5), t(-0.5), lambda v: 1 / (1 + math.exp(-v))
    for objective in ("minimax", "non_saturating"):
        hand = -0.9 * math.log(s(1.5)) - 0.1 * math.log(1 - s(1.5)) - math.log(1 - s(-0.5))
        assert discriminator_loss(r, f, objective, 0.9).item() == pytest.approx(hand)
        hand = -0.9 * math.log(s(1.5)) - 0.1 * math.log(s(-1.5)) - 0.2 * math.log(s(-0.5)) - 0.8 * math.log(s(0.5))
        assert discriminator_loss(r, f, objective, 0.9, 0.2).item() == pytest.approx(hand)
        hand = -0.9 * math.log(s(-2)) - 0.1 * math.log(s(2)) - 0.2 * math.log(s(0.5)) - 0.8 * math.log(s(-0.5))
        assert discriminator_loss(t(-2), -f, objective, 0.9, 0.2).item() == pytest.approx(hand)
        swapped = discriminator_loss(r, f, objective, t(0.0), t(1.0))
        assert swapped.item() == pytest.approx(-math.log(1 - s(1.5)) - math.log(s(-0.5)))
    assert discriminator_loss(r, f, "least_squares", 0.9, 0.1).item() == pytest.approx(0.6**2 + 0.6**2)


# ------------------------------------------------------------ Wasserstein


def test_the_best_critic_s_value_is_the_distance():
    """The two distributions of Understanding Deep Learning, on a grid of spacing 1/9."""
    p, q = t(5, 3, 2, 1, 8, 7, 5, 9, 2, 1), t(4, 10, 1, 1, 4, 6, 3, 2, 0, 1)
    p, q = p / p.sum(), q / q.sum()
    slopes = (q.cumsum(0) - p.cumsum(0))[:-1].sign() / 9  # as steep as 1-Lipschitz lets it be
    f = torch.cat([t(0.0), slopes.cumsum(0)])
    pairs = discriminator_loss(f.repeat_interleave(10), f.repeat(10), "wasserstein").view(10, 10)
    value = -(p[:, None] * q * pairs).sum()
    assert value.item() == pytest.approx(0.15148578811369506, abs=1e-15)


def test_a_trained_critic_measures_the_distance_of_two_gaussians():
    torch.manual_seed(0)
    critic, m = MLPDiscriminator(in_dim=1, hidden_sizes=(32, 32)), 1.0
    optimizer = torch.optim.Adam(critic.parameters(), lr=5e-3, betas=(0.5, 0.9))
    estimates = []
    for step in range(300):
        real, fake = torch.randn(256, 1), torch.randn(256, 1) + m
        x = interpolate_randomly(real, fake, draws(256, 256 * step))
        loss = discriminator_loss(critic(real).logits, critic(fake).logits, "wasserstein").mean()
        optimizer.zero_grad()
        # The penalty comes up slowly: in one dimension its full strength holds a slope on the wrong side of zero.
        (loss + min(step / 10, 10.0) * one_centred_penalty(critic(x).logits, x).mean()).backward()
        optimizer.step()
        estimates.append(-loss.item())
    assert np.mean(estimates[-50:]) == pytest.approx(m, rel=0.1)


def test_clipping_holds_all_weights():
    d = discriminator(norm="batch")
    values = clip_weights(d, 0.01)
    assert all(p.abs().max() <= 0.01 for p in d.parameters())
    count = sum(p.numel() for p in d.parameters())
    at = sum(int((p.abs() >= 0.01).sum()) for p in d.parameters())
    assert values["at_limit"].item() == pytest.approx(at / count) and 0 < at < count


# ------------------------------------------------------------ penalties


@pytest.mark.parametrize("norm", ["instance", "spectral", "none"])
def test_penalties_are_those_of_each_image_by_itself(norm):
    d = discriminator(norm=norm).eval()
    x = batch_of(3)["x"].requires_grad_()
    zero, one = (penalty(d(x).logits, x) for penalty in (zero_centred_penalty, one_centred_penalty))
    for i in range(3):
        alone = x[i : i + 1].detach().requires_grad_()
        gradient = torch.autograd.grad(d(alone).logits.sum(), alone)[0]
        assert zero[i].item() == pytest.approx(gradient.square().sum().item())
        assert one[i].item() == pytest.approx((gradient.norm() - 1).square().item())


def test_penalties_have_the_right_gradient():
    d, x = discriminator().eval(), batch_of(2)["x"].requires_grad_()
    weight = d.down_blocks[0][0].weight
    for penalty in (zero_centred_penalty, one_centred_penalty):
        gradient = torch.autograd.grad(penalty(d(x).logits, x).sum(), weight)[0][0, 0, 0, 0]
        ends = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                weight[0, 0, 0, 0] += step
            ends.append(penalty(d(x).logits, x).sum().item())
            with torch.no_grad():
                weight[0, 0, 0, 0] -= step
        assert gradient.item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4)
    flat = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    one_centred_penalty(flat @ w, flat).sum().backward()
    assert w.grad.isfinite().all()  # a critic that is flat


def test_the_loss_adds_half_the_weight_of_each_penalty():
    d, g, batch = discriminator(), generator(), batch_of()
    options = {"objective": "relativistic"}
    plain = gan_discriminator_loss(d, g, batch, draws(), r1=0, r2=0, **options)
    full = gan_discriminator_loss(d, g, batch, draws(), r1=3.0, r2=5.0, gp=7.0, **options)
    x = batch["x"].clone().requires_grad_()
    fake = g(draws().normal("discriminator latents", (4,)).double()).sample.detach().requires_grad_()
    r1, r2 = (zero_centred_penalty(d(v).logits, v).mean() for v in (x, fake))
    between = interpolate_randomly(x, fake, draws())
    gp = one_centred_penalty(d(between).logits, between).mean()
    torch.testing.assert_close(full["loss"], plain["loss"] + 1.5 * r1 + 2.5 * r2 + 7 * gp)
    for key, value in {"r1": r1, "r2": r2, "gp": gp}.items():
        torch.testing.assert_close(full[key], value.detach())
    assert not {"r1", "r2", "gp"} & plain.keys()
    lazy = gan_penalty_loss(d, lambda_of(fake), batch, draws(), r1=3.0, r2=5.0, interval=4)
    torch.testing.assert_close(lazy["loss"], 4 * (1.5 * r1 + 2.5 * r2))


def lambda_of(fake: torch.Tensor):
    """A generator whose pictures are these."""
    g = MLPGenerator(latent_dim=4, out_dim=64, hidden_sizes=()).double()
    g.forward = lambda z, **told: type("Out", (), {"sample": fake.detach()})  # type: ignore[method-assign]
    return g


def test_penalties_of_a_network_that_mixes_images_are_refused():
    for options in ({}, {"r2": 0}, {"r1": 0, "r2": 0, "gp": 1.0}):
        with pytest.raises(UsageError, match=r'batch norm mixes.*norm="none"'):
            gan_discriminator_loss(discriminator(norm="batch"), generator(), batch_of(), draws(), **options)
    gan_discriminator_loss(discriminator(norm="batch"), generator(), batch_of(), draws(), r1=0, r2=0)


# ------------------------------------------------------------ the turns


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_each_turn_is_the_game_of_the_networks_logits(objective):
    d, g, batch = discriminator(), generator().eval(), batch_of()
    real = d(batch["x"]).logits
    fakes = [g(draws().normal(f"{turn} latents", (4,)).double()).sample for turn in ("discriminator", "generator")]
    values = gan_discriminator_loss(d, g, batch, draws(), objective=objective, r1=0, r2=0)
    torch.testing.assert_close(values["loss"], discriminator_loss(real, d(fakes[0]).logits, objective).mean())
    torch.testing.assert_close(values["real"], real.mean().detach())
    told = gan_generator_loss(d, g, batch, draws(), objective=objective)
    torch.testing.assert_close(told["loss"], generator_loss(d(fakes[1]).logits, real, objective).mean())
    assert not torch.equal(*fakes) and ("fooled" in told) == (objective != "wasserstein")


def test_each_turn_trains_its_own_player():
    d, g, batch = discriminator(), generator(), batch_of()
    gan_discriminator_loss(d, g, batch, draws())["loss"].backward()
    assert all(p.grad is None for p in g.parameters()) and all(p.grad is not None for p in d.parameters())
    d.requires_grad_(False)
    d.zero_grad(set_to_none=True)
    gan_generator_loss(d, g, batch, draws())["loss"].backward()
    assert all(p.grad.abs().sum() > 0 for p in g.parameters()) and all(p.grad is None for p in d.parameters())


def test_accuracies_are_against_the_game_s_threshold():
    d, g = MLPDiscriminator(in_dim=1, hidden_sizes=()).double(), MLPGenerator(1, 1, ()).double()
    with torch.no_grad():
        for p, value in zip([*d.parameters(), *g.parameters()], (1.0, 0.0, 0.0, 0.4)):
            p.fill_(value)  # D(x) = x, G(z) = 0.4
    batch = {"x": t(-1, 0.1, 0.3, 2)[:, None]}
    found = {}
    for objective in OBJECTIVES:
        values = gan_discriminator_loss(d, g, batch, draws(4), objective=objective, r1=0, r2=0)
        found[objective] = [values["accuracy_real"].item(), values["accuracy_fake"].item()]
    # Thresholds 0 and 1/2; the middle of 0.35 and 0.4 where only differences count.
    assert found["non_saturating"] == found["hinge"] == [0.75, 0] and found["least_squares"] == [0.25, 1]
    assert found["relativistic"] == found["wasserstein"] == [0.25, 0]


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_real_and_generated_pictures_never_share_statistics(norm):
    d, a, b = discriminator(norm=norm), batch_of(4)["x"], batch_of(4)["x"].flip(0) * 0.3
    apart, mixed = [d(x).logits for x in (a, b)], d(torch.cat([a, b])).logits
    judged = discriminate(d, [a, b], [{}, {}])
    torch.testing.assert_close(torch.cat([out.logits for out in judged]), torch.cat(apart))
    assert torch.allclose(torch.cat(apart), mixed) == (norm == "instance")


def test_packs_and_groups_are_of_one_kind():
    d = discriminator(pack=2, minibatch_std=2)
    a, b = batch_of(4)["x"], batch_of(4)["x"] * 0.3
    for out, x in zip(discriminate(d, [a, b], [{}, {}]), (a, b)):
        torch.testing.assert_close(out.logits, d(x).logits)
    values = gan_discriminator_loss(
        d, generator(), batch_of(8), draws(), objective="minimax", real_label=(0.7, 1.2), flip=0.1
    )
    assert values["loss"].isfinite()
    with pytest.raises(UsageError, match=r"pack=2 must divide"):
        gan_discriminator_loss(d, generator(), batch_of(5), draws(5))
    with pytest.raises(UsageError, match=r"minibatch_std=2 must divide"):
        gan_discriminator_loss(d, generator(), batch_of(6), draws(6))


def test_only_the_best_fakes_teach():
    d, g, batch = discriminator(), generator().eval(), batch_of()
    logits = d(g(draws().normal("generator latents", (4,)).double()).sample).logits
    for share, k in ((0.5, 4), (0.01, 1), (1.0, 8)):
        options = {"objective": "non_saturating", "top_k": share}
        loss = gan_generator_loss(d, g, batch, draws(), **options)["loss"]
        torch.testing.assert_close(loss, F.softplus(-logits.sort(descending=True).values[:k]).mean())


def test_features_are_matched():
    d, g, batch = discriminator(), generator().eval(), batch_of()
    plain = gan_generator_loss(d, g, batch, draws(), objective="hinge")
    values = gan_generator_loss(d, g, batch, draws(), objective="hinge", matching_weight=2.0)
    fake = d(g(draws().normal("generator latents", (4,)).double()).sample).features
    difference = d(batch["x"]).features.mean(0) - fake.mean(0)
    torch.testing.assert_close(values["loss"], plain["loss"] + 2 * difference.square().sum())
    assert feature_matching(fake, fake) == 0


def test_instance_noise_is_added_to_both_and_fades():
    d = MLPDiscriminator(hidden_sizes=()).double()  # affine, so that the mean logit moves by w of the mean noise
    g, batch = MLPGenerator().double(), {"x": torch.randn(8, 2).double()}
    for loss, names in ((gan_discriminator_loss, ("real", "fake")), (gan_generator_loss, ("generator's fake",))):
        plain, noisy = (loss(d, g, batch, draws(), instance_noise=sigma) for sigma in (0.0, 0.7))
        for name in names:
            noise = draws().normal(f"{name} noise", (2,)).double().mean(0)
            key = name.split()[-1]
            torch.testing.assert_close(noisy[key] - plain[key], 0.7 * (d.head.to_logit.weight[0] @ noise).detach())
    sigmas = [linear_decay(position, 100, 0.5, 0.1) for position in (0, 25, 100, 1000)]
    assert sigmas == pytest.approx([0.5, 0.4, 0.1, 0.1])


def test_mismatched_labels_count_as_fake_with_half_the_weight():
    labels = torch.arange(8) % 3
    d, g = discriminator(num_class_embeds=3), generator(num_class_embeds=3)
    d.head.condition.class_embedding.weight.data.mul_(20)
    batch = batch_of(labels=labels)
    values = gan_discriminator_loss(d, g, batch, draws(), objective="hinge", r1=0, r2=0, mismatched=True)
    shift = 1 + (draws().uniform("mismatched labels") * 2).long()
    wrong = (labels + shift) % 3
    assert (wrong != labels).all() and {*shift.tolist()} == {1, 2}
    x = batch["x"]
    fake = g(draws().normal("discriminator latents", (4,)).double(), labels).sample
    real, made, other = d(x, labels).logits, d(fake, labels).logits, d(x, wrong).logits
    expected = F.relu(1 - real) + (F.relu(1 + made) + F.relu(1 + other)) / 2
    torch.testing.assert_close(values["loss"], expected.mean())
    torch.testing.assert_close(values["mismatched"], other.mean().detach())


def test_captions_are_mismatched_with_different_neighbours():
    words = HashedWords(dim=32)
    d, g = discriminator(text_embed_dim=32), generator(text_embed_dim=32)
    d.head.projection.weight.data.mul_(50)
    captions = ["a dog", "a dog", "a cat", "seven"]
    batch = batch_of(4, captions=captions)
    options = {"text_encoder": words.double(), "objective": "hinge", "r1": 0, "r2": 0}
    values = gan_discriminator_loss(d, g, batch, draws(4), mismatched=True, **options)
    text, x = words(captions), batch["x"]
    fake = g(draws(4).normal("discriminator latents", (4,)).double(), text_embeds=text).sample
    real, made, other = (
        d(v, text_embeds=e).logits for v, e in ((x, text), (fake, text), (x, words([captions[-1], *captions[:-1]])))
    )
    pairs = F.relu(1 - real) + F.relu(1 + made), F.relu(1 - real) + F.relu(1 + other)
    expected = torch.where(torch.tensor([True, False, True, True]), (pairs[0] + pairs[1]) / 2, pairs[0])
    torch.testing.assert_close(values["loss"], expected.mean())
    told = gan_generator_loss(d, g, batch, draws(4), text_encoder=words)
    assert told["loss"].isfinite()


def test_an_auxiliary_classifier_learns_of_both_and_teaches():
    labels = torch.arange(8) % 10
    d, g, batch = discriminator(num_aux_classes=10), generator(num_class_embeds=10).eval(), batch_of(labels=labels)
    fakes = [
        g(draws().normal(f"{turn} latents", (4,)).double(), labels).sample for turn in ("discriminator", "generator")
    ]
    entropy = [F.cross_entropy(d(v).class_logits, labels) for v in (batch["x"], *fakes)]
    a, b = (gan_discriminator_loss(d, g, batch, draws(), aux_weight=w) for w in (0.0, 3.0))
    torch.testing.assert_close(b["loss"] - a["loss"], 3 * (entropy[0] + entropy[1]))
    a, b = (gan_generator_loss(d, g, batch, draws(), aux_weight=w) for w in (0.0, 3.0))
    torch.testing.assert_close(b["loss"] - a["loss"], 3 * entropy[2])
    assert 0 <= b["class_accuracy"] <= 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: discriminator_loss(t(1), t(0), "hinges"), ["objective", "hinges", '"hinge"']),
        (lambda: discriminator_loss(t(1), t(0), "hinge", 0.9), ["hinge", "no labels", "least_squares"]),
        (lambda: generator_loss(t(0), objective="relativistic"), ["relativistic", "`real`"]),
        (lambda: noisy_labels(draws(), real=(1.0, 0.7)), ["real", "(low, high)", "(1.0, 0.7)"]),
        (lambda: noisy_labels(draws(), flip=2), ["flip", "[0, 1]", "2"]),
        (lambda: clip_weights(discriminator(), 0.0), ["limit", "positive", "0.0"]),
        (lambda: turn(r1=-1.0), ["r1", "at least 0", "-1.0"]),
        (lambda: turn(prior="gaussian"), ["prior", "gaussian", "normal"]),
        (lambda: turn(objective="gan"), ["objective", "gan"]),
        (lambda: turn(instance_noise=-0.1), ["instance_noise", "at least 0", "-0.1"]),
        (lambda: turn(objective="hinge", real_label=(0.9, 0.9)), ["hinge", "no labels"]),
        (lambda: turn(mismatched=True), ["mismatched", "is not"]),
        (lambda: turn(d={"num_class_embeds": 3}), ["labels are missing", "3 classes"]),
        (lambda: turn(g={"num_class_embeds": 3}), ["labels are missing", "3 classes"]),
        (lambda: turn(d={"num_aux_classes": 3}), ["labels are missing", "3 classes"]),
        (lambda: turn(d={"num_class_embeds": 3}, labels=torch.arange(8)), ["from 0 to 2", "0 to 7"]),
        (lambda: turn(d={"text_embed_dim": 3}), ["captions are missing"]),
        (lambda: turn(d={"text_embed_dim": 3}, captions=["a"] * 8), ["text_encoder is missing", "HashedWords"]),
        (
            lambda: turn(d={"num_class_embeds": 9}, labels=torch.arange(8), replay=ReplayPool(8, (1, 8, 8))),
            ["replay", "other labels"],
        ),
        (lambda: gan_generator_loss(discriminator(), generator(), batch_of(), draws(), top_k=0.0), ["top_k", "0.0"]),
        (lambda: gan_penalty_loss(discriminator(), generator(), batch_of(), draws(), interval=0), ["interval", "0"]),
        (lambda: zero_centred_penalty(t(1.0), t(1.0)), ["inputs", "requires_grad_"]),
    ],
)
def test_bad_input_says_what_and_why(make, words):
    with pytest.raises(UsageError) as error:
        make()
    assert all(word in str(error.value) for word in words), error.value


def turn(d=None, g=None, labels=None, captions=None, **options):
    more = {key: value for key, value in (("labels", labels), ("captions", captions)) if value is not None}
    return gan_discriminator_loss(discriminator(**d or {}), generator(**g or {}), batch_of(**more), draws(), **options)


# ------------------------------------------------------------ a whole game


def test_an_affine_generator_learns_a_gaussian():
    """Dive into Deep Learning's first game: x = A^T z + b, whose covariance is [[1.01, 1.95], [1.95, 4.25]]."""
    torch.manual_seed(0)
    mixing, shift = torch.tensor([[1.0, 2.0], [-0.1, 0.5]]), torch.tensor([1.0, 2.0])
    d, g = MLPDiscriminator(hidden_sizes=(32,)), MLPGenerator(hidden_sizes=())
    turns = [
        (torch.optim.Adam(network.parameters(), lr=1e-2, betas=(0.0, 0.9)), loss)
        for network, loss in ((d, partial(gan_discriminator_loss, r1=0.3, r2=0.3)), (g, gan_generator_loss))
    ]
    tail = []
    for step in range(1000):
        rng = draws(128, 128 * step)
        batch = {"x": rng.normal("data", (2,)) @ mixing + shift}
        for optimizer, loss in turns:
            optimizer.param_groups[0]["lr"] *= 0.998
            optimizer.zero_grad()
            loss(d, g, batch, rng)["loss"].backward()
            optimizer.step()
        if step >= 850:
            tail.append((g.out.weight.detach() @ g.out.weight.detach().T, g.out.bias.detach().clone()))
    covariance, bias = (torch.stack(part).mean(0) for part in zip(*tail))
    torch.testing.assert_close(covariance, torch.tensor([[1.01, 1.95], [1.95, 4.25]]), rtol=0.15, atol=0)
    torch.testing.assert_close(bias, shift, rtol=0.15, atol=0)


# ------------------------------------------------------------ several processes


def game(rank: int, world: int) -> dict[str, torch.Tensor]:
    """Gradients and states after all kinds of turns, of one process that holds its share of 8 images."""
    labels = torch.arange(8) % 3
    share = slice(rank * 8 // world, (rank + 1) * 8 // world)
    batch = {key: value[share] for key, value in batch_of(labels=labels).items()}
    rng = draws(8, 0, share.start, 8 // world)
    found: dict[str, torch.Tensor] = {}

    def wrapped(network):
        return DistributedDataParallel(network) if world > 1 else network

    def record(name, network):
        plain = getattr(network, "module", network)
        found.update({f"{name}.{key}": p.grad.clone() for key, p in plain.named_parameters()})
        found.update({f"{name}.{key}": b.double().clone() for key, b in plain.named_buffers()})
        plain.zero_grad(set_to_none=True)

    torch.manual_seed(0)
    d, g = wrapped(discriminator(norm="batch")), wrapped(generator())
    plain = {"objective": "non_saturating", "r1": 0, "r2": 0, "real_label": (0.7, 1.2), "flip": 0.3}
    gan_discriminator_loss(d, g, batch, rng, **plain)["loss"].backward()
    record("batch norm", d)
    d.requires_grad_(False)
    gan_generator_loss(d, g, batch, rng)["loss"].backward()
    record("generator", g)

    told = {"num_class_embeds": 3}
    d, g = wrapped(discriminator(norm="spectral", num_aux_classes=3, **told)), wrapped(generator(**told))
    ada, pool = AdaptiveAugmentation(images=10, window=8, p=0.5), ReplayPool(8, (1, 8, 8)).double()
    options = {"gp": 10.0, "mismatched": True, "instance_noise": 0.1, "augment": ada, "collect": ada.collect}
    gan_discriminator_loss(d, g, batch, rng, **options)["loss"].backward()
    record("penalties", d)
    gan_penalty_loss(d, g, batch, rng, gp=1.0, augment=random_augment)["loss"].backward()
    record("lazy", d)
    gan_discriminator_loss(d, g, batch, rng, r1=0, r2=0)["loss"].backward()  # every gradient was waited for
    record("after", d)
    ada.update(batch, rng)
    for _ in range(2):
        found["shown"] = pool(batch["x"], rng)
        pool.update(batch, rng)
    record("augmentation", ada)
    record("pool", pool)
    del found["shown"]
    return found


def on_a_rank(log: str, env: dict[str, str], folder: str) -> None:
    enter(log, env)
    dist.init_process_group("gloo")
    found = game(dist.get_rank(), dist.get_world_size())
    save_file(
        {key: value.contiguous() for key, value in found.items()}, Path(folder) / f"{dist.get_rank()}.safetensors"
    )
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_play_as_one(start, tmp_path):
    expected = game(0, 1)
    for child in ranks(start, on_a_rank, str(tmp_path)):
        code, text = ended(child)
        assert code == 0, text
    for rank in range(2):
        found = load_file(tmp_path / f"{rank}.safetensors")
        assert found.keys() == expected.keys() and len(found) > 60
        for key, value in expected.items():
            torch.testing.assert_close(
                found[key], value, rtol=1e-6, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}"
            )
