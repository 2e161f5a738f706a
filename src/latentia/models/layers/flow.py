"""Layers of normalizing flows: each maps forwards and backwards and gives its log-determinant."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentia.errors import UsageError
from latentia.functional.flows import MIN_SLOPE, affine, logit, rational_quadratic_spline, soft_clip
from latentia.functional.precision import full_precision
from latentia.models.layers.conditioners import ConvConditioner, DenseConditioner, MaskedConditioner

LOG_SCALE_BOUND = 3.0  # of one affine transform, see `soft_clip`
Kind = Literal["additive", "affine", "spline"]
_SLOPE_ONE = math.log(math.expm1(1 - MIN_SLOPE))  # added to the slopes of a spline: of parameters 0 it is the identity


def summed(log_derivative: Tensor) -> Tensor:
    """The log-determinant (B,) of the log-derivatives of all values.

    Example:
        >>> summed(torch.ones(2, 3, 4))
        tensor([12., 12.])
    """
    return log_derivative.flatten(1).sum(1)


class FlowLayer(nn.Module):
    """An invertible layer: `forward(x, context, inverse)` gives the other side and its log-determinant (B,)."""

    def forward(self, x: Tensor, context: Tensor | None = None, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """Map forwards, from data to latents, or backwards.

        Args:
            x: (B, D) or (B, C, H, W).
            context: embedding of the condition, (B, 64); `None` (default): none.
            inverse: whether to map from latents to data. Default False.
        """
        raise NotImplementedError


class Transform(nn.Module):
    """The transform of each value by parameters that a network gives: additive, affine or a spline.

    Args:
        kind: "additive", "affine" or "spline".
        bins: of the spline.
        tail_bound: beyond which the spline is the identity.

    Example:
        >>> transform = Transform("affine", 8, 3.0)
        >>> transform.parameters_per_value
        2
        >>> transform(torch.ones(1, 1), torch.zeros(1, 2, 1))
        (tensor([[1.]]), tensor([[0.]]))
    """

    def __init__(self, kind: Kind, bins: int, tail_bound: float):
        super().__init__()
        self.kind, self.bins, self.tail_bound = kind, bins, tail_bound
        self.parameters_per_value = {"additive": 1, "affine": 2, "spline": 3 * bins - 1}[kind]

    def forward(self, x: Tensor, parameters: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """The result and the log-derivative of each value x (B, ...), for parameters (B, P, ...)."""
        parameters = parameters.to(x.dtype)
        if self.kind == "spline":
            widths, heights, slopes = parameters.split([self.bins, self.bins, self.bins - 1], 1)
            return rational_quadratic_spline(x, widths, heights, slopes + _SLOPE_ONE, self.tail_bound, inverse)
        shift = parameters[:, 0]
        if self.kind == "additive":
            return (x - shift if inverse else x + shift), torch.zeros_like(x)
        return affine(x, shift, soft_clip(parameters[:, 1], LOG_SCALE_BOUND), inverse)


class ActNorm(FlowLayer):
    """Activation normalisation: a scale and a shift of each channel, set from data by `initialize`, then trained.

    Glow (Kingma and Dhariwal, 2018, 1807.03039), section 3.1.

    Args:
        channels: C of (B, C, H, W), or D of (B, D).

    Example:
        >>> norm, x = ActNorm(3), torch.randn(100, 3) * 5 + 2
        >>> norm.initialize(x)
        >>> norm(x)[0].std(0, correction=0).round(decimals=3).tolist()
        [1.0, 1.0, 1.0]
    """

    def __init__(self, channels: int):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Set scale and shift so that each channel of x has mean 0 and variance 1; a constant one keeps its scale."""
        values = x.transpose(0, 1).flatten(1).double()
        deviation = values.std(1, correction=0)
        log_scale = torch.where(deviation > 1e-6, -deviation.clamp(min=1e-6).log(), 0.0)
        self.log_scale.copy_(log_scale)
        self.shift.copy_(-values.mean(1) * log_scale.exp())

    def forward(self, x: Tensor, context: Tensor | None = None, inverse: bool = False) -> tuple[Tensor, Tensor]:
        shape = (1, -1, *[1] * (x.ndim - 2))
        shift, log_scale = (part.to(x.dtype).view(shape) for part in (self.shift, self.log_scale))
        y, log_derivative = affine(x, shift, log_scale, inverse)
        return y, summed(log_derivative)


class InvertibleLinear(FlowLayer):
    r"""An invertible linear map over channels, a 1x1 convolution: \(W = L U R\), R the reversal of the channels.

    L is lower triangular with ones, U upper triangular with a positive diagonal, so that the log-determinant costs
    nothing and W cannot become singular. R makes the couplings before and after it change other channels from the
    start.

    Glow (Kingma and Dhariwal, 2018, 1807.03039), section 3.2 and eq. 10, with a fixed permutation.

    Args:
        channels: C of (B, C, H, W), or D of (B, D).

    Example:
        >>> InvertibleLinear(3)(torch.tensor([[1.0, 2.0, 3.0]]))[0].tolist()
        [[3.0, 2.0, 1.0]]
    """

    def __init__(self, channels: int):
        super().__init__()
        self.lower = nn.Parameter(torch.zeros(channels, channels))
        self.upper = nn.Parameter(torch.zeros(channels, channels))
        self.log_diagonal = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, context: Tensor | None = None, inverse: bool = False) -> tuple[Tensor, Tensor]:
        lower, upper, log_diagonal = (p.to(x.dtype) for p in (self.lower, self.upper, self.log_diagonal))
        lower, upper = lower.tril(-1), upper.triu(1) + log_diagonal.exp().diag()  # L without its ones
        with full_precision(x.device.type):  # its inverse must undo it to the last digits
            if inverse:
                one = torch.eye(len(log_diagonal), dtype=x.dtype, device=x.device)
                half = torch.linalg.solve_triangular(lower, one, upper=False, unitriangular=True)
                weight = torch.linalg.solve_triangular(upper, half, upper=True).flip(0)
            else:
                weight = torch.addmm(upper, lower, upper).flip(1)
            y = F.conv2d(x, weight[..., None, None]) if x.ndim == 4 else x @ weight.T
        log_det = (math.prod(x.shape[2:]) * log_diagonal.sum()).expand(len(x))
        return y, -log_det if inverse else log_det


class Reverse(FlowLayer):
    """The reversal of the order of values; volume-preserving.

    Example:
        >>> Reverse()(torch.tensor([[1.0, 2.0]]))
        (tensor([[2., 1.]]), tensor([0.]))
    """

    def forward(self, x: Tensor, context: Tensor | None = None, inverse: bool = False) -> tuple[Tensor, Tensor]:
        return x.flip(1), x.new_zeros(len(x))


class Logit(FlowLayer):
    """Images of [-1, 1] as real numbers; see `latentia.functional.flows.logit`.

    Example:
        >>> Logit(0.05)(torch.zeros(1, 1, 1, 1))[0].item()
        0.0
    """

    def __init__(self, alpha: float):
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor, context: Tensor | None = None, inverse: bool = False) -> tuple[Tensor, Tensor]:
        y, log_derivative = logit(x, self.alpha, inverse)
        return y, summed(log_derivative)


class Squeeze(FlowLayer):
    """Blocks of 2 x 2 pixels as channels, (B, C, H, W) to (B, 4 C, H / 2, W / 2).

    Example:
        >>> Squeeze()(torch.zeros(1, 1, 4, 6))[0].shape
        torch.Size([1, 4, 2, 3])
    """

    def forward(self, x: Tensor, context: Tensor | None = None, inverse: bool = False) -> tuple[Tensor, Tensor]:
        y = F.pixel_shuffle(x, 2) if inverse else F.pixel_unshuffle(x, 2)
        return y, x.new_zeros(len(x))


class Coupling(FlowLayer):
    """A coupling layer: half of the channels stay, and give the parameters by which the other half is transformed.

    Args:
        known: indices of the channels that stay.
        changed: indices of those that are transformed; together all channels.
        conditioner: (known channels, context) -> `transform.parameters_per_value` channels for each changed one.
        transform: of each value.

    NICE (Dinh et al., 2014, 1410.8516), section 3.1; Real NVP (Dinh et al., 2016, 1605.08803), section 3.4, whose
    checkerboard is a choice of channels once blocks of 2 x 2 pixels are squeezed into channels.

    Example:
        >>> net = DenseConditioner(1, 2, (8,), "relu", False)
        >>> Coupling([0], [1], net, Transform("affine", 8, 3.0))(torch.randn(5, 2))[1].tolist()
        [0.0, 0.0, 0.0, 0.0, 0.0]
    """

    def __init__(self, known: Sequence[int], changed: Sequence[int], conditioner: nn.Module, transform: Transform):
        super().__init__()
        self.known, self.changed = _slice(known), _slice(changed)
        order = [*known, *changed]
        self.order = None if order == sorted(order) else [order.index(channel) for channel in range(len(order))]
        self.conditioner, self.transform = conditioner, transform

    def forward(self, x: Tensor, context: Tensor | None = None, inverse: bool = False) -> tuple[Tensor, Tensor]:
        known, value = x[:, self.known], x[:, self.changed]
        parameters = self.conditioner(known, context)
        parameters = parameters.view(len(x), self.transform.parameters_per_value, *value.shape[1:])  # (B, P, c, ...)
        value, log_derivative = self.transform(value, parameters, inverse)
        y = torch.cat([known, value], 1)
        return (y if self.order is None else y[:, self.order]), summed(log_derivative)


def _slice(channels: Sequence[int]) -> slice | list[int]:
    """A slice where the channels are consecutive, which needs no copy."""
    first, last = channels[0], channels[-1]
    return slice(first, last + 1) if [*channels] == [*range(first, last + 1)] else [*channels]


class Autoregressive(FlowLayer):
    """A masked autoregressive layer: each value is transformed by parameters that the values before it give.

    One direction takes one evaluation of the network and the other D.

    Args:
        features: D.
        hidden_sizes: width of each hidden layer.
        activation: a name in `latentia.models.layers.mlp.ACTIVATIONS`.
        transform: of each value.
        has_context: whether it takes a context.
        fast_inverse: False (default): densities take one evaluation (MAF); True: samples do (IAF).

    Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017, 1705.07057), section 3; Improved
    Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016, 1606.04934), section 3.

    Example:
        >>> layer = Autoregressive(3, (8,), "relu", Transform("affine", 8, 3.0), False)
        >>> layer(torch.randn(5, 3))[0].shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        features: int,
        hidden_sizes: Sequence[int],
        activation: str,
        transform: Transform,
        has_context: bool,
        fast_inverse: bool = False,
    ):
        super().__init__()
        self.transform, self.fast_inverse = transform, fast_inverse
        self.conditioner = MaskedConditioner(
            features, transform.parameters_per_value, hidden_sizes, activation, has_context
        )

    def forward(self, x: Tensor, context: Tensor | None = None, inverse: bool = False) -> tuple[Tensor, Tensor]:
        if inverse == self.fast_inverse:
            y, log_derivative = self.transform(x, self.conditioner(x, context))
        else:
            y, place = torch.zeros_like(x), torch.arange(x.shape[1], device=x.device)
            for i in range(x.shape[1]):  # value i is right once those before it are
                found, log_derivative = self.transform(x, self.conditioner(y, context), inverse=True)
                y = torch.where(place == i, found, y)
        return y, summed(log_derivative)


def conv_coupling(channels: int, known: Sequence[int], transform: Transform, network: dict[str, Any]) -> Coupling:
    """A coupling of feature maps: the known channels give the parameters of the others.

    Example:
        >>> network = {"hidden_sizes": (8,), "activation": "relu", "has_context": False}
        >>> conv_coupling(4, [0, 1], Transform("affine", 8, 3.0), network)(torch.zeros(1, 4, 6, 6))[0].shape
        torch.Size([1, 4, 6, 6])
    """
    changed = [channel for channel in range(channels) if channel not in known]
    outputs = len(changed) * transform.parameters_per_value
    return Coupling(known, changed, ConvConditioner(len(known), outputs, **network), transform)


def image_layers(
    channels: int, num_layers: int, layers_are: str, transform: Transform, network: dict[str, Any]
) -> Iterator[FlowLayer]:
    """The couplings of one stage of a flow of images, each after activation normalisation.

    Args:
        channels: after squeezing, a multiple of 4.
        num_layers: couplings.
        layers_are: "linear": an invertible 1x1 convolution before each coupling (Glow); "checkerboard": the fields of a
            checkerboard, then the halves of the channels, in turn (Real NVP, Dinh et al., 2016, 1605.08803, section
            3.6).
        transform: of each value.
        network: `hidden_sizes`, `activation`, `has_context` of the conditioners.

    Example:
        >>> network = {"hidden_sizes": (8,), "activation": "relu", "has_context": False}
        >>> layers = image_layers(4, 1, "linear", Transform("affine", 8, 3.0), network)
        >>> [type(layer).__name__ for layer in layers]
        ['ActNorm', 'InvertibleLinear', 'Coupling']
    """
    halves = [range(channels // 2), range(channels // 2, channels)]
    # Squeezing puts the four pixels of a block into neighbouring channels: the outer two are on a diagonal.
    board = [[c for c in range(channels) if (c % 4 in (0, 3)) == colour] for colour in (True, False)]
    for i in range(num_layers):
        yield ActNorm(channels)
        if layers_are == "linear":
            yield InvertibleLinear(channels)
            yield conv_coupling(channels, halves[0], transform, network)
        else:
            masks = board if i < (num_layers + 1) // 2 else halves
            yield conv_coupling(channels, masks[i % 2], transform, network)


def vector_layers(
    values: int, num_layers: int, layers_are: str, transform: Transform, network: dict[str, Any]
) -> Iterator[FlowLayer]:
    """The layers of a flow of vectors, each followed by a linear map, or by the reversal that keeps NICE's volume.

    Args:
        values: D.
        num_layers: couplings or autoregressive layers.
        layers_are: "coupling", "autoregressive" or "inverse autoregressive".
        transform: of each value.
        network: `hidden_sizes`, `activation`, `has_context` of the conditioners.

    Example:
        >>> network = {"hidden_sizes": (8,), "activation": "relu", "has_context": False}
        >>> [type(layer).__name__ for layer in vector_layers(2, 1, "coupling", Transform("affine", 8, 3.0), network)]
        ['Coupling', 'InvertibleLinear']
    """
    known, changed = range(values // 2), range(values // 2, values)
    for _ in range(num_layers):
        if layers_are == "coupling":
            outputs = len(changed) * transform.parameters_per_value
            yield Coupling(known, changed, DenseConditioner(len(known), outputs, **network), transform)
        else:
            fast_inverse = layers_are == "inverse autoregressive"
            yield Autoregressive(values, transform=transform, fast_inverse=fast_inverse, **network)
        yield Reverse() if transform.kind == "additive" else InvertibleLinear(values)


def most_halvings(size: tuple[int, int]) -> int:
    """How often both sides of an image can be halved.

    Example:
        >>> most_halvings((28, 28)), most_halvings((8, 12))
        (2, 2)
    """
    halvings = 0
    while all(side % 2 ** (halvings + 1) == 0 for side in size):
        halvings += 1
    return halvings


def check_halvings(size: tuple[int, int], num_stages: int) -> None:
    """Raises a `UsageError` unless an image can be halved so often; names how often it can, and the sizes that can.

    Example:
        >>> check_halvings((28, 28), 2)
        >>> check_halvings((30, 28), 2)
        Traceback (most recent call last):
        latentia.errors.UsageError: num_stages must be at most 1 for images of 30 x 28, which cannot be halved more \
often; got 2. Lower it, or resize the images: each side to a multiple of 4.
    """
    possible, shape = most_halvings(size), f"{size[0]} x {size[1]}"
    if possible == 0:
        raise UsageError(
            f"sample_size must have even sides for a flow, which squeezes 2 x 2 pixels into channels; got {shape}. "
            "Resize the images."
        )
    if num_stages > possible:
        raise UsageError(
            f"num_stages must be at most {possible} for images of {shape}, which cannot be halved more often; got "
            f"{num_stages}. Lower it, or resize the images: each side to a multiple of {2**num_stages}."
        )
