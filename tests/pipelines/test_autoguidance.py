"""Autoguidance: the closed form of one step, a guide that is the network itself, and what is refused."""

import pytest
import torch
from helpers import quiet
from pipeline_list import latent_diffusion, spread
from tiny_pipelines import COSINE, FLOW, kl, unet

from latentia import ControlNet2D, DDIMScheduler, DiffusionPipeline, UnconditionalDiffusionPipeline, UNet2D
from latentia.commands.generate import generate
from latentia.errors import UsageError
from latentia.pipelines.guidance import Guided

PIXELS = DDIMScheduler(**COSINE | {"clip_sample": False})


def sample(pipe, scale, steps=3, **options):
    generator = torch.Generator().manual_seed(0)
    more = {"num_inference_steps": steps, "output_type": "latent", **options}
    return quiet(pipe)(2, generator=generator, autoguidance_scale=scale, **more).images


def test_one_step_of_a_flow_is_extrapolated_from_the_guide():
    strong, weak = unet(1, 16), spread(unet(1, 16))
    pipe = UnconditionalDiffusionPipeline(strong, FLOW(), guide=weak)
    own, other, found = sample(pipe, 1.0, 1), sample(pipe, 0.0, 1), sample(pipe, 2.5, 1)
    assert not torch.equal(own, other)
    torch.testing.assert_close(found, other + 2.5 * (own - other))
    plain = sample(UnconditionalDiffusionPipeline(strong, FLOW()), 1.0, 1)
    assert torch.equal(own, plain)


def test_a_network_that_guides_itself_changes_nothing():
    network = unet(1, 16, 3)
    pipe = UnconditionalDiffusionPipeline(network, PIXELS, guide=network)
    with_classes = {"class_labels": [0, 2], "guidance_scale": 2.0}
    torch.testing.assert_close(sample(pipe, 3.0, **with_classes), sample(pipe, 1.0, **with_classes))


def test_a_learned_variance_is_that_of_the_network():
    strong, weak = (spread(UNet2D(**dict(unet(1, 16).config) | {"out_channels": 2})) for _ in range(2))
    x = torch.randn(2, 1, 16, 16)
    found, own, other = (net(x, torch.tensor(5)).sample for net in (Guided(strong, weak, 2.0), strong, weak))
    torch.testing.assert_close(found, torch.cat([2 * own[:, :1] - other[:, :1], own[:, 1:]], 1))


def test_a_guide_is_saved_with_its_pipeline(tmp_path):
    pipe = UnconditionalDiffusionPipeline(unet(1, 16), PIXELS, guide=spread(unet(1, 16)))
    pipe.save_pretrained(tmp_path)
    assert torch.equal(sample(DiffusionPipeline.from_pretrained(tmp_path), 2.0), sample(pipe, 2.0))


def test_generate_takes_the_network_of_another_pipeline(tmp_path):
    pipes = {name: latent_diffusion(kl, DDIMScheduler(**COSINE)) for name in ("strong", "weak")}
    spread(pipes["weak"].unet)
    for name, pipe in pipes.items():
        pipe.save_pretrained(tmp_path / name)
    options = {"class_labels": [0], "num_inference_steps": 2, "output_type": None}
    source, weak = str(tmp_path / "strong"), str(tmp_path / "weak")
    found = generate(source, 1, guide=weak, autoguidance_scale=2.0, **options)
    assert found.recipes[0]["guide"] == weak and found.recipes[0]["autoguidance_scale"] == 2
    assert found.images[0].tobytes() != generate(source, 1, **options).images[0].tobytes()
    with pytest.raises(UsageError, match="autoguidance_scale must be given with guide"):
        generate(source, 1, guide=weak, **options)


def test_what_does_not_fit_is_refused():
    network = unet(1, 16)
    with pytest.raises(UsageError, match="autoguidance_scale must be 1 for a pipeline without a guide"):
        sample(UnconditionalDiffusionPipeline(network, PIXELS), 2.0)
    with pytest.raises(UsageError, match="autoguidance_scale must be finite"):
        sample(UnconditionalDiffusionPipeline(network, PIXELS, guide=network), float("nan"))
    with pytest.raises(UsageError, match="its num_class_embeds is 3 and that of unet None"):
        UnconditionalDiffusionPipeline(network, PIXELS, guide=unet(1, 16, 3))
    branch = ControlNet2D.from_unet(network, condition_channels=1)
    with pytest.raises(UsageError, match="guide must be left out with a controlnet"):
        UnconditionalDiffusionPipeline(network, PIXELS, controlnet=branch, guide=network)
