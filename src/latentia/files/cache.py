"""Cache on disk: what is expensive to compute is written once and then read, by any number of processes.

A file is written under another name, synced and renamed, so it is either whole or not there. A lock lets one process
compute while others wait. Two formats: `cached_tensors` writes a safetensors file that says what it was made of;
`cached_bytes` writes one flat array, which is mapped into memory instead of read, and a JSON beside it.
"""

import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from latentia.errors import DataError, LatentiaError
from latentia.files.logs import get_logger
from latentia.files.reading import read_object, read_text, user_path
from latentia.files.writing import remove, replacing, staging_of, sync, write_text

logger = get_logger(__name__)
T = TypeVar("T")

PATIENCE = 5.0  # seconds before a process that waits for another one says so
MAX_META = 2**30  # bytes of the JSON of `cached_bytes`, which holds a caption for each image
BYTES_FORMAT = 2  # of `cached_bytes`; raise it when the meaning of the files changes
HASHED_BYTES = 1 << 30  # up to here the content of `cached_bytes` is hashed at each opening, above only its size counts


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """`cache_dir`, else $LATENTIA_CACHE, else `latentia` in $HF_HOME, $XDG_CACHE_HOME or ~/.cache.

    Example:
        >>> cache_folder("/tmp/features").as_posix()
        '/tmp/features'
    """
    if cache_dir is not None:
        return user_path(cache_dir)
    for variable, below in (("LATENTIA_CACHE", ""), ("HF_HOME", "latentia"), ("XDG_CACHE_HOME", "latentia")):
        if os.environ.get(variable):
            return user_path(os.environ[variable]) / below
    return user_path("~/.cache/latentia")


def key_of(parts: Any) -> str:
    """32 hexadecimal digits for anything that JSON can write: BLAKE2b of its JSON with sorted keys.

    Example:
        >>> key_of({"a": 1, "b": [2]}) == key_of({"b": [2], "a": 1})
        True
    """
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def cached_tensors(
    compute: Callable[[], Mapping[str, Tensor]],
    made_of: Mapping[str, str],
    what: str,
    *,
    cache_dir: str | Path | None = None,
    file: str | Path | None = None,
) -> dict[str, Tensor]:
    """The tensors of a safetensors file; computed and written first if the file is not there.

    Args:
        compute: makes the tensors, on the CPU. Called by one process while others wait for its file.
        made_of: what the tensors are a function of. It is stored in the file and compared when the file is read.
        what: one word for the tensors, such as "latents": the folder in the cache, and the word in messages.
        cache_dir: see `cache_folder`; the file lies in a folder `what` of the cache, or of `cache_dir` if it is given.
        file: path of the file; `None` (default): in the cache, under a name made of `made_of`.

    Returns:
        The tensors as they are in the file. A damaged file of the cache is made again, with a warning.

    Raises:
        DataError: the file was made of something else, `file` is damaged, or the disk is full or read-only.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cached_tensors(lambda: {"x": torch.ones(2)}, {"of": "ones"}, "examples", cache_dir=folder)
        {'x': tensor([1., 1.])}
    """
    name = f"{key_of(dict(made_of))}.safetensors"
    path = cache_folder(cache_dir) / what / name if file is None else user_path(file)
    return _once(
        lambda: _read_tensors(path, made_of, what, explicit=file is not None),
        lambda: _write_tensors(path, compute(), made_of),
        path,
        what,
    )


def cached_bytes(
    build: Callable[[Callable[[memoryview], Any]], dict[str, Any]], key: str, folder: Path, what: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """The flat uint8 array of `key`, mapped copy-on-write, and the dict that `build` returned when it was made.

    Args:
        build: called with a `write(memoryview)`; returns what the JSON holds.
        key: name of the files.
        folder: where the files lie; made if need be.
        what: the bytes are, for messages.

    Raises:
        DataError: the folder cannot be written or the disk is full.
    """
    return _once(
        lambda: _read_bytes(folder, key), lambda: _write_bytes(folder, key, build, what), folder / f"{key}.u8", what
    )


def _once(read: Callable[[], T | None], write: Callable[[], None], path: Path, what: str) -> T:
    """What `read` gives; if that is None, what it gives after one process has called `write`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        found = read()
        if found is None:
            with _turn(path, what):
                found = read()  # another process may have been faster
                if found is None:
                    write()
                    found = read()
    except LatentiaError:  # of the source, which `write` reads
        raise
    except OSError as error:
        raise _unwritable(path.parent, what, error) from error
    if found is None:
        raise DataError(f"{path} does not read back as it was written; the disk may be failing.")
    return found


@contextmanager
def _turn(path: Path, what: str) -> Iterator[None]:
    """Hold the lock of a file. After `PATIENCE` seconds a waiting process says for whom it waits.

    The system gives up the lock of a process that ends, however it ends, so that another one takes over.
    """
    lock, owner = FileLock(path.with_name(f"{path.stem}.lock")), path.with_name(f"{path.stem}.owner")
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        held = "another process"  # for a moment, nothing else is known
        with suppress(LatentiaError):
            held = read_text(owner, 1000)
        logger.warning("waiting for %s, which writes %s to %s; end it if it hangs", held, what, path)
        lock.acquire()
    try:
        write_text(owner, f"process {os.getpid()} on {socket.gethostname()}", durable=False)
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _unwritable(folder: Path, what: str, error: OSError) -> DataError:
    return DataError(
        f"cannot write {what} to {folder}: {error.strerror or error}. Give another cache_dir, or set LATENTIA_CACHE to "
        "a folder with room."
    )


# ------------------------------------------------------------ tensors


def _digest_of(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=32)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def _read_tensors(path: Path, made_of: Mapping[str, str], what: str, explicit: bool) -> dict[str, Tensor] | None:
    """What the file holds; None if there is none, or it is one of the cache and damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as opened:
            stored = opened.metadata() or {}
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}
        damage = None if stored.get("blake2b") == _digest_of(tensors) else "its content does not match its hash"
    except (SafetensorError, OSError, ValueError) as error:
        stored, tensors, damage = {}, {}, str(error)
    if damage is not None:
        if explicit:
            raise DataError(f"{path} is damaged: {damage}. Delete it, and it is made again.")
        logger.warning("%s is damaged and is made again: %s", path, damage)
        return None
    if wrong := [key for key in made_of if stored.get(key) != made_of[key]]:
        raise DataError(
            f"{path} holds {what} of something else: "
            + "; ".join(f"its {key} is {stored.get(key)}, not {made_of[key]}" for key in wrong)
            + ". Give another file, or delete this one, and it is made again."
        )
    return tensors


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], made_of: Mapping[str, str]) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    staging = staging_of(path)
    try:
        save_file(tensors, staging, metadata={**made_of, "blake2b": _digest_of(tensors)})
        sync(staging)
        os.replace(staging, path)
    except SafetensorError as error:  # what it makes of a full disk
        raise OSError(str(error)) from error
    finally:
        remove(staging)


# ------------------------------------------------------------ bytes


def _read_bytes(folder: Path, key: str) -> tuple[np.ndarray, dict[str, Any]] | None:
    with suppress(OSError, ValueError, KeyError, TypeError):  # our own errors are ValueErrors
        stored = read_object(folder / f"{key}.json", MAX_META, error=DataError)
        if stored["format"] != BYTES_FORMAT or (folder / f"{key}.u8").stat().st_size != stored["bytes"]:
            return None
        if stored["meta_blake2b"] != key_of(stored["meta"]):
            return None
        content = np.memmap(folder / f"{key}.u8", dtype=np.uint8, mode="c")
        if (
            stored["bytes"] > HASHED_BYTES
            or hashlib.blake2b(content.data, digest_size=32).hexdigest() == stored["blake2b"]
        ):
            return content, {**stored["meta"], "blake2b": stored["blake2b"]}
    return None


def _write_bytes(folder: Path, key: str, build, what: str) -> None:
    for left_over in [*folder.glob(f".{key}.u8.partial-*"), folder / f"{key}.json"]:
        remove(left_over)
    digest, size = hashlib.blake2b(digest_size=32), 0
    with replacing(folder / f"{key}.u8") as file:

        def write(data: memoryview) -> None:
            nonlocal size
            try:
                file.write(data)
            except OSError as error:  # an error of the disk, not of the source that `build` reads
                raise _unwritable(folder, what, error) from error
            digest.update(data)
            size += data.nbytes

        meta = build(write)
    about = {"format": BYTES_FORMAT, "bytes": size, "blake2b": digest.hexdigest(), "meta": meta}
    about["meta_blake2b"] = key_of(meta)
    write_text(folder / f"{key}.json", json.dumps(about))  # last: it stands for a complete file
