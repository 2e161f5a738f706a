"""Train a diffusion or flow-matching model on images: yours, the Hub's or the embedded digits and emoji.

    accelerate launch examples/train_ddpm.py --dataset_name digits --output_dir outputs/digits

    latentia train ddpm --dataset_name emoji --degrade grey --output_dir outputs/colour
    latentia train ddpm --dataset_name digits --degrade edges --control_from outputs/digits --output_dir outputs/edges

A run that was killed goes on when the same command is started again. The folder it leaves is a pipeline:
`latentia.DiffusionPipeline.from_pretrained("outputs/digits")`. With flags of pairs it makes images from images: the
network sees a conditioning image beside the noise, or with --control_from a branch of a trained network does.
"""

from dataclasses import dataclass

from latentia import UnconditionalDiffusionPipeline, UNet2D
from latentia.data import PairedImages
from latentia.errors import Share, UsageError
from latentia.models.control import Controlled
from latentia.runs.arguments import ClassArguments, NetworkArguments, RunArguments, network_arguments
from latentia.runs.command_line import run_script
from latentia.runs.compilation import fast_layout
from latentia.runs.control import (
    BranchArguments,
    ConditionImageArguments,
    branch_of,
    check_branch,
    check_shape,
    condition_arguments,
    condition_samplers,
    degradation_config,
    load_base,
    objective_of,
    run_on_pairs,
)
from latentia.runs.diffusion import (
    DiffusionArguments,
    DiffusionEvaluationArguments,
    check_objective,
    evaluation_steps,
    flow_map_settings,
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
    images: ConditionImageArguments = ConditionImageArguments()
    branch: BranchArguments = BranchArguments()
    diffusion: PixelArguments = PixelArguments()
    evaluation: DiffusionEvaluationArguments = DiffusionEvaluationArguments()


def main(args: Arguments) -> int:
    chosen = args.diffusion
    check_objective(chosen, args.optimization.train_batch_size)
    if chosen.learned_variance and chosen.prediction_type == "flow":
        raise UsageError("--learned_variance must be left out with --prediction_type flow, which has no variances.")
    run, pairs = run_on_pairs(args, "diffusion", args.images, args.branch)
    if args.branch.control_from is not None:
        return train_branch(args, run, pairs)
    channels = run.image["in_channels"] * (2 if chosen.learned_variance else 1)
    side = min(run.image["sample_size"])
    patch = args.model.patch_size or (1 if side < 24 else 2 if side < 64 else 4)
    shape = {**run.image, **args.model, "patch_size": patch, **flow_map_settings(chosen.few_steps)}
    shape |= condition_arguments(pairs, run.image["sample_size"])
    network = UNet2D(**shape, out_channels=channels, num_class_embeds=run.num_classes)
    unet = run.prepare("unet", fast_layout(network, args, run.device))
    variance = "learned_range" if chosen.learned_variance else "fixed_small"
    noise, sampling = schedulers(chosen, run.device, clip_sample=True, variance_type=variance)
    loss = objective(unet.network, noise, chosen, chosen.class_dropout)

    def pipeline(weights) -> UnconditionalDiffusionPipeline:
        dropped = chosen.class_dropout > 0
        options = {"unconditional": dropped, "degradation": degradation_config(pairs)}
        return UnconditionalDiffusionPipeline(weights, sampling, label_names=run.label_names, **options)

    steps = evaluation_steps(chosen, args.evaluation)
    samplers = condition_samplers(pipeline, unet, pairs, num_inference_steps=steps)
    return run.train([unet.phase(loss)], pipeline, samplers=samplers, num_inference_steps=steps)


def train_branch(args: Arguments, run: Run, pairs: PairedImages) -> int:
    """Train a control branch on a trained network, which stays as it is."""
    check_branch(args, Arguments())
    kind, classes = UnconditionalDiffusionPipeline, args.condition.class_conditional
    base = load_base(args.branch.control_from, kind, classes)
    check_shape(base, run.inputs.shape)
    controlnet = run.prepare("controlnet", branch_of(base, pairs, run.image["sample_size"], run.device))
    noise, chosen = objective_of(base, args.diffusion, run.device)
    dropout = chosen.class_dropout if base.config.unconditional else 0.0
    loss = objective(Controlled(base.unet, controlnet.network), noise, chosen, dropout)
    options = {"label_names": run.label_names, "unconditional": base.config.unconditional}

    def pipeline(weights) -> UnconditionalDiffusionPipeline:
        return kind(base.unet, base.scheduler, controlnet=weights, degradation=degradation_config(pairs), **options)

    steps = evaluation_steps(chosen, args.evaluation)
    samplers = condition_samplers(pipeline, controlnet, pairs, num_inference_steps=steps)
    return run.train([controlnet.phase(loss)], pipeline, samplers=samplers, num_inference_steps=steps)


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
