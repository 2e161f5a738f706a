"""The identity of files by their content: a copy or a touched file is the same data, and a changed one is not."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from latentia.data.decode import MAX_BYTES
from latentia.errors import DataError
from latentia.files.cache import key_of
from latentia.files.reading import open_file, read_json
from latentia.files.writing import write_json


def stamps(files: Mapping[str, Path]) -> list[list[Any]]:
    """Name, path, size and times of each file: changes when its content does, and at other times too."""
    out: list[list[Any]] = []
    for name, path in files.items():
        try:
            stat = path.stat()
        except OSError:  # a broken link; who opens it says so
            out.append([name, str(path)])
        else:  # the time of the last change of the inode cannot be set, unlike that of the content
            out.append([name, str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino])
    return out


def content_key(files: Mapping[str, Path], folder: Path) -> str:
    """32 hexadecimal digits of the names and contents of files, in their order.

    The files are read once; the result is remembered in `folder` for as long as their `stamps` stay.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp())
        >>> _ = (place / "a").write_text("x"), (place / "b").write_text("x")
        >>> content_key({"0": place / "a"}, place) == content_key({"0": place / "b"}, place)
        True
    """
    memory = folder / f"{key_of(stamps(files))}.json"
    with suppress(OSError, ValueError):
        known = read_json(memory, error=DataError)
        if isinstance(known, str):
            return known
    digests = []
    for name, path in files.items():
        try:
            most = None if path.suffix.lower() == ".parquet" else MAX_BYTES  # sparse files may have any size
            with open_file(path, most=most, error=DataError) as file:
                digests.append([name, hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()])
        except (OSError, DataError):  # the reader of its content raises the error
            digests.append([name, "unreadable"])
    key = key_of(digests)
    with suppress(OSError):  # then, and if only a part is written, it is computed again
        folder.mkdir(parents=True, exist_ok=True)
        write_json(memory, key, durable=False)
    return key
