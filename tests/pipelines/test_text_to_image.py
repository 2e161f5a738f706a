"""Texts to images: Stable Diffusion's parts, any scheduler, guidance, swaps, the example, and colours asked for."""

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from helpers import held, load_example, part_of, pixels, quiet, seeded
from hub_server import point_client_at, running_hub
from tiny_pipelines import COSINE, TEXT_SCHEDULERS, WORDS, kl, text_pipeline, texts, unet

import latentia
from latentia import DDIMScheduler, DDPMScheduler, TextToImagePipeline, UNet2D
from latentia.data import ImageData
from latentia.errors import UsageError
from latentia.evaluation import color_word, color_word_accuracy, palette
from latentia.losses.diffusion import diffusion_loss
from latentia.losses.flow_matching import flow_matching_loss
from latentia.models.autoencoder_kl import autoencoder_kl
from latentia.pipelines.sampling import Conditioning, predict
from latentia.rng import Rng
from latentia.runs.command_line import parse_arguments

# ------------------------------------------------------------ sampling


@pytest.mark.parametrize("scheduler", TEXT_SCHEDULERS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("latent", [True, False], ids=["latents", "pixels"])
def test_a_picture_does_not_depend_on_its_batch(scheduler, latent):
    pipe = text_pipeline(latent, scheduler)
    asked = {"guidance_scale": 2.0, "guidance_rescale": 0.5, "num_inference_steps": 3}

    def sample(n):
        return pixels(pipe([WORDS[i % 4] for i in range(n)], generator=seeded(7), **asked).images)

    many = sample(11)  # chunks of 8
    assert len(set(many)) == 11
    for n in (1, 9):
        assert sample(n) == many[:n]
    repeated = pipe(WORDS[:2], num_images_per_prompt=2, generator=[seeded(i) for i in range(4)], **asked).images
    single = pipe([WORDS[0], WORDS[0], WORDS[1], WORDS[1]], generator=[seeded(i) for i in range(4)], **asked).images
    assert pixels(repeated) == pixels(single)


def test_the_text_matters_and_guidance_exaggerates_it(real_chunks):
    pipe, z = text_pipeline(), torch.randn(1, 4, 8, 8, generator=seeded(0))

    def drawn(prompt, **options):
        return pipe(prompt, latents=z, num_inference_steps=3, output_type="latent", **options).images

    red, green, nothing = drawn(WORDS[0]), drawn(WORDS[1]), drawn("")
    assert not torch.equal(red, green)
    assert torch.equal(drawn(WORDS[0], guidance_scale=0.0), nothing)  # no text at all
    assert torch.equal(drawn(WORDS[0], guidance_scale=3.0, negative_prompt=""), drawn(WORDS[0], guidance_scale=3.0))
    against = drawn(WORDS[0], guidance_scale=3.0, negative_prompt=WORDS[1])
    assert not torch.equal(against, drawn(WORDS[0], guidance_scale=3.0))
    torch.testing.assert_close(drawn(WORDS[0], guidance_scale=3.0, negative_prompt=WORDS[0]), red, atol=1e-4, rtol=1e-3)


def test_guidance_is_the_formula_and_rescaling_keeps_the_spread():
    network, x = unet(3, 16, width=32), torch.randn(3, 3, 16, 16, generator=seeded(0))
    told, nothing = (
        {"encoder_hidden_states": torch.randn(3, 5, 32, generator=seeded(k)),
         "encoder_attention_mask": torch.ones(3, 5, dtype=torch.bool)} for k in (1, 2)
    )  # fmt: skip
    t = torch.tensor(400)
    with torch.no_grad():
        having, without = (network(x, t, **c).sample for c in (told, nothing))
        guided = predict(network, x, t, Conditioning(told, nothing, 4.0))
        rescaled = predict(network, x, t, Conditioning(told, nothing, 4.0, 1.0))
        half = predict(network, x, t, Conditioning(told, nothing, 4.0, 0.5))
    torch.testing.assert_close(guided, without + 4 * (having - without), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(rescaled.flatten(1).std(1), having.flatten(1).std(1))
    torch.testing.assert_close(half, (guided + rescaled) / 2, atol=1e-6, rtol=1e-5)


def test_padding_is_not_looked_at():
    """The same words, padded to another length, give the same picture."""
    pipe, z = text_pipeline(), torch.randn(1, 4, 8, 8, generator=seeded(0))
    longer = quiet(TextToImagePipeline(*texts(max_tokens=12), pipe.unet, pipe.scheduler, pipe.vae))
    longer.tokenizer.model_max_length = 8
    drawn = [p(WORDS[0], latents=z, num_inference_steps=2, output_type="latent").images for p in (pipe, longer)]
    torch.testing.assert_close(*drawn, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("latent", [True, False], ids=["latents", "pixels"])
def test_encode_and_decode_are_inverse_with_one_prompt(latent):
    pipe = text_pipeline(latent)
    noise = torch.randn(2, *((4, 8, 8) if latent else (3, 16, 16)), generator=seeded(0))
    images = pipe.decode(noise / 8, prompt=WORDS[:2], num_inference_steps=20, output_type="latent").clamp(-1, 1)
    if not latent:
        again = pipe.encode(images, prompt=WORDS[:2], num_inference_steps=20, refinements=4)
        other = pipe.encode(images, prompt=WORDS[2:], num_inference_steps=20, refinements=4)
        assert (again - noise / 8).std() < 0.1 * (noise / 8).std() < (other - noise / 8).std()
    between = pipe.interpolate(images[0], images[1], 3, prompt=WORDS[0], num_inference_steps=4, output_type="latent")
    assert between.shape == (3, *images.shape[1:])


# ------------------------------------------------------------ parts


def test_each_part_is_swapped_alone():
    pipe, seen = text_pipeline(), []

    def look(pipe, i, t, tensors):
        seen.append(tensors["latents"].clone())

    first = pipe(WORDS[0], generator=seeded(0), num_inference_steps=2, callback_on_step_end=look).images
    parts = pipe.tokenizer, pipe.text_encoder, pipe.unet, pipe.scheduler
    other = quiet(TextToImagePipeline(*parts, kl(5, in_channels=3)))
    second = other(WORDS[0], generator=seeded(0), num_inference_steps=2, callback_on_step_end=look).images
    assert torch.equal(seen[1], seen[3]) and pixels(first) != pixels(second)  # the decoder leaves latents alone
    words = quiet(TextToImagePipeline(*texts(seed=3), pipe.unet, pipe.scheduler, pipe.vae))
    assert pixels(words(WORDS[0], generator=seeded(0), num_inference_steps=2).images) != pixels(first)


def test_from_the_hub(tmp_path, monkeypatch):
    pipe = text_pipeline()
    pipe.save_pretrained(tmp_path / "saved")
    files = {str(f.relative_to(tmp_path / "saved")): f.read_bytes() for f in (tmp_path / "saved").rglob("*.*")}
    with running_hub() as hub:
        point_client_at(hub, monkeypatch, str(tmp_path / "cache"))
        hub.put("user/hearts", files)
        loaded = quiet(latentia.DiffusionPipeline.from_pretrained("user/hearts", cache_dir=tmp_path / "c"))
    asked = {"generator": seeded(0), "num_inference_steps": 2}
    assert pixels(loaded(WORDS[0], **asked).images) == pixels(pipe(WORDS[0], **asked | {"generator": seeded(0)}).images)


def stable_diffusion():
    torch.manual_seed(0)
    tokenizer, _ = texts()
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2,
        max_position_embeddings=12, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    network = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, cross_attention_dim=32, attention_head_dim=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    vae = diffusers.AutoencoderKL(
        3, 3, ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2, (8, 8), norm_num_groups=4, sample_size=16
    ).eval()
    scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    return {"vae": vae, "text_encoder": CLIPTextModel(config).eval(), "tokenizer": tokenizer, "unet": network,
            "scheduler": scheduler}  # fmt: skip


def test_folders_of_stable_diffusion_load_and_give_its_pictures(tmp_path):
    nothing = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    theirs = quiet(diffusers.StableDiffusionPipeline(**stable_diffusion(), **nothing))
    theirs.save_pretrained(tmp_path / "sd", safe_serialization=True)
    ours = quiet(TextToImagePipeline.from_pretrained(tmp_path / "sd"))
    z = torch.randn(2, 4, 8, 8, generator=seeded(0))
    for scale, rescale in ((1.0, 0.0), (5.0, 0.0), (5.0, 0.7)):
        asked = {"latents": z, "num_inference_steps": 4, "guidance_scale": scale, "guidance_rescale": rescale}
        a = ours(WORDS[:2], output_type="np", **asked).images
        b = theirs(WORDS[:2], output_type="np", **asked).images
        np.testing.assert_allclose(a, b, atol=2e-3)
    ours.save_pretrained(tmp_path / "ours")
    parts = {key: value for key, value in ours.components.items()}
    again = quiet(diffusers.StableDiffusionPipeline(**parts, **nothing))
    np.testing.assert_allclose(again(WORDS[0], latents=z[:1], num_inference_steps=2, output_type="np").images,
                               theirs(WORDS[0], latents=z[:1], num_inference_steps=2, output_type="np").images,
                               atol=1e-5)  # fmt: skip


# ------------------------------------------------------------ training


def batch(n=6):
    tokenizer, encoder = texts()
    from latentia.pipelines.texts import embed_texts

    hidden, mask = embed_texts(tokenizer, encoder, [*WORDS, *WORDS][:n])
    empty = tuple(part[0] for part in embed_texts(tokenizer, encoder, [""]))
    return {"x": torch.randn(n, 3, 16, 16, generator=seeded(0)), "text": hidden, "text_mask": mask}, empty


class Watched(torch.nn.Module):
    """A network that remembers what it was told."""

    def __init__(self):
        super().__init__()
        self.inner, self.told = unet(3, 16, width=32), None
        self.config = self.inner.config

    def forward(self, x, t, **told):
        self.told = told
        return self.inner(x, t, **told)


@pytest.mark.parametrize("flow", [False, True])
def test_a_share_of_the_texts_is_hidden(flow):
    network, (data, empty) = Watched(), batch()
    rng = Rng(0, 0, 6, 0, 6)

    def loss(dropout, empty_text=empty):
        options = {"class_dropout": dropout, "empty_text": empty_text}
        if flow:
            return flow_matching_loss(network, data, rng, **options)["loss"]
        return diffusion_loss(network, DDPMScheduler(**COSINE), data, rng, **options)["loss"]

    loss(0.0)
    assert torch.equal(network.told["encoder_hidden_states"], data["text"])
    loss(1.0)
    assert torch.equal(network.told["encoder_hidden_states"], empty[0].expand_as(data["text"]))
    assert torch.equal(network.told["encoder_attention_mask"], empty[1].expand(6, -1))
    loss(0.5)
    hidden = (network.told["encoder_hidden_states"] == empty[0]).all(-1).all(-1)
    assert torch.equal(hidden, rng.uniform("class_dropout") < 0.5) and 0 < hidden.sum() < 6
    with pytest.raises(UsageError, match="empty_text is missing"):
        loss(0.1, None)
    loss(0.0, None).backward()
    grads = {name: p.grad for name, p in network.inner.named_parameters() if "cross" in name}
    assert len(grads) > 10 and all(grad is not None and grad.abs().sum() > 0 for grad in grads.values())


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer, text_encoder = texts()
    tokenizer.save_pretrained(folder / "tokenizer")
    text_encoder.save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("autoencoder")
    torch.manual_seed(0)
    vae = autoencoder_kl(32, 3, block_out_channels=(8, 8, 8)).eval()
    latentia.AutoencoderKLPipeline(vae).save_pretrained(folder)
    return folder


def run(folder, encoder, *argv):
    module = load_example("train_text_to_image")
    words = f"""--dataset_name emoji --max_train_samples 40 --block_out_channels 8 16 --attention_head_dim 8
        --text_encoder {encoder} --max_train_steps 4 --train_batch_size 8 --eval_num_samples 0 --checkpointing_steps 2
        --num_inference_steps 2 --logging_steps 1 --cache_dir {folder.parent / "cache"} --output_dir {folder}""".split()
    return module.main(parse_arguments(module.Arguments, [*words, *map(str, argv)], description="", prog="train"))


@pytest.mark.parametrize(
    "kind",
    ["latents", pytest.param("pixels", marks=pytest.mark.nightly), pytest.param("flow", marks=pytest.mark.nightly)],
)
def test_the_example_resumes_bit_equal_and_leaves_a_pipeline(tmp_path, encoder, autoencoder, kind):
    flags = ["--patch_size", 2] if kind == "pixels" else ["--autoencoder", autoencoder]
    flags += ["--prediction_type", "flow"] if kind == "flow" else ["--loss_weighting", "min_snr"]
    assert run(tmp_path / "whole", encoder, *flags) == 0
    folder = part_of(tmp_path / "whole", 2, tmp_path / "again")
    assert run(folder, encoder, *flags) == 0
    assert held(tmp_path / "whole", 4) == held(folder, 4)
    pipe = quiet(latentia.DiffusionPipeline.from_pretrained(folder))
    assert type(pipe) is TextToImagePipeline and (pipe.vae is None) == (kind == "pixels")
    assert pipe("red heart", num_inference_steps=2, guidance_scale=2.0).images[0].size == (32, 32)
    assert len((folder / "samples" / "ema-labels.txt").read_text().splitlines()) == 64
    assert "text-to-image" in (folder / "README.md").read_text()
    assert {"tokenizer", "text_encoder", "unet", "scheduler"} <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--text_encoder", "None"], "--text_encoder must name a trained one"),
        (["--dataset_name", "digits"], "--caption_column must name the captions"),
        (["--caption_dropout", 1], r"caption_dropout must be in \[0, 1\); got 1"),
        (["--caption_dropout", 0], "--guidance_scale must be 1 with --caption_dropout 0"),
        (["--autoencoder", "x", "--patch_size", 2], "--patch_size must be 1 with --autoencoder"),
        (["--prediction_type", "flow", "--loss_weighting", "min_snr"], "loss_weighting must be none"),
    ],
)
def test_flags_that_make_no_sense(tmp_path, encoder, flags, text):
    with pytest.raises(UsageError, match=text):
        run(tmp_path / "run", encoder, *flags)


# ------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda pipe: pipe([]), "prompt must be a text or a list of at least one; got"),
        (lambda pipe: pipe(3), "prompt must be"),
        (lambda pipe: pipe("a", num_images_per_prompt=0), "num_images_per_prompt must be at least 1; got 0"),
        (
            lambda pipe: pipe(WORDS[:3], negative_prompt=["a", "b"], guidance_scale=2.0),
            "each of 3 prompts; got 2",
        ),
        (lambda pipe: pipe("a", negative_prompt="b"), "negative_prompt needs a guidance_scale other than 1"),
        (lambda pipe: pipe("a", guidance_scale=2.0, guidance_rescale=1.5), r"guidance_rescale must be in \[0, 1\]"),
        (lambda pipe: pipe(WORDS[:2], generator=[seeded(0)]), "generator must be one or a list of batch_size=2; got 1"),
        (
            lambda pipe: pipe(WORDS[:2], latents=torch.zeros(3, 4, 8, 8)),
            "one for each of 2 images; got 3",
        ),
        (lambda pipe: pipe("a", latents=torch.zeros(1, 3, 8, 8)), r"latents must have shape \(B, 4, h, w\)"),
        (lambda pipe: pipe("a", num_inference_steps=0), "num_inference_steps must be from 1 to 1000"),
        (lambda pipe: pipe("a", output_type="pill"), 'Did you mean "pil"'),
        (lambda pipe: pipe.encode(torch.zeros(1, 3, 32, 32)), "images must be of the size that the network makes"),
        (lambda pipe: pipe.decode(torch.zeros(3, 4, 8, 8), prompt=["a", "b"]), "one for each of 3 images; got 2"),
        (lambda pipe: pipe.interpolate(0, 1, 1), "steps must be at least 2"),
        (
            lambda pipe: text_pipeline(unconditional=False)("a", guidance_scale=2.0),
            "without caption dropout.*got 2.0. Train it with caption_dropout",
        ),
        (lambda pipe: TextToImagePipeline(*texts(64), pipe.unet, pipe.scheduler, pipe.vae), "cross_attention_dim=32"),
        (
            lambda pipe: TextToImagePipeline(*texts(), unet(6, width=32), pipe.scheduler, pipe.vae),
            "as many in_channels as the",
        ),
        (lambda pipe: TextToImagePipeline(*texts(), pipe.vae, pipe.scheduler), "unet must be a UNet2D or"),
        (lambda pipe: TextToImagePipeline(*texts(), UNet2D(8), pipe.scheduler), "this one has no cross_attention_dim"),
        (lambda pipe: TextToImagePipeline(*texts(), pipe.unet, pipe.unet), "scheduler must be one of"),
        (lambda pipe: TextToImagePipeline(*texts(), pipe.unet, pipe.scheduler, pipe.unet), "vae must be"),
        (lambda pipe: TextToImagePipeline(texts()[0], pipe.unet, pipe.unet, pipe.scheduler), "text_encoder must be"),
    ],
)
def test_calls_that_make_no_sense(call, text):
    with pytest.raises(UsageError, match=text):
        call(text_pipeline())


@pytest.mark.parametrize(
    ("part", "other", "text"),
    [
        ("text_encoder", lambda: texts(64)[1], "have 64. Was it trained with another text encoder"),
        ("unet", lambda: unet(6, width=32), "as many in_channels as the latents of vae, 4; got 6"),
        ("vae", lambda: unet(width=32), "vae must be an autoencoder"),
        ("scheduler", lambda: unet(width=32), "scheduler must be one of"),
    ],
)
def test_a_swapped_part_that_does_not_fit_is_named(part, other, text):
    pipe = text_pipeline()
    setattr(pipe, part, other())
    for call in (
        pipe,
        lambda _: pipe.decode(torch.zeros(1, 4, 8, 8)),
        lambda _: pipe.encode(torch.zeros(1, 3, 16, 16)),
    ):
        with pytest.raises(UsageError, match=text):
            call("a red heart")


def test_a_scheduler_that_clips_is_refused_for_latents_alone():
    pipe = text_pipeline()
    pipe.scheduler = DDIMScheduler(**COSINE | {"clip_sample": True})
    with pytest.raises(UsageError, match="clip_sample=False"):
        pipe("a")
    assert text_pipeline(False, pipe.scheduler)("a", num_inference_steps=1).images


def test_a_prompt_that_is_too_long_is_cut_with_a_word(caplog):
    pipe = text_pipeline()
    pipe("a red heart " * 9, num_inference_steps=1)
    assert "cut off" in caplog.text and "a red heart" in caplog.text


# ------------------------------------------------------------ colours


def test_the_colour_that_was_asked_for_is_told_from_others():
    def plain(*colors):
        return torch.stack([torch.tensor(c).view(3, 1, 1).expand(3, 4, 4) for c in colors])

    red, green, blue = (1.0, -1.0, -1.0), (-1.0, 0.5, -1.0), (-1.0, -1.0, 1.0)
    images = plain(red, green, blue)
    images[:, :, :2] = 1.0  # a white background does not count
    colors = palette(images, ["red heart", "a green bus", "blue"])
    assert [*colors] == ["red", "green", "blue"]
    assert color_word_accuracy(images, ["red", "green", "blue"], colors) == 1
    assert color_word_accuracy(images, ["green", "green", "red"], colors) == pytest.approx(1 / 3)
    assert color_word("Red-hot") == "red" and color_word("redden") is None
    with pytest.raises(UsageError, match="must each name one of red, green, blue; got 'black cat'"):
        color_word_accuracy(images[:1], ["black cat"], colors)
    with pytest.raises(UsageError, match="one for each of 3 images"):
        palette(images, ["red"])


def test_captions_of_the_data_are_what_is_evaluated(tmp_path):
    from latentia.commands.sources import open_source

    real = ImageData(torch.zeros(5, 3, 16, 16, dtype=torch.uint8), captions=[*WORDS, "a red bus"])
    pipe = text_pipeline(False)
    source = open_source(pipe, real, num_inference_steps=2)
    drawn = source.draw(0, 3)
    assert drawn.shape == (3, 3, 16, 16) and torch.equal(source.draw(1, 3), drawn[1:])
    with pytest.raises(UsageError, match="must have captions"):
        open_source(pipe, ImageData(torch.zeros(5, 3, 16, 16, dtype=torch.uint8)), num_inference_steps=2)


def test_json_of_the_index_names_classes_that_others_know(tmp_path):
    text_pipeline().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["unet"] == ["latentia", "UNet2D"] and index["vae"][0] == "diffusers"
    assert index["text_encoder"] == ["transformers", "CLIPTextModelWithProjection"]


READY = Path(__file__).parents[2] / "pretrained" / "emoji"


def test_the_ready_pipeline_draws_in_the_colour_asked_for():
    """The emoji that the repository ships, 8 MB in half precision, loaded without a network."""
    from latentia.data import load_images

    pipe, data = quiet(latentia.DiffusionPipeline.from_pretrained(READY)), load_images("emoji")
    colors = palette(data.images.float() / 127.5 - 1, data.captions)
    asked = [f"large {word} circle" for word in ("red", "orange", "yellow", "green", "blue")]
    images = pipe(asked, guidance_scale=3.0, num_inference_steps=15, generator=seeded(0), output_type="latent").images
    assert images.shape == (5, 3, 32, 32) and color_word_accuracy(images.clamp(-1, 1), asked, colors) >= 0.8
