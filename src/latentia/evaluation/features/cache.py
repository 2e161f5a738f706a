"""Features that were computed once: one safetensors file per extractor and data set."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from latentia.errors import CheckpointError, DataError, UsageError
from latentia.evaluation.features.extractor import FeatureExtractor, Predictions, predict

logger = logging.getLogger(__name__)
FORMAT = "1"  # raise it when the meaning of the files changes


def cached_predict(
    images: Tensor | Iterable[Tensor],
    extractor: FeatureExtractor,
    fingerprint: str,
    cache_dir: str | Path | None = None,
    *,
    count: int | None = None,
) -> Predictions:
    """`predict(images, extractor)`, computed once and then read.

    The file's name is made of the extractor's name, sha256 and preprocessing, of the images' shape and number, and of
    the fingerprint; it holds all of these, and they are compared when it is read. A damaged file is made anew, with a
    warning. Of several processes one computes and the others wait.

    Args:
        images: (N, C, H, W) in [-1, 1], or an iterable of such batches, of which only the first is looked at where
            there is a file.
        extractor: from `load_extractor` or your own.
        fingerprint: of the data set, as `ImageData.fingerprint`. Anything that changes the images, as another split
            or a mirroring, has to change it.
        cache_dir: where the files lie. Default: `features` in $LATENTIA_CACHE, in $HF_HOME/latentia or in
            ~/.cache/latentia.
        count: N. Needed where `images` is an iterable.

    Returns:
        `Predictions`, on the CPU.

    Raises:
        UsageError: no fingerprint, no count, or another number of images than `count`.
        CheckpointError: the file belongs to another extractor or data set.
        DataError: the folder cannot be written or the disk is full.

    Example:
        >>> import tempfile
        >>> from latentia.evaluation import load_extractor
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cached_predict(torch.zeros(7, 1, 8, 8), load_extractor("digits"), "zeros", folder).features.shape
        torch.Size([7, 64])
    """
    if not isinstance(fingerprint, str) or not fingerprint:
        raise UsageError(f"`fingerprint` must be a text that stands for the data. Got {fingerprint!r}.")
    if missing := [key for key in ("name", "sha256", "preprocessing") if not hasattr(extractor, key)]:
        raise UsageError(f"`extractor` must say all of `FeatureExtractor`. It has no {', '.join(missing)}.")
    batches = iter([images] if isinstance(images, Tensor) else images)
    first = next(batches, None)
    if first is None:
        raise UsageError("`images` must hold at least one batch. Got an empty iterable.")
    if isinstance(images, Tensor):
        if count not in (None, len(images)):
            raise UsageError(f"`count` must be the number of `images`, {len(images)}. Got {count}.")
        count = len(images)
    elif count is None:
        raise UsageError("`count` must be given, the number of images, where `images` is an iterable of batches.")
    made_of = {
        "format": FORMAT,
        "extractor": extractor.name,
        "extractor_sha256": extractor.sha256,
        "preprocessing": extractor.preprocessing,
        "image_shape": str(tuple(first.shape[1:])),
        "image_dtype": str(first.dtype),
        "fingerprint": fingerprint,
        "count": str(count),
    }
    key = hashlib.blake2b(json.dumps(made_of, sort_keys=True).encode(), digest_size=16).hexdigest()
    folder = _folder(cache_dir)
    file = folder / f"{key}.safetensors"
    found = _read(file, made_of)
    if found is not None:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{key}.lock"):
            found = _read(file, made_of)  # another process may have been faster
            if found is None:
                found = predict(chain([first], batches), extractor)
                if len(found.features) != count:
                    raise UsageError(f"`count` must be the number of images, {len(found.features)}. Got {count}.")
                _write(file, found, made_of)
        return found
    except OSError as error:
        raise DataError(
            f"cannot keep features in {folder}: {error.strerror or error}. Give another cache_dir, or set "
            "LATENTIA_CACHE to a folder with room."
        ) from error


def _folder(cache_dir: str | Path | None) -> Path:
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    for variable, below in (("LATENTIA_CACHE", ""), ("HF_HOME", "latentia"), ("XDG_CACHE_HOME", "latentia")):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser() / below / "features"
    return Path("~/.cache/latentia/features").expanduser()


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=32)
    for key in sorted(tensors):
        digest.update(f"{key} {tuple(tensors[key].shape)} {tensors[key].dtype}".encode())
        digest.update(tensors[key].contiguous().numpy().data)
    return digest.hexdigest()


def _read(file: Path, made_of: dict[str, str]) -> Predictions | None:
    """What the file holds; None if there is none or it is damaged."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as opened:
            kept = opened.metadata() or {}
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}
        if "features" not in tensors or kept.pop("blake2b", None) != _digest(tensors):
            raise ValueError("its content does not match its hash")
    except (SafetensorError, OSError, ValueError) as error:
        logger.warning(f"{file} is damaged and will be made again: {error}")
        return None
    if wrong := [key for key in made_of if kept.get(key) != made_of[key]]:
        raise CheckpointError(
            f"{file} must hold the features that its name stands for. "
            + "; ".join(f"its {key} is {kept.get(key)}, not {made_of[key]}" for key in wrong)
            + ". Files of the cache were exchanged; delete this one."
        )
    return Predictions(tensors["features"], tensors.get("logits"))


def _write(file: Path, found: Predictions, made_of: dict[str, str]) -> None:
    """Under another name first, so that a file is either whole or not there."""
    tensors = {key: value.contiguous() for key, value in found._asdict().items() if value is not None}
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata={**made_of, "blake2b": _digest(tensors)})
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, file)
    except SafetensorError as error:  # what it makes of a full disk
        raise OSError(str(error)) from error
    finally:
        temporary.unlink(missing_ok=True)
