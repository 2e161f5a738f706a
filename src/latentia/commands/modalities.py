"""What time series and sounds differ in for the commands: how they are read, drawn and written, and their baselines."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentia.commands.sources import modality_of
from latentia.data.series import Series, load_series
from latentia.data.shipped_series import SHIPPED_SERIES, simulate_ar2
from latentia.evaluation.report.curves import draw_series, save_series_figures
from latentia.evaluation.report.signal_report import SignalReport
from latentia.evaluation.series_metrics import autocorrelation
from latentia.files.writing import write_image, write_text
from latentia.functional.autoregression import fit_ar2
from latentia.rng import seed_from
from latentia.runs.series import SeriesArguments, open_series, score_series, set_of


@dataclass(frozen=True)
class Modality:
    """How the signals of one modality are read, sampled, drawn and written.

    Args:
        word: for several of them.
        shipped: names of the sets that come with the package.
        baselines: name -> (real signals to train on, count, seed) -> signals, and what it is.
        arguments: the flags of the data of its training script.
        from_flags: those flags -> signals.
        load: (source, settings) -> signals of a file or folder.
        fits: whether a source in Python is of it.
        settings: arguments of `evaluate` that say how its data are read.
        score: (made, train, held_out, n=, metrics=, seed=, fingerprint=) -> report.
        figures: (folder, real, made): writes the figures of a page.
        write: (folder, signals) -> the files that `generate` writes.
    """

    word: str
    shipped: Sequence[str]
    baselines: Mapping[str, tuple[Callable[[Any, int, int], Any], str]]
    arguments: type
    from_flags: Callable[[Any], Any]
    load: Callable[..., Any]
    fits: Callable[[Any], bool]
    settings: Sequence[str]
    score: Callable[..., SignalReport]
    figures: Callable[[Path, Any, Any], None]
    write: Callable[[Path, Any], list[Path]]


def ar2_series(train: Series, count: int, seed: int = 0) -> Series:
    """Series of the AR(2) process of each channel, fitted by the Yule-Walker equations: the baseline "ar2".

    Args:
        train: series that it is fitted to.
        count: how many.
        seed: of the noise.

    Example:
        >>> ar2_series(load_series("sines_ar2", max_samples=20), 3).values.shape
        (3, 1, 64)
    """
    real = set_of(train)
    mean, deviation = real.centres()
    found = fit_ar2(torch.from_numpy(autocorrelation(real.scaled(mean, deviation), 2)[:, 1:3])).numpy()
    random = np.random.default_rng(seed_from(seed, "ar2"))
    steps = train.values.shape[2]
    drawn = [simulate_ar2(np.full(count, a), np.full(count, b), steps, random) for a, b, _ in found]
    lengths = train.lengths[random.integers(len(train), size=count)]
    values = np.where(np.arange(steps) < lengths[:, None, None], np.stack(drawn, 1) * deviation + mean, 0)
    return Series(values, lengths, train.channels, source={"kind": "series", "name": "ar2"})


def _write_series(folder: Path, series: Series) -> list[Path]:
    write_text(folder / "series.csv", series.frame().to_csv(index=False))
    write_image(folder / "signals.png", draw_series({"generated": set_of(series)}, series.channels, 8))
    return [folder / "series.csv", folder / "signals.png"]


def _figures_of_series(folder: Path, real: Series, made: Series) -> None:
    save_series_figures(folder, set_of(real), set_of(made), real.channels)


MODALITIES: dict[str, Modality] = {
    "series": Modality(
        word="series",
        shipped=tuple(SHIPPED_SERIES),
        baselines={"ar2": (ar2_series, "an AR(2) process, by the Yule-Walker equations")},
        arguments=SeriesArguments,
        from_flags=open_series,
        load=load_series,
        fits=lambda source: isinstance(source, Series),
        settings=("label_column", "max_train_samples"),
        score=score_series,
        figures=_figures_of_series,
        write=_write_series,
    ),
}


def signal_modality(source: Any, data: Any = None) -> str | None:
    """The modality of `MODALITIES` that a source, or the data, is of; None if it is none of them.

    Example:
        >>> signal_modality("ar2", "sines_ar2"), signal_modality("pca", "digits")
        ('series', None)
    """
    for one in (source, data):
        for name, modality in MODALITIES.items():
            named = isinstance(one, str) and one in (*modality.shipped, *modality.baselines)
            if named or modality.fits(one) or getattr(one, "modality", None) == name or modality_of(one) == name:
                return name
    return None
