"""Variational Bayes of a Gaussian mixture: a posterior over its parameters, and a bound of the evidence."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from latentia.errors import Count, Positive, Seed, UsageError, Weight, check_arguments, check_choice
from latentia.inference.fit import Fit
from latentia.inference.gaussians import COVARIANCES, NEGLIGIBLE, log_gaussians, moments, whitening
from latentia.inference.kmeans import kmeans
from latentia.inference.mixture import GaussianMixture, pooled_covariance, prepare


@dataclass(frozen=True)
class VariationalMixture:
    r"""The posterior \(q(\pi)\, \prod_k q(\mu_k | \Lambda_k)\, q(\Lambda_k)\) of the parameters of a mixture.

    \(q(\pi)\) is a Dirichlet distribution, \(q(\mu_k | \Lambda_k) = \mathcal{N}(m_k, (\beta_k \Lambda_k)^{-1})\), and
    \(q(\Lambda_k)\) a Wishart distribution of \(\nu_k\) degrees of freedom and scale \(S_k^{-1}\); of "diag" and
    "spherical" precisions it is \(\mathrm{Gamma}(\nu_k / 2, S_k / 2)\).

    Args:
        concentrations: of the Dirichlet distribution, (K,). Those near the prior's belong to components without data.
        means: m, (K, D).
        strengths: beta, (K,), pseudo-observations of each mean.
        degrees: nu, (K,).
        scatters: S, (K, D, D), (K, D) or (K, 1).
        covariance: "full", "diag" or "spherical".

    Example:
        >>> one, counts = torch.ones(2, 1), torch.tensor([3.0, 1.0])
        >>> q = VariationalMixture(counts, 0 * one, one[:, 0], 4 * one[:, 0], one, "diag")
        >>> q.mixture.weights.tolist(), q.mixture.covariances.flatten().tolist()
        ([0.75, 0.25], [0.25, 0.25])
    """

    concentrations: Tensor
    means: Tensor
    strengths: Tensor
    degrees: Tensor
    scatters: Tensor
    covariance: str = "full"

    @property
    def mixture(self) -> GaussianMixture:
        """The mixture of the mean weights, the mean means and the inverse mean precisions."""
        degrees = self.degrees.view(-1, *[1] * (self.scatters.ndim - 1))
        weights = self.concentrations / self.concentrations.sum()
        return GaussianMixture(weights, self.means, self.scatters / degrees, self.covariance)

    def log_rho(self, x: Tensor) -> Tensor:
        r"""\(E_q \log p(x, k | \pi, \mu, \Lambda)\), (N, K): unnormalised log-responsibilities of rows (N, D)."""
        dimensions = x.shape[1]
        white = whitening(self.scatters, self.covariance)
        scaled = white * self.degrees.sqrt().view(-1, *[1] * (white.ndim - 1))
        log_weights = self.concentrations.digamma() - self.concentrations.sum().digamma()
        constants = log_weights + 0.5 * (self.log_precision() - dimensions * math.log(2 * math.pi))
        return log_gaussians(x, self.means, scaled, constants - 0.5 * dimensions / self.strengths, NEGLIGIBLE)

    def log_precision(self) -> Tensor:
        r"""\(E_q \log |\Lambda_k|\), (K,)."""
        dimensions = self.means.shape[1]
        if self.covariance == "full":
            halves = 0.5 * (self.degrees[:, None] - torch.arange(dimensions, dtype=torch.float64))
            return halves.digamma().sum(1) + dimensions * math.log(2) - self.scatters.logdet()
        each = (0.5 * self.degrees).digamma()[:, None] - (0.5 * self.scatters).log()
        return each.expand_as(self.means).sum(1)

    def divergence(self, prior: "VariationalMixture") -> Tensor:
        """KL of this distribution from another of the same kind, the prior, in nats, ()."""
        a, a0 = self.concentrations, prior.concentrations
        dirichlet = (
            a.sum().lgamma() - a0.sum().lgamma() - a.lgamma().sum() + a0.lgamma().sum()
            + ((a - a0) * (a.digamma() - a.sum().digamma())).sum()
        )  # fmt: skip
        ratio, dimensions = prior.strengths / self.strengths, self.means.shape[1]
        white, shift = whitening(self.scatters, self.covariance), self.means - prior.means
        whitened = (shift[:, None] @ white)[:, 0] if white.ndim == 3 else shift * white
        distance = prior.strengths * self.degrees * whitened.square().sum(1)
        means = 0.5 * (dimensions * (ratio - 1 - ratio.log()) + distance)
        return dirichlet + means.sum() + self._precision_divergence(prior).sum()

    def _precision_divergence(self, prior: "VariationalMixture") -> Tensor:
        n, n0, dimensions = self.degrees, prior.degrees, self.means.shape[1]
        if self.covariance == "full":
            trace = (torch.linalg.solve(self.scatters, prior.scatters)).diagonal(dim1=1, dim2=2).sum(1)
            normaliser = _log_wishart(self.scatters, n) - _log_wishart(prior.scatters, n0)
            return normaliser + 0.5 * ((n - n0) * self.log_precision() + n * (trace - dimensions))
        a, a0, b, b0 = 0.5 * n[:, None], 0.5 * n0[:, None], 0.5 * self.scatters, 0.5 * prior.scatters
        each = (a - a0) * a.digamma() - a.lgamma() + a0.lgamma() + a0 * (b / b0).log() + a * (b0 - b) / b
        return each.sum(1)


def _log_wishart(scatters: Tensor, degrees: Tensor) -> Tensor:
    """The logarithm of the factor of a Wishart density, without the powers of pi, which cancel; (K,)."""
    dimensions = scatters.shape[1]
    halves = 0.5 * (degrees[:, None] - torch.arange(dimensions, dtype=torch.float64))
    return 0.5 * degrees * (scatters.logdet() - dimensions * math.log(2)) - halves.lgamma().sum(1)


@check_arguments
def fit_variational_mixture(
    x: Tensor,
    num_components: Count = 10,
    *,
    covariance: str = "full",
    concentration: Positive | None = None,
    mean_strength: Positive = 1.0,
    degrees: Positive | None = None,
    starts: Count = 1,
    added_variance: Weight = 1e-6,
    tolerance: Weight = 1e-4,
    max_iterations: Count = 200,
    seed: Seed = 0,
) -> Fit[VariationalMixture]:
    """Fit a Gaussian mixture by variational Bayes: coordinate ascent of a bound of the log-evidence.

    The prior is conjugate: its means are at the mean of x, and its scatter is the covariance of x. Components that the
    data do not need keep the prior, with a weight near 0, so that K may be too large.

    Args:
        x: rows (N, D), finite.
        num_components: K, at most N. Default 10.
        covariance: "full" (default), "diag" or "spherical".
        concentration: of the Dirichlet prior; small values empty components. `None` (default): 1 / K.
        mean_strength: pseudo-observations of the prior mean. Default 1.
        degrees: of freedom of the prior, more than D - 1 for "full"; `None` (default): D.
        starts: k-means++ starts of which the best is kept. Default 1.
        added_variance: added to each variance of the prior scatter, in units of the mean variance of x. Default 1e-6.
        tolerance, max_iterations, seed: as for `latentia.inference.mixture.fit_mixture`.

    Returns:
        The posterior and the bound of the log-evidence, divided by N, before each update and at the end.

    Raises:
        UsageError: more components than different rows, too few degrees of freedom, an unknown name.
        DataError: a value is not finite.
        NumericsError: a covariance is singular.

    Pattern Recognition and Machine Learning (Bishop, 2006), section 10.2; A Variational Bayesian Framework for
    Graphical Models (Attias, 1999).

    Example:
        >>> x = torch.cat([torch.randn(200, 2) - 5, torch.randn(200, 2) + 5])
        >>> fit = fit_variational_mixture(x, 5, concentration=1e-3, max_iterations=500)
        >>> int((fit.model.mixture.weights > 0.01).sum())
        2
    """
    check_choice("covariance", covariance, COVARIANCES)
    rows, shift, added = prepare(x, num_components, added_variance)
    pooled = pooled_covariance(rows, covariance, added)
    dimensions = rows.shape[1]
    if degrees is not None and covariance == "full" and not degrees > dimensions - 1:
        raise UsageError(f"degrees must be above D - 1 = {dimensions - 1} for full covariances; got {degrees}.")

    def alike(value: float) -> Tensor:
        return rows.new_full((num_components,), value)

    prior = VariationalMixture(
        alike(1 / num_components if concentration is None else concentration),
        rows.new_zeros(num_components, dimensions),
        alike(mean_strength),
        alike(dimensions if degrees is None else degrees),
        pooled.expand(num_components, *pooled.shape).clone(),
        covariance,
    )
    clusters = kmeans(rows, num_components, starts=starts, seed=seed)
    posterior = _update(rows, torch.nn.functional.one_hot(clusters.labels, num_components).double(), prior)
    bounds: list[Tensor] = []
    converged = False
    for iteration in range(max_iterations + 1):
        log_rho = posterior.log_rho(rows)
        evidence = log_rho.logsumexp(1)
        bounds.append(evidence.mean() - posterior.divergence(prior) / len(rows))
        converged = iteration > 0 and bool(bounds[-1] - bounds[-2] <= tolerance)
        if converged or iteration == max_iterations:
            break
        posterior = _update(rows, log_rho.sub_(evidence[:, None]).exp_(), prior)
    placed = VariationalMixture(**{**posterior.__dict__, "means": posterior.means + shift})
    return Fit(placed, torch.stack(bounds), converged)


def _update(x: Tensor, q: Tensor, prior: VariationalMixture) -> VariationalMixture:
    """The posterior of the parameters that maximises the bound of the responsibilities q (N, K)."""
    form = prior.covariance
    sums, means, covariances = moments(x, q, form)
    strengths = prior.strengths + sums
    shift = means - prior.means
    pull = prior.strengths * sums / strengths
    count, degrees = sums, prior.degrees + sums
    if form == "full":
        scatter = sums[:, None, None] * covariances + pull[:, None, None] * shift[:, :, None] * shift[:, None]
    else:
        scatter = sums[:, None] * covariances
        squares = pull[:, None] * shift.square()
        if form == "spherical":  # the one precision is seen by all dimensions
            count = sums * x.shape[1]
            degrees, scatter = prior.degrees + count, scatter * x.shape[1]
            squares = squares.sum(1, keepdim=True)
        scatter = scatter + squares
    centres = (prior.strengths[:, None] * prior.means + sums[:, None] * means) / strengths[:, None]
    return VariationalMixture(prior.concentrations + sums, centres, strengths, degrees, prior.scatters + scatter, form)
