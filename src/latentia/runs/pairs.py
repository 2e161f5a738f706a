"""Runs on pairs of images: their flags, their data, and samples beside inputs and targets."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from latentia.data.pairs import Degradation, PairedImages, load_pairs
from latentia.errors import Positive, UsageError
from latentia.functional.chunks import in_chunks
from latentia.pipelines.threads import evaluating
from latentia.rng import Rng
from latentia.runs.arguments import DataArguments
from latentia.runs.start import data_options, data_source, path_or_pattern
from latentia.runs.validation import Sampler, Samples

_CHUNK = 16  # images that are translated at once
# The output of a network that restores what a degradation left: what of the input it keeps.
OUTPUTS = {"grey": "luminance", "edges": "image", "smaller": "residual", "masked": "hole", "noised": "residual"}


@dataclass(frozen=True)
class UnpairedArguments:
    """The targets; inputs are the images of the flags of the data."""

    identifies: ClassVar[bool] = False

    target_data_dir: str | None = None
    """Targets: a folder of images, or a parquet file, folder or pattern; inputs are those of train_data_dir."""
    target_column: str | None = None
    """Column of the targets; the inputs are those of image_column."""


@dataclass(frozen=True)
class PairArguments(UnpairedArguments):
    """Where the targets come from, one of three; inputs are the images of the flags of the data."""

    target_data_dir: str | None = None
    """Targets: a folder with files named as those of train_data_dir, or a parquet file, folder or pattern."""
    target_column: str | None = None
    """Column of the targets, of the same source; the inputs are those of image_column."""
    degrade: Literal["grey", "edges", "smaller", "masked", "noised"] | None = None
    """Images are the targets, and inputs are made of them: learn to colour, draw, enlarge, fill or denoise."""
    strength: Positive | None = None
    """Of degrade: side of the blocks of smaller (2), share of the area of masked (0.25), noise of noised (0.5)."""


def load_paired(data: DataArguments, pairs: UnpairedArguments, *, paired: bool = True) -> PairedImages:
    """The pairs that the flags of a run name; without `paired` two sets of images.

    Args:
        data: the flags of the data, which are of the inputs, or with `degrade` of the targets.
        pairs: the flags of the targets.
        paired: whether inputs and targets belong together. Default True.

    Raises:
        UsageError: no targets, or two kinds of them; flags that contradict each other.
        DataError: data that cannot be read, or that are no pairs.
    """
    if data.streaming:
        raise UsageError("streaming must be off: pairs are decoded once and stored.")
    source, folder = data_source(data), pairs.target_data_dir
    if folder == "":
        raise UsageError("target_data_dir must not be empty; got ''.")
    targets: str | Path | None = None if folder is None else path_or_pattern(folder)
    degrade, strength = getattr(pairs, "degrade", None), getattr(pairs, "strength", None)
    if targets is None and pairs.target_column is None and degrade is None:
        more = ". To make the inputs of the images themselves, give degrade" if paired else ""
        raise UsageError(
            f"The targets are missing: give target_data_dir, a second folder, or target_column, a second column{more}."
        )
    if strength is not None and degrade is None:
        raise UsageError(f"strength is of degrade; give that, or leave strength out. Got {strength:g}.")
    if degrade is not None and (targets is not None or pairs.target_column is not None):
        other = "target_column" if targets is None else "target_data_dir"
        raise UsageError(f"degrade makes the inputs of the images themselves; leave {other} or degrade out.")
    if not paired and targets is None:
        targets = source
    options = data_options(data)
    column = pairs.target_column
    return load_pairs(
        source, targets, target_column=column, degrade=degrade, strength=strength, paired=paired, **options
    )


def shown_inputs(data: PairedImages, conditions: Tensor) -> Tensor:
    """Inputs as they are drawn: those with a mask without it, grey where it is."""
    masked = isinstance(data.inputs, Degradation) and data.inputs.name == "masked"
    return conditions[:, :-1] if masked else conditions


def translations(network: Any, translate: Callable[[Tensor, Tensor], Tensor], data: PairedImages) -> Sampler:
    """Make a function that translates inputs of the training data, and shows them beside inputs and targets.

    Args:
        network: put in evaluation mode meanwhile.
        translate: (inputs, seeds of dropout) -> images.
        data: of the run.
    """

    def sample(count: int, seed: int, start: int = 0) -> Samples:
        batch = data.batch(start, start + count, seed=seed, device=network.device)
        seeds = Rng(seed, start, count, 0, count, network.device).seeds("samples")
        with torch.no_grad(), evaluating(network):
            images = in_chunks(translate, batch["condition"], seeds, size=_CHUNK).float().clamp(-1, 1).cpu()
        beside = {"input": shown_inputs(data, batch["condition"]).cpu(), "output": images}
        if data.paired:
            beside["target"] = batch["x"].cpu()
        return Samples(images, beside=beside)

    return sample
