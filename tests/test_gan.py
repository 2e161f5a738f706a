"""The GAN's pipeline, its failure monitor, and the two examples: what is of the game itself is in other files."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from test_faults import context, ended, enter, ranks, start  # noqa: F401 (fixtures)
from test_training import fresh_accelerate, held, part_of  # noqa: F401 (fixture)
from torch import nn

from latentia import (
    VAE,
    DCGANDiscriminator,
    DCGANGenerator,
    DiffusionPipeline,
    GANPipeline,
    MLPDiscriminator,
    MLPGenerator,
    VAEPipeline,
)
from latentia.data import load_images
from latentia.data.plane import PlaneData
from latentia.errors import UsageError
from latentia.evaluation.failures import SampleMonitor, fine_energy, generator_won, read_log
from latentia.losses.adversarial import gan_discriminator_loss, gan_generator_loss
from latentia.monitor import Monitor
from latentia.pipelines.rejection import rejection_sample
from latentia.training.arguments import parse_arguments
from latentia.training.ema import EMA
from latentia.training.loop import Phase, train


def seeded(n: int) -> torch.Generator:
    return torch.Generator().manual_seed(n)


def generator(**config) -> DCGANGenerator:
    torch.manual_seed(0)
    base = {"sample_size": 8, "out_channels": 1, "latent_dim": 6, "block_out_channels": (8, 8)}
    return spread(DCGANGenerator(**base | config)).eval()


def discriminator(**config) -> DCGANDiscriminator:
    torch.manual_seed(1)
    base = {"sample_size": 8, "in_channels": 1, "block_out_channels": (8, 8), "norm": "none"}
    return spread(DCGANDiscriminator(**base | config)).eval()


def spread(network: nn.Module) -> nn.Module:
    """Weights large enough that pictures differ: N(0, 0.02) makes them all grey."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return network


@pytest.fixture
def pipe():
    return GANPipeline(generator(), discriminator())


# ------------------------------------------------------------ sampling


def test_a_picture_does_not_depend_on_its_batch(pipe):
    sizes = set()
    pipe.generator.top.register_forward_pre_hook(lambda module, inputs: sizes.add(len(inputs[0])))
    many = pipe(70, generator=seeded(1), output_type="latent").images
    assert torch.equal(pipe(3, generator=seeded(1), output_type="latent").images, many[:3]) and len(sizes) == 1
    own = [seeded(k) for k in range(2)]
    pair = pipe(2, generator=own, output_type="latent").images
    assert torch.equal(pipe(1, generator=seeded(1), output_type="latent").images[0], many[0])
    assert torch.equal(pipe(generator=[seeded(1)], output_type="latent").images[0], pair[1])
    assert many.std(0).max() > 0.05


def test_sampling_is_in_evaluation_mode_and_leaves_the_mode_alone(pipe):
    first = pipe(2, generator=seeded(0), output_type="latent").images
    pipe.generator.train()
    assert torch.equal(pipe(2, generator=seeded(0), output_type="latent").images, first) and pipe.generator.training


def test_truncation_lessens_diversity_and_one_changes_nothing(pipe):
    def spread_of(psi):
        return pipe(64, generator=seeded(0), truncation=psi, output_type="latent").images.std(0).mean().item()

    found = [spread_of(psi) for psi in (0, 0.3, 0.6, 1.0)]
    assert found[0] < 1e-6 and found == sorted(found)
    plain, one = (pipe(5, generator=seeded(0), output_type="latent", **o).images for o in ({}, {"truncation": 1.0}))
    assert torch.equal(plain, one)


def test_labels_by_index_and_name():
    pipe = GANPipeline(generator(num_class_embeds=3), label_names=["a", "b", "c"])
    z = torch.randn(3, 6, generator=seeded(0))
    named = pipe(class_labels=["c", "a", "b"], latents=z, output_type="latent").images
    assert torch.equal(named, pipe(class_labels=torch.tensor([2, 0, 1]), latents=z, output_type="latent").images)
    assert not torch.equal(named, pipe(class_labels="a", latents=z, output_type="latent").images)
    assert torch.equal(named, pipe.decode(z, class_labels=[2, 0, 1], output_type="latent")) and pipe.num_classes == 3


def test_a_vae_is_a_generator_and_gives_the_same_pictures():
    torch.manual_seed(0)
    for decoder in ("gaussian", "bernoulli"):
        vae = spread(VAE(sample_size=8, latent_dim=4, hidden_sizes=(8,), decoder=decoder)).eval()
        z = torch.randn(5, 4, generator=seeded(0))
        kinds = [GANPipeline(vae), VAEPipeline(vae)]
        assert torch.equal(*(kind.decode(z, output_type="latent") for kind in kinds))
        drawn = [kind(3, generator=seeded(2), output_type="latent").images for kind in kinds]
        assert torch.equal(*drawn) and kinds[0].generator is kinds[1].vae
        assert kinds[0].encode(drawn[0].clamp(-1, 1), steps=5).shape == (3, 4)


@pytest.mark.parametrize("with_discriminator", [True, False])
def test_save_and_load(pipe, tmp_path, with_discriminator):
    if not with_discriminator:
        pipe = GANPipeline(pipe.generator)
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded) is GANPipeline and (loaded.discriminator is None) != with_discriminator
    drawn = [p(4, generator=seeded(1), output_type="latent").images for p in (pipe, loaded)]
    assert torch.equal(*drawn)


# ------------------------------------------------------------ the latent space


def test_pictures_of_the_generator_are_found_again(pipe):
    z = torch.randn(3, 6, generator=seeded(5))
    x = pipe.decode(z, output_type="latent")
    error = pipe.reconstruction_error(x, steps=150)
    chance = (pipe(3, generator=seeded(9), output_type="latent").images - x).square().flatten(1).mean(1)
    assert error.shape == (3,) and (error < 0.05 * chance).all(), (error, chance)
    again = pipe.reconstruct(x, steps=150, output_type="latent")
    torch.testing.assert_close((again - x).square().flatten(1).mean(1), error)
    assert pipe.encode(x).requires_grad is False and all(p.grad is None for p in pipe.generator.parameters())


def test_encoding_does_not_depend_on_the_batch_and_more_starts_are_better(pipe):
    x = torch.rand(20, 1, 8, 8, generator=seeded(0)) * 2 - 1
    many = pipe.encode(x, steps=5)
    assert torch.equal(pipe.encode(x[:2], steps=5), many[:2]) and torch.equal(pipe.encode(x, steps=5), many)
    few, more = (pipe.reconstruction_error(x, steps=20, starts=k, feature_weight=0.0) for k in (1, 6))
    assert (more <= few + 1e-5).all() and more.mean() < few.mean()


def test_interpolation_stays_on_the_sphere_and_ends_where_it_should(pipe):
    a, b = torch.randn(2, 6, generator=seeded(0))
    a, b = a / a.norm(), b / b.norm()
    seen = []
    pipe.generator.top.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][:5]))
    way = pipe.interpolate(a, b, 5, output_type="latent")
    torch.testing.assert_close(seen[0].norm(dim=1), torch.ones(5))
    torch.testing.assert_close(way[[0, -1]], pipe.decode(torch.stack([a, b]), output_type="latent"))
    pipe.interpolate(a, b, 5, mode="lerp")
    assert seen[-1].norm(dim=1)[2] < 0.99
    x = pipe(2, generator=seeded(3), output_type="latent").images
    assert len(pipe.interpolate(x[0], x[1], 4)) == 4


def test_arithmetic_is_of_means(pipe):
    a, b, c = torch.randn(3, 3, 6, generator=seeded(0))
    expected = pipe.decode((a.mean(0) - b.mean(0) + c.mean(0))[None], output_type="latent")
    torch.testing.assert_close(pipe.arithmetic(a, b, c, output_type="latent"), expected)
    torch.testing.assert_close(
        pipe.arithmetic(a, a, c[0], output_type="latent"), pipe.decode(c[:1], output_type="latent")
    )


# ------------------------------------------------------------ rejection


def test_rejection_makes_the_density_that_the_logits_say():
    """Candidates uniform on [0, 1], log ratio 3x. Gamma is 0, and the density exact, where e^(D - D_M) is one half."""

    def draw(rows, generators):
        x = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
        return x, 3 * x

    exactly = 1 - math.log(2) / 3
    kept = rejection_sample(draw, [seeded(i) for i in range(3000)], percentile=exactly)
    exact = 1 / (1 - math.exp(-3)) - 1 / 3  # mean of the density 3 e^3x / (e^3 - 1)
    assert abs(kept.mean() - exact) < 0.02
    few = rejection_sample(draw, [seeded(i) for i in range(5)], percentile=exactly)
    assert torch.equal(few, kept[:5])
    assert rejection_sample(draw, [seeded(i) for i in range(300)], percentile=0.95).mean() > kept.mean() + 0.03


def test_rejection_prefers_what_the_discriminator_takes_for_real(pipe):
    plain, kept = (pipe(200, generator=seeded(0), rejection=r, output_type="latent").images for r in (False, True))
    mean = [pipe.discriminator(x).logits.mean().item() for x in (plain, kept)]
    assert mean[1] > mean[0] + 0.3 * pipe.discriminator(plain).logits.std().item()
    assert torch.equal(pipe(3, generator=seeded(0), rejection=True, output_type="latent").images, kept[:3])


# ------------------------------------------------------------ diseases


def line(real=1.0, fake=-1.0, right=0.7, g=0.3, d=0.5) -> dict[str, float]:
    return {
        "discriminator/real": real, "discriminator/fake": fake, "discriminator/accuracy_real": right,
        "discriminator/accuracy_fake": right, "discriminator/grad_norm": d, "generator/grad_norm": g,
    }  # fmt: skip


@pytest.mark.parametrize(
    "row, diseases",
    [
        (line(), []),
        (line(right=0.5, real=0.0, fake=0.0), []),  # chance is where a game that is over ends
        (line(right=1.0), []),  # and a discriminator may be right, if it is not sure
        (line(right=1.0, real=9.0, fake=-9.0), ["the discriminator has won"]),
        (line(right=1.0, g=1e-6), ["the discriminator has won"]),
        (line(g=1e-6), ["the generator gets no gradient"]),
        (line(g=150.0), ["exploding gradients"]),
        (line(d=1e5), ["exploding gradients"]),
    ],
)
def test_what_a_log_says(row, diseases):
    assert [finding.disease for finding in read_log([row] * 5)] == diseases
    assert read_log([row] * 4) == [] and read_log([row] * 4 + [line()]) == []
    assert all(str(finding).count("Try ") == 1 for finding in read_log([row] * 5))


def test_chance_is_a_disease_far_from_the_data_alone():
    assert generator_won(0.5, 0.02) is None and generator_won(0.9, 0.8) is None
    assert "50%" in str(generator_won(0.5, 0.8))


@pytest.fixture(scope="module")
def digits():
    return load_images("digits").images.float() / 127.5 - 1


def test_samples_of_the_data_are_healthy_and_few_pictures_are_a_collapse(digits):
    monitor = SampleMonitor(digits[:256])
    values, found = monitor.look(digits[300:556])
    assert not found and abs(values["diversity"] - 1) < 0.05 and values["distance"] < 0.02
    assert abs(values["fine_energy"] - 1) < 0.3
    for few in (1, 10):
        values, found = monitor.look(digits[:few].repeat(256, 1, 1, 1)[:256])
        assert [f.disease for f in found] == ["mode collapse"]
    assert values["support"] == pytest.approx(10, rel=0.1)  # the birthday test counts them


def test_missing_classes_are_named(digits):
    from latentia.evaluation import load_extractor

    monitor = SampleMonitor(digits[:256], load_extractor("digits"))
    labels = load_images("digits").labels
    values, found = monitor.look(digits[labels < 4][:256])
    assert values["classes"] == 4 and "6 of 10 classes are missing: [4, 5, 6, 7, 8, 9]" in str(found[0])


def test_kernels_that_the_stride_does_not_divide_are_seen():
    smooth = nn.functional.interpolate(torch.randn(64, 1, 7, 7, generator=seeded(0)), 28, mode="bicubic").tanh()
    monitor, found = SampleMonitor(smooth), {}
    for kernel in (3, 4):
        torch.manual_seed(0)
        up = nn.ConvTranspose2d(1, 1, kernel, 2, 1, kernel % 2, bias=False)
        nn.init.constant_(up.weight, 4 / kernel**2)
        half = nn.functional.interpolate(smooth, 14, mode="area")
        found[kernel] = monitor.look(up(half).detach())
    assert "checkerboard" in [f.disease for f in found[3][1]] and not found[4][1]
    assert found[3][0]["fine_energy"] > 5 * found[4][0]["fine_energy"]
    assert fine_energy(smooth) < 0.01
