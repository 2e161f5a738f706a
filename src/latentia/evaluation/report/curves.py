"""Figures of time series: generated beside real ones, autocorrelation and spectrum."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from latentia.evaluation.report.columns import figure_image, plain_text
from latentia.evaluation.series_metrics import SeriesSet, autocorrelation, spectrum
from latentia.files.writing import write_image

_REAL, _MADE = "#1f4e79", "#d1495b"
_MOST_CHANNELS = 6


def draw_series(sides: dict[str, SeriesSet], channels: Any, count: int = 6) -> Image.Image:
    """The first series of each side, a column for each side and a line of panels for each series.

    Several channels are drawn in units of the deviation of the first side from its mean, as their scales may differ.

    Args:
        sides: name -> series, one or two: real first.
        channels: their names; at most 6 are drawn.
        count: series of a side.
    """
    from matplotlib.figure import Figure

    count = min(count, *(len(side) for side in sides.values()))
    figure = Figure(figsize=(4.6 * len(sides), 1.1 * count + 0.5), layout="constrained")
    panels = np.array(figure.subplots(count, len(sides), sharex=True, sharey=True)).reshape(count, len(sides))
    centres = next(iter(sides.values())).centres()
    for column, (name, side) in enumerate(sides.items()):
        values = side.scaled(*centres).values if len(channels) > 1 else side.values
        for row in range(count):
            steps = int(side.lengths[row])
            for c, channel in enumerate(channels[:_MOST_CHANNELS]):
                color = (_REAL if column == 0 and len(sides) == 2 else _MADE) if len(channels) == 1 else f"C{c}"
                label = plain_text(channel) if row == 0 else None
                panels[row, column].plot(values[row, c, :steps], color=color, lw=1, label=label)
            panels[row, column].tick_params(labelsize=6)
        panels[0, column].set_title(name + ", standardised" * (len(channels) > 1), fontsize=9)
    if len(channels) > 1:
        panels[0, 0].legend(fontsize=6, ncols=3)
    return figure_image(figure)


def draw_second_order(sides: dict[str, SeriesSet], channels: Any) -> Image.Image:
    """Autocorrelation curves and spectra of all sides, a line of panels for each channel.

    Args:
        sides: name -> series; the first ones are real and standardise all.
        channels: their names; at most 6 are drawn.
    """
    from matplotlib.figure import Figure

    scale = next(iter(sides.values())).centres()
    shown = [*channels][:_MOST_CHANNELS]
    figure = Figure(figsize=(9, 2.3 * len(shown) + 0.3), layout="constrained")
    panels = np.array(figure.subplots(len(shown), 2)).reshape(len(shown), 2)
    for k, (name, side) in enumerate(sides.items()):
        standard, color = side.scaled(*scale), (_REAL, _MADE, "#7a7a7a", "#2a9d8f")[k % 4]
        curves, powers = autocorrelation(standard), spectrum(standard)
        for c, channel in enumerate(shown):
            panels[c, 0].plot(curves[c], color=color, lw=1.4, label=name)
            panels[c, 1].semilogy(np.linspace(0, 0.5, powers.shape[1]), powers[c], color=color, lw=1.4)
            panels[c, 0].set_ylabel(plain_text(channel), fontsize=8)
    panels[0, 0].set_title("autocorrelation by lag", fontsize=9)
    panels[0, 1].set_title("spectrum by periods a step", fontsize=9)
    panels[0, 0].legend(fontsize=7)
    for panel in panels.flat:
        panel.tick_params(labelsize=7)
    return figure_image(figure)


def save_series_figures(folder: Path, real: SeriesSet, made: SeriesSet, channels: Any) -> None:
    """Write samples.png, real.png and their previews, signals.png and spectra.png, as a page shows them."""
    write_image(folder / "signals.png", draw_series({"real": real, "generated": made}, channels))
    write_image(folder / "spectra.png", draw_second_order({"real": real, "generated": made}, channels))
    for name, side in (("samples", made), ("real", real)):
        drawn = draw_series({name: side}, channels, 8)
        write_image(folder / f"{name}.png", drawn)
        drawn.thumbnail((400, 400))
        write_image(folder / f"{name}_preview.png", drawn)
