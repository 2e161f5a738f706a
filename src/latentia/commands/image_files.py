"""Image files that a command line names: single ones, several, or all of a folder, opened as they are needed."""

from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image

from latentia.data.decode import SUFFIXES, BadImage, open_image
from latentia.errors import UsageError, counted
from latentia.files.reading import read_bytes, user_path


def image_files(argument: str, given: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files of an argument, those of folders in the order of their names.

    Args:
        argument: its name, for errors.
        given: a file or folder, or several.

    Raises:
        UsageError: a folder without images.

    Example:
        >>> image_files("image", ["a.png", "b.png"])
        [PosixPath('a.png'), PosixPath('b.png')]
    """
    found: list[Path] = []
    for path in map(Path, [given] if isinstance(given, str | Path) else given):
        folder = user_path(path)
        if not folder.is_dir():
            found.append(path)
            continue
        inside = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
        if not inside:
            raise UsageError(f"{argument} must be images, or folders of them; {path} holds none.")
        found.extend(inside)
    return found


def count_of(files: Mapping[str, Sequence[Path]]) -> int:
    """How many images several arguments are of: the number that is not 1, or 1.

    Raises:
        UsageError: two different numbers.
    """
    several = {name: len(paths) for name, paths in files.items() if len(paths) > 1}
    if len({*several.values()}) > 1:
        said = " and ".join(f"{counted(count, 'image')} as {name}" for name, count in several.items())
        raise UsageError(f"Images that belong together must be equally many, or one for all; got {said}.")
    return max(several.values(), default=1)


def opened(argument: str, path: Path) -> Image.Image:
    """One image.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return open_image(path)
    except BadImage as error:
        raise UsageError(f"{argument} must be an image; {path} {error}.") from error


def described(path: Path) -> dict[str, str]:
    """What a recipe says of a file: its name and its SHA-256."""
    return {"name": path.name, "sha256": sha256(read_bytes(path, error=UsageError)).hexdigest()}


def batches_of(files: Mapping[str, Sequence[Path]], start: int, stop: int) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Images `start` to `stop`, in parts whose images have one size and mode: (start, stop, argument -> images).

    Several files are given out in turn; one is for all.
    """
    one = {name: opened(name, paths[0]) for name, paths in files.items() if len(paths) == 1}
    held: list[dict[str, Image.Image]] = []
    first = start
    for i in range(start, stop):
        row = {name: opened(name, paths[i % len(paths)]) for name, paths in files.items() if len(paths) > 1}
        if held and any((row[name].size, row[name].mode) != (held[0][name].size, held[0][name].mode) for name in row):
            yield first, i, {**one, **_columns(held)}
            held, first = [], i
        held.append(row)
    yield first, stop, {**one, **_columns(held)}


def _columns(rows: Sequence[dict[str, Image.Image]]) -> dict[str, list[Image.Image]]:
    return {name: [row[name] for row in rows] for name in rows[0]}
