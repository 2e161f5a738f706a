"""VAE: a Gaussian code for each picture, of one or several levels, and a distribution over pictures for each code."""

import math
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from latentia.errors import UsageError
from latentia.models.layers.convolution import Decoder, Encoder, check_choice, image_size, pyramid_size
from latentia.models.layers.stochastic import Level, Levels, dense, level_widths, parameters_of
from latentia.models.modeling import UNSET, ModelMixin

DECODERS = ("bernoulli", "gaussian", "discretized_logistic")
_CLASS_WIDTH = 32


@dataclass
class VAEOutput(BaseOutput):
    r"""Everything that an objective needs of q(z|x) and p(x|z), where p(z) = N(0, I) whatever the number of levels.

    `reconstruction`: the mean of p(x|z), in [-1, 1] for a Bernoulli decoder, of shape (B, C, H, W), or (B, K, C, H, W)
    if K samples of z were asked for. `location`: the parameter of p(x|z) before any scale, of that shape: logits of a
    Bernoulli decoder, else means. `mean`, `log_variance`: of q(z|x), (B, D). `z`: its samples, (B, D) or (B, K, D).
    `log_scale`: () logarithm of a Gaussian's standard deviation or a logistic's scale; None for Bernoulli.

    Of several levels `z` holds all, from the picture upwards, standardised as `VAE` says, and `mean` and
    `log_variance` have its shape: those of a level depend on the samples of the others. `levels`: each in its own
    units, `levels[0].z` being what the decoder got.
    """

    reconstruction: Tensor
    location: Tensor = UNSET
    mean: Tensor = UNSET
    log_variance: Tensor = UNSET
    z: Tensor = UNSET
    log_scale: Tensor | None = None
    levels: tuple[Level, ...] = UNSET


class VAE(ModelMixin, ConfigMixin):
    r"""A variational autoencoder: \(q(z|x) = N(\mu(x), \mathrm{diag}\,\sigma^2(x))\), \(p(z) = N(0, I)\), p(x|z).

    The picture passes `block_out_channels` convolutional levels (none by default), then `hidden_sizes` dense layers,
    then the two heads of q; the decoder is the mirror. `hidden_sizes=(200, 200)`, `latent_dim=50` and "tanh" are the
    network of the IWAE paper with one stochastic layer; `hidden_sizes=((200, 200), (100, 100))`,
    `latent_dim=(100, 50)` and "tanh" that with two.

    Several layers: \(q(z|x) = q(z_1|x) \prod_l q(z_{l+1}|z_l)\) and \(p(z) = p(z_L) \prod_l p(z_l|z_{l+1})\), diagonal
    Gaussians with p(z_L) = N(0, I), and p(x|z_1). A code then holds all levels side by side, each in units of its
    prior, see `models.layers.stochastic.Levels`, so that it means the same for one level and for several: p is N(0, I).

    Args:
        sample_size: height and width in pixels, an integer or (H, W). Default 28.
        in_channels: channels of the picture. Default 1.
        latent_dim: dimensions of z, at most the values of a picture; or of each level, from the picture upwards.
            Default 16.
        hidden_sizes: width of each dense layer on the way in; of several levels such a tuple for each, those of level
            l lying between z_{l-1} and z_l. Default (400,).
        block_out_channels: channels of each convolutional level from fine to coarse, each of which halves the picture;
            `()` (default): a dense network.
        layers_per_block: convolutions of each level. Default 1.
        norm: of the convolutions: "none", "group" (default) or "batch".
        upsample: "transposed" (default) or "resize".
        activation: a name in `models.layers.convolution.ACTIVATIONS`. Default "silu".
        decoder: p(x|z), independent over values given z: "bernoulli" (of pixels that are black or white; it works on
            (x + 1) / 2), "gaussian", or "discretized_logistic" (of pixels with 256 levels).
        observation_std: standard deviation of a Gaussian decoder (scale of a logistic one) in units of [-1, 1], the
            same for all values; `None` (default): learned, as one number.
        num_class_embeds: number of classes that q(z_1|x) and p(x|z_1) are told; `None` (default): no labels.

    Raises:
        UsageError: a latent larger than the picture, a size that cannot be mirrored, levels without their widths, an
            unknown name, a scale for a Bernoulli decoder, labels that are missing or not expected.

    Auto-Encoding Variational Bayes (Kingma and Welling, 2013, 1312.6114); several layers: Importance Weighted
    Autoencoders (Burda et al., 2015, 1509.00519), eq. 1 and 2; learned variance: Simple and Effective VAE
    Training with Calibrated Decoders (Rybkin et al., 2020, 2006.13202); conditional: Learning Structured Output
    Representation (Sohn et al., 2015).

    Example:
        >>> vae = VAE(sample_size=8, latent_dim=4, hidden_sizes=(32,))
        >>> out = vae(torch.rand(2, 1, 8, 8) * 2 - 1, noise=torch.randn(2, 5, 4))  # 5 samples of z each
        >>> out.mean.shape, out.z.shape, out.reconstruction.shape
        (torch.Size([2, 4]), torch.Size([2, 5, 4]), torch.Size([2, 5, 1, 8, 8]))
        >>> vae = VAE(sample_size=8, latent_dim=(6, 2), hidden_sizes=((32,), (16,)))
        >>> out = vae(torch.rand(2, 1, 8, 8) * 2 - 1, noise=torch.randn(2, 8))
        >>> out.z.shape, [level.z.shape[1] for level in out.levels]
        (torch.Size([2, 8]), [6, 2])
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 28,
        in_channels: int = 1,
        latent_dim: int | tuple[int, ...] = 16,
        hidden_sizes: tuple[int, ...] | tuple[tuple[int, ...], ...] = (400,),
        block_out_channels: tuple[int, ...] = (),
        layers_per_block: int = 1,
        norm: str = "group",
        upsample: str = "transposed",
        activation: str = "silu",
        decoder: str = "bernoulli",
        observation_std: float | None = None,
        num_class_embeds: int | None = None,
    ):
        super().__init__()
        size = image_size(sample_size)
        self._image, values = (in_channels, *size), in_channels * size[0] * size[1]
        check_choice("decoder", decoder, DECODERS)
        for name, value in {"in_channels": in_channels, "num_class_embeds": num_class_embeds or 1}.items():
            if value < 1:
                raise UsageError(f"{name} must be at least 1; got {value}.")
        sizes, (hidden, *above) = level_widths(latent_dim, hidden_sizes)
        if not all(1 <= dimensions <= values for dimensions in sizes):
            raise UsageError(
                f"latent_dim must be from 1 to {values}, the values of a picture of {in_channels} x {size[0]} x "
                f"{size[1]}; got {latent_dim}. A code larger than the picture compresses nothing."
            )
        if any(width < 1 for widths in (hidden, *above) for width in widths):
            raise UsageError(f"hidden_sizes must be at least 1 each; got {tuple(hidden_sizes)}.")
        if observation_std is not None and (decoder == "bernoulli" or not 0 < observation_std < math.inf):
            raise UsageError(
                f'observation_std must be positive, and is of the decoders "gaussian" and "discretized_logistic"; got '
                f'{observation_std} for "{decoder}". Leave it out to learn it.'
            )

        # A label enters as one more channel on the way in, and as more values beside z on the way back.
        labelled, beside = num_class_embeds is not None, 0
        if labelled:
            beside = _CLASS_WIDTH
            self.class_plane = nn.Embedding(num_class_embeds, size[0] * size[1])
            self.class_code = nn.Embedding(num_class_embeds, beside)
        pixels_in = in_channels + labelled
        pyramid = {"layers_per_block": layers_per_block, "norm": norm, "activation": activation}
        if block_out_channels:
            inner = (block_out_channels[-1], *pyramid_size(size, block_out_channels))
            self.features: nn.Module = Encoder(pixels_in, block_out_channels, size, **pyramid)
            self.pictures: nn.Module = Decoder(in_channels, block_out_channels, size, **pyramid, upsample=upsample)
            ends = [math.prod(inner)] * 2
        else:
            inner = self._image
            self.features = self.pictures = nn.Identity()
            ends = [pixels_in * size[0] * size[1], values]
        self._inner = inner
        back = hidden[::-1]
        self.down = nn.Sequential(nn.Flatten(), *dense((ends[0], *hidden), activation))
        self.heads = nn.Linear((ends[0], *hidden)[-1], 2 * sizes[0])
        self.up = nn.Sequential(*dense((sizes[0] + beside, *back), activation))
        self.out = nn.Linear((sizes[0] + beside, *back)[-1], ends[1])
        self.levels = Levels(sizes, above, activation)
        if decoder != "bernoulli" and observation_std is None:
            self.log_scale = nn.Parameter(torch.tensor(-1.0))

    def encode(
        self, x: Tensor, class_labels: Tensor | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x), each (B, D), of pictures (B, C, H, W) in [-1, 1].

        D is the sum of the levels. If there are several, these are the mean and log-variance that `noise`, (B, D), of
        the other levels leaves; `None` (default): all at their means. The log-variance of each level in its own units
        is kept in [-30, 20], so that neither it nor a divergence overflows.
        """
        return self.levels.standardised(self.levels.climb(*self.first(x, class_labels), noise))[:2]

    def decode(self, z: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """The location of p(x|z), (B, C, H, W), of codes (B, D): logits of a Bernoulli decoder, else means."""
        return self._location(self.levels.descend(z), class_labels)

    def first(self, x: Tensor, class_labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z_1|x), each (B, D_1)."""
        self._check_labels(class_labels)
        if class_labels is not None:
            plane = self.class_plane(class_labels).view(-1, 1, *self._image[1:])
            x = torch.cat([x, plane.to(x.dtype).expand(len(x), -1, -1, -1)], 1)
        return parameters_of(self.heads(self.down(self.features(x))).to(self.heads.weight.dtype))

    def mean_of(self, location: Tensor) -> Tensor:
        """The mean of p(x|z) in [-1, 1], given its location."""
        return torch.tanh(location / 2) if self.config.decoder == "bernoulli" else location  # 2 sigmoid(l) - 1

    def forward(
        self,
        x: Tensor,
        noise: Tensor | None = None,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
        constant_posterior: bool = False,
    ) -> VAEOutput | tuple[Tensor, ...]:
        """Encode, sample z, decode.

        Args:
            x: pictures in [-1, 1], (B, C, H, W).
            noise: N(0, 1) from which z is made, (B, D), or (B, K, D) for K samples, D being the sum of the levels;
                `None`: z is the posterior mean.
            class_labels: integers in [0, num_class_embeds), (B,).
            return_dict: `False` returns a tuple.
            constant_posterior: whether `mean` and `log_variance` are those of a q whose weights have no derivative,
                while z has one: with it q's density at z depends on z alone. Default `False`.
        """
        levels = self.levels.climb(*self.first(x, class_labels), noise)
        if constant_posterior:
            levels = self.levels.with_constant_posterior(levels)
        z = levels[0].z
        if z.ndim == 3:
            labels = None if class_labels is None else class_labels.repeat_interleave(z.shape[1])
            location = self._location(z.flatten(0, 1), labels).unflatten(0, z.shape[:2])
        else:
            location = self._location(z, class_labels)
        scale = self.observation_log_scale(location)
        out = VAEOutput(self.mean_of(location), location, *self.levels.standardised(levels), scale, tuple(levels))
        return out if return_dict else out.to_tuple()

    def observation_log_scale(self, like: Tensor) -> Tensor | None:
        """The logarithm of the scale of p(x|z), (), in dtype and on device of `like`; None for a Bernoulli decoder."""
        if self.config.decoder == "bernoulli":
            return None
        fixed = self.config.observation_std
        return self.log_scale if fixed is None else like.new_full((), math.log(fixed))

    def _location(self, z: Tensor, class_labels: Tensor | None) -> Tensor:
        self._check_labels(class_labels)
        if class_labels is not None:
            z = torch.cat([z, self.class_code(class_labels).to(z.dtype).expand(len(z), -1)], 1)
        location = self.pictures(self.out(self.up(z)).unflatten(1, self._inner))
        return location.to(self.out.weight.dtype)

    def _check_labels(self, class_labels: Tensor | None) -> None:
        classes = self.config.num_class_embeds
        if class_labels is None and classes is not None:
            raise UsageError(f"class_labels are missing: this network was told the labels of {classes} classes.")
        if class_labels is not None and classes is None:
            raise UsageError("class_labels were given, but this network has none; set num_class_embeds for them.")
