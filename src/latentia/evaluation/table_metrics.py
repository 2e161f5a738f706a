"""Metrics of tables: each of generated rows and of held-out real ones against the rows that were trained on."""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from latentia.errors import UsageError, did_you_mean
from latentia.evaluation.metrics import Metric

Columns = Sequence[Any]  # of `name`, `kind`, `categories`, `is_number`
_MOST = 5000  # rows of a side that classifiers and distances take
_FOLDS = 5


class Rows:
    """Rows of a table as metrics take them.

    Args:
        columns: descriptions with `name`, `categories` and `is_number`.
        values: (N, C), float64: numbers, indices of categories, NaN where a value is missing.
        target: the column to predict; None for none.

    Example:
        >>> from types import SimpleNamespace
        >>> rows = Rows([SimpleNamespace(name="x", categories=(), is_number=True)], np.array([[1.0], [np.nan]]))
        >>> rows.table([0.0], [1.0]).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    def __init__(self, columns: Columns, values: np.ndarray, target: str | None = None):
        self.columns, self.values, self.target = columns, values, target

    def __len__(self) -> int:
        return len(self.values)

    def take(self, most: int) -> "Rows":
        """At most so many rows, spread evenly."""
        if len(self) <= most:
            return self
        return Rows(self.columns, self.values[np.linspace(0, len(self) - 1, most).round().astype(int)], self.target)

    def centres(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each column of numbers, in order; 0 and 1 of the others."""
        means, scales = [], []
        for c, column in enumerate(self.columns):
            known = self.values[~np.isnan(self.values[:, c]), c]
            usable = column.is_number and len(known) > 1 and known.std() > 0
            means.append(float(known.mean()) if usable else 0.0)
            scales.append(float(known.std()) if usable else 1.0)
        return means, scales

    def table(self, means: Sequence[float], scales: Sequence[float], without: str | None = None) -> np.ndarray:
        """Standardised numbers and indicators of categories and of missing values, float64 (N, F).

        Args:
            means, scales: of each column, as `centres` gives them.
            without: a column that is left out.
        """
        parts = []
        for c, column in enumerate(self.columns):
            if column.name == without:
                continue
            numbers, gaps = self.values[:, c], np.isnan(self.values[:, c])
            if column.is_number:
                parts += [np.where(gaps, 0.0, (numbers - means[c]) / scales[c])]
            else:
                parts += [(numbers == k).astype(float) for k in range(len(column.categories))]
            parts.append(gaps.astype(float))
        return np.stack(parts, 1)

    def variables(self) -> list[int]:
        """The column that each value of `table` is of."""
        return [
            c
            for c, column in enumerate(self.columns)
            for _ in range(1 + (1 if column.is_number else len(column.categories)))
        ]


class TablePair:
    """Rows and what they are compared with.

    Args:
        rows: n generated rows, or as many held-out ones for a real-data score.
        train: the rows that were trained on.
        held_out: rows that were not.
        many: more generated rows, for classifiers that are trained on them; those trained on for the real-data score.
        seed: of classifiers and their folds.
    """

    def __init__(self, rows: Rows, train: Rows, held_out: Rows, many: Rows, seed: int = 0):
        self.rows, self.train, self.held_out, self.many, self.seed = rows, train, held_out, many, seed

    @cached_property
    def closest(self) -> np.ndarray:
        """Distance of each row to the closest one that was trained on."""
        return _closest(self.rows.take(_MOST), self.train)


def ks_statistics(rows: Rows, reference: Rows) -> dict[str, float]:
    """Kolmogorov-Smirnov statistic of each column of numbers, in [0, 1]; missing values are left out.

    Example:
        >>> from types import SimpleNamespace
        >>> column = SimpleNamespace(name="x", categories=(), is_number=True)
        >>> ks_statistics(Rows([column], np.array([[0.0], [1.0]])), Rows([column], np.array([[1.0], [2.0]])))
        {'x': 0.5}
    """
    from scipy.stats import ks_2samp

    found = {}
    for c, column in enumerate(rows.columns):
        if column.is_number:
            a, b = (side.values[~np.isnan(side.values[:, c]), c] for side in (rows, reference))
            found[column.name] = float(ks_2samp(a, b).statistic) if len(a) and len(b) else 1.0
    return found


def total_variations(rows: Rows, reference: Rows) -> dict[str, float]:
    """Total variation distance of each column of categories, in [0, 1]; a missing value is a category.

    Example:
        >>> from types import SimpleNamespace
        >>> column = SimpleNamespace(name="x", categories=("a", "b"), is_number=False)
        >>> total_variations(Rows([column], np.array([[0.0], [1.0]])), Rows([column], np.array([[1.0], [1.0]])))
        {'x': 0.5}
    """
    found = {}
    for c, column in enumerate(rows.columns):
        if not column.is_number:
            count = len(column.categories)
            shares = []
            for side in (rows, reference):
                indices = np.where(np.isnan(side.values[:, c]), count, side.values[:, c]).astype(int)
                shares.append(np.bincount(indices, minlength=count + 1) / len(indices))
            found[column.name] = float(np.abs(shares[0] - shares[1]).sum() / 2)
    return found


def correlation_difference(rows: Rows, reference: Rows) -> float:
    """The largest absolute difference of two correlations, of numbers and of indicators of categories, (0, 2)."""
    means, scales = reference.centres()
    tables = [side.table(means, scales) for side in (rows, reference)]
    of = np.array(reference.variables())
    kept = np.minimum(*(table.std(0) for table in tables)) > 1e-9  # an indicator that is constant has no correlation
    if kept.sum() < 2:
        return 0.0
    one, other = (np.corrcoef(table[:, kept], rowvar=False) for table in tables)
    apart = of[kept][:, None] != of[kept][None]
    return float(np.abs(one - other)[apart].max()) if apart.any() else 0.0


def detection(pair: TablePair, trees: bool) -> float:
    """Area under the ROC curve of a classifier that tells the rows from real ones, in cross-validation; .5 is chance.

    Args:
        pair: the rows and those trained on, of which as many are taken.
        trees: boosted trees in place of logistic regression.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    made = pair.rows.take(_MOST)
    real = pair.train.take(len(made))
    count = min(len(made), len(real))
    if count < _FOLDS:
        return math.nan
    made, real = made.take(count), real.take(count)
    labels = np.repeat([0, 1], count)
    if trees:
        table = np.concatenate([real.values, made.values])
        model: Any = HistGradientBoostingClassifier(max_iter=100, random_state=pair.seed)
    else:
        means, scales = real.centres()
        table = np.concatenate([side.table(means, scales) for side in (real, made)])
        model = LogisticRegression(max_iter=500)
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=pair.seed)
    scores = cross_val_predict(model, table, labels, cv=folds, method="predict_proba")[:, 1]
    return float(roc_auc_score(labels, scores))


def usefulness(pair: TablePair) -> float:
    """Accuracy on held-out rows of boosted trees trained on generated rows to predict the target; R^2 of a number."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    many = pair.many.take(4 * _MOST)
    names = [column.name for column in many.columns]
    c = names.index(many.target or "")
    others = [i for i in range(len(names)) if i != c]
    sides = []
    for rows in (many, pair.held_out):
        values = rows.values[~np.isnan(rows.values[:, c])]
        sides.append((values[:, others], values[:, c]))
    (x, y), (x_test, y_test) = sides
    if not len(x_test) or not len(x):
        return math.nan
    small = {"min_samples_leaf": 5} if len(x) < 1000 else {}
    if many.columns[c].is_number:
        model: Any = HistGradientBoostingRegressor(random_state=pair.seed, **small)
        return float(model.fit(x, y).score(x_test, y_test))
    if len(np.unique(y)) == 1:  # a classifier of one class predicts it always
        return float((y_test == y[0]).mean())
    model = HistGradientBoostingClassifier(random_state=pair.seed, **small)
    return float(model.fit(x, y).score(x_test, y_test))


def closest_ratio(pair: TablePair) -> float:
    """Median distance to the closest row trained on, divided by that of held-out rows: 1 as real, below 1 is nearer."""
    held_out = float(np.median(_closest(pair.held_out.take(_MOST), pair.train)))
    found = float(np.median(pair.closest))
    return found / held_out if held_out > 0 else (1.0 if found == 0 else math.inf)


def copies(pair: TablePair) -> float:
    """Share of the rows that equal one that was trained on."""
    return float((pair.closest < 1e-9).mean())


def _closest(rows: Rows, reference: Rows) -> np.ndarray:
    """Euclidean distance of standardised numbers and indicators to the closest row of a reference."""
    import torch

    means, scales = reference.centres()
    x, y = (torch.from_numpy(side.table(means, scales)) for side in (rows, reference))
    # Without the trick of a matrix product, whose rounding hides copies.
    parts = [torch.cdist(part, y, compute_mode="donot_use_mm_for_euclid_dist").amin(1) for part in x.split(200)]
    return torch.cat(parts).numpy()


def _mean(values: dict[str, float]) -> float:
    return sum(values.values()) / len(values)


def _metric(title: str, better: Any, value: Any, group: str, meaning: str, **more: Any) -> Metric:
    """A `Metric` whose value is a function of a `TablePair`."""
    return Metric(title, better, value, group=group, meaning=meaning, **more)


TABLE_METRICS: dict[str, Metric] = {
    "ks": _metric(
        "Kolmogorov-Smirnov, mean",
        "lower",
        lambda pair: _mean(ks_statistics(pair.rows, pair.train)),
        "Columns",
        "Largest difference of the distribution functions of a column of numbers, averaged over columns.",
        needs=("numbers",),
        headline=True,
    ),
    "total_variation": _metric(
        "Total variation, mean",
        "lower",
        lambda pair: _mean(total_variations(pair.rows, pair.train)),
        "Columns",
        "Half the sum of the differences of the shares of all categories of a column, averaged over columns.",
        needs=("categories",),
        headline=True,
    ),
    "correlation": _metric(
        "Correlation difference, largest",
        "lower",
        lambda pair: correlation_difference(pair.rows, pair.train),
        "Pairs of columns",
        "Largest difference of a correlation, over all pairs of numbers and indicators of categories.",
        headline=True,
    ),
    "train_on_synthetic": _metric(
        "Trained on the rows, tested on real ones",
        "higher",
        usefulness,
        "Use",
        "Accuracy on held-out real rows of boosted trees that predict the target; R^2 if it is a number.",
        needs=("target",),
        headline=True,
    ),
    "detection": _metric(
        "Detection by boosted trees, AUC",
        "lower",
        lambda pair: detection(pair, trees=True),
        "Detection",
        "How well boosted trees tell the rows from real ones: .5 is chance, 1 is always.",
        headline=True,
    ),
    "detection_logistic": _metric(
        "Detection by logistic regression, AUC",
        "lower",
        lambda pair: detection(pair, trees=False),
        "Detection",
        "How well a logistic regression tells the rows from real ones: .5 is chance, 1 is always.",
    ),
    "closest": _metric(
        "Distance to the closest record, ratio",
        "real",
        closest_ratio,
        "Copies",
        "Median distance to the closest row trained on, divided by that of held-out rows; below 1 are near copies.",
    ),
    "copies": _metric(
        "Copies of rows trained on",
        "real",
        copies,
        "Copies",
        "Share of the rows that equal one that was trained on.",
    ),
}
PRIVACY = (
    "a ratio near 1 and few copies say that rows are no nearer to those trained on than other real rows are; they are "
    "no guarantee of privacy, which needs differential privacy or an attack that was tried"
)


def check_table_metrics(metrics: Sequence[str] | None) -> dict[str, Metric]:
    """The metrics of these keys; all of None.

    Raises:
        UsageError: an unknown key.

    Example:
        >>> [*check_table_metrics(["ks"])]
        ['ks']
    """
    for key in metrics or ():
        if key not in TABLE_METRICS:
            near = did_you_mean(key, TABLE_METRICS)
            raise UsageError(f'metrics of tables are {", ".join(TABLE_METRICS)}; got "{key}".{near}')
    return {key: TABLE_METRICS[key] for key in metrics or TABLE_METRICS}
