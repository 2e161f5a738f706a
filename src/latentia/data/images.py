"""`load_images`: a source of images becomes uint8 pixels once, and batches ever after."""

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ..errors import DataError, UsageError
from .build import Plan, build, chosen_rows
from .cache import cache_folder, key_of, open_or_build
from .columns import Source, pick
from .decode import refuse_loosened_pillow
from .order import indices, uniform
from .sources import find_source

if TYPE_CHECKING:
    from .streaming import StreamedImages

logger = logging.getLogger(__name__)

RESIDENT_BYTES = 1 << 30  # a data set up to this size is copied once to the accelerator that asks for batches
_DECODER = 1  # raise it when the same file would give other pixels


class ImageData:
    """A data set of decoded images in the order of an endless, shuffled stream.

    Position p of the stream is element p % n of epoch p // n, and each epoch is a permutation of all n images that
    depends on (seed, epoch) alone. Nothing is dropped at the end of an epoch. Made by [`load_images`], or directly:

    Args:
        images: uint8 (N, C, H, W), values in [0, 255].
        labels: N integers in [0, len(label_names)), or None.
        label_names: the classes; default "0", "1", ... up to the largest label.
        captions: N texts, or None.
        random_flip: mirror each image left-right with probability 1/2, anew at each position.
        source: where the images come from, for the model card.
        skipped: bad images that were passed over, each with its reason.

    Example:
        >>> data = ImageData(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), labels=[0, 1, 2, 1, 0])
        >>> batch = data.batch(0, 8)
        >>> batch["x"].shape, batch["x"].min().item(), sorted(batch["labels"][:5].tolist())
        (torch.Size([8, 1, 8, 8]), -1.0, [0, 0, 1, 1, 2])
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: Sequence[int] | torch.Tensor | None = None,
        label_names: Sequence[str] | None = None,
        captions: Sequence[str] | None = None,
        random_flip: bool = False,
        source: dict[str, Any] | None = None,
        skipped: Sequence[str] = (),
    ):
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3, 4) or not len(images):
            raise UsageError(
                f"images must be a uint8 tensor (N, 1|3|4, H, W), N >= 1; got {images.dtype} {tuple(images.shape)}."
            )
        self._setup(len(images), tuple(images.shape[1:]), labels, label_names, captions, random_flip, source, skipped)
        self._pixels: torch.Tensor | None = images

    def _setup(self, count, shape, labels, label_names, captions, random_flip, source, skipped) -> None:
        for name, values in (("labels", labels), ("captions", captions)):
            if values is not None and len(values) != count:
                raise UsageError(f"there are {count} images, but {len(values)} {name}.")
        self.labels: torch.Tensor | None = None if labels is None else torch.as_tensor(labels, dtype=torch.int64)
        self.label_names: list[str] | None = None if label_names is None else list(label_names)
        if self.labels is not None:
            top = int(self.labels.max())
            self.label_names = self.label_names or [str(i) for i in range(top + 1)]
            if int(self.labels.min()) < 0 or top >= len(self.label_names):
                raise UsageError(
                    f"labels must lie in [0, {len(self.label_names)}); got {int(self.labels.min())} to {top}."
                )
        self.captions: list[str] | None = None if captions is None else list(captions)
        self.shape: tuple[int, int, int] = shape
        self.random_flip = random_flip
        self.source: dict[str, Any] = dict(source or {"kind": "tensor"})
        self.skipped: list[str] = list(skipped)
        self._count = count
        self._pixels = None
        self._digest: str | None = None
        self._uneven: _Uneven | None = None
        self._resident: dict[torch.device, torch.Tensor] = {}

    @classmethod
    def _from_cache(cls, flat: np.ndarray, meta: dict, plan: Plan, random_flip: bool, about: dict) -> "ImageData":
        data = cls.__new__(cls)
        height, width = plan.size if plan.size and not plan.crop else meta["sizes"][0]
        shape = (meta["channels"], height, width)
        rest = (meta["labels"], meta["label_names"], meta["captions"], random_flip)
        data._setup(meta["count"], shape, *rest, {**about, "columns": meta["columns"]}, meta["skipped"])
        data._digest = meta["blake2b"]
        if len(meta["sizes"]) == 1 and tuple(meta["sizes"][0]) == (height, width):
            data._pixels = torch.from_numpy(flat).view(meta["count"], *shape)
        else:
            sizes = np.broadcast_to(np.asarray(meta["sizes"], np.int64), (meta["count"], 2))
            data._uneven = _Uneven(flat, sizes, shape)
        return data

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        name = self.source.get("name", self.source["kind"])
        return f"ImageData({name}: {len(self)} images of shape {self.shape})"

    @property
    def images(self) -> torch.Tensor:
        """All images in the order of the source: uint8 (N, C, H, W), no flips; random crops show the centre."""
        if self._pixels is None:
            assert self._uneven is not None
            half = np.full(len(self), 0.5)
            self._pixels = torch.from_numpy(self._uneven.gather(np.arange(len(self)), half, half))
        return self._pixels

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits of the content (pixels, labels, captions), wherever it was read from."""
        if self._digest is None:
            self._digest = hashlib.blake2b(self.images.contiguous().numpy().data, digest_size=32).hexdigest()
        sizes = None if self._uneven is None else self._uneven.sizes.tolist()
        labels = None if self.labels is None else self.labels.tolist()
        return key_of([self._digest, len(self), self.shape, sizes, labels, self.label_names, self.captions])

    def describe(self) -> dict[str, Any]:
        """What a model card says about the data: source, number and shape of the images, classes, fingerprint."""
        return {
            **self.source,
            "images": len(self),
            "shape": list(self.shape),
            "label_names": self.label_names,
            "captions": self.captions is not None,
            "random_flip": self.random_flip,
            "skipped": len(self.skipped),
            "fingerprint": self.fingerprint,
        }

    def require(self, batch: int) -> None:
        """DataError if there are fewer images than one global batch (over all processes and accumulation) holds.

        Example:
            >>> ImageData(torch.zeros(5, 1, 8, 8, dtype=torch.uint8)).require(4)
        """
        if len(self) < batch:
            raise DataError(
                f"the data set holds {len(self)} images, fewer than one global batch of {batch}, which would show an "
                f"image twice in one step. Lower the batch size to {len(self)} at most, or give more images."
            )

    def batch(self, start: int, stop: int, *, seed: int = 0, device: str | torch.device = "cpu") -> dict[str, Any]:
        """Positions [start, stop) of the sample stream of `seed`; the same however the stream is cut into batches.

        Args:
            start, stop: 0 <= start <= stop, unbounded; a batch may span epochs.
            seed: of the order, the flips and the crops.
            device: where the tensors are wanted. An accelerator keeps sets of up to 1 GiB whole.

        Returns:
            {"x": float32 (B, C, H, W) in [-1, 1]}, with "labels" (int64 (B,)) and "captions" (list of B texts)
            where the data set has them.
        """
        if not 0 <= start <= stop:
            raise UsageError(f"a batch needs 0 <= start <= stop, got start={start}, stop={stop}.")
        device = torch.device(device)
        index = indices(start, stop, len(self), seed)
        rows = index.numpy()
        mirror = mirrored(start, stop, seed) if self.random_flip else None
        if self._uneven is not None:
            places = (uniform(stream, start, stop, seed) for stream in ("crop y", "crop x"))
            images = finished(self._uneven.gather(rows, *places), mirror, device)
        elif device.type == "cpu" or self.images.numel() > RESIDENT_BYTES:
            images = finished(self.images.numpy().take(rows, axis=0), mirror, device)
        else:
            images = self._from_resident(index, mirror, device)
        out: dict[str, Any] = {"x": images}
        if self.labels is not None:
            out["labels"] = self.labels[index].to(device, non_blocking=True)
        if self.captions is not None:
            out["captions"] = [self.captions[row] for row in rows.tolist()]
        return out

    def _from_resident(self, index: torch.Tensor, mirror: np.ndarray | None, device: torch.device) -> torch.Tensor:
        """The images from the copy that stays on the device."""
        if device not in self._resident:
            self._resident[device] = self.images.to(device)
        pixels = self._resident[device].index_select(0, index.to(device, non_blocking=True))
        if mirror is not None:
            there = torch.from_numpy(mirror).to(device, non_blocking=True)
            pixels.index_copy_(0, there, pixels.index_select(0, there).flip(-1))
        return pixels.to(torch.float32).div_(127.5).sub_(1)


class _Uneven:
    """Images of several sizes, one after another in one flat array, cut to (H, W) when they are asked for."""

    def __init__(self, flat: np.ndarray, sizes: np.ndarray, shape: tuple[int, int, int]):
        self.flat, self.sizes, self.shape = flat, sizes, shape
        self.offsets = np.concatenate([[0], np.cumsum(shape[0] * sizes.prod(axis=1))])

    def gather(self, rows: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Crops at relative places y and x in [0, 1): uint8 (B, C, H, W)."""
        channels, height, width = self.shape
        top = np.floor(y * (self.sizes[rows, 0] - height + 1)).astype(np.int64).tolist()
        left = np.floor(x * (self.sizes[rows, 1] - width + 1)).astype(np.int64).tolist()
        out = np.empty((len(rows), *self.shape), np.uint8)
        for i, row in enumerate(rows.tolist()):
            image = self.flat[self.offsets[row] : self.offsets[row + 1]].reshape(channels, *self.sizes[row])
            out[i] = image[:, top[i] : top[i] + height, left[i] : left[i] + width]
        return out


def mirrored(start: int, stop: int, seed: int) -> np.ndarray:
    """Which of the positions [start, stop) are mirrored, counted from `start`: about half."""
    return (uniform("flip", start, stop, seed) < 0.5).nonzero()[0]


def finished(pixels: np.ndarray, mirror: np.ndarray | None, device: torch.device) -> torch.Tensor:
    """uint8 pixels, which may be overwritten, to float32 [-1, 1] on `device`: v / 127.5 - 1.

    On the CPU this is NumPy, in one thread: torch would spread such small work over threads, and waiting for one that
    the system has put aside costs a hundred times the work.
    """
    if mirror is not None:
        pixels[mirror] = pixels[mirror][..., ::-1]
    if device.type == "cpu":
        values = np.divide(pixels, np.float32(127.5), dtype=np.float32)
        values -= 1
        return torch.from_numpy(values)
    moved = torch.from_numpy(pixels)
    moved = (moved.pin_memory() if device.type == "cuda" else moved).to(device, non_blocking=True)
    return moved.to(torch.float32).div_(127.5).sub_(1)


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
) -> "ImageData | StreamedImages":
    """Images, labels and captions of a data set, decoded once and kept on disk.

    Args:
        source: one of
            "digits" (scikit-learn's, 8 x 8, values v = 0..16 as floor((255 v + 8) / 16)), "emoji" (32 x 32, comes
            with the package: columns noto, twemoji, text, category, subcategory, codepoint) or "factors" (32 x 32,
            drawn: columns shape, colour, scale, rotation, x, y, text); a `Path` is never one of these names;
            a folder of images, whose subfolders are the labels, or which holds a metadata.jsonl or metadata.csv with
            `file_name` and other columns;
            a .parquet file, a folder or a glob of them;
            the name of a data set on the Hub;
            a data set of the `datasets` library, or, with `streaming`, any iterable of dicts.
        split: "train", "test", ..., or a part of one as "train[:80%]". Folders and parquet files are told apart by the
            word in their path; a single parquet file is taken as it is, and what names no split is "train".
        config_name, revision: of a data set on the Hub. The revision is resolved to a commit, which `source` records.
        image_column: default "image", else the first column that holds images.
        label_column: default "label", else the only column that declares its classes. "" for none.
        caption_column: default "text" or "caption" if there is one. "" for none.
        label_names: the classes, in their order, where the data does not declare them; text labels are otherwise
            numbered by sorting, so give the training set's `label_names` when loading a test set.
        resolution: the side H = W, or (H, W), in pixels. None keeps the size of the images, which must be equal.
        channels: 1, 3 or 4. None: 1 if the first image is grey, else 3. Without alpha (1, 3) transparent parts show
            white.
        center_crop: the shorter side is brought to `resolution` (bicubic with antialias) and the centre is kept; False
            cuts at a random place, anew at each position of the stream.
        random_flip: mirror left-right with probability 1/2, anew at each position of the stream.
        max_samples: use at most so many images, spread evenly over the rows (of a stream: the first).
        on_bad_image: "raise" names the first bad image; "skip" passes over at most 1 % of them and lists them in
            `skipped`.
        cache_dir: where decoded images are kept (and what `datasets` downloads). Default: $LATENTIA_CACHE,
            $HF_HOME/latentia or ~/.cache/latentia.
        num_workers: processes that decode, the first time only; 0 decodes in this one.
        streaming: decode as the images come and keep nothing, for sets that do not fit on the disk.

    Returns:
        [`ImageData`], or with `streaming` [`StreamedImages`], which has the same `batch`.

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
    refuse_loosened_pillow()
    plan = Plan(
        size=_size(resolution),
        channels=_one_of("channels", channels, (None, 1, 3, 4)),
        crop=center_crop or resolution is None,
        on_bad_image=_one_of("on_bad_image", on_bad_image, ("raise", "skip")),
        label_names=None if label_names is None else [str(name) for name in label_names],
    )
    for name, value, least in (("max_samples", max_samples, 1), ("num_workers", num_workers, 0)):
        if value is not None and value < least:
            raise UsageError(f"{name} must be at least {least}, got {value}.")
    split_name, part = parse_split(split)
    found = find_source(source, split_name, config_name, revision, cache_dir, streaming)
    found.about.update({"split": split, "resolution": resolution, "center_crop": center_crop})
    asked = (image_column, label_column, caption_column)
    if streaming:
        from .streaming import StreamedImages

        if "[" in split:
            raise UsageError(f'a stream has no length, so split="{split}" cannot be cut from it; use max_samples.')
        return StreamedImages(found, plan, asked, random_flip, max_samples)
    if found.key is None:
        raise UsageError(f"{found.name} can only be read as a stream; give streaming=True.")
    return _cached(found, plan, asked, split, part, max_samples, random_flip, cache_folder(cache_dir), num_workers)


def _cached(found: Source, plan, asked, split, part, max_samples, random_flip, folder, num_workers) -> ImageData:
    def make(write) -> dict[str, Any]:
        try:
            table = found.open()
            picked = pick(table, found.name, *asked)
            if not table.count:
                raise DataError(f"{found.name} is empty.")
            rows = chosen_rows(table.count, part, max_samples)
            logger.info("decoding %d images of %s into %s", len(rows), found.name, folder)
            return build(table, picked, rows, plan, write, folder, num_workers)
        except OSError as error:
            raise DataError(f"{found.name} cannot be read: {error}") from error

    key = key_of([_DECODER, found.key, split, asked, asdict(plan), max_samples])
    flat, meta = open_or_build(folder / "images", key, make)
    if meta["skipped"]:
        shown = "; ".join(meta["skipped"][:3])
        logger.warning("%d bad images of %s were passed over: %s", len(meta["skipped"]), found.name, shown)
    return ImageData._from_cache(flat, meta, plan, random_flip, found.about)


def _size(resolution: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if resolution is None:
        return None
    size = (resolution, resolution) if isinstance(resolution, int) else tuple(resolution)
    if len(size) != 2 or not all(isinstance(side, int) and 1 <= side <= 8192 for side in size):
        raise UsageError(f"resolution must be one or two (H, W) whole numbers from 1 to 8192, got {resolution!r}.")
    return size[0], size[1]


def _one_of(name: str, value: Any, known: tuple) -> Any:
    if value not in known:
        raise UsageError(f"{name} must be one of {', '.join(map(repr, known))}; got {value!r}.")
    return value
