"""Features that were computed once: one safetensors file per extractor and data set."""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from torch import Tensor

from latentia.errors import UsageError
from latentia.evaluation.features.base import FeatureExtractor, Predictions, predict
from latentia.files.cache import cached_tensors

FORMAT = "2"  # raise it when the meaning of the files changes


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
        cache_dir: the files lie in `features` in it. Default: $LATENTIA_CACHE, $HF_HOME/latentia or ~/.cache/latentia.
        count: N. Needed where `images` is an iterable.

    Returns:
        `Predictions`, on the CPU.

    Raises:
        UsageError: no fingerprint, no count, or another number of images than `count`.
        DataError: the file belongs to another extractor or data set, or cannot be written.

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

    def compute() -> dict[str, Tensor]:
        found = predict(chain([first], batches), extractor)
        if len(found.features) != count:
            raise UsageError(f"`count` must be the number of images, {len(found.features)}. Got {count}.")
        return {key: value for key, value in found._asdict().items() if value is not None}

    tensors = cached_tensors(compute, made_of, "features", cache_dir=cache_dir)
    return Predictions(tensors["features"], tensors.get("logits"))
