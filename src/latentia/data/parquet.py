"""Parquet files as a source of images, and the words in paths that name a split.

A file of kilobytes may stand for gigabytes: a value of its dictionary is stored once for any number of rows. So columns
that are small while they are folded are read as dictionaries and unfolded row by row, and others are read row by row.
"""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from latentia.data.columns import Column, Source, Table
from latentia.data.left_out import LeftOut
from latentia.errors import DataError, MissingSplitError, UsageError, did_you_mean
from latentia.files.reading import check_file, parse_json

_BATCH_ROWS = 256
_SMALL = 2**26  # bytes of a column in a group of rows, up to which it is read as a dictionary

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


def open_parquet(path: Path) -> Any:
    """A `pyarrow.parquet.ParquetFile`; texts and bytes of small columns are dictionaries.

    Raises:
        DataError: it is no parquet file that can be read, or has two columns of one name.
    """
    import pyarrow.parquet as pq

    check_file(path, error=DataError)
    try:
        plain = pq.ParquetFile(path)
        folded = [
            leaf.path
            for i, leaf in enumerate(map(plain.schema.column, range(len(plain.schema))))
            if leaf.physical_type == "BYTE_ARRAY" and not leaf.max_repetition_level and _size(plain, i) <= _SMALL
        ]
        # In small reads, as a whole group of rows may be large.
        opened = pq.ParquetFile(path, read_dictionary=folded, pre_buffer=False, buffer_size=2**20)
        names = opened.schema_arrow.names
    except Exception as error:  # of arrow, and of Python where a name is no UTF-8
        raise DataError(f"{path} cannot be read as parquet: {error}") from error
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f'{path} has two columns "{twice[0]}"; rename one.')
    return opened


def _size(opened: Any, leaf: int) -> int:
    """Bytes of a column, folded, in the largest group of rows."""
    groups = map(opened.metadata.row_group, range(opened.num_row_groups))
    return max((group.column(leaf).total_uncompressed_size for group in groups), default=0)


def parquet_rows(path: Path, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The values of columns row by row; of a struct of image bytes only {"bytes": ...}.

    Raises:
        DataError: the file cannot be read, a value of it is none of Python, or a column holds lists or structs.
    """
    opened = open_parquet(path)
    columns, schema = arrow_columns(opened.schema_arrow, path), opened.schema_arrow
    struct = {name: columns[name].kind == "image" and schema.field(name).type.num_fields > 0 for name in names}
    for name in names:
        if schema.field(name).type.num_fields and not struct[name]:
            raise DataError(f'{path}: the column "{name}" must hold values; it holds {schema.field(name).type}.')
    wanted = [f"{name}.bytes" if struct[name] else name for name in names]
    number = 0
    try:
        for batch in opened.iter_batches(_batch_rows(opened, wanted), columns=wanted):
            found = [batch.column(name) for name in names]
            for i in range(len(batch)):
                yield tuple(column[i].as_py() for column in found)
                number += 1
    except Exception as error:  # of arrow, and of Python for a text that is no UTF-8 or a date out of its range
        raise DataError(f"{path} cannot be read after row {number}: {error}") from error


def _batch_rows(opened: Any, wanted: Sequence[str]) -> int:
    """Rows that may be unfolded at once: one, if a column is not small or its values have a large fixed length."""
    rows = _BATCH_ROWS
    for i, leaf in enumerate(map(opened.schema.column, range(len(opened.schema)))):
        if leaf.path in wanted and "BYTE_ARRAY" in leaf.physical_type:
            rows = min(rows, _SMALL // max(leaf.length, 1)) if _size(opened, i) <= _SMALL else 1
    return max(1, rows)


def holds_images(file: Path) -> bool:
    """Whether a parquet file has a column that may hold images, or cannot be read, which is said when it is opened."""
    try:
        return any(column.kind == "image" for column in arrow_columns(open_parquet(file).schema_arrow, file).values())
    except DataError:
        return True


def _parquet_table(files: list[Path], defaults: dict[str, str]) -> Table:
    opened = [open_parquet(file) for file in files]
    columns = arrow_columns(opened[0].schema_arrow, files[0])
    for file, parquet in zip(files, opened):
        others = arrow_columns(parquet.schema_arrow, file)
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
            for number, values in enumerate(parquet_rows(file, names)):
                yield f"{file.name} row {number}", values

    return Table(columns, rows, sum(parquet.metadata.num_rows for parquet in opened), defaults)


def arrow_columns(schema: Any, path: Path) -> dict[str, Column]:
    """The columns of an arrow schema; class names come from what `datasets` writes into its metadata.

    Raises:
        DataError: that metadata is not what `datasets` writes.
    """
    import pyarrow.types as types

    declared = _declared_classes((schema.metadata or {}).get(b"huggingface"), path)
    columns = {}
    for field in schema:
        kind = _value_type(field.type)
        inner = types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _value_type(kind.field("bytes").type)
        if _holds_bytes(kind) or (inner and (_holds_bytes(inner) or types.is_null(inner))):
            columns[field.name] = Column("image")
        elif types.is_integer(kind) or types.is_boolean(kind):
            columns[field.name] = Column("integer", declared.get(field.name))
        elif types.is_string(kind) or types.is_large_string(kind):
            columns[field.name] = Column("text")
        else:
            columns[field.name] = Column("other")
    return columns


def _holds_bytes(kind: Any) -> bool:
    import pyarrow.types as types

    return types.is_binary(kind) or types.is_large_binary(kind)


def _value_type(kind: Any) -> Any:
    import pyarrow.types as types

    return kind.value_type if types.is_dictionary(kind) else kind


def _declared_classes(metadata: bytes | None, path: Path) -> dict[str, list[str]]:
    """The names of classes that `datasets` declares in the metadata of a schema, by column."""
    try:
        features = parse_json(metadata or b"{}", path, DataError).get("info", {}).get("features", {})
        found = {
            name: about["names"] for name, about in features.items() if isinstance(about, dict) and "names" in about
        }
        sound = all(isinstance(names, list) and all(isinstance(n, str) for n in names) for names in found.values())
    except (AttributeError, DataError):
        sound = False
    if not sound:
        raise DataError(f'{path}: its metadata "huggingface" are not those of datasets. Write it again without them.')
    return found
