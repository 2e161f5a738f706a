"""Diffusion-GAN: diffused samples and their times, and a chain whose length follows the overconfidence."""

import pytest
import torch

from latentia import DCGANDiscriminator, DCGANGenerator, MLPDiscriminator, MLPGenerator
from latentia.errors import UsageError
from latentia.functional.adversarial import OBJECTIVES, discriminator_loss
from latentia.functional.gradient_penalty import one_centred_penalty, zero_centred_penalty
from latentia.losses.adversarial import gan_discriminator_loss, gan_generator_loss, gan_penalty_loss
from latentia.losses.augmentation import AdaptiveAugmentation
from latentia.losses.diffusion_augmentation import DiffusionAugmentation
from latentia.rng import Rng

DOUBLE = torch.float64


def draws(n: int, position: int = 0, start: int = 0, count: int | None = None) -> Rng:
    return Rng(0, position, n, start, n if count is None else count)


def alpha_bar(t: int, steps: int) -> float:
    value = 1.0
    for s in range(t):
        value *= 1 - (1e-4 + (0.02 - 1e-4) * s / (steps - 1))
    return value


@pytest.mark.parametrize("times", ["priority", "uniform"])
def test_diffused_samples_have_the_chains_mean_and_variance(times):
    """Of each time by itself: mean sqrt(a) x, variance (1 - a) sigma^2, within 5 standard errors."""
    n, steps, sigma = 200_000, 6, 0.7
    diffusion = DiffusionAugmentation(sigma=sigma, min_steps=6, max_steps=steps, times=times)
    x = torch.full((n, 1), 2.0, dtype=DOUBLE)
    y, t = diffusion(x, draws(n))[:, 0], diffusion.timesteps(draws(n))
    for step in range(steps + 1):
        a, here = alpha_bar(step, steps), y[t == step]
        variance = (1 - a) * sigma**2
        assert len(here) > 1000
        assert abs(float(here.mean()) - 2 * a**0.5) <= 5 * (variance / len(here)) ** 0.5 + 1e-12
        assert float(here.var()) == pytest.approx(variance, rel=5 * (2 / len(here)) ** 0.5, abs=1e-12)
    assert torch.equal(y[t == 0], x[t == 0, 0])  # to the bit


@pytest.mark.parametrize("times, weight", [("priority", lambda t: t), ("uniform", lambda t: 1)])
def test_times_have_their_distribution(times, weight):
    n, length = 100_000, 5
    diffusion = DiffusionAugmentation(min_steps=3, max_steps=7, times=times)
    t = diffusion.timesteps(draws(n), p=0.5)  # a chain of 5
    counts = torch.bincount(t, minlength=8).double() / n
    total = sum(weight(s) for s in range(1, length + 1))
    expected = [0.5, *(0.5 * weight(s) / total for s in range(1, length + 1)), 0.0, 0.0]
    torch.testing.assert_close(counts, torch.tensor(expected, dtype=DOUBLE), atol=0.006, rtol=0)


def test_a_group_and_a_pair_share_a_time_and_no_noise():
    diffusion = DiffusionAugmentation(min_steps=1000, group=4)
    t = diffusion.timesteps(draws(40))
    assert torch.equal(t.view(10, 4), t[::4, None].expand(10, 4)) and len(t.unique()) > 3
    real, fake = (diffusion(torch.zeros(40, 2), draws(40), stream) for stream in ("real", "fake"))
    noisy = t > 0
    assert not (real == fake)[noisy].any() and torch.equal(real[~noisy], fake[~noisy])
    parts = [diffusion(torch.zeros(8, 2), draws(40, 0, i, 8), "real") for i in range(0, 40, 8)]
    assert torch.equal(real, torch.cat(parts))


def test_the_chain_grows_with_overconfidence_in_its_range():
    ada = AdaptiveAugmentation(DiffusionAugmentation(min_steps=5, max_steps=105), images=1000, window=100, most=1.0)
    right, guessing = torch.ones(100), torch.tensor([1.0, -1.0]).repeat(50)
    lengths = []
    for step, margins in enumerate([guessing, right, right, guessing, *[right] * 12, *[guessing] * 3]):
        ada.collect(margins, draws(100, 100 * step))
        lengths.append(int(ada.update({}, draws(100))["length"]))
    assert lengths[:4] == [5, 15, 25, 15] and max(lengths) == 105 and lengths[-4:] == [105, 95, 85, 75]
    assert len([*ada.state_dict()]) == 3  # the schedule is no state


def test_a_target_of_its_own_decides():
    for target, moved in ((0.3, 10), (0.7, 0)):
        ada = AdaptiveAugmentation(
            DiffusionAugmentation(min_steps=1, max_steps=101), target=target, images=1000, window=100, most=1.0
        )
        ada.collect(torch.cat([torch.ones(75), -torch.ones(25)]), draws(100))  # r_d = 0.5
        assert int(ada.update({}, draws(100))["length"]) == 1 + moved


def networks(**config):
    torch.manual_seed(0)
    g = DCGANGenerator(sample_size=8, latent_dim=4, block_out_channels=(4,), norm="none").double()
    d = DCGANDiscriminator(sample_size=8, block_out_channels=(4,), norm="none", num_timesteps=1000, **config).double()
    return d, g, {"x": torch.rand(8, 1, 8, 8, dtype=DOUBLE) * 2 - 1}


def diffused(batch, diffusion, generated, stream):
    real, fake = (diffusion(x, draws(8), f"{name} augmented") for name, x in zip(stream, (batch["x"], generated)))
    return real, fake, diffusion.timesteps(draws(8))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_discriminator_sees_samples_with_their_times(objective):
    d, g, batch = networks()
    diffusion = DiffusionAugmentation(sigma=0.5, min_steps=1000)
    loss = gan_discriminator_loss(d, g, batch, draws(8), objective=objective, r1=0, r2=0, augment=diffusion)["loss"]
    generated = g(draws(8).normal("discriminator latents", (4,)).double()).sample.detach()
    real, fake, t = diffused(batch, diffusion, generated, ("real", "fake"))
    assert (t > 0).any()
    expected = discriminator_loss(d(real, timesteps=t).logits, d(fake, timesteps=t).logits, objective).mean()
    torch.testing.assert_close(loss, expected)
    assert not torch.equal(d(real, timesteps=t).logits, d(real).logits)


def test_penalties_are_of_diffused_samples():
    d, g, batch = networks()
    diffusion = DiffusionAugmentation(sigma=0.5, min_steps=1000)
    values = gan_penalty_loss(d, g, batch, draws(8), interval=1, r1=1.0, r2=0.0, gp=1.0, augment=diffusion)
    generated = g(draws(8).normal("penalty latents", (4,)).double()).sample.detach()
    x = batch["x"].clone().requires_grad_()
    real, fake, t = diffused({"x": x}, diffusion, generated, ("penalty real", "penalty fake"))
    torch.testing.assert_close(values["r1"], zero_centred_penalty(d(real, timesteps=t).logits, x).mean().detach())
    u = draws(8).uniform("interpolated").double().view(-1, 1, 1, 1)
    between = (u * real + (1 - u) * fake).detach().requires_grad_()
    torch.testing.assert_close(
        values["gp"], one_centred_penalty(d(between, timesteps=t).logits, between).mean().detach()
    )


def test_the_generator_learns_through_the_diffusion():
    """The gradient at G(z) is sqrt(a_t) times that at the diffused sample."""
    d, g, batch = networks()
    diffusion = DiffusionAugmentation(sigma=0.5, min_steps=1000)
    values = gan_generator_loss(d, g, batch, draws(8), objective="hinge", augment=diffusion)
    values["loss"].backward()
    found = [p.grad.clone() for p in g.parameters()]
    assert all(grad.abs().sum() > 0 for grad in found)
    generated = g(draws(8).normal("generator latents", (4,)).double()).sample
    t = diffusion.timesteps(draws(8))
    y = diffusion(generated, draws(8), "generator's fake augmented").detach().requires_grad_()
    (at_y,) = torch.autograd.grad(-d(y, timesteps=t).logits.mean(), y)
    roots = torch.tensor([alpha_bar(int(s), 1000) for s in t], dtype=DOUBLE).sqrt().view(-1, 1, 1, 1)
    for mine, theirs in zip(found, torch.autograd.grad(generated, [*g.parameters()], at_y * roots)):
        torch.testing.assert_close(mine, theirs)


def test_conditions_are_kept_beside_the_times():
    d, g, batch = networks(num_class_embeds=3)
    batch["labels"] = torch.arange(8) % 3
    values = gan_discriminator_loss(d, g, batch, draws(8), mismatched=True, augment=DiffusionAugmentation())
    assert values["mismatched"].isfinite()
    t = torch.arange(8) * 100
    logits = d(batch["x"], class_labels=batch["labels"], timesteps=t).logits
    assert not torch.equal(logits, d(batch["x"], class_labels=batch["labels"]).logits)
    assert not torch.equal(logits, d(batch["x"], class_labels=(batch["labels"] + 1) % 3, timesteps=t).logits)


def test_without_times_it_scores_samples_as_they_are():
    for d, x in ((networks()[0], networks()[2]["x"]), (MLPDiscriminator(num_timesteps=9), torch.randn(8, 2))):
        zeros = torch.zeros(8, dtype=torch.long)
        assert torch.equal(d(x).logits, d(x, timesteps=zeros).logits)
        assert not torch.equal(d(x).logits, d(x, timesteps=zeros + 9).logits)


def test_packs_have_one_time():
    d, g, x = MLPDiscriminator(pack=2, num_timesteps=1000), MLPGenerator(), torch.randn(8, 2)
    diffusion = DiffusionAugmentation(min_steps=1000, group=2)
    assert gan_discriminator_loss(d, g, {"x": x}, draws(8), augment=diffusion)["loss"].isfinite()
    t = diffusion.timesteps(draws(8))
    assert torch.equal(d(x, timesteps=t).logits, d(x, timesteps=t[::2].repeat_interleave(2)).logits)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DiffusionAugmentation(sigma=0.0), ["sigma", "positive", "0"]),
        (lambda: DiffusionAugmentation(min_steps=20, max_steps=10), ["min_steps", "at most max_steps, 10", "20"]),
        (lambda: DiffusionAugmentation(times="late"), ["times", "late", "priority"]),
        (lambda: DiffusionAugmentation()(torch.zeros(2, 2), draws(2), p=1.5), ["p must be", "1.5"]),
        (lambda: AdaptiveAugmentation(most=0.0), ["most", "0.0"]),
        (
            lambda: gan_generator_loss(
                MLPDiscriminator(), MLPGenerator(), {"x": torch.zeros(4, 2)}, draws(4), augment=DiffusionAugmentation()
            ),
            ["augment", "num_timesteps", "MLPDiscriminator"],
        ),
        (
            lambda: MLPDiscriminator()(torch.zeros(2, 2), timesteps=torch.zeros(2).long()),
            ["timesteps", "num_timesteps"],
        ),
        (
            lambda: MLPDiscriminator(num_timesteps=5)(torch.zeros(2, 2), timesteps=torch.tensor([0, 6])),
            ["timesteps", "from 0 to 5", "6"],
        ),
        (
            lambda: MLPDiscriminator(num_timesteps=5)(torch.zeros(2, 2), timesteps=torch.tensor([0])),
            ["timesteps", "(2,)", "(1,)"],
        ),
    ],
)
def test_bad_input_says_what_and_why(make, words):
    with pytest.raises(UsageError) as error:
        make()
    assert all(word in str(error.value) for word in words), error.value
