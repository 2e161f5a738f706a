"""What the scripts that train a denoising network share: their flags, the latents, noise and objective."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from latentia.data import LatentData, PairedImages, cached_latents
from latentia.errors import Finite, Positive, Size, UsageError, did_you_mean
from latentia.losses.diffusion import diffusion_loss
from latentia.losses.flow_maps import mean_flow_loss, shortcut_loss
from latentia.losses.flow_matching import flow_matching_loss
from latentia.models.unet import UNet2D
from latentia.pipelines.latents import decode_latents, fingerprint, load_autoencoder, posterior
from latentia.runs.arguments import EvaluationArguments
from latentia.runs.run import Run
from latentia.schedulers.ddim import DDIMScheduler
from latentia.schedulers.ddpm import DDPMScheduler

PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow")
FEW_STEPS: dict[str, Callable[..., dict[str, Tensor]]] = {"mean_flow": mean_flow_loss, "shortcut": shortcut_loss}


def flow_map_settings(method: str | None) -> dict[str, bool]:
    """What the network of a few-step model is built with: a name of `FEW_STEPS`, or None for any other model.

    Example:
        >>> flow_map_settings("shortcut")
        {'target_time': True, 'smooth_time': False}
    """
    return {"target_time": method is not None, "smooth_time": method == "mean_flow"}


@dataclass(frozen=True)
class DiffusionEvaluationArguments(EvaluationArguments):
    """Images and scores on the way."""

    num_inference_steps: Size | None = None
    """Network evaluations per sample; not given: 25, and 4 of a network that was trained for few steps."""


@dataclass(frozen=True)
class LatentArguments:
    """The autoencoder, whose weights do not change. A run is known by them, not by where they lie."""

    identifies: ClassVar[bool] = False
    autoencoder: str | None = None
    """Folder or Hub id of a pipeline that holds one, such as a run of train_autoencoder_kl.py; or its own folder."""
    latents_file: str | None = None
    """Where its latents of the images are, or are put; not given: in the cache."""


@dataclass(frozen=True)
class DiffusionArguments:
    """The noise and the objective."""

    num_train_timesteps: Size = 1000
    """Length of the noising chain; of flow matching, the unit of time."""
    beta_schedule: str = "squaredcos_cap_v2"
    """linear, scaled_linear, squaredcos_cap_v2 (cosine), sigmoid or laplace; flow matching has none."""
    prediction_type: str = "v_prediction"
    """What the network predicts: epsilon, v_prediction, sample, or flow (matching)."""
    time_sampling: str = "logit_normal"
    """Density of training times: uniform or logit_normal."""
    time_loc: Finite = 0.0
    """Centre of the logit-normal density; lower means less noise."""
    time_scale: Positive = 1.0
    """Width of the logit-normal density."""
    loss_weighting: str = "none"
    """none or min_snr; flow matching has none."""
    snr_gamma: Positive = 5.0
    """Cap of min_snr."""
    coupling_size: Size | None = None
    """Of flow matching: couple noise to so many images by optimal transport; it must divide train_batch_size."""
    few_steps: Literal["mean_flow", "shortcut"] | None = None
    """Of flow matching: train a network that samples in 1 to 8 steps, as a mean flow or a shortcut model."""


def check_objective(chosen: DiffusionArguments, batch_size: int) -> None:
    """Before anything is computed: a known objective, and no weighting or coupling that it does not have.

    Args:
        chosen: the flags.
        batch_size: images of a micro-batch.
    """
    if chosen.prediction_type not in PREDICTIONS:
        near = did_you_mean(chosen.prediction_type, PREDICTIONS)
        raise UsageError(f'prediction_type must be one of {PREDICTIONS}; got "{chosen.prediction_type}".{near}')
    if chosen.prediction_type == "flow" and chosen.loss_weighting != "none":
        raise UsageError(
            f"loss_weighting must be none with prediction_type flow; got {chosen.loss_weighting}. "
            "Where the effort lies is said by time_sampling, time_loc and time_scale."
        )
    if chosen.few_steps is not None and chosen.prediction_type != "flow":
        raise UsageError(
            f"few_steps must be left out with prediction_type {chosen.prediction_type}; got {chosen.few_steps}. Mean "
            "flows and shortcut models are kinds of flow matching: take prediction_type flow."
        )
    if chosen.coupling_size is not None:
        if chosen.prediction_type != "flow":
            raise UsageError(
                f"coupling_size must be left out with prediction_type {chosen.prediction_type}; got "
                f"{chosen.coupling_size}. Only flow matching couples noise and images: take prediction_type flow."
            )
        if batch_size % chosen.coupling_size:
            raise UsageError(
                f"coupling_size must divide train_batch_size={batch_size}, so that the coupling does not depend on how "
                f"a step is split over processes and micro-batches; got {chosen.coupling_size}."
            )


def evaluation_steps(chosen: DiffusionArguments, evaluation: DiffusionEvaluationArguments) -> int:
    """Network evaluations per sample of the images and scores on the way, and of the card's example."""
    return evaluation.num_inference_steps or (25 if chosen.few_steps is None else 4)


def latents_of(run: Run, chosen: LatentArguments) -> tuple[Any, LatentData]:
    """The autoencoder of `--autoencoder`, frozen, and the latents of the images, computed once.

    Raises:
        UsageError: none was named, or images that do not come back in their size.
    """
    if chosen.autoencoder is None:
        raise UsageError("autoencoder must name a trained one: latentia train autoencoder_kl")
    vae = load_autoencoder(chosen.autoencoder).requires_grad_(False).to(run.device)
    latents = cached_latents(
        run.data.targets if isinstance(run.data, PairedImages) else run.data,
        partial(posterior, vae),
        fingerprint(vae),
        file=chosen.latents_file,
        cache_dir=run.args.data.cache_dir,
    )
    again = tuple(decode_latents(vae, latents.mean[:1]).shape[1:])
    if again != tuple(run.data.shape):
        raise UsageError(
            f"resolution must make images that the autoencoder gives back in their size; got "
            f"{tuple(run.data.shape)}, which come back as {again}. Take the resolution that it was trained with."
        )
    std = float(latents.batch(0, min(len(latents), 1000))["x"].std())
    hint = "" if 0.5 < std < 2 else "; it should be near 1: measure the scaling with AutoencoderKLPipeline.calibrate"
    run.accelerator.print(f"Latents of shape {latents.shape}, standard deviation {std:.3f}{hint}")
    return vae, latents


def schedulers(
    chosen: DiffusionArguments, device: torch.device, clip_sample: bool = False, variance_type: str = "fixed_small"
) -> tuple[DDPMScheduler | None, Any]:
    """The noise of training, `None` for flow matching, and the scheduler that samples. Pixels may be clipped."""
    if chosen.prediction_type == "flow":
        return None, FlowMatchEulerDiscreteScheduler(chosen.num_train_timesteps)
    noise = {
        "num_train_timesteps": chosen.num_train_timesteps,
        "beta_schedule": chosen.beta_schedule,
        "prediction_type": chosen.prediction_type,
        "timestep_spacing": "trailing",
        "clip_sample": clip_sample,
    }
    return DDPMScheduler(**noise, variance_type=variance_type).to(device), DDIMScheduler(**noise)


def objective(
    network: UNet2D,
    noise: DDPMScheduler | None,
    chosen: DiffusionArguments,
    dropout: float,
    empty_text: tuple[Tensor, Tensor] | None = None,
) -> Callable[[dict[str, Any], Any], dict[str, Tensor]]:
    """The loss of a phase: `diffusion_loss`, or one of flow matching where there is no noise schedule."""
    times = {"time_sampling": chosen.time_sampling, "time_loc": chosen.time_loc, "time_scale": chosen.time_scale}
    common: dict[str, Any] = {**times, "class_dropout": dropout, "empty_text": empty_text}
    if noise is None:
        flow: dict[str, Any] = {
            "num_train_timesteps": chosen.num_train_timesteps,
            "coupling_size": chosen.coupling_size,
        }
        loss = flow_matching_loss if chosen.few_steps is None else FEW_STEPS[chosen.few_steps]
        return partial(loss, network, **flow, **common)
    weights: dict[str, Any] = {"weighting": chosen.loss_weighting, "snr_gamma": chosen.snr_gamma}
    return partial(diffusion_loss, network, noise, **common, **weights)
