"""Figures of tables: the distribution of each column, generated beside real, and all correlations."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from latentia.evaluation.table_metrics import Rows
from latentia.files.writing import write_image

_REAL, _MADE = "#1f4e79", "#d1495b"
_MOST_COLUMNS, _MOST_CATEGORIES = 24, 12


def draw_columns(real: Rows, made: Rows | None = None) -> Image.Image:
    """Histograms of numbers and shares of categories, of at most 24 columns: real ones filled, generated ones lines."""
    from matplotlib.figure import Figure

    columns = list(real.columns)[:_MOST_COLUMNS]
    wide = min(4, len(columns))
    high = -(-len(columns) // wide)
    figure = Figure(figsize=(3.1 * wide, 2.2 * high + 0.4), layout="constrained")
    panels = np.atleast_1d(figure.subplots(high, wide)).flatten()
    for c, (panel, column) in enumerate(zip(panels, columns)):
        sides = [side.values[:, c] for side in (real, made) if side is not None]
        if column.is_number:
            known = [values[~np.isnan(values)] for values in sides]
            ends = np.quantile(known[0], [0.002, 0.998]) if len(known[0]) else np.array([0.0, 1.0])
            bins = np.linspace(ends[0], ends[1] if ends[1] > ends[0] else ends[0] + 1, 31)
            clipped = [np.clip(values, bins[0], bins[-1]) for values in known]
            panel.hist(clipped[0], bins=bins, density=True, color=_REAL, alpha=0.45, label="real")
            if made is not None:
                panel.hist(clipped[1], bins=bins, density=True, histtype="step", color=_MADE, lw=1.6, label="generated")
            if column.kind == "date":
                unit = {"day": "D", "second": "s"}.get(column.unit or "day", "us")
                ticks = np.linspace(bins[0], bins[-1], 3)
                dates = ticks.astype(np.int64).astype(f"datetime64[{unit}]").astype("datetime64[D]").astype(str)
                panel.set_xticks(ticks, dates.tolist(), fontsize=7)
        else:
            names = [*column.categories, "missing"]
            shares = [
                np.bincount(np.where(np.isnan(v), len(names) - 1, v).astype(int), minlength=len(names)) / max(len(v), 1)
                for v in sides
            ]
            shown = [k for k in np.argsort(-shares[0])[:_MOST_CATEGORIES] if any(share[k] for share in shares)]
            at = np.arange(len(shown))
            panel.bar(at - 0.2, shares[0][shown], 0.4, color=_REAL, alpha=0.45, label="real")
            if made is not None:
                panel.bar(at + 0.2, shares[1][shown], 0.4, color=_MADE, alpha=0.8, label="generated")
            texts = [plain_text(names[k][:14]) for k in shown]
            panel.set_xticks(at, texts, fontsize=7, rotation=30, ha="right")
        panel.set_title(plain_text(column.name[:30]), fontsize=9)
        panel.tick_params(labelsize=7)
        panel.set_yticks([])
    for panel in panels[len(columns) :]:
        panel.set_axis_off()
    panels[0].legend(fontsize=7)
    return figure_image(figure)


def draw_correlations(real: Rows, made: Rows) -> Image.Image:
    """Correlations of all numbers and indicators of categories, real and generated, and their difference."""
    from matplotlib.figure import Figure

    means, scales = real.centres()
    tables = [side.table(means, scales) for side in (real, made)]
    kept = np.minimum(*(table.std(0) for table in tables)) > 1e-9
    one, other = (np.atleast_2d(np.corrcoef(table[:, kept], rowvar=False)) for table in tables)
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = figure.subplots(1, 3)
    for panel, values, title in zip(panels, (one, other, other - one), ("real", "generated", "difference")):
        shown = panel.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1)
        panel.set_title(title, fontsize=9)
        panel.set(xticks=[], yticks=[])
    figure.colorbar(shown, ax=panels, shrink=0.8)
    return figure_image(figure)


def save_table_figures(folder: Path, real: Rows, made: Rows) -> None:
    """Write samples.png, real.png and their previews, columns.png and correlations.png, as a page shows them."""
    columns = draw_columns(real, made)
    write_image(folder / "columns.png", columns)
    write_image(folder / "correlations.png", draw_correlations(real, made))
    for name, picture in (("samples", draw_columns(made)), ("real", draw_columns(real))):
        write_image(folder / f"{name}.png", picture)
        picture.thumbnail((400, 400))
        write_image(folder / f"{name}_preview.png", picture)


def plain_text(text: str) -> str:
    """A text that is no formula for matplotlib."""
    return text.replace("$", r"\$")


def figure_image(figure: Any) -> Image.Image:
    """A figure of matplotlib as an image."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(90)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
