"""The data room: decoding, sources, cache, order, streams, and what a hostile or broken data set meets."""

import io
import json
import multiprocessing
import os
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

import latentia.data
from latentia.data import BadImage, ImageData, StreamedImages, decode, load_images, open_image
from latentia.data import streaming as streaming_module
from latentia.data.decode import Fit
from latentia.data.loading import parse_split
from latentia.data.order import flip_mask, indices, uniform
from latentia.errors import DataError, MissingSplitError, UsageError
from latentia.files import cache as cache_module
from latentia.runs.arguments import DataArguments
from latentia.runs.start import load_data


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("LATENTIA_CACHE", str(tmp_path_factory.mktemp("cache")))


def cache_files() -> list[Path]:
    return sorted(Path(os.environ["LATENTIA_CACHE"], "images").glob("*.u8"))


def encoded(image: Image.Image | np.ndarray, format: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(out, format, **options)
    return out.getvalue()


def random_image(i: int, side: int = 8, colour: bool = False) -> np.ndarray:
    """An image no other i has."""
    return np.random.default_rng(i).integers(0, 256, (side, side, 3) if colour else (side, side), dtype=np.uint8)


def write_folder(root: Path, n: int, classes: int = 3, side: int = 8) -> list[np.ndarray]:
    """n images in class folders; returned in the order of their paths."""
    pixels = {}
    for i in range(n):
        path = root / f"class{i % classes}" / f"{i:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(random_image(i, side)))
        pixels[path] = random_image(i, side)
    return [pixels[path] for path in sorted(pixels)]


def write_parquet(path: Path, columns: dict[str, list], images: list[bytes | None] | None = None) -> Path:
    table = dict(columns)
    if images is not None:
        table = {"image": [{"bytes": data, "path": None} for data in images], **table}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path)
    return path


def pixels_of(data) -> np.ndarray:
    return data.images.numpy()


# ---------------------------------------------------------------------------------------------------------- decoding


GREY = np.array([[0, 64], [128, 255]], np.uint8)
RGB = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [10, 20, 30]]], np.uint8)


def rgba(alpha: int) -> np.ndarray:
    return np.concatenate([RGB, np.full((2, 2, 1), alpha, np.uint8)], axis=2)


def palette_with_key() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    return image


@pytest.mark.parametrize(
    "data, mode, channels, expected",
    [
        (encoded(GREY), "L", 1, GREY[None]),
        (encoded(GREY), "L", 3, np.stack([GREY] * 3)),
        (encoded(GREY), "L", 4, np.stack([GREY] * 3 + [np.full((2, 2), 255, np.uint8)])),
        (encoded(Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")), "L", 1, [[[0, 255]]]),
        (encoded(RGB), "RGB", 3, RGB.transpose(2, 0, 1)),
        # Rec. 601 luma of red, green, blue: 76.2, 149.7, 29.1
        (encoded(RGB), "RGB", 1, [[[76, 150], [29, 18]]]),
        (encoded(rgba(0)), "RGBA", 3, np.full((3, 2, 2), 255)),
        (encoded(rgba(255)), "RGBA", 3, RGB.transpose(2, 0, 1)),
        (encoded(rgba(255)), "RGBA", 4, rgba(255).transpose(2, 0, 1)),
        (encoded(Image.fromarray(np.array([[[100, 0], [100, 255]]], np.uint8), "LA")), "LA", 1, [[[255, 100]]]),
        (encoded(palette_with_key()), "RGB", 3, [[[255, 0]], [[0, 0]], [[0, 255]]]),
        (encoded(palette_with_key(), transparency=0), "RGBA", 3, [[[255, 0]], [[255, 0]], [[255, 255]]]),
        (encoded(palette_with_key(), transparency=bytes([255, 0])), "RGBA", 3, [[[255, 255]], [[0, 255]], [[0, 255]]]),
        (encoded(np.array([[0, 257, 32896, 65535]], np.uint16)), "L", 1, [[[0, 1, 128, 255]]]),
        (encoded(np.array([[128, 129, 300]], np.uint16)), "L", 1, [[[0, 1, 1]]]),  # rounded, neither cut nor clipped
    ],
)
def test_every_colour_mode_gives_the_right_pixels(data, mode, channels, expected):
    image = open_image(data)
    assert image.mode == mode
    np.testing.assert_array_equal(Fit(channels)(image), expected)


def test_images_in_memory():
    assert np.asarray(open_image(Image.fromarray(np.array([[0, 65535]], np.int32)))).tolist() == [[0, 255]]
    assert np.asarray(open_image(Image.fromarray(np.array([[0, 0.5, 1]], np.float32)))).tolist() == [[0, 128, 255]]
    for bad in (np.array([[0, 2]], np.float32), np.array([[0, np.nan]], np.float32), np.array([[-1]], np.int32)):
        with pytest.raises(BadImage, match="outside"):
            open_image(Image.fromarray(bad))
    assert np.asarray(open_image(RGB)).tolist() == RGB.tolist()
    assert np.asarray(open_image({"bytes": encoded(GREY), "path": "/etc/passwd"})).tolist() == GREY.tolist()
    for bad in ({"bytes": None, "path": "/etc/passwd"}, None, 3, RGB.astype(np.float32), np.zeros((0, 3), np.uint8)):
        with pytest.raises(BadImage):
            open_image(bad)


def test_cmyk_jpeg_is_white_where_no_ink_is():
    data = encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG")
    assert Fit(3)(open_image(data)).min() == 255
    data = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)  # magenta and yellow ink: red
    np.testing.assert_allclose(Fit(3)(open_image(data))[:, 0, 0], [255, 0, 0], atol=3)


@pytest.mark.parametrize(("orientation", "expected"), [(1, [[1, 2]]), (3, [[2, 1]]), (6, [[1], [2]]), (8, [[2], [1]])])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation_is_applied(orientation, expected, format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.kron(np.array([[1, 2]], np.uint8) * 100, np.ones((16, 16), np.uint8))
    options = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}}.get(format, {})
    shown = Fit(1)(open_image(encoded(Image.fromarray(stored), format, exif=exif, **options)))[0]
    np.testing.assert_allclose(shown[8::16, 8::16], np.array(expected) * 100, atol=4)


def notes(key: str = "workflow", text: str = "x" * 2**21) -> PngInfo:
    info = PngInfo()
    info.add_itxt(key, text, zip=True)
    return info


BESIDE = {  # what stands beside the pixels, and decides nothing about them
    "a long text": encoded(RGB, pnginfo=notes()),
    "a large profile": encoded(RGB, icc_profile=bytes(3 * 2**20)),
    "no profile": encoded(RGB, icc_profile=b"none"),
    "no EXIF, png": encoded(RGB, exif=b"none"),
    "no EXIF, webp": encoded(RGB, "WEBP", lossless=True, exif=b"none"),
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_stands_beside_the_pixels_decides_nothing(name):
    np.testing.assert_array_equal(Fit(3)(open_image(BESIDE[name])), RGB.transpose(2, 0, 1))


def test_an_orientation_beside_a_long_text_is_kept():
    info = notes()
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    assert open_image(encoded(GREY[:1], pnginfo=info)).size == (1, 2)


def test_heif_is_opened_by_its_package_or_the_package_is_named(monkeypatch):
    brand, register = bytes([0, 0, 0, 24]) + b"ftypheic" + bytes(12), []
    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=lambda: register.append(1)))
    decode.readable_formats.cache_clear()
    assert {"PNG", "TIFF", "AVIF"} <= {*decode.readable_formats()} and register
    decode.readable_formats.cache_clear()
    monkeypatch.setattr(decode, "readable_formats", lambda: ("PNG",))
    with pytest.raises(BadImage, match=r"is HEIF, which needs the package pillow-heif \(pip install pillow-heif\)"):
        open_image(brand)


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for format in ("GIF", "WEBP"):
        options = {"lossless": True} if format == "WEBP" else {}
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert Fit(3)(open_image(data))[:, 0, 0].tolist() == [255, 0, 0]


def test_resize_has_antialias_and_crops_the_centre():
    checks = np.indices((64, 64)).sum(axis=0) % 2 * 255  # any resize without antialias makes this black or white
    assert np.abs(Fit(1, (8, 8))(open_image(checks.astype(np.uint8))).astype(int) - 127).max() <= 2
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 200  # the middle third is all that is left
    assert (Fit(1, (10, 10))(open_image(wide)) == 200).all()
    uncropped = Fit(1, (5, 5), crop=False)(open_image(wide))
    assert uncropped.shape == (1, 5, 15) and uncropped[0, 2, 7] == 200 and uncropped[0, 2, 0] == 0
    transparent = np.zeros((8, 8, 4), np.uint8)
    transparent[:, 4:] = 255, 0, 0, 255
    shrunk = Fit(4, (4, 4))(open_image(transparent))  # the colour of what cannot be seen must not bleed
    assert shrunk[0][shrunk[3] > 8].min() > 245
    with pytest.raises(BadImage, match="too long"):
        Fit(1, (4000, 4000), crop=False)(open_image(np.zeros((1, 100), np.uint8)))


# -------------------------------------------------------------------------------------------------- bad images (25)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    ihdr = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


def flipped_bit(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


JPEG = encoded(random_image(0, 32, colour=True), "JPEG")
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
BAD = {
    "cut.jpg": (JPEG[: len(JPEG) // 2], "damaged"),
    "cut.png": (encoded(random_image(0, 32))[:-300], "damaged"),
    "cut.gif": (encoded(random_image(0, 32), "GIF")[:-300], "damaged"),
    "cut.webp": (encoded(random_image(0, 32), "WEBP", lossless=True)[:-300], "damaged"),
    "bit.png": (flipped_bit(encoded(random_image(0, 32)), 200), "damaged"),
    "empty.png": (b"", "empty"),
    "page.jpg": (b"\n<!doctype html><title>404</title>", "HTML"),
    "vector.png": (EPS, "PostScript"),
    "scan.tif": (encoded(random_image(0, 32), "TIFF")[:-300], "damaged"),
    "photo.avif": (encoded(random_image(0, 32), "AVIF")[:-30], "damaged"),
    "layers.png": (b"8BPS\0\1" + bytes(20), "Photoshop"),
    "bomb.png": (png_header(30000, 30000), "pixels"),
    "small_bomb.png": (png_header(10000, 10000), "pixels"),  # Pillow itself only warns of this one
    "noise.bmp": (bytes(range(256)), "not one of"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", BAD)
def test_bad_image_is_named_or_skipped(tmp_path, name):
    data, reason = BAD[name]
    write_folder(tmp_path / "set", 99, classes=1)
    good = load_images(tmp_path / "set")
    (tmp_path / "set/class0" / name).write_bytes(data)
    with pytest.raises(DataError, match=f"class0/{name}.*{reason}.*skip") as caught:
        load_images(tmp_path / "set")
    assert caught.value.exit_code == 4
    skipping = load_images(tmp_path / "set", on_bad_image="skip")
    assert len(skipping) == 99 and len(skipping.skipped) == 1 and name in skipping.skipped[0]
    np.testing.assert_array_equal(pixels_of(skipping), pixels_of(good))
    assert skipping.describe()["skipped"] == 1
    (tmp_path / "set/class0/second.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"more than 1 %.*" + ("second" if name < "second" else "")):
        load_images(tmp_path / "set", on_bad_image="skip")


def test_no_flipped_bit_in_a_png_gives_other_pixels():
    smooth = np.tile(np.arange(64, dtype=np.uint8), (64, 1))
    data = encoded(smooth)
    for at in range(len(data)):
        try:
            image = open_image(flipped_bit(data, at))
        except BadImage:
            continue
        assert (np.asarray(image) == smooth).all(), at


def test_odd_but_good_images_are_used(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    (tmp_path / "a.png").write_bytes(encoded(random_image(0, 1, colour=True)))
    (tmp_path / "b.jpg").write_bytes(encoded(Image.new("CMYK", (16, 8)), "JPEG"))
    (tmp_path / "c.png").write_bytes(encoded(np.full((8, 8), 65535, np.uint16)))
    (tmp_path / "d.jpg").write_bytes(encoded(random_image(1, 16), "JPEG", exif=exif))
    (tmp_path / "e.gif").write_bytes(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    (tmp_path / "f.png").write_bytes(encoded(random_image(2, 8, colour=True), "JPEG"))  # content counts, not the name
    data = load_images(tmp_path, resolution=8)
    assert data.shape == (3, 8, 8) and len(data) == 6 and data.label_names is None
    assert (data.images[2] == 255).all() and data.images[4, :, 0, 0].tolist() == [255, 0, 0]


def test_pillow_globals_are_neither_used_nor_changed(tmp_path, monkeypatch):
    write_folder(tmp_path, 3)
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    load_images(tmp_path)
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == before
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(BadImage, match="pixels"):
        open_image(png_header(30000, 30000))
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(UsageError, match="LOAD_TRUNCATED_IMAGES"):
        load_images(tmp_path)


# ------------------------------------------------------------------------------- columns, labels, captions, sizes (26)


def columns(**extra) -> dict[str, list]:
    return {"label": [0, 1, 2, 1], "text": ["one", "two", "three", "four"], **extra}


@pytest.mark.parametrize(
    "change, options, error, message",
    [
        ({}, {"image_column": "imgae"}, UsageError, r'image_column="imgae".*Did you mean "image".*image, label, text'),
        ({}, {"label_column": "klass"}, UsageError, r'label_column="klass".*image, label, text'),
        ({}, {"caption_column": "texts"}, UsageError, r'caption_column="texts".*Did you mean "text"'),
        ({}, {"image_column": "text"}, UsageError, "does not hold image values; columns that do: image"),
        ({}, {"caption_column": "label"}, UsageError, "does not hold text values; columns that do: text"),
        ({"label": [0, -1, 2, 1]}, {}, DataError, r'row 1: label column "label" holds -1, outside.*label_column=""'),
        ({"label": [0, None, 2, 1]}, {}, DataError, "row 1.*holds no value"),
        ({"label": [0.0, 1.0, float("nan"), 1.0]}, {}, DataError, "row 2.*nan"),
        ({"label": [0.0, 1.5, 2.0, 1.0]}, {}, DataError, "row 1.*1.5, neither"),
        ({"label": [[0], [1], [2], [1]]}, {}, DataError, 'the column "label" must hold values; it holds list'),
        ({"label": [0, 1, 2**40, 1]}, {}, DataError, "row 2.*outside"),
        ({}, {"label_names": ["a", "b"]}, DataError, r"row 2.*holds 2, outside \[0, 2\)"),
        (
            {"label": ["a", "b", "cat", "a"]},
            {"label_names": ["a", "b", "cats"]},
            DataError,
            'row 2.*Did you mean "cats"',
        ),
        ({"text": ["one", None, "three", "four"]}, {}, DataError, r'row 1: caption column "text" holds no value.*""'),
        ({"text": ["one", "two", " ", "four"]}, {}, DataError, "row 2.*' ', not a text"),
        ({}, {"split": "test["}, UsageError, "split must look like"),
        ({}, {"split": "train[4:]"}, DataError, "no image in the rows"),
        ({}, {"resolution": 0}, UsageError, "resolution must be"),
        ({}, {"resolution": (8, 8, 8)}, UsageError, "resolution must be"),
        ({}, {"channels": 2}, UsageError, "channels must be one of None, 1, 3, 4; got 2"),
        ({}, {"on_bad_image": "ignore"}, UsageError, "on_bad_image must be one of"),
        ({}, {"max_samples": 0}, UsageError, "max_samples must be at least 1"),
        ({}, {"num_workers": -1}, UsageError, "num_workers must be at least 0"),
    ],
)
def test_wrong_columns_values_and_arguments(tmp_path, change, options, error, message):
    file = write_parquet(tmp_path / "a.parquet", columns(**change), [encoded(random_image(i)) for i in range(4)])
    with pytest.raises(error, match=message):
        load_images(file, **options)
    assert not cache_files()


def test_labels_and_captions(tmp_path):
    images = [encoded(random_image(i)) for i in range(4)]
    file = write_parquet(tmp_path / "a.parquet", columns(kind=["dog", "cat", "dog", "eel"]), images)
    data = load_images(file)
    assert data.labels.tolist() == [0, 1, 2, 1] and data.label_names == ["0", "1", "2"]
    assert data.captions == ["one", "two", "three", "four"]
    data = load_images(file, label_column="kind", caption_column="")
    assert data.labels.tolist() == [1, 0, 1, 2] and data.label_names == ["cat", "dog", "eel"] and data.captions is None
    data = load_images(file, label_column="kind", label_names=["eel", "dog", "cat", "ant"])
    assert data.labels.tolist() == [1, 2, 1, 0] and len(data.label_names) == 4
    data = load_images(file, label_column="")
    assert data.labels is None and "labels" not in data.batch(0, 2)
    assert data.batch(0, 4)["captions"] == [data.captions[i] for i in indices(0, 4, 4, 0)]


def test_sizes_and_colours_must_agree(tmp_path):
    file = write_parquet(tmp_path / "a.parquet", {}, [encoded(random_image(0, 8)), encoded(random_image(1, 9))])
    with pytest.raises(DataError, match=r"row 1 is 9 x 9, but the first image is 8 x 8. Give `resolution`"):
        load_images(file)
    file = write_parquet(tmp_path / "b.parquet", {}, [encoded(random_image(0)), encoded(random_image(1, colour=True))])
    with pytest.raises(DataError, match=r"row 1 is in colour.*channels=3.*channels=1"):
        load_images(file, on_bad_image="skip")
    assert load_images(file, channels=3).shape == (3, 8, 8)
    assert load_images(file, channels=1).shape == (1, 8, 8)
    assert load_images(write_parquet(tmp_path / "c.parquet", {}, [encoded(RGB), encoded(GREY)])).shape == (3, 2, 2)


def test_empty_and_too_small_sets(tmp_path):
    with pytest.raises(DataError, match=r"holds no image .no file"):
        load_images(tmp_path)
    (tmp_path / "a.svg").write_bytes(b"<svg/>")
    with pytest.raises(DataError, match=r"1 x .svg.*known suffixes: .png"):
        load_images(tmp_path)
    with pytest.raises(DataError, match="is empty"):
        load_images(write_parquet(tmp_path / "x/a.parquet", {"image": pa.array([], pa.binary())}))
    data = load_images("digits", max_samples=12)
    data.require(12)
    with pytest.raises(DataError, match=r"12 images, fewer than one global batch of 64"):
        data.require(64)


def test_sources_that_are_not_there(tmp_path, monkeypatch):
    for missing in (tmp_path / "none", "./none", "none.parquet", "a/b/c"):
        with pytest.raises(DataError, match="does not exist"):
            load_images(missing)
    with pytest.raises(DataError, match="names no file"):
        load_images(str(tmp_path / "*.parquet"))
    for name, content in (("a.zip", b"PK\3\4"), ("a.png", encoded(GREY))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match="folder"):
            load_images(tmp_path / name)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        load_images(tmp_path / "a.parquet")
    for source in (5, [{"image": GREY}], "", "Gr\udce4ser"):
        with pytest.raises(UsageError):
            load_images(source)
    import huggingface_hub

    def refuse(self, name, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    with pytest.raises(DataError, match=r'"emojy".*Did you mean "emoji".*no route to host'):
        load_images("emojy")


# ---------------------------------------------------------------------------------------------------- security (27)


@pytest.mark.parametrize(
    "name", ["../secret.png", "../../etc/passwd", "/etc/passwd", "in/../../secret.png", "..\\secret.png"]
)
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_metadata_cannot_lead_out_of_the_folder(tmp_path, name, kind):
    (tmp_path / "secret.png").write_bytes(encoded(GREY))
    root = tmp_path / "set"
    write_folder(root, 2, classes=1)
    line = json.dumps({"file_name": name, "text": "x"}) if kind == "jsonl" else f"file_name,text\n{name},x"
    (root / f"metadata.{kind}").write_text(line + "\n")
    with pytest.raises(DataError, match=r"line . *: file_name .*leads out"):
        load_images(root)


def test_links_out_of_the_folder_are_refused(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret.png").write_bytes(encoded(GREY))
    for target in ("outside/secret.png", "outside"):
        root = tmp_path / f"set-{Path(target).name}"
        write_folder(root, 2, classes=1)
        (root / "class0" / Path(target).name).symlink_to(tmp_path / target)
        with pytest.raises(DataError, match="leads out of the folder"):
            load_images(root)
    root = tmp_path / "link"
    root.symlink_to(tmp_path / "inside")
    write_folder(tmp_path / "inside", 2, classes=1)
    (tmp_path / "inside/class0/again.png").symlink_to("0000.png")  # within the folder, and the folder itself: fine
    assert len(load_images(root)) == 3
    (tmp_path / "inside/class0/loop.png").symlink_to("loop.png")
    with pytest.raises(DataError, match=r"loop\.png"):
        load_images(root)


def test_paths_in_parquet_are_not_followed(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(GREY))
    table = {"image": [{"bytes": None, "path": str(secret)}]}
    with pytest.raises(DataError, match=r"row 0 holds no image bytes"):
        load_images(write_parquet(tmp_path / "a.parquet", table))


# ------------------------------------------------------------------------------------------------------------ order


@given(n=st.integers(1, 40), seed=st.integers(0, 2**40), start=st.integers(0, 200), length=st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_epochs_are_permutations_and_do_not_depend_on_the_cut(n, seed, start, length):
    stream = indices(0, start + length + n, n, seed)
    for epoch in range((start + length + n) // n):
        assert sorted(stream[epoch * n : (epoch + 1) * n].tolist()) == list(range(n))
    assert torch.equal(indices(start, start + length, n, seed), stream[start : start + length])


def test_seeds_and_epochs_differ_and_numbers_are_uniform():
    a, b = indices(0, 200, 100, 0), indices(0, 200, 100, 1)
    assert not torch.equal(a, b) and not torch.equal(a[:100], a[100:])
    u = uniform("flip", 0, 100_000, 0)
    assert 0 <= u.min() and u.max() < 1
    np.testing.assert_allclose(np.histogram(u, 10, (0, 1))[0], 10_000, atol=500)
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(u, uniform("crop x", 0, 100_000, 0))[0, 1]) < 0.02
    assert abs(np.corrcoef(u, uniform("flip", 0, 100_000, 1))[0, 1]) < 0.02


def uneven_folder(root: Path) -> Path:
    for i in range(7):
        (root / f"{i}.png").parent.mkdir(exist_ok=True, parents=True)
        image = np.full((6 + i, 20 - 2 * i), 10 * i, np.uint8)
        image[:, ::2] += 5  # columns and rows differ
        (root / f"{i}.png").write_bytes(encoded(image))
    return root


@pytest.fixture(scope="module")
def augmented(tmp_path_factory):
    cache = tmp_path_factory.mktemp("augmented")
    options = {"cache_dir": cache, "random_flip": True}
    uneven = load_images(uneven_folder(cache / "images"), resolution=4, center_crop=False, **options)
    return [uneven, load_images("digits", max_samples=7, **options)]


@given(cuts=st.lists(st.integers(0, 60), min_size=2, max_size=5), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_batches_do_not_depend_on_how_the_stream_is_cut(augmented, cuts, seed):
    cuts = sorted(cuts)
    for data in augmented:
        whole = data.batch(cuts[0], cuts[-1], seed=seed)
        parts = [data.batch(a, b, seed=seed) for a, b in pairwise(cuts)]
        assert torch.equal(whole["x"], torch.cat([part["x"] for part in parts]))
        if "labels" in whole:
            assert torch.equal(whole["labels"], torch.cat([part["labels"] for part in parts]))


def test_flips_are_fair_and_change_from_epoch_to_epoch():
    plain = load_images("digits", max_samples=100)
    data = load_images("digits", max_samples=100, random_flip=True)
    assert data.fingerprint == plain.fingerprint and len(cache_files()) == 1  # made of the same file
    order = indices(0, 1000, 100, 0)
    straight = plain.images[order].float() / 127.5 - 1
    drawn = data.batch(0, 1000)["x"]
    is_straight = (drawn == straight).flatten(1).all(1)
    is_mirrored = (drawn == straight.flip(-1)).flatten(1).all(1)
    assert (is_straight | is_mirrored).all() and 400 < is_mirrored.sum() < 600
    first = torch.zeros(100, dtype=bool).index_put((order[:100],), is_mirrored[:100])
    second = torch.zeros(100, dtype=bool).index_put((order[100:200],), is_mirrored[100:200])
    assert not torch.equal(first, second)
    assert torch.equal(plain.images, load_images("digits", max_samples=100).images)  # flipping is not done in place


def test_random_crops_reach_every_place_and_stay_inside(tmp_path):
    ramp = np.tile(np.arange(12, dtype=np.uint8) * 20, (8, 1))  # a crop of 8 x 8 can start at columns 0 to 4
    (tmp_path / "a.png").write_bytes(encoded(ramp))
    data = load_images(tmp_path, resolution=8, center_crop=False)
    assert data.shape == (1, 8, 8) and (pixels_of(data)[0, 0] == ramp[:, 2:10]).all()
    drawn = ((data.batch(0, 500)["x"] + 1) * 127.5).round()
    starts = drawn[:, 0, 0, 0] / 20
    assert torch.equal(drawn[:, 0, 0], (starts[:, None] + torch.arange(8)) * 20)
    assert np.histogram(starts, 5, (-0.5, 4.5))[0].min() > 70


def test_batches_are_in_minus_one_to_one_exactly():
    data = ImageData(torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16))
    values = data.batch(0, 1)["x"].flatten()
    assert values[0] == -1 and values[-1] == 1 and values.dtype == torch.float32
    assert torch.equal(((values + 1) * 127.5).round().to(torch.uint8), torch.arange(256, dtype=torch.uint8))
    assert data.batch(3, 3)["x"].shape == (0, 1, 16, 16)
    with pytest.raises(UsageError, match="0 <= start <= stop"):
        data.batch(4, 3)


@pytest.mark.parametrize("random_flip", [False, True])
def test_the_copy_on_a_device_gives_what_the_file_gives(random_flip):
    data = load_images("digits", random_flip=random_flip)
    flips = flip_mask(20, 70, 1) if random_flip else None
    there = data._from_resident(indices(20, 70, len(data), 1), flips, torch.device("cpu"))
    assert torch.equal(there, data.batch(20, 70, seed=1)["x"])
    if torch.cuda.is_available():
        assert torch.equal(there, data.batch(20, 70, seed=1, device="cuda")["x"].cpu())


def test_image_data_checks_what_it_is_given():
    images = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    few, outside, unnamed = {"labels": [0, 1]}, {"labels": [0, 1, -1]}, {"labels": [0, 1, 2], "label_names": ["a"]}
    for options in (few, outside, unnamed, {"label_names": ["a"]}, {"captions": ["a"]}):
        with pytest.raises(UsageError):
            ImageData(images, **options)
    for bad in (images.float(), images[0], images[:0]):
        with pytest.raises(UsageError, match="uint8 tensor"):
            ImageData(bad)


# ------------------------------------------------------------------------------------------------------------ cache


def forbid_pillow(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("an image file was opened")

    monkeypatch.setattr(Image, "open", refuse)


def test_a_second_load_and_all_batches_never_open_an_image(tmp_path, monkeypatch):
    write_folder(tmp_path, 9)
    first = load_images(tmp_path)
    forbid_pillow(monkeypatch)
    again = load_images(tmp_path)
    assert again.fingerprint == first.fingerprint and again.label_names == ["class0", "class1", "class2"]
    assert torch.equal(first.batch(0, 30)["x"], again.batch(0, 30)["x"])
    with pytest.raises(DataError, match="an image file was opened"):
        load_images(tmp_path, resolution=4)


def test_key_and_fingerprint_of_a_data_set(tmp_path):
    write_folder(tmp_path / "a", 9)
    first = load_images(tmp_path / "a")
    variants = [{"resolution": 4}, {"channels": 3}, {"max_samples": 5}, {"split": "train[:4]"}, {"label_column": ""}]
    prints = {first.fingerprint} | {load_images(tmp_path / "a", **options).fingerprint for options in variants}
    assert len(prints) == len(cache_files()) == 6
    changed = tmp_path / "a/class0/0000.png"
    os.utime(changed, ns=(1, 1))
    touched = load_images(tmp_path / "a")
    write_folder(tmp_path / "elsewhere", 9)
    assert load_images(tmp_path / "elsewhere").fingerprint == touched.fingerprint == first.fingerprint
    assert len(cache_files()) == 6  # a touched file and a copy are the same data
    same_size = flipped_bit(changed.read_bytes(), -5)
    changed.write_bytes(same_size)
    os.utime(changed, ns=(1, 1))  # neither size nor time show the change
    with pytest.raises(DataError, match=r"0000.png is damaged"):
        load_images(tmp_path / "a")
    changed.write_bytes(encoded(random_image(99)))
    assert load_images(tmp_path / "a").fingerprint != first.fingerprint


def test_a_data_set_of_paths_changes_with_its_files(tmp_path):
    import datasets

    write_folder(tmp_path, 2, classes=1)
    paths = [str(path) for path in sorted(tmp_path.rglob("*.png"))]
    table = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())
    first = load_images(table).fingerprint
    assert load_images(table).fingerprint == first and len(cache_files()) == 1
    Path(paths[0]).write_bytes(encoded(random_image(99)))
    assert load_images(table).fingerprint != first


def test_formats_of_a_data_set_are_applied_or_refused(tmp_path):
    import datasets

    rows = {"image": [Image.fromarray(RGB)], "label": [3], "text": ["a"]}
    features = {"image": datasets.Image(), "label": datasets.Value("int64"), "text": datasets.Value("string")}
    table = datasets.Dataset.from_dict(rows, datasets.Features(features))

    def brighten(batch):
        return batch

    for changed in (table.with_transform(brighten), datasets.DatasetDict(train=table.with_transform(brighten))):
        for options in ({}, {"streaming": True}):
            with pytest.raises(UsageError, match=r"has a transform, brighten, set by with_transform.*\.map"):
                load_images(changed, **options)
    assert load_images(table).captions == load_images(table.with_format("torch")).captions == ["a"]
    hidden = load_images(table.with_format("numpy", columns=["image"]))
    assert hidden.captions is None and hidden.labels is None and hidden.shape == (3, 2, 2)
    grey = load_images(table.cast_column("image", datasets.Image(mode="L")))
    assert grey.shape == (1, 2, 2) and grey.images[0].tolist() == [[[76, 150], [29, 18]]]


def test_the_size_alone_shows_a_cut_file_too_large_to_hash(monkeypatch):
    expected = load_images("digits").fingerprint
    monkeypatch.setattr(cache_module, "HASHED_BYTES", 0)
    (pixels,) = cache_files()
    pixels.write_bytes(pixels.read_bytes()[:-64])
    assert load_images("digits").fingerprint == expected and len(load_images("digits").batch(0, 1797)["x"]) == 1797


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "gone", "json cut", "json gone", "json other"])
def test_a_damaged_cache_is_built_again(tmp_path, damage):
    write_folder(tmp_path, 9)
    expected = pixels_of(load_images(tmp_path)).copy()
    (pixels,) = cache_files()
    notes = pixels.with_suffix(".json")
    data = pixels.read_bytes()
    if damage in ("cut", "bit", "empty"):
        pixels.write_bytes({"cut": data[:-1], "bit": flipped_bit(data, 40), "empty": b""}[damage])
    elif damage == "json cut":
        notes.write_text(notes.read_text()[:-9])
    elif damage == "json other":
        notes.write_text(json.dumps([1]))
    else:
        (pixels if damage == "gone" else notes).unlink()
    np.testing.assert_array_equal(pixels_of(load_images(tmp_path)), expected)
    assert cache_files()[0].read_bytes() == data
    assert not list(pixels.parent.glob("*.tmp"))


def test_files_are_synced_before_they_get_their_name(tmp_path, monkeypatch):
    events = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            cache_module.os, name, lambda *a, real=real, name=name: (events.append((name, a)), real(*a))[1]
        )
    load_images("digits", max_samples=3)
    # Not who holds the lock, nor what is remembered of files: both are made again if they are lost.
    kept = (".u8", ".json")
    events = [(n, a) for n, a in events if n == "fsync" or (a[1].parent.name == "images" and a[1].suffix in kept)]
    assert [name for name, _ in events] == ["fsync", "replace", "fsync"] * 2  # the file, its name, the folder
    assert [str(arguments[1])[-3:] for name, arguments in events if name == "replace"] == [".u8", "son"]


def test_a_failed_build_leaves_nothing_and_a_full_disk_says_so(tmp_path, monkeypatch):
    write_folder(tmp_path / "set", 5)
    (tmp_path / "set/class0/bad.png").write_bytes(b"")
    with pytest.raises(DataError):
        load_images(tmp_path / "set")
    folder = Path(os.environ["LATENTIA_CACHE"], "images")
    assert [file.suffix for file in folder.iterdir()] in ([], [".lock"])
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write decoded images.*LATENTIA_CACHE"):
        load_images("digits", cache_dir=tmp_path / "file")
    monkeypatch.setattr("latentia.data.build.shutil.disk_usage", lambda folder: SimpleNamespace(free=9))
    with pytest.raises(DataError, match="GiB left"):
        load_images("digits")


def _load_in_child(folder: str, cache: str) -> str:
    return load_images(folder, cache_dir=cache, resolution=6).fingerprint


def test_two_processes_build_at_once(tmp_path):
    write_folder(tmp_path / "set", 300)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        jobs = [pool.submit(_load_in_child, str(tmp_path / "set"), str(tmp_path / "cache")) for _ in range(4)]
        prints = {job.result(timeout=60) for job in jobs}
    assert prints == {load_images(tmp_path / "set", cache_dir=tmp_path / "cache2", resolution=6).fingerprint}


def test_worker_processes_give_equal_pixels_or_an_error(tmp_path):
    write_folder(tmp_path, 200)
    (tmp_path / "class1/0500.png").write_bytes(b"<html>")
    alone = load_images(tmp_path, on_bad_image="skip", resolution=5)
    together = load_images(tmp_path, on_bad_image="skip", resolution=5, num_workers=2, cache_dir=tmp_path / "other")
    assert alone.fingerprint == together.fingerprint and alone.skipped == together.skipped
    code = (
        "import os, sys, latentia.data.build as build\n"
        "from latentia.data import decode\n"
        "class Deadly:\n"
        "    def __reduce__(self): return os._exit, (9,)\n"
        "from latentia.errors import DataError\n"
        "from latentia.data.decode import Fit\n"
        "if __name__ == '__main__':\n"
        "    with build._Workers(1) as workers:\n"
        "        try: list(workers.add(('x', (Deadly(),)), Fit(1), False)), list(workers.rest())\n"
        "        except DataError as error: print('DataError', error)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    out = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert "DataError a decoding process ended" in out.stdout, out.stderr


# ---------------------------------------------------------------------------------------------------------- sources


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    data, digits = load_images("digits"), load_digits()
    assert data.shape == (1, 8, 8) and data.label_names == [str(i) for i in range(10)]
    assert data.labels.tolist() == digits.target.tolist()
    np.testing.assert_array_equal(np.round(pixels_of(data)[:, 0] * (16 / 255)), digits.images)  # nothing is lost
    assert sorted(np.unique(pixels_of(data)))[::8] == [0, 128, 255]
    with pytest.raises(MissingSplitError, match=r'no split "test".*train\[:80%\]'):
        load_images("digits", split="test")


def test_embedded_emoji():
    train, test = load_images("emoji"), load_images("emoji", split="test")
    other = load_images("emoji", image_column="twemoji")
    assert train.shape == (3, 32, 32) and (len(train), len(test)) == (1717, 194)
    assert train.label_names == test.label_names and len(train.label_names) == 10
    assert train.captions == other.captions and train.fingerprint != other.fingerprint
    assert not set(train.captions) & set(test.captions)
    assert 60 < (train.images.float() - other.images.float()).abs().mean(dim=(1, 2, 3)).max()  # styles differ ...
    pairs = torch.stack(
        [torch.stack([d.images.float().flatten(1)[i] for i in range(0, 1717, 40)]) for d in (train, other)]
    )
    nearest = torch.cdist(pairs[0], pairs[1]).argmin(1)
    assert (nearest == torch.arange(len(nearest))).float().mean() > 0.6  # ... but show the same things
    assert load_images("emoji", label_column="subcategory").label_names[0] == "alphanum"
    folder = Path(latentia.data.__file__).parent / "embedded"
    for name, words in (("noto", "Apache"), ("twemoji", "CC BY 4.0"), ("digits", "UCI")):
        assert words in (folder / f"LICENSE-{name}").read_text()
    assert sum(file.stat().st_size for file in folder.iterdir()) < 6e6


def test_a_folder_that_is_called_as_a_set_that_is_built_in(tmp_path, monkeypatch):
    write_folder(tmp_path / "digits", 10)
    monkeypatch.chdir(tmp_path)
    assert len(load_images(Path("digits"))) == 10 and len(load_images("digits")) == 1797
    assert len(load_data(DataArguments(train_data_dir="digits"))) == 10


def test_folder_with_classes_splits_and_metadata(tmp_path):
    expected = write_folder(tmp_path / "plain", 10)
    data = load_images(tmp_path / "plain")
    np.testing.assert_array_equal(pixels_of(data)[:, 0], expected)
    assert data.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 3
    (tmp_path / "plain/.hidden").mkdir()
    (tmp_path / "plain/.hidden/x.png").write_bytes(b"")
    (tmp_path / "plain/readme.txt").write_text("not an image")
    assert len(load_images(tmp_path / "plain")) == 10
    with pytest.raises(MissingSplitError, match='no split "test"'):
        load_images(tmp_path / "plain", split="test")

    write_folder(tmp_path / "two/train", 6)
    write_folder(tmp_path / "two/test", 3)
    assert len(load_images(tmp_path / "two")) == 6 and len(load_images(tmp_path / "two", split="test")) == 3
    with pytest.raises(DataError, match="It has: test, train"):
        load_images(tmp_path / "two", split="validation")

    rows = [{"file_name": f"class0/{i:04}.png", "text": f"no. {i}", "label": i % 2} for i in (6, 0, 3)]
    (tmp_path / "plain/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    data = load_images(tmp_path / "plain")
    assert data.captions == ["no. 6", "no. 0", "no. 3"] and data.labels.tolist() == [0, 0, 1]
    np.testing.assert_array_equal(pixels_of(data)[:, 0], [random_image(i) for i in (6, 0, 3)])
    lines = ["file_name,text,label", *(f'{row["file_name"]},"{row["text"]}",{row["label"]}' for row in rows)]
    (tmp_path / "plain/metadata.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match="keep one"):
        load_images(tmp_path / "plain")
    (tmp_path / "plain/metadata.jsonl").unlink()
    assert load_images(tmp_path / "plain").fingerprint == data.fingerprint
    for line, message in (
        ('{"text": 1}', 'no "file_name"'),
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ("", "no line"),
    ):
        (tmp_path / "two/train/metadata.jsonl").write_text(line)
        with pytest.raises(DataError, match=message):
            load_images(tmp_path / "two")
    (tmp_path / "two/train/metadata.jsonl").write_text('{"file_name": "gone.png"}')
    with pytest.raises(DataError, match=r'no image file "gone.png"'):
        load_images(tmp_path / "two")


def test_parquet_files_folders_and_globs(tmp_path):
    images = [encoded(random_image(i)) for i in range(9)]
    for name, part in (
        ("train-00000-of-00002", slice(0, 4)),
        ("train-00001-of-00002", slice(4, 6)),
        ("test", slice(6, 9)),
    ):
        write_parquet(tmp_path / f"set/data/{name}.parquet", {"label": list(range(9))[part]}, images[part])
    train = load_images(tmp_path / "set")
    np.testing.assert_array_equal(pixels_of(train)[:, 0], [random_image(i) for i in range(6)])
    assert train.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert load_images(tmp_path / "set", split="test").labels.tolist() == [6, 7, 8]
    assert len(load_images(f"{tmp_path}/set/data/*.parquet")) == 6
    assert len(load_images(f"{tmp_path}/set/data/*-00001-*.parquet")) == 2
    assert len(load_data(DataArguments(train_data_dir=f"{tmp_path}/set/data/*.parquet"))) == 6
    with pytest.raises(DataError, match=r"does not exist.*A Path is never a pattern"):
        load_images(tmp_path / "set/data/*.parquet")
    assert len(load_images(tmp_path / "set/data/test.parquet")) == 3
    with pytest.raises(MissingSplitError, match=r'no split "validation".*test, train'):
        load_images(tmp_path / "set", split="validation")
    plain = write_parquet(tmp_path / "bytes.parquet", {"photo": images})
    assert load_images(plain).fingerprint == load_images(plain, image_column="photo").fingerprint


def test_parts_of_a_split_and_max_samples():
    whole = load_images("digits")
    assert torch.equal(load_images("digits", split="train[:80%]").images, whole.images[:1438])
    assert torch.equal(load_images("digits", split="train[80%:]").images, whole.images[1438:])
    assert torch.equal(load_images("digits", split="train[-3:]").images, whole.images[-3:])
    assert torch.equal(load_images("digits", max_samples=3).images, whole.images[[0, 599, 1198]])
    assert len(load_images("digits", max_samples=5000)) == 1797
    assert parse_split("train[10%:20%]")[1](1000) == range(100, 200)


def rows_of(n: int = 20) -> list[dict]:
    return [{"image": random_image(i), "label": i % 4, "text": f"no. {i}"} for i in range(n)]


def test_equal_rows_of_every_source_give_equal_batches(tmp_path):
    import datasets

    rows = rows_of()
    images = [encoded(row["image"]) for row in rows]
    rest = {"label": [row["label"] for row in rows], "text": [row["text"] for row in rows]}
    from_parquet = load_images(write_parquet(tmp_path / "a.parquet", rest, images))
    for i in range(len(rows)):
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / f"set/{i:02}.png").write_bytes(images[i])
    notes = [
        json.dumps({"file_name": f"{i:02}.png", "label": row["label"], "text": row["text"]})
        for i, row in enumerate(rows)
    ]
    (tmp_path / "set/metadata.jsonl").write_text("\n".join(notes))
    from_folder = load_images(tmp_path / "set")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list("abcd")), "text": datasets.Value("string")}
    )
    table = datasets.Dataset.from_dict({"image": [{"bytes": data, "path": None} for data in images], **rest}, features)
    from_object = load_images(table, label_names=list("0123"))
    from_dict = load_images(datasets.DatasetDict(train=table))
    assert from_dict.label_names == list("abcd")
    with pytest.raises(MissingSplitError, match='no split "test"'):
        load_images(datasets.DatasetDict(train=table), split="test")
    expected = from_parquet.batch(13, 47, seed=3)
    for data in (from_folder, from_object, from_dict):
        batch = data.batch(13, 47, seed=3)
        assert all(torch.equal(batch[key], expected[key]) for key in ("x", "labels"))
        assert batch["captions"] == expected["captions"]
    assert from_folder.fingerprint == from_object.fingerprint == from_parquet.fingerprint

    streams = [
        load_images(tmp_path / "a.parquet", streaming=True),
        load_images(tmp_path / "set", streaming=True),
        load_images(table.to_iterable_dataset(), streaming=True),
        load_images(rows, streaming=True),
        load_images(lambda: iter(rows), streaming=True),
        load_images(datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "set"), split="train", streaming=True,
                                          cache_dir=str(tmp_path / "hf")), streaming=True),
    ]  # fmt: skip
    expected = streams[0].batch(0, 33, seed=3)
    for stream in streams:
        assert isinstance(stream, StreamedImages) and stream.shape == (1, 8, 8)
        batch = stream.batch(0, 33, seed=3)
        assert torch.equal(batch["x"], expected["x"]) and torch.equal(batch["labels"], expected["labels"])
    by_caption = {caption: image for image, caption in zip(from_parquet.images, from_parquet.captions)}
    assert sorted(expected["captions"][:20]) == sorted(by_caption)
    for caption, image in zip(expected["captions"], expected["x"]):
        assert torch.equal(by_caption[caption].float() / 127.5 - 1, image)


def test_a_hub_data_set_is_pinned_to_its_commit(tmp_path, monkeypatch):
    import datasets
    import huggingface_hub

    commits, loads = {"main": "a" * 40, "v2": "b" * 40}, []
    table = datasets.Dataset.from_list([{"image": {"bytes": encoded(random_image(i)), "path": None}} for i in range(3)])

    def info(self, name, revision=None, timeout=None):
        return huggingface_hub.hf_api.DatasetInfo(
            id=name, sha=commits[revision or "main"], private=False, downloads=0, likes=0, tags=[]
        )

    def load(name, config, split, revision, streaming, cache_dir):
        loads.append((name, config, split, revision))
        return table.cast_column("image", datasets.Image())

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(datasets, "load_dataset", load)
    data = load_images("someone/images", config_name="small")
    assert data.source["revision"] == "a" * 40 and loads == [("someone/images", "small", "train", "a" * 40)]
    load_images("someone/images", config_name="small")
    assert len(loads) == 1  # the second comes from the cache
    assert load_images("someone/images", revision="v2").source["revision"] == "b" * 40
    load_images("someone/images", revision="c" * 40)
    assert [call[3][0] for call in loads] == ["a", "b", "c"]
    commits["main"] = "d" * 40  # a new commit is a new key
    assert load_images("someone/images", config_name="small").source["revision"] == "d" * 40 and len(loads) == 4

    def fail(self, name, **options):
        raise OSError("offline")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="offline"):
        load_images("someone/images", config_name="small")
    reference = tmp_path / "datasets--someone--images/refs/main"
    reference.parent.mkdir(parents=True)
    reference.write_text("d" * 40)
    assert load_images("someone/images", config_name="small").source["revision"] == "d" * 40 and len(loads) == 4

    secret = tmp_path / "secret.png"  # a path in a table from elsewhere
    secret.write_bytes(encoded(GREY))
    table = datasets.Dataset.from_dict({"image": [{"bytes": None, "path": str(secret)}]})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(DataError, match="not followed"):
        load_images("someone/images", revision="e" * 40)


# --------------------------------------------------------------------------------------------------------- streaming


class Counted:
    """Rows that can be read again, and say how often each was read."""

    def __init__(self, rows, fail_at=(), wrong=None):
        self.rows, self.fail_at, self.opened, self.read = rows, list(fail_at), 0, 0

    def __iter__(self):
        self.opened += 1
        for i, row in enumerate(self.rows):
            if self.fail_at and self.fail_at[0] == i:
                self.fail_at.pop(0)
                raise ConnectionError("the line is dead")
            self.read += 1
            yield row


@pytest.fixture
def no_pause(monkeypatch):
    pauses = []
    monkeypatch.setattr(streaming_module.time, "sleep", pauses.append)
    return pauses


@pytest.mark.parametrize("random_flip", [False, True])
def test_a_stream_is_the_same_however_it_is_cut_and_goes_back(random_flip, monkeypatch):
    monkeypatch.setattr(streaming_module, "SHUFFLE_BUFFER", 6)
    stream = load_images(rows_of(), streaming=True, random_flip=random_flip)
    whole = stream.batch(0, 50, seed=1)
    for cuts in ((0, 3, 8, 30, 50), (7, 50), (21, 22, 40, 50)):
        parts = [stream.batch(a, b, seed=1) for a, b in pairwise(cuts)]
        assert torch.equal(torch.cat([part["x"] for part in parts]), whole["x"][cuts[0] :])
        assert list(chain(*(part["captions"] for part in parts))) == whole["captions"][cuts[0] :]
    for epoch in range(2):
        assert len(set(whole["captions"][20 * epoch : 20 * epoch + 20])) == 20
    assert whole["captions"][:20] != whole["captions"][20:40]
    assert stream.batch(0, 20, seed=2)["captions"] != whole["captions"][:20]


def test_a_stream_shorter_than_its_buffer_is_shuffled():
    """With the buffer as it is shipped, which no test set fills."""
    stream = load_images(rows_of(), streaming=True)
    orders = [stream.batch(start, start + 20)["captions"] for start in (0, 20)]
    assert orders[0] != sorted(orders[0]) != orders[1] != orders[0]
    assert sorted(orders[0]) == sorted(orders[1])


def test_a_jump_forward_does_not_decode(monkeypatch):
    rows = [{"image": encoded(random_image(i))} for i in range(50)]
    stream = load_images(rows, streaming=True)
    expected = stream.batch(45, 48)["x"]
    opened = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda *a, **k: (opened.append(1), real(*a, **k))[1])
    assert torch.equal(stream.batch(0, 0)["x"], torch.empty(0, 1, 8, 8))
    assert torch.equal(stream.batch(45, 48)["x"], expected) and len(opened) == 6  # PNG is opened twice


def test_two_ranks_take_their_slices():
    rows = rows_of()
    whole = load_images(rows, streaming=True).batch(0, 24)
    ranks = [load_images(rows, streaming=True) for _ in range(2)]
    got = [
        ranks[rank].batch(start + 4 * rank, start + 4 * rank + 4)["captions"] for start in (0, 8, 16) for rank in (0, 1)
    ]
    assert list(chain(*got)) == whole["captions"]


def test_a_failing_stream_is_tried_again_a_few_times(no_pause):
    rows = rows_of()
    expected = load_images(rows, streaming=True).batch(0, 40)["captions"]
    source = Counted(rows, fail_at=(5, 5, 12))
    stream = load_images(source, streaming=True)
    assert stream.batch(0, 40)["captions"] == expected and not source.fail_at
    assert no_pause == [1, 2, 1]
    source.fail_at = [3] * 9
    with pytest.raises(DataError, match="failed 4 times after row 3: the line is dead") as caught:
        stream.batch(0, 10)
    assert caught.value.exit_code == 4 and len(no_pause) == 6
    source.fail_at = []
    assert stream.batch(0, 40)["captions"] == expected


def test_bad_images_in_a_stream():
    rows = rows_of(300)
    rows[7] = {**rows[7], "image": b"<html>"}
    with pytest.raises(DataError, match=r"row 7 is HTML.*skip"):
        load_images(rows, streaming=True).batch(0, 300)
    stream = load_images(rows, streaming=True, on_bad_image="skip")
    batch = stream.batch(0, 300)
    assert len(stream.skipped) == 1 and len(batch["captions"]) == 300 and "no. 7" not in batch["captions"]
    again = load_images(rows, streaming=True, on_bad_image="skip")
    parts = [again.batch(a, b)["captions"] for a, b in ((0, 99), (99, 101), (101, 300))]
    assert list(chain(*parts)) == batch["captions"]  # the positions of the others do not shift
    rows = [{**row, "image": b""} if i % 10 == 5 else row for i, row in enumerate(rows)]
    with pytest.raises(DataError, match="more than 1 %"):
        load_images(rows, streaming=True, on_bad_image="skip").batch(0, 300)
    with pytest.raises(DataError, match="gives no image"):
        load_images([{"image": b""}] * 3, streaming=True, on_bad_image="skip")


@pytest.mark.parametrize(
    "rows, options, error, message",
    [
        ([], {}, DataError, "holds no row"),
        ([3], {}, DataError, "gives ints, not dicts"),
        (5, {}, UsageError, "source must be"),
        (iter(rows_of()), {}, UsageError, "once only"),
        (rows_of(), {"split": "train[:5]"}, UsageError, "cannot be cut"),
        (rows_of(), {"image_column": "img"}, UsageError, "It has: image, label, text"),
        ([{"image": GREY, "label": "cat"}], {}, UsageError, "Give label_names"),
        ([{"image": GREY, "label": 7}], {"label_names": ["a"]}, DataError, "holds 7, outside"),
        ([{"image": GREY}, {}], {}, DataError, 'row 1 has no "image"'),
        ([{"image": GREY}, {"image": random_image(0)}], {}, DataError, "Give `resolution`"),
        ([{"image": GREY}, {"image": RGB}], {}, DataError, "in colour"),
        ([{"image": GREY, "text": ""}], {}, DataError, "not a text"),
    ],
)
def test_wrong_streams(rows, options, error, message):
    with pytest.raises(error, match=message):
        load_images(rows, streaming=True, **options).batch(0, 2)


def test_a_stream_has_no_length_but_the_rest_of_the_interface(tmp_path):
    stream = load_images("digits", streaming=True, resolution=16, max_samples=10)
    with pytest.raises(UsageError, match="max_train_steps"):
        len(stream)
    assert stream.shape == (1, 16, 16) and stream.label_names == [str(i) for i in range(10)]
    assert stream.fingerprint != load_images("digits", streaming=True).fingerprint
    assert json.dumps(stream.describe()) and json.dumps(load_images("digits").describe())
    stream.require(10)
    with pytest.raises(DataError, match="gives 10 images, fewer than one global batch of 11"):
        stream.require(11)
    crop = load_images(uneven_folder(tmp_path / "set"), streaming=True, resolution=4, center_crop=False)
    kept = load_images(tmp_path / "set", resolution=4)
    assert crop.shape == kept.shape
    assert torch.equal(crop.batch(0, 3)["x"], torch.cat([crop.batch(0, 1)["x"], crop.batch(1, 3)["x"]]))


def test_docstring_examples_run():
    import doctest

    import latentia.data.build as build
    import latentia.data.decode as decode
    import latentia.data.images as images
    import latentia.data.loading as loading
    import latentia.data.order as order

    for module in (build, decode, images, loading, order, streaming_module, cache_module):
        assert doctest.testmod(module).failed == 0
