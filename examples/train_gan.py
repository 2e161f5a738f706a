"""Train a GAN on images: yours, the Hub's or the embedded digits and emoji.

    accelerate launch examples/train_gan.py --dataset_name digits --output_dir outputs/digits-gan

A run that was killed goes on when the same command is started again. The folder it leaves is a pipeline:
`latentia.DiffusionPipeline.from_pretrained("outputs/digits-gan")`. When the game goes wrong, the run says so beside its
progress bar, in `metrics.jsonl` and in the card, and what to try.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import nn

from latentia import DCGANDiscriminator, DCGANGenerator, GANPipeline, HashedWords
from latentia.errors import UsageError
from latentia.evaluation import extractor_for
from latentia.losses.adversarial import (
    WITH_LABELS,
    annealed,
    gan_discriminator_loss,
    gan_generator_loss,
    gan_penalty_loss,
)
from latentia.losses.augmentation import AdaptiveAugmentation, ReplayPool, augmented
from latentia.losses.gradient_penalty import clip_weights
from latentia.runs.arguments import (
    DataArguments,
    EMAArguments,
    EvaluationArguments,
    HubArguments,
    OptimizationArguments,
    OutputArguments,
)
from latentia.runs.failure_monitor import FailureMonitor
from latentia.runs.run import adamw, finish, fit, load_data, plan, run_script, start
from latentia.runs.validation import Validation
from latentia.training.ema import EMA
from latentia.training.loop import Phase, learning_rate_schedule


@dataclass(frozen=True)
class ModelArguments:
    """The networks, DCGANGenerator and DCGANDiscriminator."""

    latent_dim: int = 100
    """Dimensions of the noise."""
    block_out_channels: tuple[int, ...] = (32, 64, 128)
    """Channels of each level of the generator from fine to coarse; each doubles the picture."""
    discriminator_block_out_channels: tuple[int, ...] = ()
    """The same of the discriminator; not given: as the generator's."""
    generator_norm: Literal["batch", "instance", "none"] = "batch"
    """Norm of the generator."""
    discriminator_norm: Literal["batch", "instance", "spectral", "none"] = "none"
    """Norm of the discriminator; penalties allow no batch norm."""
    upsample: Literal["transposed", "resize"] = "transposed"
    """How the generator doubles the picture."""
    class_conditional: bool = False
    """Tell both networks the class labels of the data set."""
    auxiliary_classifier: bool = False
    """With class_conditional, let the discriminator name the class instead of being told it."""
    caption: bool = False
    """Tell both networks the captions of the data set, as hashed words."""
    minibatch_std: int = 4
    """Pictures of a group whose spread the discriminator is shown, against mode collapse; 0: none."""
    pack: int = 1
    """Pictures that the discriminator judges as one, against mode collapse too."""


@dataclass(frozen=True)
class GameArguments:
    """The objective, and the remedies."""

    objective: Literal["minimax", "non_saturating", "least_squares", "hinge", "wasserstein", "relativistic"] = (
        "relativistic"
    )
    """What the players minimise."""
    discriminator_learning_rate: float | None = None
    """Peak rate of the discriminator; not given: the learning_rate, which is the generator's."""
    n_critic: int = 1
    """Steps of the discriminator for one of the generator."""
    r1: float = 0.1
    """Weight of the discriminator's squared gradient at real pictures; 0: none."""
    r2: float = 0.1
    """The same at generated pictures."""
    gp: float = 0.0
    """Weight of the penalty of WGAN-GP; its paper takes 10."""
    clip_weights: float = 0.0
    """Limit of the discriminator's weights after each of its steps, for wasserstein; its paper takes 0.01. 0: none."""
    regularise_every: int = 4
    """Steps between penalties, which then weigh as much more; 1: with every step."""
    label_smoothing: float = 0.0
    """Real pictures are labelled 1 minus this; for objectives with labels."""
    label_flip: float = 0.0
    """Share of pictures whose labels change sides."""
    instance_noise: float = 0.0
    """Standard deviation of noise on all that the discriminator sees, falling to 0 at the end."""
    augment: Literal["none", "diff", "ada"] = "none"
    """Show the discriminator changed pictures: always, or as often as it overfits. For small data sets."""
    replay: int = 0
    """Old fakes to keep and show again to the discriminator; 0: none."""
    mismatched: bool = True
    """Show conditional discriminators real pictures with wrong labels or captions as fakes too."""
    monitor_steps: int | None = None
    """Steps between looks of the failure monitor at samples; 0: only at the end; not given: ten looks, or every 200."""


@dataclass(frozen=True)
class Arguments:
    data: DataArguments = field(default_factory=DataArguments)
    model: ModelArguments = field(default_factory=ModelArguments)
    game: GameArguments = field(default_factory=GameArguments)
    optimization: OptimizationArguments = field(
        default_factory=lambda: OptimizationArguments(
            learning_rate=2e-3, adam_beta1=0.0, adam_weight_decay=0.0, max_grad_norm=100.0
        )
    )
    ema: EMAArguments = field(default_factory=EMAArguments)
    evaluation: EvaluationArguments = field(default_factory=EvaluationArguments)
    output: OutputArguments = field(default_factory=OutputArguments)
    hub: HubArguments = field(default_factory=HubArguments)


class Players(nn.ModuleList):
    """Both networks, for what is said of their size."""


def check(args: Arguments, data, global_batch: int) -> None:
    """What else would fail later, or go unnoticed."""
    model, game, options = args.model, args.game, args.optimization
    for name, value in (("n_critic", game.n_critic), ("regularise_every", game.regularise_every), ("pack", model.pack)):
        if value < 1:
            raise UsageError(f"--{name} must be at least 1; got {value}.")
    if model.class_conditional and data.label_names is None:
        raise UsageError("--class_conditional needs labels, and this data set has none. Name them with --label_column.")
    if model.auxiliary_classifier and not model.class_conditional:
        raise UsageError("--auxiliary_classifier learns the labels of --class_conditional; add that or leave it out.")
    if model.caption and "captions" not in data.batch(0, 1, seed=0):
        raise UsageError("--caption needs captions, and this data set has none. Name them with --caption_column.")
    batch = options.train_batch_size
    if batch % model.pack:
        raise UsageError(f"--pack must divide --train_batch_size {batch}; got {model.pack}.")
    if model.minibatch_std == 1 or model.minibatch_std < 0:
        raise UsageError(f"--minibatch_std must be 0, or at least 2 pictures; got {model.minibatch_std}.")
    judged = batch // model.pack
    if model.minibatch_std and judged % model.minibatch_std:
        raise UsageError(
            f"--minibatch_std must divide the {judged} judgements of a batch (--train_batch_size / --pack), or be 0; "
            f"got {model.minibatch_std}."
        )
    if 0 < game.replay < global_batch:
        raise UsageError(f"--replay must be 0, or at least the global batch of {global_batch}; got {game.replay}.")
    if game.replay and (model.class_conditional or model.caption):
        raise UsageError(
            f"--replay must be 0 with --class_conditional or --caption, as old fakes were made for other labels; got "
            f"{game.replay}."
        )
    for name, value, limit in (("label_smoothing", game.label_smoothing, 1), ("label_flip", game.label_flip, 0.5)):
        if not 0 <= value < limit:
            raise UsageError(f"--{name} must be in [0, {limit}); got {value}.")
        if value and game.objective not in WITH_LABELS:
            raise UsageError(f"--{name} must be 0 with --objective {game.objective}, which has no labels; got {value}.")
    penalties = {"r1": game.r1, "r2": game.r2, "gp": game.gp}
    for name, value in (penalties | {"clip_weights": game.clip_weights}).items():
        if not 0 <= value < float("inf"):
            raise UsageError(f"--{name} must be at least 0 and finite; got {value}.")
    if model.discriminator_norm == "batch" and any(penalties.values()):
        given = ", ".join(f"--{name} {value:g}" for name, value in penalties.items())
        raise UsageError(
            "--discriminator_norm batch mixes the pictures of a batch, and penalties are of each by itself: add --r1 0 "
            f"--r2 0, or take spectral, instance or none; got {given}."
        )
    if options.gradient_checkpointing or options.compile:
        raise UsageError(
            "--gradient_checkpointing and --compile must be left out: the penalties need second derivatives, which "
            "compiled networks do not have, and these networks are small."
        )


def main(args: Arguments) -> int:
    accelerator = start(args)
    data = load_data(args.data)
    options, model, game = args.optimization, args.model, args.game
    global_batch = options.train_batch_size * options.gradient_accumulation_steps * accelerator.num_processes
    check(args, data, global_batch)

    torch.manual_seed(options.seed)
    text_encoder = HashedWords() if model.caption else None
    told = {
        "num_class_embeds": len(data.label_names) if model.class_conditional else None,
        "text_embed_dim": text_encoder.config.dim if model.caption else None,
    }
    judged = told
    if model.auxiliary_classifier:
        judged = told | {"num_class_embeds": None, "num_aux_classes": told["num_class_embeds"]}
    channels, *size = data.shape
    generator = DCGANGenerator(
        sample_size=tuple(size),
        out_channels=channels,
        latent_dim=model.latent_dim,
        block_out_channels=model.block_out_channels,
        norm=model.generator_norm,
        upsample=model.upsample,
        **told,
    )
    discriminator = DCGANDiscriminator(
        sample_size=tuple(size),
        in_channels=channels,
        block_out_channels=model.discriminator_block_out_channels or model.block_out_channels,
        norm=model.discriminator_norm,
        minibatch_std=model.minibatch_std or None,
        pack=model.pack,
        **judged,
    )
    steps = plan(accelerator, args, data, Players([generator, discriminator]))

    players = Players([generator, discriminator]).to(accelerator.device)
    ema = EMA(generator, args.ema.ema_decay, args.ema.ema_warmup) if args.ema.use_ema else None
    rate = game.discriminator_learning_rate or options.learning_rate
    rates = (args, replace(args, optimization=replace(options, learning_rate=rate)))
    optimizers = [adamw(accelerator, own, player.parameters()) for own, player in zip(rates, players)]
    g, d, g_optimizer, d_optimizer = accelerator.prepare(*players, *optimizers)
    if text_encoder is not None:
        text_encoder.to(accelerator.device)

    ada = AdaptiveAugmentation().to(accelerator.device) if game.augment == "ada" else None
    pool = ReplayPool(game.replay, data.shape).to(accelerator.device) if game.replay else None
    shown = {"augment": {"none": None, "diff": augmented, "ada": ada}[game.augment], "text_encoder": text_encoder}
    penalties = {"r1": game.r1, "r2": game.r2, "gp": game.gp}
    lazy = game.regularise_every > 1 and any(penalties.values())

    def noise(rng) -> float:
        return annealed(rng.position, steps * global_batch, game.instance_noise)

    def judge(batch, rng):
        return gan_discriminator_loss(
            d,
            g,
            batch,
            rng,
            objective=game.objective,
            **(dict.fromkeys(penalties, 0.0) if lazy else penalties),
            real_label=(1 - game.label_smoothing,) * 2,
            flip=game.label_flip,
            mismatched=game.mismatched and (judged["num_class_embeds"] or judged["text_embed_dim"]) is not None,
            instance_noise=noise(rng),
            collect=ada and ada.collect,
            replay=pool,
            **shown,
        )

    def make(batch, rng):
        return gan_generator_loss(d, g, batch, rng, objective=game.objective, instance_noise=noise(rng), **shown)

    common = {
        "learning_rate": learning_rate_schedule(options.lr_scheduler, options.lr_warmup_steps, steps),
        "max_grad_norm": options.max_grad_norm,
    }
    phases = [Phase("discriminator", judge, d, d_optimizer, **common)]
    if lazy:
        penalty = partial(gan_penalty_loss, d, g, interval=game.regularise_every, **penalties, **shown)
        phases.append(Phase("penalty", penalty, d, d_optimizer, every=game.regularise_every, **common))
    if game.clip_weights:
        phases.append(Phase("clipping", lambda batch, rng: clip_weights(d, game.clip_weights), d))
    phases.append(Phase("generator", make, g, g_optimizer, every=game.n_critic, ema=ema, **common))
    phases += [Phase("augmentation", ada.update, ada)] if ada is not None else []
    phases += [Phase("replay", pool.update, pool)] if pool is not None else []

    def pipeline(weights) -> GANPipeline:
        names = list(data.label_names) if model.class_conditional else None
        pipe = GANPipeline(weights, discriminator, text_encoder, label_names=names)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def sample(weights, batch_size: int, seed: int) -> torch.Tensor:
        """Each class in turn, or captions of the data."""
        asked = {"generator": torch.Generator().manual_seed(seed), "output_type": "latent"}
        if model.class_conditional:
            asked["class_labels"] = [i % len(data.label_names) for i in range(batch_size)]
        if model.caption:
            asked["prompt"] = data.batch(0, batch_size, seed=seed)["captions"]
        return pipeline(weights)(batch_size, **asked).images.clamp(-1, 1).cpu()

    final = ema.module if ema is not None else generator
    samplers = {"ema": partial(sample, final)} | ({"raw": partial(sample, generator)} if ema is not None else {})
    validation = Validation(args, data, samplers)
    real = data.batch(0, 256, seed=0)["x"]
    monitor = FailureMonitor(args.output.output_dir, real, partial(sample, final), extractor_for(data.shape))
    looks = max(1, min(200, steps // 10)) if game.monitor_steps is None else game.monitor_steps
    hooks = [*validation.hooks(), *monitor.hooks(args.output.logging_steps, looks)]
    identity = (model, game, options, args.ema)
    result = fit(accelerator, args, phases, data, steps, identity=identity, hooks=hooks)
    return finish(
        accelerator,
        args,
        result,
        pipeline(final),
        validation,
        family="gan",
        pipeline_tag="text-to-image" if model.caption else "unconditional-image-generation",
        limits=monitor.sentences(),
    )


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
