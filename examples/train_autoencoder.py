"""Train an autoencoder on images: linear, stacked or convolutional, plain, denoising or sparse.

    accelerate launch examples/train_autoencoder.py --dataset_name digits --latent_dim 8 --output_dir outputs/digits-ae

At the end a Gaussian mixture is fitted to the codes, so that the pipeline it leaves samples too:
`latentia.DiffusionPipeline.from_pretrained("outputs/digits-ae")`. A run that was killed goes on when the same command
is started again.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from latentia import Autoencoder, AutoencoderPipeline, LatentMixture
from latentia.losses.reconstruction import autoencoder_loss
from latentia.models.autoencoder import outer_layers
from latentia.pipelines.autoencoder import in_chunks
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

FAMILY = {"family": "autoencoder", "pipeline_tag": "unconditional-image-generation"}


@dataclass(frozen=True)
class ModelArguments:
    """The network, Autoencoder. Without hidden_sizes and block_out_channels it is linear: PCA."""

    latent_dim: int = 32
    """Length of the code."""
    hidden_sizes: tuple[int, ...] = ()
    """Widths of the dense layers before the code; the decoder mirrors them."""
    block_out_channels: tuple[int, ...] = ()
    """Channels of the convolutional levels before these; each halves the image."""
    layers_per_block: int = 1
    """Convolutions of each level."""
    norm: str = "group"
    """Between convolutions: none, group or batch."""
    upsample: str = "transposed"
    """How the decoder doubles the image: transposed or resize."""
    activation: str = "silu"
    """Of the hidden layers: relu, silu, gelu, tanh, ..."""
    code_activation: str = "none"
    """Of the code: none, sigmoid (sparse codes), relu or tanh."""
    tie_weights: bool = False
    """The decoder's weights are the encoder's, transposed."""
    overcomplete: bool = False
    """Allow a code longer than the image."""


@dataclass(frozen=True)
class ObjectiveArguments:
    """What is minimised, and in which order."""

    reconstruction: str = "mse"
    """Squared (mse) or absolute (l1) differences, summed over pixels."""
    corruption: str = "none"
    """Of the input: none, gaussian or masking."""
    corruption_level: float = 0.0
    """Standard deviation (1 is half of the range), or share of masked pixels."""
    sparsity: str = "none"
    """Penalty on the code: none, l1, l2 or kl."""
    sparsity_weight: float = 0.0
    """Its weight, in units of squared error per image."""
    sparsity_target: float = 0.1
    """Mean activation that kl wants."""
    layerwise_steps: int = 0
    """Steps in which each dense layer is first trained alone, from the outermost; 0: all together from the start."""
    prior_components: int = 10
    """Gaussians of the mixture that is fitted to the codes."""
    prior_samples: int = 2000
    """Training images whose codes it is fitted to."""


@dataclass(frozen=True)
class Arguments:
    data: DataArguments = field(default_factory=DataArguments)
    model: ModelArguments = field(default_factory=ModelArguments)
    objective: ObjectiveArguments = field(default_factory=ObjectiveArguments)
    optimization: OptimizationArguments = field(default_factory=OptimizationArguments)
    ema: EMAArguments = field(default_factory=EMAArguments)
    evaluation: EvaluationArguments = field(default_factory=EvaluationArguments)
    output: OutputArguments = field(default_factory=OutputArguments)
    hub: HubArguments = field(default_factory=HubArguments)


def main(args: Arguments) -> int:
    accelerator = start(args)
    data = load_data(args.data)
    options, objective = args.optimization, args.objective

    torch.manual_seed(options.seed)
    autoencoder = Autoencoder(
        sample_size=tuple(data.shape[1:]),
        in_channels=data.shape[0],
        latent_dim=args.model.latent_dim,
        hidden_sizes=args.model.hidden_sizes,
        block_out_channels=args.model.block_out_channels or None,
        layers_per_block=args.model.layers_per_block,
        norm=args.model.norm,
        upsample=args.model.upsample,
        activation=args.model.activation,
        code_activation=args.model.code_activation,
        tie_weights=args.model.tie_weights,
        overcomplete=args.model.overcomplete,
    ).to(accelerator.device)
    steps = plan(accelerator, args, data, autoencoder)

    def phase(name: str, network, parameters, steps: int, ema: EMA | None, sparsity: str) -> Phase:
        network, optimizer = accelerator.prepare(network, adamw(accelerator, args, parameters))

        def loss(batch, rng):
            return autoencoder_loss(
                network,
                {"x": batch["x"]},
                rng,
                corruption=objective.corruption,
                corruption_level=objective.corruption_level,
                sparsity=sparsity,
                sparsity_weight=objective.sparsity_weight,
                sparsity_target=objective.sparsity_target,
                reconstruction=objective.reconstruction,
            )

        rate = learning_rate_schedule(options.lr_scheduler, min(options.lr_warmup_steps, steps), steps)
        return Phase(name, loss, network, optimizer, rate, max_grad_norm=options.max_grad_norm, ema=ema)

    def run(phase: Phase, folder: Path, steps: int, hooks=()):
        folder.mkdir(parents=True, exist_ok=True)
        identity = (args.model, args.objective, args.optimization, args.ema)
        return fit(accelerator, args, [phase], data, steps, identity=identity, hooks=hooks, folder=folder)

    def pipeline(weights) -> AutoencoderPipeline:
        """With a density of the codes that the weights give to training images."""
        images = data.batch(0, objective.prior_samples, seed=0, device=accelerator.device)["x"]
        with torch.no_grad():
            latents = in_chunks(weights.encode, images)
        prior = LatentMixture.fit(latents, objective.prior_components).to(weights.device)
        return AutoencoderPipeline(weights, prior=prior)

    # Greedy layer-wise training, if asked for: each layer and its mirror alone, those outside it fixed.
    folder = Path(args.output.output_dir)
    for depth in range(1, len(autoencoder.encoder) + 1) if objective.layerwise_steps else ():
        outer = outer_layers(autoencoder, depth).requires_grad_(False)
        inner = [*outer.encoder[-1].parameters(), *outer.decoder[0].parameters()]
        for parameter in inner:
            parameter.requires_grad_(True)
        sparsity = objective.sparsity if depth == len(autoencoder.encoder) else "none"
        alone = phase(f"layer-{depth}", outer, inner, objective.layerwise_steps, None, sparsity)
        result = run(alone, folder / f"layer-{depth}", objective.layerwise_steps)
        autoencoder.requires_grad_(True)
        if result.status == "interrupted":
            validation = Validation(args, data, {"ema": sampler(pipeline, autoencoder)})
            return finish(accelerator, args, result, pipeline(autoencoder), validation, **FAMILY)

    ema = EMA(autoencoder, args.ema.ema_decay, args.ema.ema_warmup) if args.ema.use_ema else None
    final = ema.module if ema is not None else autoencoder
    if options.compile:
        autoencoder.compile()
    pairs = reconstructor(AutoencoderPipeline, final, data)
    validation = Validation(args, data, {"ema": sampler(pipeline, final), "reconstruction": pairs})
    joint = phase("autoencoder", autoencoder, autoencoder.parameters(), steps, ema, objective.sparsity)
    result = run(joint, folder, steps, validation.hooks())
    return finish(accelerator, args, result, pipeline(final), validation, **FAMILY)


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
