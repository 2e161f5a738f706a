"""The sampling loop of diffusion, in pixels and in latents: any scheduler, any batch size, conditions and guidance."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, PNDMScheduler
from torch import Tensor

from latentia.errors import UsageError
from latentia.pipelines.conditioning import Given, Sharpen
from latentia.schedulers.ddim import DDIMScheduler

Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass(frozen=True)
class Condition:
    r"""What a network is told beside the noisy input, and how much it is exaggerated.

    Args:
        told: keyword arguments of the network, each (B, ...).
        nothing: the same of no condition, or of one to stay away from; `None` (default): guidance is not asked for.
        guidance_scale: \(w\) of \(f_\varnothing + w (f_c - f_\varnothing)\) (Ho and Salimans, 2022, 2207.12598, eq. 6
            with w + 1). Default 1: `nothing` is not looked at.
        rescale: \(\phi\), how far the guided prediction gets back the standard deviation of the told one, in [0, 1]
            (Lin et al., 2023, 2305.08891, eq. 15 and 16). Default 0.
    """

    told: dict[str, Tensor]
    nothing: dict[str, Tensor] | None = None
    guidance_scale: float = 1.0
    rescale: float = 0.0

    def part(self, start: int, stop: int) -> "Condition":
        """That of images [start, stop); beyond the last the last one again."""

        def cut(values: dict[str, Tensor]) -> dict[str, Tensor]:
            out = {}
            for key, value in values.items():
                rows = value[start:stop]
                missing = [stop - start - len(rows), *[-1] * (value.ndim - 1)]
                out[key] = torch.cat([rows, value[-1:].expand(*missing)])
            return out

        nothing = None if self.nothing is None else cut(self.nothing)
        return Condition(cut(self.told), nothing, self.guidance_scale, self.rescale)


def class_condition(unet, labels: Tensor | None, batch_size: int, guidance_scale: float = 1.0) -> Condition | None:
    """The condition that class labels, one or (B,), are to a `UNet2D`; None for none."""
    if labels is None:
        return None
    labels = labels.expand(batch_size)
    nothing = None
    if guidance_scale != 1:
        nothing = {"class_labels": torch.full_like(labels, unet.config.num_class_embeds)}
    return Condition({"class_labels": labels}, nothing, guidance_scale)


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


def count_images(
    batch_size: int | None,
    latents: Tensor | None,
    labels: Tensor | None,
    guidance_scale: float,
    **pictures: Tensor | None,
) -> int:
    """How many images a call asks for.

    Args:
        batch_size: as it was given; `None`: as many as `labels`, `latents` or `pictures`, else 1.
        latents: noise to start from, or None.
        labels: class indices, or None; one is for all images.
        guidance_scale: needs labels unless it is 1.
        **pictures: what else is given for each image, or None; one is for all.

    Raises:
        UsageError: numbers that do not agree, less than 1, or guidance to nothing.

    Example:
        >>> count_images(None, None, torch.tensor([0, 2, 1]), 2.0)
        3
    """
    several = {"class_labels": labels, **pictures}
    given = {"latents": latents, **{k: v for k, v in several.items() if v is not None and len(v) > 1}}
    for name, values in given.items():
        if values is not None:
            batch_size = len(values) if batch_size is None else batch_size
            if batch_size != len(values):
                raise UsageError(f"batch_size is {batch_size}, but {name} are given for {len(values)} images.")
    batch_size = 1 if batch_size is None else batch_size
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1; got {batch_size}.")
    if guidance_scale != 1 and labels is None:
        raise UsageError(f"guidance_scale={guidance_scale} needs class_labels: there is nothing to be guided to.")
    return batch_size


def check_steps(scheduler, num_inference_steps: int) -> None:
    """UsageError unless the number of steps is from 1 to the length of the trained chain."""
    trained = scheduler.config.num_train_timesteps
    if not 1 <= num_inference_steps <= trained:
        raise UsageError(
            f"num_inference_steps must be from 1 to {trained}, the length of the trained chain; "
            f"got {num_inference_steps}."
        )


def is_flow(scheduler) -> bool:
    """Whether the network gives the velocity of rectified flow, eps - x_0 on the way x_t = (1 - t) x_0 + t eps."""
    flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    return flow or scheduler.config.get("prediction_type") == "flow_prediction"


def denoise(
    pipe,
    x: Tensor,
    condition: Condition | None,
    *,
    num_inference_steps: int,
    eta: float,
    generators: list[torch.Generator],
    callback: Callable[[Any, int, Tensor, dict], dict | None] | None,
    given: Given | None = None,
    sharpen: Sharpen | None = None,
) -> Tensor:
    """From noise to what the network was trained on, under the pipeline's scheduler.

    Args:
        pipe: has `unet`, `scheduler` and a progress bar.
        x: noise from N(0, 1), (B, C, H, W).
        condition: what the network is told; `None`: nothing.
        num_inference_steps, eta, callback: as the pipelines say.
        generators: one for each sample.
        given: a picture to start from or to keep a part of; `None` (default): none. Parts are kept by replacing them
            with the noised picture in each step (RePaint, Lugmayr et al., 2022, 2201.09865, eq. 8, without going back).
        sharpen: small pictures to be the blocks' means of; `None` (default): none.

    Returns:
        (B, C, H, W).

    Raises:
        UsageError: a picture to start from, and a scheduler that cannot begin in the middle.
    """
    if given is not None and given.strength == 0:
        return given.sample.to(x)
    scheduler, noise = pipe.scheduler, x
    scheduler.set_timesteps(num_inference_steps, device=x.device)
    times = scheduler.timesteps
    begin = 0 if given is None or given.strength == 1 else given.first(num_inference_steps)
    if begin and isinstance(scheduler, PNDMScheduler):  # it repeats time steps and counts its calls
        raise UsageError(
            f"strength must be 0 or 1 with a PNDMScheduler, which cannot begin in the middle; got {given.strength}. "
            "Take DPMSolverMultistepScheduler.from_config(scheduler.config)."
        )
    begin *= getattr(scheduler, "order", 1)
    if begin and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    if given is None or given.strength == 1:
        x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    else:
        x = given.noised(scheduler, noise, times[begin])
    known = inspect.signature(scheduler.step).parameters
    # A clipped x_0 with the eps of the unclipped one drifts off the data, and under guidance far off.
    wishes = {"generator": generators, "eta": eta, "use_clipped_model_output": True}
    extra = {key: value for key, value in wishes.items() if key in known}
    scale = getattr(scheduler, "scale_model_input", lambda sample, t: sample)
    # A scheduler that takes no learned variance gets the prediction alone.
    with_variance = str(scheduler.config.get("variance_type")).startswith("learned")
    for i, t in enumerate(pipe.progress_bar(times[begin:])):
        prediction = predict(pipe.unet, scale(x, t), t, condition, with_variance)
        if sharpen is not None:
            mean = sharpen.corrected(scheduler, prediction[:, : x.shape[1]], scale(x, t), t, is_flow(scheduler))
            prediction = torch.cat([mean, prediction[:, x.shape[1] :]], 1)
        x = scheduler.step(prediction, t, x, **extra).prev_sample
        if given is not None and given.mask is not None:
            last = begin + i + 1 == len(times)
            x = given.kept(x, given.sample if last else given.noised(scheduler, noise, times[begin + i + 1]))
        if callback is not None:
            x = (callback(pipe, i, t, {"latents": x}) or {}).get("latents", x)
    return x if sharpen is None else sharpen.project(x)


def invert(
    unet, scheduler, x: Tensor, condition: Condition | None, num_inference_steps: int, refinements: int
) -> Tensor:
    """The noise (B, C, H, W) from which `replay` makes `x`: the same steps backwards.

    Each is implicit and is solved by `refinements` evaluations of the network (Pan et al., 2023, 2309.04907).
    """
    run = _deterministic(scheduler, num_inference_steps, x.device)
    flow = is_flow(run)
    for i in reversed(range(len(run.timesteps))):
        t = run.timesteps[i]
        start = at = x
        for _ in range(refinements):
            output = predict(unet, at, t, condition)
            if flow:
                at = start + (run.sigmas[i] - run.sigmas[i + 1]) * output
            else:
                at = run.inverse_step(output, t, start, at=at)
        x = at
    return x


def replay(unet, scheduler, x: Tensor, condition: Condition | None, num_inference_steps: int) -> Tensor:
    """What the deterministic sampler makes of noise: DDIM without clipping, or Euler's method for a flow."""
    run = _deterministic(scheduler, num_inference_steps, x.device)
    for t in run.timesteps:
        x = run.step(predict(unet, x, t, condition), t, x).prev_sample
    return x


def predict(unet, x: Tensor, t: Tensor, condition: Condition | None = None, with_variance: bool = False) -> Tensor:
    """The network's output, guided, in chunks of one size, the last one padded.

    Libraries choose their kernels by the shape of a batch and round differently with each, so only calls of one
    shape give an image the same bytes whatever is sampled beside it. The size weighs the speed of many images
    against the wait for one.

    Args:
        unet: called as `unet(x, t, **condition.told)`.
        x: (B, C, H, W), as the network takes it.
        t: one time step for all.
        condition: what it is told; `None` (default): nothing.
        with_variance: whether to give back the channels of a learned variance too. Default False.
    """
    pixels = x.shape[-2] * x.shape[-1]
    size = max(2, min(32, 2**15 // pixels) if x.device.type == "cpu" else 2**18 // pixels)
    size = 2 ** (size.bit_length() - 1)  # batches are mostly powers of two, which then need no padding
    padded = torch.cat([x, x.new_zeros(-len(x) % size, *x.shape[1:])])
    outputs = []
    for i in range(0, len(padded), size):
        part = None if condition is None else condition.part(i, i + size)
        outputs.append(_predict_chunk(unet, padded[i : i + size], t, part))
    output = torch.cat(outputs)[: len(x)]
    return output if with_variance else output[:, : x.shape[1]]


def _predict_chunk(unet, x: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
    if condition is None:
        return unet(x, t).sample
    if condition.nothing is None or condition.guidance_scale == 1:
        return unet(x, t, **condition.told).sample
    both = {key: torch.cat([condition.nothing[key], value]) for key, value in condition.told.items()}
    without, having = unet(torch.cat([x, x]), t, **both).sample.chunk(2)
    guided = without + condition.guidance_scale * (having - without)
    if condition.rescale:
        spread = having.flatten(1).std(1) / guided.flatten(1).std(1)
        factor = condition.rescale * spread + 1 - condition.rescale
        guided = guided * factor.view(-1, *[1] * (x.ndim - 1))
    return guided


def _deterministic(scheduler, num_inference_steps: int, device):
    """DDIM over the same noise schedule, without clipping, which could not be undone; or Euler's method of a flow."""
    check_steps(scheduler, num_inference_steps)
    if is_flow(scheduler):
        config = scheduler.config
        shift = config.get("shift", config.get("flow_shift", 1.0))
        run = FlowMatchEulerDiscreteScheduler(num_train_timesteps=config.num_train_timesteps, shift=shift)
    else:
        run = DDIMScheduler.from_config(scheduler.config, clip_sample=False, thresholding=False)
    run.set_timesteps(num_inference_steps, device=device)
    return run
