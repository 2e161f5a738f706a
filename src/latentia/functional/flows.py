"""Normalizing flows: affine and rational-quadratic spline transforms with their log-determinants, dequantisation."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_BIN, MIN_SLOPE = 1e-3, 1e-3  # of a spline: least share of a bin, least derivative at a knot


def soft_clip(x: Tensor, bound: float) -> Tensor:
    r"""A smooth bound: \(x / (1 + |x| / b)\), which is x near 0 and stays within (-b, b).

    The log-scale of an affine transform without a bound is what makes flows overflow: many layers multiply.

    Args:
        x: any shape.
        bound: b, positive.

    Example:
        >>> soft_clip(torch.tensor([0.0, 2.0, 1e9]), 2.0)
        tensor([0., 1., 2.])
    """
    return x / (1 + x.abs() / bound)


def affine(x: Tensor, shift: Tensor, log_scale: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
    r"""The affine transform \(y = e^s x + t\), or its inverse, with the log-derivative of each value.

    Args:
        x: any shape; y for the inverse.
        shift, log_scale: t and s, of shapes that broadcast with x.
        inverse: whether to compute x of y. Default False.

    Returns:
        The result and its log-derivative, both of the shape of x.

    Real NVP (Dinh et al., 2016, 1605.08803), eq. 7; with s = 0 NICE (Dinh et al., 2014, 1410.8516), eq. 4.

    Example:
        >>> affine(torch.ones(1), torch.tensor([2.0]), torch.tensor([3.0]).log())
        (tensor([5.]), tensor([1.0986]))
    """
    log_scale = log_scale.expand_as(x)
    if inverse:
        return (x - shift) / log_scale.exp(), -log_scale
    return torch.addcmul(shift, x, log_scale.exp()), log_scale


def rational_quadratic_spline(
    x: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, bound: float, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    r"""A monotonic rational-quadratic spline on [-b, b] and the identity outside, with the log-derivative.

    Args:
        x: (B, ...); y for the inverse.
        widths, heights: (B, K, ...), unnormalised: softmaxes of them share [-b, b] among K bins.
        slopes: (B, K - 1, ...), unnormalised derivatives at the inner knots, made positive by a softplus. The outer
            ones are 1, so that the spline meets the identity smoothly.
        bound: b, positive.
        inverse: whether to compute x of y. Default False.

    Returns:
        The result and its log-derivative, both of the shape of x.

    Neural Spline Flows (Durkan et al., 2019, 1906.04032), eq. 4 to 8; a bin is at least a thousandth of the interval
    and a derivative at least 0.001.

    Example:
        >>> x, flat = torch.tensor([[0.5, -7.0]]), torch.zeros(1, 4, 2)
        >>> slope_one = torch.full((1, 3, 2), torch.tensor(1 - 0.001).expm1().log().item())
        >>> y, log_derivative = rational_quadratic_spline(x, flat, flat, slope_one, 3.0)
        >>> y, bool(log_derivative.abs().max() < 1e-6)
        (tensor([[ 0.5000, -7.0000]]), True)
    """
    # Bins are the second dimension, as a network gives them: sums and choices over them then run along memory.
    knots_x, knots_y = _knots(widths, bound), _knots(heights, bound)  # (B, K + 1, ...)
    derivatives = _pad(F.softplus(slopes) + MIN_SLOPE, 1.0, 1.0)
    inside = x.abs() < bound
    at = torch.where(inside, x, 0.0)
    known = knots_y if inverse else knots_x
    index = (at[:, None] >= known[:, 1:-1]).sum(1, keepdim=True)  # in [0, K)

    def ends(values: Tensor) -> tuple[Tensor, Tensor]:
        return values.gather(1, index)[:, 0], values.gather(1, index + 1)[:, 0]

    (x0, x1), (y0, y1), (d0, d1) = ends(knots_x), ends(knots_y), ends(derivatives)
    width, height = x1 - x0, y1 - y0
    slope = height / width  # s_k
    bend = d0 + d1 - 2 * slope
    if inverse:  # eq. 6 to 8: the root of a quadratic equation that is stable for every slope
        rise = at - y0
        a = height * (slope - d0) + rise * bend
        b = height * d0 - rise * bend
        c = -slope * rise
        theta = 2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())
        between = theta * (1 - theta)
        result = theta * width + x0
    else:
        theta = (at - x0) / width
        between = theta * (1 - theta)
        result = y0 + height * (slope * theta.square() + d0 * between) / (slope + bend * between)
    numerator = d1 * theta.square() + 2 * slope * between + d0 * (1 - theta).square()
    log_derivative = (slope.square() * numerator / (slope + bend * between).square()).log()
    if inverse:
        log_derivative = -log_derivative
    return torch.where(inside, result, x), torch.where(inside, log_derivative, 0.0)


def _knots(raw: Tensor, bound: float) -> Tensor:
    shares = MIN_BIN + (1 - MIN_BIN * raw.shape[1]) * raw.softmax(1)
    return _pad(shares[:, :-1].cumsum(1) * (2 * bound) - bound, -bound, bound)


def _pad(values: Tensor, first: float, last: float) -> Tensor:
    end = torch.empty_like(values[:, :1])
    return torch.cat([torch.full_like(end, first), values, torch.full_like(end, last)], 1)


def logit(x: Tensor, alpha: float, inverse: bool = False) -> tuple[Tensor, Tensor]:
    r"""Values of [-1, 1] as real numbers: \(\mathrm{logit}(\alpha + (1 - 2\alpha)(x + 1) / 2)\), or the inverse.

    Args:
        x: in [-1, 1], any shape; any real numbers for the inverse.
        alpha: in (0, 0.5): how far the ends are kept from infinity. 0.05 in Real NVP, section 4.1.
        inverse: whether to go back. Default False.

    Returns:
        The result and the log-derivative of each value.

    Example:
        >>> y, log_derivative = logit(torch.zeros(1), 0.05)
        >>> y, log_derivative.exp()  # (1 - 2 alpha) / 2 over 1/4
        (tensor([0.]), tensor([1.8000]))
    """
    scale = (1 - 2 * alpha) / 2
    if inverse:
        p = x.sigmoid()
        return (p - alpha) / scale - 1, F.logsigmoid(x) + F.logsigmoid(-x) - math.log(scale)
    p = alpha + scale * (x + 1)
    return p.log() - torch.log1p(-p), math.log(scale) - p.log() - torch.log1p(-p)


# A byte v is x = v / 127.5 - 1 as an image and the interval [v / 128 - 1, (v + 1) / 128 - 1) as a density has it.
_SHRINK = 127.5 / 128


def dequantize(images: Tensor, noise: Tensor | float = 0.5) -> Tensor:
    """Bytes as points of a continuous space: `(v + u) / 128 - 1` of images v / 127.5 - 1.

    Args:
        images: in [-1, 1], any shape.
        noise: u in [0, 1), of that shape or one number; 0.5 (default): the middle of each interval, which is linear
            in the images.

    Returns:
        In [-1, 1), as `latentia.evaluation.dequantise` makes it of bytes.

    A note on the evaluation of generative models (Theis et al., 2015, 1511.01844), section 3.1.

    Example:
        >>> dequantize(torch.tensor([-1.0, 1.0])) * 128
        tensor([-127.5000,  127.5000])
    """
    return images * _SHRINK + (noise - 0.5) / 128


def quantize(values: Tensor) -> Tensor:
    """Images of dequantised values: the inverse of `dequantize` at the middles; rounded to bytes it is that of all.

    Example:
        >>> quantize(dequantize(torch.tensor([-1.0, 0.0, 1.0])))
        tensor([-1.,  0.,  1.])
    """
    return values / _SHRINK
