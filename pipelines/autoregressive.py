"""Sampling, completion and exact likelihood of images, value by value: PixelCNN, pixel transformer, MADE."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from latentia.errors import UsageError, check_range
from latentia.functional.bounds import importance_weighted_bound
from latentia.functional.chunks import in_chunks
from latentia.functional.pixels import from_levels, to_levels
from latentia.losses.autoregressive import token_log_probs
from latentia.models.autoregressive import CausalTransformer
from latentia.models.made import MADE
from latentia.models.pixelcnn import GatedPixelCNN
from latentia.pipelines.arguments import Generators, check_call, count_images, draw_uniform, image_generators
from latentia.pipelines.base import DiffusionPipeline, Labels
from latentia.pipelines.capabilities import Likelihood
from latentia.pipelines.images import Images, check_output_type, from_input, to_output
from latentia.pipelines.tokens import make_pick


class AutoregressivePipeline(DiffusionPipeline):
    r"""\(p(x) = \prod_i p(x_i | x_1, ..., x_{i-1}, y)\) over the values of an image in raster order.

    Args:
        network: `GatedPixelCNN`, `CausalTransformer` of images or `MADE`. Its `levels` are the values of a pixel.
        label_names: names of the classes, in the order of their indices; `None` (default): none.

    Example:
        >>> from latentia import GatedPixelCNN
        >>> pipe = AutoregressivePipeline(GatedPixelCNN(8, levels=2, hidden_channels=8, layers=2).eval())
        >>> image = pipe(generator=torch.Generator().manual_seed(0)).images[0]
        >>> image.size, bool(pipe.log_likelihood(image) < 0)
        ((8, 8), True)
    """

    network: Any

    model_cpu_offload_seq = "network"

    conditions = ("class_labels", "image")

    def __init__(self, network, label_names: Sequence[str] | Mapping[str, str] | None = None):
        super().__init__()
        if not isinstance(network, CausalTransformer | GatedPixelCNN | MADE) or len(network.shape) != 3:
            raise UsageError(
                "network must be a GatedPixelCNN, a MADE or a CausalTransformer of images; got "
                f"{type(network).__name__}{' of sequences' if isinstance(network, CausalTransformer) else ''}."
            )
        self.register_modules(network=network)
        self._register_label_names(label_names)

    @property
    def likelihood(self) -> Likelihood:
        """Exact, of bytes, of binarised pixels, or of pixels of fewer levels."""
        levels = self.network.config.levels
        return Likelihood("exact", {256: "256 bins", 2: "binarised pixels"}.get(levels, "levels"))  # type: ignore[arg-type]  # of a dict

    @check_call
    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        *,
        class_labels: Labels = None,
        image: Images | None = None,
        known_rows: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        r"""Sample images value by value, or complete the lower part of given ones.

        Args:
            batch_size: number of images; `None` (default): as many as `class_labels` or `image`, else 1.
            class_labels: an index or a name, or one for each image. A network that is conditioned on classes needs it.
            image: an image, or one for each, whose upper part is kept; `None` (default): all is sampled.
            known_rows: rows of `image` that are kept, from 0 to its height; `None` (default): the upper half.
            temperature: T of \(\mathrm{softmax}(l / T)\), above 0. 1 (default) is the model; less makes images more
                typical and alike.
            top_k: draw from the k likeliest levels, at least 1; `None` (default): from all.
            top_p: draw from the fewest levels that have this probability together, in (0, 1]. Default 1: from all.
            generator: one `torch.Generator` or one per image. The same seed gives the same images whatever the batch.
            output_type: "pil", "np" ((B, H, W, C) in [0, 1]), "pt" ((B, C, H, W) in [0, 1]) or "latent" (raw).
            return_dict: `False` returns the tuple `(images,)`.

        Returns:
            `.images`.

        Raises:
            UsageError: an argument out of its range, labels that are missing or not known, or rows without an image.
        """
        check_output_type(output_type)
        pick, (channels, height, width) = make_pick(temperature, top_k, top_p), self.network.shape
        check_range("known_rows", known_rows, 0, height, integer=True)
        if known_rows is not None and image is None:
            raise UsageError(f"known_rows are of image, which is missing; got {known_rows}. Give an image, or no rows.")
        given = None if image is None else self._values(image)
        count = count_images(batch_size, class_labels=class_labels, image=given)
        labels = self._class_indices(class_labels, count, required=True)
        uniform = draw_uniform(image_generators(generator, count), self.network.shape, self._execution_device)
        rows = height // 2 if known_rows is None else known_rows
        known = torch.full((count,), rows * width * channels, device=uniform.device)
        given = None if given is None else given.expand(count, -1, -1, -1)

        def draw(uniform: Tensor, given: Tensor | None, known: Tensor, labels: Tensor | None) -> Tensor:
            return self.network.sample(uniform, pick, given=given, known=known, class_labels=labels)

        values = in_chunks(draw, uniform, given, known, labels)
        images = to_output(from_levels(values, self.network.config.levels), output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @torch.no_grad()
    def log_likelihood(self, images: Images, *, class_labels: Labels = None, generator: Generators = None) -> Tensor:
        r"""\(\log p(x)\), exact, in nats per image, summed over its values.

        A network of 256 levels gives that of bytes, one of fewer that of the levels that the pixels fall into. For two,
        grey pixels are binarised first, each white with probability (v + 1) / 2, as in training. Without labels, a
        network that is conditioned on them gives the mean over its classes, \(p(x) = \frac1K \sum_c p(x|c)\).

        Args:
            images: images, or what `from_input` takes.
            class_labels: as for sampling, or `None`.
            generator: of the binarisation, one or one per image.

        Returns:
            float64, (B,). Divide by \(-\ln 2\) and the number of values of an image for bits per dimension.
        """
        x = self._input(images)
        if self.network.config.levels == 2:
            uniform = draw_uniform(image_generators(generator, len(x)), x.shape[1:], x.device)
            values = (uniform < (x + 1) / 2).long()
        else:
            values = to_levels(x, self.network.config.levels)
        if class_labels is None and self.num_classes is not None:
            every = [self._log_prob(values, c) for c in range(self.num_classes)]
            return importance_weighted_bound(torch.stack(every, 1))
        return self._log_prob(values, class_labels)

    # ------------------------------------------------------------ parts

    def _input(self, images: Images) -> Tensor:
        channels, *size = self.network.shape
        return from_input(images, channels=channels, size=(size[0], size[1]), device=self._execution_device)

    def _values(self, images: Images) -> Tensor:
        return to_levels(self._input(images), self.network.config.levels)

    def _log_prob(self, values: Tensor, class_labels: Labels) -> Tensor:
        def log_prob(values: Tensor, labels: Tensor | None) -> Tensor:
            return token_log_probs(self.network, values, labels).double().flatten(1).sum(1)

        return in_chunks(log_prob, values, self._class_indices(class_labels, len(values), required=True))
