"""Log densities, divergences and reparameterised samples of the distributions that models are made of, in nats."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from latentia.errors import check_choice, check_range


def reparameterize(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    r"""A sample of N(mean, e^{log_variance}) that has derivatives: \(z = \mu + \sigma \epsilon\).

    Args:
        mean, log_variance: of shapes that broadcast with `noise`.
        noise: \(\epsilon\), from N(0, 1).

    Auto-Encoding Variational Bayes (Kingma and Welling, 2013, 1312.6114), section 2.4.

    Example:
        >>> reparameterize(torch.tensor([3.0]), torch.tensor([0.0]), torch.tensor([-1.0]))
        tensor([2.])
    """
    return mean + (0.5 * log_variance).exp() * noise


def log_normal(z: Tensor, mean: Tensor | float = 0.0, log_variance: Tensor | float = 0.0) -> Tensor:
    """log N(z; mean, e^log_variance), summed over the last dimension.

    Args:
        z: (..., D).
        mean, log_variance: numbers, or of shapes that broadcast with z. Default 0, the standard normal density.

    Returns:
        (...).

    Example:
        >>> log_normal(torch.zeros(2, 3)) / -math.log(2 * math.pi)  # three halves each
        tensor([1.5000, 1.5000])
    """
    if not isinstance(log_variance, Tensor):
        log_variance = torch.full((), log_variance, dtype=z.dtype, device=z.device)
    return -0.5 * ((z - mean).square() * (-log_variance).exp() + log_variance + math.log(2 * math.pi)).sum(-1)


def log_mixture(z: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    r"""The density of a mixture of K normal distributions of equal weight, \(\log \frac1K \sum_k N(z; \mu_k,
    \mathrm{diag}\, \sigma_k^2)\).

    Args:
        z: (..., D).
        mean, log_variance: of the components, (K, D).

    Returns:
        (...).

    Example:
        >>> z = torch.zeros(2, 3)
        >>> bool(torch.allclose(log_mixture(z, torch.zeros(4, 3), torch.zeros(4, 3)), log_normal(z)))
        True
    """
    return log_normal(z[..., None, :], mean, log_variance).logsumexp(-1) - math.log(len(mean))


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    r"""KL(N(mu, sigma^2) || N(0, 1)) of each dimension: \((\mu^2 + \sigma^2 - 1 - \log\sigma^2) / 2\).

    Args:
        mean, log_variance: of one shape.

    Returns:
        That shape; never negative.

    Kingma and Welling, 2013, 1312.6114, appendix B.

    Example:
        >>> gaussian_kl(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0]))
        tensor([0.5000, 0.0000])
    """
    return 0.5 * (mean.square() + torch.expm1(log_variance) - log_variance)


def gaussian_kl_between(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    r"""KL(N(mu, sigma^2) || N(m, s^2)) of each dimension:
    \(\frac12 \left(\log\frac{s^2}{\sigma^2} + \frac{\sigma^2 + (\mu - m)^2}{s^2} - 1\right)\).

    Args:
        mean, log_variance: of the first distribution.
        other_mean, other_log_variance: of the second. All shapes must broadcast.

    Example:
        >>> one, zero = torch.ones(1), torch.zeros(1)
        >>> gaussian_kl_between(one, zero, zero, zero)
        tensor([0.5000])
    """
    gap = (mean - other_mean).square() * (-other_log_variance).exp()
    return 0.5 * (other_log_variance - log_variance + (log_variance - other_log_variance).exp() + gap - 1)


def bernoulli_kl(rho: float, mean_activation: Tensor) -> Tensor:
    r"""\(\mathrm{KL}(\rho \,\|\, \hat\rho) = \rho \ln\frac\rho{\hat\rho} + (1-\rho) \ln\frac{1-\rho}{1-\hat\rho}\).

    Args:
        rho: the wanted mean activation, in (0, 1).
        mean_activation: the measured ones, in [0, 1], any shape. They are kept 1e-6 away from 0 and 1.

    Returns:
        Shaped as `mean_activation`.

    Raises:
        UsageError: `rho` out of its range.

    Sparse autoencoder (Ng, 2011, CS294A lecture notes), section 3.

    Example:
        >>> bernoulli_kl(0.1, torch.tensor([0.1, 0.2, 0.5])).round(decimals=5).tolist()
        [0.0, 0.03669000044465065, 0.36805999279022217]
    """
    check_range("rho", rho, 0, 1, closed="neither")
    p = mean_activation.clamp(1e-6, 1 - 1e-6)
    return torch.xlogy(torch.full_like(p, rho), rho / p) + torch.xlogy(torch.full_like(p, 1 - rho), (1 - rho) / (1 - p))


def log_cosh(x: Tensor) -> Tensor:
    r"""\(\ln \cosh x\), at least 0 and finite for every finite x: \(|x| + \ln(1 + e^{-2|x|}) - \ln 2\).

    Args:
        x: any shape; a difference in any unit.

    Returns:
        Shaped as `x`: about \(x^2 / 2\) for small and \(|x| - \ln 2\) for large values.

    Log Hyperbolic Cosine Loss Improves Variational Auto-Encoder (Chen, Chen and Wang, 2019).

    Example:
        >>> [round(float(y), 3) for y in log_cosh(torch.tensor([0.0, 1.0, -1000.0]))]
        [0.0, 0.434, 999.307]
    """
    return x.abs() + torch.nn.functional.softplus(-2 * x.abs()) - math.log(2)


def bernoulli_log_prob(x: Tensor, logits: Tensor, log_scale: Tensor | None = None) -> Tensor:
    r"""Bernoulli pixels at -1 (black) and 1 (white): \(t l - \log(1 + e^l)\), t = (x + 1) / 2; `log_scale` is unused.

    Example:
        >>> bernoulli_log_prob(torch.tensor([-1.0, 1.0]), torch.zeros(2)).exp()
        tensor([0.5000, 0.5000])
    """
    return (x + 1) / 2 * logits - F.softplus(logits)


def gaussian_log_prob(x: Tensor, mean: Tensor, log_scale: Tensor | None) -> Tensor:
    """The density of N(mean, e^(2 log_scale)) at each value of x.

    Example:
        >>> gaussian_log_prob(torch.zeros(1), torch.zeros(1), torch.zeros(())).exp()
        tensor([0.3989])
    """
    scale = _given(log_scale)
    return -0.5 * ((x - mean) / scale.exp()).square() - scale - 0.5 * math.log(2 * math.pi)


def discretized_logistic_log_prob(x: Tensor, mean: Tensor, log_scale: Tensor | None) -> Tensor:
    """The probability of each of 256 equidistant values of [-1, 1], those of the ends reaching to infinity.

    Improved Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016, 1606.04934), appendix.

    Example:
        >>> pixels = torch.linspace(-1, 1, 256)
        >>> discretized_logistic_log_prob(pixels, torch.tensor(0.3), torch.tensor(-2.0)).exp().sum().round(decimals=4)
        tensor(1.)
    """
    # log(s(a) - s(b)) = log s(a) + log s(-b) + log(1 - e^(b - a)) exactly, for a > b and s the logistic function: no
    # difference of nearly equal numbers, and no clamp.
    scale, half = _given(log_scale).exp(), 1 / 255
    above, below = (x + half - mean) / scale, (x - half - mean) / scale
    ends = torch.where(x <= -1 + half, 0.0, F.logsigmoid(-below)) + torch.where(x >= 1 - half, 0.0, F.logsigmoid(above))
    inside = (x > -1 + half) & (x < 1 - half)
    return ends + torch.where(inside, torch.log(-torch.expm1(-2 * half / scale)), 0.0)


def discretized_gaussian_log_prob(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """The probability of each of 256 equidistant values of [-1, 1] under a normal distribution, float32.

    Denoising Diffusion Probabilistic Models (Ho et al., 2020, 2006.11239), eq. 13. Probabilities below 1e-12 count as
    that.

    Example:
        >>> pixels = torch.linspace(-1, 1, 256)
        >>> discretized_gaussian_log_prob(pixels, torch.tensor(0.3), torch.tensor(-3.0)).exp().sum().round(decimals=4)
        tensor(1.)
    """
    scale, half = (0.5 * log_variance).exp().float(), 1 / 255  # a value stands for an interval of 2 / 255
    upper, lower = (_normal_cdf(x.float() + shift, mean.float(), scale) for shift in (half, -half))
    above = torch.where(x > 0.999, 1.0, upper)
    below = torch.where(x < -0.999, 0.0, lower)
    return (above - below).clamp(min=1e-12).log()


_LIKELIHOODS: dict[str, Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {
    "bernoulli": bernoulli_log_prob,
    "gaussian": gaussian_log_prob,
    "discretized_logistic": discretized_logistic_log_prob,
}
LIKELIHOODS = tuple(_LIKELIHOODS)


def log_likelihood(likelihood: str, images: Tensor, location: Tensor, log_scale: Tensor | None = None) -> Tensor:
    """log p(x|z) of images, summed over their values: "bernoulli", "gaussian" or "discretized_logistic".

    Args:
        likelihood: one of `LIKELIHOODS`; see `bernoulli_log_prob`, `gaussian_log_prob` (a density on [-1, 1]) and
            `discretized_logistic_log_prob`.
        images: (B, C, H, W), in [-1, 1].
        location: logits of "bernoulli", else means, (B, C, H, W), or (B, K, C, H, W) for K samples of z.
        log_scale: the logarithm of the standard deviation or the logistic's scale; `None` (default) for "bernoulli".

    Returns:
        (B,) or (B, K).

    Raises:
        UsageError: an unknown name.

    Example:
        >>> x = torch.ones(1, 1, 2, 2)
        >>> log_likelihood("bernoulli", x, torch.zeros(1, 1, 2, 2)) / math.log(2)  # four fair coins
        tensor([-4.])
    """
    check_choice("likelihood", likelihood, LIKELIHOODS)
    if location.ndim == images.ndim + 1:
        images = images[:, None]
    return _LIKELIHOODS[likelihood](images, location, log_scale).sum((-3, -2, -1))


def _given(log_scale: Tensor | None) -> Tensor:
    if log_scale is None:
        raise TypeError("log_scale is missing: only Bernoulli pixels have none.")
    return log_scale


def _normal_cdf(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf((x - mean) * scale.reciprocal() / math.sqrt(2)))
