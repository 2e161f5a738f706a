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

from latentia import LatentDiffusionPipeline, UNet2D
from latentia.errors import UsageError
from latentia.runs.arguments import (
    DataArguments,
    EMAArguments,
    EvaluationArguments,
    HubArguments,
    OptimizationArguments,
    OutputArguments,
)
from latentia.runs.diffusion import (
    DiffusionArguments,
    LatentArguments,
    check_objective,
    latents_of,
    objective,
    schedulers,
)
from latentia.runs.run import adamw, finish, fit, load_data, plan, run_script, start
from latentia.runs.validation import Validation, sampler
from latentia.training.ema import EMA
from latentia.training.loop import Phase, learning_rate_schedule


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


def main(args: Arguments) -> int:
    accelerator = start(args)
    data = load_data(args.data)
    options, conditional = args.optimization, args.model.class_conditional
    if conditional and data.label_names is None:
        raise UsageError("--class_conditional needs labels, and this data set has none. Name them with --label_column.")
    check_objective(args.diffusion)
    vae, latents = latents_of(accelerator, args.latent, data, args.data.cache_dir)

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
    noise, sampling = schedulers(args.diffusion, accelerator.device)
    steps = plan(accelerator, args, latents, unet)

    ema = EMA(unet.to(accelerator.device), args.ema.ema_decay, args.ema.ema_warmup) if args.ema.use_ema else None
    if options.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if options.compile:
        unet.compile()
    network, optimizer = accelerator.prepare(unet, adamw(accelerator, args, unet.parameters()))

    told = objective(network, noise, args.diffusion, args.model.class_dropout)

    def loss(batch, rng):
        return told({key: batch[key] for key in ("x", *["labels"] * conditional)}, rng)

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
        return LatentDiffusionPipeline(vae, weights, sampling, label_names=names)

    made_by = partial(sampler, pipeline, num_inference_steps=args.evaluation.num_inference_steps)
    final = ema.module if ema is not None else unet
    samplers = {"ema": made_by(final)} | ({"raw": made_by(unet)} if ema is not None else {})
    validation = Validation(args, data, samplers)
    identity = (args.model, args.diffusion, args.optimization, args.ema)
    result = fit(accelerator, args, [phase], latents, steps, identity=identity, hooks=validation.hooks())
    return finish(
        accelerator,
        args,
        result,
        pipeline(final),
        validation,
        family="latent_diffusion",
        pipeline_tag="unconditional-image-generation",
    )


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
