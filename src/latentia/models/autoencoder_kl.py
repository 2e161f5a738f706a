"""diffusers' AutoencoderKL for training: its noise is an argument, and the parameters of q(z|x) are returned."""

from dataclasses import dataclass

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from latentia.errors import Size, UsageError, check_arguments
from latentia.models.layers.convolution import feature_size
from latentia.models.outputs import UNSET


@dataclass
class GaussianAutoencoderOutput(BaseOutput):
    """`reconstruction`: (B, C, H, W). `mean`, `log_variance` of q(z|x) and its sample `z`: (B, D, h, w)."""

    reconstruction: Tensor
    mean: Tensor = UNSET
    log_variance: Tensor = UNSET
    z: Tensor = UNSET


class GaussianAutoencoder(nn.Module):
    """The network that is trained: an AutoencoderKL, whose own `forward` draws noise itself and does not return q(z|x).

    A pipeline does not hold it but its `vae`, which is of diffusers' class.

    Args:
        vae: `AutoencoderKL`.

    Example:
        >>> network = GaussianAutoencoder(autoencoder_kl(16, 1, block_out_channels=(8, 8)))
        >>> out = network(torch.zeros(2, 1, 16, 16), torch.zeros(2, 4, 8, 8))
        >>> out.reconstruction.shape, bool((out.z == out.mean).all())
        (torch.Size([2, 1, 16, 16]), True)
    """

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor, noise: Tensor | None = None) -> GaussianAutoencoderOutput:
        """Encode images, make z of the noise, decode.

        Args:
            images: (B, C, H, W) in [-1, 1].
            noise: from N(0, 1), (B, D, h, w); `None` (default): z is the mean.
        """
        q = self.vae.encode(images).latent_dist
        z = q.mean if noise is None else q.mean + q.std * noise.to(q.mean.dtype)
        return GaussianAutoencoderOutput(self.vae.decode(z).sample, q.mean, q.logvar, z)


@check_arguments
def autoencoder_kl(
    sample_size: int,
    in_channels: Size = 3,
    block_out_channels: tuple[Size, ...] = (32, 64, 64),
    layers_per_block: Size = 1,
    latent_channels: Size = 4,
    norm_num_groups: Size = 8,
) -> AutoencoderKL:
    """diffusers' AutoencoderKL, checked, with the attention in its middle; random weights.

    Args:
        sample_size: height and width of the images in pixels, divisible by 2^(stages - 1).
        in_channels: of the image. Default 3.
        block_out_channels: channels of each stage from fine to coarse; every stage but the last halves the image.
            Default (32, 64, 64), which makes 16 x 16 latents of 64 x 64 images.
        layers_per_block: residual blocks of each stage. Default 1.
        latent_channels: channels D of the latents. Default 4.
        norm_num_groups: groups of the group norms; divides each of `block_out_channels`. Default 8.

    Raises:
        UsageError: a size that cannot be halved so often, groups that do not divide, numbers below 1, or more latents
            than values of the image.

    High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2021, 2112.10752), section 3.1.

    Example:
        >>> vae = autoencoder_kl(64)
        >>> vae.encode(torch.zeros(1, 3, 64, 64)).latent_dist.mean.shape
        torch.Size([1, 4, 16, 16])
    """
    widths, halvings = tuple(block_out_channels), len(block_out_channels) - 1
    if halvings < 1:
        raise UsageError(f"block_out_channels must be at least two numbers; got {widths}.")
    wrong = [width for width in widths if width % norm_num_groups]
    if wrong:
        raise UsageError(
            f"norm_num_groups must divide each of block_out_channels; got {norm_num_groups} groups and {wrong[0]} "
            "channels. Lower it, or choose multiples of it."
        )
    height, width = feature_size(sample_size, [1] * halvings)
    if latent_channels * height * width > in_channels * sample_size**2:
        raise UsageError(
            f"latent_channels must be at most {in_channels * 4**halvings}, so that there are no more latents than "
            f"values of the image; got {latent_channels}. More compress nothing."
        )
    return AutoencoderKL(
        in_channels=in_channels,
        out_channels=in_channels,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=layers_per_block,
        latent_channels=latent_channels,
        norm_num_groups=norm_num_groups,
        sample_size=sample_size,
    )


@torch.no_grad()
def latent_statistics(vae: AutoencoderKL, images: Tensor, batch_size: int = 64) -> tuple[float, float]:
    r"""Mean and standard deviation of all values of the latents of images, over q(z|x) too, in float64.

    \(\mathrm{Var}\,z = \mathrm{Var}\,\mu(x) + E\,\sigma^2(x)\), over images, channels and positions, so nothing is
    drawn.

    Args:
        vae: in evaluation mode.
        images: (N, C, H, W) in [-1, 1].
        batch_size: images that are encoded at once. Default 64.

    Returns:
        (mean, standard deviation), in the units of the latents.

    Raises:
        UsageError: there are no images.

    Rombach et al., 2021, 2112.10752, appendix G, which takes the standard deviation alone.

    Example:
        >>> mean, std = latent_statistics(autoencoder_kl(16, 1, (8, 8)).eval(), torch.rand(8, 1, 16, 16) * 2 - 1)
        >>> std > 0
        True
    """
    if not len(images):
        raise UsageError("images must be at least one; got none.")
    total, squares, count = 0.0, 0.0, 0
    for part in images.split(batch_size):
        q = vae.encode(part.to(vae.device, vae.dtype)).latent_dist
        mean, variance = q.mean.double(), q.var.double()
        total += float(mean.sum())
        squares += float((mean.square() + variance).sum())
        count += mean.numel()
    mean = total / count
    return mean, max(squares / count - mean**2, 0.0) ** 0.5
