"""Train a recurrent autoencoder on time series or sounds, or on images as sequences of rows, whole or cut at random.

    python examples/train_recurrent_autoencoder.py --dataset_name digits --min_rows 4 --output_dir outputs/rows
    latentia train recurrent_autoencoder --train_data_dir sensors.csv --output_dir outputs/sensors

At the end a Gaussian mixture is fitted to the latents of whole images, so that the pipeline it leaves samples too. A
run that was killed goes on when the same command is started again.
"""

import math
from dataclasses import dataclass

import torch

from latentia import LatentMixture, RecurrentAutoencoder, RecurrentAutoencoderPipeline
from latentia.errors import Natural, Size, UsageError
from latentia.functional.chunks import in_chunks
from latentia.functional.masks import length_mask
from latentia.functional.rows import rows_of_images
from latentia.losses.reconstruction import autoencoder_loss
from latentia.runs.arguments import NetworkArguments, RunArguments, network_arguments
from latentia.runs.command_line import run_script
from latentia.runs.run import Run
from latentia.runs.signal_data import arguments_of, open_signals
from latentia.runs.validation import reconstructor, sampler


@dataclass(frozen=True)
class SequenceArguments:
    """Lengths of the sequences, and the density of their latents."""

    min_rows: Natural = 0
    """Each image or series is cut to its first rows or steps, at least so many, a random number; 0: whole ones."""
    prior_components: Size = 10
    """Gaussians of the mixture that is fitted to the latents at the end."""
    prior_samples: Size = 2000
    """Training images or signals whose latents it is fitted to."""


@dataclass(frozen=True)
class Arguments(RunArguments):
    model: NetworkArguments = network_arguments(RecurrentAutoencoder, "latent_dim hidden_size latent_activation")
    objective: NetworkArguments = network_arguments(
        autoencoder_loss, "reconstruction sparsity sparsity_weight sparsity_target"
    )
    sequence: SequenceArguments = SequenceArguments()


def main(args: Arguments) -> int:
    signals = open_signals(args, unequal=True)
    run = Run(args, family="recurrent_autoencoder", **(signals.run if signals else {}))
    channels, height, *width = run.inputs.shape  # of series and sounds a row is a step
    least = args.sequence.min_rows or height
    if least > height:
        raise UsageError(f"min_rows must be at most {height}, the rows of an image; got {least}.")
    network = run.prepare("autoencoder", RecurrentAutoencoder(in_features=channels * math.prod(width), **args.model))

    def loss(batch, rng):
        rows = rows_of_images(batch["x"])
        lengths = least + (rng.uniform("rows") * (height - least + 1)).long()
        mask = length_mask(lengths, height)
        if "step_mask" in batch:
            mask = mask & batch["step_mask"]
        return autoencoder_loss(network.network, {"x": rows, "mask": mask}, rng, **args.objective)

    def pipeline(weights) -> RecurrentAutoencoderPipeline:
        """With a density of the latents that the weights give to training images."""
        batch = run.data.batch(0, args.sequence.prior_samples, seed=0, device=run.device)
        rows = rows_of_images(batch["x"])
        lengths = (
            batch["step_mask"].sum(1) if "step_mask" in batch else torch.full((len(rows),), height).to(rows.device)
        )
        with torch.no_grad():
            latents = in_chunks(lambda x, n: weights.encode(x, length_mask(n.clamp(min=1), height)), rows, lengths)
        prior = LatentMixture.fit(latents, args.sequence.prior_components).to(weights.device)
        if signals:
            return RecurrentAutoencoderPipeline(weights, prior, codec=signals.codec)
        return RecurrentAutoencoderPipeline(weights, prior, height, channels)

    if signals:
        return run.train([network.phase(loss)], pipeline, validation=signals.validation(args, pipeline, network.final))

    def reconstructing(weights) -> RecurrentAutoencoderPipeline:
        return RecurrentAutoencoderPipeline(weights, None, height, channels)

    pairs = reconstructor(reconstructing, network.final, run.data)
    samplers = {"ema": sampler(pipeline, network.final, run.data), "reconstruction": pairs}
    return run.train([network.phase(loss)], pipeline, samplers=samplers)


if __name__ == "__main__":
    run_script(arguments_of(Arguments), main, __doc__.splitlines()[0])
