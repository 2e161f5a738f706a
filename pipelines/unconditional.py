"""Images from noise: unconditional and class-conditional diffusion, under any scheduler."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from latentia.errors import UsageError
from latentia.losses.diffusion import bound_term
from latentia.pipelines.base import DiffusionPipeline, Images, Labels, check_output_type, from_input, to_output
from latentia.pipelines.capabilities import Likelihood
from latentia.pipelines.conditioning import given_picture, small_picture
from latentia.pipelines.sampling import (
    Generators,
    check_steps,
    class_condition,
    count_images,
    denoise,
    image_generators,
    invert,
    is_flow,
    predict,
    replay,
    slerp,
)
from latentia.schedulers.ddpm import DDPMScheduler


class UnconditionalDiffusionPipeline(DiffusionPipeline):
    """Diffusion in pixel space.

    Args:
        unet: `UNet2D` or diffusers' `UNet2DModel`.
        scheduler: any scheduler of latentia or diffusers; it says what the network predicts.
        label_names: names of the classes, in the order of their indices; `None` (default): none.

    Example:
        >>> from latentia import DDIMScheduler, UNet2D
        >>> unet = UNet2D(sample_size=8, in_channels=1, block_out_channels=(32,))
        >>> pipe = UnconditionalDiffusionPipeline(unet, DDIMScheduler())
        >>> pipe.set_progress_bar_config(disable=True)
        >>> pipe(batch_size=2, num_inference_steps=2).images[0].size
        (8, 8)
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = ("latents",)

    conditions = ("class_labels", "image", "mask", "low_resolution")
    latents = "continuous"
    latent_conditions = ("class_labels",)
    latent_path = "slerp"
    likelihood = Likelihood("lower bound", "256 levels")

    def __init__(self, unet, scheduler, label_names: Sequence[str] | Mapping[str, str] | None = None):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
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
        low_resolution: Images | None = None,
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
            latents: start from this noise, (B, C, H, W), instead of drawing it.
            image: a picture to start from, or one for each; `None` (default): none.
            mask: where new pixels are made, 1, and where those of `image` are kept, exactly, 0: (H, W) or (B, 1, H, W),
                or a picture in grey. `None` (default): everywhere.
            strength: how much of the way from noise is gone: 0 gives `image` back, 1 begins with noise alone. `None`
                (default): 0.8, or 1 with a mask.
            low_resolution: small pictures that the blocks of pixels of the large ones shall have as their means, one or
                one for each (Wang et al., 2022, 2212.00490); before clipping and rounding they do. `None` (default):
                none.
            output_type: "pil", "np" ((B, H, W, C) in [0, 1]), "pt" ((B, C, H, W) in [0, 1]) or "latent" (raw).
            return_dict: `False` returns the tuple `(images,)`.
            callback_on_step_end: called with (pipeline, step index, time step, {"latents": x}) after each step; may
                return a dict with other latents.

        Returns:
            `.images`.

        Raises:
            UsageError: an argument out of its range, or a class for a network that has none.
        """
        check_output_type(output_type)
        check_steps(self.scheduler, num_inference_steps)
        labels = self._class_indices(class_labels)
        place = {"channels": self.unet.config.in_channels, "size": self._size, "device": self._execution_device}
        if low_resolution is not None and image is not None:
            raise UsageError("low_resolution and image ask for two different pictures; give one of them.")
        given = given_picture(image, mask, strength, to_sample=lambda x: x, **place)
        sharpen = small_picture(low_resolution, **place)
        pictures = {"image": given and given.image, "low_resolution": sharpen and sharpen.small}
        batch_size = count_images(batch_size, latents, labels, guidance_scale, **pictures)
        given = given and given.repeated(batch_size)
        device, generators = self._execution_device, image_generators(generator, batch_size)
        if latents is None:
            shape = (batch_size, self.unet.config.in_channels, *self._size)
            latents = randn_tensor(shape, generator=generators, device=device, dtype=self.unet.dtype)
        x = denoise(
            self,
            latents.to(device, self.unet.dtype),
            class_condition(self.unet, labels, batch_size, guidance_scale),
            num_inference_steps=num_inference_steps,
            eta=eta,
            generators=generators,
            callback=callback_on_step_end,
            given=given,
            sharpen=sharpen,
        )
        self.maybe_free_model_hooks()
        images = to_output(x if given is None else given.finish(x), output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @torch.no_grad()
    def encode(
        self, images, *, class_labels: Labels = None, num_inference_steps: int = 50, refinements: int = 2
    ) -> Tensor:
        """The noise from which deterministic DDIM makes these images: DDIM run backwards.

        Args:
            images: pictures, or what `from_input` takes.
            class_labels: as for sampling.
            num_inference_steps: of the run that is inverted. Default 50.
            refinements: evaluations per step; each beyond the first solves the implicit step better (Pan et al., 2023,
                2309.04907). Default 2.

        Returns:
            (B, C, H, W), close to N(0, 1).

        DDIM (Song et al., 2020, 2010.02502), section 4.3.
        """
        device = self._execution_device
        channels = self.unet.config.in_channels
        x = from_input(images, channels=channels, size=self._size, device=device, dtype=self.unet.dtype)
        condition = class_condition(self.unet, self._class_indices(class_labels, len(x)), len(x))
        return invert(self.unet, self.scheduler, x, condition, num_inference_steps, refinements)

    @torch.no_grad()
    def decode(
        self, latents: Tensor, *, class_labels: Labels = None, num_inference_steps: int = 50, output_type: str = "pil"
    ):
        """The images that deterministic DDIM makes of this noise, (B, C, H, W); the inverse of `encode`."""
        check_output_type(output_type)
        condition = class_condition(self.unet, self._class_indices(class_labels, len(latents)), len(latents))
        x = latents.to(self._execution_device, self.unet.dtype)
        return to_output(replay(self.unet, self.scheduler, x, condition, num_inference_steps), output_type)

    def interpolate(self, a, b, steps: int = 8, *, num_inference_steps: int = 50, output_type: str = "pil"):
        """`steps` images on the great circle between the noises of two images, both ends included."""
        if steps < 2:
            raise UsageError(f"steps must be at least 2, for the two ends; got {steps}.")
        ends = [self.encode(image, num_inference_steps=num_inference_steps) for image in (a, b)]
        return self.decode(slerp(*ends, steps), num_inference_steps=num_inference_steps, output_type=output_type)

    @torch.no_grad()
    def log_likelihood(
        self,
        images,
        *,
        class_labels: Labels = None,
        num_inference_steps: int | None = None,
        generator: Generators = None,
    ) -> Tensor:
        r"""A lower bound on log p(image), in nats per image: \(-L_T - \sum_t L_{t-1} - L_0\), summed over pixels.

        Each term is estimated with one draw of noise. The pixels are taken to have 256 levels.

        Args:
            images: pictures, or what `from_input` takes.
            class_labels: as for sampling.
            num_inference_steps: length of the chain whose bound it is; `None` (default): all that were trained.
            generator: one, or one per image.

        Returns:
            float32, (B,). Divide by \(-\ln 2\) and the number of values of an image for bits per dimension.

        DDPM (Ho et al., 2020, 2006.11239), eq. 5.
        """
        if is_flow(self.scheduler):
            raise UsageError(
                "log_likelihood is a bound of a chain of noise, and the scheduler is one of flow matching, which has "
                "none. Train with prediction_type epsilon or v_prediction for it."
            )
        device, channels = self._execution_device, self.unet.config.in_channels
        x0 = from_input(images, channels=channels, size=self._size, device=device, dtype=self.unet.dtype)
        kind = "learned_range" if self._learned_variance else "fixed_large"
        scheduler = DDPMScheduler.from_config(self.scheduler.config, variance_type=kind)
        steps = scheduler.config.num_train_timesteps if num_inference_steps is None else num_inference_steps
        check_steps(self.scheduler, steps)
        scheduler.set_timesteps(steps, device=device)
        generators = image_generators(generator, len(x0))
        condition = class_condition(self.unet, self._class_indices(class_labels, len(x0)), len(x0))
        first, last = scheduler.timesteps[0], scheduler.timesteps[-1]
        alpha_bar = scheduler.alphas_cumprod[first].float()
        # L_T = KL(q(x_T | x_0) || N(0, 1))
        total = 0.5 * (alpha_bar * x0.float().square() - alpha_bar - torch.log1p(-alpha_bar)).flatten(1).sum(1)
        for t in self.progress_bar(scheduler.timesteps):
            noise = randn_tensor(x0.shape, generator=generators, device=device, dtype=x0.dtype)
            x_t = scheduler.add_noise(x0, noise, t)
            prediction = predict(self.unet, x_t, t, condition, with_variance=True)
            total = total + bound_term(scheduler, prediction, x0, x_t, t, t == last)
        return -total

    @property
    def _learned_variance(self) -> bool:
        return self.unet.config.out_channels == 2 * self.unet.config.in_channels

    @property
    def _size(self) -> tuple[int, int]:
        size = self.unet.config.sample_size
        return (size, size) if isinstance(size, int) else tuple(size)
