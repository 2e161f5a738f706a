"""Train a variational autoencoder on images: yours, the Hub's or the embedded digits and emoji.

    python examples/train_vae.py --dataset_name digits --output_dir outputs/vae-digits

A run that was killed goes on when the same command is started again. The folder it leaves is a pipeline:
`latentia.DiffusionPipeline.from_pretrained("outputs/vae-digits")`.
"""

from dataclasses import dataclass
from typing import Literal

from latentia import VAE, VAEPipeline
from latentia.errors import Share, Size, UsageError, Weight
from latentia.losses.variational import elbo_loss, iwae_loss
from latentia.runs.arguments import (
    ClassArguments,
    NetworkArguments,
    OptimizationArguments,
    RunArguments,
    network_arguments,
)
from latentia.runs.command_line import run_script
from latentia.runs.run import Run


@dataclass(frozen=True)
class WidthArguments:
    """Widths of the dense layers."""

    hidden_sizes: tuple[Size, ...] = (400,)
    """Width of each dense layer of the encoder; the decoder mirrors them."""
    upper_hidden_sizes: tuple[Size, ...] = (100,)
    """Width of each dense layer between two stochastic layers, if there are several."""


@dataclass(frozen=True)
class VariationalArguments:
    """The objective."""

    beta: Weight = 1.0
    """Weight of the KL."""
    free_bits: Weight = 0.0
    """Nats of each dimension that cost nothing."""
    capacity: Weight | None = None
    """Nats that the KL is held at, instead of beta."""
    capacity_weight: Weight = 10.0
    """Weight of the KL's distance to the capacity."""
    capacity_ramp: Share = 0.5
    """Share of the run over which the capacity grows from 0."""
    importance_samples: Size = 1
    """More than 1: the importance weighted bound with so many samples, instead of the ELBO."""
    gradient: Literal["standard", "doubly_reparameterised"] = "standard"
    """Estimator of the importance weighted bound's gradient."""


@dataclass(frozen=True)
class Arguments(RunArguments):
    model: NetworkArguments = network_arguments(
        VAE, "latent_dim block_out_channels activation likelihood observation_std", latent_dim=16
    )
    width: WidthArguments = WidthArguments()
    condition: ClassArguments = ClassArguments()
    variational: VariationalArguments = VariationalArguments()
    # A clipped gradient is a ratio to a norm, and this one grows with the number of pixels.
    optimization: OptimizationArguments = OptimizationArguments(
        learning_rate=1e-3, adam_weight_decay=0.0, max_grad_norm=200.0
    )


def check(args: Arguments) -> None:
    """Refuse flags that would fail later, or be ignored."""
    chosen = args.variational
    if chosen.importance_samples > 1:
        unused = {"beta": (chosen.beta, 1), "free_bits": (chosen.free_bits, 0), "capacity": (chosen.capacity, None)}
        for name, (value, default) in unused.items():
            if value != default:
                raise UsageError(
                    f"--importance_samples {chosen.importance_samples} has no --{name}: the bound is of log p(x) "
                    f"itself. Got {value}; leave it out, or use --importance_samples 1."
                )
    if chosen.gradient != "standard" and (chosen.importance_samples == 1 or args.optimization.compile):
        raise UsageError(
            f"--gradient {chosen.gradient} needs --importance_samples of at least 2, and the gradient at the latents "
            "themselves, which --compile hides."
        )
    if args.model.likelihood == "none":
        raise UsageError("--likelihood must be a density of pixels; got none, which a VAE-GAN has: see train_vae_gan.")
    if args.model.latent_dim == ():
        raise UsageError("--latent_dim must be one number, or one for each stochastic layer; got none.")


def main(args: Arguments) -> int:
    check(args)
    run = Run(args, family="vae")
    chosen, widths = args.variational, args.width.hidden_sizes
    if isinstance(args.model.latent_dim, tuple):  # several stochastic layers
        widths = (widths, *[args.width.upper_hidden_sizes] * len(args.model.latent_dim[1:]))
    vae = run.prepare("vae", VAE(**run.image, **args.model, hidden_sizes=widths, num_class_embeds=run.num_classes))

    def loss(batch, rng):
        if chosen.importance_samples > 1:
            return iwae_loss(vae.network, batch, rng, samples=chosen.importance_samples, gradient=chosen.gradient)
        capacity = chosen.capacity
        if capacity is not None and chosen.capacity_ramp > 0:
            capacity *= min(1.0, rng.position / (chosen.capacity_ramp * run.steps * run.global_batch))
        weights = {"beta": chosen.beta, "free_bits": chosen.free_bits, "capacity_weight": chosen.capacity_weight}
        return elbo_loss(vae.network, batch, rng, capacity=capacity, **weights)

    def pipeline(weights) -> VAEPipeline:
        return VAEPipeline(weights, label_names=run.label_names)

    return run.train([vae.phase(loss)], pipeline)


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
