"""Plots of an evaluation: nearest real images, class histogram, features in the plane, precision and recall."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from latentia.errors import UsageError
from latentia.evaluation.prdc import nearest
from latentia.evaluation.report.grids import image_grid, plain_label
from latentia.evaluation.report.report import Report
from latentia.evaluation.samples import Sample
from latentia.files.writing import write_figure, write_image
from latentia.functional.pixels import from_uint8
from latentia.rng import seed_from

_REAL, _GENERATED = "#8c8c8c", "#1f4e79"
COLORS = ("#1f4e79", "#d1495b", "#2e8b57", "#e08e0b", "#6c4aa1", "#00838f", "#8c564b", "#555555")


def save_figures(
    folder: str | Path,
    name: str,
    report: Report,
    *,
    images: Tensor,
    sample: Sample,
    real_images: Tensor,
    real: Sample,
    label_names: Sequence[str] | None = None,
) -> None:
    """Write the figures of an evaluation: samples, real images, neighbours, features, classes, precision and recall.

    Args:
        folder: where they go; it exists.
        name: of the source.
        report: its metrics.
        images: the first generated ones, uint8 (m, C, H, W).
        sample: what was measured of all generated images, in the same order.
        real_images: uint8 (N, C, H, W).
        real: what was measured of them.
        label_names: of the classes of the data, if it has names.
    """
    folder = Path(folder)
    spread = torch.linspace(0, len(real_images) - 1, min(100, len(real_images))).long()
    for file, tiles, labels in (
        ("samples", images, sample.labels),
        ("real", real_images[spread], None if real.labels is None else real.labels[spread]),
    ):
        known = label_names if labels is not None else None
        texts = [str(known[i]) for i in labels[: len(tiles)].tolist()] if known and labels is not None else None
        write_image(folder / f"{file}.png", image_grid(from_uint8(tiles), tile_labels=texts))
        few = torch.linspace(0, len(tiles) - 1, min(16, len(tiles))).long()
        write_image(folder / f"{file}_preview.png", image_grid(from_uint8(tiles[few]), padding=2))
    grid = nearest_neighbour_grid(images, real_images, sample.features, real.features)
    write_image(folder / "neighbours.png", grid)
    plot_features(sample.features, real.features, folder / "features.png")
    counts, real_counts = report.class_counts, report.real_class_counts
    if counts is not None and real_counts is not None:
        fitting = label_names if label_names and len(label_names) == len(counts) else None
        plot_class_histogram(counts, real_counts, folder / "classes.png", fitting)
    plot_precision_recall({name: report}, folder / "precision_recall.png")


def nearest_neighbour_grid(
    images: Tensor, real_images: Tensor, features: Tensor, real_features: Tensor, *, rows: int = 10, k: int = 5
) -> Image.Image:
    """Grid of generated images, on the left, each with its k nearest real ones; a copy looks like its neighbours.

    Args:
        images: at least `rows` generated ones, uint8 (n, C, H, W).
        real_images: uint8 (N, C, H, W).
        features, real_features: of both, (m, D) with m >= `rows`, and (N, D). Near means near in these.
        rows: generated images to show.
        k: neighbours of each.

    Example:
        >>> pixels = torch.zeros(6, 1, 8, 8, dtype=torch.uint8)
        >>> nearest_neighbour_grid(pixels, pixels, torch.rand(6, 4), torch.rand(6, 4), rows=2, k=3).width > 200
        True
    """
    rows, k = min(rows, len(images)), min(k, len(real_features))
    _, found = nearest(features[:rows], real_features, k)
    shown = torch.cat([images[:rows, None], real_images[found]], 1).flatten(0, 1)  # (rows * (1 + k), C, H, W)
    titles = ["generated", *(f"nearest {i}" for i in range(1, k + 1))]
    return image_grid(from_uint8(shown), columns=1 + k, column_labels=titles)


def plot_class_histogram(
    counts: Sequence[int], real_counts: Sequence[int], out: str | Path, names: Sequence[str] | None = None
) -> Path:
    """Plot the shares of the classes among generated and real images, side by side.

    Args:
        counts, real_counts: images of each of the K classes.
        out: the PNG to write.
        names: of the classes; default their numbers.

    Raises:
        UsageError: the lengths differ.
    """
    from matplotlib.figure import Figure

    if len(counts) != len(real_counts) or (names is not None and len(names) != len(counts)):
        raise UsageError(
            f"`counts`, `real_counts` and `names` must have one entry per class. Got {len(counts)}, "
            f"{len(real_counts)} and {len(names) if names is not None else 'none'}."
        )
    figure = Figure(figsize=(min(max(6, 0.5 * len(counts) + 2), 120), 3.4), layout="constrained")
    panel, at = figure.subplots(), np.arange(len(counts))
    for values, shift, color, label in ((counts, -0.2, _GENERATED, "generated"), (real_counts, 0.2, _REAL, "real")):
        panel.bar(at + shift, np.asarray(values) / max(1, sum(values)), 0.4, color=color, label=label)
    texts = [plain_label(name, 24) for name in (at if names is None else names)]
    turned = max(map(len, texts), default=0) > 4
    if len(texts) <= 240:  # what the width has room for
        panel.set_xticks(at, texts, rotation=30 if turned else 0, ha="right" if turned else "center")
    panel.set(xlabel="most likely class", ylabel="share of the images")
    figure.legend(frameon=False, loc="outside upper right", ncols=2)
    panel.spines[["top", "right"]].set_visible(False)
    write_figure(out, figure, dpi=120)
    return Path(out)


def plot_features(
    features: Tensor, real_features: Tensor, out: str | Path, *, points: int = 500, seed: int = 0
) -> Path:
    """Plot generated and real images in feature space, by PCA of the real ones and by t-SNE of both.

    Args:
        features, real_features: (n, D) and (N, D).
        out: the PNG to write.
        points: at most so many of each are plotted, chosen at random. Default 500.
        seed: of the choice and of t-SNE.
    """
    from matplotlib.figure import Figure
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    generator = torch.Generator().manual_seed(seed_from(seed, "feature map"))
    real, generated = (
        part[torch.randperm(len(part), generator=generator)[:points]].double().cpu().numpy()
        for part in (real_features, features)
    )
    both = np.concatenate([real, generated])
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    panels = figure.subplots(1, 2)
    axes = PCA(2, random_state=seed).fit(real)
    share = axes.explained_variance_ratio_.sum()
    places = [(axes.transform(both), f"PCA of the real images ({share:.0%} of their variance)")]
    if len(both) > 8:
        pca = PCA(min(30, *both.shape), random_state=seed).fit_transform(both)
        tsne = TSNE(2, perplexity=min(30, (len(both) - 1) / 3), init="pca", random_state=seed)
        places.append((tsne.fit_transform(pca), "t-SNE of both"))
    for panel, (place, title) in zip(panels, places):
        panel.scatter(*place[: len(real)].T, s=9, color=_REAL, alpha=0.55, linewidths=0, label="real")
        panel.scatter(*place[len(real) :].T, s=9, color=_GENERATED, alpha=0.55, linewidths=0, label="generated")
        panel.set_title(title, fontsize=10)
        panel.set(xticks=[], yticks=[])
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, frameon=False, loc="outside lower center", ncols=2, markerscale=2)
    write_figure(out, figure, dpi=120)
    return Path(out)


def plot_precision_recall(reports: Mapping[str, Report], out: str | Path) -> Path | None:
    """Plot precision over recall and density over coverage of several reports, with a cross for real images.

    Args:
        reports: by name. Those without these metrics are left out.
        out: the PNG to write.

    Returns:
        `out`; None if no report has both metrics of a panel, and then nothing is written.
    """
    from matplotlib.figure import Figure

    pairs = [("recall", "precision"), ("coverage", "density")]
    pairs = [pair for pair in pairs if any({*pair} <= report.scores.keys() for report in reports.values())]
    if not pairs:
        return None
    figure = Figure(figsize=(4.5 * len(pairs), 4.4), layout="constrained")
    handles: dict[str, Any] = {}
    for panel, (x, y) in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs):
        shown = {name: report.scores for name, report in reports.items() if {x, y} <= report.scores.keys()}
        for i, (name, scores) in enumerate(shown.items()):
            color = COLORS[i % len(COLORS)]
            if i == 0:
                panel.scatter(scores[x].real, scores[y].real, s=80, marker="x", color="black", label="real images")
            panel.scatter(scores[x].value, scores[y].value, s=60, color=color, label=plain_label(name), zorder=3)
        panel.set(xlabel=f"{x} (diversity)", ylabel=f"{y} (quality)", xlim=(-0.03, 1.03))
        panel.set_ylim(bottom=-0.03, top=max(1.03, panel.get_ylim()[1]))
        panel.grid(color="#dddddd", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        handles |= dict(zip(*panel.get_legend_handles_labels()[::-1]))
    if handles:
        columns = min(4, len(handles))
        figure.legend(
            [*handles.values()], [*handles], frameon=False, fontsize=9, loc="outside lower center", ncols=columns
        )
    write_figure(out, figure, dpi=120)
    return Path(out)
