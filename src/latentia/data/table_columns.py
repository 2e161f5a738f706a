"""Columns of tables of mixed kinds: found from the data, as numbers for networks, and back as values."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentia.data.names import class_order
from latentia.errors import DataError, UsageError, check_choice, counted, did_you_mean

KINDS = ("numeric", "integer", "categorical", "boolean", "date")
NUMBERS = ("numeric", "integer", "date")
MAX_CATEGORIES = 1000
_MAX_DECIMALS = 6
_MAX_EXACT = 2.0**53  # whole numbers up to here are exact in float64
_UNITS = {"day": "D", "second": "s", "microsecond": "us"}
_WAY_OUT = "leave it out with drop_columns"


@dataclass(frozen=True)
class TableColumn:
    """A column of a table.

    Args:
        name: of the column.
        kind: one of `KINDS`.
        categories: texts of the values of a categorical column, in order; () for another kind.
        of: what they are: "text", "integer" or "boolean".
        missing: whether values are missing in the table.
        decimals: digits after the point of all values, 0 of whole numbers and dates; `None`: any number of them.
        unit: of dates, "day", "second" or "microsecond", counted from 1970.

    Example:
        >>> column = TableColumn("size", "categorical", ("L", "S"))
        >>> column.values_of(np.array([1.0, 0.0, np.nan])).tolist()
        ['S', 'L', None]
    """

    name: str
    kind: str
    categories: tuple[str, ...] = ()
    of: str = "text"
    missing: bool = False
    decimals: int | None = None
    unit: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `TableColumn.of_dict` reads them."""
        return {**asdict(self), "categories": list(self.categories)}

    @classmethod
    def of_dict(cls, found: Mapping[str, Any]) -> "TableColumn":
        """The column of `to_dict`.

        Raises:
            UsageError: an unknown key, kind or unit, or a value of another type.
        """
        try:
            column = cls(**{**found, "categories": tuple(found.get("categories", ()))})
        except TypeError as error:
            raise UsageError(f"columns must each be what TableColumn.to_dict gives; got {found!r}.") from error
        check_choice("kind of a column", column.kind, KINDS)
        check_choice("of of a column", column.of, ("text", "integer", "boolean"))
        whole = column.decimals is None or (type(column.decimals) is int and 0 <= column.decimals <= _MAX_DECIMALS)
        texts = (column.name, *column.categories)
        if not whole or type(column.missing) is not bool or not all(isinstance(text, str) for text in texts):
            raise UsageError(f"columns must each be what TableColumn.to_dict gives; got {found!r}.")
        if (column.kind == "date") != (column.unit in _UNITS) or (column.kind in NUMBERS) == bool(column.categories):
            raise UsageError(f"columns must have a unit of dates and categories of classes; got {found!r}.")
        if column.of == "integer" and not all(text.lstrip("-").isdecimal() for text in column.categories):
            raise UsageError(f"categories of integers must be whole numbers; got {column.categories}.")
        return column

    @property
    def is_number(self) -> bool:
        """Whether its values lie on a line: numeric, integer or date."""
        return self.kind in NUMBERS

    def values_of(self, numbers: np.ndarray) -> np.ndarray:
        """The values as they are in the table, (N,), of numbers (N,), float64; those that are missing are None or NaN.

        Integers without gaps are int64, dates datetime64, others as they are read.
        """
        gaps = np.isnan(numbers)
        if self.is_number:
            if self.kind == "numeric":
                return numbers if self.decimals is None else np.round(numbers, self.decimals)
            whole = np.where(gaps, 0, np.round(numbers)).astype(np.int64)
            if self.kind == "integer":
                return np.where(gaps, np.nan, whole) if gaps.any() else whole
            dates = whole.astype(f"datetime64[{_UNITS[self.unit or 'day']}]")
            dates[gaps] = np.datetime64("NaT")
            return dates
        known: list[Any] = [*self.categories]
        if self.of != "text":
            known = [int(text) for text in known] if self.of == "integer" else [False, True]
        values = np.empty(len(numbers), dtype=object)
        values[:] = [None if gap else known[int(i)] for i, gap in zip(np.where(gaps, 0, numbers), gaps)]
        if self.of != "text" and not gaps.any():
            return values.astype(np.int64 if self.of == "integer" else bool)
        return values

    def numbers_of(self, values: pa.ChunkedArray, where: str) -> np.ndarray:
        """The numbers (N,), float64, of values of this column in another table; NaN where they are missing.

        Raises:
            DataError: a category or a kind of value that this column has not; names the row.
        """
        try:
            if self.is_number:
                return _line(values, self.kind, self.unit)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
            raise DataError(f'{where}: column "{self.name}" must be {self.kind}; {error}') from error
        known = {text: float(i) for i, text in enumerate(self.categories)}
        found = np.full(len(values), np.nan)
        for i, text in enumerate(_texts(values)):
            if text is not None and text not in known:
                raise DataError(
                    f'{where}: column "{self.name}" has "{text}" in row {i}, a category that was not there when the '
                    f"encoding was fitted.{did_you_mean(text, known)} Known: {', '.join([*known][:10])}. Leave such "
                    "rows out, or train on data that have them."
                )
            if text is not None:
                found[i] = known[text]
        return found


def find_column(name: str, values: pa.ChunkedArray, kind: str | None, where: str) -> tuple[TableColumn, np.ndarray]:
    """The kind of a column, and its values as numbers (N,), float64, with NaN where they are missing.

    Args:
        name: of the column.
        values: of all rows.
        kind: one of `KINDS` that is asked for; `None`: found from the values.
        where: the file or table, for errors.

    Raises:
        DataError: mixed types, one value in all rows, all missing, more than 1000 categories, or values that are not of
            the kind asked for.

    Example:
        >>> column, numbers = find_column("n", pa.chunked_array([[3, None, 7, 9]]), None, "table")
        >>> column.kind, column.missing, numbers.tolist()
        ('integer', True, [3.0, nan, 7.0, 9.0])
    """
    place = f'{where}: column "{name}"'
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if not len(values) or values.null_count == len(values):
        raise DataError(f"{place} has no values, all {counted(len(values), 'row')} are missing; {_WAY_OUT}.")
    if kind is None:
        kind = _kind_of(values, place)
    if kind in NUMBERS:
        column, numbers = _number_column(name, values, kind, place)
    else:
        column, numbers = _class_column(name, values, kind, place)
    known = numbers[~np.isnan(numbers)]
    if not len(known):
        raise DataError(f"{place} has no values, all {counted(len(values), 'row')} are missing; {_WAY_OUT}.")
    if len(known) == len(numbers) and known.min() == known.max():
        only = str(column.values_of(known[:1])[0])
        raise DataError(f'{place} is constant, "{only}" in each row, so there is nothing to learn; {_WAY_OUT}.')
    if column.is_number and known.min() == known.max():
        raise DataError(
            f"{place} holds one value and gaps; {_WAY_OUT}, or make it a class by kinds {name}=categorical."
        )
    return column, numbers


def _kind_of(values: pa.ChunkedArray, place: str) -> str:
    kind = values.type
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_integer(kind):
        return "categorical" if len(pc.unique(values.drop_null())) <= 2 else "integer"
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        numbers = _line(values, "numeric", None)
        known = numbers[~np.isnan(numbers)]
        # pandas stores whole numbers with gaps as floats.
        return "integer" if len(known) < len(numbers) and len(known) and _decimals(known) == 0 else "numeric"
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return "date"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        _refuse_mixed([value for value in values.to_pylist() if value is not None], place)
        return "categorical"
    raise DataError(f"{place} holds {kind}, which is none of {', '.join(KINDS)}; {_WAY_OUT}.")


def _refuse_mixed(texts: Sequence[str], place: str) -> None:
    """Texts most of which are numbers: a mistyped number would make a class of each of them."""
    odd = [i for i, text in enumerate(texts) if not _is_float(text)]
    if odd and len(odd) < len(texts) / 2:
        raise DataError(
            f"{place} has mixed types: {len(texts) - len(odd)} of {len(texts)} values are numbers, and "
            f'"{texts[odd[0]]}" (value {odd[0]}) is not. Mend or empty such cells, or give the kind of the column: '
            "kinds NAME=categorical."
        )


def _is_float(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _number_column(name: str, values: pa.ChunkedArray, kind: str, place: str) -> tuple[TableColumn, np.ndarray]:
    unit = None
    try:
        if kind == "date":
            unit = _unit(values, place)
        numbers = _line(values, kind, unit)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise DataError(f"{place} cannot be {kind}: {error}") from error
    known = numbers[~np.isnan(numbers)]
    if np.isinf(known).any():
        raise DataError(f"{place} has an infinite value in row {int(np.flatnonzero(np.isinf(numbers))[0])}; empty it.")
    if len(known) and np.abs(known).max() > _MAX_EXACT:
        raise DataError(f"{place} has values beyond 2^53, which are not exact as numbers; {_WAY_OUT}.")
    decimals = _decimals(known) if kind == "numeric" else 0
    if kind == "integer" and len(known) and _decimals(known) != 0:
        first = int(np.flatnonzero(numbers != np.round(numbers))[0])
        raise DataError(f"{place} cannot be integer: row {first} is {numbers[first]}.")
    return TableColumn(name, kind, missing=len(known) < len(numbers), decimals=decimals, unit=unit), numbers


def _class_column(name: str, values: pa.ChunkedArray, kind: str, place: str) -> tuple[TableColumn, np.ndarray]:
    texts = _texts(values)
    present = {text for text in texts if text is not None}
    integers = pa.types.is_integer(values.type)
    of = "boolean" if pa.types.is_boolean(values.type) else "integer" if integers else "text"
    if kind == "boolean":
        if of != "boolean":
            raise DataError(f"{place} cannot be boolean: it holds {sorted(present)[:4]}, and not true and false.")
        present = {"false", "true"}
    if len(present) > MAX_CATEGORIES:
        raise DataError(
            f"{place} has {len(present)} different values in {counted(len(texts), 'row')}, more than {MAX_CATEGORIES} "
            f"categories: a name or a number of the row? {_WAY_OUT[0].upper()}{_WAY_OUT[1:]}."
        )
    order = sorted(present, key=int) if integers else class_order([*present])
    index = {text: float(i) for i, text in enumerate(order)}
    numbers = np.array([math.nan if text is None else index[text] for text in texts])
    return TableColumn(name, kind, tuple(order), of, missing=bool(np.isnan(numbers).any())), numbers


def _texts(values: pa.ChunkedArray) -> list[str | None]:
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_boolean(values.type):
        return [None if value is None else str(value).lower() for value in values.to_pylist()]
    return [None if value is None else str(value) for value in values.to_pylist()]


def _line(values: pa.ChunkedArray, kind: str, unit: str | None) -> np.ndarray:
    """Values on a line as float64, NaN where they are missing."""
    if kind == "date":
        if not (pa.types.is_date(values.type) or pa.types.is_timestamp(values.type)):
            values = values.cast(pa.timestamp("us"))  # of texts
        numbers = values.cast(pa.timestamp("us")).cast(pa.int64()).to_numpy(zero_copy_only=False).astype(np.float64)
        return numbers / {"day": 86_400e6, "second": 1e6, "microsecond": 1.0}[unit or "day"]
    if pa.types.is_date(values.type) or pa.types.is_timestamp(values.type):
        raise ValueError(f"it holds {values.type}")
    return np.asarray(values.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)


def _unit(values: pa.ChunkedArray, place: str) -> str:
    if pa.types.is_timestamp(values.type) and values.type.tz is not None:
        raise DataError(f"{place} has times of the zone {values.type.tz}; write them without a zone.")
    moments = _line(values, "date", "microsecond")
    known = moments[~np.isnan(moments)]
    sizes = {"day": 86_400e6, "second": 1e6}
    return next((unit for unit, size in sizes.items() if (known % size == 0).all()), "microsecond")


def _decimals(known: np.ndarray) -> int | None:
    """Digits after the point that all values have at most; None for more than six."""
    for digits in range(_MAX_DECIMALS + 1):
        if (np.round(known, digits) == known).all():
            return digits
    return None
