"""Train a normalizing flow on images by exact likelihood, or as a Flow-GAN: NICE, RealNVP, Glow, neural spline flow.

    python examples/train_flow.py --dataset_name digits --output_dir outputs/flow-digits

A run that was killed goes on when the same command is started again. The folder it leaves is a pipeline:
`latentia.DiffusionPipeline.from_pretrained("outputs/flow-digits")`.
"""

from dataclasses import dataclass

from latentia import DCGANDiscriminator, FlowPipeline, NormalizingFlow
from latentia.errors import Positive, UsageError, Weight
from latentia.functional.adversarial import Objective
from latentia.functional.flows import dequantize
from latentia.losses.flow_gan import flow_gan_discriminator_loss, flow_gan_loss
from latentia.losses.likelihood import flow_loss
from latentia.models.layers.flow import most_halvings
from latentia.rng import Rng
from latentia.runs.arguments import (
    ClassArguments,
    NetworkArguments,
    OptimizationArguments,
    RunArguments,
    check_unused,
    network_arguments,
)
from latentia.runs.command_line import run_script
from latentia.runs.run import Run

INITIAL_IMAGES = 256  # from which the scales of activation normalisation are set


@dataclass(frozen=True)
class AdversarialArguments:
    """Flow-GAN: the flow as a generator, against a discriminator, with its likelihood or without."""

    likelihood_weight: Weight | None = None
    """Adversarial training, beside this weight of the nats per value; 0: adversarial; not given: likelihood alone."""
    objective: Objective = "relativistic"
    """Adversarial objective."""
    r1: Weight = 0.1
    """Weight of the discriminator's squared gradient at real images; 0: none."""
    r2: Weight = 0.1
    """The same at generated images."""
    discriminator_learning_rate: Positive | None = None
    """Peak rate of the discriminator; not given: the learning_rate, which is the flow's."""


@dataclass(frozen=True)
class Arguments(RunArguments):
    model: NetworkArguments = network_arguments(
        NormalizingFlow,
        "architecture num_stages num_layers hidden_sizes bins logit_alpha dequantization",
        num_stages=None,
        helps={"num_stages": " Not given: as often as the images allow, at most 3."},
    )
    condition: ClassArguments = ClassArguments()
    adversarial: AdversarialArguments = AdversarialArguments()
    discriminator: NetworkArguments = network_arguments(
        DCGANDiscriminator,
        "block_out_channels minibatch_std",
        flags={"block_out_channels": "discriminator_block_out_channels"},
        block_out_channels=(32, 64),
        minibatch_std=None,
    )
    # A clipped gradient is a ratio to a norm, and this one grows with the number of pixels.
    optimization: OptimizationArguments = OptimizationArguments(
        learning_rate=2e-3, adam_weight_decay=0.0, max_grad_norm=200.0
    )


def check(args: Arguments) -> None:
    """Refuse flags that would be ignored, or fail later."""
    if args.model.architecture != "spline":
        check_unused(args.model, Arguments().model, "is of --architecture spline; leave it out", ["bins"])
    if args.adversarial.likelihood_weight is None:
        unused = "is of adversarial training; add --likelihood_weight, or leave it out"
        check_unused(args.adversarial, AdversarialArguments(), unused)
        check_unused(args.discriminator, Arguments().discriminator, unused)
    elif args.optimization.compile:
        raise UsageError(
            "--compile must be left out with --likelihood_weight: the discriminator's penalties need second "
            "derivatives, which compiled networks do not have."
        )


def main(args: Arguments) -> int:
    check(args)
    by_likelihood = args.adversarial.likelihood_weight is None
    run = Run(args, family="flow", unused=("adversarial", "discriminator") if by_likelihood else ())
    settings = dict(args.model)
    settings["num_stages"] = settings["num_stages"] or max(1, min(3, most_halvings(run.image["sample_size"])))
    network = NormalizingFlow(**run.image, **settings, num_class_embeds=run.num_classes)

    # The same images on every process; a checkpoint or --init_from replaces what is set here.
    first = run.data.batch(0, INITIAL_IMAGES, seed=args.optimization.seed)
    rng = Rng(args.optimization.seed, 0, INITIAL_IMAGES, 0, INITIAL_IMAGES)
    labels = first["labels"] if run.num_classes is not None else None
    network.initialize(dequantize(first["x"], rng.uniform("initialize", run.data.shape)), labels)

    flow = run.prepare("flow", network)
    f, chosen = flow.network, args.adversarial

    def pipeline(weights) -> FlowPipeline:
        return FlowPipeline(weights, run.label_names)

    if by_likelihood:
        return run.train([flow.phase(lambda batch, rng: flow_loss(f, batch, rng))], pipeline)

    discriminator = run.prepare(
        "discriminator",
        DCGANDiscriminator(**run.image, **args.discriminator, norm="none", num_class_embeds=run.num_classes),
        ema=False,
        learning_rate=chosen.discriminator_learning_rate,
    )
    d, objective = discriminator.network, chosen.objective

    def discriminator_loss(batch, rng):
        return flow_gan_discriminator_loss(d, f, batch, rng, objective=objective, r1=chosen.r1, r2=chosen.r2)

    def both(batch, rng):
        return flow_gan_loss(d, f, batch, rng, likelihood_weight=chosen.likelihood_weight, objective=objective)

    return run.train([discriminator.phase(discriminator_loss), flow.phase(both)], pipeline, weights=flow)


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
