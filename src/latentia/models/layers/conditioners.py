"""Conditioners of flows: networks from known values and a context to the parameters of the transforms of others."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentia.models.layers.mlp import make_activation

CONTEXT_WIDTH = 64  # of the embedding of a class or a vector


def _start_at_zero(layer: nn.Module) -> None:
    """Set all weights of a layer to 0: a flow starts at the identity, of which every log-determinant is finite."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _make_activation(name: str) -> nn.Module:
    """An activation that overwrites its input where its gradient needs the result alone: no memory is touched twice."""
    activation = make_activation(name)
    if isinstance(activation, nn.ReLU):
        activation.inplace = True
    return activation


class DenseConditioner(nn.Module):
    """Dense layers from known values and context to the parameters of transforms; 0 at the start.

    Args:
        inputs: known values.
        outputs: parameters.
        hidden_sizes: width of each hidden layer.
        activation: a name in `latentia.models.layers.mlp.ACTIVATIONS`.
        has_context: whether it takes a context.

    Example:
        >>> DenseConditioner(2, 3, (8,), "silu", False)(torch.zeros(4, 2), None).shape
        torch.Size([4, 3])
    """

    def __init__(self, inputs: int, outputs: int, hidden_sizes: Sequence[int], activation: str, has_context: bool):
        super().__init__()
        sizes = (inputs + CONTEXT_WIDTH * has_context, *hidden_sizes)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.activation = _make_activation(activation)
        self.out = nn.Linear(sizes[-1], outputs)
        _start_at_zero(self.out)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        h = x.to(self.out.weight.dtype)
        h = h if context is None else torch.cat([h, context.to(h.dtype)], 1)
        for layer in self.layers:
            h = self.activation(layer(h))
        return self.out(h)


class ConvConditioner(nn.Module):
    """Convolutions (3x3, 1x1 ..., 3x3) from known channels and context to the parameters of transforms; 0 at the start.

    Args:
        inputs: known channels.
        outputs: parameters at each place.
        hidden_sizes: channels after the first convolution and after each 1x1 one; `()`: one 3x3 convolution alone.
        activation: a name in `latentia.models.layers.mlp.ACTIVATIONS`.
        has_context: whether it takes a context, which is added to the first hidden layer, or to the known channels.

    Glow (Kingma and Dhariwal, 2018, 1807.03039), section 5.1.

    Example:
        >>> ConvConditioner(2, 3, (8, 8), "relu", False)(torch.zeros(4, 2, 6, 6), None).shape
        torch.Size([4, 3, 6, 6])
    """

    def __init__(self, inputs: int, outputs: int, hidden_sizes: Sequence[int], activation: str, has_context: bool):
        super().__init__()
        sizes = (inputs, *hidden_sizes)
        kernels = [3, *[1] * (len(sizes) - 2)]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, k, padding=k // 2) for (a, b), k in zip(pairwise(sizes), kernels))
        self.activation = _make_activation(activation)
        self.context = nn.Linear(CONTEXT_WIDTH, sizes[min(1, len(hidden_sizes))]) if has_context else None
        self.out = nn.Conv2d(sizes[-1], outputs, 3, padding=1)
        _start_at_zero(self.out)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        h = x.to(self.out.weight.dtype)
        for i, layer in enumerate(self.layers):
            h = layer(h)
            h = self.activation(self._with_context(h, context) if i == 0 else h)
        return self.out(h if self.layers else self._with_context(h, context))

    def _with_context(self, h: Tensor, context: Tensor | None) -> Tensor:
        if self.context is None or context is None:
            return h
        return h + self.context(context.to(h.dtype))[:, :, None, None]


class MaskedLinear(nn.Linear):
    """A linear layer in which an output sees only inputs of a lower (or, between hidden layers, equal) degree.

    Args:
        in_degrees, out_degrees: of each input and output.
        strict: whether an input must have a lower degree. Default False.

    MADE (Germain et al., 2015, 1502.03509), eq. 8 and 9.

    Example:
        >>> MaskedLinear([1, 2], [1], strict=True).mask
        tensor([[False, False]])
    """

    mask: Tensor

    def __init__(self, in_degrees: Sequence[int], out_degrees: Sequence[int], strict: bool = False):
        super().__init__(len(in_degrees), len(out_degrees))
        given, seen = torch.tensor([*out_degrees])[:, None], torch.tensor([*in_degrees])[None]
        self.register_buffer("mask", given > seen if strict else given >= seen)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class MaskedConditioner(nn.Module):
    """A masked autoregressive network: the parameters of each value depend on the values before it alone.

    Args:
        features: D.
        parameters_per_value: P.
        hidden_sizes: width of each hidden layer.
        activation: a name in `latentia.models.layers.mlp.ACTIVATIONS`.
        has_context: whether it takes a context, which all parameters depend on.

    MADE (Germain et al., 2015, 1502.03509), section 4.

    Example:
        >>> MaskedConditioner(3, 2, (8,), "relu", False)(torch.zeros(4, 3), None).shape
        torch.Size([4, 2, 3])
    """

    def __init__(
        self, features: int, parameters_per_value: int, hidden_sizes: Sequence[int], activation: str, has_context: bool
    ):
        super().__init__()
        inputs = [*range(1, features + 1)]
        degrees = [*inputs, *[0] * (CONTEXT_WIDTH * has_context)]
        lowest = 0 if has_context or features == 1 else 1
        highest = max(features - 1, lowest)
        layers: list[nn.Module] = []
        for width in hidden_sizes:
            hidden = [lowest + i % (highest - lowest + 1) for i in range(width)]
            layers += [MaskedLinear(degrees, hidden), _make_activation(activation)]
            degrees = hidden
        self.hidden = nn.Sequential(*layers)
        self.out = MaskedLinear(degrees, inputs * parameters_per_value, strict=True)
        self.parameters_per_value = parameters_per_value
        _start_at_zero(self.out)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        h = x.to(self.out.weight.dtype)
        h = h if context is None else torch.cat([h, context.to(h.dtype)], 1)
        return self.out(self.hidden(h)).unflatten(1, (self.parameters_per_value, -1))


class ContextEmbedding(nn.Module):
    """The embedding of a class and of a vector that a flow is conditioned on, summed; (B, `CONTEXT_WIDTH`).

    Args:
        num_class_embeds: number of classes; `None`: no labels.
        context_dim: values of the vector; `None`: no vector.

    Example:
        >>> ContextEmbedding(10, 3)(torch.tensor([4]), torch.zeros(1, 3)).shape
        torch.Size([1, 64])
    """

    def __init__(self, num_class_embeds: int | None, context_dim: int | None):
        super().__init__()
        self.class_embedding = None if num_class_embeds is None else nn.Embedding(num_class_embeds, CONTEXT_WIDTH)
        self.projection = None if context_dim is None else nn.Linear(context_dim, CONTEXT_WIDTH)

    def forward(self, class_labels: Tensor | None, context: Tensor | None) -> Tensor | None:
        parts = []
        if self.class_embedding is not None and class_labels is not None:
            parts.append(self.class_embedding(class_labels))
        if self.projection is not None and context is not None:
            parts.append(self.projection(context.to(self.projection.weight.dtype)))
        return sum(parts[1:], parts[0]) if parts else None
