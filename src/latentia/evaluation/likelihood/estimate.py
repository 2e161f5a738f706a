"""Likelihoods that compare: exact, bounds from below and annealed importance sampling, in nats and in bits.

Everything is in nats per image, summed over pixels, larger is better; bits per dimension carry the other sign, smaller
is better. A model is a few plain functions: `encode(x)` gives a distribution with `sample()` and `log_prob(z)`,
`log_joint(x, z)` is log p(x, z), and `log_prior(z)` and `log_likelihood(x, z)` are its two parts; each returns (B,).
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latentia.errors import NumericsError, UsageError, did_you_mean
from latentia.rng import seed_from

BINARISATIONS = ("static", "dynamic", "threshold")


class Pixels(NamedTuple):
    """Pixels as a likelihood wants them, and what was done to them.

    Args:
        values: (N, C, H, W), float32.
        about: the dequantisation or binarisation, which every likelihood has to state.
        levels: of a pixel before.
        span: length of the interval that the levels fill, if `values` have a density; `None` if they are the levels.
    """

    values: Tensor
    about: str
    levels: int
    span: float | None


@dataclass(frozen=True)
class Likelihood:
    """The likelihood of N images under a model.

    Args:
        nats: mean log-likelihood per image, summed over pixels; larger is better.
        standard_error: of that mean, from the spread over images; `None` of a single image.
        bits_per_dimension: smaller is better; see `bits_per_dimension`.
        sampling_error: standard deviation of the mean that is due to finitely many samples per image alone, to first
            order; 0 where nothing was sampled, `None` of one sample per image.
        effective_samples: (sum w)^2 / sum w^2 of the importance weights, mean over images. Near 1 a single sample
            decides: the bound is loose by more than `sampling_error` can tell. `None` where there are no weights.
        kind: "exact", "lower bound", "importance bound, k = ..." or "annealed importance sampling, ...".
        pixels: the dequantisation or binarisation.
        n: images.
        dimensions: pixels times channels of an image.
    """

    nats: float
    standard_error: float | None
    bits_per_dimension: float
    sampling_error: float | None
    effective_samples: float | None
    kind: str
    pixels: str
    n: int
    dimensions: int

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, for JSON and model cards."""
        return asdict(self)

    def text(self) -> str:
        """One line for the terminal."""
        error = "" if self.standard_error is None else f" ± {self.standard_error:.2g}"
        effective = "" if self.effective_samples is None else f"; {self.effective_samples:.1f} effective samples"
        return (
            f"{self.nats:.2f}{error} nats, {self.bits_per_dimension:.3f} bits/dim "
            f"({self.kind}{effective}; {self.pixels}; n={self.n})"
        )


# ------------------------------------------------------------ pixels


def dequantise(images: Tensor, seed: int = 0) -> Pixels:
    """Bytes as points of a continuous space: `(v + u) / 128 - 1` in [-1, 1], u uniform in [0, 1).

    A density can be infinite on 256 points, so its likelihood of the bytes themselves means nothing. With uniform u,
    `E_u log p(v + u) <= log P(v)`: the mean log-density bounds the log-probability of the bytes from below.

    Args:
        images: (N, C, H, W), uint8. Data that uses few of the 256 levels, such as scikit-learn's digits with 17, still
            rewards a model that finds them, and its bits compare with no other data set's.
        seed: of u.

    References:
        "A note on the evaluation of generative models", Theis et al. 2015, arXiv:1511.01844, section 3.1.

    Example:
        >>> pixels = dequantise(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8))
        >>> 127 / 128 <= pixels.values.item() <= 1, pixels.about
        (True, 'uniform dequantisation of 256 levels')
    """
    _check_bytes(images)
    noise = _uniform(images, seed, "dequantise")
    return Pixels(((images + noise) / 128 - 1).float(), "uniform dequantisation of 256 levels", 256, 2.0)


def binarise(images: Tensor, seed: int = 0, how: str = "dynamic") -> Pixels:
    """Grey bytes as zeros and ones. On MNIST the three differ by nats: a number without its binarisation is none.

    Args:
        images: (N, C, H, W), uint8. The first rows are binarised alike whatever follows.
        seed: of the draws.
        how: "static": each pixel is 1 with probability v / 255, drawn once with a seed that training used too (the
            protocol of Larochelle's MNIST, though not its file); "dynamic": drawn likewise, of a model that saw a new
            draw in each epoch; "threshold": 1 where v >= 128.

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


def bits_per_dimension(log_likelihood: Any, dimensions: int, levels: int = 256, span: float | None = 2.0) -> Any:
    """`(-log_likelihood / dimensions + ln(levels / span)) / ln 2`: bits that a coder spends on each value of an image.

    A density is per unit of length, and a level is span / levels long; who leaves the second term out is off by 7 bits
    on [-1, 1] and by 8 on [0, 1]. Constant padding lowers the bits per dimension and not the nats, and a logit
    transform of the pixels changes both unless its Jacobian was counted.

    Args:
        log_likelihood: in nats per image: a number or a tensor.
        dimensions: pixels times channels of an image.
        levels: of a value, default 256.
        span: length of the interval that the levels fill in the space of the density: 2 for [-1, 1] (default, what
            `dequantise` gives), 1 for [0, 1]; `None` if `log_likelihood` is of the levels themselves.

    Example:
        >>> bits_per_dimension(-784 * math.log(2), 784), bits_per_dimension(0.0, 784, span=1)  # uniform noise
        (8.0, 8.0)
        >>> bits_per_dimension(-784 * math.log(2), 784, levels=2, span=None)  # fair coins
        1.0
    """
    if dimensions < 1 or levels < 2 or (span is not None and not span > 0):
        raise UsageError(
            f"`dimensions` must be at least 1, `levels` at least 2 and `span` positive or None. Got {dimensions}, "
            f"{levels} and {span}."
        )
    width = 0.0 if span is None else math.log(levels / span)
    return (-log_likelihood / dimensions + width) / math.log(2)


# ------------------------------------------------------------ likelihoods and bounds


def exact_likelihood(log_likelihoods: Tensor, pixels: Pixels, kind: str = "exact") -> Likelihood:
    """What a model with a tractable density says: a flow, an autoregressive model, a mixture.

    Args:
        log_likelihoods: (N,) in nats per image, of `pixels.values`.
        pixels: from `dequantise` or `binarise`.
        kind: what the numbers are, default "exact"; "lower bound" for a diffusion model's.

    Raises:
        UsageError: another number of values than images.
        NumericsError: a value is NaN or infinite.

    Example:
        >>> pixels = dequantise(torch.zeros(10, 1, 8, 8, dtype=torch.uint8))
        >>> result = exact_likelihood(torch.full((10,), -64 * math.log(2)), pixels)  # uniform on [-1, 1]
        >>> round(result.bits_per_dimension, 6)
        8.0
    """
    values = log_likelihoods.double()
    if values.shape != pixels.values.shape[:1]:
        raise UsageError(
            f"The log-likelihoods must have shape ({len(pixels.values)},), one number per image. Got "
            f"{tuple(values.shape)}."
        )
    if not values.isfinite().all():
        raise NumericsError(
            f"Log-likelihoods must be finite. {int((~values.isfinite()).sum())} of {len(values)} are not: a number "
            "underflowed to 0 (compute in logarithms), or the model's weights are not finite."
        )
    n, dimensions, mean = len(values), pixels.values[0].numel(), float(values.mean())
    return Likelihood(
        nats=mean,
        standard_error=float(values.std() / n**0.5) if n > 1 else None,
        bits_per_dimension=bits_per_dimension(mean, dimensions, pixels.levels, pixels.span),
        sampling_error=0.0,
        effective_samples=None,
        kind=kind,
        pixels=pixels.about,
        n=n,
        dimensions=dimensions,
    )


@torch.no_grad()
def importance_weights(
    encode: Callable[[Tensor], Any], log_joint: Callable[[Tensor, Tensor], Tensor], x: Tensor, k: int, seed: int = 0
) -> Tensor:
    """`log p(x, z) - log q(z | x)` for k draws z ~ q(z | x) of each image.

    Args:
        encode: x (B, ...) -> q(z | x): anything with `sample()` and `log_prob(z)`, (B,) or summed over the rest.
        log_joint: x (B, ...), z (B, ...) -> log p(x, z), (B,).
        x: N images, all at once; for many, call it in parts with a seed for each and concatenate.
        k: draws per image. Papers take 5000.
        seed: of the draws.

    Returns:
        float64 (N, k).

    Example:
        >>> normal = torch.distributions.Normal(torch.zeros(5, 2), 1.0)
        >>> joint = lambda x, z: normal.log_prob(z).sum(1) + torch.distributions.Normal(z, 1.0).log_prob(x).sum(1)
        >>> importance_weights(lambda x: normal, joint, torch.zeros(5, 2), k=3).shape
        torch.Size([5, 3])
    """
    if k < 1:
        raise UsageError(f"`k` must be at least 1. Got {k}.")
    columns = []
    # torch.distributions draw from the global generators, which are put back afterwards.
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        torch.manual_seed(seed_from(seed, "importance weights"))
        posterior = encode(x)
        for _ in range(k):
            z = posterior.sample()
            log_p, log_q = log_joint(x, z), posterior.log_prob(z)
            if log_p.shape != (len(x),):
                raise UsageError(
                    f"`log_joint` must return one number per image, ({len(x)},). Got {tuple(log_p.shape)}."
                )
            columns.append(log_p.double() - log_q.double().reshape(len(x), -1).sum(1))
    return torch.stack(columns, 1)


def elbo(log_weights: Tensor, pixels: Pixels) -> Likelihood:
    """The evidence lower bound `E_q log p(x, z) / q(z | x)`, from `importance_weights` (N, k).

    References:
        "Auto-Encoding Variational Bayes", Kingma and Welling 2013, arXiv:1312.6114, equation 3.

    Example:
        >>> pixels = binarise(torch.zeros(2, 1, 1, 1, dtype=torch.uint8))
        >>> elbo(torch.tensor([[-1.0, -3.0], [-2.0, -2.0]]), pixels).nats
        -2.0
    """
    _check_weights(log_weights)
    return _from_weights(log_weights, pixels, log_weights.double().mean(1), "lower bound")


def importance_bound(log_weights: Tensor, pixels: Pixels, kind: str | None = None) -> Likelihood:
    """The importance weighted bound `E log (1/k) sum_i w_i <= log p(x)`, from `importance_weights` (N, k).

    It grows with k and reaches log p(x) in the limit; k = 1 is the ELBO. `annealed_importance_sampling` gives weights
    for it too.

    Args:
        log_weights: (N, k).
        pixels: what the weights are of.
        kind: default "importance bound, k = ...".

    References:
        "Importance Weighted Autoencoders", Burda et al. 2015, arXiv:1509.00519, equation 8.

    Example:
        >>> pixels = binarise(torch.zeros(1, 1, 1, 1, dtype=torch.uint8))
        >>> result = importance_bound(torch.tensor([[0.25, 0.75]]).log(), pixels)
        >>> round(math.exp(result.nats), 6), result.kind
        (0.5, 'importance bound, k = 2')
    """
    _check_weights(log_weights)
    bound = log_mean_exp(log_weights.double(), 1)
    return _from_weights(log_weights, pixels, bound, kind or f"importance bound, k = {log_weights.shape[1]}")


def log_mean_exp(x: Tensor, dim: int) -> Tensor:
    """`log((1/k) sum_i e^x_i)` over a dimension of size k, without overflow.

    Example:
        >>> log_mean_exp(torch.tensor([1000.0, 1000.0]), 0).item()
        1000.0
    """
    return x.logsumexp(dim) - math.log(x.shape[dim])


def _from_weights(log_weights: Tensor, pixels: Pixels, values: Tensor, kind: str) -> Likelihood:
    result = exact_likelihood(values, pixels, kind)
    shares, k = log_weights.double().softmax(1), log_weights.shape[1]
    effective = 1 / shares.square().sum(1)
    error = None
    if k > 1 and kind == "lower bound":
        error = float((log_weights.double().var(1) / k).sum().sqrt() / len(values))
    elif k > 1:
        # var log(mean w) = var(w) / (k mean(w)^2) to first order, and 1/ESS - 1/k is that with the divisor k.
        variance = (1 / effective - 1 / k).clamp(min=0) * k / (k - 1)
        error = float(variance.sum().sqrt() / len(values))
    return Likelihood(**{**asdict(result), "sampling_error": error, "effective_samples": float(effective.mean())})


def _check_weights(log_weights: Tensor) -> None:
    if log_weights.ndim != 2 or not log_weights.numel():
        raise UsageError(f"`log_weights` must have shape (N, k), k >= 1. Got {tuple(log_weights.shape)}.")


def _check_bytes(images: Tensor) -> None:
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
        given = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise UsageError(
            f"`images` must be a uint8 tensor (N, C, H, W) in [0, 255], N >= 1. Got {given}; from [-1, 1] convert with "
            "(x * 127.5 + 127.5).round().to(torch.uint8), and remember that likelihoods are of data, not of samples."
        )


def _uniform(images: Tensor, seed: int, stream: str) -> Tensor:
    """U[0, 1), float64, of the shape of the images."""
    generator = torch.Generator().manual_seed(seed_from(seed, stream))
    return torch.rand(images.shape, generator=generator, dtype=torch.float64).to(images.device)
