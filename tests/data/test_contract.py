"""Every data set fulfils the one contract of `latentia.data.base`: one test over a list of them all."""

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from devices import separate_device
from PIL import Image

from latentia import LogMel, SeriesScaler
from latentia.data import (
    CaptionData,
    Dataset,
    Degradation,
    ImageData,
    LatentData,
    PairedImages,
    PlaneData,
    ScaledSeries,
    SoundFrames,
    Sounds,
    StreamedImages,
    TableData,
    TextData,
    load_images,
    load_series,
    load_table,
    stacked_images,
)
from latentia.errors import DataError, UsageError
from latentia.training.loop import Batches

N = 11
LABELS = [0, 1, 2, 1, 0, 2, 2, 1, 0, 1, 2]
CAPTIONS = [f"text {i % 7}" for i in range(N)]
LINES = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"[: 8 * N + 3]


def pixels(seed: int = 0, channels: int = 1, size: int = 4) -> torch.Tensor:
    """Images of which no two are the same."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (N, channels, size, size), dtype=torch.uint8, generator=generator)


def images(seed: int = 0, **options) -> ImageData:
    return ImageData(pixels(seed), LABELS, captions=CAPTIONS, **options)


def latents(seed: int = 0, std: bool = False, **options) -> LatentData:
    mean = torch.randn(N * (2 if options.get("random_flip") else 1), 3, 2, 2)
    return LatentData(mean, mean.abs() if std else None, images(seed, **options), f"latents {seed} {std}")


def captioned(data: ImageData | LatentData) -> CaptionData:
    texts = sorted({"", *data.captions})
    hidden = torch.randn(len(texts), 5, 6)
    return CaptionData(hidden, torch.ones(len(texts), 5).bool(), texts, data, f"captions of {data.fingerprint}")


def streamed(seed: int = 0, label_names: list[str] | None = None) -> StreamedImages:
    rows = [{"image": image[0].numpy(), "label": label, "text": text}
            for image, label, text in zip(pixels(seed), LABELS, CAPTIONS)]  # fmt: skip
    return load_images(rows, streaming=True, label_names=label_names or ["a", "b", "c"], max_samples=N - seed)


def folder(path, seed: int = 0) -> ImageData:
    """Images of two sizes that are cropped at random."""
    for i, image in enumerate(pixels(seed, size=8)):
        path.joinpath("images").mkdir(exist_ok=True)
        Image.fromarray(image[0, :, : 6 + i % 3].numpy()).save(path / f"images/{i:02}.png")
    return load_images(path / "images", resolution=5, center_crop=False, cache_dir=path / f"cache {seed}")


def table(path, text: str = "") -> TableData:
    lines = [f"{i},{i * i / 7},name,{'abc'[label]}" for i, label in enumerate(LABELS)]
    path.joinpath("table.csv").write_text("\n".join([f"u,v{text},w,label", *lines]))
    return load_table(path / "table.csv")


def series(**options) -> ScaledSeries:
    """Series of two to five steps, of two channels."""
    steps = [
        (i, step, i + step * step, (i * 7 + step) % 5, "abc"[LABELS[i]]) for i in range(N) for step in range(2 + i % 4)
    ]
    columns = dict(zip(("series", "time", "u", "v", "label"), zip(*steps)))
    found = load_series(columns, **options)
    return ScaledSeries(found, SeriesScaler.fit(found.describe_channels(), found.values, found.lengths))


def sounds(seed: int = 0) -> SoundFrames:
    waves = torch.rand(N, 1024, generator=torch.Generator().manual_seed(seed)) - 0.5
    found = Sounds(waves.numpy(), 8000, torch.tensor(LABELS).numpy(), ["a", "b", "c"])
    return SoundFrames(found, LogMel.fit(waves, num_mels=6, n_fft=512, hop_length=128))


@dataclass
class Entry:
    """One data set of the battery.

    Args:
        build: folder -> the data set; called twice it gives the same one.
        other: folder -> one that differs in a little of its content.
        shape: of one element.
        labels, captions: whether its batches hold them.
        random: whether the same element differs from epoch to epoch.
        n: elements of an epoch; None for a distribution.
    """

    build: Callable[[Any], Dataset]
    other: Callable[[Any], Dataset]
    shape: tuple[int, ...]
    labels: bool = True
    captions: bool = True
    random: bool = False
    n: int | None = N


DATA_SETS = {
    "images": Entry(lambda path: images(), lambda path: images(1), (1, 4, 4)),
    "images, flipped": Entry(
        lambda path: images(random_flip=True),
        lambda path: ImageData(pixels(), [0, *LABELS[1:-1], 0], captions=CAPTIONS), (1, 4, 4), random=True,
    ),
    "images, cropped": Entry(
        folder, lambda path: folder(path, 1), (1, 5, 5), labels=False, captions=False, random=True
    ),
    "images without labels": Entry(
        lambda path: ImageData(pixels(), captions=CAPTIONS),
        lambda path: ImageData(pixels(), captions=[*CAPTIONS[1:], ""]), (1, 4, 4), labels=False,
    ),
    "digits": Entry(
        lambda path: load_images("digits", max_samples=N), lambda path: load_images("digits", max_samples=N + 1),
        (1, 8, 8), captions=False,
    ),
    "factors": Entry(
        lambda path: load_images("factors", max_samples=N),
        lambda path: load_images("factors", max_samples=N, label_column="colour"), (3, 32, 32),
    ),
    "stacked": Entry(
        lambda path: stacked_images(ImageData(pixels(), LABELS), n=N),
        lambda path: stacked_images(ImageData(pixels(), LABELS), n=N, seed=1), (3, 4, 4), captions=False,
    ),
    "pairs": Entry(
        lambda path: PairedImages(images(random_flip=True), images(2, random_flip=True)),
        lambda path: PairedImages(images(random_flip=True), images(3, random_flip=True)), (1, 4, 4), random=True,
    ),
    "unpaired": Entry(
        lambda path: PairedImages(images(), images(2), paired=False),
        lambda path: PairedImages(images(), images(3), paired=False), (1, 4, 4),
    ),
    "restoration": Entry(
        lambda path: PairedImages(images(), Degradation("masked")),
        lambda path: PairedImages(images(), Degradation("masked", 0.5)), (1, 4, 4),
    ),
    "streamed images": Entry(lambda path: streamed(), lambda path: streamed(1), (1, 4, 4)),
    "latents": Entry(lambda path: latents(), lambda path: latents(1), (3, 2, 2)),
    "latents, sampled": Entry(
        lambda path: latents(std=True, random_flip=True), lambda path: latents(std=False), (3, 2, 2), random=True
    ),
    "captions of images": Entry(
        lambda path: captioned(images()), lambda path: captioned(images(1)), (1, 4, 4)
    ),
    "captions of latents": Entry(
        lambda path: captioned(latents()), lambda path: captioned(latents(1)), (3, 2, 2)
    ),
    "plane": Entry(
        lambda path: PlaneData("moons"), lambda path: PlaneData("rings"), (2,), labels=False, captions=False, n=None
    ),
    "table": Entry(table, lambda path: table(path, "2"), (2,), captions=False),
    "tensor of rows": Entry(
        lambda path: TableData(torch.arange(3.0 * N).view(N, 3), labels=LABELS),
        lambda path: TableData(torch.arange(3.0 * N).view(N, 3), labels=LABELS[::-1]), (3,), captions=False,
    ),
    "series": Entry(
        lambda path: series(), lambda path: series(drop_columns=["v"]), (2, 5), captions=False,
    ),
    "sounds": Entry(lambda path: sounds(), lambda path: sounds(1), (6, 9), captions=False),
    "text": Entry(
        lambda path: TextData(LINES, 8), lambda path: TextData(LINES[::-1], 8), (8,), labels=False, captions=False,
        random=True,
    ),
}  # fmt: skip


@pytest.fixture(params=DATA_SETS)
def entry(request) -> Entry:
    return DATA_SETS[request.param]


@pytest.fixture
def data(entry, tmp_path) -> Dataset:
    torch.manual_seed(0)
    return entry.build(tmp_path)


def members(protocol) -> set[str]:
    return {name for name in dir(protocol) if not name.startswith("_")} | {*protocol.__annotations__}


def test_the_list_holds_every_class_of_data_set(tmp_path):
    import latentia.data as room

    classes = {type(entry.build(tmp_path)) for entry in DATA_SETS.values()}
    public = [getattr(room, name) for name in room.__all__]
    assert classes == {thing for thing in public if inspect.isclass(thing) and hasattr(thing, "batch")} - {Dataset}


def test_it_has_all_members(data):
    assert isinstance(data, Dataset) and isinstance(data, Batches)
    assert members(Batches) <= members(Dataset)
    parameters = inspect.signature(type(data).batch).parameters
    assert [*parameters] == ["self", "start", "stop", "seed", "device"]
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in ("seed", "device"))
    assert repr(data).startswith(type(data).__name__)


def test_a_batch_holds_what_the_contract_says(entry, data):
    assert tuple(data.shape) == entry.shape
    batch = data.batch(3, 8, seed=1)
    assert batch["x"].shape == (5, *entry.shape) and batch["x"].dtype == torch.float32
    assert ("labels" in batch) == entry.labels == (data.label_names is not None)
    assert ("captions" in batch) == entry.captions == data.has_captions
    if entry.labels:
        assert batch["labels"].dtype == torch.int64 and batch["labels"].shape == (5,)
        assert 0 <= batch["labels"].min() and batch["labels"].max() < len(data.label_names)
    if entry.captions:
        assert len(batch["captions"]) == 5 and {*batch["captions"]} <= {*(data.captions or CAPTIONS)}
    empty = data.batch(4, 4)
    assert empty.keys() == batch.keys() and len(empty["x"]) == 0 and empty["x"].shape[1:] == entry.shape


def test_every_tensor_of_a_batch_is_on_the_device(data):
    plain = data.batch(3, 8, seed=1)
    with separate_device() as second:
        for device in (second, *([torch.device("cuda", 0)] if torch.cuda.is_available() else [])):
            batch = data.batch(3, 8, seed=1, device=device)
            assert batch.keys() == plain.keys()
            for key, value in batch.items():
                if isinstance(value, torch.Tensor):
                    assert value.device == device and value.dtype == plain[key].dtype, key
                    assert torch.equal(value.cpu(), plain[key]), key


@pytest.mark.parametrize("cuts", [(0, 30), (0, 1, 2, 13, 30), (9, 14, 30), (22, 23)])
def test_an_element_is_the_same_however_the_stream_is_cut(data, cuts):
    whole = data.batch(0, 30, seed=3)
    parts = [data.batch(a, b, seed=3) for a, b in pairwise(cuts)]
    for key, value in whole.items():
        wanted = value[cuts[0] : cuts[-1]]
        if isinstance(value, torch.Tensor):
            assert torch.equal(torch.cat([part[key] for part in parts]), wanted), key
        else:
            assert [item for part in parts for item in part[key]] == wanted, key


def test_every_epoch_is_a_permutation_of_the_elements(entry, data):
    def elements(start, stop, seed=0):
        """What tells elements apart: the values, or of random ones the label and the caption."""
        batch = data.batch(start, stop, seed=seed)
        rows = [()] * (stop - start) if entry.random else [tuple(row) for row in batch["x"].flatten(1).tolist()]
        labels = batch["labels"].tolist() if entry.labels else [0] * len(rows)
        return [*zip(rows, labels, batch.get("captions", labels))]

    n = entry.n or 20
    first, second, third = (elements(epoch * n, (epoch + 1) * n) for epoch in range(3))
    if entry.n is None:  # samples of a distribution: none comes twice
        assert len({*first, *second, *third}) == 3 * n
        return
    if not entry.random:
        assert len({*first}) == n
    assert sorted(first) == sorted(second) == sorted(third)
    if entry.labels or not entry.random:
        assert first != second and first != elements(0, n, seed=1)


def test_random_elements_change_from_epoch_to_epoch(entry, data):
    epochs = [data.batch(epoch * N, (epoch + 1) * N)["x"].flatten(1) for epoch in range(2)]
    known = {tuple(row) for row in epochs[0].tolist()}
    fresh = [tuple(row) for row in epochs[1].tolist() if tuple(row) not in known]
    assert bool(fresh) == (entry.random or entry.n is None)


def test_the_length_is_that_of_an_epoch_or_an_error(entry, data):
    assert data.endless == (entry.n is None or isinstance(data, StreamedImages))
    if data.endless:
        assert data.labels is None and data.captions is None
        with pytest.raises(UsageError, match="no length"):
            len(data)
    else:
        assert len(data) == entry.n
        assert data.labels is None or len(data.labels) == entry.n
        assert data.captions is None or len(data.captions) == entry.n


def test_the_fingerprint_follows_the_content(entry, data, tmp_path):
    torch.manual_seed(0)
    assert isinstance(data.fingerprint, str) and data.fingerprint == entry.build(tmp_path).fingerprint
    assert data.fingerprint != entry.other(tmp_path).fingerprint


def test_all_fingerprints_differ(tmp_path):
    same_content = {"images, flipped", "digits"}  # flips are no content
    prints = [entry.build(tmp_path).fingerprint for name, entry in DATA_SETS.items() if name not in same_content]
    assert len({*prints}) == len(prints)


def test_the_description_is_json_and_says_what_the_data_are(entry, data):
    about = json.loads(json.dumps(data.describe()))
    known = ("image", "latent", "point", "table row", "text window", "sequence", "clip")
    assert about["modality"] == data.modality in known
    assert about["shape"] == [*entry.shape] and about["fingerprint"] == data.fingerprint
    assert about["label_names"] == data.label_names and about["captions"] == entry.captions
    assert about["kind"]


def test_too_few_elements_for_a_global_batch_are_refused(entry, data):
    data.require(entry.n or 10**9)
    if entry.n is not None:
        with pytest.raises(DataError, match=f"{entry.n} .*fewer than one global batch of {entry.n + 1}"):
            data.require(entry.n + 1)


def test_positions_must_be_in_order(data):
    for start, stop in ((4, 3), (-1, 2)):
        with pytest.raises(UsageError, match="0 <= start <= stop"):
            data.batch(start, stop)
