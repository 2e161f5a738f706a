"""`load_table`: the columns of numbers of a CSV or parquet file, and their labels, as a data set."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import torch
from torch import Tensor

from latentia.data.base import annotate, check_annotations, description, require
from latentia.data.names import class_order
from latentia.data.order import check_positions, indices
from latentia.data.parquet import holds_images, open_parquet
from latentia.errors import DataError, UsageError
from latentia.files.cache import key_of
from latentia.files.reading import check_file, open_file, user_path
from latentia.functional.settings import check_types

SUFFIXES = (".csv", ".tsv", ".parquet")
_LONGEST_HEAD = 2**20  # bytes of the first line, of which the separator is known
_MAX_VALUES = 2**28  # of a parquet file, of which a few bytes may stand for any number


class TableData:
    """A `Dataset` of the rows of a table of numbers; made by [`load_table`], or directly.

    Args:
        values: (N, D), N >= 1 and D >= 1, floats, all finite.
        columns: D names; default "0", "1", ...
        labels: N integers in [0, len(label_names)), or None.
        label_names: names of the classes; default "0", "1", ... up to the largest label.
        left_out: columns of the source that are not among `columns`, as they hold no numbers.
        source: where the table comes from, for the model card.

    Attributes:
        values: float64 (N, D), in the order of the source.

    Raises:
        UsageError: another shape or type, values that are not finite, or names or labels that do not fit.

    Example:
        >>> data = TableData(torch.eye(3), labels=[0, 1, 1])
        >>> data.batch(0, 4)["x"].shape, data.standardized.mean(0).abs().max().item() < 1e-12
        (torch.Size([4, 3]), True)
    """

    modality = "table row"
    endless = False
    captions = None
    has_captions = False

    def __init__(
        self,
        values: Tensor,
        columns: Sequence[str] | None = None,
        labels: Sequence[int] | Tensor | None = None,
        label_names: Sequence[str] | None = None,
        left_out: Sequence[str] = (),
        source: dict[str, Any] | None = None,
    ):
        if values.ndim != 2 or not values.is_floating_point() or not values.numel() or not values.isfinite().all():
            raise UsageError(
                f"values must be finite floats (N, D), N >= 1 and D >= 1; got {values.dtype} {tuple(values.shape)}."
            )
        self.values = values.double()
        self.columns = [str(i) for i in range(values.shape[1])] if columns is None else list(columns)
        if len(self.columns) != values.shape[1]:
            raise UsageError(f"columns must be {values.shape[1]} names; got {len(self.columns)}.")
        self.labels, self.label_names, _ = check_annotations(len(values), labels, label_names, None)
        self.left_out = list(left_out)
        self.source: dict[str, Any] = dict(source or {"kind": "tensor"})
        self.shape = (values.shape[1],)

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        name = self.source.get("name", self.source["kind"])
        return f"TableData({name}: {len(self)} rows of {len(self.columns)} columns)"

    @property
    def standardized(self) -> Tensor:
        """The values with mean 0 and variance 1 in each column, float64 (N, D); 0 in a constant column."""
        deviation = self.values.std(0, correction=0)
        return (self.values - self.values.mean(0)) / torch.where(deviation > 0, deviation, 1)

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits of the content: values, columns and labels."""
        digest = hashlib.blake2b(self.values.contiguous().numpy().data, digest_size=32).hexdigest()
        labels = None if self.labels is None else self.labels.tolist()
        return key_of(["table", digest, self.columns, labels, self.label_names])

    def describe(self) -> dict[str, Any]:
        """Source, number of rows, columns, classes, fingerprint; for a model card."""
        return {
            **self.source,
            "rows": len(self),
            **description(self),
            "columns": self.columns,
            "left_out": self.left_out,
        }

    def require(self, n: int) -> None:
        """DataError if there are fewer than n rows, one global batch over all processes and accumulation."""
        require(self, n)

    def batch(self, start: int, stop: int, *, seed: int = 0, device: str | torch.device = "cpu") -> dict[str, Any]:
        """Positions [start, stop) of the stream of `seed`: see `Dataset.batch`.

        Returns:
            {"x": float32 (B, D)}, the values as they are in the table, with "labels" (int64 (B,)) where there are some.
        """
        check_positions(start, stop)
        rows = indices(start, stop, len(self), seed)
        return annotate({"x": self.values[rows].float().to(device, non_blocking=True)}, self, rows, device)


@check_types
def load_table(source: str | Path, *, label_column: str | None = None, max_samples: int | None = None) -> TableData:
    """Load all columns of numbers of a table, and its labels.

    Args:
        source: a .csv, .tsv or .parquet file; the first line of a CSV or TSV file names the columns.
        label_column: default "label" if there is such a column. "" for none. Whole numbers or texts, which are
            numbered by sorting.
        max_samples: use at most so many rows, spread evenly; `None` (default): all.

    Raises:
        UsageError: another kind of file, a `label_column` that there is not, or max_samples < 1.
        DataError: the file cannot be read, has no column of numbers beside the label, or has gaps.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "iris.csv")
        ...     _ = file.write_text("length,width,name,label\\n5.1,3.5,a,setosa\\n6.2,2.9,b,virginica\\n")
        ...     load_table(file), load_table(file).label_names, load_table(file).left_out
        (TableData(iris.csv: 2 rows of 2 columns), ['setosa', 'virginica'], ['name'])
    """
    path = user_path(source)
    if max_samples is not None and max_samples < 1:
        raise UsageError(f"max_samples must be at least 1; got {max_samples}.")
    table = read_columns(path)
    if label_column and label_column not in table.column_names:
        raise UsageError(f'label_column must be one of {table.column_names}; got "{label_column}".')
    if label_column is None and "label" in table.column_names:
        label_column = "label"
    if max_samples is not None and max_samples < len(table):
        table = table.take(pa.array(np.linspace(0, len(table) - 1, max_samples).round().astype(np.int64)))
    columns: dict[str, np.ndarray] = {}
    left_out = []
    for name in table.column_names:
        kind = table[name].type
        if name == label_column:
            continue
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
            columns[name] = np.asarray(table[name].to_numpy(), dtype=np.float64)
        else:
            left_out.append(name)
    if not columns:
        raise DataError(f"{path} must have a column of numbers beside the label; its columns are {table.column_names}.")
    if path.suffix.lower() != ".parquet" and _are_values(list(columns)):
        raise DataError(f"{path}: its first line must name the columns, and holds numbers: {', '.join(columns)}.")
    if not len(table):
        raise DataError(f"{path} holds no rows.")
    for name, column in columns.items():
        gaps = np.flatnonzero(~np.isfinite(column))
        if len(gaps):
            raise DataError(
                f'{path}: column "{name}" has {len(gaps)} values that are missing or not finite, the first in row '
                f"{gaps[0]}. Fill or drop them."
            )
    labels, names = _number(table[label_column], path, label_column) if label_column else (None, None)
    values = torch.from_numpy(np.stack([*columns.values()], axis=1))
    return TableData(values, [*columns], labels, names, left_out, {"kind": "table", "name": path.name})


def is_table(source: str | Path) -> bool:
    """True for a file of rows of numbers: CSV, TSV, or parquet without a column that could hold images.

    Raises:
        DataError: a .csv or .tsv file that is not there, or a .parquet file that cannot be read.

    Example:
        >>> is_table("digits")
        False
    """
    path = user_path(source)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES or (suffix == ".parquet" and not path.is_file()):
        return False
    if not path.is_file():
        raise DataError(f"{source} is no file.")
    if suffix != ".parquet":
        return True
    return not holds_images(path)


def read_columns(path: Path, every: bool = False) -> pa.Table:
    """The columns of a file of a table.

    Args:
        path: a .csv, .tsv or .parquet file.
        every: whether columns of texts and dates are read too, and empty cells of texts, "NA", "null" and the like are
            missing values. Default: columns of numbers, and in a CSV file texts as they are.

    Raises:
        UsageError: another kind of file.
        DataError: it cannot be read, or two columns have one name.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"a table must be a file of {', '.join(SUFFIXES)}; got {path}.")
    check_file(path, error=DataError)
    if suffix == ".parquet":
        return _read_parquet(path, every)
    try:
        with open_file(path, error=DataError) as file:
            first = file.readline(_LONGEST_HEAD)
        wide = first.startswith((b"\xff\xfe", b"\xfe\xff"))
        sign = "\t" if suffix == ".tsv" else ";" if b";" in first and b"," not in first else ","
        table = pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(encoding="utf-16" if wide else "utf-8"),
            parse_options=pyarrow.csv.ParseOptions(delimiter=sign),
            convert_options=pyarrow.csv.ConvertOptions(strings_can_be_null=every),
        )
    except Exception as error:  # of arrow, and of Python for a text of another encoding
        raise DataError(f"{path} cannot be read as a table: {error}") from error
    names = [name.strip() for name in table.column_names]
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f'{path} has two columns "{twice[0]}"; rename one.')
    return table.rename_columns(names)


def _read_parquet(path: Path, every: bool) -> pa.Table:
    """The columns of numbers and dictionaries, with `every` of plain texts and times too; any other as one of nulls."""
    opened = open_parquet(path)
    schema, rows = opened.schema_arrow, opened.metadata.num_rows
    if rows * len(schema) > _MAX_VALUES:
        raise DataError(f"{path} has {rows} rows of {len(schema)} columns; at most {_MAX_VALUES} values are read.")
    plain: tuple[Any, ...] = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_dictionary)
    if every:
        plain += (pa.types.is_string, pa.types.is_large_string, pa.types.is_temporal, pa.types.is_decimal)
    names = [field.name for field in schema if any(fits(field.type) for fits in plain)]
    try:
        found = opened.read(columns=names)
    except Exception as error:  # of arrow, and of Python
        raise DataError(f"{path} cannot be read as a table: {error}") from error
    return pa.table({name: found[name] if name in names else pa.nulls(rows) for name in schema.names})


def _are_values(names: list[str]) -> bool:
    """Whether the names of columns are a row of numbers, and not 0, 1, 2, ... or 1, 2, 3, ..."""
    try:
        values = [float(name) for name in names]
    except ValueError:
        return False
    return values not in ([*range(len(names))], [*range(1, len(names) + 1)])


def _number(column: pa.ChunkedArray, path: Path, name: str) -> tuple[list[int], list[str]]:
    """Labels as integers, and the names of the classes in sorted order."""
    values = [value for chunk in column.chunks for value in _unfolded(chunk)]
    if any(value is None for value in values) or pa.types.is_floating(column.type):
        raise DataError(f'{path}: the label column "{name}" must hold whole numbers or texts, without gaps.')
    texts = all(isinstance(value, str) for value in values)
    kinds = class_order(values) if texts else sorted({*values})
    numbers = {value: i for i, value in enumerate(kinds)}
    return [numbers[value] for value in values], [str(value) for value in kinds]


def _unfolded(chunk: pa.Array) -> list[Any]:
    """The values of a column; those of a dictionary are held once, for any number of rows."""
    if not pa.types.is_dictionary(chunk.type):
        return chunk.to_pylist()
    values = chunk.dictionary.to_pylist()
    return [None if i is None else values[i] for i in chunk.indices.to_pylist()]
