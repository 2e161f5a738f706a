"""Estimators of scikit-learn over the library's autoencoder and VAE, with its networks and objectives."""

from collections.abc import Callable
from typing import Any

import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, DensityMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from latentia.errors import NumericsError, UsageError, check_range
from latentia.functional.bounds import importance_weighted_bound
from latentia.functional.distributions import log_likelihood, log_normal
from latentia.inference.mixture import GaussianMixture as Mixture
from latentia.inference.mixture import fit_mixture
from latentia.losses.reconstruction import autoencoder_loss
from latentia.losses.variational import elbo_loss
from latentia.models.autoencoder import Autoencoder
from latentia.models.vae import VAE
from latentia.rng import Rng, seed_from
from latentia.sklearn.arrays import check_components, fitting_rows, latent_rows, new_rows, seed_of


class AutoencoderEstimator(ClassNamePrefixFeaturesOutMixin, TransformerMixin, DensityMixin, BaseEstimator):
    """A `latentia.Autoencoder` of dense layers as an estimator of scikit-learn.

    Each feature is scaled to [-1, 1] over the rows that it is fitted to; one that is constant there is only shifted.

    Args:
        n_components: latents, at most the number of features. Default 1.
        hidden_sizes: widths of the dense layers, which the decoder mirrors. Default (64,).
        activation: as for `latentia.Autoencoder`. Default "silu".
        learning_rate: of Adam. Default 1e-3.
        batch_size: rows of a step. Default 128.
        max_iter: passes over the rows. Default 50.
        prior_components: Gaussians of the mixture that is fitted to the latents, from which `sample` draws. Default 1.
        random_state: of weights, the order of rows and `sample`. Default None.

    Attributes:
        network_: the `latentia.Autoencoder`, in double precision.
        n_iter_: passes over the rows.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(50, 4))
        >>> network = AutoencoderEstimator(n_components=2, max_iter=2, random_state=0).fit(X)
        >>> network.transform(X).shape, network.inverse_transform(network.transform(X)).shape, network.sample(3).shape
        ((50, 2), (50, 4), (3, 4))
    """

    def __init__(
        self,
        n_components=1,
        hidden_sizes=(64,),
        activation="silu",
        learning_rate=1e-3,
        batch_size=128,
        max_iter=50,
        prior_components=1,
        random_state=None,
    ):
        self.n_components = n_components
        self.hidden_sizes = hidden_sizes
        self.activation = activation
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.prior_components = prior_components
        self.random_state = random_state

    def fit(self, X, y=None):
        """Fit to rows (n_samples, n_features); `y` is ignored."""
        rows = fitting_rows(self, X)
        check_components(self.n_components, rows.shape[1], rows.shape[1])
        scale = _scale(rows)
        network = _train(self, rows, scale, self._build, autoencoder_loss)
        with torch.no_grad():
            latents = network.encode(_as_images(rows, scale))
        prior = fit_mixture(latents, self.prior_components, seed=seed_of(self.random_state)).model
        parts = {f"prior.{name}": getattr(prior, name) for name in ("weights", "means", "covariances")}
        self.tensors_ = {**scale, **parts, **_weights(network)}
        self.n_iter_ = self.max_iter
        return self

    @property
    def network_(self) -> Autoencoder:
        """The fitted network."""
        return _restored(self, self._build)

    def transform(self, X):
        """Latents, (n_samples, n_components)."""
        rows = new_rows(self, X)
        with torch.no_grad():
            return self.network_.encode(_as_images(rows, self.tensors_)).numpy()

    def inverse_transform(self, X):
        """Rows of latents, (n_samples, n_features)."""
        with torch.no_grad():
            decoded = self.network_.decode(latent_rows(self, X, self.n_components))
        return _as_rows(decoded, self.tensors_).numpy()

    def score_samples(self, X):
        """Minus the squared error of the reconstruction of each row, scaled, summed over features, (n_samples,)."""
        images = _as_images(new_rows(self, X), self.tensors_)
        with torch.no_grad():
            return -(self.network_(images).reconstruction - images).square().flatten(1).sum(1).numpy()

    def score(self, X, y=None):
        """Mean of `score_samples`."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples=1):
        """Draw latents of the mixture and decode them, (n_samples, n_features)."""
        check_is_fitted(self, "tensors_")
        check_range("n_samples", n_samples, 1)
        parts = {name: self.tensors_[f"prior.{name}"] for name in ("weights", "means", "covariances")}
        generator = torch.Generator().manual_seed(seed_of(self.random_state))
        return self.inverse_transform(Mixture(**parts).sample(n_samples, generator)[0].numpy())

    @property
    def _n_features_out(self):
        return self.n_components

    def _build(self) -> Autoencoder:
        return Autoencoder(
            sample_size=(1, self.n_features_in_),
            latent_dim=self.n_components,
            hidden_sizes=tuple(self.hidden_sizes),
            activation=self.activation,
        )


class VAEEstimator(ClassNamePrefixFeaturesOutMixin, TransformerMixin, DensityMixin, BaseEstimator):
    """A `latentia.VAE` of dense layers with a Gaussian decoder as an estimator of scikit-learn.

    Each feature is scaled to [-1, 1] over the rows that it is fitted to; one that is constant there is only shifted.

    Args:
        n_components: latents, at most the number of features. Default 1.
        hidden_sizes: widths of the dense layers, which the decoder mirrors. Default (64,).
        activation: as for `latentia.VAE`. Default "silu".
        beta: weight of the KL. Default 1.
        learning_rate: of Adam. Default 1e-3.
        batch_size: rows of a step. Default 128.
        max_iter: passes over the rows. Default 50.
        importance_samples: of the bound of log p(x) in `score_samples`. Default 64.
        random_state: of weights, noise, the order of rows and `sample`. Default None.

    Attributes:
        network_: the `latentia.VAE`, in double precision.
        n_iter_: passes over the rows.

    Example:
        >>> import numpy as np
        >>> X = np.random.default_rng(0).normal(size=(50, 4))
        >>> vae = VAEEstimator(n_components=2, max_iter=2, random_state=0).fit(X)
        >>> vae.transform(X).shape, vae.score_samples(X).shape, vae.sample(3).shape
        ((50, 2), (50,), (3, 4))
    """

    def __init__(
        self,
        n_components=1,
        hidden_sizes=(64,),
        activation="silu",
        beta=1.0,
        learning_rate=1e-3,
        batch_size=128,
        max_iter=50,
        importance_samples=64,
        random_state=None,
    ):
        self.n_components = n_components
        self.hidden_sizes = hidden_sizes
        self.activation = activation
        self.beta = beta
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.importance_samples = importance_samples
        self.random_state = random_state

    def fit(self, X, y=None):
        """Fit to rows (n_samples, n_features); `y` is ignored."""
        rows = fitting_rows(self, X)
        check_components(self.n_components, rows.shape[1], rows.shape[1])
        check_range("importance_samples", self.importance_samples, 1)
        scale = _scale(rows)
        network = _train(
            self, rows, scale, self._build, lambda vae, batch, rng: elbo_loss(vae, batch, rng, beta=self.beta)
        )
        self.tensors_ = {**scale, **_weights(network)}
        self.n_iter_ = self.max_iter
        return self

    @property
    def network_(self) -> VAE:
        """The fitted network."""
        return _restored(self, self._build)

    def transform(self, X):
        """Means of q(z|x), (n_samples, n_components)."""
        rows = new_rows(self, X)
        with torch.no_grad():
            return self.network_.encode(_as_images(rows, self.tensors_))[0].numpy()

    def inverse_transform(self, X):
        """Mean rows of latents, (n_samples, n_features)."""
        with torch.no_grad():
            decoded = self.network_.decode(latent_rows(self, X, self.n_components))
        return _as_rows(decoded, self.tensors_).numpy()

    def score_samples(self, X):
        """The importance weighted bound of log p(x) of each row in nats, (n_samples,); equal in every call."""
        rows = new_rows(self, X)
        images, network = _as_images(rows, self.tensors_), self.network_
        generator = torch.Generator().manual_seed(seed_from("importance samples"))
        shape = self.importance_samples, self.n_components
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)  # the same for all rows
        found = []
        with torch.no_grad():
            for x in images.split(1024):
                out = network(x, noise.expand(len(x), *shape))
                log_q = log_normal(out.z, out.mean[:, None], out.log_variance[:, None])
                log_x = log_likelihood("gaussian", x, out.location, out.log_scale)
                found.append(importance_weighted_bound(log_x + log_normal(out.z) - log_q))
        return (torch.cat(found) - self.tensors_["half_range"].log().sum()).numpy()

    def score(self, X, y=None):
        """Mean of `score_samples`."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples=1):
        """Draw rows of p(x), with the noise of the decoder, (n_samples, n_features)."""
        check_is_fitted(self, "tensors_")
        check_range("n_samples", n_samples, 1)
        generator = torch.Generator().manual_seed(seed_of(self.random_state))
        z = torch.randn(n_samples, self.n_components, generator=generator, dtype=torch.float64)
        network = self.network_
        with torch.no_grad():
            out = network(None, latents=z)
            assert out.log_scale is not None
            noise = torch.randn(out.location.shape, generator=generator, dtype=torch.float64)
            return _as_rows(out.location + out.log_scale.exp() * noise, self.tensors_).numpy()

    @property
    def _n_features_out(self):
        return self.n_components

    def _build(self) -> VAE:
        return VAE(
            sample_size=(1, self.n_features_in_),
            latent_dim=self.n_components,
            hidden_sizes=tuple(self.hidden_sizes),
            activation=self.activation,
            likelihood="gaussian",
        )


def _scale(rows: Tensor) -> dict[str, Tensor]:
    low, high = rows.amin(0), rows.amax(0)
    half = (high - low) / 2
    return {"middle": (high + low) / 2, "half_range": torch.where(half > 0, half, 1.0)}


def _as_images(rows: Tensor, scale: dict[str, Tensor]) -> Tensor:
    return ((rows - scale["middle"]) / scale["half_range"])[:, None, None]


def _as_rows(images: Tensor, scale: dict[str, Tensor]) -> Tensor:
    return images.flatten(1) * scale["half_range"] + scale["middle"]


def _weights(network: nn.Module) -> dict[str, Tensor]:
    return {f"network.{name}": value.detach().clone() for name, value in network.state_dict().items()}


def _restored(estimator: Any, build: Callable[[], Any]) -> Any:
    check_is_fitted(estimator, "tensors_")
    network = build().double()
    parts = estimator.tensors_.items()
    network.load_state_dict({name[8:]: value for name, value in parts if name.startswith("network.")})
    return network.eval()


def _train(
    estimator: Any,
    rows: Tensor,
    scale: dict[str, Tensor],
    build: Callable[[], Any],
    loss: Callable[[Any, dict[str, Tensor], Rng], dict[str, Tensor]],
) -> Any:
    """A network of `build` that minimises `loss` by Adam over `max_iter` passes, each in an order of its own."""
    for name in ("batch_size", "max_iter"):
        check_range(name, getattr(estimator, name), 1, integer=True)
    check_range("learning_rate", estimator.learning_rate, 0, closed="neither")
    if not isinstance(estimator.hidden_sizes, tuple | list):
        raise UsageError(f"hidden_sizes must be a tuple of widths, such as (64,); got {estimator.hidden_sizes!r}.")
    seed, images = seed_of(estimator.random_state), _as_images(rows, scale).clamp(-1, 1)  # beyond by rounding alone
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build().double()
    optimizer = torch.optim.Adam(network.parameters(), estimator.learning_rate)
    order, position = torch.Generator().manual_seed(seed_from(seed, "order")), 0
    for _ in range(estimator.max_iter):
        for part in torch.randperm(len(images), generator=order).split(estimator.batch_size):
            optimizer.zero_grad()
            value = loss(network, {"x": images[part]}, Rng(seed, position, len(part), 0, len(part)))["loss"]
            if not value.isfinite():
                raise NumericsError("The loss is not finite. Lower learning_rate.")
            value.backward()
            optimizer.step()
            position += len(part)
    return network.eval()
