"""Bounds of memory and time on data of others: chunks by bytes, scans of JPEGs, folded parquet files, pipes."""

import io
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from latentia.commands import data as check
from latentia.commands.arrays import read_array
from latentia.data import ImageData, load_images, parquet
from latentia.data import build as building
from latentia.data.build import Plan
from latentia.data.decode import MAX_SCANS, BadImage, open_image
from latentia.data.parquet import parquet_rows
from latentia.data.tables import is_table, load_table
from latentia.errors import DataError, UsageError
from latentia.files import cache
from latentia.pipelines.images import from_input

PLAN = Plan(None, None, True, "raise", None)


@pytest.fixture(autouse=True)
def alarm():
    """An error in the place of a wait without end."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits"))
    signal.alarm(120)
    yield
    signal.alarm(0)


def rows(images):
    return ((f"row {i}", (image,)) for i, image in enumerate(images))


# ------------------------------------------------------------ images


@pytest.mark.parametrize("workers", [0, 1])
def test_twelve_bits_in_files_of_sixteen_are_said(tmp_path, caplog, workers):
    """As microscopes and X-ray detectors write them: they would be black."""
    for i in range(3):
        values = np.linspace(0, 4095, 64).reshape(8, 8).astype(np.uint16)
        Image.fromarray(values // (i + 1)).save(tmp_path / f"{i}.tif")
    for _ in range(2):  # decoded, and from the cache
        caplog.clear()
        data = load_images(tmp_path, num_workers=workers)
        assert data.notes[0].startswith("dark: no image of 16 bits has a value above 4095 of 65535. Are they of 12")
        assert "multiply their values by 16 first" in caplog.text
    assert "multiply their values by 16 first" in check(tmp_path).text()
    Image.fromarray(values * 16).save(tmp_path / "3.tif")
    assert load_images(tmp_path).notes == []


def test_one_image_at_a_time_is_decoded(monkeypatch):
    """However many are asked for, as the pixels of a few photographs fill the memory."""
    decoded, decode = [], building.decode
    monkeypatch.setattr(building, "decode", lambda *args: decoded.append(1) or decode(*args))
    images = [np.full((20, 30), i % 256, np.uint8) for i in range(300)]
    for i, (where, _, found) in enumerate(building._decode(rows(images), range(300), PLAN, 0)):
        assert len(decoded) == i + 1 and where == f"row {i}" and found.pixels[0, 0, 0] == i % 256


class Inline:
    """A pool whose jobs are done when they are asked for, and that knows how many bytes wait at most."""

    def __init__(self, *_, **__):
        self.parts, self.most, self.waiting = [], 0, 0

    def submit(self, function, payloads, *rest):
        job, found = Future(), function(payloads, *rest)
        size = sum(out.pixels.nbytes for out in found)
        self.parts.append(len(payloads))
        self.waiting += size
        self.most = max(self.most, self.waiting)

        def result(timeout=None):
            self.waiting -= size
            return found

        job.result = result
        return job

    def shutdown(self, **_):
        pass


@pytest.mark.parametrize("form", ["array", "file", "path", "PIL"])
def test_parts_of_workers_are_bounded_by_bytes(form, monkeypatch, tmp_path):
    pool = Inline()
    monkeypatch.setattr(building, "ProcessPoolExecutor", lambda *_, **__: pool)
    monkeypatch.setattr(building, "_PART_BYTES", 200_000)
    images: list = [np.full((100, 150, 3), i, np.uint8) for i in range(40)]
    images[7] = np.full((900, 900, 3), 7, np.uint8)  # more than a part may have: in one of its own
    for i, image in enumerate(images if form != "array" else ()):
        path = tmp_path / f"{i}.png"
        Image.fromarray(image).save(path)
        images[i] = {"file": path.read_bytes, "path": lambda: path, "PIL": lambda: Image.fromarray(image)}[form]()  # noqa: B023
    found = list(building._decode(rows(images), range(40), PLAN, 2))
    assert [out.pixels[0, 0, 0] for _, _, out in found] == list(range(40))
    assert max(pool.parts) <= 4 and 1 in pool.parts and pool.most <= 3 * 200_000 + 900 * 900 * 3


def jpeg(**options) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(file, "JPEG", **options)
    return file.getvalue()


def test_a_jpeg_of_a_thousand_scans_is_refused_unseen():
    """Each scan goes over all pixels, in one call that nothing can interrupt."""
    whole = jpeg(progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    for scans in (MAX_SCANS, 50_000):
        started = time.process_time()
        with pytest.raises(BadImage, match=f"JPEG of more than {MAX_SCANS} scans"):
            open_image(whole[:-2] + scans * last + whole[-2:])
        assert time.process_time() - started < 2
    assert open_image(whole[:-2] + 20 * last + whole[-2:]).size == (64, 64)


def test_scans_are_those_of_the_image_itself():
    """And not of a thumbnail, a comment or a film that a camera appends."""
    many = 1000 * b"\xff\xda\x00\x02"
    for options in ({"comment": many}, {"progressive": True, "comment": many}):
        assert open_image(jpeg(**options) + many).size == (64, 64)
    started = time.process_time()
    with pytest.raises(BadImage, match="damaged"):
        open_image(b"\xff\xd8" + 2_000_000 * b"\xff" + b"\0")
    assert time.process_time() - started < 5


# ------------------------------------------------------------ parquet


@pytest.fixture
def peak():
    """The bytes that arrow held at most, or fewer than a bound if it never held more before."""
    pool = pa.default_memory_pool()
    before = pool.max_memory()
    return lambda: 0 if pool.max_memory() == before else pool.max_memory()


def folded(size: int, count: int, letter: str | bytes = b"a") -> pa.Array:
    """`count` rows of one value of `size` letters, which a file holds once."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([letter * size]))


def test_a_folded_column_is_not_unfolded_at_once(tmp_path, peak):
    image, label = folded(2**23, 100), folded(2**22, 100, "a")
    for name, table in {
        "flat": pa.table({"image": image, "label": label}),
        "struct": pa.table({"image": pa.StructArray.from_arrays([folded(2**23, 16).dictionary_decode()], ["bytes"])}),
    }.items():
        pq.write_table(table, tmp_path / f"{name}.parquet", compression="zstd")
        del table
    del image
    assert (tmp_path / "flat.parquet").stat().st_size < 50_000
    for name in ("flat", "struct"):
        with pytest.raises(DataError, match="is not one of"):
            load_images(tmp_path / f"{name}.parquet", cache_dir=tmp_path / "cache")
    assert sum(len(text) for (text,) in parquet_rows(tmp_path / "flat.parquet", ["label"])) == 100 * 2**22
    assert peak() < 2**28


def test_large_rows_are_read_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_SMALL", 2**16)
    columns = {
        "plain": [np.random.default_rng(i).bytes(2**12) for i in range(40)],
        "folded": folded(2**17, 40),
        "fixed": pa.array([b"a" * 2**15] * 40, pa.binary(2**15)),
        "small": [b"a"] * 40,
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    for name, rows in {"plain": 1, "folded": 1, "fixed": 2, "small": 256}.items():
        assert parquet._batch_rows(parquet.open_parquet(tmp_path / "a.parquet"), [name]) == rows
        assert len(list(parquet_rows(tmp_path / "a.parquet", [name]))) == 40


def test_a_table_that_unfolds_to_billions_is_refused(tmp_path, peak):
    pq.write_table(pa.table({"x": np.zeros(2**20), "label": folded(2**22, 2**20, "a")}), tmp_path / "a.parquet")
    data = load_table(tmp_path / "a.parquet")
    assert len(data) == 2**20 and len(data.label_names) == 1 and peak() < 2**28
    columns = {f"x{i}": np.zeros(2**20) for i in range(257)}
    pq.write_table(pa.table(columns), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"1048576 rows of 257 columns; at most 268435456 values"):
        load_table(tmp_path / "b.parquet")


def test_metadata_that_unfold_to_gigabytes_are_refused(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    names = pa.array(["a.png"] * 400)
    pq.write_table(pa.table({"file_name": names, "text": folded(2**22, 400, "a")}), tmp_path / "metadata.parquet")
    with pytest.raises(DataError, match=r"metadata.parquet unfolds to more than 1073741824 bytes by row 25\d"):
        load_images(tmp_path)


@pytest.mark.parametrize(
    "metadata",
    [
        b"[]", b"{", b"3", b"\xff", b"[" * 100_000, b'{"info": []}', b'{"info": {"features": []}}', b"1" * 9999,
        b'{"info": {"features": {"label": {"names": 3}}}}', b'{"info": {"features": {"label": {"names": [1, null]}}}}',
        b'{"info": {"features": {"label": {"names": {"0": "a"}}}}}',
    ],
)  # fmt: skip
def test_foreign_metadata_of_parquet_is_an_error_of_ours(metadata, tmp_path):
    table = pa.table({"image": [jpeg()] * 2, "label": [0, 1]})
    pq.write_table(table.replace_schema_metadata({b"huggingface": metadata}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet: its metadata .huggingface. are not those of datasets"):
        load_images(tmp_path / "a.parquet")


def test_foreign_columns_of_parquet_are_errors_of_ours(tmp_path):
    image = pa.array([jpeg()] * 2)
    wrong = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff", b"a"]).buffers())
    late = pa.array([2**62, 2**62], pa.timestamp("us"))
    for values, words in [
        ({"image": image, "text": wrong}, "after row 0"),
        ({"image": image, "label": late}, "after row 0|holds"),
        ({"image": image, "label": pa.array([[1], [2]])}, "must hold values; it holds list"),
    ]:
        pq.write_table(pa.table(values), tmp_path / "a.parquet")
        with pytest.raises(DataError, match=words):
            load_images(tmp_path / "a.parquet")
    pq.write_table(pa.table([image, image], ["image", "image"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match='two columns "image"'):
        load_images(tmp_path / "a.parquet")
    assert not is_table(tmp_path / "a.parquet")  # whoever opens it as images says why not
    for text in (b"[" * 100_000, b'[{"file_name": ' + b"1" * 9999 + b"}]"):
        folder = tmp_path / "folder"
        folder.mkdir(exist_ok=True)
        Image.new("L", (4, 4)).save(folder / "a.png")
        (folder / "metadata.json").write_bytes(text)
        with pytest.raises(DataError, match=r"metadata.json is not JSON"):
            load_images(folder)


# ------------------------------------------------------------ arrays


def test_arrays_that_unfold_to_gigabytes_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "|u1", "fortran_order": False, "shape": (2**20, 34, 32)}
            )
            for _ in range(34 * 32):
                file.write(bytes(2**20))
    with pytest.raises(DataError, match=r"bytes unfold to 1140850\d+; at most 20 times as many are read"):
        read_array(tmp_path / "a.npz")
    np.savez_compressed(tmp_path / "b.npz", np.zeros((1000, 64, 64), np.uint8))
    assert read_array(tmp_path / "b.npz")[0].shape == (1000, 64, 64)
    os.mkfifo(tmp_path / "c.npy")
    with pytest.raises(DataError, match="must be a regular file; it is a pipe"):
        read_array(tmp_path / "c.npy")


# ------------------------------------------------------------ pipes


def test_pipes_among_files_are_left_out_and_said(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    names = ("b.png", "metadata.csv", "c.parquet", "d", "e.txt")
    for name in names:
        os.mkfifo(tmp_path / name)
    (tmp_path / "f.png").symlink_to("/dev/zero")
    data = load_images(tmp_path)
    assert len(data) == 1
    (line,) = data.left_out.lines()
    assert line.startswith("6 x no regular file (b.png") and line.endswith("a pipe, a socket or a device")
    for call in (
        lambda: load_images(str(tmp_path / "*.parquet")),
        lambda: load_images(tmp_path / "c.parquet"),
        lambda: open_image(tmp_path / "b.png"),
        lambda: load_table(tmp_path / "metadata.csv"),
    ):
        with pytest.raises(DataError, match=r"must be a regular file|does not exist|regular file; it is a pipe"):
            call()


# ------------------------------------------------------------ waiting for another process

HOLDER = """
import sys, time
from pathlib import Path
from latentia.files import cache
from latentia.pipelines.images import from_input
folder = Path(sys.argv[1])
def build(write):
    print("begun", flush=True)
    time.sleep(1000)
cache.cached_bytes(build, "key", folder, "decoded images")
"""


def test_who_waits_for_a_cache_says_for_whom_and_takes_over(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(cache, "PATIENCE", 0.2)
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"begun\n"
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(
                cache.cached_bytes, lambda write: write(memoryview(b"ab")) or {}, "key", tmp_path, "images"
            )
            while not caplog.messages:
                time.sleep(0.05)
            assert caplog.messages == [
                f"waiting for process {holder.pid} on {socket.gethostname()}, which writes images to "
                f"{tmp_path / 'key.u8'}; end it if it hangs"
            ]
            assert not job.done()
            holder.kill()
            found, _ = job.result(60)
    assert found.tobytes() == b"ab" and not [*tmp_path.glob("*.owner")]


def a_folder(path):
    path.mkdir()
    for i in range(3):
        Image.new("L", (8, 8), i).save(path / f"{i}.png")
    return path


def test_folders_in_folders_without_end_are_refused(tmp_path):
    deep = a_folder(tmp_path / "deep")
    descriptor = os.open(deep, os.O_RDONLY)
    for _ in range(1100):
        os.mkdir("a", dir_fd=descriptor)
        inner = os.open("a", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    with pytest.raises(DataError, match="too deep"):
        load_images(deep, cache_dir=tmp_path)
    subprocess.run(["rm", "-rf", deep], check=True)  # Python's own deletion is recursive too


@pytest.mark.parametrize("names", [("x.png", "x.png"), ("a", "b"), ("b", "a")])
def test_links_in_a_circle_are_named_or_left_out(names, tmp_path):
    folder = a_folder(tmp_path / "circle")
    for link, target in {names, names[::-1]}:
        (folder / link).symlink_to(target)
    if names[0] == "x.png":
        with pytest.raises(DataError, match=r"x\.png cannot be read"):
            load_images(folder, cache_dir=tmp_path)
    else:
        assert len(load_images(folder, cache_dir=tmp_path)) == 3


def test_a_sparse_file_of_terabytes_is_not_read(tmp_path):
    folder, begun = a_folder(tmp_path / "sparse"), time.monotonic()
    with open(folder / "y.png", "wb") as file:
        file.truncate(2**42)
    with pytest.raises(DataError, match="at most 1073741824 are read"):
        load_images(folder, cache_dir=tmp_path)
    assert time.monotonic() - begun < 20


def test_decoding_processes_end_with_the_one_that_started_them(tmp_path):
    """By SIGKILL nobody is left to end them."""
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, os, signal, time\n"
        "from latentia.data.build import _Workers\n"
        "if __name__ == '__main__':\n"
        "    workers = _Workers(1).__enter__()\n"
        "    print(workers.pool.submit(os.getpid).result(), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    found = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    child, until = int(found.stdout), time.monotonic() + 20
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until, "it is left behind"
        time.sleep(0.1)


def test_ctrl_c_while_decoding_processes_start_is_quiet(tmp_path):
    """A terminal sends it to all processes of a command: those that are still importing say nothing about it."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, time\n"
        "from latentia.data.build import _Workers\n"
        "from latentia.data.decode import Fit\n"
        "if __name__ == '__main__':\n"
        "    os.setpgrp()\n"
        "    with _Workers(1) as workers:\n"
        "        workers.part = [('a', (b'',))]\n"
        "        list(workers._submit())\n"
        "        signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "        os.killpg(0, signal.SIGINT)\n"
        "        print(len(list(workers.rest())))\n"
    )
    found = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert (found.returncode, found.stdout, found.stderr) == (0, "1\n", "")


@pytest.mark.parametrize("name", ["a.txt", "../a.npy"])
def test_members_that_are_no_arrays_are_named(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr(name, "text")
    with pytest.raises(DataError, match=r"a\.npz cannot be read as an array of images"):
        read_array(tmp_path / "a.npz")


@pytest.mark.parametrize("kind", ["U1", "M8[s]", "c16", [("a", "f4")], object])
def test_arrays_of_no_numbers_are_refused(kind):
    with pytest.raises(UsageError, match="images must be uint8 or floating point"):
        from_input(np.zeros((1, 8, 8, 1), kind))


@pytest.mark.parametrize("kind", [">f4", ">f8", np.longdouble, np.float16])
def test_floats_of_any_order_and_length_are_read(kind):
    values = np.linspace(0, 1, 64).reshape(1, 8, 8, 1)
    assert (from_input(values.astype(kind)) - from_input(values)).abs().max() < 1e-3


@pytest.mark.parametrize("labels", [[0.5, 1.7], [0, float("nan")], ["a", "b"], [0, 2**70], [[0], [1]], "ab"])
def test_labels_that_are_no_integers_are_refused(labels):
    with pytest.raises(UsageError, match="labels must be integers"):
        ImageData(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), labels=labels)
