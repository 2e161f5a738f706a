"""Encoding, decoding, denoising, interpolation and anomaly scores with an autoencoder; sampling with a fitted prior."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from latentia.errors import UsageError
from latentia.functional.chunks import in_chunks
from latentia.functional.interpolation import interpolate
from latentia.models.layers.convolution import sample_shape
from latentia.pipelines.arguments import Generators, check_call, count_images, image_generators
from latentia.pipelines.base import DiffusionPipeline
from latentia.pipelines.forms import form_of
from latentia.pipelines.images import Images


class Memorisation(NamedTuple):
    """Mean squared error per image on both sets, the second over the first, and whether that is suspicious."""

    train_error: float
    held_out_error: float
    ratio: float
    memorises: bool


class AutoencoderPipeline(DiffusionPipeline):
    """Encode, decode, reconstruct, denoise, interpolate, score anomalies; and sample, once a density is fitted.

    Args:
        autoencoder: an `Autoencoder`.
        prior: a density of its latents, such as `LatentMixture.fit(pipe.encode(images))`; `None` (default): none, and
            then there is nothing to sample from.
        codec: of a network of sequences, the `SeriesScaler` of time series or the `LogMel` of sounds. Where images are
            named below, the pipeline then takes and gives what `SeriesPipeline` or `SoundPipeline` does. `None`
            (default): of images.

    Example:
        >>> from latentia import Autoencoder
        >>> pipe = AutoencoderPipeline(Autoencoder(sample_size=8, latent_dim=4, hidden_sizes=(16,)))
        >>> latents = pipe.encode(torch.rand(3, 1, 8, 8) * 2 - 1)
        >>> latents.shape, len(pipe.decode(latents))
        (torch.Size([3, 4]), 3)
    """

    autoencoder: Any
    prior: Any
    codec: Any

    model_cpu_offload_seq = "autoencoder->codec"
    _optional_components = ["prior", "codec"]  # noqa: RUF012 (diffusers reads a list)

    needs_prior = True
    latents = "continuous"

    def __init__(self, autoencoder, prior=None, codec=None):
        super().__init__()
        self.register_modules(autoencoder=autoencoder, prior=prior, codec=codec)
        self.modality = self.form.modality

    @property
    def form(self) -> Any:
        """What it takes and gives, see `latentia.pipelines.forms`."""
        config = self.autoencoder.config
        return form_of(self.codec, (config.in_channels, *sample_shape(config.sample_size)))

    @check_call
    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        *,
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: str | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Sample images: latents from the prior, decoded.

        Args:
            batch_size: number of images; `None` (default): as many as `latents`, else 1.
            generator: one `torch.Generator` or one per image. The same seed gives the same images whatever the batch.
            latents: decode these, (B, latent_dim), instead of drawing some.
            output_type: "pil", "np" ((B, H, W, C) in [0, 1]), "pt" ((B, C, H, W) in [0, 1]) or "latent" (raw); of
                series and sounds those of their pipelines. `None` (default): "pil", of series "pandas", of sounds "np".
            return_dict: `False` returns the tuple `(images,)`.

        Returns:
            `.images`; of series `.series` and `.lengths`, of sounds `.sound` and `.sampling_rate`.

        Raises:
            UsageError: there is no prior, or the number of images is below 1 or not that of `latents`.
        """
        output_type = self.form.check(output_type)
        batch_size = count_images(batch_size, {"latents": latents})
        if latents is None:
            if self.prior is None:
                raise UsageError(
                    "An autoencoder alone is no generative model: nothing says which latents belong to images, "
                    "so `prior` must not be None. Fit one to the latents of the training images:\n"
                    "    prior = latentia.LatentMixture.fit(pipe.encode(images), num_components=10)\n"
                    "    pipe = latentia.AutoencoderPipeline(pipe.autoencoder, prior=prior)"
                )
            latents = self.prior.sample(batch_size, image_generators(generator, batch_size))
        x = self._decoded(latents)
        self.maybe_free_model_hooks()
        return self.form.answer(x, output_type, None, return_dict)

    @torch.no_grad()
    def encode(self, images: Images) -> Tensor:
        """Latents (B, latent_dim) of images; see `from_input`."""
        return in_chunks(self.autoencoder.encode, self._tensor(images))

    @torch.no_grad()
    def decode(self, latents: Tensor, *, output_type: str | None = None) -> Any:
        """Images of latents (B, latent_dim)."""
        output_type = self.form.check(output_type)
        return self.form.output(self._decoded(latents), output_type)

    def reconstruct(self, images: Images, *, output_type: str | None = None) -> Any:
        """Reconstruct images: encode and decode."""
        return self.decode(self.encode(images), output_type=output_type)

    @torch.no_grad()
    def denoise(self, images: Images, *, output_type: str | None = None) -> Any:
        """Denoise corrupted images with an autoencoder that was trained with `corruption`.

        Args:
            images: as for `encode`; but a tensor of floats may leave [-1, 1], as noise does.
            output_type: as for sampling.

        Raises:
            UsageError: another shape, or values that are not finite.
        """
        if self.codec is None and isinstance(images, Tensor) and images.is_floating_point():
            if not images.isfinite().all():
                raise UsageError("images must be finite to be denoised; some values are not.")
            within = self._tensor(images.clamp(-1, 1))  # checks the shape
            images = images.to(within).reshape(within.shape)
            return self.decode(in_chunks(self.autoencoder.encode, images), output_type=output_type)
        return self.reconstruct(images, output_type=output_type)

    def interpolate(
        self, a: Images, b: Images, steps: int = 8, *, mode: str = "lerp", output_type: str | None = None
    ) -> Any:
        """Interpolate two images in the latent space: `steps` images, both ends included.

        Args:
            a, b: an image each.
            steps: at least 2. Default 8.
            mode: "lerp" (default), the straight line; or "slerp", the great circle. The latents of a plain autoencoder
                are not spread like Gaussian noise, so a line is the better guess for them.
            output_type: as for sampling.
        """
        self.form.check(output_type)
        ends = [self.encode(image) for image in (a, b)]
        for name, latents in zip("ab", ends):
            if len(latents) != 1:
                raise UsageError(f"{name} must be one image; got {len(latents)}. Interpolate pair by pair.")
        return self.decode(interpolate(ends[0], ends[1], steps, mode), output_type=output_type)

    @torch.no_grad()
    def memorisation(self, train: Images, held_out: Images, *, threshold: float = 10.0) -> Memorisation:
        """Detect memorisation: whether latents number the training images instead of describing images.

        A network that is large enough can map each image to a number and each number back to that image; its training
        error is then no sign of good latents.

        Args:
            train, held_out: images that it was and was not trained on, of the same kind.
            threshold: from which ratio of the two errors it counts as memorising. Default 10; a network that
                generalises has about 1.

        Example:
            >>> from latentia import Autoencoder
            >>> pipe = AutoencoderPipeline(Autoencoder(sample_size=8, latent_dim=4))
            >>> pipe.memorisation(torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8)).memorises
            True
        """
        seen, new = (float(self.anomaly_score(images).double().mean()) for images in (train, held_out))
        ratio = new / max(seen, 1e-12)
        return Memorisation(seen, new, ratio, ratio >= threshold)

    def _tensor(self, images: Images) -> Tensor:
        return self.form.tensors(images, self._execution_device, self.autoencoder.dtype)

    @torch.no_grad()
    def _decoded(self, latents: Tensor) -> Tensor:
        return in_chunks(self.autoencoder.decode, latents.to(self._execution_device, self.autoencoder.dtype))
