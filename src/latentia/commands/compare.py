"""Measure several models on equal terms, each of one run or of several: one table, one page."""

from collections.abc import Sequence
from dataclasses import replace
from glob import glob
from pathlib import Path
from typing import Any

import torch

from latentia.commands.evaluate import (
    Evaluation,
    check_steps,
    count_of,
    measure_source,
    open_from,
)
from latentia.commands.measurement import check_options, find_extractor, measure_real
from latentia.commands.modalities import signal_modality, signal_options
from latentia.commands.output import open_output
from latentia.commands.reference import data_options, find_reference
from latentia.commands.signals import compare_signals
from latentia.commands.sources import modality_of
from latentia.commands.tables import compare_tables, is_of_tables
from latentia.data import ImageData
from latentia.errors import Count, Natural, Seed, Size, UsageError, check_arguments
from latentia.evaluation import check_metrics, plot_precision_recall, small_table, text_table, write_page
from latentia.evaluation.features.base import FeatureExtractor
from latentia.files.reading import user_path
from latentia.functional.settings import check_types
from latentia.pipelines.capabilities import Option


class Comparison(list[Evaluation]):
    """The `Evaluation` of every source and run, in order."""

    command: str | None = None  # the command line that measured them, for the page

    def _repr_html_(self) -> str:
        return small_table([evaluation.to_dict() for evaluation in self])

    def text(self) -> str:
        """The table, for the terminal."""
        return text_table([evaluation.to_dict() for evaluation in self])

    def save(
        self, output_dir: str | Path = "outputs/comparison", title: str = "Comparison", *, overwrite: bool = False
    ) -> list[Path]:
        """Write the page: index.html, comparison.json, and for each source a folder with a page of its own.

        Args:
            output_dir: where the page goes; it must be empty.
            title: of the page.
            overwrite: delete what an earlier `compare` left in the folder.

        Returns:
            The page.

        Raises:
            UsageError: the folder holds something already, or cannot be written.
        """
        with open_output(output_dir, "compare", overwrite) as folder:
            for i, evaluation in enumerate(self):
                replace(evaluation, command=self.command).save(folder / str(i), update_card=False)
            names = [evaluation.source for evaluation in self]
            reports = {
                name if names.count(name) == 1 else f"{name} [{i}]": evaluation.report
                for i, (name, evaluation) in enumerate(zip(names, self))
            }
            plot_precision_recall(reports, folder / "precision_recall.png")
            return [write_page([evaluation.to_dict() for evaluation in self], folder, title, self.command)]


@check_types
@check_arguments
def compare(
    sources: Sequence[str | Any],
    data: str | ImageData | None = None,
    *,
    n: Count | None = None,
    extractor: str | FeatureExtractor | None = None,
    metrics: Sequence[str] | None = None,
    num_inference_steps: Size | None = None,
    batch_size: Size = 100,
    seed: Seed = 0,
    likelihood_images: Natural = 0,
    latent_images: Natural = 0,
    reconstruction_images: Natural = 0,
    device: str | torch.device | None = None,
    **settings: Any,
) -> Comparison:
    """Measure several models on equal terms: the same real images, n, seed and extractor for all; one table, one page.

    Where one of them has several runs, the table shows their mean, their standard deviation and how many failed: those
    with a Frechet distance above that of a Gaussian in the principal components, or without half of the classes.

    Args:
        sources: two or more, as for `latentia evaluate`; "pca" and "kde" are baselines that any model should beat.
            Equal names get a number. "name=source,source,..." are several runs of one model, such as those of different
            seeds; `*` in a path stands for what it matches: "vae=outputs/vae-*".
        data: the real images: digits, emoji, factors, a folder, parquet, or a data set on the Hub. At least 2 n. If not
            given, those that the sources were trained on, if they all were trained on the same.
        n: how many images to sample of each source; 500 if not given, or less: half of the real ones, or as many as
            each source holds.
        extractor: as for `latentia evaluate`; the shipped one if size and classes are those of the data, else own.
        metrics: which of the metrics, such as fd kid precision; all that apply if not given.
        num_inference_steps: network evaluations per image, for pipelines that take several; each pipeline's own default
            if not given.
        batch_size: images sampled at a time.
        seed: of the samples and of the metrics' random splits.
        likelihood_images: take the likelihood of so many real images; 0 for none.
        latent_images: take path length and linear probe of the latents of so many real images; 0 for none.
        reconstruction_images: take PSNR, SSIM and Frechet distance of the reconstructions of so many; 0 for none.
        device: where pipelines run, such as cuda:1; the process's own if not given.
        **settings: how the data is read, as for `latentia evaluate`.

    Returns:
        An `Evaluation` of every source and run, in order.

    Raises:
        UsageError: fewer than two sources, or a name without runs; and what `evaluate` raises.

    Example:
        >>> [evaluation.source for evaluation in compare(["pca", "kde"], "digits", n=50, metrics=["kid"])]
        ['pca', 'kde']
    """
    runs = [(i, *run) for i, source in enumerate(sources) for run in _runs(source)]
    if len(runs) < 2:
        raise UsageError(f"sources must be at least two; got {len(runs)}. To measure one, use evaluate.")
    if signals := next((kind for _, _, source in runs if (kind := signal_modality(source, data, settings))), None):
        of_images = {
            "extractor": extractor, "likelihood_images": likelihood_images, "latent_images": latent_images,
            "reconstruction_images": reconstruction_images, **settings,
        }  # fmt: skip
        if any(name for _, name, _ in runs):
            raise UsageError("sources of time series and sounds are compared one by one; give each without name=.")
        heard: Any = compare_signals(
            signals, [source for _, _, source in runs], data, n=n, metrics=metrics, seed=seed, device=device,
            num_inference_steps=num_inference_steps, unused=of_images,
        )  # fmt: skip
        return heard
    if any(is_of_tables(source, data) for _, _, source in runs):
        of_images = {
            "extractor": extractor, "num_inference_steps": num_inference_steps, "likelihood_images": likelihood_images,
            "latent_images": latent_images, "reconstruction_images": reconstruction_images, **settings,
        }  # fmt: skip
        if any(name for _, name, _ in runs):
            raise UsageError("sources of rows are compared one by one; give each without name=.")
        rows: Any = compare_tables(
            [source for _, _, source in runs], data, n=n, metrics=metrics, seed=seed, device=device, unused=of_images
        )
        return rows
    check_metrics(metrics)
    check_options(device, reconstruction_images)
    for _, _, source in runs:
        if (modality := modality_of(source)) != "image":
            raise UsageError(f"sources must make images; {source} makes a {modality}. Score it with evaluate.")
    reference = find_reference(data, [source for _, _, source in runs], settings)
    opening = {"seed": seed, "num_inference_steps": num_inference_steps, "device": device}
    checked = [open_from(source, reference, opening) for _, _, source in runs]
    check_steps(checked, num_inference_steps)
    n = count_of(checked, reference.images, n)
    for opened in checked:  # what cannot be sampled must not cost the samples of the others
        if opened.about["kind"] != "function":
            opened.draw(0, 1)
    features, notes = find_extractor(extractor, reference.images, device)
    real = measure_real(reference.images, features, n, seed, metrics)
    options: dict[str, Any] = {
        "extractor": features, "metrics": metrics, "batch_size": batch_size, "seed": seed, "notes": notes,
        "likelihood_images": likelihood_images, "latent_images": latent_images,
        "reconstruction_images": reconstruction_images,
    }  # fmt: skip
    names = _names([(i, name or opened.name) for (i, name, _), opened in zip(runs, checked)])
    found = Comparison()
    for (i, name, _), opened in zip(runs, checked):
        measured = measure_source(opened, reference, real, n, **options)
        named: dict[str, Any] = {"source": names[i]} if name is None else {"runs_of": names[i]}
        found.append(replace(measured, **named))
    if any(name for _, name, _ in runs):
        baseline = measure_source(
            open_from("pca", reference, opening), reference, real, n, **{**options, "metrics": ["fd"]}
        )
        for evaluation in found:
            evaluation.failed = failed(evaluation, baseline.report["fd"].value)
    return found


def options(words: Sequence[str]) -> dict[str, Option]:
    """The flags of the data, those of the training scripts, for the command line."""
    return {**data_options(), **signal_options()}


def _names(columns: Sequence[tuple[int, str]]) -> dict[int, str]:
    """Names of the columns of a table, by the number of the source; equal ones get a number.

    Example:
        >>> _names([(0, "pca"), (1, "vae"), (1, "vae"), (2, "pca")])
        {0: 'pca (1)', 1: 'vae', 2: 'pca (2)'}
    """
    names = dict(columns)
    found: dict[int, str] = {}
    for i, name in names.items():
        same = [j for j, other in names.items() if other == name]
        found[i] = f"{name} ({same.index(i) + 1})" if len(same) > 1 else name
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
    if not isinstance(source, str) or "=" not in source or user_path(source).exists():
        return [(None, source)]
    name, _, listed = source.partition("=")
    parts = [part.strip() for part in listed.split(",") if part.strip()]
    found: list[str] = []
    for part in parts:
        place = user_path(part)
        found += sorted(glob(str(place))) if "*" in part and not place.exists() else [part]  # what exists is a path
    if not name.strip() or not found:
        raise UsageError(
            f'sources of several runs are given as "name=folder,folder"; got "{source}", which names none that exist.'
        )
    return [(name.strip(), path) for path in found]
