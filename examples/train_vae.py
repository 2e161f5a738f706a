"""Train a variational autoencoder on images: yours, the Hub's or the embedded digits and emoji.

    python examples/train_vae.py --dataset_name digits --output_dir outputs/vae-digits

A run that was killed goes on when the same command is started again. The folder it leaves is a pipeline:
`latentia.DiffusionPipeline.from_pretrained("outputs/vae-digits")`.
"""

from dataclasses import dataclass, fields
from functools import partial
from typing import Annotated, Any, Literal

import tyro

from latentia import VAE, MLPDiscriminator, VAEPipeline
from latentia.errors import Positive, Range, Share, Size, UsageError, Weight
from latentia.losses.vae_objectives import OBJECTIVES, Objective, VAEObjective, describe_objectives
from latentia.runs.arguments import (
    ClassArguments,
    NetworkArguments,
    OptimizationArguments,
    RunArguments,
    check_unused,
    network_arguments,
)
from latentia.runs.command_line import run_script
from latentia.runs.costs import Reconstruction, reconstruction_cost
from latentia.runs.run import Run


@dataclass(frozen=True)
class WidthArguments:
    """Widths of the dense layers."""

    hidden_sizes: tuple[Size, ...] = (400,)
    """Width of each dense layer of the encoder; the decoder mirrors them."""
    upper_hidden_sizes: tuple[Size, ...] = (100,)
    """Width of each dense layer between two stochastic layers, if there are several."""


FLAGS = {"samples": "importance_samples", "groups": "importance_groups", "sampling": "tc_sampling"}  # option -> flag


@dataclass(frozen=True)
class VariationalArguments:
    """The objective. A flag that it does not use is refused."""

    objective: Annotated[Objective | None, tyro.conf.arg(help=f"What is minimised:\n{describe_objectives()}")] = None
    """What is minimised; not given: elbo, or iwae if importance_samples is above 1."""
    reconstruction: Reconstruction = "likelihood"
    """What a reconstruction costs: -log p(x|z), log cosh, multi-scale SSIM, or layers of a classifier."""
    beta: Weight = 1.0
    """Weight of the KL."""
    kl_warmup: Share = 0.0
    """Share of the run over which beta rises from 0."""
    free_bits: Weight = 0.0
    """Nats of each dimension that cost nothing."""
    capacity: Weight | None = None
    """Nats that the KL is held at, instead of beta."""
    capacity_weight: Weight = 10.0
    """Weight of the KL's distance to the capacity."""
    category_capacity: Weight | None = None
    """Nats that the KL of categorical latents is held at, beside the capacity of the continuous ones."""
    capacity_ramp: Share = 0.5
    """Share of the run over which the capacity grows from 0."""
    temperature: Positive = 1.0
    """Temperature of relaxed categories at the start."""
    final_temperature: Positive = 0.5
    """Temperature of relaxed categories at the end; it changes by equal factors."""
    importance_samples: Size | None = None
    """Latents of an image for a bound; not given: 1 for the ELBO, 5 for the others."""
    importance_groups: Size = 3
    """Groups of importance_samples latents each, for miwae and piwae."""
    elbo_share: Share = 0.05
    """Weight of the ELBO in ciwae."""
    gradient: Literal["standard", "doubly_reparameterised"] = "standard"
    """Estimator of the importance weighted bound's gradient."""
    regulariser_weight: Weight | None = None
    """Weight of what the objective asks of all latents together; not given: the objective's own."""
    alpha: Annotated[float, Range(high=1, most=1e30)] = 0.0
    """Weight of the mutual information in info_vae."""
    kernel: Literal["imq", "rbf"] = "imq"
    """Kernel of the discrepancy of info_vae."""
    projections: Size = 100
    """Random directions of swae."""
    information_weight: Weight = 1.0
    """Weight of the mutual information in beta_tc."""
    dimension_weight: Weight = 1.0
    """Weight of each dimension's KL in beta_tc."""
    tc_sampling: Literal["stratified", "weighted"] = "stratified"
    """How beta_tc estimates the aggregated posterior from a batch."""
    diagonal_weight: Weight = 10.0
    """Weight of variances that are not 1, in dip_i and dip_ii."""

    @property
    def chosen(self) -> str:
        """The objective that the flags mean."""
        several = (self.importance_samples or 1) > 1
        return self.objective or ("iwae" if several else "elbo")


@dataclass(frozen=True)
class FactorArguments:
    """The discriminator of latents, for the objective factor."""

    discriminator_learning_rate: Positive = 1e-4
    """Peak rate of the discriminator."""


@dataclass(frozen=True)
class Arguments(RunArguments):
    model: NetworkArguments = network_arguments(
        VAE,
        "latent_dim block_out_channels activation likelihood observation_std prior prior_components inference "
        "categories posterior",
        latent_dim=16,
    )
    width: WidthArguments = WidthArguments()
    condition: ClassArguments = ClassArguments()
    variational: VariationalArguments = VariationalArguments()
    discriminator: NetworkArguments = network_arguments(
        MLPDiscriminator,
        "hidden_sizes",
        flags={"hidden_sizes": "discriminator_hidden_sizes"},
        hidden_sizes=(256, 256, 256),
    )
    factor: FactorArguments = FactorArguments()
    # A clipped gradient is a ratio to a norm, and this one grows with the number of pixels.
    optimization: OptimizationArguments = OptimizationArguments(
        learning_rate=1e-3, adam_weight_decay=0.0, max_grad_norm=200.0
    )


def check(args: Arguments) -> None:
    """Refuse flags that would fail later, or be ignored."""
    chosen, compiled = args.variational, args.optimization.compile
    objective, default = OBJECTIVES[chosen.chosen], VariationalArguments()
    meant = "" if chosen.objective else f", which --importance_samples {chosen.importance_samples or 1} means"
    for field in fields(chosen):
        value, users = (
            getattr(chosen, field.name),
            [name for name, one in OBJECTIVES.items() if field.name in used(one)],
        )
        if value != getattr(default, field.name) and chosen.chosen not in users and field.name != "objective":
            if (field.name, value, chosen.chosen) != ("importance_samples", 1, "elbo"):
                raise UsageError(
                    f"--{field.name} is not used by --objective {chosen.chosen}{meant}; it is of {', '.join(users)}. "
                    f"Got {value}; leave it out."
                )
    if objective.second is None:
        unused = f"is of the discriminator of --objective factor, not of {chosen.chosen}; leave it out"
        check_unused(args.discriminator, Arguments().discriminator, unused)
        check_unused(args.factor, FactorArguments(), unused)
    if compiled and (chosen.gradient != "standard" or chosen.chosen == "piwae"):
        flag = "--objective piwae" if chosen.chosen == "piwae" else f"--gradient {chosen.gradient}"
        raise UsageError(f"{flag} needs the gradient at the latents themselves, which --compile hides.")
    if chosen.gradient != "standard" and chosen.importance_samples == 1:
        raise UsageError(f"--gradient {chosen.gradient} needs --importance_samples of at least 2; got 1.")
    if args.model.prior == "normal" and args.model.prior_components != Arguments().model.prior_components:
        raise UsageError(
            f"--prior_components is not used by --prior normal; got {args.model.prior_components}. Add --prior mixture "
            "or vamp, or leave it out."
        )
    for name in () if args.model.categories else ("category_capacity", "temperature", "final_temperature"):
        if getattr(chosen, name) != getattr(default, name):
            raise UsageError(
                f"--{name} is of --categories, and none are given; got {getattr(chosen, name)}. Leave it out."
            )
    if (args.model.categories or args.model.posterior != "gaussian") and "temperature" not in objective.options:
        flag, value = ("categories", args.model.categories) if args.model.categories else ("posterior", "gamma")
        raise UsageError(
            f"--{flag} must be left out with --objective {chosen.chosen}{meant}, which is of Gaussian latents; got "
            f"{value}. Other latents are trained by --objective elbo."
        )
    if args.model.likelihood == "none":
        raise UsageError("--likelihood must be a density of pixels; got none, which a VAE-GAN has: see train_vae_gan.")
    if args.model.latent_dim == ():
        raise UsageError("--latent_dim must be one number, or one for each stochastic layer; got none.")


def used(objective: VAEObjective) -> set[str]:
    """Flags that an objective uses."""
    extra = {
        "beta": {"kl_warmup"},
        "capacity": {"capacity_ramp"},
        "temperature": {"final_temperature"},
        "cost": {"reconstruction"},
    }
    return {FLAGS.get(name, name) for name in objective.options}.union(*(extra.get(n, ()) for n in objective.options))


def options_of(objective: VAEObjective, flags: VariationalArguments, dataset_size: int, cost: Any) -> dict[str, Any]:
    """The options of the loss; what is not given is left to its default."""
    given = {"dataset_size": dataset_size, "cost": cost}
    options = {
        name: given[name] if name in given else getattr(flags, FLAGS.get(name, name)) for name in objective.options
    }
    free = ("capacity", "category_capacity", "cost")
    return {**{name: value for name, value in options.items() if value is not None or name in free}, **objective.fixed}


def main(args: Arguments) -> int:
    check(args)
    run = Run(args, family="vae")
    chosen, widths = args.variational, args.width.hidden_sizes
    if isinstance(args.model.latent_dim, tuple):  # several stochastic layers
        widths = (widths, *[args.width.upper_hidden_sizes] * len(args.model.latent_dim[1:]))
    vae = run.prepare("vae", VAE(**run.image, **args.model, hidden_sizes=widths, num_class_embeds=run.num_classes))
    objective = OBJECTIVES[chosen.chosen]
    if "dataset_size" in objective.options and run.data.endless:
        raise UsageError(f"--objective {chosen.chosen} counts the images of the data set, and this one is endless.")
    size = 0 if run.data.endless else len(run.data)
    cost = reconstruction_cost(chosen.reconstruction, run.data.shape, run.device)
    options, networks, phases = options_of(objective, chosen, size, cost), [vae.network], []
    if objective.second is not None:
        second = run.prepare(
            "discriminator",
            MLPDiscriminator(in_dim=sum(vae.module.hierarchy.sizes), **args.discriminator),
            ema=False,
            learning_rate=args.factor.discriminator_learning_rate,
        )
        phases = [second.phase(partial(objective.second, second.network, vae.network))]
        networks.append(second.network)

    def risen(share: float, rng) -> float:
        """From 0 to 1 over a share of the run."""
        return 1.0 if share == 0 else min(1.0, rng.position / (share * run.steps * run.global_batch))

    def loss(batch, rng):
        now = dict(options)
        for name in ("capacity", "category_capacity"):
            if now.get(name) is not None:
                now[name] *= risen(chosen.capacity_ramp, rng)
        if args.model.categories:
            now["temperature"] *= (chosen.final_temperature / chosen.temperature) ** risen(1.0, rng)
        if chosen.kl_warmup:
            now["beta"] *= risen(chosen.kl_warmup, rng)
        return objective.loss(*networks, batch, rng, **now)

    def pipeline(weights) -> VAEPipeline:
        return VAEPipeline(weights, label_names=run.label_names)

    return run.train([*phases, vae.phase(loss)], pipeline, weights=vae)


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
