"""Diffusion and flow matching of time series: sampling, inversion and likelihood."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from latentia.errors import UsageError, check_range, counted
from latentia.functional.masks import length_mask
from latentia.models.series_scaler import SeriesScaler
from latentia.pipelines.arguments import Generators, check_call, count_images, draw_uniform, image_generators
from latentia.pipelines.base import DiffusionPipeline, Labels
from latentia.pipelines.capabilities import Likelihood
from latentia.pipelines.forms import SeriesForm, SeriesOutput, class_names
from latentia.pipelines.likelihood import ode_log_likelihood, rademacher
from latentia.pipelines.sampling import class_conditioning
from latentia.pipelines.signals import (
    check_parts,
    invert_sequences,
    path_between,
    sample_sequences,
    sequence_shape,
    sequences_of,
)


class SeriesPipeline(DiffusionPipeline):
    """Diffusion and flow matching of time series: sampling, inversion and likelihood.

    Series are taken as a `latentia.data.Series`, or as an array or tensor of values, (B, C, L).

    Args:
        scaler: the `SeriesScaler` of the channels.
        unet: a `UNet1D` of its sequences.
        scheduler: any scheduler of latentia or diffusers that does not clip; it says what the network predicts.
        label_names: names of the classes, in the order of their indices; `None` (default): none.
        unconditional: whether the network was trained with class dropout, as guidance and sampling without a class
            need. Default True.

    Example:
        >>> from latentia import DDIMScheduler, UNet1D
        >>> scaler = SeriesScaler([{"name": "x", "decimals": None}], length=16)
        >>> unet = UNet1D(16, block_out_channels=(8, 16), attention_head_dim=8)
        >>> pipe = SeriesPipeline(scaler, unet, DDIMScheduler(clip_sample=False))
        >>> pipe.set_progress_bar_config(disable=True)
        >>> pipe(3, num_inference_steps=2, output_type="np").series.shape
        (3, 1, 16)
    """

    modality = "series"
    conditions = ("class_labels",)
    latents = "continuous"
    latent_conditions = ("class_labels",)
    latent_path = "slerp"
    scaler: Any
    unet: Any
    scheduler: Any
    model_cpu_offload_seq: Any = "unet->scaler"

    def __init__(
        self,
        scaler,
        unet,
        scheduler,
        label_names: Sequence[str] | Mapping[str, str] | None = None,
        unconditional: bool = True,
    ):
        super().__init__()
        if not isinstance(scaler, SeriesScaler):
            raise UsageError(f"scaler must be a SeriesScaler; got {type(scaler).__name__}.")
        check_parts(unet, scheduler)
        shape, own = (len(scaler.config.channels), scaler.config.length), sequence_shape(unet)
        if shape != own:
            raise UsageError(
                f"unet must be of {counted(shape[0], 'channel')} and {counted(shape[1], 'step')}, as scaler; got {own}."
            )
        self.register_modules(scaler=scaler, unet=unet, scheduler=scheduler)
        self._register_label_names(label_names)
        self.register_to_config(unconditional=unconditional)

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels."""
        return self._form.channels

    @property
    def likelihood(self) -> Likelihood | None:
        """A density of the values by the ODE; None for series of unequal lengths."""
        return None if self.unet.config.masked else Likelihood("exact", "values")

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
        length: int | None = None,
        generator: Generators = None,
        output_type: str = "pandas",
        return_dict: bool = True,
    ) -> SeriesOutput | tuple:
        """Sample time series.

        Args:
            batch_size: number of series; `None` (default): as many as `class_labels`, else 1.
            class_labels: an index or a name, or one for each series; `None` (default): no class.
            guidance_scale: classifier-free guidance: 0 ignores the class, 1 (default) follows it, more exaggerates it.
            num_inference_steps: from 1 to the number trained with. Default 50.
            eta: 0 (default): deterministic DDIM; 1: as noisy as DDPM. For schedulers that know it.
            length: steps of each series; `None` (default): as in training, with the frequencies of its lengths.
            generator: one `torch.Generator` or one per series. The same seed gives the same series whatever the batch.
            output_type: "pandas" (default), a long table; "series", a `latentia.data.Series`; "np", float64 (B, C, L)
                with NaN beyond the end of a series; or "latent", scaled sequences (B, C, L).
            return_dict: `False` returns the tuple `(series, lengths)`.

        Returns:
            `.series` and `.lengths`.

        Raises:
            UsageError: an argument out of its range, or a class for a network that has none.
        """
        self._form.check(output_type)
        check_range("length", length, 2, 2**16, integer=True)
        labels = self._class_indices(class_labels)
        count = count_images(batch_size, class_labels=labels)
        generators = image_generators(generator, count)
        steps = length or sequence_shape(self.unet)[1]
        lengths = torch.full((count,), steps)
        if length is None and not self.scaler.equal_lengths:
            lengths = self.scaler.sample_lengths(draw_uniform(generators, (1,), self._execution_device)[:, 0]).cpu()
        mask = self._mask(lengths, steps)
        x = sample_sequences(
            self,
            generators,
            labels,
            num_inference_steps,
            length=steps,
            mask=mask,
            guidance_scale=guidance_scale,
            eta=eta,
        )
        shown = None if labels is None else labels.expand(count).cpu()
        return self._form.answer(x, output_type, shown, return_dict, lengths)

    @torch.no_grad()
    def encode(
        self, series: Any, *, class_labels: Labels = None, num_inference_steps: int = 50, refinements: int = 2
    ) -> Tensor:
        """DDIM inversion: the noise (B, C, L), near N(0, 1), from which the deterministic sampler makes these series.

        Args:
            series: a `Series`, or values (B, C, L).
            class_labels: as for sampling.
            num_inference_steps: of the run that is inverted. Default 50.
            refinements: evaluations per step; each beyond the first solves the implicit step better. Default 2.
        """
        x, lengths = self._form.read(series)
        mask = self._mask(lengths, x.shape[2])
        return invert_sequences(self, x, mask, class_labels, num_inference_steps, refinements)

    @torch.no_grad()
    def decode(
        self,
        latents: Tensor,
        *,
        class_labels: Labels = None,
        num_inference_steps: int = 50,
        lengths: Any = None,
        output_type: str = "pandas",
    ) -> Any:
        """The series that the deterministic sampler makes of noise (B, C, L); the inverse of `encode`.

        Args:
            latents: noise.
            class_labels, num_inference_steps, output_type: as for sampling.
            lengths: steps of each series, (B,); `None` (default): L.
        """
        self._form.check(output_type)
        steps = torch.full((len(latents),), latents.shape[-1]) if lengths is None else torch.as_tensor(lengths).cpu()
        x = sequences_of(self, latents, self._mask(steps, latents.shape[-1]), class_labels, num_inference_steps)
        labels = self._class_indices(class_labels, len(latents))
        return self._form.output(x, output_type, labels, steps)

    def interpolate(
        self,
        a: Any,
        b: Any,
        steps: int = 8,
        *,
        class_labels: Labels = None,
        num_inference_steps: int = 50,
        output_type: str = "pandas",
    ) -> Any:
        """`steps` series on the great circle between the noises of two series, both ends included."""
        options: dict[str, Any] = {"class_labels": class_labels, "num_inference_steps": num_inference_steps}
        path = path_between(self.encode(a, **options), self.encode(b, **options), steps)
        return self.decode(path, output_type=output_type, **options)

    @torch.no_grad()
    def log_likelihood(
        self,
        series: Any,
        *,
        class_labels: Labels = None,
        num_inference_steps: int | None = None,
        probes: int | None = 1,
        tolerance: float = 1e-5,
        generator: Generators = None,
    ) -> Tensor:
        """Log-density of the values of series in nats per series, float32 (B,), by the probability-flow ODE.

        Args:
            series: a `Series`, or values (B, C, L), all of L steps.
            class_labels: as for sampling.
            num_inference_steps: steps of the classical Runge-Kutta method; `None` (default): adaptive ones.
            probes: random vectors that estimate the divergence; `None`: the exact one. Default 1.
            tolerance: of adaptive steps. Default 1e-5.
            generator: one, or one per series, for the probes.

        Song et al., 2020, 2011.13456, section 4.3.
        """
        if self.likelihood is None:
            raise UsageError("series must all be of one length for a likelihood; this network was trained on several.")
        check_range("probes", probes, 1, integer=True)
        check_range("num_inference_steps", num_inference_steps, 1, integer=True)
        check_range("tolerance", tolerance, 0, closed="neither")
        x, _ = self._form.read(series)
        x = x.to(self._execution_device, self.unet.dtype)
        labels = self._class_indices(class_labels, len(x))
        conditioning = class_conditioning(self.unet, labels, len(x), unconditional=self.config.unconditional)
        signs = None if probes is None else rademacher(image_generators(generator, len(x)), probes, x)
        solver = (num_inference_steps, tolerance, self.progress_bar)
        density = ode_log_likelihood(self.unet, self.scheduler, x, conditioning, signs, *solver)
        _, deviations = self.scaler.scale.view(torch.float64)
        return (density.double() - x.shape[2] * deviations.log().sum().to(density.device)).float()

    @property
    def _form(self) -> SeriesForm:
        return SeriesForm(self.scaler, class_names(self))

    def _mask(self, lengths: Tensor, steps: int) -> Tensor | None:
        if not self.unet.config.masked:
            if bool((lengths != steps).any()):
                raise UsageError(f"lengths must all be {steps}: this network was trained on series of one length.")
            return None
        return length_mask(lengths, steps).to(self._execution_device)
