"""Rows of tables in generate, evaluate, compare and train."""

import json
import sys

import pandas as pd
import pytest

from latentia.commands.compare import compare
from latentia.commands.evaluate import evaluate
from latentia.commands.generate import generate
from latentia.commands.tables import fit_copula
from latentia.commands.train import _data_of, train
from latentia.data.mixed import load_mixed_table
from latentia.errors import DataError, UsageError

QUICK = ["ks", "total_variation", "copies"]


@pytest.fixture(scope="module")
def copula(tmp_path_factory):
    """A saved pipeline of iris without the folder of a run."""
    folder = tmp_path_factory.mktemp("copula")
    train, _ = load_mixed_table("iris").parts()
    fit_copula(train).save_pretrained(folder)
    return str(folder)


def test_generate_writes_rows_with_their_recipe(copula, tmp_path):
    made = generate(copula, 7, seed=3, where="species=virginica")
    (file,) = made.save(tmp_path / "rows")
    rows = pd.read_csv(file)
    assert list(rows) == load_mixed_table("iris").names and (rows.species == "virginica").all() and len(rows) == 7
    assert rows.equals(made.rows) and "7 rows of TableFlowPipeline" in made.text()
    recipe = json.loads((tmp_path / "rows" / "recipes.json").read_text())[0]
    assert recipe["seed"] == 3 and recipe["where"] == "species=virginica" and recipe["rows"] == 7
    again = generate(copula, 3, seed=3, where="species=virginica").rows
    assert again.equals(made.rows.iloc[:3])
    with pytest.raises(UsageError, match="class_labels must be left out"):
        generate(copula, 1, class_labels=["setosa"])


def test_evaluate_puts_held_out_rows_beside_every_score(copula, tmp_path):
    found = evaluate(copula, "iris", metrics=QUICK)
    assert found.report.n == 30 and set(found.report.scores) == set(QUICK)
    assert found.report["ks"].value < 0.3 and found.report["copies"].value < 0.2
    (folder,) = found.save(tmp_path / "page")
    page = (folder / "index.html").read_text()
    assert (
        "Kolmogorov-Smirnov" in page and (folder / "columns.png").exists() and (folder / "samples_preview.png").exists()
    )
    assert json.loads((folder / "metrics.json").read_text())["scores"]["ks"]["real"] > 0
    with pytest.raises(UsageError, match="update_card must be left out"):
        found.save(tmp_path / "page", overwrite=True, update_card=True)


def test_rows_trained_on_are_seen_as_copies(tmp_path):
    train, _ = load_mixed_table("iris").parts()
    train.frame().to_csv(tmp_path / "rows.csv", index=False)
    found = evaluate(str(tmp_path / "rows.csv"), "iris", metrics=QUICK)
    assert found.report["copies"].value == 1 > found.report["copies"].real
    compared = compare(["copula", str(tmp_path / "rows.csv")], "iris", metrics=QUICK)
    assert [one.source for one in compared] == ["copula", "rows"] and "real data" in compared.text()
    compared.save(tmp_path / "page")
    assert (tmp_path / "page" / "1" / "index.html").exists() and (tmp_path / "page" / "comparison.json").exists()


def test_what_makes_no_sense_of_tables_is_refused(copula, tmp_path):
    (tmp_path / "other.csv").write_text("a,b\n1,x\n2,y\n3,x\n")
    for call, error, text in (
        (lambda: evaluate(copula), UsageError, "data is missing.*Give a CSV"),
        (lambda: evaluate(copula, "iris", likelihood_images=5), UsageError, "likelihood_images must be left out"),
        (lambda: evaluate(copula, "iris", metrics=["fd"]), UsageError, "metrics of tables are ks"),
        (lambda: evaluate(copula, str(tmp_path / "other.csv")), DataError, 'must have the column "sepal_length"'),
        (lambda: evaluate("copula", str(tmp_path / "other.csv")), UsageError, "at least 10 rows"),
        (lambda: evaluate(str(tmp_path / "none.csv"), "iris"), DataError, "is no file"),
        (lambda: compare(["a=copula", "copula"], "iris"), UsageError, "one by one"),
    ):
        with pytest.raises(error, match=text):
            call()


def test_train_of_a_family_on_a_table_runs_the_script_of_tables(tmp_path, monkeypatch):
    (tmp_path / "people.csv").write_text("a,b\n1,x\n2,y\n3,x\n")
    started = []
    monkeypatch.setattr("runpy.run_module", lambda name, **_: started.append((name, sys.argv[1:])))
    for family, flags in (
        ("vae", ("--train_data_dir", str(tmp_path / "people.csv"))),
        ("ddpm", ("--dataset_name=wine",)),
        ("vae", ("--dataset_name", "digits")),
    ):
        with pytest.raises(SystemExit):
            train(family, *flags)
    assert [name.rpartition(".")[2] for name, _ in started] == ["train_table", "train_table", "train_vae"]
    assert [words[:2] for _, words in started[:2]] == [["--family", "vae"], ["--family", "diffusion"]]
    assert _data_of(("--seed", "1", "--dataset-name", "x", "--train_data_dir=y")) == ["x", "y"]
