"""Dense layers and activations by their names."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from latentia.errors import check_choice

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid, "none": nn.Identity,
}  # fmt: skip


def make_activation(name: str, argument: str = "activation", negative_slope: float = 0.01) -> nn.Module:
    """A new activation module by its name in `ACTIVATIONS`.

    Args:
        name: "relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid" or "none".
        argument: the argument that an error names. Default "activation".
        negative_slope: of "leaky_relu". Default 0.01, torch's; discriminators use 0.2.

    Raises:
        UsageError: an unknown name.

    Example:
        >>> make_activation("relu")
        ReLU()
    """
    check_choice(argument, name, ACTIVATIONS)
    return nn.LeakyReLU(negative_slope) if name == "leaky_relu" else ACTIVATIONS[name]()


def dense(sizes: Sequence[int], activation: str, negative_slope: float = 0.01) -> list[nn.Module]:
    """Linear layers of these sizes, each followed by its activation.

    Example:
        >>> [type(layer).__name__ for layer in dense((8, 4, 2), "tanh")]
        ['Linear', 'Tanh', 'Linear', 'Tanh']
    """
    return [
        layer
        for a, b in pairwise(sizes)
        for layer in (nn.Linear(a, b), make_activation(activation, negative_slope=negative_slope))
    ]
