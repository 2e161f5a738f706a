"""Train a diffusion or flow-matching model on images: yours, the Hub's or the embedded digits and emoji.

    accelerate launch examples/train_ddpm.py --dataset_name digits --output_dir outputs/digits

A run that was killed goes on when the same command is started again. The folder it leaves is a pipeline:
`latentia.DiffusionPipeline.from_pretrained("outputs/digits")`.
"""

from dataclasses import dataclass

import torch

from latentia import UnconditionalDiffusionPipeline, UNet2D
from latentia.errors import Share, UsageError
from latentia.runs.arguments import ClassArguments, NetworkArguments, RunArguments, network_arguments
from latentia.runs.command_line import run_script
from latentia.runs.diffusion import (
    DiffusionArguments,
    DiffusionEvaluationArguments,
    check_objective,
    evaluation_steps,
    objective,
    schedulers,
)
from latentia.runs.run import Run


@dataclass(frozen=True)
class PixelArguments(DiffusionArguments):
    """The noise and the objective."""

    learned_variance: bool = False
    """Learn the variances too, for a better likelihood; best with --time_sampling uniform; not of flow matching."""
    class_dropout: Share = 0.1
    """Share of labels that are dropped, for classifier-free guidance."""


@dataclass(frozen=True)
class Arguments(RunArguments):
    model: NetworkArguments = network_arguments(
        UNet2D,
        "block_out_channels patch_size layers_per_block attention_stages attention_head_dim dropout",
        helps={"patch_size": " Not given: 1 for images below 24 pixels, 2 below 64, else 4."},
        block_out_channels=(64, 128),
        layers_per_block=1,
        patch_size=None,
    )
    condition: ClassArguments = ClassArguments()
    diffusion: PixelArguments = PixelArguments()
    evaluation: DiffusionEvaluationArguments = DiffusionEvaluationArguments()


def main(args: Arguments) -> int:
    chosen = args.diffusion
    check_objective(chosen, args.optimization.train_batch_size)
    if chosen.learned_variance and chosen.prediction_type == "flow":
        raise UsageError("--learned_variance must be left out with --prediction_type flow, which has no variances.")
    run = Run(args, family="diffusion")
    channels = run.image["in_channels"] * (2 if chosen.learned_variance else 1)
    side = min(run.image["sample_size"])
    patch = args.model.patch_size or (1 if side < 24 else 2 if side < 64 else 4)
    shape = {**run.image, **args.model, "patch_size": patch, "target_time": chosen.few_steps is not None}
    network = UNet2D(**shape, out_channels=channels, num_class_embeds=run.num_classes)
    unet = run.prepare("unet", network.to(memory_format=torch.channels_last))
    variance = "learned_range" if chosen.learned_variance else "fixed_small"
    noise, sampling = schedulers(chosen, run.device, clip_sample=True, variance_type=variance)
    loss = objective(unet.network, noise, chosen, chosen.class_dropout)

    def pipeline(weights) -> UnconditionalDiffusionPipeline:
        dropped = chosen.class_dropout > 0
        return UnconditionalDiffusionPipeline(weights, sampling, label_names=run.label_names, unconditional=dropped)

    steps = evaluation_steps(chosen, args.evaluation)
    return run.train([unet.phase(loss)], pipeline, num_inference_steps=steps)


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
