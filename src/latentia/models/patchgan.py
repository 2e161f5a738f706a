"""PatchGAN: a discriminator of patches, which sees texture and not composition."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from latentia.errors import Size, UsageError, check_arguments, check_choice
from latentia.models.layers.discriminator import LEAKY_SLOPE
from latentia.models.layers.norm import add_spectral_norm, make_norm
from latentia.models.modeling import ModelMixin
from latentia.models.outputs import DiscriminatorOutput

NORMS = ("group", "spectral", "none")
_KERNEL = 4


class PatchDiscriminator(ModelMixin, ConfigMixin):
    """The PatchGAN discriminator: convolutions of kernel 4, L of stride 2 and two of stride 1, the last to one channel.

    Each logit depends on a square of `receptive_field` pixels, 16, 34, 70 and 142 for L = 1 to 4, and of an image of
    H x W pixels there are (H // 2^L - 2) x (W // 2^L - 2). Images of a batch do not depend on each other.

    Args:
        in_channels: channels of the image. Default 3.
        block_out_channels: channels after each convolution of stride 2, and, as a last entry, after the first of
            stride 1: at least two numbers. Default (32, 64, 128), that is patches of 34 pixels, for images of 32 to
            64; (64, 128, 256, 512) is the paper's, of 70.
        norm: "group" (default; none after the first and the last convolution), "spectral" (of all weights, not of
            activations) or "none".

    Raises:
        UsageError: fewer than two numbers or one below 1, an unknown norm; an image of other channels, or of less
            than 3 * 2^L pixels each way, which give one logit.

    Image-to-Image Translation with Conditional Adversarial Networks (Isola et al., 2016, 1611.07004), section 3.2.2.

    Example:
        >>> import torch
        >>> discriminator = PatchDiscriminator(in_channels=1, block_out_channels=(8, 16, 16))
        >>> discriminator(torch.zeros(2, 1, 64, 64)).logits.shape, discriminator.receptive_field
        (torch.Size([2, 1, 14, 14]), 34)
    """

    @register_to_config
    @check_arguments
    def __init__(
        self, in_channels: Size = 3, block_out_channels: tuple[Size, ...] = (32, 64, 128), norm: str = "group"
    ):
        super().__init__()
        check_choice("norm", norm, NORMS)
        widths = tuple(block_out_channels)
        if len(widths) < 2:
            raise UsageError(f"block_out_channels must be at least two numbers; got {widths}.")
        layers: list[nn.Module] = []
        channels = in_channels
        for i, out in enumerate(widths):
            stride = 2 if i < len(widths) - 1 else 1
            layers.append(nn.Conv2d(channels, out, _KERNEL, stride, padding=1))
            layers += [make_norm(norm if i else "none", out), nn.LeakyReLU(LEAKY_SLOPE)]
            channels = out
        layers.append(nn.Conv2d(channels, 1, _KERNEL, 1, padding=1))
        self.layers = nn.Sequential(*layers)
        if norm == "spectral":
            add_spectral_norm(self)

    @property
    def receptive_field(self) -> int:
        """Height and width in pixels of the square that a logit depends on."""
        field, jump = 1, 1
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                field += (_KERNEL - 1) * jump
                jump *= layer.stride[0]
        return field

    @property
    def least_size(self) -> int:
        """Height and width in pixels of the smallest image, which has one logit."""
        return 3 * 2 ** (len(self.config.block_out_channels) - 1)

    def forward(
        self, sample: Tensor, return_dict: bool = True, with_features: bool = False
    ) -> DiscriminatorOutput | tuple[Tensor]:
        """Logits (B, 1, h, w) of the patches of images.

        Args:
            sample: (B, in_channels, H, W) in [-1, 1].
            return_dict: `False` returns the tuple `(logits,)`.
            with_features: whether to give the activations of all layers but the last, (B, F), each over the number of
                its values and of layers, so that the sum of absolute differences is the mean of the layers' mean ones
                (pix2pixHD, Wang et al., 2017, 1711.11585, eq. 4). Default False.
        """
        least = self.least_size
        if sample.ndim != 4 or sample.shape[1] != self.config.in_channels or min(sample.shape[2:]) < least:
            raise UsageError(
                f"sample must be of shape (B, {self.config.in_channels}, H, W) with at least {least} pixels each way; "
                f"got {tuple(sample.shape)}. Smaller images need fewer block_out_channels."
            )
        x, active, count = sample, [], len(self.config.block_out_channels)
        for layer in self.layers:
            x = layer(x)
            if with_features and isinstance(layer, nn.LeakyReLU):
                active.append(x.flatten(1) / (x[0].numel() * count))
        features = torch.cat(active, 1) if with_features else None
        return DiscriminatorOutput(x, features) if return_dict else (x,)
