"""Write files so that a reader sees the old content or the new one, never a part, and nothing else is overwritten.

A file is written under a name made by chance, which no link can wait at, synced, and renamed. What stands at the final
name is replaced, a link itself and never what it leads to. Errors of the disk are `OSError`s.
"""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from latentia.errors import CheckpointError, UsageError

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


def sync(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power failure."""
    if os.name != "posix" and path.is_dir():  # which no other system can open
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder of our own, and those above it, if it is missing; a link at its place is not followed.

    Raises:
        CheckpointError: `path` is a symbolic link, such as one that others put there while a run writes.
    """
    if path.is_symlink():
        raise CheckpointError(
            f"{path} is a symbolic link to {os.readlink(path)}, through which nothing is written. Replace it by the "
            "folder."
        )
    path.mkdir(parents=True, exist_ok=True)


def staging_of(path: Path) -> Path:
    """A new name beside `path` that begins with `.NAME.partial-`.

    Example:
        >>> staging_of(Path("runs/a.json")).name.startswith(".a.json.partial-")
        True
    """
    return path.with_name(f".{path.name[:200]}.partial-{secrets.token_hex(6)}")


@contextmanager
def replacing(path: str | Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A file to write bytes to, which takes the place of `path` when the block ends without an error.

    Args:
        path: the final name, in a folder that exists.
        durable: whether to wait until the disk has it. Default True; False for images and the like.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(Path(folder, "a.txt")) as file:
        ...         _ = file.write(b"text")
        ...     Path(folder, "a.txt").read_bytes()
        b'text'
    """
    path = Path(path)
    staging = staging_of(path)
    try:
        with os.fdopen(os.open(staging, _NEW, 0o666), "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(staging, path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def write_bytes(path: str | Path, data: bytes | memoryview, *, durable: bool = True) -> None:
    """Write a file; see `replacing`."""
    with replacing(path, durable=durable) as file:
        file.write(data)


def write_new(path: str | Path, data: bytes) -> None:
    """Write a file that is not there yet, completely or not at all; `FileExistsError` if it is."""
    with os.fdopen(os.open(path, _NEW, 0o666), "wb") as file:
        try:
            file.write(data)
            file.flush()
        except BaseException:
            Path(path).unlink(missing_ok=True)
            raise


def write_text(path: str | Path, text: str, *, durable: bool = True) -> None:
    """Write a text file in UTF-8; see `replacing`. What cannot be written so, half a surrogate pair, is escaped."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"), durable=durable)


def write_json(path: str | Path, value: Any, *, durable: bool = True) -> None:
    """Write a JSON file with a line for each entry; see `replacing`."""
    write_text(path, json.dumps(value, indent=1) + "\n", durable=durable)


def write_image(path: str | Path, image: Image.Image, **options: Any) -> None:
    """Write an image in the format of the name's suffix; `options` of `PIL.Image.Image.save`. See `replacing`.

    Raises:
        UsageError: Pillow has no format of that suffix.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in Image.registered_extensions():
        raise UsageError(f"{path} must end with the suffix of an image format, such as .png; got {suffix!r}.")
    with replacing(path, durable=False) as file:
        image.save(file, Image.registered_extensions()[suffix], **options)


def write_figure(path: str | Path, figure: Any, **options: Any) -> None:
    """Write a figure of matplotlib in the format of the name's suffix; `options` of its `savefig`. See `replacing`.

    Raises:
        UsageError: matplotlib has no format of that suffix.
    """
    suffix = Path(path).suffix.lower()
    if suffix[1:] not in figure.canvas.get_supported_filetypes():
        raise UsageError(f"{path} must end with the suffix of a format for figures, such as .png; got {suffix!r}.")
    with replacing(path, durable=False) as file:
        figure.savefig(file, format=suffix[1:], **options)


@contextmanager
def write_atomically(target: Path) -> Iterator[Path]:
    """Write a file or folder atomically: a temporary path that is renamed to `target` if no error is raised.

    `target` is complete or absent, also after a power failure. A process that is killed may leave a hidden
    `.NAME.partial-*` behind, which can be deleted.

    Args:
        target: a file or folder that does not exist, or an empty folder.

    Raises:
        UsageError: `target` cannot be written.
    """
    staging = staging_of(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield staging
        for path in [staging, *staging.rglob("*")] if staging.is_dir() else [staging]:
            sync(path)
        os.replace(staging, target)
        sync(target.parent)
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise UsageError(f"{target} cannot be written: {error}. Choose another place.") from error
    finally:
        remove(staging)


def remove(path: Path) -> None:
    """Delete a file, or a folder with what is in it, if it is there; a link itself, never what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
