"""Pixels for a likelihood: dequantisation, binarisation, bits per dimension."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latentia.errors import UsageError, did_you_mean
from latentia.rng import seed_from

BINARISATIONS = ("static", "dynamic", "threshold")


class Pixels(NamedTuple):
    """Dequantised or binarised pixels, and how they were made.

    Args:
        values: (N, C, H, W), float32.
        about: the dequantisation or binarisation, which every likelihood has to state.
        bins: values that a pixel had before, 256 for bytes.
        span: length of the interval that the bins fill, if `values` have a density; `None` if they are indices of bins.
    """

    values: Tensor
    about: str
    bins: int
    span: float | None


def dequantise(images: Tensor, seed: int = 0) -> Pixels:
    """Bytes as points of a continuous space: `(v + u) / 128 - 1` in [-1, 1], u uniform in [0, 1).

    A density can be infinite on 256 points, so its likelihood of the bytes themselves means nothing. With uniform u,
    `E_u log p(v + u) <= log P(v)`: the mean log-density bounds the log-probability of the bytes from below.

    Args:
        images: (N, C, H, W), uint8. Data that uses few of the 256 values, such as scikit-learn's digits with 17, still
            rewards a model that finds them, and its bits compare with no other data set's.
        seed: of u.

    References:
        "A note on the evaluation of generative models", Theis et al. 2015, arXiv:1511.01844, section 3.1.

    Example:
        >>> pixels = dequantise(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8))
        >>> 127 / 128 <= pixels.values.item() <= 1, pixels.about
        (True, 'uniform dequantisation of 256 bins')
    """
    _check_bytes(images)
    noise = _uniform(images, seed, "dequantise")
    return Pixels(((images + noise) / 128 - 1).float(), "uniform dequantisation of 256 bins", 256, 2.0)


def binarise(images: Tensor, seed: int = 0, how: str = "dynamic") -> Pixels:
    """Grey bytes as zeros and ones. On MNIST the three differ by nats: a number without its binarisation is none.

    Args:
        images: (N, C, H, W), uint8. The first rows are binarised alike whatever follows.
        seed: of the sampled pixels.
        how: "static": each pixel is 1 with probability v / 255, sampled once with a seed that training used too (the
            protocol of Larochelle's MNIST, though not its file); "dynamic": sampled likewise, for a model that was
            trained on a new sample in each epoch; "threshold": 1 where v >= 128.

    Returns:
        values 0.0 and 1.0.

    References:
        "On the quantitative analysis of deep belief networks", Salakhutdinov and Murray 2008; "The Neural
        Autoregressive Distribution Estimator", Larochelle and Murray 2011 (static).

    Example:
        >>> binarise(torch.tensor([[[[0, 127, 128, 255]]]], dtype=torch.uint8), how="threshold").values.tolist()
        [[[[0.0, 0.0, 1.0, 1.0]]]]
    """
    _check_bytes(images)
    if how not in BINARISATIONS:
        raise UsageError(
            f'`how` must be one of {", ".join(BINARISATIONS)}. Got "{how}".{did_you_mean(how, BINARISATIONS)}'
        )
    if how == "threshold":
        return Pixels((images >= 128).float(), "threshold binarisation at 128", 2, None)
    # u < 1, so 255 is always 1; u >= 0, so 0 is always 0.
    values = (_uniform(images, seed, f"{how} binarisation") * 255 < images).float()
    return Pixels(values, f"{how} binarisation, seed {seed}", 2, None)


def bits_per_dimension(log_likelihood: Any, dimensions: int, bins: int = 256, span: float | None = 2.0) -> Any:
    """`(-log_likelihood / dimensions + ln(bins / span)) / ln 2`: bits that a coder spends on each value of an image.

    A density is per unit of length, and a bin is span / bins long; who leaves the second term out is off by 7 bits
    on [-1, 1] and by 8 on [0, 1]. Constant padding lowers the bits per dimension and not the nats, and a logit
    transform of the pixels changes both unless its Jacobian was counted.

    Args:
        log_likelihood: in nats per image: a number or a tensor.
        dimensions: pixels times channels of an image.
        bins: values that a pixel can have, default 256.
        span: length of the interval that the bins fill in the space of the density: 2 for [-1, 1] (default, what
            `dequantise` gives), 1 for [0, 1]; `None` if `log_likelihood` is a probability of the bins.

    Example:
        >>> bits_per_dimension(-784 * math.log(2), 784), bits_per_dimension(0.0, 784, span=1)  # uniform noise
        (8.0, 8.0)
        >>> bits_per_dimension(-784 * math.log(2), 784, bins=2, span=None)  # fair coins
        1.0
    """
    if dimensions < 1 or bins < 2 or (span is not None and not span > 0):
        raise UsageError(
            f"`dimensions` must be at least 1, `bins` at least 2 and `span` positive or None. Got {dimensions}, "
            f"{bins} and {span}."
        )
    width = 0.0 if span is None else math.log(bins / span)
    return (-log_likelihood / dimensions + width) / math.log(2)


def _check_bytes(images: Tensor) -> None:
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
        given = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise UsageError(
            f"`images` must be a uint8 tensor (N, C, H, W) in [0, 255], N >= 1. Got {given}; from [-1, 1] convert with "
            "latentia.functional.pixels.to_uint8, and remember that likelihoods are of data, not of samples."
        )


def _uniform(images: Tensor, seed: int, stream: str) -> Tensor:
    """U[0, 1), float64, of the shape of the images."""
    generator = torch.Generator().manual_seed(seed_from(seed, stream))
    return torch.rand(images.shape, generator=generator, dtype=torch.float64).to(images.device)
