"""Pictures that a sample starts from, keeps a part of, or is made sharper than: in pixels and in latents."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from latentia.errors import UsageError
from latentia.pipelines.base import from_input

STRENGTH = 0.8  # of a picture without a mask


@dataclass(frozen=True)
class Given:
    """A picture that a sample is made of.

    Args:
        image: its pixels, (B, C, H, W) in [-1, 1].
        sample: what the network sees of it: the same, or its latents (B, D, h, w).
        strength: how much of the chain is run, in [0, 1]: 0 gives the picture back, 1 begins with noise alone.
        mask: 1 where new pixels are made, 0 where the picture is kept, (B, 1, H, W) in [0, 1]; None: everywhere.
    """

    image: Tensor
    sample: Tensor
    strength: float
    mask: Tensor | None = None

    def repeated(self, count: int) -> "Given":
        """The same for `count` pictures, if it is one."""
        x, z, m = (None if v is None else v.expand(count, *v.shape[1:]) for v in (self.image, self.sample, self.mask))
        return replace(self, image=x, sample=z, mask=m)

    def first(self, num_inference_steps: int) -> int:
        """The first step that is run."""
        return num_inference_steps - max(1, round(num_inference_steps * self.strength))

    def noised(self, scheduler, noise: Tensor, t: Tensor) -> Tensor:
        """The picture with the noise of time t, as the scheduler makes it."""
        add = getattr(scheduler, "scale_noise", None)  # of flow matching; its arguments have another order
        times, sample = t.reshape(1).expand(len(noise)), self.sample.to(noise)
        return scheduler.add_noise(sample, noise, times) if add is None else add(sample, times, noise)

    def kept(self, x: Tensor, known: Tensor) -> Tensor:
        """What the network has made inside the mask, and what is known outside."""
        if self.mask is None:
            return x
        mask = F.adaptive_max_pool2d(self.mask, x.shape[-2:]).to(x)  # a latent is new if a pixel of it is
        return mask * x + (1 - mask) * known.to(x)

    def finish(self, made: Tensor) -> Tensor:
        """The finished pictures, equal to the given one outside the mask, bit by bit."""
        image = self.image.to(made.device)  # not made's type, as a cast to bfloat16 would change it
        if self.strength == 0:
            return image
        if self.mask is None:
            return made
        mask = self.mask.to(made.device)
        return torch.where(mask == 0, image, mask * made + (1 - mask) * image)


def given_picture(
    image: Any,
    mask: Any,
    strength: float | None,
    *,
    channels: int,
    size: tuple[int, int],
    to_sample: Callable[[Tensor], Tensor],
    device: torch.device,
) -> Given | None:
    """The `Given` that a user's words mean; None if there is no picture.

    Args:
        image: pictures, or what `from_input` takes: one for all, or one for each.
        mask: (H, W) or (B, H, W) or (B, 1, H, W), from 0, keep, to 1, make new; a picture in grey, whose white is 1.
        strength: see `Given`; `None`: 0.8, or 1 with a mask.
        channels, size: of the pixels.
        to_sample: pixels -> what the network sees of them.
        device: where all is put.

    Raises:
        UsageError: a mask or strength without picture, another size, values out of range, or other numbers of them.
    """
    if image is None:
        for name, value in (("mask", mask), ("strength", strength)):
            if value is not None:
                raise UsageError(f"{name} needs an image that it is of; give image too, or leave it out.")
        return None
    strength = (STRENGTH if mask is None else 1.0) if strength is None else strength
    if not 0 <= strength <= 1:
        raise UsageError(f"strength must be in [0, 1], from the picture itself to noise alone; got {strength}.")
    x = from_input(image, channels=channels, size=size, device=device)
    m = None if mask is None else _mask(mask, size, device)
    if m is not None and len(m) != 1 and len(m) != len(x):
        raise UsageError(f"mask must be one, or one for each of {len(x)} images; got {len(m)}.")
    return Given(x, to_sample(x), strength, m)


def _mask(mask: Any, size: tuple[int, int], device: torch.device) -> Tensor:
    if isinstance(mask, Image.Image):
        mask = np.asarray(mask.convert("L"), dtype=np.float32) / 255
    m = torch.as_tensor(np.asarray(mask) if not isinstance(mask, Tensor) else mask).to(device, torch.float32)
    m = m[:, None] if m.ndim == 3 else m.reshape(1, 1, *m.shape) if m.ndim == 2 else m
    if m.ndim != 4 or m.shape[1] != 1 or tuple(m.shape[2:]) != tuple(size):
        raise UsageError(
            f"mask must have the size of the picture, {size[0]} by {size[1]}, and one channel; got "
            f"{tuple(torch.as_tensor(np.asarray(mask)).shape)}."
        )
    if not bool((m >= 0).all() & (m <= 1).all()):
        raise UsageError(
            f"mask must be from 0, keep, to 1, make new; got values from {m.min():g} to {m.max():g}. Divide bytes by "
            "255."
        )
    return m


@dataclass(frozen=True)
class Sharpen:
    """Small pictures, and the projection onto all large ones whose blocks of pixels have their means.

    Args:
        small: (B, C, h, w) in [-1, 1], or one for all.
        factor: sides of the large ones over theirs.

    Denoising Diffusion Null-Space Model (Wang et al., 2022, 2212.00490), eq. 14, of block means.
    """

    small: Tensor
    factor: int

    def project(self, x: Tensor) -> Tensor:
        """The nearest picture whose blocks have the right means."""
        gap = self.small.to(x) - F.avg_pool2d(x, self.factor)
        return x + F.interpolate(gap, scale_factor=float(self.factor), mode="nearest")

    def corrected(self, scheduler, prediction: Tensor, x: Tensor, t: Tensor, flow: bool) -> Tensor:
        """The prediction at (x, t) whose clean picture is the projection of that of `prediction`."""
        if flow:
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


def small_picture(small: Any, *, channels: int, size: tuple[int, int], device: torch.device) -> Sharpen | None:
    """The `Sharpen` of a user's small pictures; None if there are none.

    Raises:
        UsageError: sides that do not divide those of the network by one number.
    """
    if small is None:
        return None
    y = from_input(small, channels=channels, device=device)
    factor, rest = divmod(size[0], y.shape[2])
    if rest or factor < 2 or (y.shape[2] * factor, y.shape[3] * factor) != tuple(size):
        raise UsageError(
            f"low_resolution must be {size[0]} by {size[1]} over 2, 3, ..., both sides by one number; got "
            f"{y.shape[2]} by {y.shape[3]}."
        )
    return Sharpen(y, factor)
