"""Checkpoints that are whole or not there: staged, hashed, committed by one rename, verified when read.

A checkpoint is a folder `checkpoint-<step>`: a `.safetensors` file and a `.json` file for each stateful object, and a
`manifest.json` that was written last and lists the size and SHA-256 of every other file. There is no pickle in it.
"""

import errno
import hashlib
import json
import os
import re
import signal
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from latentia.errors import CheckpointError, LatentiaError, NumericsError
from latentia.files.logs import get_logger
from latentia.files.reading import MAX_TEXT, open_file, read_object
from latentia.files.writing import make_folder, sync
from latentia.safety import check_files

FORMAT = 2  # 1: latentia 0.1, with other names of weights and other random numbers
NAME = re.compile(r"checkpoint-(\d+)")
_LEFT_OVER = re.compile(r"\.(staging-\d+|aside-checkpoint-\d+)-\w+")  # folders of saves that were killed
_NO_RENAME = (errno.EXDEV, errno.ENOSYS, errno.EPERM, errno.ENOTSUP)
logger = get_logger(__name__)


def fail_point(name: str) -> None:
    """Die here as by `kill -9` if the environment asks for it, so that tests can visit every stage of a save."""
    if os.environ.get("LATENTIA_FAILPOINT") == name:
        os.kill(os.getpid(), signal.SIGKILL)


def flatten(tree: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Replace each tensor of a state dict by a reference into `tensors`, leaving what JSON can hold."""
    if isinstance(tree, torch.Tensor):
        while path in tensors:  # {"a": {"b": ...}, "a.b": ...}
            path += "'"
        tensors[path] = tree.detach().to("cpu", copy=True).contiguous()
        return {"__tensor__": path}
    if isinstance(tree, Mapping) and all(isinstance(key, str | int) for key in tree):
        return {"__items__": [[key, flatten(value, f"{path}.{key}", tensors)] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        return [flatten(value, f"{path}.{i}", tensors) for i, value in enumerate(tree)]
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise TypeError(
        f"A state dict holds tensors, numbers, strings, lists and dicts with str or int keys; got {tree!r} at {path}."
    )


def unflatten(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The inverse of `flatten`, up to tuples, which come back as lists."""
    if isinstance(tree, list):
        return [unflatten(value, tensors) for value in tree]
    if isinstance(tree, dict):
        if "__tensor__" in tree:
            return tensors[tree["__tensor__"]]
        return {key: unflatten(value, tensors) for key, value in tree["__items__"]}
    return tree


def write_durably(path: Path, data: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read_own(path: Path) -> dict[str, Any]:
    """Read a JSON object that a run wrote for itself; empty if the file is missing or damaged.

    Example:
        >>> read_own(Path("/nowhere.json"))
        {}
    """
    with suppress(LatentiaError):
        return read_object(path, MAX_TEXT)
    return {}


def _sha256(path: Path) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def numbered(root: Path) -> list[tuple[int, Path]]:
    """The folders named `checkpoint-<number>`, oldest first; other entries are somebody else's and left alone."""
    if not root.is_dir():
        return []
    matches = ((NAME.fullmatch(path.name), path) for path in root.iterdir() if path.is_dir())
    return sorted((int(match[1]), path) for match, path in matches if match)


def save_checkpoint(root: Path, step: int, state: Mapping[str, Any], info: Mapping[str, Any], run_id: str) -> Path:
    """Write `root/checkpoint-<step>` so that it is whole or absent, whatever happens on the way.

    Args:
        root: folder of the checkpoints; made if missing.
        step: number of the checkpoint.
        state: name -> state dict.
        info: what else the manifest should hold (JSON).
        run_id: who writes; goes into the manifest.

    Returns:
        The folder.

    Raises:
        CheckpointError: a disk that refuses; what was there before stays as it was.
        NumericsError: values that are not finite; likewise.
    """
    staging, final = root / f".staging-{step}-{run_id}", root / f"checkpoint-{step}"
    try:
        make_folder(root)
        _delete_checkpoint(staging)
        staging.mkdir()
        fail_point("after-mkdir")
        files = {}
        for name, tree in state.items():
            tensors: dict[str, torch.Tensor] = {}
            text = json.dumps(flatten(tree, name, tensors))
            bad = [k for k, v in tensors.items() if v.is_floating_point() and not v.isfinite().all()]
            if bad:
                raise NumericsError(f"Step {step} has values that are not finite in {bad[0]}; nothing was written.")
            for file, data in ((f"{name}.safetensors", save(tensors)), (f"{name}.json", text.encode())):
                write_durably(staging / file, data)
                files[file] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            fail_point("mid-state")
        fail_point("before-manifest")
        manifest = {"format": FORMAT, "step": step, "run_id": run_id, **info, "files": files}
        manifest["sha256"] = _manifest_sha256(manifest)
        write_durably(staging / "manifest.json", json.dumps(manifest, indent=1).encode())
        fail_point("after-manifest")
        sync(staging)
        _commit(staging, final)
        sync(root)
        fail_point("after-rename")
    except LatentiaError:
        _delete_checkpoint(staging)
        raise
    except OSError as error:
        with suppress(OSError):  # the error that is raised says more
            _delete_checkpoint(staging)
        raise CheckpointError(
            f"{final} could not be written: {error}. Earlier checkpoints are intact; free space or choose another "
            "output_dir, then start the same command again."
        ) from error
    return final


def _commit(staging: Path, final: Path) -> None:
    aside = final.with_name(f".aside-{final.name}-{uuid.uuid4().hex[:8]}")
    try:
        if final.exists():
            os.replace(final, aside)
        os.replace(staging, final)
    except OSError as error:
        if aside.exists():
            os.replace(aside, final)
        if error.errno not in _NO_RENAME:
            raise
        # A file system without rename: copy with the manifest last, which is what makes a folder a checkpoint.
        if final.exists():
            _delete_checkpoint(final)
        final.mkdir(exist_ok=not final.is_symlink())
        for path in sorted(staging.iterdir(), key=lambda path: path.name == "manifest.json"):
            write_durably(final / path.name, path.read_bytes())
        sync(final)
        _delete_checkpoint(staging)
    _delete_checkpoint(aside)


def _delete_checkpoint(path: Path) -> None:
    """Delete the files of a checkpoint, the manifest first, so that a kill in between leaves nothing that looks whole.

    Files that no save wrote stay, with their folder, and so does a symbolic link with what it leads to.
    """
    if path.is_symlink() or not path.is_dir():
        return
    if _is_written(path / "manifest.json"):
        (path / "manifest.json").unlink()
    for file in sorted(path.iterdir()):
        if _is_written(file):
            file.unlink()
    if not any(path.iterdir()):
        path.rmdir()


def _is_written(file: Path) -> bool:
    """Whether an entry of a checkpoint's folder is such as a save writes."""
    return file.suffix in (".json", ".safetensors") and file.is_file() and not file.is_symlink()


def _manifest_sha256(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


class OtherFormatError(CheckpointError):
    """A whole checkpoint of another version."""


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """Read the manifest and check the size and SHA-256 of every file it lists.

    Returns:
        The manifest.

    Raises:
        CheckpointError: naming the first file that is missing, cut or altered.
    """
    if path.is_dir():
        check_files(path, MAX_TEXT)
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        version = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a whole checkpoint: manifest.json cannot be read ({error}).") from error
    if manifest.get("sha256") != _manifest_sha256(manifest):
        raise CheckpointError(f"{path} is damaged: manifest.json was altered after it was written.")
    if version != FORMAT:
        written = manifest.get("versions")
        by = f" by latentia {written['latentia']}" if isinstance(written, Mapping) and "latentia" in written else ""
        raise OtherFormatError(
            f"{path} was written{by}, in checkpoint format {version}; this version reads format {FORMAT}, in which "
            "weights have other names and random numbers are made otherwise. Train anew in another output_dir, or "
            "install that version to go on with it."
        )
    named = isinstance(manifest.get("run_id"), str) and re.fullmatch(r"[A-Za-z0-9_\-]+", manifest["run_id"])
    if not (named and type(manifest.get("step")) is int and _is_list_of_files(manifest.get("files"))):
        raise CheckpointError(f"{path} is not a whole checkpoint: manifest.json says not which step, run and files.")
    for name, expected in manifest["files"].items():
        file = path / name
        if Path(name).name != name or not file.is_file():
            raise CheckpointError(f"{path} is not a whole checkpoint: {name} is missing.")
        size = file.stat().st_size
        if size != expected["size"]:
            raise CheckpointError(f"{path} is damaged: {name} has {size} bytes instead of {expected['size']}.")
        if _sha256(file) != expected["sha256"]:
            raise CheckpointError(f"{path} is damaged: the SHA-256 of {name} differs from the manifest's.")
    return manifest


def _is_list_of_files(files: Any) -> bool:
    return isinstance(files, dict) and all(
        isinstance(about, dict) and {"size", "sha256"} <= about.keys() for about in files.values()
    )


def load_checkpoint(path: Path, ending: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
    """Verify and read a checkpoint.

    Args:
        path: its folder.
        ending: only state dicts whose names end so are read, such as ".ema". Default: all.

    Returns:
        (state, manifest): name -> state dict with tensors on the CPU, and the manifest.

    Raises:
        CheckpointError: the folder is missing, damaged or not a checkpoint.
    """
    manifest = verify_checkpoint(path)
    state = {}
    for file in manifest["files"]:
        if file.endswith(f"{ending}.json"):
            try:
                tensors = load_file(path / f"{file[:-5]}.safetensors")
                state[file[:-5]] = unflatten(json.loads((path / file).read_bytes()), tensors)
            except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
                raise CheckpointError(f"{path} cannot be read: {file}: {error}.") from error
    return state, manifest


def find_checkpoint(root: Path) -> Path | None:
    """The newest whole checkpoint below `root`; damaged ones are passed over with a warning each."""
    for _, path in reversed(numbered(root)):
        try:
            verify_checkpoint(path)
            return path
        except OtherFormatError:
            raise  # it is whole: a fresh start beside it would lose a run
        except CheckpointError as error:
            logger.warning("Passed over: %s", error)
    return None


def resolve_resume(value: str | None, root: Path) -> Path | None:
    """Which checkpoint `--resume_from_checkpoint` means.

    Args:
        value: "auto" (the newest whole one, or a fresh start), "latest" (the newest whole one, or an error), "none",
            or the path of a checkpoint, which is taken as it is or refused.
        root: folder of the run's checkpoints.

    Raises:
        CheckpointError: nothing is there.
    """
    if value in (None, "none"):
        return None
    if value in ("auto", "latest"):
        found = find_checkpoint(root)
        if found is None and (value == "latest" or numbered(root)):
            raise CheckpointError(
                f"resume_from_checkpoint {value}: there is no whole checkpoint in {root}. "
                "Use resume_from_checkpoint none to start from the beginning."
            )
        return found
    path = Path(value)
    if not path.is_dir():
        there = ", ".join(path.name for _, path in numbered(root)) or "none"
        raise CheckpointError(
            f'resume_from_checkpoint must be "auto", "latest", "none" or the folder of a checkpoint; got "{value}", '
            f"which is not there. Checkpoints of this run: {there}."
        )
    verify_checkpoint(path)
    return path


def rotate(root: Path, limit: int | None, run_id: str, keep: frozenset[Path] = frozenset()) -> None:
    """Delete this run's oldest checkpoints beyond `limit`, never fewer than two, none of `keep` or of another run.

    A symbolic link, and a checkpoint that holds files that no save wrote, stay and are not counted.
    """
    if limit is None or root.is_symlink():
        return
    keep = frozenset(path.resolve() for path in keep)
    own = [
        path
        for _, path in numbered(root)
        if not path.is_symlink()
        and all(map(_is_written, path.iterdir()))
        and read_own(path / "manifest.json").get("run_id") == run_id
    ]
    for path in own[: -max(limit, 2)]:
        if path.resolve() not in keep:
            trash = path.with_name(f".aside-{path.name}-{uuid.uuid4().hex[:8]}")
            try:
                try:
                    os.replace(path, trash)  # so that a kill in between leaves no half checkpoint under its name
                except OSError as error:
                    if error.errno not in _NO_RENAME:
                        raise
                    trash = path
                fail_point("mid-rotate")
                _delete_checkpoint(trash)
            except OSError as error:
                logger.warning("The old checkpoint %s could not be deleted: %s", path, error)


def clean_staging(root: Path) -> None:
    """Remove what saves that were killed left behind."""
    for path in root.iterdir() if root.is_dir() and not root.is_symlink() else ():
        if _LEFT_OVER.fullmatch(path.name):
            with suppress(OSError):  # it is tried again at the next start
                _delete_checkpoint(path)


def delete_checkpoints(root: Path) -> None:
    """Delete all checkpoints of a folder, and what killed saves left there."""
    clean_staging(root)
    for _, path in numbered(root) if not root.is_symlink() else ():
        _delete_checkpoint(path)
