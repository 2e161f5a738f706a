"""Pictures from a variational autoencoder, and its codes: walks, directions, maps, likelihoods."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from latentia.errors import UsageError
from latentia.evaluation.likelihood.bounds import importance_weights, log_mean_exp
from latentia.functional.distributions import log_likelihood, log_normal
from latentia.models.layers.convolution import image_size
from latentia.pipelines.autoencoder import between
from latentia.pipelines.base import DiffusionPipeline, Labels, check_output_type, from_input, to_output
from latentia.pipelines.capabilities import Likelihood
from latentia.pipelines.unconditional import Generators, image_generators

_CHUNK = 64  # codes decoded at once: one shape of a batch, so that a picture does not depend on its neighbours


class VAEPipeline(DiffusionPipeline):
    """Sampling and everything that a code is good for.

    Pictures are the mean of p(x|z), as is usual: its pixels are independent given z, so that their noise would only be
    grain.

    A code has D values, all levels of the network side by side from the picture upwards, in units in which the prior
    is N(0, I); see `latentia.models.layers.stochastic.StochasticHierarchy`. So every word means for several layers what
    it means for one: the last values are the topmost layer, and a walk along one of them moves all that depends on it.

    Args:
        vae: `VAE`.
        prior: what codes are drawn from instead of N(0, I), such as a `LatentMixture` fitted to the codes of the
            training images: has `sample(n, generators) -> (n, D)` and, for likelihoods, `log_prob(z)`.
        label_names: names of the classes, in the order of their indices; `None` (default): none.

    Example:
        >>> from latentia import VAE
        >>> pipe = VAEPipeline(VAE(sample_size=8, latent_dim=4))
        >>> picture = pipe(batch_size=2, generator=torch.Generator().manual_seed(0)).images[0]
        >>> pipe.encode(picture).shape, pipe.reconstruct(picture)[0].size
        (torch.Size([1, 4]), (8, 8))
    """

    model_cpu_offload_seq = "vae"
    _optional_components = ["prior"]  # noqa: RUF012 (diffusers reads a list)

    conditions = ("class_labels",)
    latents = "continuous"
    latent_conditions = ("class_labels",)

    def __init__(self, vae, prior=None, label_names: Sequence[str] | Mapping[str, str] | None = None):
        super().__init__()
        self.register_modules(vae=vae, prior=prior)
        self._register_label_names(label_names)

    @property
    def likelihood(self) -> Likelihood:
        """A lower bound, of what the decoder is a distribution of."""
        if self.vae.config.likelihood == "gaussian":
            return Likelihood("lower bound", "density")
        return Likelihood("lower bound", "binarised pixels" if self._binary else "256 levels")

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
        r"""Sample pictures: z from the prior, then the decoder.

        Args:
            batch_size: number of pictures; `None` (default): as many as `class_labels` or `latents`, else 1.
            class_labels: an index or a name, or one for each picture. A network that was told labels needs them.
            temperature: factor of z ~ N(0, I). 1 (default) is the model; less makes pictures more typical and alike.
            generator: one `torch.Generator` or one per picture. The same seed gives the same pictures whatever the
                batch.
            latents: codes to decode, (B, D), instead of drawn ones.
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
        count = len(class_labels) if isinstance(class_labels, Sequence | Tensor) and _several(class_labels) else None
        count = len(latents) if latents is not None else count
        batch_size = (count or 1) if batch_size is None else batch_size
        if batch_size < 1 or (latents is not None and batch_size != len(latents)):
            raise UsageError(
                f"batch_size must be at least 1, and the number of latents if they are given; got {batch_size}."
            )
        if latents is None:
            generators = image_generators(generator, batch_size)
            if self.prior is None:
                latents = self._noise(generators)
            else:
                latents = self.prior.sample(batch_size, generators)
        images = self.decode(temperature * latents, class_labels=class_labels, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @torch.no_grad()
    def encode(
        self,
        images: Any,
        *,
        class_labels: Labels = None,
        sample_posterior: bool = False,
        generator: Generators = None,
    ) -> Tensor:
        """The codes of pictures: means of q(z|x), each level's at the mean of the one below, or samples of it.

        Args:
            images: pictures, or what `from_input` takes.
            class_labels: as for sampling.
            sample_posterior: `False` (default): the means; `True`: a sample each.
            generator: of the samples, one or one per picture.

        Returns:
            (B, D).
        """
        x = self._input(images)
        first = self._first(x, class_labels)
        noise = self._noise(image_generators(generator, len(x))) if sample_posterior else None
        return self._codes(first, noise)[-1]

    @torch.no_grad()
    def decode(self, latents: Tensor, *, class_labels: Labels = None, output_type: str = "pil") -> Any:
        """The pictures of codes (B, D)."""
        check_output_type(output_type)
        return to_output(self.vae.mean_of(self._locations(latents, class_labels)), output_type)

    @torch.no_grad()
    def reconstruct(
        self,
        images: Any,
        *,
        class_labels: Labels = None,
        sample_posterior: bool = False,
        generator: Generators = None,
        output_type: str = "pil",
    ) -> Any:
        """The pictures of the pictures' codes; arguments as for `encode` and `decode`."""
        z = self.encode(images, class_labels=class_labels, sample_posterior=sample_posterior, generator=generator)
        return self.decode(z, class_labels=class_labels, output_type=output_type)

    @torch.no_grad()
    def interpolate(
        self, a: Any, b: Any, steps: int, *, mode: str = "lerp", class_labels: Labels = None, output_type: str = "pil"
    ) -> Any:
        """`steps` pictures on the way from picture `a` to picture `b`: mixed codes, decoded.

        Args:
            a, b: a picture each.
            steps: at least 2, both ends included.
            mode: "lerp" (default): the straight line; "slerp": the great circle, which keeps the codes' length.
            class_labels: one for all, for a network that was told labels.
            output_type: as for sampling.
        """
        start, end = (self.encode(image, class_labels=class_labels) for image in (a, b))
        if len(start) != 1 or len(end) != 1:
            raise UsageError(f"a and b must be one picture each; got {len(start)} and {len(end)}.")
        return self.decode(between(start, end, steps, mode), class_labels=class_labels, output_type=output_type)

    @torch.no_grad()
    def log_likelihood(
        self, images: Any, *, class_labels: Labels = None, samples: int = 1, generator: Generators = None
    ) -> Tensor:
        r"""A lower bound on log p(x), in nats per picture, summed over pixels: \(\log \frac1k \sum_i w_i\).

        With one sample it is an unbiased estimate of the ELBO, with more a tighter bound, and with thousands nearly
        log p(x). A Bernoulli decoder's pixels are binarised first, each white with probability (v + 1) / 2. Without
        labels, a network that was told them gives the mean over its classes, \(p(x) = \frac1K \sum_c p(x|c)\).

        Args:
            images: pictures, or what `from_input` takes.
            class_labels: as for sampling, or `None`.
            samples: k, at least 1. Default 1; papers take 5000.
            generator: one, or one per picture.

        Returns:
            float64, (B,). Divide by \(-\ln 2\) and the number of values of a picture for bits per dimension; of the
            density of a Gaussian decoder see `latentia.evaluation.bits_per_dimension`.

        Importance Weighted Autoencoders (Burda et al., 2015, 1509.00519), eq. 8.
        """
        x = self._input(images)
        generators = image_generators(generator, len(x))
        if self._binary:
            uniform = torch.stack([torch.rand(x.shape[1:], generator=g, device=g.device) for g in generators])
            x = torch.where(uniform.to(x.device) < (x + 1) / 2, 1.0, -1.0).to(x.dtype)
        if class_labels is None and self.num_classes is not None:
            every = [self._bound(x, c, samples, generators) for c in range(self.num_classes)]
            return log_mean_exp(torch.stack(every, 1), 1)
        return self._bound(x, class_labels, samples, generators)

    def anomaly_score(self, images: Any, **options: Any) -> Tensor:
        """How unlikely pictures are: the negative `log_likelihood`, in nats, with its arguments. Larger is stranger.

        Simple pictures may score as typical although none like them was seen (Nalisnick et al., 2018, 1810.09136).
        """
        return -self.log_likelihood(images, **options)

    @torch.no_grad()
    def traversals(
        self,
        image: Any,
        *,
        dimensions: Sequence[int] | None = None,
        steps: int = 9,
        span: float = 3.0,
        class_labels: Labels = None,
        output_type: str = "pil",
    ) -> Any:
        """One row for each dimension of the code of a picture, moved from -span to span while the others stay.

        Args:
            image: one picture.
            dimensions: which; `None` (default): all.
            steps: pictures in a row, at least 2. Default 9.
            span: default 3, in standard deviations of N(0, 1).
            class_labels: one, for a network that was told labels.
            output_type: "latent": (rows, steps, C, H, W); else one picture of them all, "pil", "np" or "pt".
        """
        z, size = self.encode(image, class_labels=class_labels), self._size
        dimensions = list(range(size)) if dimensions is None else list(dimensions)
        if len(z) != 1 or steps < 2 or not dimensions or not all(0 <= j < size for j in dimensions):
            raise UsageError(
                f"traversals take one picture, at least 2 steps and dimensions from 0 to {size - 1}; got {len(z)}, "
                f"{steps} and {dimensions}."
            )
        codes = z.repeat(len(dimensions), steps, 1)
        for row, j in enumerate(dimensions):
            codes[row, :, j] = torch.linspace(-span, span, steps)
        return self._sheet(codes, class_labels, output_type)

    @torch.no_grad()
    def manifold(self, size: int = 20, *, class_labels: Labels = None, output_type: str = "pil") -> Any:
        """The picture of a latent plane: size x size codes at the quantiles (i + 1/2) / size of N(0, 1), decoded.

        Args:
            size: rows and columns, at least 2. Default 20.
            class_labels: one, for a network that was told labels.
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
        codes = torch.stack(torch.meshgrid(at.flip(0), at, indexing="ij")[::-1], 2)  # x to the right, y upwards
        return self._sheet(codes.to(self.vae.dtype), class_labels, output_type)

    def attribute_vector(self, images_with: Any, images_without: Any, *, class_labels: Labels = None) -> Tensor:
        """The direction of an attribute, (D,): mean code of pictures that have it minus that of those without.

        Sampling Generative Networks (White, 2016, 1609.04468), section 3.
        """
        having, lacking = (self.encode(images, class_labels=class_labels) for images in (images_with, images_without))
        return having.mean(0) - lacking.mean(0)

    def add_attribute(
        self, images: Any, vector: Tensor, *, strength: float = 1.0, class_labels: Labels = None, output_type="pil"
    ) -> Any:
        """The pictures with `strength` times an attribute's vector added to their codes; negative takes it away."""
        z = self.encode(images, class_labels=class_labels) + strength * vector.to(self._execution_device)
        return self.decode(z, class_labels=class_labels, output_type=output_type)

    # ------------------------------------------------------------ parts

    @property
    def _binary(self) -> bool:
        return self.vae.config.likelihood == "bernoulli"

    def _input(self, images: Any) -> Tensor:
        config = self.vae.config
        place = {"device": self._execution_device, "dtype": self.vae.dtype}
        return from_input(images, channels=config.in_channels, size=image_size(config.sample_size), **place)

    @property
    def _size(self) -> int:
        """Values of a code."""
        return sum(self.vae.hierarchy.sizes)

    def _noise(self, generators: list[torch.Generator]) -> Tensor:
        shape = (len(generators), self._size)
        return randn_tensor(shape, generator=generators, device=self._execution_device, dtype=self.vae.dtype)

    def _first(self, x: Tensor, class_labels: Labels) -> tuple[Tensor, ...]:
        """Mean and log-variance of q(z_1|x)."""
        return _in_chunks(self.vae.encode_first, x, self._class_indices(class_labels, len(x), required=True))

    def _codes(self, first: tuple[Tensor, ...], noise: Tensor | None) -> tuple[Tensor, ...]:
        """Mean, log-variance and sample of q(z|x), all levels side by side."""
        hierarchy = self.vae.hierarchy
        return _in_chunks(lambda *parts: hierarchy.standardize(hierarchy.infer(*parts)), *first, noise)

    def _locations(self, latents: Tensor, class_labels: Labels) -> Tensor:
        z = latents.to(self._execution_device, self.vae.dtype)
        if z.ndim != 2 or z.shape[1] != self._size or not len(z):
            raise UsageError(f"latents must have shape (B, {self._size}); got {tuple(z.shape)}.")
        labels = self._class_indices(class_labels, len(z), required=True)
        return _in_chunks(lambda part, label: (self.vae.decode(part, label),), z, labels)[0]

    def _bound(self, x: Tensor, class_labels: Labels, samples: int, generators: list[torch.Generator]) -> Tensor:
        first = self._first(x, class_labels)
        scale = self.vae.observation_log_scale(first[0])

        def log_joint(x: Tensor, z: Tensor) -> Tensor:
            given = log_likelihood(self.vae.config.likelihood, x, self._locations(z, class_labels), scale)
            return given + (log_normal(z) if self.prior is None else self.prior.log_prob(z))

        posterior = _Posterior(lambda: self._codes(first, self._noise(generators)))
        return log_mean_exp(importance_weights(lambda _: posterior, log_joint, x, samples), 1)

    def _sheet(self, codes: Tensor, class_labels: Labels, output_type: str) -> Any:
        rows, columns = codes.shape[:2]
        images = self.decode(codes.flatten(0, 1), class_labels=class_labels, output_type="latent")
        images = images.unflatten(0, (rows, columns))
        if output_type == "latent":
            return images
        height, width = images.shape[-2:]
        tiled = images.permute(2, 0, 3, 1, 4).reshape(1, -1, rows * height, columns * width)
        return to_output(tiled, output_type)[0]


class _Posterior:
    """q(z|x) as `importance_weights` wants it, with each picture's own generator: the density of the last sample."""

    def __init__(self, draw: Callable[[], tuple[Tensor, ...]]):
        self.draw = draw

    def sample(self) -> Tensor:
        self.mean, self.log_variance, z = self.draw()
        return z

    def log_prob(self, z: Tensor) -> Tensor:
        return log_normal(z, self.mean, self.log_variance)


def _several(labels: Any) -> bool:
    return not isinstance(labels, str) and (not isinstance(labels, Tensor) or labels.ndim > 0)


def _in_chunks(function: Callable, *columns: Tensor | None) -> tuple[Tensor, ...]:
    """`function(*columns)` in chunks of one size, the last one padded, so that rounding is the same in every batch."""
    size = len(columns[0])
    padding = -size % _CHUNK

    def chunks(column: Tensor | None) -> Sequence[Tensor | None]:
        if column is None:
            return [None] * ((size + padding) // _CHUNK)
        return torch.cat([column, column.new_zeros(padding, *column.shape[1:])]).split(_CHUNK)

    parts = [function(*part) for part in zip(*map(chunks, columns))]
    return tuple(torch.cat(column)[:size] for column in zip(*parts))
