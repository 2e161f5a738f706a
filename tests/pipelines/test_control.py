"""Diffusion that is conditioned on images: what the result keeps, control branches, its scripts and its errors."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import load_example, perturbed, quiet, seeded
from PIL import Image
from pipeline_list import random_images, spread
from tiny_pipelines import COSINE, FLOW, kl, unet

from latentia import (
    ControlNet2D,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    LatentDiffusionPipeline,
    UnconditionalDiffusionPipeline,
    UNet2D,
)
from latentia.commands.generate import generate
from latentia.errors import UsageError
from latentia.functional.degradation import smaller
from latentia.losses.diffusion import diffusion_loss
from latentia.models.control import Controlled
from latentia.rng import Rng
from latentia.runs.command_line import with_values

PIXELS = DDIMScheduler(**COSINE | {"clip_sample": True})
SHORT = {"num_inference_steps": 2, "output_type": "latent"}


def over_pixels(degradation, channels, scheduler=PIXELS):
    network = unet(3, 16, condition_channels=channels)
    return quiet(UnconditionalDiffusionPipeline(network, scheduler, degradation=degradation))


def over_latents(degradation, channels):
    network = unet(condition_channels=channels, condition_scale=2)
    return quiet(LatentDiffusionPipeline(kl(in_channels=3), network, DDIMScheduler(**COSINE), degradation=degradation))


SPACES = {"pixels": over_pixels, "latents": over_latents}


# ------------------------------------------------------------ what the result keeps


@pytest.mark.parametrize("space", SPACES)
def test_colours_keep_the_grey_within_a_level(space):
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8))
    pipe = SPACES[space]({"name": "grey"}, 1)
    (made,) = pipe(control_image=grey, num_inference_steps=2, generator=seeded(0)).images
    gap = np.asarray(made.convert("L")).astype(int) - np.asarray(grey)
    assert made.mode == "RGB" and np.abs(gap).max() <= 1 and np.asarray(made).std(2).mean() > 1


@pytest.mark.parametrize("space", SPACES)
def test_enlarged_images_keep_the_means_of_blocks(space):
    low = random_images(2, 3, 4, 4)
    pipe = SPACES[space]({"name": "smaller", "strength": 4.0}, 3)
    made = pipe(low_resolution=low, generator=seeded(0), **SHORT).images
    assert made.abs().max() <= 1 + 1e-6 and made.std() > 0.1
    torch.testing.assert_close(smaller(made, 4), low, atol=1e-5, rtol=0)
    with pytest.raises(UsageError, match="low_resolution must be 4 by 4, as this network was trained to enlarge by 4"):
        pipe(low_resolution=random_images(1, 3, 8, 8), **SHORT)
    with pytest.raises(UsageError, match='low_resolution must be given, as this network was trained with degrade "s'):
        pipe(**SHORT)


@pytest.mark.parametrize("space", SPACES)
def test_a_filled_hole_leaves_the_outside_as_it_is(space):
    pipe, image = SPACES[space]({"name": "masked"}, 4), random_images(2, 3, 16, 16)
    ones = np.zeros((16, 16), np.uint8)
    ones[4:9, 4:9] = 1
    kinds = [ones, 255 * ones, torch.from_numpy(ones).float(), Image.fromarray(255 * ones), Image.fromarray(ones)]
    found = [pipe(image=image, mask=mask, generator=seeded(0), **SHORT).images for mask in kinds]
    assert all(torch.equal(one, found[0]) for one in found[1:])
    outside = torch.from_numpy(ones) == 0
    assert torch.equal(found[0][..., outside], image[..., outside]) and not torch.equal(found[0], image)
    raw = torch.cat([image * outside, (2.0 * ~outside - 1).expand(2, 1, 16, 16)], 1)
    assert torch.equal(pipe(control_image=raw, generator=seeded(0), **SHORT).images[..., outside], image[..., outside])
    with pytest.raises(UsageError, match="mask, with its image, must be given"):
        pipe(image=image, **SHORT)
    for strength in (-0.1, 1.1):
        with pytest.raises(UsageError, match=r"strength must be in \[0, 1\]"):
            pipe(image=image, mask=ones, strength=strength, **SHORT)


def test_the_result_depends_on_the_conditioning_image():
    pipe = over_pixels({"name": "edges"}, 1)
    made = pipe(control_image=random_images(2, 1, 16, 16), generator=[seeded(0), seeded(0)], **SHORT).images
    assert not torch.allclose(made[0], made[1], atol=1e-3)
    with pytest.raises(UsageError, match=r"control_image must have 1 channel, got 3.*convert\(\"L\"\)"):
        pipe(control_image=random_images(1, 3, 16, 16))
    plain = quiet(UnconditionalDiffusionPipeline(unet(3, 16), PIXELS))
    with pytest.raises(UsageError, match=r"control_image must be left out: .* latentia train ddpm --degrade edges"):
        plain(control_image=random_images(1, 1, 16, 16))


# ------------------------------------------------------------ control branches


@pytest.mark.parametrize("classes", [None, 3])
def test_a_new_branch_changes_no_bit_and_then_learns(classes):
    torch.manual_seed(0)
    base = unet(1, 8, classes).requires_grad_(False)
    branch = ControlNet2D.from_unet(base, condition_channels=1)
    both, x, t = Controlled(base, branch), torch.randn(4, 1, 8, 8), torch.tensor([3, 100, 500, 900])
    labels = {} if classes is None else {"class_labels": torch.tensor([0, 1, 2, 3])}
    condition = random_images(4, 1, 8, 8)
    assert torch.equal(both(x, t, condition=condition, **labels).sample, base(x, t, **labels).sample)
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    optimizer = torch.optim.Adam(branch.parameters(), 1e-2)
    batch = {"x": condition, "condition": condition} | (
        {} if classes is None else {"labels": labels["class_labels"] % 3}
    )
    for i in range(2):
        loss = diffusion_loss(both, DDPMScheduler(), batch, Rng(0, 4 * i, 4, 0, 4))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(torch.equal(weight, before[name]) for name, weight in base.state_dict().items())
    other = both(x, t, condition=-condition, **labels).sample
    assert not torch.allclose(both(x, t, condition=condition, **labels).sample, other, atol=1e-5)


def test_a_new_branch_makes_what_the_pipeline_makes(tmp_path):
    for scheduler in (PIXELS, FLOW()):
        pipe = quiet(UnconditionalDiffusionPipeline(unet(1, 16), scheduler))
        branch = ControlNet2D.from_unet(pipe.unet, condition_channels=1)
        more = quiet(UnconditionalDiffusionPipeline(pipe.unet, scheduler, controlnet=branch))
        wanted = pipe(2, generator=seeded(0), **SHORT).images
        control = random_images(2, 1, 16, 16)
        assert torch.equal(more(control_image=control, generator=seeded(0), **SHORT).images, wanted)
    spread(branch)
    changed = more(control_image=control, generator=seeded(0), **SHORT).images
    assert not torch.allclose(changed, wanted)
    more.save_pretrained(tmp_path)
    again = quiet(DiffusionPipeline.from_pretrained(tmp_path))
    assert torch.equal(again(control_image=control, generator=seeded(0), **SHORT).images, changed)


def test_branches_of_other_networks_are_refused():
    network = unet(1, 16)
    with pytest.raises(UsageError, match="unet must have no cross_attention_dim for a control branch; got 32"):
        ControlNet2D.from_unet(unet(1, 16, width=32), condition_channels=1)
    other = ControlNet2D.from_unet(unet(1, 16, 3), condition_channels=1)
    with pytest.raises(UsageError, match="its num_class_embeds is 3 and that of unet None"):
        UnconditionalDiffusionPipeline(network, PIXELS, controlnet=other)
    with pytest.raises(UsageError, match="controlnet must be a ControlNet2D; got UNet2D"):
        UnconditionalDiffusionPipeline(network, PIXELS, controlnet=network)
    for condition in (None, torch.zeros(1, 1, 8, 8)):
        with pytest.raises(UsageError, match=r"condition must be images of shape \(1, 1, 16, 16\)"):
            ControlNet2D.from_unet(network, condition_channels=1)(torch.zeros(1, 1, 16, 16), 3, condition=condition)


def test_pixels_of_a_large_condition_become_channels():
    """Of a network whose first layer sees one of them alone, the output depends on that pixel of each block."""
    network = perturbed(
        UNet2D(4, 1, block_out_channels=(8,), attention_head_dim=8, condition_channels=1, condition_scale=2)
    )
    with torch.no_grad():
        network.conv_in.weight[:, [0, 2, 3, 4]] = 0  # the sample, and all but the upper left pixel of each block
    x, condition = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 8, 8)
    plain = network(x, 3, condition=condition).sample
    for row, column, seen in ((0, 0, True), (2, 4, True), (1, 0, False), (0, 1, False), (3, 3, False)):
        lit = F.one_hot(torch.tensor(8 * row + column), 64).view(1, 1, 8, 8).float()
        assert torch.equal(network(x, 3, condition=lit).sample, plain) != seen


# ------------------------------------------------------------ from the command line


def small(script, folder, **values):
    example = load_example(f"train_{script}")
    common = {
        "dataset_name": "emoji", "max_train_samples": 32, "max_train_steps": 2, "train_batch_size": 8,
        "eval_num_samples": 0, "num_inference_steps": 1, "output_dir": str(folder),
    }  # fmt: skip
    return example, with_values(example.Arguments(), common | values, "run.yaml")


def trained(script, folder, **values):
    example, args = small(script, folder, **values)
    assert example.main(args) == 0
    return folder


TINY = {"block_out_channels": [4, 32]}


def test_one_command_trains_and_one_makes_images_of_a_folder(tmp_path):
    folder = trained("ddpm", tmp_path / "run", degrade="grey", **TINY)
    assert json.loads((folder / "model_index.json").read_text())["degradation"] == {"name": "grey", "strength": None}
    assert "pipe(control_image=image)" in (folder / "README.md").read_text()
    (tmp_path / "grey").mkdir()
    for i, image in enumerate(random_images(3, 1, 32, 32)):
        Image.fromarray(((image[0] + 1) * 127).byte().numpy()).save(tmp_path / "grey" / f"{i}.png")
    found = generate(folder, control_image=[tmp_path / "grey"], num_inference_steps=1)
    assert len(found.images) == 3 and [r["control_image"]["name"] for r in found.recipes] == ["0.png", "1.png", "2.png"]
    two = generate(folder, 2, control_image=[tmp_path / "grey" / "1.png"], num_inference_steps=1)
    assert two.recipes[0]["control_image"]["name"] == "1.png" and len(two.images) == 2
    with pytest.raises(UsageError, match=r"control_image must be images, or folders of them; .* holds none"):
        generate(folder, control_image=[folder / "unet"])
    with pytest.raises(UsageError, match="equally many, or one for all; got 3 images as image and 2 images as mask"):
        generate(folder, image=[tmp_path / "grey"], mask=[tmp_path / "grey" / f"{i}.png" for i in (0, 1)])


def test_a_branch_is_trained_on_pixels_and_on_latents(tmp_path):
    base = trained("ddpm", tmp_path / "base", **TINY)
    branch = trained("ddpm", tmp_path / "branch", control_from=str(base), degrade="edges")
    same = (tmp_path / part / "unet" / "diffusion_pytorch_model.safetensors" for part in ("base", "branch"))
    assert len({path.read_bytes() for path in same}) == 1 and (branch / "controlnet").is_dir()
    kl(0, sample_size=32, in_channels=3).save_pretrained(tmp_path / "vae")
    base = trained("latent_diffusion", tmp_path / "latent", autoencoder=str(tmp_path / "vae"), **TINY)
    branch = trained("latent_diffusion", tmp_path / "latent-branch", control_from=str(base), degrade="masked")
    pipe = quiet(DiffusionPipeline.from_pretrained(branch))
    assert pipe.controlnet.config.condition_scale == 2 and pipe.controlnet.config.condition_channels == 4


def test_flags_that_contradict_each_other_are_named(tmp_path):
    UnconditionalDiffusionPipeline(unet(3, 32), PIXELS).save_pretrained(tmp_path / "base")
    base = str(tmp_path / "base")
    for values, rule in (
        ({"control_from": base}, "control_from needs conditioning images: give degrade"),
        (
            {"control_from": base, "degrade": "edges", **TINY},
            "--block_out_channels is of the network of --control_from",
        ),
        (
            {"control_from": base, "degrade": "edges", "prediction_type": "epsilon"},
            "--prediction_type is of the network",
        ),
        ({"control_from": base, "degrade": "edges", "class_conditional": True}, "class_conditional must be left out"),
        (
            {"control_from": base, "degrade": "edges", "resolution": 16},
            r"network of control_from makes, \(3, 32, 32\)",
        ),
        ({"degrade": "grey", "dataset_name": "digits"}, 'degrade "grey" needs colour images'),
        ({"strength": 2.0}, "strength is of degrade"),
    ):
        example, args = small("ddpm", tmp_path / "run", **values)
        with pytest.raises(UsageError, match=rule):
            example.main(args)
