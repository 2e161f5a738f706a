"""Train the autoencoder of latent diffusion, diffusers' AutoencoderKL, on images: yours, the Hub's or embedded ones.

    accelerate launch examples/train_autoencoder_kl.py --dataset_name emoji --output_dir outputs/emoji-kl

A run that was killed goes on when the same command is started again. The folder it leaves is a pipeline, and its
subfolder `vae` is a plain AutoencoderKL for any latent diffusion pipeline, its latents measured and scaled:
`diffusers.AutoencoderKL.from_pretrained("outputs/emoji-kl", subfolder="vae")`. The score is of reconstructions.
"""

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch

from latentia import AutoencoderKLPipeline, PatchDiscriminator
from latentia.errors import UsageError
from latentia.evaluation import extractor_for, perceptual_loss
from latentia.losses.autoencoder_kl import autoencoder_kl_loss, patch_discriminator_loss
from latentia.models.autoencoder_kl import GaussianAutoencoder, autoencoder_kl
from latentia.runs.arguments import (
    DataArguments,
    EMAArguments,
    EvaluationArguments,
    HubArguments,
    OptimizationArguments,
    OutputArguments,
)
from latentia.runs.run import Validation, adamw, finish, fit, load_data, plan, run_script, start
from latentia.runs.validation import reconstructor
from latentia.training.ema import EMA
from latentia.training.loop import Phase, learning_rate_schedule


@dataclass(frozen=True)
class ModelArguments:
    """The networks, AutoencoderKL and PatchDiscriminator."""

    block_out_channels: tuple[int, ...] = (32, 64, 64)
    """Channels of each level from fine to coarse; every level but the last halves the picture."""
    layers_per_block: int = 1
    """Residual blocks of each level."""
    latent_channels: int = 4
    """Channels of the latents."""
    norm_num_groups: int = 8
    """Groups of the group norms."""
    discriminator_channels: tuple[int, ...] = (32, 64, 128)
    """Channels of the critic of patches."""


@dataclass(frozen=True)
class ObjectiveArguments:
    """The objective; all terms are means over the values of a picture."""

    reconstruction: Literal["l1", "mse"] = "l1"
    """Absolute or squared differences."""
    kl_weight: float = 1e-6
    """Weight of the KL per value: it holds the latents together, no more."""
    perceptual_weight: float = 0.1
    """Weight of the distance in the shipped classifier's layers; 0: none."""
    adversarial_weight: float = 0.1
    """Weight of the game against the critic of patches; 0: none."""
    adversarial_start: float = 0.5
    """Share of the run after which the critic begins. It moves if --max_train_steps is raised later."""
    discriminator_learning_rate: float = 4e-4
    """Peak learning rate of the critic."""
    calibration_samples: int = 2000
    """Images whose latents are measured at the end."""


@dataclass(frozen=True)
class Arguments:
    data: DataArguments = field(default_factory=DataArguments)
    model: ModelArguments = field(default_factory=ModelArguments)
    objective: ObjectiveArguments = field(default_factory=ObjectiveArguments)
    optimization: OptimizationArguments = field(
        default_factory=lambda: OptimizationArguments(train_batch_size=16, learning_rate=1e-3, adam_weight_decay=0.0)
    )
    ema: EMAArguments = field(default_factory=EMAArguments)
    evaluation: EvaluationArguments = field(default_factory=EvaluationArguments)
    output: OutputArguments = field(default_factory=OutputArguments)
    hub: HubArguments = field(default_factory=HubArguments)


def perceptual(weight: float, shape: tuple[int, int, int], device):
    """The distance in the layers of the shipped classifier whose channels and kind of pictures these are, or None."""
    if weight == 0:
        return None
    fallback = (3, 32, 32) if shape[0] == 3 else (shape[0], 28, 28)
    extractor = extractor_for(shape, device) or extractor_for(fallback, device)
    if extractor is None:
        raise UsageError(f"--perceptual_weight must be 0 for images of {shape[0]} channels: no classifier fits them.")
    return partial(perceptual_loss, model=extractor.model.requires_grad_(False))


def main(args: Arguments) -> int:
    accelerator = start(args)
    data = load_data(args.data)
    options, model, chosen = args.optimization, args.model, args.objective
    if data.shape[1] != data.shape[2]:
        raise UsageError(f"--resolution must make the images square; got {data.shape[1]} x {data.shape[2]}.")
    if not 0 <= chosen.adversarial_start <= 1:
        raise UsageError(f"--adversarial_start must be a share from 0 to 1; got {chosen.adversarial_start}.")
    if chosen.calibration_samples < 1:
        raise UsageError(f"--calibration_samples must be at least 1; got {chosen.calibration_samples}.")
    for name in ("kl_weight", "perceptual_weight", "adversarial_weight"):
        if not 0 <= getattr(chosen, name) < math.inf:
            raise UsageError(f"--{name} must be at least 0 and finite; got {getattr(chosen, name)}.")

    torch.manual_seed(options.seed)
    vae = autoencoder_kl(
        sample_size=data.shape[1],
        in_channels=data.shape[0],
        block_out_channels=model.block_out_channels,
        layers_per_block=model.layers_per_block,
        latent_channels=model.latent_channels,
        norm_num_groups=model.norm_num_groups,
    )
    if options.gradient_checkpointing:
        vae.enable_gradient_checkpointing()
    side = data.shape[1] // 2 ** (len(model.block_out_channels) - 1)
    shape = (model.latent_channels, side, side)
    critic = PatchDiscriminator(data.shape[0], model.discriminator_channels)
    game = chosen.adversarial_weight > 0
    if game and data.shape[1] < critic.least_size:
        raise UsageError(
            f"--discriminator_channels of {len(model.discriminator_channels)} numbers need images of at least "
            f"{critic.least_size} pixels; got {data.shape[1]}. Give fewer, or --adversarial_weight 0."
        )
    steps = plan(accelerator, args, data, torch.nn.ModuleList([vae, critic] if game else [vae]))
    begin = round(chosen.adversarial_start * steps)
    global_batch = options.train_batch_size * options.gradient_accumulation_steps * accelerator.num_processes

    plain = GaussianAutoencoder(vae).to(accelerator.device)
    ema = EMA(plain, args.ema.ema_decay, args.ema.ema_warmup) if args.ema.use_ema else None
    if options.compile:
        plain.compile()
        critic.compile()
    autoencoder, optimizer = accelerator.prepare(plain, adamw(accelerator, args, plain.parameters()))
    if game:
        betas = (0.5, options.adam_beta2)
        critic, critic_optimizer = accelerator.prepare(
            critic, torch.optim.Adam(critic.parameters(), lr=chosen.discriminator_learning_rate, betas=betas)
        )
    distance = perceptual(chosen.perceptual_weight, data.shape, accelerator.device)

    def loss(batch, rng):
        playing = game and rng.position >= begin * global_batch
        return autoencoder_kl_loss(
            autoencoder,
            batch,
            rng,
            latent_shape=shape,
            reconstruction=chosen.reconstruction,
            kl_weight=chosen.kl_weight,
            perceptual=distance,
            perceptual_weight=chosen.perceptual_weight,
            discriminator=critic if playing else None,
            adversarial_weight=chosen.adversarial_weight,
        )

    def critic_loss(batch, rng):
        return patch_discriminator_loss(critic, autoencoder, batch, rng, latent_shape=shape)

    rate = learning_rate_schedule(options.lr_scheduler, options.lr_warmup_steps, steps)
    phases = [
        Phase("autoencoder", loss, autoencoder, optimizer, rate, max_grad_norm=options.max_grad_norm, ema=ema),
    ]
    if game:
        phases.append(
            Phase(
                "discriminator", critic_loss, critic, critic_optimizer, rate, after=begin,
                max_grad_norm=options.max_grad_norm,
            )
        )  # fmt: skip

    final = ema.module.vae if ema is not None else vae

    def reconstructions(batch_size: int, seed: int) -> torch.Tensor:
        images = data.batch(0, batch_size, seed=seed, device=accelerator.device)["x"]
        return AutoencoderKLPipeline(final).reconstruct(images, output_type="latent").clamp(-1, 1).cpu()

    pairs = reconstructor(AutoencoderKLPipeline, final, data)
    validation = Validation(args, data, {"ema": reconstructions, "reconstruction": pairs})
    identity = (args.model, args.objective, args.optimization, args.ema)
    result = fit(accelerator, args, phases, data, steps, identity=identity, hooks=validation.hooks())
    pipe = AutoencoderKLPipeline(final.eval())
    if accelerator.is_main_process and result.status != "interrupted":
        asked = chosen.calibration_samples
        count = asked if args.data.streaming else min(asked, len(data))
        pipe.calibrate(data.batch(0, count, seed=0, device=torch.device("cpu"))["x"])
    return finish(
        accelerator,
        args,
        result,
        pipe,
        validation,
        family="autoencoder_kl",
        pipeline_tag="image-feature-extraction",
    )


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
