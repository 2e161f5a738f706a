"""Time series and sounds in scripts that train on images too: their flags, data, codec and validation."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from latentia.data import ScaledSeries, SoundFrames
from latentia.data.shipped_series import SHIPPED_SERIES
from latentia.data.shipped_sounds import SHIPPED_SOUNDS
from latentia.errors import DataError, UsageError
from latentia.models.log_mel import LogMel
from latentia.models.series_scaler import SeriesScaler
from latentia.runs.arguments import NetworkArguments, check_unused, network_arguments
from latentia.runs.command_line import read_config
from latentia.runs.series import SeriesArguments, SeriesScoreArguments, open_series, score_series, series_figure
from latentia.runs.signals import SignalValidation
from latentia.runs.sounds import SoundArguments, SoundScoreArguments, open_sounds, score_of_run, sound_figure


@dataclass(frozen=True)
class ModalityArguments:
    """What is trained on."""

    identifies: ClassVar[bool] = False

    modality: Literal["series", "sound"] = "series"
    """What the data are; not given: series of a .csv or .tsv file, and what a shipped set is."""


@dataclass(frozen=True)
class SeriesGroups:
    """The groups of flags of a script that trains on time series, in place of those of images."""

    modality: ModalityArguments = ModalityArguments("series")
    data: SeriesArguments = SeriesArguments()
    evaluation: SeriesScoreArguments = SeriesScoreArguments()


@dataclass(frozen=True)
class SoundGroups:
    """The groups of flags of a script that trains on sounds, in place of those of images."""

    modality: ModalityArguments = ModalityArguments("sound")
    data: SoundArguments = SoundArguments()
    frames: NetworkArguments = network_arguments(LogMel, "num_mels n_fft hop_length")
    evaluation: SoundScoreArguments = SoundScoreArguments()


_GROUPS: dict[str, type] = {"series": SeriesGroups, "sound": SoundGroups}


def arguments_of(images: type, words: Sequence[str] | None = None) -> Any:
    """The flags of a script for the data that its command line names: of images, time series or sounds.

    Args:
        images: its `Arguments`, a `RunArguments` with groups of its own.
        words: the command line; `None` (default): that of the process.

    Returns:
        `images` itself; or, for series and sounds, a dataclass whose groups of the data and the scores are theirs.

    Example:
        >>> from latentia.runs.arguments import RunArguments
        >>> arguments_of(RunArguments, ["--dataset_name", "digits"]) is RunArguments
        True
        >>> type(arguments_of(RunArguments, ["--train_data_dir", "sensors.csv"])().data).__name__
        'SeriesArguments'
    """
    modality = _modality(sys.argv[1:] if words is None else words)
    if modality not in _GROUPS:
        return images
    groups = [(name, type(value), field(default=value)) for name, value in vars(_GROUPS[modality]()).items()]
    return make_dataclass(images.__name__, groups, bases=(images,), frozen=True)


def _modality(words: Sequence[str]) -> str:
    given: dict[str, Any] = {}
    for word, following in zip(words, [*words[1:], ""]):
        name, sign, value = word.partition("=")
        if name.startswith("--"):
            given[name[2:].replace("-", "_")] = value if sign else following
    if "config" in given:
        given = {**read_config(Path(given["config"])), **given}
    if given.get("modality"):
        return str(given["modality"])
    data = str(given.get("dataset_name") or given.get("train_data_dir") or "")
    if data in SHIPPED_SOUNDS:
        return "sound"
    return "series" if data in SHIPPED_SERIES or data.lower().endswith((".csv", ".tsv")) else "image"


@dataclass(frozen=True)
class Signals:
    """The time series or sounds of a run.

    Args:
        train, held_out: those that are trained on, and those that are not.
        codec: a `SeriesScaler` or a `LogMel`.
        data: those that are trained on, as networks take them.
        draw: (real, made) -> figure.
        score: (made, train, held_out, metrics=) -> report.
    """

    train: Any
    held_out: Any
    codec: Any
    data: Any
    draw: Callable[[Any, Any], Any]
    score: Callable[..., Any]

    @cached_property
    def run(self) -> Mapping[str, Any]:
        """Options of `Run`."""
        return {"data": self.data, "pipeline_tag": "other"}

    def validation(self, args: Any, pipeline: Callable[[Any], Any], weights: Any) -> SignalValidation:
        """Figures and scores of a pipeline on the way."""
        parts = (args, self.train, self.held_out, pipeline, weights)
        return SignalValidation(*parts, draw=self.draw, score=self.score)


def open_signals(args: Any, codec: Any = None, *, unequal: bool = False) -> Signals | None:
    """The time series or sounds that the flags name; None if they name images.

    Args:
        args: filled arguments of a class of `arguments_of`.
        codec: that of a trained autoencoder; `None` (default): a new one, fitted to what is trained on.
        unequal: whether series may have unequal lengths. Default False.

    Raises:
        UsageError: unequal lengths where they must be equal, or signals that the codec does not take.
        DataError: signals that cannot be read.
    """
    chosen = getattr(args, "modality", None)
    if chosen is None:
        if codec is not None:
            raise UsageError("modality must be given: the autoencoder is of time series or sounds, the data of images.")
        return None
    if chosen.modality == "series":
        train, held_out = open_series(args.data).parts(args.data.held_out_share)
        codec = codec or SeriesScaler.fit(train.describe_channels(), train.values, train.lengths)
        _check_codec(codec, SeriesScaler, (len(train.channels), train.values.shape[2]), "channels and steps")
        data: Any = ScaledSeries(train, codec)
        if data.mask is not None and not unequal:
            raise DataError("series must be of one length for this network; cut them with window, such as window=64.")
        return Signals(train, held_out, codec, data, series_figure, score_series)
    if codec is not None:
        check_unused(args.frames, type(args)().frames, "is of the autoencoder, whose frames are taken; leave it out")
    sounds, unseen = open_sounds(args.data).parts(args.data.held_out_share)
    codec = codec or LogMel.fit(torch.from_numpy(sounds.waves), sounds.sampling_rate, **args.frames)
    _check_codec(codec, LogMel, (sounds.sampling_rate, sounds.waves.shape[1]), "sampling rate and samples of a clip")
    return Signals(sounds, unseen, codec, SoundFrames(sounds, codec), sound_figure, score_of_run)


def _check_codec(codec: Any, kind: type, shape: tuple[int, int], what: str) -> None:
    """Raises a `UsageError` unless a codec is of this kind and of signals of this shape."""
    config = codec.config
    if not isinstance(codec, kind):
        raise UsageError(f"modality must be that of the autoencoder, which has a {type(codec).__name__}.")
    own = (
        (len(config.channels), config.length)
        if isinstance(codec, SeriesScaler)
        else (config.sampling_rate, config.samples)
    )
    if own != shape:
        raise UsageError(f"the autoencoder was trained on signals of other {what}: {own}; the data have {shape}.")
