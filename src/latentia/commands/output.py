"""Output folders of commands: results of two calls are never mixed in one, and files of others are left alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from latentia.errors import LatentiaError, UsageError, check_text
from latentia.files.reading import read_object
from latentia.training.ownership import MARK, claim, delete, probe
from latentia.training.state import lock

_LOCK = ".lock"
_PLOTS = ("neighbours", "features", "classes", "precision_recall", "columns", "correlations", "signals", "spectra")
_GRIDS = ("samples", "samples_preview", "real", "real_preview")
_EVALUATION = ("index.html", "metrics.json", "samples.txt", *(f"{name}.png" for name in (*_PLOTS, *_GRIDS)))
_COMPARISON = ("index.html", "comparison.json", "precision_recall.png")
# What each command writes into its folder, as patterns of `ownership.delete`; with `overwrite` no other file goes.
WRITTEN = {
    "anomalies": ("scores.csv", "anomalies.json", "scores.png", "anomalies.png"),
    "average": (
        *("README.md", "average.json", "model_index.json", "training_config.json"),
        *("*/config.json", "*/*_config.json", "*/*.index.json", "*/*.safetensors"),
        *("*/tokenizer.json", "*/vocab.json", "*/special_tokens_map.json", "*/merges.txt"),
    ),
    "bounds": ("bounds.json", "bounds.png"),
    "evaluate": _EVALUATION,
    "compare": (*_COMPARISON, *(f"[0-9]*/{name}" for name in (MARK, *_EVALUATION))),
    "directions": ("directions.safetensors", "directions.json", "strip-[0-9]*.png"),
    "edit": ("[0-9][0-9][0-9][0-9][0-9]*.png", "edits.json", "edits_sheet.png"),
    "embed": ("latents.parquet", "embedding.json", "pca.png", "tsne.png"),
    "generate": (
        *(f"[0-9][0-9][0-9][0-9][0-9]*.{kind}" for kind in ("png", "txt", "wav")),
        *("recipes.json", "rows.csv", "series.csv", "signals.png"),
    ),
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
    check_text("output_dir", path)
    with _disk_errors(path):
        if path.exists() and not path.is_dir():
            raise UsageError(f"output_dir {path} cannot be written: it is a file. Give a folder.")
        if path.is_dir() and any(item.name not in (MARK, _LOCK) for item in path.iterdir()):
            found, why = None, "files that no command wrote"
            try:
                found = read_object(path / MARK).get("command") if os.path.lexists(path / MARK) else None
            except LatentiaError as error:
                why = f"files, and nothing says whose: {str(error).removesuffix('.')}"
            if not (overwrite and found == command):
                holds = why if found is None else f"results of {found}"
                way = "; or overwrite=True, which deletes them" if found == command else ""
                raise UsageError(f"output_dir must be empty; {path} holds {holds}. Give another{way}.")
    check_writable(path)


def check_writable(folder: Path) -> None:
    """Refuse a folder in which no file can be written, with a `UsageError`."""
    probe(folder, "0" * 64)


@contextmanager
def open_output(folder: str | Path, command: str, overwrite: bool = False) -> Iterator[Path]:
    """The folder for the results of a command, without earlier ones, while no other command or run writes there.

    Arguments and errors are those of `check_output`; what the disk says within the block is a `UsageError` too.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place, open_output(place + "/new", "evaluate") as folder:
        ...     folder.name
        'new'
    """
    path = Path(folder)
    check_output(path, command, overwrite)
    with _disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        claim(path, command, files=[_LOCK])
        with lock(path):
            try:
                check_output(path, command, overwrite)  # again, as another may have written until now
                delete(path, WRITTEN.get(command, ()))
                yield path
            finally:
                (path / _LOCK).unlink(missing_ok=True)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except LatentiaError:
        raise
    except OSError as error:
        raise UsageError(f"output_dir {path} cannot be written: {error.strerror or error}.") from error
