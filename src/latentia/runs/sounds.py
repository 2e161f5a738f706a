"""Runs on sounds: flags of the data, the clips to train on and those held out, figures and scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from latentia.data.shipped_sounds import SHIPPED_SOUNDS
from latentia.data.sounds import HELD_OUT, Sounds, load_sounds
from latentia.errors import Count, Natural, Range, Size, UsageError
from latentia.evaluation.report.signal_report import SignalReport, score_signals
from latentia.evaluation.report.spectrograms import draw_spectrograms
from latentia.evaluation.sound_metrics import SoundClassifier, SoundPair, SoundSet, check_sound_metrics
from latentia.runs.signals import FEWEST


@dataclass(frozen=True)
class SoundArguments:
    """The sounds."""

    identifies: ClassVar[bool] = False

    dataset_name: str | None = None
    """Sounds that come with the package: tones or vowels."""
    train_data_dir: str | None = None
    """A folder of .wav and .flac files, whose subfolders are classes, or one such file."""
    sampling_rate: Annotated[int, Range(100, most=2**20)] | None = None
    """Samples per second that files are resampled to; not given: theirs, which must be one."""
    clip_seconds: Annotated[float, Range(0, closed="neither", most=1e6)] | None = None
    """Cut files into clips of so many seconds; not given: files are clips, of one length."""
    on_silence: Literal["raise", "skip"] = "raise"
    """What to do with clips below -60 dB: an error, or leave them out and say how many."""
    held_out_share: Annotated[float, Range(0, 1, closed="left")] = HELD_OUT
    """Share of the files that nothing is trained on, for scores."""
    max_train_samples: Count | None = None
    """Use at most so many clips, spread evenly."""


@dataclass(frozen=True)
class SoundScoreArguments:
    """Figures and scores on the way."""

    identifies: ClassVar[bool] = False

    validation_steps: Natural = 0
    """Steps between figures; 0: only at the end."""
    eval_steps: Natural = 0
    """Steps between scores; 0: only at the end."""
    eval_num_samples: Natural = 200
    """Clips to sample for a score; 0: no score."""
    eval_metrics: tuple[str, ...] = ("log_spectral", "class_accuracy", "sound_frechet")
    """What a score holds, as `latentia evaluate` lists it; those of labels only with --class_conditional."""


@dataclass(frozen=True)
class SoundEvaluationArguments(SoundScoreArguments):
    """Figures and scores on the way, of samples by diffusion."""

    num_inference_steps: Size | None = None
    """Network evaluations per sample; not given: 25, and 4 of a network that was trained for few steps."""


def open_sounds(args: SoundArguments) -> Sounds:
    """The sounds that the flags name.

    Raises:
        UsageError: neither or both of dataset_name and train_data_dir, or an unknown name.
    """
    if (args.dataset_name is None) == (args.train_data_dir is None):
        given = "neither" if args.dataset_name is None else "both"
        names = ", ".join(SHIPPED_SOUNDS)
        raise UsageError(f"Give dataset_name ({names}) or train_data_dir (a folder of sound files); got {given}.")
    if args.dataset_name is not None and args.dataset_name not in SHIPPED_SOUNDS:
        raise UsageError(
            f"dataset_name must be one of {', '.join(SHIPPED_SOUNDS)} for sounds; got {args.dataset_name!r}. A "
            "folder of your own: train_data_dir."
        )
    return load_sounds(
        args.dataset_name or Path(args.train_data_dir or ""),
        sampling_rate=args.sampling_rate,
        clip_seconds=args.clip_seconds,
        on_silence=args.on_silence,
        max_samples=args.max_train_samples,
    )


def set_of(sounds: Sounds) -> SoundSet:
    """Clips as metrics take them."""
    return SoundSet(sounds.waves, sounds.sampling_rate, sounds.labels)


def score_sounds(
    made: Sounds,
    train: Sounds,
    held_out: Sounds,
    *,
    n: int | None = None,
    metrics: Sequence[str] | None = None,
    seed: int = 0,
    fingerprint: str = "",
) -> SignalReport:
    """Measure generated clips against those trained on, each metric beside the score of held-out ones.

    Args:
        made: generated clips, of which the first n are compared.
        train, held_out: real clips that were trained on, and that were not.
        n: default as many as are held out, so that value and real-data score are of as many clips.
        metrics: keys of `SOUND_METRICS`; default all that apply.
        seed: of the classifier.
        fingerprint: of the real clips, for the report.

    Raises:
        UsageError: an unknown metric or one that needs labels, more clips than there are, or fewer than 12 in a part.
    """
    labelled = made.labels is not None and train.labels is not None
    chosen = check_sound_metrics(metrics, labelled)
    n = min(len(made), len(held_out)) if n is None else n
    if not FEWEST <= n <= len(made):
        raise UsageError(f"n must be from {FEWEST} to {len(made)}, the clips that there are; got {n}.")
    if min(len(train), len(held_out)) < FEWEST:
        raise UsageError(
            f"held_out_share must leave at least {FEWEST} clips in each part; {len(train)} are trained on and "
            f"{len(held_out)} are held out."
        )
    first, known, unseen = (set_of(side) for side in (made.take(slice(n)), train, held_out))
    needed = any(metric.needs for metric in chosen.values())
    classifier = SoundClassifier(known, len(train.label_names or ()), seed) if needed else None
    return score_signals(
        chosen,
        SoundPair(first, known, classifier),
        SoundPair(unseen, known, classifier),
        n=n,
        n_held_out=len(held_out),
        n_real=len(train) + len(held_out),
        extractor="log-mel frames, and a network trained on the real clips",
        seed=seed,
        fingerprint=fingerprint,
    )


def score_of_run(made: Sounds, train: Sounds, held_out: Sounds, *, metrics: Sequence[str]) -> SignalReport:
    """`score_sounds` of those of the metrics that apply: clips of a run without classes have no labels."""
    labelled = made.labels is not None and train.labels is not None
    return score_sounds(made, train, held_out, metrics=[k for k in metrics if k in check_sound_metrics(None, labelled)])


def sound_figure(real: Sounds, made: Sounds) -> Any:
    """Spectrograms of generated clips beside real ones, of one class each where there are some."""
    names = real.label_names if made.labels is not None else None
    order = np.arange(len(real)) if real.labels is None else np.argsort(real.labels, kind="stable")
    sides = {"real": set_of(real if names is not None else real.take(order[:5])), "generated": set_of(made)}
    return draw_spectrograms(sides, names)
