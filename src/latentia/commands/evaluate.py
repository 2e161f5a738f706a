"""Measure the images of a saved pipeline, a folder, a file or a function: every metric beside its real-data score.

    evaluation = latentia.evaluate("outputs/demo", data="digits", n=500)
    print(evaluation.text())
    evaluation.save("outputs/evaluation")

What makes images is a `Source`; from the images on, everything is the same for all families.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from latentia.commands.measurement import measure_latents, measure_likelihood, peak_memory, sample_and_measure
from latentia.commands.sources import load_real, open_source
from latentia.data import ImageData
from latentia.errors import UsageError, check_range
from latentia.evaluation import (
    LatentStructure,
    Likelihood,
    Report,
    Sample,
    cached_predict,
    check_metrics,
    extractor_for,
    load_extractor,
    measure,
    score,
    uint8_batches,
)
from latentia.evaluation.features.base import FeatureExtractor, known_range
from latentia.functional.pixels import from_uint8
from latentia.hub.card import add_results

logger = logging.getLogger(__name__)


@dataclass
class Evaluation:
    """The result of `evaluate`.

    Args:
        source: name of what was measured.
        about: facts of it.
        data: facts of the real images.
        report: every metric.
        images: the first `KEPT` generated ones, uint8 (100, C, H, W).
        sample: what was measured of all generated images.
        real: what was measured of all real images.
        real_images: uint8 (N, C, H, W).
        milliseconds: to sample one image, in batches of `batch_size`, over all processes.
        memory_mb: how far memory rose while sampling: of the GPU if there is one, else of the process.
        likelihood: of held-out images; None where the family defines none or none was asked for.
        latents: how they are structured, likewise.
        runs_of: what several runs are compared as, together; None for a source of its own.
        failed: whether this run failed, see `failed` in compare.py; None if that was not asked.
        card: README.md of the saved pipeline that was measured, if there is one.
    """

    source: str
    about: dict[str, Any]
    data: dict[str, Any]
    report: Report
    images: Tensor
    sample: Sample
    real: Sample
    real_images: Tensor
    milliseconds: float
    memory_mb: float
    likelihood: Likelihood | None
    latents: LatentStructure | None = None
    runs_of: str | None = None
    failed: bool | None = None
    card: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        return {
            "source": self.source, **self.about, **self.report.to_dict(),
            "milliseconds_per_image": self.milliseconds, "memory_mb": self.memory_mb,
            "likelihood": asdict(self.likelihood) if self.likelihood else None,
            "latents": self.latents.to_dict() if self.latents else None,
            "runs_of": self.runs_of, "failed": self.failed,
            "data": self.data, "latentia": version("latentia"),
        }  # fmt: skip

    def text(self) -> str:
        """The table of metrics and what else is known, for the terminal."""
        facts = [f"{self.milliseconds:.3g} ms per image"]
        if self.about.get("parameters") is not None:
            facts.append(f"{self.about['parameters']:,} parameters")
        if self.about.get("training_seconds") is not None:
            facts.append(f"trained for {self.about['training_seconds']:.0f} s")
        lines = [self.report.table(), f"{self.source}: {', '.join(facts)}"]
        return "\n".join([*lines, *(part.text() for part in (self.likelihood, self.latents) if part)])

    def save(self, output_dir: str | Path = "outputs/evaluation", *, update_card: bool = True) -> list[Path]:
        """Write metrics.json and images: samples, nearest real images, classes, feature map, precision and recall.

        Args:
            output_dir: where numbers and images go.
            update_card: put the numbers into the card of the saved pipeline that was measured, if it has one.

        Returns:
            The folder, and the card if it was updated.
        """
        from latentia.evaluation.report import grids, plots

        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        grids.image_grid(from_uint8(self.images)).save(folder / "samples.png")
        plots.nearest_neighbour_grid(self.images, self.real_images, self.sample.features, self.real.features).save(
            folder / "neighbours.png"
        )
        plots.plot_features(self.sample.features, self.real.features, folder / "features.png")
        counts, real_counts, names = self.report.class_counts, self.report.real_class_counts, self.data["label_names"]
        if counts is not None and real_counts is not None:
            fitting = names if names and len(names) == len(counts) else None
            plots.plot_class_histogram(counts, real_counts, folder / "classes.png", fitting)
        plots.plot_precision_recall({self.source: self.report}, folder / "precision_recall.png")
        if not update_card or self.card is None:
            return [folder]
        self._put_into(self.card)
        return [folder, self.card]

    def _put_into(self, card: Path) -> None:
        split = {"split": self.data["split"]} if "split" in self.data else {}
        metrics = [metric | split for metric in self.report.for_card()]
        name = self.data.get("name", self.data["kind"])
        if not add_results(card, metrics, dataset=name, seed=self.report.seed):
            logger.warning(
                f"{card}: its section Evaluation was changed by hand, so only the metadata have the new numbers."
            )


def evaluate(
    source: str | Any,
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
    revision: str | None = None,
    device: str | torch.device | None = None,
    reference: Sample | None = None,
) -> Evaluation:
    """Measure the images of a source: every metric that applies, beside what real images get at the same n.

    Under `accelerate launch` (`accelerate launch -m latentia evaluate ...`) the processes share the work, and each
    returns the same result as one alone would.

    Args:
        source: a saved pipeline (folder or Hub id); a folder of images; a .npy or .npz file; "module:function" for a
            function (count, seed) -> images; or a baseline, "pca" or "kde". In Python also a pipeline, a function, a
            tensor or images.
        data: the real images, at least 2 n: digits, emoji, factors, a folder, parquet, or a data set on the Hub.
        n: how many images to sample.
        split: split of the data; use the one that the source was trained on, or copies go unnoticed.
        extractor: digits, mnist, emoji, the folder of a classifier, inception:PATH_OR_HUB_ID, or the name of a
            transformers vision model; the shipped one that fits the images if not given.
        metrics: which of the metrics, such as fd kid precision recall; all that apply if not given.
        num_inference_steps: network evaluations per image, for pipelines that take several; the pipeline's own default
            if not given.
        batch_size: images sampled at a time.
        seed: of the samples and of the metrics' random splits.
        likelihood_images: take the likelihood of so many real images, of the test split where there is one; 0 for none.
            Diffusion needs all steps of the chain for each.
        latent_images: take path length and linear probe of the latents of so many such images; 0 for none. Diffusion
            inverts its chain for each, twice as slow as to sample it, and runs it once more for the path.
        revision: branch, tag or commit on the Hub.
        device: where a pipeline runs, such as cuda:1; the process's own if not given.
        reference: the features of the real images, from `measure_data`, if they are there already.

    Returns:
        The metrics, with what they were measured of.

    Raises:
        UsageError: a source, metric or extractor that is unknown, or too few real images.
        DataError: the source returns nothing, or images of another shape.

    Example:
        >>> evaluation = evaluate("pca", "digits", n=100, metrics=["kid"])
        >>> evaluation.report.n, evaluation.about["kind"]
        (100, 'baseline')
    """
    check_metrics(metrics)
    real = load_real(data, split)
    if not 2 <= n <= len(real) // 2:
        raise UsageError(
            f"n must be from 2 to {len(real) // 2}, half of the {len(real)} real images, so that as many can be held "
            f"out; got {n}."
        )
    check_range("batch_size", batch_size, 1)
    features = find_extractor(extractor, real)
    opened = open_source(
        source, real, seed=seed, num_inference_steps=num_inference_steps, revision=revision, device=device
    )
    for key, metric in check_metrics(metrics).items():
        if metrics is not None and "labels" in metric.needs and (opened.labels is None or real.labels is None):
            raise UsageError(f'The metric "{key}" needs labels, and {opened.name} or the data has none; leave it out.')
    if opened.count is not None and opened.count < n:
        raise UsageError(f"{opened.name} holds {opened.count} images, fewer than n = {n}. Lower n to {opened.count}.")
    reference = measure_data(real, features) if reference is None else reference
    labels = None if opened.labels is None else torch.tensor(opened.labels(0, n))
    with peak_memory() as memory:
        sample, images, seconds = sample_and_measure(
            opened.draw, n, batch_size, features, labels, f"sampling {opened.name}"
        )
    report = score(sample, reference, features, metrics=metrics, seed=seed)
    return Evaluation(
        source=opened.name,
        about=opened.about,
        data=real.describe(),
        report=report,
        images=images,
        sample=sample,
        real=reference,
        real_images=real.images,
        milliseconds=1e3 * seconds / n,
        memory_mb=memory[0],
        likelihood=measure_likelihood(opened, data, real, likelihood_images, seed),
        latents=measure_latents(opened, data, real, features, latent_images, seed),
        card=_card_of(source),
    )


def measure_data(real: ImageData, extractor: FeatureExtractor, cache_dir: str | Path | None = None) -> Sample:
    """The features of real images, as the metrics need them; computed once and cached."""
    starts = tqdm(range(0, len(real), 1000), desc=f"features of {len(real)} real images", unit="batch", leave=False)
    batches = (from_uint8(real.images[start : start + 1000]) for start in starts)
    with known_range():
        features = cached_predict(batches, extractor, real.fingerprint, cache_dir, count=len(real))
        return measure(uint8_batches(real.images), extractor, real.labels, predictions=features)


def _card_of(source: Any) -> Path | None:
    if not isinstance(source, str | Path) or not Path(source, "model_index.json").is_file():
        return None
    card = Path(source, "README.md")
    return card if card.is_file() else None


def find_extractor(extractor: Any, real: ImageData) -> FeatureExtractor:
    """The extractor that is named, or the shipped one that fits the images."""
    if extractor is None:
        found = extractor_for(real.shape)
        if found is None:
            raise UsageError(
                f"extractor is missing, and none that is shipped fits images of shape {tuple(real.shape)}. Give the "
                'folder of a classifier, "inception:PATH" or the name of a transformers vision model.'
            )
        return found
    return load_extractor(extractor) if isinstance(extractor, str | Path) else extractor
