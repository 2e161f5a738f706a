"""Encoding and decoding with AutoencoderKL, whose latents latent diffusion works on; calibration of their scale."""

import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from latentia.errors import NumericsError, UsageError
from latentia.functional.chunks import in_chunks
from latentia.functional.distributions import reparameterize
from latentia.functional.interpolation import interpolate
from latentia.models.autoencoder_kl import latent_statistics
from latentia.pipelines.arguments import Generators, check_call, count_images, draw_noise, image_generators
from latentia.pipelines.base import DiffusionPipeline
from latentia.pipelines.images import Images, check_output_type, from_input, to_output
from latentia.pipelines.latents import check_autoencoder

_PIXELS = 16 * 64**2  # at once: 16 images of 64 x 64, or one of 256 x 256 or more


class AutoencoderKLPipeline(DiffusionPipeline):
    r"""Encode, decode, reconstruct, interpolate with diffusers' AutoencoderKL; and sample, once a density is fitted.

    Latents are scaled, \(\tilde z = (z - \text{shift}) \cdot \text{scaling}\), by the `shift_factor` (`None`: 0) and
    the `scaling_factor` of the configuration of `vae`: to mean 0 and standard deviation 1 over the data once
    `calibrate` has measured both. diffusers' pipelines of Stable Diffusion 3 and Flux read both; those of Stable
    Diffusion 1, 2 and XL the latter alone.

    Args:
        vae: an `AutoencoderKL`, trained here or any other.
        prior: a density of its scaled latents, flattened, such as `LatentMixture.fit(pipe.encode(images))`; `None`
            (default): none, and then there is nothing to sample from. What it draws are the latents of square images.

    High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2021, 2112.10752), section 3.1.

    Example:
        >>> from latentia.models.autoencoder_kl import autoencoder_kl
        >>> pipe = AutoencoderKLPipeline(autoencoder_kl(16, 1, block_out_channels=(8, 8)))
        >>> images = torch.rand(3, 1, 16, 16) * 2 - 1
        >>> pipe.calibrate(images)
        >>> pipe.encode(images).shape, len(pipe.reconstruct(images))
        (torch.Size([3, 4, 8, 8]), 3)
    """

    vae: Any
    prior: Any

    model_cpu_offload_seq = "vae"
    _optional_components = ["prior"]  # noqa: RUF012 (diffusers reads a list)

    needs_prior = True
    latents = "continuous"

    def __init__(self, vae, prior=None):
        super().__init__()
        check_autoencoder(vae)
        self.register_modules(vae=vae, prior=prior)

    @check_call
    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        *,
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Sample images: latents from the prior, decoded.

        Args:
            batch_size: number of images; `None` (default): as many as `latents`, else 1.
            generator: one `torch.Generator` or one per image. The same seed gives the same images whatever the batch.
            latents: decode these, (B, D, h, w), instead of drawing some.
            output_type: "pil", "np" ((B, H, W, C) in [0, 1]), "pt" ((B, C, H, W) in [0, 1]) or "latent" (raw).
            return_dict: `False` returns the tuple `(images,)`.

        Returns:
            `.images`.

        Raises:
            UsageError: there is no prior or it is of other latents, or the number of images is below 1 or not that of
                `latents`.
        """
        check_output_type(output_type)
        batch_size = count_images(batch_size, {"latents": latents})
        if latents is None:
            if self.prior is None:
                raise UsageError(
                    "An AutoencoderKL alone is no generative model: its KL is too weak for latents from N(0, I) to be "
                    "images, so `prior` must not be None. Train a diffusion model on pipe.encode(images), or fit the "
                    "simplest density, latentia.LatentMixture.fit(pipe.encode(images))."
                )
            flat = self.prior.sample(batch_size, image_generators(generator, batch_size))
            latents = self._square(flat)
        images = self.decode(latents, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @torch.no_grad()
    def encode(self, images: Images, *, sample_posterior: bool = False, generator: Generators = None) -> Tensor:
        """Scaled latents of images, (B, D, h, w): means of q(z|x), or samples of it.

        Args:
            images: images, or what `from_input` takes, of any size that the network can halve.
            sample_posterior: `False` (default): the means; `True`: a sample each.
            generator: of the samples, one or one per image.

        Raises:
            UsageError: other channels, or sides that cannot be halved so often.
        """
        x = self._input(images)
        moments = _in_parts(lambda part: self.vae.encode(part).latent_dist.parameters, x)
        mean, log_variance = moments.chunk(2, 1)
        if sample_posterior:
            noise = draw_noise(image_generators(generator, len(x)), mean.shape[1:], mean.device, mean.dtype)
            mean = reparameterize(mean, log_variance.clamp(-30.0, 20.0), noise)
        shift, scaling = self._scale
        return (mean - shift) * scaling

    @torch.no_grad()
    def decode(self, latents: Tensor, *, output_type: str = "pil") -> Any:
        """Images of scaled latents (B, D, h, w)."""
        check_output_type(output_type)
        channels = self.vae.config.latent_channels
        if latents.ndim != 4 or latents.shape[1] != channels or not len(latents):
            raise UsageError(f"latents must have shape (B, {channels}, h, w), B >= 1; got {tuple(latents.shape)}.")
        shift, scaling = self._scale
        z = latents.to(self._execution_device, self.vae.dtype) / scaling + shift
        return to_output(_in_parts(lambda part: self.vae.decode(part).sample, z, self._factor), output_type)

    def reconstruct(self, images: Images, *, output_type: str = "pil") -> Any:
        """Reconstruct images: encode and decode."""
        return self.decode(self.encode(images), output_type=output_type)

    def interpolate(self, a: Images, b: Images, steps: int = 8, *, mode: str = "lerp", output_type: str = "pil") -> Any:
        """Interpolate two images in the latent space: `steps` images, both ends included.

        `mode`: "lerp" (default), the straight line, or "slerp", the great circle.
        """
        check_output_type(output_type)
        ends = [self.encode(image) for image in (a, b)]
        for name, latents in zip("ab", ends):
            if len(latents) != 1:
                raise UsageError(f"{name} must be one image; got {len(latents)}. Interpolate pair by pair.")
        if ends[0].shape != ends[1].shape:
            sizes = " and ".join(f"{z.shape[2] * self._factor} by {z.shape[3] * self._factor}" for z in ends)
            raise UsageError(f"a and b must be of one size; got {sizes}. Resize one of them.")
        return self.decode(interpolate(ends[0], ends[1], steps, mode), output_type=output_type)

    def calibrate(self, images: Images) -> None:
        """Measure mean and standard deviation of the latents of images and keep them in the configuration of `vae`.

        They become `shift_factor` and 1 / `scaling_factor`. `latents_mean` and `latents_std`, by which some pipelines
        would scale each channel, become `None`.

        Args:
            images: as for `encode`.

        Raises:
            UsageError: all latents are equal.
            NumericsError: latents are not finite.
        """
        x = self._input(images, device="cpu")  # many: they go to the device part by part
        mean, std = latent_statistics(self.vae, x, _part(x))
        if not math.isfinite(std):
            raise NumericsError("The latents of these images are not finite. Train in float32 or bfloat16.")
        if std < 1e-6 * max(1.0, abs(mean)):  # the least that q(z|x) can have is e^-15
            raise UsageError("images must have latents that differ; all are equal. Has the encoder collapsed?")
        self.vae.register_to_config(shift_factor=mean, scaling_factor=1 / std, latents_mean=None, latents_std=None)

    @property
    def _scale(self) -> tuple[float, float]:
        return self.vae.config.shift_factor or 0.0, self.vae.config.scaling_factor

    @property
    def _factor(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def _square(self, flat: Tensor) -> Tensor:
        """(B, D, s, s) of (B, D * s * s): the configuration's `sample_size` need not be that of the images."""
        channels = self.vae.config.latent_channels
        side = math.isqrt(flat.shape[1] // channels)
        if channels * side**2 != flat.shape[1] or not side:
            raise UsageError(
                f"prior must draw the latents of a square, {channels} * s * s values each; got {flat.shape[1]}. Fit it "
                "to pipe.encode(images) of square images."
            )
        return flat.unflatten(1, (channels, side, side))

    def _input(self, images: Images, **where: Any) -> Tensor:
        place = {"device": self._execution_device, "dtype": self.vae.dtype} | where
        x = from_input(images, channels=self.vae.config.in_channels, **place)
        if any(side % self._factor for side in x.shape[2:]):
            raise UsageError(
                f"images must have sides divisible by {self._factor}, by which the latents are smaller; got "
                f"{x.shape[2]} by {x.shape[3]}. Resize or pad them first."
            )
        return x


def _part(x: Tensor, factor: int = 1) -> int:
    """How many at once: a function of the size alone, so that rounding does not depend on the batch."""
    return max(1, min(16, _PIXELS // (factor**2 * x.shape[2] * x.shape[3])))


def _in_parts(function: Callable[[Tensor], Tensor], x: Tensor, factor: int = 1) -> Tensor:
    return in_chunks(function, x, size=_part(x, factor))
