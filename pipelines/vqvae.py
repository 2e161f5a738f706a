"""Encoding to codebook indices, decoding, reconstruction and interpolation with a VQ-VAE; sampling through a prior."""

from typing import Any

import torch
from torch import Tensor

from latentia.errors import UsageError
from latentia.models.priors import PositionPrior
from latentia.pipelines.arguments import Generators, check_call, count_images, image_generators
from latentia.pipelines.base import DiffusionPipeline
from latentia.pipelines.codebook import codebook_size, decode_codes, encode_tensors, input_shape, interpolate_tensors
from latentia.pipelines.forms import form_of


class VQVAEPipeline(DiffusionPipeline):
    """Encode to codebook indices, decode, reconstruct, interpolate; and sample, once there is a prior.

    Args:
        vqvae: a `VQVAE`.
        prior: a `PositionPrior`, see `fit_prior`; `None` (default): none, and then there is nothing to sample from. For
            a transformer over the codes see `VQPriorPipeline`.
        codec: of a network of sequences, the `SeriesScaler` of time series or the `LogMel` of sounds. Where images are
            named below, the pipeline then takes and gives what `SeriesPipeline` or `SoundPipeline` does. `None`
            (default): of images.

    Example:
        >>> from latentia import VQVAE
        >>> pipe = VQVAEPipeline(VQVAE(sample_size=8, in_channels=1, block_out_channels=(8,), codebook_size=16))
        >>> codes = pipe.encode(torch.rand(3, 1, 8, 8) * 2 - 1)
        >>> codes.shape, len(pipe.decode(codes))
        (torch.Size([3, 4, 4]), 3)
    """

    vqvae: Any
    prior: Any
    codec: Any

    model_cpu_offload_seq = "prior->vqvae->codec"
    _optional_components = ["prior", "codec"]  # noqa: RUF012 (diffusers reads a list)

    needs_prior = True
    latents = "indices"

    def __init__(self, vqvae, prior=None, codec=None):
        super().__init__()
        self.register_modules(vqvae=vqvae, prior=prior, codec=codec)
        self.modality = self.form.modality

    @property
    def form(self) -> Any:
        """What it takes and gives, see `latentia.pipelines.forms`."""
        return form_of(self.codec, input_shape(self.vqvae))

    @check_call
    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        *,
        generator: Generators = None,
        codes: Tensor | None = None,
        output_type: str | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Sample images: codes from the prior, decoded.

        Args:
            batch_size: number of images; `None` (default): as many as `codes`, else 1.
            generator: one `torch.Generator` or one per image. The same seed gives the same images whatever the batch.
            codes: decode these, (B, h, w), instead of drawing some.
            output_type: "pil", "np" ((B, H, W, C) in [0, 1]), "pt" ((B, C, H, W) in [0, 1]) or "latent" (raw); of
                series and sounds those of their pipelines. `None` (default): "pil", of series "pandas", of sounds "np".
            return_dict: `False` returns the tuple `(images,)`.

        Returns:
            `.images`; of series `.series` and `.lengths`, of sounds `.sound` and `.sampling_rate`.

        Raises:
            UsageError: there is no prior, or the number of images is below 1 or not that of `codes`.
        """
        output_type = self.form.check(output_type)
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
        x = decode_codes(self.vqvae, codes, self._execution_device)
        self.maybe_free_model_hooks()
        return self.form.answer(x, output_type, None, return_dict)

    def _tensors(self, images: Any) -> Tensor:
        return self.form.tensors(images, self._execution_device, self.vqvae.dtype)

    def encode(self, images: Any, *, continuous: bool = False) -> Tensor:
        """Codes of images, indices of the codebook.

        Args:
            images: B of them; see `from_input`.
            continuous: give the latents before they are quantised instead, (B, D, h, w). Default False.

        Returns:
            int64 (B, h, w), of sequences (B, l), in [0, K).
        """
        return encode_tensors(self.vqvae, self._tensors(images), continuous)

    def decode(self, codes: Tensor, *, output_type: str | None = None) -> Any:
        """Images of codes (B, h, w), integers; or of latents (B, D, h, w), which are quantised first.

        Raises:
            UsageError: codes of another shape, or that the codebook does not have.
        """
        output_type = self.form.check(output_type)
        return self.form.output(decode_codes(self.vqvae, codes, self._execution_device), output_type)

    def reconstruct(self, images: Any, *, output_type: str | None = None) -> Any:
        """Reconstruct images: encode and decode."""
        return self.decode(self.encode(images), output_type=output_type)

    def interpolate(self, a: Any, b: Any, steps: int = 8, *, mode: str = "lerp", output_type: str | None = None) -> Any:
        """Interpolate two images: `steps` images on the way through the latents before quantisation, ends included.

        `mode`: "lerp" (default), the straight line, or "slerp", the great circle.
        """
        output_type, ends = self.form.check(output_type), [self._tensors(end) for end in (a, b)]
        x = interpolate_tensors(self.vqvae, ends[0], ends[1], steps, mode, self._execution_device)
        return self.form.output(x, output_type)

    def fit_prior(self, images: Any) -> PositionPrior:
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
