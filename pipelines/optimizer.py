"""Sampling with an optimizer: Adam moves an image until a denoiser finds little noise to remove from it."""

import math
from typing import Any

import torch
from torch import Tensor

from latentia.errors import UsageError, check_range
from latentia.functional.chunks import in_chunks
from latentia.pipelines.arguments import Generators, draw_noise, image_generators
from latentia.pipelines.base import Labels
from latentia.pipelines.diffusion import UnconditionalDiffusionPipeline
from latentia.pipelines.images import check_output_type, to_output
from latentia.pipelines.latents import sample_shape
from latentia.pipelines.sampling import Conditioning, chunk_size, noise_schedule, predict
from latentia.schedulers.ddim import DDIMScheduler

_BETAS = (0.0, 0.9)  # of Adam: noise is new at each step, and momentum would carry the old one


@torch.no_grad()
def sample_by_optimizer(
    pipe: UnconditionalDiffusionPipeline,
    batch_size: int = 1,
    *,
    num_inference_steps: int = 50,
    learning_rate: float = 0.5,
    max_noise: float = 5.0,
    min_noise: float = 0.02,
    class_labels: Labels = None,
    guidance_scale: float = 1.0,
    generator: Generators = None,
    output_type: str = "pil",
) -> Any:
    r"""Sample images by Adam on the error of a denoiser, at noise levels that fall from step to step.

    An image x starts as N(0, I). At each step noise \(\sigma\epsilon\) is added to it, the network predicts
    \(\hat\epsilon\), and x takes a step of Adam against the gradient of
    \(\frac12\lVert\hat\epsilon - \epsilon\rVert^2\) with the derivative of the network left out,
    \(\hat\epsilon - \epsilon\), at the rate \(\lambda\min(\sigma, 1)\). It is at rest where the network finds the
    noise that was added and no other, so nothing in it looks like noise. Levels are equal in the logarithm of
    \(\sigma\), in units of the image.

    Score distillation sampling, DreamFusion (Poole et al., 2022, 2209.14988), eq. 3, over the pixels themselves.

    Args:
        pipe: of diffusion over pixels, whose scheduler has a schedule of betas; it may be of classes.
        batch_size: number of images. Default 1.
        num_inference_steps: steps of Adam, with one evaluation of the network each, at least 2. Default 50.
        learning_rate: lambda, above 0, in units of an image from -1 to 1. Default 0.5.
        max_noise, min_noise: the levels of the first and of the last step, above 0, the first one larger; the nearest
            ones that the network was trained on are taken. Default 5 and 0.02.
        class_labels, guidance_scale: as of the pipeline's call.
        generator: one `torch.Generator` or one per image. The same seed gives the same images whatever the batch.
        output_type: "pil", "np" ((B, H, W, C) in [0, 1]), "pt" ((B, C, H, W) in [0, 1]) or "latent" (raw).

    Returns:
        The images; of "pil" a list.

    Raises:
        UsageError: an argument out of its range, another pipeline, or a network that needs conditioning images.

    Example:
        >>> from latentia import DDIMScheduler, UNet2D
        >>> pipe = UnconditionalDiffusionPipeline(UNet2D(8, 1, block_out_channels=(32,)), DDIMScheduler())
        >>> sample_by_optimizer(pipe, 2, num_inference_steps=3)[0].size
        (8, 8)
    """
    if not isinstance(pipe, UnconditionalDiffusionPipeline):
        raise UsageError(f"pipe must be an UnconditionalDiffusionPipeline, over pixels; got {type(pipe).__name__}.")
    if pipe.needs_image:
        raise UsageError(
            "pipe must be trained without conditioning images, which an optimizer of the image does not take; got one "
            "trained with them. Call the pipeline itself with control_image."
        )
    check_output_type(output_type)
    check_range("batch_size", batch_size, 1, integer=True)
    check_range("num_inference_steps", num_inference_steps, 2, integer=True)
    check_range("learning_rate", learning_rate, 0, closed="neither")
    check_range("min_noise", min_noise, 0, closed="neither")
    check_range("max_noise", max_noise, min_noise, closed="neither")
    device, generators = pipe._execution_device, image_generators(generator, batch_size)
    labels = pipe._class_indices(class_labels, batch_size)
    conditioning = pipe._conditioning(labels, batch_size, guidance_scale)
    run = noise_schedule(pipe.scheduler, DDIMScheduler).to(device)
    sigmas = ((1 - run.alphas_cumprod.double()) / run.alphas_cumprod.double()).sqrt().cpu()
    levels = torch.linspace(math.log(max_noise), math.log(min_noise), num_inference_steps, dtype=torch.float64)
    times = [int((sigmas.log() - level).abs().argmin()) for level in levels]
    rates = [learning_rate * min(float(sigmas[t]), 1.0) for t in times]

    shape = sample_shape(pipe.unet)
    place = (shape, device, pipe.unet.dtype)
    start, noises = draw_noise(generators, *place), [draw_noise(generators, *place) for _ in times]

    def optimize(x: Tensor, rows: Tensor, *noise: Tensor) -> Tensor:
        first = int(rows[0])
        part = None if conditioning is None else conditioning.part(first, first + len(x))
        return _optimize(pipe, run, x, noise, part, times, rates)

    rows = torch.arange(batch_size)
    size = chunk_size(shape[1] * shape[2], device.type)
    x = in_chunks(optimize, start, rows, *noises, size=size)
    pipe.maybe_free_model_hooks()
    return to_output(x, output_type)


def _optimize(
    pipe: Any,
    run: DDIMScheduler,
    x: Tensor,
    noises: tuple[Tensor, ...],
    conditioning: Conditioning | None,
    times: list[int],
    rates: list[float],
) -> Tensor:
    """One chunk of images through all steps; Adam treats each value by itself, so images do not depend on others."""
    wide = torch.promote_types(x.dtype, torch.float32)
    image = x.to(wide, copy=True).requires_grad_()
    optimizer = torch.optim.Adam([image], betas=_BETAS)
    for t, rate, noise in zip(pipe.progress_bar(times), rates, noises):
        noise = noise.to(wide)
        noisy = run.add_noise(image.detach(), noise, torch.full((len(x),), t, device=x.device))
        output = predict(pipe._network, noisy.to(x.dtype), torch.tensor(t, device=x.device), conditioning)
        image.grad = run.predict_x0_eps(output.to(wide), t, noisy)[1] - noise
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    return image.detach().to(x.dtype)
