"""Grids of images, strips of images over time, and training curves."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from latentia.errors import DataError, UsageError, did_you_mean
from latentia.files.reading import MAX_LOG, parse_json, read_text
from latentia.files.writing import write_figure
from latentia.functional.pixels import to_uint8

_INK, _PAPER = (40, 40, 40), (255, 255, 255)
_FONT_SIZE = 14
_LABEL_WIDTH = 96  # pixels that a label below a tile may take though the tile is narrower


def image_grid(
    images: torch.Tensor,
    columns: int | None = None,
    *,
    padding: int = 4,
    tile: int = 64,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    tile_labels: Sequence[str] | None = None,
) -> Image.Image:
    """Grid of images in reading order; small ones are enlarged by a whole factor without blurring.

    Args:
        images: (N, C, H, W) with C = 1, 3 or 4, floats in [-1, 1]; values beyond are clamped. A fourth channel is
            opacity, over white.
        columns: tiles per row; default the smallest number that makes at least as many columns as rows.
        padding: pixels of white around each tile.
        tile: images are enlarged by the largest whole factor that keeps their longer side within so many pixels.
        row_labels, column_labels: one text per row or column.
        tile_labels: one text per image, below it; cut to the width of its tile, or to 96 pixels if that is more.

    Raises:
        UsageError: `images` has another shape or type, or the labels are not one per row, column or image.
        DataError: `images` holds NaN or infinity.

    Example:
        >>> image_grid(torch.zeros(6, 1, 8, 8), columns=3).size
        (208, 140)
    """
    pixels = _pixels(images)  # (N, H, W, C)
    count, height, width, _ = pixels.shape
    columns = math.ceil(math.sqrt(count)) if columns is None else columns
    if columns < 1:
        raise UsageError(f"`columns` must be at least 1. Got {columns}.")
    rows = math.ceil(count / columns)
    for name, labels, expected in (
        ("row_labels", row_labels, rows),
        ("column_labels", column_labels, columns),
        ("tile_labels", tile_labels, count),
    ):
        if labels is not None and len(labels) != expected:
            raise UsageError(f"`{name}` must hold one text for each of {expected}. Got {len(labels)}.")
    factor = max(1, tile // max(height, width))
    height, width = height * factor, width * factor

    font = ImageFont.load_default(_FONT_SIZE)
    row_texts, column_texts = [str(text) for text in row_labels or ()], [str(text) for text in column_labels or ()]
    tile_texts = [_cut(str(text), font, max(width, _LABEL_WIDTH)) for text in tile_labels or ()]
    # A label wider than its tile moves the columns apart, so that no two labels touch.
    cell = max([width, *(math.ceil(font.getlength(text)) + 4 for text in (*column_texts, *tile_texts))])
    stride = height + padding + (_FONT_SIZE + 4 if tile_texts else 0)
    left = max([0, *(math.ceil(font.getlength(text)) + 6 for text in row_texts)])
    top = _FONT_SIZE + 6 if column_texts else 0
    size = (left + padding + columns * (cell + padding), top + padding + rows * stride)
    canvas = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(canvas)

    def corner(row: int, column: int) -> tuple[int, int]:
        return left + padding + column * (cell + padding) + (cell - width) // 2, top + padding + row * stride

    for index, image in enumerate(pixels):
        enlarged = image.repeat(factor, 0).repeat(factor, 1)  # (H, W, C)
        canvas.paste(
            Image.fromarray(enlarged.squeeze(-1) if enlarged.shape[-1] == 1 else enlarged),
            corner(*divmod(index, columns)),
        )
    for index, text in enumerate(tile_texts):
        x, y = corner(*divmod(index, columns))
        draw.text((x + width // 2, y + height + 2), text, _INK, font, anchor="ma")  # one line of writing for a row
    for row, text in enumerate(row_texts):
        draw.text((left - 2, corner(row, 0)[1] + height // 2), text, _INK, font, anchor="rm")
    for column, text in enumerate(column_texts):
        draw.text((corner(0, column)[0] + width // 2, top), text, _INK, font, anchor="mb")
    return canvas


def _cut(text: str, font: Any, width: int) -> str:
    """The text, or as much of its beginning as fits the width, with an ellipsis."""
    while font.getlength(text) > width and len(text) > 1:
        text = text.rstrip("…")[:-1].rstrip() + "…"
    return text


def image_strip(
    batches: Sequence[torch.Tensor], times: Sequence[int | float | str], *, row_labels: Sequence[str] | None = None
) -> Image.Image:
    """Grid with one row per image and one column per time, such as the steps of denoising.

    Args:
        batches: the same B images at each time, each (B, C, H, W); values beyond [-1, 1] are clamped.
        times: of the batches; numbers are written as "t = 250".
        row_labels: one text per image.

    Example:
        >>> image_strip([torch.zeros(2, 1, 8, 8)] * 3, times=[999, 500, 0]).size
        (208, 160)
    """
    if len(batches) != len(times) or not len(batches):
        raise UsageError(f"`times` must hold one entry per batch, at least one. Got {len(times)} for {len(batches)}.")
    if len({tuple(batch.shape) for batch in batches}) > 1:
        raise UsageError(f"`batches` must be of equal shape. Got {sorted({tuple(batch.shape) for batch in batches})}.")
    labels = [time if isinstance(time, str) else f"t = {time:.4g}" for time in times]
    images = torch.stack([batch.detach().float().cpu() for batch in batches], dim=1).flatten(0, 1)  # (B * T, C, H, W)
    return image_grid(images, columns=len(batches), column_labels=labels, row_labels=row_labels)


def plain_label(text: object, most: int = 60) -> str:
    """A text of users as matplotlib shows it unchanged: no formula, one line, cut, and not hidden from a legend.

    Example:
        >>> plain_label("$x^$"), plain_label("_a\\n_b"), plain_label("ab" * 9, 5)
        ('\\\\$x^\\\\$', ' _a _b', 'abab…')
    """
    line = "".join(letter if letter.isprintable() else " " for letter in str(text)[: 2 * most])
    line = line if len(line) <= most else line[: most - 1] + "…"
    return (" " if line.startswith("_") else "") + line.replace("$", r"\$")


def plot_curves(
    source: str | Path | Sequence[Mapping[str, Any]],
    keys: Sequence[str],
    out: str | Path,
    *,
    x: str = "images",
    title: str | None = None,
) -> Path:
    """Plot training curves over the number of images seen, a panel per key: values thin, running mean thick.

    Args:
        source: a `metrics.jsonl` or its rows. Rows without a key are left out of its panel; of rows with equal x, as a
            resumed run writes them, the last one counts.
        keys: one panel each.
        out: the PNG to write.
        x: key of the horizontal axis.
        title: above the panels.

    Returns:
        `out` as a path.

    Raises:
        DataError: the file has no rows, a line in it is no JSON, or no row holds a key.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    rows, of = (_rows(source), f" of {source}") if isinstance(source, str | Path) else (list(source), "")
    figure = Figure(figsize=(8, 0.8 + 2.6 * len(keys)), layout="constrained")
    panels = figure.subplots(len(keys), sharex=True, squeeze=False)[:, 0]
    for panel, key in zip(panels, keys):
        points = {row[x]: row[key] for row in rows if _is_number(row.get(x)) and _is_number(row.get(key))}
        if not points:
            known = sorted({name for row in rows for name in row})
            raise DataError(
                f'No row{of} holds both "{x}" and "{key}".{did_you_mean(key, known)} '
                f"Keys found: {', '.join(known) or 'none'}."
            )
        seen, values = (np.array(column, dtype=float) for column in zip(*sorted(points.items())))
        smooth = _running_mean(values, width=max(1, len(values) // 25))
        many = len(values) >= 25
        panel.plot(
            seen, values, color="#4c78a8", linewidth=0.8, alpha=0.45, marker=None if many else "o", label="each value"
        )
        panel.plot(seen, smooth, color="#1f4e79", linewidth=2, label="running mean")
        panel.set_ylabel(plain_label(key))
        panel.grid(color="#dddddd", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, loc="outside upper right", ncols=2)
    panels[-1].set_xlabel("images seen" if x == "images" else plain_label(x))
    panels[-1].xaxis.set_major_formatter(EngFormatter(sep=""))
    if title:
        figure.suptitle(plain_label(title))
    write_figure(out, figure, dpi=120)
    return Path(out)


def _pixels(images: torch.Tensor) -> np.ndarray:
    """Bytes (N, H, W, C) of images (N, C, H, W) in [-1, 1]; with a fourth channel, opacity, they lie on white."""
    if not isinstance(images, torch.Tensor) or images.ndim != 4 or len(images) == 0 or images.shape[1] not in (1, 3, 4):
        given = f"shape {tuple(images.shape)}" if isinstance(images, torch.Tensor) else type(images).__name__
        raise UsageError(f"`images` must be a tensor (N, C, H, W), N >= 1, C = 1, 3 or 4. Got {given}.")
    if not images.is_floating_point():
        raise UsageError(f"`images` must be floats in [-1, 1]. Got {images.dtype}; convert bytes with x / 127.5 - 1.")
    images = images.detach().float().cpu()
    if not images.isfinite().all():
        raise DataError("`images` must be finite. Some hold NaN or infinity: the network that made them has diverged.")
    if images.shape[1] == 4:
        opacity = (images[:, 3:].clamp(-1, 1) + 1) / 2
        images = images[:, :3] * opacity + (1 - opacity)
    return to_uint8(images).permute(0, 2, 3, 1).numpy()


def _rows(path: str | Path) -> list[dict[str, Any]]:
    lines = read_text(path, MAX_LOG, error=DataError).splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = parse_json(line, f"{path}, line {number}", DataError)
        except DataError:
            if number == len(lines):  # a killed run may leave its last line incomplete
                break
            raise
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number} must be a JSON object; got {type(row).__name__}.")
        rows.append(row)
    return rows


def _is_number(value: Any) -> bool:
    """Whether a value of a log can be plotted, NaN and infinity included; an integer beyond all floats cannot."""
    return isinstance(value, float | np.number) or (isinstance(value, int) and abs(value) < 2**1000)


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over a centred window that shrinks at both ends, so that it does not lag; non-finite values do not count."""
    finite, window = np.isfinite(values), np.ones(width)
    total = np.convolve(np.where(finite, values, 0.0), window, "same")
    count = np.convolve(finite.astype(float), window, "same")
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)
