"""Stacked MNIST: three digits as red, green and blue of one image, hence 1000 modes that a classifier can count."""

import torch

from latentia.data.images import ImageData
from latentia.errors import UsageError, counted
from latentia.rng import seed_from


def stacked_images(source: ImageData, n: int = 128_000, seed: int = 0) -> ImageData:
    """Colour images whose channels are three grey images, sampled independently and with replacement.

    Args:
        source: grey images with labels in [0, K), such as `load_images("mnist")`.
        n: number of images, >= 1. Default 128 000, of 28 x 28 pixels 301 MB, as in PacGAN and VEEGAN.
        seed: of the choice; equal seeds give equal data on every machine.

    Returns:
        uint8 (n, 3, H, W) with labels K^2 r + K g + b, K = 10 for digits: the 1000 modes.

    Raises:
        UsageError: `source` is not grey or has no labels, or n < 1.

    References:
        "Unrolled Generative Adversarial Networks", Metz et al. 2016, arXiv:1611.02163, section 3.3; "PacGAN", Lin et
        al. 2017, arXiv:1712.04086, section 4.2 (sampled from the training and test digits together).

    Example:
        >>> from latentia.data import load_images
        >>> data = stacked_images(load_images("digits"), n=50)
        >>> data.images.shape, len(data.label_names)
        (torch.Size([50, 3, 8, 8]), 1000)
    """
    if source.shape[0] != 1 or source.labels is None or source.label_names is None:
        labelled = "labels" if source.labels is not None else "no labels"
        raise UsageError(
            f"`source` must hold grey images with labels. Got {counted(source.shape[0], 'channel')} and {labelled}; "
            "load it with load_images(..., channels=1, label_column=...)."
        )
    if n < 1:
        raise UsageError(f"`n` must be at least 1. Got {n}.")
    generator = torch.Generator().manual_seed(seed_from(seed, "stacked"))
    rows = torch.randint(len(source), (n, 3), generator=generator)
    classes = len(source.label_names)
    labels = source.labels[rows] @ torch.tensor([classes**2, classes, 1])
    names = [f"{r}-{g}-{b}" for r in source.label_names for g in source.label_names for b in source.label_names]
    about = {"kind": "stacked", "name": f"stacked {source.source.get('name', 'images')}", "seed": seed}
    return ImageData(source.images[rows, 0], labels, names, source={**about, "of": source.describe()})
