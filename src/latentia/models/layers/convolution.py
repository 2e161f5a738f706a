"""The convolutional pyramid that autoencoders share: each level halves the picture on the way in, doubles it back."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from latentia.errors import UsageError, did_you_mean
from latentia.models.unet import Norm, _groups

ACTIVATIONS = {
    "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid, "none": nn.Identity,
}  # fmt: skip
NORMS = ("none", "group", "batch")
UPSAMPLES = ("transposed", "resize")


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Raises a UsageError unless `value` is one of `known`, and says which is nearest."""
    if value not in known:
        raise UsageError(
            f"{name} must be one of {', '.join(known)}; got {value!r}.{did_you_mean(str(value), list(known))}"
        )


def activation_of(name: str, argument: str = "activation") -> nn.Module:
    """A new activation module by its name in `ACTIVATIONS`; `argument` is what an error calls it.

    Example:
        >>> activation_of("relu")
        ReLU()
    """
    check_choice(argument, name, [*ACTIVATIONS])
    return ACTIVATIONS[name]()


def image_size(sample_size: int | Sequence[int]) -> tuple[int, int]:
    """(H, W) of a `sample_size`, which may be one number for both.

    Raises:
        UsageError: it is neither one nor two numbers, or one is below 1.
    """
    sides = (sample_size, sample_size) if isinstance(sample_size, int) else tuple(sample_size)
    if len(sides) != 2 or min(sides) < 1:
        raise UsageError(f"sample_size must be one side or (height, width), each at least 1; got {sample_size}.")
    return sides


def pyramid_size(sample_size: int | Sequence[int], block_out_channels: Sequence[int]) -> tuple[int, int]:
    """Height and width at the top of the pyramid, which halves once for each entry of `block_out_channels`.

    Args:
        sample_size: of the picture in pixels, an integer or (H, W).
        block_out_channels: channels of each level, which must not decrease: space is halved, channels are raised.

    Raises:
        UsageError: a side cannot be halved that often, so the way back could not mirror the way in; or channels that
            decrease or are below 1.

    Example:
        >>> pyramid_size((28, 32), (16, 32))
        (7, 8)
    """
    channels, factor = tuple(block_out_channels), 2 ** len(block_out_channels)
    if not channels or min(channels) < 1 or list(channels) != sorted(channels):
        raise UsageError(
            "block_out_channels must be at least one number, each at least 1 and none smaller than the one before, as "
            f"each level halves the picture; got {channels}. Sort them from fine to coarse."
        )
    sides = image_size(sample_size)
    for side in sides:
        if side % factor:
            below, above = side // factor * factor, (side // factor + 1) * factor
            sizes = f"{below} or {above}" if below else f"{above}"
            raise UsageError(
                f"sample_size must be divisible by 2 ** {len(channels)} = {factor}, so that each of the "
                f"{len(channels)} levels of block_out_channels can halve it and be mirrored; got {side}. Use {sizes}, "
                "or fewer levels."
            )
    return sides[0] // factor, sides[1] // factor


class _Residual(nn.Module):
    """x + conv(act(norm(x))): further layers of a level, which keep its size."""

    def __init__(self, channels: int, norm: str, activation: str):
        super().__init__()
        self.norm, self.activation = _norm(norm, channels), activation_of(activation)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.activation(self.norm(x)))


class _Resize(nn.Module):
    """Nearest-neighbour doubling and a convolution (Odena et al., 2016, doi:10.23915/distill.00003)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _norm(name: str, channels: int) -> nn.Module:
    if name == "none":
        return nn.Identity()
    return Norm(_groups(channels), channels) if name == "group" else nn.BatchNorm2d(channels)


def _check(sample_size, block_out_channels, layers_per_block, norm, activation) -> None:
    pyramid_size(sample_size, block_out_channels)
    check_choice("norm", norm, NORMS)
    check_choice("activation", activation, [*ACTIVATIONS])
    if layers_per_block < 1:
        raise UsageError(f"layers_per_block must be at least 1; got {layers_per_block}.")


class Encoder(nn.Module):
    """Pictures (B, in_channels, H, W) to features (B, C_last, H / 2^L, W / 2^L), C_last = block_out_channels[-1].

    Each of the L levels is a convolution of stride 2 (kernel 4), a norm and an activation, then residual layers.

    Args:
        in_channels: channels of the picture.
        block_out_channels: channels of each level from fine to coarse; its length L is the number of halvings.
        sample_size: of the picture in pixels, an integer or (H, W), each side divisible by 2^L. The network runs on
            other divisible sizes too.
        layers_per_block: convolutions of each level; the first is the strided one, the others keep the size and are
            residual. Default 1.
        norm: "none", "group" (default) or "batch".
        activation: a name in `ACTIVATIONS`. Default "silu".

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
        self.levels, channels = nn.ModuleList(), in_channels
        for out in block_out_channels:
            down = [nn.Conv2d(channels, out, 4, stride=2, padding=1), _norm(norm, out), activation_of(activation)]
            further = [_Residual(out, norm, activation) for _ in range(layers_per_block - 1)]
            self.levels.append(nn.Sequential(*down, *further))
            channels = out

    def forward(self, x: Tensor) -> Tensor:
        for level in self.levels:
            x = level(x)
        return x


class Decoder(nn.Module):
    """The mirror of `Encoder`: features (B, C_last, h, w) to (B, out_channels, h 2^L, w 2^L), the last layer linear.

    Each level is residual layers, then a norm, an activation and a step that doubles the picture. So what comes in may
    be the output of a linear layer.

    Args:
        out_channels: channels of what comes out: those of the picture, or more if it is a distribution's parameters.
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
        self.levels = nn.ModuleList()
        for channels, out in zip(reversed(block_out_channels), [*reversed(block_out_channels[:-1]), out_channels]):
            further = [_Residual(channels, norm, activation) for _ in range(layers_per_block - 1)]
            if upsample == "transposed":
                up: nn.Module = nn.ConvTranspose2d(channels, out, 4, stride=2, padding=1)
            else:
                up = _Resize(channels, out)
            self.levels.append(nn.Sequential(*further, _norm(norm, channels), activation_of(activation), up))

    def forward(self, x: Tensor) -> Tensor:
        for level in self.levels:
            x = level(x)
        return x
