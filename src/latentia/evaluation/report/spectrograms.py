"""Figures of sounds: spectrograms of clips, and mean spectra, generated beside real."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from latentia.evaluation.report.columns import figure_image, plain_text
from latentia.evaluation.sound_metrics import SoundSet
from latentia.files.writing import write_image
from latentia.functional.spectrograms import magnitudes

_COLORS = ("#1f4e79", "#d1495b", "#7a7a7a", "#2a9d8f")
_DEPTH = 60  # decibels below the loudest that are drawn


def draw_spectrograms(sides: dict[str, SoundSet], names: list[str] | None = None, count: int = 5) -> Image.Image:
    """Spectrograms of the first clips of each side, a row of panels for each side; the loudest is white.

    Args:
        sides: name -> clips.
        names: of the classes, for titles; `None` (default): none.
        count: clips of a side, one of each class if there are labels.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.9 * count + 0.6, 1.7 * len(sides) + 0.4), layout="constrained")
    panels = np.array(figure.subplots(len(sides), count, sharex=True, sharey=True)).reshape(len(sides), count)
    for panel in panels.flat:
        panel.set_axis_off()
    for row, (name, side) in enumerate(sides.items()):
        chosen = range(min(count, len(side)))
        if side.labels is not None and names is not None:
            _, firsts = np.unique(side.labels, return_index=True)  # one of each class, then others
            others = np.setdiff1d(np.arange(len(side)), firsts)
            chosen = [int(i) for i in (*firsts, *others)][:count]  # type: ignore[assignment] # of indices too
        for panel, i in zip(panels[row], chosen):
            power = magnitudes(torch.from_numpy(side.waves[i : i + 1]).float(), 512, 128)[0]
            loud = 20 * power.clamp(min=1e-6).log10()
            seconds, high = side.waves.shape[1] / side.sampling_rate, side.sampling_rate / 2000
            panel.set_axis_on()
            panel.imshow(
                (loud - loud.max()).clamp(min=-_DEPTH).numpy(),
                origin="lower",
                aspect="auto",
                cmap="magma",
                extent=(0, seconds, 0, high),
            )
            title = "" if side.labels is None or names is None else plain_text(names[int(side.labels[i])])
            panel.set_title(f"{name} {title}".strip(), fontsize=8)
            panel.tick_params(labelsize=6)
        panels[row, 0].set_ylabel("kHz", fontsize=7)
    panels[-1, 0].set_xlabel("s", fontsize=7)
    return figure_image(figure)


def draw_spectra(sides: dict[str, SoundSet]) -> Image.Image:
    """The mean power spectrum of each side in decibels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    panel = figure.subplots()
    for (name, side), color in zip(sides.items(), _COLORS):
        frequencies = np.linspace(0, side.sampling_rate / 2000, len(side.spectrum))
        panel.plot(frequencies, side.spectrum.numpy(), color=color, lw=1.2, label=name)
    panel.set(xlabel="kHz", ylabel="dB")
    panel.legend(fontsize=8)
    return figure_image(figure)


def save_sound_figures(folder: Path, real: SoundSet, made: SoundSet, names: list[str] | None) -> None:
    """Write samples.png, real.png and their previews, signals.png and spectra.png, as a page shows them."""
    write_image(folder / "signals.png", draw_spectrograms({"real": real, "generated": made}, names))
    write_image(folder / "spectra.png", draw_spectra({"real": real, "generated": made}))
    for name, side in (("samples", made), ("real", real)):
        drawn = draw_spectrograms({name: side}, names)
        write_image(folder / f"{name}.png", drawn)
        drawn.thumbnail((400, 400))
        write_image(folder / f"{name}_preview.png", drawn)
