"""Several models side by side, each of one run or of several: one table, one page."""

from collections.abc import Sequence
from dataclasses import replace
from glob import glob
from pathlib import Path
from typing import Any

from latentia.commands.evaluate import Evaluation, evaluate, find_extractor, measure_data
from latentia.commands.sources import open_source
from latentia.data import ImageData, load_images
from latentia.errors import UsageError
from latentia.evaluation import check_metrics


def compare(sources: Sequence[Any], data: str | ImageData = "digits", **options: Any) -> list[Evaluation]:
    """Evaluate several sources against the same real images, with the same n, seed and extractor.

    Where one of them has several runs, each run is also said to have failed or not, see `failed`.

    Args:
        sources: two or more; see `open_source`. Equal names get a number. "name=source,source,..." are several runs of
            one model, such as those of different seeds: the table shows their mean and spread, and the share that
            failed. `*` in a path stands for what it matches: "vae=outputs/vae-*".
        data: as for `evaluate`.
        **options: as for `evaluate`, the same for all.

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
        raise UsageError(f"compare needs at least two sources; got {len(runs)}. To measure one, use evaluate.")
    check_metrics(options.get("metrics"))
    split = options.pop("split", "train")
    real = load_images(data, split=split) if isinstance(data, str) else data
    for _, source in runs:  # a slip in the last name must not cost the samples of the first
        open_source(source, real)
    extractor = find_extractor(options.pop("extractor", None), real)
    shared = {"split": split, "extractor": extractor, "reference": measure_data(real, extractor)}
    found = [
        replace(evaluate(source, data, **shared, **options), runs_of=name) for name, source in runs
    ]  # fmt: skip
    names = [evaluation.source for evaluation in found]
    for i, evaluation in enumerate(found):
        if names.count(names[i]) > 1:
            evaluation.source = f"{names[i]} ({names[: i + 1].count(names[i])})"
    if any(name for name, _ in runs):
        plain = {key: options[key] for key in ("n", "batch_size", "seed") if key in options}
        simplest = evaluate("pca", data, metrics=["fd"], **shared, **plain).report["fd"].value
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


def save_comparison(evaluations: Sequence[Evaluation], folder: str | Path, title: str = "Comparison") -> Path:
    """Write the page: index.html, comparison.json, and a folder of pictures for each model."""
    from latentia.evaluation.report import page, plots

    folder = Path(folder)
    for i, evaluation in enumerate(evaluations):
        evaluation.save(folder / str(i))
    reports = {evaluation.source: evaluation.report for evaluation in evaluations}
    plots.plot_precision_recall(reports, folder / "precision_recall.png")
    return page.write_page([evaluation.to_dict() for evaluation in evaluations], folder, title)


def _runs(source: Any) -> list[tuple[str | None, Any]]:
    """(name, source) of each run of "name=source,source"; (None, source) of anything else."""
    if not isinstance(source, str) or "=" not in source or Path(source).expanduser().exists():
        return [(None, source)]
    name, _, listed = source.partition("=")
    parts = [part.strip() for part in listed.split(",") if part.strip()]
    found = [path for part in parts for path in (sorted(glob(str(Path(part).expanduser()))) if "*" in part else [part])]
    if not name.strip() or not found:
        raise UsageError(
            f'Several runs are given as "name=folder,folder"; got "{source}", which names none that exist.'
        )
    return [(name.strip(), path) for path in found]
