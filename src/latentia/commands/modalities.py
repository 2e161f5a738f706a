"""What time series and sounds differ in for the commands: how they are read, drawn and written, and their baselines."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from latentia.commands.reference import options_of
from latentia.commands.sources import modality_of
from latentia.data.decode import SUFFIXES as IMAGE_FILES
from latentia.data.series import Series, load_series
from latentia.data.shipped_series import SHIPPED_SERIES, simulate_ar2
from latentia.data.shipped_sounds import SHIPPED_SOUNDS
from latentia.data.sounds import SUFFIXES as SOUND_FILES
from latentia.data.sounds import Sounds, load_sounds, wav_bytes
from latentia.data.tables import SUFFIXES, is_table, read_columns
from latentia.errors import UsageError
from latentia.evaluation.report.curves import draw_series, save_series_figures
from latentia.evaluation.report.signal_report import SignalReport
from latentia.evaluation.report.spectrograms import draw_spectrograms, save_sound_figures
from latentia.evaluation.series_metrics import autocorrelation
from latentia.files.reading import user_path
from latentia.files.writing import write_bytes, write_image, write_text
from latentia.functional.autoregression import fit_ar2
from latentia.hub.load import INDEX_NAME
from latentia.models.log_mel import LogMel
from latentia.pipelines.capabilities import Option
from latentia.rng import seed_from
from latentia.runs.series import SeriesArguments, open_series, score_series, set_of
from latentia.runs.sounds import SoundArguments, open_sounds, score_sounds
from latentia.runs.sounds import set_of as set_of_sounds

# Those of a table of series, beside label_column; each but the last says that a file is one.
SERIES_FLAGS = ("layout", "series_column", "time_column", "window", "drop_columns")
SOUND_FLAGS = ("sampling_rate", "clip_seconds", "on_silence")
LONG = {"series", "time"}  # of a long table, as `generate` writes it


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
        many: whether a metric takes as many generated signals as were trained on.
        form: what two sets of signals must have in common to be compared, in words.
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
    form: Callable[[Any], str]
    many: bool


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


def resynthesised_sounds(train: Sounds, count: int, seed: int = 0) -> Sounds:
    """Real clips through log-mel frames and back by Griffin-Lim: what the frames lose, the baseline "griffin_lim".

    Args:
        train: clips, of which the first `count` are taken.
        count: how many.
        seed: not looked at: nothing is random.

    Example:
        >>> resynthesised_sounds(load_sounds("tones", max_samples=4), 2).waves.shape
        (2, 4096)
    """
    real = train.take(slice(count))
    codec = LogMel.fit(torch.from_numpy(train.waves), train.sampling_rate)
    waves = codec.decode(codec.encode(torch.from_numpy(real.waves))).numpy()
    return Sounds(waves, real.sampling_rate, real.labels, real.label_names)


def _write_sounds(folder: Path, sounds: Sounds) -> list[Path]:
    paths = [folder / f"{i:05d}.wav" for i in range(len(sounds))]
    for path, one in zip(paths, sounds.waves):
        write_bytes(path, wav_bytes(one, sounds.sampling_rate), durable=False)
    drawn = draw_spectrograms({"generated": set_of_sounds(sounds)}, sounds.label_names, max(1, min(10, len(sounds))))
    write_image(folder / "signals.png", drawn)
    return [folder, folder / "signals.png"]


def _figures_of_sounds(folder: Path, real: Sounds, made: Sounds) -> None:
    names = real.label_names if made.labels is not None else None
    save_sound_figures(folder, set_of_sounds(real), set_of_sounds(made), names)


MODALITIES: dict[str, Modality] = {
    "series": Modality(
        word="series",
        shipped=tuple(SHIPPED_SERIES),
        baselines={"ar2": (ar2_series, "an AR(2) process, by the Yule-Walker equations")},
        arguments=SeriesArguments,
        from_flags=open_series,
        load=load_series,
        fits=lambda source: isinstance(source, Series),
        settings=("label_column", "max_train_samples", *SERIES_FLAGS),
        score=score_series,
        figures=_figures_of_series,
        write=_write_series,
        many=True,
        form=lambda series: f"the channels {', '.join(series.channels)}",
    ),
    "sound": Modality(
        word="sounds",
        shipped=tuple(SHIPPED_SOUNDS),
        baselines={"griffin_lim": (resynthesised_sounds, "real clips, by way of log-mel frames and Griffin-Lim")},
        arguments=SoundArguments,
        from_flags=open_sounds,
        load=load_sounds,
        fits=lambda source: isinstance(source, Sounds),
        settings=("max_train_samples", *SOUND_FLAGS),
        score=score_sounds,
        figures=_figures_of_sounds,
        write=_write_sounds,
        many=False,
        form=lambda sounds: f"clips of {sounds.waves.shape[1]} samples at {sounds.sampling_rate} Hz",
    ),
}


def signal_modality(source: Any, data: Any = None, settings: Mapping[str, Any] | None = None) -> str | None:
    """The modality of `MODALITIES` that a source, or the data, is of; None if it is none of them.

    A file of a table, measured against another one, holds series if a flag of series is given, or if both have the
    columns "series" and "time" that `generate` writes; and rows if neither has any of the two, or with layout "rows".
    A folder of sound files without images holds sounds.

    Args:
        source: a name, file, folder, pipeline or signals.
        data: the same, or None.
        settings: how the data are read.

    Raises:
        UsageError: files of tables that may hold series or rows.

    Example:
        >>> signal_modality("ar2", "sines_ar2"), signal_modality("pca", "digits")
        ('series', None)
    """
    for one in (source, data):
        for name, modality in MODALITIES.items():
            named = isinstance(one, str) and one in (*modality.shipped, *modality.baselines)
            if named or modality.fits(one) or getattr(one, "modality", None) == name or modality_of(one) == name:
                return name
    if any(_holds_sounds(one) for one in (source, data)):
        return "sound"
    return "series" if _are_series([source] if data is None else [source, data], settings or {}) else None


def signal_options() -> dict[str, Option]:
    """The flags of tables of series and of sound files for a command line: name to type, default and help."""
    layout = Option(
        Literal["long", "wide", "rows"] | None,
        None,
        "What a table holds: long or wide series, or rows that are no series.",
    )
    series = {**options_of(SeriesArguments, SERIES_FLAGS), "layout": layout}
    silence = Option(Literal["raise", "skip"] | None, None, "What to do with clips of sounds below -60 dB.")
    return {**series, **options_of(SoundArguments, SOUND_FLAGS), "on_silence": silence}


def _holds_sounds(source: Any) -> bool:
    """Whether a source is a sound file, or a folder of such without an image."""
    if not isinstance(source, str | Path):
        return False
    path, found = user_path(source), False
    if not path.is_dir() or (path / INDEX_NAME).is_file():
        return path.is_file() and path.suffix.lower() in SOUND_FILES
    for file in path.rglob("*"):
        if file.suffix.lower() in IMAGE_FILES:
            return False
        found = found or file.suffix.lower() in SOUND_FILES
    return found


def _are_series(tables: Sequence[Any], settings: Mapping[str, Any]) -> bool:
    """Whether tables that are measured against each other hold series."""
    if not all(hasattr(one, "iloc") or (_is_file(one) and is_table(one)) for one in tables):
        return False
    if settings.get("layout") == "rows":
        return False
    if any(settings.get(name) for name in SERIES_FLAGS[:-1]):
        return True
    columns = [LONG & {*table_columns(one)} for one in tables]
    if any(columns) and not all(found == LONG for found in columns):
        has = "; ".join(
            f"{_name(one)} has {' and '.join(sorted(found)) or 'neither'}" for one, found in zip(tables, columns)
        )
        raise UsageError(
            f'layout must be given, as the columns "series" and "time" do not say what the tables hold: {has}. Take '
            "long or wide for time series, or rows for the rows of a table."
        )
    return any(columns)


def table_columns(table: Any) -> list[str]:
    """Names of the columns of a DataFrame or a file of a table; none of anything else."""
    if hasattr(table, "iloc"):
        return [str(name) for name in table.columns]
    return read_columns(user_path(table), every=True).column_names if _is_file(table) else []


def _is_file(source: Any) -> bool:
    return isinstance(source, str | Path) and str(source).lower().endswith(SUFFIXES)


def _name(table: Any) -> str:
    return str(table) if isinstance(table, str | Path) else type(table).__name__
