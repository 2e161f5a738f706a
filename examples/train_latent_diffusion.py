"""Train diffusion or flow matching in the latents of an autoencoder, on images: yours, the Hub's or embedded ones.

    accelerate launch examples/train_autoencoder_kl.py --dataset_name emoji --output_dir outputs/emoji-kl
    accelerate launch examples/train_latent_diffusion.py --dataset_name emoji --autoencoder outputs/emoji-kl \\
        --output_dir outputs/emoji-latent

The latents are computed once and kept. A run that was killed goes on when the same command is started again. The folder
it leaves is a pipeline that holds the autoencoder too; the score is of decoded images.
"""

from dataclasses import dataclass, field
from functools import partial

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from latentia import DDIMScheduler, DDPMScheduler, LatentDiffusionPipeline, UNet2D
from latentia.data import cached_latents
from latentia.errors import UsageError, did_you_mean
from latentia.losses.diffusion import diffusion_loss, flow_matching_loss
from latentia.pipelines.latents import fingerprint, load_autoencoder, pictures, posterior
from latentia.run import adamw, finish, fit, load_data, plan, run_script, start
from latentia.training.arguments import (
    DataArguments,
    EMAArguments,
    EvaluationArguments,
    HubArguments,
    OptimizationArguments,
    OutputArguments,
)
from latentia.training.ema import EMA
from latentia.training.loop import Phase, learning_rate_schedule
from latentia.watch import Watch, sampler

PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow")


@dataclass(frozen=True)
class LatentArguments:
    """The autoencoder, whose weights do not change. A run is known by them, not by where they lie."""

    autoencoder: str | None = None
    """Folder or Hub id of a pipeline that holds one, such as a run of train_autoencoder_kl.py; or its own folder."""
    latents_file: str | None = None
    """Where its latents of the images are, or are put; not given: in the cache."""


@dataclass(frozen=True)
class ModelArguments:
    """The network over the latents, UNet2D."""

    block_out_channels: tuple[int, ...] = (64, 128)
    """Channels of each level from fine to coarse."""
    layers_per_block: int = 1
    """Residual blocks of each level."""
    attention_head_dim: int = 32
    """Channels of an attention head; must divide the channels of the coarsest level."""
    dropout: float = 0.0
    """Dropout rate."""
    class_conditional: bool = False
    """Learn from the labels too, so that classes can be asked for."""


@dataclass(frozen=True)
class DiffusionArguments:
    """The noise and the objective."""

    num_train_timesteps: int = 1000
    """Length of the noising chain; of flow matching, the unit of time."""
    beta_schedule: str = "squaredcos_cap_v2"
    """linear, scaled_linear or squaredcos_cap_v2 (cosine); flow matching has none."""
    prediction_type: str = "v_prediction"
    """What the network predicts: epsilon, v_prediction, sample, or flow (matching)."""
    time_sampling: str = "logit_normal"
    """Density of training times: uniform or logit_normal."""
    time_loc: float = 0.0
    """Centre of the logit-normal density; lower means less noise."""
    time_scale: float = 1.0
    """Width of the logit-normal density."""
    loss_weighting: str = "none"
    """none or min_snr; flow matching has none."""
    snr_gamma: float = 5.0
    """Cap of min_snr."""
    class_dropout: float = 0.1
    """Share of labels that are hidden, for classifier-free guidance."""


@dataclass(frozen=True)
class Arguments:
    data: DataArguments = field(default_factory=DataArguments)
    latent: LatentArguments = field(default_factory=LatentArguments)
    model: ModelArguments = field(default_factory=ModelArguments)
    diffusion: DiffusionArguments = field(default_factory=DiffusionArguments)
    optimization: OptimizationArguments = field(default_factory=OptimizationArguments)
    ema: EMAArguments = field(default_factory=EMAArguments)
    evaluation: EvaluationArguments = field(default_factory=EvaluationArguments)
    output: OutputArguments = field(default_factory=OutputArguments)
    hub: HubArguments = field(default_factory=HubArguments)


def check_objective(chosen: DiffusionArguments) -> None:
    """Before anything is computed: a known objective, and no weighting that it does not have."""
    if chosen.prediction_type not in PREDICTIONS:
        near = did_you_mean(chosen.prediction_type, PREDICTIONS)
        raise UsageError(f'--prediction_type must be one of {PREDICTIONS}; got "{chosen.prediction_type}".{near}')
    if chosen.prediction_type == "flow" and chosen.loss_weighting != "none":
        raise UsageError(
            f"--loss_weighting must be none with --prediction_type flow; got {chosen.loss_weighting}. "
            "Where the effort lies is said by --time_sampling, --time_loc and --time_scale."
        )


def main(args: Arguments) -> int:
    accelerator = start(args)
    data = load_data(args.data)
    options, conditional = args.optimization, args.model.class_conditional
    if conditional and data.label_names is None:
        raise UsageError("--class_conditional needs labels, and this data set has none. Name them with --label_column.")
    check_objective(args.diffusion)
    if args.latent.autoencoder is None:
        raise UsageError("--autoencoder must name a trained one; examples/train_autoencoder_kl.py trains it.")

    vae = load_autoencoder(args.latent.autoencoder).requires_grad_(False).to(accelerator.device)
    latents = cached_latents(
        data,
        partial(posterior, vae),
        fingerprint(vae),
        file=args.latent.latents_file,
        cache_dir=args.data.cache_dir,
    )
    again = tuple(pictures(vae, latents.mean[:1]).shape[1:])
    if again != tuple(data.shape):
        raise UsageError(
            f"--resolution must make images that the autoencoder gives back in their size; got {tuple(data.shape)}, "
            f"which come back as {again}. Take the resolution that it was trained with."
        )
    std = float(latents.batch(0, min(len(latents), 1000))["images"].std())
    hint = "" if 0.5 < std < 2 else "; it should be near 1: measure the scaling with AutoencoderKLPipeline.calibrate"
    accelerator.print(f"Latents of shape {latents.shape}, standard deviation {std:.3f}{hint}")

    torch.manual_seed(options.seed)
    unet = UNet2D(
        sample_size=latents.shape[1:],
        in_channels=latents.shape[0],
        block_out_channels=args.model.block_out_channels,
        layers_per_block=args.model.layers_per_block,
        attention_head_dim=args.model.attention_head_dim,
        dropout=args.model.dropout,
        num_class_embeds=len(data.label_names) if conditional else None,
    ).to(memory_format=torch.channels_last)
    flow = args.diffusion.prediction_type == "flow"
    noise = {
        "num_train_timesteps": args.diffusion.num_train_timesteps,
        "beta_schedule": args.diffusion.beta_schedule,
        "prediction_type": args.diffusion.prediction_type,
        "timestep_spacing": "trailing",
        "clip_sample": False,
    }
    scheduler = None if flow else DDPMScheduler(**noise).to(accelerator.device)
    steps = plan(accelerator, args, latents, unet)

    ema = EMA(unet.to(accelerator.device), args.ema.ema_decay, args.ema.ema_warmup) if args.ema.use_ema else None
    if options.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if options.compile:
        unet.compile()
    network, optimizer = accelerator.prepare(unet, adamw(accelerator, args, unet.parameters()))

    def loss(batch, draw):
        if not conditional:
            batch = {"images": batch["images"]}
        chosen = args.diffusion
        times = {"time_sampling": chosen.time_sampling, "time_loc": chosen.time_loc, "time_scale": chosen.time_scale}
        common = {**times, "class_dropout": chosen.class_dropout}
        if flow:
            return flow_matching_loss(network, batch, draw, num_train_timesteps=chosen.num_train_timesteps, **common)
        weights = {"weighting": chosen.loss_weighting, "snr_gamma": chosen.snr_gamma}
        return diffusion_loss(network, scheduler, batch, draw, **common, **weights)

    phase = Phase(
        name="unet",
        loss=loss,
        trains=network,
        optimizer=optimizer,
        learning_rate=learning_rate_schedule(options.lr_scheduler, options.lr_warmup_steps, steps),
        max_grad_norm=options.max_grad_norm,
        ema=ema,
    )

    def pipeline(weights) -> LatentDiffusionPipeline:
        names = list(data.label_names) if conditional else None
        steps = args.diffusion.num_train_timesteps
        sampling = FlowMatchEulerDiscreteScheduler(steps) if flow else DDIMScheduler(**noise)
        return LatentDiffusionPipeline(vae, weights, sampling, label_names=names)

    made_by = partial(sampler, pipeline, num_inference_steps=args.evaluation.num_inference_steps)
    final = ema.module if ema is not None else unet
    samplers = {"ema": made_by(final)} | ({"raw": made_by(unet)} if ema is not None else {})
    watch = Watch(args, data, samplers)
    identity = (args.model, args.diffusion, args.optimization, args.ema)
    result = fit(accelerator, args, [phase], latents, steps, identity=identity, hooks=watch.hooks())
    return finish(
        accelerator,
        args,
        result,
        pipeline(final),
        watch,
        family="latent_diffusion",
        pipeline_tag="unconditional-image-generation",
    )


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
