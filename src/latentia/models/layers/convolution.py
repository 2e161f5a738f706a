"""Convolutional encoders and decoders of images and sequences: each stage halves on the way in and doubles back."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from latentia.errors import UsageError, check_choice, check_range
from latentia.models.layers.mlp import ACTIVATIONS, make_activation
from latentia.models.layers.norm import make_norm

NORMS = ("none", "group", "batch")
UPSAMPLES = ("transposed", "resize")
STRIDE = 2


def image_size(sample_size: int | Sequence[int]) -> tuple[int, int]:
    """(H, W) of a `sample_size`, which may be one number for both.

    Raises:
        UsageError: it is neither one nor two numbers, or one is below 1.

    Example:
        >>> image_size(28), image_size((28, 32))
        ((28, 28), (28, 32))
    """
    sides = (sample_size, sample_size) if isinstance(sample_size, int) else tuple(sample_size)
    if len(sides) != 2 or min(sides) < 1:
        raise UsageError(f"sample_size must be one side or (height, width), each at least 1; got {sample_size}.")
    return sides[0], sides[1]


def is_sequence(sample_size: int | Sequence[int]) -> bool:
    """Whether a `sample_size` is that of sequences, (L,), and not of images.

    Example:
        >>> is_sequence((64,)), is_sequence(28), is_sequence((28, 32))
        (True, False, False)
    """
    return not isinstance(sample_size, int) and len(sample_size) == 1


def sample_shape(sample_size: int | Sequence[int]) -> tuple[int, ...]:
    """(H, W) of images, or (L,) of sequences.

    Raises:
        UsageError: another number of sides, or one below 1.

    Example:
        >>> sample_shape(28), sample_shape((64,))
        ((28, 28), (64,))
    """
    if not isinstance(sample_size, int) and is_sequence(sample_size) and sample_size[0] >= 1:
        return (sample_size[0],)
    return image_size(sample_size)


def nearest_multiples(side: int, factor: int) -> str:
    """The multiples of `factor` next to `side`, for an error.

    Example:
        >>> nearest_multiples(30, 8), nearest_multiples(3, 8)
        ('24 or 32', '8')
    """
    below = side // factor * factor
    return f"{below} or {below + factor}" if below else f"{below + factor}"


def check_stages(block_out_channels: Sequence[int]) -> None:
    """Raises a `UsageError` unless there is a stage, and none has less than 1 or less than the channels before it.

    Example:
        >>> check_stages((16, 32))
    """
    channels = tuple(block_out_channels)
    if not channels or min(channels) < 1 or list(channels) != sorted(channels):
        raise UsageError(
            "block_out_channels must be at least one number, each at least 1 and none smaller than the one before, as "
            f"each stage halves the image; got {channels}. Sort them from fine to coarse."
        )


def feature_size(sample_size: int | Sequence[int], block_out_channels: Sequence[int]) -> tuple[int, ...]:
    """Height and width after the last stage, of an image that each stage halves exactly; or the steps of a sequence.

    Args:
        sample_size: of the image in pixels, an integer or (H, W); of sequences (L,), which is rounded up.
        block_out_channels: channels of each stage, which must not decrease: space is halved, channels are raised.

    Raises:
        UsageError: a side cannot be halved that often, so the way back could not mirror the way in; or channels that
            decrease or are below 1.

    Example:
        >>> feature_size((28, 32), (16, 32)), feature_size((30,), (16, 32))
        ((7, 8), (8,))
    """
    check_stages(block_out_channels)
    stages, factor = len(block_out_channels), 2 ** len(block_out_channels)
    if is_sequence(sample_size):
        return (-(-sample_shape(sample_size)[0] // factor),)
    sides = image_size(sample_size)
    for side in sides:
        if side % factor:
            raise UsageError(
                f"sample_size must be divisible by 2 ** {stages} = {factor}, so that each of the {stages} stages of "
                f"block_out_channels can halve it and be mirrored; got {side}. Use {nearest_multiples(side, factor)}, "
                "or fewer stages."
            )
    return sides[0] // factor, sides[1] // factor


def stage_sizes(sample_size: int | Sequence[int], block_out_channels: Sequence[int]) -> list[tuple[int, int]]:
    """Height and width of the image and after each stage, each half the one before, rounded down.

    Raises:
        UsageError: a side that is halved to nothing, channels below 1 or decreasing.

    Example:
        >>> stage_sizes(28, (32, 64, 128))
        [(28, 28), (14, 14), (7, 7), (3, 3)]
    """
    check_stages(block_out_channels)
    stages, sides = len(block_out_channels), image_size(sample_size)
    if min(sides) >> stages < 1:
        raise UsageError(
            f"sample_size must be at least 2 ** {stages} = {2**stages}, so that each of the {stages} stages of "
            f"block_out_channels can halve it; got {min(sides)}. Use fewer stages."
        )
    return [(sides[0] >> i, sides[1] >> i) for i in range(stages + 1)]


def paddings(kernel_size: int, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """For each axis, the padding of a convolution of stride 2 that halves `size`, rounded down, and what a transposed
    one, which doubles the half to `size` again, adds at one end.

    Example:
        >>> paddings(4, (14, 7))
        ((1, 1), (0, 1))
    """
    odd = [side % STRIDE for side in size]
    rows, columns = ((kernel_size - 1 - e) // 2 for e in odd)
    extra = [e + STRIDE + 2 * p - kernel_size for e, p in zip(odd, (rows, columns))]
    return (rows, columns), (extra[0], extra[1])


class Residual(nn.Module):
    """x + conv(act(norm(x))): the further layers of a stage, which keep its size; of sequences as maps (B, C, 1, L).

    Example:
        >>> import torch
        >>> Residual(8, "group", "silu")(torch.randn(2, 8, 4, 4)).shape
        torch.Size([2, 8, 4, 4])
    """

    def __init__(self, channels: int, norm: str, activation: str, sequence: bool = False):
        super().__init__()
        self.norm, self.activation = make_norm(norm, channels), make_activation(activation)
        self.conv = nn.Conv2d(channels, channels, _sides(sequence, 3, 1), padding=_sides(sequence, 1, 0))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.activation(self.norm(x)))


class ResizeConv(nn.Module):
    """Nearest-neighbour doubling and a convolution (Odena et al., 2016, doi:10.23915/distill.00003).

    Example:
        >>> import torch
        >>> ResizeConv(8, 3)(torch.randn(2, 8, 4, 4)).shape
        torch.Size([2, 3, 8, 8])
    """

    def __init__(self, in_channels: int, out_channels: int, sequence: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, _sides(sequence, 3, 1), padding=_sides(sequence, 1, 0))
        self.scale = (1.0, 2.0) if sequence else (2.0, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=self.scale, mode="nearest"))


class Encoder(nn.Module):
    """Images (B, in_channels, H, W) to features (B, C_last, H / 2^L, W / 2^L), C_last = block_out_channels[-1].

    Sequences (B, in_channels, T) of any length become features (B, C_last, T / 2^L), T / 2^L rounded up: they are
    filled up with zeros at their end, and convolutions are along the steps. Each of the L stages is a convolution of
    stride 2 (kernel 4), a norm and an activation, then residual layers.

    Args:
        in_channels: channels of the image.
        block_out_channels: channels of each stage from fine to coarse; its length L is the number of halvings.
        sample_size: of the image in pixels, an integer or (H, W), each side divisible by 2^L. The network runs on
            other divisible sizes too. Of sequences (T,).
        layers_per_block: convolutions of each stage; the first is the strided one, the others keep the size and are
            residual. Default 1.
        norm: "none", "group" (default) or "batch" (over all processes).
        activation: a name in `latentia.models.layers.mlp.ACTIVATIONS`. Default "silu".

    Raises:
        UsageError: a size that cannot be halved so often, decreasing channels, unknown names.

    Example:
        >>> import torch
        >>> Encoder(1, (16, 32), 28)(torch.randn(2, 1, 28, 28)).shape
        torch.Size([2, 32, 7, 7])
    """

    def __init__(
        self,
        in_channels: int,
        block_out_channels: Sequence[int],
        sample_size: int | Sequence[int],
        layers_per_block: int = 1,
        norm: str = "group",
        activation: str = "silu",
    ):
        super().__init__()
        _check(sample_size, block_out_channels, layers_per_block, norm, activation)
        self.sequence = sequence = is_sequence(sample_size)
        halving = _halving(sequence)
        self.down_blocks, channels = nn.ModuleList(), in_channels
        for out in block_out_channels:
            down = [nn.Conv2d(channels, out, **halving), make_norm(norm, out), make_activation(activation)]
            further = [Residual(out, norm, activation, sequence) for _ in range(layers_per_block - 1)]
            self.down_blocks.append(nn.Sequential(*down, *further))
            channels = out

    def forward(self, x: Tensor) -> Tensor:
        if self.sequence:
            x = F.pad(x, (0, -x.shape[2] % STRIDE ** len(self.down_blocks)))[:, :, None]
        for block in self.down_blocks:
            x = block(x)
        return x[:, :, 0] if self.sequence else x


class Decoder(nn.Module):
    """The mirror of `Encoder`: features (B, C_last, h, w) to (B, out_channels, h 2^L, w 2^L), the last layer linear.

    Each stage is residual layers, then a norm, an activation and a step that doubles the image. So its input may be the
    output of a linear layer. Sequences are cut to the T steps of their `sample_size` again.

    Args:
        out_channels: channels of the output: those of the image, or more if it is a distribution's parameters.
        block_out_channels, sample_size, layers_per_block, norm, activation: as for `Encoder`, in the same order from
            fine to coarse.
        upsample: "transposed" (default; convolution of stride 2 whose kernel, 4, is a multiple of it, so that all
            pixels get equally many contributions) or "resize" (nearest neighbour, then a convolution of kernel 3).

    Raises:
        UsageError: as `Encoder`.

    Example:
        >>> import torch
        >>> Decoder(3, (16, 32), (32, 48), upsample="resize")(torch.randn(2, 32, 8, 12)).shape
        torch.Size([2, 3, 32, 48])
    """

    def __init__(
        self,
        out_channels: int,
        block_out_channels: Sequence[int],
        sample_size: int | Sequence[int],
        layers_per_block: int = 1,
        norm: str = "group",
        activation: str = "silu",
        upsample: str = "transposed",
    ):
        super().__init__()
        _check(sample_size, block_out_channels, layers_per_block, norm, activation)
        check_choice("upsample", upsample, UPSAMPLES)
        self.sequence = sequence = is_sequence(sample_size)
        self.steps = sample_shape(sample_size)[-1]
        halving = _halving(sequence)
        self.up_blocks = nn.ModuleList()
        for channels, out in zip(reversed(block_out_channels), [*reversed(block_out_channels[:-1]), out_channels]):
            further = [Residual(channels, norm, activation, sequence) for _ in range(layers_per_block - 1)]
            if upsample == "transposed":
                up: nn.Module = nn.ConvTranspose2d(channels, out, **halving)
            else:
                up = ResizeConv(channels, out, sequence)
            self.up_blocks.append(nn.Sequential(*further, make_norm(norm, channels), make_activation(activation), up))

    def forward(self, x: Tensor) -> Tensor:
        if self.sequence:
            x = x[:, :, None]
        for block in self.up_blocks:
            x = block(x)
        return x[:, :, 0, : self.steps] if self.sequence else x


def _sides(sequence: bool, along: int, across: int) -> tuple[int, int]:
    """A size of both axes of a map: `along` alone for images, and with 1 row for sequences as maps (B, C, 1, L)."""
    return (across, along) if sequence else (along, along)


def _halving(sequence: bool) -> dict[str, Any]:
    """The convolution of stride 2 whose kernel, 4, is a multiple of it."""
    sides = {"kernel_size": (4, 1), "stride": (STRIDE, 1), "padding": (1, 0)}
    return {name: _sides(sequence, *size) for name, size in sides.items()}


def _check(
    sample_size: int | Sequence[int],
    block_out_channels: Sequence[int],
    layers_per_block: int,
    norm: str,
    activation: str,
) -> None:
    feature_size(sample_size, block_out_channels)
    check_choice("norm", norm, NORMS)
    check_choice("activation", activation, ACTIVATIONS)
    check_range("layers_per_block", layers_per_block, 1)
