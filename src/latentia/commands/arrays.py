"""Arrays of images in .npy and .npz files, in the layouts that the usual tools write."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from latentia.errors import DataError, UsageError, counted
from latentia.files.reading import open_file

_UNFOLDED, _RATIO = 2**30, 20  # bytes of the arrays of an .npz file, or as many times as the file has


def read_array(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """The array of images in a file, and notes on what else there is.

    Args:
        path: a .npy file, or an .npz file of which one array has three or four dimensions. Numbers of classes beside
            it, one for each image, are not used, as they have no names.

    Raises:
        DataError: the file cannot be read, holds no or several arrays of images, or unfolds to more than 1 GiB and 20
            times its size.
    """
    try:
        with open_file(path, error=DataError) as file:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return found, ()
            size, held = sum(part.file_size for part in found.zip.infolist()), path.stat().st_size
            if size > max(_UNFOLDED, _RATIO * held):
                raise ValueError(f"{held} bytes unfold to {size}; at most {_RATIO} times as many are read")
            arrays = {name: found[name] for name in found.files}
            if odd := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
                raise ValueError(f"{odd[0]} in it is no array")
    except Exception as error:  # of the zip archive, of what it unpacks, of the header in it
        raise DataError(f"{path} cannot be read as an array of images: {error}") from error
    images = [name for name, array in arrays.items() if array.ndim in (3, 4)]
    listed = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
    if len(images) != 1:
        raise DataError(f"{path} must hold one array of images, of 3 or 4 dimensions. It holds {listed or 'none'}.")
    count = len(arrays[images[0]])
    if odd := [name for name, array in arrays.items() if name not in images and array.shape[:1] != (count,)]:
        raise DataError(f"{path} must hold images, and labels of each of them; {odd[0]} is neither. It holds {listed}.")
    rest = ", ".join(name for name in arrays if name not in images)
    return arrays[images[0]], (f"{rest} of {path.name} was not used: classes are numbers there, without names",) * bool(
        rest
    )


def as_rows(images: np.ndarray, shape: Sequence[int], name: str) -> np.ndarray:
    """Images as (N, H, W, C), from (N, H, W), (N, H, W, C) or (N, C, H, W).

    Args:
        images: of any shape.
        shape: (C, H, W) of an image, by which the layout is known.
        name: of the source, for messages.

    Raises:
        UsageError: the array has another shape.

    Example:
        >>> as_rows(np.zeros((5, 3, 8, 8)), (3, 8, 8), "x").shape
        (5, 8, 8, 3)
    """
    channels, height, width = shape
    if images.ndim == 3:
        images = images[..., None]
    if images.shape[1:] == (height, width, channels):
        return images
    if images.shape[1:] == (channels, height, width):
        return images.transpose(0, 2, 3, 1)
    raise UsageError(
        f"images must have the shape (N, {height}, {width}, {channels}) or (N, {channels}, {height}, {width}), of "
        f"images {height} high and {width} wide in {counted(channels, 'channel')}; {name} has {images.shape}."
    )
