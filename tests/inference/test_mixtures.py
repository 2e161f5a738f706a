"""Gaussian mixtures by EM, hard EM and variational Bayes against closed forms and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans as ReferenceKMeans
from sklearn.mixture import GaussianMixture as Reference

from latentia.errors import DataError, NumericsError, UsageError
from latentia.inference.gaussians import COVARIANCES, NEGLIGIBLE, log_gaussians, moments, whitening
from latentia.inference.kmeans import kmeans
from latentia.inference.mixture import GaussianMixture, fit_mixture
from latentia.inference.mixture_bayes import fit_variational_mixture

DOUBLE = {"dtype": torch.float64}


def clusters(n=60, count=4, dimensions=3, spread=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    parts = [
        torch.randn(n, dimensions, generator=generator, **DOUBLE)
        @ torch.randn(dimensions, dimensions, generator=generator, **DOUBLE)
        + spread * torch.randn(dimensions, generator=generator, **DOUBLE)
        for _ in range(count)
    ]
    return torch.cat(parts)


@pytest.mark.filterwarnings("ignore")  # scikit-learn says that it did not converge
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_em_equals_scikit_learn_from_the_same_start(covariance):
    x = clusters()
    start = fit_mixture(x, 4, covariance=covariance, max_iterations=1, added_variance=0).model
    precisions = (start.covariances.inverse() if covariance == "full" else 1 / start.covariances).numpy()
    reference = Reference(
        4, covariance_type=covariance, tol=0, reg_covar=0, max_iter=25, weights_init=start.weights.numpy(),
        means_init=start.means.numpy(), precisions_init=precisions[:, 0] if covariance == "spherical" else precisions,
    ).fit(x.numpy())  # fmt: skip
    fit = fit_mixture(x, 4, covariance=covariance, start=start, max_iterations=25, added_variance=0, tolerance=0)
    assert fit.iterations == 25 and start.log_prob(x).mean() < fit.bounds[-1] - 1e-3
    assert np.abs(fit.model.means.numpy() - reference.means_).max() < 1e-6
    assert np.abs(fit.model.weights.numpy() - reference.weights_).max() < 1e-6
    found = fit.model.covariances.numpy()
    assert np.abs((found[:, 0] if covariance == "spherical" else found) - reference.covariances_).max() < 1e-6
    assert np.abs(fit.model.log_prob(x).numpy() - reference.score_samples(x.numpy())).max() < 1e-6
    assert np.abs(fit.model.responsibilities(x).numpy() - reference.predict_proba(x.numpy())).max() < 1e-6


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_bounds_never_fall(covariance):
    x = clusters(seed=1)
    for method in ("em", "hard"):
        fit = fit_mixture(x, 5, covariance=covariance, method=method, added_variance=0, tolerance=0, max_iterations=60)
        assert fit.iterations >= 3 and fit.bounds.diff().min() > -1e-9
        joint = fit.model.log_joint(x)
        value = joint.amax(1).mean() if method == "hard" else joint.logsumexp(1).mean()
        assert abs(fit.bounds[-1] - value) < 1e-9
    fit = fit_variational_mixture(x, 6, covariance=covariance, tolerance=0, max_iterations=60)
    assert fit.iterations > 3 and fit.bounds.diff().min() > -1e-9


def test_the_bound_is_below_and_touches_with_equal_gradient():
    """At the responsibilities of the parameters themselves; log p = bound + KL for any others."""
    x = clusters(20)
    model = fit_mixture(x, 3, max_iterations=1).model
    means = model.means.clone().requires_grad_()
    moved = GaussianMixture(model.weights, means, model.covariances)
    q = model.responsibilities(x)
    likelihood, bound = moved.log_prob(x).sum(), moved.bound(x, q).sum()
    assert abs(likelihood - bound) < 1e-9
    gradients = [torch.autograd.grad(value, means)[0] for value in (likelihood, bound)]
    assert gradients[0].abs().max() > 0.1 and (gradients[0] - gradients[1]).abs().max() < 1e-8
    other = torch.randn(len(x), 3, generator=torch.Generator().manual_seed(0), **DOUBLE).softmax(1)
    kl = (other * (other.log() - q.log())).sum(1)
    assert kl.min() > 0 and (model.bound(x, other) + kl - model.log_prob(x)).abs().max() < 1e-8


def test_hard_em_is_k_means_in_the_spherical_limit():
    x = clusters(count=3, dimensions=2)
    centres = x[:3].clone()
    found = kmeans(x, 3, centres=centres)
    reference = ReferenceKMeans(3, init=centres.numpy(), n_init=1, tol=0).fit(x.numpy())
    assert np.abs(found.centres.numpy() - reference.cluster_centers_).max() < 1e-9
    assert abs(found.distances[-1] * len(x) - reference.inertia_) < 1e-6 and found.distances.diff().max() < 1e-9
    for method, variance in (("hard", 1.0), ("em", 1e-4)):
        weights, variances = torch.full((3,), 1 / 3), torch.full((3, 1), variance)
        start = GaussianMixture(weights, centres, variances, "spherical")
        fixed = ("weights", "covariances")
        fit = fit_mixture(x, 3, covariance="spherical", method=method, start=start, fixed=fixed, tolerance=0)
        assert (fit.model.means - found.centres).abs().max() < 1e-6
        assert (fit.model.covariances == variances).all() and (fit.model.weights == weights.double()).all()


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_bound_of_one_component_is_the_evidence(covariance):
    """q is exact then: the evidence of a normal-gamma prior has a closed form."""
    x = clusters(30)[:, :1]
    fit = fit_variational_mixture(x, 1, covariance=covariance, added_variance=0, mean_strength=2, degrees=3)
    y, n = (x - x.mean(0))[:, 0], len(x)
    a0, b0, an = 1.5, 0.5 * y.square().mean(), 1.5 + n / 2
    bn = b0 + 0.5 * y.square().sum()
    evidence = (
        math.lgamma(an) - math.lgamma(a0) + a0 * b0.log() - an * bn.log() + 0.5 * math.log(2 / (2 + n))
        - 0.5 * n * math.log(2 * math.pi)
    )  # fmt: skip
    assert abs(fit.bounds[-1] * n - evidence) < 1e-8


def test_variational_bayes_empties_components():
    x = torch.cat([clusters(100, count=1, seed=seed, spread=8.0) for seed in range(3)])
    weights = fit_variational_mixture(
        x, 8, concentration=1e-3, max_iterations=500, tolerance=1e-7
    ).model.mixture.weights
    assert (weights > 0.3).sum() == 3 and weights.topk(3).values.sum() > 0.999


def test_what_is_negligible_is_left_out_exactly():
    """The fast path of the E-step: what it computes is right, and what it leaves out does not count."""
    generator = torch.Generator().manual_seed(0)
    means = 3 * torch.randn(5, 24, generator=generator, **DOUBLE)
    roots = torch.randn(5, 24, 24, generator=generator, **DOUBLE) / 5 + torch.eye(24, **DOUBLE)
    x = torch.cat(
        [mean + torch.randn(50, 24, generator=generator, **DOUBLE) @ root for mean, root in zip(means, roots)]
    )
    white, constants = whitening(roots.mT @ roots, "full"), torch.zeros(5, **DOUBLE)
    exact = -0.5 * ((x[:, None] - means)[:, :, None] @ white).square().sum((2, 3))
    assert (log_gaussians(x, means, white, constants) - exact).abs().max() < 1e-9
    fast = log_gaussians(x, means, white, constants, NEGLIGIBLE)
    left_out = fast == -torch.inf
    assert left_out.double().mean() > 0.5 and (fast - exact)[~left_out].abs().max() < 1e-9
    assert (exact.amax(1, keepdim=True) - exact)[left_out].min() > NEGLIGIBLE
    assert (fast.logsumexp(1) - exact.logsumexp(1)).abs().max() < 1e-9
    sums, centres, covariances = moments(x, fast.softmax(1), "full")
    q = exact.softmax(1)
    wanted = torch.einsum("nk,nki,nkj->kij", q, *[x[:, None] - centres] * 2) / q.sum(0)[:, None, None]
    assert (sums - q.sum(0)).abs().max() < 1e-9 and (covariances - wanted).abs().max() < 1e-9


def test_samples_have_the_moments_of_the_mixture():
    for covariance in COVARIANCES:
        mixture = fit_mixture(clusters(), 3, covariance=covariance).model
        x, k = mixture.sample(20000, torch.Generator().manual_seed(0))
        _, means, covariances = moments(x, torch.nn.functional.one_hot(k, 3).double(), covariance)
        assert (k.bincount() / len(k) - mixture.weights).abs().max() < 0.02
        assert (means - mixture.means).abs().max() < 0.15
        assert (covariances / mixture.covariances - 1).abs().median() < 0.05


def test_an_empty_component_starts_again_elsewhere():
    x = clusters()
    far = GaussianMixture(torch.full((2,), 0.5), torch.stack([x.mean(0), x.mean(0) + 1e4]), torch.ones(2, 3), "diag")
    fit = fit_mixture(x, 2, covariance="diag", start=far)
    assert fit.restarted == (0,) and fit.model.weights.min() > 0.05 and fit.converged
    assert fit.bounds[1:].diff().min() > -1e-9
    with pytest.raises(NumericsError, match=r"Component 1 of 2 is empty after 0 iterations.*on_empty"):
        fit_mixture(x, 2, covariance="diag", start=far, on_empty="error")


X = clusters(5)
REFUSED = {
    "num_components must be at least 1; got 0": (lambda: fit_mixture(X, 0), UsageError),
    "num_components must be at most the number of rows, 20; got 21": (lambda: fit_mixture(X, 21), UsageError),
    "num_components must be at most the number of different rows, 2": (
        lambda: fit_mixture(torch.tensor([[0.0], [1.0], [0.0], [1.0]]), 3),
        UsageError,
    ),
    "1 of 20 rows hold NaN or infinity": (
        lambda: fit_mixture(torch.where(torch.arange(20)[:, None] == 4, math.nan, X), 2),
        DataError,
    ),
    "all of them are equal": (lambda: fit_mixture(torch.ones(9, 2), 1), UsageError),
    "covariance of component 0 is singular": (
        lambda: fit_mixture(torch.cat([X, X[:, :1]], 1), 1, added_variance=0),
        NumericsError,
    ),
    "a variance is 0, so it has no density": (
        lambda: fit_mixture(torch.cat([X, torch.ones(20, 1)], 1), 1, covariance="diag", added_variance=0),
        NumericsError,
    ),
    "covariance must be one of full, diag, spherical; got 'tied'": (
        lambda: fit_mixture(X, 2, covariance="tied"),
        UsageError,
    ),
    "method must be one of em, hard": (lambda: fit_mixture(X, 2, method="soft"), UsageError),
    "fixed must be one of weights, means, covariances": (lambda: fit_mixture(X, 2, fixed=("mean",)), UsageError),
    "start must be a mixture of 2 components with full covariances": (
        lambda: fit_mixture(X, 2, start=fit_mixture(X, 3).model),
        UsageError,
    ),
    "added_variance must be at least 0": (lambda: fit_mixture(X, 2, added_variance=-1.0), UsageError),
    "degrees must be above D - 1 = 2": (lambda: fit_variational_mixture(X, 2, degrees=2), UsageError),
    "concentration must be positive": (lambda: fit_variational_mixture(X, 2, concentration=0.0), UsageError),
    r"x must be a tensor \(N, D\)": (lambda: fit_mixture(X[0], 1), UsageError),
    "centres must have shape": (lambda: kmeans(X, 2, centres=X[:3]), UsageError),
    r"weights must have shape \(2,\) for full": (
        lambda: GaussianMixture(torch.ones(1), torch.zeros(2, 1), torch.ones(2, 1, 1)),
        UsageError,
    ),
}


@pytest.mark.parametrize("words", REFUSED)
def test_bad_input_is_refused_by_name(words):
    call, error = REFUSED[words]
    with pytest.raises(error, match=words):
        call()
