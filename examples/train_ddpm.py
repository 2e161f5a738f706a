"""Train a diffusion model on images: yours, the Hub's or the embedded digits and emoji.

    accelerate launch examples/train_ddpm.py --dataset_name digits --output_dir outputs/digits

A run that was killed goes on when the same command is started again. The folder it leaves is a pipeline:
`latentia.DiffusionPipeline.from_pretrained("outputs/digits")`.
"""

from dataclasses import dataclass

import torch

from latentia import DDIMScheduler, DDPMScheduler, UnconditionalDiffusionPipeline, UNet2D
from latentia.errors import Finite, Positive, Share, Size
from latentia.losses.diffusion import diffusion_loss
from latentia.runs.arguments import ClassArguments, NetworkArguments, RunArguments, network_arguments
from latentia.runs.command_line import run_script
from latentia.runs.run import Run


@dataclass(frozen=True)
class DiffusionArguments:
    """The noise and the objective."""

    num_train_timesteps: Size = 1000
    """Length of the noising chain."""
    beta_schedule: str = "squaredcos_cap_v2"
    """linear, scaled_linear, squaredcos_cap_v2 (cosine), sigmoid or laplace."""
    prediction_type: str = "v_prediction"
    """What the network predicts: epsilon, v_prediction or sample."""
    learned_variance: bool = False
    """Learn the variances too, for a better likelihood; best with --time_sampling uniform."""
    time_sampling: str = "logit_normal"
    """Density of training times: uniform or logit_normal."""
    time_loc: Finite = 0.0
    """Centre of the logit-normal density; lower means less noise."""
    time_scale: Positive = 1.0
    """Width of the logit-normal density."""
    loss_weighting: str = "none"
    """none or min_snr."""
    snr_gamma: Positive = 5.0
    """Cap of min_snr."""
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
    diffusion: DiffusionArguments = DiffusionArguments()


def main(args: Arguments) -> int:
    run = Run(args, family="diffusion")
    chosen = args.diffusion
    channels = run.image["in_channels"] * (2 if chosen.learned_variance else 1)
    side = min(run.image["sample_size"])
    patch = args.model.patch_size or (1 if side < 24 else 2 if side < 64 else 4)
    shape = {**run.image, **args.model, "patch_size": patch}
    network = UNet2D(**shape, out_channels=channels, num_class_embeds=run.num_classes)
    unet = run.prepare("unet", network.to(memory_format=torch.channels_last))
    noise = {
        "num_train_timesteps": chosen.num_train_timesteps,
        "beta_schedule": chosen.beta_schedule,
        "prediction_type": chosen.prediction_type,
        "timestep_spacing": "trailing",
    }
    variance = "learned_range" if chosen.learned_variance else "fixed_small"
    scheduler = DDPMScheduler(**noise, variance_type=variance).to(run.device)

    def loss(batch, rng):
        return diffusion_loss(
            unet.network,
            scheduler,
            batch,
            rng,
            time_sampling=chosen.time_sampling,
            time_loc=chosen.time_loc,
            time_scale=chosen.time_scale,
            weighting=chosen.loss_weighting,
            snr_gamma=chosen.snr_gamma,
            class_dropout=chosen.class_dropout,
        )

    def pipeline(weights) -> UnconditionalDiffusionPipeline:
        return UnconditionalDiffusionPipeline(
            weights, DDIMScheduler(**noise), label_names=run.label_names, unconditional=chosen.class_dropout > 0
        )

    return run.train([unet.phase(loss)], pipeline, num_inference_steps=args.evaluation.num_inference_steps)


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
