"""Image-to-image (img2img, SDEdit), inpainting and super-resolution, for the loops of diffusion pipelines."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import PNDMScheduler
from PIL import Image
from torch import Tensor

from latentia.errors import UsageError, format_number
from latentia.pipelines.images import Images, from_input
from latentia.pipelines.sampling import add_noise, initial_sample, is_flow

STRENGTH = 0.8  # of an image without a mask


@dataclass(frozen=True)
class SourceImage:
    """The image that a sample starts from (img2img), and that it keeps outside a mask (inpainting).

    Args:
        image: its pixels, (B, C, H, W) in [-1, 1].
        latents: what the network works on: the same, or its latents (B, D, h, w).
        strength: share of the steps that is run, in [0, 1]: 0 returns the image, 1 starts from noise alone.
        mask: 1 where new pixels are made, 0 where the image is kept, (B, 1, H, W) in [0, 1]; None: everywhere.

    SDEdit (Meng et al., 2021, 2108.01073), section 3. RePaint (Lugmayr et al., 2022, 2201.09865), eq. 8, without going
    back in time.
    """

    image: Tensor
    latents: Tensor
    strength: float
    mask: Tensor | None = None

    def expand(self, count: int) -> "SourceImage":
        """One source image for each of `count` samples."""
        parts = {"image": self.image, "latents": self.latents, "mask": self.mask}
        expanded: dict[str, Any] = {k: None if v is None else v.expand(count, *v.shape[1:]) for k, v in parts.items()}
        return replace(self, **expanded)

    def start(self, scheduler: Any, noise: Tensor, num_inference_steps: int) -> tuple[Tensor, Tensor]:
        """The noised image and the time steps that are left, once the scheduler's time steps are set.

        Raises:
            UsageError: the scheduler cannot begin in the middle.
        """
        times, latents = scheduler.timesteps, self.latents.to(noise)
        if self.strength == 0:
            return latents, times[:0]
        if self.strength == 1:
            return initial_sample(scheduler, noise), times
        begin = num_inference_steps - max(1, round(num_inference_steps * self.strength))
        if begin and isinstance(scheduler, PNDMScheduler):  # it repeats time steps and counts its calls
            raise UsageError(
                f"strength must be 0 or 1 with a PNDMScheduler, which cannot begin in the middle; got {self.strength}. "
                "Take DPMSolverMultistepScheduler.from_config(scheduler.config)."
            )
        begin *= getattr(scheduler, "order", 1)
        if begin and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
        return add_noise(scheduler, latents, noise, times[begin]), times[begin:]

    def keep_known(self, x: Tensor, scheduler: Any, noise: Tensor, times: Tensor) -> Tensor:
        """Inpainting: replaces what lies outside the mask by the image, noised to the first of the times to come."""
        if self.mask is None:
            return x
        latents = self.latents.to(x)
        known = add_noise(scheduler, latents, noise, times[0]) if len(times) else latents
        mask = F.adaptive_max_pool2d(self.mask, x.shape[-2:]).to(x)  # a latent is new if a pixel of it is
        return mask * x + (1 - mask) * known

    def composite(self, made: Tensor) -> Tensor:
        """The finished images, equal to the source outside the mask, bit by bit."""
        image = self.image.to(made.device)  # not made's type, as a cast to bfloat16 would change it
        if self.strength == 0:
            return image
        if self.mask is None:
            return made
        mask = self.mask.to(made.device)
        return torch.where(mask == 0, image, mask * made + (1 - mask) * image)


def source_image(
    image: Images | None,
    mask: Images | None,
    strength: float | None,
    *,
    channels: int,
    size: tuple[int, int],
    device: torch.device,
    encode: Callable[[Tensor], Tensor] = lambda x: x,
) -> SourceImage | None:
    """The `SourceImage` of a pipeline's arguments; None if there is no image.

    Args:
        image: images, or what `from_input` takes: one for all, or one for each.
        mask: (H, W), (B, H, W) or (B, 1, H, W), from 0, keep, to 1, make new; or a grey image, whose white is 1.
        strength: see `SourceImage`; `None`: 0.8, or 1 with a mask.
        channels, size: of the pixels.
        device: where all is put.
        encode: pixels -> what the network works on. Default: the pixels.

    Raises:
        UsageError: a mask or strength without image, another size, values out of range, or other numbers of them.
    """
    if image is None:
        check_without_image(mask, strength)
        return None
    strength = (STRENGTH if mask is None else 1.0) if strength is None else strength
    if not 0 <= strength <= 1:
        raise UsageError(f"strength must be in [0, 1], from the image itself to noise alone; got {strength}.")
    x = from_input(image, channels=channels, size=size, device=device)
    m = None if mask is None else mask_of(mask, size, device)
    if m is not None and len(m) != 1 and len(m) != len(x):
        raise UsageError(f"mask must be one, or one for each of {len(x)} images; got {len(m)}.")
    return SourceImage(x, encode(x), strength, m)


def check_without_image(mask: Images | None, strength: float | None) -> None:
    """UsageError if there is a mask or a strength, where no image is."""
    for name, value in (("mask", mask), ("strength", strength)):
        if value is not None:
            raise UsageError(f"{name} needs an image that it is of; give image too, or leave it out.")


def mask_of(mask: Any, size: tuple[int, int], device: torch.device) -> Tensor:
    """A mask as a tensor: (H, W), (B, H, W) or (B, 1, H, W) from 0 to 1, bytes of 0 and 1 or up to 255, or an image.

    Args:
        mask: see above; of bytes that are all 0 or 1, as of other values from 0 to 1, 1 is the largest.
        size: (H, W) that it must have.
        device: of the result.

    Returns:
        (B, 1, H, W), float32 in [0, 1].

    Raises:
        UsageError: another size, several channels, values out of range.

    Example:
        >>> mask_of(np.uint8([[0, 255]]), (1, 2), torch.device("cpu")).tolist()
        [[[[0.0, 1.0]]]]
    """
    if isinstance(mask, Image.Image):
        mask = np.asarray(mask.convert("L"))
    m = mask if isinstance(mask, Tensor) else torch.as_tensor(np.array(mask))
    bytes_ = m.dtype == torch.uint8 and m.numel() and int(m.max()) > 1
    m = m.to(device, torch.float32) / (255 if bytes_ else 1)
    given = tuple(m.shape)
    m = m[:, None] if m.ndim == 3 else m.reshape(1, 1, *m.shape) if m.ndim == 2 else m
    if m.ndim != 4 or m.shape[1] != 1 or tuple(m.shape[2:]) != tuple(size):
        raise UsageError(f"mask must have the size of the image, {size[0]} by {size[1]}, and one channel; got {given}.")
    if not bool((m >= 0).all() & (m <= 1).all()):
        least, most = format_number(m.min().item()), format_number(m.max().item())
        raise UsageError(
            f"mask must be from 0, keep, to 1, make new; got values from {least} to {most}. Divide bytes by 255."
        )
    return m


@dataclass(frozen=True)
class SuperResolution:
    """Low-resolution images, and the projection onto all large ones whose blocks of pixels have their means.

    Args:
        low: (B, C, h, w) in [-1, 1], or one for all.
        factor: sides of the large ones over theirs.

    Denoising Diffusion Null-Space Model (Wang et al., 2022, 2212.00490), eq. 14, of block means.
    """

    low: Tensor
    factor: int

    def project(self, x: Tensor) -> Tensor:
        """The nearest image whose blocks have the right means."""
        gap = self.low.to(x) - F.avg_pool2d(x, self.factor)
        return x + F.interpolate(gap, scale_factor=float(self.factor), mode="nearest")

    def keep(self, x: Tensor) -> Tensor:
        """The finished images, in [-1, 1] with the right means: of the detail in each block as much as fits."""
        mean = F.interpolate(self.low.to(x), scale_factor=float(self.factor), mode="nearest")
        detail = self.project(x) - mean
        room = torch.where(detail > 0, 1 - mean, 1 + mean) / detail.abs().clamp(min=1e-6)
        share = -F.max_pool2d(-room, self.factor)  # the least of a block
        return mean + detail * F.interpolate(share, scale_factor=float(self.factor), mode="nearest").clamp(0, 1)

    def correct(self, scheduler: Any, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The network's output at (x, t), changed so that the clean image that it predicts is projected.

        Channels of a learned variance, if there are any, stay as they are.
        """
        prediction, variance = output[:, : x.shape[1]], output[:, x.shape[1] :]
        return torch.cat([self._correct(scheduler, prediction, x, t), variance], 1)

    def _correct(self, scheduler: Any, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        if is_flow(scheduler):
            time = t / scheduler.config.num_train_timesteps
            return (x - self.project(x - time * prediction)) / time
        alpha_bar = scheduler.alphas_cumprod[int(t)].to(x)
        signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        kind = scheduler.config.prediction_type
        if kind == "sample":
            return self.project(prediction)
        if kind == "v_prediction":
            return (signal * x - self.project(signal * x - noise * prediction)) / noise
        return (x - signal * self.project((x - noise * prediction) / signal)) / noise


def super_resolution(
    low_resolution: Images | None, *, channels: int, size: tuple[int, int], device: torch.device
) -> SuperResolution | None:
    """The `SuperResolution` of a pipeline's argument; None if there are no low-resolution images.

    Raises:
        UsageError: sides that do not divide those of the network by one number.
    """
    if low_resolution is None:
        return None
    y = from_input(low_resolution, channels=channels, device=device)
    factor, rest = divmod(size[0], y.shape[2])
    if rest or factor < 2 or (y.shape[2] * factor, y.shape[3] * factor) != tuple(size):
        raise UsageError(
            f"low_resolution must be {size[0]} by {size[1]} over 2, 3, ..., both sides by one number; got "
            f"{y.shape[2]} by {y.shape[3]}."
        )
    return SuperResolution(y, factor)
