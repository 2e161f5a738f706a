"""Train the autoencoder of latent diffusion, diffusers' AutoencoderKL, on images: yours, the Hub's or embedded ones.

    accelerate launch examples/train_autoencoder_kl.py --dataset_name emoji --output_dir outputs/emoji-kl

A run that was killed goes on when the same command is started again. The folder it leaves is a pipeline, and its
subfolder `vae` is a plain AutoencoderKL for any latent diffusion pipeline, its latents measured and scaled:
`diffusers.AutoencoderKL.from_pretrained("outputs/emoji-kl", subfolder="vae")`. The score is of reconstructions.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from latentia import AutoencoderKLPipeline, PatchDiscriminator
from latentia.errors import Positive, Share, Size, UsageError, Weight
from latentia.losses.perceptual_compression import patch_discriminator_loss, perceptual_compression_loss
from latentia.models.autoencoder_kl import GaussianAutoencoder, autoencoder_kl
from latentia.runs.arguments import NetworkArguments, OptimizationArguments, RunArguments, network_arguments
from latentia.runs.command_line import run_script
from latentia.runs.perceptual import perceptual_term
from latentia.runs.run import Run
from latentia.runs.validation import Samples, reconstructor
from latentia.training.nonfinite import has_flags


@dataclass(frozen=True)
class ObjectiveArguments:
    """The objective; all terms are means over the values of an image."""

    reconstruction: Literal["l1", "mse"] = "l1"
    """Absolute or squared differences."""
    kl_weight: Weight = 1e-6
    """Weight of the KL per value: it holds the latents together, no more."""
    perceptual_weight: Weight = 0.1
    """Weight of the distance in the shipped classifier's layers; 0: none."""
    adversarial_weight: Weight = 0.1
    """Weight of the adversarial loss of the patch discriminator; 0: none."""
    adversarial_start: Share = 0.5
    """Share of the run after which the discriminator begins. It moves if --max_train_steps is raised later."""
    discriminator_learning_rate: Positive = 4e-4
    """Peak learning rate of the discriminator."""
    calibration_samples: Size = 2000
    """Images whose latents are measured at the end."""


@dataclass(frozen=True)
class Arguments(RunArguments):
    model: NetworkArguments = network_arguments(
        autoencoder_kl, "block_out_channels layers_per_block latent_channels norm_num_groups"
    )
    discriminator: NetworkArguments = network_arguments(
        PatchDiscriminator,
        "block_out_channels",
        flags={"block_out_channels": "discriminator_channels"},
        block_out_channels=(32, 64, 128),
    )
    objective: ObjectiveArguments = ObjectiveArguments()
    optimization: OptimizationArguments = OptimizationArguments(
        train_batch_size=16, learning_rate=1e-3, adam_weight_decay=0.0
    )


def check(args: Arguments, shape: tuple[int, int, int]) -> None:
    """Refuse flags and images that would fail later."""
    if shape[1] != shape[2]:
        raise UsageError(f"--resolution must make the images square; got {shape[1]} x {shape[2]}.")


def main(args: Arguments) -> int:
    run = Run(args, family="autoencoder_kl", pipeline_tag="image-feature-extraction")
    check(args, run.data.shape)
    options, chosen, (channels, side, _) = args.optimization, args.objective, run.data.shape

    vae = autoencoder_kl(sample_size=side, in_channels=channels, **args.model)
    critic = PatchDiscriminator(channels, **args.discriminator)
    adversarial = chosen.adversarial_weight > 0
    if adversarial and side < critic.least_size:
        raise UsageError(
            f"--discriminator_channels of {len(args.discriminator.discriminator_channels)} numbers need images of at "
            f"least {critic.least_size} pixels; got {side}. Give fewer, or --adversarial_weight 0."
        )
    autoencoder = run.prepare("autoencoder", GaussianAutoencoder(vae))
    discriminator = None
    if adversarial:
        rates = {"lr": chosen.discriminator_learning_rate, "betas": (0.5, options.adam_beta2)}
        adam = partial(torch.optim.Adam, **rates, fused=has_flags(run.accelerator))
        discriminator = run.prepare("discriminator", critic, optimizer=adam, ema=False)
    small = side // 2 ** (len(args.model.block_out_channels) - 1)
    latent_shape = (args.model.latent_channels, small, small)
    distance = perceptual_term(chosen.perceptual_weight, run.data.shape, run.device)
    begin = round(chosen.adversarial_start * run.steps)

    def loss(batch, rng):
        begun = discriminator is not None and rng.position >= begin * run.global_batch
        return perceptual_compression_loss(
            autoencoder.network,
            batch,
            rng,
            latent_shape=latent_shape,
            reconstruction=chosen.reconstruction,
            kl_weight=chosen.kl_weight,
            perceptual=distance,
            perceptual_weight=chosen.perceptual_weight,
            discriminator=discriminator.network if begun else None,
            adversarial_weight=chosen.adversarial_weight,
        )

    def discriminator_loss(batch, rng):
        return patch_discriminator_loss(
            discriminator.network, autoencoder.network, batch, rng, latent_shape=latent_shape
        )

    phases = [autoencoder.phase(loss)]
    if discriminator is not None:
        phases.append(discriminator.phase(discriminator_loss, after=begin))

    def pipeline(weights) -> AutoencoderKLPipeline:
        """With the scale of the latents measured on training images."""
        pipe = AutoencoderKLPipeline(weights.vae.eval())
        count = chosen.calibration_samples if run.data.endless else min(chosen.calibration_samples, len(run.data))
        pipe.calibrate(run.data.batch(0, count, seed=0, device=torch.device("cpu"))["x"])
        return pipe

    def reconstructions(count: int, seed: int, start: int = 0) -> Samples:
        images = run.data.batch(start, start + count, seed=seed, device=run.device)["x"]
        pipe = AutoencoderKLPipeline(autoencoder.final.vae)
        return Samples(pipe.reconstruct(images, output_type="latent").clamp(-1, 1).cpu())

    pairs = reconstructor(AutoencoderKLPipeline, autoencoder.final.vae, run.data)
    return run.train(phases, pipeline, samplers={"ema": reconstructions, "reconstruction": pairs})


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
