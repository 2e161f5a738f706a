"""What `latentia generate` puts into a saved pipeline: another sampler, and a network that guides its own."""

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers

from latentia.commands.sources import load_pipeline
from latentia.errors import UsageError
from latentia.pipelines.diffusion import UnconditionalDiffusionPipeline
from latentia.pipelines.guidance import check_guide
from latentia.pipelines.optimizer import sample_by_optimizer
from latentia.pipelines.sampling import is_flow
from latentia.schedulers.ddim import DDIMScheduler
from latentia.schedulers.ddpm import DDPMScheduler

OPTIMIZER = "optimizer"
SAMPLERS = {
    "ddim": DDIMScheduler,
    "ddpm": DDPMScheduler,
    "dpm-solver++": diffusers.DPMSolverMultistepScheduler,
}


def choose_sampler(pipe: Any, sampler: str, given: Mapping[str, Any]) -> None:
    """Put another scheduler over the same noise in the place of the saved one.

    Args:
        pipe: the pipeline.
        sampler: "saved", "optimizer", which needs no scheduler of its own, or a key of `SAMPLERS`.
        given: options of the call, which the optimizer may not take.

    Raises:
        UsageError: a pipeline without a scheduler, of flow matching, or for the optimizer not over pixels.
    """
    if sampler == "saved":
        return
    scheduler = getattr(pipe, "scheduler", None)
    if scheduler is None or is_flow(scheduler):
        why = "has no scheduler" if scheduler is None else "was trained by flow matching"
        raise UsageError(f"sampler must be saved, as {type(pipe).__name__} {why}; got {sampler}.")
    if sampler == OPTIMIZER:
        if not isinstance(pipe, UnconditionalDiffusionPipeline):
            raise UsageError(f"sampler optimizer needs a pipeline of diffusion over pixels; got {type(pipe).__name__}.")
        for name in given:
            if name not in inspect.signature(sample_by_optimizer).parameters:
                raise UsageError(f"{name} must be left out with sampler optimizer, which does not take it.")
        return
    pipe.scheduler = SAMPLERS[sampler].from_config(scheduler.config)


def add_guide(pipe: Any, source: str, scale: float | None) -> None:
    """Give a pipeline the network of another one as its guide.

    Args:
        pipe: the pipeline.
        source: the other one, a folder or "user/name" on the Hub.
        scale: `autoguidance_scale` of the call.

    Raises:
        UsageError: a pipeline that takes no guide, a scale at which it is not called, or networks of different tasks.
    """
    if not hasattr(pipe, "guide"):
        raise UsageError(
            f"guide must be left out: {type(pipe).__name__} takes none; pipelines of ddpm and latent_diffusion do."
        )
    if scale in (None, 1):
        got = "none" if scale is None else "1, at which it is not called"
        raise UsageError(f"autoguidance_scale must be given with guide, such as 1.5; got {got}.")
    other = getattr(load_pipeline(source), "unet", None)
    if other is None:
        raise UsageError(f"guide must be a pipeline of diffusion or flow matching with a unet; {source} has none.")
    check_guide(pipe.unet, other, pipe.controlnet)
    pipe.register_modules(guide=other)
