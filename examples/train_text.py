"""Train a causal transformer on the characters of a text, to write and continue texts and to measure their likelihood.

    latentia train text --dataset_name moby_dick --output_dir outputs/moby
    latentia train text --train_data_dir book.txt --minutes 10 --output_dir outputs/book
    latentia generate outputs/book --prompt "It was " --temperature 0.8

A text file, a folder of .txt files or a column of a table. The first 90 % of the characters are trained on, the next
5 % are scored on the way, and the last 5 % are for `latentia evaluate`.
"""

from dataclasses import dataclass
from typing import ClassVar

from latentia import CausalTransformer, TextPipeline
from latentia.data import TextData, load_text
from latentia.errors import Natural, Size, UsageError
from latentia.losses.autoregressive import token_loss
from latentia.runs.arguments import (
    EMAArguments,
    HubArguments,
    NetworkArguments,
    OptimizationArguments,
    OutputArguments,
    network_arguments,
)
from latentia.runs.command_line import run_script
from latentia.runs.run import Run
from latentia.runs.texts import TextValidation


@dataclass(frozen=True)
class TextArguments:
    """The text."""

    identifies: ClassVar[bool] = False

    dataset_name: str | None = None
    """A text that comes with the package: "moby_dick" (1.19 million characters)."""
    train_data_dir: str | None = None
    """A text file in UTF-8, a folder of .txt files, or a .csv, .tsv or .parquet file."""
    split: str = "train"
    """Part that is trained on: "train", "train[:10%]" or "all"; "validation" and "test" are the last tenth."""
    text_column: str | None = None
    """Column of a table; not given: "text"."""
    context_length: Size = 256
    """Characters of a window, which the network sees at most."""
    unknown_character: str | None = None
    """Stands for characters that the training part does not hold; not given: they are an error."""


@dataclass(frozen=True)
class TextEvaluationArguments:
    """Samples and scores on the way."""

    identifies: ClassVar[bool] = False

    validation_steps: Natural = 0
    """Steps between samples; 0: only at the end."""
    eval_steps: Natural = 0
    """Steps between scores of held-out text; 0: only at the end."""
    eval_characters: Natural = 20_000
    """Characters of the validation part that are scored; 0: none."""


@dataclass(frozen=True)
class Arguments:
    data: TextArguments = TextArguments()
    model: NetworkArguments = network_arguments(CausalTransformer, "width layers heads dropout")
    optimization: OptimizationArguments = OptimizationArguments(
        train_batch_size=32, max_train_steps=2000, learning_rate=3e-3, adam_weight_decay=0.1
    )
    ema: EMAArguments = EMAArguments(ema_decay=0.99)
    evaluation: TextEvaluationArguments = TextEvaluationArguments()
    output: OutputArguments = OutputArguments()
    hub: HubArguments = HubArguments()


def load(args: TextArguments, split: str, vocabulary: str | None = None) -> TextData:
    """A part of the text that the flags name."""
    source = args.train_data_dir or args.dataset_name
    if source is None or (args.train_data_dir and args.dataset_name):
        raise UsageError("--train_data_dir or --dataset_name must name the text, one of them alone.")
    return load_text(
        source,
        args.context_length,
        split=split,
        text_column=args.text_column,
        vocabulary=vocabulary,
        unknown_character=args.unknown_character,
    )


def main(args: Arguments) -> int:
    data = load(args.data, args.data.split)
    run = Run(args, family="autoregressive", pipeline_tag="text-generation", data=data)
    transformer = CausalTransformer(levels=len(data.vocabulary), shape=data.shape, **args.model)
    network = run.prepare("transformer", transformer)

    def pipeline(weights) -> TextPipeline:
        return TextPipeline(weights.eval(), data.vocabulary, data.unknown_character)

    def held_out() -> str:
        return load(args.data, "validation", data.vocabulary).text

    validation = TextValidation(args, data.text, held_out, pipeline, network.final)
    phases = [network.phase(lambda batch, rng: token_loss(network.network, batch, rng))]
    return run.train(phases, pipeline, validation=validation)


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
