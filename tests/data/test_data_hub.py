"""Data sets that come over HTTP, from a Hub on the loopback: what is loaded, which commit, and how faults end."""

import io
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hub_server import image_dataset, point_client_at, point_datasets_at, running_hub
from PIL import Image

from latentia.data import StreamedImages, load_images
from latentia.errors import DataError

NAME, REPO = "user/set", "datasets/user/set"
FILES, OTHER = image_dataset(shards=2), image_dataset(seed=1)


def content_of(files, split="train"):
    """The pixels and labels that a data set holds, read without `datasets` and without latentia."""
    tables = [pq.read_table(io.BytesIO(files[name])) for name in sorted(files) if name.startswith(f"data/{split}")]
    rows = [row for table in tables for row in table.to_pylist()]
    pixels = [np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))) for row in rows]
    return torch.from_numpy(np.stack(pixels))[:, None], torch.tensor([row["label"] for row in rows])


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub with one data set, a machine that has never seen it, and a clock that does not wait."""
    with running_hub() as server:
        point_client_at(server, monkeypatch, str(tmp_path / "hub"))
        point_datasets_at(server, monkeypatch, str(tmp_path / "datasets"))
        monkeypatch.setenv("LATENTIA_CACHE", str(tmp_path / "latentia"))
        server.commit = server.put(REPO, FILES)
        server.naps = []
        monkeypatch.setattr("time.sleep", server.naps.append)
        yield server


def replace(hub):
    """A commit that puts the other set in the place of the first."""
    newer = hub.put(REPO, OTHER)
    hub.repos[REPO][newer] = OTHER
    return newer


def fetched(hub):
    """The commits and the files that were asked for."""
    found = [path.split("/resolve/")[1].split("/", 1) for _, path in hub.requests if "/resolve/" in path]
    return {commit for commit, _ in found}, {name for _, name in found}


def test_a_data_set_comes_over_http_from_one_commit(hub):
    data = load_images(NAME)
    pixels, labels = content_of(FILES)
    assert torch.equal(data.images, pixels) and torch.equal(data.labels, labels)
    assert data.label_names == ["dark", "light"] and data.shape == (1, 8, 8)
    commits, names = fetched(hub)
    assert commits == {hub.commit} and names >= {name for name in FILES if name.startswith("data/train")}
    about = data.describe()
    assert (about["kind"], about["name"], about["revision"]) == ("Hub", NAME, hub.commit)
    assert torch.equal(load_images(NAME, split="test[:5]").images, content_of(FILES, "test")[0][:5])

    hub.requests.clear()
    again = load_images(NAME)
    assert torch.equal(again.images, pixels) and again.fingerprint == data.fingerprint
    assert not fetched(hub)[0]  # decoded already


def test_the_revision_decides_what_is_read(hub):
    hub.refs[REPO]["v1"] = hub.commit
    newer = replace(hub)
    for asked, files, commit in ((None, OTHER, newer), ("v1", FILES, hub.commit), (newer, OTHER, newer)):
        for streaming in (False, True):
            data = load_images(NAME, revision=asked, streaming=streaming)
            assert data.source["revision"] == commit, (asked, streaming)
            got = data.batch(0, 32)["x"]
            want = content_of(files)[0].float() / 127.5 - 1
            assert torch.equal(sorted_rows(got), sorted_rows(want)), (asked, streaming)


def sorted_rows(images):
    return torch.stack(sorted(images.flatten(1), key=lambda row: row.tolist()))


def test_a_stream_over_http_keeps_nothing(hub, tmp_path):
    stream = load_images(NAME, streaming=True)
    assert isinstance(stream, StreamedImages) and stream.source["revision"] == hub.commit
    assert stream.label_names == ["dark", "light"]
    pixels, labels = content_of(FILES)
    want = {tuple(image.flatten().tolist()): int(label) for image, label in zip(pixels.float() / 127.5 - 1, labels)}
    for epoch in range(2):
        batch = stream.batch(32 * epoch, 32 * epoch + 32)
        got = {tuple(image.flatten().tolist()): int(label) for image, label in zip(batch["x"], batch["labels"])}
        assert got == want
    assert fetched(hub)[0] == {hub.commit}
    kept = [path for path in tmp_path.rglob("*") if path.suffix in (".parquet", ".arrow", ".u8")]
    assert not kept


# Where a fault may hit: finding the commit, listing the files, fetching them.
PLACES = {
    "commit": f"GET /api/{REPO}$",
    "listing": f"POST /api/{REPO}/paths-info|GET /api/{REPO}/tree",
    "card": r"/resolve/.*README\.md",
    "data": r"/resolve/.*/data/train-00001",
}


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("place", PLACES)
def test_a_fault_that_passes_is_waited_for(hub, place, streaming):
    hub.fail(PLACES[place], 500, times=2)
    data = load_images(NAME, streaming=streaming)
    assert torch.equal(sorted_rows(data.batch(0, 32)["x"]), sorted_rows(content_of(FILES)[0].float() / 127.5 - 1))
    assert data.source["revision"] == hub.commit
    assert 1 <= sum(hub.naps) < 30


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("place", PLACES)
def test_a_fault_that_stays_ends_as_an_error_of_the_data(hub, place, streaming, tmp_path):
    hub.fail(PLACES[place], 500, times=10**6)
    with pytest.raises(DataError, match=NAME) as caught:
        load_images(NAME, streaming=streaming).batch(0, 32)
    assert caught.value.exit_code == 4 and "500" in str(caught.value)
    assert 1 <= sum(hub.naps) < 240 and len(hub.requests) < 200
    assert not list(tmp_path.rglob("*.u8"))


def test_a_fault_never_gives_another_commit(hub):
    """`datasets` falls back on what it has in its cache, whatever commit that is from."""
    load_images(NAME)
    replace(hub)
    hub.fail("/resolve/|paths-info|/tree/", 500, times=10**6)
    with pytest.raises(DataError, match=NAME):
        load_images(NAME)


def test_what_was_loaded_once_is_there_without_the_hub(hub, tmp_path):
    data = load_images(NAME)
    hub.fail("", 503, times=10**6)
    assert load_images(NAME).fingerprint == data.fingerprint
    shutil.rmtree(tmp_path / "latentia")  # decoded anew from what `datasets` keeps
    again = load_images(NAME)
    assert again.fingerprint == data.fingerprint and again.source["revision"] == hub.commit


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("user/sett", {}, r'"user/sett".*cannot be found.*(?i:not found)'),
        (NAME, {"revision": "v9"}, r'"user/set".*at revision v9.*(?i:not found)'),
        (NAME, {"split": "validation"}, r'"validation" of user/set.*train.*test'),
        (NAME, {"config_name": "large"}, r"user/set.*large"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "stream"])
def test_what_the_hub_has_not_is_named(hub, name, options, said, streaming):
    with pytest.raises(DataError, match=rf"(?s){said}") as caught:
        load_images(name, streaming=streaming, **options)
    assert caught.value.exit_code == 4 and hub.naps == []
