"""Two players: a generator makes pictures, or points, of noise; a discriminator judges them."""

import math
from itertools import pairwise

from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from latentia.errors import UsageError
from latentia.models.layers.convolution import UPSAMPLES, check_choice
from latentia.models.layers.discriminator import (
    CONDITION_WIDTH,
    STRIDE,
    Condition,
    DCGANDiscriminatorOutput,
    DCGANGeneratorOutput,
    Dropout,
    Head,
    MinibatchStd,
    activation_named,
    check_groups,
    check_instance,
    check_kernel,
    check_numbers,
    dense,
    initialise,
    norm_of,
    normalise_spectra,
    packed,
    paddings,
    pyramid,
    with_condition,
)
from latentia.models.modeling import ModelMixin

GENERATOR_NORMS = ("batch", "instance", "none")
DISCRIMINATOR_NORMS = ("batch", "instance", "spectral", "none")


class DCGANGenerator(ModelMixin, ConfigMixin):
    """Noise to pictures: a linear layer, then levels of norm, activation and a doubling; tanh at the end.

    A label or caption enters as a code beside the noise.

    Args:
        sample_size: height and width in pixels, an integer or (H, W), at least 2^levels. Default 28.
        out_channels: channels of the picture. Default 1.
        latent_dim: dimensions of the noise. Default 100.
        block_out_channels: channels of each level from fine to coarse; each doubles the picture, and odd sides are
            made of their half rounded down. Default (64, 128).
        norm: "batch" (default; over all processes), "instance" or "none". None is at the output.
        activation: a name in `models.layers.convolution.ACTIVATIONS`. Default "relu".
        upsample: "transposed" (default; convolution of stride 2) or "resize" (nearest neighbour and a convolution).
        kernel_size: of a transposed convolution, at least 2. Default 4. One that 2 does not divide draws checkerboards
            and is warned of.
        num_class_embeds: number of classes; `None` (default): no labels.
        text_embed_dim: dimensions of a caption's vector, of any length; `None` (default): no captions.
        dropout: share of values set to 0 in each level. Default 0.
        keep_dropout: whether it stays on in evaluation, as a second source of noise, which torch's global generator
            drives. Default False.

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
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 28,
        out_channels: int = 1,
        latent_dim: int = 100,
        block_out_channels: tuple[int, ...] = (64, 128),
        norm: str = "batch",
        activation: str = "relu",
        upsample: str = "transposed",
        kernel_size: int = 4,
        num_class_embeds: int | None = None,
        text_embed_dim: int | None = None,
        dropout: float = 0.0,
        keep_dropout: bool = False,
    ):
        super().__init__()
        *sizes, top = pyramid(sample_size, block_out_channels)
        check_choice("norm", norm, GENERATOR_NORMS)
        check_choice("upsample", upsample, UPSAMPLES)
        check_numbers(out_channels=out_channels, latent_dim=latent_dim)
        check_instance(norm, top)
        if not 0 <= dropout < 1:
            raise UsageError(f"dropout must be in [0, 1); got {dropout}.")
        check_kernel(kernel_size, warn=upsample == "transposed")
        self.condition = Condition(num_class_embeds, text_embed_dim)
        channels = [*reversed(block_out_channels), out_channels]
        width = latent_dim + (CONDITION_WIDTH if self.condition else 0)
        self.top = nn.Sequential(
            nn.Linear(width, channels[0] * math.prod(top)), nn.Unflatten(1, (channels[0], *top))
        )  # (B, C, h, w)
        self.levels = nn.Sequential()
        for (a, b), size in zip(pairwise(channels), reversed(sizes)):
            level = [*norm_of(norm, a), activation_named(activation)]
            if dropout:
                level.append(Dropout(dropout, keep_dropout))
            if upsample == "resize":
                level += [nn.Upsample(size), nn.Conv2d(a, b, 3, padding=1)]
            else:
                bias = norm == "none" or size == sizes[0]  # else the next norm would cancel it
                level.append(nn.ConvTranspose2d(a, b, kernel_size, STRIDE, *paddings(kernel_size, size), bias=bias))
            self.levels.append(nn.Sequential(*level))
        initialise(self.top, self.levels, norm=norm)

    def forward(
        self,
        latents: Tensor,
        class_labels: Tensor | None = None,
        text_embeds: Tensor | None = None,
        return_dict: bool = True,
    ) -> DCGANGeneratorOutput | tuple[Tensor]:
        """Make pictures.

        Args:
            latents: noise, (B, latent_dim).
            class_labels: integers in [0, num_class_embeds), (B,).
            text_embeds: the captions' vectors, (B, text_embed_dim).
            return_dict: `False` returns the tuple `(sample,)`.
        """
        latents = with_condition(self, latents, class_labels, text_embeds)
        sample = self.levels(self.top(latents)).tanh()
        return DCGANGeneratorOutput(sample) if return_dict else (sample,)

    def decode(self, latents: Tensor, class_labels: Tensor | None = None, text_embeds: Tensor | None = None) -> Tensor:
        """The pictures alone, as a VAE's decoder gives them."""
        return self(latents, class_labels, text_embeds).sample


class DCGANDiscriminator(ModelMixin, ConfigMixin):
    r"""Pictures to one logit each: strided convolutions, a norm but at the input, leaky ReLU; no pooling.

    A label or caption with the code e adds the projection \(e(c) \cdot P \phi(x)\) to the logit.

    Args:
        sample_size: height and width in pixels, an integer or (H, W), at least 2^levels. Default 28.
        in_channels: channels of one picture. Default 1.
        block_out_channels: channels of each level from fine to coarse; each halves the picture. Default (64, 128).
        norm: "batch" (default; over all processes), "instance", "spectral" (of all weights, not of activations) or
            "none". Batch norm lets pictures see each other, so gradient penalties need one of the others.
        activation: "leaky_relu" (default, slope 0.2) or another name in `models.layers.convolution.ACTIVATIONS`.
        kernel_size: at least 2. Default 4. One that 2 does not divide gives gradients that are checkered.
        num_class_embeds: number of classes of the projection; `None` (default): no labels.
        text_embed_dim: dimensions of a caption's vector; `None` (default): no captions.
        num_aux_classes: classes that it tells apart itself, as an auxiliary classifier; `None` (default): none.
        minibatch_std: pictures of a group whose mean standard deviation is shown as one more channel, or `None`
            (default). Groups are of neighbours, so a split of a batch changes nothing. In evaluation it is the mean
            over training, so that each picture is judged alone.
        pack: neighbouring pictures that are judged as one, side by side in channels. Default 1. Without labels.

    Raises:
        UsageError: as for `DCGANGenerator`; a batch that groups or packs do not divide.

    Radford et al., 2015, 1511.06434, section 3. Spectral norm: Miyato et al., 2018, 1802.05957, algorithm 1.
    Projection: Miyato and Koyama, 2018, 1802.05637, eq. 3. Auxiliary classifier: Odena et al., 2016, 1610.09585.
    Standard deviation: Karras et al., 2017, 1710.10196, section 3. Packing: PacGAN (Lin et al., 2017, 1712.04086).

    Example:
        >>> import torch
        >>> discriminator = DCGANDiscriminator(sample_size=28, block_out_channels=(8, 16), norm="spectral")
        >>> out = discriminator(torch.rand(4, 1, 28, 28) * 2 - 1)
        >>> out.logits.shape, out.features.shape
        (torch.Size([4]), torch.Size([4, 784]))
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 28,
        in_channels: int = 1,
        block_out_channels: tuple[int, ...] = (64, 128),
        norm: str = "batch",
        activation: str = "leaky_relu",
        kernel_size: int = 4,
        num_class_embeds: int | None = None,
        text_embed_dim: int | None = None,
        num_aux_classes: int | None = None,
        minibatch_std: int | None = None,
        pack: int = 1,
    ):
        super().__init__()
        *sizes, top = pyramid(sample_size, block_out_channels)
        check_choice("norm", norm, DISCRIMINATOR_NORMS)
        check_numbers(in_channels=in_channels)
        check_groups(pack, minibatch_std, num_class_embeds, text_embed_dim, num_aux_classes)
        if len(block_out_channels) > 1:
            check_instance(norm, top)
        check_kernel(kernel_size, warn=True)
        self.image = (in_channels, *sizes[0])
        self.levels, channels = nn.Sequential(), in_channels * pack
        for out, size in zip(block_out_channels, sizes):
            norms = norm_of(norm, out) if self.levels else []
            conv = nn.Conv2d(channels, out, kernel_size, STRIDE, paddings(kernel_size, size)[0], bias=not norms)
            self.levels.append(nn.Sequential(conv, *norms, activation_named(activation)))
            channels = out
        features = (channels + bool(minibatch_std)) * math.prod(top)
        self.spread = MinibatchStd(minibatch_std) if minibatch_std else nn.Identity()
        self.head = Head(features, num_class_embeds, text_embed_dim, num_aux_classes)
        initialise(self.levels, self.head, norm=norm)
        if norm == "spectral":
            normalise_spectra(self)

    def forward(
        self,
        sample: Tensor,
        class_labels: Tensor | None = None,
        text_embeds: Tensor | None = None,
        return_dict: bool = True,
    ) -> DCGANDiscriminatorOutput | tuple[Tensor, ...]:
        """Judge pictures.

        Args:
            sample: (B, in_channels, H, W) in [-1, 1].
            class_labels: integers in [0, num_class_embeds), (B,): is it real *and* of this class?
            text_embeds: the captions' vectors, (B, text_embed_dim).
            return_dict: `False` returns a tuple.
        """
        if tuple(sample.shape[1:]) != self.image:
            raise UsageError(f"sample must be of shape (B, {str(self.image)[1:-1]}); got {tuple(sample.shape)}.")
        x = self.levels(packed(sample, self.config.pack))
        out = self.head(self.spread(x).flatten(1), class_labels, text_embeds)
        return out if return_dict else out.to_tuple()


class MLPGenerator(ModelMixin, ConfigMixin):
    """Noise to points: dense layers, the last linear. With `hidden_sizes=()` it is an affine map.

    Args:
        latent_dim: dimensions of the noise. Default 2.
        out_dim: dimensions D of a point. Default 2.
        hidden_sizes: width of each hidden layer. Default (8,), GAN Lab's (Kahng et al., 2018, 1809.01587).
        activation: a name in `models.layers.convolution.ACTIVATIONS`. Default "relu".

    Raises:
        UsageError: numbers below 1, an unknown name; labels, noise of another width.

    Example:
        >>> import torch
        >>> MLPGenerator(latent_dim=2, out_dim=2)(torch.randn(5, 2)).sample.shape
        torch.Size([5, 2])
    """

    @register_to_config
    def __init__(
        self,
        latent_dim: int = 2,
        out_dim: int = 2,
        hidden_sizes: tuple[int, ...] = (8,),
        activation: str = "relu",
    ):
        super().__init__()
        check_numbers(latent_dim=latent_dim, out_dim=out_dim, each_of_hidden_sizes=min(hidden_sizes, default=1))
        self.condition = Condition(None, None)
        self.layers = nn.Sequential(*dense((latent_dim, *hidden_sizes), activation))
        self.out = nn.Linear((latent_dim, *hidden_sizes)[-1], out_dim)

    def forward(
        self,
        latents: Tensor,
        class_labels: Tensor | None = None,
        text_embeds: Tensor | None = None,
        return_dict: bool = True,
    ) -> DCGANGeneratorOutput | tuple[Tensor]:
        """Points (B, out_dim) of noise (B, latent_dim); it takes no labels and no captions."""
        latents = with_condition(self, latents, class_labels, text_embeds)
        sample = self.out(self.layers(latents))
        return DCGANGeneratorOutput(sample) if return_dict else (sample,)

    def decode(self, latents: Tensor, class_labels: Tensor | None = None, text_embeds: Tensor | None = None) -> Tensor:
        """The points alone."""
        return self(latents, class_labels, text_embeds).sample


class MLPDiscriminator(ModelMixin, ConfigMixin):
    """Points to one logit each: dense layers.

    Args:
        in_dim: dimensions D of a point. Default 2.
        hidden_sizes: width of each hidden layer. Default (8,).
        activation: "leaky_relu" (default, slope 0.2) or another name in `models.layers.convolution.ACTIVATIONS`.
        norm: "none" (default) or "spectral".
        minibatch_std, pack: as for `DCGANDiscriminator`.

    Raises:
        UsageError: numbers below 1, an unknown name; labels, points of another width, a batch that groups or packs do
            not divide.

    Example:
        >>> import torch
        >>> MLPDiscriminator(pack=2)(torch.randn(6, 2)).logits.shape
        torch.Size([3])
    """

    @register_to_config
    def __init__(
        self,
        in_dim: int = 2,
        hidden_sizes: tuple[int, ...] = (8,),
        activation: str = "leaky_relu",
        norm: str = "none",
        minibatch_std: int | None = None,
        pack: int = 1,
    ):
        super().__init__()
        check_choice("norm", norm, ("spectral", "none"))
        check_numbers(in_dim=in_dim, each_of_hidden_sizes=min(hidden_sizes, default=1))
        check_groups(pack, minibatch_std)
        sizes = (in_dim * pack, *hidden_sizes)
        self.layers = nn.Sequential(*dense(sizes, activation))
        self.spread = MinibatchStd(minibatch_std) if minibatch_std else nn.Identity()
        self.head = Head(sizes[-1] + bool(minibatch_std))
        if norm == "spectral":
            normalise_spectra(self)

    def forward(
        self,
        sample: Tensor,
        class_labels: Tensor | None = None,
        text_embeds: Tensor | None = None,
        return_dict: bool = True,
    ) -> DCGANDiscriminatorOutput | tuple[Tensor, ...]:
        """Judge points (B, in_dim); it takes no labels and no captions."""
        if sample.ndim != 2 or sample.shape[1] != self.config.in_dim:
            raise UsageError(f"sample must be points (B, {self.config.in_dim}); got {tuple(sample.shape)}.")
        x = self.layers(packed(sample, self.config.pack))
        out = self.head(self.spread(x), class_labels, text_embeds)
        return out if return_dict else out.to_tuple()
