"""Images from noise: unconditional and class-conditional diffusion, under any scheduler."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from latentia.errors import UsageError
from latentia.losses.diffusion import bound_term
from latentia.pipelines.base import DiffusionPipeline, Labels, check_output_type, from_input, to_output
from latentia.schedulers.ddim import DDIMScheduler
from latentia.schedulers.ddpm import DDPMScheduler

Generators = torch.Generator | Sequence[torch.Generator] | None


def image_generators(generator: Generators, batch_size: int) -> list[torch.Generator]:
    """One generator for each image, so that an image does not depend on how many are made beside it.

    Args:
        generator: a list of `batch_size`, which is returned; or one (`None`: torch's own), from which the seed of each
            image is drawn in turn, so that the first images of a large batch are those of a small one.
        batch_size: number of images.

    Raises:
        UsageError: a list of another length.
    """
    if isinstance(generator, Sequence):
        if len(generator) != batch_size:
            raise UsageError(f"generator must be one or a list of batch_size={batch_size}; got {len(generator)}.")
        return list(generator)
    device = generator.device if generator is not None else "cpu"
    seeds = torch.empty(batch_size, dtype=torch.int64, device=device)
    for i in range(batch_size):
        seeds[i : i + 1].random_(generator=generator)
    return [torch.Generator(device).manual_seed(seed) for seed in seeds.tolist()]


def slerp(a: Tensor, b: Tensor, steps: int) -> Tensor:
    r"""Points on the great circle: \(\frac{\sin((1-\lambda)\Omega) a + \sin(\lambda\Omega) b}{\sin\Omega}\).

    Gaussian noise lies near a sphere, and so do these points, while a straight line would leave it.

    Args:
        a, b: of one shape (1, C, H, W).
        steps: number of points, both ends included; at least 2.

    Returns:
        (steps, C, H, W).

    Shoemake, 1985; White, 2016, 1609.04468.

    Example:
        >>> slerp(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 3)[1]
        tensor([0.7071, 0.7071])
    """
    cosine = (a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-12)
    omega = torch.acos(cosine.clamp(-1, 1))
    lam = torch.linspace(0, 1, steps, device=a.device, dtype=a.dtype).view(-1, *[1] * (a.ndim - 1))
    if omega.sin() < 1e-4:  # nearly parallel: the circle is a line
        return (1 - lam) * a + lam * b
    return ((1 - lam) * omega).sin() / omega.sin() * a + (lam * omega).sin() / omega.sin() * b


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

    likelihood_kind = "lower bound"
    latent_path = "slerp"

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
        self._check_steps(num_inference_steps)
        labels = self._class_indices(class_labels)
        given = {"latents": latents, "class_labels": labels if labels is not None and len(labels) > 1 else None}
        for name, values in given.items():
            if values is not None:
                batch_size = len(values) if batch_size is None else batch_size
                if batch_size != len(values):
                    raise UsageError(f"batch_size is {batch_size}, but {name} are given for {len(values)} images.")
        batch_size = 1 if batch_size is None else batch_size
        if batch_size < 1:
            raise UsageError(f"batch_size must be at least 1; got {batch_size}.")
        if labels is not None:
            labels = labels.expand(batch_size)
        if guidance_scale != 1 and labels is None:
            raise UsageError(f"guidance_scale={guidance_scale} needs class_labels: there is nothing to be guided to.")

        device, generators = self._execution_device, image_generators(generator, batch_size)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        if latents is None:
            shape = (batch_size, self.unet.config.in_channels, *self._size)
            latents = randn_tensor(shape, generator=generators, device=device, dtype=self.unet.dtype)
        x = latents.to(device, self.unet.dtype) * self.scheduler.init_noise_sigma
        known = inspect.signature(self.scheduler.step).parameters
        # A clipped x_0 with the eps of the unclipped one drifts off the data, and under guidance far off.
        wishes = {"generator": generators, "eta": eta, "use_clipped_model_output": True}
        extra = {key: value for key, value in wishes.items() if key in known}
        for i, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            prediction = self._predict(self.scheduler.scale_model_input(x, t), t, labels, guidance_scale)
            x = self.scheduler.step(prediction, t, x, **extra).prev_sample
            if callback_on_step_end is not None:
                x = (callback_on_step_end(self, i, t, {"latents": x}) or {}).get("latents", x)
        self.maybe_free_model_hooks()
        images = to_output(x, output_type)
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
        labels = self._class_indices(class_labels, len(x))
        scheduler = self._deterministic(num_inference_steps, device)
        for t in scheduler.inverse_timesteps:
            start = at = x
            for _ in range(refinements):
                at = scheduler.inverse_step(self._predict(at, t, labels, 1.0, with_variance=False), t, start, at=at)
            x = at
        return x

    @torch.no_grad()
    def decode(
        self, latents: Tensor, *, class_labels: Labels = None, num_inference_steps: int = 50, output_type: str = "pil"
    ):
        """The images that deterministic DDIM makes of this noise, (B, C, H, W); the inverse of `encode`."""
        check_output_type(output_type)
        device, labels = self._execution_device, self._class_indices(class_labels, len(latents))
        scheduler = self._deterministic(num_inference_steps, device)
        x = latents.to(device, self.unet.dtype)
        for t in scheduler.timesteps:
            x = scheduler.step(self._predict(x, t, labels, 1.0, with_variance=False), t, x).prev_sample
        return to_output(x, output_type)

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
        device, channels = self._execution_device, self.unet.config.in_channels
        x0 = from_input(images, channels=channels, size=self._size, device=device, dtype=self.unet.dtype)
        kind = "learned_range" if self._learned_variance else "fixed_large"
        scheduler = DDPMScheduler.from_config(self.scheduler.config, variance_type=kind)
        steps = scheduler.config.num_train_timesteps if num_inference_steps is None else num_inference_steps
        self._check_steps(steps)
        scheduler.set_timesteps(steps, device=device)
        labels, generators = self._class_indices(class_labels, len(x0)), image_generators(generator, len(x0))
        first, last = scheduler.timesteps[0], scheduler.timesteps[-1]
        alpha_bar = scheduler.alphas_cumprod[first].float()
        # L_T = KL(q(x_T | x_0) || N(0, 1))
        total = 0.5 * (alpha_bar * x0.float().square() - alpha_bar - torch.log1p(-alpha_bar)).flatten(1).sum(1)
        for t in self.progress_bar(scheduler.timesteps):
            noise = randn_tensor(x0.shape, generator=generators, device=device, dtype=x0.dtype)
            x_t = scheduler.add_noise(x0, noise, t)
            prediction = self._predict(x_t, t, labels, 1.0, with_variance=True)
            total = total + bound_term(scheduler, prediction, x0, x_t, t, t == last)
        return -total

    @property
    def _learned_variance(self) -> bool:
        return self.unet.config.out_channels == 2 * self.unet.config.in_channels

    def _predict(
        self, x: Tensor, t: Tensor, labels: Tensor | None, guidance_scale: float, with_variance: bool | None = None
    ) -> Tensor:
        """The network's output, in chunks of one size, the last one padded.

        Libraries choose their kernels by the shape of a batch and round differently with each, so only calls of one
        shape give an image the same bytes whatever is sampled beside it. The size weighs the speed of many images
        against the wait for one.
        """
        pixels = x.shape[-2] * x.shape[-1]
        size = max(2, min(32, 2**15 // pixels) if x.device.type == "cpu" else 2**18 // pixels)
        size = 2 ** (size.bit_length() - 1)  # batches are mostly powers of two, which then need no padding
        padding = -len(x) % size
        padded = torch.cat([x, x.new_zeros(padding, *x.shape[1:])])
        if labels is not None:
            labels = torch.cat([labels.expand(len(x)), labels.new_zeros(padding)])
        outputs = []
        for i in range(0, len(padded), size):
            chunk = None if labels is None else labels[i : i + size]
            outputs.append(self._predict_chunk(padded[i : i + size], t, chunk, guidance_scale))
        output = torch.cat(outputs)[: len(x)]
        if with_variance is None:  # a scheduler that takes no learned variance gets the prediction alone
            with_variance = str(self.scheduler.config.get("variance_type")).startswith("learned")
        return output if with_variance else output[:, : x.shape[1]]

    def _predict_chunk(self, x: Tensor, t: Tensor, labels: Tensor | None, guidance_scale: float) -> Tensor:
        if labels is None:
            return self.unet(x, t).sample
        if guidance_scale == 1:
            return self.unet(x, t, class_labels=labels).sample
        nothing = torch.full_like(labels, self.unet.config.num_class_embeds)
        without, having = self.unet(torch.cat([x, x]), t, class_labels=torch.cat([nothing, labels])).sample.chunk(2)
        return without + guidance_scale * (having - without)

    def _deterministic(self, num_inference_steps: int, device) -> DDIMScheduler:
        """DDIM over the same noise schedule, without clipping, which could not be undone."""
        self._check_steps(num_inference_steps)
        scheduler = DDIMScheduler.from_config(self.scheduler.config, clip_sample=False, thresholding=False)
        scheduler.set_timesteps(num_inference_steps, device=device)
        return scheduler

    @property
    def _size(self) -> tuple[int, int]:
        size = self.unet.config.sample_size
        return (size, size) if isinstance(size, int) else tuple(size)

    def _check_steps(self, num_inference_steps: int) -> None:
        trained = self.scheduler.config.num_train_timesteps
        if not 1 <= num_inference_steps <= trained:
            raise UsageError(
                f"num_inference_steps must be from 1 to {trained}, the length of the trained chain; "
                f"got {num_inference_steps}."
            )
