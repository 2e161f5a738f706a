"""Latent diffusion and latent flow matching: images from noise in the latent space of an autoencoder, any scheduler."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor

from latentia.data.pairs import Degradation
from latentia.errors import UsageError, check_range
from latentia.functional.interpolation import interpolate
from latentia.pipelines.arguments import Generators, check_call, count_images, draw_noise, image_generators, renamed
from latentia.pipelines.base import DiffusionPipeline, Labels
from latentia.pipelines.control import (
    Control,
    check_controlnet,
    condition_config,
    control_of,
    degradation_of,
    denoiser,
    latent_super_resolution,
    saved_degradation,
)
from latentia.pipelines.denoising import Callback, Steps
from latentia.pipelines.guidance import check_guide, guided
from latentia.pipelines.images import Images, check_output_type, from_input, to_output
from latentia.pipelines.latents import (
    check_latents,
    check_no_clipping,
    check_parts,
    check_unet,
    decode_latents,
    latent_shape,
    latent_source_image,
    posterior,
    sample_shape,
)
from latentia.pipelines.sampling import (
    Conditioning,
    class_conditioning,
    initial_sample,
    invert_ode,
    predict,
    sample_ode,
    scale_input,
    set_steps,
    step_end,
    step_options,
    takes_variance,
)


class LatentDiffusionPipeline(DiffusionPipeline):
    r"""Diffusion of scaled latents \((z - \text{shift}) \cdot \text{scaling}\), which the decoder turns into images.

    Args:
        vae: diffusers' `AutoencoderKL`, `AutoencoderTiny` or `VQModel`, a `VQVAE`, or what fulfils the contract of
            `latentia.pipelines.latents`; its configuration holds the scaling.
        unet: `UNet2D` or diffusers' `UNet2DModel`, over the latents: its `in_channels` and `sample_size` are theirs.
        scheduler: any scheduler of latentia or diffusers that does not clip, as latents have no bounds; with diffusers'
            `FlowMatchEulerDiscreteScheduler` the network gives the velocity of `flow_matching_loss`.
        label_names: names of the classes, in the order of their indices; `None` (default): none.
        unconditional: whether the network was trained with class dropout, as guidance and sampling without a class
            need. Default True.
        controlnet: a `ControlNet2D`, by which a network that was trained without conditioning images is conditioned on
            them; `None` (default): none.
        degradation: what the images of training became conditioning images by, "name" and "strength" of
            `latentia.data.Degradation`; `None` (default): nothing, they were images of their own, or there were none.
        guide: a weaker network of the same task, for autoguidance; `None` (default): none.

    Raises:
        UsageError: a component of another class, latents of other channels than the network's, a scheduler that clips.

    High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2021, 2112.10752).

    Example:
        >>> from latentia import DDIMScheduler, UNet2D
        >>> from latentia.models.autoencoder_kl import autoencoder_kl
        >>> vae = autoencoder_kl(16, 1, block_out_channels=(8, 8))
        >>> unet = UNet2D(sample_size=8, in_channels=4, block_out_channels=(32,))
        >>> pipe = LatentDiffusionPipeline(vae, unet, DDIMScheduler(clip_sample=False))
        >>> pipe.set_progress_bar_config(disable=True)
        >>> pipe(batch_size=2, num_inference_steps=2).images[0].size
        (16, 16)
    """

    vae: Any
    unet: Any
    scheduler: Any
    controlnet: Any
    guide: Any

    model_cpu_offload_seq = "controlnet->guide->unet->vae"
    _optional_components = ["controlnet", "guide"]  # noqa: RUF012 (diffusers adds lists)

    conditions = ("class_labels", "image", "mask", "low_resolution", "control_image")
    latents = "continuous"
    latent_conditions = ("class_labels", "control_image")
    latent_path = "slerp"

    def __init__(
        self,
        vae,
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
        check_parts(vae, unet, scheduler)
        check_controlnet(unet, controlnet)
        check_guide(unet, guide, controlnet)
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler, controlnet=controlnet, guide=guide)
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
        r"""Sample images; with `image` img2img, with `mask` inpainting, with `control_image` from images.

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
            height: of the images in pixels; `None` (default): the height that the network was trained on.
            width: as `height`.
            generator: one `torch.Generator` or one per image. The same seed gives the same images whatever the batch.
            latents: start from this noise, (B, D, h, w), instead of drawing it.
            image: an image to start from, or one for each; `None` (default): none.
            mask: inpainting: 1 where new pixels are made, 0 where those of `image` are kept, exactly: (H, W) or
                (B, 1, H, W), or a grey image. `None` (default): everywhere.
            mask_image: diffusers' name for `mask`.
            strength: share of the steps that is run: 0 returns `image`, 1 starts from noise alone. `None` (default):
                0.8, or 1 with a mask.
            low_resolution: small images that the blocks of pixels of the large ones shall have as their means, of a
                network that was trained to enlarge: `degradation` "smaller".
            control_image: the conditioning images, of a network that was trained with them, and of no other: one, or
                one for each image. Of one that was trained to fill holes give `image` and `mask`, of one that was
                trained to enlarge `low_resolution`.
            output_type: "pil", "np" ((B, H, W, C) in [0, 1]), "pt" ((B, C, H, W) in [0, 1]) or "latent" (the decoder's
                output as it is; the latents themselves are what the callback of the last step sees).
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
        check_no_clipping(self.scheduler)
        labels, device = self._class_indices(class_labels), self._execution_device
        mask = renamed("mask", mask, "mask_image", mask_image)
        shape = latent_shape(self.vae, self.unet, height, width, device)
        source = latent_source_image(self.vae, self.unet, shape, image, mask, strength, device)
        low = latent_super_resolution(self, low_resolution, shape[1:])
        control = control_of(self, control_image, shape[1:], source, low)
        given = {
            "class_labels": labels,
            "image": source and source.image,
            "low_resolution": low and low.low,
            "control_image": control and control.condition,
        }
        batch_size = count_images(batch_size, {"latents": latents}, **given)
        conditioning = self._conditioning(labels, batch_size, guidance_scale, control)
        generators = image_generators(generator, batch_size)
        if latents is None:
            noise = draw_noise(generators, shape, device, self.unet.dtype)
        else:
            check_latents(latents, self.unet)
            noise = latents.to(device, self.unet.dtype)

        steps = Steps(self, guidance_scale, callback_on_step_end, callback_on_step_end_tensor_inputs)
        scheduler = steps.scheduler  # of this call alone
        count = set_steps(scheduler, num_inference_steps, device, timesteps, sigmas)
        options, with_variance = step_options(scheduler, generators, eta), takes_variance(scheduler)
        network = guided(self._network, self.guide, autoguidance_scale)
        x, times = initial_sample(scheduler, noise), scheduler.timesteps
        if source is not None:  # img2img
            source = source.expand(batch_size)
            x, times = source.start(scheduler, noise, count)
        for i, t in steps.over(times):
            target = step_end(network, scheduler, times, i)
            output = predict(network, scale_input(scheduler, x, t), t, conditioning, with_variance, target)
            x = scheduler.step(output, t, x, **options).prev_sample
            if source is not None:  # inpainting
                x = source.keep_known(x, scheduler, noise, times[i + 1 :])
            x, conditioning = steps.end(i, t, x, conditioning)
        made = decode_latents(self.vae, x)
        made = made if low is None else low.keep(made)
        made = made if control is None else control.expand(batch_size).keep(made)
        made = made if source is None else source.composite(made)

        self.maybe_free_model_hooks()
        images = to_output(made, output_type)
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
        """DDIM inversion in latents: the noise from which `decode` makes these images.

        Args:
            images: images, or what `from_input` takes.
            class_labels, control_image: as for sampling.
            num_inference_steps: of the run that is inverted. Default 50.
            refinements: evaluations per step; each beyond the first solves the implicit step better. Default 2.

        Returns:
            (B, D, h, w), close to N(0, 1).

        Raises:
            UsageError: images whose latents do not have the size of the network.
        """
        place = {"device": self._execution_device, "dtype": self.vae.dtype}
        x = from_input(images, channels=self.vae.config.in_channels, **place)
        latents, _ = posterior(self.vae, x)
        if tuple(latents.shape[1:]) != sample_shape(self.unet):
            raise UsageError(
                f"images must have latents of shape {sample_shape(self.unet)}, as the network takes them; those of "
                f"{x.shape[2]} by {x.shape[3]} have {tuple(latents.shape[1:])}. Resize images first."
            )
        control = control_of(self, control_image, (latents.shape[2], latents.shape[3]))
        conditioning = self._conditioning(self._class_indices(class_labels, len(x)), len(x), control=control)
        latents = latents.to(self.unet.dtype)
        return invert_ode(self._network, self.scheduler, latents, conditioning, num_inference_steps, refinements)

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
        """The images that the deterministic sampler makes of noise, (B, D, h, w); undoes `encode` up to what the
        autoencoder loses."""
        check_output_type(output_type)
        check_latents(latents, self.unet)
        labels = self._class_indices(class_labels, len(latents))
        control = control_of(self, control_image, (latents.shape[2], latents.shape[3]))
        conditioning = self._conditioning(labels, len(latents), control=control)
        noise = latents.to(self._execution_device, self.unet.dtype)
        x = sample_ode(self._network, self.scheduler, noise, conditioning, num_inference_steps)
        return to_output(decode_latents(self.vae, x), output_type)

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

    @property
    def _network(self) -> Any:
        return denoiser(self.unet, self.controlnet)

    def _conditioning(
        self, labels: Tensor | None, count: int, guidance_scale: float = 1.0, control: Control | None = None
    ) -> Conditioning | None:
        found = class_conditioning(self.unet, labels, count, guidance_scale, self.config.unconditional)
        return found if control is None else control.expand(count).join(found, self.unet.dtype)
