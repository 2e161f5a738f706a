"""Train a normalizing flow on images by exact likelihood: NICE, RealNVP, Glow or a neural spline flow.

    python examples/train_flow.py --dataset_name digits --output_dir outputs/flow-digits

A run that was killed goes on when the same command is started again. The folder it leaves is a pipeline:
`latentia.DiffusionPipeline.from_pretrained("outputs/flow-digits")`.
"""

from dataclasses import dataclass

from latentia import FlowPipeline, NormalizingFlow
from latentia.functional.flows import dequantize
from latentia.losses.likelihood import flow_loss
from latentia.models.flow import most_halvings
from latentia.rng import Rng
from latentia.runs.arguments import (
    ClassArguments,
    NetworkArguments,
    OptimizationArguments,
    RunArguments,
    network_arguments,
)
from latentia.runs.command_line import run_script
from latentia.runs.run import Run

INITIAL_IMAGES = 256  # from which the scales of activation normalisation are set


@dataclass(frozen=True)
class Arguments(RunArguments):
    model: NetworkArguments = network_arguments(
        NormalizingFlow,
        "architecture num_stages num_layers hidden_sizes bins logit_alpha",
        num_stages=None,
        helps={"num_stages": " Not given: as often as the images allow, at most 3."},
    )
    condition: ClassArguments = ClassArguments()
    # A clipped gradient is a ratio to a norm, and this one grows with the number of pixels.
    optimization: OptimizationArguments = OptimizationArguments(
        learning_rate=1e-3, adam_weight_decay=0.0, max_grad_norm=200.0
    )


def main(args: Arguments) -> int:
    run = Run(args, family="flow")
    settings = dict(args.model)
    settings["num_stages"] = settings["num_stages"] or min(3, most_halvings(run.image["sample_size"]))
    network = NormalizingFlow(**run.image, **settings, num_class_embeds=run.num_classes)

    # The same images on every process; a checkpoint or --init_from replaces what is set here.
    first = run.data.batch(0, INITIAL_IMAGES, seed=args.optimization.seed)
    rng = Rng(args.optimization.seed, 0, INITIAL_IMAGES, 0, INITIAL_IMAGES)
    labels = first["labels"] if run.num_classes is not None else None
    network.initialize(dequantize(first["x"], rng.uniform("initialize", run.data.shape)), labels)

    flow = run.prepare("flow", network)

    def loss(batch, rng):
        return flow_loss(flow.network, batch, rng)

    def pipeline(weights) -> FlowPipeline:
        return FlowPipeline(weights, run.label_names)

    return run.train([flow.phase(loss)], pipeline)


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
