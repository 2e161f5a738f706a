"""Image-to-image translation: an image in, an image out; of a translator of pairs, or of both directions of a cycle."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from latentia.data.pairs import Degradation
from latentia.errors import UsageError, check_choice
from latentia.functional.chunks import in_chunks
from latentia.functional.degradation import larger, masked
from latentia.models.translator import DIRECTIONS
from latentia.pipelines.arguments import Generators, check_call, count_images, dropout_seeds, image_generators
from latentia.pipelines.base import DiffusionPipeline
from latentia.pipelines.control import degradation_of, saved_degradation
from latentia.pipelines.image_conditioning import mask_of
from latentia.pipelines.images import Images, check_output_type, from_input, to_output
from latentia.pipelines.sampling import chunk_size
from latentia.pipelines.threads import evaluating


class TranslationPipeline(DiffusionPipeline):
    """Translate images by a network that was trained on pairs (pix2pix), or restore degraded ones.

    Args:
        translator: `ImageTranslator`.
        degradation: what its inputs were made by, "name" and "strength" of `latentia.data.Degradation`; `None`
            (default): nothing, they were images of their own. Of "smaller" the call takes the small image, of "masked"
            the whole image with its mask.

    Example:
        >>> from latentia import ImageTranslator
        >>> pipe = TranslationPipeline(ImageTranslator(1, 3, block_out_channels=(8, 16)), {"name": "grey"})
        >>> pipe(torch.zeros(2, 1, 28, 28)).images[0].mode
        'RGB'
    """

    translator: Any

    model_cpu_offload_seq = "translator"

    conditions = ("image", "mask")
    needs_image = True

    def __init__(self, translator, degradation: Mapping[str, Any] | None = None):
        super().__init__()
        if hasattr(translator, "translate"):
            raise UsageError("translator must be an ImageTranslator; got a CycleTranslator, which has a CyclePipeline.")
        self.register_modules(translator=translator)
        self.register_to_config(degradation=saved_degradation(degradation))

    @property
    def degradation(self) -> Degradation | None:
        """What the inputs of the network were made by; None for images of their own."""
        return degradation_of(self.config.degradation)

    @property
    def input_channels(self) -> int:
        """Channels of the inputs as the network takes them."""
        return self.translator.config.in_channels

    @check_call
    @torch.no_grad()
    def __call__(
        self,
        image: Images | None = None,
        *,
        mask: Images | None = None,
        batch_size: int | None = None,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Translate images, of any size that the network takes.

        Args:
            image: the inputs, as for `from_input`; one, or one for each of `batch_size` images.
            mask: 1 or white where new pixels are made, of a network that was trained with masks, and of no other; one,
                or one for each image.
            batch_size: number of images; `None` (default): as many as `image`. Several of one image differ only if the
                network has dropout that stays on.
            generator: of that dropout, one `torch.Generator` or one per image. The same seed gives the same images
                whatever the batch.
            output_type: "pil", "np" ((B, H, W, C) in [0, 1]), "pt" ((B, C, H, W) in [0, 1]) or "latent" (raw).
            return_dict: `False` returns the tuple `(images,)`.

        Returns:
            `.images`.

        Raises:
            UsageError: no image, one of other channels or too small, a mask that is missing, not expected or of
                another size.
        """
        check_output_type(output_type)
        config, made = self.translator.config, self.degradation
        holed = made is not None and made.name == "masked"
        channels = config.in_channels - 1 if holed else config.in_channels
        x = _input(self, self.translator, image, channels)
        if holed != (mask is not None):
            rule = "is missing: it says where new pixels are made" if holed else "must be left out"
            raise UsageError(f"mask {rule}. This network was trained {'with' if holed else 'without'} masks.")
        batch_size = count_images(batch_size, image=x)
        x = x.expand(batch_size, -1, -1, -1)
        if made is not None and made.name == "smaller":
            x = larger(x.float(), made.scale).to(x.dtype)
        if mask is not None:
            inside = mask_of(mask, (x.shape[2], x.shape[3]), x.device)
            if len(inside) not in (1, batch_size):
                raise UsageError(f"mask must be one, or one for each of {batch_size} images; got {len(inside)}.")
            x = masked(x, (inside > 0).to(x.dtype).expand(batch_size, -1, -1, -1))

        images = self.translate(x, image_generators(generator, batch_size))
        self.maybe_free_model_hooks()
        output = to_output(images, output_type)
        return ImagePipelineOutput(images=output) if return_dict else (output,)

    @torch.no_grad()
    def translate(self, inputs: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Outputs of inputs as the network takes them, and as the batches of `PairedImages` hold them.

        Args:
            inputs: (B, C, H, W) in [-1, 1]; enlarged, of a network that enlarges; with their mask, of one that fills.
            generators: one for each, of dropout that stays on.

        Returns:
            (B, D, H, W) in [-1, 1].
        """
        return _translate(self, lambda x, seeds: self.translator(x, seeds).sample, inputs, generators)


class CyclePipeline(DiffusionPipeline):
    """Translate images in both directions, by networks that were trained on two sets of images without pairs.

    Args:
        translator: `CycleTranslator`.

    Example:
        >>> from latentia import CycleTranslator
        >>> pipe = CyclePipeline(CycleTranslator(1, 3, block_out_channels=(8, 16), num_res_blocks=1))
        >>> there = pipe(torch.zeros(1, 1, 16, 16), output_type="latent").images
        >>> pipe(there, direction="backward", output_type="latent").images.shape
        torch.Size([1, 1, 16, 16])
    """

    translator: Any

    model_cpu_offload_seq = "translator"

    conditions = ("image",)
    needs_image = True

    def __init__(self, translator):
        super().__init__()
        if not hasattr(translator, "translate"):
            raise UsageError(f"translator must be a CycleTranslator; got {type(translator).__name__}.")
        self.register_modules(translator=translator)

    @property
    def input_channels(self) -> int:
        """Channels of the inputs of the direction forward."""
        return self.translator.config.in_channels

    @check_call
    @torch.no_grad()
    def __call__(
        self,
        image: Images | None = None,
        *,
        direction: str = "forward",
        batch_size: int | None = None,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Translate images of one domain to the other, of any size that the network takes.

        Args:
            image: of the domain that it comes from, as for `from_input`; one, or one for each of `batch_size` images.
            direction: "forward" (default), from the inputs to the targets of training, or "backward".
            batch_size: number of images; `None` (default): as many as `image`.
            generator: of dropout that stays on, one `torch.Generator` or one per image.
            output_type: "pil", "np" ((B, H, W, C) in [0, 1]), "pt" ((B, C, H, W) in [0, 1]) or "latent" (raw).
            return_dict: `False` returns the tuple `(images,)`.

        Returns:
            `.images`.

        Raises:
            UsageError: no image, one of other channels or too small, an unknown direction.
        """
        check_output_type(output_type)
        check_choice("direction", direction, DIRECTIONS)
        config = self.translator.config
        x = _input(self, self.translator, image, config.in_channels if direction == "forward" else config.out_channels)
        batch_size = count_images(batch_size, image=x)

        images = self.translate(
            x.expand(batch_size, -1, -1, -1), image_generators(generator, batch_size), direction=direction
        )
        self.maybe_free_model_hooks()
        output = to_output(images, output_type)
        return ImagePipelineOutput(images=output) if return_dict else (output,)

    @torch.no_grad()
    def translate(self, inputs: Tensor, generators: list[torch.Generator], *, direction: str = "forward") -> Tensor:
        """Images of the other domain, as tensors.

        Args:
            inputs: (B, C, H, W) in [-1, 1].
            generators: one for each, of dropout that stays on.
            direction: as for the call.

        Returns:
            (B, D, H, W) in [-1, 1].
        """
        return _translate(self, lambda x, seeds: self.translator.translate(x, direction, seeds), inputs, generators)


def _input(pipe: Any, network: Any, image: Images | None, channels: int) -> Tensor:
    if image is None:
        raise UsageError(f"image is missing: {type(pipe).__name__} makes images from images. Give one, or several.")
    return from_input(image, channels=channels, device=pipe._execution_device, dtype=network.dtype)


def _translate(
    pipe: Any, network: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, generators: list[torch.Generator]
) -> Tensor:
    """In chunks of one size, so that an image does not depend on those beside it."""
    x = inputs.to(pipe._execution_device, pipe.translator.dtype)
    size = chunk_size(x.shape[2] * x.shape[3], x.device.type)
    with evaluating(pipe.translator):
        return in_chunks(network, x, dropout_seeds(generators, x.device), size=size)
