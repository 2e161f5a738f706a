"""Metrics of tables against closed forms and other implementations."""

import numpy as np
import pytest

from latentia.data.mixed import load_mixed_table
from latentia.data.table_columns import TableColumn
from latentia.errors import UsageError
from latentia.evaluation.report.table_report import score_table
from latentia.evaluation.table_metrics import (
    Rows,
    TablePair,
    closest_ratio,
    copies,
    correlation_difference,
    detection,
    ks_statistics,
    total_variations,
    usefulness,
)

RANDOM = np.random.default_rng(0)
NUMBERS = [TableColumn(name, "numeric") for name in "ab"]
CLASSES = TableColumn("c", "categorical", ("x", "y"))


def normal(n, rho=0.0, shift=0.0, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, 2))
    x[:, 1] = rho * x[:, 0] + np.sqrt(1 - rho**2) * x[:, 1]
    return Rows(NUMBERS, x + shift)


def pair(rows, train, held_out=None):
    return TablePair(rows, train, held_out or rows, rows)


def test_statistics_of_columns_have_their_closed_forms():
    """Of N(0, 1) and N(1, 1) the statistic is 2 Phi(1/2) - 1 = .3829."""
    found = ks_statistics(normal(20_000), normal(20_000, shift=1.0, seed=1))
    assert abs(found["a"] - 0.3829) < 0.015
    rows = [Rows([CLASSES], np.array([[0.0]] * a + [[1.0]] * b + [[np.nan]] * c)) for a, b, c in ((5, 3, 2), (2, 4, 4))]
    assert total_variations(*rows)["c"] == pytest.approx(0.3)


def test_the_correlation_difference_is_that_of_the_process():
    found = correlation_difference(normal(30_000, 0.9), normal(30_000, 0.2, seed=1))
    assert abs(found - 0.7) < 0.02
    both = [*NUMBERS, CLASSES]
    x = normal(20_000).values
    joined = [Rows(both, np.c_[x, (x[:, 0] > 0) ^ flip]) for flip in (False, True)]
    assert abs(correlation_difference(*joined) - 2 * np.sqrt(2 / np.pi)) < 0.02  # corr(z, z > 0) = sqrt(2 / pi)


def test_detection_is_chance_for_one_process():
    real = normal(1000, 0.8)
    for trees in (False, True):
        assert abs(detection(pair(normal(1000, 0.8, seed=1), real), trees) - 0.5) < 0.06
        assert detection(pair(normal(1000, shift=5.0, seed=1), real), trees) > 0.99
    apart = pair(normal(1000, 0.0, seed=1), real)  # equal margins: a linear classifier sees nothing
    assert detection(apart, False) < 0.6 < 0.65 < detection(apart, True)


def test_copies_are_seen_and_distances_are_relative():
    train, held_out = normal(2000), normal(500, seed=1)
    copied = Rows(NUMBERS, train.values[:300])
    assert copies(TablePair(copied, train, held_out, copied)) == 1
    assert closest_ratio(TablePair(copied, train, held_out, copied)) == 0
    fresh = normal(500, seed=2)
    assert copies(TablePair(fresh, train, held_out, fresh)) == 0
    assert abs(closest_ratio(TablePair(fresh, train, held_out, fresh)) - 1) < 0.2


def test_rows_of_the_process_are_useful_and_noise_is_not():
    def made(n, seed, noise=False):
        random = np.random.default_rng(seed)
        x = random.normal(size=(n, 2))
        y = random.uniform(size=n) < (0.5 if noise else 1.0) * (x[:, 0] > 0)
        return Rows([*NUMBERS, CLASSES], np.c_[x, random.uniform(size=n) < 0.5 if noise else y], "c")

    train, held_out = made(1000, 0), made(1000, 1)
    assert usefulness(TablePair(held_out, train, held_out, made(1000, 2))) > 0.97
    assert usefulness(TablePair(held_out, train, held_out, made(1000, 3, noise=True))) < 0.7


def test_a_report_has_real_data_scores():
    table = load_mixed_table("people", max_samples=1200)
    train, held_out = (Rows(part.columns, part.values, table.target) for part in table.parts())
    report = score_table(train, train, held_out)
    assert report.n == len(held_out) and report["copies"].value == 1 and report["copies"].real == 0
    assert report["closest"].real == 1 and report["train_on_synthetic"].value == report["train_on_synthetic"].real
    assert set(report.columns) == {*table.names} and "no guarantee of privacy" in " ".join(report.notes)
    assert report["ks"].value < 0.1 and "real-data score" in report.table() and "ks" in report.text()
    for options, text in (
        ({"metrics": ["kss"]}, 'Did you mean "ks"'),
        ({"n": 5000}, "n must be from 2 to 960"),
    ):
        with pytest.raises(UsageError, match=text):
            score_table(train, train, held_out, **options)
    without = Rows(table.columns, table.values)
    with pytest.raises(UsageError, match="needs target"):
        score_table(without, without, held_out, metrics=["train_on_synthetic"])
