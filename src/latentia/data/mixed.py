"""Tables of mixed kinds of columns: read, split into parts, and given as encoded rows to train on."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from latentia.data.base import description, require
from latentia.data.order import check_positions, indices, uniform
from latentia.data.shipped_tables import SHIPPED
from latentia.data.table_columns import KINDS, TableColumn, find_column
from latentia.data.tables import SUFFIXES, read_columns
from latentia.errors import DataError, UsageError, check_range, counted, did_you_mean
from latentia.files.cache import key_of
from latentia.files.reading import user_path
from latentia.functional.settings import check_types
from latentia.rng import seed_from

HELD_OUT = 0.2  # share of the rows that nothing is trained on


@dataclass(frozen=True, eq=False)
class MixedTable:
    """Rows of columns of mixed kinds, as numbers; `frame` gives them back as they were.

    Args:
        columns: the C columns.
        values: (N, C), float64: numbers as they are, dates as numbers of days or seconds, the index of a category; NaN
            where a value is missing.
        target: the column that the others are to predict, for scores; `None` (default): none.
        source: where the table comes from, for the model card.

    Example:
        >>> table = load_mixed_table("iris")
        >>> table, table.columns[4].categories
        (MixedTable(iris: 150 rows of 5 columns), ('setosa', 'versicolor', 'virginica'))
    """

    columns: tuple[TableColumn, ...]
    values: np.ndarray
    target: str | None = None
    source: dict[str, Any] = field(default_factory=lambda: {"kind": "table", "name": "rows"})

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        return f"MixedTable({self.source['name']}: {counted(len(self), 'row')} of {len(self.columns)} columns)"

    @property
    def names(self) -> list[str]:
        """Of the columns."""
        return [column.name for column in self.columns]

    def take(self, rows: np.ndarray | slice) -> "MixedTable":
        """The rows of these indices."""
        return MixedTable(self.columns, self.values[rows], self.target, self.source)

    def parts(self, held_out: float = HELD_OUT) -> tuple["MixedTable", "MixedTable"]:
        """The rows to train on and those held out, the same whenever a table of so many rows is split.

        Args:
            held_out: share of the rows, in [0, 1); at least one row stays to train on. Default .2.
        """
        check_range("held_out", held_out, 0, 1, closed="left")
        order = np.random.default_rng(seed_from(0, "held out", len(self))).permutation(len(self))
        most = round(len(self) * (1 - held_out))
        return self.take(np.sort(order[:most])), self.take(np.sort(order[most:]))

    def columns_of(self) -> dict[str, np.ndarray]:
        """The values of each column as they were read: floats, integers, texts, booleans, dates."""
        return {column.name: column.values_of(numbers) for column, numbers in zip(self.columns, self.values.T)}

    def frame(self) -> Any:
        """The rows as a pandas DataFrame."""
        import pandas as pd

        frame = pd.DataFrame(self.columns_of())
        for column in self.columns:  # whole numbers beside gaps
            if column.kind == "integer" and frame[column.name].dtype == np.float64:
                frame[column.name] = frame[column.name].astype("Int64")
        return frame

    def kinds(self) -> str:
        """The kinds of all columns in a sentence, for the log and the card."""
        found: dict[str, list[str]] = {}
        for column in self.columns:
            gaps = " (values missing)" if column.missing else ""
            found.setdefault(column.kind, []).append(f"{column.name}{gaps}")
        return "; ".join(f"{kind}: {', '.join(found[kind])}" for kind in KINDS if kind in found)


@check_types
def load_mixed_table(
    source: Any,
    *,
    kinds: Mapping[str, str] | None = None,
    drop_columns: Sequence[str] = (),
    label_column: str | None = None,
    max_samples: int | None = None,
) -> MixedTable:
    """Read a table of numbers, classes, truth values and dates, with missing values; the kinds of columns are found.

    Args:
        source: a .csv, .tsv or .parquet file; a pandas DataFrame; or the name of a shipped table, see `SHIPPED`.
        kinds: column -> "numeric", "integer", "categorical", "boolean" or "date", in place of what is found. Default
            none.
        drop_columns: columns that are left out. Default none.
        label_column: the target, which scores predict from the others; `None` (default): that of a shipped table, or
            "label" or "target" if there is such a column. "" for none.
        max_samples: use at most so many rows, spread evenly; `None` (default): all.

    Raises:
        UsageError: another source, or names that are no columns.
        DataError: a file that cannot be read; a column of mixed types, a constant one, one without values, or one of
            more than 1000 categories. The message says which and how to go on.

    Example:
        >>> import pandas as pd
        >>> table = load_mixed_table(pd.DataFrame({"age": [31, 45, None], "married": [True, False, True]}))
        >>> table.kinds()
        'integer: age (values missing); boolean: married'
    """
    read, name, target = _opened(source)
    if max_samples is not None:
        check_range("max_samples", max_samples, 1, integer=True)
        if max_samples < len(read):
            read = read.take(pa.array(np.linspace(0, len(read) - 1, max_samples).round().astype(np.int64)))
    asked = dict(kinds or {})
    for argument, given in (("kinds", [*asked]), ("drop_columns", drop_columns)):
        for column in given:
            if column not in read.column_names:
                near = did_you_mean(column, read.column_names)
                raise UsageError(f'{argument} must name columns of {name}: {read.column_names}; got "{column}".{near}')
    for column, kind in asked.items():
        if kind not in KINDS:
            near = did_you_mean(kind, KINDS)
            raise UsageError(f'kinds must be of {", ".join(KINDS)}; got "{kind}" for "{column}".{near}')
    kept = [column for column in read.column_names if column not in drop_columns]
    if label_column and label_column not in kept:
        raise UsageError(f'label_column must be one of {kept}; got "{label_column}".{did_you_mean(label_column, kept)}')
    if label_column is None:
        label_column = next((column for column in (target, "label", "target") if column in kept), None)
    if len(kept) < 2:
        raise DataError(f"{name} must have at least two columns to be a table; it has {kept}.")
    if not len(read):
        raise DataError(f"{name} holds no rows.")
    found = [find_column(column, read[column], asked.get(column), name) for column in kept]
    columns, values = tuple(column for column, _ in found), np.stack([numbers for _, numbers in found], 1)
    return MixedTable(columns, values, label_column or None, {"kind": "table", "name": name})


def rows_like(columns: Sequence[TableColumn], source: Any, target: str | None = None) -> MixedTable:
    """Read rows of a table whose columns are known: from another file, or from what a pipeline takes.

    Args:
        columns: those of the table that a model was trained on.
        source: as for `load_mixed_table`, or a mapping of columns to arrays. Columns of other names are left out.
        target: of the result.

    Raises:
        DataError: a column that is missing, a category that is not known, or a value of another kind.

    Example:
        >>> iris = load_mixed_table("iris")
        >>> len(rows_like(iris.columns, iris.frame()))
        150
    """
    read, name, _ = _opened(source)
    missing = [column.name for column in columns if column.name not in read.column_names]
    if missing:
        near = did_you_mean(missing[0], read.column_names)
        raise DataError(f'{name} must have the column "{missing[0]}"; it has {read.column_names}.{near}')
    values = np.stack([column.numbers_of(read[column.name], name) for column in columns], 1)
    return MixedTable(tuple(columns), values, target, {"kind": "table", "name": name})


def column_texts(source: Any, name: str) -> list[str]:
    """The values of one column of a source, as for `load_mixed_table`, as texts; "missing" where there is none.

    Raises:
        UsageError: there is no such column.

    Example:
        >>> column_texts({"kind": ["good", None, "bad"]}, "kind")
        ['good', 'missing', 'bad']
    """
    read, about, _ = _opened(source)
    if name not in read.column_names:
        near = did_you_mean(name, read.column_names)
        raise UsageError(f'label_column must be one of {read.column_names} of {about}; got "{name}".{near}')
    return ["missing" if value is None else str(value) for value in read[name].to_pylist()]


def _opened(source: Any) -> tuple[pa.Table, str, str | None]:
    """The columns of a source, its name and its target."""
    if hasattr(source, "columns") and hasattr(source, "iloc"):  # a DataFrame, of pandas, which is not imported for it
        for column in source.columns:
            if not isinstance(column, str):
                raise UsageError(f"columns of a DataFrame must be texts; got {column!r}.")
        try:
            return pa.Table.from_pandas(source, preserve_index=False), "DataFrame", None
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DataError(f"DataFrame has a column of mixed types: {error}") from error
    if isinstance(source, Mapping):
        try:
            return pa.table({name: pa.array(values, from_pandas=True) for name, values in source.items()}), "rows", None
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DataError(f"rows have a column of mixed types, or columns of unequal lengths: {error}") from error
    if not isinstance(source, str | Path):
        raise UsageError(f"a table must be a file, a DataFrame or a mapping of columns; got {type(source).__name__}.")
    if isinstance(source, str) and source in SHIPPED:
        columns, target = SHIPPED[source]()
        return pa.table({name: pa.array(values, from_pandas=True) for name, values in columns.items()}), source, target
    path = user_path(source)
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"a table must be a file of {', '.join(SUFFIXES)}, or one of {', '.join(SHIPPED)}; got {source}."
            f"{did_you_mean(str(source), SHIPPED)}"
        )
    return read_columns(path, every=True), path.name, None


class EncodedRows:
    """A `Dataset` of the rows of a table as vectors, encoded anew at each position of the stream.

    What an encoder makes of whole numbers and categories is a random place within their interval, a function of
    (seed, position).

    Args:
        table: the rows.
        encoder: a `TableEncoder` of these columns.
        by_category: training by sampling: each position first draws a column of categories, then one of them with a
            probability by the logarithm of its count, then a row that has it; "labels" are then its number. Rare
            categories come more often than they are.

    Modeling Tabular Data using Conditional GAN (Xu et al., 2019, 1907.00503), section 4.3.

    Example:
        >>> from latentia import TableEncoder
        >>> table = load_mixed_table("iris")
        >>> data = EncodedRows(table, TableEncoder.fit(table.columns, table.values))
        >>> data.batch(0, 8)["x"].shape
        torch.Size([8, 7])
    """

    modality = "table row"
    endless = False
    captions = None
    has_captions = False
    labels: None = None

    def __init__(self, table: MixedTable, encoder: Any, by_category: bool = False):
        self.table, self.encoder = table, encoder
        self.shape: tuple[int, ...] = (encoder.width,)
        self.values = torch.from_numpy(table.values)
        self.label_names: list[str] | None = encoder.conditions if by_category else None
        if by_category and not encoder.conditions:
            raise DataError(f"{table.source['name']} has no column of categories to sample rows by.")
        self._by_category = _Balanced(encoder.category_indices(self.values)) if by_category else None

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        return f"{self.table!r}\n{self.table.kinds()}"

    @property
    def fingerprint(self) -> str:
        """Changes with the values, the columns and the layout; what was fitted to them follows from them."""
        digest = hashlib.blake2b(np.ascontiguousarray(self.table.values).data, digest_size=32).hexdigest()
        columns = [column.to_dict() for column in self.table.columns]
        return key_of(["mixed table", digest, columns, self.encoder.config.layout, self.label_names])

    def describe(self) -> dict[str, Any]:
        """Source, rows, columns with their kinds, and the target; for a model card."""
        kinds = {column.name: column.kind for column in self.table.columns}
        about = {"rows": len(self), "kinds": kinds, "target": self.table.target}
        return {**self.table.source, **description(self), **about}

    def require(self, n: int) -> None:
        """DataError if there are fewer than n rows, one global batch over all processes and accumulation."""
        require(self, n)

    def batch(self, start: int, stop: int, *, seed: int = 0, device: str | torch.device = "cpu") -> dict[str, Any]:
        """Positions [start, stop) of the stream of `seed`: see `Dataset.batch`.

        Returns:
            {"x": float32 (B, D)}, with "labels", int64 (B,), the number of a category, if rows are drawn by category.
        """
        check_positions(start, stop)
        found: dict[str, Any] = {}
        if self._by_category is None:
            rows = indices(start, stop, len(self), seed)
        else:
            u = np.stack([uniform(f"by category {k}", start, stop, seed) for k in range(3)], 1)
            rows, labels = self._by_category(torch.from_numpy(u))
            found["labels"] = labels.to(device, non_blocking=True)
        places = [uniform(f"table column {c}", start, stop, seed) for c in range(len(self.table.columns))]
        x = self.encoder.encode(self.values[rows], torch.from_numpy(np.stack(places, 1)))
        return {"x": x.float().to(device, non_blocking=True), **found}


class _Balanced:
    """Rows by their categories: a column, one of its categories by log(1 + count), a row that has it."""

    def __init__(self, numbers: Tensor):
        self.blocks: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for column in numbers.T:  # of all categories, counted over all columns
            labels, counts = column.unique(return_counts=True)
            ends = (1 + counts.double()).log().cumsum(0)
            self.blocks.append((labels, ends / ends[-1], counts, column.argsort(stable=True)))

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        rows, labels = torch.empty(len(u), dtype=torch.int64), torch.empty(len(u), dtype=torch.int64)
        chosen = (u[:, 0] * len(self.blocks)).long()
        for j, (names, ends, counts, order) in enumerate(self.blocks):
            here = chosen == j
            k = torch.searchsorted(ends[:-1].contiguous(), u[here, 1], right=True)
            first = counts.cumsum(0)[k] - counts[k]
            rows[here] = order[first + (u[here, 2] * counts[k]).long()]
            labels[here] = names[k]
        return rows, labels
