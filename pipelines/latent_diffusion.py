"""Images from noise, by way of the latents of an autoencoder: latent diffusion and latent flow matching."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from latentia.errors import UsageError
from latentia.models.unet import UNet2D
from latentia.pipelines.base import DiffusionPipeline, Images, Labels, check_output_type, from_input, to_output
from latentia.pipelines.latents import (
    check_latents,
    check_no_clipping,
    check_parts,
    given_in_latents,
    pictures,
    posterior,
    sample_shape,
)
from latentia.pipelines.sampling import (
    Generators,
    check_steps,
    class_condition,
    count_images,
    denoise,
    image_generators,
    invert,
    replay,
    slerp,
)


class LatentDiffusionPipeline(DiffusionPipeline):
    r"""Diffusion of scaled latents \((z - \text{shift}) \cdot \text{scaling}\), which the decoder makes pictures of.

    Args:
        vae: diffusers' `AutoencoderKL`, `AutoencoderTiny` or `VQModel`, or a `VQVAE`; its configuration holds the
            scaling.
        unet: `UNet2D` or diffusers' `UNet2DModel`, over the latents: its `in_channels` and `sample_size` are theirs.
        scheduler: any scheduler of latentia or diffusers that does not clip, as latents have no bounds; with diffusers'
            `FlowMatchEulerDiscreteScheduler` the network gives the velocity of `flow_matching_loss`.
        label_names: names of the classes, in the order of their indices; `None` (default): none.

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

    model_cpu_offload_seq = "unet->vae"
    _callback_tensor_inputs = ("latents",)

    conditions = ("class_labels", "image", "mask")
    latents = "continuous"
    latent_conditions = ("class_labels",)
    latent_path = "slerp"

    def __init__(self, vae, unet, scheduler, label_names: Sequence[str] | Mapping[str, str] | None = None):
        super().__init__()
        if not isinstance(unet, UNet2D | UNet2DModel):
            raise UsageError(f"unet must be a UNet2D or UNet2DModel; got {type(unet).__name__}.")
        check_parts(vae, unet, scheduler)
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler)
        self._register_label_names(label_names)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        *,
        class_labels: Labels = None,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 50,
        eta: float = 0.0,
        generator: Generators = None,
        latents: Tensor | None = None,
        image: Images | None = None,
        mask: Images | None = None,
        strength: float | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Tensor, dict], dict | None] | None = None,
    ) -> ImagePipelineOutput | tuple:
        r"""Sample images.

        Args:
            batch_size: number of images; `None` (default): as many as `class_labels` or `latents`, else 1.
            class_labels: an index or a name, or one for each image; `None` (default): no class.
            guidance_scale: \(w\) of \(f_\varnothing + w (f_c - f_\varnothing)\) (Ho and Salimans, 2022, 2207.12598,
                eq. 6 with w + 1): 0 ignores the class, 1 (default) follows it, more exaggerates it.
            num_inference_steps: from 1 to the number trained with. Default 50.
            eta: 0 (default): deterministic DDIM; 1: as noisy as DDPM. For schedulers that know it.
            generator: one `torch.Generator` or one per image. The same seed gives the same images whatever the batch.
            latents: start from this noise, (B, D, h, w), instead of drawing it.
            image: a picture to start from, or one for each; `None` (default): none.
            mask: where new pixels are made, 1, and where those of `image` are kept, exactly, 0: (H, W) or (B, 1, H, W),
                or a picture in grey. `None` (default): everywhere.
            strength: how much of the way from noise is gone: 0 gives `image` back, 1 begins with noise alone. `None`
                (default): 0.8, or 1 with a mask.
            output_type: "pil", "np" ((B, H, W, C) in [0, 1]), "pt" ((B, C, H, W) in [0, 1]) or "latent" (the decoder's
                output as it is; the latents themselves are what the callback of the last step sees).
            return_dict: `False` returns the tuple `(images,)`.
            callback_on_step_end: called with (pipeline, step index, time step, {"latents": x}) after each step; may
                return a dict with other latents.

        Returns:
            `.images`.

        Raises:
            UsageError: an argument out of its range, or a class for a network that has none.
        """
        check_output_type(output_type)
        check_no_clipping(self.scheduler)
        check_steps(self.scheduler, num_inference_steps)
        labels = self._class_indices(class_labels)
        given = given_in_latents(self, image, mask, strength)
        batch_size = count_images(batch_size, latents, labels, guidance_scale, image=given and given.image)
        given = given and given.repeated(batch_size)
        if guidance_scale != 1 and isinstance(self.unet, UNet2DModel):
            raise UsageError(
                f"guidance_scale must be 1 with a UNet2DModel, which has no row for no class; got {guidance_scale}. "
                "Train a UNet2D for guidance."
            )
        device, generators = self._execution_device, image_generators(generator, batch_size)
        if latents is None:
            shape = (batch_size, *sample_shape(self.unet))
            latents = randn_tensor(shape, generator=generators, device=device, dtype=self.unet.dtype)
        else:
            check_latents(latents, self.unet)
        x = denoise(
            self,
            latents.to(device, self.unet.dtype),
            class_condition(self.unet, labels, batch_size, guidance_scale),
            num_inference_steps=num_inference_steps,
            eta=eta,
            generators=generators,
            callback=callback_on_step_end,
            given=given,
        )
        made = pictures(self.vae, x)
        images = to_output(made if given is None else given.finish(made), output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @torch.no_grad()
    def encode(
        self, images: Any, *, class_labels: Labels = None, num_inference_steps: int = 50, refinements: int = 2
    ) -> Tensor:
        """The noise from which `decode` makes these images: their latents, then the deterministic sampler backwards.

        Args:
            images: pictures, or what `from_input` takes.
            class_labels: as for sampling.
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
                f"{x.shape[2]} by {x.shape[3]} have {tuple(latents.shape[1:])}. Resize pictures first."
            )
        condition = class_condition(self.unet, self._class_indices(class_labels, len(x)), len(x))
        latents = latents.to(self.unet.dtype)
        return invert(self.unet, self.scheduler, latents, condition, num_inference_steps, refinements)

    @torch.no_grad()
    def decode(
        self, latents: Tensor, *, class_labels: Labels = None, num_inference_steps: int = 50, output_type: str = "pil"
    ) -> Any:
        """The images that the deterministic sampler makes of this noise, (B, D, h, w); undoes `encode` up to what the
        autoencoder loses."""
        check_output_type(output_type)
        check_latents(latents, self.unet)
        condition = class_condition(self.unet, self._class_indices(class_labels, len(latents)), len(latents))
        noise = latents.to(self._execution_device, self.unet.dtype)
        x = replay(self.unet, self.scheduler, noise, condition, num_inference_steps)
        return to_output(pictures(self.vae, x), output_type)

    def interpolate(self, a: Any, b: Any, steps: int = 8, *, num_inference_steps: int = 50, output_type: str = "pil"):
        """`steps` images on the great circle between the noises of two images, both ends included."""
        if steps < 2:
            raise UsageError(f"steps must be at least 2, for the two ends; got {steps}.")
        ends = [self.encode(image, num_inference_steps=num_inference_steps) for image in (a, b)]
        return self.decode(slerp(*ends, steps), num_inference_steps=num_inference_steps, output_type=output_type)
