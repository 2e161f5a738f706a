"""Train a VAE-GAN on images: a VAE whose decoder is a generator, judged by the features of a discriminator.

    python examples/train_vae_gan.py --dataset_name digits --output_dir outputs/vae-gan-digits

A run that was killed goes on when the same command is started again. The folder it leaves is a pipeline of a VAE
without a likelihood: `latentia.DiffusionPipeline.from_pretrained("outputs/vae-gan-digits")`.
"""

from dataclasses import dataclass

from latentia import VAE, DCGANDiscriminator, VAEPipeline
from latentia.errors import Positive, UsageError
from latentia.functional.adversarial import Objective
from latentia.losses.vae_gan import vae_gan_discriminator_loss, vae_gan_loss
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
class HybridArguments:
    """The objective of the VAE and of the discriminator."""

    gamma: Positive = 1e-2
    """Weight of the reconstruction against the adversarial loss, of the decoder alone."""
    discriminator_layer: str | None = None
    """Layer of the discriminator whose features are reconstructed, such as down_blocks.1; not given: the last stage."""
    objective: Objective = "non_saturating"
    """What both networks minimise; the paper's is minimax."""
    discriminator_learning_rate: Positive | None = None
    """Peak rate of the discriminator; not given: the learning_rate."""


@dataclass(frozen=True)
class Arguments(RunArguments):
    model: NetworkArguments = network_arguments(
        VAE, "latent_dim block_out_channels layers_per_block activation", latent_dim=32, block_out_channels=(32, 64)
    )
    discriminator: NetworkArguments = network_arguments(
        DCGANDiscriminator,
        "block_out_channels norm",
        flags={"block_out_channels": "discriminator_block_out_channels", "norm": "discriminator_norm"},
        block_out_channels=(32, 64),
        norm="none",
    )
    condition: ClassArguments = ClassArguments()
    hybrid: HybridArguments = HybridArguments()
    optimization: OptimizationArguments = OptimizationArguments(
        learning_rate=1e-3, adam_beta1=0.5, adam_weight_decay=0.0, max_grad_norm=200.0
    )


def main(args: Arguments) -> int:
    run = Run(args, family="vae_gan")
    chosen, classes = args.hybrid, run.num_classes
    if not isinstance(args.model.latent_dim, int):
        raise UsageError(
            f"--latent_dim must be one number: a VAE-GAN has one stochastic layer; got {args.model.latent_dim}."
        )
    network = VAE(**run.image, **args.model, hidden_sizes=(), likelihood="none", num_class_embeds=classes)
    vae = run.prepare("vae", network)
    critic = DCGANDiscriminator(**run.image, **args.discriminator, num_class_embeds=classes)
    layer = chosen.discriminator_layer
    if layer is None:
        layer = critic.feature_layers[-1]
    if layer not in critic.feature_layers:
        raise UsageError(f"--discriminator_layer must be one of {', '.join(critic.feature_layers)}; got {layer}.")
    discriminator = run.prepare("discriminator", critic, ema=False, learning_rate=chosen.discriminator_learning_rate)

    def loss(batch, rng):
        options = {"gamma": chosen.gamma, "feature_layer": layer, "objective": chosen.objective}
        return vae_gan_loss(vae.network, discriminator.network, batch, rng, **options)

    def discriminator_loss(batch, rng):
        return vae_gan_discriminator_loss(discriminator.network, vae.network, batch, rng, objective=chosen.objective)

    def pipeline(weights) -> VAEPipeline:
        return VAEPipeline(weights, label_names=run.label_names)

    return run.train([discriminator.phase(discriminator_loss), vae.phase(loss)], pipeline)


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
