"""Train a few-step student of a diffusion or flow-matching pipeline: distillation into 1 to 8 network evaluations.

    accelerate launch examples/train_ddpm.py --dataset_name digits --class_conditional --output_dir outputs/digits
    accelerate launch examples/train_distillation.py --dataset_name digits --class_conditional \\
        --teacher outputs/digits --guidance_scale 2 --output_dir outputs/digits-few-steps

The student starts from the weights of the teacher, in pixels or latents, with its classes or texts, and learns the mean
velocity of the teacher's probability-flow ODE over a step, guidance included. With `--adversarial_weight` its one-step
samples are also trained against a discriminator. The folder it leaves is a pipeline of the same class, to be called
with `num_inference_steps` of 1 to 8 and without guidance.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from latentia import DCGANDiscriminator, DiffusionPipeline, UNet2D
from latentia.data import cached_captions
from latentia.errors import Finite, Positive, Share, Size, UsageError, Weight
from latentia.functional.adversarial import Objective
from latentia.losses.adversarial import gan_discriminator_loss, gan_generator_loss
from latentia.losses.flow_maps import OneStepGenerator
from latentia.losses.flow_matching import reflow_loss
from latentia.pipelines.likelihood import rectified_velocity
from latentia.pipelines.texts import embed_texts, max_tokens, text_fingerprint
from latentia.runs.arguments import (
    ClassArguments,
    NetworkArguments,
    OptimizationArguments,
    RunArguments,
    check_unused,
    network_arguments,
)
from latentia.runs.command_line import run_script
from latentia.runs.compilation import fast_layout
from latentia.runs.diffusion import (
    FEW_STEPS,
    DiffusionEvaluationArguments,
    LatentArguments,
    flow_map_settings,
    latents_of,
)
from latentia.runs.run import Run

UNIT = 1000  # of the time of the student, as FlowMatchEulerDiscreteScheduler counts it


@dataclass(frozen=True)
class DistillationArguments:
    """The teacher and what the student learns of it."""

    teacher: str | None = None
    """Folder or Hub id of a trained pipeline of diffusion or flow matching, whose network is a UNet2D."""
    method: Literal["shortcut", "mean_flow", "reflow"] = "shortcut"
    """Shortcut by two steps of half the length, mean_flow by a derivative, or reflow on straightened pairs."""
    guidance_scale: Finite = 1.0
    """Classifier-free guidance of the teacher, which the student learns; 1: none."""
    flow_share: Share = 0.5
    """Share of images that learn the velocity itself; the others learn a step. Of shortcut and mean_flow."""
    teacher_steps: Size = 8
    """Steps of the teacher's ODE that make each pair, two evaluations each. Of reflow."""


@dataclass(frozen=True)
class AdversarialArguments:
    """A discriminator of the student's one-step samples, beside the distillation."""

    adversarial_weight: Weight = 0.0
    """Weight of the adversarial loss of one-step samples; 0: none."""
    objective: Objective = "relativistic"
    """Adversarial objective."""
    r1: Weight = 1.0
    """Weight of the discriminator's squared gradient at real images; 0: none."""
    r2: Weight = 1.0
    """The same at generated images."""
    discriminator_learning_rate: Positive | None = None
    """Peak rate of the discriminator; not given: the learning_rate, which is the student's."""


@dataclass(frozen=True)
class Arguments(RunArguments):
    distillation: DistillationArguments = DistillationArguments()
    adversarial: AdversarialArguments = AdversarialArguments()
    discriminator: NetworkArguments = network_arguments(
        DCGANDiscriminator,
        "block_out_channels minibatch_std",
        flags={"block_out_channels": "discriminator_block_out_channels"},
        block_out_channels=(32, 64),
        minibatch_std=None,
    )
    condition: ClassArguments = ClassArguments()
    optimization: OptimizationArguments = OptimizationArguments(learning_rate=5e-4)
    evaluation: DiffusionEvaluationArguments = DiffusionEvaluationArguments(num_inference_steps=4)


def check(args: Arguments) -> None:
    """Refuse flags that another one leaves unused."""
    chosen, usual = args.distillation, Arguments()
    unused = ["flow_share"] if chosen.method == "reflow" else ["teacher_steps"]
    check_unused(chosen, usual.distillation, f"is not of --method {chosen.method}; leave it out", unused)
    if not args.adversarial.adversarial_weight:
        reason = "is of --adversarial_weight above 0; give that, or leave it out"
        check_unused(args.adversarial, usual.adversarial, reason)
        check_unused(args.discriminator, usual.discriminator, reason)
    elif args.optimization.compile:
        raise UsageError(
            "--compile must be left out with --adversarial_weight: the discriminator's penalties need second "
            "derivatives, which compiled networks do not have."
        )


def load_teacher(args: Arguments) -> Any:
    """The teacher's pipeline, and whether flags and teacher fit each other."""
    chosen, conditional = args.distillation, args.condition.class_conditional
    if chosen.teacher is None:
        raise UsageError("--teacher must name a trained pipeline: latentia train ddpm")
    pipe: Any = DiffusionPipeline.from_pretrained(chosen.teacher)
    network = getattr(pipe, "unet", None)
    if not isinstance(network, UNet2D):
        raise UsageError(
            f"--teacher must be a pipeline of diffusion or flow matching with a UNet2D; {chosen.teacher} is a "
            f"{type(pipe).__name__} with {type(network).__name__ if network is not None else 'no unet'}."
        )
    classes = network.config.num_class_embeds is not None
    if classes != conditional:
        raise UsageError(
            f"--class_conditional must be {'given' if classes else 'left out'}, as the teacher is "
            f"{'' if classes else 'not '}conditioned on classes."
        )
    guided = chosen.guidance_scale != 1
    if guided and not (pipe.config.unconditional and (classes or hasattr(pipe, "text_encoder"))):
        raise UsageError(
            f"--guidance_scale must be 1 for a teacher that was trained without a condition, or always with it; got "
            f"{chosen.guidance_scale}."
        )
    return pipe


def check_data(run: Run, pipe: Any) -> None:
    """UsageError unless the images and classes are of the kind that the teacher makes."""
    config = pipe.unet.config
    side = config.sample_size
    wanted = (config.in_channels, *((side, side) if isinstance(side, int) else side))
    if tuple(run.inputs.shape) != wanted:
        raise UsageError(
            f"--resolution and --channels must make inputs of the teacher's shape {wanted}; got "
            f"{tuple(run.inputs.shape)}."
        )
    names = pipe.config.get("label_names")
    if run.label_names is not None and names is not None and list(names) != run.label_names:
        raise UsageError(f"The classes of the data must be those of the teacher, {list(names)}; got {run.label_names}.")


def teacher_velocity(pipe: Any, guidance_scale: float, empty: tuple[Tensor, Tensor] | None) -> Any:
    """(x_t, t, conditions) -> the teacher's guided velocity on straight lines, without gradient."""
    velocity = rectified_velocity(pipe.scheduler)

    def unconditional(conditions: dict[str, Tensor]) -> dict[str, Tensor]:
        if empty is None:
            labels = conditions["class_labels"]
            return {"class_labels": torch.full_like(labels, pipe.unet.config.num_class_embeds)}
        states, mask = (part.expand(len(conditions["encoder_hidden_states"]), *part.shape) for part in empty)
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask}

    @torch.no_grad()
    def guided(x: Tensor, t: Tensor, conditions: dict[str, Tensor]) -> Tensor:
        def network(x: Tensor, time: Tensor) -> Tensor:
            output = pipe.unet(x, time, **conditions).sample[:, : x.shape[1]].float()
            if guidance_scale == 1:
                return output
            without = pipe.unet(x, time, **unconditional(conditions)).sample[:, : x.shape[1]].float()
            return without + guidance_scale * (output - without)

        return velocity(network, t, x)

    return guided


def main(args: Arguments) -> int:
    check(args)
    chosen, adversarial = args.distillation, args.adversarial
    pipe = load_teacher(args)
    vae, encoder = pipe.components.get("vae"), pipe.components.get("text_encoder")
    if encoder is not None and adversarial.adversarial_weight:
        raise UsageError("--adversarial_weight must be 0 for a teacher that is conditioned on texts; got another.")
    without = () if adversarial.adversarial_weight else ("adversarial", "discriminator")
    tag = {} if encoder is None else {"pipeline_tag": "text-to-image"}
    run = Run(args, family="distillation", unused=without, **tag)
    empty = None
    if vae is not None:
        _, run.inputs = latents_of(run, LatentArguments(autoencoder=chosen.teacher))
    if encoder is not None:
        if run.data.captions is None:
            raise UsageError("--caption_column must name the captions, as the teacher is conditioned on texts.")
        known = f"{text_fingerprint(pipe.tokenizer, encoder)}-{max_tokens(pipe.tokenizer, encoder)}"
        embed = partial(embed_texts, pipe.tokenizer, encoder.to(run.device))
        run.inputs = cached_captions(run.inputs, embed, known, cache_dir=args.data.cache_dir)
        empty = tuple(part.to(run.device) for part in run.inputs.empty)
    check_data(run, pipe)
    run.seed()
    config = {key: value for key, value in pipe.unet.config.items() if not key.startswith("_")}
    straight = chosen.method == "reflow"
    settings = {"out_channels": config["in_channels"], **flow_map_settings(None if straight else chosen.method)}
    settings["smooth_time"] |= config.get("smooth_time", False)  # as the weights of the teacher were trained
    student = UNet2D(**config | settings)
    student.load_state_dict({**student.state_dict(), **matching(pipe.unet, student)})
    unet = run.prepare("unet", fast_layout(student, args, run.device))
    fast_layout(pipe.unet.requires_grad_(False).to(run.device), args, run.device)
    loss = partial(
        reflow_loss if straight else FEW_STEPS[chosen.method],
        unet.network,
        num_train_timesteps=UNIT,
        time_sampling="uniform",
        class_dropout=0.0,
        empty_text=empty,
        teacher=teacher_velocity(pipe, chosen.guidance_scale, empty),
        **({"teacher_steps": chosen.teacher_steps} if straight else {"flow_share": chosen.flow_share}),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(UNIT)
    options = {"unconditional": False}
    if "label_names" in pipe.config:
        options["label_names"] = run.label_names

    def pipeline(weights: UNet2D) -> Any:
        return type(pipe)(**{**pipe.components, "unet": weights, "scheduler": scheduler}, **options)

    steps = args.evaluation.num_inference_steps
    if not adversarial.adversarial_weight:
        return run.train([unet.phase(loss)], pipeline, num_inference_steps=steps)

    size = {**run.image, "norm": "none", "num_class_embeds": run.num_classes}
    rate = adversarial.discriminator_learning_rate
    critic = DCGANDiscriminator(**size, **args.discriminator)
    discriminator = run.prepare("discriminator", critic, ema=False, learning_rate=rate)
    against, generator = {"objective": adversarial.objective}, OneStepGenerator(unet.network, UNIT)

    def discriminator_loss(batch, rng):
        penalties = {"r1": adversarial.r1, "r2": adversarial.r2}
        return gan_discriminator_loss(discriminator.network, generator, batch, rng, **against, **penalties)

    def both(batch, rng):
        distilled = loss(batch, rng)
        fooled = gan_generator_loss(discriminator.network, generator, batch, rng, **against)
        total = distilled["loss"] + adversarial.adversarial_weight * fooled["loss"]
        return {**fooled, **distilled, "distillation": distilled["loss"].detach(), "loss": total}

    phases = [discriminator.phase(discriminator_loss), unet.phase(both)]
    return run.train(phases, pipeline, weights=unet, num_inference_steps=steps)


def matching(teacher: UNet2D, student: UNet2D) -> dict[str, Tensor]:
    """Weights of the teacher that the student has; of a learned variance only the channels of the prediction."""
    wanted = student.state_dict()
    found = {name: value for name, value in teacher.state_dict().items() if name in wanted}
    return {name: value[: len(wanted[name])] for name, value in found.items()}


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
