"""A folder of images: what is in it, its splits, its classes, and the labels and captions of its metadata."""

import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentia.data.columns import Column, Source, Table
from latentia.data.decode import SUFFIXES, format_of
from latentia.data.left_out import LeftOut
from latentia.data.metadata import METADATA, read_metadata
from latentia.data.names import class_order, printable
from latentia.data.parquet import SPLIT_WORDS, check_parts, holds_images, of_split, parquet_source
from latentia.errors import DataError, MissingSplitError
from latentia.files.reading import open_file, real_path

_KINDS = {
    "a camera's raw image; export it as TIFF or JPEG": ".3fr .arw .cr2 .cr3 .dng .nef .orf .pef .raf .raw .rw2 .srw",
    "an archive, which is not unpacked": ".7z .bz2 .gz .rar .tar .tgz .xz .zip",
    "a table; the columns of images are read from metadata.csv, .jsonl, .json or .parquet": ".csv .json .jsonl .tsv "
    ".xls .xlsx .ods",
    "a text; captions are read from metadata.csv, .jsonl, .json or .parquet": ".caption .md .pdf .txt",
    "a video": ".avi .m4v .mkv .mov .mp4 .mpg .webm",
    "sound": ".aac .flac .m4a .mp3 .ogg .opus .wav",
    "a file of arrays": ".h5 .mat .npy .npz .pt .safetensors",
}
_OTHER_IMAGES = (".ai", ".dds", ".eps", ".exr", ".hdr", ".ico", ".j2k", ".jp2", ".jxl", ".psd", ".svg", ".tga", ".xcf")
_TABLES = "Tables are trained on by latentia train table, and time series in them by latentia train series"
_SOUNDS, _TEXTS = "Sounds are trained on by latentia train sound", "Texts are trained on by latentia train text"
_TAKEN_BY = {".csv": _TABLES, ".tsv": _TABLES, ".wav": _SOUNDS, ".flac": _SOUNDS, ".txt": _TEXTS}
_KIND_OF = {suffix: kind for kind, suffixes in _KINDS.items() for suffix in suffixes.split()}


def kind_of(path: Path) -> str | None:
    """What a file without images holds, by its suffix, as in "a video"; None if that is not known.

    Example:
        >>> kind_of(Path("a.mp4"))
        'a video'
    """
    return _KIND_OF.get(path.suffix.lower())


def of_others(suffix: str) -> str:
    """Which command takes files of a suffix that no image has, as a sentence; empty if none does.

    Example:
        >>> of_others(".wav")
        ' Sounds are trained on by latentia train sound.'
    """
    way = _TAKEN_BY.get(suffix.lower())
    return f" {way}." if way else ""


@dataclass
class Contents:
    """The files below a folder: `others` are not taken, each with its kind and the reason; `links` lead out."""

    images: list[Path] = field(default_factory=list)
    metadata: list[Path] = field(default_factory=list)
    parquet: list[Path] = field(default_factory=list)
    others: list[tuple[Path, str, str]] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)


def contents(root: Path, source: str) -> Contents:
    """Every file below `root`, each list sorted. What is hidden is not taken.

    A file is an image by its suffix, or, without a suffix, by its content.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{source}: {error.filename} cannot be listed: {error.strerror}.") from error

    found = Contents()
    for folder, folders, names in _walk(root, source, refuse):
        place = Path(folder)
        hidden = any(map(_is_hidden, place.relative_to(root).parts))
        for path in (place / name for name in folders if not hidden and not _is_hidden(name)):
            if _leads_out(path, root):
                found.links.append(path)
            elif path.is_symlink():
                found.others.append((path, "folder", "a link, which is not followed"))
        if place != root and not hidden and not folders and not names:
            found.others.append((place, "folder", "empty"))
        for path in map(place.joinpath, names):
            suffix = path.suffix.lower()
            if not _is_regular(path):
                found.others.append((path, "no regular file", "a pipe, a socket or a device"))
            elif hidden or path.name.startswith("."):
                if suffix in (*SUFFIXES, ".parquet"):
                    found.others.append((path, suffix, "hidden"))
            elif path.stem.lower() == "metadata" and suffix in METADATA:
                found.metadata.append(path)
            elif suffix == ".parquet":
                found.parquet.append(path)
            elif suffix in SUFFIXES or (not suffix and _format(path, root)):
                found.images.append(path)
            else:
                found.others.append((path, suffix or "no suffix", _reason(path, root)))
    found.links += [path for path in (*found.images, *found.metadata) if _leads_out(path, root)]
    found.others.sort()
    for files in (found.images, found.metadata, found.parquet):
        files.sort()
    return found


def _walk(root: Path, source: str, refuse: Callable[[OSError], None]) -> Iterator[tuple[str, list[str], list[str]]]:
    try:
        yield from os.walk(root, onerror=refuse)
    except RecursionError as error:
        raise DataError(f"{source} has folders in folders too deep to be read. Move the images up.") from error


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__"))


def _is_regular(path: Path) -> bool:
    """Whether a path can be read without waiting: a regular file, or a broken link, which is an error when opened."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True


def _leads_out(path: Path, root: Path) -> bool:
    """Whether `path` is a link that leads out of `root`, which is resolved already."""
    return path.is_symlink() and not real_path(path).is_relative_to(root)


def _format(path: Path, root: Path) -> str | None:
    """The format of an image by its content; None for what is no image, cannot be read, or is outside of `root`."""
    if _leads_out(path, root):
        return None
    try:
        with open_file(path, error=DataError) as file:
            return format_of(file.read(32))
    except (OSError, DataError):
        return None


def _reason(path: Path, root: Path) -> str:
    if kind := kind_of(path):
        return kind
    if path.suffix.lower() in _OTHER_IMAGES:
        return "an image of a format that is not read; export it as PNG"
    form = _format(path, root)
    return f"{form} by its content, but not by its name; rename it" if form else "not an image"


def folder_source(text: str, path: Path, split: str) -> Source:
    """A folder of images, or of parquet files if some hold images or nothing else does.

    Raises:
        DataError: no image, no such split, or metadata that is wrong.
    """
    root = real_path(path)
    found, left_out = contents(root, text), LeftOut()
    parquet = found.parquet or ([] if found.images else [f for f in found.metadata if f.suffix.lower() == ".parquet"])
    if parquet and (not found.images or any(map(holds_images, parquet))):
        reason = "not read, as the folder holds parquet files of images"
        beside = [file for file in (*found.images, *found.metadata) if file not in parquet]
        for file, kind, why in [*((file, file.suffix.lower(), reason) for file in beside), *found.others]:
            left_out.add(kind, why, file.relative_to(root).as_posix())
        of_this = of_split(parquet, split, text, root)
        check_parts(of_this)
        return parquet_source(text, of_this, split, left_out=left_out)
    if found.links:
        raise DataError(
            f"{text}: {found.links[0].relative_to(root)} is a link that leads out of the folder, which is not "
            "followed. Copy the file there (`hf download --local-dir` makes copies instead of links)."
        )
    found.others += [(file, ".parquet", "it has no column of images") for file in found.parquet]
    if not found.images:
        seen = Counter(f"hidden {kind}" if why == "hidden" else kind for _, kind, why in found.others).most_common(5)
        shown = ", ".join(f"{count} x {kind}" for kind, count in seen) or "no file"
        only = next((way for file, _, _ in found.others if (way := of_others(file.suffix))), "")
        if (root / "state.json").is_file() and (root / "dataset_info.json").is_file():
            only = " It was written by save_to_disk: give datasets.load_from_disk of it in Python, or write it anew by "
            only += "to_parquet."
        raise DataError(f"{text} holds no image ({shown}); known suffixes: {' '.join(SUFFIXES)}.{only}")
    chosen, elsewhere = _split_folder(root, found, split, text, left_out)
    for file, kind, reason in found.others:
        if file.relative_to(root).parts[0] not in elsewhere:
            left_out.add(kind, reason, file.relative_to(root).as_posix())
    metadata = [file for file in found.metadata if file.relative_to(root).parts[0] not in elsewhere]
    images = [file for file in found.images if chosen in file.parents]
    table = _table(root, chosen, images, found.images, metadata, text, left_out)
    about = {"kind": "image folder", "name": path.resolve().name, "split": split}
    files = {file.relative_to(root).as_posix(): file for file in (*images, *metadata)}
    key = ["folder", chosen.relative_to(root).as_posix()]
    return Source(text, about, lambda: table, key, left_out, files)


def _split_folder(root: Path, found: Contents, split: str, source: str, left_out: LeftOut) -> tuple[Path, set[str]]:
    """The folder of the split, and the names of those of other splits: splits if all folders of images are named so."""
    tops = {parts[0] for image in found.images if len(parts := image.relative_to(root).parts) > 1}
    folders: dict[str, str] = {}
    for name in sorted(tops):
        if word := SPLIT_WORDS.get(name.lower()):
            if word in folders and all(top.lower() in SPLIT_WORDS for top in tops):
                raise DataError(
                    f'{source} has two folders of the split "{word}", {folders[word]} and {name}; join them.'
                )
            folders[word] = name
    wanted = SPLIT_WORDS.get(split, split)
    if len(folders) < len(tops) or not tops:
        if split != "train":
            raise MissingSplitError(f'{source} has no split "{split}": no folder below it is named so. It has: train.')
        other = next((name for name in sorted(tops) if name not in folders.values()), "")
        for name in folders.values():
            left_out.add("folder", f"not taken as a split, since {other} beside it is none", name)
        return root, set()
    beside = [image for image in found.images if image.parent == root]
    if wanted not in folders:
        more = f" {len(beside)} images lie beside these folders." if beside else ""
        raise MissingSplitError(f'{source} has no split "{split}". It has: {", ".join(sorted(folders))}.{more}')
    for image in beside:
        left_out.add(image.suffix.lower(), "beside the folders of the splits", image.name)
    return root / folders[wanted], {name for name in folders.values() if name != folders[wanted]}


def _table(
    root: Path,
    chosen: Path,
    images: list[Path],
    everything: list[Path],
    metadata: list[Path],
    source: str,
    left_out: LeftOut,
) -> Table:
    """A table over the images of the split; metadata chooses among them and adds columns."""
    table: dict[str, list[Any]] = {"image": images}
    if metadata:
        rows = [row for row in read_metadata(metadata, root, everything, source) if chosen in row[0].parents]
        names = ", ".join(file.relative_to(root).as_posix() for file in metadata)
        if not rows:
            raise DataError(f"{source}: none of the {len(images)} images of the split is named in {names}.")
        for image in sorted({*images} - {image for image, _ in rows}):
            left_out.add(image.suffix.lower(), f"not named in {names}", image.relative_to(root).as_posix())
        keys = dict.fromkeys(key for _, line in rows for key in line)
        if "image" in keys:
            left_out.add("column", "the images are those of file_name", "image")
        table = {key: [line.get(key) for _, line in rows] for key in keys}
        table["image"] = [image for image, _ in rows]
    columns = {key: Column("image" if key == "image" else _kind(values)) for key, values in table.items()}
    classes = _classes([image.relative_to(chosen) for image in table["image"]], left_out)
    if classes and "label" in table:
        for name in sorted({*classes}):
            left_out.add("class folder", "no labels, as the metadata have a column label", name)
    elif classes:
        names_of = class_order(classes)
        number = {name: i for i, name in enumerate(names_of)}
        columns["label"], table["label"] = Column("integer", names_of), [number[name] for name in classes]

    def rows_of(names: Sequence[str]) -> Iterator[tuple[str, tuple]]:
        for i, file in enumerate(table["image"]):
            yield printable(file.relative_to(chosen).as_posix()), tuple(table[name][i] for name in names)

    return Table(columns, rows_of, len(table["image"]))


def _classes(images: list[Path], left_out: LeftOut) -> list[str] | None:
    """The class of each image: the folders in which the images differ, if all lie equally deep; else None."""
    places = [tuple(unicodedata.normalize("NFC", part) for part in image.parts[:-1]) for image in images]
    depths = Counter(map(len, places))
    if len(depths) > 1:
        deep = max(depths, key=lambda depth: (depths[depth], depth))
        folders = sorted({"/".join(place) for place in places if place and len(place) == deep})
        odd = next(image for image, place in zip(images, places) if len(place) != deep)
        for name in folders if len(folders) > 1 else ():
            left_out.add("class folder", f"no labels, as {odd.as_posix()} lies at another depth", name)
        return None
    differ = [i for i in range(len(places[0])) if len({place[i] for place in places}) > 1]
    return ["/".join(place[i] for i in differ) for place in places] if differ else None


def _kind(values: list[Any]) -> Any:
    present = [value for value in values if value is not None]
    if present and all(isinstance(value, str) for value in present):
        return "text"
    return "integer" if present and all(isinstance(value, int) for value in present) else "other"
