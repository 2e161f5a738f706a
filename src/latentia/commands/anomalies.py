"""Find anomalies by the likelihood or reconstruction error of a model: scores, p-values, and AUROC with labels."""

import csv
import inspect
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from tqdm.auto import tqdm

from latentia.commands.elements import Elements, read_elements, reader_of
from latentia.commands.modalities import signal_options
from latentia.commands.output import open_output
from latentia.commands.reference import data_options
from latentia.commands.sources import load_pipeline
from latentia.data.mixed import MixedTable
from latentia.errors import Count, NumericsError, Range, Seed, Size, UsageError, check_arguments, did_you_mean
from latentia.evaluation.anomalies import conformal_p_values, ranking_scores
from latentia.evaluation.report.grids import image_grid, plain_label
from latentia.files.reading import user_path
from latentia.files.writing import write_figure, write_image, write_json, write_text
from latentia.functional.pixels import from_uint8
from latentia.functional.settings import check_types
from latentia.pipelines.capabilities import Option, call_options
from latentia.pipelines.images import AnomalyScore
from latentia.rng import seed_from

REFERENCE = 2000  # held-out elements of the training data that p-values are taken from, at most
_SHOWN = 20  # elements in the image and on the terminal


@dataclass(frozen=True)
class Anomalies:
    """The result of `anomalies`.

    Args:
        elements: what was scored.
        scores: float64 (N,), larger is more anomalous.
        p_values: conformal p-values, float64 (N,); None without a reference.
        reference: scores of held-out elements of the training data, or None.
        anomalous: bool (N,), which are of no normal class; None if that is not known.
        ranking: AUROC and average precision, if some are known to be anomalous and some are not.
        about: what was scored, and how.
    """

    elements: Elements
    scores: Tensor
    p_values: Tensor | None
    reference: Tensor | None
    anomalous: Tensor | None
    ranking: dict[str, float]
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def order(self) -> list[int]:
        """Indices of the elements, the most anomalous first."""
        return self.scores.argsort(descending=True, stable=True).tolist()

    @property
    def flagged(self) -> Tensor:
        """Which elements have a p-value of at most the false-positive rate, bool (N,)."""
        if self.p_values is None:
            return torch.zeros(len(self.scores), dtype=torch.bool)
        return self.p_values <= self.about["false_positive_rate"]

    def text(self) -> str:
        """The most anomalous elements, and what the scores tell."""
        about = self.about
        lines = [f"{len(self.scores)} elements of {about['data']} by the {about['score']} of {about['source']}"]
        rate = about["false_positive_rate"]
        if self.reference is None:
            lines.append("No p-values: no elements are known to be normal and held out of training; give reference.")
        else:
            lines.append(
                f"{int(self.flagged.sum())} flagged at a false-positive rate of {rate:g}, by the scores of "
                f"{len(self.reference)} elements, {about['reference']}"
            )
        lines += [f"{name} {value:.4f}" for name, value in self.ranking.items()]
        lines.append(f"{'score':>12} {'p-value':>9}  element")
        for i in self.order[:_SHOWN]:
            p = "" if self.p_values is None else f"{float(self.p_values[i]):9.4f}"
            label = "" if self.elements.labels is None else f"  ({self.elements.labels[i]})"
            lines.append(f"{float(self.scores[i]):12.4f} {p:>9}  {self.elements.names[i]}{label}")
        return "\n".join(lines)

    def save(self, output_dir: str | Path = "outputs/anomalies", *, overwrite: bool = False) -> list[Path]:
        """Write scores.csv, the most anomalous first, anomalies.json, scores.png, and of images anomalies.png.

        Args:
            output_dir: where they go; it must be empty.
            overwrite: delete what an earlier `anomalies` left in it.

        Returns:
            The folder.

        Raises:
            UsageError: the folder holds something already, or cannot be written.
        """
        with open_output(output_dir, "anomalies", overwrite) as folder:
            write_text(folder / "scores.csv", self._csv())
            facts = {**self.about, **self.ranking, "elements": len(self.scores), "flagged": int(self.flagged.sum())}
            write_json(folder / "anomalies.json", facts)
            self._draw(folder / "scores.png")
            if isinstance(self.elements.inputs, Tensor):
                write_image(folder / "anomalies.png", self._grid())
        return [folder]

    def _csv(self) -> str:
        """One row for each element: name, label, score, p-value, whether it is flagged; of tables also its columns."""
        inputs, labels = self.elements.inputs, self.elements.labels
        frame = inputs.frame() if isinstance(inputs, MixedTable) else None
        lines = io.StringIO()
        writer = csv.writer(lines, lineterminator="\n")
        head = ["index", "element", *(["label"] if labels else []), "score", "p_value", "anomaly"]
        more = [] if frame is None else [str(name) for name in frame.columns]
        writer.writerow([*head, *more, *(["text"] if isinstance(inputs, list) else [])])
        flagged = self.flagged
        for i in self.order:
            p = "" if self.p_values is None else f"{float(self.p_values[i]):.6g}"
            row = [i, self.elements.names[i], *([labels[i]] if labels else []), repr(float(self.scores[i])), p]
            rest = [] if frame is None else list(frame.iloc[i])
            sure = "" if self.p_values is None else str(bool(flagged[i])).lower()
            writer.writerow([*row, sure, *rest, *([inputs[i]] if isinstance(inputs, list) else [])])
        return lines.getvalue()

    def _grid(self) -> Any:
        """The most and the least anomalous images."""
        order = self.order
        chosen = order[:_SHOWN] if len(order) < 2 * _SHOWN else order[:_SHOWN] + order[-_SHOWN:]
        texts = [f"{float(self.scores[i]):.4g}" for i in chosen]
        tiles = from_uint8(self.elements.inputs[chosen])
        return image_grid(tiles, columns=min(len(chosen), 10), tile_labels=texts)

    def _draw(self, path: Path) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 3.6), layout="constrained")
        panel = figure.subplots()
        everything = self.scores if self.reference is None else torch.cat([self.scores, self.reference])
        low, high = np.quantile(everything.numpy(), [0, 0.995])
        bins = np.linspace(low, high if high > low else low + 1, 41)
        groups: list[tuple[str, Tensor, str]] = []
        if self.reference is not None:
            groups.append((str(self.about["reference"]), self.reference, "#8c8c8c"))
        if self.anomalous is None:
            groups.append((str(self.about["data"]), self.scores, "#1f4e79"))
        else:
            groups += [
                ("normal classes", self.scores[~self.anomalous], "#1f4e79"),
                ("other classes", self.scores[self.anomalous], "#d1495b"),
            ]
        for name, values, color in groups:
            shown = np.clip(values.numpy(), bins[0], bins[-1])
            label = f"{plain_label(name)} ({len(values)})"
            panel.hist(
                shown, bins=bins.tolist(), density=True, histtype="stepfilled", alpha=0.4, color=color, label=label
            )
        if self.reference is not None:
            limit = float(self.reference.quantile(1 - self.about["false_positive_rate"]))
            panel.axvline(min(limit, bins[-1]), color="black", linewidth=1, linestyle="--")
        numbers = ", ".join(f"{name} {value:.3f}" for name, value in self.ranking.items())
        panel.set(xlabel=f"anomaly score: {self.about['unit']}", yticks=[])
        panel.set_title(f"{plain_label(Path(self.about['source']).name)}  {numbers}", fontsize=10)
        panel.legend(frameon=False, fontsize=9)
        panel.spines[["top", "right", "left"]].set_visible(False)
        write_figure(path, figure, dpi=120)


@check_types
@check_arguments
def anomalies(
    source: str | Path | Any,
    data: str | Any | None = None,
    *,
    score: AnomalyScore | None = None,
    reference: str | Any | None = None,
    normal_classes: Sequence[str] = (),
    false_positive_rate: Annotated[float, Range(0, 1, closed="neither")] = 0.05,
    samples: Count = 16,
    num_inference_steps: Count | None = None,
    max_samples: Count | None = None,
    batch_size: Size = 256,
    seed: Seed = 0,
    revision: str | None = None,
    device: str | None = None,
    **settings: Any,
) -> Anomalies:
    """Find anomalies by the likelihood or reconstruction error of a model, in images, tables, texts or time series.

    Each element gets a score, the larger the less it is like the training data. The scores of held-out elements of the
    training data turn it into a conformal p-value: if a new element is of their distribution, its p-value is at most
    the false-positive rate with at most that probability.

    Args:
        source: a saved pipeline with a likelihood or a reconstruction (folder or Hub id): autoencoder, VAE, VQ model,
            GAN by inversion, flow, autoregressive model, diffusion. In Python also a pipeline.
        data: what is scored. Images: digits, emoji, factors, a folder, parquet, or a data set on the Hub; of a model of
            tables a CSV or parquet file; of one of texts a file (each line), a folder (each file) or a table (each
            row); of one of time series a table. If not given, what the source was trained on, to find errors in it.
        score: "likelihood", negative log-likelihood, of texts in bits per character; "reconstruction", the squared
            error; or "relative_reconstruction", that error over the variance of the image, which does not grow with its
            contrast. If not given, the first that the model has.
        reference: normal elements that the model was not trained on, as `data`, for the p-values. If not given, the
            test images of the training data, or the rows or the end of the text that were held out.
        normal_classes: names of classes that are normal, where the data have labels; AUROC and average precision say
            how well the others are found.
        false_positive_rate: share of normal elements that may be flagged.
        samples: importance samples of a likelihood that is estimated with them, as of a VAE.
        num_inference_steps: of a diffusion model; its own if not given.
        max_samples: score at most so many elements, spread evenly; all if not given.
        batch_size: elements scored at a time.
        seed: of random numbers that a likelihood draws; those of an element do not depend on the others.
        revision: branch, tag or commit on the Hub.
        device: where it runs; a GPU if there is one.
        **settings: how the data are read, as for `latentia evaluate`; of tables label_column, of texts text_column.

    Returns:
        Scores, p-values and the ranking.

    Raises:
        UsageError: a source without such a score, an unknown class, or data without labels where classes are named.
        DataError: data that cannot be read, or of other columns or characters than the model knows.
        NumericsError: a score is not a number.

    Example:
        >>> from latentia import Autoencoder, AutoencoderPipeline
        >>> pipe = AutoencoderPipeline(Autoencoder(sample_size=8, latent_dim=4))
        >>> found = anomalies(pipe, "digits", normal_classes=["0", "1"], max_samples=50)
        >>> found.scores.shape, [*found.ranking]
        (torch.Size([50]), ['AUROC', 'average precision'])
    """
    pipe, text = _open(source, revision)
    elements = read_elements(pipe, source, data, settings).thin(max_samples)
    anomalous = _anomalous(elements, normal_classes)
    normal = reader_of(pipe).held_out(source) if reference is None else read_elements(pipe, source, reference, {})
    pipe.to(torch.device(device) if device else PartialState().device)
    pipe.set_progress_bar_config(disable=True)
    score = score or ("reconstruction" if pipe.likelihood is None else "likelihood")
    options = _options(pipe, score, samples, num_inference_steps)

    def measure(some: Elements, stream: str) -> Tensor:
        return _scores(pipe, some, score, options, batch_size, seed, stream)

    scores = measure(elements, "anomaly")
    reference_scores = None if normal is None else measure(normal.thin(REFERENCE), "anomaly reference")
    mixed = anomalous is not None and 0 < int(anomalous.sum()) < len(anomalous)
    units = {"likelihood": "nats", "reconstruction": "squared error"}
    unit = units.get(score, "share of variance that is not reconstructed")
    about = {
        "source": text, "class": type(pipe).__name__, "data": elements.data, "score": score,
        "unit": "bits per character" if pipe.modality == "text" else unit, "false_positive_rate": false_positive_rate,
        "normal_classes": [*normal_classes], "seed": seed,
        "reference": None if normal is None else f"{'held-out' if reference is None else 'normal'} of {normal.data}",
    }  # fmt: skip
    return Anomalies(
        elements,
        scores,
        None if reference_scores is None else conformal_p_values(scores, reference_scores),
        reference_scores,
        anomalous,
        ranking_scores(scores, anomalous) if mixed and anomalous is not None else {},
        about,
    )


def options(words: Sequence[str]) -> dict[str, Option]:
    """The flags of the data, those of the training scripts, for the command line."""
    text_column = Option(str | None, None, "Column of a table that holds texts, of a model of texts.")
    return {**data_options(), **signal_options(), "text_column": text_column}


# ------------------------------------------------------------ parts


def _open(source: Any, revision: str | None) -> tuple[Any, str]:
    """The pipeline and its name."""
    if not isinstance(source, str | Path):
        pipe, text = source, type(source).__name__
    else:
        if not user_path(source).is_dir() and "/" not in str(source):
            raise UsageError(f'source must be a folder or a repository on the Hub ("user/name"); got "{source}".')
        pipe, text = load_pipeline(source, revision), str(source)
    if not hasattr(pipe, "anomaly_score"):
        raise UsageError(
            f"source must be a pipeline of latentia, which has an anomaly score; got {type(pipe).__name__}."
        )
    return pipe, text


def _options(pipe: Any, score: str, samples: int, steps: int | None) -> dict[str, Any]:
    """Those among samples and num_inference_steps that the score of this pipeline takes."""
    scored = pipe.log_likelihood if score == "likelihood" else getattr(pipe, "reconstruct", pipe.log_likelihood)
    taken = call_options(scored)
    if steps is not None and "num_inference_steps" not in taken:
        raise UsageError(
            f"num_inference_steps must be left out: {type(pipe).__name__} scores in one pass; got {steps}."
        )
    given = {"samples": samples, "num_inference_steps": steps}
    return {name: value for name, value in given.items() if name in taken and value is not None}


def _scores(pipe: Any, some: Elements, score: str, options: dict, size: int, seed: int, stream: str) -> Tensor:
    draws = score == "likelihood" and "generator" in inspect.signature(pipe.log_likelihood).parameters
    starts, parts = range(0, len(some), size), []
    for start in tqdm(starts, desc=f"scores of {some.data}", unit="batch", disable=len(starts) < 2, leave=False):
        if draws:
            seeds = [seed_from(seed, stream, i) for i in range(start, min(start + size, len(some)))]
            options = options | {"generator": [torch.Generator().manual_seed(one) for one in seeds]}
        parts.append(pipe.anomaly_score(some.batch(start, start + size), score=score, **options).double().cpu())
    scores = torch.cat(parts)
    if scores.isnan().any():
        i = int(scores.isnan().nonzero()[0])
        raise NumericsError(f"The score of {some.names[i]} of {some.data} is not a number. Was the model trained?")
    return scores


def _anomalous(elements: Elements, normal_classes: Sequence[str]) -> Tensor | None:
    """Which elements are of no normal class; None if no classes are named."""
    if not normal_classes:
        return None
    if elements.labels is None:
        raise UsageError(
            f"normal_classes must be left out: {elements.data} has no labels. Name the "
            f"column that holds them with label_column; got {[*normal_classes]}."
        )
    known = sorted({*elements.labels})
    for name in normal_classes:
        if name not in known:
            raise UsageError(f"normal_classes must be among {known}; got {name!r}.{did_you_mean(name, known)}")
    return torch.tensor([label not in normal_classes for label in elements.labels])
