"""Pictures to start from, to keep a part of, to be sharpened: in pixels and latents, under any scheduler."""

import diffusers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import perturbed, pixels, quiet, seeded
from PIL import Image
from tiny_pipelines import COSINE, SCHEDULERS, WORDS, kl, text_pipeline, unet
from torch import nn

from latentia import DDIMScheduler, DDPMScheduler, LatentDiffusionPipeline, UnconditionalDiffusionPipeline, UNet2D
from latentia.errors import UsageError
from latentia.models.unet import UNet2DOutput
from latentia.pipelines.image_conditioning import SuperResolution

PIXELS = {**COSINE, "clip_sample": True}


@pytest.mark.parametrize(
    "given, rule",
    [
        ({"latents": 3}, "latents must be a tensor or None; got 3"),
        ({"latents": np.zeros((1, 4, 8, 8))}, "latents must be a tensor or None"),
        ({"latents": torch.zeros(1, 4, 8, 8, device="meta")}, "latents must be a dense tensor of values"),
        ({"num_inference_steps": None}, "num_inference_steps must be an integer; got None"),
        ({"eta": None}, "eta must be a number; got None"),
        ({"guidance_scale": torch.tensor(3.0)}, "guidance_scale must be a number; got tensor"),
        ({"generator": "0"}, "generator must be"),
        ({"callback_on_step_end": 3}, "callback_on_step_end must be a function or None; got 3"),
        ({"callback_on_step_end_tensor_inputs": 3}, "callback_on_step_end_tensor_inputs must be a sequence of texts"),
        ({"return_dict": "no"}, "return_dict must be True or False"),
    ],
)
def test_arguments_of_another_type_are_refused_by_name(given, rule):
    pipe = UnconditionalDiffusionPipeline(unet(), DDIMScheduler(**COSINE))
    with pytest.raises(UsageError, match=rule):
        pipe(**{"num_inference_steps": 2, **given})
    with pytest.raises(UsageError, match="must be on a device with memory"):
        pipe.to("meta")(num_inference_steps=2)


def pixel_pipeline(scheduler=None, classes=None):
    torch.manual_seed(0)
    config = {"block_out_channels": (8, 16), "attention_head_dim": 8, "layers_per_block": 1}
    network = perturbed(UNet2D(sample_size=16, in_channels=1, num_class_embeds=classes, **config)).eval()
    return quiet(UnconditionalDiffusionPipeline(network, scheduler or DDIMScheduler(**PIXELS)))


def latent_pipeline(scheduler=None):
    return quiet(LatentDiffusionPipeline(kl(), unet(), scheduler or DDIMScheduler(**COSINE)))


KINDS = {"pixels": pixel_pipeline, "latents": latent_pipeline, "text": lambda s=None: text_pipeline(True, s)}


def picture(kind, n=1):
    shape = (3 if kind == "text" else 1, 16, 16)
    bytes_ = torch.randint(0, 256, (n, *shape), generator=seeded(5), dtype=torch.uint8)
    arrays = bytes_.permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(a[..., 0] if shape[0] == 1 else a) for a in arrays]


def made(pipe, **options):
    asked = {"num_inference_steps": 4, "generator": seeded(0), **options}
    return pixels((pipe(WORDS[0], **asked) if "tokenizer" in pipe.components else pipe(**asked)).images)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda s: type(s).__name__)
def test_strength_runs_from_the_very_picture_to_noise_alone(kind, scheduler):
    pipe, [image] = KINDS[kind](scheduler), picture(kind)
    assert made(pipe, image=image, strength=0.0) == pixels([image])
    assert made(pipe, image=image, strength=1.0) == made(pipe)
    half = made(pipe, image=image, strength=0.5)
    assert half != made(pipe) and half != pixels([image])
    assert made(pipe, image=image) == made(pipe, image=image, strength=0.8)


class Gaussian(nn.Module):
    """The exact network of data from N(0, s^2): epsilon of x_t is sqrt(1 - a) x / (a s^2 + 1 - a)."""

    def __init__(self, scheduler, spread):
        super().__init__()
        self.inner = UNet2D(8, 1, block_out_channels=(8,), attention_head_dim=8)
        self.config, self.alphas, self.spread = self.inner.config, scheduler.alphas_cumprod, spread

    dtype, device = torch.float32, torch.device("cpu")

    def forward(self, x, t, **told):
        a = self.alphas[int(t)]
        return UNet2DOutput((1 - a).sqrt() * x / (a * self.spread**2 + 1 - a))


def exact(spread=0.5, scheduler=None):
    scheduler = scheduler or DDIMScheduler(clip_sample=False)
    pipe = quiet(UnconditionalDiffusionPipeline(UNet2D(8, 1, block_out_channels=(32,)), scheduler))
    pipe.unet = Gaussian(scheduler, spread)
    return pipe


def test_the_picture_is_forgotten_as_strength_grows():
    """DDIM takes x_t of exact Gaussian data straight to s x_t / sqrt(a s^2 + 1 - a), so the distance is known."""
    pipe, s, value = exact(spread := 0.5), spread, 0.9
    image, distances = torch.full((64, 1, 8, 8), value), []
    for strength in (0.1, 0.3, 0.5, 0.7, 0.9):
        x = pipe(
            64, image=image, strength=strength, num_inference_steps=100, generator=seeded(0), output_type="latent"
        ).images
        distances.append(float((x - image).square().mean()))
        a = float(pipe.scheduler.alphas_cumprod[int(pipe.scheduler.timesteps[round(100 * (1 - strength))])])
        factor = s / (a * s**2 + 1 - a) ** 0.5
        known = (factor * a**0.5 * value - value) ** 2 + factor**2 * (1 - a)
        assert distances[-1] == pytest.approx(known, rel=0.1), strength
    assert distances == sorted(distances)


def test_noise_of_the_right_size_is_added_by_every_scheduler():
    """One step from the start: a perfect denoiser of a known picture gives it back whatever the strength."""
    image = torch.linspace(-0.9, 0.9, 64).view(1, 1, 8, 8)
    kinds = [
        DDIMScheduler(clip_sample=False), DDPMScheduler(clip_sample=False),
        diffusers.DDIMScheduler(clip_sample=False), diffusers.DPMSolverMultistepScheduler(),
        diffusers.UniPCMultistepScheduler(), diffusers.EulerDiscreteScheduler(),
        diffusers.FlowMatchEulerDiscreteScheduler(),
    ]  # fmt: skip
    for scheduler in kinds:
        flow = isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler)

        class Knows(Gaussian):
            def forward(self, x, t, flow=flow, **told):
                if flow:
                    return UNet2DOutput((x - image) / (t / 1000))
                a = self.alphas[int(t)]
                return UNet2DOutput((x - a.sqrt() * image) / (1 - a).sqrt())

        pipe = exact(scheduler=DDIMScheduler(clip_sample=False))
        pipe.unet = Knows(DDIMScheduler(clip_sample=False), 1.0)
        pipe.scheduler = scheduler
        for strength in (0.3, 0.6):
            x = pipe(image=image, strength=strength, num_inference_steps=10, generator=seeded(0), output_type="latent")
            assert (x.images - image).abs().max() < 0.15, (type(scheduler).__name__, strength)


@pytest.mark.parametrize("skip", [False, True])
def test_a_scheduler_that_cannot_begin_in_the_middle_is_refused(skip):
    pipe, [image] = pixel_pipeline(diffusers.PNDMScheduler(skip_prk_steps=skip)), picture("pixels")
    with pytest.raises(UsageError, match=r"strength must be 0 or 1 with a PNDMScheduler.*got 0.5.*DPMSolverMultistep"):
        pipe(image=image, strength=0.5, num_inference_steps=4)
    assert made(pipe, image=image, strength=0.0) == pixels([image])
    assert made(pipe, image=image, strength=1.0) == made(pipe)
    assert made(pipe, image=image, mask=np.zeros((16, 16))) == pixels([image])


# ------------------------------------------------------------ masks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda s: type(s).__name__)
def test_outside_the_mask_every_pixel_stays(kind, scheduler):
    pipe, [image] = KINDS[kind](scheduler), picture(kind)
    mask = np.zeros((16, 16), np.float32)
    mask[:, 8:] = 1
    new = np.frombuffer(made(pipe, image=image, mask=mask)[0], np.uint8).reshape(16, 16, -1)
    old = np.asarray(image).reshape(16, 16, -1)
    assert (new[:, :8] == old[:, :8]).all() and (new[:, 8:] != old[:, 8:]).mean() > 0.5
    grey = Image.fromarray((mask * 255).astype(np.uint8))
    assert made(pipe, image=image, mask=grey) == [new.tobytes()]
    assert made(pipe, image=image, mask=np.zeros((16, 16))) == pixels([image])
    alone = made(pipe)
    assert made(pipe, image=image, mask=np.ones((16, 16))) == alone
    assert made(pipe, image=image, mask=mask, strength=0.5) != [new.tobytes()]


def test_what_is_kept_draws_what_is_new_to_itself():
    """A network that knows two pictures, black and white: the half that is kept says which of them the other is."""

    class Two(Gaussian):
        def forward(self, x, t, **told):
            a = self.alphas[int(t)]
            score = (a.sqrt() * x.flatten(1).sum(1) / (1 - a)).tanh()  # E[x_0 | x_t] of +1 and -1
            clean = score.view(-1, 1, 1, 1).expand_as(x)
            return UNet2DOutput((x - a.sqrt() * clean) / (1 - a).sqrt())

    pipe = exact()
    pipe.unet = Two(pipe.scheduler, 1.0)
    image = torch.ones(200, 1, 8, 8)
    image[100:] = -1
    mask = torch.zeros(8, 8)
    mask[4:] = 1
    x = pipe(200, image=image, mask=mask, num_inference_steps=50, generator=seeded(0), output_type="latent").images
    agree = ((x[:, :, 4:].mean((1, 2, 3)) - image[:, 0, 0, 0]).abs() < 0.1).float().mean()
    assert agree > 0.65  # 1/2 by chance, with an error of 0.035


# ------------------------------------------------------------ sharpening


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(**PIXELS), DDPMScheduler(**PIXELS), DDIMScheduler(prediction_type="epsilon"),
        DDIMScheduler(prediction_type="sample"), diffusers.DDIMScheduler(), diffusers.DPMSolverMultistepScheduler(),
        diffusers.FlowMatchEulerDiscreteScheduler(),
    ],
    ids=lambda s: f"{type(s).__module__.split('.')[0]}-{type(s).__name__}-{s.config.get('prediction_type')}",
)  # fmt: skip
@pytest.mark.parametrize("factor", [2, 4])
def test_blocks_of_a_sharpened_image_have_the_given_means(scheduler, factor):
    pipe = pixel_pipeline(scheduler)
    small = torch.rand(3, 1, 16 // factor, 16 // factor, generator=seeded(2)) * 1.6 - 0.8
    x = pipe(low_resolution=small, num_inference_steps=4, generator=seeded(0), output_type="latent").images
    assert x.shape == (3, 1, 16, 16)
    torch.testing.assert_close(F.avg_pool2d(x, factor), small, atol=1e-5, rtol=0)
    one = pipe(low_resolution=small[:1], num_inference_steps=4, generator=seeded(0), output_type="latent").images
    assert torch.equal(one[0], x[0])


def test_the_projection_is_the_nearest_and_leaves_what_fits():
    x, small = torch.randn(2, 3, 8, 8, generator=seeded(0)), torch.randn(2, 3, 4, 4, generator=seeded(1))
    sharpen = SuperResolution(small, 2)
    near = sharpen.project(x)
    torch.testing.assert_close(sharpen.project(near), near)
    other = sharpen.project(torch.randn(2, 3, 8, 8, generator=seeded(2)))
    assert (near - x).norm() < (other - x).norm()
    assert abs(float(((near - x) * (near - other)).sum())) < 1e-3  # at a right angle to all that fits


def test_the_corrected_prediction_has_the_projected_picture():
    x, output = torch.randn(2, 1, 8, 8, generator=seeded(0)), torch.randn(2, 1, 8, 8, generator=seeded(1))
    sharpen, t = SuperResolution(torch.randn(2, 1, 4, 4, generator=seeded(2)), 2), torch.tensor(300)
    for kind in ("epsilon", "v_prediction", "sample"):
        scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False)
        scheduler.set_timesteps(10)
        clean = scheduler.step(output, t, x).pred_original_sample
        again = scheduler.step(sharpen.correct(scheduler, output, x, t), t, x).pred_original_sample
        torch.testing.assert_close(again, sharpen.project(clean), atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------ numbers of pictures, and nonsense


def test_one_picture_for_all_or_one_for_each():
    pipe, images = pixel_pipeline(), picture("pixels", 3)
    each = made(pipe, image=images, strength=0.5)
    assert len(each) == 3
    assert made(pipe, image=images[0], strength=0.5, batch_size=3)[0] == each[0]
    words = text_pipeline()
    both = words(WORDS[:2], image=picture("text")[0], num_inference_steps=2, generator=seeded(0)).images
    assert len(both) == 2


def test_in_half_precision_what_is_kept_stays_to_the_byte():
    pipe, [image] = pixel_pipeline(), picture("pixels")
    pipe.unet.to(torch.bfloat16)
    mask = np.zeros((16, 16), np.float32)
    mask[:, 8:] = 1
    new = np.frombuffer(made(pipe, image=image, mask=mask)[0], np.uint8).reshape(16, 16)
    assert (new[:, :8] == np.asarray(image)[:, :8]).all() and (new != np.asarray(image)).any()
    assert made(pipe, image=image, strength=0.0) == pixels([image]) != made(pipe, image=image, strength=0.5)


MASK = np.zeros((16, 16))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"strength": 0.5}, "strength needs an image that it is of"),
        ({"mask": MASK}, "mask needs an image that it is of"),
        ({"image": True, "strength": 1.1}, r"strength must be in \[0, 1\], .* got 1.1"),
        ({"image": True, "strength": -0.1}, "got -0.1"),
        ({"image": True, "mask": np.zeros((8, 16))}, r"size of the image, 16 by 16, and one channel; got \(8, 16\)"),
        ({"image": True, "mask": MASK + 255}, "got values from 255 to 255. Divide bytes by 255"),
        ({"image": True, "mask": MASK * np.nan}, "mask must be from 0"),
        ({"image": True, "mask": np.zeros((2, 16, 16))}, "mask must be one, or one for each of 1 images; got 2"),
        ({"image": Image.new("L", (8, 8))}, "16 high and 16 wide"),
        ({"image": "three", "batch_size": 2}, "batch_size is 2, but image are given for 3 images"),
        ({"image": True, "low_resolution": Image.new("L", (8, 8))}, "ask for two different images"),
        ({"low_resolution": Image.new("L", (5, 5))}, "low_resolution must be 16 by 16 over 2, 3, .* got 5 by 5"),
        ({"low_resolution": Image.new("L", (16, 16))}, "got 16 by 16"),
        ({"low_resolution": Image.new("L", (8, 4))}, "got 4 by 8"),
    ],
)
def test_calls_that_make_no_sense(options, text):
    pipe = pixel_pipeline()
    if options.get("image") is True:
        options = {**options, "image": picture("pixels")[0]}
    if options.get("image") == "three":
        options = {**options, "image": picture("pixels", 3)}
    with pytest.raises(UsageError, match=text):
        pipe(**options)
