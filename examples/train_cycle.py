"""Train image-to-image translation without pairs (CycleGAN): two folders of images, in both directions.

    accelerate launch examples/train_cycle.py --dataset_name emoji --image_column noto --target_column twemoji \\
        --output_dir outputs/noto-twemoji
    latentia train cycle --train_data_dir horses --target_data_dir zebras --resolution 64 --output_dir outputs/zebras

A run that was killed goes on when the same command is started again, with the same images in its pools. The folder it
leaves is a pipeline of both directions: `pipe(image).images[0]`, `pipe(image, direction="backward").images[0]`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

from latentia import CyclePipeline, CycleTranslator, PatchDiscriminator
from latentia.errors import Positive, Range, UsageError, Weight
from latentia.functional.adversarial import Objective
from latentia.losses.augmentation import ReplayPool
from latentia.losses.cycle import cycle_discriminator_loss, cycle_loss
from latentia.losses.translation import StepImages
from latentia.runs.arguments import (
    NetworkArguments,
    OptimizationArguments,
    RunArguments,
    check_unused,
    network_arguments,
)
from latentia.runs.command_line import run_script
from latentia.runs.pairs import UnpairedArguments, load_paired, translations
from latentia.runs.run import Run
from latentia.training.loop import Phase


@dataclass(frozen=True)
class ObjectiveArguments:
    """The terms of the objective; differences are means over the values of an image."""

    adversarial_weight: Weight = 1.0
    """Weight of the adversarial losses of both directions."""
    objective: Objective = "least_squares"
    """What translators and discriminators minimise."""
    cycle_weight: Weight = 10.0
    """Weight of the differences of images and of their way there and back."""
    identity_weight: Weight | None = None
    """Weight of the change of images of the target domain; not given: 0. The paper takes 5 to keep colours."""
    pool_size: Annotated[int, Range(0, most=2**20)] = 64
    """Earlier outputs of each direction to show again to its discriminator; 0: none."""
    discriminator_learning_rate: Positive | None = None
    """Peak rate of the discriminators; not given: the learning_rate."""


@dataclass(frozen=True)
class Arguments(RunArguments):
    pairs: UnpairedArguments = UnpairedArguments()
    model: NetworkArguments = network_arguments(
        CycleTranslator,
        "architecture block_out_channels num_res_blocks norm dropout keep_dropout",
        block_out_channels=(32, 64, 128),
        num_res_blocks=3,
    )
    discriminator: NetworkArguments = network_arguments(
        PatchDiscriminator,
        "block_out_channels norm",
        flags={"block_out_channels": "discriminator_channels", "norm": "discriminator_norm"},
        block_out_channels=(32, 64, 128),
    )
    objective: ObjectiveArguments = ObjectiveArguments()
    optimization: OptimizationArguments = OptimizationArguments(
        train_batch_size=16, learning_rate=5e-4, adam_beta1=0.5, adam_weight_decay=0.0, max_grad_norm=100.0
    )


def check(args: Arguments, run: Run) -> None:
    """Refuse flags that another one leaves unused, or that would fail later."""
    chosen, usual = args.objective, Arguments()
    if args.model.architecture == "unet":
        check_unused(args.model, usual.model, "is of --architecture resnet; leave it out", ["num_res_blocks"])
    if not args.model.dropout:
        check_unused(args.model, usual.model, "needs --dropout above 0; give that", ["keep_dropout"])
    if 0 < chosen.pool_size < run.global_batch:
        raise UsageError(
            f"--pool_size must be 0, or at least the global batch of {run.global_batch}; got {chosen.pool_size}."
        )


def main(args: Arguments) -> int:
    data = load_paired(args.data, args.pairs, paired=False)
    run = Run(args, family="cycle", pipeline_tag="image-to-image", data=data)
    check(args, run)
    chosen, shapes = args.objective, {"a": data.condition_shape, "b": data.shape}
    channels = {domain: shape[0] for domain, shape in shapes.items()}
    if chosen.identity_weight and channels["a"] != channels["b"]:
        raise UsageError(
            f"--identity_weight must be 0 for inputs and targets of other channels, {channels['a']} and "
            f"{channels['b']}; got {chosen.identity_weight:g}. --channels brings both to one number."
        )
    network = CycleTranslator(channels["a"], channels["b"], **args.model)
    critics = {domain: PatchDiscriminator(count, **args.discriminator) for domain, count in channels.items()}
    for flag, least in (
        ("block_out_channels", network.least_size),
        ("discriminator_channels", critics["a"].least_size),
    ):
        if min(data.shape[1:]) < least:
            raise UsageError(
                f"--{flag} needs images of at least {least} pixels; got {min(data.shape[1:])}. Give fewer numbers."
            )
    translator = run.prepare("translator", network)
    rate = chosen.discriminator_learning_rate
    discriminators = {
        domain: run.prepare(f"discriminator_{domain}", critic, ema=False, learning_rate=rate)
        for domain, critic in critics.items()
    }
    pools = {
        domain: ReplayPool(chosen.pool_size, shape).to(run.device) if chosen.pool_size else None
        for domain, shape in shapes.items()
    }
    made = StepImages()

    def loss(batch, rng):
        return cycle_loss(
            translator.network,
            discriminators["a"].network,
            discriminators["b"].network,
            batch,
            rng,
            objective=chosen.objective,
            adversarial_weight=chosen.adversarial_weight,
            cycle_weight=chosen.cycle_weight,
            identity_weight=chosen.identity_weight or 0.0,
            made=made,
        )

    phases = [translator.phase(loss)]
    for domain, prepared in discriminators.items():
        options = {"made": made, "objective": chosen.objective, "replay": pools[domain]}
        phases.append(prepared.phase(partial(cycle_discriminator_loss, prepared.network, domain, **options)))
    phases += [Phase(f"pool_{domain}", pool.update, pool) for domain, pool in pools.items() if pool is not None]

    samples = {
        name: translations(weights, lambda x, s, weights=weights: weights.translate(x, dropout_seeds=s), data)
        for name, weights in (("ema", translator.final), ("raw", translator.module))
    }
    return run.train(phases, CyclePipeline, samplers=samples)


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
