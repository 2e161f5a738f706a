"""A folder of images: labels from its subfolders, or labels and captions from metadata.jsonl or metadata.csv."""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from latentia.data.columns import Column, Table
from latentia.data.decode import SUFFIXES
from latentia.errors import DataError


def image_files(root: Path, source: str) -> list[Path]:
    """Every image file below `root`, sorted, without hidden ones. Nothing outside `root` is followed."""
    files, others = [], Counter[str]()
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for name in folders:
            _inside(root, Path(folder, name), source)
        for name in names:
            if name.startswith("."):
                continue
            if name.lower().endswith(SUFFIXES):
                files.append(_inside(root, Path(folder, name), source))
            else:
                others[Path(name).suffix.lower()] += 1
    if not files:
        seen = ", ".join(f"{count} x {suffix or 'no suffix'}" for suffix, count in others.most_common(5))
        raise DataError(f"{source} holds no image ({seen or 'nothing at all'}); known suffixes: {' '.join(SUFFIXES)}.")
    return sorted(files)


def _inside(root: Path, path: Path, source: str) -> Path:
    """`path`, unless it is a link that leads out of `root`, which is resolved already."""
    if path.is_symlink() and not path.resolve().is_relative_to(root):
        raise DataError(
            f"{source}: {path.relative_to(root)} is a link that leads out of the folder, which is not followed. "
            "Copy the file there (`hf download --local-dir` makes copies instead of links)."
        )
    return path


def folder_table(root: Path, files: list[Path], metadata: list[Path], source: str) -> Table:
    """A table over `files`; `metadata` (at most one file) chooses among them and adds columns."""
    if len(metadata) > 1:
        raise DataError(f"{source} has both metadata.jsonl and metadata.csv; keep one.")
    if metadata:
        return _with_metadata(root, files, metadata[0], source)
    places = [file.relative_to(root).parts[:-1] for file in files]
    classes = sorted({place[-1] for place in places if place})
    labelled = len(classes) > 1 and len({len(place) for place in places}) == 1  # as the imagefolder of datasets
    columns = {"image": Column("image")} | ({"label": Column("integer", classes)} if labelled else {})
    number = {name: i for i, name in enumerate(classes)}

    def rows(names: Sequence[str]) -> Iterator[tuple[str, tuple]]:
        for file, place in zip(files, places):
            values: dict[str, Any] = {"image": file, "label": number[place[-1]] if labelled else None}
            yield file.relative_to(root).as_posix(), tuple(values[name] for name in names)

    return Table(columns, rows, len(files))


def _with_metadata(root: Path, files: list[Path], metadata: Path, source: str) -> Table:
    lines = _read(metadata, source)
    if not lines:
        raise DataError(f"{source}: {metadata.name} holds no line.")
    known = set(files)
    chosen = []
    for number, line in lines:
        at, name = f"{source}: {metadata.name} line {number}", line.get("file_name")
        if not isinstance(name, str) or not name:
            raise DataError(f'{at} has no "file_name". It has: {", ".join(map(str, line))}.')
        path = root / name
        if os.path.isabs(name) or "\\" in name or not Path(os.path.normpath(path)).is_relative_to(root):
            raise DataError(f'{at}: file_name "{name}" leads out of the folder, which is not followed.')
        if Path(os.path.normpath(path)) not in known:
            raise DataError(f'{at}: there is no image file "{name}" in {source}.')
        chosen.append(Path(os.path.normpath(path)))
    keys = list(dict.fromkeys(key for _, line in lines for key in line if key != "file_name"))
    table: dict[str, list[Any]] = {key: [line.get(key) for _, line in lines] for key in keys}
    if metadata.suffix == ".csv":
        table = {key: _typed(values) for key, values in table.items()}
    columns = {"image": Column("image")} | {key: Column(_kind(values)) for key, values in table.items()}
    table["image"] = chosen

    def rows(names: Sequence[str]) -> Iterator[tuple[str, tuple]]:
        for i, file in enumerate(chosen):
            yield file.relative_to(root).as_posix(), tuple(table[name][i] for name in names)

    return Table(columns, rows, len(chosen))


def _read(metadata: Path, source: str) -> list[tuple[int, dict[str, Any]]]:
    lines: list[tuple[int, dict[str, Any]]] = []
    try:
        with metadata.open(encoding="utf-8", newline="") as file:
            if metadata.suffix == ".csv":
                reader = csv.DictReader(file)
                return [(reader.line_num, row) for row in reader]
            for number, text in enumerate(file, start=1):
                if text.strip():
                    row = json.loads(text)
                    if not isinstance(row, dict):
                        raise DataError(f"{source}: {metadata.name} line {number} is not a JSON object.")
                    lines.append((number, row))
    except json.JSONDecodeError as error:
        raise DataError(f"{source}: {metadata.name} line {number} is not JSON: {error}.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{source}: {metadata.name} cannot be read: {error}.") from None
    return lines


def _typed(values: list[Any]) -> list[Any]:
    """A column of a CSV file: integers if every value is written as one, else text; an empty cell is no value."""
    try:
        return [int(value) for value in values]
    except (TypeError, ValueError):
        return [value or None for value in values]


def _kind(values: list[Any]) -> Any:
    present = [value for value in values if value is not None]
    if present and all(isinstance(value, str) for value in present):
        return "text"
    return "integer" if present and all(isinstance(value, int) for value in present) else "other"
