"""Inversion, prompt editing, interpolation of prompts and attribute directions, by closed forms and from the shell."""

import json

import pytest
import torch
from helpers import quiet, seeded
from pipeline_list import random_images, spread
from safetensors.torch import load_file
from tiny_pipelines import COSINE, FLOW, kl, text_pipeline, unet

from latentia import (
    Autoencoder,
    AutoencoderPipeline,
    ControlNet2D,
    DDIMScheduler,
    LatentDiffusionPipeline,
    UnconditionalDiffusionPipeline,
)
from latentia.commands.directions import directions, fit_direction
from latentia.commands.edit import edit
from latentia.commands.main import main
from latentia.errors import DataError, UsageError
from latentia.pipelines.attention import CrossAttention
from latentia.pipelines.editing import edit_direction, edit_images, interpolate_prompts, swap_word
from latentia.pipelines.images import to_output
from latentia.pipelines.inversion import invert

PIXELS = DDIMScheduler(**COSINE | {"clip_sample": True})
SHORT = {"num_inference_steps": 4}


# ------------------------------------------------------------ inversion


def controlled():
    network = unet(1, 16)
    branch = spread(ControlNet2D.from_unet(network, condition_channels=1))
    return UnconditionalDiffusionPipeline(network, PIXELS, controlnet=branch)


KINDS = {
    "pixels": (lambda: UnconditionalDiffusionPipeline(unet(1, 16, 3), PIXELS), {"class_labels": [0, 2]}),
    "flow": (lambda: UnconditionalDiffusionPipeline(unet(1, 16), FLOW()), {}),
    "branch": (controlled, {"control_image": random_images(2, 1, 16, 16)}),
    "latents": (lambda: LatentDiffusionPipeline(kl(), unet(), DDIMScheduler(**COSINE)), {}),
    "text": (lambda: text_pipeline(), {"prompt": ["a red heart", "a black cat"]}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_coupled_chains_come_back_exactly(kind):
    """Of any network: all that is lost is what the autoencoder loses."""
    build, conditions = KINDS[kind]
    images = random_images(2, 3 if kind == "text" else 1, 16, 16)
    pipe = quiet(build())
    found = {m: invert(pipe, images, method=m, **SHORT, **conditions) for m in ("ddim", "fixed_point", "coupled")}
    exact = found["coupled"]
    if kind in ("latents", "text"):
        torch.testing.assert_close(exact.psnr, exact.autoencoder_psnr, atol=1e-3, rtol=0)
    else:
        assert exact.psnr.min() > 90 and exact.autoencoder_psnr.isinf().all()
        assert (exact.psnr > found["ddim"].psnr).all()
        assert (found["fixed_point"].psnr > found["ddim"].psnr).all()
    alone = invert(pipe, images[:1], method="coupled", **SHORT, **{k: v[:1] for k, v in conditions.items()})
    assert torch.equal(alone.latents[0], exact.latents[0])


def test_what_cannot_be_inverted_is_refused():
    pipe = quiet(UnconditionalDiffusionPipeline(unet(1, 16), PIXELS))
    with pytest.raises(UsageError, match="method must be one of"):
        invert(pipe, random_images(1, 1, 16, 16), method="exact")
    with pytest.raises(UsageError, match="pipe must be a pipeline of diffusion; got AutoencoderPipeline"):
        invert(AutoencoderPipeline(Autoencoder(8)), random_images(1, 1, 8, 8))


# ------------------------------------------------------------ prompt editing


def test_maps_are_those_of_the_network():
    """They are distributions over the tokens that count, and the copy gives the network's own output."""
    network = unet(3, 16, width=32)
    watched, x, states = CrossAttention(network), torch.randn(2, 3, 16, 16), torch.randn(2, 5, 32)
    mask = torch.tensor([[True, True, False, False, False], [True] * 5])
    given = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
    assert torch.equal(watched(x, 30, **given).sample, network(x, 30, **given).sample)
    assert len(watched.maps) == 6 and not any(module._forward_hooks for module in network.modules())
    for found in watched.maps:
        torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]))
        assert (found[0, ..., 2:] == 0).all()


def test_the_gradient_keeps_the_maps_of_the_prompt():
    pipe, images = text_pipeline(), random_images(3, 3, 16, 16)
    options = {"num_inference_steps": 4}
    prompts = ["a red heart", "a red heart", "red birds"]
    plain = edit_images(pipe, images, prompts, "red", "green", attention_weight=0.0, **options)
    kept = edit_images(pipe, images, prompts, "red", "green", attention_weight=0.5, **options)
    assert plain.prompts[2] == ("red birds", "green birds") and not torch.equal(plain.images, kept.images)
    decoded = pipe.decode(
        plain.inversion.latents, prompt=[after for _, after in plain.prompts], output_type="latent", **options
    )
    torch.testing.assert_close(plain.images, decoded.clamp(-1, 1), atol=1e-4, rtol=1e-4)
    alone = edit_images(pipe, images[1:2], prompts[1], "red", "green", attention_weight=0.5, **options)
    assert torch.equal(alone.images[0], kept.images[1])
    several = edit_images(
        pipe, images, prompts, ["red"] * 3, ["green", "green", "blue"], attention_weight=0.5, **options
    )
    assert torch.equal(several.images[:2], kept.images[:2]) and several.prompts[2][1] == "blue birds"
    with pytest.raises(UsageError, match=r"must be one, or one for each image; got \[3, 2, 1\]"):
        edit_images(pipe, images, prompts, ["red"] * 2, "green")
    same = edit_images(pipe, images, prompts, "red", "red", attention_weight=0.5, **options)
    torch.testing.assert_close(same.images, same.inversion.reconstruction, atol=1e-4, rtol=1e-4)


def test_a_word_that_is_not_in_the_prompt_is_refused():
    pipe, image = text_pipeline(), random_images(1, 3, 16, 16)
    for prompt, word in (("a red heart", "green"), ("a reddish heart", "red"), ("a red heart", "")):
        with pytest.raises(UsageError, match=rf'word must stand in the prompt; "{word}" is not in "{prompt}"'):
            edit_images(pipe, image, prompt, word, "blue")
    assert swap_word("red, (red) c++", "c++", "r") == "red, (red) r" and swap_word("a red", "red", r"\1") == r"a \1"
    with pytest.raises(UsageError, match="pipe must be a TextToImagePipeline"):
        edit_images(quiet(UnconditionalDiffusionPipeline(unet(3, 16), PIXELS)), image, "a red heart", "red", "blue")


def test_a_direction_is_the_mean_difference_of_sentences():
    pipe = text_pipeline()
    sentences = ["a red heart", "a red bus"]
    states = [
        pipe.encode_prompt(s, do_classifier_free_guidance=False)[0][0]
        for s in [*sentences, "a green heart", "a green bus"]
    ]
    found = edit_direction(pipe, "red", "green", sentences)
    torch.testing.assert_close(found, (states[2] + states[3] - states[0] - states[1]) / 2)


def test_prompts_are_interpolated_from_end_to_end():
    pipe = text_pipeline()
    path = interpolate_prompts(
        pipe, "a red heart", "a green bus", 3, generator=seeded(0), output_type="latent", **SHORT
    )
    ends = [
        pipe(text, generator=seeded(0), output_type="latent", **SHORT).images for text in ("a red heart", "a green bus")
    ]
    torch.testing.assert_close(path[[0, 2]], torch.cat(ends), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(path[1], path[0], atol=1e-4)


def test_the_command_edits_files(tmp_path, capsys):
    text_pipeline().save_pretrained(tmp_path / "saved")
    for i, image in enumerate(to_output(random_images(2, 3, 16, 16))):
        (tmp_path / "images").mkdir(exist_ok=True)
        image.save(tmp_path / "images" / f"{i}.png")
    words = ["--prompt", "a red heart", "--word", "red", "--replacement", "blue", "--num_inference_steps", "2"]
    command = ["edit", str(tmp_path / "saved"), "--image", str(tmp_path / "images"), *words]
    main([*command, "--output_dir", str(tmp_path / "out")])
    assert '2 images: "a red heart" to "a blue heart"' in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == ["00000.png", "00001.png", "edits_sheet.png"]
    about = json.loads((tmp_path / "out" / "edits.json").read_text())
    assert len(about["psnr"]) == 2 and about["images"][1]["name"] == "1.png"
    UnconditionalDiffusionPipeline(unet(1, 8), PIXELS).save_pretrained(tmp_path / "other")
    with pytest.raises(UsageError, match=r"word must be given, such as image heart.png"):
        edit(tmp_path / "saved", image=["a.png"], prompt="red heart")
    with pytest.raises(UsageError, match="source must be a text-to-image pipeline"):
        edit(tmp_path / "other", image=["a.png"], prompt="red", word="red", replacement="blue")


# ------------------------------------------------------------ attribute directions


def test_directions_lead_from_one_mean_to_the_other():
    torch.manual_seed(0)
    rows, of_class = torch.randn(400, 3).double(), torch.arange(400) % 2 == 0
    rows[of_class, 1] += 6.0
    for method in ("means", "probe"):
        direction, middle = fit_direction(rows, of_class, method)
        assert abs(direction[1] - 6) < 0.3 and direction[[0, 2]].abs().max() < 1.5  # a probe is no mean
        found = (rows - middle) @ direction > 0
        assert (found == of_class).double().mean() > 0.97


def test_directions_of_digits_are_found_saved_and_shown(tmp_path):
    torch.manual_seed(0)
    pipe = AutoencoderPipeline(Autoencoder(sample_size=8, latent_dim=12, hidden_sizes=()))
    found = directions(pipe, "digits", classes=["0", "1"], max_samples=300, method="probe")
    assert min(found.scores.values()) > 0.8 and found.strips["1"].shape == (4, 7, 1, 8, 8)
    folder = found.save(tmp_path / "out")[0]
    saved = load_file(folder / "directions.safetensors")
    assert all(torch.equal(saved[name], found.directions[name]) for name in ("0", "1"))
    assert {p.name for p in folder.glob("strip-*")} == {"strip-00.png", "strip-01.png"}
    middle = found.strips["0"][:, 3]
    assert torch.isfinite(middle).all() and not torch.equal(found.strips["0"][:, 0], found.strips["0"][:, 6])
    with pytest.raises(UsageError, match=r'classes must be among 0, 1, .*; got "ten"'):
        directions(pipe, "digits", classes=["ten"])
    with pytest.raises(DataError, match="Each class needs at least 4 images"):
        directions(pipe, "digits", max_samples=12)
