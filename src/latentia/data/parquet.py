"""Parquet files as a source of images, and the words in paths that name a split."""

import json
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from latentia.data.columns import Column, Source, Table
from latentia.data.left_out import LeftOut
from latentia.errors import DataError, MissingSplitError, UsageError, did_you_mean

SPLIT_WORDS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip


def of_split(files: list[Path], split: str, source: str, relative_to: Path | None = None) -> list[Path]:
    """The files whose path names `split` as a word; all of them if none names any split and "train" is asked."""
    if odd := [file for file in files if file.suffix.lower() != ".parquet"]:
        raise UsageError(f"{odd[0]} is not a .parquet file; give the folder that holds the images instead.")
    by_split: dict[str | None, list[Path]] = {}
    for file in files:
        place = str(file.relative_to(relative_to) if relative_to else file.name).lower()
        words = re.split(r"[^a-z0-9]+", place)
        by_split.setdefault(next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), None), []).append(file)
    names = {name for name in by_split if name}
    wanted = SPLIT_WORDS.get(split, split)
    if wanted in names:
        return by_split[wanted]
    if names or wanted != "train":
        raise MissingSplitError(
            f'{source} has no split "{split}".{did_you_mean(split, names)} '
            f"It has: {', '.join(sorted(names)) or 'train'}."
        )
    return files


def check_parts(files: list[Path]) -> None:
    """DataError if some of the files "...-00000-of-00004.parquet" are missing."""
    parts: dict[tuple[str, int], set[int]] = {}
    for file in files:
        if found := re.fullmatch(r"(.*)-(\d+)-of-(\d+)", str(file.with_suffix(""))):
            parts.setdefault((found[1], int(found[3])), set()).add(int(found[2]))
    for (name, count), there in parts.items():
        if missing := sorted({*range(count)} - there):
            raise DataError(
                f"{name}-...-of-{count:05}.parquet lacks {len(missing)} of its parts, as {missing[0]:05}. "
                "Fetch them, or name the files that you want by a pattern."
            )


def parquet_source(
    text: str,
    files: list[Path],
    split: str,
    about: dict | None = None,
    left_out: LeftOut | None = None,
    **defaults: str,
) -> Source:
    """The rows of parquet files of equal columns.

    Args:
        text: the source as the user wrote it.
        files: in their order.
        split: for `about`.
        about: facts for the model card; `None` (default): that these are parquet files.
        left_out: what beside the files is not taken.
        **defaults: the column of a role, as in `caption="text"`.
    """
    about = about or {"kind": "parquet", "name": Path(text).name, "split": split}
    named = {f"{i} {file.name}": file.resolve() for i, file in enumerate(files)}
    table = partial(_parquet_table, files, defaults)
    return Source(text, about, table, ["parquet", defaults], left_out or LeftOut(), named)


def holds_images(file: Path) -> bool:
    """Whether a parquet file has a column that may hold images, or cannot be read, which is said when it is opened."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return any(column.kind == "image" for column in arrow_columns(pq.read_schema(file)).values())
    except (OSError, pa.ArrowException):
        return True


def _parquet_table(files: list[Path], defaults: dict[str, str]) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = [pq.ParquetFile(file) for file in files]
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot read {', '.join(map(str, files))}: {error}") from error
    columns = arrow_columns(opened[0].schema_arrow)
    for file, parquet in zip(files, opened):
        others = arrow_columns(parquet.schema_arrow)
        for less, more, its in ((file, files[0], columns), (files[0], file, others)):
            if missing := [name for name in its if name not in columns or name not in others]:
                raise DataError(f"{less} lacks the column {missing[0]} that {more} has; give files of one kind.")
        if odd := [name for name in columns if columns[name].names != others[name].names]:
            raise DataError(
                f'{file} declares other classes for the column "{odd[0]}" than {files[0]}, so that a number would mean '
                "two of them. Give files of one kind."
            )

    def rows(names: Sequence[str]) -> Iterator[tuple[str, tuple]]:
        for file in files:
            number = 0
            try:
                for batch in pq.ParquetFile(file).iter_batches(256, columns=list(names)):
                    for values in zip(*(batch.column(name).to_pylist() for name in names)):
                        yield f"{file.name} row {number}", values
                        number += 1
            except (OSError, pa.ArrowException) as error:
                raise DataError(f"{file} cannot be read after row {number}: {error}") from error

    return Table(columns, rows, sum(parquet.metadata.num_rows for parquet in opened), defaults)


def arrow_columns(schema: Any) -> dict[str, Column]:
    """The columns of an arrow schema; class names come from what `datasets` writes into its metadata."""
    import pyarrow.types as types

    declared = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    columns = {}
    for field in schema:
        kind, struct = field.type, types.is_struct(field.type)
        if types.is_dictionary(kind):
            kind = kind.value_type
        if (
            types.is_binary(kind)
            or types.is_large_binary(kind)
            or (struct and field.type.get_field_index("bytes") >= 0)
        ):
            columns[field.name] = Column("image")
        elif types.is_integer(kind) or types.is_boolean(kind):
            info = declared.get(field.name)
            columns[field.name] = Column("integer", info.get("names") if isinstance(info, dict) else None)
        elif types.is_string(kind) or types.is_large_string(kind):
            columns[field.name] = Column("text")
        else:
            columns[field.name] = Column("other")
    return columns
