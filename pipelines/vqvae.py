"""Encoding to codebook indices, decoding, reconstruction and interpolation with a VQ-VAE; sampling through a prior."""

from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from latentia.errors import UsageError
from latentia.models.priors import PositionPrior
from latentia.pipelines.arguments import Generators, check_call, count_images, image_generators
from latentia.pipelines.base import DiffusionPipeline
from latentia.pipelines.codebook import codebook_size, decode_codes, encode_images, interpolate_images
from latentia.pipelines.images import Images, check_output_type, to_output


class VQVAEPipeline(DiffusionPipeline):
    """Encode to codebook indices, decode, reconstruct, interpolate; and sample, once there is a prior.

    Args:
        vqvae: a `VQVAE`.
        prior: a `PositionPrior`, see `fit_prior`; `None` (default): none, and then there is nothing to sample from. For
            a transformer over the codes see `VQPriorPipeline`.

    Example:
        >>> from latentia import VQVAE
        >>> pipe = VQVAEPipeline(VQVAE(sample_size=8, in_channels=1, block_out_channels=(8,), codebook_size=16))
        >>> codes = pipe.encode(torch.rand(3, 1, 8, 8) * 2 - 1)
        >>> codes.shape, len(pipe.decode(codes))
        (torch.Size([3, 4, 4]), 3)
    """

    vqvae: Any
    prior: Any

    model_cpu_offload_seq = "prior->vqvae"
    _optional_components = ["prior"]  # noqa: RUF012 (diffusers reads a list)

    needs_prior = True
    latents = "indices"

    def __init__(self, vqvae, prior=None):
        super().__init__()
        self.register_modules(vqvae=vqvae, prior=prior)

    @check_call
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
        batch_size = count_images(batch_size, {"codes": codes})
        if codes is None:
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

    def encode(self, images: Images, *, continuous: bool = False) -> Tensor:
        """Codes of images, indices of the codebook.

        Args:
            images: B of them; see `from_input`.
            continuous: give the latents before they are quantised instead, (B, D, h, w). Default False.

        Returns:
            int64 (B, h, w), in [0, K).
        """
        return encode_images(self.vqvae, images, self._execution_device, continuous)

    def decode(self, codes: Tensor, *, output_type: str = "pil") -> Any:
        """Images of codes (B, h, w), integers; or of latents (B, D, h, w), which are quantised first.

        Raises:
            UsageError: codes of another shape, or that the codebook does not have.
        """
        check_output_type(output_type)
        return to_output(decode_codes(self.vqvae, codes, self._execution_device), output_type)

    def reconstruct(self, images: Images, *, output_type: str = "pil") -> Any:
        """Reconstruct images: encode and decode."""
        return self.decode(self.encode(images), output_type=output_type)

    def interpolate(self, a: Images, b: Images, steps: int = 8, *, mode: str = "lerp", output_type: str = "pil") -> Any:
        """Interpolate two images: `steps` images on the way through the latents before quantisation, ends included.

        `mode`: "lerp" (default), the straight line, or "slerp", the great circle.
        """
        check_output_type(output_type)
        images = interpolate_images(self.vqvae, a, b, steps, mode, self._execution_device)
        return to_output(images, output_type)

    def fit_prior(self, images: Images) -> PositionPrior:
        """Fit the prior that takes positions as independent to the codes of `images`; the pipeline stays as it is.

        Example:
            >>> from latentia import VQVAE
            >>> pipe = VQVAEPipeline(VQVAE(sample_size=8, in_channels=1, block_out_channels=(8,), codebook_size=16))
            >>> pipe.register_modules(prior=pipe.fit_prior(torch.rand(9, 1, 8, 8) * 2 - 1))
            >>> pipe(batch_size=2).images[0].size
            (8, 8)
        """
        prior = PositionPrior.fit(self.encode(images), codebook_size(self.vqvae))
        return prior.to(self._execution_device)
