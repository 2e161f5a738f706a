"""Write the latents of images, series, sounds or a table as parquet, with PCA and t-SNE maps and their scores."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from torch import Tensor

from latentia.commands.modalities import MODALITIES, signal_modality, signal_options
from latentia.commands.output import open_output
from latentia.commands.reference import data_options, find_reference
from latentia.commands.signals import real_signals, signal_settings
from latentia.commands.sources import load_pipeline
from latentia.data import load_table
from latentia.data.tables import is_table
from latentia.errors import DataError, NumericsError, Range, Seed, Size, UsageError, check_arguments, did_you_mean
from latentia.evaluation import nearest
from latentia.evaluation.report.grids import plain_label
from latentia.files.writing import replacing, write_figure, write_text
from latentia.functional.pixels import from_uint8
from latentia.functional.settings import check_types
from latentia.pipelines.capabilities import Option, capabilities
from latentia.rng import seed_from

NEIGHBOURS = 10  # of trustworthiness
_TSNE_INPUTS = 50  # more dimensions than these are first brought down by PCA


@dataclass(frozen=True)
class Embedding:
    """The result of `embed`.

    Args:
        latents: float32 (N, D).
        labels: int64 (N,), or None.
        label_names: of the classes, in the order of their numbers, or None.
        points: which rows the maps show, (P,).
        maps: name ("PCA", "t-SNE") to places in the plane, float32 (P, 2).
        scores: name ("latents", "PCA", "t-SNE") to "trustworthiness", in [0, 1], whether neighbours there are
            neighbours among the inputs; and, with labels, "1-NN accuracy", how often the nearest other point has the
            same label.
        about: what was embedded, and how.
    """

    latents: Tensor
    labels: Tensor | None
    label_names: list[str] | None
    points: Tensor
    maps: dict[str, Tensor]
    scores: dict[str, dict[str, float]]
    about: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """A table for the terminal."""
        count, dimension = self.latents.shape
        lines = [f"{count} x {dimension} latents by {self.about['source']} of {self.about['data']}"]
        if self.about["left_out"]:
            lines.append(f"Left out, as they hold no numbers: {', '.join(self.about['left_out'])}")
        keys = [*self.scores["latents"]]
        lines.append(f"{f'on {len(self.points)} points':16}" + "".join(f"{key:>18}" for key in keys))
        lines += [f"{name:16}" + "".join(f"{row[key]:18.4f}" for key in keys) for name, row in self.scores.items()]
        return "\n".join(lines)

    def save(self, output_dir: str | Path = "outputs/embedding", *, overwrite: bool = False) -> list[Path]:
        """Write latents.parquet (columns z0, z1, ..., label, index), pca.png, tsne.png and embedding.json.

        Args:
            output_dir: where latents and maps go; it must be empty.
            overwrite: delete what an earlier `embed` left in it.

        Returns:
            The folder.

        Raises:
            UsageError: the folder holds something already, or cannot be written.
        """
        with open_output(output_dir, "embed", overwrite) as folder:
            columns: dict[str, Any] = {f"z{i}": column for i, column in enumerate(self.latents.T.contiguous().numpy())}
            if self.labels is not None:
                columns["label"] = self.labels.numpy()
            with replacing(folder / "latents.parquet", durable=False) as file:
                pq.write_table(pa.table({**columns, "index": np.arange(len(self.latents))}), file)
            for name, places in self.maps.items():
                self._draw(name, places, folder / f"{name.lower().replace('-', '')}.png")
            known = {**self.about, "shape": [*self.latents.shape], "label_names": self.label_names}
            text = json.dumps({**known, "points": len(self.points), "scores": self.scores}, indent=1)
            write_text(folder / "embedding.json", text + "\n")
        return [folder]

    def _draw(self, name: str, places: Tensor, path: Path) -> None:
        from matplotlib import colormaps
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 6), layout="constrained")
        panel = figure.subplots()
        if self.labels is None:
            panel.scatter(places[:, 0].numpy(), places[:, 1].numpy(), s=9, color="#1f4e79", alpha=0.7, linewidths=0)
        else:
            labels, names = self.labels[self.points], self.label_names or []
            shown = labels.unique().tolist()
            colors = colormaps["tab10" if len(shown) <= 10 else "turbo"]
            for i, label in enumerate(shown):
                color = colors(i) if len(shown) <= 10 else colors(i / (len(shown) - 1))
                x, y = places[labels == label].T.numpy()
                text = plain_label(names[label] if names else label)
                panel.scatter(x, y, s=9, color=color, alpha=0.8, linewidths=0, label=text)
            if len(shown) <= 30:
                panel.legend(frameon=False, markerscale=2.5, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
        numbers = ", ".join(f"{key} {value:.3f}" for key, value in self.scores[name].items())
        panel.set_title(
            f"{name} of the latents by {plain_label(Path(self.about['source']).name)}\n{numbers}", fontsize=10
        )
        panel.set(xticks=[], yticks=[])
        write_figure(path, figure, dpi=120)


@check_types
@check_arguments
def embed(
    source: str | Any,
    data: str | None = None,
    *,
    components: Size = 32,
    max_samples: Annotated[int, Range(5, most=2**40)] | None = None,
    points: Annotated[int, Range(5, most=2**40)] = 2000,
    batch_size: Size = 256,
    seed: Seed = 0,
    revision: str | None = None,
    **settings: Any,
) -> Embedding:
    """Write the latents of images, series, sounds or a table as parquet, with PCA and t-SNE maps and their scores.

    The maps are a PCA of the latents, and t-SNE of them (after a PCA to 50 dimensions, if they have more).

    Args:
        source: a saved pipeline that can encode (folder or Hub id); or a baseline: "pixels", the inputs as they are,
            or "pca", their first principal components. In Python also a pipeline.
        data: images: digits, emoji, factors, a folder, parquet, or a data set on the Hub; or a table: a .csv, .tsv or
            .parquet file without images, of which all columns of numbers but the label are taken. For the baselines
            each column of a table gets mean 0 and variance 1; a pipeline gets a row as an image of one line. Of a
            pipeline of time series or sounds a table of series, a folder of clips or a shipped set. If not given, what
            the source was trained on, read as its run read it.
        components: of "pca".
        max_samples: use at most so many, spread evenly; all if not given.
        points: at most so many, chosen at random, are in the maps and scored.
        batch_size: images encoded at a time.
        seed: of the choice of points and of t-SNE. Equal seeds give equal latents and maps.
        revision: branch, tag or commit on the Hub.
        **settings: how the images are read, as for `latentia evaluate`; of a table only label_column, "label" if not
            given.

    Returns:
        Latents, maps and scores.

    Raises:
        UsageError: a number out of range, an unknown column, or a pipeline that cannot encode.
        DataError: a table without numbers, with gaps, or with fewer than 5 rows.
        NumericsError: a latent is not finite.

    Example:
        >>> found = embed("pca", "digits", components=8, max_samples=60)
        >>> found.latents.shape, found.maps["t-SNE"].shape
        (torch.Size([60, 8]), torch.Size([60, 2]))
    """
    signals = signal_modality(source, data, settings)
    table = signals is None and data is not None and is_table(data)
    left_out: list[str] = []
    if signals is not None:
        how = MODALITIES[signals]
        given = signal_settings(how, settings | {"max_train_samples": max_samples})
        inputs, _ = real_signals(how, source, data, given)
        about_data, names = str(inputs.source["name"]), inputs.label_names
        labels = None if inputs.labels is None else torch.from_numpy(np.asarray(inputs.labels)).long()
        flat = torch.from_numpy(np.asarray(inputs.values)).float().flatten(1)
    elif data is not None and table:
        if other := next((key for key in settings if key != "label_column"), None):
            raise UsageError(f"{other} must be left out: {data} is a table, of which only label_column is taken.")
        about_data = Path(data).name
        rows = load_table(data, label_column=settings.get("label_column"), max_samples=max_samples)
        inputs, labels, names, left_out = rows.values, rows.labels, rows.label_names, rows.left_out
        flat = rows.standardized.float()  # (N, inputs)
    else:
        if max_samples is not None:
            settings["max_train_samples"] = max_samples
        found = find_reference(data, [source], settings).images
        about_data = str(found.source.get("name", found.source["kind"]))
        inputs, labels, names = found.images, found.labels, found.label_names
        flat = from_uint8(inputs.flatten(1))
    if len(inputs) < 5:
        raise DataError(f"{about_data} must hold at least 5 samples to be embedded; it holds {len(inputs)}.")

    text = source if isinstance(source, str | Path) else type(source).__name__
    if source == "pixels":
        latents = flat
    elif source == "pca":
        if components > min(flat.shape):
            raise UsageError(
                f"components must be at most {min(flat.shape)}, the lesser of samples and inputs; got {components}."
            )
        latents, text = _pca(flat, components), f"PCA-{components}"
    else:
        latents = _encode(source, inputs, labels, table, batch_size, revision)
    if not latents.isfinite().all():
        raise NumericsError(f"The latents of {text} are not finite, so they cannot be embedded. Was it trained?")

    generator = torch.Generator().manual_seed(seed_from(seed, "embedding"))
    chosen = torch.randperm(len(latents), generator=generator)[:points].sort().values
    part, shown = latents[chosen], None if labels is None else labels[chosen]
    maps = {"PCA": _pca(part, 2), "t-SNE": _tsne(part, seed)}
    scores = {name: _judge(flat[chosen], place, shown) for name, place in {"latents": part, **maps}.items()}
    about = {
        "source": str(text), "data": about_data, "left_out": left_out, "seed": seed,
        "neighbours": min(NEIGHBOURS, (len(chosen) - 1) // 2),
    }  # fmt: skip
    return Embedding(latents, labels, names, chosen, maps, scores, about)


def options(words: Sequence[str]) -> dict[str, Option]:
    """The flags of the data, those of the training scripts, for the command line."""
    return {**data_options(), **signal_options()}


# ------------------------------------------------------------ latents


def _encode(source: Any, inputs: Any, labels: Tensor | None, is_table: bool, size: int, revision: str | None):
    """Latents (N, D) of a pipeline; those before quantisation, if it can give them."""
    pipe = source
    if isinstance(source, str | Path):
        if not Path(source).is_dir() and "/" not in str(source):
            raise UsageError(
                f'source must be "pixels", "pca", a folder or a repository on the Hub ("user/name"); got "{source}".'
                + did_you_mean(str(source), ("pixels", "pca"))
            )
        pipe = load_pipeline(source, revision)
    able = capabilities(pipe)
    if "encode" not in able.words:
        raise UsageError(
            f"source must be a pipeline of latentia that can encode, pixels or pca; {type(pipe).__name__} cannot."
        )
    pipe.set_progress_bar_config(disable=True)
    pipe.to(PartialState().device)
    options: dict[str, Any] = {"continuous": True} if able.latents == "indices" else {}
    by_class = labels if "class_labels" in able.latent_conditions else None
    parts = []
    for i in range(0, len(inputs), size):
        if not isinstance(inputs, Tensor):  # time series or sounds
            images = inputs.take(slice(i, i + size))
        else:
            rows = inputs[i : i + size]
            images = rows.float()[:, None, None] if is_table else from_uint8(rows)
        if by_class is not None:
            options["class_labels"] = by_class[i : i + size]
        parts.append(pipe.encode(images, **options).flatten(1).float().cpu())
    return torch.cat(parts)


def _pca(x: Tensor, components: int) -> Tensor:
    """The first principal components of rows, float32; zeros where there are fewer."""
    from sklearn.decomposition import PCA

    count = min(components, *x.shape)
    with np.errstate(invalid="ignore"):  # equal rows have no variance of which to take shares
        found = PCA(count, svd_solver="full").fit_transform(x.double().numpy())
    return torch.nn.functional.pad(torch.from_numpy(found).float(), (0, components - count))


def _tsne(x: Tensor, seed: int) -> Tensor:
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    x = _pca(x, _TSNE_INPUTS) if x.shape[1] > _TSNE_INPUTS else x
    perplexity = min(30.0, (len(x) - 1) / 3)
    start = "pca" if min(x.shape) > 1 and x.var(0).sum() > 0 else "random"
    with threadpool_limits(1, user_api="openmp"):  # threads add their sums in the order in which they finish
        found = TSNE(2, perplexity=perplexity, init=start, random_state=seed).fit_transform(x.double().numpy())
    return torch.from_numpy(found).float()


def _judge(inputs: Tensor, places: Tensor, labels: Tensor | None) -> dict[str, float]:
    from sklearn.manifold import trustworthiness

    count = min(NEIGHBOURS, (len(inputs) - 1) // 2)
    trust = trustworthiness(inputs.double().numpy(), places.double().numpy(), n_neighbors=count)
    scores = {"trustworthiness": float(trust)}
    if labels is not None:
        found = nearest(places, places, exclude_self=True)[1][:, 0]
        scores["1-NN accuracy"] = float((labels[found] == labels).double().mean())
    return scores
