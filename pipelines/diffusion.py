"""Pixel-space diffusion: unconditional, class-conditional, img2img, inpainting and super-resolution, any scheduler."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from latentia.data.pairs import Degradation
from latentia.errors import UsageError, check_choice, check_range
from latentia.functional.interpolation import interpolate
from latentia.pipelines.arguments import Generators, check_call, count_images, draw_noise, image_generators, renamed
from latentia.pipelines.base import DiffusionPipeline, Labels
from latentia.pipelines.capabilities import Likelihood
from latentia.pipelines.control import (
    Control,
    check_controlnet,
    condition_config,
    control_of,
    degradation_of,
    denoiser,
    saved_degradation,
)
from latentia.pipelines.denoising import Callback, Steps
from latentia.pipelines.guidance import check_guide, guided
from latentia.pipelines.image_conditioning import source_image, super_resolution
from latentia.pipelines.images import Images, check_output_type, from_input, to_output
from latentia.pipelines.latents import check_latents, check_unet, latent_shape, sample_shape
from latentia.pipelines.likelihood import bound_log_likelihood, ode_log_likelihood, rademacher
from latentia.pipelines.sampling import (
    Conditioning,
    check_scheduler,
    class_conditioning,
    initial_sample,
    invert_ode,
    is_flow,
    predict,
    sample_ode,
    scale_input,
    set_steps,
    step_end,
    step_options,
    takes_variance,
)


class UnconditionalDiffusionPipeline(DiffusionPipeline):
    """Diffusion in pixel space: sampling, img2img, inpainting, super-resolution, DDIM inversion, likelihood.

    Args:
        unet: `UNet2D` or diffusers' `UNet2DModel`.
        scheduler: any scheduler of latentia or diffusers; it says what the network predicts.
        label_names: names of the classes, in the order of their indices; `None` (default): none.
        unconditional: whether the network was trained with class dropout, as guidance and sampling without a class
            need. Default True.
        controlnet: a `ControlNet2D`, by which a network that was trained without conditioning images is conditioned on
            them; `None` (default): none.
        degradation: what the images of training became conditioning images by, "name" and "strength" of
            `latentia.data.Degradation`; `None` (default): nothing, they were images of their own, or there were none.
        guide: a weaker network of the same task, for autoguidance; `None` (default): none.

    Example:
        >>> from latentia import DDIMScheduler, UNet2D
        >>> unet = UNet2D(sample_size=8, in_channels=1, block_out_channels=(32,))
        >>> pipe = UnconditionalDiffusionPipeline(unet, DDIMScheduler())
        >>> pipe.set_progress_bar_config(disable=True)
        >>> pipe(batch_size=2, num_inference_steps=2).images[0].size
        (8, 8)
    """

    unet: Any
    scheduler: Any
    controlnet: Any
    guide: Any

    model_cpu_offload_seq = "controlnet->guide->unet"
    _optional_components = ["controlnet", "guide"]  # noqa: RUF012 (diffusers adds lists)

    conditions = ("class_labels", "image", "mask", "low_resolution", "control_image")
    latents = "continuous"
    latent_conditions = ("class_labels", "control_image")
    latent_path = "slerp"

    def __init__(
        self,
        unet,
        scheduler,
        label_names: Sequence[str] | Mapping[str, str] | None = None,
        unconditional: bool = True,
        controlnet=None,
        degradation: Mapping[str, Any] | None = None,
        guide=None,
    ):
        super().__init__()
        check_unet(unet, "a UNet2D or UNet2DModel")
        check_scheduler(scheduler)
        check_controlnet(unet, controlnet)
        check_guide(unet, guide, controlnet)
        self.register_modules(unet=unet, scheduler=scheduler, controlnet=controlnet, guide=guide)
        self._register_label_names(label_names)
        self.register_to_config(unconditional=unconditional, degradation=saved_degradation(degradation))

    @property
    def degradation(self) -> Degradation | None:
        """What the images of training became conditioning images by; None for images of their own, and for none."""
        return degradation_of(self.config.degradation)

    @property
    def input_channels(self) -> int | None:
        """Channels of the conditioning images; None for a network that was trained without."""
        return condition_config(self.unet, self.controlnet)[0]

    @property
    def needs_image(self) -> bool:  # type: ignore[override]  # it depends on the network
        """Whether the network was trained with conditioning images."""
        return self.input_channels is not None

    @property
    def likelihood(self) -> Likelihood:
        """What `log_likelihood` gives by default: a density of flow matching, the bound of a diffusion chain."""
        return Likelihood("exact", "density") if is_flow(self.scheduler) else Likelihood("lower bound", "256 bins")

    @check_call
    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        *,
        class_labels: Labels = None,
        guidance_scale: float = 1.0,
        autoguidance_scale: float = 1.0,
        num_inference_steps: int = 50,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        eta: float = 0.0,
        use_clipped_model_output: bool = True,
        height: int | None = None,
        width: int | None = None,
        generator: Generators = None,
        latents: Tensor | None = None,
        image: Images | None = None,
        mask: Images | None = None,
        mask_image: Images | None = None,
        strength: float | None = None,
        low_resolution: Images | None = None,
        control_image: Images | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple:
        r"""Sample images; with `image` img2img, with `mask` inpainting, with `low_resolution` super-resolution.

        With `control_image` images are made from images, by a network that was trained to.

        Args:
            batch_size: number of images; `None` (default): as many as `class_labels` or `latents`, else 1.
            class_labels: an index or a name, or one for each image; `None` (default): no class.
            guidance_scale: classifier-free guidance: 0 ignores the class, 1 (default) follows it, more exaggerates it.
                \(w\) of \(f_\varnothing + w (f_c - f_\varnothing)\) (Ho and Salimans, 2022, 2207.12598, eq. 6 with
                w + 1).
            autoguidance_scale: \(w\) of \(f_g + w (f - f_g)\), with `guide` as \(f_g\) (Karras et al., 2024,
                2406.02507, eq. 3). Default 1: it is not called.
            num_inference_steps: from 1 to the number trained with. Default 50.
            timesteps, sigmas: a descending list of time steps, or of noise levels, in its place, for schedulers that
                take one. Default none.
            eta: 0 (default): deterministic DDIM; 1: as noisy as DDPM. For schedulers that know it.
            use_clipped_model_output: compute eps anew from a clipped x_0, as a clipped x_0 with the eps of the
                unclipped one drifts off the data, and under guidance far off. Default True; in diffusers False.
            height: of the images in pixels; `None` (default): the height that the network was trained on.
            width: as `height`.
            generator: one `torch.Generator` or one per image. The same seed gives the same images whatever the batch.
            latents: start from this noise, (B, C, H, W), instead of drawing it.
            image: an image to start from, or one for each; `None` (default): none.
            mask: inpainting: 1 where new pixels are made, 0 where those of `image` are kept, exactly: (H, W) or
                (B, 1, H, W), or a grey image. `None` (default): everywhere.
            mask_image: diffusers' name for `mask`.
            strength: share of the steps that is run: 0 returns `image`, 1 starts from noise alone. `None` (default):
                0.8, or 1 with a mask.
            low_resolution: small images that the blocks of pixels of the large ones shall have as their means, one or
                one for each (Wang et al., 2022, 2212.00490); before clipping and rounding they do. `None` (default):
                none.
            control_image: the conditioning images, of a network that was trained with them, and of no other: one, or
                one for each image. Of one that was trained to fill holes give `image` and `mask`, of one that was
                trained to enlarge `low_resolution`.
            output_type: "pil", "np" ((B, H, W, C) in [0, 1]), "pt" ((B, C, H, W) in [0, 1]) or "latent" (raw).
            return_dict: `False` returns the tuple `(images,)`.
            callback_on_step_end: called with (pipeline, step index, time step, {"latents": x}) after each step; may
                return a dict with other latents. Those of `diffusers.callbacks` work too.
            callback_on_step_end_tensor_inputs: what the dict holds: "latents" (default).

        Returns:
            `.images`.

        Raises:
            UsageError: an argument out of its range, or a class for a network that has none.
        """
        check_output_type(output_type)
        if low_resolution is not None and image is not None:
            raise UsageError("low_resolution and image ask for two different images; give one of them.")
        labels, device = self._class_indices(class_labels), self._execution_device
        mask = renamed("mask", mask, "mask_image", mask_image)
        shape = latent_shape(None, self.unet, height, width, device)
        source = source_image(image, mask, strength, channels=shape[0], size=shape[1:], device=device)
        low = super_resolution(low_resolution, channels=shape[0], size=shape[1:], device=device)
        control = control_of(self, control_image, shape[1:], source, low)
        given = {
            "image": source and source.image,
            "low_resolution": low and low.low,
            "control_image": control and control.condition,
        }
        batch_size = count_images(batch_size, {"latents": latents}, class_labels=labels, **given)
        conditioning = self._conditioning(labels, batch_size, guidance_scale, control)
        generators = image_generators(generator, batch_size)
        if latents is not None:
            check_latents(latents, self.unet)
        noise = draw_noise(generators, shape, device, self.unet.dtype) if latents is None else latents
        noise = noise.to(device, self.unet.dtype)

        steps = Steps(self, guidance_scale, callback_on_step_end, callback_on_step_end_tensor_inputs)
        scheduler = steps.scheduler  # of this call alone
        count = set_steps(scheduler, num_inference_steps, device, timesteps, sigmas)
        options = step_options(scheduler, generators, eta, use_clipped_model_output)
        with_variance, network = takes_variance(scheduler), guided(self._network, self.guide, autoguidance_scale)
        x, times = initial_sample(scheduler, noise), scheduler.timesteps
        if source is not None:  # img2img
            source = source.expand(batch_size)
            x, times = source.start(scheduler, noise, count)
        for i, t in steps.over(times):
            model_input = scale_input(scheduler, x, t)
            target = step_end(network, scheduler, times, i)
            output = predict(network, model_input, t, conditioning, with_variance, target)
            if low is not None:  # super-resolution
                output = low.correct(scheduler, output, model_input, t)
            x = scheduler.step(output, t, x, **options).prev_sample
            if source is not None:  # inpainting
                x = source.keep_known(x, scheduler, noise, times[i + 1 :])
            x, conditioning = steps.end(i, t, x, conditioning)
        x = x if low is None else low.keep(x)
        x = x if control is None else control.expand(batch_size).keep(x)
        x = x if source is None else source.composite(x)

        self.maybe_free_model_hooks()
        images = to_output(x, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def translate(self, inputs: Tensor, generators: list[torch.Generator], *, num_inference_steps: int = 50) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] of conditioning images as the batches of `PairedImages` hold them."""
        options: dict[str, Any] = {"num_inference_steps": num_inference_steps, "generator": generators}
        found: Any = self(control_image=inputs, output_type="latent", **options)
        return found.images.clamp(-1, 1)

    @torch.no_grad()
    def encode(
        self,
        images: Images,
        *,
        class_labels: Labels = None,
        control_image: Images | None = None,
        num_inference_steps: int = 50,
        refinements: int = 2,
    ) -> Tensor:
        """DDIM inversion: the noise from which deterministic DDIM makes these images.

        Args:
            images: images, or what `from_input` takes.
            class_labels, control_image: as for sampling.
            num_inference_steps: of the run that is inverted. Default 50.
            refinements: evaluations per step; each beyond the first solves the implicit step better (Pan et al., 2023,
                2309.04907). Default 2.

        Returns:
            (B, C, H, W), close to N(0, 1).

        DDIM (Song et al., 2020, 2010.02502), section 4.3.
        """
        x = self._input(images)
        control = control_of(self, control_image, (x.shape[2], x.shape[3]))
        conditioning = self._conditioning(self._class_indices(class_labels, len(x)), len(x), control=control)
        return invert_ode(self._network, self.scheduler, x, conditioning, num_inference_steps, refinements)

    @torch.no_grad()
    def decode(
        self,
        latents: Tensor,
        *,
        class_labels: Labels = None,
        control_image: Images | None = None,
        num_inference_steps: int = 50,
        output_type: str = "pil",
    ) -> Any:
        """The images that deterministic DDIM makes of noise, (B, C, H, W); the inverse of `encode`."""
        check_output_type(output_type)
        check_latents(latents, self.unet)
        labels = self._class_indices(class_labels, len(latents))
        control = control_of(self, control_image, (latents.shape[2], latents.shape[3]))
        conditioning = self._conditioning(labels, len(latents), control=control)
        x = latents.to(self._execution_device, self.unet.dtype)
        return to_output(sample_ode(self._network, self.scheduler, x, conditioning, num_inference_steps), output_type)

    def interpolate(
        self,
        a: Images,
        b: Images,
        steps: int = 8,
        *,
        class_labels: Labels = None,
        control_image: Images | None = None,
        num_inference_steps: int = 50,
        output_type: str = "pil",
    ) -> Any:
        """Interpolate two images: `steps` of them on the great circle between their noises, both ends included."""
        check_output_type(output_type)
        check_range("steps", steps, 2)
        options: dict[str, Any] = {
            "class_labels": class_labels,
            "control_image": control_image,
            "num_inference_steps": num_inference_steps,
        }
        path = interpolate(self.encode(a, **options), self.encode(b, **options), steps, "slerp")
        return self.decode(path, output_type=output_type, **options)

    @torch.no_grad()
    def log_likelihood(
        self,
        images: Images,
        *,
        class_labels: Labels = None,
        control_image: Images | None = None,
        method: str | None = None,
        num_inference_steps: int | None = None,
        probes: int | None = 1,
        tolerance: float = 1e-5,
        generator: Generators = None,
    ) -> Tensor:
        r"""Log-likelihood of images in nats per image: a bound of a diffusion chain, or the exact density of the ODE.

        "bound" is \(-L_T - \sum_t L_{t-1} - L_0\), summed over pixels, each term estimated with one draw of noise: a
        lower bound on the log-probability of pixels with 256 bins.

        "ode" is the log-density, per unit of [-1, 1], of the images that the probability-flow ODE makes of N(0, I), by
        the change of variables; of a diffusion chain they are taken at the noise of its first time step. Exact up to
        `tolerance`, and with probes an unbiased estimate. Bytes have no density, so give dequantised images
        (`latentia.evaluation.dequantise`): the mean over the noise of dequantisation bounds the log-probability of the
        bytes, in units of a bin, from below.

        Args:
            images: images, or what `from_input` takes.
            class_labels, control_image: as for sampling.
            method: "bound" or "ode"; `None` (default): "ode" of flow matching, which has no bound, else "bound".
            num_inference_steps: of the bound, length of the chain whose bound it is; `None` (default): all that were
                trained. Of the ODE, steps of the classical Runge-Kutta method, four evaluations each; `None`: adaptive.
            probes: of the ODE, random vectors that estimate the divergence; `None`: the exact one, by as many passes
                backward as an image has values. Default 1.
            tolerance: of the ODE's adaptive steps, relative and absolute, for each pixel and for the nats per pixel.
                Default 1e-5.
            generator: one, or one per image, for the noise of the bound and the probes of the ODE.

        Returns:
            float32, (B,). For bits per dimension divide by \(-\ln 2\) and the number of values of an image, and add 7
            to those of "ode", \(\log_2\) of the 256 bins in 2 units (`latentia.evaluation.bits_per_dimension`).

        Raises:
            UsageError: an argument out of its range, or a scheduler without the method.
            NumericsError: the tolerance was not reached within 5000 evaluations.

        DDPM (Ho et al., 2020, 2006.11239), eq. 5; Song et al., 2020, 2011.13456, section 4.3.
        """
        x0 = self._input(images)
        method = ("ode" if is_flow(self.scheduler) else "bound") if method is None else method
        check_choice("method", method, ("bound", "ode"))
        generators = image_generators(generator, len(x0))
        control = control_of(self, control_image, (x0.shape[2], x0.shape[3]))
        conditioning = self._conditioning(self._class_indices(class_labels, len(x0)), len(x0), control=control)
        if method == "ode":
            check_range("probes", probes, 1, integer=True)
            check_range("num_inference_steps", num_inference_steps, 1, integer=True)
            check_range("tolerance", tolerance, 0, closed="neither")
            signs = None if probes is None else rademacher(generators, probes, x0)
            solver = (num_inference_steps, tolerance, self.progress_bar)
            return ode_log_likelihood(self._network, self.scheduler, x0, conditioning, signs, *solver).float()
        return bound_log_likelihood(
            self._network, self.scheduler, x0, conditioning, generators, num_inference_steps, self.progress_bar
        )

    def _input(self, images: Images) -> Tensor:
        channels, *size = sample_shape(self.unet)
        place = {"device": self._execution_device, "dtype": self.unet.dtype}
        return from_input(images, channels=channels, size=(size[0], size[1]), **place)

    @property
    def _network(self) -> Any:
        return denoiser(self.unet, self.controlnet)

    def _conditioning(
        self, labels: Tensor | None, count: int, guidance_scale: float = 1.0, control: Control | None = None
    ) -> Conditioning | None:
        found = class_conditioning(self.unet, labels, count, guidance_scale, self.config.unconditional)
        return found if control is None else control.expand(count).join(found, self.unet.dtype)
