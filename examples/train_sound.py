"""Train diffusion or flow matching on sounds, WAV and FLAC files, to sample new clips, of a class if asked to.

    latentia train sound --dataset_name vowels --class_conditional --output_dir outputs/vowels
    latentia train sound --train_data_dir birds --sampling_rate 16000 --clip_seconds 1 --output_dir outputs/birds
    latentia generate outputs/vowels --num_images 10 --class_labels a e i o u

A folder of sound files, whose subfolders are classes. The model is of log-mel frames; waves are found by Griffin-Lim.
The folder it leaves is a pipeline.
"""

from dataclasses import dataclass

import torch

from latentia import LogMel, SoundPipeline, UNet1D
from latentia.data import SoundFrames
from latentia.errors import Share
from latentia.evaluation.sound_metrics import check_sound_metrics
from latentia.runs.arguments import (
    ClassArguments,
    EMAArguments,
    HubArguments,
    NetworkArguments,
    OptimizationArguments,
    OutputArguments,
    network_arguments,
)
from latentia.runs.command_line import run_script
from latentia.runs.diffusion import (
    DiffusionArguments,
    check_objective,
    evaluation_steps,
    flow_map_settings,
    objective,
    schedulers,
)
from latentia.runs.run import Run
from latentia.runs.signals import SignalValidation
from latentia.runs.sounds import SoundArguments, SoundEvaluationArguments, open_sounds, score_of_run, sound_figure


@dataclass(frozen=True)
class SoundDiffusionArguments(DiffusionArguments):
    """The noise and the objective."""

    class_dropout: Share = 0.1
    """Share of labels that are dropped, for classifier-free guidance."""


@dataclass(frozen=True)
class Arguments:
    data: SoundArguments = SoundArguments()
    frames: NetworkArguments = network_arguments(LogMel, "num_mels n_fft hop_length")
    model: NetworkArguments = network_arguments(
        UNet1D,
        "block_out_channels layers_per_block attention_stages attention_head_dim kernel_size dropout",
        block_out_channels=(64, 64),
        kernel_size=3,
    )
    condition: ClassArguments = ClassArguments()
    diffusion: SoundDiffusionArguments = SoundDiffusionArguments()
    optimization: OptimizationArguments = OptimizationArguments(train_batch_size=32, max_train_steps=2000)
    ema: EMAArguments = EMAArguments()
    evaluation: SoundEvaluationArguments = SoundEvaluationArguments()
    output: OutputArguments = OutputArguments()
    hub: HubArguments = HubArguments()


def main(args: Arguments) -> int:
    chosen = args.diffusion
    check_objective(chosen, args.optimization.train_batch_size)
    check_sound_metrics(args.evaluation.eval_metrics)
    train, held_out = open_sounds(args.data).parts(args.data.held_out_share)
    log_mel = LogMel.fit(torch.from_numpy(train.waves), train.sampling_rate, **args.frames)
    run = Run(args, family="sound-diffusion", pipeline_tag="other", data=SoundFrames(train, log_mel))
    bands, frames = log_mel.shape
    network = UNet1D(
        frames, bands, num_class_embeds=run.num_classes, **flow_map_settings(chosen.few_steps), **args.model
    )
    unet = run.prepare("unet", network)
    noise, sampling = schedulers(chosen, run.device)
    loss = objective(unet.network, noise, chosen, chosen.class_dropout)

    def pipeline(weights) -> SoundPipeline:
        return SoundPipeline(log_mel, weights, sampling, run.label_names, unconditional=chosen.class_dropout > 0)

    evaluations = evaluation_steps(chosen, args.evaluation)
    validation = SignalValidation(
        args, train, held_out, pipeline, unet.final, evaluations, draw=sound_figure, score=score_of_run
    )
    return run.train([unet.phase(loss)], pipeline, validation=validation)


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
