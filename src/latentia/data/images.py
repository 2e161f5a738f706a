"""Images in memory or in a mapped file, as the batches of a shuffled stream."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentia.data.base import annotate, check_annotations, description, require
from latentia.data.build import Plan
from latentia.data.left_out import LeftOut
from latentia.data.order import check_positions, flip_mask, indices, uniform
from latentia.errors import UsageError
from latentia.files.cache import key_of
from latentia.functional.pixels import from_uint8

RESIDENT_BYTES = 1 << 30  # a data set up to this size is copied once to the accelerator that asks for batches


class ImageData:
    """A `Dataset` of decoded images; made by [`load_images`], or directly.

    Args:
        images: uint8 (N, C, H, W), values in [0, 255]; C is 1, 3 or 4.
        labels: N integers in [0, len(label_names)), or None.
        label_names: names of the classes; default "0", "1", ... up to the largest label.
        captions: N texts, or None.
        random_flip: flip each image left-right with probability 1/2, anew at each position. Default False.
        source: where the images come from, for the model card.
        skipped: bad images that were left out, each with its reason.

    Attributes:
        left_out: what else of the source was not taken, and why; see `LeftOut`.
        names: of each image in its source, such as the path in its folder or "train.parquet row 7"; None of a tensor.

    Raises:
        UsageError: another type or shape, or labels or captions that do not fit.

    Example:
        >>> data = ImageData(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), labels=[0, 1, 2, 1, 0])
        >>> batch = data.batch(0, 8)
        >>> batch["x"].shape, batch["x"].min().item(), sorted(batch["labels"][:5].tolist())
        (torch.Size([8, 1, 8, 8]), -1.0, [0, 0, 1, 1, 2])
    """

    modality = "image"
    endless = False

    def __init__(
        self,
        images: Tensor,
        labels: Sequence[int] | Tensor | None = None,
        label_names: Sequence[str] | None = None,
        captions: Sequence[str] | None = None,
        random_flip: bool = False,
        source: dict[str, Any] | None = None,
        skipped: Sequence[str] = (),
    ):
        if not isinstance(images, Tensor):
            raise UsageError(f"images must be a uint8 tensor (N, 1|3|4, H, W); got {type(images).__name__}.")
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3, 4) or not len(images):
            raise UsageError(
                f"images must be a uint8 tensor (N, 1|3|4, H, W), N >= 1; got {images.dtype} {tuple(images.shape)}."
            )
        self._setup(len(images), tuple(images.shape[1:]), labels, label_names, captions, random_flip, source, skipped)
        self._pixels: Tensor | None = images

    def _setup(self, count, shape, labels, label_names, captions, random_flip, source, skipped) -> None:
        self.labels, self.label_names, self.captions = check_annotations(count, labels, label_names, captions)
        self.shape: tuple[int, int, int] = shape
        self.random_flip = random_flip
        self.source: dict[str, Any] = dict(source or {"kind": "tensor"})
        self.skipped: list[str] = list(skipped)
        self.left_out = LeftOut()
        self.names: list[str] | None = None
        self.notes: list[str] = []  # what a user should know of the images
        self._count = count
        self._pixels = None
        self._digest: str | None = None
        self._uneven: _Uneven | None = None
        self._resident: dict[torch.device, Tensor] = {}

    @classmethod
    def from_cache(cls, flat: np.ndarray, meta: dict, plan: Plan, random_flip: bool, about: dict) -> "ImageData":
        """The data set over the files that `load_images` wrote."""
        data = cls.__new__(cls)
        height, width = plan.size if plan.size and not plan.crop else meta["sizes"][0]
        shape = (meta["channels"], height, width)
        rest = (meta["labels"], meta["label_names"], meta["captions"], random_flip)
        columns = {key: meta[key] for key in ("columns", "unused_columns")}
        data._setup(meta["count"], shape, *rest, {**about, **columns}, meta["skipped"])
        data._digest, data.names = meta["blake2b"], meta["names"]
        if len(meta["sizes"]) == 1 and tuple(meta["sizes"][0]) == (height, width):
            data._pixels = torch.from_numpy(flat).view(meta["count"], *shape)
        else:
            sizes = np.broadcast_to(np.asarray(meta["sizes"], np.int64), (meta["count"], 2))
            data._uneven = _Uneven(flat, sizes, shape)
        return data

    @property
    def has_captions(self) -> bool:
        """True if batches hold captions."""
        return self.captions is not None

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        name = self.source.get("name", self.source["kind"])
        return f"ImageData({name}: {len(self)} images of shape {self.shape})"

    @property
    def images(self) -> Tensor:
        """All images in the order of the source: uint8 (N, C, H, W), no flips; random crops show the centre."""
        if self._pixels is None:
            assert self._uneven is not None
            half = np.full(len(self), 0.5)
            self._pixels = torch.from_numpy(self._uneven.gather(np.arange(len(self)), half, half))
        return self._pixels

    @property
    def random_crop(self) -> bool:
        """True if each position of the stream has another crop of its image."""
        return self._uneven is not None

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits of the content (pixels, labels, captions), wherever it was read from."""
        if self._digest is None:
            self._digest = hashlib.blake2b(self.images.contiguous().numpy().data, digest_size=32).hexdigest()
        sizes = None if self._uneven is None else self._uneven.sizes.tolist()
        labels = None if self.labels is None else self.labels.tolist()
        return key_of([self._digest, len(self), self.shape, sizes, labels, self.label_names, self.captions])

    def describe(self) -> dict[str, Any]:
        """Source, number and shape of the images, classes, fingerprint; for a model card."""
        return {
            **self.source,
            "images": len(self),
            **description(self),
            "random_flip": self.random_flip,
            "skipped": len(self.skipped),
            "left_out": self.left_out.counts(),
        }

    def require(self, n: int) -> None:
        """DataError if there are fewer than n images, one global batch over all processes and accumulation.

        Example:
            >>> ImageData(torch.zeros(5, 1, 8, 8, dtype=torch.uint8)).require(4)
        """
        require(self, n)

    def batch(self, start: int, stop: int, *, seed: int = 0, device: str | torch.device = "cpu") -> dict[str, Any]:
        """Positions [start, stop) of the stream of `seed`: see `Dataset.batch`.

        Args:
            start, stop: 0 <= start <= stop, unbounded; a batch may span epochs.
            seed: of the order, the flips and the crops. Default 0.
            device: where the tensors are put. An accelerator holds sets of up to 1 GiB whole.

        Returns:
            {"x": float32 (B, C, H, W) in [-1, 1]}, with "labels" (int64 (B,)) and "captions" (list of B texts)
            where the data set has them.
        """
        check_positions(start, stop)
        device = torch.device(device)
        index = indices(start, stop, len(self), seed)
        rows = index.numpy()
        flips = flip_mask(start, stop, seed) if self.random_flip else None
        if self._uneven is not None:
            places = (uniform(stream, start, stop, seed) for stream in ("crop y", "crop x"))
            images = normalize(self._uneven.gather(rows, *places), flips, device)
        elif device == torch.device("cpu") or self.images.numel() > RESIDENT_BYTES:
            images = normalize(self.images.numpy().take(rows, axis=0), flips, device)
        else:
            images = self._from_resident(index, flips, device)
        return annotate({"x": images}, self, index, device)

    def _from_resident(self, index: Tensor, flips: np.ndarray | None, device: torch.device) -> Tensor:
        """The images from the copy that stays on the device."""
        if device not in self._resident:
            self._resident[device] = self.images.to(device)
        pixels = self._resident[device].index_select(0, index.to(device, non_blocking=True))
        if flips is not None:
            there = torch.from_numpy(flips.nonzero()[0]).to(device, non_blocking=True)
            pixels.index_copy_(0, there, pixels.index_select(0, there).flip(-1))
        return from_uint8(pixels)


class _Uneven:
    """Images of several sizes, one after another in one flat array, cropped to (H, W) when they are asked for."""

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


def normalize(pixels: np.ndarray, flips: np.ndarray | None, device: torch.device) -> Tensor:
    """uint8 pixels (B, C, H, W) to float32 in [-1, 1] on `device`: v / 127.5 - 1.

    On the CPU this is NumPy, in one thread: torch would spread such small work over threads, and waiting for one that
    the system has put aside costs a hundred times the work.

    Args:
        pixels: may be overwritten.
        flips: bool (B,), which images are flipped left-right; None for none.
        device: of the result.
    """
    if flips is not None:
        pixels[flips] = pixels[flips][..., ::-1]
    if device == torch.device("cpu"):
        values = np.divide(pixels, np.float32(127.5), dtype=np.float32)
        values -= 1
        return torch.from_numpy(values)
    on_host = torch.from_numpy(pixels)
    there = (on_host.pin_memory() if device.type == "cuda" else on_host).to(device, non_blocking=True)
    return from_uint8(there)
