"""Latents instead of pictures: what an autoencoder makes of a data set, computed once and kept on disk."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError, UsageError
from ..rng import seed_from
from .cache import cache_folder, key_of
from .images import ImageData, finished, mirrored
from .kept import kept
from .order import indices

logger = logging.getLogger(__name__)

FORMAT = "1"  # raise it when the meaning of the files changes
_CPU = torch.device("cpu")


class LatentData:
    """The latents of an `ImageData` in the order of its stream; made by [`cached_latents`].

    A batch holds at each position the latents of the picture that the pictures' own batch holds there. Where the
    autoencoder is a Gaussian, they are a sample of q(z|x), drawn anew at each position: it is what the decoder was
    trained on and what the scaling of the latents was measured of, and a picture then stands for a small cloud that the
    next network cannot learn by heart. A sample is a function of (seed, position), as everything is.

    Args:
        mean: of q(z|x), (N, D, h, w); of mirrored pictures N more, if the data are mirrored at random.
        std: as `mean`; None for an autoencoder without.
        data: the pictures, whose labels and captions these are.
        fingerprint: of latents and pictures.
    """

    def __init__(self, mean: Tensor, std: Tensor | None, data: ImageData, fingerprint: str):
        self.mean, self.std, self.data, self.fingerprint = mean, std, data, fingerprint
        self.shape: tuple[int, int, int] = tuple(mean.shape[1:])
        self.labels, self.label_names, self.captions = data.labels, data.label_names, data.captions
        self.require = data.require

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        return f"LatentData({self.data!r} as latents of shape {self.shape})"

    def describe(self) -> dict[str, Any]:
        """What a model card says about the data; the pictures' words, and the latents' shape and fingerprint."""
        latents = {"latent_shape": list(self.shape), "latent_fingerprint": self.fingerprint}
        return {**self.data.describe(), **latents}

    def batch(self, start: int, stop: int, *, seed: int = 0, device: str | torch.device = "cpu") -> dict[str, Any]:
        """Positions [start, stop) of the sample stream of `seed`, as `ImageData.batch` gives them.

        Returns:
            {"x": latents, float32 (B, D, h, w)}, with "labels" and "captions" where the data set has them.
        """
        if not 0 <= start <= stop:
            raise UsageError(f"a batch needs 0 <= start <= stop, got start={start}, stop={stop}.")
        index = indices(start, stop, len(self), seed)
        rows = index.clone()
        if self.data.random_flip:
            rows[torch.from_numpy(mirrored(start, stop, seed))] += len(self)
        z = self.mean[rows]
        if self.std is not None:
            generators = (torch.Generator().manual_seed(seed_from(seed, "posterior", p)) for p in range(start, stop))
            noise = [torch.randn(self.shape, generator=generator) for generator in generators]
            z = z + self.std[rows] * torch.stack(noise) if noise else z
        out: dict[str, Any] = {"x": z.to(device, non_blocking=True)}
        if self.labels is not None:
            out["labels"] = self.labels[index].to(device, non_blocking=True)
        if self.captions is not None:
            out["captions"] = [self.captions[row] for row in index.tolist()]
        return out


def cached_latents(
    data: ImageData,
    encode: Callable[[Tensor], tuple[Tensor, Tensor | None]],
    autoencoder: str,
    *,
    file: str | Path | None = None,
    cache_dir: str | Path | None = None,
    batch_size: int = 256,
) -> LatentData:
    """The latents of a data set: read if they were computed before by this autoencoder of these pictures, else made.

    One process computes while others wait for its file, and all read the same bytes; so any number of processes on one
    disk see the same latents. They are held in memory: 4 bytes for each value, twice that with `std`, and twice again
    if pictures are mirrored at random, as the latents of a mirrored picture are not the mirrored latents.

    Args:
        data: the pictures, from `load_images`, without random crops.
        encode: pictures (B, C, H, W) in [-1, 1] -> mean and standard deviation of their scaled latents, (B, D, h, w)
            both; the second None for an autoencoder that is no Gaussian.
        autoencoder: a text that changes with the weights, the configuration and the scaling behind `encode`.
        file: a safetensors file of this data and autoencoder, written if it is not there; `None` (default): one of
            the cache, under a name made of both.
        cache_dir: as in `load_images`.
        batch_size: pictures encoded at a time. Default 256.

    Raises:
        UsageError: a stream, or random crops, whose latents cannot be computed once.
        DataError: `file` is of another autoencoder or other pictures, the latents are not finite, or the disk is full.

    Example:
        >>> import tempfile
        >>> data = ImageData(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), labels=[0, 1, 2, 1, 0])
        >>> halve = lambda images: (torch.nn.functional.avg_pool2d(images, 2), None)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     latents = cached_latents(data, halve, "halves", cache_dir=folder)
        >>> latents.batch(0, 4)["x"].shape
        torch.Size([4, 1, 4, 4])
    """
    if not isinstance(data, ImageData) or data._uneven is not None:
        given = type(data).__name__ if not isinstance(data, ImageData) else "random crops"
        raise UsageError(
            f"data must be pictures that are the same in each epoch, as their latents are computed once; got {given}. "
            "Leave --streaming out and give --center_crop and --resolution."
        )
    made_of = {
        "format": FORMAT, "autoencoder": autoencoder, "data": data.fingerprint,
        "mirrored too": str(data.random_flip),
    }  # fmt: skip
    key = key_of(made_of)
    path = cache_folder(cache_dir) / "latents" / f"{key}.safetensors" if file is None else Path(file).expanduser()
    what = "latents of this autoencoder and these pictures"
    found = kept(path, made_of, lambda: _computed(data, encode, batch_size), what, explicit=file is not None)
    return LatentData(found["mean"], found.get("std"), data, key)


@torch.no_grad()
def _computed(data: ImageData, encode, batch_size: int) -> dict[str, Tensor]:
    logger.info("computing the latents of %d images", len(data))
    parts = []
    for flipped in (False, True) if data.random_flip else (False,):
        for pixels in data.images.split(batch_size):
            images = finished(pixels.numpy(), None, _CPU)
            parts.append(encode(images.flip(-1) if flipped else images))
    columns = dict(zip(("mean", "std"), zip(*parts)))
    tensors = {
        name: torch.cat([part.detach().float().cpu() for part in column]).contiguous()
        for name, column in columns.items()
        if column[0] is not None
    }
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise DataError("encode must give finite latents; some are not. Encode in float32, or look at the autoencoder.")
    return tensors
