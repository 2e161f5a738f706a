"""Measure the images of a saved pipeline, a folder, a file or a function: every metric beside its real-data score.

    evaluation = latentia.evaluate("outputs/demo", data="digits", n=500)
    print(evaluation.text())
    evaluation.save("outputs/evaluation")

What makes images is a `Source`; from the images on, everything is the same for all families.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentia.commands.measurement import (
    Real,
    check_options,
    find_extractor,
    measure_latents,
    measure_likelihood,
    measure_real,
    measure_reconstruction,
    peak_memory,
    sample_and_measure,
)
from latentia.commands.modalities import signal_modality, signal_options
from latentia.commands.output import open_output
from latentia.commands.reference import Reference, data_options, find_reference
from latentia.commands.signals import evaluate_signals
from latentia.commands.sources import Source, load_pipeline, modality_of, open_source
from latentia.commands.tables import evaluate_table, is_of_tables
from latentia.commands.texts import evaluate_texts
from latentia.commands.translation import measure_translation
from latentia.data import ImageData
from latentia.errors import Count, Natural, Seed, Size, UsageError, check_arguments
from latentia.evaluation import (
    LatentStructure,
    Likelihood,
    NoiseFloor,
    Reconstruction,
    Report,
    Sample,
    TranslationScores,
    check_metrics,
    save_figures,
    score,
    small_table,
    write_page,
)
from latentia.evaluation.features.base import FeatureExtractor
from latentia.files.logs import get_logger
from latentia.files.writing import write_json
from latentia.functional.settings import check_types
from latentia.hub.card import add_results
from latentia.hub.usage import saved_usage
from latentia.pipelines.capabilities import Option

logger = get_logger(__name__)


@dataclass(repr=False)
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
        reconstruction: of held-out images, likewise.
        translation: scores of an image-to-image pipeline beside the baselines of its task; None for others.
        noise: what images of noise get with the same extractor.
        runs_of: what several runs are compared as, together; None for a source of its own.
        failed: whether this run failed, see `failed` in compare.py; None if that was not asked.
        card: README.md of the saved pipeline that was measured, if there is one.
        command: the command line that measured it, for the page.
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
    reconstruction: Reconstruction | None = None
    translation: TranslationScores | None = None
    noise: NoiseFloor | None = None
    runs_of: str | None = None
    failed: bool | None = None
    card: Path | None = None
    command: str | None = None

    def __repr__(self) -> str:
        return f"Evaluation({self.source!r}, {self.report.text()})"

    def _repr_html_(self) -> str:
        return small_table([self.to_dict()])

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        return {
            "source": self.source, **self.about, **self.report.to_dict(),
            "milliseconds_per_image": self.milliseconds, "memory_mb": self.memory_mb,
            "likelihood": asdict(self.likelihood) if self.likelihood else None,
            "latents": self.latents.to_dict() if self.latents else None,
            "reconstruction": asdict(self.reconstruction) if self.reconstruction else None,
            "translation": self.translation.to_dict() if self.translation else None,
            "noise": asdict(self.noise) if self.noise else None,
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
        parts = (self.likelihood, self.latents, self.reconstruction, self.translation)
        return "\n".join([*lines, *(part.text() for part in parts if part)])

    def save(
        self, output_dir: str | Path = "outputs/evaluation", *, update_card: bool = False, overwrite: bool = False
    ) -> list[Path]:
        """Write a page, index.html, with its figures, and metrics.json.

        Args:
            output_dir: where numbers and images go; it must be empty.
            update_card: put the numbers into the card of the saved pipeline that was measured. Default: nothing is
                written into its folder.
            overwrite: delete what an earlier `evaluate` left in the folder.

        Returns:
            The folder, and the card if it was updated.

        Raises:
            UsageError: the folder holds something already, or cannot be written; no card to update.
        """
        with open_output(output_dir, "evaluate", overwrite) as folder:
            write_json(folder / "metrics.json", self.to_dict())
            save_figures(
                folder, self.source, self.report, images=self.images, sample=self.sample, real_images=self.real_images,
                real=self.real, label_names=self.data["label_names"],
            )  # fmt: skip
            write_page([self.to_dict()], folder, self.source, self.command)
        if not update_card:
            return [folder]
        if self.card is None:  # the page is written by now
            raise UsageError(f"update_card must be left out: {self.source} is no saved pipeline with a README.md.")
        self._put_into(self.card)
        return [folder, self.card]

    def _put_into(self, card: Path) -> None:
        split = {"split": self.data["split"]} if "split" in self.data else {}
        metrics = [metric | split for metric in self.report.for_card()]
        name = self.data.get("name", self.data["kind"])
        metrics = saved_usage(card.parent).metrics(metrics)
        if not add_results(card, metrics, dataset=name, seed=self.report.seed):
            logger.warning(
                f"{card}: its section Evaluation was changed by hand, so only the metadata have the new numbers."
            )


@check_types
@check_arguments
def evaluate(
    source: str | Any,
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
    revision: str | None = None,
    device: str | torch.device | None = None,
    **settings: Any,
) -> Evaluation:
    """Measure the images of a source: every metric that applies, beside what real images get at the same n.

    Of a source of rows of a table, a pipeline, a CSV or parquet file or the baseline "copula": columns, correlations,
    use, detection and copies, each beside held-out rows.

    Of a pipeline that writes texts: bits per character of the test part, and scores of n samples beside real text.

    Under `accelerate launch` (`accelerate launch -m latentia evaluate ...`) the processes share the work, and each
    returns the same result as one alone would.

    Args:
        source: a saved pipeline (folder or Hub id); a folder of images; a .npy or .npz file; "module:function" for a
            function (count, seed) -> images; or a baseline, "pca" or "kde". In Python also a pipeline, a function, a
            tensor or images. Of an autoencoder without a prior, reconstructions are measured; of an image-to-image
            pipeline translations of held-out inputs, beside the baselines of the task.
        data: the real images, at least 2 n: digits, emoji, factors, a folder, parquet, or a data set on the Hub. If not
            given, those that the source was trained on, read as its run read them. Take the training split, or copies
            go unnoticed.
        n: how many images to sample; 500 if not given, or less: half of the real ones, or as many as the source holds.
        extractor: own, trained on the data without labels, about a minute the first time; digits, mnist, emoji, the
            folder of a classifier, inception:PATH_OR_HUB_ID, or the name of a transformers vision model. If not given,
            the shipped one if size and classes are those of the data, else own.
        metrics: which of the metrics, such as fd kid precision recall; all that apply if not given.
        num_inference_steps: network evaluations per image, for pipelines that take several; the pipeline's own default
            if not given.
        batch_size: images sampled at a time.
        seed: of the samples and of the metrics' random splits.
        likelihood_images: take the likelihood of so many real images, of the test split where there is one; 0 for none.
            Diffusion needs all steps of the chain for each.
        latent_images: take path length and linear probe of the latents of so many such images; 0 for none. Diffusion
            inverts its chain for each, twice as slow as to sample it, and runs it once more for the path.
        reconstruction_images: take PSNR, SSIM and Frechet distance of the reconstructions of so many such images; 0 for
            none. An autoencoder without a prior takes n.
        revision: branch, tag or commit on the Hub.
        device: where a pipeline runs, such as cuda:1; the process's own if not given.
        **settings: how the data is read, as `--resolution`, `--split` or `--label_column` of the training scripts; what
            is not given is as in the run of the source.

    Returns:
        The metrics, with what they were measured of.

    Raises:
        UsageError: a source, metric, extractor or setting that is unknown, no data, or too few real images.
        DataError: the source returns nothing, or images of another shape.

    Example:
        >>> evaluation = evaluate("pca", "digits", n=100, metrics=["kid"])
        >>> evaluation.report.n, evaluation.about["kind"]
        (100, 'baseline')
    """
    of_images = {
        "extractor": extractor, "likelihood_images": likelihood_images, "latent_images": latent_images,
        "reconstruction_images": reconstruction_images, **settings,
    }  # fmt: skip
    common: dict[str, Any] = {"n": n, "seed": seed, "device": device}
    found: Any
    if (signals := signal_modality(source, data, settings)) is not None:
        common |= {"metrics": metrics, "num_inference_steps": num_inference_steps, "revision": revision}
        found = evaluate_signals(signals, source, data, **common, unused=of_images)
        return found
    of_images["num_inference_steps"] = num_inference_steps
    if is_of_tables(source, data):
        found = evaluate_table(source, data, **common, metrics=metrics, revision=revision, unused=of_images)
        return found
    check_metrics(metrics)
    check_options(device, reconstruction_images)
    if modality_of(source, revision) == "text":
        if isinstance(data, ImageData):
            raise UsageError("data must name a text, as the source writes texts; got ImageData.")
        pipe = load_pipeline(source, revision)
        found = evaluate_texts(pipe, str(source), data, **common, unused={**of_images, "metrics": metrics})
        return found
    reference = find_reference(data, [source], settings)
    opening = {"seed": seed, "num_inference_steps": num_inference_steps, "revision": revision, "device": device}
    opened = open_from(source, reference, opening)
    check_steps([opened], num_inference_steps)
    n = count_of([opened], reference.images, n)
    features, notes = find_extractor(extractor, reference.images, device)
    real = measure_real(reference.images, features, n, seed, metrics)
    return measure_source(
        opened, reference, real, n,
        extractor=features, metrics=metrics, batch_size=batch_size, seed=seed, notes=notes, card=_card_of(source),
        likelihood_images=likelihood_images, latent_images=latent_images, reconstruction_images=reconstruction_images,
    )  # fmt: skip


def options(words: Sequence[str]) -> dict[str, Option]:
    """The flags of the data, those of the training scripts, for the command line."""
    return {**data_options(), **signal_options()}


def open_from(source: Any, reference: Reference, options: Mapping[str, Any]) -> Source:
    """The opened source, whose reconstructions, if it makes nothing else, are of held-out images."""

    def inputs() -> tuple[Tensor, str] | None:
        found = reference.held_out_pairs(len(reference.images))
        return None if found is None else (found.inputs, found.about)

    held_out = partial(reference.held_out, len(reference.images))
    return open_source(source, reference.images, held_out=held_out, inputs=inputs, **options)


def check_steps(sources: Sequence[Source], num_inference_steps: int | None) -> None:
    """UsageError if a number of steps is given and no source takes one."""
    if num_inference_steps is not None and all(s.about.get("num_inference_steps") is None for s in sources):
        names = ", ".join(source.name for source in sources)
        raise UsageError(f"num_inference_steps must be left out: {names} samples in one pass, or holds its images.")


def count_of(sources: Sequence[Source], real: ImageData, n: int | None) -> int:
    """How many images of each source are measured.

    Raises:
        UsageError: more than a source holds, or than half of the real images.
    """
    most = len(real) // 2
    held = [source.count for source in sources if source.count is not None]
    for source in sources:
        if source.count == 1:
            raise UsageError(f"{source.name} must hold at least 2 images to be measured; it holds 1.")
    if n is None:
        n = min(500, most, *held)
    if not isinstance(n, int):
        raise UsageError(f"n must be a whole number; got {n!r}.")
    if not 2 <= n <= most:
        raise UsageError(
            f"n must be from 2 to {most}, half of the {len(real)} real images, so that as many can be held "
            f"out; got {n}."
        )
    for source in sources:
        if source.count is not None and source.count < n:
            raise UsageError(
                f"{source.name} holds {source.count} images, fewer than n = {n}. Lower n to {source.count}."
            )
    return n


def measure_source(
    opened: Source,
    reference: Reference,
    real: Real,
    n: int,
    *,
    extractor: FeatureExtractor,
    metrics: Sequence[str] | None,
    batch_size: int,
    seed: int,
    notes: Sequence[str] = (),
    card: Path | None = None,
    likelihood_images: int = 0,
    latent_images: int = 0,
    reconstruction_images: int = 0,
) -> Evaluation:
    """Measure n images of an opened source; arguments as for `evaluate`."""
    for key, metric in check_metrics(metrics).items():
        if metrics is not None and "labels" in metric.needs and (opened.labels is None or real.sample.labels is None):
            raise UsageError(
                f'The metric "{key}" needs labels, and {opened.name} or the data has none, or of other names; leave it '
                "out."
            )
    labels = None if opened.labels is None else torch.tensor(opened.labels(0, n))
    with peak_memory() as memory:
        sample, images, seconds = sample_and_measure(
            opened.draw, n, batch_size, extractor, labels, f"sampling {opened.name}"
        )
    report = score(sample, real.sample, extractor, metrics=metrics, seed=seed)
    noise = [] if real.noise is None else real.noise.notes(report)
    report = replace(report, notes=[*noise, *notes, *opened.notes, *report.notes])
    count = reconstruction_images if opened.samples else n
    return Evaluation(
        source=opened.name,
        about=opened.about,
        data=reference.images.describe(),
        report=report,
        images=images,
        sample=sample,
        real=real.sample,
        real_images=reference.images.images,
        milliseconds=1e3 * seconds / n,
        memory_mb=memory[0],
        likelihood=measure_likelihood(opened, reference, likelihood_images, seed),
        latents=measure_latents(opened, reference, extractor, latent_images, seed),
        reconstruction=measure_reconstruction(opened, reference, real.sample, extractor, count),
        translation=measure_translation(opened, reference, real.sample, extractor, n),
        noise=real.noise,
        card=card if opened.samples else None,
    )


def _card_of(source: Any) -> Path | None:
    if not isinstance(source, str | Path) or not Path(source, "model_index.json").is_file():
        return None
    card = Path(source, "README.md")
    return card if card.is_file() else None
