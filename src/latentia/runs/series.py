"""Runs on time series: flags of the data, the series to train on and those held out, figures and scores on the way."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from latentia.data.series import HELD_OUT, Series, load_series
from latentia.data.shipped_series import SHIPPED_SERIES
from latentia.errors import Count, Natural, Range, Size, UsageError
from latentia.evaluation.report.curves import draw_series
from latentia.evaluation.report.signal_report import SignalReport, score_signals
from latentia.evaluation.series_metrics import SeriesPair, SeriesSet, check_series_metrics
from latentia.runs.signals import FEWEST


@dataclass(frozen=True)
class SeriesArguments:
    """The time series."""

    identifies: ClassVar[bool] = False

    dataset_name: str | None = None
    """Series that come with the package: sines_ar2."""
    train_data_dir: str | None = None
    """A .csv, .tsv or .parquet file, long (a row for each step) or wide (a row for each series)."""
    layout: Literal["long", "wide"] | None = None
    """Layout of the table; not given: long if it has a column series or time, or one of these flags is given."""
    series_column: str | None = None
    """Of a long table: column that says which series a row is of; not given: series."""
    time_column: str | None = None
    """Of a long table: column of times, equally far apart; not given: time, if there is one."""
    label_column: str | None = None
    """Column of the class of each series; not given: label, if there is one."""
    drop_columns: tuple[str, ...] = ()
    """Columns that are left out."""
    window: Annotated[int, Range(2, most=2**20)] | None = None
    """Cut series into pieces of so many steps; not given: they stay as long as they are."""
    held_out_share: Annotated[float, Range(0, 1, closed="left")] = HELD_OUT
    """Share of the series that nothing is trained on, for scores."""
    max_train_samples: Count | None = None
    """Use at most so many series, spread evenly."""


@dataclass(frozen=True)
class SeriesScoreArguments:
    """Figures and scores on the way."""

    identifies: ClassVar[bool] = False

    validation_steps: Natural = 0
    """Steps between figures; 0: only at the end."""
    eval_steps: Natural = 0
    """Steps between scores; 0: only at the end."""
    eval_num_samples: Natural = 400
    """Series to sample for a score; 0: no score."""
    eval_metrics: tuple[str, ...] = ("autocorrelation", "spectrum", "discriminative", "predictive")
    """What a score holds, as `latentia evaluate` lists it."""


@dataclass(frozen=True)
class SeriesEvaluationArguments(SeriesScoreArguments):
    """Figures and scores on the way, of samples by diffusion."""

    num_inference_steps: Size | None = None
    """Network evaluations per sample; not given: 25, and 4 of a network that was trained for few steps."""


def open_series(args: SeriesArguments) -> Series:
    """The series that the flags name.

    Raises:
        UsageError: neither or both of dataset_name and train_data_dir, or flags of tables for a shipped set.
    """
    if (args.dataset_name is None) == (args.train_data_dir is None):
        given = "neither" if args.dataset_name is None else "both"
        names = ", ".join(SHIPPED_SERIES)
        raise UsageError(f"Give dataset_name ({names}) or train_data_dir (a CSV or parquet file); got {given}.")
    if args.dataset_name is not None and args.dataset_name not in SHIPPED_SERIES:
        raise UsageError(
            f"dataset_name must be one of {', '.join(SHIPPED_SERIES)} for time series; got {args.dataset_name!r}. A "
            "file of your own: train_data_dir."
        )
    if args.dataset_name is not None:
        for name in ("layout", "series_column", "time_column", "label_column", "drop_columns"):
            if getattr(args, name):
                raise UsageError(f"{name} must be left out: it is of a file, and {args.dataset_name} is none.")
    return load_series(
        args.dataset_name or Path(args.train_data_dir or ""),
        layout=args.layout,
        series_column=args.series_column,
        time_column=args.time_column,
        label_column=args.label_column,
        drop_columns=args.drop_columns,
        window=args.window,
        max_samples=args.max_train_samples,
    )


def set_of(series: Series) -> SeriesSet:
    """Series as metrics take them."""
    return SeriesSet(series.values, series.lengths)


def score_series(
    made: Series,
    train: Series,
    held_out: Series,
    *,
    n: int | None = None,
    metrics: Sequence[str] | None = None,
    seed: int = 0,
    fingerprint: str = "",
) -> SignalReport:
    """Measure generated series against those trained on, each metric beside the score of held-out ones.

    Args:
        made: generated series; all of them train the predictor of "predictive", the first n are compared.
        train, held_out: real series that were trained on, and that were not.
        n: default as many as are held out, so that value and real-data score are of as many series.
        metrics: keys of `SERIES_METRICS`; default all.
        seed: of networks.
        fingerprint: of the real series, for the report.

    Raises:
        UsageError: an unknown metric, more than there are, or fewer than 12 series in a part.
    """
    chosen = check_series_metrics(metrics)
    n = min(len(made), len(held_out)) if n is None else n
    if not FEWEST <= n <= len(made):
        raise UsageError(f"n must be from {FEWEST} to {len(made)}, the series that there are; got {n}.")
    if min(len(train), len(held_out)) < FEWEST:
        raise UsageError(
            f"held_out_share must leave at least {FEWEST} series in each part; {len(train)} are trained on and "
            f"{len(held_out)} are held out."
        )
    first, known, unseen, many = (set_of(side) for side in (made.take(slice(n)), train, held_out, made))
    return score_signals(
        chosen,
        SeriesPair(first, known, unseen, many, seed),
        SeriesPair(unseen, known, unseen, known, seed),
        n=n,
        n_held_out=len(held_out),
        n_real=len(train) + len(held_out),
        extractor="values as they are",
        seed=seed,
        fingerprint=fingerprint,
    )


def series_figure(real: Series, made: Series) -> Any:
    """A figure of generated series beside real ones."""
    return draw_series({"real": set_of(real), "generated": set_of(made)}, real.channels)
