"""Train an autoregressive model of images, value by value: gated PixelCNN, a pixel transformer or MADE.

    latentia train pixelcnn --dataset_name digits --levels 17 --output_dir outputs/pixelcnn
    latentia train pixelcnn --dataset_name digits --architecture transformer --class_conditional --output_dir outputs/p
    latentia generate outputs/pixelcnn --image upper-half.png --num_images 4

It leaves a pipeline with exact likelihoods, which samples, and completes the lower part of images.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from latentia import MADE, AutoregressivePipeline, CausalTransformer, GatedPixelCNN
from latentia.errors import Size
from latentia.losses.autoregressive import pixel_loss
from latentia.runs.arguments import (
    ClassArguments,
    NetworkArguments,
    OptimizationArguments,
    RunArguments,
    check_unused,
    network_arguments,
)
from latentia.runs.command_line import run_script
from latentia.runs.run import Run


@dataclass(frozen=True)
class ValueArguments:
    """The network, and the values of a pixel."""

    architecture: Literal["pixelcnn", "transformer", "made"] = "pixelcnn"
    """"pixelcnn": gated masked convolutions; "transformer": causal attention; "made": masked dense layers."""
    levels: Size = 256
    """Values of a pixel: 256 are bytes; 2 are binary images, drawn of grey ones anew at each step."""


@dataclass(frozen=True)
class Arguments(RunArguments):
    values: ValueArguments = ValueArguments()
    pixelcnn: NetworkArguments = network_arguments(
        GatedPixelCNN, "hidden_channels layers kernel_size first_kernel_size dropout"
    )
    transformer: NetworkArguments = network_arguments(
        CausalTransformer,
        "width layers heads dropout",
        flags={"layers": "transformer_layers", "dropout": "transformer_dropout"},
    )
    made: NetworkArguments = network_arguments(MADE, "hidden_sizes activation")
    condition: ClassArguments = ClassArguments()
    optimization: OptimizationArguments = OptimizationArguments(train_batch_size=64, learning_rate=1e-3)


def build(args: Arguments, run: Run) -> Any:
    """The network of `--architecture` for the images of a run."""
    levels, classes = args.values.levels, run.num_classes
    if args.values.architecture == "pixelcnn":
        network = GatedPixelCNN(**run.image, levels=levels, num_class_embeds=classes, **args.pixelcnn)
        return network.to(memory_format=torch.channels_last)  # a quarter less time per step on a CPU
    if args.values.architecture == "made":
        return MADE(**run.image, levels=levels, num_class_embeds=classes, **args.made)
    shape = tuple(run.inputs.shape)
    return CausalTransformer(levels, shape, positions="learned", num_class_embeds=classes, **args.transformer)


def main(args: Arguments) -> int:
    chosen, others = args.values.architecture, {"pixelcnn", "transformer", "made"} - {args.values.architecture}
    for name in sorted(others):
        check_unused(
            getattr(args, name), getattr(Arguments(), name), f"is not of --architecture {chosen}; leave it out"
        )
    run = Run(args, family="autoregressive", unused=others)
    network = run.prepare("network", build(args, run))

    def pipeline(weights) -> AutoregressivePipeline:
        return AutoregressivePipeline(weights, run.label_names)

    return run.train([network.phase(lambda batch, rng: pixel_loss(network.network, batch, rng))], pipeline)


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
