"""Sampling with an optimizer: where it ends for a known denoiser, equal bytes in every batch, and what it refuses."""

import pytest
import torch
from helpers import quiet, seeded
from tiny_pipelines import COSINE, FLOW, kl, unet

from latentia import ControlNet2D, DDIMScheduler, LatentDiffusionPipeline, UnconditionalDiffusionPipeline, UNet2D
from latentia.errors import UsageError
from latentia.models.unet import UNet2DOutput
from latentia.pipelines.optimizer import sample_by_optimizer

NOISE = DDIMScheduler(**COSINE)
PLAIN = DDIMScheduler(**COSINE | {"prediction_type": "epsilon"})
TARGET = torch.linspace(-0.8, 0.8, 64).reshape(1, 1, 8, 8)


class OfOneImage(UNet2D):
    """The exact denoiser of data that are one image: x_t = a x_0 + s eps gives eps."""

    def forward(self, sample, timestep, **options):
        ratio = NOISE.alphas_cumprod[int(timestep)]
        return UNet2DOutput(sample=(sample - ratio.sqrt() * TARGET) / (1 - ratio).sqrt())


def test_of_a_known_image_the_optimizer_finds_it():
    pipe = quiet(UnconditionalDiffusionPipeline(OfOneImage(8, 1, block_out_channels=(32,)), PLAIN))
    found = sample_by_optimizer(pipe, 2, generator=seeded(0), output_type="latent")
    torch.testing.assert_close(found, TARGET.expand(2, -1, -1, -1), atol=0.02, rtol=0)
    short = sample_by_optimizer(pipe, 2, num_inference_steps=3, generator=seeded(0), output_type="latent")
    assert (short - TARGET).abs().max() > 0.1


def test_an_image_does_not_depend_on_its_batch():
    pipe = quiet(UnconditionalDiffusionPipeline(unet(1, 8, 3), NOISE))
    options = {"num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "latent"}
    many = sample_by_optimizer(pipe, 34, class_labels=[i % 3 for i in range(34)], generator=seeded(0), **options)
    few = sample_by_optimizer(pipe, 2, class_labels=[0, 1], generator=seeded(0), **options)
    assert torch.equal(many[:2], few) and not torch.equal(many[0], many[3])
    alone = [torch.Generator().manual_seed(7) for _ in range(2)]
    same = sample_by_optimizer(pipe, 2, class_labels=1, generator=alone, **options)
    assert torch.equal(same[0], same[1])


def test_what_an_optimizer_cannot_sample_is_refused():
    pipe = quiet(UnconditionalDiffusionPipeline(unet(1, 8), NOISE))
    controlled = UnconditionalDiffusionPipeline(
        unet(1, 16), NOISE, controlnet=ControlNet2D.from_unet(unet(1, 16), condition_channels=1)
    )
    latent = LatentDiffusionPipeline(kl(), unet(), NOISE)
    flow = quiet(UnconditionalDiffusionPipeline(unet(1, 8), FLOW()))
    for found, options, message in (
        (pipe, {"learning_rate": 0.0}, "learning_rate must be positive"),
        (pipe, {"max_noise": 0.01}, "max_noise must be .*0.02"),
        (pipe, {"num_inference_steps": 1}, "num_inference_steps must be .*at least 2"),
        (latent, {}, "pipe must be an UnconditionalDiffusionPipeline"),
        (controlled, {}, "pipe must be trained without conditioning images"),
        (flow, {}, "scheduler must have a schedule of betas"),
    ):
        with pytest.raises(UsageError, match=message):
            sample_by_optimizer(found, **options)
