"""Gamma latents, in place of a hierarchy of Gaussian layers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from latentia.errors import UsageError
from latentia.functional.gamma import (
    NOISE,
    exponential_scores,
    from_exponential_scores,
    gamma_log_prob,
    gamma_parameters,
    gamma_sample,
)
from latentia.models.layers.stochastic import StochasticLayer


class GammaLatents(nn.Module):
    r"""\(q(z|x) = \prod_j \mathrm{Gamma}(z_j; \alpha_j, \beta_j)\), with the prior Gamma(1, 1), the exponential one.

    A latent vector holds normal scores, see `latentia.functional.gamma.exponential_scores`, so that its prior is
    N(0, I) as everywhere; the decoder sees z itself, which is positive.

    Args:
        size: D.

    Naesseth et al., 2017, 1610.05683, section 6.

    Example:
        >>> latents = GammaLatents(3)
        >>> layers = latents.infer(torch.zeros(2, 3), torch.zeros(2, 3), torch.randn(2, latents.noise_size))
        >>> bool((layers[0].z > 0).all())
        True
    """

    def __init__(self, size: int):
        super().__init__()
        self.sizes, self.noise_size = (size,), NOISE * size

    def infer(self, mean: Tensor, log_variance: Tensor, noise: Tensor | None = None) -> list[StochasticLayer]:
        """The layer of such parameters, raw shapes and logarithms of rates (B, D); z is the mean without noise.

        Args:
            mean, log_variance: (B, D), see `latentia.functional.gamma.gamma_parameters`.
            noise: from N(0, 1), (B, NOISE D) or (B, K, NOISE D); `None` (default): means.
        """
        if noise is None:
            shape, rate = gamma_parameters(mean, log_variance)
            return [StochasticLayer(mean, log_variance, shape / rate)]
        if noise.ndim > mean.ndim:
            mean, log_variance = (part[:, None].expand(*noise.shape[:2], -1) for part in (mean, log_variance))
        shape, rate = gamma_parameters(mean, log_variance)
        return [StochasticLayer(mean, log_variance, self._sample(shape, noise)[0].to(mean.dtype) / rate)]

    def correction(self, mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
        """What corrects the gradient of a sample, (B,) or (B, K): see `latentia.functional.gamma.gamma_sample`."""
        shape, _ = gamma_parameters(mean, log_variance)
        return self._sample(shape if shape.ndim == noise.ndim else shape[:, None], noise)[1].sum(-1)

    def standardize(self, layers: Sequence[StochasticLayer]) -> tuple[Tensor, Tensor, Tensor]:
        """Parameters, and latents as normal scores."""
        mean, log_variance, z = layers[0]
        return mean, log_variance, exponential_scores(z)

    def generate(self, latents: Tensor) -> Tensor:
        """z of normal scores."""
        return from_exponential_scores(latents)

    def with_constant_posterior(self, layers: Sequence[StochasticLayer]) -> list[StochasticLayer]:
        """Not defined: the doubly reparameterised gradient is of Gaussian latents."""
        raise UsageError(
            'constant_posterior must be False, and gradient "standard", for a posterior that is not Gaussian; got '
            "a gamma one."
        )

    def log_ratio(self, mean: Tensor, log_variance: Tensor, latents: Tensor) -> Tensor:
        """log p - log q of latents, (...)."""
        z = self.generate(latents)
        return -(z + gamma_log_prob(z, *gamma_parameters(mean, log_variance))).sum(-1)

    def _sample(self, shape: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(shape.dtype, torch.float32)
        return gamma_sample(shape.to(wide), noise.to(wide).unflatten(-1, (NOISE, -1)))
