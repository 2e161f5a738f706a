"""TableVAE: a variational autoencoder of the encoded rows of a table."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from latentia.errors import Size, UsageError, check_arguments
from latentia.functional.checks import check_latents
from latentia.functional.distributions import reparameterize
from latentia.models.layers.mlp import dense
from latentia.models.modeling import ModelMixin
from latentia.models.outputs import UNSET


@dataclass
class TableVAEOutput(BaseOutput):
    """What an objective needs of q(z|x) and p(x|z).

    `location`: means of the numbers and logits of the categories, (B, D), or (B, K, D) of K samples of z. `mean`,
    `log_variance`: of q(z|x), (B, L). `z`: its samples, (B, L) or (B, K, L). `log_scale`: logarithm of the standard
    deviation of each number, (M,).
    """

    location: Tensor
    mean: Tensor = UNSET
    log_variance: Tensor = UNSET
    z: Tensor = UNSET
    log_scale: Tensor = UNSET


class TableVAE(ModelMixin, ConfigMixin):
    r"""A VAE of encoded rows: p(x|z) has a normal distribution for each number, and logits for each category.

    The standard deviation of each number is learned; p(z) = N(0, I), and both networks are dense.

    Args:
        in_dim: D, values of an encoded row.
        categories: sizes of the one-hot blocks at the end of a row. Default (): none.
        latent_dim: L, dimensions of z. Default 16.
        hidden_sizes: width of each dense layer of the encoder; the decoder mirrors them. Default (128, 128).
        activation: a name in `latentia.models.layers.mlp.ACTIVATIONS`. Default "silu".

    Raises:
        UsageError: numbers below 1, more categories than values, rows or latents of another width.

    TVAE: Modeling Tabular Data using Conditional GAN (Xu et al., 2019, 1907.00503), section 4.5.

    Example:
        >>> vae = TableVAE(5, categories=(3,))
        >>> out = vae(torch.randn(4, 5), torch.randn(4, 16))
        >>> out.location.shape, out.log_scale.shape
        (torch.Size([4, 5]), torch.Size([2]))
    """

    _skip_layerwise_casting_patterns: Any = ("posterior", "out")  # whose dtypes are read

    @register_to_config
    @check_arguments
    def __init__(
        self,
        in_dim: Size,
        categories: tuple[Size, ...] = (),
        latent_dim: Size = 16,
        hidden_sizes: tuple[Size, ...] = (128, 128),
        activation: str = "silu",
    ):
        super().__init__()
        if sum(categories) > in_dim:
            raise UsageError(f"categories must be blocks of a row of {in_dim} values; got {categories}.")
        way_in, way_out = (in_dim, *hidden_sizes), (latent_dim, *hidden_sizes[::-1])
        self.encoder = nn.Sequential(*dense(way_in, activation))
        self.posterior = nn.Linear(way_in[-1], 2 * latent_dim)
        self.decoder = nn.Sequential(*dense(way_out, activation))
        self.out = nn.Linear(way_out[-1], in_dim)
        self.log_scale = nn.Parameter(torch.full((in_dim - sum(categories),), -1.0))

    def encode(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x), each (B, L), of encoded rows (B, D)."""
        if rows.ndim != 2 or rows.shape[1] != self.config.in_dim:
            raise UsageError(f"rows must have shape (B, {self.config.in_dim}); got {tuple(rows.shape)}.")
        mean, log_variance = self.posterior(self.encoder(rows)).to(self.posterior.weight.dtype).chunk(2, 1)
        return mean, log_variance.clamp(-30, 20)

    def decode(self, latents: Tensor) -> Tensor:
        """Means of the numbers and logits of the categories, (B, D), of latents (B, L)."""
        check_latents(latents, self.config.latent_dim)
        return self.out(self.decoder(latents)).to(self.out.weight.dtype)

    def forward(
        self, rows: Tensor, noise: Tensor | None = None, return_dict: bool = True
    ) -> TableVAEOutput | tuple[Tensor, ...]:
        """Encode, sample z, decode.

        Args:
            rows: encoded rows, (B, D).
            noise: N(0, 1) from which z is made, (B, L), or (B, K, L) for K samples; `None` (default): the mean of q.
            return_dict: `False` returns a tuple.
        """
        mean, log_variance = self.encode(rows)
        if noise is None:
            z = mean
        else:
            several = noise.ndim == 3
            q = (mean[:, None], log_variance[:, None]) if several else (mean, log_variance)
            z = reparameterize(*q, noise.to(mean.dtype))
        flat = self.decode(z.flatten(0, -2))
        location = flat.unflatten(0, z.shape[:-1])
        out = TableVAEOutput(location, mean, log_variance, z, self.log_scale[:])
        return out if return_dict else out.to_tuple()
