"""Train a variational autoencoder on images: yours, the Hub's or the embedded digits and emoji.

    python examples/train_vae.py --dataset_name digits --output_dir outputs/vae-digits

A run that was killed goes on when the same command is started again. The folder it leaves is a pipeline:
`latentia.DiffusionPipeline.from_pretrained("outputs/vae-digits")`.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch

from latentia import VAE, VAEPipeline
from latentia.errors import UsageError
from latentia.losses.variational import elbo_loss, iwae_loss
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
    """The network, VAE."""

    latent_dim: tuple[int, ...] = (16,)
    """Dimensions of the code; several numbers: of each level, from the image upwards."""
    hidden_sizes: tuple[int, ...] = (400,)
    """Width of each dense layer on the way in; the way back mirrors it."""
    upper_hidden_sizes: tuple[int, ...] = (100,)
    """Width of each dense layer between a level of the code and the next, if there are several."""
    block_out_channels: tuple[int, ...] = ()
    """Channels of convolutional levels before them, each of which halves the image; none: a dense network."""
    activation: str = "silu"
    """relu, leaky_relu, elu, gelu, silu or tanh."""
    decoder: Literal["bernoulli", "gaussian", "discretized_logistic"] = "bernoulli"
    """Distribution of pixels: black or white, real, or one of 256 levels."""
    observation_std: float | None = None
    """Standard deviation of Gaussian pixels, in units of [-1, 1]; not given: learned."""
    class_conditional: bool = False
    """Tell encoder and decoder the labels, so that classes can be asked for."""


@dataclass(frozen=True)
class VariationalArguments:
    """The objective."""

    beta: float = 1.0
    """Weight of the KL."""
    free_bits: float = 0.0
    """Nats of each dimension that cost nothing."""
    capacity: float | None = None
    """Nats that the KL is held at, instead of beta."""
    capacity_weight: float = 10.0
    """Weight of the KL's distance to the capacity."""
    capacity_ramp: float = 0.5
    """Share of the run over which the capacity grows from 0."""
    importance_samples: int = 1
    """More than 1: the importance weighted bound with so many samples, instead of the ELBO."""
    gradient: Literal["standard", "doubly_reparameterised"] = "standard"
    """Estimator of the importance weighted bound's gradient."""


@dataclass(frozen=True)
class Arguments:
    data: DataArguments = field(default_factory=DataArguments)
    model: ModelArguments = field(default_factory=ModelArguments)
    variational: VariationalArguments = field(default_factory=VariationalArguments)
    optimization: OptimizationArguments = field(
        # A clipped gradient is a ratio to a norm, and this one grows with the number of pixels.
        default_factory=lambda: OptimizationArguments(learning_rate=1e-3, adam_weight_decay=0.0, max_grad_norm=200.0)
    )
    ema: EMAArguments = field(default_factory=EMAArguments)
    evaluation: EvaluationArguments = field(default_factory=EvaluationArguments)
    output: OutputArguments = field(default_factory=OutputArguments)
    hub: HubArguments = field(default_factory=HubArguments)


def check(args: Arguments, data) -> None:
    """What else would fail later, or go unnoticed."""
    chosen = args.variational
    if args.model.class_conditional and data.label_names is None:
        raise UsageError("--class_conditional needs labels, and this data set has none. Name them with --label_column.")
    if chosen.importance_samples > 1:
        others = {"beta": (chosen.beta, 1), "free_bits": (chosen.free_bits, 0), "capacity": (chosen.capacity, None)}
        for name, (value, default) in others.items():
            if value != default:
                raise UsageError(
                    f"--importance_samples {chosen.importance_samples} has no --{name}: the bound is of log p(x) "
                    f"itself. Got {value}; leave it out, or use --importance_samples 1."
                )
    if chosen.gradient != "standard" and (chosen.importance_samples == 1 or args.optimization.compile):
        raise UsageError(
            f"--gradient {chosen.gradient} needs --importance_samples of at least 2, and the gradient at the code "
            "itself, which --compile hides."
        )
    if not args.model.latent_dim:
        raise UsageError("--latent_dim must be one number, or one for each level; got none.")
    if not 0 <= chosen.capacity_ramp <= 1:
        raise UsageError(f"--capacity_ramp must be from 0 to 1; got {chosen.capacity_ramp}.")


def main(args: Arguments) -> int:
    accelerator = start(args)
    data = load_data(args.data)
    check(args, data)
    options, chosen, conditional = args.optimization, args.variational, args.model.class_conditional
    latent_dim, hidden_sizes = args.model.latent_dim, args.model.hidden_sizes
    several = len(latent_dim) > 1

    torch.manual_seed(options.seed)
    vae = VAE(
        sample_size=tuple(data.shape[1:]),
        in_channels=data.shape[0],
        latent_dim=latent_dim if several else latent_dim[0],
        hidden_sizes=(hidden_sizes, *[args.model.upper_hidden_sizes] * len(latent_dim[1:]))
        if several
        else hidden_sizes,
        block_out_channels=args.model.block_out_channels,
        activation=args.model.activation,
        decoder=args.model.decoder,
        observation_std=args.model.observation_std,
        num_class_embeds=len(data.label_names) if conditional else None,
    )
    steps = plan(accelerator, args, data, vae)

    ema = EMA(vae.to(accelerator.device), args.ema.ema_decay, args.ema.ema_warmup) if args.ema.use_ema else None
    if options.compile:
        vae.compile()
    global_batch = options.train_batch_size * options.gradient_accumulation_steps * accelerator.num_processes
    network, optimizer = accelerator.prepare(vae, adamw(accelerator, args, vae.parameters()))

    def loss(batch, rng):
        if chosen.importance_samples > 1:
            return iwae_loss(network, batch, rng, samples=chosen.importance_samples, gradient=chosen.gradient)
        capacity = chosen.capacity
        if capacity is not None and chosen.capacity_ramp > 0:
            capacity *= min(1.0, rng.position / (chosen.capacity_ramp * steps * global_batch))
        weights = {"beta": chosen.beta, "free_bits": chosen.free_bits, "capacity_weight": chosen.capacity_weight}
        return elbo_loss(network, batch, rng, capacity=capacity, **weights)

    phase = Phase(
        name="vae",
        loss=loss,
        trains=network,
        optimizer=optimizer,
        learning_rate=learning_rate_schedule(options.lr_scheduler, options.lr_warmup_steps, steps),
        max_grad_norm=options.max_grad_norm,
        ema=ema,
    )

    def pipeline(weights) -> VAEPipeline:
        return VAEPipeline(weights, label_names=list(data.label_names) if conditional else None)

    final = ema.module if ema is not None else vae
    samplers = {"ema": sampler(pipeline, final)} | ({"raw": sampler(pipeline, vae)} if ema is not None else {})
    validation = Validation(args, data, samplers)
    identity = (args.model, args.variational, args.optimization, args.ema)
    result = fit(accelerator, args, [phase], data, steps, identity=identity, hooks=validation.hooks())
    return finish(
        accelerator,
        args,
        result,
        pipeline(final),
        validation,
        family="vae",
        pipeline_tag="unconditional-image-generation",
    )


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
