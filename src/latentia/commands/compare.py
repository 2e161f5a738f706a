"""Measure several models on equal terms, each of one run or of several: one table, one page."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from glob import glob
from pathlib import Path
from typing import Any

import torch

from latentia.commands.evaluate import Evaluation, evaluate, find_extractor, measure_data
from latentia.commands.sources import load_real, open_source
from latentia.data import ImageData
from latentia.errors import UsageError
from latentia.evaluation import check_metrics, text_table
from latentia.evaluation.features.base import FeatureExtractor


class Comparison(list[Evaluation]):
    """The `Evaluation` of every source and run, in order."""

    def text(self) -> str:
        """The table, for the terminal."""
        return text_table([evaluation.to_dict() for evaluation in self])

    def save(self, output_dir: str | Path = "outputs/comparison", title: str = "Comparison") -> list[Path]:
        """Write the page: index.html, comparison.json, and a folder of images for each model.

        Args:
            output_dir: where the page goes.
            title: of the page.

        Returns:
            The page.
        """
        from latentia.evaluation.report import page, plots

        folder = Path(output_dir)
        for i, evaluation in enumerate(self):
            evaluation.save(folder / str(i), update_card=False)
        reports = {evaluation.source: evaluation.report for evaluation in self}
        plots.plot_precision_recall(reports, folder / "precision_recall.png")
        return [page.write_page([evaluation.to_dict() for evaluation in self], folder, title)]


def compare(
    sources: Sequence[str | Any],
    data: str | ImageData = "digits",
    *,
    n: int = 500,
    split: str = "train",
    extractor: str | FeatureExtractor | None = None,
    metrics: Sequence[str] | None = None,
    num_inference_steps: int | None = None,
    batch_size: int = 100,
    seed: int = 0,
    likelihood_images: int = 0,
    latent_images: int = 0,
    device: str | torch.device | None = None,
) -> Comparison:
    """Measure several models on equal terms: the same real images, n, seed and extractor for all; one table, one page.

    Where one of them has several runs, the table shows their mean, their standard deviation and how many failed: those
    with a Frechet distance above that of a Gaussian in the principal components, or without half of the classes.

    Args:
        sources: two or more, as for `latentia evaluate`; "pca" and "kde" are baselines that any model should beat.
            Equal names get a number. "name=source,source,..." are several runs of one model, such as those of different
            seeds; `*` in a path stands for what it matches: "vae=outputs/vae-*".
        data: the real images: digits, emoji, factors, a folder, parquet, or a data set on the Hub. At least 2 n.
        n: how many images to sample of each source.
        split: split of the data.
        extractor: as for `latentia evaluate`; the shipped one that fits the images if not given.
        metrics: which of the metrics, such as fd kid precision; all that apply if not given.
        num_inference_steps: network evaluations per image, for pipelines that take several; each pipeline's own default
            if not given.
        batch_size: images sampled at a time.
        seed: of the samples and of the metrics' random splits.
        likelihood_images: take the likelihood of so many real images; 0 for none.
        latent_images: take path length and linear probe of the latents of so many real images; 0 for none.
        device: where pipelines run, such as cuda:1; the process's own if not given.

    Returns:
        An `Evaluation` of every source and run, in order.

    Raises:
        UsageError: fewer than two sources, or a name without runs; and what `evaluate` raises.

    Example:
        >>> [evaluation.source for evaluation in compare(["pca", "kde"], "digits", n=50, metrics=["kid"])]
        ['pca', 'kde']
    """
    runs = [run for source in sources for run in _runs(source)]
    if len(runs) < 2:
        raise UsageError(f"sources must be at least two; got {len(runs)}. To measure one, use evaluate.")
    check_metrics(metrics)
    real = load_real(data, split)
    for _, source in runs:  # a slip in the last name must not cost the samples of the first
        open_source(source, real)
    features = find_extractor(extractor, real)
    measured = partial(
        evaluate,
        data=data,
        n=n,
        split=split,
        extractor=features,
        batch_size=batch_size,
        seed=seed,
        reference=measure_data(real, features),
    )
    options: dict[str, Any] = {
        "metrics": metrics, "num_inference_steps": num_inference_steps, "likelihood_images": likelihood_images,
        "latent_images": latent_images, "device": device,
    }  # fmt: skip
    found = Comparison(replace(measured(source, **options), runs_of=name) for name, source in runs)
    names = [evaluation.source for evaluation in found]
    for i, evaluation in enumerate(found):
        if names.count(names[i]) > 1:
            evaluation.source = f"{names[i]} ({names[: i + 1].count(names[i])})"
    if any(name for name, _ in runs):
        simplest = measured("pca", metrics=["fd"]).report["fd"].value
        for evaluation in found:
            evaluation.failed = failed(evaluation, simplest)
    return found


def failed(evaluation: Evaluation, simplest: float) -> bool | None:
    """Whether a run failed: its Frechet distance is above that of a Gaussian in the principal components, or it lacks
    half of the classes or more.

    Args:
        evaluation: of the run.
        simplest: Frechet distance of the baseline "pca" at the same n, of the same data and extractor.

    Returns:
        None where neither was measured.
    """
    scores, counts = evaluation.report.scores, evaluation.report.class_counts
    known = [scores["fd"].value > simplest] if "fd" in scores else []
    if "missing_classes" in scores and counts is not None:
        known.append(scores["missing_classes"].value >= len(counts) / 2)
    return any(known) if known else None


def _runs(source: Any) -> list[tuple[str | None, Any]]:
    """(name, source) of each run of "name=source,source"; (None, source) of anything else."""
    if not isinstance(source, str) or "=" not in source or Path(source).expanduser().exists():
        return [(None, source)]
    name, _, listed = source.partition("=")
    parts = [part.strip() for part in listed.split(",") if part.strip()]
    found = [path for part in parts for path in (sorted(glob(str(Path(part).expanduser()))) if "*" in part else [part])]
    if not name.strip() or not found:
        raise UsageError(
            f'sources of several runs are given as "name=folder,folder"; got "{source}", which names none that exist.'
        )
    return [(name.strip(), path) for path in found]
