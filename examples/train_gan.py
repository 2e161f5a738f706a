"""Train a GAN on images: yours, the Hub's or the embedded digits and emoji.

    accelerate launch examples/train_gan.py --dataset_name digits --output_dir outputs/digits-gan

A run that was killed goes on when the same command is started again. The folder it leaves is a pipeline:
`latentia.DiffusionPipeline.from_pretrained("outputs/digits-gan")`. When training fails, the run says so beside its
progress bar, in `metrics.jsonl` and in the card, and what to try.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from latentia import DCGANDiscriminator, DCGANGenerator, GANPipeline, HashedWords
from latentia.errors import Count, Natural, Positive, Range, Rate, UsageError, Weight, format_number
from latentia.evaluation import extractor_for, fitting_extractor
from latentia.functional.adversarial import WITH_LABELS, Objective
from latentia.functional.schedules import linear_decay
from latentia.losses.adversarial import gan_discriminator_loss, gan_generator_loss, gan_penalty_loss
from latentia.losses.augmentation import AdaptiveAugmentation, ReplayPool, random_augment
from latentia.losses.diffusion_augmentation import DiffusionAugmentation
from latentia.losses.weight_clipping import clip_weights
from latentia.runs.arguments import (
    NetworkArguments,
    OptimizationArguments,
    RunArguments,
    check_unused,
    network_arguments,
)
from latentia.runs.command_line import run_script
from latentia.runs.failure_monitor import FailureMonitor
from latentia.runs.run import Run
from latentia.runs.validation import sampler
from latentia.training.loop import Phase

DIFFUSION_FLAGS = {name: f"diffusion_{name}" for name in ("sigma", "min_steps", "max_steps", "times")}
ADAPTED_IN = 100_000  # images in which the chain of a diffusion can grow from the shortest to the longest


@dataclass(frozen=True)
class ConditionArguments:
    """Conditions of both networks."""

    class_conditional: bool = False
    """Condition both networks on the class labels of the data set."""
    auxiliary_classifier: bool = False
    """With class_conditional, let the discriminator predict the class instead of being conditioned on it."""
    caption: bool = False
    """Condition both networks on the captions of the data set, as hashed words."""


@dataclass(frozen=True)
class AdversarialArguments:
    """The objective, and what keeps it stable."""

    objective: Objective = "relativistic"
    """What both networks minimise."""
    discriminator_learning_rate: Positive | None = None
    """Peak rate of the discriminator; not given: the learning_rate, which is the generator's."""
    n_critic: Count = 1
    """Steps of the discriminator for one of the generator."""
    r1: Weight = 0.1
    """Weight of the discriminator's squared gradient at real images; 0: none."""
    r2: Weight = 0.1
    """The same at generated images."""
    gp: Weight = 0.0
    """Weight of the penalty of WGAN-GP; its paper takes 10."""
    clip_weights: Weight = 0.0
    """Limit of the discriminator's weights after each of its steps, for wasserstein; its paper takes 0.01. 0: none."""
    regularise_every: Count = 4
    """Steps between penalties, which then weigh as much more; 1: with every step."""
    label_smoothing: Rate = 0.0
    """Real images are labelled 1 minus this; for objectives with labels."""
    label_flip: Annotated[float, Range(0, 0.5, "left")] = 0.0
    """Share of images whose labels change sides."""
    instance_noise: Weight = 0.0
    """Standard deviation of noise on all that the discriminator sees, falling to 0 at the end."""
    augment: Literal["none", "diff", "ada", "diffusion"] = "none"
    """Augment what the discriminator sees: always (diff), or the more the more it overfits (ada, or Diffusion-GAN)."""
    replay: Annotated[int, Range(0, most=2**20)] = 0
    """Earlier generated images to store and show again to the discriminator; 0: none."""
    mismatched: bool = True
    """Give conditional discriminators real images with wrong labels or captions as fake ones too."""
    monitor_steps: Natural | None = None
    """Steps between looks of the failure monitor at samples; 0: at the end only; not given: ten, or every 200."""


@dataclass(frozen=True)
class Arguments(RunArguments):
    generator: NetworkArguments = network_arguments(
        DCGANGenerator,
        "latent_dim block_out_channels norm upsample",
        flags={"norm": "generator_norm"},
        block_out_channels=(32, 64, 128),
    )
    discriminator: NetworkArguments = network_arguments(
        DCGANDiscriminator,
        "block_out_channels norm minibatch_std pack",
        flags={"block_out_channels": "discriminator_block_out_channels", "norm": "discriminator_norm"},
        block_out_channels=(),  # as the generator's
        norm="none",
        minibatch_std=4,
    )
    diffusion: NetworkArguments = network_arguments(
        DiffusionAugmentation, "sigma min_steps max_steps times", flags=DIFFUSION_FLAGS
    )
    condition: ConditionArguments = ConditionArguments()
    adversarial: AdversarialArguments = AdversarialArguments()
    optimization: OptimizationArguments = OptimizationArguments(
        learning_rate=2e-3, adam_beta1=0.0, adam_weight_decay=0.0, max_grad_norm=100.0
    )


def check(args: Arguments, run: Run) -> None:
    """Refuse flags that would fail later, or be ignored."""
    condition, chosen, options = args.condition, args.adversarial, args.optimization
    pack, group = args.discriminator.pack, args.discriminator.minibatch_std or 0
    norm = args.discriminator.discriminator_norm
    if condition.auxiliary_classifier and not condition.class_conditional:
        raise UsageError("--auxiliary_classifier learns the labels of --class_conditional; add that or leave it out.")
    if condition.caption and not run.data.has_captions:
        raise UsageError("--caption needs captions, and this data set has none. Name them with --caption_column.")
    batch = options.train_batch_size
    if batch % pack:
        raise UsageError(f"--pack must divide --train_batch_size {batch}; got {pack}.")
    if group == 1:
        raise UsageError(f"--minibatch_std must be 0, or at least 2 images; got {group}.")
    logits = batch // pack
    if group and logits % group:
        raise UsageError(
            f"--minibatch_std must divide the {logits} logits of a batch (--train_batch_size / --pack), or be 0; "
            f"got {group}."
        )
    if 0 < chosen.replay < run.global_batch:
        raise UsageError(
            f"--replay must be 0, or at least the global batch of {run.global_batch}; got {chosen.replay}."
        )
    if chosen.replay and (condition.class_conditional or condition.caption):
        raise UsageError(
            f"--replay must be 0 with --class_conditional or --caption, as old samples have other labels; got "
            f"{chosen.replay}."
        )
    for name, value in (("label_smoothing", chosen.label_smoothing), ("label_flip", chosen.label_flip)):
        if value and chosen.objective not in WITH_LABELS:
            raise UsageError(
                f"--{name} must be 0 with --objective {chosen.objective}, which has no labels; got {value}."
            )
    if chosen.augment == "diffusion" and chosen.instance_noise:
        raise UsageError(
            "--instance_noise must be 0 with --augment diffusion, which adds noise of its own; got "
            f"{format_number(chosen.instance_noise)}."
        )
    if chosen.augment != "diffusion":
        check_unused(args.diffusion, Arguments().diffusion, "is of --augment diffusion; add that, or leave it out")
    shortest, most = args.diffusion.diffusion_min_steps, args.diffusion.diffusion_max_steps
    if shortest > most:
        raise UsageError(f"--diffusion_min_steps must be at most --diffusion_max_steps, {most}; got {shortest}.")
    penalties = {"r1": chosen.r1, "r2": chosen.r2, "gp": chosen.gp}
    if norm == "batch" and any(penalties.values()):
        given = ", ".join(f"--{name} {format_number(value)}" for name, value in penalties.items())
        raise UsageError(
            "--discriminator_norm batch mixes the images of a batch, and penalties are of each by itself: add --r1 0 "
            f"--r2 0, or take spectral, instance or none; got {given}."
        )
    if options.gradient_checkpointing or options.compile:
        raise UsageError(
            "--gradient_checkpointing and --compile must be left out: the penalties need second derivatives, which "
            "compiled networks do not have, and these networks are small."
        )


def main(args: Arguments) -> int:
    captions, chosen = args.condition.caption, args.adversarial
    run = Run(
        args,
        family="gan",
        pipeline_tag="text-to-image" if captions else "unconditional-image-generation",
        unused=() if args.adversarial.augment == "diffusion" else ("diffusion",),
    )
    check(args, run)

    text_encoder = HashedWords() if captions else None
    classes = run.num_classes
    dim = text_encoder.config.dim if text_encoder is not None else None
    channels, *size = run.data.shape
    generator = run.prepare(
        "generator",
        DCGANGenerator(
            sample_size=tuple(size),
            out_channels=channels,
            **args.generator,
            num_class_embeds=classes,
            text_embed_dim=dim,
        ),
    )
    auxiliary = args.condition.auxiliary_classifier
    shape = {**args.discriminator, "minibatch_std": args.discriminator.minibatch_std or None}
    shape["block_out_channels"] = shape["block_out_channels"] or args.generator.block_out_channels
    discriminator = run.prepare(
        "discriminator",
        DCGANDiscriminator(
            **run.image,
            **shape,
            num_class_embeds=None if auxiliary else classes,
            num_aux_classes=classes if auxiliary else None,
            text_embed_dim=dim,
            num_timesteps=args.diffusion.diffusion_max_steps if chosen.augment == "diffusion" else None,
        ),
        ema=False,
        learning_rate=chosen.discriminator_learning_rate,
    )
    if text_encoder is not None:
        text_encoder.to(run.device)
    g, d = generator.network, discriminator.network

    ada = None
    if chosen.augment == "ada":
        ada = AdaptiveAugmentation().to(run.device)
    elif chosen.augment == "diffusion":
        seen_together = args.discriminator.pack * (args.discriminator.minibatch_std or 1)
        diffusion = DiffusionAugmentation(**args.diffusion, group=seen_together)
        ada = AdaptiveAugmentation(diffusion, images=ADAPTED_IN, most=1.0).to(run.device)
    pool = ReplayPool(chosen.replay, run.data.shape).to(run.device) if chosen.replay else None
    inputs = {
        "augment": random_augment if chosen.augment == "diff" else ada,
        "text_encoder": text_encoder,
    }
    penalties = {"r1": chosen.r1, "r2": chosen.r2, "gp": chosen.gp}
    lazy = chosen.regularise_every > 1 and any(penalties.values())
    conditioned = dim is not None or (classes is not None and not auxiliary)

    def noise(rng) -> float:
        return linear_decay(rng.position, run.steps * run.global_batch, chosen.instance_noise)

    def discriminator_loss(batch, rng):
        return gan_discriminator_loss(
            d,
            g,
            batch,
            rng,
            objective=chosen.objective,
            **(dict.fromkeys(penalties, 0.0) if lazy else penalties),
            real_label=(1 - chosen.label_smoothing,) * 2,
            flip=chosen.label_flip,
            mismatched=chosen.mismatched and conditioned,
            instance_noise=noise(rng),
            collect=ada and ada.collect,
            replay=pool,
            **inputs,
        )

    def generator_loss(batch, rng):
        return gan_generator_loss(d, g, batch, rng, objective=chosen.objective, instance_noise=noise(rng), **inputs)

    phases = [discriminator.phase(discriminator_loss)]
    if lazy:
        penalty = partial(gan_penalty_loss, d, g, interval=chosen.regularise_every, **penalties, **inputs)
        phases.append(discriminator.phase(penalty, "penalty", every=chosen.regularise_every))
    if chosen.clip_weights:
        phases.append(Phase("clipping", lambda batch, rng: clip_weights(d, chosen.clip_weights), d))
    phases.append(generator.phase(generator_loss, every=chosen.n_critic))
    phases += [Phase("augmentation", ada.update, ada)] if ada is not None else []
    phases += [Phase("replay", pool.update, pool)] if pool is not None else []

    def pipeline(weights) -> GANPipeline:
        return GANPipeline(weights, discriminator.module, text_encoder, label_names=run.label_names)

    real = run.data.batch(0, 256, seed=0)["x"]
    classifier = extractor_for(run.data.shape)
    if classifier is not None:  # one of other classes than the data's counts none
        classifier, _ = fitting_extractor(classifier, run.data.label_names)
    samples = sampler(pipeline, generator.final, run.data)
    monitor = FailureMonitor(run.folder, real, lambda count, seed: samples(count, seed).images, classifier)
    check_steps = max(1, min(200, run.steps // 10)) if chosen.monitor_steps is None else chosen.monitor_steps
    hooks = monitor.hooks(args.output.logging_steps, check_steps)
    return run.train(phases, pipeline, hooks=hooks, limits=monitor.sentences)


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
