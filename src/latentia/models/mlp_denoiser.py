"""MLPDenoiser: the network of a diffusion model of vectors, such as the encoded rows of a table."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from latentia.errors import Size, UsageError, check_arguments
from latentia.models.layers.conditioning import ConditionEmbedding, sinusoidal_embedding
from latentia.models.layers.mlp import dense
from latentia.models.modeling import ModelMixin


@dataclass
class MLPDenoiserOutput(BaseOutput):
    """`sample`: the scheduler's `prediction_type` of the numbers, and logits of the clean categories, (B, D)."""

    sample: Tensor


class MLPDenoiser(ModelMixin, ConfigMixin):
    """A denoiser of vectors: dense layers, to whose input embeddings of the time and of a label are added.

    Args:
        in_dim: D, values of a vector.
        categories: sizes of the one-hot blocks at the end of a vector, of which it gives logits. Default (): none.
        hidden_sizes: width of each hidden layer, at least one. Default (256, 256, 256).
        time_dim: width of the encoding of time, even. Default 64.
        activation: a name in `latentia.models.layers.mlp.ACTIVATIONS`. Default "silu".
        num_class_embeds: number of classes of the condition; `None` (default): no labels.

    Raises:
        UsageError: numbers out of range, more categories than values, vectors of another width, labels that are missing
            or not expected.

    TabDDPM: Modelling Tabular Data with Diffusion Models (Kotelnikov et al., 2023, 2209.15421), section 3.

    Example:
        >>> MLPDenoiser(5, categories=(3,))(torch.randn(4, 5), torch.tensor([0, 1, 2, 3])).sample.shape
        torch.Size([4, 5])
    """

    _skip_layerwise_casting_patterns: Any = ("out",)  # whose dtype is read

    @register_to_config
    @check_arguments
    def __init__(
        self,
        in_dim: Size,
        categories: tuple[Size, ...] = (),
        hidden_sizes: tuple[Size, ...] = (256, 256, 256),
        time_dim: Size = 64,
        activation: str = "silu",
        num_class_embeds: Size | None = None,
    ):
        super().__init__()
        if sum(categories) > in_dim:
            raise UsageError(f"categories must be blocks of a vector of {in_dim} values; got {categories}.")
        if not hidden_sizes or time_dim % 2:
            raise UsageError(
                f"hidden_sizes must hold at least one and time_dim be even; got {hidden_sizes} and {time_dim}."
            )
        self.condition = ConditionEmbedding(num_class_embeds, None)
        width = hidden_sizes[0]
        self.time_embedding = nn.Sequential(*dense((time_dim, width), activation), nn.Linear(width, width))
        self.input = nn.Linear(in_dim + self.condition.width, width)
        self.layers = nn.Sequential(*dense((width, *hidden_sizes), activation))
        self.out = nn.Linear(hidden_sizes[-1], in_dim)

    def forward(
        self, sample: Tensor, timestep: Tensor | int, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> MLPDenoiserOutput | tuple[Tensor]:
        """The prediction (B, D) at noisy vectors (B, D).

        Args:
            sample: noisy numbers and one-hot noisy categories.
            timestep: (B,) or a number.
            class_labels: integers in [0, num_class_embeds), (B,).
            return_dict: `False` returns a tuple.
        """
        if sample.ndim != 2 or sample.shape[1] != self.config.in_dim:
            raise UsageError(f"sample must have shape (B, {self.config.in_dim}); got {tuple(sample.shape)}.")
        times = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
        condition = self.condition(class_labels, None)
        x = sample if condition is None else torch.cat([sample, condition.to(sample.dtype)], 1)
        embedding = sinusoidal_embedding(times, self.config.time_dim).to(sample.dtype)
        h = self.layers(self.input(x) + self.time_embedding(embedding))
        out = self.out(h).to(self.out.weight.dtype)
        return MLPDenoiserOutput(out) if return_dict else (out,)
