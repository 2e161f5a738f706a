"""Gaussian mixtures by expectation-maximisation, soft or hard, from k-means++ starts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from latentia.errors import Count, NumericsError, Seed, UsageError, Weight, check_arguments, check_choice
from latentia.inference.fit import Fit
from latentia.inference.gaussians import COVARIANCES, NEGLIGIBLE, as_rows, log_gaussians, moments, whitening
from latentia.inference.kmeans import check_components, kmeans

PARAMETERS = ("weights", "means", "covariances")
_EMPTY = 1e-8  # the sum of responsibilities below which a component has no data


@dataclass(frozen=True)
class GaussianMixture:
    r"""A Gaussian mixture, \(p(x) = \sum_k \pi_k\, \mathcal{N}(x; \mu_k, \Sigma_k)\), as plain tensors of float64.

    Args:
        weights: \(\pi\), (K,), which add up to 1.
        means: \(\mu\), (K, D).
        covariances: \(\Sigma\): (K, D, D), variances (K, D), or one variance of all dimensions (K, 1).
        covariance: which of them: "full" (default), "diag" or "spherical".

    Example:
        >>> mixture = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.ones(1, 1), "spherical")
        >>> mixture.log_prob(torch.zeros(1, 2)) / -math.log(2 * math.pi)
        tensor([1.], dtype=torch.float64)
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor
    covariance: str = "full"

    def __post_init__(self) -> None:
        check_choice("covariance", self.covariance, COVARIANCES)
        (count, dimensions), form = self.means.shape, self.covariance
        shape = {"full": (count, dimensions, dimensions), "diag": (count, dimensions), "spherical": (count, 1)}[form]
        for name, wanted in (("weights", (count,)), ("covariances", shape)):
            value = getattr(self, name)
            if value.shape != wanted:
                raise UsageError(f"{name} must have shape {wanted} for {form} covariances; got {tuple(value.shape)}.")
        for name in PARAMETERS:
            object.__setattr__(self, name, getattr(self, name).double())

    def log_joint(self, x: Tensor, negligible: float | None = None) -> Tensor:
        """log p(x, k), (N, K), of rows (N, D); `negligible` as for `latentia.inference.gaussians.log_gaussians`."""
        centre = self.means.mean(0)
        return replace(self, means=self.means - centre).log_joint_centred(x.double() - centre, negligible)

    def log_joint_centred(self, x: Tensor, negligible: float | None = None) -> Tensor:
        """As `log_joint`, of float64 rows whose mean is near 0, and so that of the components."""
        white = whitening(self.covariances, self.covariance)
        log_det = white.diagonal(dim1=1, dim2=2).log().sum(1) if white.ndim == 3 else white.log().expand_as(self.means)
        log_det = log_det if log_det.ndim == 1 else log_det.sum(1)
        constants = self.weights.log() + log_det - 0.5 * x.shape[1] * math.log(2 * math.pi)
        return log_gaussians(x, self.means, white, constants, negligible)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, (N,), of rows (N, D)."""
        return self.log_joint(x).logsumexp(1)

    def responsibilities(self, x: Tensor) -> Tensor:
        """p(k | x), (N, K), of rows (N, D)."""
        return self.log_joint(x).softmax(1)

    def bound(self, x: Tensor, q: Tensor) -> Tensor:
        r"""The bound \(E_q \log p(x, k) + H(q)\) of each row, (N,), for any distribution q over components, (N, K)."""
        return (q * self.log_joint(x) - torch.xlogy(q, q)).sum(1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw n rows, float64 (n, D), and their components, int64 (n,)."""
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        if self.covariance != "full":
            return self.means[k] + self.covariances[k].sqrt() * noise, k
        return self.means[k] + (torch.linalg.cholesky(self.covariances)[k] @ noise[..., None])[..., 0], k


@check_arguments
def fit_mixture(
    x: Tensor,
    num_components: Count = 10,
    *,
    covariance: str = "full",
    method: Literal["em", "hard"] = "em",
    start: GaussianMixture | None = None,
    starts: Count = 1,
    fixed: Sequence[str] = (),
    added_variance: Weight = 1e-6,
    tolerance: Weight = 1e-4,
    max_iterations: Count = 200,
    on_empty: Literal["restart", "error"] = "restart",
    seed: Seed = 0,
) -> Fit[GaussianMixture]:
    r"""Fit a Gaussian mixture by expectation-maximisation (EM).

    The E-step takes the posterior of the component, \(q(k) = p(k | x)\), which makes the bound touch the log-likelihood
    ("em"), or its mode alone ("hard": the bound is then the mean of log p(x, k)). The M-step maximises the bound. It
    never falls, up to what `added_variance` changes.

    Args:
        x: rows (N, D), finite.
        num_components: K, at most N. Default 10.
        covariance: "full" (default), "diag", or "spherical", one variance of all dimensions.
        method: "em" (default) or "hard".
        start: the mixture to start from; `None` (default): the clusters of k-means.
        starts: k-means++ starts of which the best is kept. Default 1.
        fixed: which of "weights", "means" and "covariances" stay as they are at the start. Default none.
        added_variance: added to each variance at each M-step, in units of the mean variance of x. Default 1e-6; 0 is
            the exact M-step.
        tolerance: the fit ends when the bound rises by no more, nats of a datum. Default 1e-4.
        max_iterations: M-steps at most. Default 200.
        on_empty: a component that no row belongs to is put at the row that the mixture describes worst, with the
            covariance of all rows ("restart", default), or ends the fit ("error").
        seed: of k-means. Default 0.

    Returns:
        The mixture and the bound before each M-step and at the end.

    Raises:
        UsageError: more components than different rows, a start of another kind or shape, an unknown name.
        DataError: a value is not finite.
        NumericsError: a covariance is singular, or a component is empty and `on_empty` is "error".

    Maximum Likelihood from Incomplete Data via the EM Algorithm (Dempster, Laird and Rubin, 1977,
    doi:10.1111/j.2517-6161.1977.tb01600.x); hard: Celeux and Govaert, 1992, doi:10.1016/0167-9473(92)90042-E.

    Example:
        >>> x = torch.cat([torch.randn(200, 2) - 5, torch.randn(200, 2) + 5])
        >>> fit = fit_mixture(x, 2)
        >>> sorted(fit.model.means[:, 0].round().tolist()), bool((fit.bounds.diff() > -1e-9).all())
        ([-5.0, 5.0], True)
    """
    for name in fixed:
        check_choice("fixed", name, PARAMETERS)
    check_choice("covariance", covariance, COVARIANCES)
    check_choice("method", method, ("em", "hard"))
    check_choice("on_empty", on_empty, ("restart", "error"))
    rows, shift, added = prepare(x, num_components, added_variance)
    if start is None:
        clusters = kmeans(rows, num_components, starts=starts, seed=seed)
        q = torch.nn.functional.one_hot(clusters.labels, num_components).double()
        mixture = _maximise(rows, q, covariance, added)
    else:
        if start.covariance != covariance or start.means.shape != (num_components, rows.shape[1]):
            raise UsageError(
                f"start must be a mixture of {num_components} components with {covariance} covariances over "
                f"{rows.shape[1]} dimensions; got {start.covariance} ones and means of {tuple(start.means.shape)}."
            )
        mixture = replace(start, means=start.means - shift)
    kept = {name: getattr(mixture, name) for name in fixed}
    bounds: list[Tensor] = []
    restarted: list[int] = []
    converged = False
    for iteration in range(max_iterations + 1):
        joint = mixture.log_joint_centred(rows, NEGLIGIBLE)
        values, labels = joint.max(1) if method == "hard" else (joint.logsumexp(1), None)
        bounds.append(values.mean())
        if not bounds[-1].isfinite():
            raise NumericsError(
                f"The bound is not finite after {iteration} iterations: a covariance has become singular. Raise "
                "added_variance or use fewer components."
            )
        settled = iteration not in [number + 1 for number in restarted]
        converged = iteration > 0 and settled and bool(bounds[-1] - bounds[-2] <= tolerance)
        if converged or iteration == max_iterations:
            break
        if labels is not None:
            q = torch.nn.functional.one_hot(labels, num_components).double()
        else:
            q = joint.sub_(values[:, None]).exp_()
        empty = (q.sum(0) < _EMPTY).nonzero().flatten()
        if len(empty) and on_empty == "error":
            raise NumericsError(
                f"Component {int(empty[0])} of {num_components} is empty after {iteration} iterations: no row belongs "
                'to it. Use fewer components, another seed, or on_empty="restart".'
            )
        mixture = replace(_maximise(rows, q, covariance, added), **kept)
        if len(empty):
            restarted.append(iteration)
            worst = rows[values.topk(len(empty), largest=False).indices]
            mixture = replace(_restart(mixture, empty, worst, pooled_covariance(rows, covariance, added)), **kept)
    return Fit(replace(mixture, means=mixture.means + shift), torch.stack(bounds), converged, tuple(restarted))


def prepare(x: Tensor, num_components: int, added_variance: float) -> tuple[Tensor, Tensor, float]:
    """Check and centre rows.

    Returns:
        Centred rows, their mean, and what is added to each variance.

    Raises:
        UsageError: more components than rows, or rows that are all equal.
    """
    rows = as_rows(x)
    check_components(num_components, len(rows))
    shift = rows.mean(0)
    rows = rows - shift
    mean_variance = float(rows.square().mean())
    if not mean_variance > 0:
        raise UsageError("x must have rows that differ; all of them are equal, so no density can be fitted.")
    return rows, shift, added_variance * mean_variance


def pooled_covariance(x: Tensor, covariance: str, added: float) -> Tensor:
    """The covariance of all rows, in the form of one component's, with `added` to each variance.

    Example:
        >>> pooled_covariance(torch.tensor([[-1.0], [1.0]]), "full", 0.5)
        tensor([[1.5000]])
    """
    _, _, pooled = moments(x, x.new_ones(len(x), 1), covariance)
    return _add(pooled, covariance, added)[0]


def _add(covariances: Tensor, covariance: str, added: float) -> Tensor:
    if covariance == "full":
        return covariances + added * torch.eye(
            covariances.shape[-1], dtype=covariances.dtype, device=covariances.device
        )
    return covariances + added


def _maximise(x: Tensor, q: Tensor, covariance: str, added: float) -> GaussianMixture:
    """The M-step: the mixture that maximises the bound of the responsibilities q."""
    sums, means, covariances = moments(x, q, covariance)
    return GaussianMixture(sums / sums.sum(), means, _add(covariances, covariance, added), covariance)


def _restart(mixture: GaussianMixture, empty: Tensor, places: Tensor, pooled: Tensor) -> GaussianMixture:
    """Put empty components at rows, with the covariance of all rows and the weight of an equal share."""
    weights = mixture.weights.index_fill(0, empty, 1 / len(mixture.weights))
    covariances = mixture.covariances.index_copy(0, empty, pooled.expand(len(empty), *pooled.shape))
    means = mixture.means.index_copy(0, empty, places)
    return GaussianMixture(weights / weights.sum(), means, covariances, mixture.covariance)
