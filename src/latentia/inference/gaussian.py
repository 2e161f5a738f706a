"""Gaussian variational inference: mean field by coordinate ascent, and any log-density by stochastic optimisation."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from latentia.errors import Count, NumericsError, Positive, Seed, UsageError, Weight, check_arguments, check_choice
from latentia.functional.distributions import gaussian_kl
from latentia.inference.fit import Fit
from latentia.inference.gaussians import cholesky
from latentia.rng import seed_from


@dataclass(frozen=True)
class Gaussians:
    r"""Gaussian distributions \(q_b = \mathcal{N}(m_b, L_b L_b^\top)\), one for each datum.

    Args:
        means: m, (B, D).
        scales: lower triangular L, (B, D, D), or standard deviations, (B, D), of independent dimensions.

    Example:
        >>> q = Gaussians(torch.zeros(1, 2), torch.ones(1, 2))
        >>> q.kl_from_standard_normal().tolist()
        [0.0]
    """

    means: Tensor
    scales: Tensor

    @property
    def covariances(self) -> Tensor:
        """(B, D, D)."""
        return self.scales.square().diag_embed() if self.scales.ndim == 2 else self.scales @ self.scales.mT

    def sample(self, noise: Tensor) -> Tensor:
        """Samples (S, B, D) made of noise from N(0, I), of that shape."""
        if self.scales.ndim == 2:
            return self.means + self.scales * noise
        return self.means + (self.scales @ noise[..., None])[..., 0]

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z) in nats, (S, B), of z (S, B, D)."""
        shift = z - self.means
        if self.scales.ndim == 2:
            white, log_det = shift / self.scales, self.scales.log().sum(-1)
        else:
            white = torch.linalg.solve_triangular(self.scales.expand(len(z), -1, -1, -1), shift[..., None], upper=False)
            white, log_det = white[..., 0], self._diagonal.log().sum(-1)
        return -0.5 * (white.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi)) - log_det

    def kl_from_standard_normal(self) -> Tensor:
        """KL(q || N(0, I)) in nats, (B,)."""
        if self.scales.ndim == 2:
            return gaussian_kl(self.means, 2 * self.scales.log()).sum(-1)
        squares = self.means.square().sum(-1) + self.scales.square().sum((-2, -1))
        return 0.5 * (squares - self.means.shape[-1]) - self._diagonal.log().sum(-1)

    @property
    def _diagonal(self) -> Tensor:
        return self.scales.diagonal(dim1=-2, dim2=-1)


def fit_mean_field(
    mean: Tensor,
    precision: Tensor,
    *,
    start: Tensor | None = None,
    tolerance: Weight = 1e-12,
    max_iterations: int = 1000,
) -> Fit[Gaussians]:
    r"""Approximate a Gaussian by independent dimensions: coordinate ascent on \(-\mathrm{KL}(q \| p)\).

    \(q_i = \mathcal{N}(m_i, \Lambda_{ii}^{-1})\), \(m_i = \mu_i - \Lambda_{ii}^{-1} \sum_{j \ne i} \Lambda_{ij} (m_j -
    \mu_j)\): the means become those of p, and the variances are too small.

    Args:
        mean: of p, (D,).
        precision: inverse covariance of p, (D, D), positive definite.
        start: means to start from, (D,); `None` (default): 0.
        tolerance: it ends when the bound rises by no more. Default 1e-12.
        max_iterations: sweeps over the dimensions. Default 1000.

    Returns:
        q, of B = 1, and -KL(q || p), the bound of log 1, before each sweep and at the end.

    Raises:
        UsageError: shapes that do not fit.
        NumericsError: a precision that is singular or not positive definite.

    Pattern Recognition and Machine Learning (Bishop, 2006), section 10.1.2.

    Example:
        >>> precision = torch.linalg.inv(torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64))
        >>> fit = fit_mean_field(torch.zeros(2), precision)
        >>> round(-fit.bounds[-1].item(), 5), (fit.model.scales**2).round(decimals=6).tolist()
        (0.14384, [[0.75, 0.75]])
    """
    target, lam = mean.double(), precision.double()
    dimensions = len(target)
    if lam.shape != (dimensions, dimensions):
        raise UsageError(f"precision must have shape (D, D) = ({dimensions}, {dimensions}); got {tuple(lam.shape)}.")
    factor = _factor(lam)
    variances = 1 / lam.diagonal()
    m = torch.zeros_like(target) if start is None else start.double().clone()
    log_ratio = 0.5 * (2 * factor.diagonal().log().sum() + variances.log().sum())  # of the entropies
    bounds: list[Tensor] = []
    converged = False
    for iteration in range(max_iterations + 1):
        shift = m - target
        bounds.append(log_ratio - 0.5 * (shift @ lam @ shift))
        converged = iteration > 0 and bool(bounds[-1] - bounds[-2] <= tolerance)
        if converged or iteration == max_iterations:
            break
        for i in range(dimensions):
            shift = m - target
            m[i] = target[i] - variances[i] * (lam[i] @ shift - lam[i, i] * shift[i])
    return Fit(Gaussians(m[None], variances.sqrt()[None]), torch.stack(bounds), converged)


def _factor(precision: Tensor) -> Tensor:
    try:
        return cholesky(precision[None])[0]
    except NumericsError:
        raise NumericsError(
            "precision must be positive definite; it is singular or has a negative eigenvalue. Leave out dimensions "
            "that others determine."
        ) from None


@check_arguments
def fit_gaussians(
    log_density: Callable[[Tensor], Tensor],
    start: Gaussians,
    *,
    covariance: Literal["diag", "full"] = "full",
    steps: Count = 500,
    samples: Count = 16,
    learning_rate: Positive = 0.05,
    seed: Seed = 0,
) -> Fit[Gaussians]:
    r"""Fit a Gaussian to each of B log-densities by stochastic gradient ascent of \(E_q [\log p(x, z) - \log q(z)]\).

    The gradient is that of the samples alone, with the parameters inside log q held constant: its variance vanishes
    where q is the exact posterior, so that the fit ends there. Samples come in pairs of noise and its negative, and, if
    there are enough, the noise has unit covariance exactly, so that a quadratic log-density has no variance at all.

    Args:
        log_density: z (S, B, D) -> log p(x_b, z), (S, B), up to a constant for the fit, exactly for its bounds.
        start: the Gaussians to start from, of B data.
        covariance: "diag", independent dimensions, or "full" (default).
        steps: of Adam; the rate falls to 0 as a cosine. Default 500.
        samples: S of each step, an even number is best. Default 16.
        learning_rate: at the start. Default .05.
        seed: of the samples. Default 0.

    Returns:
        The Gaussians, and the estimate of the mean bound before each step and at the end.

    Raises:
        NumericsError: the log-density is not finite.

    Auto-Encoding Variational Bayes (Kingma and Welling, 2013, 1312.6114), eq. 5; the gradient: Sticking the Landing
    (Roeder, Wu and Duvenaud, 2017, 1703.09194).

    Example:
        >>> target = torch.distributions.Normal(torch.tensor([[1.0], [2.0]]), torch.tensor([[0.5], [2.0]]))
        >>> start = Gaussians(torch.zeros(2, 1), torch.ones(2, 1))
        >>> fit = fit_gaussians(lambda z: target.log_prob(z).sum(-1), start)
        >>> fit.model.means.flatten().round(decimals=2).tolist(), fit.model.scales.flatten().round(decimals=2).tolist()
        ([1.0, 2.0], [0.5, 2.0])
    """
    check_choice("covariance", covariance, ("diag", "full"))
    diagonal = start.scales if start.scales.ndim == 2 else start.scales.diagonal(dim1=1, dim2=2)
    parameters = [start.means.detach().clone(), diagonal.detach().log()]
    if covariance == "full":
        parameters.append((start.scales.detach() if start.scales.ndim == 3 else start.scales.diag_embed()).tril(-1))
    for parameter in parameters:
        parameter.requires_grad_(True)

    def gaussians(constant: bool = False) -> Gaussians:
        means, log_scales, *below = (p.detach() if constant else p for p in parameters)
        scales = log_scales.exp()
        return Gaussians(means, below[0].tril(-1) + scales.diag_embed() if below else scales)

    optimizer = torch.optim.Adam(parameters, learning_rate)
    generator = torch.Generator(start.means.device).manual_seed(seed_from(seed, "variational inference"))
    bounds: list[Tensor] = []
    for step in range(steps + 1):
        z = gaussians().sample(balanced_noise(samples, start.means, generator))
        values = log_density(z) - gaussians(constant=True).log_prob(z)
        bounds.append(values.detach().double().mean())
        if not bounds[-1].isfinite():
            raise NumericsError(
                f"The log-density is not finite at step {step} of {steps}. Lower learning_rate, or check what "
                "log_density returns."
            )
        if step == steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = 0.5 * learning_rate * (1 + math.cos(math.pi * step / steps))
        for parameter, gradient in zip(parameters, torch.autograd.grad(-values.mean(0).sum(), parameters)):
            parameter.grad = gradient  # not that of the network behind the density
        optimizer.step()
    return Fit(gaussians(constant=True), torch.stack(bounds), True)


def balanced_noise(samples: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Noise (S, B, D) from N(0, I) in pairs of opposite sign, for means (B, D).

    With at least 2 D samples each datum's are scaled to unit covariance.

    Example:
        >>> noise = balanced_noise(8, torch.zeros(1, 2, dtype=torch.float64), torch.Generator())
        >>> (noise[:, 0].T @ noise[:, 0] / 8).round(decimals=6).abs().tolist(), bool(noise.sum().abs() < 1e-9)
        ([[1.0, 0.0], [0.0, 1.0]], True)
    """
    half, dimensions = (samples + 1) // 2, like.shape[1]
    noise = torch.randn(half, *like.shape, generator=generator, device=like.device, dtype=like.dtype)
    if samples % 2 == 0 and half >= dimensions:
        rows = noise.transpose(0, 1)  # (B, S / 2, D)
        factor = torch.linalg.cholesky(rows.mT @ rows / half)
        noise = torch.linalg.solve_triangular(factor, rows.mT, upper=False).permute(2, 0, 1)
    return torch.cat([noise, -noise])[:samples]
