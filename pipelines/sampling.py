"""Parts of the sampling loops of diffusion: guided predictions in chunks, what schedulers differ in, DDIM inversion."""

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from latentia.errors import UsageError, check_range
from latentia.pipelines.arguments import draw_seed
from latentia.schedulers.ddim import DDIMScheduler


@dataclass(frozen=True)
class Conditioning:
    r"""The conditioning inputs of a denoising network, and its classifier-free guidance.

    Args:
        inputs: keyword arguments of the network, each (B, ...).
        unconditional: the same without condition, or with a negative one; `None` (default): no guidance.
        guidance_scale: \(w\) of \(f_\varnothing + w (f_c - f_\varnothing)\) (Ho and Salimans, 2022, 2207.12598, eq. 6
            with w + 1). Default 1: `unconditional` is not looked at.
        guidance_rescale: \(\phi\), how far the guided prediction gets back the standard deviation of the conditional
            one, in [0, 1] (Lin et al., 2023, 2305.08891, eq. 15 and 16). Default 0.
    """

    inputs: dict[str, Tensor]
    unconditional: dict[str, Tensor] | None = None
    guidance_scale: float = 1.0
    guidance_rescale: float = 0.0

    def part(self, start: int, stop: int) -> "Conditioning":
        """That of images [start, stop); beyond the last the last one again."""

        def cut(values: dict[str, Tensor]) -> dict[str, Tensor]:
            out = {}
            for key, value in values.items():
                rows = value[start:stop]
                missing = [stop - start - len(rows), *[-1] * (value.ndim - 1)]
                out[key] = torch.cat([rows, value[-1:].expand(*missing)])
            return out

        unconditional = None if self.unconditional is None else cut(self.unconditional)
        return Conditioning(cut(self.inputs), unconditional, self.guidance_scale, self.guidance_rescale)


def class_conditioning(
    unet: Any, labels: Tensor | None, batch_size: int, guidance_scale: float = 1.0, unconditional: bool = True
) -> Conditioning | None:
    """The conditioning of a network on class labels, one or (B,); None for none.

    Args:
        unet: whose `class_embedding` has one row more than classes, for "no class", if it can be guided.
        labels: integers, or None.
        batch_size: number of images.
        guidance_scale: see `Conditioning`. Default 1.
        unconditional: whether the row for "no class" was trained, by class dropout. Default True.

    Raises:
        UsageError: guidance that is not finite, without labels, or of a network that has no trained row for "no class";
            no labels for one that was always trained with its class.
    """
    check_range("guidance_scale", guidance_scale)
    if not unconditional and getattr(unet.config, "num_class_embeds", None) is not None:
        if guidance_scale != 1:
            raise UsageError(
                "guidance_scale must be 1, as this network was trained without class dropout, always with its class; "
                f"got {guidance_scale}. Train it with class_dropout=0.1."
            )
        if labels is None:
            raise UsageError(
                "class_labels are missing: this network was trained without class dropout, always with its class. "
                "Train it with class_dropout=0.1 to sample without."
            )
    if labels is None:
        if guidance_scale != 1:
            raise UsageError(f"guidance_scale={guidance_scale} needs class_labels: there is nothing to be guided to.")
        return None
    labels = labels.expand(batch_size)
    if guidance_scale == 1:
        return Conditioning({"class_labels": labels})
    no_class = unet.config.num_class_embeds
    if unet.class_embedding.num_embeddings <= no_class:
        raise UsageError(
            f"guidance_scale must be 1 with a {type(unet).__name__}, which has no row for no class; got "
            f"{guidance_scale}. Train a UNet2D for guidance."
        )
    return Conditioning({"class_labels": labels}, {"class_labels": torch.full_like(labels, no_class)}, guidance_scale)


def predict(
    unet: Any,
    x: Tensor,
    t: Tensor,
    conditioning: Conditioning | None = None,
    with_variance: bool = False,
    target: Tensor | None = None,
) -> Tensor:
    """The network's output, guided, in chunks of one size, the last one padded.

    Libraries choose their kernels by the shape of a batch and round differently with each, so only calls of one
    shape give an image the same bytes whatever is sampled beside it.

    Args:
        unet: called as `unet(x, t, **conditioning.inputs)`.
        x: (B, C, H, W), as the network takes it.
        t: one time step for all.
        conditioning: `None` (default): none.
        with_variance: whether to give back the channels of a learned variance too. Default False.
        target: the time step that the sampling step leads to, of networks that are conditioned on it: see `step_end`.
            Default none.
    """
    options = {} if target is None else {"target_timestep": target}
    size = chunk_size(x.shape[-2] * x.shape[-1], x.device.type)
    padded = torch.cat([x, x.new_zeros(-len(x) % size, *x.shape[1:])])
    outputs = []
    for i in range(0, len(padded), size):
        part = None if conditioning is None else conditioning.part(i, i + size)
        outputs.append(_predict_chunk(unet, padded[i : i + size], t, part, options))
    output = torch.cat(outputs)[: len(x)]
    return output if with_variance else output[:, : x.shape[1]]


def chunk_size(pixels: int, device_type: str) -> int:
    """How many images of so many pixels a network sees at once: a power of two, as batches mostly are.

    The speed of many images is weighed against the wait for one, which a GPU shortens less.

    Example:
        >>> chunk_size(28 * 28, "cpu"), chunk_size(256 * 256, "cpu"), chunk_size(28 * 28, "cuda")
        (32, 2, 256)
    """
    size = max(2, min(32, 2**15 // pixels) if device_type == "cpu" else 2**18 // pixels)
    return 2 ** (size.bit_length() - 1)


def step_end(unet: Any, scheduler: Any, timesteps: Tensor, i: int) -> Tensor | None:
    """The time step that the i-th sampling step leads to, 0 after the last; None of networks that do not take it.

    Args:
        unet: takes it, if it was built with `target_time`: it predicts the mean velocity over a step.
        scheduler: makes the steps.
        timesteps: descending.
        i: index of the step.

    Raises:
        UsageError: such a network under a scheduler that is not Euler's method of a flow.
    """
    if not getattr(unet.config, "target_time", False):
        return None
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        raise UsageError(
            f"scheduler must be a FlowMatchEulerDiscreteScheduler for a network with target_time, which predicts the "
            f"mean velocity over each step; got a {type(scheduler).__name__}."
        )
    return timesteps[i + 1] if i + 1 < len(timesteps) else torch.zeros_like(timesteps[i])


def _predict_chunk(
    unet: Any, x: Tensor, t: Tensor, conditioning: Conditioning | None, options: dict[str, Tensor]
) -> Tensor:
    if conditioning is None:
        return unet(x, t, **options).sample
    if conditioning.unconditional is None or conditioning.guidance_scale == 1:
        return unet(x, t, **conditioning.inputs, **options).sample
    both = {key: torch.cat([conditioning.unconditional[key], value]) for key, value in conditioning.inputs.items()}
    without, having = unet(torch.cat([x, x]), t, **both, **options).sample.chunk(2)
    guided = without + conditioning.guidance_scale * (having - without)
    if conditioning.guidance_rescale:
        spread = having.flatten(1).std(1) / guided.flatten(1).std(1)
        factor = conditioning.guidance_rescale * spread + 1 - conditioning.guidance_rescale
        guided = guided * factor.view(-1, *[1] * (x.ndim - 1))
    return guided


# ------------------------------------------------------------ what schedulers differ in


def check_scheduler(scheduler: Any) -> None:
    """UsageError unless a scheduler steps as the loops here do, from `step(model_output, timestep, sample)` alone."""
    step = getattr(scheduler, "step", None)
    wanted: list[str] = []
    if step is not None and hasattr(scheduler, "set_timesteps"):
        arguments = inspect.signature(step).parameters.values()
        wanted = [a.name for a in arguments if a.default is a.empty and a.kind == a.POSITIONAL_OR_KEYWORD]
    if wanted != ["model_output", "timestep", "sample"]:
        more = f", whose step takes {', '.join(wanted)}" if wanted else ""
        raise UsageError(
            "scheduler must be one of latentia or diffusers that steps from (model_output, timestep, sample); got "
            f"{type(scheduler).__name__}{more}. Take diffusers.DPMSolverMultistepScheduler or a DDIMScheduler."
        )


def check_steps(scheduler: Any, num_inference_steps: int) -> None:
    """UsageError unless the number of steps is from 1 to the length of the trained chain, if the scheduler has one."""
    trained = scheduler.config.get("num_train_timesteps")
    check_range("num_inference_steps", num_inference_steps, integer=True)
    if num_inference_steps < 1 or (trained is not None and num_inference_steps > trained):
        rule = "at least 1" if trained is None else f"from 1 to {trained}, the length of the trained chain"
        raise UsageError(f"num_inference_steps must be {rule}; got {num_inference_steps}.")


def set_steps(
    scheduler: Any,
    num_inference_steps: int,
    device: torch.device,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
) -> int:
    """Sets the time steps of a scheduler, and returns how many there are.

    Args:
        scheduler: of latentia or diffusers.
        num_inference_steps: chosen by the scheduler, if neither of the lists is given.
        device: where samples are.
        timesteps: a list in their place, descending; `sigmas`: one of noise levels, as flow matching has them.

    Raises:
        UsageError: another kind of scheduler, a number out of range, or a list that the scheduler does not take.
    """
    check_scheduler(scheduler)
    lists = {"timesteps": timesteps, "sigmas": sigmas}
    given = {}
    for name, values in lists.items():
        if values is not None:
            if not isinstance(values, Iterable) or isinstance(values, str):
                raise UsageError(f"{name} must be a list of descending numbers; got {values!r}.")
            given[name] = list(values)
    if not given:
        check_steps(scheduler, num_inference_steps)
        scheduler.set_timesteps(num_inference_steps, device=device, **_equal_steps(scheduler, num_inference_steps))
        return num_inference_steps
    if len(given) > 1:
        raise UsageError("timesteps and sigmas are two ways to choose the steps; give one of them.")
    name, values = given.popitem()
    if name not in inspect.signature(scheduler.set_timesteps).parameters:
        raise UsageError(f"{name} must be left out: {type(scheduler).__name__} chooses its own steps.")
    scheduler.set_timesteps(device=device, **{name: values})
    return len(values)


def _equal_steps(scheduler: Any, count: int) -> dict[str, list[float]]:
    """Steps of Euler's method of a flow that are equal in time: left to itself, it makes the last one 1/1000 long."""
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return {}
    return {"sigmas": [1 - i / count for i in range(count)]}


def is_flow(scheduler: Any) -> bool:
    """Whether the network predicts the velocity of rectified flow, eps - x_0 on x_t = (1 - t) x_0 + t eps.

    Every scheduler of flow matching has noise levels, and neither betas nor a standard deviation to start from.
    """
    if scheduler.config.get("prediction_type") == "flow_prediction" or hasattr(scheduler, "scale_noise"):
        return True
    return hasattr(scheduler, "sigmas") and not (hasattr(scheduler, "betas") or hasattr(scheduler, "init_noise_sigma"))


def takes_variance(scheduler: Any) -> bool:
    """Whether `step` takes the channels of a learned variance, which other schedulers must not see."""
    return str(scheduler.config.get("variance_type")).startswith("learned")


def step_options(
    scheduler: Any, generators: list[torch.Generator], eta: float, use_clipped_model_output: bool = True
) -> dict[str, Any]:
    """Arguments of `scheduler.step` beside output, time step and sample, once its time steps are set.

    Schedulers of diffusers take different ones, and only the signature of `step` says which. One that draws from a
    Brownian path of its own gets a seed of each image's generator for it.
    """
    if hasattr(scheduler, "noise_sampler_seed"):
        scheduler.noise_sampler_seed = [draw_seed(generator) for generator in generators]
    known = {"generator": generators, "eta": eta, "use_clipped_model_output": use_clipped_model_output}
    taken = inspect.signature(scheduler.step).parameters
    return {key: value for key, value in known.items() if key in taken}


def initial_sample(scheduler: Any, noise: Tensor) -> Tensor:
    """Noise of N(0, 1) with the standard deviation at which the scheduler starts; flow matching has no such number."""
    return noise * getattr(scheduler, "init_noise_sigma", 1.0)


def scale_input(scheduler: Any, x: Tensor, t: Tensor) -> Tensor:
    """The sample as the network takes it; schedulers of flow matching scale nothing and have no such method."""
    return scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x


def add_noise(scheduler: Any, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The forward process at one time step for all, as the scheduler's family defines it."""
    times = t.reshape(1).expand(len(noise))
    if hasattr(scheduler, "scale_noise"):  # of flow matching; its arguments have another order
        return scheduler.scale_noise(x, times, noise)
    if is_flow(scheduler):
        part = t / scheduler.config.num_train_timesteps
        return (1 - part) * x + part * noise
    return scheduler.add_noise(x, noise, times)


# ------------------------------------------------------------ the deterministic sampler and its inverse


def sample_ode(
    unet: Any, scheduler: Any, x: Tensor, conditioning: Conditioning | None, num_inference_steps: int
) -> Tensor:
    """Samples of the deterministic sampler from noise x: DDIM without clipping, or Euler's method for a flow."""
    run = deterministic_scheduler(scheduler, num_inference_steps, x.device)
    for i, t in enumerate(run.timesteps):
        output = predict(unet, x, t, conditioning, target=step_end(unet, run, run.timesteps, i))
        x = run.step(output, t, x).prev_sample
    return x


def invert_ode(
    unet: Any,
    scheduler: Any,
    x: Tensor,
    conditioning: Conditioning | None,
    num_inference_steps: int,
    refinements: int,
) -> Tensor:
    """DDIM inversion: the noise (B, C, H, W) from which `sample_ode` makes x, by the same steps backwards.

    Each step is implicit and is solved by `refinements` evaluations of the network (Pan et al., 2023, 2309.04907).
    """
    run = deterministic_scheduler(scheduler, num_inference_steps, x.device)
    flow = is_flow(run)
    for i in reversed(range(len(run.timesteps))):
        t = run.timesteps[i]
        start = at = x
        end = step_end(unet, run, run.timesteps, i)
        for _ in range(refinements):
            output = predict(unet, at, t, conditioning, target=end)
            if flow:
                at = start + (run.sigmas[i] - run.sigmas[i + 1]) * output
            else:
                at = run.inverse_step(output, t, start, at=at)
        x = at
    return x


def deterministic_scheduler(scheduler: Any, num_inference_steps: int, device: torch.device) -> Any:
    """DDIM over the same noise schedule, without clipping, which could not be undone; or Euler's method of a flow."""
    check_steps(scheduler, num_inference_steps)
    run: Any
    if is_flow(scheduler):
        config = scheduler.config
        shift = config.get("shift", config.get("flow_shift", 1.0))
        run = FlowMatchEulerDiscreteScheduler(num_train_timesteps=config.num_train_timesteps, shift=shift)
    else:
        run = noise_schedule(scheduler, DDIMScheduler, clip_sample=False, thresholding=False)
    run.set_timesteps(num_inference_steps, device=device, **_equal_steps(run, num_inference_steps))
    return run


def deterministic_step(run: Any, i: int, output: Tensor, x: Tensor) -> Tensor:
    """The i-th step of a `deterministic_scheduler`, which may be asked for in any order."""
    if is_flow(run):
        return x + (run.sigmas[i + 1] - run.sigmas[i]).to(x) * output
    return run.step(output, run.timesteps[i], x).prev_sample


def noise_schedule(scheduler: Any, kind: Any, **changes: Any) -> Any:
    """A scheduler of `kind` over the betas of another one.

    Raises:
        UsageError: it has none, such as one of flow matching or of EDM.
    """
    if is_flow(scheduler) or "beta_schedule" not in scheduler.config:
        raise UsageError(
            f"scheduler must have a schedule of betas for this; a {type(scheduler).__name__} has none. Set "
            "pipe.scheduler to a DDIMScheduler with the settings that the network was trained with."
        )
    return kind.from_config(scheduler.config, **changes)
