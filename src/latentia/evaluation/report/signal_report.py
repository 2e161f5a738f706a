"""The report of time series or sounds: every metric of generated ones, each beside that of held-out real ones."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from latentia.errors import UsageError, counted
from latentia.evaluation.metrics import Metric
from latentia.evaluation.report.report import Score


@dataclass(frozen=True)
class SignalReport:
    """Every metric of generated signals, each beside what held-out real ones get.

    Args:
        scores: by key of their metrics, those that apply.
        n, n_real: signals that were measured, and real ones.
        notes: what a reader should know.
        fingerprint: of the real signals.
        seed: of networks.
        extractor: what metrics see.
    """

    scores: dict[str, Score]
    n: int
    n_real: int
    notes: list[str]
    fingerprint: str
    seed: int
    extractor: str

    def __getitem__(self, key: str) -> Score:
        if key not in self.scores:
            raise UsageError(f'key must be one of {", ".join(self.scores)}; got "{key}".')
        return self.scores[key]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, with the keys that pages and tables of all reports read."""
        same = {"extractor_sha256": self.fingerprint, "class_counts": None, "real_class_counts": None}
        return {**asdict(self), **same}

    def for_card(self) -> list[dict[str, Any]]:
        """The metrics as `latentia.model_card` takes them."""
        return [
            {"type": key, "name": s.title, "value": s.value, "real": s.real, "n": self.n, "extractor": self.extractor}
            for key, s in self.scores.items()
        ]

    def text(self) -> str:
        """One line for the terminal: value, and in brackets what held-out real signals get."""
        parts = [f"{name} {s.value:.3g} (real {s.real:.3g})" for name, s in self.scores.items()]
        return f"n={self.n} | {' | '.join(parts)}"

    def table(self) -> str:
        """A table for the terminal."""
        rows = [("metric", "value", "real-data score", "better")]
        for s in self.scores.values():
            rows.append((s.title, f"{s.value:.4g}", f"{s.real:.4g}", {"real": "as real"}.get(s.better, s.better)))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        lines.insert(1, "─" * max(map(len, lines)))
        return "\n".join([*lines, f"n = {self.n}, {self.n_real} real ones", *(f"note: {note}" for note in self.notes)])


def score_signals(
    metrics: Mapping[str, Metric],
    made: Any,
    real: Any,
    *,
    n: int,
    n_held_out: int,
    n_real: int,
    extractor: str,
    seed: int = 0,
    fingerprint: str = "",
) -> SignalReport:
    """The value of each metric, and its real-data score.

    Args:
        metrics: those that apply, by key.
        made: a pair of generated signals and a reference, as metrics take it.
        real: the same of held-out real signals.
        n, n_held_out, n_real: signals measured, held out, and real ones in all.
        extractor: what metrics see, in words.
        seed, fingerprint: of the report.
    """
    scores = {}
    for key, metric in metrics.items():
        value, own = float(metric.value(made)), float(metric.value(real))  # type: ignore[arg-type] # of such pairs
        scores[key] = Score(metric.title, metric.better, value, None, None, own, own, own)
    notes = []
    if n != n_held_out:
        notes.append(f"the real-data score is of the {counted(n_held_out, 'signal')} held out, and the value of {n}")
    return SignalReport(scores, n, n_real, notes, fingerprint, seed, extractor)
