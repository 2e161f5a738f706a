"""Train a VQ-VAE on images: yours, the Hub's or the embedded digits and emoji.

    accelerate launch examples/train_vqvae.py --dataset_name digits --output_dir outputs/digits-vqvae

A run that was killed goes on when the same command is started again. The folder it leaves is a pipeline:
`latentia.DiffusionPipeline.from_pretrained("outputs/digits-vqvae")`. Its prior takes the positions of the codes as
independent, which is a baseline; for good samples put an autoregressive network in its place.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch

from latentia import VQVAE, VQVAEPipeline
from latentia.errors import UsageError
from latentia.losses.quantisation import CodebookUpdate, vqvae_loss
from latentia.runs.arguments import (
    DataArguments,
    EMAArguments,
    EvaluationArguments,
    HubArguments,
    OptimizationArguments,
    OutputArguments,
)
from latentia.runs.run import adamw, finish, fit, load_data, plan, run_script, start
from latentia.runs.validation import Validation, reconstructor, sampler
from latentia.training.ema import EMA
from latentia.training.loop import Phase, learning_rate_schedule


@dataclass(frozen=True)
class ModelArguments:
    """The network, VQVAE."""

    block_out_channels: tuple[int, ...] = (64,)
    """Channels of each level from fine to coarse; each level halves the picture."""
    layers_per_block: int = 2
    """Convolutions of each level."""
    quantizer: Literal["vq", "fsq"] = "vq"
    """vq: a codebook; fsq: finite scalar quantisation, which has none to collapse."""
    codebook_size: int = 512
    """Rows of the codebook."""
    latent_channels: int = 16
    """Length of a row."""
    codebook_update: Literal["ema", "gradient"] = "ema"
    """ema: running means and restarts; gradient: the first paper's loss."""
    levels: tuple[int, ...] = ()
    """Levels of each channel with --quantizer fsq, such as 8 8 8."""
    upsample: Literal["transposed", "resize"] = "transposed"
    """How the decoder doubles the picture."""


@dataclass(frozen=True)
class CodebookArguments:
    """The objective and the codebook."""

    beta: float = 0.25
    """Weight of the commitment of the encoder to its codes."""
    codebook_decay: float = 0.99
    """Decay per step of the running means."""
    restart_below: float = 0.1
    """Restart rows used less than this share of the mean; 0: never."""
    prior_samples: int = 2000
    """Images whose codes the prior is fitted to."""


@dataclass(frozen=True)
class Arguments:
    data: DataArguments = field(default_factory=DataArguments)
    model: ModelArguments = field(default_factory=ModelArguments)
    codebook: CodebookArguments = field(default_factory=CodebookArguments)
    optimization: OptimizationArguments = field(default_factory=OptimizationArguments)
    ema: EMAArguments = field(default_factory=EMAArguments)
    evaluation: EvaluationArguments = field(default_factory=EvaluationArguments)
    output: OutputArguments = field(default_factory=OutputArguments)
    hub: HubArguments = field(default_factory=HubArguments)


def main(args: Arguments) -> int:
    accelerator = start(args)
    data = load_data(args.data)
    options, model = args.optimization, args.model
    if options.gradient_checkpointing:
        raise UsageError("--gradient_checkpointing must be left out: this network has no blocks that support it.")

    torch.manual_seed(options.seed)
    vqvae = VQVAE(
        sample_size=tuple(data.shape[1:]),
        in_channels=data.shape[0],
        block_out_channels=model.block_out_channels,
        layers_per_block=model.layers_per_block,
        quantizer=model.quantizer,
        codebook_size=model.codebook_size,
        latent_channels=model.latent_channels,
        codebook_update=model.codebook_update,
        levels=model.levels or None,
        upsample=model.upsample,
    )
    steps = plan(accelerator, args, data, vqvae)

    vqvae.to(accelerator.device)
    ema = EMA(vqvae, args.ema.ema_decay, args.ema.ema_warmup) if args.ema.use_ema else None
    learns_by_counting = model.quantizer == "vq" and model.codebook_update == "ema"
    update = (
        CodebookUpdate(vqvae, args.codebook.codebook_decay, args.codebook.restart_below) if learns_by_counting else None
    )
    if options.compile:
        vqvae.compile()
    network, optimizer = accelerator.prepare(vqvae, adamw(accelerator, args, vqvae.parameters()))

    def loss(batch, rng):
        return vqvae_loss(network, batch, rng, beta=args.codebook.beta, collect=update and update.collect)

    phases = [
        Phase(
            name="vqvae",
            loss=loss,
            trains=network,
            optimizer=optimizer,
            learning_rate=learning_rate_schedule(options.lr_scheduler, options.lr_warmup_steps, steps),
            max_grad_norm=options.max_grad_norm,
            ema=ema,
        )
    ]
    if update is not None:
        phases.append(Phase(name="codebook", loss=update, trains=network))

    def pipeline(weights) -> VQVAEPipeline:
        """With a prior over the codes that the weights give to training images."""
        weights.eval()
        pipe = VQVAEPipeline(weights)
        images = data.batch(0, args.codebook.prior_samples, seed=0, device=accelerator.device)["x"]
        pipe.register_modules(prior=pipe.fit_prior(images))
        return pipe

    final = ema.module if ema is not None else vqvae
    pairs = reconstructor(VQVAEPipeline, final, data)
    validation = Validation(args, data, {"ema": sampler(pipeline, final), "reconstruction": pairs})
    identity = (args.model, args.codebook, args.optimization, args.ema)
    result = fit(accelerator, args, phases, data, steps, identity=identity, hooks=validation.hooks())
    return finish(
        accelerator,
        args,
        result,
        pipeline(final),
        validation,
        family="vqvae",
        pipeline_tag="unconditional-image-generation",
    )


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
