"""Read files that may come from anyone: regular files only, of bounded size, with errors that name the file.

A file is opened without waiting (a pipe would never answer) and asked what it is once it is open, so that nothing can
be put in its place in between. Whoever passes a path to another library calls `check_file` first.
"""

import io
import json
import os
import stat
from pathlib import Path
from typing import Any

from latentia.errors import CheckpointError, LatentiaError

MAX_JSON = 1_000_000  # bytes of a configuration
MAX_TEXT = 2**26  # bytes of a vocabulary or another text
MAX_LOG = 2**30  # bytes of a `metrics.jsonl`


def user_path(path: str | Path) -> Path:
    """The path that a user wrote, with `~` expanded; that of a user whom the system does not know stays as it is."""
    return Path(os.path.expanduser(path))


def real_path(path: Path) -> Path:
    """The absolute path with all links resolved; a link in a loop stays, and is an error when it is opened."""
    return Path(os.path.realpath(path))  # `Path.resolve` raises a RuntimeError there


def check_link(path: Path, home: Path, error: type[LatentiaError] = CheckpointError) -> None:
    """Reject a symbolic link that leads out of `home`; links of the Hub's cache to its own blobs are allowed.

    Args:
        path: the file or folder.
        home: the folder that it must be in.
        error: what is raised.
    """
    home, target = real_path(home), real_path(path)
    blobs = [above.parents[1] / "blobs" for above in (home, *home.parents) if above.parent.name == "snapshots"]
    if not any(target.is_relative_to(place) for place in (home, *blobs)):
        raise error(
            f"{path} is a symbolic link out of its folder, to {target}. If you trust that file, replace the link by a "
            "copy."
        )


def open_file(
    path: str | Path,
    *,
    most: int | None = None,
    home: Path | None = None,
    error: type[LatentiaError] = CheckpointError,
) -> io.BufferedReader:
    """Open a regular file for reading in bytes.

    Args:
        path: the file. A link is followed, as users keep data on other disks, if it does not lead out of `home`.
        most: bytes that it may have. Default: any number.
        home: the folder that the file must be in, links resolved. Default: anywhere.
        error: what is raised.

    Raises:
        LatentiaError: as `error`. It is missing, a folder, a pipe or a device, too large, or cannot be read.

    Example:
        >>> open_file("/dev/zero")
        Traceback (most recent call last):
        latentia.errors.CheckpointError: /dev/zero must be a regular file; it is a pipe, a socket or a device.
    """
    path = Path(path)
    if home is not None:
        check_link(path, home, error)
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError as found:
        raise error(f"{path.parent} holds no file {path.name}.") from found
    except (OSError, ValueError) as found:  # a name with a zero byte is a ValueError
        raise error(f"{path} cannot be read: {getattr(found, 'strerror', None) or found}.") from found
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode):
        os.close(descriptor)
        what = "a folder" if stat.S_ISDIR(about.st_mode) else "a pipe, a socket or a device"
        raise error(f"{path} must be a regular file; it is {what}.")
    if most is not None and about.st_size > most:
        os.close(descriptor)
        raise error(f"{path} has {about.st_size} bytes; at most {most} are read.")
    if hasattr(os, "set_blocking"):
        os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "rb")


def check_file(path: str | Path, **options: Any) -> Path:
    """The path of a regular file, for another library that opens it itself; arguments and errors of `open_file`."""
    open_file(path, **options).close()
    return Path(path)


def read_bytes(path: str | Path, most: int = MAX_TEXT, **options: Any) -> bytes:
    """The content of a file of at most `most` bytes; other arguments and errors of `open_file`."""
    error = options.get("error", CheckpointError)
    with open_file(path, most=most, **options) as file:
        try:
            found = file.read(most + 1)  # it may have grown since it was opened
        except OSError as fault:
            raise error(f"{path} cannot be read: {fault.strerror}.") from fault
    if len(found) > most:
        raise error(f"{path} has more than {most} bytes; at most {most} are read.")
    return found


def read_text(path: str | Path, most: int = MAX_TEXT, *, replace: bool = False, **options: Any) -> str:
    """The text of a UTF-8 file, without a byte order mark; see `read_bytes`.

    Args:
        path, most: as in `read_bytes`.
        replace: whether bytes that are no UTF-8 become U+FFFD. Default: they are an error.
        **options: of `open_file`.

    Raises:
        LatentiaError: as `error`.
    """
    data = read_bytes(path, most, **options)
    try:
        return data.decode("utf-8-sig", "replace" if replace else "strict").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as fault:
        raise options.get("error", CheckpointError)(f"{path} must be text in UTF-8: {fault}.") from fault


def parse_json(text: str | bytes, where: str | Path, error: type[LatentiaError] = CheckpointError) -> Any:
    """The value of a JSON text.

    Args:
        text: the JSON.
        where: its file, for the message.
        error: what is raised.

    Raises:
        LatentiaError: as `error`. It is not JSON, or nested too deep.

    Example:
        >>> parse_json("[1, 2", "a.json")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        latentia.errors.CheckpointError: a.json cannot be read as JSON: Expecting ',' delimiter: ...
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as fault:
        raise error(f"{where} cannot be read as JSON: {fault}. Save or fetch it again.") from fault


def read_json(path: str | Path, most: int = MAX_JSON, **options: Any) -> Any:
    """The value of a JSON file; arguments and errors of `read_text` and `parse_json`."""
    return parse_json(read_text(path, most, **options), path, options.get("error", CheckpointError))


def read_object(path: str | Path, most: int = MAX_JSON, **options: Any) -> dict[str, Any]:
    """The JSON object of a file, by its keys; as `read_json`, and an error for any other value."""
    found = read_json(path, most, **options)
    if not isinstance(found, dict):
        raise options.get("error", CheckpointError)(f"{path} must hold a JSON object, got {type(found).__name__}.")
    return found
