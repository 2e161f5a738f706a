"""Columns of tables of time series: numbers without gaps, times at equal distances, and labels."""

import numpy as np
import pyarrow as pa

from latentia.data.names import class_order
from latentia.errors import DataError

DROP = "leave it out with drop_columns"
_MAX_DECIMALS = 6


def check_times(
    column: pa.ChunkedArray, rows: np.ndarray, groups: np.ndarray, order: list[str], place: str, series: str | None
) -> None:
    """DataError unless times ascend within each series, equally far apart in all of them."""
    if pa.types.is_temporal(column.type):
        if column.null_count:
            raise DataError(f"{place} has a missing time in row {first_null(column)}; fill it, or drop the row.")
        times = column.cast(pa.timestamp("us")).cast(pa.int64()).to_numpy().astype(np.float64)
    else:
        times = numbers_of(column, place)
    gaps, same = np.diff(times[rows]), np.diff(groups[rows]) == 0
    if not same.any():
        return
    step = np.median(gaps[same])
    for wrong, what in ((gaps <= 0, "is not after the one before"), (np.abs(gaps - step) > 1e-3 * step, "comes after")):
        odd = np.flatnonzero(wrong & same)
        if len(odd):
            row = int(rows[odd[0] + 1])
            where = f"row {row}" if series is None else f'row {row}, series "{order[groups[row]]}",'
            if what == "comes after":
                raise DataError(
                    f"{place} has unequal time steps: {where} comes {_said(gaps[odd[0]], column)} after the row "
                    f"before, and most come {_said(step, column)}. Resample to equal steps first, or leave the times "
                    "out with drop_columns to take rows as equally far apart."
                )
            raise DataError(f"{place}: the time in {where} {what}. Sort the rows by time, and drop those that repeat.")


def _said(gap: float, column: pa.ChunkedArray) -> str:
    return f"{gap / 1e6:g} s" if pa.types.is_temporal(column.type) else f"{gap:g}"


def numbers_of(column: pa.ChunkedArray, place: str) -> np.ndarray:
    """Values as float64, all of them finite."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        texts = column.to_pylist()
        odd = [i for i, text in enumerate(texts) if text is not None and not _is_float(text)]
        if odd and len(odd) < len(texts) / 2:
            raise DataError(
                f'{place} has mixed types: most values are numbers, and row {odd[0]} holds "{texts[odd[0]]}". Mend '
                f"such cells, or {DROP}."
            )
        raise DataError(f"{place} holds texts, not numbers; name it as label_column or series_column, or {DROP}.")
    if column.null_count:
        raise DataError(
            f"{place} has a missing value in row {first_null(column)}, and {column.null_count} in all. Fill them, "
            "such as by interpolation, or leave such series out."
        )
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise DataError(f"{place} holds {kind}, not numbers; {DROP}.")
    numbers = np.asarray(column.cast(pa.float64()).to_numpy(), dtype=np.float64)
    odd = np.flatnonzero(~np.isfinite(numbers)).tolist()
    if odd:
        raise DataError(f"{place} has a value in row {odd[0]} that is missing or not finite. Fill it.")
    return numbers


def labels_of(column: pa.ChunkedArray, place: str) -> tuple[np.ndarray, list[str]]:
    """The class of each row, int64 (N,), and the names of the classes in order."""
    if column.null_count:
        raise DataError(f"{place} has a missing label in row {first_null(column)}; fill it.")
    if pa.types.is_floating(column.type):
        raise DataError(f"{place} must hold texts or whole numbers as labels; it holds {column.type}.")
    values = column.to_pylist()
    whole = all(isinstance(value, int) for value in values)
    names = [str(one) for one in (sorted({*values}) if whole else class_order({str(value) for value in values}))]
    number = {name: i for i, name in enumerate(names)}
    return np.array([number[str(value)] for value in values]), names


def first_null(column: pa.ChunkedArray) -> int:
    """The first row whose value is missing."""
    return int(np.flatnonzero(np.asarray(column.is_null().to_numpy()))[0])


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def decimals_of(known: np.ndarray) -> int | None:
    """Digits after the point that all values have at most; None for more than six.

    Example:
        >>> decimals_of(np.array([1.5, 2.25]))
        2
    """
    return next((digits for digits in range(_MAX_DECIMALS + 1) if (np.round(known, digits) == known).all()), None)
