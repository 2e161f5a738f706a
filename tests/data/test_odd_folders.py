"""Folders as people have them: one row per kind of oddity, through `load_images`, `latentia data` and a run's start."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from latentia.commands.main import main
from latentia.data import load_images, load_table
from latentia.errors import DataError, LatentiaError


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("LATENTIA_CACHE", str(tmp_path_factory.mktemp("cache")))


def encoded(number: int, format: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(out, format, **options)
    return out.getvalue()


def images(*names: str) -> dict[str, bytes]:
    formats = {".tif": "TIFF", ".webp": "WEBP", ".avif": "AVIF", ".jpg": "JPEG"}
    return {name: encoded(i, formats.get(Path(name).suffix.lower(), "PNG")) for i, name in enumerate(names)}


def lines(*rows: dict[str, Any]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


def parquet(**columns: list) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


CAPTIONS = b"file_name,text\n0.png,a cat\n1.png,a dog\n"
CAT = b"file_name,text\n0.png,a cat\n"
TWO = images("0.png", "1.png")


@dataclass
class Row:
    """A folder and what is right.

    Args:
        name: the kind of oddity.
        files: content by relative path.
        options: of `load_images`.
        names: the images in their order, by the number of their content; None: as many as there are.
        labels: class of each image.
        captions: text of each image.
        said: what the summary says of what is not taken, a regular expression for each line.
        error: what an error says instead.
    """

    name: str
    files: dict[str, bytes]
    options: dict[str, Any] = field(default_factory=dict)
    names: int = 2
    labels: list[str] | None = None
    captions: list[str] | None = None
    said: tuple[str, ...] = ()
    error: str | None = None
    prepare: Callable[[Path], Any] = lambda folder: None


ROWS = [
    # ---------------------------------------------------------------- where metadata stand
    Row(
        "metadata above splits",
        images("train/0.png", "test/1.png", "train/2.png")
        | {"metadata.jsonl": lines(*({"file_name": f"{p}.png", "text": p} for p in ("train/2", "test/1", "train/0")))},
        captions=["train/2", "train/0"],
    ),
    Row(
        "metadata above splits, of the other split only",
        images("train/0.png", "test/1.png") | {"metadata.csv": b"file_name,text\ntest/1.png,a\n"},
        error="none of the 1 images of the split is named in metadata.csv",
    ),
    Row(
        "metadata in splits",
        images("train/0.png", "test/1.png")
        | {"train/metadata.csv": CAT, "test/metadata.csv": b"file_name,text\n1.png,a dog\n"},
        {"split": "test"},
        names=1,
        captions=["a dog"],
    ),
    Row(
        "metadata in class folders",
        images("a/0.png", "b/1.png")
        | {"a/metadata.csv": CAT, "b/metadata.csv": b"file_name,text\n1.png,a dog\n"},
        labels=["a", "b"],
        captions=["a cat", "a dog"],
    ),
    Row(
        "metadata above class folders",
        images("a/0.png", "b/1.png", "b/2.png") | {"metadata.csv": b"file_name,text\nb/1.png,x\na/0.png,y\n"},
        labels=["b", "a"],
        captions=["x", "y"],
        said=(r"1 x .png \(b/2.png\): not named in metadata.csv",),
    ),
    Row(
        "labels in metadata above class folders",
        images("a/0.png", "b/1.png") | {"metadata.csv": b"file_name,label\na/0.png,x\nb/1.png,y\n"},
        labels=["x", "y"],
        said=(r"2 x class folder \(a, b\): no labels, as the metadata have a column label",),
    ),
    Row(
        "two files of one image",
        images("a/0.png") | {"a/metadata.csv": CAT, "metadata.csv": b"file_name,text\na/0.png,y\n"},
        error="a/0.png is named in a/metadata.csv too",
    ),
    # ---------------------------------------------------------------- forms of metadata
    Row("parquet", TWO | {"metadata.parquet": parquet(file_name=["1.png", "0.png"], text=["x", "y"])},
        captions=["x", "y"]),
    Row("json", TWO | {"metadata.json": json.dumps([{"file_name": "1.png", "text": "x"}]).encode()}, names=1,
        captions=["x"], said=(r"1 x .png \(0.png\): not named in metadata.json",)),
    Row("json of columns", TWO | {"metadata.json": b'{"file_name": ["0.png"]}'}, error="must hold a list of objects"),
    Row("lines in json", TWO | {"metadata.json": b'{"file_name": "0.png"}\n{"file_name": "1.png"}'},
        error="metadata.json is not JSON: .* belong in metadata.jsonl"),
    Row("a byte order mark", TWO | {"metadata.csv": b"\xef\xbb\xbf" + CAPTIONS}, captions=["a cat", "a dog"]),
    Row("a byte order mark, jsonl", TWO | {"metadata.jsonl": b'\xef\xbb\xbf{"file_name": "1.png", "text": "x"}'},
        names=1, captions=["x"], said=("1 x .png",)),
    Row("UTF-16", TWO | {"metadata.csv": CAPTIONS.decode().encode("utf-16")}, captions=["a cat", "a dog"]),
    Row("Latin-1", TWO | {"metadata.csv": "file_name,text\n0.png,Gräser\n".encode("latin-1")},
        error="metadata.csv cannot be read: it is not UTF-8 .* Save it as UTF-8"),
    Row("semicolons", TWO | {"metadata.csv": CAPTIONS.replace(b",", b";")}, captions=["a cat", "a dog"]),
    Row("line ends of Windows", TWO | {"metadata.csv": CAPTIONS.replace(b"\n", b"\r\n")}, captions=["a cat", "a dog"]),
    Row("a space after the comma", TWO | {"metadata.csv": CAPTIONS.replace(b"e,t", b"e, t")},
        captions=["a cat", "a dog"]),
    Row("more fields than the head", TWO | {"metadata.csv": b"file_name,text\n1.png,x\n0.png,a cat, on a mat\n"},
        error=r'metadata.csv line 3 has 3 fields, but the head has 2: file_name, text.*","'),
    Row("fewer fields than the head", TWO | {"metadata.csv": b"file_name,text\n1.png\n"},
        error="metadata.csv line 2 has 1 fields"),
    Row("a quotation mark that stays open", TWO | {"metadata.csv": b'file_name,text\n0.png,"a cat\n1.png,a dog\n'},
        error="metadata.csv line 2 is not CSV"),
    Row("a column twice", TWO | {"metadata.csv": b"file_name,text,text\n0.png,a,b\n"}, error='two columns "text"'),
    Row("another name for file_name", TWO | {"metadata.csv": b"filename,text\n0.png,a\n"},
        error='line 2 has no "file_name". It has: filename, text. Did you mean "filename".*Rename it'),
    Row("a column image", TWO | {"metadata.csv": b"file_name,image\n0.png,x\n1.png,y\n"},
        said=(r"1 x column \(image\): the images are those of file_name",)),
    # ---------------------------------------------------------------- names in metadata
    Row("backslashes", images("a/0.png", "a/1.png") | {"metadata.csv": b"file_name,text\na\\1.png,x\na\\0.png,y\n"},
        captions=["x", "y"]),
    Row("a drive of Windows", TWO | {"metadata.csv": b"file_name,text\nC:\\a\\0.png,x\n"}, error="line 2.*leads out"),
    Row("an accent in two spellings", images("A\u0308.png") | {"metadata.csv": "file_name,text\nÄ.png,x\n".encode()},
        names=1, captions=["x"]),
    Row("classes of digits with zeros", TWO | {"metadata.csv": b"file_name,label\n0.png,007\n1.png,010\n"},
        labels=["007", "010"]),
    Row("class folders in another spelling", images("A\u0308/0.png", "b/1.png"), labels=["Ä", "b"]),
    Row("a file name that is not UTF-8", images("0.png", "Gr\udce4s.png") | {"\udce4.txt": b""},
        said=(r"1 x .txt \(\?.txt\)",)),
    Row("a class that is not UTF-8", images("a/0.png", "Gr\udce4s/1.png"),
        error=r"the class 'Gr\\udce4s' cannot be written as UTF-8"),
    Row("a caption that is not UTF-8", TWO | {"metadata.jsonl": b'{"file_name": "0.png", "text": "\\ud83d"}'},
        error=r"0.png: caption column \"text\" holds '\\ud83d', not a text"),
    Row("metadata by another case", TWO | {"Metadata.CSV": CAPTIONS}, captions=["a cat", "a dog"]),
    Row("a class without images", TWO | {"metadata.csv": b"file_name,label\n0.png,0\n1.png,2\n"}, labels=["0", "2"],
        said=(r"1 x class \(1\): it has no image here",)),
    Row("a part of sorted classes", images("a/0.png", "b/1.png"), {"split": "train[:1]"}, names=1, labels=["a"],
        said=(r"1 x class \(b\): it has no image here",)),
    Row("another case", images("0.PNG") | {"metadata.csv": b"file_name,text\n0.png,x\n"},
        error='no image file "0.png" in .*Did you mean "0.PNG"'),
    # ---------------------------------------------------------------- what is an image
    Row("formats", images("0.tif", "1.webp", "2.avif", "3.JPG"), {"channels": 1}, names=4),
    Row("files of several images", TWO | {f"2{s}": encoded(2, f, save_all=True, append_images=[Image.new("L", (8, 8))])
        for s, f in ((".gif", "GIF"), (".tif", "TIFF"), (".png", "PNG"))}, {"channels": 1}, names=5,
        said=(r"3 x further image of a file \(2.gif, 2.png, 2.tif\): only the first of each file is taken",)),
    Row("no suffix", images("0a1b", "photo") | {"README": b"text"}, said=(r"1 x no suffix \(README\): not an image",)),
    Row("a wrong suffix", TWO | {"2.dat": encoded(2)}, said=(r"1 x .dat .*: PNG by its content, but not by its name",)),
    Row("a camera's raw image", TWO | {"2.nef": encoded(2, "TIFF")}, said=("1 x .nef .*: a camera's raw image",)),
    Row("other kinds", TWO | {"a.txt": b"", "b.txt": b"", "c.mp4": b"", "d.svg": b"<svg/>"},
        said=(r"2 x .txt \(a.txt, b.txt\): a text", "1 x .mp4 .*: a video", "1 x .svg .*: an image of a format")),
    Row("no images", {"a.wav": b"", "b.wav": b""}, error=r"holds no image \(2 x .wav\).*latentia train sound"),
    Row("nothing but hidden", {".git/0.png": b""}, error=r"holds no image \(1 x hidden .png\)"),
    Row("hidden", TWO | {".2.png": b"", ".thumbs/3.png": b"", "__MACOSX/4.png": b"", ".git/config": b""},
        said=("3 x .png .*: hidden",)),
    Row("a pipe", TWO, prepare=lambda f: os.mkfifo(f / "pipe"), said=("1 x no regular file .*: a pipe, a socket",)),
    Row("a link out of the folder", TWO, prepare=lambda f: (f / "2.png").symlink_to("/etc/hostname"),
        error="2.png is a link that leads out"),
    Row("a text that is a link out of the folder", TWO, prepare=lambda f: (f / "LICENSE").symlink_to("/etc/hostname"),
        said=("1 x no suffix .*: not an image",)),
    Row("a link out of the folder beside parquet", {"a.parquet": parquet(image=[encoded(0)])}, names=1,
        prepare=lambda f: (f / "2.png").symlink_to("/etc/hostname"), said=("1 x .png .*: not read",)),
    Row("a link within the folder", images("a/0.png", "a/1.png"), prepare=lambda f: (f / "b").symlink_to("a"),
        said=(r"1 x folder \(b\): a link",)),
    Row("an empty folder", images("a/0.png", "b/1.png"), prepare=lambda f: (f / "c").mkdir(), labels=["a", "b"],
        said=(r"1 x folder \(c\): empty",)),
    Row("a bad image that is skipped", images(*(f"{i}.png" for i in range(99))) | {"bad.png": b""},
        {"on_bad_image": "skip"}, names=99, said=(r"1 x bad image \(bad.png is empty \(0 bytes\)\): skipped",)),
    Row("three bad images", TWO | {"2.png": b"", "3.png": encoded(3)[:-20], "4.heic": b"<html>"},
        error=r"(?s)3 images are bad:\n  2.png is empty.*3.png is damaged.*4.heic is HTML.* Repair or remove them\.$"),
    # ---------------------------------------------------------------- classes and splits
    Row("an image above the class folders", images("a/0.png", "b/1.png", "preview.png"), names=3,
        said=(r"2 x class folder \(a, b\): no labels, as preview.png lies at another depth",)),
    Row("two levels of classes", images("cat/old/0.png", "cat/young/1.png", "dog/old/2.png"), names=3,
        labels=["cat/old", "cat/young", "dog/old"]),
    Row("a level that does not differ", images("a/images/0.png", "b/images/1.png"), labels=["a", "b"]),
    Row("classes that are numbers", images(*(f"{i}/0.png" for i in range(12))), names=12,
        labels=["0", "1", "10", "11", *map(str, range(2, 10))]),
    Row("images beside splits", images("train/0.png", "test/1.png", "2.png"), names=1,
        said=(r"1 x .png \(2.png\): beside the folders of the splits",)),
    Row("what lies in another split", names=1,
        files=images("train/0.png", "test/1.png") | {"test/a.md": b"", "test/metadata.csv": b"x"}),
    Row("a folder without images beside splits", images("train/0.png", "test/1.png") | {"docs/a.md": b""}, names=1,
        said=("1 x .md",)),
    Row("a folder that is no split", images("train/0.png", "more/1.png"), labels=["more", "train"],
        said=(r"1 x folder \(train\): not taken as a split, since more beside it is none",)),
    Row("one split twice", images("val/0.png", "valid/1.png"), {"split": "val"}, error="two folders of the"),
    Row("parquet without images", TWO | {"scores.parquet": parquet(score=[1.0])},
        said=(r"1 x .parquet \(scores.parquet\): it has no column of images",)),
    Row("images beside parquet", TWO | {"train.parquet": parquet(image=[encoded(5)])}, names=1,
        said=(r"2 x .png \(0.png, 1.png\): not read, as the folder holds parquet",)),
    Row("a part of parquet is missing", {"train-00000-of-00002.parquet": parquet(image=[encoded(0)])},
        error="lacks 1 of its parts, as 00001"),
    Row("parquet files of different columns", {"a.parquet": parquet(image=[encoded(0)], text=["x"]),
        "b.parquet": parquet(image=[encoded(1)])}, error="b.parquet lacks the column text"),
]  # fmt: skip


@pytest.fixture(params=ROWS, ids=lambda row: row.name)
def odd(request, tmp_path):
    row, folder = request.param, tmp_path / "set [2024]"  # what exists is a path, whatever signs are in it
    for name, content in row.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    row.prepare(folder)
    return row, folder


def test_a_folder_is_taken_right_or_the_cause_is_named(odd):
    row, folder = odd
    for source in (str(folder), folder):
        if row.error:
            with pytest.raises(LatentiaError, match=row.error):
                load_images(source, **row.options)
            continue
        data = load_images(source, **row.options)
        assert len(data) == row.names and data.captions == row.captions
        names = data.label_names and [data.label_names[i] for i in data.labels]
        assert names == row.labels
        said = data.left_out.lines()
        assert len(said) == len(row.said) and all(map(re.match, row.said, said)), said
        assert data.describe()["left_out"] == [re.sub(r" \(.*\):", ":", line, count=1) for line in said]
        assert not data.skipped or data.describe()["left_out"] == ["1 x bad image: skipped, as on_bad_image says"]


def test_the_command_says_the_same(odd, capsys):
    row, folder = odd
    argv = ["data", str(folder), *(word for key, value in row.options.items() for word in (f"--{key}", str(value)))]
    if row.error:
        with pytest.raises(SystemExit) as exit:
            main(argv)
        assert exit.value.code == 4 and re.search(row.error, capsys.readouterr().err.rstrip())
        return
    main([*argv, "--preview", str(folder.parent / "preview.png")])
    out = capsys.readouterr().out
    assert len(re.findall("not taken: ", out)) == len(row.said) and all(re.search(line, out) for line in row.said)
    with Image.open(folder.parent / "preview.png") as preview:
        assert preview.width > 8


TABLES = {
    "a byte order mark": b"\xef\xbb\xbfa,label\n1,x\n2,y\n",
    "UTF-16": "a,label\n1,x\n2,y\n".encode("utf-16"),
    "semicolons": b"a;label\n1;x\n2;y\n",
    "line ends of Windows": b"a,label\r\n1,x\r\n2,y\r\n",
    "spaces": b"a, label\n1,x\n2,y\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_another_system_is_read(name, tmp_path):
    (tmp_path / "t.csv").write_bytes(TABLES[name])
    table = load_table(tmp_path / "t.csv")
    assert table.columns == ["a"] and table.values.tolist() == [[1], [2]]
    assert table.label_names == ["x", "y"]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"a,b\n1,2,3\n", "Expected 2 columns, got 3"),
        (b"a,a\n1,2\n", 'two columns "a"'),
        (b"5.1,3.5,setosa\n4.9,3.0,setosa\n", r"its first line must name the columns, and holds numbers: 5.1, 3.5\."),
    ],
)
def test_a_table_that_is_not_well_formed_is_refused(content, error, tmp_path):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=error):
        load_table(tmp_path / "t.csv")


def test_classes_of_a_table_that_are_numbers_are_sorted_by_value(tmp_path):
    pq.write_table(pa.table({"a": [1.0] * 3, "label": ["10", "2", "0"]}), tmp_path / "t.parquet")
    assert load_table(tmp_path / "t.parquet").label_names == ["0", "2", "10"]
    (tmp_path / "t.csv").write_bytes(b"0,1\n1,2\n3,4\n")
    assert load_table(tmp_path / "t.csv").columns == ["0", "1"]  # counted, as pandas writes them


def test_the_preview_shows_each_class_in_a_row(tmp_path, capsys):
    shades = {"dark": (0, 20), "light": (200,)}
    for name, values in shades.items():
        for value in values:
            (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
            Image.new("L", (300, 300), value).save(tmp_path / "set" / name / f"{value}.png")
    file = tmp_path / "out" / "preview.png"
    argv = ["data", str(tmp_path / "set"), "--preview", str(file)]
    main(argv)
    assert "label_names: dark (2), light (1)" in (out := capsys.readouterr().out) and f"Written: {file}" in out
    with Image.open(file) as preview:  # two columns of 128 pixels, 4 apart, right of the names
        tiles = [preview.getpixel((preview.width - x, y)) for y in (60, 200) for x in (200, 60)]
    assert tiles == [(0, 0, 0), (20, 20, 20), (200, 200, 200), (255, 255, 255)]
    with pytest.raises(SystemExit):
        main(argv)
    assert "--preview must be a new file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*argv[:-1], str(tmp_path / "preview.pdf")])
    assert "--preview must end in .png" in capsys.readouterr().err


def test_errors_of_the_command_line_name_its_flags(tmp_path, capsys):
    Image.new("L", (8, 8)).save(tmp_path / "0.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    said = []
    for _ in range(2):
        with pytest.raises(SystemExit):
            main(["data", str(tmp_path)])
        said.append(capsys.readouterr().err)
        Image.new("L", (9, 8)).save(tmp_path / "1.png")
    assert "Give --channels 3 to keep the colours, or --channels 1" in said[0]
    assert "Give --resolution to bring all images to one size" in said[1]


def test_a_run_and_its_card_say_what_is_not_taken(tmp_path):
    folder = tmp_path / "photos"
    for name, content in (images(*(f"{i}.png" for i in range(8)), "notes.txt") | {"8.tif": encoded(8, "TIFF")}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    script = Path(__file__).resolve().parents[2] / "examples/train_vae.py"
    flags = "--max_train_steps 1 --train_batch_size 4 --eval_num_samples 0 --hidden_sizes 4 --latent_dim 2".split()
    argv = [sys.executable, script, "--train_data_dir", folder, "--output_dir", tmp_path / "run", *flags]
    done = subprocess.run([*map(str, argv)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 x .txt (notes.txt): a text" in done.stderr and "9 images" in done.stdout
    card = (tmp_path / "run/README.md").read_text()
    assert "1 x .txt: a text" in card.replace("\\", "") and "notes" not in card
    summary = json.loads((tmp_path / "run/run_summary.json").read_text())
    (line,) = summary["data"]["left_out"]
    assert line.startswith("1 x .txt: a text")
