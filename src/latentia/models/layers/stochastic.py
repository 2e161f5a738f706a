"""Hierarchies of latent variables: stochastic layers above one another, and latents in units of their priors."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import _register_namedtuple

from latentia.errors import UsageError
from latentia.functional.distributions import log_normal, reparameterize
from latentia.models.layers.mlp import dense

LOG_VARIANCE_RANGE = (-30.0, 20.0)  # e^-15 to e^10 as a standard deviation: finite in float32, as are all divergences


class StochasticLayer(NamedTuple):
    """q of one stochastic layer and its sample, in its own units.

    `mean`, `log_variance`: (B, D_l), or (B, K, D_l) of a layer above the first with K samples. `z`: (B, D_l) or
    (B, K, D_l).
    """

    mean: Tensor
    log_variance: Tensor
    z: Tensor


_register_namedtuple(StochasticLayer, serialized_type_name=f"{__name__}.StochasticLayer")  # for torch.export.save


class StochasticHierarchy(nn.Module):
    r"""The stochastic layers above \(z_1\): \(q(z_{l+1}|z_l)\), \(p(z_l|z_{l+1})\), diagonal Gaussians, and
    \(p(z_L) = N(0, I)\).

    A latent c holds all layers, each in units of its prior: \(c_l = (z_l - m_l(z_{l+1})) / s_l(z_{l+1})\),
    \(c_L = z_L\). It is the noise of which the priors make the layers. In these units p is N(0, I), and q, given the
    noise of the other layers, a Gaussian of mean \((\mu_l - m_l) / s_l\) and deviation \(\sigma_l / s_l\). Of one
    layer, c is z.

    Top-down, as in a ladder VAE, q runs from the topmost layer to the image: the means go up without noise, and each
    lower layer is the product of what comes up, \(N(\hat\mu_l, \hat\sigma_l^2)\), and the prior,
    \(q(z_l|z_{l+1}, x) \propto N(\hat\mu_l, \hat\sigma_l^2)\, p(z_l|z_{l+1})\).

    Args:
        sizes: dimensions of each layer, from the image upwards.
        widths: of the dense layers between each stochastic layer and the next; p mirrors q.
        activation: of these.
        top_down: whether inference is that of a ladder. Default False: bottom-up.

    Importance Weighted Autoencoders (Burda et al., 2015, 1509.00519), eq. 1 and 2; top-down: Ladder Variational
    Autoencoders (Sønderby et al., 2016, 1602.02282), eq. 16 to 18.

    Example:
        >>> hierarchy = StochasticHierarchy((3, 2), ((8,),), "tanh")
        >>> layers = hierarchy.infer(torch.zeros(5, 3), torch.zeros(5, 3), torch.randn(5, 5))
        >>> mean, log_variance, latents = hierarchy.standardize(layers)
        >>> bool(torch.allclose(hierarchy.generate(latents), layers[0].z, atol=1e-5))
        True
    """

    def __init__(self, sizes: Sequence[int], widths: Sequence[Sequence[int]], activation: str, top_down: bool = False):
        super().__init__()
        self.sizes, self.noise_size, self.top_down = tuple(sizes), sum(sizes), top_down
        paths = [(below, *between, above) for (below, above), between in zip(pairwise(sizes), widths)]
        self.posteriors = nn.ModuleList(_gaussian(path, activation) for path in paths)
        self.priors = nn.ModuleList(_gaussian(path[::-1], activation) for path in paths)

    def infer(self, mean: Tensor, log_variance: Tensor, noise: Tensor | None = None) -> list[StochasticLayer]:
        """All layers, from the image upwards, given q(z_1|x), or of a ladder what comes up to it.

        Args:
            mean, log_variance: of q(z_1|x), (B, D_1).
            noise: of all layers, (B, D) or (B, K, D); `None` (default): all at their means.
        """
        none: list[Tensor | None] = [None] * len(self.sizes)
        parts = none if noise is None else [*noise.to(mean.dtype).split(self.sizes, -1)]
        if self.top_down:
            return self._infer_top_down(mean, log_variance, parts)
        layers: list[StochasticLayer] = []
        for posterior, eps in zip([None, *self.posteriors], parts):
            if posterior is not None:
                mean, log_variance = split_parameters(posterior(layers[-1].z).to(mean.dtype))
            z = mean if eps is None else reparameterize(_beside(mean, eps), _beside(log_variance, eps), eps)
            layers.append(StochasticLayer(mean, log_variance, z))
        return layers

    def _infer_top_down(
        self, mean: Tensor, log_variance: Tensor, parts: Sequence[Tensor | None]
    ) -> list[StochasticLayer]:
        up = [(mean, log_variance)]
        for posterior in self.posteriors:
            up.append(split_parameters(posterior(up[-1][0]).to(mean.dtype)))
        layers: list[StochasticLayer] = []  # from the top
        for (mean, log_variance), prior, eps in zip(up[::-1], [None, *reversed(self.priors)], parts[::-1]):
            if prior is not None:
                m, lv = split_parameters(prior(layers[-1].z).to(mean.dtype))
                mean, log_variance = _beside(mean, m), _beside(log_variance, m)
                combined = -torch.logaddexp(-log_variance, -lv)  # precisions add up
                mean = mean * (combined - log_variance).exp() + m * (combined - lv).exp()
                log_variance = combined
            z = mean if eps is None else reparameterize(_beside(mean, eps), _beside(log_variance, eps), eps)
            layers.append(StochasticLayer(_beside(mean, z).expand_as(z), _beside(log_variance, z).expand_as(z), z))
        return layers[::-1]

    def standardize(self, layers: Sequence[StochasticLayer]) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and log-variance of q(c|x) and c, all layers side by side, (B, D) or (B, K, D)."""
        columns = []
        for layer, above, prior in zip(layers, layers[1:], self.priors):
            mean, log_variance = split_parameters(prior(above.z).to(layer.z.dtype))
            unit = (-0.5 * log_variance).exp()
            own = (_beside(layer.mean, mean) - mean) * unit, _beside(layer.log_variance, mean) - log_variance
            columns.append((*own, (layer.z - mean) * unit))
        mean, log_variance, latents = (torch.cat(parts, -1) for parts in zip(*columns, layers[-1]))
        return mean, log_variance, latents

    def generate(self, latents: Tensor) -> Tensor:
        """z_1, (B, D_1), top-down, of latents in units of the priors, (B, D)."""
        *below, z = latents.split(self.sizes, -1)
        for prior, part in zip(reversed(self.priors), reversed(below)):
            z = reparameterize(*split_parameters(prior(z).to(latents.dtype)), part)
        return z

    def log_ratio(self, mean: Tensor, log_variance: Tensor, latents: Tensor) -> Tensor:
        """log p - log q of latents in units of the priors, (...), given q of `standardize`."""
        return log_normal(latents) - log_normal(latents, mean, log_variance)

    def with_constant_posterior(self, layers: Sequence[StochasticLayer]) -> list[StochasticLayer]:
        r"""The same numbers, for \(\sum_i w_i^2 \frac{\partial \log w_i}{\partial z_i} \frac{dz_i}{d\phi}\).

        That needs the first derivative with the samples of all layers held apart and q's weights as constants, although
        log q(z_{l+1}|z_l) still depends on z_l; and the second through the chain of layers. So q's density is evaluated
        once more with constant weights, at views of the samples: what depends on z sees the views, the chain does not,
        and a hook on a view scales each layer's part once, not once more for each layer above it.
        """
        if self.top_down:
            raise UsageError(
                'gradient must be "standard" for inference="top_down"; got "doubly_reparameterised", which is of '
                "bottom-up inference."
            )
        views = [layer.z.view_as(layer.z) for layer in layers]
        parameters = [(layers[0].mean.detach(), layers[0].log_variance.detach())]
        for posterior, z in zip(self.posteriors, views):
            weights = {name: weight.detach() for name, weight in posterior.named_parameters()}
            parameters.append(split_parameters(functional_call(posterior, weights, z).to(z.dtype)))
        return [StochasticLayer(*each, z) for each, z in zip(parameters, views)]


def split_parameters(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance, kept in [-30, 20], of the output (..., 2 D) of a layer that gives both.

    Example:
        >>> split_parameters(torch.tensor([1.0, 99.0]))
        (tensor([1.]), tensor([20.]))
    """
    mean, log_variance = parameters.chunk(2, -1)
    return mean, log_variance.clamp(*LOG_VARIANCE_RANGE)


def layer_widths(
    latent_dim: int | Sequence[int] | None, hidden_sizes: Sequence
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Dimensions of each stochastic layer and widths of the dense layers below it, as a configuration gives them.

    Raises:
        UsageError: widths of another number of layers.

    Example:
        >>> layer_widths(50, (200, 200)), layer_widths((100, 50), ((200, 200), (100, 100)))
        (((50,), ((200, 200),)), ((100, 50), ((200, 200), (100, 100))))
    """
    if latent_dim is None:
        raise UsageError("latent_dim must be a number without categories; got None. Or add categories, such as (10,).")
    flat = [isinstance(widths, int) for widths in hidden_sizes]
    if isinstance(latent_dim, int):
        if all(flat):
            return (latent_dim,), (tuple(hidden_sizes),)
    elif not any(flat) and 0 < len(latent_dim) == len(hidden_sizes):
        return tuple(latent_dim), tuple(tuple(widths) for widths in hidden_sizes)
    raise UsageError(
        "hidden_sizes must be widths, as (200, 200), beside one latent_dim, and widths for each stochastic layer, as "
        f"((200, 200), (100, 100)), beside several; got {hidden_sizes} beside latent_dim={latent_dim}."
    )


def _gaussian(sizes: Sequence[int], activation: str) -> nn.Module:
    """Dense layers, the last of which gives the mean and log-variance of `sizes[-1]` dimensions."""
    return nn.Sequential(*dense(sizes[:-1], activation), nn.Linear(sizes[-2], 2 * sizes[-1]))


def _beside(parameter: Tensor, samples: Tensor) -> Tensor:
    """A parameter (B, D) beside samples (B, K, D)."""
    return parameter if parameter.ndim == samples.ndim else parameter[:, None]
