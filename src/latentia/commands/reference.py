"""The real images of a command: those that a run was trained on, read as that run read them, unless others are named.

A run's folder holds all of its flags, `training_config.json`. The flags of the data are those of the training scripts,
`DataArguments`, and override what the run was given.
"""

import ast
import inspect
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latentia.data import ImageData, PairedImages
from latentia.errors import DataError, MissingSplitError, UsageError, did_you_mean
from latentia.files.reading import user_path
from latentia.functional.settings import check_settings
from latentia.pipelines.capabilities import Option
from latentia.runs.arguments import DataArguments, RunArguments, check_ranges
from latentia.runs.command_line import read_config, with_values
from latentia.runs.pairs import PairArguments, UnpairedArguments, load_paired
from latentia.runs.start import load_data

CONFIG = "training_config.json"
_NAMES = ("dataset_name", "train_data_dir")  # which data; `data` of a command names either
_FLAGS = [field.name for field in fields(DataArguments) if field.name not in _NAMES]
_OF_PAIRS = [field.name for field in fields(PairArguments)]
_OF_IMAGES = ("resolution", "channels", "center_crop", "on_bad_image")  # hold for any data: of the images a model makes
_WITHOUT_EFFECT: dict[str, Any] = {
    "random_flip": False,
    "dataloader_num_workers": 0,
    "cache_dir": None,
}  # on the images themselves; a folder of others starts no processes and writes nothing elsewhere


class HeldOutPairs(NamedTuple):
    """Inputs as networks take them, (N, C, H, W) in [-1, 1]; targets, uint8; labels of the inputs; what they are."""

    inputs: Tensor
    targets: Tensor
    labels: Tensor | None
    about: str


@dataclass
class Reference:
    """The real images that sources are compared with.

    Args:
        images: the images; of pairs the targets.
        arguments: the flags that they were read by; None for images given in Python.
        pairs: the images with the inputs that they are made from; None for images alone.
        pair_arguments: the flags of the targets; None for images alone.
    """

    images: ImageData
    arguments: DataArguments | None = None
    pairs: PairedImages | None = None
    pair_arguments: UnpairedArguments | None = None

    @cached_property
    def test(self) -> ImageData | None:
        """The images of the split "test"; None if the data has none."""
        if self.arguments is None:
            return None
        try:
            if self.test_pairs is not None:
                return self.test_pairs.targets
            return None if self.pairs is not None else load_data(replace(self.arguments, split="test"))
        except MissingSplitError:
            return None

    @cached_property
    def test_pairs(self) -> PairedImages | None:
        """The pairs of the split "test"; None if the data has none, or no pairs."""
        if self.arguments is None or self.pairs is None or self.pair_arguments is None:
            return None
        try:
            arguments = replace(self.arguments, split="test")
            return load_paired(arguments, self.pair_arguments, paired=self.pairs.paired)
        except MissingSplitError:
            return None

    def held_out_pairs(self, count: int) -> HeldOutPairs | None:
        """At most `count` pairs, of the test split if there is one; None for images alone."""
        if self.pairs is None:
            return None
        chosen, seen = (self.pairs, "training") if self.test_pairs is None else (self.test_pairs, "test")
        inputs = chosen.inputs if isinstance(chosen.inputs, ImageData) else chosen.targets
        rows = [torch.linspace(0, len(x) - 1, min(count, len(chosen), len(inputs))).long() for x in (inputs, chosen)]
        known = inputs.labels is not None and inputs.label_names == chosen.label_names
        labels = inputs.labels[rows[0]] if known and inputs.labels is not None else None
        return HeldOutPairs(chosen.conditions(rows[0]), chosen.images[rows[1]], labels, f"{seen} images")

    def held_out(self, count: int) -> tuple[Tensor, Tensor | None, str]:
        """At most `count` images, uint8, and their labels, of the test split if there is one; and what they are."""
        chosen, seen = (self.images, "training images") if self.test is None else (self.test, "test images")
        rows = torch.linspace(0, len(chosen) - 1, min(count, len(chosen))).long()
        return chosen.images[rows], None if chosen.labels is None else chosen.labels[rows], seen


def find_reference(data: Any, sources: Sequence[Any], settings: Mapping[str, Any]) -> Reference:
    """The real images that `data` names, or those that the sources were trained on.

    Args:
        data: name or path of the data, as for `load_images`; or an `ImageData`; or None for the data of the sources.
        sources: what is measured. Those that are folders of runs say how their data was read. Of other data than a
            run's own, its resolution, channels, crop and skipping of bad images hold.
        settings: fields of `DataArguments`, which override what runs say.

    Raises:
        UsageError: an unknown setting; no data and no run, or runs of different data; settings of an `ImageData`; data
            that is read as a stream.
        DataError: the data cannot be read.
    """
    known = [*_FLAGS, *_OF_PAIRS]
    for key in settings:
        if key not in known:
            raise UsageError(f"{key} must be left out: there is no such argument.{did_you_mean(key, known)}")
    targets = {key: settings[key] for key in settings if key in _OF_PAIRS}
    settings = {key: settings[key] for key in settings if key not in targets}
    check_settings(DataArguments, settings)
    check_settings(PairArguments, targets)
    check_ranges(SimpleNamespace(pairs=PairArguments(**targets)))
    if isinstance(data, ImageData):
        if settings or targets:
            raise UsageError(
                f"{next(iter({**settings, **targets}))} must be left out where data are images already, not a name."
            )
        return Reference(data)
    if not isinstance(data, str | Path | None):
        raise UsageError(f"data must be the name of a data set, or ImageData; got {type(data).__name__}.")
    runs = {str(source): found for source in sources if (found := run_arguments(source)) is not None}
    arguments = replace(_chosen(data, runs, settings), **settings)
    if arguments.streaming:
        raise UsageError(
            "streaming must be off, as the images are kept in memory: give streaming=False, and max_train_samples "
            "for a part of a large data set."
        )
    try:
        of_targets = pair_arguments([*runs], targets)
        if of_targets is None:
            return Reference(load_data(arguments), arguments)
        owned = {name for run in runs.values() for name in (run.dataset_name, run.train_data_dir)}
        if data is not None and str(data) not in owned and not targets and of_targets.target_data_dir is not None:
            raise UsageError(f"target_data_dir is missing: {data} holds inputs; give the folder of their targets.")
        pairs = load_paired(arguments, of_targets, paired=isinstance(of_targets, PairArguments))
        return Reference(pairs.targets, arguments, pairs, of_targets)
    except DataError as error:
        if data is not None or arguments.train_data_dir is None or Path(arguments.train_data_dir).exists():
            raise
        raise DataError(
            f"{error} {next(iter(runs))} was trained on it; if it lies elsewhere now, give data."
        ) from error


def _chosen(data: str | Path | None, runs: dict[str, DataArguments], settings: Mapping[str, Any]) -> DataArguments:
    """The flags of the data: all of the runs' if it is their own, else those that are of the images a model makes."""
    kinds = {replace(found, **settings): name for name, found in runs.items()}
    if data is None:
        if not runs:
            raise UsageError(
                f"data is missing: no source is the folder of a run, with a {CONFIG} that names images. (A run on "
                "points of the plane has its scores in its run_summary.json.)"
            )
        if len(kinds) > 1:
            one, other, *_ = kinds
            first = next(key for key in vars(one) if getattr(one, key) != getattr(other, key))
            raise UsageError(
                f"data is missing: the sources were trained on different data, as {kinds[one]} has {first} "
                f"{getattr(one, first)} and {kinds[other]} has {getattr(other, first)}. Name the data, or give {first}."
            )
        return next(iter(runs.values()))
    name: dict[str, Any] = {"dataset_name": str(data)} if isinstance(data, str) else {"train_data_dir": str(data)}
    own = [found for found in runs.values() if str(data) in (found.dataset_name, found.train_data_dir)]
    if len({*own}) == 1:
        return own[0]
    shared = {key: {getattr(found, key) for found in runs.values()} for key in _OF_IMAGES}
    return DataArguments(**name, **{key: values.pop() for key, values in shared.items() if len(values) == 1})


def pair_arguments(runs: Sequence[str], settings: Mapping[str, Any]) -> UnpairedArguments | None:
    """The flags of the targets: those of the first run on pairs, where settings do not override them; else settings.

    Args:
        runs: folders of runs.
        settings: fields of `PairArguments`; another way to name the targets takes the place of the run's.

    Returns:
        `PairArguments`, or `UnpairedArguments` of a run without pairs; None if there are none.
    """
    for run in runs:
        given = {key: value for key, value in read_config(user_path(run) / CONFIG).items() if key in _OF_PAIRS}
        if any(value is not None for value in given.values()):
            kind = PairArguments if "degrade" in given else UnpairedArguments  # a run without pairs has no such flag
            if kind is UnpairedArguments and (odd := settings.keys() - given.keys()):
                raise UsageError(f"{min(odd)} must be left out: {run} was trained without pairs.")
            kept = {} if settings else given
            return replace(with_values(SimpleFlags(kind()), kept, source=run).pairs, **settings)
    return PairArguments(**settings) if settings else None


@dataclass(frozen=True)
class SimpleFlags:
    """One group of flags, as `with_values` fills them in."""

    pairs: UnpairedArguments


def run_arguments(source: Any) -> DataArguments | None:
    """The flags of the data of a run, from its folder; None for a source that is no such folder, or names no data.

    Raises:
        UsageError: training_config.json is damaged.
    """
    if not isinstance(source, str | Path):
        return None
    path = user_path(source) / CONFIG
    if not path.is_file():
        return None
    known = {field.name for field in fields(DataArguments)}
    given = {key: value for key, value in read_config(path).items() if key in known}
    found = with_values(RunArguments(), given, source=str(path)).data
    return replace(found, **_WITHOUT_EFFECT) if any(getattr(found, name) is not None for name in _NAMES) else None


@cache
def data_options() -> dict[str, Option]:
    """The flags of the data for a command line: name to type, default and help, from `DataArguments`."""
    return {**options_of(DataArguments, _FLAGS), **options_of(PairArguments, _OF_PAIRS)}


def options_of(kind: type, names: Sequence[str]) -> dict[str, Option]:
    """Those of the flags of a group that have these names: name to type, default and help."""
    lines: Any = ast.parse(inspect.getsource(kind)).body[0]
    helps = {
        field.target.id: text.value.value  # type: ignore[union-attr, attr-defined] # a name, and a text below it
        for field, text in pairwise(lines.body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }
    hints = typing.get_type_hints(kind)
    return {
        field.name: Option(hints[field.name], field.default, f"{helps[field.name]} Of the run if not given.")
        for field in fields(kind)
        if field.name in names
    }
