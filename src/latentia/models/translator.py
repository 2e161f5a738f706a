"""Image-to-image translation: the U-Net and ResNet generators of pix2pix and CycleGAN, and two of them as a cycle."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from latentia.errors import Rate, Size, UsageError, check_arguments, check_choice
from latentia.functional.degradation import with_luminance
from latentia.models.layers.discriminator import LEAKY_SLOPE, init_weights
from latentia.models.layers.dropout import SeededDropout
from latentia.models.layers.norm import make_norm
from latentia.models.modeling import ModelMixin
from latentia.models.outputs import UNSET, GeneratorOutput

ARCHITECTURES = ("unet", "resnet")
NORMS = ("instance", "group", "none")
OUTPUTS = ("image", "residual", "luminance", "hole")
DIRECTIONS = ("forward", "backward")
_NOISY = 3  # stages of the U-Net with dropout, the deepest ones


def _has_bias(norm: str) -> bool:
    """Whether a convolution before this norm has a bias: instance norm would cancel it."""
    return norm != "instance"


class _UNet(nn.Module):
    """Stages of stride 2 on the way in, mirrored on the way out, each beside the one of its size (pix2pix, 6.1.1)."""

    def __init__(self, in_channels: int, out_channels: int, widths: Sequence[int], norm: str, p: float, keep: bool):
        super().__init__()
        self.down, self.up, last = nn.ModuleList(), nn.ModuleList(), len(widths) - 1
        channels = in_channels
        for i, width in enumerate(widths):
            between = norm if 0 < i < last else "none"  # not of the image, nor of what may be one pixel
            active = [nn.LeakyReLU(LEAKY_SLOPE)] if i else []
            conv = nn.Conv2d(channels, width, 4, 2, 1, bias=_has_bias(between))
            self.down.append(nn.Sequential(*active, conv, make_norm(between, width)))
            channels = width
        for i in range(last, -1, -1):
            out = widths[i - 1] if i else out_channels
            taken = channels if i == last else 2 * channels
            bias = not i or _has_bias(norm)
            layers = nn.ModuleList([nn.ReLU(), nn.ConvTranspose2d(taken, out, 4, 2, 1, bias=bias)])
            if i:
                layers.append(make_norm(norm, out))
                if last - i < _NOISY:
                    layers.append(SeededDropout(p, keep, last - i))
            self.up.append(layers)
            channels = out

    def forward(self, x: Tensor, seeds: Tensor | None) -> Tensor:
        skips = []
        for stage in self.down:
            x = stage(x)
            skips.append(x)
        x = skips.pop()
        for i, layers in enumerate(self.up):
            x = torch.cat([x, skips.pop()], 1) if i else x
            for layer in layers.children():
                x = layer(x, seeds) if isinstance(layer, SeededDropout) else layer(x)
        return x


class _Residual(nn.Module):
    """x + f(x), f two convolutions of kernel 3 with reflection at the border."""

    def __init__(self, width: int, norm: str, p: float, keep: bool, place: int):
        super().__init__()
        self.first = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), make_norm(norm, width), nn.ReLU())
        self.dropout = SeededDropout(p, keep, place)
        self.second = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), make_norm(norm, width))

    def forward(self, x: Tensor, seeds: Tensor | None) -> Tensor:
        return x + self.second(self.dropout(self.first(x), seeds))


class _ResNet(nn.Module):
    """A convolution of kernel 7, stages of stride 2, residual blocks, and the way back (CycleGAN, appendix 7.2)."""

    def __init__(
        self, in_channels: int, out_channels: int, widths: Sequence[int], blocks: int, norm: str, p: float, keep: bool
    ):
        super().__init__()
        first, *rest = widths
        bias = _has_bias(norm)
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(in_channels, first, 7, bias=bias)]
        layers.append(make_norm(norm, first))
        for a, b in zip(widths, rest):
            layers += [nn.ReLU(), nn.Conv2d(a, b, 3, 2, 1, bias=bias), make_norm(norm, b)]
        self.down = nn.Sequential(*layers, nn.ReLU())
        self.blocks = nn.ModuleList([_Residual(widths[-1], norm, p, keep, i) for i in range(blocks)])
        layers = []
        for a, b in zip(reversed(rest), reversed(widths[:-1])):
            layers += [nn.ConvTranspose2d(a, b, 3, 2, 1, 1, bias=bias), make_norm(norm, b), nn.ReLU()]
        self.up = nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(first, out_channels, 7))

    def forward(self, x: Tensor, seeds: Tensor | None) -> Tensor:
        x = self.down(x)
        for block in self.blocks:
            x = block(x, seeds)
        return self.up(x)


class ImageTranslator(ModelMixin, ConfigMixin):
    """The generator of image-to-image translation: an image to an image of the same height and width, of any size.

    Sides that the stages do not divide are extended by their last row or column, and cut again.

    Args:
        in_channels: channels of the input. Default 3.
        out_channels: channels of the output. Default 3.
        architecture: "unet" (default), with skip connections, for outputs whose outlines are those of the input; or
            "resnet", residual blocks between few stages, as CycleGAN has it.
        block_out_channels: channels of each resolution from fine to coarse; a U-Net halves the image before each of
            them, a ResNet between them. Default (64, 128, 256, 512), a U-Net for images of 16 to 64 pixels; pix2pix
            has (64, 128, 256, 512, 512, 512, 512, 512) for 256, CycleGAN (64, 128, 256) of a ResNet.
        num_res_blocks: residual blocks of a ResNet. Default 6, as for images of 128 pixels in the paper.
        norm: "instance" (default), "group" or "none".
        dropout: share of values set to 0, in the deepest three stages of a U-Net or in each residual block. Default 0.
        keep_dropout: whether it stays on in evaluation, as the source of noise: a function of a seed for each image,
            not of torch's generator. Default False.
        output: what the network gives. "image" (default): the output itself; "residual": its difference from the
            input; "luminance": its hues, at the luminance of a grey input, which is kept within one of 256 levels;
            "hole": what is inside of a mask, the last channel of the input; outside, the input is kept exactly.

    Raises:
        UsageError: numbers out of range, unknown names, channels that do not fit the output; an image of other
            channels, or of less than `least_size` pixels.

    Image-to-Image Translation with Conditional Adversarial Networks (Isola et al., 2016, 1611.07004), section 6.1;
    Unpaired Image-to-Image Translation (Zhu et al., 2017, 1703.10593), appendix 7.2.

    Example:
        >>> translator = ImageTranslator(in_channels=1, block_out_channels=(8, 16), output="luminance")
        >>> translator(torch.zeros(2, 1, 28, 30)).sample.shape
        torch.Size([2, 3, 28, 30])
    """

    @register_to_config
    @check_arguments
    def __init__(
        self,
        in_channels: Size = 3,
        out_channels: Size = 3,
        architecture: str = "unet",
        block_out_channels: tuple[Size, ...] = (64, 128, 256, 512),
        num_res_blocks: Size = 6,
        norm: str = "instance",
        dropout: Rate = 0.0,
        keep_dropout: bool = False,
        output: str = "image",
    ):
        super().__init__()
        check_choice("architecture", architecture, ARCHITECTURES)
        check_choice("norm", norm, NORMS)
        check_choice("output", output, OUTPUTS)
        widths = tuple(block_out_channels)
        if len(widths) < 2:
            raise UsageError(f"block_out_channels must be at least two numbers; got {widths}.")
        rules = {
            "residual": (in_channels == out_channels, "in_channels equal to out_channels"),
            "luminance": ((in_channels, out_channels) == (1, 3), "in_channels 1 and out_channels 3"),
            "hole": (in_channels == out_channels + 1, "in_channels of one more than out_channels, for the mask"),
        }
        fits, rule = rules.get(output, (True, ""))
        if not fits:
            raise UsageError(f"output {output} needs {rule}; got {in_channels} and {out_channels}.")
        noise = (dropout, keep_dropout)
        if architecture == "unet":
            self.body: nn.Module = _UNet(in_channels, out_channels, widths, norm, *noise)
        else:
            self.body = _ResNet(in_channels, out_channels, widths, num_res_blocks, norm, *noise)
        init_weights(self.body, norm=norm)

    @property
    def least_size(self) -> int:
        """Height and width in pixels of the smallest image."""
        return 2 ** len(self.config.block_out_channels)

    def forward(
        self, sample: Tensor, dropout_seeds: Tensor | None = None, return_dict: bool = True
    ) -> GeneratorOutput | tuple[Tensor]:
        """Translate images.

        Args:
            sample: (B, in_channels, H, W) in [-1, 1]; with `output="hole"` the last channel is the mask, 1 inside.
            dropout_seeds: int64 (B,), see `SeededDropout`; `None` (default): torch's generator in training, else 0.
            return_dict: `False` returns the tuple `(sample,)`.
        """
        config, least = self.config, self.least_size
        if sample.ndim != 4 or sample.shape[1] != config.in_channels or min(sample.shape[2:]) < least:
            raise UsageError(
                f"sample must be of shape (B, {config.in_channels}, H, W) with at least {least} pixels each way; got "
                f"{tuple(sample.shape)}. Smaller images need fewer block_out_channels."
            )
        height, width = sample.shape[2:]
        more = [-side % least for side in (width, height)]
        x = F.pad(sample, (0, more[0], 0, more[1]), mode="replicate") if any(more) else sample
        x = self.body(x, dropout_seeds)[..., :height, :width]
        made = self._finish(x.to(torch.promote_types(x.dtype, torch.float32)), sample)
        made = made.to(sample.dtype)
        return GeneratorOutput(made) if return_dict else (made,)

    def _finish(self, x: Tensor, sample: Tensor) -> Tensor:
        """Images in [-1, 1] of what the layers give."""
        kind = self.config.output
        if kind == "image":
            return x.tanh()
        given = sample.to(x.dtype)
        if kind == "residual":
            return (given + x).clamp(-1, 1)
        if kind == "luminance":
            return with_luminance(x.tanh(), given)
        return torch.where(given[:, -1:] > 0, x.tanh(), given[:, :-1])


@dataclass
class CycleOutput(BaseOutput):
    """Both directions of a cycle, for inputs a and targets b of B images each.

    Args:
        forward: a as targets, (B, C_b, H, W).
        backward: b as inputs, (B, C_a, H, W).
        cycled_a: a there and back.
        cycled_b: b there and back.
        same_a: a as input by the backward direction, which should leave it as it is; None without.
        same_b: b as target by the forward direction; None without.
    """

    forward: Tensor
    backward: Tensor = UNSET
    cycled_a: Tensor = UNSET
    cycled_b: Tensor = UNSET
    same_a: Tensor | None = None
    same_b: Tensor | None = None


class CycleTranslator(ModelMixin, ConfigMixin):
    """The two generators of CycleGAN, from domain a to domain b and back.

    Args:
        in_channels: channels of images of domain a, the inputs. Default 3.
        out_channels: channels of images of domain b, the targets. Default 3.
        architecture, block_out_channels, num_res_blocks, norm, dropout, keep_dropout: of both, as for
            `ImageTranslator`; but "resnet" of (64, 128, 256) is the default.

    Unpaired Image-to-Image Translation (Zhu et al., 2017, 1703.10593), section 3.

    Example:
        >>> cycle = CycleTranslator(1, 3, block_out_channels=(8, 16), num_res_blocks=1)
        >>> cycle.translate(torch.zeros(2, 1, 16, 16), "forward").shape
        torch.Size([2, 3, 16, 16])
    """

    @register_to_config
    @check_arguments
    def __init__(
        self,
        in_channels: Size = 3,
        out_channels: Size = 3,
        architecture: str = "resnet",
        block_out_channels: tuple[Size, ...] = (64, 128, 256),
        num_res_blocks: Size = 6,
        norm: str = "instance",
        dropout: Rate = 0.0,
        keep_dropout: bool = False,
    ):
        super().__init__()
        shared = (architecture, tuple(block_out_channels), num_res_blocks, norm, dropout, keep_dropout)
        self.a_to_b = ImageTranslator(in_channels, out_channels, *shared)
        self.b_to_a = ImageTranslator(out_channels, in_channels, *shared)

    @property
    def least_size(self) -> int:
        """Height and width in pixels of the smallest image."""
        return self.a_to_b.least_size

    def translate(self, sample: Tensor, direction: str = "forward", dropout_seeds: Tensor | None = None) -> Tensor:
        """Images of the other domain.

        Args:
            sample: (B, C, H, W) in [-1, 1], of domain a for "forward", of b for "backward".
            direction: "forward" (default) or "backward".
            dropout_seeds: as for `ImageTranslator`.
        """
        check_choice("direction", direction, DIRECTIONS)
        network = self.a_to_b if direction == "forward" else self.b_to_a
        return network(sample, dropout_seeds).sample

    def forward(
        self,
        a: Tensor,
        b: Tensor,
        identity: bool = False,
        dropout_seeds: Tensor | None = None,
        return_dict: bool = True,
    ) -> CycleOutput | tuple:
        """Both directions and both cycles, all that the objective needs.

        Args:
            a: inputs, (B, in_channels, H, W) in [-1, 1].
            b: targets, (B, out_channels, H, W) in [-1, 1].
            identity: whether to give `same_a` and `same_b`, of domains with equally many channels. Default False.
            dropout_seeds: as for `ImageTranslator`.
            return_dict: `False` returns a tuple.
        """
        to_b, to_a = (self.translate(x, d, dropout_seeds) for x, d in ((a, "forward"), (b, "backward")))
        cycled = self.translate(to_b, "backward", dropout_seeds), self.translate(to_a, "forward", dropout_seeds)
        same: tuple[Tensor | None, Tensor | None] = (None, None)
        if identity:
            same = self.translate(a, "backward", dropout_seeds), self.translate(b, "forward", dropout_seeds)
        out = CycleOutput(to_b, to_a, *cycled, *same)
        return out if return_dict else out.to_tuple()
