"""Encoding, decoding and reconstruction of images as sequences of rows, whole or cut, with a recurrent autoencoder."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from latentia.errors import UsageError, check_range
from latentia.functional.chunks import in_chunks
from latentia.functional.interpolation import interpolate
from latentia.functional.masks import length_mask
from latentia.functional.rows import rows_of_images, rows_to_images
from latentia.pipelines.arguments import Generators, check_call, count_images, image_generators
from latentia.pipelines.base import DiffusionPipeline
from latentia.pipelines.images import Images, check_output_type, from_input, to_output


class RecurrentAutoencoderPipeline(DiffusionPipeline):
    """Encode, decode, reconstruct and interpolate images that a recurrent network reads row by row, from the top.

    Args:
        autoencoder: a `RecurrentAutoencoder`, whose `in_features` are the values of a row, C * W.
        prior: a density of its latents, such as `LatentMixture.fit(pipe.encode(images))`; `None` (default): none, and
            then there is nothing to sample from.
        num_rows: H, height of the images. Default 28.
        num_channels: C, of the images, a divisor of `in_features`. Default 1.

    Raises:
        UsageError: no recurrent network, or channels that do not divide its rows.

    Example:
        >>> from latentia import RecurrentAutoencoder
        >>> pipe = RecurrentAutoencoderPipeline(RecurrentAutoencoder(in_features=8), num_rows=8)
        >>> latents = pipe.encode(torch.rand(3, 1, 8, 8) * 2 - 1, lengths=[8, 5, 1])
        >>> latents.shape, len(pipe.decode(latents))
        (torch.Size([3, 32]), 3)
    """

    autoencoder: Any
    prior: Any

    model_cpu_offload_seq = "autoencoder"
    _optional_components = ["prior"]  # noqa: RUF012 (diffusers reads a list)

    needs_prior = True
    latents = "continuous"

    def __init__(self, autoencoder, prior=None, num_rows: int = 28, num_channels: int = 1):
        super().__init__()
        check_range("num_rows", num_rows, 1, 4096, integer=True)
        check_range("num_channels", num_channels, 1, 4, integer=True)
        values = getattr(getattr(autoencoder, "config", None), "in_features", None)
        if values is None:
            raise UsageError(f"autoencoder must be a RecurrentAutoencoder; got {type(autoencoder).__name__}.")
        if values % num_channels:
            raise UsageError(
                f"num_channels must divide {values}, the in_features of autoencoder; got {num_channels}. A row holds "
                "the values of all channels."
            )
        self.register_modules(autoencoder=autoencoder, prior=prior)
        self.register_to_config(num_rows=num_rows, num_channels=num_channels)

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
            latents: decode these, (B, latent_dim), instead of drawing some.
            output_type: "pil", "np" ((B, H, W, C) in [0, 1]), "pt" ((B, C, H, W) in [0, 1]) or "latent" (raw).
            return_dict: `False` returns the tuple `(images,)`.

        Returns:
            `.images`.

        Raises:
            UsageError: there is no prior, or the number of images is below 1 or not that of `latents`.
        """
        check_output_type(output_type)
        batch_size = count_images(batch_size, {"latents": latents})
        if latents is None:
            if self.prior is None:
                raise UsageError(
                    "An autoencoder alone is no generative model, so `prior` must not be None. Fit one to the latents "
                    "of the training images: latentia.LatentMixture.fit(pipe.encode(images))."
                )
            latents = self.prior.sample(batch_size, image_generators(generator, batch_size))
        images = self.decode(latents, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @torch.no_grad()
    def encode(self, images: Images, *, lengths: Tensor | Sequence[int] | None = None) -> Tensor:
        """Latents (B, latent_dim) of images; see `from_input`.

        Args:
            images: those to encode.
            lengths: how many rows of each image count, from the top, (B,), from 1 to H; `None` (default): all.

        Raises:
            UsageError: another number of lengths, or one out of range.
        """
        channels, network = self.config.num_channels, self.autoencoder
        size = self.config.num_rows, network.config.in_features // channels
        options = {"device": self._execution_device, "dtype": network.dtype}
        rows = rows_of_images(from_input(images, channels=channels, size=size, **options))
        counts = torch.full((len(rows),), size[0]) if lengths is None else torch.as_tensor(lengths).cpu()
        if counts.shape != (len(rows),):
            raise UsageError(f"lengths must be one for each of {len(rows)} images; got {tuple(counts.shape)}.")
        length_mask(counts, size[0])  # whose range is checked before chunks are padded with zeros
        return in_chunks(
            lambda x, count: network.encode(x, length_mask(count.clamp(min=1), size[0])), rows, counts.to(rows.device)
        )

    @torch.no_grad()
    def decode(self, latents: Tensor, *, output_type: str = "pil") -> Any:
        """Whole images of latents (B, latent_dim)."""
        check_output_type(output_type)
        latents = latents.to(self._execution_device, self.autoencoder.dtype)
        rows = in_chunks(lambda z: self.autoencoder.decode(z, self.config.num_rows), latents)
        return to_output(rows_to_images(rows, self.config.num_channels), output_type)

    def reconstruct(
        self, images: Images, *, lengths: Tensor | Sequence[int] | None = None, output_type: str = "pil"
    ) -> Any:
        """Reconstruct images: encode their first rows, decode whole images; `lengths` as for `encode`."""
        return self.decode(self.encode(images, lengths=lengths), output_type=output_type)

    def interpolate(self, a: Images, b: Images, steps: int = 8, *, mode: str = "lerp", output_type: str = "pil") -> Any:
        """Interpolate two images in the latent space: `steps` images, both ends included.

        Args:
            a, b: an image each.
            steps: at least 2. Default 8.
            mode: "lerp" (default), the straight line; or "slerp", the great circle.
            output_type: as for sampling.
        """
        check_output_type(output_type)
        ends = [self.encode(image) for image in (a, b)]
        for name, latents in zip("ab", ends):
            if len(latents) != 1:
                raise UsageError(f"{name} must be one image; got {len(latents)}. Interpolate pair by pair.")
        return self.decode(interpolate(ends[0], ends[1], steps, mode), output_type=output_type)
