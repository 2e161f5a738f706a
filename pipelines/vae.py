"""Sampling, reconstruction, interpolation, latent traversals and likelihood bounds with a variational autoencoder."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from latentia.errors import UsageError, check_range
from latentia.functional.bounds import importance_weighted_bound
from latentia.functional.chunks import in_chunks
from latentia.functional.distributions import log_likelihood, log_normal
from latentia.functional.interpolation import interpolate
from latentia.models.layers.convolution import image_size
from latentia.pipelines.arguments import (
    Generators,
    check_call,
    count_images,
    draw_noise,
    draw_uniform,
    image_generators,
)
from latentia.pipelines.base import DiffusionPipeline, Labels
from latentia.pipelines.capabilities import Likelihood
from latentia.pipelines.images import Images, check_output_type, from_input, to_output


class VAEPipeline(DiffusionPipeline):
    """Variational autoencoder: sampling, encoding, interpolation, traversals, attribute vectors, likelihood bounds.

    Images are the mean of p(x|z), as is usual: its pixels are independent given z, so that their noise would only be
    grain.

    A latent has D values, all stochastic layers of the network side by side from the image upwards, in units in which
    the prior is N(0, I). So every method means the same for several layers as for one: the last values are the topmost
    layer, and a traversal of one of them moves all that depends on it.

    Args:
        vae: `VAE`.
        prior: the density that latents are drawn from instead of N(0, I), such as a `LatentMixture` fitted to those of
            the training images: has `sample(n, generators) -> (n, D)` and, for likelihoods, `log_prob(z)`. `None`
            (default): that of the network, which may have learned one.
        label_names: names of the classes, in the order of their indices; `None` (default): none.

    Example:
        >>> from latentia import VAE
        >>> pipe = VAEPipeline(VAE(sample_size=8, latent_dim=4))
        >>> image = pipe(batch_size=2, generator=torch.Generator().manual_seed(0)).images[0]
        >>> pipe.encode(image).shape, pipe.reconstruct(image)[0].size
        (torch.Size([1, 4]), (8, 8))
    """

    vae: Any
    prior: Any

    model_cpu_offload_seq = "vae"
    _optional_components = ["prior"]  # noqa: RUF012 (diffusers reads a list)

    conditions = ("class_labels",)
    latents = "continuous"
    latent_conditions = ("class_labels",)

    def __init__(self, vae, prior=None, label_names: Sequence[str] | Mapping[str, str] | None = None):
        super().__init__()
        if not hasattr(vae, "mean_of") or not hasattr(getattr(vae, "config", None), "likelihood"):
            raise UsageError(f"vae must be a VAE, which has a distribution of pixels; got {type(vae).__name__}.")
        if prior is None and vae.config.prior != "normal":
            prior = vae.fixed_prior()
        self.register_modules(vae=vae, prior=prior)
        self._register_label_names(label_names)

    @property
    def likelihood(self) -> Likelihood | None:
        """A lower bound, of what the decoder is a distribution of; None if it has no density, as a VAE-GAN's."""
        if self.vae.config.likelihood == "none":
            return None
        if self.vae.config.likelihood == "gaussian":
            return Likelihood("lower bound", "density")
        return Likelihood("lower bound", "binarised pixels" if self._binary else "256 bins")

    @check_call
    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        *,
        class_labels: Labels = None,
        temperature: float = 1.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        r"""Sample images: z from the prior, then the decoder.

        Args:
            batch_size: number of images; `None` (default): as many as `class_labels` or `latents`, else 1.
            class_labels: an index or a name, or one for each image. A network that is conditioned on classes needs it.
            temperature: factor of z ~ N(0, I). 1 (default) is the model; less makes images more typical and alike.
            generator: one `torch.Generator` or one per image. The same seed gives the same images whatever the batch.
            latents: decode these, (B, D), instead of drawing some.
            output_type: "pil", "np" ((B, H, W, C) in [0, 1]), "pt" ((B, C, H, W) in [0, 1]) or "latent" (raw).
            return_dict: `False` returns the tuple `(images,)`.

        Returns:
            `.images`.

        Raises:
            UsageError: an argument out of its range, or labels that are missing or not known.
        """
        check_output_type(output_type)
        if not 0 <= temperature < math.inf or (temperature != 1 and self.prior is not None):
            raise UsageError(
                f"temperature must be at least 0 and finite, and 1 beside a fitted prior; got {temperature}."
            )
        batch_size = count_images(batch_size, {"latents": latents}, class_labels=class_labels)
        if latents is None:
            generators = image_generators(generator, batch_size)
            latents = (
                self._noise(generators, self._size) if self.prior is None else self.prior.sample(batch_size, generators)
            )
        images = self.decode(temperature * latents, class_labels=class_labels, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @torch.no_grad()
    def encode(
        self,
        images: Images,
        *,
        class_labels: Labels = None,
        sample_posterior: bool = False,
        generator: Generators = None,
    ) -> Tensor:
        """Latents of images: means of q(z|x), each layer's at the mean of the one below, or samples of it.

        Args:
            images: images, or what `from_input` takes.
            class_labels: as for sampling.
            sample_posterior: `False` (default): the means; `True`: a sample each.
            generator: of the samples, one or one per image.

        Returns:
            (B, D).
        """
        x = self._input(images).to(self.vae.dtype)
        first = self._first(x, class_labels)
        noise = self._noise(image_generators(generator, len(x)), self._noise_size) if sample_posterior else None
        return self._posterior(first, noise)[-1]

    @torch.no_grad()
    def decode(self, latents: Tensor, *, class_labels: Labels = None, output_type: str = "pil") -> Any:
        """Images of latents (B, D)."""
        check_output_type(output_type)
        return to_output(self.vae.mean_of(self._locations(latents, class_labels)), output_type)

    @torch.no_grad()
    def reconstruct(
        self,
        images: Images,
        *,
        class_labels: Labels = None,
        sample_posterior: bool = False,
        generator: Generators = None,
        output_type: str = "pil",
    ) -> Any:
        """Reconstruct images: encode and decode, with the arguments of both."""
        z = self.encode(images, class_labels=class_labels, sample_posterior=sample_posterior, generator=generator)
        return self.decode(z, class_labels=class_labels, output_type=output_type)

    @torch.no_grad()
    def interpolate(
        self,
        a: Images,
        b: Images,
        steps: int = 8,
        *,
        mode: str = "lerp",
        class_labels: Labels = None,
        output_type: str = "pil",
    ) -> Any:
        """Interpolate two images in the latent space: `steps` images, both ends included.

        Args:
            a, b: an image each.
            steps: at least 2. Default 8.
            mode: "lerp" (default): the straight line; "slerp": the great circle, which keeps the length of latents.
            class_labels: one for all, for a network that is conditioned on classes.
            output_type: as for sampling.
        """
        start, end = (self.encode(image, class_labels=class_labels) for image in (a, b))
        if len(start) != 1 or len(end) != 1:
            raise UsageError(f"a and b must be one image each; got {len(start)} and {len(end)}.")
        return self.decode(interpolate(start, end, steps, mode), class_labels=class_labels, output_type=output_type)

    @torch.no_grad()
    def log_likelihood(
        self, images: Images, *, class_labels: Labels = None, samples: int = 1, generator: Generators = None
    ) -> Tensor:
        r"""A lower bound on log p(x), in nats per image, summed over pixels: \(\log \frac1k \sum_i w_i\).

        With one sample it is an unbiased estimate of the ELBO, with more a tighter bound, and with thousands nearly
        log p(x). A Bernoulli decoder's pixels are binarised first, each white with probability (v + 1) / 2. Without
        labels, a network that is conditioned on them gives the mean over its classes, \(p(x) = \frac1K \sum_c p(x|c)\).

        Args:
            images: images, or what `from_input` takes.
            class_labels: as for sampling, or `None`.
            samples: k, at least 1. Default 1; papers take 5000.
            generator: one, or one per image.

        Returns:
            float64, (B,). Divide by \(-\ln 2\) and the number of values of an image for bits per dimension; of the
            density of a Gaussian decoder see `latentia.evaluation.bits_per_dimension`.

        Raises:
            UsageError: the decoder has no density.

        Importance Weighted Autoencoders (Burda et al., 2015, 1509.00519), eq. 8.
        """
        if self.likelihood is None:
            self._cannot("log_likelihood", 'its decoder is no density of pixels (likelihood="none"), as in a VAE-GAN')
        if self.prior is not None and (self.vae.config.categories or self.vae.config.posterior != "gaussian"):
            raise UsageError(
                "prior must be None for a likelihood with categories or gamma latents, of which a density of latent "
                f"vectors is none; got {type(self.prior).__name__}. Leave it out: they have priors of their own."
            )
        check_range("samples", samples, 1)
        x = self._input(images)
        generators = image_generators(generator, len(x))
        if self._binary:
            uniform = draw_uniform(generators, x.shape[1:], x.device)
            x = torch.where(uniform < (x + 1) / 2, 1.0, -1.0).to(x.dtype)
        if class_labels is None and self.num_classes is not None:
            every = [self._bound(x, c, samples, generators) for c in range(self.num_classes)]
            return importance_weighted_bound(torch.stack(every, 1))
        return self._bound(x, class_labels, samples, generators)

    @torch.no_grad()
    def traversals(
        self,
        image: Images,
        *,
        dimensions: Sequence[int] | None = None,
        steps: int = 9,
        span: float = 3.0,
        class_labels: Labels = None,
        output_type: str = "pil",
    ) -> Any:
        """Latent traversals: rows in which one dimension of an image's latent moves from -span to span.

        Args:
            image: one image.
            dimensions: which; `None` (default): all.
            steps: images in a row, at least 2. Default 9.
            span: default 3, in standard deviations of N(0, 1).
            class_labels: one, for a network that is conditioned on classes.
            output_type: "latent": (rows, steps, C, H, W); else one image of them all, "pil", "np" or "pt".
        """
        z, size = self.encode(image, class_labels=class_labels), self._size
        dimensions = list(range(size)) if dimensions is None else list(dimensions)
        if len(z) != 1 or steps < 2 or not dimensions or not all(0 <= j < size for j in dimensions):
            raise UsageError(
                f"traversals take one image, at least 2 steps and dimensions from 0 to {size - 1}; got {len(z)}, "
                f"{steps} and {dimensions}."
            )
        latents = z.repeat(len(dimensions), steps, 1)
        for row, j in enumerate(dimensions):
            latents[row, :, j] = torch.linspace(-span, span, steps, device=z.device)
        return self._sheet(latents, class_labels, output_type)

    @torch.no_grad()
    def manifold(self, size: int = 20, *, class_labels: Labels = None, output_type: str = "pil") -> Any:
        """The manifold of a latent plane: size x size latents at the quantiles (i + 1/2) / size of N(0, 1), decoded.

        Args:
            size: rows and columns, at least 2. Default 20.
            class_labels: one, for a network that is conditioned on classes.
            output_type: as for `traversals`.

        Raises:
            UsageError: the latent has not two dimensions.
        """
        if self._size != 2 or size < 2:
            raise UsageError(
                f"manifold needs latent_dim=2 and at least 2 rows; got latent_dim={self._size} and "
                f"{size}. For more dimensions see traversals."
            )
        at = torch.special.ndtri((torch.arange(size, dtype=torch.float64) + 0.5) / size)
        latents = torch.stack(torch.meshgrid(at.flip(0), at, indexing="ij")[::-1], 2)  # x to the right, y upwards
        return self._sheet(latents.to(self.vae.dtype), class_labels, output_type)

    def attribute_vector(self, images_with: Images, images_without: Images, *, class_labels: Labels = None) -> Tensor:
        """Attribute vector, (D,): the mean latent of images that have an attribute minus that of those without.

        Sampling Generative Networks (White, 2016, 1609.04468), section 3.
        """
        having, lacking = (self.encode(images, class_labels=class_labels) for images in (images_with, images_without))
        return having.mean(0) - lacking.mean(0)

    def add_attribute(
        self,
        images: Images,
        vector: Tensor,
        *,
        strength: float = 1.0,
        class_labels: Labels = None,
        output_type: str = "pil",
    ) -> Any:
        """Add `strength` times an attribute vector to the latents of images; a negative strength takes it away."""
        z = self.encode(images, class_labels=class_labels) + strength * vector.to(self._execution_device)
        return self.decode(z, class_labels=class_labels, output_type=output_type)

    # ------------------------------------------------------------ parts

    @property
    def _binary(self) -> bool:
        return self.vae.config.likelihood == "bernoulli"

    def _input(self, images: Images) -> Tensor:
        """(B, C, H, W) in at least float32, as densities need it."""
        config = self.vae.config
        place = {"device": self._execution_device, "dtype": self._wide}
        return from_input(images, channels=config.in_channels, size=image_size(config.sample_size), **place)

    @property
    def _wide(self) -> torch.dtype:
        """The type of sums over pixels: float32 where the network computes in half precision."""
        return torch.promote_types(self.vae.dtype, torch.float32)

    @property
    def _size(self) -> int:
        """Values of a latent."""
        return sum(self.vae.hierarchy.sizes)

    @property
    def _noise_size(self) -> int:
        """Normal numbers of which a sample of the posterior is made."""
        return self.vae.hierarchy.noise_size

    def _noise(self, generators: list[torch.Generator], size: int) -> Tensor:
        return draw_noise(generators, (size,), self._execution_device, self.vae.dtype)

    def _first(self, x: Tensor, class_labels: Labels) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z_1|x)."""
        return in_chunks(self.vae.encode_first, x, self._class_indices(class_labels, len(x), required=True))

    def _posterior(self, first: tuple[Tensor, Tensor], noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, log-variance and sample of q(z|x), all stochastic layers side by side."""
        hierarchy = self.vae.hierarchy
        return in_chunks(lambda *parts: hierarchy.standardize(hierarchy.infer(*parts)), *first, noise)

    def _locations(self, latents: Tensor, class_labels: Labels) -> Tensor:
        z = latents.to(self._execution_device, self.vae.dtype)
        if z.ndim != 2 or z.shape[1] != self._size or not len(z):
            raise UsageError(f"latents must have shape (B, {self._size}); got {tuple(z.shape)}.")
        return in_chunks(self.vae.decode, z, self._class_indices(class_labels, len(z), required=True))

    def _bound(self, x: Tensor, class_labels: Labels, samples: int, generators: list[torch.Generator]) -> Tensor:
        first = self._first(x.to(self.vae.dtype), class_labels)
        scale, log_weights = self.vae.observation_log_scale(x), []
        for _ in range(samples):
            mean, log_variance, z = (
                part.to(x.dtype) for part in self._posterior(first, self._noise(generators, self._noise_size))
            )
            location = self._locations(z, class_labels).to(x.dtype)
            log_p = log_likelihood(self.vae.config.likelihood, x, location, scale)
            if self.prior is None:
                log_weights.append(
                    log_p.double() + in_chunks(self.vae.hierarchy.log_ratio, mean, log_variance, z).double()
                )
            else:
                log_p = log_p + self.prior.log_prob(z)
                log_weights.append(log_p.double() - log_normal(z, mean, log_variance).double())
        return importance_weighted_bound(torch.stack(log_weights, 1))

    def _sheet(self, latents: Tensor, class_labels: Labels, output_type: str) -> Any:
        rows, columns = latents.shape[:2]
        images = self.decode(latents.flatten(0, 1), class_labels=class_labels, output_type="latent")
        images = images.unflatten(0, (rows, columns))
        if output_type == "latent":
            return images
        height, width = images.shape[-2:]
        tiled = images.permute(2, 0, 3, 1, 4).reshape(1, -1, rows * height, columns * width)
        return to_output(tiled, output_type)[0]
