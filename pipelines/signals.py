"""What the pipelines of sequences share, time series and sounds: sampling by a UNet1D, inversion, and the words."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from latentia.errors import UsageError, check_range
from latentia.functional.interpolation import interpolate
from latentia.models.unet_1d import UNet1D
from latentia.pipelines.arguments import draw_noise
from latentia.pipelines.base import DiffusionPipeline, Labels
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


class SignalPipeline(DiffusionPipeline):
    """The base of pipelines of sequences: a subclass declares its modality and says what a sequence stands for."""

    conditions = ("class_labels",)
    latents = "continuous"
    latent_conditions = ("class_labels",)
    latent_path = "slerp"
    unet: Any
    scheduler: Any

    def _register(
        self,
        unet: Any,
        scheduler: Any,
        label_names: Sequence[str] | Mapping[str, str] | None,
        unconditional: bool,
        **parts: Any,
    ) -> None:
        """Check and register the components: those of `parts`, and a network and a scheduler of their sequences."""
        if not isinstance(unet, UNet1D):
            raise UsageError(f"unet must be a UNet1D; got {type(unet).__name__}.")
        check_scheduler(scheduler)
        check_no_clipping(scheduler)
        self.register_modules(**parts, unet=unet, scheduler=scheduler)
        self._register_label_names(label_names)
        self.register_to_config(unconditional=unconditional)

    @property
    def shape(self) -> tuple[int, int]:
        """(C, L) of the sequences that the network was trained on."""
        return self.unet.config.in_channels, self.unet.config.sample_size

    def _sequences(
        self,
        generators: list[torch.Generator],
        labels: Tensor | None,
        steps: int,
        mask: Tensor | None,
        noise: Tensor,
        guidance_scale: float,
        eta: float,
    ) -> Tensor:
        """Sampled sequences (B, C, L) from noise."""
        conditioning = self._conditioning(labels, len(noise), mask, guidance_scale)
        loop = Steps(self, guidance_scale, None, ())
        scheduler = loop.scheduler  # of this call alone
        set_steps(scheduler, steps, noise.device)
        options = step_options(scheduler, generators, eta)
        x = initial_sample(scheduler, noise)
        for i, t in loop.over(scheduler.timesteps):
            target = step_end(self.unet, scheduler, scheduler.timesteps, i)
            output = predict(self.unet, scale_input(scheduler, x, t), t, conditioning, target=target)
            x = scheduler.step(output, t, x, **options).prev_sample
        self.maybe_free_model_hooks()
        return x

    def _noise(self, generators: list[torch.Generator], length: int | None = None) -> Tensor:
        channels, steps = self.shape
        return draw_noise(generators, (channels, length or steps), self._execution_device, self.unet.dtype)

    def _conditioning(
        self, labels: Tensor | None, count: int, mask: Tensor | None, guidance_scale: float = 1.0
    ) -> Conditioning | None:
        """Classes and masks of a batch, for the network."""
        found = class_conditioning(self.unet, labels, count, guidance_scale, self.config.unconditional)
        if mask is None:
            return found
        if found is None:
            return Conditioning({"step_mask": mask})
        without = None if found.unconditional is None else {**found.unconditional, "step_mask": mask}
        return replace(found, inputs={**found.inputs, "step_mask": mask}, unconditional=without)

    def _invert(self, x: Tensor, mask: Tensor | None, class_labels: Labels, steps: int, refinements: int) -> Tensor:
        """The noise from which the deterministic sampler makes these sequences."""
        labels = self._class_indices(class_labels, len(x))
        x = x.to(self._execution_device, self.unet.dtype)
        return invert_ode(self.unet, self.scheduler, x, self._conditioning(labels, len(x), mask), steps, refinements)

    def _from_noise(self, latents: Tensor, mask: Tensor | None, class_labels: Labels, steps: int) -> Tensor:
        """The sequences that the deterministic sampler makes of noise."""
        if latents.ndim != 3 or latents.shape[1] != self.shape[0] or not latents.numel():
            raise UsageError(f"latents must be (B, {self.shape[0]}, L), B >= 1; got {tuple(latents.shape)}.")
        labels = self._class_indices(class_labels, len(latents))
        x = latents.to(self._execution_device, self.unet.dtype)
        return sample_ode(self.unet, self.scheduler, x, self._conditioning(labels, len(x), mask), steps)

    def _path(self, a: Tensor, b: Tensor, steps: int) -> Tensor:
        """Latents on the great circle between those of two signals."""
        check_range("steps", steps, 2)
        if len(a) != 1 or len(b) != 1:
            raise UsageError(f"a and b must be one signal each; got {len(a)} and {len(b)}.")
        return interpolate(a, b, steps, "slerp")
