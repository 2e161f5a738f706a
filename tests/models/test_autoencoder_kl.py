"""diffusers' AutoencoderKL in training: its terms, its critic, what is measured of its latents, and its pipeline."""

import json
import re
from functools import partial
from pathlib import Path

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from accelerate import Accelerator
from children import ended, enter, ranks
from helpers import held, load_example, part_of, seeded
from safetensors.torch import load_file

from latentia import AutoencoderKLPipeline, DiffusionPipeline, LatentMixture, PatchDiscriminator
from latentia.commands.main import main as latentia_command
from latentia.data.order import indices
from latentia.errors import NumericsError, UsageError
from latentia.evaluation import load_extractor, perceptual_loss
from latentia.functional.bounds import beta_of_mse_weight
from latentia.functional.distributions import gaussian_kl, log_likelihood
from latentia.losses.perceptual_compression import patch_discriminator_loss, perceptual_compression_loss
from latentia.models.autoencoder_kl import GaussianAutoencoder, autoencoder_kl, latent_statistics
from latentia.pipelines.arguments import image_generators
from latentia.rng import Rng
from latentia.runs.command_line import parse_arguments
from latentia.runs.start import load_data
from latentia.training.ema import EMA
from latentia.training.loop import Phase, train

LATENT = (2, 4, 4)


def network(**config) -> GaussianAutoencoder:
    """Of pictures 8 x 8, with posteriors as wide as their means, so that noise matters."""
    torch.manual_seed(0)
    base = {"in_channels": 1, "block_out_channels": (4, 4), "latent_channels": 2, "norm_num_groups": 2}
    plain = GaussianAutoencoder(autoencoder_kl(8, **base | config))
    with torch.no_grad():
        plain.vae.quant_conv.weight.mul_(3)
    return plain


def critic(**config) -> PatchDiscriminator:
    torch.manual_seed(1)
    return PatchDiscriminator(**{"in_channels": 1, "block_out_channels": (4, 8)} | config)


def pictures(n: int = 6, seed: int = 0, size: int = 8) -> torch.Tensor:
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def draws(n: int = 6) -> Rng:
    return Rng(0, 0, n, 0, n)


def gradients(module) -> list[torch.Tensor | None]:
    return [p.grad for p in module.parameters()]


# ------------------------------------------------------------ the critic of patches


@pytest.mark.parametrize("levels, field", [(1, 16), (2, 34), (3, 70), (4, 142)])
def test_a_logit_sees_as_many_pixels_as_is_said(levels, field):
    """By the support of its gradient, of one logit in the middle of a picture that is larger."""
    judge = PatchDiscriminator(1, (2,) * (levels + 1), norm="none").double()
    size = 2 ** (levels + 1) * (field // 2 ** (levels + 1) + 3)
    x = torch.randn(1, 1, size, size, dtype=torch.float64, requires_grad=True)
    logits = judge(x).logits
    middle = logits.shape[-1] // 2
    (grad,) = torch.autograd.grad(logits[0, 0, middle, middle], x)
    support = [grad[0, 0].abs().sum(dim).nonzero().flatten() for dim in (0, 1)]
    assert [int(s[-1] - s[0]) + 1 for s in support] == [field, field] and judge.receptive_field == field
    assert min(int(s[0]) for s in support) > 0 and max(int(s[-1]) for s in support) < size - 1
    assert all(len(s) == field for s in support)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_least_picture_gives_one_logit(levels):
    judge, least = PatchDiscriminator(1, (2,) * (levels + 1), norm="none"), 3 * 2**levels
    assert judge.least_size == least and judge(torch.zeros(1, 1, least, least)).logits.shape == (1, 1, 1, 1)
    assert judge(torch.zeros(1, 1, 2 * least + 1, least)).logits.shape == (1, 1, (2 * least + 1) // 2**levels - 2, 1)
    for shape in ((1, 1, least - 1, least), (1, 1, least, least - 1), (1, 3, least, least), (1, least, least)):
        with pytest.raises(UsageError, match=rf"\(B, 1, H, W\) with at least {least} pixels each way"):
            judge(torch.zeros(shape))


# ------------------------------------------------------------ closed forms


@pytest.mark.parametrize("reconstruction", ["l1", "mse"])
@pytest.mark.parametrize("objective", ["hinge", "non_saturating", "least_squares"])
def test_the_loss_is_the_weighted_sum_of_its_terms(reconstruction, objective):
    plain, judge, x = network().double(), critic().double(), pictures().double()
    distance = partial(perceptual_loss, model=load_extractor("digits").model.double())
    weights = {"kl_weight": 0.3, "perceptual_weight": 0.7, "adversarial_weight": 0.2}
    values = perceptual_compression_loss(
        plain, {"x": x}, draws(), latent_shape=LATENT, perceptual=distance, discriminator=judge,
        reconstruction=reconstruction, objective=objective, **weights,
    )  # fmt: skip
    noise = draws().normal("posterior", LATENT).double()
    q = plain.vae.encode(x).latent_dist
    again = plain.vae.decode(q.mean + q.std * noise).sample
    logits = judge(again).logits
    terms = {
        "reconstruction": (again - x).abs().mean() if reconstruction == "l1" else (again - x).square().mean(),
        "kl": q.kl().mean(),
        "perceptual": distance(x, again).mean(),
        "adversarial": {
            "hinge": -logits.mean(), "non_saturating": torch.nn.functional.softplus(-logits).mean(),
            "least_squares": (logits - 1).square().mean(),
        }[objective],
    }  # fmt: skip
    for key, value in terms.items():
        torch.testing.assert_close(values[key], value.detach(), msg=lambda text, key=key: f"{key}: {text}")
    expected = terms["reconstruction"] + 0.3 * terms["kl"] / 64 + 0.7 * terms["perceptual"] + 0.2 * terms["adversarial"]
    torch.testing.assert_close(values["loss"], expected)
    assert not values["kl"].requires_grad and values["kl"] > 0
    torch.testing.assert_close(values["kl"], gaussian_kl(q.mean, q.logvar).sum().detach() / 6)


def test_the_critic_s_loss_closed_form():
    plain, judge, x = network().double(), critic().double(), pictures().double()
    values = patch_discriminator_loss(judge, plain, {"x": x}, draws(), latent_shape=LATENT)
    fake = plain(x, draws().normal("posterior", LATENT)).reconstruction
    real, fake = judge(x).logits, judge(fake).logits
    torch.testing.assert_close(values["loss"], (1 - real).relu().mean() + (1 + fake).relu().mean())
    torch.testing.assert_close(values["accuracy_fake"], (fake <= 0).float().mean())
    values["loss"].backward()  # without the loop's help
    assert all(g is None for g in gradients(plain)) and all(g is not None for g in gradients(judge))


@pytest.mark.parametrize("sigma", [1.0, 0.3])
def test_with_squared_errors_it_is_the_elbo_of_gaussian_pixels(sigma):
    """loss * D / (2 sigma^2) = -ELBO_beta - D log(sigma sqrt(2 pi)), with the beta of the weight, at any weights."""
    x, weight = pictures().double(), 0.5
    beta = beta_of_mse_weight(weight / 64, 64, sigma)
    assert beta == pytest.approx(weight / (2 * sigma**2))
    for seed in (0, 1):
        plain = network().double()
        with torch.no_grad():
            for p in plain.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=seeded(seed), dtype=torch.float64))
        values = perceptual_compression_loss(
            plain, {"x": x}, draws(), latent_shape=LATENT, reconstruction="mse", kl_weight=weight
        )
        out = plain(x, draws().normal("posterior", LATENT))
        log_p = log_likelihood("gaussian", x, out.reconstruction, torch.tensor(sigma).double().log())
        kl = gaussian_kl(out.mean, out.log_variance).flatten(1).sum(1)
        constant = 64 * np.log(sigma * np.sqrt(2 * np.pi))
        torch.testing.assert_close(values["loss"] * 64 / (2 * sigma**2), (-log_p + beta * kl).mean() - constant)


def test_the_distance_of_equal_images_is_zero_and_others_move():
    x, distance = pictures(), partial(perceptual_loss, model=load_extractor("digits").model)
    assert distance(x, x).abs().max() == 0
    grads = []
    for weight in (0.0, 1.0, 3.0):
        plain = network()
        perceptual_compression_loss(
            plain, {"x": x}, draws(), latent_shape=LATENT, perceptual=distance, perceptual_weight=weight
        )["loss"].backward()
        grads.append(plain.vae.encoder.conv_in.weight.grad)
    assert (grads[1] - grads[0]).abs().max() > 1e-4
    torch.testing.assert_close(grads[2] - grads[0], 3 * (grads[1] - grads[0]), atol=1e-6, rtol=1e-3)


def test_a_posterior_of_any_width_stays_finite():
    plain = network()
    for width in (-1e4, 1e4):
        with torch.no_grad():
            plain.vae.quant_conv.bias[2:] = width
        out = plain(pictures())
        assert out.log_variance.unique().tolist() == [max(min(width, 20), -30)]
        assert gaussian_kl(out.mean, out.log_variance).isfinite().all()


# ------------------------------------------------------------ two players


class Pictures:
    """Twenty pictures of two tones."""

    fingerprint = "pictures"

    def __init__(self):
        tones = torch.arange(20) % 2
        self.images = (pictures(20) + 2 * tones.view(-1, 1, 1, 1) - 1).div(2).double()

    def batch(self, first, last, *, seed, device):
        return {"x": self.images[indices(first, last, 20, seed)]}


def game(accelerator, begin: int = 2, validation=lambda name, players: None) -> list[Phase]:
    plain, judge = network().double(), critic().double()
    ema = EMA(plain, 0.9)
    autoencoder, optimizer = accelerator.prepare(plain, torch.optim.Adam(plain.parameters(), lr=1e-2, eps=1e-3))
    wrapped, judge_optimizer = accelerator.prepare(judge, torch.optim.Adam(judge.parameters(), lr=1e-2, eps=1e-3))

    def loss(batch, rng):
        playing = rng.position >= 8 * begin
        values = perceptual_compression_loss(
            autoencoder, batch, rng, latent_shape=LATENT, kl_weight=0.01, adversarial_weight=0.5,
            discriminator=wrapped if playing else None,
        )  # fmt: skip
        values["loss"].register_hook(lambda grad: validation("autoencoder", (plain, judge)))
        return values

    def judge_loss(batch, rng):
        values = patch_discriminator_loss(wrapped, autoencoder, batch, rng, latent_shape=LATENT)
        values["loss"].register_hook(lambda grad: validation("discriminator", (plain, judge)))
        return values

    return [
        Phase("autoencoder", loss, autoencoder, optimizer, ema=ema, max_grad_norm=1.0),
        Phase("discriminator", judge_loss, wrapped, judge_optimizer, after=begin, max_grad_norm=1.0),
    ]


def run(folder: Path, steps: int = 6, batch_size: int = 8, accumulate: int = 1, make=game):
    accelerator = Accelerator(cpu=True)
    phases = make(accelerator)
    options = {"batch_size": batch_size, "accumulate": accumulate, "checkpoint_every": 1, "checkpoints_limit": None}
    folder.mkdir(parents=True, exist_ok=True)
    train(accelerator, phases, Pictures(), output_dir=folder, max_steps=steps, log_every=1, **options)
    return phases


def on_a_rank(log: str, env: dict[str, str], folder: str) -> None:
    enter(log, env)
    run(Path(folder), batch_size=2, accumulate=2)


def weights(folder: Path, step: int, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"checkpoint-{step}" / f"{name}.model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


def test_each_phase_moves_its_own_player_alone(tmp_path):
    seen = set()

    def make(accelerator):
        phases = game(accelerator, begin=0)
        players = [phase.trains for phase in phases]
        for phase, other in zip(phases, reversed(players)):

            def stepped(*args, phase=phase, other=other, real=phase.optimizer.optimizer.step):
                assert all(g is None for g in gradients(other)), f"{phase.name} left a gradient in the other player"
                own = gradients(phase.trains)
                assert all(g is not None for g in own), f"{phase.name} leaves parameters out"
                assert all(g.abs().sum() > 0 for g in own[:-1])  # inside its margins the hinge knows no last bias
                seen.add(phase.name)
                return real(*args)

            phase.optimizer.optimizer.step = stepped
        return phases

    run(tmp_path, 2, make=make)
    assert seen == {"autoencoder", "discriminator"}


def test_the_critic_waits_and_then_plays(whole):
    states = [weights(whole, step, "discriminator") for step in (1, 2, 3)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    moved = [key for key in states[0] if not torch.equal(states[1][key], states[2][key])]
    assert len(moved) >= len(states[0]) - 1
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    for key in ("autoencoder/adversarial", "discriminator/loss", "discriminator/accuracy_real"):
        assert [key in row for row in rows] == [False, False, True, True, True, True]


def test_resuming_is_bit_equal_before_and_after_the_critic_began(whole, tmp_path):
    for step in (1, 4):
        folder = part_of(whole, step, tmp_path / str(step))
        run(folder)
        assert held(folder, 6) == held(whole, 6)
    assert any("ema" in name for name in held(whole, 6)) and any("discriminator.opt" in n for n in held(whole, 6))


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_equal_the_whole_batch(whole, tmp_path, parts):
    run(tmp_path, batch_size=8 // parts, accumulate=parts)
    assert_alike(whole, tmp_path)


def test_two_processes_equal_one(start, whole, tmp_path):
    for child in ranks(start, on_a_rank, str(tmp_path / "two")):
        code, text = ended(child)
        assert code == 0, text
    assert_alike(whole, tmp_path / "two")


def assert_alike(one: Path, other: Path) -> None:
    for name in ("autoencoder", "discriminator"):
        a, b = weights(one, 6, name), weights(other, 6, name)
        assert a.keys() == b.keys()
        for key, value in a.items():
            torch.testing.assert_close(b[key], value, rtol=1e-7, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")


# ------------------------------------------------------------ latents


def test_statistics_are_those_of_sampled_latents():
    vae, x = network().vae.double().eval(), pictures(30).double()
    with torch.no_grad():
        q = vae.encode(x).latent_dist
        noise = torch.randn(1000, *q.mean.shape, generator=seeded(0), dtype=torch.float64)
        z = q.mean + q.std * noise
    mean, std = latent_statistics(vae, x, batch_size=7)
    assert mean == pytest.approx(float(q.mean.mean()), abs=1e-12)
    assert std == pytest.approx(float(z.std()), rel=2e-3) and std > 1.1 * float(q.mean.std())
    assert latent_statistics(vae, x, batch_size=30) == pytest.approx((mean, std), rel=1e-12)


def test_calibrated_latents_have_mean_zero_and_deviation_one(pipe):
    x = pictures(200)
    pipe.vae.register_to_config(latents_mean=[1.0, 2.0], latents_std=[1.0, 2.0])
    pipe.calibrate(x)
    config = pipe.vae.config
    assert config.latents_mean is None and config.latents_std is None
    z = pipe.encode(x, sample_posterior=True, generator=seeded(0))
    assert abs(float(z.mean())) < 0.02 and float(z.std()) == pytest.approx(1, rel=0.02)
    raw = AutoencoderKLPipeline(network().vae).encode(x) / 0.18215  # diffusers' number for another network
    torch.testing.assert_close(pipe.encode(x), (raw - config.shift_factor) * config.scaling_factor)


def test_a_collapsed_or_broken_encoder_is_not_calibrated(pipe):
    with torch.no_grad():
        pipe.vae.quant_conv.weight.zero_()
        pipe.vae.quant_conv.bias.copy_(torch.tensor([0.0, 0.0, -1e4, -1e4]))
    before = dict(pipe.vae.config)
    with pytest.raises(UsageError, match="all are equal"):
        pipe.calibrate(pictures())
    pipe.vae.quant_conv.bias.data[2:] = float("nan")
    with pytest.raises(NumericsError, match="latents of these images are not finite"):
        pipe.calibrate(pictures())
    with pytest.raises(UsageError, match="at least one; got none"):
        latent_statistics(pipe.vae, pictures()[:0])
    assert dict(pipe.vae.config) == before


# ------------------------------------------------------------ pipeline


@pytest.fixture
def pipe():
    return AutoencoderKLPipeline(network().vae.eval())


def test_words(pipe):
    x = pictures()
    pipe.calibrate(x)
    z = pipe.encode(x)
    assert z.shape == (6, *LATENT)
    again = pipe.decode(z, output_type="latent")
    torch.testing.assert_close(again, network()(x).reconstruction, atol=1e-5, rtol=1e-5)
    assert torch.equal(pipe.reconstruct(x, output_type="latent"), again)
    assert pipe.reconstruct(x)[0].size == (8, 8) and pipe(latents=z, output_type="np").images.shape == (6, 8, 8, 1)
    assert pipe.encode(pictures(1, size=12)).shape == (1, 2, 6, 6)  # of any size
    samples = [pipe.encode(x, sample_posterior=True, generator=seeded(s)) for s in (0, 0, 1)]
    assert torch.equal(samples[0], samples[1]) and not torch.equal(samples[0], samples[2])


@pytest.mark.parametrize("size", [8, 160])
def test_nothing_depends_on_the_batch(pipe, size):
    x, sizes = pictures(19 if size == 8 else 3, size=size), set()
    for part in (pipe.vae.encoder, pipe.vae.decoder):  # kernels are chosen by the shape of a batch
        part.register_forward_pre_hook(lambda module, inputs: sizes.add(len(inputs[0])))
    many, few = ((pipe.encode(part), pipe.reconstruct(part, output_type="latent")) for part in (x, x[:2]))
    assert all(torch.equal(a[:2], b) for a, b in zip(many, few))
    assert sizes == {16 if size == 8 else 2}  # large pictures in smaller parts


@pytest.mark.parametrize("mode", ["lerp", "slerp"])
def test_interpolation_ends_at_the_reconstructions(pipe, mode):
    a, b = pictures(2).split(1)
    way = pipe.interpolate(a, b, 5, mode=mode, output_type="latent")
    torch.testing.assert_close(way[[0, -1]], pipe.reconstruct(torch.cat([a, b]), output_type="latent"))
    if mode == "lerp":
        middle = (pipe.encode(a) + pipe.encode(b)) / 2
        torch.testing.assert_close(way[2:3], pipe.decode(middle, output_type="latent"))


def test_sampling_needs_a_density_and_has_it_from_a_mixture(pipe):
    with pytest.raises(UsageError, match=r"no generative model.*latentia.LatentMixture.fit"):
        pipe(2)
    pipe.calibrate(pictures(60))
    pipe.register_modules(prior=LatentMixture.fit(pipe.encode(pictures(60)), num_components=2))
    pipe.vae.register_to_config(sample_size=512)  # a network of others: its size says nothing about the latents
    many = pipe(20, generator=seeded(1), output_type="latent").images
    assert many.shape == (20, 1, 8, 8) and len(many.unique(dim=0)) == 20
    assert torch.equal(pipe(3, generator=seeded(1), output_type="latent").images, many[:3])
    flat = pipe.prior.sample(3, image_generators([seeded(i) for i in range(3)], 3))
    images = pipe(3, generator=[seeded(i) for i in range(3)], output_type="latent").images
    assert torch.equal(images, pipe.decode(flat.view(3, *LATENT), output_type="latent"))
    pipe.register_modules(prior=LatentMixture.fit(torch.randn(30, 24), num_components=1))
    with pytest.raises(UsageError, match=r"square, 2 \* s \* s values each; got 24"):
        pipe(1)


def test_diffusers_alone_loads_and_uses_what_was_saved(pipe, tmp_path):
    x = pictures()
    pipe.calibrate(x)
    pipe.save_pretrained(tmp_path)
    plain = diffusers.AutoencoderKL.from_pretrained(tmp_path, subfolder="vae")
    assert type(plain) is diffusers.AutoencoderKL and plain.config.shift_factor == pipe.vae.config.shift_factor
    z = torch.randn(16, *LATENT, generator=seeded(0))
    with torch.no_grad():
        assert torch.equal(plain.decode(z).sample, pipe.vae.decode(z).sample)
        mean = plain.encode(x).latent_dist.mode()
        scaled = (mean - plain.config.shift_factor) * plain.config.scaling_factor
        stock = plain.decode(scaled / plain.config.scaling_factor + plain.config.shift_factor).sample
    torch.testing.assert_close(pipe.encode(x), scaled)
    torch.testing.assert_close(pipe.decode(scaled, output_type="latent"), stock)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded) is AutoencoderKLPipeline and loaded.prior is None
    assert torch.equal(loaded.reconstruct(x, output_type="latent"), pipe.reconstruct(x, output_type="latent"))


def test_a_network_of_others(tmp_path):
    """No shift, no size in its configuration: what diffusers' own class has by default."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(in_channels=3, out_channels=3, block_out_channels=(8,), norm_num_groups=4).eval()
    pipe, x = AutoencoderKLPipeline(vae), torch.rand(2, 3, 6, 10) * 2 - 1
    torch.testing.assert_close(pipe.encode(x), 0.18215 * vae.encode(x).latent_dist.mode().detach())
    assert pipe.reconstruct(x, output_type="np").shape == (2, 6, 10, 3)
    pipe.to(torch.bfloat16)
    assert pipe.reconstruct(x, output_type="pt").isfinite().all()


# ------------------------------------------------------------ bad input


def objective(**options):
    return perceptual_compression_loss(network(), {"x": pictures()}, draws(), latent_shape=LATENT, **options)


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda: autoencoder_kl(10, block_out_channels=(8, 8, 8)), "sample_size must be divisible by 2 .. 2 = 4"),
        (lambda: autoencoder_kl(8, block_out_channels=(12, 8)), "got 8 groups and 12 channels"),
        (lambda: autoencoder_kl(8, block_out_channels=(8,)), r"at least two numbers; got \(8,\)"),
        (lambda: autoencoder_kl(8, block_out_channels=()), "at least two numbers"),
        (lambda: autoencoder_kl(8, layers_per_block=0), "must be at least 1"),
        (lambda: autoencoder_kl(8, 1, (8, 8), latent_channels=5), "latent_channels must be at most 4.*got 5"),
        (lambda: PatchDiscriminator(1, (8,)), "block_out_channels must be at least two numbers"),
        (lambda: PatchDiscriminator(0, (8, 8)), "at least 1"),
        (lambda: PatchDiscriminator(1, (8, 8), norm="batch"), "norm must be one of group, spectral, none"),
        (lambda: objective(kl_weight=-1e-6), "kl_weight must be at least 0; got -1e-06"),
        (lambda: objective(perceptual_weight=float("nan")), "perceptual_weight must be at least 0"),
        (lambda: objective(adversarial_weight=float("inf")), "adversarial_weight must be at least 0"),
        (lambda: objective(reconstruction="l2"), "reconstruction must be one of l1, mse; got 'l2'"),
        (lambda: objective(discriminator=critic(), objective="hing"), 'Did you mean "hinge"'),
        (lambda: objective(discriminator=critic(), objective="relativistic"), "compares fake with real"),
    ],
)
def test_configurations_and_calls_that_make_no_sense(call, text):
    with pytest.raises(UsageError, match=text):
        call()


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda pipe: pipe(0), "batch_size must be at least 1; got 0"),
        (lambda pipe: pipe(2, latents=torch.zeros(3, *LATENT)), "latents are given for 3 images"),
        (lambda pipe: pipe(output_type="pill"), 'Did you mean "pil"'),
        (lambda pipe: pipe.decode(torch.zeros(1, 3, 4, 4)), r"shape \(B, 2, h, w\), B >= 1; got \(1, 3, 4, 4\)"),
        (lambda pipe: pipe.decode(torch.zeros(0, 2, 4, 4)), "B >= 1"),
        (lambda pipe: pipe.encode(torch.zeros(1, 3, 8, 8)), "channel"),
        (lambda pipe: pipe.encode(torch.zeros(1, 1, 8, 7)), "sides divisible by 2.*8 by 7"),
        (lambda pipe: pipe.interpolate(pictures(2), pictures(1)), "a must be one image; got 2"),
        (lambda pipe: pipe.interpolate(pictures(1), pictures(1), 1), "steps must be at least 2"),
        (lambda pipe: pipe.interpolate(pictures(1), pictures(1, size=12)), "of one size; got 8 by 8 and 12 by 12"),
        (lambda pipe: pipe.log_likelihood(pictures(1)), "no log_likelihood"),
    ],
)
def test_pipeline_calls_that_make_no_sense(pipe, call, text):
    with pytest.raises(UsageError, match=text):
        call(pipe)


def test_grey_pictures_for_a_network_of_colours():
    pipe = AutoencoderKLPipeline(autoencoder_kl(8, 3, (8, 8)).eval())
    with pytest.raises(UsageError, match="channel"):
        pipe.encode(PIL.Image.new("L", (8, 8)))
    assert pipe.encode(PIL.Image.new("RGB", (8, 8))).shape == (1, 4, 4, 4)


# ------------------------------------------------------------ the example


@pytest.fixture(scope="module")
def example():
    return load_example("train_autoencoder_kl")


def arguments(example, folder, *argv, source=("--dataset_name", "digits")):
    words = f"""--max_train_samples 100 --block_out_channels 4 4 --norm_num_groups 2 --latent_channels 2
        --discriminator_channels 4 4 --max_train_steps 6 --train_batch_size 16 --eval_num_samples 20
        --output_dir {folder}""".split()
    return parse_arguments(example.Arguments, [*source, *words, *map(str, argv)], description="test", prog="train")


def test_the_example_leaves_a_pipeline_and_goes_on(example, tmp_path, capsys, monkeypatch):
    assert example.main(arguments(example, tmp_path, "--validation_steps", 3)) == 0
    assert "GaussianAutoencoder and PatchDiscriminator: " in capsys.readouterr().out
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    data = load_data(arguments(example, tmp_path).data).images.float() / 127.5 - 1
    z = pipe.encode(data, sample_posterior=True, generator=seeded(0))
    assert abs(float(z.mean())) < 0.05 and float(z.std()) == pytest.approx(1, rel=0.05)
    for step in (3, 6):
        assert (tmp_path / "samples" / f"step-00000{step}-reconstruction.png").exists()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {"autoencoder/adversarial", "autoencoder/perceptual", "discriminator/loss"} <= {k for r in rows for k in r}
    assert example.main(arguments(example, tmp_path)) == 0 and "Nothing to do" in capsys.readouterr().out
    assert example.main(arguments(example, tmp_path, "--max_train_steps", 8)) == 0
    # the card says what such a pipeline can do, and what it says runs
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    PIL.Image.new("L", (8, 8)).save("image.png")
    exec(code.replace("path/to/this/folder", str(tmp_path)), {})
    with PIL.Image.open("again.png") as again:
        assert again.size == (8, 8)


def test_evaluation_is_of_reconstructions_or_of_samples(example, tmp_path, capsys):
    folder = tmp_path / "kl"
    assert example.main(arguments(example, folder, "--perceptual_weight", 0, "--adversarial_weight", 0)) == 0
    words = [folder, "--n", 40, "--output_dir", tmp_path / "report", "--overwrite", "--metrics", "fd"]
    latentia_command(["evaluate", *map(str, words)])
    out = capsys.readouterr().out
    assert "reconstruction of 40" in out and "PSNR" in out and "no prior to sample from" in out
    pipe = DiffusionPipeline.from_pretrained(folder)
    images = pictures(40)
    pipe.register_modules(prior=LatentMixture.fit(pipe.encode(images), num_components=1))
    pipe.save_pretrained(folder)
    latentia_command(["evaluate", *map(str, words)])
    out = capsys.readouterr().out
    assert "Frechet distance" in out and "reconstruction" not in out


@pytest.mark.parametrize(
    "flags, text",
    [
        (["--adversarial_start", 1.5], r"adversarial_start must be in \[0, 1\]; got 1.5"),
        (["--calibration_samples", 0], "calibration_samples must be at least 1; got 0"),
        (["--kl_weight", -1], "kl_weight must be at least 0; got -1"),
        (["--adversarial_weight", -1], "adversarial_weight must be at least 0"),
        (["--block_out_channels", 4, 4, 4, 4, 4], "sample_size must be divisible by 2 .. 4"),
        (["--norm_num_groups", 3], "norm_num_groups must divide"),
        (["--discriminator_channels", 4, 4, 4, "--adversarial_start", 1], "at least 12 pixels; got 8"),
    ],
)
def test_flags_that_make_no_sense(example, tmp_path, flags, text):
    with pytest.raises(UsageError, match=text):
        example.main(arguments(example, tmp_path, *flags))


def test_pictures_that_are_not_square(example, tmp_path):
    source = tmp_path / "data"
    source.mkdir()
    for i in range(20):
        PIL.Image.new("RGB", (16, 8), (i, 0, 0)).save(source / f"{i}.png")
    with pytest.raises(UsageError, match="--resolution must make the images square; got 8 x 16"):
        example.main(arguments(example, tmp_path / "out", source=("--train_data_dir", str(source))))
