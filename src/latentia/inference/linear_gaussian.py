"""Linear-Gaussian latent variables: probabilistic PCA and factor analysis, in closed form and by EM."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from latentia.errors import Count, NumericsError, Size, UsageError, Weight, check_arguments, check_choice
from latentia.inference.fit import Fit
from latentia.inference.gaussians import as_rows


@dataclass(frozen=True)
class LinearGaussian:
    r"""\(z \sim \mathcal{N}(0, I)\), \(x | z \sim \mathcal{N}(W z + \mu, \mathrm{diag}(\psi))\).

    Args:
        mean: \(\mu\), (D,).
        loadings: W, (D, M).
        noise: \(\psi\), (D,), all equal for probabilistic PCA.

    Everything that inference needs has a closed form: the marginal N(mu, W W^T + diag(psi)) and the posterior of z.

    Example:
        >>> model = LinearGaussian(torch.zeros(2), torch.tensor([[1.0], [0.0]]), torch.ones(2))
        >>> mean, covariance = model.posterior(torch.tensor([[2.0, 5.0]]))
        >>> mean.item(), covariance.item()
        (1.0, 0.5)
    """

    mean: Tensor
    loadings: Tensor
    noise: Tensor

    def __post_init__(self) -> None:
        for name in ("mean", "loadings", "noise"):
            object.__setattr__(self, name, getattr(self, name).double())
        if self.loadings.ndim != 2 or self.mean.shape != self.noise.shape or len(self.mean) != len(self.loadings):
            raise UsageError(
                "mean, loadings and noise must have shapes (D,), (D, M) and (D,); got "
                f"{tuple(self.mean.shape)}, {tuple(self.loadings.shape)} and {tuple(self.noise.shape)}."
            )
        if not (self.noise > 0).all():
            raise NumericsError(
                "noise must be positive: with a variance of 0 the covariance is singular. Use fewer latents or leave "
                "out columns that are constant or copies of others."
            )

    @property
    def covariance(self) -> Tensor:
        """Of x, (D, D)."""
        return self.loadings @ self.loadings.T + self.noise.diag()

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, (N,), of rows (N, D)."""
        factor = torch.linalg.cholesky(self.covariance)
        white = torch.linalg.solve_triangular(factor, (x.double() - self.mean).T, upper=False)
        return -0.5 * (white.square().sum(0) + len(self.mean) * math.log(2 * math.pi)) - factor.diagonal().log().sum()

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means (N, M) and the common covariance (M, M) of p(z | x), for rows (N, D)."""
        scaled = self.loadings / self.noise[:, None]
        precision = self.loadings.T @ scaled + torch.eye(self.loadings.shape[1], dtype=torch.float64)
        covariance = torch.linalg.inv(precision)
        return (x.double() - self.mean) @ scaled @ covariance, covariance

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x, z) in nats, (...,), of x (..., D) and z (..., M)."""
        error = x.double() - self.mean - z.double() @ self.loadings.T
        log_x = -0.5 * (error.square() / self.noise + (2 * math.pi * self.noise).log()).sum(-1)
        return log_x - 0.5 * (z.double().square() + math.log(2 * math.pi)).sum(-1)

    def bound(self, x: Tensor, means: Tensor, covariances: Tensor) -> Tensor:
        r"""The evidence lower bound of \(q(z) = \mathcal{N}(m, S)\), exactly, (N,).

        Args:
            x: rows (N, D).
            means: m, (N, M).
            covariances: S, (M, M) or (N, M, M).
        """
        scaled = self.loadings / self.noise[:, None]
        expected = ((self.loadings.T @ scaled) * covariances).sum((-2, -1))  # tr(W^T psi^-1 W S)
        spread = expected + covariances.diagonal(dim1=-2, dim2=-1).sum(-1)
        entropy = 0.5 * (covariances.logdet() + means.shape[-1] * (1 + math.log(2 * math.pi)))
        return self.log_joint(x, means) - 0.5 * spread + entropy

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw n rows x, (n, D), and their latents z, (n, M), float64."""
        z = torch.randn(n, self.loadings.shape[1], generator=generator, dtype=torch.float64)
        noise = torch.randn(n, len(self.mean), generator=generator, dtype=torch.float64)
        return self.mean + z @ self.loadings.T + noise * self.noise.sqrt(), z


@check_arguments
def fit_ppca(x: Tensor, latent_dim: Size) -> LinearGaussian:
    r"""Fit probabilistic PCA by maximum likelihood, in closed form.

    \(\sigma^2\) is the mean of the D - M smallest eigenvalues of the covariance, and
    \(W = U_M (\Lambda_M - \sigma^2 I)^{1/2}\).

    Args:
        x: rows (N, D), N at least 2.
        latent_dim: M, below D.

    Raises:
        UsageError: as many latents as dimensions, or too few rows.
        DataError: a value is not finite.
        NumericsError: the D - M smallest eigenvalues are 0, so that the covariance is singular.

    Probabilistic Principal Component Analysis (Tipping and Bishop, 1999, doi:10.1111/1467-9868.00196), eq. 7 and 8.

    Example:
        >>> model = fit_ppca(torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]), 1)
        >>> model.noise.tolist(), model.covariance.diagonal().round(decimals=6).tolist()
        ([0.5, 0.5], [2.0, 0.5])
    """
    rows, mean, covariance = _second_moments(x, latent_dim)
    eigenvalues, vectors = torch.linalg.eigh(covariance)  # ascending
    kept = rows.shape[1] - latent_dim
    noise = eigenvalues[:kept].mean()
    if not noise > 1e-14 * eigenvalues[-1]:
        raise NumericsError(
            f"The covariance is singular: {latent_dim} latents explain x wholly, so the noise is 0. Lower latent_dim "
            "or leave out columns that are constant or copies of others."
        )
    loadings = vectors[:, kept:] * (eigenvalues[kept:] - noise).clamp(min=0).sqrt()
    return LinearGaussian(mean, loadings.flip(1), noise.expand(rows.shape[1]).clone())


@check_arguments
def fit_linear_gaussian(
    x: Tensor,
    latent_dim: Size,
    *,
    noise: Literal["diagonal", "isotropic"] = "diagonal",
    start: LinearGaussian | None = None,
    tolerance: Weight = 1e-8,
    max_iterations: Count = 1000,
) -> Fit[LinearGaussian]:
    """Fit factor analysis ("diagonal" noise) or probabilistic PCA ("isotropic") by EM.

    An iteration costs D^2 M whatever N is: the data enter through their covariance alone.

    Args:
        x: rows (N, D), N at least 2.
        latent_dim: M, below D.
        noise: "diagonal" (default), a variance of each dimension, or "isotropic", one for all.
        start: a model to start from; `None` (default): probabilistic PCA for "diagonal", and for "isotropic" the first
            columns of x, scaled down, so that EM has work to do.
        tolerance: the fit ends when the log-likelihood rises by no more, nats of a datum. Default 1e-8.
        max_iterations: Default 1000.

    Returns:
        The model and the log-likelihood before each iteration and at the end.

    Raises:
        UsageError, DataError, NumericsError: as for `fit_ppca`.

    EM Algorithms for ML Factor Analysis (Rubin and Thayer, 1982, doi:10.1007/BF02293851); Tipping and Bishop, 1999,
    appendix B.

    Example:
        >>> x = torch.randn(500, 1) * torch.ones(4) + torch.randn(500, 4) * torch.tensor([0.1, 0.2, 0.5, 1.0])
        >>> (fit_linear_gaussian(x, 1).model.noise.sqrt() * 10).round().tolist()
        [1.0, 2.0, 5.0, 10.0]
    """
    check_choice("noise", noise, ("diagonal", "isotropic"))
    rows, mean, covariance = _second_moments(x, latent_dim)
    dimensions, variances = rows.shape[1], covariance.diagonal()
    if not (variances > 0).all():
        constant = int((variances <= 0).nonzero()[0, 0])
        raise NumericsError(f"The covariance is singular: column {constant} of x is constant. Leave it out.")
    if start is not None:
        if start.loadings.shape != (dimensions, latent_dim):
            raise UsageError(
                f"start must have loadings of shape (D, latent_dim) = ({dimensions}, {latent_dim}); got "
                f"{tuple(start.loadings.shape)}."
            )
        model = start
    elif noise == "diagonal":
        model = fit_ppca(rows, latent_dim)
    else:
        loadings = 0.5 * covariance[:, :latent_dim] / variances[:latent_dim].sqrt()
        model = LinearGaussian(mean, loadings, variances.mean().expand(dimensions).clone())
    least, eye = 1e-10 * variances.mean(), torch.eye(latent_dim, dtype=torch.float64)
    bounds: list[Tensor] = []
    converged = False
    for iteration in range(max_iterations + 1):
        total = model.covariance
        bounds.append(
            -0.5 * (total.logdet() + torch.linalg.solve(total, covariance).trace() + dimensions * math.log(2 * math.pi))
        )
        converged = iteration > 0 and bool(bounds[-1] - bounds[-2] <= tolerance)
        if converged or iteration == max_iterations:
            break
        scaled = model.loadings / model.noise[:, None]
        spread = torch.linalg.inv(eye + model.loadings.T @ scaled)  # of the posterior
        project = spread @ scaled.T  # (M, D)
        crossed = covariance @ project.T  # E x z^T
        loadings = torch.linalg.solve(spread + project @ crossed, crossed.T).T
        left = (covariance - loadings @ crossed.T).diagonal()
        left = left.mean().expand(dimensions).clone() if noise == "isotropic" else left
        if not (left > least).all():
            raise NumericsError(
                f"The covariance has become singular: {latent_dim} latents explain column {int(left.argmin())} of x "
                "wholly (a Heywood case). Lower latent_dim."
            )
        model = LinearGaussian(mean, loadings, left)
    return Fit(model, torch.stack(bounds), converged)


def _second_moments(x: Tensor, latent_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, their mean (D,), and their covariance (D, D) with the divisor N."""
    rows = as_rows(x, least=2)
    if latent_dim >= rows.shape[1]:
        raise UsageError(f"latent_dim must be below the {rows.shape[1]} columns of x; got {latent_dim}.")
    mean = rows.mean(0)
    return rows, mean, (rows - mean).T @ (rows - mean) / len(rows)
