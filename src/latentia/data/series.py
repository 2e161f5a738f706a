"""Time series: read from long or wide tables, split into parts, and given as scaled sequences to train on."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from latentia.data.base import annotate, description, require
from latentia.data.order import check_positions, indices
from latentia.data.series_columns import DROP, check_times, decimals_of, first_null, labels_of, numbers_of
from latentia.data.shipped_series import SHIPPED_SERIES
from latentia.data.tables import SUFFIXES, read_columns
from latentia.errors import DataError, UsageError, check_choice, check_range, counted, did_you_mean
from latentia.files.cache import key_of
from latentia.files.reading import user_path
from latentia.functional.masks import length_mask
from latentia.functional.settings import check_types
from latentia.rng import seed_from

LAYOUTS = ("long", "wide")
HELD_OUT = 0.2  # share of the series that nothing is trained on


@dataclass(frozen=True, eq=False)
class Series:
    """Time series of several channels, of equal or unequal lengths.

    Args:
        values: float64 (N, C, L), 0 beyond the end of a series.
        lengths: steps of each series, int64 (N,), from 2 to L.
        channels: names of the C channels.
        labels: class of each series, int64 (N,); `None` (default): none.
        label_names: of the classes.
        source: where the series come from, for the model card.

    Example:
        >>> load_series("sines_ar2")
        Series(sines_ar2: 2000 series of 64 steps, channels value)
    """

    values: np.ndarray
    lengths: np.ndarray
    channels: tuple[str, ...]
    labels: np.ndarray | None = None
    label_names: list[str] | None = None
    source: dict[str, Any] = field(default_factory=lambda: {"kind": "series", "name": "series"})

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        low, high = int(self.lengths.min()), int(self.lengths.max())
        steps = f"{low}" if low == high else f"{low} to {high}"
        layout = f", read as a {self.source['layout']} table" if "layout" in self.source else ""
        left = f", {counted(self.source['left_out'], 'step')} left out" if self.source.get("left_out") else ""
        named = ", ".join(self.channels)
        return f"Series({self.source['name']}: {len(self)} series of {steps} steps, channels {named}{layout}{left})"

    @property
    def decimals(self) -> list[int | None]:
        """Digits after the point of all values of each channel; None for more than six."""
        return [decimals_of(self.values[:, c]) for c in range(len(self.channels))]

    @property
    def mask(self) -> np.ndarray:
        """True for steps that are there, bool (N, L)."""
        return np.arange(self.values.shape[2]) < self.lengths[:, None]

    def describe_channels(self) -> list[dict[str, Any]]:
        """The channels as `SeriesScaler` takes them."""
        return [{"name": name, "decimals": digits} for name, digits in zip(self.channels, self.decimals)]

    def take(self, rows: np.ndarray | slice) -> "Series":
        """The series of these indices."""
        labels = None if self.labels is None else self.labels[rows]
        return Series(self.values[rows], self.lengths[rows], self.channels, labels, self.label_names, self.source)

    def parts(self, held_out: float = HELD_OUT) -> tuple["Series", "Series"]:
        """The series to train on and those held out, the same whenever so many series are split.

        Args:
            held_out: share of the series, in [0, 1); at least one stays to train on. Default .2.
        """
        check_range("held_out", held_out, 0, 1, closed="left")
        order = np.random.default_rng(seed_from(0, "held out", len(self))).permutation(len(self))
        most = max(1, round(len(self) * (1 - held_out)))
        return self.take(np.sort(order[:most])), self.take(np.sort(order[most:]))

    def frame(self) -> Any:
        """A long table as a pandas DataFrame: columns series, time, each channel, and label if there are some."""
        import pandas as pd

        there = self.mask
        steps = np.broadcast_to(np.arange(there.shape[1]), there.shape)[there]
        columns: dict[str, Any] = {"series": np.repeat(np.arange(len(self)), self.lengths), "time": steps}
        columns |= {name: self.values[:, c][there] for c, name in enumerate(self.channels)}
        if self.labels is not None and self.label_names is not None:
            columns["label"] = np.repeat(np.array(self.label_names)[self.labels], self.lengths)
        return pd.DataFrame(columns)


@check_types
def load_series(
    source: Any,
    *,
    layout: str | None = None,
    series_column: str | None = None,
    time_column: str | None = None,
    label_column: str | None = None,
    drop_columns: Sequence[str] = (),
    window: int | None = None,
    max_samples: int | None = None,
) -> Series:
    """Read time series from a table, or those that come with the package.

    A long table has a row for each step: a column that says which series it is of, one of times, and the channels. A
    wide table has a row for each series of one channel, whose other columns are its steps.

    Args:
        source: a .csv, .tsv or .parquet file; a pandas DataFrame or a mapping of columns to arrays; or "sines_ar2", see
            `latentia.data.shipped_series`.
        layout: "long" or "wide"; `None` (default): "long" if a series_column, time_column or window is given, or there
            is a column "series" or "time", else "wide".
        series_column: of a long table, which series a row is of; `None` (default): "series" if there is such a column,
            else all rows are one series.
        time_column: of a long table: numbers or dates at equal distances, ascending within each series; `None`
            (default): "time" if there is such a column, else rows are in order and equally far apart.
        label_column: class of each series; `None` (default): "label" if there is such a column. "" for none.
        drop_columns: columns that are left out. Default none.
        window: cut each series into pieces of so many steps, one after the other; what is left at its end is left out.
            `None` (default): series stay as long as they are.
        max_samples: use at most so many series, spread evenly; `None` (default): all.

    Raises:
        UsageError: another source or layout, names that are no columns, or arguments of long tables for a wide one.
        DataError: a column of mixed types or of texts, a constant one, a missing value, times that are not ascending or
            not equally far apart, a series of two labels or of one step. The message says where and how to go on.

    Example:
        >>> table = {"series": [0, 0, 0, 1, 1], "time": [0, 1, 2, 0, 1], "x": [1.0, 2.0, 3.0, 5.0, 4.0]}
        >>> load_series(table).lengths.tolist()
        [3, 2]
    """
    if layout is not None:
        check_choice("layout", layout, LAYOUTS)
    for name, value in (("window", window), ("max_samples", max_samples)):
        if value is not None:
            check_range(name, value, 2 if name == "window" else 1, integer=True)
    if isinstance(source, str) and source in SHIPPED_SERIES:
        values, labels, names = SHIPPED_SERIES[source]()
        lengths = np.full(len(values), values.shape[2])
        found = Series(values, lengths, ("value",), labels, names, {"kind": "series", "name": source})
    else:
        table, name = _opened(source)
        if not len(table):
            raise DataError(f"{name} holds no rows.")
        given = {"series_column": series_column, "time_column": time_column, "label_column": label_column}
        _check_names(table, name, {**{key: [one] for key, one in given.items() if one}, "drop_columns": drop_columns})
        table = table.drop_columns([column for column in table.column_names if column in drop_columns])
        columns = table.column_names
        if layout is None:
            long = series_column or time_column or window or {"series", "time"} & {*columns}
            layout = "long" if long else "wide"
        label = ("label" if "label" in columns else None) if label_column is None else label_column or None
        if layout == "wide":
            for argument, one in (("series_column", series_column), ("time_column", time_column)):
                if one:
                    raise UsageError(f"{argument} must be left out with layout wide, whose rows are series; got {one}.")
            found = _wide(table, name, label)
        else:
            series = series_column or ("series" if "series" in columns else None)
            time = time_column or ("time" if "time" in columns else None)
            found = _long(table, name, series, time, label, window)
    found = found if window is None else _windows(found, window)
    _check(found)
    if max_samples is not None and max_samples < len(found):
        found = found.take(np.linspace(0, len(found) - 1, max_samples).round().astype(np.int64))
    return found


def _opened(source: Any) -> tuple[pa.Table, str]:
    """The columns of a source, and its name."""
    try:
        if hasattr(source, "columns") and hasattr(source, "iloc"):  # a DataFrame, of pandas, not imported for it
            names = [str(column) for column in source.columns]
            return pa.Table.from_pandas(source.set_axis(names, axis=1), preserve_index=False), "DataFrame"
        if isinstance(source, Mapping):
            return pa.table({str(k): pa.array(values, from_pandas=True) for k, values in source.items()}), "rows"
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"the source has a column of mixed types, or columns of unequal lengths: {error}") from error
    if not isinstance(source, str | Path):
        raise UsageError(f"series must be a file, a DataFrame or a mapping of columns; got {type(source).__name__}.")
    path = user_path(source)
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"series must be a file of {', '.join(SUFFIXES)}, or one of {', '.join(SHIPPED_SERIES)}; got {source}."
            f"{did_you_mean(str(source), SHIPPED_SERIES)}"
        )
    return read_columns(path, every=True), path.name


def _check_names(table: pa.Table, name: str, given: Mapping[str, Sequence[str]]) -> None:
    for argument, columns in given.items():
        for column in columns:
            if column not in table.column_names:
                near = did_you_mean(column, table.column_names)
                shown = str(table.column_names[:20])
                raise UsageError(f'{argument} must name columns of {name}: {shown}; got "{column}".{near}')


def _wide(table: pa.Table, name: str, label: str | None) -> Series:
    """A series for each row, of one channel; the columns are its steps, in order."""
    columns = [column for column in table.column_names if column != label]
    if len(columns) < 2:
        raise DataError(f"{name} must have at least two columns of steps beside the label; it has {columns}.")
    values = np.stack([numbers_of(table[column], f'{name}: column "{column}"') for column in columns], 1)[:, None]
    labels, names = (None, None) if label is None else labels_of(table[label], f'{name}: column "{label}"')
    about = {"kind": "series", "name": name, "layout": "wide"}
    return Series(values, np.full(len(values), len(columns)), ("value",), labels, names, about)


def _long(
    table: pa.Table, name: str, series: str | None, time: str | None, label: str | None, window: int | None
) -> Series:
    """A series for each value of the column `series`, in the order in which they appear."""
    channels = [column for column in table.column_names if column not in (series, time, label)]
    if not channels:
        raise DataError(f"{name} must have a column of values beside {[c for c in (series, time, label) if c]}.")
    if series is None and window is None:
        raise DataError(
            f'{name} must say which series a row is of, in a column "series" or one that series_column names. To cut '
            "one long series into pieces, give window, their steps."
        )
    numbers = [numbers_of(table[column], f'{name}: column "{column}"') for column in channels]
    groups, order = np.zeros(len(table), dtype=np.int64), [""]
    if series is not None:
        known, place = table[series].combine_chunks().dictionary_encode(), f'{name}: column "{series}"'
        if known.null_count:
            raise DataError(
                f"{place} has a missing value in row {first_null(table[series])}; fill it, or drop the row."
            )
        groups, order = known.indices.to_numpy(), [str(one) for one in known.dictionary.to_pylist()]
    rows = np.argsort(groups, kind="stable")
    counts = np.bincount(groups, minlength=len(order))
    starts = np.cumsum(counts) - counts
    if time is not None:
        check_times(table[time], rows, groups, order, f'{name}: column "{time}"', series)
    steps = np.arange(len(rows)) - np.repeat(starts, counts)
    values = np.zeros((len(order), len(channels), int(counts.max())))
    for c, column in enumerate(numbers):
        values[groups[rows], c, steps] = column[rows]
    labels = names = None
    if label is not None:
        place = f'{name}: column "{label}"'
        of_rows, names = labels_of(table[label], place)
        labels = of_rows[rows[starts]]
        odd = np.flatnonzero(of_rows[rows] != labels[groups[rows]])
        if len(odd):
            row = int(rows[odd[0]])
            raise DataError(
                f'{place} has two labels in the series "{order[groups[row]]}", the second in row {row}. A series '
                'has one class; name another label_column, or give label_column="" for none.'
            )
    about = {"kind": "series", "name": name, "layout": "long"}
    return Series(values, counts.astype(np.int64), tuple(channels), labels, names, about)


def _windows(found: Series, window: int) -> Series:
    """Each series cut into pieces of `window` steps."""
    pieces = found.lengths // window
    if not pieces.any():
        longest = int(found.lengths.max())
        raise DataError(f"{found.source['name']} has no series of {window} steps; window must be at most {longest}.")
    rows = np.repeat(np.arange(len(found)), pieces)
    begins = np.concatenate([np.arange(count) for count in pieces]) * window
    values = np.stack([found.values[row, :, begin : begin + window] for row, begin in zip(rows, begins)])
    labels = None if found.labels is None else found.labels[rows]
    about = {**found.source, "left_out": int((found.lengths - pieces * window).sum())}
    return Series(values, np.full(len(values), window), found.channels, labels, found.label_names, about)


def _check(found: Series) -> None:
    """DataError for a constant channel or a series of one step."""
    name = found.source["name"]
    if found.lengths.min() < 2:
        where = int(np.argmin(found.lengths))
        raise DataError(f"{name}: series {where} has one step; a series must have two at least. Leave it out.")
    for c, channel in enumerate(found.channels):
        known = found.values[:, c][found.mask]
        if known.min() == known.max():
            raise DataError(
                f'{name}: column "{channel}" is constant, {known[0]:g} in each step, so there is nothing to learn; '
                f"{DROP}."
            )


class ScaledSeries:
    """A `Dataset` of time series as scaled sequences.

    Args:
        series: to train on.
        scaler: a `SeriesScaler` of their channels.

    Example:
        >>> from latentia import SeriesScaler
        >>> series = load_series("sines_ar2", max_samples=20)
        >>> scaler = SeriesScaler.fit(series.describe_channels(), series.values, series.lengths)
        >>> ScaledSeries(series, scaler).batch(0, 8)["x"].shape
        torch.Size([8, 1, 64])
    """

    modality = "sequence"
    endless = False
    captions = None
    has_captions = False

    def __init__(self, series: Series, scaler: Any):
        self.series, self.scaler = series, scaler
        self.shape: tuple[int, ...] = series.values.shape[1:]
        there = torch.from_numpy(series.mask)
        self.mask = None if bool(there.all()) else length_mask(torch.from_numpy(series.lengths), self.shape[1])
        scaled = scaler.encode(torch.from_numpy(series.values))
        self.inputs = torch.where(there[:, None], scaled, 0).float()  # all in order, as networks take them
        self.labels: Tensor | None = None if series.labels is None else torch.from_numpy(series.labels).long()
        self.label_names = series.label_names

    def __len__(self) -> int:
        return len(self.series)

    def __repr__(self) -> str:
        return f"Scaled{self.series!r}"

    @property
    def fingerprint(self) -> str:
        """Changes with the values, lengths, labels and channels; the scaling follows from them."""
        digest = hashlib.blake2b(np.ascontiguousarray(self.series.values).data, digest_size=32)
        digest.update(np.ascontiguousarray(self.series.lengths).data)
        labels = None if self.series.labels is None else self.series.labels.tolist()
        return key_of(["series", digest.hexdigest(), self.series.channels, self.label_names, labels])

    def describe(self) -> dict[str, Any]:
        """Source, number, channels and lengths of the series; for a model card."""
        low, high = int(self.series.lengths.min()), int(self.series.lengths.max())
        about = {"series": len(self), "channels": list(self.series.channels), "lengths": [low, high]}
        return {**self.series.source, **description(self), **about}

    def require(self, n: int) -> None:
        """DataError if there are fewer than n series, one global batch over all processes and accumulation."""
        require(self, n)

    def batch(self, start: int, stop: int, *, seed: int = 0, device: str | torch.device = "cpu") -> dict[str, Any]:
        """Positions [start, stop) of the stream of `seed`: see `Dataset.batch`.

        Returns:
            {"x": float32 (B, C, L)}, 0 beyond the end of a series; "labels" if there are some; and, unless all series
            are equally long, "step_mask", bool (B, L), True for steps that are there.
        """
        check_positions(start, stop)
        rows = indices(start, stop, len(self), seed)
        found = {"x": self.inputs[rows].to(device, non_blocking=True)}
        if self.mask is not None:
            found["step_mask"] = self.mask[rows].to(device, non_blocking=True)
        return annotate(found, self, rows, device)
