"""Decoded images on disk: one flat uint8 file and a JSON beside it, made once and then only mapped.

The file is written under another name, synced and renamed, the JSON likewise and last, so that a JSON stands for a
complete file. A lock lets one process build while others wait. What does not match its JSON is built anew.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from ..errors import DataError

FORMAT = 1  # raise it when the meaning of the files changes
HASHED_BYTES = 1 << 30  # up to here the content is hashed at each opening, above only the size is compared


def cache_folder(cache_dir: str | Path | None) -> Path:
    """`cache_dir`, else $LATENTIA_CACHE, else `latentia` in $HF_HOME, $XDG_CACHE_HOME or ~/.cache."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    for variable, below in (("LATENTIA_CACHE", ""), ("HF_HOME", "latentia"), ("XDG_CACHE_HOME", "latentia")):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser() / below
    return Path("~/.cache/latentia").expanduser()


def key_of(parts: Any) -> str:
    """32 hexadecimal digits for anything that JSON can write.

    Example:
        >>> key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1})
        True
    """
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def open_or_build(
    folder: Path, key: str, build: Callable[[Callable[[memoryview], Any]], dict[str, Any]]
) -> tuple[np.ndarray, dict[str, Any]]:
    """The flat uint8 pixels of `key`, mapped copy-on-write, and the dict that `build` returned when they were made.

    Args:
        folder: where the files lie; made if need be.
        key: their name.
        build: called with a `write(memoryview)`; returns what the JSON keeps.

    Raises:
        DataError: the folder cannot be written or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = _open(folder, key)
        if found is None:
            with FileLock(folder / f"{key}.lock"):
                found = _open(folder, key) or _build(folder, key, build)
        return found
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot keep decoded images in {folder}: {error.strerror or error}. "
        "Give another cache_dir, or set LATENTIA_CACHE to a folder with room."
    )


def _open(folder: Path, key: str) -> tuple[np.ndarray, dict[str, Any]] | None:
    try:
        kept = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
        if kept["format"] != FORMAT or (folder / f"{key}.u8").stat().st_size != kept["bytes"]:
            return None
        pixels = np.memmap(folder / f"{key}.u8", dtype=np.uint8, mode="c")
        if kept["bytes"] <= HASHED_BYTES and _digest(pixels) != kept["blake2b"]:
            return None
        return pixels, {**kept["meta"], "blake2b": kept["blake2b"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest(data: Any) -> str:
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def _build(folder: Path, key: str, build) -> tuple[np.ndarray, dict[str, Any]]:
    for left_over in [*folder.glob(f"{key}.*.tmp"), folder / f"{key}.json"]:
        left_over.unlink(missing_ok=True)
    pixels_tmp, json_tmp = folder / f"{key}.u8.{os.getpid()}.tmp", folder / f"{key}.json.{os.getpid()}.tmp"
    digest, size = hashlib.blake2b(digest_size=32), 0
    try:
        with pixels_tmp.open("wb", buffering=1 << 20) as file:

            def write(data: memoryview) -> None:
                nonlocal size
                try:
                    file.write(data)
                except OSError as error:
                    raise _unwritable(folder, error) from error
                digest.update(data)
                size += data.nbytes

            meta = build(write)
            _sync(file)
        with json_tmp.open("w", encoding="utf-8") as text:
            json.dump({"format": FORMAT, "bytes": size, "blake2b": digest.hexdigest(), "meta": meta}, text)
            _sync(text)
        os.replace(pixels_tmp, folder / f"{key}.u8")
        os.replace(json_tmp, folder / f"{key}.json")
    finally:
        pixels_tmp.unlink(missing_ok=True)
        json_tmp.unlink(missing_ok=True)
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    found = _open(folder, key)
    if found is None:
        raise DataError(f"{folder / key}.u8 does not read back as it was written; the disk may be failing.")
    return found


def _sync(file) -> None:
    file.flush()
    os.fsync(file.fileno())
