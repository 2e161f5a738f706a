"""Time series: both layouts, windows, unequal lengths, scaling and its inverse, and what is refused by its place."""

import numpy as np
import pandas as pd
import pytest
import torch

from latentia import SeriesScaler
from latentia.data import ScaledSeries, load_series
from latentia.data.shipped_series import simulate_ar2, sines_ar2
from latentia.errors import DataError, UsageError


def long_table(**changes):
    """Two series, of four and three steps, of two channels."""
    table = {
        "series": ["b", "b", "b", "b", "a", "a", "a"],
        "time": [0, 1, 2, 3, 5, 6, 7],
        "u": [0.1, 0.2, 0.3, 0.4, 1.5, 1.25, 1.0],
        "v": [3, 1, 2, 0, 7, 9, 8],
        "label": ["x", "x", "x", "x", "y", "y", "y"],
    }
    return {key: value for key, value in {**table, **changes}.items() if value is not None}


def test_a_long_table_has_a_row_for_each_step(tmp_path):
    found = load_series(long_table())
    assert found.values.shape == (2, 2, 4) and found.lengths.tolist() == [4, 3] and found.channels == ("u", "v")
    assert found.values[1].tolist() == [[1.5, 1.25, 1.0, 0.0], [7, 9, 8, 0]] and found.label_names == ["x", "y"]
    assert found.labels.tolist() == [0, 1] and found.decimals == [2, 0]
    assert "2 series of 3 to 4 steps, channels u, v, read as a long table" in repr(found)
    mixed = pd.DataFrame(long_table()).iloc[[4, 0, 5, 1, 2, 6, 3]]  # series interleaved
    again = load_series(mixed)
    assert again.values[0].tolist() == found.values[1].tolist()
    for name, write in (("csv", "to_csv"), ("parquet", "to_parquet")):
        getattr(pd.DataFrame(long_table()), write)(tmp_path / f"s.{name}", index=False)
        read = load_series(tmp_path / f"s.{name}")
        assert np.array_equal(read.values, found.values) and read.label_names == found.label_names


def test_a_wide_table_has_a_row_for_each_series():
    found = load_series({"t0": [1.0, 2.0, 5.0], "t1": [2.0, 3.0, 4.0], "label": [7, 7, 9]})
    assert found.values[:, 0].tolist() == [[1, 2], [2, 3], [5, 4]] and found.label_names == ["7", "9"]
    assert "read as a wide table" in repr(found)


def test_what_is_written_is_read_again(tmp_path):
    found = load_series(long_table())
    found.frame().to_csv(tmp_path / "again.csv", index=False)
    again = load_series(tmp_path / "again.csv")
    assert np.array_equal(again.values, found.values) and again.labels.tolist() == [0, 1]


def test_one_long_series_is_cut_into_windows():
    found = load_series({"x": np.arange(23) % 5, "y": np.arange(23.0)}, window=5)
    assert found.values.shape == (4, 2, 5) and found.values[1, 1].tolist() == [5, 6, 7, 8, 9]
    assert "3 steps left out" in repr(found)
    assert len(load_series("sines_ar2", window=30, max_samples=7)) == 7
    with pytest.raises(DataError, match="no series of 40 steps; window must be at most 23"):
        load_series({"x": np.arange(23)}, window=40)


@pytest.mark.parametrize(
    ("changes", "options", "error", "text"),
    [
        ({"u": [0.1, None, 0.3, 0.4, 1.5, 1.25, 1.0]}, {}, DataError, 'column "u" has a missing value in row 1.*Fill'),
        ({"u": [0.1, np.inf, 0.3, 0.4, 1.5, 1.25, 1.0]}, {}, DataError, 'column "u" has a value in row 1.*not finite'),
        ({"u": ["1", "2", "3", "four", "5", "6", "7"]}, {}, DataError, 'column "u" has mixed types.*row 3 .*"four"'),
        ({"u": ["p", "q", "r", "s", "t", "u", "v"]}, {}, DataError, 'column "u" holds texts.*drop_columns'),
        ({"u": [2.5] * 7}, {}, DataError, r'column "u" is constant, 2\.5 in each step.*drop_columns'),
        ({"time": [0, 1, 2, 4, 5, 6, 7]}, {}, DataError, 'unequal time steps: row 3, series "b", comes 2'),
        ({"time": [0, 1, 1, 2, 5, 6, 7]}, {}, DataError, 'time in row 2, series "b", is not after.*Sort the rows'),
        ({"series": ["b"] * 6 + ["a"]}, {"time_column": "v"}, DataError, "is not after the one before"),
        ({"series": ["b"] * 6 + ["a"], "time": None, "label": None}, {}, DataError, "series 1 has one step"),
        ({"series": ["b"] * 3 + [None] + ["a"] * 3}, {}, DataError, 'column "series" has a missing value in row 3'),
        ({"label": ["x", "x", "y", "x", "y", "y", "y"]}, {}, DataError, 'two labels in the series "b".*row 2'),
        ({"series": None}, {}, DataError, "must say which series a row is of.*give window"),
        ({}, {"series_column": "serie"}, UsageError, 'series_column must name columns.*Did you mean "series"'),
        ({}, {"drop_columns": ["w"]}, UsageError, "drop_columns must name columns"),
        ({}, {"layout": "wide", "series_column": "series"}, UsageError, "series_column must be left out"),
        ({}, {"layout": "tall"}, UsageError, "layout must be one of"),
        ({}, {"window": 1}, UsageError, "window must be at least 2; got 1"),
    ],
)  # fmt: skip
def test_what_is_no_series_is_refused_by_its_place(changes, options, error, text):
    with pytest.raises(error, match=text):
        load_series(long_table(**changes), **options)


def test_dates_are_times():
    days = pd.date_range("2024-01-01", periods=4).append(pd.date_range("2024-03-01", periods=3))
    assert load_series(pd.DataFrame(long_table(time=days))).lengths.tolist() == [4, 3]
    with pytest.raises(DataError, match=r"row 3, series \"b\", comes 172800 s after .* most come 86400 s"):
        load_series(pd.DataFrame(long_table(time=days + pd.to_timedelta([0, 0, 0, 1, 1, 1, 1], unit="D"))))


def test_sources_that_are_none_are_refused(tmp_path):
    for source, error, text in (
        ("sines_ar", UsageError, 'Did you mean "sines_ar2"'),
        (tmp_path / "none.csv", DataError, "none.csv"),
        (3, UsageError, "must be a file, a DataFrame or a mapping"),
        ({"a": [1, 2], "b": [1]}, DataError, "unequal lengths"),
        ({"a": [], "b": []}, DataError, "holds no rows"),
        ({"a": [1.0, 2.0]}, DataError, "at least two columns of steps"),
    ):
        with pytest.raises(error, match=text):
            load_series(source)


def test_scaling_is_fitted_to_real_steps_and_inverted_exactly():
    found = load_series(long_table())
    scaler = SeriesScaler.fit(found.describe_channels(), found.values, found.lengths)
    x = scaler.encode(torch.from_numpy(found.values))
    known = x.transpose(1, 2)[torch.from_numpy(found.mask)]
    assert torch.allclose(known.mean(0), torch.zeros(2).double()) and torch.allclose(
        known.std(0, correction=0), torch.ones(2).double()
    )
    assert np.array_equal(scaler.decode(x).numpy(), found.values)
    noisy = found.values[:, :1] + np.pi  # more decimals than are counted: to the last bits
    free = SeriesScaler.fit([{"name": "u", "decimals": None}], noisy, found.lengths)
    assert torch.allclose(free.decode(free.encode(torch.from_numpy(noisy))), torch.from_numpy(noisy), rtol=1e-15)
    half = scaler.half()
    assert np.array_equal(half.decode(half.encode(torch.from_numpy(found.values))).numpy(), found.values)
    assert not scaler.equal_lengths
    drawn = scaler.sample_lengths(torch.linspace(0, 0.999, 1000))
    assert drawn.unique().tolist() == [3, 4] and (drawn == 3).sum() == 500
    with pytest.raises(DataError, match='channel "u" is constant in the series to train on'):
        SeriesScaler.fit(found.describe_channels(), np.ones_like(found.values), found.lengths)
    with pytest.raises(UsageError, match="channels must each have a name and decimals"):
        SeriesScaler([{"name": "u", "decimals": -1}])


def test_padding_is_masked_and_zero():
    found = load_series(long_table())
    data = ScaledSeries(found, SeriesScaler.fit(found.describe_channels(), found.values, found.lengths))
    batch = data.batch(0, 2)
    assert batch["step_mask"].sum(1).sort().values.tolist() == [3, 4]
    assert (batch["x"][~batch["step_mask"][:, None].expand(-1, 2, -1)] == 0).all()
    equal = load_series("sines_ar2", max_samples=20)
    scaler = SeriesScaler.fit(equal.describe_channels(), equal.values, equal.lengths)
    assert "step_mask" not in ScaledSeries(equal, scaler).batch(0, 2) and scaler.equal_lengths


def test_parts_are_disjoint_and_the_same_each_time():
    found = load_series("sines_ar2", max_samples=50)
    train, held_out = found.parts()
    assert (len(train), len(held_out)) == (40, 10) and np.array_equal(train.values, found.parts()[0].values)
    assert not {one.tobytes() for one in train.values} & {one.tobytes() for one in held_out.values}


def test_the_shipped_process_has_the_variance_of_its_closed_form():
    values, labels = sines_ar2(4000, 32, seed=1)
    assert values.shape == (4000, 1, 32) and np.bincount(labels).tolist() == [2000, 2000]
    assert abs(values[labels == 1].var() - 1) < 0.06
    assert abs(values[labels == 0].var() - (0.5 + 0.125 + 0.0025)) < 0.05
    assert np.array_equal(values, sines_ar2(4000, 32, seed=1)[0])
    long = simulate_ar2(np.array([0.6]), np.array([-0.5]), 200_000, np.random.default_rng(0))[0]
    assert abs(long.var() - 1) < 0.02 and abs(np.mean(long[1:] * long[:-1]) - 0.6 / 1.5) < 0.02  # rho_1 = a / (1 - b)
