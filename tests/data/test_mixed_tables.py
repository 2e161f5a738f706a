"""Tables of mixed kinds: kinds that are found, encodings that are inverted, and what is refused by name."""

import numpy as np
import pandas as pd
import pytest
import torch

from latentia import TableEncoder
from latentia.data.mixed import EncodedRows, MixedTable, load_mixed_table, rows_like
from latentia.data.shipped_tables import SHIPPED, people
from latentia.data.table_columns import TableColumn
from latentia.errors import DataError, UsageError


def mixed(rows: int = 200) -> pd.DataFrame:
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "price": np.round(random.lognormal(3, 1, rows), 2),
            "raw": random.normal(0, 1e-3, rows),
            "count": random.integers(-5, 1_000_000, rows),
            "gaps": np.where(random.uniform(size=rows) < 0.2, np.nan, random.integers(0, 9, rows)),
            "when": np.datetime64("1999-12-31") + random.integers(0, 9000, rows),
            "moment": np.datetime64("2020-01-01T00:00:00") + random.integers(0, 10**8, rows),
            "yes": random.uniform(size=rows) < 0.3,
            "flag": random.integers(0, 2, rows),
            "word": random.choice(["a", "b,c", 'd"', "ü"], rows),
            "hole": np.where(random.uniform(size=rows) < 0.3, None, random.choice(["x", "y"], rows)),
        }
    )
    return frame


KINDS = {
    "price": "numeric", "raw": "numeric", "count": "integer", "gaps": "integer", "when": "date", "moment": "date",
    "yes": "boolean", "flag": "categorical", "word": "categorical", "hole": "categorical",
}  # fmt: skip


@pytest.fixture(params=["pandas", "csv", "parquet", "mapping"])
def source(request, tmp_path):
    frame = mixed()
    if request.param == "csv":
        frame.to_csv(tmp_path / "t.csv", index=False)
    elif request.param == "parquet":
        frame.to_parquet(tmp_path / "t.parquet")
    files = {"csv": tmp_path / "t.csv", "parquet": tmp_path / "t.parquet"}
    return files.get(request.param, frame)


def test_kinds_are_found_and_values_come_back(source):
    table = load_mixed_table(source)
    assert {column.name: column.kind for column in table.columns} == KINDS
    assert [column.unit for column in table.columns][4:6] == ["day", "second"]
    assert [column.name for column in table.columns if column.missing] == ["gaps", "hole"]
    again, expected = table.frame(), mixed()
    for name in KINDS:
        a, b = again[name].astype(object), expected[name].astype(object)
        assert (a.isna() == b.isna()).all() and (a[~a.isna()] == b[~b.isna()]).all(), name


@pytest.mark.parametrize("layout", ["one_hot", "scores"])
def test_an_encoding_is_inverted_wherever_values_are_placed(layout):
    table = load_mixed_table(mixed())
    encoder = TableEncoder.fit(table.columns, table.values[:150], layout)  # the rest was not seen
    values = torch.from_numpy(table.values)
    u = torch.rand(values.shape, generator=torch.Generator().manual_seed(0)).double()
    for places in (None, u, torch.zeros_like(values), torch.ones_like(values)):
        rows = encoder.encode(values, places)
        assert rows.shape == (200, encoder.width) and rows.isfinite().all()
        found = encoder.decode(rows)
        exact = [c for c, column in enumerate(table.columns) if column.name != "raw"]
        assert torch.equal(found[:, exact].nan_to_num(-1e9), values[:, exact].nan_to_num(-1e9))
        torch.testing.assert_close(found[:, 1], values[:, 1], atol=1e-12, rtol=1e-9)  # a float of any digits
    single = encoder.decode(encoder.encode(values, u).float())[:, 6:]  # of networks: classes and truth values
    assert torch.equal(single.nan_to_num(-1), values[:, 6:].nan_to_num(-1))


def test_encoded_numbers_are_standard_normal():
    table = load_mixed_table("people", max_samples=6000)
    rows = EncodedRows(table, TableEncoder.fit(table.columns, table.values)).batch(0, 6000)["x"]
    numbers = rows[:, :6]
    assert numbers.mean(0).abs().max() < 0.05 and (numbers.std(0) - 1).abs().max() < 0.1


def test_a_saved_encoder_is_exact_in_every_type(tmp_path):
    table = load_mixed_table(mixed())
    encoder, values = TableEncoder.fit(table.columns, table.values), torch.from_numpy(table.values)
    encoder.save_pretrained(tmp_path)
    loaded = TableEncoder.from_pretrained(tmp_path)
    for other in (loaded, loaded.to(torch.bfloat16), loaded.half()):
        assert torch.equal(other.encode(values), encoder.encode(values))
    assert loaded(values).rows.dtype == torch.float16
    assert [TableColumn.of_dict(column) for column in loaded.config.columns] == list(table.columns)


def test_rows_do_not_depend_on_how_the_stream_is_cut():
    table = load_mixed_table(mixed())
    for by_category in (False, True):
        data = EncodedRows(table, TableEncoder.fit(table.columns, table.values), by_category)
        whole = data.batch(190, 460, seed=3)
        parts = [data.batch(a, b, seed=3) for a, b in ((190, 201), (201, 333), (333, 460))]
        assert all(torch.equal(torch.cat([part[key] for part in parts]), whole[key]) for key in whole)
        assert ("labels" in whole) == by_category
    assert not torch.equal(data.batch(0, 50, seed=4)["x"], data.batch(0, 50, seed=3)["x"])


def test_by_category_rare_ones_come_often_and_rows_have_them():
    table = load_mixed_table("people", max_samples=5000)
    encoder = TableEncoder.fit(table.columns, table.values)
    data = EncodedRows(table, encoder, by_category=True)
    batch = data.batch(0, 20_000)
    names, starts = encoder.conditions, torch.tensor([0, *encoder.counts]).cumsum(0)
    share = (batch["labels"] == names.index("region=islands")).float().mean()
    counts = np.unique(table.values[:, 0], return_counts=True)[1]
    expected = np.log1p(counts.min()) / np.log1p(counts).sum() / len(encoder.counts)
    assert abs(share - expected) < 0.005 and share > 5 * counts.min() / len(table) / len(encoder.counts)
    blocks = batch["x"][:, -sum(encoder.counts) :]
    assert len(names) == blocks.shape[1] == starts[-1]
    assert (blocks[torch.arange(20_000), batch["labels"]] == 1).all()


def test_parts_are_the_same_each_time_and_share_no_row():
    table = MixedTable((TableColumn("n", "integer", decimals=0),), np.arange(97.0)[:, None])
    (train, held_out), (again, _) = table.parts(0.2), table.parts(0.2)
    assert len(train) == 78 and np.array_equal(train.values, again.values)
    assert sorted([*train.values[:, 0], *held_out.values[:, 0]]) == list(range(97))


def test_the_table_of_people_follows_its_process():
    columns = people(30_000)
    assert len(SHIPPED["people"]()[0]["age"]) == 30_000 and all(len(v) == 30_000 for v in columns.values())
    assert np.array_equal(people(50, seed=1)["income"], people(50, seed=1)["income"])
    shares = [(columns["region"] == name).mean() for name in ("north", "south", "east", "west", "islands")]
    np.testing.assert_allclose(shares, [0.4, 0.3, 0.2, 0.09, 0.01], atol=0.01)
    years = (np.datetime64("2020-01-01") - columns["born"]).astype(int) / 365.25
    assert (years - columns["age"] >= -0.01).all() and (years - columns["age"] <= 1.01).all()
    expected = 1 / (1 + np.exp(-(1.2 * np.log(columns["income"] / 30_000) + (columns["age"] - 45) / 12)))
    married = columns["married"]
    assert abs(columns["owner"][~married].mean() - expected[~married].mean()) < 0.02


def frame(**columns):
    return pd.DataFrame({"other": range(6), **columns})


BAD = [
    (frame(x=["1", "2", "x3", "4", "5", "6"]), {}, r'column "x" has mixed types: 5 of 6 values are numbers, and "x3"'),
    (frame(x=[1, 2, "3", 4, 5, 6]), {}, "column of mixed types"),
    (frame(x=[7] * 6), {}, r'column "x" is constant, "7" in each row.*drop_columns'),
    (frame(x=["same"] * 6), {}, r'column "x" is constant, "same"'),
    (frame(x=[None] * 6), {}, r'column "x" has no values, all 6 rows are missing'),
    (frame(x=[3.5, np.nan, 3.5, np.nan, 3.5, 3.5]), {}, "holds one value and gaps"),
    (frame(x=[1.0, np.inf, 2, 3, 4, 5]), {}, r'column "x" has an infinite value in row 1'),
    (pd.DataFrame({"id": [f"n{i}" for i in range(2000)], "x": range(2000)}), {}, "2000 different values.*1000 categ"),
    (frame(x=[1.5, 2, 3, 4, 5, 6]), {"kinds": {"x": "integer"}}, "cannot be integer: row 0 is 1.5"),
    (frame(x=["a", "b"] * 3), {"kinds": {"x": "numeric"}}, r'column "x" cannot be numeric'),
    (frame(x=["a", "b"] * 3), {"kinds": {"x": "boolean"}}, "cannot be boolean"),
    (frame(x=range(6)).iloc[:0], {}, "holds no rows"),
    (pd.DataFrame({"x": range(5)}), {}, "at least two columns"),
    (frame(x=pd.to_datetime(["2020-01-01"] * 5 + ["2021-01-01"]).tz_localize("UTC")), {}, "times of the zone UTC"),
]


@pytest.mark.parametrize("source, options, text", BAD, ids=range(len(BAD)))
def test_bad_tables_are_refused_with_their_place(source, options, text):
    with pytest.raises(DataError, match=text):
        load_mixed_table(source, **options)


def test_names_that_are_no_columns_are_refused():
    for options, text in (
        ({"kinds": {"othr": "date"}}, 'kinds must name columns .*got "othr". Did you mean "other"'),
        ({"kinds": {"other": "intger"}}, 'got "intger" for "other". Did you mean "integer"'),
        ({"drop_columns": ["z"]}, "drop_columns must name columns"),
        ({"label_column": "z"}, "label_column must be one of"),
    ):
        with pytest.raises(UsageError, match=text):
            load_mixed_table(frame(x=range(6)), **options)
    with pytest.raises(UsageError, match=r'or one of iris.*Did you mean "iris"'):
        load_mixed_table("irys")


def test_what_was_not_there_in_fitting_is_refused():
    table = load_mixed_table(mixed())
    odd = mixed()
    odd.loc[3, "word"] = "new"
    with pytest.raises(DataError, match='column "word" has "new" in row 3, a category that was not there'):
        rows_like(table.columns, odd)
    with pytest.raises(DataError, match='must have the column "price"'):
        rows_like(table.columns, mixed().drop(columns="price"))
    values = torch.from_numpy(table.values.copy())
    values[5, 0] = float("nan")
    with pytest.raises(DataError, match='column "price" has a missing value in row 5, and none was missing'):
        TableEncoder.fit(table.columns, table.values).encode(values)
    with pytest.raises(DataError, match="fewer than one global batch of 300"):
        EncodedRows(table, TableEncoder.fit(table.columns, table.values)).require(300)
