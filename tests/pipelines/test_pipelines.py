"""Sampling: any scheduler, any batch size, classes and guidance, and the words that all pipelines share."""

import math

import diffusers
import numpy as np
import pytest
import torch
from helpers import perturbed, pixels, quiet, seeded

from latentia import DDIMScheduler, DDPMScheduler, UnconditionalDiffusionPipeline, UNet2D
from latentia.errors import UsageError
from latentia.pipelines.arguments import image_generators

COSINE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}


def unet(classes=None, size=8):
    torch.manual_seed(0)
    config = {"block_out_channels": (8, 16), "attention_head_dim": 8, "layers_per_block": 1}
    return perturbed(UNet2D(sample_size=size, in_channels=1, num_class_embeds=classes, **config)).eval()


@pytest.fixture
def pipe():
    return quiet(UnconditionalDiffusionPipeline(unet(), DDIMScheduler(**COSINE)))


@pytest.fixture
def class_pipe():
    return quiet(UnconditionalDiffusionPipeline(unet(3), DDIMScheduler(**COSINE), label_names=["cat", "dog", "owl"]))


SCHEDULERS = [
    DDIMScheduler(**COSINE),
    DDPMScheduler(**COSINE),
    diffusers.DDIMScheduler(**COSINE),
    diffusers.DDPMScheduler(**COSINE),
    diffusers.DPMSolverMultistepScheduler(**COSINE),
    diffusers.UniPCMultistepScheduler(**COSINE),
    diffusers.EulerDiscreteScheduler(beta_schedule="linear", prediction_type="v_prediction"),
    diffusers.EulerAncestralDiscreteScheduler(beta_schedule="linear", prediction_type="v_prediction"),
]


@pytest.mark.parametrize(
    "scheduler", SCHEDULERS, ids=lambda s: f"{type(s).__module__.split('.')[0]}-{type(s).__name__}"
)
def test_the_same_seed_gives_the_same_bytes_whatever_the_batch(scheduler):
    pipe = quiet(UnconditionalDiffusionPipeline(unet(), scheduler))
    many = pixels(pipe(70, num_inference_steps=4, generator=seeded(7)).images)
    assert len(set(many)) == 70
    for n in (1, 2, 3, 65):
        assert pixels(pipe(n, num_inference_steps=4, generator=seeded(7)).images) == many[:n]
    assert pixels(pipe(2, num_inference_steps=4, generator=seeded(8)).images) != many[:2]


def test_images_ignore_the_batch_with_classes_and_guidance(class_pipe):
    def sample(labels):
        return pixels(
            class_pipe(
                class_labels=labels, guidance_scale=2.0, eta=1.0, num_inference_steps=4,
                generator=[seeded(i) for i in range(len(labels))],
            ).images
        )  # fmt: skip

    assert sample([0, 1, 2, 1])[:2] == sample([0, 1])


def test_networks_of_diffusers_run_in_ours_and_ours_in_its(pipe):
    theirs = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    assert quiet(UnconditionalDiffusionPipeline(theirs, DDIMScheduler()))(2, num_inference_steps=2).images[0].size == (
        8,
        8,
    )
    for kind, scheduler in (
        (diffusers.DDPMPipeline, DDPMScheduler(**COSINE)),
        (diffusers.DDIMPipeline, DDIMScheduler(**COSINE)),
    ):
        out = quiet(kind(pipe.unet, scheduler))(2, num_inference_steps=3, generator=seeded(0), output_type="np").images
        assert out.shape == (2, 8, 8, 1) and np.isfinite(out).all()


def test_our_ddim_gives_what_diffusers_ddim_gives(pipe):
    a = pipe(3, num_inference_steps=10, generator=seeded(0), output_type="np").images
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    np.testing.assert_allclose(
        a, pipe(3, num_inference_steps=10, generator=seeded(0), output_type="np").images, atol=1e-4
    )


def test_output_types_agree(pipe):
    out = {
        kind: pipe(2, num_inference_steps=3, generator=seeded(0), output_type=kind, return_dict=False)[0]
        for kind in ("pil", "np", "pt", "latent")
    }
    assert out["np"].shape == (2, 8, 8, 1) and out["pt"].shape == (2, 1, 8, 8)
    np.testing.assert_array_equal(out["np"], out["pt"].permute(0, 2, 3, 1).numpy())
    torch.testing.assert_close(out["pt"], (out["latent"].clamp(-1, 1) + 1) / 2)
    np.testing.assert_array_equal(np.asarray(out["pil"][0]), (out["np"][0, ..., 0] * 255).round())


def test_guidance_0_is_no_class_and_1_is_the_class(class_pipe):
    common = {"num_inference_steps": 4, "generator": seeded(3), "output_type": "latent"}

    def sample(**kwargs):
        return class_pipe(2, **{**common, "generator": seeded(3)}, **kwargs).images

    torch.testing.assert_close(sample(class_labels=1, guidance_scale=0.0), sample(), atol=1e-5, rtol=1e-4)
    close_to_one = sample(class_labels=1, guidance_scale=1 + 1e-6)
    torch.testing.assert_close(close_to_one, sample(class_labels=1), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(sample(class_labels=1), sample())
    assert torch.equal(sample(class_labels="dog"), sample(class_labels=torch.tensor([1, 1])))


class Overshooting(torch.nn.Module):
    """Says that the clean image is far outside of [-1, 1], as strong guidance does."""

    def __init__(self, scheduler):
        super().__init__()
        self.scheduler, self.dtype, self.device = scheduler, torch.float32, torch.device("cpu")
        self.config = type("Config", (), {"in_channels": 1, "out_channels": 1, "sample_size": 8})()

    def forward(self, x, t):
        a = self.scheduler.alphas_cumprod[t].float()
        eps = (x - a.sqrt() * 3) / (1 - a).sqrt()
        return type("Output", (), {"sample": a.sqrt() * eps - (1 - a).sqrt() * 3})()


def test_images_that_overshoot_end_at_the_bound_and_not_beyond():
    for scheduler in (DDIMScheduler(**COSINE), diffusers.DDIMScheduler(**COSINE)):
        pipe = quiet(UnconditionalDiffusionPipeline(unet(), scheduler))
        pipe.unet = Overshooting(scheduler)
        seen = []
        pipe(
            4,
            num_inference_steps=20,
            callback_on_step_end=lambda p, i, t, values, seen=seen: seen.append(values["latents"]) and None,
        )
        assert (seen[-1] == 1).all()
        # On the way, x_t is the clipped image and noise that has not shifted to make up for what was clipped.
        a = scheduler.alphas_cumprod[pipe.scheduler.timesteps[1:]].float()
        noise = [(x - a_s.sqrt()) / (1 - a_s).sqrt() for x, a_s in zip(seen, a)]
        assert max(abs(n.mean()) for n in noise) < 0.25 and max(n.std() for n in noise) < 1.2


def test_the_callback_sees_every_step_and_may_change_the_latents(pipe):
    seen = []

    def callback(pipeline, i, t, values):
        seen.append((i, int(t)))
        return {"latents": torch.zeros_like(values["latents"])} if i == 2 else None

    images = pipe(2, num_inference_steps=3, output_type="latent", callback_on_step_end=callback).images
    assert seen == list(enumerate(pipe.scheduler.timesteps.tolist())) and not images.any()


class Gaussian(torch.nn.Module):
    """The exact velocity for data from N(mean, std^2) in each pixel, standing in for a trained network."""

    def __init__(self, scheduler, mean=0.3, std=0.4):
        super().__init__()
        self.scheduler, self.mean, self.std = scheduler, mean, std
        self.dtype, self.device = torch.float64, torch.device("cpu")
        config = {"in_channels": 1, "out_channels": 1, "sample_size": 8, "num_class_embeds": None}
        self.config = type("Config", (), config)()

    def forward(self, x, t):
        a = self.scheduler.alphas_cumprod[t]
        x0 = self.mean + a.sqrt() * self.std**2 / (a * self.std**2 + 1 - a) * (x - a.sqrt() * self.mean)
        eps = (x - a.sqrt() * x0) / (1 - a).sqrt()
        return type("Output", (), {"sample": a.sqrt() * eps - (1 - a).sqrt() * x0})()


def gaussian_pipe():
    scheduler = DDIMScheduler(**COSINE, clip_sample=False)
    pipe = quiet(UnconditionalDiffusionPipeline(unet(), scheduler))
    pipe.unet = Gaussian(scheduler)
    return pipe


def test_encode_then_decode_is_exact_with_an_exact_network():
    pipe = gaussian_pipe()
    x = (0.3 + 0.4 * torch.randn(16, 1, 8, 8, generator=seeded(0), dtype=torch.float64)).clamp(-1, 1)
    z = pipe.encode(x, num_inference_steps=50, refinements=3)
    assert abs(z.mean()) < 0.1 and 0.85 < z.std() < 1.1
    mse = (pipe.decode(z, num_inference_steps=50, output_type="latent") - x).pow(2).mean()
    assert 10 * torch.log10(4 / mse) > 30  # PSNR over the range of 2
    rough = pipe.encode(x, num_inference_steps=50, refinements=1)
    assert (pipe.decode(rough, num_inference_steps=50, output_type="latent") - x).pow(2).mean() > mse


def test_interpolation_starts_and_ends_at_the_images():
    pipe = gaussian_pipe()
    a, b = torch.rand(2, 1, 1, 8, 8, generator=seeded(0), dtype=torch.float64) * 0.8
    path = pipe.interpolate(a, b, 5, num_inference_steps=50, output_type="latent")
    assert path.shape == (5, 1, 8, 8)
    torch.testing.assert_close(path[:1], a, atol=0.02, rtol=0)
    torch.testing.assert_close(path[-1:], b, atol=0.02, rtol=0)


def test_the_bound_of_an_exact_network_is_the_entropy():
    pipe = gaussian_pipe()
    pipe.scheduler = pipe.unet.scheduler = DDIMScheduler(
        beta_schedule="linear", prediction_type="v_prediction", clip_sample=False
    )
    x = 0.3 + 0.2 * torch.randn(20, 1, 8, 8, generator=seeded(0), dtype=torch.float64)
    pipe.unet.std = 0.2
    x = ((x.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1  # 256 bins
    nats = -pipe.log_likelihood(x, generator=seeded(1)).mean() / 64
    entropy = 0.5 * math.log(2 * math.pi * math.e * 0.2**2) - math.log(2 / 255)
    assert entropy * 0.98 < nats < entropy * 1.04
    pipe.unet.mean = 0.2  # a wrong model has a worse bound
    assert -pipe.log_likelihood(x, generator=seeded(1)).mean() / 64 > nats + 0.05


def test_learned_variance_has_a_bound_under_any_scheduler():
    torch.manual_seed(0)
    network = perturbed(
        UNet2D(sample_size=8, in_channels=1, out_channels=2, block_out_channels=(8,), attention_head_dim=8)
    )
    pipe = quiet(UnconditionalDiffusionPipeline(network, DDPMScheduler(variance_type="learned_range")))
    assert pipe(2, num_inference_steps=3, output_type="latent").images.shape == (2, 1, 8, 8)
    x = torch.zeros(2, 1, 8, 8)
    assert pipe.log_likelihood(x, num_inference_steps=10).shape == (2,)
    pipe.scheduler = DDIMScheduler()
    assert pipe(2, num_inference_steps=3, output_type="latent").images.shape == (2, 1, 8, 8)
    assert pipe.decode(pipe.encode(x, num_inference_steps=3), num_inference_steps=3, output_type="np").shape == (
        2,
        8,
        8,
        1,
    )


def test_a_generator_per_image_is_drawn_in_turn():
    few, many = image_generators(seeded(5), 2), image_generators(seeded(5), 6)
    assert [g.initial_seed() for g in few] == [g.initial_seed() for g in many[:2]]
    assert len({g.initial_seed() for g in many}) == 6
    with pytest.raises(UsageError, match="batch_size=3"):
        image_generators([seeded(0)], 3)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"num_inference_steps": 0}, ["num_inference_steps", "1 to 1000", "0"]),
        ({"num_inference_steps": 1001}, ["num_inference_steps", "1 to 1000", "1001"]),
        ({"batch_size": 0}, ["batch_size", "at least 1", "0"]),
        ({"output_type": "pill"}, ["output_type", '"pil"']),
        ({"class_labels": [0, 3]}, ["class_labels", "0 to 2", "3"]),
        ({"class_labels": "dgo"}, ["dgo", '"dog"']),
        ({"class_labels": [0, 1], "batch_size": 3}, ["batch_size", "3", "2"]),
        ({"guidance_scale": 2.0}, ["guidance_scale", "class_labels"]),
    ],
)
def test_bad_arguments_say_what_and_why(class_pipe, kwargs, words):
    with pytest.raises(UsageError) as error:
        class_pipe(**kwargs)
    assert all(word in str(error.value) for word in words), error.value


def test_every_word_wants_one_label_or_one_for_each_picture(class_pipe):
    x = torch.zeros(3, 1, 8, 8)
    for word in (class_pipe.encode, class_pipe.decode, class_pipe.log_likelihood):
        with pytest.raises(UsageError, match="one for each of 3 images; got 2"):
            word(x, class_labels=["cat", "owl"], num_inference_steps=2)


def test_what_the_family_cannot_do_says_so(pipe):
    with pytest.raises(UsageError, match="trained without classes"):
        pipe(class_labels=1)
    with pytest.raises(UsageError, match="at least 2"):
        pipe.interpolate(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8), 1)


def test_the_denoising_loop_compiles_whole_and_gives_the_same():
    network, scheduler = unet(), DDIMScheduler(**COSINE)
    scheduler.set_timesteps(5)

    def denoise(x):
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t).sample, t, x, return_dict=False)[0]
        return x

    x = torch.randn(2, 1, 8, 8, generator=seeded(0))
    torch._dynamo.reset()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(denoise, backend="aot_eager", fullgraph=True)(x), denoise(x))
