"""`load_images`: a folder, parquet files, the Hub or rows in memory become an `ImageData`, or a stream."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, overload

from latentia.data.build import Plan, build, choose_rows
from latentia.data.columns import Source, pick
from latentia.data.decode import check_pillow
from latentia.data.identity import content_key
from latentia.data.images import ImageData
from latentia.data.sources import find_source
from latentia.data.streaming import StreamedImages
from latentia.errors import DataError, UsageError, check_choice, check_range
from latentia.files.cache import cache_folder, cached_bytes, key_of
from latentia.files.logs import get_logger
from latentia.functional.settings import check_types

logger = get_logger(__name__)

_DECODER = 4  # raise it when the same file would give other pixels, labels or names


def parse_split(split: str) -> tuple[str, Callable[[int], range]]:
    """ "train[10:80%]" to the name "train" and a function from the number of rows to the rows of the part.

    Example:
        >>> name, part = parse_split("train[50%:]")
        >>> name, part(10)
        ('train', range(5, 10))
    """
    found = re.fullmatch(r"([\w.-]+)(?:\[(?:(-?\d+)(%?))?:(?:(-?\d+)(%?))?\])?", split)
    if not found:
        raise UsageError(f'split must look like "train" or "train[:80%]" or "train[100:200]", got "{split}".')
    name, first, first_unit, last, last_unit = found.groups()

    def part(count: int) -> range:
        ends = [
            None if end is None else round(int(end) * count / 100) if unit else int(end)
            for end, unit in ((first, first_unit), (last, last_unit))
        ]
        return range(count)[slice(*ends)]

    return name, part


@overload
def load_images(
    source: str | Path | Iterable[dict[str, Any]],
    *,
    split: str = "train",
    config_name: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    caption_column: str | None = None,
    label_names: Sequence[str] | None = None,
    resolution: int | tuple[int, int] | None = None,
    channels: int | None = None,
    center_crop: bool = True,
    random_flip: bool = False,
    max_samples: int | None = None,
    on_bad_image: Literal["raise", "skip"] = "raise",
    cache_dir: str | Path | None = None,
    num_workers: int = 0,
    streaming: Literal[False] = False,
) -> ImageData: ...


@overload
def load_images(
    source: str | Path | Iterable[dict[str, Any]],
    *,
    split: str = "train",
    config_name: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    caption_column: str | None = None,
    label_names: Sequence[str] | None = None,
    resolution: int | tuple[int, int] | None = None,
    channels: int | None = None,
    center_crop: bool = True,
    random_flip: bool = False,
    max_samples: int | None = None,
    on_bad_image: Literal["raise", "skip"] = "raise",
    cache_dir: str | Path | None = None,
    num_workers: int = 0,
    streaming: bool,
) -> ImageData | StreamedImages: ...


@check_types
def load_images(
    source: str | Path | Iterable[dict[str, Any]],
    *,
    split: str = "train",
    config_name: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    caption_column: str | None = None,
    label_names: Sequence[str] | None = None,
    resolution: int | tuple[int, int] | None = None,
    channels: int | None = None,
    center_crop: bool = True,
    random_flip: bool = False,
    max_samples: int | None = None,
    on_bad_image: Literal["raise", "skip"] = "raise",
    cache_dir: str | Path | None = None,
    num_workers: int = 0,
    streaming: bool = False,
) -> ImageData | StreamedImages:
    """Load the images, labels and captions of a data set, decoded once and cached on disk.

    Args:
        source: one of
            "digits" (scikit-learn's, 8 x 8, values v = 0..16 as floor((255 v + 8) / 16)), "emoji" (32 x 32, comes
            with the package: columns noto, twemoji, text, category, subcategory, codepoint) or "factors" (32 x 32,
            rendered: columns shape, colour, scale, rotation, x, y, text); a `Path` is never one of these names;
            a folder of images, whose subfolders are the labels, or which holds a metadata.csv, .jsonl, .json or
            .parquet with `file_name` (relative to it) and other columns, beside or above the images;
            a .parquet file, a folder or a glob of them; what exists is a path first, and a `Path` is never a pattern;
            the name of a data set on the Hub;
            a data set of the `datasets` library, or, with `streaming`, any iterable of dicts.
        split: "train", "test", ..., or a part of one as "train[:80%]". The split of a folder or parquet file
            is a word in its path; a single parquet file is taken as it is, and what names no split is "train".
        config_name, revision: of a data set on the Hub. The revision is resolved to a commit, which `source` records.
        image_column: default "image", else the first column that holds images.
        label_column: default "label", else the only column that declares its classes. "" for none.
        caption_column: default "text" or "caption" if there is one. "" for none.
        label_names: the classes, in their order, where the data does not declare them; text labels are otherwise
            numbered by sorting, so give the training set's `label_names` when loading a test set.
        resolution: the side H = W, or (H, W), in pixels. None keeps the size of the images, which must be equal.
        channels: 1, 3 or 4. None: 1 if the first image is grey, else 3. Without alpha (1, 3) transparent parts show
            white.
        center_crop: the shorter side is brought to `resolution` (bicubic with antialias) and the centre is cropped;
            False crops at a random place, anew at each position of the stream.
        random_flip: flip left-right with probability 1/2, anew at each position of the stream.
        max_samples: use at most so many images, spread evenly over the rows (of a stream: the first).
        on_bad_image: "raise" names all bad images; "skip" leaves out at most 1 % of the images and lists them in
            `skipped`.
        cache_dir: where decoded images are cached (and what `datasets` downloads). Default: $LATENTIA_CACHE,
            $HF_HOME/latentia or ~/.cache/latentia.
        num_workers: processes that decode, the first time only; 0 decodes in this one.
        streaming: decode images as they are asked for and store nothing, for sets that do not fit on the disk.

    Returns:
        [`ImageData`], or with `streaming` [`StreamedImages`], which has the same `batch`. Its `left_out` says what of
        the source was not taken, and why; each line of it is logged as a warning.

    Raises:
        UsageError: an argument is wrong, or names a column that there is not.
        DataError: the data cannot be found, read or used; names the file or row.

    Example:
        >>> data = load_images("digits")
        >>> data
        ImageData(digits: 1797 images of shape (1, 8, 8))
        >>> batch = data.batch(0, 64, seed=1)
        >>> batch["x"].shape, batch["labels"].dtype
        (torch.Size([64, 1, 8, 8]), torch.int64)
    """
    check_pillow()
    if channels not in (None, 1, 3, 4):
        raise UsageError(f"channels must be one of None, 1, 3, 4; got {channels!r}.")
    check_choice("on_bad_image", on_bad_image, ("raise", "skip"))
    check_range("max_samples", max_samples, 1)
    check_range("num_workers", num_workers, 0)
    plan = Plan(
        size=_size(resolution),
        channels=channels,
        crop=center_crop or resolution is None,
        on_bad_image=on_bad_image,
        label_names=None if label_names is None else [str(name) for name in label_names],
    )
    split_name, part = parse_split(split)
    found = find_source(source, split_name, config_name, revision, cache_dir, streaming)
    found.about.update({"split": split, "resolution": resolution, "center_crop": center_crop})
    asked = (image_column, label_column, caption_column)
    if streaming:
        if "[" in split:
            raise UsageError(f'a stream has no length, so split="{split}" cannot be cut from it; use max_samples.')
        data: ImageData | StreamedImages = StreamedImages(found, plan, asked, random_flip, max_samples)
    elif found.key is None:
        raise UsageError(
            f"{found.name} can only be read as a stream of rows, mappings with an image; give streaming=True. Images "
            "in memory become a data set by latentia.data.ImageData(images), uint8 (N, C, H, W)."
        )
    else:
        folder = cache_folder(cache_dir)
        data = _load(found, plan, asked, split, part, max_samples, random_flip, folder, num_workers)
    for line in data.left_out.lines():
        logger.warning("%s: not taken: %s.", found.name, line)
    if isinstance(data, ImageData):
        for line in data.notes:
            logger.warning("%s: %s.", found.name, line)
    return data


def _load(
    found: Source,
    plan: Plan,
    asked: tuple[str | None, str | None, str | None],
    split: str,
    part: Callable[[int], range],
    max_samples: int | None,
    random_flip: bool,
    folder: Path,
    num_workers: int,
) -> ImageData:
    def make(write) -> dict[str, Any]:
        try:
            table = found.open()
            picked = pick(table, found.name, *asked)
            if not table.count:
                raise DataError(f"{found.name} is empty.")
            rows = choose_rows(table.count, part, max_samples)
            logger.info("decoding %d images of %s into %s", len(rows), found.name, folder)
            return build(table, picked, rows, plan, write, folder, num_workers)
        except OSError as error:
            raise DataError(f"{found.name} cannot be read: {error}") from error

    content = content_key(found.files, folder / "contents")
    key = key_of([_DECODER, found.key, content, split, asked, asdict(plan), max_samples])
    flat, meta = cached_bytes(make, key, folder / "images", "decoded images")
    data = ImageData.from_cache(flat, meta, plan, random_flip, found.about)
    data.left_out = found.left_out
    for where in meta["several"]:
        data.left_out.add("further image of a file", "only the first of each file is taken", where)
    peak = meta.get("peak")
    if peak is not None and peak < 2**16 / 8:
        data.notes.append(
            f"dark: no image of 16 bits has a value above {peak} of 65535. Are they of {peak.bit_length()} bits? Then "
            f"multiply their values by {2 ** (16 - peak.bit_length())} first"
        )
    for bad in data.skipped:
        data.left_out.add("bad image", "skipped, as on_bad_image says", bad)
    if data.labels is not None and data.label_names is not None:
        for i in sorted({*range(len(data.label_names))} - {*data.labels.tolist()}):
            data.left_out.add("class", "it has no image here", data.label_names[i])
    return data


def _size(resolution: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if resolution is None:
        return None
    size = (resolution, resolution) if isinstance(resolution, int) else tuple(resolution)
    if len(size) != 2 or not all(isinstance(side, int) and 1 <= side <= 8192 for side in size):
        raise UsageError(f"resolution must be one or two (H, W) whole numbers from 1 to 8192, got {resolution!r}.")
    return size[0], size[1]
