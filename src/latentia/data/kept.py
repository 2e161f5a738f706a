"""Tensors that are computed once and kept on disk: a safetensors file which says what it was made of."""

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import DataError

logger = logging.getLogger(__name__)


def kept(
    path: Path, made_of: dict[str, str], compute: Callable[[], dict[str, Tensor]], what: str, *, explicit: bool
) -> dict[str, Tensor]:
    """What the file holds, computed and written first if it is not there.

    One process computes while others wait for its file, and all read the same bytes.

    Args:
        path: of the file.
        made_of: what the tensors are a function of; kept in the file and compared.
        compute: makes the tensors.
        what: they are, for messages.
        explicit: whether the user named the file: then one that is damaged is an error, else it is made again.

    Raises:
        DataError: the file is of something else, is damaged, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        found = _read(path, made_of, what, explicit)
        if found is None:
            with FileLock(f"{path}.lock"):
                found = _read(path, made_of, what, explicit)  # another process may have been faster
                if found is None:
                    _write(path, compute(), made_of)
                    found = _read(path, made_of, what, explicit)
    except OSError as error:
        raise DataError(
            f"cannot keep {what.split()[0]} at {path}: {error.strerror or error}. Give another cache_dir, or set "
            "LATENTIA_CACHE to a folder with room."
        ) from error
    if found is None:
        raise DataError(f"{path} does not read back as it was written; the disk may be failing.")
    return found


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=32)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def _read(path: Path, made_of: dict[str, str], what: str, explicit: bool) -> dict[str, Tensor] | None:
    """What the file holds; None if there is none, or it is one of the cache and damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as opened:
            kept = opened.metadata() or {}
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}
        damage = None if kept.get("blake2b") == _digest(tensors) else "its content does not match its hash"
    except (SafetensorError, OSError, ValueError) as error:
        kept, tensors, damage = {}, {}, str(error)
    if damage is not None:
        if explicit:
            raise DataError(f"{path} is damaged: {damage}. Delete it, and it is made again.")
        logger.warning("%s is damaged and is made again: %s", path, damage)
        return None
    if wrong := [key for key in made_of if kept.get(key) != made_of[key]]:
        raise DataError(
            f"{path} must hold the {what}. "
            + "; ".join(f"its {key} is {kept.get(key)}, not {made_of[key]}" for key in wrong)
            + ". Give another file, or none, and they are found or made by themselves."
        )
    return tensors


def _write(path: Path, tensors: dict[str, Tensor], made_of: dict[str, str]) -> None:
    """Under another name first, so that a file is either whole or not there."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata={**made_of, "blake2b": _digest(tensors)})
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except SafetensorError as error:  # what it makes of a full disk
        raise OSError(str(error)) from error
    finally:
        temporary.unlink(missing_ok=True)
