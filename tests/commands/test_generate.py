"""`latentia generate`: every pipeline of the house by one command, and a recipe in each picture that makes it again."""

import functools
import gc
import json
import weakref
from importlib import import_module

import pytest
import torch
from helpers import perturbed
from hub_server import point_client_at, running_hub
from PIL import Image
from tiny_pipelines import FLOW, kl, text_pipeline, unet, vqvae

import latentia
from latentia import (
    VAE,
    VQVAE,
    Autoencoder,
    AutoencoderKLPipeline,
    AutoencoderPipeline,
    DDIMScheduler,
    LatentDiffusionPipeline,
    LatentMixture,
    PositionPrior,
    UnconditionalDiffusionPipeline,
    UNet2D,
    VAEPipeline,
    VQPriorPipeline,
    VQVAEPipeline,
)
from latentia.commands.generate import generate
from latentia.commands.main import main
from latentia.models.clip import train_tokenizer
from latentia.models.vq_prior import code_transformer
from latentia.pipelines.optimizer import sample_by_optimizer


def small_unet(channels=1, classes=None):
    config = {"block_out_channels": (8,), "attention_head_dim": 8, "layers_per_block": 1}
    return perturbed(UNet2D(sample_size=8, in_channels=channels, num_class_embeds=classes, **config))


def diffusion():
    return UnconditionalDiffusionPipeline(small_unet(classes=3), DDIMScheduler(), label_names=["cat", "dog", "owl"])


def transparent():
    return UnconditionalDiffusionPipeline(small_unet(4), DDIMScheduler())


def latent_diffusion():
    return LatentDiffusionPipeline(kl(), unet(classes=3), DDIMScheduler(clip_sample=False), ["cat", "dog", "owl"])


def latent_flow():
    return LatentDiffusionPipeline(vqvae(), unet(), FLOW())


def vae():
    return VAEPipeline(VAE(sample_size=8, latent_dim=2, hidden_sizes=(8,), num_class_embeds=3))


def mixture(dim):
    return LatentMixture.fit(torch.randn(40, dim), num_components=2)


def autoencoder():
    return AutoencoderPipeline(Autoencoder(sample_size=8, latent_dim=4, hidden_sizes=(8,)), prior=mixture(4))


def autoencoder_kl():
    return AutoencoderKLPipeline(kl(), prior=mixture(4 * 8 * 8))


def quantised():
    network = VQVAE(sample_size=8, in_channels=1, block_out_channels=(8,), codebook_size=16, latent_channels=4)
    return VQVAEPipeline(network, prior=PositionPrior(16, (4, 4)))


def prior():
    network = VQVAE(sample_size=8, in_channels=1, block_out_channels=(8,), codebook_size=16, latent_channels=4)
    return VQPriorPipeline(network.eval(), code_transformer(16, (4, 4), num_classes=3, width=32, layers=1).eval())


def text_prior():
    words = train_tokenizer(["a red heart", "a green bus"], 270, max_tokens=8)
    network = VQVAE(sample_size=8, in_channels=1, block_out_channels=(8,), codebook_size=16, latent_channels=4)
    return VQPriorPipeline(network.eval(), code_transformer(16, (4, 4), tokenizer=words, width=32).eval(), words)


def generated(folder, *flags):
    out = folder / "out"
    main(["generate", str(folder / "saved"), "--output_dir", str(out), "--overwrite", *map(str, flags)])
    *pictures, sheet = [
        Image.open(path) for path in [*sorted(out.glob("0*.png")), out.with_name(f"{out.name}_sheet.png")]
    ]
    for picture in (*pictures, sheet):
        picture.load()  # which closes the file
    return pictures, [json.loads(picture.text["latentia"]) for picture in pictures], sheet


FAMILIES = [
    (diffusion, ["--class_labels", "owl", "0", "--num_inference_steps", "2", "--guidance_scale", "2", "--eta", "0.5"]),
    (transparent, ["--num_inference_steps", "2"]),
    (latent_diffusion, ["--class_labels", "1", "cat", "--num_inference_steps", "2", "--guidance_scale", "2"]),
    (latent_flow, ["--num_inference_steps", "2"]),
    (vae, ["--class_labels", "2"]),
    (autoencoder, []),
    (autoencoder_kl, []),
    (quantised, []),
    (prior, ["--class_labels", "1", "--temperature", "0.8", "--top_k", "9", "--top_p", "0.9"]),
    (text_prior, ["--prompt", "red bus", "--top_k", "9"]),
]


@pytest.mark.parametrize(("build", "flags"), FAMILIES, ids=lambda value: getattr(value, "__name__", ""))
def test_every_family_writes_images_that_can_be_made_again(tmp_path, build, flags):
    torch.manual_seed(0)
    build().save_pretrained(tmp_path / "saved")
    pictures, recipes, sheet = generated(tmp_path, "--num_images", 3, "--seed", 5, *flags)
    assert len(pictures) == 3 and len({picture.tobytes() for picture in pictures}) == 3
    assert sheet.size[0] > pictures[0].size[0] and json.loads(sheet.text["latentia"])["images"] == 3

    # Everything that is needed stands in the picture: the third is made again by itself.
    recipe = recipes[2]
    pipe = latentia.DiffusionPipeline.from_pretrained(tmp_path / recipe["pipeline"])
    assert type(pipe).__name__ == recipe["class"] and recipe["versions"]["latentia"] == latentia.__version__
    pipe.set_progress_bar_config(disable=True)
    options = ("num_inference_steps", "guidance_scale", "eta", "temperature", "top_k", "top_p")
    asked = {key: recipe[key] for key in options if key in recipe}
    if recipe["prompt"] is not None:
        asked["prompt"] = recipe["prompt"]
    if recipe["class_label"] is not None:
        asked["class_labels"] = [r["class_label"] for r in recipes]
    again = pipe(batch_size=3, generator=torch.Generator().manual_seed(recipe["seed"]), **asked).images
    assert [image.tobytes() for image in again] == [picture.tobytes() for picture in pictures]
    assert str(tmp_path) not in json.dumps(recipes) + sheet.text["latentia"]
    asked_for = [
        flag.removeprefix("--")
        for flag in flags
        if flag.startswith("--") and flag not in ("--class_labels", "--prompt")
    ]
    assert all(recipe[key] == float(flags[flags.index(f"--{key}") + 1]) for key in asked_for)


def fails(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as exit:
        main(["generate", *map(str, argv)])
    assert exit.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(("build", "flags"), FAMILIES, ids=lambda value: getattr(value, "__name__", ""))
def test_every_family_is_fetched_from_the_hub_whole(build, flags, tmp_path, monkeypatch):
    torch.manual_seed(0)
    build().save_pretrained(tmp_path / "here" / "saved")
    files = {
        str(f.relative_to(tmp_path / "here/saved")): f.read_bytes() for f in (tmp_path / "here/saved").rglob("*.*")
    }
    with running_hub() as hub:
        point_client_at(hub, monkeypatch, str(tmp_path / "cache"))
        hub.put("user/family", files)
        main(["pull", "user/family", str(tmp_path / "there" / "saved")])
    here, there = (generated(tmp_path / place, "--num_images", 2, *flags)[0] for place in ("here", "there"))
    assert [picture.tobytes() for picture in here] == [picture.tobytes() for picture in there]


def test_a_flag_that_a_pipeline_does_not_take_is_named(tmp_path, capsys):
    for build in (vae, latent_flow, diffusion):
        build().save_pretrained(tmp_path / build.__name__)
    for pipe, flags, words in [
        (
            "vae",
            ("--num_inference_steps", 5),
            ["--num_inference_steps must be left out", "VAEPipeline", "--class_labels"],
        ),
        ("vae", ("--sampler", "ddim"), ["--sampler must be saved"]),
        ("diffusion", ("--sampler", "optimizer", "--eta", 0.5), ["--eta must be left out with sampler optimizer"]),
        ("vae", (), ["class_labels are missing", "3 classes"]),
        ("latent_flow", ("--prompt", "a cat"), ["--prompt must be left out", "--guidance_scale"]),
        ("latent_flow", ("--sampler", "dpm-solver++"), ["--sampler must be saved", "flow matching"]),
        ("latent_flow", ("--class_labels", "1"), ["without classes"]),
        ("diffusion", ("--class_labels", "dgo"), ["dgo", '"dog"']),
        ("diffusion", ("--guidance_scale", "2"), ["guidance_scale", "class_labels"]),
        ("diffusion", ("--num_images", 0), ["--num_images must be at least 1; got 0"]),
    ]:
        said = fails(capsys, tmp_path / pipe, "--output_dir", tmp_path / "out", *flags)
        assert all(word in said for word in words), said
    assert not (tmp_path / "out").exists()


def test_images_do_not_depend_on_how_many_are_asked_for(tmp_path):
    torch.manual_seed(0)
    diffusion().save_pretrained(tmp_path / "saved")
    flags = ("--num_inference_steps", 1, "--class_labels", "cat")
    many, _, _ = generated(tmp_path, "--num_images", 66, *flags)
    few, _, _ = generated(tmp_path, "--num_images", 2, *flags)
    pipe = latentia.DiffusionPipeline.from_pretrained(tmp_path / "saved")
    pipe.set_progress_bar_config(disable=True)
    whole = pipe(66, class_labels="cat", num_inference_steps=1, generator=torch.Generator().manual_seed(0)).images
    assert [p.tobytes() for p in many] == [p.tobytes() for p in whole]
    assert [p.tobytes() for p in few[:2]] == [p.tobytes() for p in many[:2]]


def test_an_optimizer_samples_from_the_shell(tmp_path):
    torch.manual_seed(0)
    diffusion().save_pretrained(tmp_path / "saved")
    flags = ("--num_inference_steps", 2, "--class_labels", "cat", "--sampler", "optimizer", "--num_images", 2)
    made, recipes, _ = generated(tmp_path, *flags)
    pipe = latentia.DiffusionPipeline.from_pretrained(tmp_path / "saved")
    pipe.set_progress_bar_config(disable=True)
    options = {"class_labels": "cat", "num_inference_steps": 2, "generator": torch.Generator().manual_seed(0)}
    again = sample_by_optimizer(pipe, 2, **options)
    assert [image.tobytes() for image in made] == [image.tobytes() for image in again]
    assert recipes[0]["sampler"] == "optimizer"


def test_a_pipeline_of_a_text_is_told_the_prompts(tmp_path, capsys):
    pipe = text_pipeline()
    pipe.save_pretrained(tmp_path / "saved")
    flags = ("--num_images", 3, "--num_inference_steps", 2, "--guidance_scale", 2, "--negative_prompt", "a green bus")
    pictures, recipes, _ = generated(tmp_path, *flags, "--prompt", "a red heart", "a black cat")
    prompts = ["a red heart", "a black cat", "a red heart"]
    assert [recipe["prompt"] for recipe in recipes] == prompts and recipes[0]["negative_prompt"] == "a green bus"
    again = pipe(
        prompts, guidance_scale=2.0, num_inference_steps=2, negative_prompt="a green bus",
        generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip
    assert [image.tobytes() for image in again] == [picture.tobytes() for picture in pictures]
    assert "--prompt is missing" in fails(capsys, tmp_path / "saved")


def test_pictures_are_made_of_files(tmp_path, capsys):
    torch.manual_seed(0)
    pipe = diffusion()
    pipe.save_pretrained(tmp_path / "saved")
    size = pipe.unet.config.sample_size
    half = Image.new("L", (size, size), 255)
    half.paste(0, (0, 0, size // 2, size))
    picture = Image.effect_noise((size, size), 80)
    small = picture.resize((size // 2, size // 2))
    for name, image in {"half": half, "picture": picture, "small": small}.items():
        image.save(tmp_path / f"{name}.png")
    flags = ("--num_images", 2, "--num_inference_steps", 2, "--image", tmp_path / "picture.png")
    made, recipes, _ = generated(tmp_path, *flags, "--mask", tmp_path / "half.png")
    left = (0, 0, size // 2, size)
    assert all(one.crop(left).tobytes() == picture.crop(left).tobytes() for one in made) and made[0] != picture
    assert recipes[0]["image"]["name"] == "picture.png" and len(recipes[0]["mask"]["sha256"]) == 64
    assert str(tmp_path) not in json.dumps(recipes)
    again, recipes, _ = generated(tmp_path, *flags, "--strength", 0)
    assert again[0].tobytes() == picture.tobytes() and recipes[0]["strength"] == 0
    large, _, _ = generated(
        tmp_path, "--num_images", 1, "--num_inference_steps", 2, "--low_resolution", tmp_path / "small.png"
    )
    assert large[0].size == (size, size)
    assert "--mask must be an image" in fails(capsys, tmp_path / "saved", "--mask", tmp_path / "saved/model_index.json")
    assert "mask needs an image" in fails(capsys, tmp_path / "saved", "--mask", tmp_path / "half.png")


def test_a_gan_without_texts_needs_no_prompt(tmp_path, capsys):
    latentia.GANPipeline(latentia.DCGANGenerator(8, latent_dim=4, block_out_channels=(4,))).save_pretrained(
        tmp_path / "saved"
    )
    pictures, recipes, _ = generated(tmp_path, "--num_images", 2)
    assert len(pictures) == 2 and recipes[0]["prompt"] is None
    assert "trained without captions" in fails(capsys, tmp_path / "saved", "--prompt", "a cat")


@pytest.mark.parametrize(
    ("old", "new"), [("--steps", "num_inference_steps"), ("--guidance", "guidance_scale")], ids=str
)
def test_the_short_flags_of_version_0_1_name_those_of_today(tmp_path, capsys, old, new):
    diffusion().save_pretrained(tmp_path / "pipe")
    said = fails(capsys, tmp_path / "pipe", old, 3, "--output_dir", tmp_path / "out")
    assert f'{old} must be left out: UnconditionalDiffusionPipeline does not take it. Did you mean "{new}"?' in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("condition", [{"class_label": 3}, {"prompt": "red heart"}, {}])
def test_the_sheet_says_what_each_image_was_asked_for(condition, tmp_path, monkeypatch):
    module = import_module("latentia.commands.generate")

    drawn, real = [], module.image_grid
    monkeypatch.setattr(
        module,
        "image_grid",
        lambda images, tile_labels: (drawn.append(tile_labels), real(images, tile_labels=tile_labels))[1],
    )
    recipe = {"index": 0, "class_label": None, "prompt": None, "negative_prompt": None, **condition}
    module.Generated([Image.new("L", (8, 8))] * 2, [recipe, {**recipe, "index": 1}]).save(tmp_path / "out")
    assert drawn == [[str(*condition.values())] * 2 if condition else None]


# ------------------------------------------------------------ many images


def test_an_interruption_leaves_what_was_made(tmp_path, capsys, monkeypatch):
    vae().save_pretrained(tmp_path / "saved")
    words = ["generate", str(tmp_path / "saved"), "--num_images", "140", "--class_labels", "1"]
    calls, call = [], VAEPipeline.__call__

    @functools.wraps(call)
    def interrupted(self, **options):
        calls.append(options["batch_size"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return call(self, **options)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(VAEPipeline, "__call__", interrupted)
        main([*words, "--output_dir", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert stop.value.code == 130 and "Stopped. 128 of 140 images are in" in said and "--overwrite" in said
    left = {path.name: path.read_bytes() for path in sorted((tmp_path / "out").glob("*.png"))}
    assert list(left) == [f"{i:05d}.png" for i in range(128)]
    main([*words, "--output_dir", str(tmp_path / "out"), "--overwrite"])
    whole = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.png")}
    assert len(whole) == 140 and all(whole[name] == data for name, data in left.items())


def test_images_are_written_as_they_are_made_and_let_go(tmp_path, monkeypatch):
    vae().save_pretrained(tmp_path / "saved")
    monkeypatch.setattr(import_module("latentia.commands.generate"), "_SHEET_PIXELS", 10 * 64)
    found, call = generate(tmp_path / "saved", 200, class_labels=[0, 1, 2]), VAEPipeline.__call__
    made_before = []

    @functools.wraps(call)
    def watched(self, **options):
        gc.collect()
        written = len([*(tmp_path / "out").glob("*.png")])
        assert written % 64 == 0 and written >= 64 and sum(image() is not None for image in made_before) <= 1
        made = call(self, **options)
        made_before.extend(map(weakref.ref, made.images))
        return made

    with monkeypatch.context() as patch:
        patch.setattr(VAEPipeline, "__call__", watched)
        folder, sheet = found.save(tmp_path / "out")
        assert len(made_before) == 200 - 64
    assert len([*folder.glob("*.png")]) == 200 and json.loads(Image.open(sheet).text["latentia"])["images"] == 10
    again = [image.tobytes() for image in found.images]  # sampled anew, and the same
    assert again == [Image.open(folder / f"{i:05d}.png").tobytes() for i in range(200)]
    assert found.images[199].tobytes() == again[199] and found.images[0] is found.images[0]
