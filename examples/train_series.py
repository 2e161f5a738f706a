"""Train diffusion or flow matching on time series, a CSV or parquet file, to sample new ones, of a class if asked to.

    latentia train series --dataset_name sines_ar2 --output_dir outputs/waves
    latentia train series --train_data_dir sensors.csv --window 64 --prediction_type flow --output_dir outputs/sensors
    latentia generate outputs/sensors --num_images 100

A table of a row for each step, with columns series and time, or of a row for each series. Series may have several
channels and unequal lengths. The folder it leaves is a pipeline.
"""

from dataclasses import dataclass

from latentia import SeriesPipeline, SeriesScaler, UNet1D
from latentia.data import ScaledSeries
from latentia.errors import Share, UsageError
from latentia.evaluation.series_metrics import check_series_metrics
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
from latentia.runs.series import (
    SeriesArguments,
    SeriesEvaluationArguments,
    open_series,
    score_series,
    series_figure,
)
from latentia.runs.signals import SignalValidation


@dataclass(frozen=True)
class SeriesDiffusionArguments(DiffusionArguments):
    """The noise and the objective."""

    class_dropout: Share = 0.1
    """Share of labels that are dropped, for classifier-free guidance."""


@dataclass(frozen=True)
class Arguments:
    data: SeriesArguments = SeriesArguments()
    model: NetworkArguments = network_arguments(
        UNet1D, "block_out_channels layers_per_block attention_stages attention_head_dim kernel_size dropout"
    )
    condition: ClassArguments = ClassArguments()
    diffusion: SeriesDiffusionArguments = SeriesDiffusionArguments()
    optimization: OptimizationArguments = OptimizationArguments(max_train_steps=3000)
    ema: EMAArguments = EMAArguments()
    evaluation: SeriesEvaluationArguments = SeriesEvaluationArguments()
    output: OutputArguments = OutputArguments()
    hub: HubArguments = HubArguments()


def main(args: Arguments) -> int:
    chosen = args.diffusion
    check_objective(chosen, args.optimization.train_batch_size)
    check_series_metrics(args.evaluation.eval_metrics)
    train, held_out = open_series(args.data).parts(args.data.held_out_share)
    scaler = SeriesScaler.fit(train.describe_channels(), train.values, train.lengths)
    data = ScaledSeries(train, scaler)
    if chosen.few_steps is not None and data.mask is not None:
        raise UsageError(
            f"--few_steps must be left out with series of unequal lengths; got {chosen.few_steps}. Cut them to one "
            "length with --window."
        )
    run = Run(args, family="series-diffusion", pipeline_tag="other", data=data)
    channels, steps = data.shape
    network = UNet1D(
        steps,
        channels,
        num_class_embeds=run.num_classes,
        **flow_map_settings(chosen.few_steps),
        masked=data.mask is not None,
        **args.model,
    )
    unet = run.prepare("unet", network)
    noise, sampling = schedulers(chosen, run.device)
    loss = objective(unet.network, noise, chosen, chosen.class_dropout)

    def pipeline(weights) -> SeriesPipeline:
        return SeriesPipeline(scaler, weights, sampling, run.label_names, unconditional=chosen.class_dropout > 0)

    evaluations = evaluation_steps(chosen, args.evaluation)
    validation = SignalValidation(
        args, train, held_out, pipeline, unet.final, evaluations, draw=series_figure, score=score_series
    )
    return run.train([unet.phase(loss)], pipeline, validation=validation)


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
