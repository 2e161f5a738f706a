"""Codes from images and images from codes: what an autoencoder is used for once it is trained."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from latentia.errors import UsageError, did_you_mean
from latentia.pipelines.base import DiffusionPipeline, check_output_type, from_input, to_output
from latentia.pipelines.unconditional import Generators, image_generators, slerp

MODES = ("lerp", "slerp")
CHUNK = 64


class Memorisation(NamedTuple):
    """Mean squared error per image on both sets, the second over the first, and whether that is suspicious."""

    train_error: float
    held_out_error: float
    ratio: float
    memorises: bool


def in_chunks(function: Callable[[Tensor], Tensor], x: Tensor, size: int = CHUNK) -> Tensor:
    """`function` on rows of `x` in chunks of one size, the last one padded with zeros.

    Libraries choose their kernels by the shape of a batch and round differently with each, so only calls of one shape
    give an image the same bytes whatever stands beside it.

    Example:
        >>> in_chunks(lambda x: 2 * x, torch.arange(5.0), 2)
        tensor([0., 2., 4., 6., 8.])
    """
    padded = torch.cat([x, x.new_zeros(-len(x) % size, *x.shape[1:])])
    return torch.cat([function(chunk) for chunk in padded.split(size)])[: len(x)]


def between(a: Tensor, b: Tensor, steps: int, mode: str = "lerp") -> Tensor:
    """Codes on the way from one to another, both ends included.

    Args:
        a, b: of one shape (1, ...).
        steps: how many; at least 2.
        mode: "lerp", the straight line; or "slerp", the great circle, which suits codes that are spread like Gaussian
            noise. The codes of a plain autoencoder have no such shape, so a line is the better guess for them.

    Returns:
        (steps, ...).

    Raises:
        UsageError: fewer steps, or an unknown mode.

    Example:
        >>> between(torch.zeros(1, 2), torch.ones(1, 2), 3).tolist()
        [[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]]
    """
    if mode not in MODES:
        raise UsageError(f'mode must be one of {MODES}; got "{mode}".{did_you_mean(str(mode), MODES)}')
    if steps < 2:
        raise UsageError(f"steps must be at least 2, for the two ends; got {steps}.")
    if mode == "slerp":
        return slerp(a, b, steps)
    share = torch.linspace(0, 1, steps, device=a.device, dtype=a.dtype).view(-1, *[1] * (a.ndim - 1))
    return (1 - share) * a + share * b


class AutoencoderPipeline(DiffusionPipeline):
    """Encode, decode, reconstruct, denoise, interpolate, tell anomalies; and sample, once a density is fitted.

    Args:
        autoencoder: an `Autoencoder`.
        prior: a density of its codes, such as `LatentMixture.fit(pipe.encode(images))`; `None` (default): none, and
            then there is nothing to sample from.

    Example:
        >>> from latentia import Autoencoder
        >>> pipe = AutoencoderPipeline(Autoencoder(sample_size=8, latent_dim=4, hidden_sizes=(16,)))
        >>> latents = pipe.encode(torch.rand(3, 1, 8, 8) * 2 - 1)
        >>> latents.shape, len(pipe.decode(latents))
        (torch.Size([3, 4]), 3)
    """

    model_cpu_offload_seq = "autoencoder"
    _optional_components = ["prior"]  # noqa: RUF012 (diffusers reads a list)

    latents = "continuous"

    def __init__(self, autoencoder, prior=None):
        super().__init__()
        self.register_modules(autoencoder=autoencoder, prior=prior)

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
        """Sample images: codes from the prior, decoded.

        Args:
            batch_size: number of images; `None` (default): as many as `latents`, else 1.
            generator: one `torch.Generator` or one per image. The same seed gives the same images whatever the batch.
            latents: decode these codes, (B, latent_dim), instead of drawing some.
            output_type: "pil", "np" ((B, H, W, C) in [0, 1]), "pt" ((B, C, H, W) in [0, 1]) or "latent" (raw).
            return_dict: `False` returns the tuple `(images,)`.

        Returns:
            `.images`.

        Raises:
            UsageError: there is no prior, or the number of images is below 1 or not that of `latents`.
        """
        check_output_type(output_type)
        if latents is not None and batch_size not in (None, len(latents)):
            raise UsageError(f"batch_size is {batch_size}, but latents are given for {len(latents)} images.")
        if latents is None:
            batch_size = 1 if batch_size is None else batch_size
            if batch_size < 1:
                raise UsageError(f"batch_size must be at least 1; got {batch_size}.")
            if self.prior is None:
                raise UsageError(
                    "An autoencoder alone is no generative model: nothing says which codes belong to images, so "
                    "`prior` must not be None. Fit one to the codes of the training images:\n"
                    "    prior = latentia.LatentMixture.fit(pipe.encode(images), num_components=10)\n"
                    "    pipe = latentia.AutoencoderPipeline(pipe.autoencoder, prior=prior)"
                )
            latents = self.prior.sample(batch_size, image_generators(generator, batch_size))
        images = self.decode(latents, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @torch.no_grad()
    def encode(self, images: Any) -> Tensor:
        """Codes (B, latent_dim) of images, which may be pictures, an array or a tensor; see `from_input`."""
        return in_chunks(self.autoencoder.encode, self._tensor(images))

    @torch.no_grad()
    def decode(self, latents: Tensor, *, output_type: str = "pil"):
        """Images of codes (B, latent_dim)."""
        check_output_type(output_type)
        latents = latents.to(self._execution_device, self.autoencoder.dtype)
        return to_output(in_chunks(self.autoencoder.decode, latents), output_type)

    def reconstruct(self, images: Any, *, output_type: str = "pil"):
        """Images through the code and back."""
        return self.decode(self.encode(images), output_type=output_type)

    @torch.no_grad()
    def denoise(self, images: Any, *, output_type: str = "pil"):
        """What the network takes corrupted images for. Train it with `corruption`.

        Args:
            images: as for `encode`; but a tensor of floats may leave [-1, 1], as noise does.
            output_type: as for sampling.

        Raises:
            UsageError: another shape, or values that are not finite.
        """
        if isinstance(images, Tensor) and images.is_floating_point():
            if not images.isfinite().all():
                raise UsageError("images must be finite to be denoised; some values are not.")
            within = self._tensor(images.clamp(-1, 1))  # checks the shape
            images = images.to(within).reshape(within.shape)
            return self.decode(in_chunks(self.autoencoder.encode, images), output_type=output_type)
        return self.reconstruct(images, output_type=output_type)

    def interpolate(self, a: Any, b: Any, steps: int = 8, *, mode: str = "lerp", output_type: str = "pil"):
        """`steps` images on the way from one image to another through the codes, both ends included; see `between`."""
        check_output_type(output_type)
        ends = [self.encode(image) for image in (a, b)]
        for name, codes in zip("ab", ends):
            if len(codes) != 1:
                raise UsageError(f"{name} must be one image; got {len(codes)}. Interpolate pair by pair.")
        return self.decode(between(*ends, steps, mode), output_type=output_type)

    @torch.no_grad()
    def anomaly_score(self, images: Any) -> Tensor:
        r"""How badly each image is reconstructed: \(\lVert \hat x - x \rVert^2\), float32, (B,).

        The network learned to describe images like those it was trained on, and what they share does not help with
        others. A unit is half of the range [-1, 1], squared, summed over the values of an image.
        """
        x = self._tensor(images)
        return in_chunks(lambda x: (self.autoencoder(x).reconstruction - x).float().square().flatten(1).sum(1), x)

    def memorisation(self, train: Any, held_out: Any, *, threshold: float = 10.0) -> Memorisation:
        """Whether the code numbers the training images instead of describing images.

        A network that is large enough can map each image to a number and each number back to that image; its training
        error is then no sign of a good code.

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

    def _tensor(self, images: Any) -> Tensor:
        config = self.autoencoder.config
        return from_input(
            images,
            channels=config.in_channels,
            size=config.sample_size,
            device=self._execution_device,
            dtype=self.autoencoder.dtype,
        )
