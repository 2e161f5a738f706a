"""Diffusion and flow matching of sounds: log-mel frames, and waves of them by Griffin-Lim."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from latentia.errors import UsageError, check_range
from latentia.models.log_mel import LogMel
from latentia.pipelines.arguments import Generators, check_call, count_images, image_generators
from latentia.pipelines.base import DiffusionPipeline, Labels
from latentia.pipelines.forms import SoundForm, SoundOutput, class_names
from latentia.pipelines.signals import (
    check_parts,
    invert_sequences,
    path_between,
    sample_sequences,
    sequence_shape,
    sequences_of,
)


class SoundPipeline(DiffusionPipeline):
    """Diffusion and flow matching of sounds, on log-mel frames; waves are found by Griffin-Lim.

    Sounds are taken as `latentia.data.Sounds`, or as an array or tensor of waves (B, T) in [-1, 1].

    Args:
        log_mel: the `LogMel` of the clips.
        unet: a `UNet1D` of its frames.
        scheduler: any scheduler of latentia or diffusers that does not clip; it says what the network predicts.
        label_names: names of the classes, in the order of their indices; `None` (default): none.
        unconditional: whether the network was trained with class dropout, as guidance and sampling without a class
            need. Default True.

    Example:
        >>> from latentia import DDIMScheduler, LogMel, UNet1D
        >>> log_mel = LogMel(samples=1024)
        >>> unet = UNet1D(5, 80, block_out_channels=(8, 16), attention_head_dim=8)
        >>> pipe = SoundPipeline(log_mel, unet, DDIMScheduler(clip_sample=False))
        >>> pipe.set_progress_bar_config(disable=True)
        >>> pipe(3, num_inference_steps=2, output_type="np").sound.shape
        (3, 1024)
    """

    modality = "sound"
    conditions = ("class_labels",)
    latents = "continuous"
    latent_conditions = ("class_labels",)
    latent_path = "slerp"
    log_mel: Any
    unet: Any
    scheduler: Any
    model_cpu_offload_seq: Any = "unet->log_mel"

    def __init__(
        self,
        log_mel,
        unet,
        scheduler,
        label_names: Sequence[str] | Mapping[str, str] | None = None,
        unconditional: bool = True,
    ):
        super().__init__()
        if not isinstance(log_mel, LogMel):
            raise UsageError(f"log_mel must be a LogMel; got {type(log_mel).__name__}.")
        check_parts(unet, scheduler)
        if sequence_shape(unet) != log_mel.shape:
            bands, frames = log_mel.shape
            raise UsageError(
                f"unet must be of {bands} bands and {frames} frames, as log_mel; got {sequence_shape(unet)}."
            )
        self.register_modules(log_mel=log_mel, unet=unet, scheduler=scheduler)
        self._register_label_names(label_names)
        self.register_to_config(unconditional=unconditional)

    @property
    def sampling_rate(self) -> int:
        """Samples per second."""
        return self.log_mel.config.sampling_rate

    @check_call
    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        *,
        class_labels: Labels = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 50,
        eta: float = 0.0,
        iterations: int = 60,
        generator: Generators = None,
        output_type: str = "np",
        return_dict: bool = True,
    ) -> SoundOutput | tuple:
        """Sample clips of sound.

        Args:
            batch_size: number of clips; `None` (default): as many as `class_labels`, else 1.
            class_labels: an index or a name, or one for each clip; `None` (default): no class.
            guidance_scale: classifier-free guidance: 0 ignores the class, 1 (default) follows it, more exaggerates it.
            num_inference_steps: from 1 to the number trained with. Default 50.
            eta: 0 (default): deterministic DDIM; 1: as noisy as DDPM. For schedulers that know it.
            iterations: of Griffin-Lim. Default 60.
            generator: one `torch.Generator` or one per clip. The same seed gives the same clips whatever the batch.
            output_type: "np" (default), waves, float32 (B, T) in [-1, 1]; "wav", the bytes of a WAV file for each clip;
                "sound", a `latentia.data.Sounds`; or "latent", standardised frames (B, num_mels, L).
            return_dict: `False` returns the tuple `(sound, sampling_rate)`.

        Returns:
            `.sound` and `.sampling_rate`.

        Raises:
            UsageError: an argument out of its range, or a class for a network that has none.
        """
        self._form.check(output_type)
        check_range("iterations", iterations, 0, 10_000, integer=True)
        labels = self._class_indices(class_labels)
        count = count_images(batch_size, class_labels=labels)
        generators = image_generators(generator, count)
        x = sample_sequences(self, generators, labels, num_inference_steps, guidance_scale=guidance_scale, eta=eta)
        shown = None if labels is None else labels.expand(count)
        return self._form.answer(x, output_type, shown, return_dict, iterations)

    @torch.no_grad()
    def encode(
        self, sounds: Any, *, class_labels: Labels = None, num_inference_steps: int = 50, refinements: int = 2
    ) -> Tensor:
        """DDIM inversion: the noise (B, num_mels, L) from which the deterministic sampler makes the frames of sounds.

        Args:
            sounds: `Sounds`, or waves (B, T).
            class_labels: as for sampling.
            num_inference_steps: of the run that is inverted. Default 50.
            refinements: evaluations per step; each beyond the first solves the implicit step better. Default 2.
        """
        frames = self.log_mel.encode(self._form.waves(sounds))
        return invert_sequences(self, frames, None, class_labels, num_inference_steps, refinements)

    @torch.no_grad()
    def decode(
        self,
        latents: Tensor,
        *,
        class_labels: Labels = None,
        num_inference_steps: int = 50,
        iterations: int = 60,
        output_type: str = "np",
    ) -> Any:
        """The sounds that the deterministic sampler makes of noise; of the frames, the inverse of `encode`.

        Args:
            latents: noise, (B, num_mels, L).
            class_labels, num_inference_steps, iterations, output_type: as for sampling.
        """
        self._form.check(output_type)
        x = sequences_of(self, latents, None, class_labels, num_inference_steps)
        labels = self._class_indices(class_labels, len(latents))
        return self._form.output(x, output_type, labels, iterations)

    def interpolate(
        self,
        a: Any,
        b: Any,
        steps: int = 8,
        *,
        class_labels: Labels = None,
        num_inference_steps: int = 50,
        output_type: str = "np",
    ) -> Any:
        """`steps` sounds on the great circle between the noises of two sounds, both ends included."""
        options: dict[str, Any] = {"class_labels": class_labels, "num_inference_steps": num_inference_steps}
        path = path_between(self.encode(a, **options), self.encode(b, **options), steps)
        return self.decode(path, output_type=output_type, **options)

    @property
    def _form(self) -> SoundForm:
        return SoundForm(self.log_mel, class_names(self))
