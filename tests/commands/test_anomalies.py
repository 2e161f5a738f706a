"""Anomalies: scores of images, rows and texts, their p-values and rankings, from Python and the command line."""

import csv
import json

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from latentia import (
    VAE,
    Autoencoder,
    AutoencoderPipeline,
    CausalTransformer,
    DDIMScheduler,
    LatentMixture,
    SeriesPipeline,
    SeriesScaler,
    TableEncoder,
    TextPipeline,
    UnconditionalDiffusionPipeline,
    UNet1D,
    UNet2D,
    VAEPipeline,
)
from latentia.commands import anomalies
from latentia.commands.main import main
from latentia.data import ImageData, load_images, load_series
from latentia.data.mixed import load_mixed_table
from latentia.errors import DataError, NumericsError, UsageError
from latentia.evaluation.anomalies import conformal_p_values, ranking_scores
from latentia.pipelines.table_families import TableFlowPipeline


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    return AutoencoderPipeline(Autoencoder(sample_size=8, latent_dim=4))


def odd_images(count: int = 40) -> ImageData:
    """Grey images of the class "grey", and every fourth of noise, of the class "noise"."""
    images = torch.full((count, 1, 8, 8), 128, dtype=torch.uint8)
    images[::4] = torch.randint(0, 256, (len(images[::4]), 1, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    return ImageData(images, [int(i % 4 == 0) for i in range(count)], ["grey", "noise"])


def test_p_values_are_shares_of_the_reference():
    scores, reference = torch.randn(50).double(), torch.randn(30).double()
    expected = [(1 + int((reference >= s).sum())) / 31 for s in scores]
    torch.testing.assert_close(conformal_p_values(scores, reference), torch.tensor(expected).double())
    assert conformal_p_values(torch.ones(1), torch.ones(3)).item() == 1  # equal scores are not more anomalous


def test_p_values_flag_at_their_rate():
    generator = torch.Generator().manual_seed(0)
    rates = []
    for _ in range(300):
        x = torch.randn(119, generator=generator).exp()
        rates.append((conformal_p_values(x[:100], x[100:]) <= 0.1).double().mean())
    assert torch.stack(rates).mean() == pytest.approx(0.1, abs=0.01)  # 19 in the reference: exactly .1


@pytest.mark.parametrize("wrong", [torch.zeros(0), torch.zeros(2, 2), torch.tensor([1.0, float("nan")])], ids=str)
def test_scores_that_have_no_p_values(wrong):
    with pytest.raises(UsageError, match="scores must be a vector"):
        conformal_p_values(wrong, torch.zeros(3))
    with pytest.raises(UsageError, match="reference must be a vector"):
        conformal_p_values(torch.zeros(3), wrong)
    with pytest.raises(UsageError, match="anomalous must be bool"):
        ranking_scores(torch.zeros(3), torch.zeros(3, dtype=torch.bool))


def test_images_are_ranked_by_their_score(pipe, tmp_path):
    data = odd_images()
    found = anomalies(pipe, data, reference=data, normal_classes=["grey"], batch_size=7)
    assert torch.equal(found.scores, anomalies(pipe, data).scores)  # whatever the batch
    torch.testing.assert_close(found.scores.float(), pipe.anomaly_score(data.images.float() / 127.5 - 1))
    assert found.ranking["AUROC"] == 1 and {*found.order[:10]} == {*range(0, 40, 4)}
    found.save(tmp_path / "out")
    rows = [*csv.DictReader((tmp_path / "out" / "scores.csv").read_text().splitlines())]
    assert [int(row["index"]) for row in rows] == found.order and rows[0]["label"] == "noise"
    assert {row["anomaly"] for row in rows} == {"true", "false"} or not found.flagged.any()
    facts = json.loads((tmp_path / "out" / "anomalies.json").read_text())
    assert facts["AUROC"] == 1 and facts["score"] == "reconstruction" and facts["unit"] == "squared error"
    assert {"scores.png", "anomalies.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert "AUROC 1.0000" in found.text() and "image" in found.text()


def test_random_numbers_of_an_element_are_its_own():
    torch.manual_seed(0)
    vae = VAEPipeline(VAE(sample_size=8, latent_dim=2, hidden_sizes=(8,)))
    data = load_images("digits", max_samples=30)
    found = anomalies(vae, data, samples=2, batch_size=30)
    assert torch.equal(found.scores, anomalies(vae, data, samples=2, batch_size=4).scores)
    assert not torch.equal(found.scores, anomalies(vae, data, samples=2, seed=1).scores)
    errors = anomalies(vae, data, score="reconstruction")
    assert errors.about["unit"] == "squared error" and found.about["unit"] == "nats"


def test_classes_of_a_reconstruction_compete():
    torch.manual_seed(0)
    vae = VAEPipeline(VAE(sample_size=8, latent_dim=2, hidden_sizes=(8,), num_class_embeds=3))
    x = load_images("digits", max_samples=6).images.float() / 127.5 - 1
    every = torch.stack([vae.anomaly_score(x, score="reconstruction", class_labels=c) for c in range(3)])
    torch.testing.assert_close(vae.anomaly_score(x, score="reconstruction"), every.amin(0))
    assert not torch.equal(every[0], every[1])


def test_relative_errors_do_not_grow_with_contrast():
    class Halves(AutoencoderPipeline):
        """Reconstructs the half of what differs from the mean of an image."""

        def reconstruct(self, images, *, output_type="pil"):
            return images.mean((1, 2, 3), keepdim=True) * 0.5 + images * 0.5

    pipe = Halves(Autoencoder(sample_size=8, latent_dim=2))
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)).tanh()
    x[1] = x[0] * 0.1
    x[2] = 0.5  # constant: reconstructed exactly
    errors = pipe.anomaly_score(x, score="reconstruction")
    torch.testing.assert_close(errors[1], errors[0] / 100)
    torch.testing.assert_close(
        pipe.anomaly_score(x, score="relative_reconstruction"), torch.tensor([0.25, 0.25, 0.0, 0.25])
    )


def test_rows_and_texts_are_scored():
    table = load_mixed_table("iris")
    encoder = TableEncoder.fit(table.columns, table.values, layout="scores")
    u = torch.rand(150, 5, generator=torch.Generator().manual_seed(0)).double()
    copula = TableFlowPipeline(encoder, LatentMixture.fit(encoder.encode(torch.from_numpy(table.values), u), 1))
    frame = table.frame()
    odd = frame.head(30).copy()
    numbers = [name for name in odd.columns if odd[name].dtype == np.float64]
    odd.loc[7, numbers] = frame[numbers].max().values  # a setosa of the largest flower
    found = anomalies(copula, odd, reference=frame.iloc[30:], label_column="species", normal_classes=["setosa"])
    assert found.order[0] == 7 and found.p_values[7] < 0.05 and found.ranking == {}
    assert "species" in found._csv().splitlines()[0]

    torch.manual_seed(0)
    writer = TextPipeline(CausalTransformer(levels=4, shape=(8,), width=16, layers=1), vocabulary="abc ")
    texts = ["abc abc", "b", "ccc"]
    found = anomalies(writer, texts)
    torch.testing.assert_close(found.scores, writer.bits_per_character(texts))
    assert found.about["unit"] == "bits per character" and "No p-values" in found.text()


def test_time_series_are_scored():
    torch.manual_seed(0)
    series = load_series("sines_ar2", max_samples=6)
    scaler = SeriesScaler.fit(series.describe_channels(), series.values, series.lengths)
    unet = UNet1D(64, block_out_channels=(8, 8), attention_head_dim=8)
    pipe = SeriesPipeline(scaler, unet, FlowMatchEulerDiscreteScheduler())
    found = anomalies(pipe, series, num_inference_steps=2, normal_classes=["sines"], batch_size=4)
    assert torch.equal(found.scores, anomalies(pipe, series, num_inference_steps=2).scores)
    assert found.scores.shape == (6,) and 0 <= found.ranking["AUROC"] <= 1 and "series" in found.text()


def test_a_run_is_scored_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = "train autoencoder --dataset_name digits --split train[:50%] --max_train_steps 2 --eval_num_samples 0"
    with pytest.raises(SystemExit) as end:
        main([*words.split(), "--train_batch_size", "8", "--output_dir", "run", "--latent_dim", "2"])
    assert end.value.code == 0
    main(["anomalies", "run", "--max_samples", "20"])
    said = capsys.readouterr().out
    assert "20 elements of digits by the reconstruction of run" in said
    assert "899 elements, held-out of digits" in said  # the other half
    assert "digit " in (tmp_path / "outputs" / "anomalies" / "scores.csv").read_text()
    main(["anomalies", "run", "--max_samples", "20", "--overwrite"])
    with pytest.raises(SystemExit):
        main(["anomalies", "run", "--max_samples", "20"])
    assert "output_dir must be empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"normal_classes": ["gray"]}, "normal_classes must be among .*'gray'.*Did you mean \"grey\""),
        ({"score": "likelihood"}, "has no log_likelihood"),
        ({"num_inference_steps": 5}, "num_inference_steps must be left out"),
        ({"text_column": "text"}, "text_column must be left out"),
        ({"false_positive_rate": 1.0}, "false_positive_rate must be in"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"data": None}, "data is missing"),
    ],
    ids=str,
)
def test_wrong_arguments_of_anomalies(pipe, options, text):
    with pytest.raises(UsageError, match=text):
        anomalies(pipe, **{"data": odd_images(8)} | options)


def test_sources_that_have_no_score(pipe, tmp_path):
    with pytest.raises(UsageError, match="source must be a folder or a repository"):
        anomalies("nothing", "digits")
    unet = UNet2D(sample_size=8, in_channels=1, block_out_channels=(8,), attention_head_dim=8)
    with pytest.raises(UsageError, match="has no reconstruct"):
        anomalies(UnconditionalDiffusionPipeline(unet, DDIMScheduler()), odd_images(4), score="reconstruction")
    plain = ImageData(odd_images(4).images)
    with pytest.raises(UsageError, match="has no labels"):
        anomalies(pipe, plain, normal_classes=["a"])
    writer = TextPipeline(CausalTransformer(levels=3, shape=(8,), width=16, layers=1), vocabulary="ab\n")
    (tmp_path / "text.txt").write_text("ab\nabz\n")
    with pytest.raises((UsageError, DataError), match="'z'"):
        anomalies(writer, str(tmp_path / "text.txt"))
    broken = AutoencoderPipeline(Autoencoder(sample_size=8, latent_dim=2))
    for weights in broken.autoencoder.parameters():
        weights.data.fill_(float("nan"))
    with pytest.raises(NumericsError, match="is not a number"):
        anomalies(broken, odd_images(4))
