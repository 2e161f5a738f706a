"""Translation from a folder of images to numbers: what pipelines keep, and runs from two folders in one command."""

import json

import numpy as np
import pytest
import torch
from helpers import load_example
from PIL import Image
from pipeline_list import inputs, spread

import latentia
from latentia import CyclePipeline, CycleTranslator, ImageTranslator, TranslationPipeline
from latentia.commands.evaluate import evaluate
from latentia.commands.generate import generate
from latentia.data import ImageData
from latentia.errors import UsageError
from latentia.functional.degradation import larger
from latentia.runs.command_line import with_values

SMALL = {"block_out_channels": (4, 8)}


def restoring(name: str, channels: tuple[int, int], output: str, strength=None) -> TranslationPipeline:
    torch.manual_seed(0)
    return TranslationPipeline(
        ImageTranslator(*channels, output=output, **SMALL).eval(), {"name": name, "strength": strength}
    )


def test_bytes_arrays_tensors_and_images_are_the_same_inputs():
    pipe = restoring("edges", (1, 3), "image")
    array = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 1), dtype=np.uint8)
    images = [Image.fromarray(one[..., 0]) for one in array]
    kinds = [array, array.astype(np.float32) / 255, torch.from_numpy(array).permute(0, 3, 1, 2), images]
    found = [pipe(kind, output_type="latent").images for kind in kinds]
    assert all(torch.equal(one, found[0]) for one in found[1:])


def test_saved_colours_have_the_grey_of_their_input():
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8))
    pipe = restoring("grey", (1, 3), "luminance")
    spread(pipe.translator)  # far from its start, where it is nearly grey
    (made,) = pipe(grey).images
    assert made.mode == "RGB"
    gap = np.asarray(made.convert("L")).astype(int) - np.asarray(grey)
    assert np.abs(gap).max() <= 1 and np.asarray(made).std(2).mean() > 1


def test_a_mask_may_be_of_ones_of_bytes_or_an_image():
    pipe, image = restoring("masked", (4, 3), "hole"), inputs(1, 3)["image"]
    ones = np.zeros((16, 16), np.uint8)
    ones[4:9, 4:9] = 1
    kinds = [ones, 255 * ones, torch.from_numpy(ones).float(), Image.fromarray(255 * ones), Image.fromarray(ones)]
    found = [pipe(image, mask=mask, output_type="latent").images for mask in kinds]
    assert all(torch.equal(one, found[0]) for one in found[1:])
    outside = torch.from_numpy(ones) == 0
    assert torch.equal(found[0][..., outside], image[..., outside])
    assert not torch.equal(found[0], image)


def test_an_enlarging_network_takes_small_images():
    pipe, small = restoring("smaller", (3, 3), "residual", 4.0), inputs(2, 3)["image"][..., :8, :8]
    made = pipe(small, output_type="latent").images
    assert made.shape == (2, 3, 32, 32)
    assert torch.equal(made, pipe.translate(larger(small, 4), [torch.Generator()] * 2))


def test_noise_of_one_input_differs_from_image_to_image():
    network = ImageTranslator(1, 1, dropout=0.5, keep_dropout=True, **SMALL).eval()
    pipe = TranslationPipeline(network)
    made = pipe(inputs(1)["image"], batch_size=3, generator=torch.Generator().manual_seed(0), output_type="latent")
    assert len(made.images.flatten(1).unique(dim=0)) == 3


def test_a_pipeline_refuses_the_network_of_the_other():
    with pytest.raises(UsageError, match="translator must be an ImageTranslator; got a CycleTranslator"):
        TranslationPipeline(CycleTranslator(num_res_blocks=1, **SMALL))
    with pytest.raises(UsageError, match="translator must be a CycleTranslator; got ImageTranslator"):
        CyclePipeline(ImageTranslator(**SMALL))


# ------------------------------------------------------------ runs


class Quarters:
    """An extractor for any images: the means of their quarters."""

    name, sha256, image_shape, preprocessing, class_names = "quarters", "0" * 64, None, "none", None

    def __call__(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1), None


def folders(path, n: int = 12, **more):
    """Two folders of equal names: colour images, and the same upside down as grey ones."""
    rng = np.random.default_rng(0)
    for name in ("before", "after"):
        (path / name).mkdir()
    for i in range(n):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"before/{i}.png")
        Image.fromarray(pixels[::-1]).convert("L").save(path / f"after/{i}.jpg")
    small = {"max_train_steps": 2, "train_batch_size": 4, "block_out_channels": [4, 8], "eval_num_samples": 0}
    where = {
        "train_data_dir": str(path / "before"),
        "target_data_dir": str(path / "after"),
        "cache_dir": str(path / "c"),
    }
    return {**small, "discriminator_channels": [4, 8], **where, "output_dir": str(path / "run"), **more}


def test_two_folders_of_ones_own_become_a_pipeline(tmp_path):
    flags = folders(tmp_path)
    script = load_example("train_translation")
    assert script.main(with_values(script.Arguments(), flags, "test")) == 0
    pipe = latentia.DiffusionPipeline.from_pretrained(tmp_path / "run")
    image = Image.open(tmp_path / "before/0.png")
    assert pipe(image).images[0].mode == "L"
    made = generate(tmp_path / "run", 2, image=str(tmp_path / "before/0.png"))
    assert made.images[0].size == (16, 16)
    card = (tmp_path / "run/README.md").read_text()
    assert "pipeline_tag: image-to-image" in card and "pipe(image).images[0]" in card
    found = evaluate(tmp_path / "run", n=6, extractor=Quarters(), metrics=["kid"])
    scores = found.translation.scores
    assert [*scores] == ["model", "regression", "nearest neighbour"] and found.translation.paired
    assert "translations of 6 training images, with their targets:" in found.text()
    assert json.loads(json.dumps(found.to_dict()))["translation"]["n"] == 6
    found.save(tmp_path / "page")
    page = (tmp_path / "page/index.html").read_text()
    assert "PSNR, dB of translations" in page and "Baselines: regression" in page
    with pytest.raises(UsageError, match="other holds inputs; give the folder of their targets"):
        evaluate(tmp_path / "run", str(tmp_path / "other"), n=6, extractor=Quarters())
    with pytest.raises(UsageError, match="data must be pairs, as TranslationPipeline makes images from images"):
        evaluate(pipe, ImageData(torch.zeros(20, 1, 16, 16, dtype=torch.uint8)), n=6, extractor=Quarters())


def test_a_cycle_is_scored_without_pairs(tmp_path):
    flags = folders(tmp_path, num_res_blocks=1, pool_size=4, channels=3)
    script = load_example("train_cycle")
    assert script.main(with_values(script.Arguments(), flags, "test")) == 0
    pipe = latentia.DiffusionPipeline.from_pretrained(tmp_path / "run")
    image = Image.open(tmp_path / "before/0.png")
    assert pipe(pipe(image).images, direction="backward").images[0].size == (16, 16)
    found = evaluate(tmp_path / "run", n=6, extractor=Quarters(), metrics=["kid"]).translation
    assert not found.paired and [*found.scores] == ["model", "identity"]
    assert 0 < found.scores["model"]["cycle_l1"] < 2


@pytest.mark.parametrize(
    ("script", "words", "more"),
    [
        ("translation", "The targets are missing: give target_data_dir", {"target_data_dir": None}),
        ("translation", "target_data_dir must not be empty", {"target_data_dir": ""}),
        ("translation", "degrade makes the inputs of the images themselves", {"degrade": "grey"}),
        ("translation", "strength is of degrade", {"strength": 2.0}),
        ("translation", "streaming must be off", {"streaming": True}),
        ("translation", "does not exist", {"target_data_dir": "nowhere"}),
        ("translation", "num_res_blocks is of --architecture resnet", {"num_res_blocks": 2}),
        ("translation", "keep_dropout needs --dropout above 0", {"keep_dropout": True}),
        ("translation", "objective is of --adversarial_weight", {"adversarial_weight": 0.0, "objective": "hinge"}),
        ("translation", "l1_weight must be above 0", {"l1_weight": 0.0, "adversarial_weight": 0.0}),
        ("translation", "block_out_channels needs images of at least 32", {"block_out_channels": [4] * 5}),
        ("translation", "discriminator_channels needs images of at least 24", {"discriminator_channels": [4] * 4}),
        ("cycle", "The targets are missing: give target_data_dir", {"target_data_dir": None}),
        ("cycle", "identity_weight must be 0 for inputs and targets of other channels", {"identity_weight": 1.0}),
        ("cycle", "pool_size must be 0, or at least the global batch of 4; got 2", {"pool_size": 2}),
        ("cycle", "block_out_channels needs images of at least 32", {"block_out_channels": [4] * 5}),
    ],
)
def test_flags_that_make_no_sense_are_refused(script, words, more, tmp_path):
    flags = folders(tmp_path) | more
    if more.get("adversarial_weight") == 0.0:
        flags.pop("discriminator_channels")
    example = load_example(f"train_{script}")
    with pytest.raises(latentia.errors.LatentiaError, match=words):
        example.main(with_values(example.Arguments(), flags, "test"))
