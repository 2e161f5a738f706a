"""Metadata of a folder of images: metadata.csv, .jsonl, .json or .parquet, beside the images or above them."""

import csv
import io
import json
import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latentia.data.parquet import open_parquet, parquet_rows
from latentia.errors import DataError, did_you_mean
from latentia.files.reading import read_bytes

_MAX_UNFOLDED = 2**30  # bytes of a file, and of the values of a parquet file
METADATA = (".csv", ".jsonl", ".json", ".parquet")
Line = tuple[str, dict[str, Any]]  # where it stands, and its values


def read_metadata(files: list[Path], root: Path, images: list[Path], source: str) -> list[tuple[Path, dict[str, Any]]]:
    """The images that the files name, each with the other columns of its line; an image may have several lines.

    Args:
        files: the metadata files. `file_name` is relative to the folder of the file that holds it.
        root: the folder, resolved.
        images: all image files below it.
        source: as the user wrote it.

    Raises:
        DataError: two files in one folder or of one image, a file that is not well formed, or a line that names no
            image of the folder; with the line.
    """
    known = {unicodedata.normalize("NFC", str(image)): image for image in images}  # macOS writes NFD
    rows: list[tuple[Path, dict[str, Any]]] = []
    owner: dict[Path, Path] = {}
    folders: dict[Path, Path] = {}
    for file in files:
        beside = folders.setdefault(file.parent, file)
        if beside != file:
            raise DataError(f"{source} has both {beside.name} and {file.name}; keep one.")
        lines = _read(file, f"{source}: {file.relative_to(root).as_posix()}")
        if not lines:
            raise DataError(f"{source}: {file.relative_to(root).as_posix()} holds no line.")
        for at, line in lines:
            path = _named(line.pop("file_name", None), at, file.parent, root, known, line)
            if owner.setdefault(path, file) != file:
                raise DataError(
                    f"{at}: {path.relative_to(root).as_posix()} is named in "
                    f"{owner[path].relative_to(root).as_posix()} too; keep one of both."
                )
            rows.append((path, line))
    return rows


def _named(name: Any, at: str, folder: Path, root: Path, known: dict[str, Path], rest: dict[str, Any]) -> Path:
    if not isinstance(name, str) or not name:
        hint = did_you_mean("file_name", map(str, rest))
        advice = f"{hint} Rename it to file_name." if hint else ""
        raise DataError(f'{at} has no "file_name". It has: {", ".join(map(str, rest))}.{advice}')
    slashes = name.replace("\\", "/")  # as Windows writes it, unless there is such a file
    for spelling in (name, slashes):
        found = known.get(unicodedata.normalize("NFC", os.path.normpath(folder / spelling)))
        if found is not None and not os.path.isabs(spelling):
            return found
    outside = os.path.isabs(slashes) or re.match("[A-Za-z]:", slashes)
    if outside or not Path(os.path.normpath(folder / slashes)).is_relative_to(root):
        raise DataError(
            f'{at}: file_name "{name}" leads out of the folder, which is not followed. Give paths relative to the '
            "folder of the metadata, and keep the images below it."
        )
    names = [os.path.relpath(path, folder) for path in known.values()]
    same = [other for other in names if other.casefold() == slashes.casefold()]  # one name on Windows
    hint = f' Did you mean "{same[0]}"?' if same else did_you_mean(slashes, names)
    raise DataError(f'{at}: there is no image file "{name}" in {folder}.{hint}')


def _read(file: Path, source: str) -> list[Line]:
    try:
        if file.suffix.lower() == ".parquet":
            return _read_parquet(file, source)
        data = read_bytes(file, _MAX_UNFOLDED, error=DataError)
        wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
        text = data.decode("utf-16" if wide else "utf-8-sig")  # without the byte order mark
    except UnicodeDecodeError as error:
        raise DataError(f"{source} cannot be read: it is not UTF-8 ({error}). Save it as UTF-8.") from None
    if file.suffix.lower() == ".csv":
        return _read_csv(text, source)
    if file.suffix.lower() == ".jsonl":
        parts = [(f"{source} line {i}", line) for i, line in enumerate(text.split("\n"), start=1) if line.strip()]
        return [(at, _object(_json(line, at), at)) for at, line in parts]
    entries = _json(text, source, " Lines of one object each belong in metadata.jsonl.")
    if not isinstance(entries, list):
        raise DataError(f'{source} must hold a list of objects, [{{"file_name": ..., ...}}, ...].')
    return [(at := f"{source} entry {i}", _object(entry, at)) for i, entry in enumerate(entries)]


def _read_parquet(file: Path, source: str) -> list[Line]:
    """The rows; columns of lists and structs, which are not used, without their values."""
    schema = open_parquet(file).schema_arrow
    names = [field.name for field in schema if not field.type.num_fields]
    lines, size = [], 0
    for i, values in enumerate(parquet_rows(file, names)):
        size += sum(len(value) if isinstance(value, str | bytes) else 8 for value in values)
        if size > _MAX_UNFOLDED:
            raise DataError(
                f"{source} unfolds to more than {_MAX_UNFOLDED} bytes by row {i}; at most so many are read."
            )
        lines.append((f"{source} row {i}", dict.fromkeys(schema.names) | dict(zip(names, values))))
    return lines


def _json(text: str, at: str, advice: str = "") -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of too many digits, and lists nested too deep
        raise DataError(f"{at} is not JSON: {error}.{advice}") from None


def _object(entry: Any, at: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise DataError(f"{at} is not a JSON object.")
    return entry


def _read_csv(text: str, source: str) -> list[Line]:
    """Rows of as many fields as the head; the comma, the semicolon and the tab are known by the head."""
    heads = {sign: [name.strip(' "\r') for name in text.split("\n", 1)[0].split(sign)] for sign in ",;\t"}
    sign = next((sign for sign, names in heads.items() if "file_name" in names), ",")
    rows = list(_rows(text, sign, source))
    if not rows:
        return []
    (_, first), rest = rows[0], rows[1:]
    head = [name.strip() for name in first]
    if twice := [name for name in head if name and head.count(name) > 1]:
        raise DataError(f'{source} has two columns "{twice[0]}"; rename one.')
    for number, row in rest:
        if len(row) != len(head):
            raise DataError(
                f"{source} line {number} has {len(row)} fields, but the head has {len(head)}: {', '.join(head)}. "
                f'Put a value that holds "{sign}" in quotation marks.'
            )
    columns = {name: _typed([row[i] for _, row in rest]) for i, name in enumerate(head)}
    return [
        (f"{source} line {number}", {name: column[i] for name, column in columns.items()})
        for i, (number, _) in enumerate(rest)
    ]


def _rows(text: str, sign: str, source: str) -> Iterator[tuple[int, list[str]]]:
    """Each row that is not empty, with the line at which it starts."""
    reader, start = csv.reader(io.StringIO(text, newline=""), delimiter=sign, strict=True), 1
    try:
        for row in reader:
            if row:
                yield start, row
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{source} line {start} is not CSV: {error}.") from None


def _typed(values: list[str]) -> list[Any]:
    """A column of a CSV file: integers if every value is written as one, else text; an empty cell is no value.

    "007" stays a text: a name of three digits, not the number 7. So do numbers of more than 18 digits.
    """
    if all(re.fullmatch(r"\s*-?(0|[1-9][0-9]{0,17})\s*", value) for value in values):
        return [int(value) for value in values]
    return [value or None for value in values]
