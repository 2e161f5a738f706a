"""Sources of images by what a user writes: names, paths, the Hub, data set objects; all opened as a `Table`."""

import glob
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from latentia.data.builtin import BUILTIN, builtin_source
from latentia.data.columns import Column, Source, Table
from latentia.data.decode import SUFFIXES
from latentia.data.folder import folder_source, kind_of, of_others
from latentia.data.names import is_unicode
from latentia.data.parquet import of_split, parquet_source
from latentia.errors import DataError, MissingSplitError, UsageError, did_you_mean
from latentia.files.logs import get_logger
from latentia.files.reading import read_text, user_path
from latentia.files.writing import write_text

logger = get_logger(__name__)

_PAUSES = (1.0, 2.0, 4.0)  # seconds before the Hub is asked again


def find_source(
    source: Any,
    split: str = "train",
    config_name: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    streaming: bool = False,
) -> Source:
    """The `Source` behind what a user writes: see `load_images`."""
    if not isinstance(source, str | Path):
        return _object_source(source, split)
    text = str(source)
    if not text or not is_unicode(text):
        raise UsageError(f"source must be a name or a path that can be written as UTF-8; got {text!a}.")
    if text in BUILTIN and not isinstance(source, Path):  # a folder may have such a name
        return builtin_source(text, split, parquet_source)
    path = user_path(text)
    if path.is_file():
        if path.suffix.lower() in SUFFIXES:
            raise UsageError(f"{text} is one image; give the folder that holds the images.")
        if path.suffix.lower() != ".parquet":
            kind = f", but {kind_of(path)}" if kind_of(path) else ""
            raise UsageError(
                f"{text} is neither a folder nor a .parquet file{kind}, and images are asked for here; give the folder "
                f"that holds them.{of_others(path.suffix)}"
            )
        return parquet_source(text, [path] if split == "train" else of_split([path], split, text), split)
    if path.is_dir():
        return folder_source(text, path, split)
    magic = any(sign in text for sign in "*?[")
    if magic and not isinstance(source, Path):
        files = sorted(Path(found) for found in glob.glob(str(path), recursive=True))
        if not files:
            raise DataError(f"{text} names no file; in a pattern, [[] stands for the bracket itself.")
        return parquet_source(text, of_split(files, split, text), split)
    if isinstance(source, Path) or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", text) or path.suffix == ".parquet":
        pattern = " A Path is never a pattern: give it as a text." if isinstance(source, Path) and magic else ""
        raise DataError(f"{text} does not exist, and is no name of a data set on the Hub.{pattern}")
    return _hub_source(text, split, config_name, revision, cache_dir, streaming)


def _hub_source(text, split, config_name, revision, cache_dir, streaming) -> Source:
    commit = _commit(text, revision)

    def open_() -> Table:
        import datasets

        try:
            data = _retry(
                lambda: datasets.load_dataset(
                    text,
                    config_name,
                    split=split,
                    revision=commit,
                    streaming=streaming,
                    cache_dir=None if cache_dir is None else str(cache_dir),
                )
            )
            _check_commit(data, commit)
        except Exception as error:  # each of the layers below has errors of its own
            missing = isinstance(error, ValueError) and re.search("(Unknown|Bad) split", str(error))
            kind = MissingSplitError if missing else DataError
            raise kind(f'cannot load split "{split}" of {text} at {commit[:12]} from the Hub: {error}') from error
        return _dataset_table(data, text, own=False)

    about = {"kind": "Hub", "name": text, "config": config_name, "split": split, "revision": commit}
    return Source(text, about, open_, [text, config_name, split, commit])


def _retry(ask: Callable[[], Any]) -> Any:
    """Call `ask`, and again a few times while the Hub answers that it is busy."""
    for pause in (*_PAUSES, None):
        try:
            return ask()
        except Exception as error:
            cause: BaseException | None = error
            while cause is not None and getattr(cause, "response", None) is None:
                cause = cause.__cause__ or cause.__context__
            status = getattr(getattr(cause, "response", None), "status_code", 0)
            if status < 500 and status not in (408, 429):
                raise
            if pause is None:
                raise ConnectionError(f"it answered with status {status} again and again; try later.") from error
            logger.warning("the Hub answered with status %d, asking again in %g s", status, pause)
        time.sleep(pause)
    raise AssertionError("unreachable")


def _check_commit(data: Any, commit: str) -> None:
    """`datasets` takes any commit it has in its cache, with a warning only, if the Hub does not answer."""
    cached = [Path(file["filename"]) for file in getattr(data, "cache_files", None) or []]
    cached += map(Path, getattr(getattr(data, "_ex_iterable", None), "kwargs", {}).get("files", ()))
    for path in cached:
        found = next((part for part in path.parts if re.fullmatch("[0-9a-f]{40}", part)), commit)
        if found != commit:
            raise DataError(f"the Hub does not answer, and only commit {found[:12]} is in the cache of datasets.")


def _commit(name: str, revision: str | None) -> str:
    """The commit that `revision` stands for now; offline, the one it stood for when the data set was last fetched."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.file_download import repo_folder_name

    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="dataset")
    reference = folder / "refs" / (revision or "main")
    try:
        commit = _retry(lambda: HfApi().dataset_info(name, revision=revision, timeout=30).sha)
    except Exception as error:
        if reference.is_file() and getattr(getattr(error, "response", None), "status_code", 500) >= 500:
            return read_text(reference, 1000, error=DataError).strip()
        reason = " ".join(str(error).split())
    else:
        if commit:
            with suppress(OSError):  # for the next time, which may be offline
                reference.parent.mkdir(parents=True, exist_ok=True)
                write_text(reference, commit)
            return commit
        reason = "the Hub named no commit"
    raise DataError(
        f'"{name}" is neither a path that exists nor built in ({", ".join(BUILTIN)}).{did_you_mean(name, BUILTIN)} '
        f"As a data set on the Hub{f' at revision {revision}' if revision else ''} it cannot be found: {reason}"
    )


def _object_source(source: Any, split: str) -> Source:
    name = f"the {type(source).__name__} given"
    if isinstance(source, Mapping):  # a DatasetDict
        if split not in source:
            raise MissingSplitError(f'{name} has no split "{split}". It has: {", ".join(map(str, source))}.')
        return _object_source(source[split], split)
    if isinstance(source, Iterator):
        raise UsageError(
            f"{name} can be gone through once only, but training goes through its data many times. "
            "Give an object whose __iter__ starts anew, or the function that makes the iterator."
        )
    if not isinstance(source, Iterable) and not callable(source):
        raise UsageError(
            f"source must be a name, a path, a data set or an iterable of rows, got {type(source).__name__}."
        )
    _refuse_transform(source, name)
    fingerprint = getattr(source, "_fingerprint", None) if hasattr(source, "features") else None
    about = {"kind": type(source).__name__, "split": split, "dataset_fingerprint": fingerprint}
    return Source(
        name,
        about,
        lambda: _dataset_table(source, name),
        fingerprint if hasattr(source, "__len__") else None,
        files=_files_of(source) if fingerprint else {},
    )


def _refuse_transform(data: Any, name: str) -> None:
    """A transform on access gives another image each time, and may give no image at all; decoded images are stored."""
    transform = getattr(data, "format", {}).get("format_kwargs", {}).get("transform")
    if transform is not None:
        function = getattr(transform, "__name__", type(transform).__name__)
        raise UsageError(
            f"{name} has a transform, {function}, set by with_transform or set_transform, and latentia stores decoded "
            "images. Apply it once with .map, or drop it with .with_format(None) and use resolution, center_crop and "
            "random_flip."
        )


def _files_of(data: Any) -> dict[str, Path]:
    """The image files that a data set of `datasets` names instead of holding their bytes."""
    import datasets
    import pyarrow.compute as pc

    names: set[str] = set()
    for column, feature in data.features.items():
        if isinstance(feature, datasets.Image):
            cells = data.data.column(column)
            paths = pc.filter(pc.struct_field(cells, "path"), pc.is_null(pc.struct_field(cells, "bytes")))
            names |= {path for path in paths.unique().to_pylist() if path}
    return {name: path for name in sorted(names) if (path := Path(name)).is_file()}


def _dataset_table(data: Any, name: str, own: bool = True) -> Table:
    """A table over a `datasets` data set (of either kind), an iterable of dicts or a function that makes one.

    `own`: the user made it, so paths in it are followed; else only those of files that `datasets` fetched.
    """
    features = getattr(data, "features", None)
    if features:
        import datasets

        columns = {}
        shown = getattr(data, "format", {})
        for key, feature in features.items():
            if shown and not shown["output_all_columns"] and key not in shown["columns"]:
                continue  # with_format(columns=...) hides it
            if isinstance(feature, datasets.Image):
                columns[key] = Column("image")
                if feature.mode is None:  # else `datasets` converts to the mode that the user declared
                    data = data.cast_column(key, datasets.Image(decode=False))
            elif isinstance(feature, datasets.ClassLabel):
                columns[key] = Column("integer", feature.names)
            else:
                dtype = str(getattr(feature, "dtype", ""))
                kind = "integer" if "int" in dtype or dtype == "bool" else "text" if "string" in dtype else "other"
                columns[key] = Column("image" if "binary" in dtype else kind)  # type: ignore[arg-type]
        data = data.with_format(None)
    else:
        try:
            first = next(iter(data() if callable(data) else data), None)
        except Exception as error:
            raise DataError(f"{name} cannot be read: {error}") from error
        if not isinstance(first, Mapping):
            raise DataError(
                f"{name} {'holds no row' if first is None else f'gives {type(first).__name__}s, not dicts'}."
            )
        columns = {str(key): Column(_kind(value)) for key, value in first.items()}

    def rows(names: Sequence[str]) -> Iterator[tuple[str, tuple]]:
        picked = data.select_columns(list(names)) if features else data() if callable(data) else data
        for number, row in enumerate(picked):
            if missing := [column for column in names if column not in row]:
                raise DataError(f'{name}: row {number} has no "{missing[0]}".')
            yield f"row {number}", tuple(_follow(row[column], own) for column in names)

    return Table(columns, rows, len(data) if hasattr(data, "__len__") else None)


def _kind(value: Any) -> Any:
    if (
        hasattr(value, "getbands")
        or isinstance(value, bytes | np.ndarray)
        or (isinstance(value, dict) and "bytes" in value)
    ):
        return "image"
    if isinstance(value, bool | int | np.integer):
        return "integer"
    return "text" if isinstance(value, str) else "other"


def _follow(value: Any, own: bool) -> Any:
    """An image that `datasets` gives as a path only: its path or bytes, if it may be read."""
    if not (isinstance(value, dict) and value.get("bytes") is None and isinstance(value.get("path"), str)):
        return value
    if re.match(r"(zip://[^:]*::)?hf://", value["path"]):  # a streamed file of a Hub repository
        import fsspec

        with fsspec.open(value["path"], "rb") as file:
            return file.read()
    from datasets import config
    from huggingface_hub import constants

    path = Path(value["path"])
    roots = [Path(root).resolve() for root in (config.HF_DATASETS_CACHE, constants.HF_HUB_CACHE)]
    inside = path.is_absolute() and any(path.resolve().is_relative_to(root) for root in roots)
    return path if own or inside else value
