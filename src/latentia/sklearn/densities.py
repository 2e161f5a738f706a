"""Estimators of scikit-learn over linear-Gaussian models and Gaussian mixtures."""

from typing import Any

import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, DensityMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from latentia.errors import UsageError, check_choice
from latentia.inference.linear_gaussian import LinearGaussian, fit_linear_gaussian, fit_ppca
from latentia.inference.mixture import GaussianMixture as Mixture
from latentia.inference.mixture import fit_mixture
from latentia.inference.mixture_bayes import fit_variational_mixture
from latentia.sklearn.arrays import check_components, fitting_rows, latent_rows, new_rows, seed_of


class _LinearGaussianEstimator(ClassNamePrefixFeaturesOutMixin, TransformerMixin, DensityMixin, BaseEstimator):
    """What PPCA and factor analysis share: all but how they are fitted."""

    tensors_: dict[str, torch.Tensor]
    random_state: Any

    @property
    def model_(self) -> LinearGaussian:
        """The fitted model."""
        check_is_fitted(self, "tensors_")
        return LinearGaussian(**self.tensors_)

    def transform(self, X):
        """Posterior means of the latents, (n_samples, n_components)."""
        rows = new_rows(self, X)
        return self.model_.posterior(rows)[0].numpy()

    def inverse_transform(self, X):
        """Mean rows of latents, (n_samples, n_features)."""
        model = self.model_
        return (latent_rows(self, X, model.loadings.shape[1]) @ model.loadings.T + model.mean).numpy()

    def score_samples(self, X):
        """log p(x) of each row in nats, (n_samples,)."""
        return self.model_.log_prob(new_rows(self, X)).numpy()

    def score(self, X, y=None):
        """Mean of log p(x) in nats."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples=1):
        """Draw rows, (n_samples, n_features)."""
        return self.model_.sample(_count(n_samples), _generator(self))[0].numpy()

    def _keep(self, model: LinearGaussian) -> None:
        self.tensors_ = {"mean": model.mean, "loadings": model.loadings, "noise": model.noise}

    @property
    def _n_features_out(self):
        return self.tensors_["loadings"].shape[1]


class PPCA(_LinearGaussianEstimator):
    """Probabilistic PCA, fitted in closed form: posterior means of the latents, and a density of the rows.

    Args:
        n_components: latents, below the number of features. Default 1.
        random_state: of `sample`. Default None.

    Attributes:
        model_: a `latentia.inference.linear_gaussian.LinearGaussian`.
        n_iter_: 1.

    Raises:
        UsageError: as many latents as features; NumericsError: a singular covariance. Both are a `ValueError`.

    Tipping and Bishop, 1999, doi:10.1111/1467-9868.00196.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(50, 4))
        >>> ppca = PPCA(n_components=2).fit(X)
        >>> ppca.transform(X).shape, ppca.inverse_transform(ppca.transform(X)).shape, ppca.score_samples(X).shape
        ((50, 2), (50, 4), (50,))
    """

    def __init__(self, n_components=1, random_state=None):
        self.n_components = n_components
        self.random_state = random_state

    def fit(self, X, y=None):
        """Fit to rows (n_samples, n_features); `y` is ignored."""
        rows = fitting_rows(self, X)
        check_components(self.n_components, rows.shape[1] - 1, rows.shape[1])
        self._keep(fit_ppca(rows, self.n_components))
        self.n_iter_ = 1
        return self


class FactorAnalysis(_LinearGaussianEstimator):
    """Factor analysis by EM: as `PPCA`, with a noise variance of each feature.

    Args:
        n_components: factors, below the number of features. Default 1.
        tol: the fit ends when the log-likelihood rises by no more, nats of a row. Default 1e-6.
        max_iter: Default 1000.
        random_state: of `sample`. Default None.

    Attributes:
        model_: a `latentia.inference.linear_gaussian.LinearGaussian`.
        bounds_: the log-likelihood before each iteration and at the end.
        n_iter_: iterations of EM.

    Rubin and Thayer, 1982, doi:10.1007/BF02293851.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(50, 4))
        >>> FactorAnalysis().fit(X).transform(X).shape
        (50, 1)
    """

    def __init__(self, n_components=1, tol=1e-6, max_iter=1000, random_state=None):
        self.n_components = n_components
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X, y=None):
        """Fit to rows (n_samples, n_features); `y` is ignored."""
        rows = fitting_rows(self, X)
        check_components(self.n_components, rows.shape[1] - 1, rows.shape[1])
        fit = fit_linear_gaussian(rows, self.n_components, tolerance=self.tol, max_iterations=self.max_iter)
        self._keep(fit.model)
        self.bounds_, self.n_iter_ = fit.bounds.numpy(), fit.iterations
        return self


class GaussianMixture(ClassNamePrefixFeaturesOutMixin, TransformerMixin, DensityMixin, BaseEstimator):
    """A Gaussian mixture by EM, hard EM or variational Bayes; several times as fast as that of scikit-learn.

    Args:
        n_components: Default 1.
        covariance_type: "full" (default), "diag" or "spherical".
        method: "em" (default), "hard" or "bayes", whose means take the place of the parameters.
        n_init: k-means++ starts of which the best is kept. Default 1.
        reg_covar: added to each variance, in units of the mean variance of a feature. Default 1e-6.
        tol: the fit ends when the bound rises by no more, nats of a row. Default 1e-4.
        max_iter: Default 200.
        random_state: of k-means and of `sample`. Default None.

    Attributes:
        model_: a `latentia.inference.mixture.GaussianMixture`.
        bounds_: the bound before each iteration and at the end.
        n_iter_: iterations.

    Dempster, Laird and Rubin, 1977, doi:10.1111/j.2517-6161.1977.tb01600.x.

    Example:
        >>> import numpy as np
        >>> X = np.concatenate([np.random.default_rng(0).normal(size=(50, 2)) + shift for shift in (0, 9)])
        >>> mixture = GaussianMixture(2, random_state=0).fit(X)
        >>> mixture.transform(X).shape, len(set(mixture.predict(X)[:50]))
        ((100, 2), 1)
    """

    def __init__(
        self,
        n_components=1,
        covariance_type="full",
        method="em",
        n_init=1,
        reg_covar=1e-6,
        tol=1e-4,
        max_iter=200,
        random_state=None,
    ):
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.method = method
        self.n_init = n_init
        self.reg_covar = reg_covar
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X, y=None):
        """Fit to rows (n_samples, n_features); `y` is ignored."""
        check_choice("method", self.method, ("em", "hard", "bayes"))
        rows = fitting_rows(self, X)
        options: dict[str, Any] = {
            "covariance": self.covariance_type, "starts": self.n_init, "added_variance": self.reg_covar,
            "tolerance": self.tol, "max_iterations": self.max_iter, "seed": seed_of(self.random_state),
        }  # fmt: skip
        if self.method == "bayes":
            posterior = fit_variational_mixture(rows, self.n_components, **options)
            mixture, bounds, self.n_iter_ = posterior.model.mixture, posterior.bounds, posterior.iterations
        else:
            fit = fit_mixture(rows, self.n_components, method=self.method, **options)
            mixture, bounds, self.n_iter_ = fit.model, fit.bounds, fit.iterations
        self.bounds_ = bounds.numpy()
        self.tensors_ = {name: getattr(mixture, name) for name in ("weights", "means", "covariances")}
        return self

    @property
    def model_(self) -> Mixture:
        """The fitted mixture."""
        check_is_fitted(self, "tensors_")
        return Mixture(**self.tensors_, covariance=self.covariance_type)

    def predict_proba(self, X):
        """p(component | x), (n_samples, n_components)."""
        rows = new_rows(self, X)
        return self.model_.responsibilities(rows).numpy()

    def transform(self, X):
        """p(component | x), (n_samples, n_components)."""
        return self.predict_proba(X)

    def predict(self, X):
        """The most likely component of each row, (n_samples,)."""
        return self.predict_proba(X).argmax(1)

    def inverse_transform(self, X):
        """Means of the components, weighted by probabilities (n_samples, n_components)."""
        check_is_fitted(self, "tensors_")
        return (latent_rows(self, X, len(self.tensors_["weights"])) @ self.tensors_["means"]).numpy()

    def score_samples(self, X):
        """log p(x) of each row in nats, (n_samples,)."""
        rows = new_rows(self, X)
        return self.model_.log_prob(rows).numpy()

    def score(self, X, y=None):
        """Mean of log p(x) in nats."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples=1):
        """Draw rows (n_samples, n_features) and their components (n_samples,)."""
        x, components = self.model_.sample(_count(n_samples), _generator(self))
        return x.numpy(), components.numpy()

    @property
    def _n_features_out(self):
        return len(self.tensors_["weights"])


def _count(n_samples: int) -> int:
    if n_samples < 1:
        raise UsageError(f"n_samples must be at least 1; got {n_samples}.")
    return n_samples


def _generator(estimator: Any) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(estimator.random_state))
