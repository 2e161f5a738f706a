"""Time series in generate, evaluate and compare."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import quiet
from tiny_pipelines import COSINE

from latentia import DDIMScheduler, SeriesPipeline, SeriesScaler, UNet1D
from latentia.commands.compare import compare
from latentia.commands.evaluate import evaluate
from latentia.commands.generate import generate
from latentia.data import load_series
from latentia.errors import DataError, UsageError

QUICK = ["autocorrelation", "spectrum"]
DATA = load_series("sines_ar2", max_samples=100, window=16)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved pipeline without the folder of a run."""
    folder = tmp_path_factory.mktemp("series")
    torch.manual_seed(0)
    scaler = SeriesScaler.fit(DATA.describe_channels(), DATA.values, DATA.lengths)
    unet = UNet1D(16, 1, block_out_channels=(8,), attention_head_dim=8, num_class_embeds=2)
    quiet(SeriesPipeline(scaler, unet, DDIMScheduler(**COSINE), ["sines", "ar2"])).save_pretrained(folder)
    return str(folder)


def test_generate_writes_a_long_table_with_a_figure(saved, tmp_path):
    made = generate(saved, 5, seed=3, class_labels=["ar2", "sines"], num_inference_steps=2)
    files = made.save(tmp_path / "made")
    assert [file.name for file in files] == [
        "series.csv",
        "signals.png",
    ] and "5 series of SeriesPipeline" in made.text()
    rows = pd.read_csv(files[0])
    assert list(rows) == ["series", "time", "value", "label"] and len(rows) == 80
    assert rows.groupby("series").label.first().tolist() == ["ar2", "sines", "ar2", "sines", "ar2"]
    recipe = json.loads((tmp_path / "made" / "recipes.json").read_text())[0]
    assert recipe["seed"] == 3 and recipe["num_inference_steps"] == 2 and recipe["count"] == 5
    again = generate(saved, 2, seed=3, class_labels=["ar2", "sines"], num_inference_steps=2)
    assert np.array_equal(again.signals.values, made.signals.values[:2])
    generate(saved, 1, num_inference_steps=1).save(tmp_path / "made", overwrite=True)
    assert len(load_series(tmp_path / "made" / "series.csv")) == 1


def test_evaluate_puts_held_out_series_beside_every_score(saved, tmp_path):
    found = evaluate(saved, DATA, metrics=QUICK, num_inference_steps=1)
    assert found.report.n == 20 and found.report["spectrum"].value > 1.5 * found.report["spectrum"].real
    (folder,) = found.save(tmp_path / "page")
    assert {"signals.png", "spectra.png", "samples.png", "real.png"} <= {file.name for file in folder.iterdir()}
    assert "Autocorrelation error" in (folder / "index.html").read_text()
    assert json.loads((folder / "metrics.json").read_text())["scores"]["spectrum"]["real"] > 0
    with pytest.raises(UsageError, match="update_card must be left out"):
        found.save(tmp_path / "page", overwrite=True, update_card=True)


def test_series_of_a_file_and_the_baseline_are_compared(tmp_path):
    held = load_series("sines_ar2").parts()[1]
    held.frame().to_csv(tmp_path / "real.csv", index=False)
    compared = compare(["ar2", str(tmp_path / "real.csv")], "sines_ar2", metrics=["spectrum"])
    assert [one.source for one in compared] == ["ar2", "real"]
    assert compared[1].report["spectrum"].value < compared[0].report["spectrum"].value
    compared.save(tmp_path / "page")
    assert (tmp_path / "page" / "1" / "index.html").exists() and "real data" in compared.text()


def test_tables_are_scored_as_series_where_they_say_so(tmp_path):
    long, wide = DATA.frame(), pd.DataFrame(DATA.values[:, 0]).rename(columns=str)
    odd = long.rename(columns={"series": "sensor"})
    files = {"long": long, "wide": wide, "odd": odd, "rows": wide.assign(time=range(len(wide)))}
    paths = {name: str(tmp_path / f"{name}.csv") for name in files}
    for name, frame in files.items():
        frame.to_csv(paths[name], index=False)
    cases = [("long", "long", {}), ("long", "wide", {"layout": "wide"}), ("long", "odd", {"series_column": "sensor"})]
    expected = evaluate(DATA, DATA, metrics=["spectrum"]).report["spectrum"].value
    for source, data, settings in cases:
        found = evaluate(paths[source], paths[data], metrics=["spectrum"], **settings)
        assert found.modality == "series" and found.report["spectrum"].value == pytest.approx(expected, rel=1e-6)
    assert evaluate(long, long, metrics=["spectrum"]).source == "DataFrame"
    for source, data in (("long", "wide"), ("rows", "rows"), ("odd", "odd")):
        with pytest.raises(UsageError, match=r'layout must be given.*"series" and "time".* has '):
            evaluate(paths[source], paths[data])
    with pytest.raises(UsageError, match="layout must be left out: there is no such argument"):
        evaluate("pca", "digits", layout="long")
    assert type(evaluate(paths["wide"], paths["wide"], metrics=["ks"])).__name__ == "TableEvaluation"
    rows = evaluate(paths["rows"], paths["rows"], metrics=["ks"], layout="rows")
    assert type(rows).__name__ == "TableEvaluation"


def test_what_makes_no_sense_of_series_is_refused(saved, tmp_path):
    pd.DataFrame({"series": [0, 0, 1, 1], "a": [1.0, 2.0, 0.0, 3.0]}).to_csv(tmp_path / "other.csv", index=False)
    for call, error, text in (
        (lambda: evaluate(saved), UsageError, "data is missing.*sines_ar2"),
        (lambda: evaluate(saved, DATA, likelihood_images=5), UsageError, "likelihood_images must be left out"),
        (lambda: evaluate(saved, DATA, metrics=["fd"]), UsageError, "metrics of series are"),
        (
            lambda: evaluate(str(tmp_path / "other.csv"), DATA),
            DataError,
            "channels a, .* the channels value",
        ),
        (lambda: evaluate("ar2", DATA.take(slice(20))), UsageError, "held_out_share must leave at least 12|n must be"),
        (lambda: evaluate("ar2", DATA, n=5), UsageError, "n must be from 12"),
        (lambda: compare([f"a={saved}", "ar2"], "sines_ar2"), UsageError, "one by one"),
        (lambda: generate(saved, 1, length=1), UsageError, "length must be"),
        (lambda: evaluate("ar2", "sines_ar"), UsageError, 'Did you mean "sines_ar2"'),
    ):
        with pytest.raises(error, match=text):
            call()
