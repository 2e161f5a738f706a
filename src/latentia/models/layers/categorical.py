"""Continuous and categorical latents beside each other, in place of a hierarchy of Gaussian layers."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latentia.errors import UsageError
from latentia.functional.categorical import categorical_log_prob, gumbel_softmax
from latentia.functional.distributions import log_normal, reparameterize
from latentia.models.layers.stochastic import StochasticLayer


class MixedLatents(nn.Module):
    r"""\(q(z|x) \prod_g q(k_g|x)\): a diagonal Gaussian and categorical variables, with N(0, I) and uniform priors.

    A latent vector holds the D values of z and a one-hot vector of each variable. Decoding takes the largest value of
    each variable for its category, so that N(0, I) of all of them is the prior once more: the largest of K independent
    normal numbers is any of them with equal probability.

    Args:
        continuous: D, may be 0.
        categories: number of categories of each variable.

    Learning Disentangled Joint Continuous and Discrete Representations (Dupont, 2018, 1804.00104), section 3.

    Example:
        >>> latents = MixedLatents(2, (3,))
        >>> latents.generate(torch.tensor([[0.5, -1.0, 0.1, 0.3, 0.2]]))
        tensor([[ 0.5000, -1.0000,  0.0000,  1.0000,  0.0000]])
    """

    def __init__(self, continuous: int, categories: Sequence[int]):
        super().__init__()
        self.continuous, self.categories = continuous, tuple(categories)
        self.sizes = (continuous + sum(categories),)
        self.noise_size = self.sizes[0]

    def infer(
        self, mean: Tensor, log_variance: Tensor, noise: Tensor | None = None, temperature: float = 0.0
    ) -> list[StochasticLayer]:
        """The layer of such parameters, `mean` holding the logits of the variables behind the means.

        Args:
            mean, log_variance: (B, D + K_1 + ...).
            noise: from N(0, 1), (B, D + ...) or (B, K, D + ...); `None` (default): means and likeliest categories.
            temperature: of `gumbel_softmax`. Default 0: one-hot samples.
        """
        if noise is None:
            noise = torch.zeros_like(mean)
        elif noise.ndim > mean.ndim:
            mean, log_variance = (part[:, None].expand_as(noise) for part in (mean, log_variance))
        (mu, *logits), (eps, *others) = self._parts(mean), self._parts(noise.to(mean.dtype))
        z = reparameterize(mu, log_variance[..., : self.continuous], eps)
        relaxed = [gumbel_softmax(each, n, temperature) for each, n in zip(logits, others)]
        return [StochasticLayer(mean, log_variance, torch.cat([z, *relaxed], -1))]

    def standardize(self, layers: Sequence[StochasticLayer]) -> tuple[Tensor, Tensor, Tensor]:
        """Means and logits, log-variances, and samples: those of the one layer."""
        mean, log_variance, z = layers[0]
        return mean, log_variance, z

    def generate(self, latents: Tensor) -> Tensor:
        """The decoder's input: the largest value of each variable becomes 1, the others 0."""
        z, *variables = self._parts(latents)
        return torch.cat([z, *(gumbel_softmax(each, torch.zeros_like(each), 0.0) for each in variables)], -1)

    def with_constant_posterior(self, layers: Sequence[StochasticLayer]) -> list[StochasticLayer]:
        """Not defined: the doubly reparameterised gradient is of continuous latents."""
        raise UsageError(
            'constant_posterior must be False, and gradient "standard", for a posterior that is not Gaussian; got '
            "one with categories."
        )

    def log_ratio(self, mean: Tensor, log_variance: Tensor, latents: Tensor) -> Tensor:
        """log p - log q of latents with one-hot variables, (...)."""
        (z, *variables), (mu, *logits) = self._parts(latents), self._parts(mean)
        ratio = log_normal(z) - log_normal(z, mu, log_variance[..., : self.continuous])
        for one_hot, each in zip(variables, logits):
            ratio = ratio - math.log(each.shape[-1]) - categorical_log_prob(one_hot, each)
        return ratio

    def _parts(self, values: Tensor) -> tuple[Tensor, ...]:
        return values.split((self.continuous, *self.categories), -1)
