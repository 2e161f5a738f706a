"""Encoding, decoding and reconstruction of images as sequences of rows, whole or cut, with a recurrent autoencoder."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from latentia.errors import UsageError, check_range
from latentia.functional.chunks import in_chunks
from latentia.functional.interpolation import interpolate
from latentia.functional.masks import length_mask
from latentia.functional.rows import rows_of_images, rows_to_images
from latentia.pipelines.arguments import Generators, check_call, count_images, draw_uniform, image_generators
from latentia.pipelines.base import DiffusionPipeline
from latentia.pipelines.forms import form_of
from latentia.pipelines.images import Images


class RecurrentAutoencoderPipeline(DiffusionPipeline):
    """Encode, decode, reconstruct and interpolate images that a recurrent network reads row by row, from the top.

    Args:
        autoencoder: a `RecurrentAutoencoder`, whose `in_features` are the values of a row, C * W.
        prior: a density of its latents, such as `LatentMixture.fit(pipe.encode(images))`; `None` (default): none, and
            then there is nothing to sample from.
        num_rows: H, height of the images. Default 28.
        num_channels: C, of the images, a divisor of `in_features`. Default 1.
        codec: of a network of sequences, the `SeriesScaler` of time series or the `LogMel` of sounds. Where images are
            named below, the pipeline then takes and gives what `SeriesPipeline` or `SoundPipeline` does,
            also series of unequal lengths, and both sizes follow from it. `None` (default): of images.

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
    codec: Any

    model_cpu_offload_seq = "autoencoder->codec"
    _optional_components = ["prior", "codec"]  # noqa: RUF012 (diffusers reads a list)

    needs_prior = True
    latents = "continuous"

    def __init__(self, autoencoder, prior=None, num_rows: int = 28, num_channels: int = 1, codec=None):
        super().__init__()
        check_range("num_rows", num_rows, 1, 4096, integer=True)
        check_range("num_channels", num_channels, 1, 4, integer=True)
        values = getattr(getattr(autoencoder, "config", None), "in_features", None)
        if values is None:
            raise UsageError(f"autoencoder must be a RecurrentAutoencoder; got {type(autoencoder).__name__}.")
        if codec is None and values % num_channels:
            raise UsageError(
                f"num_channels must divide {values}, the in_features of autoencoder; got {num_channels}. A row holds "
                "the values of all channels."
            )
        self.register_modules(autoencoder=autoencoder, prior=prior, codec=codec)
        self.register_to_config(num_rows=num_rows, num_channels=num_channels)
        self.modality = self.form.modality

    @property
    def form(self) -> Any:
        """What it takes and gives, see `latentia.pipelines.forms`."""
        values, channels = self.autoencoder.config.in_features, self.config.num_channels
        if self.codec is None:
            return form_of(None, (channels, self.config.num_rows, values // channels))
        return form_of(self.codec, (values, *getattr(self.codec, "shape", ())[1:]), unequal=True)

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
        lengths = None
        if latents is None:
            if self.prior is None:
                raise UsageError(
                    "An autoencoder alone is no generative model, so `prior` must not be None. Fit one to the latents "
                    "of the training images: latentia.LatentMixture.fit(pipe.encode(images))."
                )
            generators = image_generators(generator, batch_size)
            latents = self.prior.sample(batch_size, generators)
            if self._unequal:  # as long as in training, with the frequencies of these lengths
                u = draw_uniform(generators, (1,), self._execution_device)[:, 0]
                lengths = self.codec.sample_lengths(u).cpu()
        x = self._decoded(latents, lengths)
        self.maybe_free_model_hooks()
        if self.modality == "series":
            return self.form.answer(x, output_type, None, return_dict, lengths)
        return self.form.answer(x, output_type, None, return_dict)

    @torch.no_grad()
    def encode(self, images: Images, *, lengths: Tensor | Sequence[int] | None = None) -> Tensor:
        """Latents (B, latent_dim) of images; see `from_input`.

        Args:
            images: those to encode.
            lengths: how many rows of each image count, from the top, (B,), from 1 to H; `None` (default): all, of a
                series as many as it has.

        Raises:
            UsageError: another number of lengths, or one out of range.
        """
        network, steps = self.autoencoder, self.form.shape[1]
        rows = rows_of_images(self.form.tensors(images, self._execution_device, network.dtype))
        counts = self._lengths(images, len(rows)) if lengths is None else torch.as_tensor(lengths).cpu()
        if counts.shape != (len(rows),):
            raise UsageError(f"lengths must be one for each of {len(rows)} images; got {tuple(counts.shape)}.")
        length_mask(counts, steps)  # whose range is checked before chunks are padded with zeros
        return in_chunks(
            lambda x, count: network.encode(x, length_mask(count.clamp(min=1), steps)), rows, counts.to(rows.device)
        )

    @torch.no_grad()
    def decode(
        self, latents: Tensor, *, lengths: Tensor | Sequence[int] | None = None, output_type: str | None = None
    ) -> Any:
        """Whole images of latents (B, latent_dim); or series of these `lengths`, (B,), by default as the longest."""
        output_type = self.form.check(output_type)
        counts = None if lengths is None else torch.as_tensor(lengths).cpu()
        x = self._decoded(latents, counts)
        return (
            self.form.output(x, output_type, None, counts)
            if self.modality == "series"
            else self.form.output(x, output_type)
        )

    def reconstruct(
        self, images: Images, *, lengths: Tensor | Sequence[int] | None = None, output_type: str | None = None
    ) -> Any:
        """Reconstruct images: encode their first rows, decode whole images; `lengths` as for `encode`.

        Series are as long as they were.
        """
        latents = self.encode(images, lengths=lengths)
        own = self._lengths(images, len(latents)) if self.modality == "series" else None
        return self.decode(latents, lengths=own, output_type=output_type)

    @property
    def _unequal(self) -> bool:
        return self.modality == "series" and not self.codec.equal_lengths

    def _lengths(self, images: Any, count: int) -> Tensor:
        """Rows of each image; steps of each series."""
        if self.modality == "series":
            return self.form.read(images)[1]
        return torch.full((count,), self.form.shape[1])

    @torch.no_grad()
    def _decoded(self, latents: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Tensors of whole images or of series, 0 beyond the end of one."""
        latents = latents.to(self._execution_device, self.autoencoder.dtype)
        rows = in_chunks(lambda z: self.autoencoder.decode(z, self.form.shape[1]), latents)
        if self.codec is None:
            return rows_to_images(rows, self.config.num_channels)
        there = length_mask(torch.full((len(rows),), rows.shape[1]) if lengths is None else lengths, rows.shape[1])
        return torch.where(there.to(rows.device)[..., None], rows, 0).transpose(1, 2)

    def interpolate(
        self, a: Images, b: Images, steps: int = 8, *, mode: str = "lerp", output_type: str | None = None
    ) -> Any:
        """Interpolate two images in the latent space: `steps` images, both ends included.

        Args:
            a, b: an image each.
            steps: at least 2. Default 8.
            mode: "lerp" (default), the straight line; or "slerp", the great circle.
            output_type: as for sampling.
        """
        self.form.check(output_type)
        ends = [self.encode(image) for image in (a, b)]
        for name, latents in zip("ab", ends):
            if len(latents) != 1:
                raise UsageError(f"{name} must be one image; got {len(latents)}. Interpolate pair by pair.")
        return self.decode(interpolate(ends[0], ends[1], steps, mode), output_type=output_type)
