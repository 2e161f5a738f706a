"""Columns of a data set: which ones hold images, labels and captions, and which values they may have."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from latentia.data.left_out import LeftOut
from latentia.data.names import class_order, is_unicode
from latentia.errors import DataError, UsageError, did_you_mean

MAX_CLASSES = 65_536  # of a plain integer column, so that one damaged value does not make 2**40 classes


@dataclass(frozen=True)
class Column:
    """Content of a column; `names` are the classes, where the data set declares them."""

    kind: Literal["image", "integer", "text", "other"]
    names: list[str] | None = None


@dataclass(frozen=True)
class Table:
    """An opened source. `rows(columns)` yields (where, values) from the start each time it is called."""

    columns: dict[str, Column]
    rows: Callable[[Sequence[str]], Iterator[tuple[str, tuple[Any, ...]]]]
    count: int | None = None
    defaults: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Where images come from.

    Args:
        name: as the user wrote it.
        about: facts for the model card.
        open: makes the table.
        key: changes when the source does, apart from the content of `files`; None for a stream.
        left_out: what of it is not taken.
        files: those that hold images and columns, by names that are part of the data's identity.
    """

    name: str
    about: dict[str, Any]
    open: Callable[[], Table]
    key: Any = None
    left_out: LeftOut = field(default_factory=LeftOut)
    files: dict[str, Path] = field(default_factory=dict)


def pick(table: Table, source: str, image: str | None, label: str | None, caption: str | None) -> dict[str, str]:
    """The column behind each of "image", "label" and "caption"; a role without a column is absent.

    None chooses by convention, "" does without (labels and captions only), a name must exist.
    """
    columns = table.columns
    asked = {"image": image, "label": label, "caption": caption}
    found: dict[str, str] = {}
    for role, name in asked.items():
        name = table.defaults.get(role) if name is None else name
        if name and name not in columns:
            raise UsageError(
                f'{role}_column="{name}" is not a column of {source}.{did_you_mean(name, columns)} '
                f"It has: {', '.join(columns)}."
            )
        if name is None:
            name = _by_convention(role, columns)
        if name:
            found[role] = name
    if "image" not in found:
        raise DataError(f"{source} has no image column among {', '.join(columns)}; name it with image_column.")
    kinds = {"image": ("image",), "label": ("integer", "text"), "caption": ("text",)}
    for role, name in found.items():
        if columns[name].kind not in kinds[role] and not (role == "label" and columns[name].kind == "other"):
            fitting = [other for other, column in columns.items() if column.kind in kinds[role]]
            raise UsageError(
                f'{role}_column="{name}" of {source} does not hold {" or ".join(kinds[role])} values; '
                f"columns that do: {', '.join(fitting) or 'none'}."
            )
    return found


def _by_convention(role: str, columns: dict[str, Column]) -> str | None:
    if role == "image":
        images = [name for name, column in columns.items() if column.kind == "image"]
        return "image" if "image" in images else (images[0] if images else None)
    if role == "label":
        classes = [name for name, column in columns.items() if column.names]
        return "label" if "label" in columns else (classes[0] if len(classes) == 1 else None)
    return next((name for name in ("text", "caption") if name in columns and columns[name].kind == "text"), None)


class Labels:
    """Checks labels one by one and numbers them at the end.

    Args:
        column: the column's name, for messages.
        names: the classes if known; integers must lie in [0, len(names)), text must be one of them.
    """

    def __init__(self, column: str, names: Sequence[str] | None):
        self.column, self.names = column, None if names is None else [str(name) for name in names]
        self.values: list[int | str] = []
        if wrong := [name for name in self.names or () if not is_unicode(name)]:
            raise DataError(f'label column "{column}": the class {wrong[0]!a} cannot be written as UTF-8; rename it.')

    def add(self, value: Any, where: str) -> int | str:
        """The label as an integer, or as text while the classes are not known."""
        value = self._check(value, where)
        self.values.append(value)
        return value

    def _check(self, value: Any, where: str) -> int | str:
        at = f'{where}: label column "{self.column}"'
        advice = 'Repair the data, choose another label_column, or give label_column="" to do without labels.'
        if isinstance(value, str):
            if not is_unicode(value):
                raise DataError(f"{at} holds {value!a:.40}, which cannot be written as UTF-8. {advice}")
            if self.names is None:
                return value
            if value not in self.names:
                raise DataError(f'{at} holds "{value}", not a known class.{did_you_mean(value, self.names)} {advice}')
            return self.names.index(value)
        if value is None or (isinstance(value, float | np.floating) and not math.isfinite(value)):
            raise DataError(f"{at} holds {'no value' if value is None else value}. {advice}")
        if not isinstance(value, int | float | np.integer | np.floating | np.bool_) or value != int(value):
            raise DataError(f"{at} holds {value!r:.40}, neither an integer nor text. {advice}")
        classes = MAX_CLASSES if self.names is None else len(self.names)
        if not 0 <= value < classes:
            raise DataError(f"{at} holds {int(value)}, outside [0, {classes}). {advice}")
        return int(value)

    def numbered(self) -> tuple[list[int], list[str]]:
        """All labels as integers, and the names of the classes: given, else the texts in order, else "0", "1", ..."""
        texts = {value for value in self.values if isinstance(value, str)}
        if texts and len(texts) != len(set(self.values)):
            raise DataError(f'label column "{self.column}" mixes integers and text.')
        if texts:
            names = class_order(texts)
            number = {name: i for i, name in enumerate(names)}
            return [number[str(value)] for value in self.values], names
        values = [int(value) for value in self.values]
        return values, self.names or [str(i) for i in range(max(values, default=-1) + 1)]


def check_caption(value: Any, where: str, column: str) -> str:
    """`value`, if it is text with something in it."""
    if not isinstance(value, str) or not value.strip() or not is_unicode(value):
        shown = "no value" if value is None else ascii(value)[:40] if isinstance(value, str) else repr(value)[:40]
        raise DataError(
            f'{where}: caption column "{column}" holds {shown}, not a text. '
            'Repair the data, choose another caption_column, or give caption_column="" to do without captions.'
        )
    return value
