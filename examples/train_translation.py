"""Train image-to-image translation on pairs (pix2pix): two folders, two columns, or images and what degrades them.

    accelerate launch examples/train_translation.py --dataset_name emoji --image_column noto --target_column twemoji \\
        --output_dir outputs/noto-to-twemoji
    latentia train translation --train_data_dir before --target_data_dir after --output_dir outputs/after
    latentia train translation --train_data_dir photos --degrade grey --output_dir outputs/colour

A run that was killed goes on when the same command is started again. The folder it leaves is a pipeline that takes an
image and gives one: `latentia.DiffusionPipeline.from_pretrained("outputs/after")(image).images[0]`. Of grey images the
luminance is kept, of masked ones all that is outside of the mask.
"""

from dataclasses import asdict, dataclass

from latentia import ImageTranslator, PatchDiscriminator, TranslationPipeline
from latentia.data import Degradation
from latentia.errors import Positive, UsageError, Weight
from latentia.functional.adversarial import Objective
from latentia.losses.translation import StepImages, translation_discriminator_loss, translation_loss
from latentia.runs.arguments import (
    NetworkArguments,
    OptimizationArguments,
    RunArguments,
    check_unused,
    network_arguments,
)
from latentia.runs.command_line import run_script
from latentia.runs.pairs import OUTPUTS, PairArguments, load_paired, translations
from latentia.runs.perceptual import perceptual_term
from latentia.runs.run import Run


@dataclass(frozen=True)
class ObjectiveArguments:
    """The terms of the objective; differences are means over the values of an image."""

    l1_weight: Weight = 100.0
    """Weight of the absolute differences of output and target."""
    mse_weight: Weight = 0.0
    """Weight of the squared differences of output and target; 0: none."""
    adversarial_weight: Weight = 1.0
    """Weight of the adversarial loss of pairs; 0: none."""
    objective: Objective = "non_saturating"
    """What both networks minimise."""
    feature_weight: Weight = 0.0
    """Weight of the differences of the discriminator's activations; pix2pixHD takes 10. 0: none."""
    perceptual_weight: Weight = 0.0
    """Weight of the distance in the layers of a shipped classifier; 0: none."""
    discriminator_learning_rate: Positive | None = None
    """Peak rate of the discriminator; not given: the learning_rate."""


WEIGHTS = ("l1_weight", "mse_weight", "adversarial_weight", "feature_weight", "perceptual_weight")


@dataclass(frozen=True)
class Arguments(RunArguments):
    pairs: PairArguments = PairArguments()
    model: NetworkArguments = network_arguments(
        ImageTranslator,
        "architecture block_out_channels num_res_blocks norm dropout keep_dropout",
        block_out_channels=(32, 64, 128, 128),
    )
    discriminator: NetworkArguments = network_arguments(
        PatchDiscriminator,
        "block_out_channels norm",
        flags={"block_out_channels": "discriminator_channels", "norm": "discriminator_norm"},
        block_out_channels=(32, 64, 128),
    )
    objective: ObjectiveArguments = ObjectiveArguments()
    optimization: OptimizationArguments = OptimizationArguments(
        train_batch_size=16, learning_rate=1e-3, adam_beta1=0.5, adam_weight_decay=0.0, max_grad_norm=100.0
    )


def check(args: Arguments) -> None:
    """Refuse flags that another one leaves unused."""
    chosen, usual = args.objective, Arguments()
    if args.model.architecture == "unet":
        check_unused(args.model, usual.model, "is of --architecture resnet; leave it out", ["num_res_blocks"])
    if not args.model.dropout:
        check_unused(args.model, usual.model, "needs --dropout above 0; give that", ["keep_dropout"])
    if not (chosen.adversarial_weight or chosen.feature_weight):
        reason = "is of --adversarial_weight or --feature_weight, which are 0; leave it out"
        check_unused(args.discriminator, usual.discriminator, reason)
        check_unused(chosen, usual.objective, reason, ["objective", "discriminator_learning_rate"])
    if not any(getattr(chosen, name) for name in WEIGHTS):
        raise UsageError("--l1_weight must be above 0 where all other weights are 0; got 0.")


def main(args: Arguments) -> int:
    check(args)
    data = load_paired(args.data, args.pairs)
    run = Run(args, family="translation", pipeline_tag="image-to-image", data=data)
    chosen, degradation = args.objective, data.inputs if isinstance(data.inputs, Degradation) else None
    output = "image" if degradation is None else OUTPUTS[degradation.name]
    channels, size = data.shape[0], min(data.shape[1:])
    if output == "luminance" and channels == 1:
        raise UsageError("--degrade grey needs colour images to restore, and these are grey; got 1 channel.")

    network = ImageTranslator(data.condition_shape[0], channels, **args.model, output=output)
    adversarial = chosen.adversarial_weight > 0 or chosen.feature_weight > 0
    critic = PatchDiscriminator(data.condition_shape[0] + channels, **args.discriminator)
    for flag, least in (
        ("block_out_channels", network.least_size),
        *([("discriminator_channels", critic.least_size)] if adversarial else []),
    ):
        if size < least:
            raise UsageError(f"--{flag} needs images of at least {least} pixels; got {size}. Give fewer numbers.")
    translator = run.prepare("translator", network)
    discriminator = None
    if adversarial:
        rate = chosen.discriminator_learning_rate
        discriminator = run.prepare("discriminator", critic, ema=False, learning_rate=rate)
    distance = perceptual_term(chosen.perceptual_weight, data.shape, run.device)
    made = StepImages()

    def loss(batch, rng):
        return translation_loss(
            translator.network,
            batch,
            rng,
            discriminator=None if discriminator is None else discriminator.network,
            objective=chosen.objective,
            l1_weight=chosen.l1_weight,
            mse_weight=chosen.mse_weight,
            adversarial_weight=chosen.adversarial_weight,
            feature_weight=chosen.feature_weight,
            perceptual=distance,
            perceptual_weight=chosen.perceptual_weight,
            made=made,
        )

    def discriminator_loss(batch, rng):
        return translation_discriminator_loss(discriminator.network, batch, rng, made=made, objective=chosen.objective)

    phases = [translator.phase(loss)]
    if discriminator is not None:
        phases.append(discriminator.phase(discriminator_loss))

    def pipeline(weights) -> TranslationPipeline:
        return TranslationPipeline(weights, None if degradation is None else asdict(degradation))

    samples = {
        name: translations(weights, lambda x, seeds, weights=weights: weights(x, seeds).sample, data)
        for name, weights in (("ema", translator.final), ("raw", translator.module))
    }
    return run.train(phases, pipeline, samplers=samples)


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
