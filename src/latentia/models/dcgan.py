"""DCGAN: a convolutional generator and discriminator of images."""

import math
import warnings
from itertools import pairwise
from typing import Annotated, Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from latentia.errors import Range, Rate, Size, UsageError, check_arguments, check_choice, check_range
from latentia.functional.checks import check_latents
from latentia.models.layers.conditioning import ConditionEmbedding
from latentia.models.layers.convolution import STRIDE, UPSAMPLES, paddings, stage_sizes
from latentia.models.layers.discriminator import (
    LEAKY_SLOPE,
    DiscriminatorHead,
    MinibatchStd,
    check_groups,
    init_weights,
    pack_samples,
)
from latentia.models.layers.dropout import SeededDropout
from latentia.models.layers.mlp import make_activation
from latentia.models.layers.norm import add_spectral_norm, make_norm
from latentia.models.modeling import ModelMixin
from latentia.models.outputs import DiscriminatorOutput, GeneratorOutput

GENERATOR_NORMS = ("batch", "instance", "none")
DISCRIMINATOR_NORMS = ("batch", "instance", "spectral", "none")
_BETWEEN_ACTIVATIONS = ("batch", "instance")


class DCGANGenerator(ModelMixin, ConfigMixin):
    """The DCGAN generator, noise to images: a linear layer, then stages of norm, activation and a doubling; tanh.

    A label or caption enters as an embedding beside the noise.

    Args:
        sample_size: height and width in pixels, an integer or (H, W), at least 2^stages. Default 28.
        out_channels: channels of the image. Default 1.
        latent_dim: dimensions of the noise. Default 100.
        block_out_channels: channels of each stage from fine to coarse; each doubles the image, and odd sides are
            made of their half rounded down. Default (64, 128).
        norm: "batch" (default; over all processes), "instance" or "none". None is at the output.
        activation: a name in `latentia.models.layers.mlp.ACTIVATIONS`. Default "relu".
        upsample: "transposed" (default; convolution of stride 2) or "resize" (nearest neighbour and a convolution).
        kernel_size: of a transposed convolution, at least 2. Default 4. One that 2 does not divide draws checkerboards
            and is warned of.
        num_class_embeds: number of classes; `None` (default): no labels.
        text_embed_dim: dimensions of a caption's vector, of any length; `None` (default): no captions.
        dropout: share of values set to 0 in each stage. Default 0.
        keep_dropout: whether it stays on in evaluation, as a second source of noise, a function of the seed of each
            image. Default False.

    Raises:
        UsageError: a size that is halved to nothing, numbers out of range, unknown names; labels or captions that
            are missing or not expected; noise of another width; a batch of one in training with batch norm.

    Unsupervised Representation Learning with Deep Convolutional GANs (Radford et al., 2015, 1511.06434), section 3; its
    initialisation N(0, 0.02), or He's where there is no norm. Kernel and stride: Deconvolution and Checkerboard
    Artifacts (Odena et al., 2016, doi:10.23915/distill.00003). Dropout as noise: pix2pix (Isola et al., 2016,
    1611.07004), section 3.

    Example:
        >>> import torch
        >>> generator = DCGANGenerator(sample_size=28, latent_dim=16, block_out_channels=(8, 16), num_class_embeds=10)
        >>> generator(torch.randn(4, 16), class_labels=torch.tensor([0, 1, 2, 3])).sample.shape
        torch.Size([4, 1, 28, 28])
    """

    @register_to_config
    @check_arguments
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 28,
        out_channels: Size = 1,
        latent_dim: Size = 100,
        block_out_channels: tuple[Size, ...] = (64, 128),
        norm: str = "batch",
        activation: str = "relu",
        upsample: str = "transposed",
        kernel_size: int = 4,
        num_class_embeds: Size | None = None,
        text_embed_dim: Size | None = None,
        dropout: Rate = 0.0,
        keep_dropout: bool = False,
    ):
        super().__init__()
        *sizes, top = stage_sizes(sample_size, block_out_channels)
        check_choice("norm", norm, GENERATOR_NORMS)
        check_choice("upsample", upsample, UPSAMPLES)
        _check_instance(norm, top)
        _check_kernel(kernel_size, warn=upsample == "transposed")
        self.condition = ConditionEmbedding(num_class_embeds, text_embed_dim)
        channels = [*reversed(block_out_channels), out_channels]
        self.project_in = nn.Sequential(
            nn.Linear(latent_dim + self.condition.width, channels[0] * math.prod(top)),
            nn.Unflatten(1, (channels[0], *top)),  # (B, C, h, w)
        )
        self.up_blocks = nn.Sequential()
        for place, ((a, b), size) in enumerate(zip(pairwise(channels), reversed(sizes))):
            block = [make_norm(norm, a), make_activation(activation, negative_slope=LEAKY_SLOPE)]
            if dropout:
                block.append(SeededDropout(dropout, keep_dropout, place))
            if upsample == "resize":
                block += [nn.Upsample(size), nn.Conv2d(a, b, 3, padding=1)]
            else:
                bias = norm not in _BETWEEN_ACTIVATIONS or size == sizes[0]  # else the next norm would cancel it
                padding, extra = paddings(kernel_size, size)
                block.append(nn.ConvTranspose2d(a, b, kernel_size, STRIDE, padding, extra, bias=bias))
            self.up_blocks.append(nn.Sequential(*block))
        init_weights(self.project_in, self.up_blocks, norm=norm)

    def forward(
        self,
        latents: Tensor,
        class_labels: Tensor | None = None,
        text_embeds: Tensor | None = None,
        return_dict: bool = True,
        dropout_seeds: Tensor | None = None,
    ) -> GeneratorOutput | tuple[Tensor]:
        """Generate images.

        Args:
            latents: noise, (B, latent_dim).
            class_labels: integers in [0, num_class_embeds), (B,).
            text_embeds: vectors of the captions, (B, text_embed_dim).
            dropout_seeds: int64 (B,), see `SeededDropout`; `None` (default): torch's generator in training, else 0.
            return_dict: `False` returns the tuple `(sample,)`.
        """
        check_latents(latents, self.config.latent_dim)
        embedding = self.condition(class_labels, text_embeds)
        if embedding is not None:
            latents = torch.cat([latents, embedding], 1)
        x = self.project_in(latents)
        for layer in [layer for block in self.up_blocks for layer in block.children()]:
            x = layer(x, dropout_seeds) if isinstance(layer, SeededDropout) else layer(x)
        sample = x.tanh()
        return GeneratorOutput(sample) if return_dict else (sample,)

    def decode(
        self,
        latents: Tensor,
        class_labels: Tensor | None = None,
        text_embeds: Tensor | None = None,
        dropout_seeds: Tensor | None = None,
    ) -> Tensor:
        """The images alone, as a VAE's decoder returns them."""
        return self(latents, class_labels, text_embeds, dropout_seeds=dropout_seeds).sample


class DCGANDiscriminator(ModelMixin, ConfigMixin):
    r"""The DCGAN discriminator, images to one logit each: strided convolutions, norms but at the input, leaky ReLU.

    A label or caption with the embedding e adds the projection \(e(c) \cdot P \phi(x)\) to the logit.

    Args:
        sample_size: height and width in pixels, an integer or (H, W), at least 2^stages. Default 28.
        in_channels: channels of one image. Default 1.
        block_out_channels: channels of each stage from fine to coarse; each halves the image. Default (64, 128).
        norm: "batch" (default; over all processes), "instance", "spectral" (of all weights, not of activations) or
            "none". With batch norm images depend on each other, so gradient penalties need one of the others.
        activation: "leaky_relu" (default, slope 0.2) or another name in `latentia.models.layers.mlp.ACTIVATIONS`.
        kernel_size: at least 2. Default 4. One that 2 does not divide gives gradients that are checkered.
        num_class_embeds: number of classes of the projection; `None` (default): no labels.
        text_embed_dim: dimensions of a caption's vector; `None` (default): no captions.
        num_aux_classes: classes of an auxiliary classifier; `None` (default): none.
        minibatch_std: images of a group whose mean standard deviation is added as one more channel, or `None`
            (default). Groups are of neighbours, so a split of a batch changes nothing. In evaluation it is the mean
            over training, so that the logit of an image does not depend on others.
        pack: neighbouring images that are classified as one, side by side in channels. Default 1. Without labels.
        num_timesteps: the largest time t of diffused images (Diffusion-GAN), whose embedding is added to that of the
            labels in the projection; `None` (default): no times.

    Raises:
        UsageError: as for `DCGANGenerator`; a batch that groups or packs do not divide.

    Radford et al., 2015, 1511.06434, section 3. Spectral norm: Miyato et al., 2018, 1802.05957, algorithm 1.
    Projection: Miyato and Koyama, 2018, 1802.05637, eq. 3. Auxiliary classifier: Odena et al., 2016, 1610.09585.
    Standard deviation: Karras et al., 2017, 1710.10196, section 3. Packing: PacGAN (Lin et al., 2017, 1712.04086).
    Times: Diffusion-GAN (Wang et al., 2022, 2206.02262), section 3.2.

    Example:
        >>> import torch
        >>> discriminator = DCGANDiscriminator(sample_size=28, block_out_channels=(8, 16), norm="spectral")
        >>> out = discriminator(torch.rand(4, 1, 28, 28) * 2 - 1)
        >>> out.logits.shape, out.features.shape
        (torch.Size([4]), torch.Size([4, 784]))
    """

    _skip_layerwise_casting_patterns: Any = ("to_logit",)  # whose weight is read

    @register_to_config
    @check_arguments
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 28,
        in_channels: Size = 1,
        block_out_channels: tuple[Size, ...] = (64, 128),
        norm: str = "batch",
        activation: str = "leaky_relu",
        kernel_size: int = 4,
        num_class_embeds: Size | None = None,
        text_embed_dim: Size | None = None,
        num_aux_classes: int | None = None,
        minibatch_std: Annotated[int, Range(0, most=2**20)] | None = None,
        pack: Size = 1,
        num_timesteps: Size | None = None,
    ):
        super().__init__()
        *sizes, top = stage_sizes(sample_size, block_out_channels)
        check_choice("norm", norm, DISCRIMINATOR_NORMS)
        check_groups(pack, minibatch_std, num_class_embeds, text_embed_dim, num_aux_classes)
        if len(block_out_channels) > 1:
            _check_instance(norm, top)
        _check_kernel(kernel_size, warn=True)
        self.image_shape = (in_channels, *sizes[0])
        self.down_blocks, channels = nn.Sequential(), in_channels * pack
        for i, (out, size) in enumerate(zip(block_out_channels, sizes)):
            own_norm = norm if i else "none"
            bias = own_norm not in _BETWEEN_ACTIVATIONS
            conv = nn.Conv2d(channels, out, kernel_size, STRIDE, paddings(kernel_size, size)[0], bias=bias)
            activate = make_activation(activation, negative_slope=LEAKY_SLOPE)
            self.down_blocks.append(nn.Sequential(conv, make_norm(own_norm, out), activate))
            channels = out
        features = (channels + bool(minibatch_std)) * math.prod(top)
        self.minibatch_std = MinibatchStd(minibatch_std) if minibatch_std else nn.Identity()
        self.head = DiscriminatorHead(features, num_class_embeds, text_embed_dim, num_aux_classes, num_timesteps)
        init_weights(self.down_blocks, self.head, norm=norm)
        if norm == "spectral":
            add_spectral_norm(self)

    @property
    def feature_layers(self) -> tuple[str, ...]:
        """Names of the layers whose output `forward` can give: the stages, from fine to coarse."""
        return tuple(f"down_blocks.{i}" for i in range(len(self.down_blocks)))

    def forward(
        self,
        sample: Tensor,
        class_labels: Tensor | None = None,
        text_embeds: Tensor | None = None,
        return_dict: bool = True,
        timesteps: Tensor | None = None,
        feature_layer: str | None = None,
    ) -> DiscriminatorOutput | tuple[Any, ...]:
        """Logits of images.

        Args:
            sample: (B, in_channels, H, W) in [-1, 1].
            class_labels: integers in [0, num_class_embeds), (B,): the logit is of being real *and* of this class.
            text_embeds: vectors of the captions, (B, text_embed_dim).
            return_dict: `False` returns a tuple.
            timesteps: times of diffused images, integers in [0, num_timesteps], (B,), one for each pack; `None`
                (default): 0, images as they are.
            feature_layer: one of `feature_layers`, whose output, (B, F), is `features` instead of the input of the last
                layer; `None` (default): that.
        """
        if feature_layer is not None:
            check_choice("feature_layer", feature_layer, self.feature_layers)
        if tuple(sample.shape[1:]) != self.image_shape:
            raise UsageError(f"sample must be of shape (B, {str(self.image_shape)[1:-1]}); got {tuple(sample.shape)}.")
        x, features = pack_samples(sample, self.config.pack), None
        for name, block in zip(self.feature_layers, self.down_blocks):
            x = block(x)
            features = x.flatten(1) if name == feature_layer else features
        times = None if timesteps is None else timesteps[:: self.config.pack]
        out = self.head(self.minibatch_std(x).flatten(1), class_labels, text_embeds, times)
        out.features = out.features if features is None else features
        return out if return_dict else out.to_tuple()


def _check_kernel(kernel_size: int, warn: bool) -> None:
    """Refuses a kernel that leaves pixels out, and warns of one that draws checkerboards."""
    check_range("kernel_size", kernel_size, STRIDE)
    if warn and kernel_size % STRIDE:
        warnings.warn(
            f"kernel_size={kernel_size} is not divisible by the stride, {STRIDE}: pixels get unequally many "
            f"contributions, which shows as a checkerboard. Use {kernel_size + 1}.",
            stacklevel=5,
        )


def _check_instance(norm: str, top: tuple[int, int]) -> None:
    """Refuses an instance norm of a single pixel."""
    if norm == "instance" and math.prod(top) == 1:
        raise UsageError(
            'norm="instance" needs more than one pixel after the last stage, or all values become 0; got 1 x 1. Use '
            "fewer block_out_channels."
        )
