"""Conversion of the images of pipelines: from PIL images, arrays and tensors to [-1, 1], and back."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from latentia.errors import NumericsError, UsageError, counted, did_you_mean, format_number
from latentia.functional.pixels import from_uint8

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
Images = Image.Image | np.ndarray | Tensor | Sequence[Image.Image]

AnomalyScore = Literal["likelihood", "reconstruction", "relative_reconstruction"]


def check_output_type(output_type: str, shape: Sequence[int] = (3, 1, 1)) -> None:
    """Refuses an unknown `output_type`. Call it before sampling, so that a typo does not cost the samples.

    Args:
        output_type: to check.
        shape: of a sample: (C, H, W) of an image. Vectors, (D,), are given as "latent" alone.

    Raises:
        UsageError: it is none of "pil", "np", "pt", "latent", or one that is for images.
    """
    if output_type not in OUTPUT_TYPES:
        raise UsageError(
            f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}."
            + did_you_mean(str(output_type), OUTPUT_TYPES)
        )
    if len(shape) != 3 and output_type != "latent":
        raise UsageError(
            f"This pipeline samples vectors of {shape[0]} values, no images; in Python, "
            f'pipe(batch_size=8, output_type="latent").images gives them as a tensor. Got output_type {output_type!r}.'
        )


def to_output(x: Tensor, output_type: str = "pil") -> Any:
    """Converts a network's images in [-1, 1] to PIL images, arrays or tensors.

    A pixel is `round(255 * clamp((x + 1) / 2, 0, 1))`, halves to even, on the CPU in float32, so that equal samples
    give equal images on every device.

    Args:
        x: (B, C, H, W), float, in [-1, 1]; what lies outside is clamped. "pil" needs 1, 3 or 4 channels.
        output_type: "pil" (list of PIL images), "np" ((B, H, W, C), float32 in [0, 1]), "pt" ((B, C, H, W) in [0, 1],
            on the device of `x`), or "latent" (`x` itself).

    Raises:
        NumericsError: a value is not finite.
        UsageError: another `output_type`, or a number of channels that PIL images do not have.

    Example:
        >>> to_output(torch.zeros(2, 1, 8, 8))[0].getpixel((0, 0))
        128
    """
    check_output_type(output_type, x.shape[1:])
    if output_type == "latent":
        return x
    if not torch.isfinite(x).all():
        raise NumericsError(
            "The samples are not finite, so they are no images. Sample in float32 or bfloat16, or look for the step "
            "of training at which the weights went wrong."
        )
    unit = (x.float() + 1).div(2).clamp(0, 1)
    if output_type == "pt":
        return unit
    array = unit.cpu().permute(0, 2, 3, 1).numpy()  # (B, H, W, C)
    if output_type == "np":
        return array
    if array.shape[-1] not in _MODES:
        raise UsageError(f'output_type="pil" needs 1, 3 or 4 channels, got {array.shape[-1]}. Take "np" or "pt".')
    pixels = (array * 255).round().astype(np.uint8)
    return [Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in pixels]


def from_input(
    images: Image.Image | np.ndarray | Tensor | Sequence[Image.Image],
    *,
    channels: int | None = None,
    size: int | tuple[int, int] | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Converts PIL images, arrays or tensors to (B, C, H, W) in [-1, 1]. Nothing is resized or converted silently.

    Args:
        images: one PIL image or a list of them (modes L, RGB, RGBA); an array (H, W, C) or (B, H, W, C), uint8 or float
            in [0, 1]; or a tensor (C, H, W) or (B, C, H, W), uint8 or, as data sets here deliver it, float in [-1, 1].
        channels: how many the network takes; None for any.
        size: height and width, or one number for both, that the network takes; None for any.
        device, dtype: of the result.

    Raises:
        UsageError: type, shape, range, channels or size are not as said.

    Example:
        >>> from_input(Image.new("L", (8, 8), 255), channels=1, size=8).shape
        torch.Size([1, 1, 8, 8])
    """
    if isinstance(images, Image.Image):
        images = [images]
    if isinstance(images, Sequence) and not isinstance(images, str) and len(images) > 0:
        images = _stack(images)
    if isinstance(images, np.ndarray):
        if images.dtype.kind not in "uifb":
            raise UsageError(f"images must be uint8 or floating point, got {images.dtype}.")
        native = images.dtype.newbyteorder("=") if images.dtype.itemsize <= 8 else np.float64
        x = torch.from_numpy(np.ascontiguousarray(images, dtype=native))
        if x.ndim not in (3, 4):
            raise UsageError(f"images must have shape (H, W, C) or (B, H, W, C), got {tuple(images.shape)}.")
        x, low = x.movedim(-1, -3), 0.0
    elif isinstance(images, Tensor):
        x, low = images, -1.0
    else:
        raise UsageError(f"images must be PIL images, an array or a tensor, got {type(images).__name__}.")
    if x.ndim == 3:
        x = x[None]
    if x.ndim != 4 or 0 in x.shape:
        raise UsageError(f"images must have shape (C, H, W) or (B, C, H, W) and not be empty, got {tuple(x.shape)}.")
    if x.dtype == torch.uint8:
        x, low = from_uint8(x), -1.0
    elif x.is_floating_point():
        high = 1.0
        if odd := int((~x.isfinite()).flatten(1).any(1).sum()):
            raise UsageError(f"images must be finite; {odd} of {len(x)} hold NaN or infinity.")
        if not (x.min() >= low and x.max() <= high):
            raise UsageError(
                f"images must lie in [{low:g}, {high:g}], got values from {format_number(float(x.min()))} to "
                f"{format_number(float(x.max()))}. Give pixels of "
                f"0 to 255 as uint8, and floats as {'an array in [0, 1]' if low == 0 else 'a tensor in [-1, 1]'}."
            )
    else:
        raise UsageError(f"images must be uint8 or floating point, got {x.dtype}.")
    if channels is not None and x.shape[1] != channels:
        hint = f' Convert them first: image.convert("{_MODES[channels]}").' if channels in _MODES else ""
        raise UsageError(f"images must have {counted(channels, 'channel')}, got {x.shape[1]}.{hint}")
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        if tuple(x.shape[-2:]) != (height, width):
            raise UsageError(
                f"images must be {height} high and {width} wide, got {x.shape[-2]} by {x.shape[-1]}. Resize them "
                f"first: image.resize(({width}, {height}))."
            )
    x = x.to(device=device, dtype=dtype)
    return x * 2 - 1 if low == 0 else x


def _stack(images: Sequence[Any]) -> np.ndarray:
    for image in images:
        if not isinstance(image, Image.Image):
            raise UsageError(
                f"images must be PIL images where they are a list; got {type(image).__name__}. Stack tensors or arrays."
            )
        if image.mode not in _MODES.values():
            raise UsageError(f'images must have mode L, RGB or RGBA; got {image.mode}. Use image.convert("RGB").')
        if (image.size, image.mode) != (images[0].size, images[0].mode):
            raise UsageError(
                "images of one call must have one size and mode; got "
                f"{images[0].mode} {images[0].size} and {image.mode} {image.size}. Resize or convert them first."
            )
    arrays = [np.asarray(image) for image in images]
    return np.stack([array if array.ndim == 3 else array[..., None] for array in arrays])


def reconstruction_error(pipe: Any, images: Any, options: dict[str, Any], *, relative: bool) -> Tensor:
    r"""The squared error of `pipe.reconstruct`, summed over each image, float32 (B,).

    Without labels a pipeline with classes gets the least error of any. The relative one is the fraction of variance
    unexplained, \(\lVert \hat x - x \rVert^2 / \lVert x - \bar x \rVert^2\), with the mean of each image; a constant
    image has the variance of rounding to bytes.
    """
    by_class = pipe.num_classes and "class_labels" in pipe.latent_conditions and "class_labels" not in options
    errors = []
    for condition in [{"class_labels": c} for c in range(pipe.num_classes)] if by_class else [{}]:
        again = pipe.reconstruct(images, output_type="latent", **condition, **options).float()
        if hasattr(pipe, "form"):
            x = pipe.form.tensors(images, again.device, again.dtype)
        else:
            x = from_input(images, channels=again.shape[1], size=(again.shape[2], again.shape[3]), device=again.device)
        errors.append((again - x).square().flatten(1).sum(1))
    error = torch.stack(errors).amin(0)
    if not relative:
        return error
    variance = x.flatten(1).var(1, unbiased=False).clamp_min((2 / 255) ** 2 / 12)
    return error / (variance * x[0].numel())
