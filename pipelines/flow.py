"""Sampling, exact encoding, interpolation and exact likelihood with a normalizing flow, of images or of vectors."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from latentia.errors import UsageError, check_range
from latentia.functional.bounds import importance_weighted_bound
from latentia.functional.chunks import in_chunks
from latentia.functional.flows import dequantize, quantize
from latentia.functional.interpolation import interpolate
from latentia.models.flow import NormalizingFlow
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


class FlowPipeline(DiffusionPipeline):
    """Normalizing flow: sampling, exact encoding and decoding, interpolation, exact log-likelihood.

    A latent has as many values as an image, D = C H W, and `decode` is the inverse of `encode`. Of a flow of
    vectors "images" are tensors (B, D) of vectors, and `output_type` is "latent".

    Args:
        flow: `NormalizingFlow`, of images or of vectors.
        label_names: names of the classes, in the order of their indices; `None` (default): none.

    Example:
        >>> from latentia import NormalizingFlow
        >>> pipe = FlowPipeline(NormalizingFlow(sample_size=8, num_layers=2, hidden_sizes=(8, 8)))
        >>> image = pipe(batch_size=2, generator=torch.Generator().manual_seed(0)).images[0]
        >>> z = pipe.encode(image)
        >>> z.shape, list(pipe.decode(z)[0].tobytes()) == list(image.tobytes())
        (torch.Size([1, 64]), True)
    """

    flow: Any

    model_cpu_offload_seq = "flow"

    conditions = ("class_labels",)
    latents = "continuous"
    latent_conditions = ("class_labels",)

    def __init__(self, flow, label_names: Sequence[str] | Mapping[str, str] | None = None):
        super().__init__()
        if not isinstance(flow, NormalizingFlow):
            raise UsageError(f"flow must be a NormalizingFlow; got {type(flow).__name__}.")
        if flow.config.context_dim is not None:
            raise UsageError(
                f"flow must have no context vector, which no pipeline can be asked for; got one with context_dim="
                f"{flow.config.context_dim}. Call flow.decode(latents, context=...) itself."
            )
        self.register_modules(flow=flow)
        self._register_label_names(label_names)

    @property
    def likelihood(self) -> Likelihood:
        """Exact, of a density; with variational dequantisation a bound of the probability of bytes."""
        if self._learns_noise:
            return Likelihood("lower bound", "256 bins")
        return Likelihood("exact", "density")

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
        r"""Sample images: z ~ N(0, I), then the inverse of the flow.

        Args:
            batch_size: number of images; `None` (default): as many as `class_labels` or `latents`, else 1.
            class_labels: an index or a name, or one for each image. A network that is conditioned on classes needs it.
            temperature: factor of z, at least 0. 1 (default) is the model; 0.7 to 0.9 makes images more typical and
                alike (Glow, Kingma and Dhariwal, 2018, 1807.03039, section 6).
            generator: one `torch.Generator` or one per image. The same seed gives the same images whatever the batch.
            latents: decode these, (B, D), instead of drawing some.
            output_type: "pil", "np" ((B, H, W, C) in [0, 1]), "pt" ((B, C, H, W) in [0, 1]) or "latent" (raw).
            return_dict: `False` returns the tuple `(images,)`.

        Returns:
            `.images`.

        Raises:
            UsageError: an argument out of its range, or labels that are missing or not known.
        """
        check_output_type(output_type, self.flow.shape)
        check_range("temperature", temperature, 0)
        batch_size = count_images(batch_size, {"latents": latents}, class_labels=class_labels)
        if latents is None:
            generators = image_generators(generator, batch_size)
            latents = draw_noise(generators, (self._size,), self._execution_device, self._wide)
        images = self.decode(temperature * latents, class_labels=class_labels, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @torch.no_grad()
    def encode(self, images: Images, *, class_labels: Labels = None) -> Tensor:
        """Latents (B, D) of images, exact: `decode` gives the same images back.

        Args:
            images: images, or what `from_input` takes; of a flow of vectors (B, D).
            class_labels: as for sampling.
        """
        x = self._input(images)
        labels = self._class_indices(class_labels, len(x), required=True)
        return in_chunks(self.flow.encode, dequantize(x) if self._is_image else x, labels)

    @torch.no_grad()
    def decode(self, latents: Tensor, *, class_labels: Labels = None, output_type: str = "pil") -> Any:
        """Images of latents (B, D); the inverse of `encode`."""
        check_output_type(output_type, self.flow.shape)
        if not isinstance(latents, Tensor):
            raise UsageError(f"latents must be a tensor (B, {self._size}); got {type(latents).__name__}.")
        z = latents.to(self._execution_device, self._wide)
        if z.ndim != 2 or z.shape[1] != self._size or not len(z):
            raise UsageError(f"latents must have shape (B, {self._size}); got {tuple(z.shape)}.")
        x = in_chunks(self.flow.decode, z, self._class_indices(class_labels, len(z), required=True))
        return to_output(quantize(x) if self._is_image else x, output_type)

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
        self, images: Images, *, class_labels: Labels = None, samples: int | None = None, generator: Generators = None
    ) -> Tensor:
        r"""log p(x), exact, in nats per image, summed over pixels: a density on \([-1, 1]^D\).

        The density at bytes themselves says little: dequantise them with `latentia.evaluation.dequantise`, or ask for
        `samples`, which gives a bound of the log-probability of the bytes. Without labels, a network that is
        conditioned on them gives the mean over its classes, \(p(x) = \frac1K \sum_c p(x|c)\).

        A flow with variational dequantisation was trained for the bytes, and always gives that bound.

        Args:
            images: images, or what `from_input` takes; of a flow of vectors (B, D).
            class_labels: as for sampling, or `None`.
            samples: `None` (default): the density at the images as they are, or 1 with variational dequantisation; a
                number k, at least 1: the lower bound \(\log \frac1k \sum_i p(x + u_i) / (128^D q(u_i|x))\) of the
                log-probability of bytes, q being 1 for uniform noise.
            generator: of u, one or one per image.

        Returns:
            float64, (B,). Bits per dimension: `latentia.evaluation.bits_per_dimension`, for `samples` with `span=None`.
        """
        x = self._input(images)
        samples = 1 if samples is None and self._learns_noise else samples
        if samples is None:
            return self._log_prob(x, class_labels)
        check_range("samples", samples, 1, integer=True)
        if not self._is_image:
            raise UsageError("samples dequantise bytes of images, and this flow is of vectors; leave it out.")
        generators, densities = image_generators(generator, len(x)), []
        for _ in range(samples):
            if self._learns_noise:
                noise = draw_noise(generators, x.shape[1:], x.device, x.dtype)
            else:
                noise = draw_uniform(generators, x.shape[1:], x.device).to(x.dtype)
            densities.append(self._log_prob(x, class_labels, noise))
        return importance_weighted_bound(torch.stack(densities, 1)) - self._size * math.log(128)

    # ------------------------------------------------------------ parts

    @property
    def _is_image(self) -> bool:
        return len(self.flow.shape) == 3

    @property
    def _learns_noise(self) -> bool:
        return self.flow.config.dequantization == "variational"

    @property
    def _size(self) -> int:
        """Values of a latent, D."""
        return math.prod(self.flow.shape)

    @property
    def _wide(self) -> torch.dtype:
        """The type of values and densities: float32 where the networks compute in half precision."""
        return torch.promote_types(self.flow.dtype, torch.float32)

    def _input(self, images: Images) -> Tensor:
        """(B, *shape) in at least float32, as densities need it."""
        place = {"device": self._execution_device, "dtype": self._wide}
        if self._is_image:
            channels, *size = self.flow.shape
            return from_input(images, channels=channels, size=(size[0], size[1]), **place)
        if not isinstance(images, Tensor) or images.ndim != 2 or images.shape[1] != self._size or not len(images):
            given = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise UsageError(f"images must be a tensor of vectors (B, {self._size}) for this flow; got {given}.")
        if not images.isfinite().all():
            raise UsageError("images must be finite; some vectors hold NaN or infinity.")
        return images.to(**place)

    def _log_prob(self, x: Tensor, class_labels: Labels, noise: Tensor | None = None) -> Tensor:
        if class_labels is None and self.num_classes is not None:
            every = [self._log_prob(x, c, noise) for c in range(self.num_classes)]
            return importance_weighted_bound(torch.stack(every, 1))

        def log_prob(x: Tensor, labels: Tensor | None, noise: Tensor | None) -> Tensor:
            return self.flow(x, class_labels=labels, noise=noise).log_prob.double()

        return in_chunks(log_prob, x, self._class_indices(class_labels, len(x), required=True), noise)
