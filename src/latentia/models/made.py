"""MADE: a masked autoencoder as an autoregressive distribution of the values of an image or a binary vector."""

import math
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor

from latentia.errors import Size, UsageError, check_arguments, check_range
from latentia.functional.pixels import from_levels
from latentia.models.layers.conditioners import ContextEmbedding, MaskedConditioner
from latentia.models.layers.conditioning import check_class_labels
from latentia.models.layers.convolution import image_size
from latentia.models.layers.raster import Pick, check_length, check_tokens, raster, unraster
from latentia.models.modeling import ModelMixin
from latentia.models.outputs import AutoregressiveOutput


class MADE(ModelMixin, ConfigMixin):
    r"""Masked autoencoder: \(p(x) = \prod_i p(x_i | x_1, ..., x_{i-1}, y)\) by dense layers with masked weights.

    One pass gives the likelihood, H W C passes a sample. The order is that of the raster.

    Args:
        sample_size: height and width in pixels, an integer or (H, W); (1, D) is a vector. Default 28.
        in_channels: channels of an image. Default 1.
        levels: K, of each value, from 2 (default), binary images, to 256, bytes.
        hidden_sizes: width of each hidden layer. Default (1000,).
        activation: a name in `latentia.models.layers.mlp.ACTIVATIONS`. Default "relu".
        num_class_embeds: number of classes that it is conditioned on; `None` (default): no labels.

    Raises:
        UsageError: numbers out of range; at the call values of another shape or range, and labels that are missing or
            not expected.

    MADE: Masked Autoencoder for Distribution Estimation (Germain et al., 2015, 1502.03509).

    Example:
        >>> network = MADE(sample_size=(1, 6), hidden_sizes=(8,))
        >>> network(torch.zeros(4, 1, 1, 6, dtype=torch.long)).logits.shape
        torch.Size([4, 1, 1, 6, 2])
    """

    _skip_layerwise_casting_patterns: Any = ("out", "context")  # whose dtypes are read

    @register_to_config
    @check_arguments
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 28,
        in_channels: Size = 1,
        levels: Size = 2,
        hidden_sizes: tuple[Size, ...] = (1000,),
        activation: str = "relu",
        num_class_embeds: Size | None = None,
    ):
        super().__init__()
        check_range("levels", levels, 2, 256)
        self.shape = (in_channels, *image_size(sample_size))
        values = check_length(self.shape)
        self.context = ContextEmbedding(num_class_embeds, None)
        self.network = MaskedConditioner(values, levels, hidden_sizes, activation, num_class_embeds is not None)

    def forward(
        self, tokens: Tensor, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> AutoregressiveOutput | tuple[Tensor]:
        """The logits of each value given those before it.

        Args:
            tokens: levels, integers in [0, K), (B, C, H, W).
            class_labels: integers in [0, num_class_embeds), (B,).
            return_dict: `False` returns a tuple.
        """
        if tuple(tokens.shape[1:]) != self.shape or not len(tokens):
            raise UsageError(
                f"tokens must have shape (B, {', '.join(map(str, self.shape))}); got {tuple(tokens.shape)}."
            )
        check_tokens(tokens, self.config.levels)
        logits = unraster(self._logits(raster(tokens), class_labels), self.shape)
        return AutoregressiveOutput(logits) if return_dict else (logits,)

    @torch.no_grad()
    def sample(
        self,
        uniform: Tensor,
        pick: Pick,
        *,
        given: Tensor | None = None,
        known: Tensor | None = None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """Draw values one after the other.

        Args:
            uniform: numbers in [0, 1), one for each value, (B, C, H, W).
            pick: logits (B, K) and the numbers of one place (B,) -> levels (B,).
            given: levels (B, C, H, W), of which the first `known` of each image are kept. Default none.
            known: integers (B,), how many in raster order. Default none.
            class_labels: as in `forward`.

        Returns:
            int64 (B, C, H, W).
        """
        numbers, start = raster(uniform), None if given is None else raster(given)
        values = torch.zeros(numbers.shape, dtype=torch.long, device=numbers.device)
        for i in range(math.prod(self.shape)):
            drawn = pick(self._logits(values, class_labels)[:, i].float(), numbers[:, i])
            if start is not None and known is not None:
                drawn = torch.where(i < known, start[:, i], drawn)
            values[:, i] = drawn
        return unraster(values, self.shape)

    def _logits(self, values: Tensor, class_labels: Tensor | None) -> Tensor:
        """(B, D, K) of values (B, D) in raster order."""
        check_class_labels(class_labels, self.config.num_class_embeds)
        x = from_levels(values, self.config.levels)
        return self.network(x, self.context(class_labels, None)).transpose(1, 2)
