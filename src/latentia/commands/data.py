"""Check a data set: decode every image once, and list what was found."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch.nn import functional as F

from latentia.data import ImageData, load_images
from latentia.errors import Range, UsageError, check_arguments
from latentia.evaluation import image_grid
from latentia.files.writing import write_image
from latentia.functional.pixels import from_uint8
from latentia.functional.settings import check_types

_PER_CLASS, _CLASSES, _SIDE = 8, 32, 128


@dataclass(frozen=True)
class Checked:
    """A data set whose images were all decoded.

    Args:
        data: the data set, an `ImageData`.
        preview: the image file that shows some of it; None without.
    """

    data: Any
    preview: Path | None = None

    def text(self) -> str:
        """Its size, columns, classes with their numbers of images, fingerprint, what was not taken, and notes."""
        facts = self.data.describe()
        if self.data.labels is not None:
            counts = torch.bincount(self.data.labels, minlength=len(self.data.label_names)).tolist()
            facts["label_names"] = ", ".join(f"{name} ({n})" for name, n in zip(self.data.label_names, counts))
        del facts["left_out"]
        lines = [str(self.data), *(f"  {key}: {value}" for key, value in facts.items())]
        lines += [f"  not taken: {line}" for line in self.data.left_out.lines()]
        lines += [f"  skipped: {line}" for line in self.data.skipped]
        lines += [f"  {line}" for line in self.data.notes]
        if self.preview is not None:
            classes = 0 if self.data.labels is None else len(self.data.label_names)
            part = f", of the first {_CLASSES} of {classes} classes" if classes > _CLASSES else ""
            lines.append(f"Written: {self.preview}{part}")
        return "\n".join(lines)


@check_types
@check_arguments
def data(
    source: str | Path,
    *,
    split: str = "train",
    resolution: Annotated[int, Range(1, most=4096)] | None = None,
    channels: Annotated[int, Range(1, 4)] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    caption_column: str | None = None,
    on_bad_image: Literal["raise", "skip"] = "raise",
    cache_dir: str | Path | None = None,
    preview: str | Path | None = None,
) -> Checked:
    """Check a data set: decode every image once, and list what was found, and what was not taken and why.

    Args:
        source: digits, emoji, factors, a folder, a parquet file or folder, or a data set on the Hub.
        split: split of the data.
        resolution: side of the images in pixels; their own size if not given.
        channels: 1, 3 or 4; 1 if the first image is grey, else 3, if not given.
        image_column: column of the images; found by type if not given.
        label_column: column of the labels; found by type if not given.
        caption_column: column of the captions.
        on_bad_image: "raise" names all images that cannot be read, "skip" leaves out at most 1 percent.
        cache_dir: where decoded images are cached; the cache of latentia if not given.
        preview: a new image file, such as preview.png: a grid of images, one row for each of the first 32 classes; none
            if not given. It must not lie in the folder of the images, where it would be one of them.

    Returns:
        The data set, and a text that describes it.

    Raises:
        DataError: it cannot be read, or an image of it cannot.
        UsageError: `preview` exists, or its suffix names no image format.

    Example:
        >>> data("digits").text().splitlines()[0]
        'ImageData(digits: 1797 images of shape (1, 8, 8))'
    """
    file = None if preview is None else Path(preview)
    if file is not None and file.exists():
        raise UsageError(f"preview must be a new file, and {file} exists. Choose another name, or delete it.")
    if file is not None and file.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UsageError(f"preview must end in .png, .jpg or .webp; got {file}.")
    if file is not None and Path(source).is_dir() and file.resolve().is_relative_to(Path(source).resolve()):
        raise UsageError(
            f"preview must not lie in {source}, where it would be taken for one of the images; got {file}."
        )
    logger = logging.getLogger("latentia.data.loading")  # it warns of what is not taken, as the text does
    before, logger.disabled = logger.disabled, True
    try:
        found = load_images(
            source,
            split=split,
            resolution=resolution,
            channels=channels,
            image_column=image_column,
            label_column=label_column,
            caption_column=caption_column,
            on_bad_image=on_bad_image,
            cache_dir=cache_dir,
        )
    finally:
        logger.disabled = before
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_image(file, _grid(found))
    return Checked(found, file)


def _grid(found: ImageData) -> Any:
    """A row of images for each of the first classes; without classes, images from all over the set."""
    if found.labels is None or found.label_names is None:
        count = min(_PER_CLASS**2, len(found))
        return image_grid(_tiles(found, [i * len(found) // count for i in range(count)]))
    names = found.label_names[:_CLASSES]
    members = [(found.labels == i).nonzero().flatten()[:_PER_CLASS].tolist() for i in range(len(names))]
    columns = max(map(len, members))
    tiles = _tiles(found, [row for rows in members for row in rows]).split([len(rows) for rows in members])
    filled = [F.pad(tile, (0, 0, 0, 0, 0, 0, 0, columns - len(tile)), value=1.0) for tile in tiles]
    more = f" and {len(found.label_names) - _CLASSES} more" if len(found.label_names) > _CLASSES else ""
    return image_grid(torch.cat(filled), columns, row_labels=[*names[:-1], names[-1] + more])


def _tiles(found: ImageData, rows: Sequence[int]) -> torch.Tensor:
    """The images as floats, no side longer than 128 pixels."""
    images = from_uint8(found.images[list(rows)])
    height, width = images.shape[2:]
    scale = _SIDE / max(height, width)
    if scale >= 1:
        return images
    size = (math.ceil(height * scale), math.ceil(width * scale))
    return F.interpolate(images, size, mode="bilinear", antialias=True)
