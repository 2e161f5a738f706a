"""The report of a table: every metric of generated rows, each beside that of held-out real ones."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from latentia.errors import UsageError
from latentia.evaluation.report.report import Score
from latentia.evaluation.table_metrics import (
    PRIVACY,
    Rows,
    TablePair,
    check_table_metrics,
    ks_statistics,
    total_variations,
)


@dataclass(frozen=True)
class TableReport:
    """Every metric of generated rows, each beside what held-out real rows get.

    Args:
        scores: by key of `TABLE_METRICS`, those that apply.
        columns: of each column its Kolmogorov-Smirnov statistic or total variation, and that of held-out rows.
        n, n_real: rows that were measured, and real ones.
        notes: what a reader should know.
        fingerprint: of the real table.
        seed: of classifiers.
    """

    scores: dict[str, Score]
    columns: dict[str, tuple[float, float]]
    n: int
    n_real: int
    notes: list[str]
    fingerprint: str
    seed: int

    def __getitem__(self, key: str) -> Score:
        if key not in self.scores:
            raise UsageError(f'key must be one of {", ".join(self.scores)}; got "{key}".')
        return self.scores[key]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, with the keys that pages and tables of all reports read."""
        same = {"extractor": "columns as they are", "extractor_sha256": self.fingerprint}
        return {**asdict(self), **same, "class_counts": None, "real_class_counts": None}

    def for_card(self) -> list[dict[str, Any]]:
        """The metrics as `latentia.model_card` takes them."""
        return [
            {"type": key, "name": s.title, "value": s.value, "real": s.real, "n": self.n, "extractor": "columns"}
            for key, s in self.scores.items()
        ]

    def text(self) -> str:
        """One line for the terminal: value, and in brackets what held-out real rows get."""
        parts = [f"{name} {s.value:.3g} (real {s.real:.3g})" for name, s in self.scores.items()]
        return f"n={self.n} | {' | '.join(parts)}"

    def table(self) -> str:
        """A table for the terminal: the metrics, then each column."""
        rows = [("metric", "value", "real-data score", "better")]
        for s in self.scores.values():
            rows.append((s.title, f"{s.value:.4g}", f"{s.real:.4g}", {"real": "as real"}.get(s.better, s.better)))
        rows += [(f"  {name}", f"{value:.3g}", f"{real:.3g}", "lower") for name, (value, real) in self.columns.items()]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        lines.insert(1, "─" * max(map(len, lines)))
        return "\n".join([*lines, f"n = {self.n}, {self.n_real} real rows", *(f"note: {note}" for note in self.notes)])


def score_table(
    rows: Rows,
    train: Rows,
    held_out: Rows,
    *,
    n: int | None = None,
    metrics: Sequence[str] | None = None,
    seed: int = 0,
    fingerprint: str = "",
) -> TableReport:
    """Measure generated rows against real ones, each metric beside the score of held-out real rows.

    Args:
        rows: generated ones; all of them train classifiers of "train_on_synthetic", the first n are compared.
        train: real rows that the generator was trained on.
        held_out: real rows that it was not.
        n: default as many as are held out, so that value and real-data score are of as many rows.
        metrics: keys of `TABLE_METRICS`; default all that apply.
        seed: of classifiers and their folds.
        fingerprint: of the real table, for the report.

    Raises:
        UsageError: an unknown metric, or one that does not apply; fewer rows than n, or than 2.
    """
    chosen = check_table_metrics(metrics)
    n = min(len(held_out), len(rows)) if n is None else n
    if not 2 <= n <= len(rows):
        raise UsageError(f"n must be from 2 to {len(rows)}, the rows that there are; got {n}.")
    has = {
        "numbers": any(column.is_number for column in rows.columns),
        "categories": not all(column.is_number for column in rows.columns),
        "target": train.target is not None,
    }
    first = Rows(rows.columns, rows.values[:n], train.target)
    made = TablePair(first, train, held_out, Rows(rows.columns, rows.values, train.target), seed)
    real = TablePair(held_out, train, held_out, train, seed)
    scores = {}
    for key, metric in chosen.items():
        if lacking := [name for name in metric.needs if not has[name]]:
            if metrics is not None:
                raise UsageError(f'The metric "{key}" needs {lacking[0]}, and this table has none; leave it out.')
            continue
        value, own = (metric.value(pair) for pair in (made, real))  # type: ignore[arg-type] # of TablePairs
        scores[key] = Score(metric.title, metric.better, value, None, None, own, own, own)
    columns = {}
    for of in (ks_statistics, total_variations):
        own_columns = of(held_out, train)
        columns.update({name: (value, own_columns[name]) for name, value in of(first, train).items()})
    notes = [PRIVACY] if {"closest", "copies"} & scores.keys() else []
    if n != len(held_out):
        notes.insert(0, f"the real-data score is of the {len(held_out)} rows that are held out, and the value of {n}")
    return TableReport(scores, columns, n, len(train) + len(held_out), notes, fingerprint, seed)
