"""Likelihoods that compare: exact, bounds from below and annealed importance sampling, in nats and in bits.

Everything is in nats per image, summed over pixels, larger is better; bits per dimension carry the other sign, smaller
is better. A model is a few plain functions: `encode(x)` gives a distribution with `sample()` and `log_prob(z)`,
`log_joint(x, z)` is log p(x, z), and `log_prior(z)` and `log_likelihood(x, z)` are its two parts; each returns (B,).
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from latentia.errors import NumericsError, UsageError
from latentia.evaluation.likelihood.pixels import Pixels, bits_per_dimension
from latentia.rng import seed_from


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
        """One line for the terminal, with the half width of the 95 % interval of the mean."""
        error = "" if self.standard_error is None else f" ± {1.96 * self.standard_error:.2g}"
        effective = "" if self.effective_samples is None else f"; {self.effective_samples:.1f} effective samples"
        return (
            f"{self.nats:.2f}{error} nats, {self.bits_per_dimension:.3f} bits/dim "
            f"({self.kind}{effective}; {self.pixels}; n={self.n})"
        )


def exact_likelihood(log_likelihoods: Tensor, pixels: Pixels, kind: str = "exact") -> Likelihood:
    """Likelihood under a model with a tractable density: a flow, an autoregressive model, a mixture.

    Args:
        log_likelihoods: (N,) in nats per image, of `pixels.values`.
        pixels: from `dequantise` or `binarise`.
        kind: what the numbers are, default "exact"; "lower bound" for a diffusion model's.

    Raises:
        UsageError: another number of values than images.
        NumericsError: a value is NaN or infinite.

    Example:
        >>> from latentia.evaluation import dequantise
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
        bits_per_dimension=bits_per_dimension(mean, dimensions, pixels.bins, pixels.span),
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
    """`log p(x, z) - log q(z | x)` for k samples z ~ q(z | x) of each image.

    Args:
        encode: x (B, ...) -> q(z | x): anything with `sample()` and `log_prob(z)`, (B,) or summed over the rest.
        log_joint: x (B, ...), z (B, ...) -> log p(x, z), (B,).
        x: N images, all at once; for many, call it in parts with a seed for each and concatenate.
        k: samples per image. Papers take 5000.
        seed: of the samples.

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
        >>> from latentia.evaluation import binarise
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
        >>> from latentia.evaluation import binarise
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
