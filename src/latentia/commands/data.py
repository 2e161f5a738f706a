"""Check a data set: decode every image once, and list what was found."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from latentia.data import load_images


@dataclass(frozen=True)
class Checked:
    """A data set whose images were all decoded.

    Args:
        data: the data set, an `ImageData`.
    """

    data: Any

    def text(self) -> str:
        """Its size, its columns, its classes and its fingerprint."""
        return "\n".join([str(self.data), *(f"  {key}: {value}" for key, value in self.data.describe().items())])


def data(
    source: str | Path,
    *,
    split: str = "train",
    resolution: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    caption_column: str | None = None,
    on_bad_image: Literal["raise", "skip"] = "raise",
    cache_dir: str | Path | None = None,
) -> Checked:
    """Check a data set: decode every image once, and list what was found.

    Args:
        source: digits, emoji, factors, a folder, a parquet file or folder, or a data set on the Hub.
        split: split of the data.
        resolution: side of the images in pixels; their own size if not given.
        image_column: column of the images; found by type if not given.
        label_column: column of the labels; found by type if not given.
        caption_column: column of the captions.
        on_bad_image: "raise" stops at an image that cannot be read, "skip" leaves out at most 1 percent.
        cache_dir: where decoded images are cached; the cache of latentia if not given.

    Returns:
        The data set, and a text that describes it.

    Raises:
        DataError: it cannot be read, or an image of it cannot.

    Example:
        >>> data("digits").text().splitlines()[0]
        'ImageData(digits: 1797 images of shape (1, 8, 8))'
    """
    found = load_images(
        source,
        split=split,
        resolution=resolution,
        image_column=image_column,
        label_column=label_column,
        caption_column=caption_column,
        on_bad_image=on_bad_image,
        cache_dir=cache_dir,
    )
    return Checked(found)
