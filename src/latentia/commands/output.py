"""Output folders of commands: results of two calls are never mixed in one, and files of others are left alone."""

import os
from pathlib import Path

from latentia.errors import LatentiaError, UsageError
from latentia.files.reading import read_object
from latentia.training.ownership import MARK, claim, delete, probe

_PLOTS = ("neighbours", "features", "classes", "precision_recall")
_GRIDS = ("samples", "samples_preview", "real", "real_preview")
_EVALUATION = ("index.html", "metrics.json", *(f"{name}.png" for name in (*_PLOTS, *_GRIDS)))
_COMPARISON = ("index.html", "comparison.json", "precision_recall.png")
# What each command writes into its folder, as patterns of `ownership.delete`; with `overwrite` no other file goes.
WRITTEN = {
    "evaluate": _EVALUATION,
    "compare": (*_COMPARISON, *(f"[0-9]*/{name}" for name in (MARK, *_EVALUATION))),
    "embed": ("latents.parquet", "embedding.json", "pca.png", "tsne.png"),
    "generate": ("[0-9][0-9][0-9][0-9][0-9]*.png",),
}


def check_output(folder: str | Path, command: str, overwrite: bool = False) -> None:
    """Refuse a folder that holds something already, or cannot be written.

    Args:
        folder: where results shall go.
        command: that writes them.
        overwrite: whether what the same command wrote there before may be deleted.

    Raises:
        UsageError: it is a file, not empty, or cannot be written; with `overwrite`: not empty, and written by something
            else.
    """
    path = Path(folder)
    try:
        if path.exists() and not path.is_dir():
            raise UsageError(f"output_dir {path} cannot be written: it is a file. Give a folder.")
        if path.is_dir() and any(item.name != MARK for item in path.iterdir()):
            found, why = None, "files that no command wrote"
            try:
                found = read_object(path / MARK).get("command") if os.path.lexists(path / MARK) else None
            except LatentiaError as error:
                why = f"files, and nothing says whose: {str(error).removesuffix('.')}"
            if not (overwrite and found == command):
                holds = why if found is None else f"results of {found}"
                way = "; or overwrite=True, which deletes them" if found == command else ""
                raise UsageError(f"output_dir must be empty; {path} holds {holds}. Give another{way}.")
    except OSError as error:
        raise UsageError(f"output_dir {path} cannot be written: {error.strerror}.") from error
    check_writable(path)


def check_writable(folder: Path) -> None:
    """Refuse a folder in which no file can be written, with a `UsageError`."""
    probe(folder, "0" * 64)


def open_output(folder: str | Path, command: str, overwrite: bool = False) -> Path:
    """The folder for the results of a command, without earlier ones; see `check_output` for arguments and errors.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     open_output(folder + "/new", "evaluate").name
        'new'
    """
    path = Path(folder)
    check_output(path, command, overwrite)
    try:
        if path.is_dir():
            delete(path, WRITTEN.get(command, ()))
        path.mkdir(parents=True, exist_ok=True)
        claim(path, command)
    except OSError as error:
        raise UsageError(f"output_dir {path} cannot be written: {error.strerror}.") from error
    return path
