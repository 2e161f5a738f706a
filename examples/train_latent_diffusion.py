"""Train diffusion or flow matching in the latents of an autoencoder, on images: yours, the Hub's or embedded ones.

    accelerate launch examples/train_autoencoder_kl.py --dataset_name emoji --output_dir outputs/emoji-kl
    accelerate launch examples/train_latent_diffusion.py --dataset_name emoji --autoencoder outputs/emoji-kl \\
        --output_dir outputs/emoji-latent

The latents are computed once and cached. A run that was killed goes on when the same command is started again. The
folder it leaves is a pipeline that holds the autoencoder too; the score is of decoded images. With flags of pairs, such
as --degrade edges, it makes images from images; with --control_from a branch of a trained network does, and the
autoencoder is that of the trained pipeline.
"""

from dataclasses import dataclass, replace

from latentia import LatentDiffusionPipeline, UNet2D
from latentia.data import PairedImages
from latentia.errors import Share, UsageError
from latentia.models.control import Controlled
from latentia.runs.arguments import NetworkArguments, RunArguments, network_arguments
from latentia.runs.command_line import run_script
from latentia.runs.compilation import fast_layout
from latentia.runs.control import (
    BranchArguments,
    ConditionImageArguments,
    LatentPairs,
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
    LatentArguments,
    check_objective,
    evaluation_steps,
    flow_map_settings,
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
    images: ConditionImageArguments = ConditionImageArguments()
    branch: BranchArguments = BranchArguments()
    diffusion: DiffusionArguments = DiffusionArguments()
    evaluation: DiffusionEvaluationArguments = DiffusionEvaluationArguments()


def main(args: Arguments) -> int:
    check_objective(args.diffusion, args.optimization.train_batch_size)
    run, pairs = run_on_pairs(args, "latent_diffusion", args.images, args.branch)
    if args.branch.control_from is not None:
        return train_branch(args, run, pairs)
    vae, run.inputs = latents_of(run, args.latent)
    if pairs is not None:
        run.inputs = LatentPairs(run.inputs, pairs)
    run.seed()
    few = flow_map_settings(args.diffusion.few_steps)
    more = condition_arguments(pairs, run.image["sample_size"])
    network = UNet2D(**run.image, **args.model, **more, num_class_embeds=run.num_classes, **few)
    unet = run.prepare("unet", fast_layout(network, args, run.device))
    noise, sampling = schedulers(args.diffusion, run.device)
    loss = objective(unet.network, noise, args.diffusion, args.condition.class_dropout)

    def pipeline(weights) -> LatentDiffusionPipeline:
        dropped = args.condition.class_dropout > 0
        options = {"unconditional": dropped, "degradation": degradation_config(pairs)}
        return LatentDiffusionPipeline(vae, weights, sampling, label_names=run.label_names, **options)

    steps = evaluation_steps(args.diffusion, args.evaluation)
    samplers = condition_samplers(pipeline, unet, pairs, num_inference_steps=steps)
    return run.train([unet.phase(loss)], pipeline, samplers=samplers, num_inference_steps=steps)


def train_branch(args: Arguments, run: Run, pairs: PairedImages) -> int:
    """Train a control branch on a trained network, which stays as it is."""
    check_branch(args, Arguments())
    if args.latent.autoencoder is not None:
        raise UsageError(f"--autoencoder must be left out, as --control_from holds one; got {args.latent.autoencoder}.")
    kind, classes = LatentDiffusionPipeline, args.condition.class_conditional
    base = load_base(args.branch.control_from, kind, classes)
    vae, latents = latents_of(run, replace(args.latent, autoencoder=args.branch.control_from))
    check_shape(base, latents.shape)
    run.inputs = LatentPairs(latents, pairs)
    run.seed()
    controlnet = run.prepare("controlnet", branch_of(base, pairs, run.image["sample_size"], run.device))
    noise, chosen = objective_of(base, args.diffusion, run.device)
    dropout = args.condition.class_dropout if base.config.unconditional else 0.0
    loss = objective(Controlled(base.unet, controlnet.network), noise, chosen, dropout)
    options = {"label_names": run.label_names, "unconditional": base.config.unconditional}

    def pipeline(weights) -> LatentDiffusionPipeline:
        return kind(
            vae, base.unet, base.scheduler, controlnet=weights, degradation=degradation_config(pairs), **options
        )

    steps = evaluation_steps(chosen, args.evaluation)
    samplers = condition_samplers(pipeline, controlnet, pairs, num_inference_steps=steps)
    return run.train([controlnet.phase(loss)], pipeline, samplers=samplers, num_inference_steps=steps)


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
