"""Train diffusion or flow matching in the latents of an autoencoder, on images: yours, the Hub's or embedded ones.

    accelerate launch examples/train_autoencoder_kl.py --dataset_name emoji --output_dir outputs/emoji-kl
    accelerate launch examples/train_latent_diffusion.py --dataset_name emoji --autoencoder outputs/emoji-kl \\
        --output_dir outputs/emoji-latent

The latents are computed once and cached. A run that was killed goes on when the same command is started again. The
folder it leaves is a pipeline that holds the autoencoder too; the score is of decoded images.
"""

from dataclasses import dataclass

import torch

from latentia import LatentDiffusionPipeline, UNet2D
from latentia.errors import Share
from latentia.runs.arguments import NetworkArguments, RunArguments, network_arguments
from latentia.runs.command_line import run_script
from latentia.runs.diffusion import (
    DiffusionArguments,
    DiffusionEvaluationArguments,
    LatentArguments,
    check_objective,
    evaluation_steps,
    latents_of,
    objective,
    schedulers,
)
from latentia.runs.run import Run


@dataclass(frozen=True)
class ConditionArguments:
    """Class labels as a condition."""

    class_conditional: bool = False
    """Condition the network on the class labels of the data set, so that classes can be asked for."""
    class_dropout: Share = 0.1
    """Share of labels that are dropped, for classifier-free guidance."""


@dataclass(frozen=True)
class Arguments(RunArguments):
    latent: LatentArguments = LatentArguments()
    model: NetworkArguments = network_arguments(
        UNet2D,
        "block_out_channels layers_per_block attention_head_dim dropout",
        block_out_channels=(64, 128),
        layers_per_block=1,
    )
    condition: ConditionArguments = ConditionArguments()
    diffusion: DiffusionArguments = DiffusionArguments()
    evaluation: DiffusionEvaluationArguments = DiffusionEvaluationArguments()


def main(args: Arguments) -> int:
    check_objective(args.diffusion, args.optimization.train_batch_size)
    run = Run(args, family="latent_diffusion")
    vae, run.inputs = latents_of(run, args.latent)
    run.seed()
    few = args.diffusion.few_steps is not None
    network = UNet2D(**run.image, **args.model, num_class_embeds=run.num_classes, target_time=few)
    unet = run.prepare("unet", network.to(memory_format=torch.channels_last))
    noise, sampling = schedulers(args.diffusion, run.device)
    loss = objective(unet.network, noise, args.diffusion, args.condition.class_dropout)

    def pipeline(weights) -> LatentDiffusionPipeline:
        dropped = args.condition.class_dropout > 0
        return LatentDiffusionPipeline(vae, weights, sampling, label_names=run.label_names, unconditional=dropped)

    steps = evaluation_steps(args.diffusion, args.evaluation)
    return run.train([unet.phase(loss)], pipeline, num_inference_steps=steps)


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
