"""Output folders of commands: results of two calls are never mixed in one."""

import json
import shutil
from contextlib import suppress
from pathlib import Path

from latentia.errors import UsageError

_MARK = ".latentia.json"  # says which command wrote the folder


def check_output(folder: str | Path, command: str, overwrite: bool = False) -> None:
    """Refuse a folder that holds something already.

    Args:
        folder: where results shall go.
        command: that writes them.
        overwrite: whether what the same command wrote there before may be deleted.

    Raises:
        UsageError: it is a file, or not empty; with `overwrite`: not empty, and written by something else.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise UsageError(f"output_dir {path} cannot be written: it is a file. Give a folder.")
    if not path.is_dir() or not any(item.name != _MARK for item in path.iterdir()):
        return
    found = None
    with suppress(OSError, ValueError, TypeError, KeyError):
        found = json.loads((path / _MARK).read_text(encoding="utf-8"))["command"]
    if overwrite and found == command:
        return
    holds = "files that no command wrote" if found is None else f"results of {found}"
    way = "; or overwrite=True, which deletes them" if found == command else ""
    raise UsageError(f"output_dir must be empty; {path} holds {holds}. Give another{way}.")


def open_output(folder: str | Path, command: str, overwrite: bool = False) -> Path:
    """The empty folder for the results of a command; see `check_output` for arguments and errors.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     open_output(folder + "/new", "evaluate").name
        'new'
    """
    path = Path(folder)
    check_output(path, command, overwrite)
    try:
        for item in path.iterdir() if path.is_dir() else ():
            shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()
        path.mkdir(parents=True, exist_ok=True)
        (path / _MARK).write_text(json.dumps({"command": command}) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"output_dir {path} cannot be written: {error.strerror}.") from error
    return path
