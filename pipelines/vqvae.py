"""Pictures as small pictures of integers and back, and sampling through a prior over those."""

from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from latentia.errors import UsageError
from latentia.models.priors import PositionPrior
from latentia.pipelines.autoencoder import between, in_chunks
from latentia.pipelines.base import DiffusionPipeline, check_output_type, from_input, to_output
from latentia.pipelines.unconditional import Generators, image_generators


class VQVAEPipeline(DiffusionPipeline):
    """Encode to integers, decode, reconstruct, interpolate; and sample, once there is a prior.

    Args:
        vqvae: a `VQVAE`.
        prior: a `PositionPrior`, see `fit_prior`; `None` (default): none, and then there is nothing to sample from. A
            transformer over the codes is the business of `VQPriorPipeline`.

    Example:
        >>> from latentia import VQVAE
        >>> pipe = VQVAEPipeline(VQVAE(sample_size=8, in_channels=1, block_out_channels=(8,), codebook_size=16))
        >>> codes = pipe.encode(torch.rand(3, 1, 8, 8) * 2 - 1)
        >>> codes.shape, len(pipe.decode(codes))
        (torch.Size([3, 4, 4]), 3)
    """

    model_cpu_offload_seq = "prior->vqvae"
    _optional_components = ["prior"]  # noqa: RUF012 (diffusers reads a list)

    latents = "indices"

    def __init__(self, vqvae, prior=None):
        super().__init__()
        self.register_modules(vqvae=vqvae, prior=prior)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        *,
        generator: Generators = None,
        codes: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Sample images: codes from the prior, decoded.

        Args:
            batch_size: number of images; `None` (default): as many as `codes`, else 1.
            generator: one `torch.Generator` or one per image. The same seed gives the same images whatever the batch.
            codes: decode these, (B, h, w), instead of drawing some.
            output_type: "pil", "np" ((B, H, W, C) in [0, 1]), "pt" ((B, C, H, W) in [0, 1]) or "latent" (raw).
            return_dict: `False` returns the tuple `(images,)`.

        Returns:
            `.images`.

        Raises:
            UsageError: there is no prior, or the number of images is below 1 or not that of `codes`.
        """
        check_output_type(output_type)
        if codes is not None and batch_size not in (None, len(codes)):
            raise UsageError(f"batch_size is {batch_size}, but codes are given for {len(codes)} images.")
        if codes is None:
            batch_size = 1 if batch_size is None else batch_size
            if batch_size < 1:
                raise UsageError(f"batch_size must be at least 1; got {batch_size}.")
            if self.prior is None:
                raise UsageError(
                    "A VQ-VAE alone is no generative model: nothing says which codes belong together, so `prior` must "
                    "not be None. Good samples need an autoregressive network over the codes, which "
                    "examples/train_vq_prior.py trains; the simplest prior takes the positions as independent:\n"
                    "    pipe = latentia.VQVAEPipeline(pipe.vqvae, prior=pipe.fit_prior(images))"
                )
            codes = self.prior.sample(batch_size, image_generators(generator, batch_size))
        images = self.decode(codes, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @torch.no_grad()
    def encode(self, images: Any, *, continuous: bool = False) -> Tensor:
        """The codes of images, which may be pictures, an array or a tensor; see `from_input`.

        Args:
            images: B of them.
            continuous: give the latents before they are quantised instead, (B, D, h, w).

        Returns:
            int64 (B, h, w), in [0, K).
        """
        config = self.vqvae.config
        place = {"device": self._execution_device, "dtype": self.vqvae.dtype}
        x = from_input(images, channels=config.in_channels, size=config.sample_size, **place)
        return in_chunks(self.vqvae.encode if continuous else self._codes, x)

    @torch.no_grad()
    def decode(self, codes: Tensor, *, output_type: str = "pil"):
        """Images of codes (B, h, w), integers; or of latents (B, D, h, w), which are quantised first.

        Raises:
            UsageError: codes of another shape, or that the codebook does not have.
        """
        check_output_type(output_type)
        codes = codes.to(self._execution_device)
        if codes.is_floating_point():
            channels = self.vqvae.quantize.latent_channels
            if codes.ndim != 4 or codes.shape[1] != channels or not len(codes):
                raise UsageError(f"latents must have shape (B, {channels}, h, w), B >= 1; got {tuple(codes.shape)}.")
            codes = in_chunks(lambda z: self.vqvae.quantize(z)[1], codes.to(self.vqvae.dtype))
        size, shape = self.vqvae.quantize.codebook_size, self.vqvae.code_shape
        if tuple(codes.shape[1:]) != shape or not len(codes):
            raise UsageError(f"codes must have shape (B, {shape[0]}, {shape[1]}), B >= 1; got {tuple(codes.shape)}.")
        if codes.min() < 0 or codes.max() >= size:
            raise UsageError(
                f"codes must lie in [0, {size}), the codebook; got {int(codes.min())} to {int(codes.max())}."
            )
        images = in_chunks(lambda part: self.vqvae.decode(self.vqvae.lookup(part)), codes.long())
        return to_output(images, output_type)

    def reconstruct(self, images: Any, *, output_type: str = "pil"):
        """Images through their codes and back."""
        return self.decode(self.encode(images), output_type=output_type)

    def interpolate(self, a: Any, b: Any, steps: int = 8, *, mode: str = "lerp", output_type: str = "pil"):
        """`steps` images on the way from image `a` to image `b`, both ends included.

        The way goes through the latents before quantisation, as between integers there is none; each point on it is
        then quantised. `mode`: "lerp" (default) or "slerp".
        """
        check_output_type(output_type)
        ends = [self.encode(image, continuous=True) for image in (a, b)]
        for name, latents in zip("ab", ends):
            if len(latents) != 1:
                raise UsageError(f"{name} must be one image; got {len(latents)}. Interpolate pair by pair.")
        return self.decode(between(*ends, steps, mode), output_type=output_type)

    def fit_prior(self, images: Any) -> PositionPrior:
        """The prior that takes the positions as independent, fitted to the codes of `images`; it is not put in place.

        Example:
            >>> from latentia import VQVAE
            >>> pipe = VQVAEPipeline(VQVAE(sample_size=8, in_channels=1, block_out_channels=(8,), codebook_size=16))
            >>> pipe.register_modules(prior=pipe.fit_prior(torch.rand(9, 1, 8, 8) * 2 - 1))
            >>> pipe(batch_size=2).images[0].size
            (8, 8)
        """
        prior = PositionPrior.fit(self.encode(images), self.vqvae.quantize.codebook_size)
        return prior.to(self._execution_device)

    def _codes(self, x: Tensor) -> Tensor:
        return self.vqvae.quantize(self.vqvae.encode(x))[1]
