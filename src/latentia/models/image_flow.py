"""Multi-scale normalizing flows of images: NICE, RealNVP, Glow and neural spline flows."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from diffusers.configuration_utils import register_to_config
from torch import nn

from latentia.errors import Positive, Size, UsageError, check_arguments, check_choice
from latentia.models.flow import Flow, check_spline
from latentia.models.layers.conditioners import ContextEmbedding, ConvConditioner
from latentia.models.layers.convolution import image_size
from latentia.models.layers.flow import ActNorm, Coupling, FlowLayer, InvertibleLinear, Logit, Squeeze, Transform

# name -> transform of each value, and what stands between two of them
ARCHITECTURES: dict[str, tuple[Any, str]] = {
    "nice": ("additive", "checkerboard"),
    "realnvp": ("affine", "checkerboard"),
    "glow": ("affine", "linear"),
    "spline": ("spline", "linear"),
}


class ImageFlow(Flow):
    r"""A multi-scale normalizing flow of images: NICE, RealNVP, Glow or a neural spline flow.

    Each stage squeezes blocks of 2 x 2 pixels into channels, applies `layers_per_block` couplings and, but for the
    last stage, hands half of the channels to the latents, standardised by a convolution on the other half. "nice"
    (additive) and "realnvp" (affine) change the pixels of a checkerboard's fields and then halves of the channels in
    turn; "glow" (affine) and "spline" (rational-quadratic) have an invertible 1x1 convolution before each coupling.
    The density is on [-1, 1]^D.

    Args:
        sample_size: height and width in pixels, an integer or (H, W), each a multiple of 2^`num_stages`. Default 28.
        in_channels: channels of the image. Default 1.
        architecture: "nice", "realnvp", "glow" (default) or "spline".
        num_stages: how often the image is halved, at least 1. Default 2.
        layers_per_block: couplings of each stage. Default 8.
        hidden_channels: width of the networks that give the parameters of a coupling. Default 64.
        activation: a name in `latentia.models.layers.mlp.ACTIVATIONS`. Default "relu".
        bins: of the splines, at least 2. Default 8.
        tail_bound: the splines act on [-tail_bound, tail_bound] and are the identity outside. Default 3.
        logit_alpha: pixels are mapped to real numbers by a logit that is kept this far from its ends, in (0, 0.5); its
            log-determinant counts. Default 0.05.
        num_class_embeds: number of classes that it is conditioned on; `None` (default): no labels.
        context_dim: values of a vector that it is conditioned on; `None` (default): no vector.

    Raises:
        UsageError: a size that cannot be halved so often, an unknown name, numbers out of range, conditions that are
            missing or not expected.

    NICE (Dinh et al., 2014, 1410.8516); Density Estimation using Real NVP (Dinh et al., 2016, 1605.08803); Glow (Kingma
    and Dhariwal, 2018, 1807.03039); Neural Spline Flows (Durkan et al., 2019, 1906.04032).

    Example:
        >>> flow = ImageFlow(sample_size=8, layers_per_block=2, hidden_channels=8)
        >>> x = torch.rand(4, 1, 8, 8) * 2 - 1
        >>> out = flow(x)
        >>> out.latents.shape, out.log_prob.shape
        (torch.Size([4, 64]), torch.Size([4]))
        >>> bool((flow.decode(out.latents) - x).abs().max() < 1e-5)
        True
    """

    @register_to_config
    @check_arguments
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 28,
        in_channels: Size = 1,
        architecture: str = "glow",
        num_stages: Size = 2,
        layers_per_block: Size = 8,
        hidden_channels: Size = 64,
        activation: str = "relu",
        bins: Size = 8,
        tail_bound: Positive = 3.0,
        logit_alpha: Positive = 0.05,
        num_class_embeds: Size | None = None,
        context_dim: Size | None = None,
    ):
        super().__init__()
        check_choice("architecture", architecture, ARCHITECTURES)
        check_spline(bins, logit_alpha)
        size = image_size(sample_size)
        check_halvings(size, num_stages)
        kind, between = ARCHITECTURES[architecture]
        self.shape = (in_channels, *size)
        self.context = ContextEmbedding(num_class_embeds, context_dim)
        conditional = num_class_embeds is not None or context_dim is not None
        transform = Transform(kind, bins, tail_bound)

        def coupling(channels: int, known: Sequence[int], transform: Transform, width: int) -> Coupling:
            changed = [channel for channel in range(channels) if channel not in known]
            outputs = len(changed) * transform.parameters_per_value
            return Coupling(
                known,
                changed,
                ConvConditioner(len(known), outputs, width, activation, conditional),
                transform,
            )

        def layers(channels: int) -> Iterator[FlowLayer]:
            halves = [range(channels // 2), range(channels // 2, channels)]
            # Squeezing puts the four pixels of a block into neighbouring channels: the outer two are on a diagonal.
            board = [[c for c in range(channels) if (c % 4 in (0, 3)) == colour] for colour in (True, False)]
            for i in range(layers_per_block):
                yield ActNorm(channels)
                if between == "linear":
                    yield InvertibleLinear(channels)
                    yield coupling(channels, halves[0], transform, hidden_channels)
                else:  # Real NVP, section 3.6: first the checkerboard, then the channels
                    masks = board if i < (layers_per_block + 1) // 2 else halves
                    yield coupling(channels, masks[i % 2], transform, hidden_channels)

        self.stages, self.splits, self._latent_sizes = nn.ModuleList(), nn.ModuleList(), []
        channels, (height, width) = in_channels, size
        for stage in range(num_stages):
            channels, height, width = channels * 4, height // 2, width // 2
            first = [Logit(logit_alpha)] if stage == 0 else []
            self.stages.append(nn.ModuleList([*first, Squeeze(), *layers(channels)]))
            if stage == num_stages - 1:
                self.splits.append(nn.Identity())
            else:
                prior = Transform("additive" if kind == "additive" else "affine", bins, tail_bound)
                self.splits.append(coupling(channels, range(channels // 2), prior, 0))
                channels //= 2
                self._latent_sizes.append(channels * height * width)
        self.stages[-1].append(ActNorm(channels))
        self._last_shape = (channels, height, width)
        self._latent_sizes.append(math.prod(self._last_shape))


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
    possible = most_halvings(size)
    if num_stages > possible:
        rule = f"at most {possible}" if possible else "0, which is no flow,"
        raise UsageError(
            f"num_stages must be {rule} for images of {size[0]} x {size[1]}, which cannot be halved more often; got "
            f"{num_stages}. Lower it, or resize the images: each side to a multiple of {2**num_stages}."
        )
