"""Pairs of images: equal crops and flips, partners by name, degradations by closed forms, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from latentia.data import Degradation, ImageData, PairedImages, load_images, load_pairs
from latentia.errors import DataError, UsageError
from latentia.functional.degradation import edges, hole, larger, luminance, masked, smaller, with_luminance
from latentia.functional.pixels import from_uint8, to_uint8
from latentia.rng import Rng


def write(folder, images: dict[str, np.ndarray]):
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in images.items():
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    return folder


def ramps(n: int, height: int = 9, width: int = 12) -> np.ndarray:
    """Images of which every pixel is another value, so that crops and flips show."""
    values = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    return np.stack([values + 20 * i for i in range(n)])


def test_both_images_of_a_pair_are_cropped_and_flipped_alike(tmp_path):
    images = ramps(5)
    write(tmp_path / "in", {f"{i}.png": image for i, image in enumerate(images)})
    write(tmp_path / "out", {f"{i}.png": 255 - image for i, image in enumerate(images)})
    options = {"resolution": 7, "center_crop": False, "random_flip": True, "cache_dir": tmp_path / "cache"}
    for size in (9, 7):  # cropped along the width after resizing, and along none
        data = load_pairs(tmp_path / "in", tmp_path / "out", **options | {"resolution": size})
        batch = data.batch(0, 23, seed=4)
        torch.testing.assert_close(batch["condition"], -batch["x"], atol=0.02, rtol=0)
    whole = load_pairs(tmp_path / "in", tmp_path / "out", **options | {"resolution": 9}).batch(0, 23)["x"]
    assert len(whole.flatten(1).unique(dim=0)) > 14  # of five images, flipped or not


def test_partners_are_found_by_name_whatever_the_suffix(tmp_path):
    images = ramps(3)
    write(tmp_path / "in", {"b/x.png": images[0], "a/x.png": images[1], "a/y.png": images[2]})
    write(tmp_path / "out", {"a/y.bmp": images[2], "b/x.bmp": images[0], "a/x.bmp": images[1]})
    data = load_pairs(tmp_path / "in", tmp_path / "out", cache_dir=tmp_path / "cache")
    batch = data.batch(0, 3)
    assert torch.equal(batch["condition"], batch["x"]) and data.label_names == ["a", "b"]
    assert torch.equal(data.conditions(torch.tensor([2, 0])), from_uint8(data.images[[2, 0]]))


def test_pairs_of_other_proportions_are_named(tmp_path):
    for place, sizes in (("in", [(8, 8), (16, 12), (9, 6)]), ("out", [(16, 16), (8, 6), (6, 9)])):
        (tmp_path / place).mkdir()
        for i, size in enumerate(sizes):
            Image.new("L", size, 9 * i).save(tmp_path / place / f"{i}.png")
    with pytest.raises(DataError, match=r"2 is 9 x 6 as an input and 6 x 9 as a target. Crop them alike first"):
        load_pairs(tmp_path / "in", tmp_path / "out", resolution=4)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("L", (6, 9)).save(tmp_path / "in" / "2.png", exif=turned)
    Image.new("L", (18, 12)).save(tmp_path / "out" / "2.png")
    assert len(load_pairs(tmp_path / "in", tmp_path / "out", resolution=4)) == 3


def test_images_without_a_partner_are_named(tmp_path):
    images = ramps(4)
    write(tmp_path / "in", {f"{i}.png": image for i, image in enumerate(images)})
    write(tmp_path / "out", {"0.png": images[0], "2.png": images[1], "9.png": images[2]})
    with pytest.raises(DataError, match=r"2 images of .*in must have a partner of the same name in .*out: 1, 3\."):
        load_pairs(tmp_path / "in", tmp_path / "out", cache_dir=tmp_path / "cache")
    write(tmp_path / "out", {"1.png": images[0], "3.png": images[1]})
    with pytest.raises(DataError, match=r"1 image of .*out must have a partner of the same name in .*in: 9\."):
        load_pairs(tmp_path / "in", tmp_path / "out", cache_dir=tmp_path / "cache")
    loose = load_pairs(tmp_path / "in", tmp_path / "out", paired=False, cache_dir=tmp_path / "cache")
    assert len(loose) == 5 and loose.batch(0, 9)["condition"].shape == loose.batch(0, 9)["x"].shape
    write(tmp_path / "in", {"9.png": images[0], "9.bmp": images[0]})
    with pytest.raises(DataError, match=r"in holds two images named 9, with two suffixes"):
        load_pairs(tmp_path / "in", tmp_path / "out", cache_dir=tmp_path / "cache")


def test_sizes_that_differ_are_refused_with_a_way_out(tmp_path):
    write(tmp_path / "in", {"0.png": ramps(1)[0], "1.png": ramps(1)[0]})
    write(tmp_path / "out", {"0.png": ramps(1, 18, 24)[0], "1.png": ramps(1, 18, 24)[0]})
    where = {"cache_dir": tmp_path / "cache"}
    with pytest.raises(DataError, match="inputs are 12 x 9, targets 24 x 18"):
        load_pairs(tmp_path / "in", tmp_path / "out", **where)
    assert load_pairs(tmp_path / "in", tmp_path / "out", resolution=8, **where).shape == (1, 8, 8)
    write(tmp_path / "square", {"0.png": ramps(1, 9, 9)[0], "1.png": ramps(1, 9, 9)[0]})
    crops = (load_images(tmp_path / name, resolution=8, center_crop=False, **where) for name in ("in", "square"))
    with pytest.raises(DataError, match="must have one size to be cropped at the same random place"):
        PairedImages(*crops)


def test_two_columns_of_one_table_are_pairs():
    data = load_pairs("emoji", image_column="twemoji", target_column="noto", max_samples=6, random_flip=True)
    twemoji, noto = (load_images("emoji", image_column=name, max_samples=6) for name in ("twemoji", "noto"))
    assert torch.equal(data.images, noto.images)
    assert torch.equal(data.conditions(torch.arange(6)), from_uint8(twemoji.images))
    assert data.describe()["inputs"]["columns"]["image"] == "twemoji" and "from" in repr(data)


def test_unpaired_images_do_not_come_in_pairs():
    images = ImageData(torch.randint(256, (40, 1, 4, 4), dtype=torch.uint8))
    batch = PairedImages(images, images, paired=False).batch(0, 40)
    assert (batch["x"] == batch["condition"]).flatten(1).all(1).sum() < 5
    assert torch.equal(batch["x"].flatten(1).sort(0).values, batch["condition"].flatten(1).sort(0).values)


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("Give one of targets .* got none", {}),
        ("got target_column and degrade", {"target_column": "noto", "degrade": "grey"}),
        ("strength is of degrade", {"target_column": "noto", "strength": 2.0}),
        ("streaming must be left out", {"degrade": "grey", "streaming": True}),
        ('degrade must be .*gray.*Did you mean "grey"', {"degrade": "gray"}),
        ("strength must be left out: degrade grey has none", {"degrade": "grey", "strength": 0.5}),
        ("strength must be an integer, in .2, 64.*got 2.5", {"degrade": "smaller", "strength": 2.5}),
        ("strength must be .*got inf", {"degrade": "smaller", "strength": float("inf")}),
        ("strength must divide height and width", {"degrade": "smaller", "strength": 5.0}),
        (r"strength must be in \(0, 1\]; got 1.5. It is a share", {"degrade": "masked", "strength": 1.5}),
        ("strength must be .*; got 0", {"degrade": "noised", "strength": 0.0}),
        ("degrade grey needs images with 1 or 3", {"degrade": "grey", "channels": 4}),
        ('must be "raise" for pairs', {"target_column": "noto", "on_bad_image": "skip"}),
        ("image_column must be another", {"target_column": "noto", "image_column": "noto"}),
        ("rows belong together", {"target_column": "noto", "paired": False}),
        ("paired must be True for a degradation", {"degrade": "grey", "paired": False}),
    ],
)
def test_what_makes_no_pairs_is_refused(words, arguments):
    with pytest.raises(UsageError, match=words):
        load_pairs("emoji", **{"max_samples": 6} | arguments)


def test_other_numbers_of_inputs_than_of_targets_are_refused():
    images = torch.zeros(5, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(DataError, match="must be equally many; got 4 and 5"):
        PairedImages(ImageData(images), ImageData(images[:4]))


# ------------------------------------------------------------ degradations


def test_grey_is_that_of_pillow():
    pixels = torch.randint(256, (3, 3, 8, 8), dtype=torch.uint8)
    ours = to_uint8(luminance(from_uint8(pixels)))
    for image, grey in zip(pixels, ours):
        theirs = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")).astype(int)
        assert np.abs(theirs - grey[0].numpy()).max() <= 1


def test_hues_at_a_luminance_keep_it_within_one_level():
    torch.manual_seed(0)
    grey = from_uint8(torch.randint(256, (20, 1, 16, 16), dtype=torch.uint8))
    images = with_luminance(3 * torch.randn(20, 3, 16, 16), grey)
    assert images.abs().max() <= 1 and images.std(1).mean() > 0.1
    kept = luminance(to_uint8(images).float()) - to_uint8(grey).float()
    assert kept.abs().max() <= 1
    gentle = torch.rand(2, 3, 4, 4) * 1.8 - 0.9
    torch.testing.assert_close(with_luminance(gentle, luminance(gentle)), gentle)  # nothing to do


def test_edges_of_a_step_are_where_it_is():
    image = -torch.ones(1, 1, 6, 6)
    image[..., 3:] = 1
    found = edges(image)
    assert (found[..., 2:4] == 1).all() and (found[..., [0, 1, 4, 5]] == -1).all()


def test_smaller_images_keep_block_means_and_holes_their_share():
    images = torch.rand(2, 3, 8, 12) * 2 - 1
    assert smaller(images, 4).shape == (2, 3, 2, 3)
    torch.testing.assert_close(smaller(images, 4)[0, 0, 1, 2], images[0, 0, 4:, 8:].mean())
    assert larger(smaller(images, 4), 4).shape == images.shape
    mask = hole(torch.rand(50, 2), (8, 12), 0.25)
    assert (mask.flatten(1).sum(1) == 24).all() and len(mask.flatten(1).unique(dim=0)) > 10
    seen = masked(images, mask[:2])
    assert torch.equal(seen[:, :3][mask[:2].expand(-1, 3, -1, -1) == 0], images[mask[:2].expand(-1, 3, -1, -1) == 0])
    assert (seen[:, :3] * mask[:2] == 0).all() and torch.equal(seen[:, 3:], 2 * mask[:2] - 1)
    assert (hole(torch.rand(3, 2), (8, 12), 1.0) == 1).all()


@pytest.mark.parametrize("name", ["grey", "edges", "smaller", "masked", "noised"])
def test_a_degradation_has_the_shape_that_it_says(name):
    degradation, images = Degradation(name), torch.rand(4, 3, 8, 8) * 2 - 1
    whole = degradation(images, Rng(0, 10, 4, 0, 4))
    assert whole.shape[1:] == degradation.shape((3, 8, 8)) and whole.abs().max() <= 1
    assert torch.equal(degradation(images[2:], Rng(0, 10, 4, 2, 2)), whole[2:])
