"""Autoregressive processes of order two: fitted by the Yule-Walker equations, and their spectrum in closed form."""

import math

import torch
from torch import Tensor

from latentia.errors import UsageError


def fit_ar2(autocorrelation: Tensor) -> Tensor:
    r"""Coefficients \(a_1, a_2\) and noise variance of \(x_t = a_1 x_{t-1} + a_2 x_{t-2} + e_t\) of variance 1.

    \(a_1 = \rho_1 (1 - \rho_2) / (1 - \rho_1^2)\), \(a_2 = (\rho_2 - \rho_1^2) / (1 - \rho_1^2)\), and the noise has
    variance \(1 - a_1 \rho_1 - a_2 \rho_2\).

    Args:
        autocorrelation: at lags 1 and 2, (..., 2), the first of absolute value below 1.

    Returns:
        (..., 3).

    Raises:
        UsageError: a correlation of absolute value 1 at lag 1.

    Yule (1927, doi:10.1098/rsta.1927.0007); Walker (1931, doi:10.1098/rspa.1931.0069).

    Example:
        >>> fit_ar2(torch.tensor([0.5, 0.25], dtype=torch.float64)).tolist()  # AR(1) with .5
        [0.5, 0.0, 0.75]
    """
    first, second = autocorrelation.unbind(-1)
    if bool((first.abs() >= 1).any()):
        raise UsageError(f"autocorrelation must be below 1 at lag 1; got {first.abs().max().item():g}.")
    a1 = first * (1 - second) / (1 - first**2)
    a2 = (second - first**2) / (1 - first**2)
    return torch.stack([a1, a2, 1 - a1 * first - a2 * second], -1)


def ar2_spectrum(a1: Tensor, a2: Tensor, noise: Tensor, frequencies: Tensor) -> Tensor:
    r"""Spectral density \(\sigma^2 / |1 - a_1 e^{-i \omega} - a_2 e^{-2 i \omega}|^2\), \(\omega = 2 \pi f\).

    Its integral over f in [-1/2, 1/2] is the variance of the process.

    Args:
        a1, a2, noise: of one shape (...).
        frequencies: f in periods a step, (F,).

    Returns:
        (..., F).

    Time Series Analysis (Box and Jenkins, 1970), section 3.2.

    Example:
        >>> one = torch.tensor(1.0)
        >>> ar2_spectrum(0 * one, 0 * one, one, torch.tensor([0.0, 0.3]))
        tensor([1., 1.])
    """
    omega = 2 * math.pi * frequencies
    a1, a2 = a1[..., None], a2[..., None]
    real = 1 - a1 * omega.cos() - a2 * (2 * omega).cos()
    imaginary = a1 * omega.sin() + a2 * (2 * omega).sin()
    return noise[..., None] / (real.square() + imaginary.square())
