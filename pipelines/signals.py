"""What the pipelines of sequences share, time series and sounds: sampling by a UNet1D and inversion."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from latentia.errors import UsageError, check_range
from latentia.functional.interpolation import interpolate
from latentia.models.unet_1d import UNet1D
from latentia.pipelines.arguments import draw_noise
from latentia.pipelines.base import Labels
from latentia.pipelines.denoising import Steps
from latentia.pipelines.latents import check_no_clipping
from latentia.pipelines.sampling import (
    Conditioning,
    check_scheduler,
    class_conditioning,
    initial_sample,
    invert_ode,
    predict,
    sample_ode,
    scale_input,
    set_steps,
    step_end,
    step_options,
)


def check_parts(unet: Any, scheduler: Any) -> None:
    """Raises a `UsageError` unless a network is one of sequences, and a scheduler steps as the loop here does."""
    if not isinstance(unet, UNet1D):
        raise UsageError(f"unet must be a UNet1D; got {type(unet).__name__}.")
    check_scheduler(scheduler)
    check_no_clipping(scheduler)


def sequence_shape(unet: Any) -> tuple[int, int]:
    """(C, L) of the sequences that a network was trained on."""
    return unet.config.in_channels, unet.config.sample_size


def sample_sequences(
    pipe: Any,
    generators: list[torch.Generator],
    labels: Tensor | None,
    num_inference_steps: int,
    *,
    length: int | None = None,
    mask: Tensor | None = None,
    guidance_scale: float = 1.0,
    eta: float = 0.0,
) -> Tensor:
    """Sequences (B, C, L) that a pipeline makes of noise.

    Args:
        pipe: has `unet`, a `UNet1D`, and `scheduler`.
        generators: one for each sequence.
        labels: classes, (B,) or one for all; `None`: none.
        num_inference_steps: from 1 to the number trained with.
        length: L; `None` (default): as in training.
        mask: bool (B, L), True for steps that are there; `None` (default): all are.
        guidance_scale, eta: as of all diffusion pipelines.
    """
    channels, steps = sequence_shape(pipe.unet)
    noise = draw_noise(generators, (channels, length or steps), pipe._execution_device, pipe.unet.dtype)
    conditioning = _conditioning(pipe, labels, len(noise), mask, guidance_scale)
    loop = Steps(pipe, guidance_scale, None, ())
    scheduler = loop.scheduler  # of this call alone
    set_steps(scheduler, num_inference_steps, noise.device)
    options = step_options(scheduler, generators, eta)
    x = initial_sample(scheduler, noise)
    for i, t in loop.over(scheduler.timesteps):
        target = step_end(pipe.unet, scheduler, scheduler.timesteps, i)
        output = predict(pipe.unet, scale_input(scheduler, x, t), t, conditioning, target=target)
        x = scheduler.step(output, t, x, **options).prev_sample
    pipe.maybe_free_model_hooks()
    return x


def invert_sequences(
    pipe: Any, x: Tensor, mask: Tensor | None, class_labels: Labels, steps: int, refinements: int
) -> Tensor:
    """The noise from which the deterministic sampler of a pipeline makes sequences (B, C, L)."""
    labels = pipe._class_indices(class_labels, len(x))
    x = x.to(pipe._execution_device, pipe.unet.dtype)
    conditioning = _conditioning(pipe, labels, len(x), mask)
    return invert_ode(pipe.unet, pipe.scheduler, x, conditioning, steps, refinements)


def sequences_of(pipe: Any, latents: Tensor, mask: Tensor | None, class_labels: Labels, steps: int) -> Tensor:
    """The sequences that the deterministic sampler of a pipeline makes of noise (B, C, L)."""
    channels, _ = sequence_shape(pipe.unet)
    if latents.ndim != 3 or latents.shape[1] != channels or not latents.numel():
        raise UsageError(f"latents must be (B, {channels}, L), B >= 1; got {tuple(latents.shape)}.")
    labels = pipe._class_indices(class_labels, len(latents))
    x = latents.to(pipe._execution_device, pipe.unet.dtype)
    return sample_ode(pipe.unet, pipe.scheduler, x, _conditioning(pipe, labels, len(x), mask), steps)


def path_between(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """Latents on the great circle between those of two signals, (steps, C, L)."""
    check_range("steps", steps, 2)
    if len(a) != 1 or len(b) != 1:
        raise UsageError(f"a and b must be one signal each; got {len(a)} and {len(b)}.")
    return interpolate(a, b, steps, "slerp")


def _conditioning(
    pipe: Any, labels: Tensor | None, count: int, mask: Tensor | None, guidance_scale: float = 1.0
) -> Conditioning | None:
    """Classes and masks of a batch, for the network."""
    found = class_conditioning(pipe.unet, labels, count, guidance_scale, pipe.config.unconditional)
    if mask is None:
        return found
    if found is None:
        return Conditioning({"step_mask": mask})
    without = None if found.unconditional is None else {**found.unconditional, "step_mask": mask}
    return replace(found, inputs={**found.inputs, "step_mask": mask}, unconditional=without)
