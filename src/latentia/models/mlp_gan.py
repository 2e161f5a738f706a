"""Generator and discriminator of points: dense layers."""

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from latentia.errors import Size, UsageError, check_arguments, check_choice
from latentia.functional.checks import check_latents
from latentia.functional.tabular import relax_row
from latentia.models.layers.conditioning import ConditionEmbedding
from latentia.models.layers.discriminator import (
    LEAKY_SLOPE,
    DiscriminatorHead,
    MinibatchStd,
    check_groups,
    pack_samples,
)
from latentia.models.layers.mlp import dense
from latentia.models.layers.norm import add_spectral_norm
from latentia.models.modeling import ModelMixin
from latentia.models.outputs import DiscriminatorOutput, GeneratorOutput


class MLPGenerator(ModelMixin, ConfigMixin):
    """A generator of points from noise: dense layers, the last linear. With `hidden_sizes=()` it is an affine map.

    Args:
        latent_dim: dimensions of the noise. Default 2.
        out_dim: dimensions D of a point. Default 2.
        hidden_sizes: width of each hidden layer. Default (8,), GAN Lab's (Kahng et al., 2018, 1809.01587).
        activation: a name in `models.layers.convolution.ACTIVATIONS`. Default "relu".
        num_class_embeds: number of classes of the condition; `None` (default): no labels.
        categories: sizes of blocks at the end of a point that are probabilities, as of the rows of a table, see
            `latentia.functional.tabular`. Default (): none.

    Raises:
        UsageError: numbers below 1, an unknown name; labels that are missing or not expected, noise of another width.

    Example:
        >>> import torch
        >>> MLPGenerator(latent_dim=2, out_dim=2)(torch.randn(5, 2)).sample.shape
        torch.Size([5, 2])
    """

    @register_to_config
    @check_arguments
    def __init__(
        self,
        latent_dim: Size = 2,
        out_dim: Size = 2,
        hidden_sizes: tuple[Size, ...] = (8,),
        activation: str = "relu",
        num_class_embeds: Size | None = None,
        categories: tuple[Size, ...] = (),
    ):
        super().__init__()
        if sum(categories) > out_dim:
            raise UsageError(f"categories must be blocks of a point of {out_dim} values; got {categories}.")
        self.condition = ConditionEmbedding(num_class_embeds, None)
        sizes = (latent_dim + self.condition.width, *hidden_sizes)
        self.layers = nn.Sequential(*dense(sizes, activation, LEAKY_SLOPE))
        self.out = nn.Linear(sizes[-1], out_dim)

    def forward(
        self,
        latents: Tensor,
        class_labels: Tensor | None = None,
        text_embeds: Tensor | None = None,
        return_dict: bool = True,
    ) -> GeneratorOutput | tuple[Tensor]:
        """Points (B, out_dim) of noise (B, latent_dim), and labels (B,) if it has classes; it takes no captions."""
        check_latents(latents, self.config.latent_dim)
        condition = self.condition(class_labels, text_embeds)
        x = latents if condition is None else torch.cat([latents, condition.to(latents.dtype)], 1)
        sample = relax_row(self.out(self.layers(x)), self.config.categories)
        return GeneratorOutput(sample) if return_dict else (sample,)

    def decode(self, latents: Tensor, class_labels: Tensor | None = None, text_embeds: Tensor | None = None) -> Tensor:
        """The points alone."""
        return self(latents, class_labels, text_embeds).sample


class MLPDiscriminator(ModelMixin, ConfigMixin):
    """A discriminator of points, one logit each: dense layers.

    Args:
        in_dim: dimensions D of a point. Default 2.
        hidden_sizes: width of each hidden layer. Default (8,).
        activation: "leaky_relu" (default, slope 0.2) or another name in `latentia.models.layers.mlp.ACTIVATIONS`.
        norm: "none" (default) or "spectral".
        minibatch_std, pack, num_timesteps, num_class_embeds: as for `DCGANDiscriminator`.

    Raises:
        UsageError: numbers below 1, an unknown name; labels that are missing or not expected, points of another width,
            a batch that groups or packs do not divide.

    Example:
        >>> import torch
        >>> MLPDiscriminator(pack=2)(torch.randn(6, 2)).logits.shape
        torch.Size([3])
    """

    _skip_layerwise_casting_patterns: Any = ("to_logit",)  # whose weight is read

    @register_to_config
    @check_arguments
    def __init__(
        self,
        in_dim: Size = 2,
        hidden_sizes: tuple[Size, ...] = (8,),
        activation: str = "leaky_relu",
        norm: str = "none",
        minibatch_std: int | None = None,
        pack: Size = 1,
        num_timesteps: Size | None = None,
        num_class_embeds: Size | None = None,
    ):
        super().__init__()
        check_choice("norm", norm, ("spectral", "none"))
        check_groups(pack, minibatch_std, num_class_embeds)
        sizes = (in_dim * pack, *hidden_sizes)
        self.layers = nn.Sequential(*dense(sizes, activation, LEAKY_SLOPE))
        self.minibatch_std = MinibatchStd(minibatch_std) if minibatch_std else nn.Identity()
        self.head = DiscriminatorHead(sizes[-1] + bool(minibatch_std), num_class_embeds, num_timesteps=num_timesteps)
        if norm == "spectral":
            add_spectral_norm(self)

    def forward(
        self,
        sample: Tensor,
        class_labels: Tensor | None = None,
        text_embeds: Tensor | None = None,
        return_dict: bool = True,
        timesteps: Tensor | None = None,
    ) -> DiscriminatorOutput | tuple[Any, ...]:
        """Logits of points (B, in_dim), with labels and times (B,) as in `DCGANDiscriminator`; no captions."""
        if sample.ndim != 2 or sample.shape[1] != self.config.in_dim:
            raise UsageError(f"sample must be points (B, {self.config.in_dim}); got {tuple(sample.shape)}.")
        x = self.layers(pack_samples(sample, self.config.pack))
        times = None if timesteps is None else timesteps[:: self.config.pack]
        out = self.head(self.minibatch_std(x), class_labels, text_embeds, times)
        return out if return_dict else out.to_tuple()
