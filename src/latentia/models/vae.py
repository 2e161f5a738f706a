"""VAE: variational autoencoders with one stochastic layer or a hierarchy of them."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from latentia.errors import Positive, Size, UsageError, check_arguments, check_choice
from latentia.functional.checks import check_latents
from latentia.functional.distributions import LIKELIHOODS, log_mixture
from latentia.models.layers.categorical import MixedLatents
from latentia.models.layers.conditioning import check_class_labels
from latentia.models.layers.convolution import Decoder, Encoder, feature_size, image_size
from latentia.models.layers.gamma import GammaLatents
from latentia.models.layers.mlp import dense
from latentia.models.layers.stochastic import (
    StochasticHierarchy,
    StochasticLayer,
    layer_widths,
    split_parameters,
)
from latentia.models.modeling import ModelMixin
from latentia.models.outputs import UNSET
from latentia.models.priors import LatentMixture

NO_LIKELIHOOD = "none"
_WITHOUT_SCALE = ("bernoulli", NO_LIKELIHOOD)
_CLASS_WIDTH = 32
PRIORS = ("normal", "mixture", "vamp")
INFERENCES = ("bottom_up", "top_down")
POSTERIORS = ("gaussian", "gamma")


@dataclass
class VAEOutput(BaseOutput):
    r"""Everything that an objective needs of q(z|x) and p(x|z), where p(z) = N(0, I) for a hierarchy too.

    `reconstruction`: the mean of p(x|z), in [-1, 1] for Bernoulli pixels, of shape (B, C, H, W), or (B, K, C, H, W)
    if K samples of z were asked for. `location`: the parameter of p(x|z) before any scale, of that shape: logits of
    Bernoulli pixels, else means. `mean`, `log_variance`: of q(z|x), (B, D). `z`: its samples, (B, D) or (B, K, D).
    `log_scale`: () logarithm of a Gaussian's standard deviation or a logistic's scale; None for the others.

    Of a hierarchy `z` holds all layers, from the image upwards, standardised as `VAE` says, and `mean` and
    `log_variance` have its shape: those of a layer depend on the samples of the others. `layers`: each in its own
    units, `layers[0].z` being the input of the decoder. `log_prior`: of a learned prior log p(z), (B,) or (B, K).
    `correction`: of gamma latents what corrects the gradient of their samples, see `latentia.functional.gamma`.
    """

    reconstruction: Tensor
    location: Tensor = UNSET
    mean: Tensor = UNSET
    log_variance: Tensor = UNSET
    z: Tensor = UNSET
    log_scale: Tensor | None = None
    layers: tuple[StochasticLayer, ...] = UNSET
    log_prior: Tensor | None = None
    correction: Tensor | None = None


class VAE(ModelMixin, ConfigMixin):
    r"""A variational autoencoder: \(q(z|x) = N(\mu(x), \mathrm{diag}\,\sigma^2(x))\), \(p(z) = N(0, I)\), p(x|z).

    The image passes `block_out_channels` convolutional stages (none by default), then `hidden_sizes` dense layers,
    then the layer that gives mean and log-variance of q; the decoder is the mirror. `hidden_sizes=(200, 200)`,
    `latent_dim=50` and "tanh" are the network of the IWAE paper with one stochastic layer;
    `hidden_sizes=((200, 200), (100, 100))`, `latent_dim=(100, 50)` and "tanh" that with two.

    A hierarchy of stochastic layers: \(q(z|x) = q(z_1|x) \prod_l q(z_{l+1}|z_l)\) and
    \(p(z) = p(z_L) \prod_l p(z_l|z_{l+1})\), diagonal Gaussians with p(z_L) = N(0, I), and p(x|z_1). Latents then hold
    all layers side by side, each in units of its prior, see `latentia.models.layers.stochastic.StochasticHierarchy`, so
    that they mean the same for one layer and for several: p is N(0, I).

    Args:
        sample_size: height and width in pixels, an integer or (H, W). Default 28.
        in_channels: channels of the image. Default 1.
        latent_dim: dimensions of z, at most the values of an image; or of each stochastic layer, from the image
            upwards; `None`: none, beside `categories`. Default 16.
        hidden_sizes: width of each dense layer on the way in; of a hierarchy such a tuple for each stochastic layer,
            those of layer l lying between z_{l-1} and z_l. Default (400,).
        block_out_channels: channels of each convolutional stage from fine to coarse, each of which halves the image;
            `()` (default): a dense network.
        layers_per_block: convolutions of each stage. Default 1.
        norm: of the convolutions: "none", "group" (default) or "batch" (over all processes).
        upsample: "transposed" (default) or "resize".
        activation: a name in `latentia.models.layers.mlp.ACTIVATIONS`. Default "silu".
        likelihood: p(x|z), independent over values given z: "bernoulli" (of pixels that are black or white; it works on
            (x + 1) / 2), "gaussian", or "discretized_logistic" (of pixels with 256 values); or "none": the decoder
            gives an image and no density, as a VAE-GAN's. Default "bernoulli".
        observation_std: standard deviation of a Gaussian likelihood (scale of a logistic one) in units of [-1, 1], the
            same for all values; `None` (default): learned, as one number.
        num_class_embeds: number of classes that q(z_1|x) and p(x|z_1) are conditioned on; `None` (default): no labels.
        prior: of the topmost layer, "normal" (default), N(0, I); "mixture", of `prior_components` learned normal
            distributions; or "vamp", of the posteriors of so many learned pseudo-inputs. These two know no labels.
        prior_components: number of components of a learned prior. Default 100.
        inference: of a hierarchy, "bottom_up" (default) or "top_down", a ladder's.
        categories: numbers of categories of discrete latents beside z, such as 10 of one, relaxed by Gumbel-softmax in
            training; see `latentia.models.layers.categorical.MixedLatents`. Default (): none.
        posterior: "gaussian" (default), or "gamma", whose latents are positive and have the prior Gamma(1, 1); see
            `latentia.models.layers.gamma.GammaLatents`.

    Raises:
        UsageError: more latents than values of an image, a size that cannot be mirrored, a hierarchy without its
            widths, an unknown name, a scale for a Bernoulli likelihood, labels that are missing or not expected.

    Auto-Encoding Variational Bayes (Kingma and Welling, 2013, 1312.6114); hierarchy: Importance Weighted
    Autoencoders (Burda et al., 2015, 1509.00519), eq. 1 and 2; learned variance: Simple and Effective VAE
    Training with Calibrated Decoders (Rybkin et al., 2020, 2006.13202); conditional: Learning Structured Output
    Representation (Sohn et al., 2015); pseudo-inputs: VAE with a VampPrior (Tomczak and Welling, 2017, 1705.07120), eq.
    9; ladder: Sønderby et al., 2016, 1602.02282; categorical: Jang et al., 2016, 1611.01144.

    Example:
        >>> vae = VAE(sample_size=8, latent_dim=4, hidden_sizes=(32,))
        >>> out = vae(torch.rand(2, 1, 8, 8) * 2 - 1, noise=torch.randn(2, 5, 4))  # 5 samples of z each
        >>> out.mean.shape, out.z.shape, out.reconstruction.shape
        (torch.Size([2, 4]), torch.Size([2, 5, 4]), torch.Size([2, 5, 1, 8, 8]))
        >>> vae = VAE(sample_size=8, latent_dim=(6, 2), hidden_sizes=((32,), (16,)))
        >>> out = vae(torch.rand(2, 1, 8, 8) * 2 - 1, noise=torch.randn(2, 8))
        >>> out.z.shape, [layer.z.shape[1] for layer in out.layers]
        (torch.Size([2, 8]), [6, 2])
    """

    _skip_layerwise_casting_patterns: Any = ("posterior",)  # whose dtype is read

    @register_to_config
    @check_arguments
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 28,
        in_channels: Size = 1,
        latent_dim: Size | tuple[Size, ...] | None = 16,
        hidden_sizes: tuple[Size, ...] | tuple[tuple[Size, ...], ...] = (400,),
        block_out_channels: tuple[Size, ...] = (),
        layers_per_block: Size = 1,
        norm: str = "group",
        upsample: str = "transposed",
        activation: str = "silu",
        likelihood: str = "bernoulli",
        observation_std: Positive | None = None,
        num_class_embeds: Size | None = None,
        prior: str = "normal",
        prior_components: Size = 100,
        inference: str = "bottom_up",
        categories: tuple[Size, ...] = (),
        posterior: str = "gaussian",
    ):
        super().__init__()
        size = image_size(sample_size)
        self._image, values = (in_channels, *size), in_channels * size[0] * size[1]
        check_choice("likelihood", likelihood, (*LIKELIHOODS, NO_LIKELIHOOD))
        check_choice("prior", prior, PRIORS)
        check_choice("inference", inference, INFERENCES)
        check_choice("posterior", posterior, POSTERIORS)
        if posterior == "gamma" and (not isinstance(latent_dim, int) or categories or prior != "normal"):
            raise UsageError(
                'posterior must be "gaussian" for several stochastic layers, categories or a learned prior; got '
                f'"gamma" beside latent_dim={latent_dim}, categories={categories} and prior="{prior}".'
            )
        if prior != "normal" and num_class_embeds is not None:
            raise UsageError(f'prior must be "normal" beside num_class_embeds, as it knows no labels; got "{prior}".')
        discrete = MixedLatents(_continuous(latent_dim, categories, prior), categories) if categories else None
        sizes, (hidden, *above) = layer_widths(discrete.sizes[0] if discrete else latent_dim, hidden_sizes)
        if not all(1 <= dimensions <= values for dimensions in sizes):
            raise UsageError(
                f"latent_dim must be from 1 to {values}, the values of an image of {in_channels} x {size[0]} x "
                f"{size[1]}; got {latent_dim}. More latents than values compress nothing."
            )
        if inference == "top_down" and len(sizes) == 1:
            raise UsageError(
                'inference must be "bottom_up" for one stochastic layer; got "top_down" beside '
                f"latent_dim={latent_dim}. A ladder has a latent_dim for each layer."
            )
        if observation_std is not None and (likelihood in _WITHOUT_SCALE or not 0 < observation_std < math.inf):
            raise UsageError(
                'observation_std must be positive, and is of the likelihoods "gaussian" and "discretized_logistic"; '
                f'got {observation_std} for "{likelihood}". Leave it out to learn it.'
            )

        # A label enters as one more channel on the way in, and as more values beside z on the way back.
        class_planes, class_width = 0, 0
        if num_class_embeds is not None:
            class_planes, class_width = 1, _CLASS_WIDTH
            self.encoder_class_embedding = nn.Embedding(num_class_embeds, size[0] * size[1])
            self.decoder_class_embedding = nn.Embedding(num_class_embeds, class_width)
        self._features: tuple[int, ...] = self._image
        encoded = (in_channels + class_planes) * size[0] * size[1]
        self.encoder: nn.Module = nn.Identity()
        self.decoder: nn.Module = nn.Identity()
        if block_out_channels:
            self._features = (block_out_channels[-1], *feature_size(size, block_out_channels))
            encoded = math.prod(self._features)
            stages = (block_out_channels, size, layers_per_block, norm, activation)
            self.encoder = Encoder(in_channels + class_planes, *stages)
            self.decoder = Decoder(in_channels, *stages, upsample=upsample)
        way_in, way_out = (encoded, *hidden), (sizes[0] + class_width, *hidden[::-1])
        self.encoder_mlp = nn.Sequential(nn.Flatten(), *dense(way_in, activation))
        self.posterior = nn.Linear(way_in[-1], 2 * sizes[0])
        self.decoder_mlp = nn.Sequential(*dense(way_out, activation), nn.Linear(way_out[-1], math.prod(self._features)))
        if posterior == "gamma":
            self.hierarchy: Any = GammaLatents(sizes[0])
        else:
            self.hierarchy = discrete or StochasticHierarchy(sizes, above, activation, inference == "top_down")
        if prior == "mixture":
            self.prior_mean = nn.Parameter(torch.randn(prior_components, sizes[-1]))
            self.prior_log_variance = nn.Parameter(torch.zeros(prior_components, sizes[-1]))
        elif prior == "vamp":
            self.pseudo_inputs = nn.Parameter(torch.randn(prior_components, *self._image))  # tanh of them is in [-1, 1]
        if likelihood not in _WITHOUT_SCALE and observation_std is None:
            self.log_scale = nn.Parameter(torch.tensor(-1.0))

    def encode(
        self, x: Tensor, class_labels: Tensor | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x), each (B, D), of images (B, C, H, W) in [-1, 1].

        D is the sum of the stochastic layers. Of a hierarchy these are the mean and log-variance that `noise`, (B, D),
        of the other layers leaves; `None` (default): all at their means. The log-variance of each layer in its own
        units is kept in [-30, 20], so that neither it nor a divergence overflows.
        """
        layers = self.hierarchy.infer(*self.encode_first(x, class_labels), noise)
        return self.hierarchy.standardize(layers)[:2]

    def decode(self, z: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """The location of p(x|z), (B, C, H, W), of latents (B, D): logits of Bernoulli pixels, else means."""
        return self._location(self.hierarchy.generate(z), class_labels)

    def encode_first(self, x: Tensor, class_labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z_1|x), of the first stochastic layer, each (B, D_1)."""
        check_class_labels(class_labels, self.config.num_class_embeds)
        if class_labels is not None:
            plane = self.encoder_class_embedding(class_labels).view(-1, 1, *self._image[1:])
            x = torch.cat([x, plane.to(x.dtype).expand(len(x), -1, -1, -1)], 1)
        h = self.encoder_mlp(self.encoder(x))
        return split_parameters(self.posterior(h).to(self.posterior.weight.dtype))

    def prior_parameters(self) -> tuple[Tensor, Tensor] | None:
        """Means and log-variances (K, D) of the components of a learned prior, of all layers; None for N(0, I)."""
        if self.config.prior == "normal":
            return None
        if self.config.prior == "mixture":
            mean, log_variance = self.prior_mean[:], self.prior_log_variance[:]
        else:
            mean, log_variance, _ = self.hierarchy.infer(*self.encode_first(self.pseudo_inputs.tanh()))[-1]
        below = mean.new_zeros(len(mean), sum(self.hierarchy.sizes[:-1]))
        return torch.cat([below, mean], 1), torch.cat([below, log_variance], 1)

    @torch.no_grad()
    def fixed_prior(self) -> LatentMixture | None:
        """The learned prior as it is now, to draw from and for likelihoods; None for N(0, I)."""
        parameters = self.prior_parameters()
        return None if parameters is None else LatentMixture.of_components(*parameters)

    def mean_of(self, location: Tensor) -> Tensor:
        """The mean of p(x|z), or the image of a decoder without density, in [-1, 1], given its location."""
        return torch.tanh(location / 2) if self.config.likelihood in _WITHOUT_SCALE else location  # 2 sigmoid(l) - 1

    def forward(
        self,
        x: Tensor | None,
        noise: Tensor | None = None,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
        constant_posterior: bool = False,
        latents: Tensor | None = None,
        decoder_gradient: float = 1.0,
        temperature: float | None = None,
    ) -> VAEOutput | tuple[Any, ...]:
        """Encode, sample z, decode; or decode latents alone.

        Args:
            x: images in [-1, 1], (B, C, H, W); `None` if `latents` are decoded.
            noise: N(0, 1) from which z is made, (B, D), or (B, K, D) for K samples, D being the sum of the stochastic
                layers; `None`: z is the posterior mean.
            class_labels: integers in [0, num_class_embeds), (B,).
            return_dict: `False` returns a tuple.
            constant_posterior: whether `mean` and `log_variance` are those of a q whose weights have no derivative,
                while z has one: with it q's density at z depends on z alone. Default `False`.
            latents: (B, D), decoded in place of samples of q(z|x): the output has `reconstruction`, `location` and
                `log_scale` alone. `None` (default): encode x.
            decoder_gradient: factor of the gradient that z gets from the decoder; z itself stays as it is. Default 1.
            temperature: of relaxed categories; `None` (default): one-hot samples, without derivatives.

        Raises:
            UsageError: both x and latents, or neither; latents of another width; labels that are missing or not
                expected; a temperature without categories.
        """
        if x is None:
            if latents is None:
                raise UsageError("x must be images to encode, or None beside latents to decode; got neither.")
            check_latents(latents, sum(self.hierarchy.sizes))
            location = self.decode(latents, class_labels)
            decoded = VAEOutput(self.mean_of(location), location, log_scale=self.observation_log_scale(location))
            return decoded if return_dict else decoded.to_tuple()
        if latents is not None:
            raise UsageError("latents are decoded in place of images that are encoded; got both, so leave one out.")
        if temperature is not None and not self.config.categories:
            raise UsageError(
                f"temperature is of categories, which this network has not; got {temperature}. Leave it out."
            )
        relaxed = {} if temperature is None else {"temperature": temperature}
        first = self.encode_first(x, class_labels)
        layers = self.hierarchy.infer(*first, noise, **relaxed)
        gamma = self.config.posterior == "gamma" and noise is not None
        correction = self.hierarchy.correction(*first, noise) if gamma else None
        if constant_posterior:
            layers = self.hierarchy.with_constant_posterior(layers)
        z = layers[0].z
        if decoder_gradient != 1:
            z = z.detach() + decoder_gradient * (z - z.detach())  # to the bit: what is added is 0
        if z.ndim == 3:
            labels = None if class_labels is None else class_labels.repeat_interleave(z.shape[1])
            location = self._location(z.flatten(0, 1), labels).unflatten(0, z.shape[:2])
        else:
            location = self._location(z, class_labels)
        scale = self.observation_log_scale(location)
        mean, log_variance, z = self.hierarchy.standardize(layers)
        components = self.prior_parameters()
        log_prior = None if components is None else log_mixture(z, *components)
        image, parts = self.mean_of(location), (mean, log_variance, z)
        out = VAEOutput(image, location, *parts, scale, tuple(layers), log_prior, correction=correction)
        return out if return_dict else out.to_tuple()

    def observation_log_scale(self, like: Tensor) -> Tensor | None:
        """The logarithm of the scale of p(x|z), (), in dtype and on device of `like`; None for one that has none."""
        if self.config.likelihood in _WITHOUT_SCALE:
            return None
        fixed = self.config.observation_std
        return self.log_scale if fixed is None else like.new_full((), math.log(fixed))

    def _location(self, z: Tensor, class_labels: Tensor | None) -> Tensor:
        check_class_labels(class_labels, self.config.num_class_embeds)
        if class_labels is not None:
            z = torch.cat([z, self.decoder_class_embedding(class_labels).to(z.dtype).expand(len(z), -1)], 1)
        location = self.decoder(self.decoder_mlp(z).unflatten(1, self._features))
        return location.to(self.posterior.weight.dtype)


def _continuous(latent_dim: Any, categories: tuple[int, ...], prior: str) -> int:
    """Continuous latents beside categories."""
    if isinstance(latent_dim, tuple):
        raise UsageError(f"latent_dim must be one number or None beside categories={categories}; got {latent_dim}.")
    if prior != "normal":
        raise UsageError(
            f'prior must be "normal" beside categories={categories}, whose prior is uniform; got "{prior}".'
        )
    if min(categories) < 2:
        raise UsageError(f"categories must each be at least 2; got {categories}. One category says nothing.")
    return latent_dim or 0
