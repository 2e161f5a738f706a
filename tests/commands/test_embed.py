"""Embedding: tables and images in, latents, maps and numbers out."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness
from sklearn.neighbors import KNeighborsClassifier

from latentia import VQVAE, DDIMScheduler, UnconditionalDiffusionPipeline, UNet2D, VQVAEPipeline
from latentia.commands.embed import embed
from latentia.data import load_images
from latentia.errors import DataError, NumericsError, UsageError


def digits(n: int = 80) -> tuple[torch.Tensor, torch.Tensor]:
    data = load_images("digits", max_samples=n)
    return data.images.flatten(1).double() / 127.5 - 1, data.labels


@pytest.fixture(scope="module")
def found():
    return embed("pca", "digits", components=6, max_samples=80)


@pytest.fixture
def table(tmp_path):
    """Three well separated groups in two of four columns; the fourth has another unit."""
    generator = np.random.default_rng(0)
    group = np.arange(60) % 3
    columns = {
        "a": group * 10.0 + generator.normal(size=60), "b": -group * 10.0 + generator.normal(size=60),
        "count": generator.integers(0, 5, 60), "far": 1e6 * generator.normal(size=60),
        "note": [f"row {i}" for i in range(60)], "label": [f"g{k}" for k in group],
    }  # fmt: skip
    path = tmp_path / "table.csv"
    pyarrow.csv.write_csv(pa.table(columns), path)
    return path


def test_the_components_are_those_of_scikit_learn(found):
    x, labels = digits()
    expected = PCA(6, svd_solver="full").fit_transform(x.numpy())
    torch.testing.assert_close(found.latents.double().abs(), torch.from_numpy(expected).abs(), atol=1e-4, rtol=1e-4)
    assert torch.equal(found.labels, labels) and found.label_names == [str(i) for i in range(10)]


def test_the_scores_are_those_of_scikit_learn(found):
    x, labels = digits()
    assert torch.equal(found.points, torch.arange(80))
    for name, places in {"latents": found.latents, **found.maps}.items():
        trust = trustworthiness(x.numpy(), places.double().numpy(), n_neighbors=10)
        assert found.scores[name]["trustworthiness"] == pytest.approx(trust, abs=1e-6)
        right = 0
        for i in range(80):  # leave one out
            rest = np.arange(80) != i
            near = KNeighborsClassifier(1).fit(places.numpy()[rest], labels.numpy()[rest])
            right += int(near.predict(places.numpy()[i : i + 1])[0] == labels[i])
        assert found.scores[name]["1-NN accuracy"] == pytest.approx(right / 80)
    assert found.scores["t-SNE"]["1-NN accuracy"] > found.scores["PCA"]["1-NN accuracy"] > 0.2


def test_equal_seeds_give_equal_maps_and_files(found, tmp_path):
    again = embed("pca", "digits", components=6, max_samples=80)
    other = embed("pca", "digits", components=6, max_samples=80, seed=1, points=50)
    assert torch.equal(found.latents, again.latents) and torch.equal(found.latents, other.latents)
    assert all(torch.equal(found.maps[name], again.maps[name]) for name in ("PCA", "t-SNE"))
    assert len(other.points) == 50 and len(other.maps["t-SNE"]) == 50
    for name, one in (("a", found), ("b", again)):
        one.save(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").glob("[!.]*"))
    assert files == ["embedding.json", "latents.parquet", "pca.png", "tsne.png"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


def test_what_is_saved(found, tmp_path):
    found.save(tmp_path)
    saved = pq.read_table(tmp_path / "latents.parquet")
    assert saved.column_names == [*(f"z{i}" for i in range(6)), "label", "index"]
    assert saved["index"].to_pylist() == [*range(80)] and saved["label"].to_pylist() == found.labels.tolist()
    assert saved["z2"].to_numpy().tolist() == found.latents[:, 2].tolist()
    known = json.loads((tmp_path / "embedding.json").read_text())
    assert known["source"] == "PCA-6" and known["data"] == "digits" and known["shape"] == [80, 6]
    assert known["scores"] == found.scores and known["neighbours"] == 10
    picture = np.asarray(Image.open(tmp_path / "tsne.png").convert("RGB")).reshape(-1, 3)
    saturated = picture[(picture.max(1).astype(int) - picture.min(1)) > 80]
    assert len(np.unique(saturated, axis=0)) > 10  # the classes have colours
    text = found.text()
    assert "80 x 6 latents by PCA-6 of digits" in text and f"{found.scores['t-SNE']['1-NN accuracy']:.4f}" in text


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_tables(table, tmp_path, kind):
    whole, path = pyarrow.csv.read_csv(table), tmp_path / f"other.{kind}"
    if kind == "parquet":
        pq.write_table(whole, path)
    else:
        pyarrow.csv.write_csv(whole, path, pyarrow.csv.WriteOptions(delimiter="\t" if kind == "tsv" else ","))
    found = embed("pixels", str(path))
    assert found.latents.shape == (60, 4) and found.label_names == ["g0", "g1", "g2"]
    assert found.labels.tolist() == [i % 3 for i in range(60)]
    torch.testing.assert_close(found.latents.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.latents.var(0, correction=0), torch.ones(4), atol=1e-4, rtol=0)
    assert found.about["left_out"] == ["note"] and "Left out, as they hold no numbers: note" in found.text()
    assert found.scores["PCA"]["1-NN accuracy"] > 0.9  # no unit drowns the others


def test_a_table_without_labels(table, tmp_path):
    plain = tmp_path / "plain.csv"
    pyarrow.csv.write_csv(pyarrow.csv.read_csv(table).drop_columns(["label", "note"]), plain)
    found = embed("pixels", str(plain), max_samples=20)
    assert found.labels is None and [*found.scores["PCA"]] == ["trustworthiness"] and len(found.latents) == 20
    found.save(tmp_path / "out")
    assert "label" not in pq.read_table(tmp_path / "out" / "latents.parquet").column_names


def test_one_column_and_equal_rows(tmp_path):
    for name, values in (("one", np.arange(12.0)), ("equal", np.ones(12))):
        path = tmp_path / f"{name}.csv"
        pyarrow.csv.write_csv(pa.table({"a": values}), path)
        found = embed("pixels", str(path))
        assert found.maps["PCA"].shape == (12, 2) and all(m.isfinite().all() for m in found.maps.values())


def quantised() -> VQVAEPipeline:
    torch.manual_seed(0)
    config = {"sample_size": 8, "in_channels": 1, "block_out_channels": (8,), "codebook_size": 8, "latent_channels": 3}
    pipe = VQVAEPipeline(VQVAE(**config).eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_latents_of_a_saved_pipeline(tmp_path):
    pipe = quantised()
    pipe.save_pretrained(tmp_path / "pipe")
    found = embed(str(tmp_path / "pipe"), "digits", max_samples=40, batch_size=7)
    images = load_images("digits", max_samples=40).images.float() / 127.5 - 1
    expected = pipe.encode(images, continuous=True)  # integers have no distances
    torch.testing.assert_close(found.latents, expected.flatten(1))
    assert torch.equal(embed(pipe, "digits", max_samples=40).latents, found.latents)


class Encoder:
    """The least that a pipeline declares to be embedded by."""

    words = ("encode",)
    latents = "continuous"

    def to(self, device):
        return self

    def set_progress_bar_config(self, **options):
        pass


def test_a_pipeline_gets_a_row_as_an_image_of_one_line(table, tmp_path):
    class Rows(Encoder):
        def encode(self, images):
            assert images.shape[1:] == (1, 1, 4)
            return images.flatten(1)[:, :2]

    values = pyarrow.csv.read_csv(table)
    found = embed(Rows(), str(table))
    torch.testing.assert_close(found.latents[:, 1], torch.tensor(values["b"].to_pylist()))


def test_a_class_conditional_encoder_gets_the_labels():
    class Conditional(Encoder):
        num_classes = 10
        conditions = latent_conditions = ("class_labels",)

        def encode(self, images, class_labels):
            return torch.stack([class_labels, class_labels], 1)

    found = embed(Conditional(), "digits", max_samples=30, batch_size=8)
    assert found.latents[:, 0].tolist() == found.labels.tolist()


def broken(tmp_path, **columns):
    path = tmp_path / "broken.csv"
    pyarrow.csv.write_csv(pa.table(columns), path)
    return str(path)


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({"components": 0}, UsageError, "components must be at least 1; got 0"),
        ({"components": 41, "source": "pca"}, UsageError, "at most 40, the lesser of samples and inputs; got 41"),
        ({"points": 4}, UsageError, "points must be at least 5"),
        ({"max_samples": 3}, UsageError, "max_samples must be at least 5; got 3"),
        ({"batch_size": 0}, UsageError, "batch_size must be at least 1"),
        ({"source": "pixel"}, UsageError, 'got "pixel". Did you mean "pixels"'),
        ({"source": object()}, UsageError, "pixels or pca; object cannot"),
        ({"data": "nowhere.csv"}, DataError, "nowhere.csv is no file"),
    ],
)
def test_nonsense(options, error, text):
    with pytest.raises(error, match=text):
        embed(**{"source": "pixels", "data": "digits", "max_samples": 40} | options)


@pytest.mark.parametrize(
    "columns, options, error, text",
    [
        ({"a": ["x"] * 6}, {}, DataError, r"a column of numbers beside the label; its columns are \['a'\]"),
        (
            {"a": [1.0, None, 2, 3, 4, 5], "b": range(6)},
            {},
            DataError,
            '"a" has 1 values that are missing or not finite.* row 1',
        ),
        ({"a": [1.0, 2.0]}, {}, DataError, "at least 5 samples to be embedded; it holds 2"),
        ({"a": range(6)}, {"label_column": "b"}, UsageError, r"one of \['a'\]; got .b."),
        ({"a": range(6), "label": [0.5] * 6}, {}, DataError, "whole numbers or texts"),
    ],
)
def test_tables_that_cannot_be_embedded(tmp_path, columns, options, error, text):
    with pytest.raises(error, match=text):
        embed("pixels", broken(tmp_path, **columns), **options)


def test_files_that_are_no_tables_and_pipelines_that_cannot(tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        embed("pixels", str(tmp_path / "bad.parquet"))

    class Lost(Encoder):
        def encode(self, images):
            return images.flatten(1) * float("nan")

    with pytest.raises(NumericsError, match="latents of Lost are not finite"):
        embed(Lost(), "digits", max_samples=10)
    unet = UNet2D(sample_size=4, in_channels=1, block_out_channels=(8,), attention_head_dim=8)
    with pytest.raises(UsageError, match="4 high and 4 wide"):
        embed(UnconditionalDiffusionPipeline(unet, DDIMScheduler()), "digits", max_samples=10)
    found = embed("pixels", "digits", max_samples=10)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"output_dir .*file cannot be written"):
        found.save(tmp_path / "file")


def test_parquet_with_images_is_no_table(tmp_path):
    from io import BytesIO

    rows = []
    for i in range(6):
        buffer = BytesIO()
        Image.fromarray(np.full((8, 8), 40 * i, np.uint8)).save(buffer, "png")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    pq.write_table(pa.table({"image": rows, "label": [0, 1] * 3}), tmp_path / "images.parquet")
    assert embed("pixels", str(tmp_path / "images.parquet")).latents.shape == (6, 64)


def test_titles_hold_a_name_and_not_its_path(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    titles = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: titles.append(self.axes[0].get_title()))
    found = embed("pca", "digits", components=4, max_samples=40)
    found.about["source"] = str(tmp_path / "runs" / "vae")
    found.save(tmp_path / "out")
    assert [title.splitlines()[0] for title in titles] == ["PCA of the latents by vae", "t-SNE of the latents by vae"]
