"""Latents of a data set of images, time series or sounds: computed once by an autoencoder and cached on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentia.data.base import Dataset, annotate, description, require
from latentia.data.images import ImageData, normalize
from latentia.data.order import check_positions, flip_mask, indices
from latentia.data.series import ScaledSeries
from latentia.data.sounds import SoundFrames
from latentia.errors import DataError, UsageError
from latentia.files.cache import cached_tensors, key_of
from latentia.files.logs import get_logger
from latentia.rng import seed_from

logger = get_logger(__name__)

FORMAT = "1"  # raise it when the meaning of the files changes
_CPU = torch.device("cpu")


class LatentData:
    """A `Dataset` of the latents of images; made by [`cached_latents`].

    Each position of the stream holds the latents of the image that the images' own stream holds there. Of a Gaussian
    autoencoder they are a sample of q(z|x), another one at each position and a function of (seed, position): the
    decoder was trained on such samples, the scaling of the latents was measured of them, and the next network cannot
    memorise one point per image.

    Args:
        mean: of q(z|x), (N, D, h, w); with random flips (2 N, D, h, w), the second half of the flipped images.
        std: as `mean`; None for an autoencoder that is not Gaussian.
        data: the images, whose labels and captions the latents have.
        fingerprint: of latents and images.
    """

    modality = "latent"
    endless = False

    def __init__(self, mean: Tensor, std: Tensor | None, data: Any, fingerprint: str):
        self.mean, self.std, self.data, self.fingerprint = mean, std, data, fingerprint
        self.shape: tuple[int, ...] = tuple(mean.shape[1:])
        self.labels, self.label_names, self.captions = data.labels, data.label_names, data.captions

    @property
    def has_captions(self) -> bool:
        """True if batches hold captions."""
        return self.captions is not None

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        return f"LatentData({self.data!r} as latents of shape {self.shape})"

    def describe(self) -> dict[str, Any]:
        """Source of the images, shape and fingerprint of the latents and, as "made_of", of the images."""
        return {**self.data.describe(), **description(self), "made_of": description(self.data)}

    def require(self, n: int) -> None:
        """DataError if there are fewer than n latents, one global batch over all processes and accumulation."""
        require(self, n)

    def batch(self, start: int, stop: int, *, seed: int = 0, device: str | torch.device = "cpu") -> dict[str, Any]:
        """Positions [start, stop) of the stream of `seed`: see `Dataset.batch`.

        Returns:
            {"x": latents, float32 (B, D, h, w)}, with "labels" and "captions" where the images have them.
        """
        check_positions(start, stop)
        index = indices(start, stop, len(self), seed)
        rows = index.clone()
        if getattr(self.data, "random_flip", False):
            rows[torch.from_numpy(flip_mask(start, stop, seed))] += len(self)
        z = self.mean[rows]
        if self.std is not None:
            generators = (torch.Generator().manual_seed(seed_from(seed, "posterior", p)) for p in range(start, stop))
            noise = [torch.randn(self.shape, generator=generator) for generator in generators]
            z = z + self.std[rows] * torch.stack(noise) if noise else z
        return annotate({"x": z.to(device, non_blocking=True)}, self, index, device)


def cached_latents(
    data: Dataset,
    encode: Callable[[Tensor], tuple[Tensor, Tensor | None]],
    autoencoder: str,
    *,
    file: str | Path | None = None,
    cache_dir: str | Path | None = None,
    batch_size: int = 256,
) -> LatentData:
    """Compute the latents of a data set once, or read them if this autoencoder computed them of these images before.

    One process computes while others wait for its file, and all read the same bytes; so any number of processes on one
    disk see the same latents. They are held in memory: 4 bytes for each value, twice that with `std`, and twice again
    with random flips, as the latents of a flipped image are not the flipped latents.

    Args:
        data: the images, from `load_images`, without random crops; or a `ScaledSeries` or `SoundFrames`.
        encode: images (B, C, H, W) in [-1, 1] or sequences (B, C, L), on the CPU -> mean and standard deviation of
            their scaled latents, (B, D, h, w) both; the second None for an autoencoder that is not Gaussian.
        autoencoder: a text that changes with the weights, the configuration and the scaling behind `encode`.
        file: a safetensors file of this data and autoencoder, written if it is not there; `None` (default): one of
            the cache, under a name made of both.
        cache_dir: as in `load_images`.
        batch_size: images encoded at a time. Default 256.

    Raises:
        UsageError: a stream, or random crops, whose latents cannot be computed once.
        DataError: `file` is of another autoencoder or other images, the latents are not finite, or the disk is full.

    Example:
        >>> import tempfile
        >>> data = ImageData(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), labels=[0, 1, 2, 1, 0])
        >>> halve = lambda images: (torch.nn.functional.avg_pool2d(images, 2), None)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     latents = cached_latents(data, halve, "halves", cache_dir=folder)
        >>> latents.batch(0, 4)["x"].shape
        torch.Size([4, 1, 4, 4])
    """
    if getattr(data, "random_crop", False) or not isinstance(data, ImageData | ScaledSeries | SoundFrames):
        given = type(data).__name__ if not isinstance(data, ImageData) else "random crops"
        raise UsageError(
            f"data must be images that are the same in each epoch, as their latents are computed once; got {given}. "
            "Load them without streaming, with center_crop and a resolution."
        )
    made_of = {
        "format": FORMAT, "autoencoder": autoencoder, "data": data.fingerprint,
        "mirrored too": str(getattr(data, "random_flip", False)),
    }  # fmt: skip
    found = cached_tensors(
        lambda: _compute(data, encode, batch_size), made_of, "latents", cache_dir=cache_dir, file=file
    )
    return LatentData(found["mean"], found.get("std"), data, key_of(made_of))


@torch.no_grad()
def _compute(data: ImageData | ScaledSeries | SoundFrames, encode, batch_size: int) -> dict[str, Tensor]:
    logger.info("computing the latents of %d elements", len(data))
    parts = []
    for flipped in (False, True) if getattr(data, "random_flip", False) else (False,):
        for part in (data.images if isinstance(data, ImageData) else data.inputs).split(batch_size):
            images = normalize(part.numpy(), None, _CPU) if isinstance(data, ImageData) else part
            parts.append(encode(images.flip(-1) if flipped else images))
    columns = dict(zip(("mean", "std"), zip(*parts)))
    tensors = {
        name: torch.cat([part.detach().float().cpu() for part in column])
        for name, column in columns.items()
        if column[0] is not None
    }
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise DataError("encode must give finite latents; some are not. Encode in float32, or look at the autoencoder.")
    return tensors
