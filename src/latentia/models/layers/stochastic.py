"""Stochastic layers above one another: what lies over the first code of a picture, and codes in units of the prior."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from latentia.errors import UsageError
from latentia.functional.distributions import reparameterize
from latentia.models.layers.convolution import activation_of

LOG_VARIANCE_RANGE = (-30.0, 20.0)  # e^-15 to e^10 as a standard deviation: finite in float32, as are all divergences


class Level(NamedTuple):
    """q of one stochastic layer and its sample, in its own units.

    `mean`, `log_variance`: (B, D_l), or (B, K, D_l) of a level above the first with K samples. `z`: (B, D_l) or
    (B, K, D_l).
    """

    mean: Tensor
    log_variance: Tensor
    z: Tensor


class Levels(nn.Module):
    r"""The levels above \(z_1\): \(q(z_{l+1}|z_l)\), \(p(z_l|z_{l+1})\), diagonal Gaussians, and \(p(z_L) = N(0, I)\).

    A code c holds all levels, each in units of its prior: \(c_l = (z_l - m_l(z_{l+1})) / s_l(z_{l+1})\), \(c_L = z_L\).
    It is the noise of which the priors make the levels. In these units p is N(0, I), and q, given the noise of the
    other levels, a Gaussian of mean \((\mu_l - m_l) / s_l\) and deviation \(\sigma_l / s_l\). Of one level, c is z.

    Args:
        sizes: dimensions of each level, from the picture upwards.
        widths: of the dense layers between each level and the next; p mirrors q.
        activation: of these.

    Importance Weighted Autoencoders (Burda et al., 2015, 1509.00519), eq. 1 and 2.

    Example:
        >>> levels = Levels((3, 2), ((8,),), "tanh")
        >>> found = levels.climb(torch.zeros(5, 3), torch.zeros(5, 3), torch.randn(5, 5))
        >>> mean, log_variance, code = levels.standardised(found)
        >>> bool(torch.allclose(levels.descend(code), found[0].z, atol=1e-5))
        True
    """

    def __init__(self, sizes: Sequence[int], widths: Sequence[Sequence[int]], activation: str):
        super().__init__()
        self.sizes = tuple(sizes)
        paths = [(below, *between, above) for (below, above), between in zip(pairwise(sizes), widths)]
        self.posteriors = nn.ModuleList(_gaussian(path, activation) for path in paths)
        self.priors = nn.ModuleList(_gaussian(path[::-1], activation) for path in paths)

    def climb(self, mean: Tensor, log_variance: Tensor, noise: Tensor | None = None) -> list[Level]:
        """All levels, from q(z_1|x), (B, D_1), and noise, (B, D) or (B, K, D); `None` (default): all at their means."""
        parts = [None] * len(self.sizes) if noise is None else noise.to(mean.dtype).split(self.sizes, -1)
        levels: list[Level] = []
        for posterior, eps in zip([None, *self.posteriors], parts):
            if posterior is not None:
                mean, log_variance = parameters_of(posterior(levels[-1].z).to(mean.dtype))
            z = mean if eps is None else reparameterize(_beside(mean, eps), _beside(log_variance, eps), eps)
            levels.append(Level(mean, log_variance, z))
        return levels

    def standardised(self, levels: Sequence[Level]) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and log-variance of q(c|x) and c, all levels side by side."""
        columns = []
        for level, above, prior in zip(levels, levels[1:], self.priors):
            mean, log_variance = parameters_of(prior(above.z).to(level.z.dtype))
            unit = (-0.5 * log_variance).exp()
            own = (_beside(level.mean, mean) - mean) * unit, _beside(level.log_variance, mean) - log_variance
            columns.append((*own, (level.z - mean) * unit))
        mean, log_variance, code = (torch.cat(parts, -1) for parts in zip(*columns, levels[-1]))
        return mean, log_variance, code

    def descend(self, code: Tensor) -> Tensor:
        """z_1, (B, D_1), of a code (B, D)."""
        *below, z = code.split(self.sizes, -1)
        for prior, part in zip(reversed(self.priors), reversed(below)):
            z = reparameterize(*parameters_of(prior(z).to(code.dtype)), part)
        return z

    def with_constant_posterior(self, levels: Sequence[Level]) -> list[Level]:
        r"""The same numbers, for \(\sum_i w_i^2 \frac{\partial \log w_i}{\partial z_i} \frac{dz_i}{d\phi}\).

        That needs the first derivative with the samples of all levels held apart and q's weights as constants, although
        log q(z_{l+1}|z_l) still depends on z_l; and the second through the chain of levels. So q's density is evaluated
        once more with constant weights, at views of the samples: what depends on z sees the views, the chain does not,
        and a hook on a view scales each level's part once, not once more for each level above it.
        """
        views = [level.z.view_as(level.z) for level in levels]
        parameters = [(levels[0].mean.detach(), levels[0].log_variance.detach())]
        for posterior, z in zip(self.posteriors, views):
            weights = {name: weight.detach() for name, weight in posterior.named_parameters()}
            parameters.append(parameters_of(functional_call(posterior, weights, z).to(z.dtype)))
        return [Level(*each, z) for each, z in zip(parameters, views)]


def parameters_of(found: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance, kept in [-30, 20], of what the heads of a Gaussian found."""
    mean, log_variance = found.chunk(2, -1)
    return mean, log_variance.clamp(*LOG_VARIANCE_RANGE)


def level_widths(
    latent_dim: int | Sequence[int], hidden_sizes: Sequence
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Dimensions of each level and widths of the dense layers below it, of what a configuration says.

    Raises:
        UsageError: widths of another number of levels.

    Example:
        >>> level_widths(50, (200, 200)), level_widths((100, 50), ((200, 200), (100, 100)))
        (((50,), ((200, 200),)), ((100, 50), ((200, 200), (100, 100))))
    """
    flat = [isinstance(widths, int) for widths in hidden_sizes]
    if isinstance(latent_dim, int) and all(flat):
        return (latent_dim,), (tuple(hidden_sizes),)
    if isinstance(latent_dim, int) or any(flat) or not 0 < len(latent_dim) == len(hidden_sizes):
        raise UsageError(
            "hidden_sizes must be widths, as (200, 200), beside one latent_dim, and widths for each level, as "
            f"((200, 200), (100, 100)), beside several; got {hidden_sizes} beside latent_dim={latent_dim}."
        )
    return tuple(latent_dim), tuple(tuple(widths) for widths in hidden_sizes)


def dense(sizes: Sequence[int], activation: str) -> list[nn.Module]:
    """Linear layers of these sizes, each followed by its activation."""
    return [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), activation_of(activation))]


def _gaussian(sizes: Sequence[int], activation: str) -> nn.Module:
    """Dense layers, and the two heads of a Gaussian of `sizes[-1]` dimensions."""
    return nn.Sequential(*dense(sizes[:-1], activation), nn.Linear(sizes[-2], 2 * sizes[-1]))


def _beside(parameter: Tensor, samples: Tensor) -> Tensor:
    """A parameter (B, D) beside samples (B, K, D)."""
    return parameter if parameter.ndim == samples.ndim else parameter[:, None]
