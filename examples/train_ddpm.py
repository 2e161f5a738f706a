"""Train a diffusion model on images: yours, the Hub's or the embedded digits and emoji.

    accelerate launch examples/train_ddpm.py --dataset_name digits --output_dir outputs/digits

A run that was killed goes on when the same command is started again. The folder it leaves is a pipeline:
`latentia.DiffusionPipeline.from_pretrained("outputs/digits")`.
"""

from dataclasses import dataclass, field
from functools import partial

import torch

from latentia import DDIMScheduler, DDPMScheduler, UnconditionalDiffusionPipeline, UNet2D
from latentia.errors import UsageError
from latentia.losses.diffusion import diffusion_loss
from latentia.runs.arguments import (
    DataArguments,
    EMAArguments,
    EvaluationArguments,
    HubArguments,
    OptimizationArguments,
    OutputArguments,
)
from latentia.runs.run import adamw, finish, fit, load_data, plan, run_script, start
from latentia.runs.validation import Validation, sampler
from latentia.training.ema import EMA
from latentia.training.loop import Phase, learning_rate_schedule


@dataclass(frozen=True)
class ModelArguments:
    """The network, UNet2D."""

    block_out_channels: tuple[int, ...] = (64, 128)
    """Channels of each level from fine to coarse."""
    patch_size: int = 1
    """Side of the patches that become channels first; 2 quarters the work."""
    layers_per_block: int = 1
    """Residual blocks of each level."""
    attention_head_dim: int = 32
    """Channels of an attention head; must divide the channels of the coarsest level."""
    dropout: float = 0.0
    """Dropout rate."""
    class_conditional: bool = False
    """Learn from the labels too, so that classes can be asked for."""
    learned_variance: bool = False
    """Learn the variances too, for a better likelihood; best with --time_sampling uniform."""


@dataclass(frozen=True)
class DiffusionArguments:
    """The noise and the objective."""

    num_train_timesteps: int = 1000
    """Length of the noising chain."""
    beta_schedule: str = "squaredcos_cap_v2"
    """linear, scaled_linear or squaredcos_cap_v2 (cosine)."""
    prediction_type: str = "v_prediction"
    """What the network predicts: epsilon, v_prediction or sample."""
    time_sampling: str = "logit_normal"
    """Density of training times: uniform or logit_normal."""
    time_loc: float = 0.0
    """Centre of the logit-normal density; lower means less noise."""
    time_scale: float = 1.0
    """Width of the logit-normal density."""
    loss_weighting: str = "none"
    """none or min_snr."""
    snr_gamma: float = 5.0
    """Cap of min_snr."""
    class_dropout: float = 0.1
    """Share of labels that are hidden, for classifier-free guidance."""


@dataclass(frozen=True)
class Arguments:
    data: DataArguments = field(default_factory=DataArguments)
    model: ModelArguments = field(default_factory=ModelArguments)
    diffusion: DiffusionArguments = field(default_factory=DiffusionArguments)
    optimization: OptimizationArguments = field(default_factory=OptimizationArguments)
    ema: EMAArguments = field(default_factory=EMAArguments)
    evaluation: EvaluationArguments = field(default_factory=EvaluationArguments)
    output: OutputArguments = field(default_factory=OutputArguments)
    hub: HubArguments = field(default_factory=HubArguments)


def main(args: Arguments) -> int:
    accelerator = start(args)
    data = load_data(args.data)
    options, conditional = args.optimization, args.model.class_conditional
    if conditional and data.label_names is None:
        raise UsageError("--class_conditional needs labels, and this data set has none. Name them with --label_column.")

    torch.manual_seed(options.seed)
    unet = UNet2D(
        sample_size=tuple(data.shape[1:]),
        in_channels=data.shape[0],
        out_channels=data.shape[0] * (2 if args.model.learned_variance else 1),
        block_out_channels=args.model.block_out_channels,
        patch_size=args.model.patch_size,
        layers_per_block=args.model.layers_per_block,
        attention_head_dim=args.model.attention_head_dim,
        dropout=args.model.dropout,
        num_class_embeds=len(data.label_names) if conditional else None,
    ).to(memory_format=torch.channels_last)
    noise = {
        "num_train_timesteps": args.diffusion.num_train_timesteps,
        "beta_schedule": args.diffusion.beta_schedule,
        "prediction_type": args.diffusion.prediction_type,
        "timestep_spacing": "trailing",
    }
    variance = "learned_range" if args.model.learned_variance else "fixed_small"
    scheduler = DDPMScheduler(**noise, variance_type=variance).to(accelerator.device)
    steps = plan(accelerator, args, data, unet)

    ema = EMA(unet.to(accelerator.device), args.ema.ema_decay, args.ema.ema_warmup) if args.ema.use_ema else None
    if options.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if options.compile:
        unet.compile()
    network, optimizer = accelerator.prepare(unet, adamw(accelerator, args, unet.parameters()))

    def loss(batch, rng):
        if not conditional:
            batch = {"x": batch["x"]}
        return diffusion_loss(
            network,
            scheduler,
            batch,
            rng,
            time_sampling=args.diffusion.time_sampling,
            time_loc=args.diffusion.time_loc,
            time_scale=args.diffusion.time_scale,
            weighting=args.diffusion.loss_weighting,
            snr_gamma=args.diffusion.snr_gamma,
            class_dropout=args.diffusion.class_dropout,
        )

    phase = Phase(
        name="unet",
        loss=loss,
        trains=network,
        optimizer=optimizer,
        learning_rate=learning_rate_schedule(options.lr_scheduler, options.lr_warmup_steps, steps),
        max_grad_norm=options.max_grad_norm,
        ema=ema,
    )

    def pipeline(weights) -> UnconditionalDiffusionPipeline:
        names = list(data.label_names) if conditional else None
        return UnconditionalDiffusionPipeline(weights, DDIMScheduler(**noise), label_names=names)

    made_by = partial(sampler, pipeline, num_inference_steps=args.evaluation.num_inference_steps)
    final = ema.module if ema is not None else unet
    samplers = {"ema": made_by(final)} | ({"raw": made_by(unet)} if ema is not None else {})
    validation = Validation(args, data, samplers)
    identity = (args.model, args.diffusion, args.optimization, args.ema)
    result = fit(accelerator, args, [phase], data, steps, identity=identity, hooks=validation.hooks())
    return finish(
        accelerator,
        args,
        result,
        pipeline(final),
        validation,
        family="diffusion",
        pipeline_tag="unconditional-image-generation",
    )


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
