"""Train a VQ-VAE on images, time series or sounds: yours, the Hub's or embedded ones.

    accelerate launch examples/train_vqvae.py --dataset_name digits --output_dir outputs/digits-vqvae
    latentia train vqvae --train_data_dir sensors.csv --window 64 --output_dir outputs/sensors-vqvae

A run that was killed goes on when the same command is started again. The folder it leaves is a pipeline:
`latentia.DiffusionPipeline.from_pretrained("outputs/digits-vqvae")`. Its prior takes the positions of the codes as
independent, which is a baseline; for good samples put an autoregressive network in its place.
"""

from dataclasses import dataclass

from latentia import VQVAE, VQVAEPipeline
from latentia.errors import Rate, Size, Weight
from latentia.losses.quantisation import CodebookUpdate, vqvae_loss
from latentia.models.priors import PositionPrior
from latentia.pipelines.codebook import codebook_size, encode_tensors
from latentia.runs.arguments import NetworkArguments, RunArguments, network_arguments
from latentia.runs.command_line import run_script
from latentia.runs.run import Run
from latentia.runs.signal_data import arguments_of, open_signals
from latentia.runs.validation import reconstructor, sampler
from latentia.training.loop import Phase


@dataclass(frozen=True)
class CodebookArguments:
    """The objective and the codebook."""

    beta: Weight = 0.25
    """Weight of the commitment of the encoder to its codes."""
    codebook_decay: Rate = 0.99
    """Decay per step of the running means."""
    restart_below: Rate = 0.1
    """Restart rows used less than this share of the mean; 0: never."""
    prior_samples: Size = 2000
    """Images or signals whose codes the prior is fitted to."""


@dataclass(frozen=True)
class Arguments(RunArguments):
    model: NetworkArguments = network_arguments(
        VQVAE,
        "block_out_channels layers_per_block quantizer codebook_size latent_channels codebook_update levels upsample",
        block_out_channels=(64,),
        latent_channels=16,
    )
    codebook: CodebookArguments = CodebookArguments()


def main(args: Arguments) -> int:
    signals = open_signals(args)
    run = Run(args, family="vqvae", **(signals.run if signals else {}))
    vqvae = run.prepare("vqvae", VQVAE(**run.image, **args.model))
    update = None
    if args.model.quantizer == "vq" and args.model.codebook_update == "ema":
        update = CodebookUpdate(vqvae.module, args.codebook.codebook_decay, args.codebook.restart_below)

    def loss(batch, rng):
        collect = update.collect if update else None
        return vqvae_loss(vqvae.network, batch, rng, beta=args.codebook.beta, collect=collect)

    def pipeline(weights) -> VQVAEPipeline:
        """With a prior over the codes that the weights give to training images."""
        x = run.data.batch(0, args.codebook.prior_samples, seed=0, device=run.device)["x"]
        prior = PositionPrior.fit(encode_tensors(weights.eval(), x), codebook_size(weights))
        return VQVAEPipeline(weights, prior.to(run.device), signals.codec if signals else None)

    phases = [vqvae.phase(loss)]
    if update is not None:
        phases.append(Phase(name="codebook", loss=update, trains=vqvae.network))
    if signals:
        return run.train(phases, pipeline, validation=signals.validation(args, pipeline, vqvae.final))
    pairs = reconstructor(VQVAEPipeline, vqvae.final, run.data)
    samples = sampler(pipeline, vqvae.final, run.data)
    return run.train(phases, pipeline, samplers={"ema": samples, "reconstruction": pairs})


if __name__ == "__main__":
    run_script(arguments_of(Arguments), main, __doc__.splitlines()[0])
