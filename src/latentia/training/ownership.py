"""Ownership of output folders: a run or a command claims its names, and deletes nothing that it did not list.

A folder that was claimed holds `.latentia.json`: the command that writes there, the names it claimed, and the files of
the pipeline that it exported. Deletion goes by lists of patterns and never through a symbolic link; other files stay.
"""

import glob
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from latentia.errors import CheckpointError, LatentiaError, UsageError
from latentia.files.writing import write_json
from latentia.training import checkpoint as ckpt
from latentia.training.state import lock

MARK = ".latentia.json"
RUN = "run"  # what the mark calls a training run
FILES = (".lock", "metrics.jsonl", "training_config.json")  # what the loop writes, beside `checkpoints`
# The longest path of a save: its staging folder, and the file of a state in it.
LONGEST = f"checkpoints/.staging-{'0' * 10}-{'0' * 12}/{'0' * 64}.safetensors"
_EXPORTED = ("*config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer.json", "special_tokens_map.json")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what a disk says while something is written at `path` into a `CheckpointError` with a way out."""
    try:
        yield
    except LatentiaError:
        raise
    except OSError as error:
        raise CheckpointError(
            f"{path} could not be written: {error}. The last checkpoint is whole; free space or mend the folder, then "
            "start the same command again."
        ) from error


def claim(folder: Path, command: str, *, files: Iterable[str] = (), folders: Iterable[str] = ()) -> None:
    """Reserve names in an output folder before anything is written there; other files in it are left alone.

    Args:
        folder: which exists.
        command: that will write there, such as "train".
        files, folders: names in the folder.

    Raises:
        UsageError: a name is there and this command did not write it, is of the wrong kind or a symbolic link, or the
            folder holds the results of another command. The message names it.
    """
    found = ckpt.read_own(folder / MARK)
    found = found if isinstance(found.get("command"), str) else {}  # it is damaged
    writer = found.get("command", command)
    if writer != command:
        raise UsageError(f"output_dir {folder} holds results of {writer}. Give another.")
    earlier = not found and _of_an_earlier_version(folder)
    known = {*_names(found.get("names"))}
    names = {**dict.fromkeys(files, "file"), **dict.fromkeys(folders, "folder")}
    for name, kind in names.items():
        path = folder / name
        if path.is_symlink():
            raise UsageError(
                f"output_dir {folder} holds {name}, a symbolic link to {os.readlink(path)}: a {command} writes and "
                "deletes nothing through links. Replace the link by what it leads to, or give another."
            )
        if not path.exists():
            continue
        if not (path.is_file() if kind == "file" else path.is_dir()):
            raise UsageError(f"output_dir {folder} holds {name}, where a {kind} must be. Move it, or give another.")
        free = name == ".lock" or (kind == "folder" and (not any(path.iterdir()) or _is_claimed(path, command)))
        if not (earlier or free or name in known):
            raise UsageError(
                f"output_dir {folder} holds {name}, which no {command} wrote there, and files of others are not "
                "written over. Move it, or give another."
            )
    exported = _earlier_export(folder) if earlier else _paths(found.get("files"))
    known |= {name.partition("/")[0] for name in exported}
    _write(folder, command, {*known, *names}, exported)


def list_export(folder: Path, files: Iterable[str]) -> None:
    """Say in the mark of a claimed folder which files the exported pipeline consists of."""
    _write(folder, RUN, listed(folder)[0], files)


def listed(folder: Path) -> tuple[list[str], list[str]]:
    """The names that a folder's mark lists, and the files of the exported pipeline."""
    found = ckpt.read_own(folder / MARK)
    return _names(found.get("names")), _paths(found.get("files"))


def probe(folder: Path, longest: str) -> None:
    """Write and delete a file of the longest path that will be needed below a folder.

    Raises:
        UsageError: the path is too long, or the disk is full or read-only.
    """
    path = folder / longest
    try:
        made = [above for above in path.parents if not above.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            ckpt.write_durably(path, b"\0" * 4096)
        finally:
            path.unlink(missing_ok=True)
            for above in made:
                above.rmdir()
    except OSError as error:
        raise UsageError(
            f"output_dir cannot be written: {error.strerror}, when a file with a path of {len(os.fspath(path))} "
            f"characters was tried. Give another than {folder}."
        ) from error


def clean(folder: Path) -> None:
    """Delete what killed writes left in a claimed folder: staging of checkpoints, and of files that are replaced."""
    ckpt.clean_staging(folder / "checkpoints")
    delete(folder, [f".{glob.escape(name)}.partial-*" for name in (*listed(folder)[0], MARK)])
    delete(folder, [f".{name}.{'[0-9a-f]' * 8}" for name in FILES])  # of earlier versions


def delete_run(folder: Path, patterns: Iterable[str] = ()) -> None:
    """Delete what a run listed in its folder: its files, checkpoints and export, also those of its parts.

    Args:
        folder: of the run.
        patterns: of what else it wrote there, see `delete`.

    Raises:
        UsageError: another run has the folder, or that of a part.
    """
    names, exported = listed(folder)
    with lock(folder):
        for name in names:
            if (folder / name / MARK).is_file() and not (folder / name).is_symlink():
                delete_run(folder / name)
        ckpt.delete_checkpoints(folder / "checkpoints")
        clean(folder)
        files = [name for name in names if name != ".lock"]
        delete(folder, [*patterns, *map(glob.escape, (*files, *exported))])
        list_export(folder, ())


def delete(folder: Path, patterns: Iterable[str]) -> None:
    """Delete the regular files below a folder that match patterns, and the folders that are empty then.

    Args:
        folder: where.
        patterns: such as "samples/step-*.png"; each part between slashes stands for names in one folder. Symbolic links
            are neither followed nor deleted.
    """
    for pattern in patterns:
        for path in _matches(folder, pattern.split("/")):
            path.unlink()
            for above in path.parents:
                if above == folder:
                    break
                with suppress(OSError):  # it holds something else
                    above.rmdir()


def _matches(folder: Path, parts: list[str]) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if fnmatchcase(path.name, parts[0]) and not path.is_symlink():
            if len(parts) > 1 and path.is_dir():
                yield from _matches(path, parts[1:])
            elif len(parts) == 1 and path.is_file():
                yield path


def _write(folder: Path, command: str, names: Iterable[str], files: Iterable[str]) -> None:
    mark = {"command": command, "names": sorted({*names}), "files": sorted({*files})}
    if mark != ckpt.read_own(folder / MARK):
        write_json(folder / MARK, mark)


def _paths(found: Any) -> list[str]:
    """The paths in a mark that lead to something in its folder: it may have come with a folder of others."""
    texts = [path for path in found if isinstance(path, str)] if isinstance(found, list) else []
    return [path for path in texts if not {"", ".", ".."} & {*path.split("/")} and "\0" not in path]


def _names(found: Any) -> list[str]:
    return [path for path in _paths(found) if "/" not in path and os.sep not in path]


def _is_claimed(folder: Path, command: str) -> bool:
    return ckpt.read_own(folder / MARK).get("command") == command or _of_an_earlier_version(folder)


def _of_an_earlier_version(folder: Path) -> bool:
    """Whether a run wrote here before runs marked their folders."""
    log = all((folder / name).is_file() for name in ("training_config.json", "metrics.jsonl"))
    return log or any((path / "manifest.json").is_file() for _, path in ckpt.numbered(folder / "checkpoints"))


def _earlier_export(folder: Path) -> list[str]:
    """The files of a pipeline that was exported before runs listed them, by the names that such files have."""
    indexes = (ckpt.read_own(folder / place) for place in ("model_index.json", ".export/model_index.json"))
    components = {name for index in indexes for name in index if not name.startswith("_")}
    found = (path for name in components for pattern in _EXPORTED for path in _matches(folder, [name, pattern]))
    return [path.relative_to(folder).as_posix() for path in found]
