"""Train an autoencoder on images, series or sounds: linear, stacked or convolutional, plain, denoising or sparse.

    accelerate launch examples/train_autoencoder.py --dataset_name digits --latent_dim 8 --output_dir outputs/digits-ae
    latentia train autoencoder --train_data_dir sensors.csv --window 64 --hidden_sizes 64 --output_dir outputs/ae

At the end a Gaussian mixture is fitted to the latents, so that the pipeline it leaves samples too:
`latentia.DiffusionPipeline.from_pretrained("outputs/digits-ae")`. A run that was killed goes on when the same command
is started again.
"""

from dataclasses import dataclass

import torch

from latentia import Autoencoder, AutoencoderPipeline, LatentMixture
from latentia.errors import Natural, Size, UsageError
from latentia.functional.chunks import in_chunks
from latentia.losses.reconstruction import autoencoder_loss
from latentia.models.autoencoder import outer_layers
from latentia.runs.arguments import NetworkArguments, RunArguments, network_arguments
from latentia.runs.command_line import run_script
from latentia.runs.run import Prepared, Run
from latentia.runs.signal_data import arguments_of, open_signals
from latentia.runs.validation import reconstructor, sampler
from latentia.training.loop import Phase


@dataclass(frozen=True)
class StageArguments:
    """What comes before and after training as a whole."""

    layerwise_steps: Natural = 0
    """Steps in which each dense layer is first trained alone, from the outermost; 0: all together from the start."""
    prior_components: Size = 10
    """Gaussians of the mixture that is fitted to the latents at the end."""
    prior_samples: Size = 2000
    """Training images whose latents it is fitted to."""


@dataclass(frozen=True)
class Arguments(RunArguments):
    model: NetworkArguments = network_arguments(
        Autoencoder,
        "latent_dim hidden_sizes block_out_channels layers_per_block norm upsample activation latent_activation "
        "tie_weights overcomplete",
    )
    objective: NetworkArguments = network_arguments(
        autoencoder_loss,
        "reconstruction corruption corruption_strength sparsity sparsity_weight sparsity_target",
    )
    stages: StageArguments = StageArguments()


def main(args: Arguments) -> int:
    signals = open_signals(args)
    if signals and args.objective.corruption == "masking":
        raise UsageError(
            "--corruption must be gaussian or none for series and sounds, which have no pixels; got masking."
        )
    run = Run(args, family="autoencoder", **(signals.run if signals else {}))
    stages = args.stages
    autoencoder = Autoencoder(**run.image, **args.model)

    def phase(prepared: Prepared, **changed: str) -> Phase:
        options = {**args.objective, **changed}
        return prepared.phase(lambda batch, rng: autoencoder_loss(prepared.network, batch, rng, **options))

    # Greedy layer-wise training, if asked for: each layer and its mirror alone, those outside it fixed.
    steps = stages.layerwise_steps
    for depth in range(1, len(autoencoder.encoder_mlp) + 1) if steps else ():
        outer = outer_layers(autoencoder, depth).requires_grad_(False)
        inner = [*outer.encoder_mlp[-1].parameters(), *outer.decoder_mlp[0].parameters()]
        for parameter in inner:
            parameter.requires_grad_(True)
        layer = run.prepare(f"layer-{depth}", outer, parameters=inner, steps=steps, ema=False, compiled=False)
        innermost = depth == len(autoencoder.encoder_mlp)
        alone = phase(layer) if innermost else phase(layer, sparsity="none")
        result = run.fit([alone], steps=steps, folder=run.folder / layer.name)
        autoencoder.requires_grad_(True)
        if result.status == "interrupted":
            return run.finish(result)

    whole = run.prepare("autoencoder", autoencoder)

    def pipeline(weights) -> AutoencoderPipeline:
        """With a density of the latents that the weights give to training images."""
        images = run.data.batch(0, stages.prior_samples, seed=0, device=run.device)["x"]
        with torch.no_grad():
            latents = in_chunks(weights.encode, images)
        prior = LatentMixture.fit(latents, stages.prior_components).to(weights.device)
        return AutoencoderPipeline(weights, prior, signals.codec if signals else None)

    if signals:
        validation = signals.validation(args, pipeline, whole.final)
        return run.train([phase(whole)], pipeline, weights=whole, validation=validation)
    pairs = reconstructor(AutoencoderPipeline, whole.final, run.data)
    return run.train(
        [phase(whole)],
        pipeline,
        weights=whole,
        samplers={"ema": sampler(pipeline, whole.final, run.data), "reconstruction": pairs},
    )


if __name__ == "__main__":
    run_script(arguments_of(Arguments), main, __doc__.splitlines()[0])
