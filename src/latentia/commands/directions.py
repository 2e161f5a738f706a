"""Attribute directions: what differs between classes in the latents of any encoder, saved and shown as strips."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from accelerate import PartialState
from safetensors.torch import save
from torch import Tensor

from latentia.commands.output import open_output
from latentia.commands.reference import data_options, find_reference
from latentia.commands.sources import load_pipeline
from latentia.errors import DataError, Range, Seed, Size, UsageError, check_arguments
from latentia.evaluation import image_grid
from latentia.files.writing import write_bytes, write_image, write_text
from latentia.functional.pixels import from_uint8
from latentia.functional.settings import check_types
from latentia.pipelines.capabilities import Option, capabilities

_STEPS = 7  # images of a strip


@dataclass(frozen=True)
class Directions:
    """Attribute directions of a pipeline's latents.

    Args:
        directions: name of a class -> direction, of the shape of one latent; adding it moves a latent from the mean of
            the other classes to that of this one.
        scores: name -> share of held-out images that are on the right side of the plane across the direction, halfway
            between the means, each side counted alike; .5 by chance.
        strips: name -> images (strips, steps, C, H, W) in [-1, 1], from `-span` to `span` times the direction.
        about: what they were found in, and how.
    """

    directions: dict[str, Tensor]
    scores: dict[str, float]
    strips: dict[str, Tensor]
    about: dict[str, Any]

    def text(self) -> str:
        """A table for the terminal."""
        lines = [
            f"Directions in the latents by {self.about['source']} of {self.about['data']}, by {self.about['method']}"
        ]
        lines += [f"{name:24} balanced accuracy {score:.3f}" for name, score in self.scores.items()]
        return "\n".join(lines)

    def save(self, output_dir: str | Path = "outputs/directions", *, overwrite: bool = False) -> list[Path]:
        """Write directions.safetensors, directions.json and a strip for each class, strip-00.png, strip-01.png, ...

        Args:
            output_dir: where they go; it must be empty.
            overwrite: delete what an earlier `directions` left in it.

        Returns:
            The folder.

        Raises:
            UsageError: the folder holds something already, or cannot be written.
        """
        with open_output(output_dir, "directions", overwrite) as folder:
            held = {name: direction.contiguous() for name, direction in self.directions.items()}
            write_bytes(folder / "directions.safetensors", save(held), durable=False)
            write_text(folder / "directions.json", json.dumps({**self.about, "scores": self.scores}, indent=1) + "\n")
            steps = torch.linspace(-self.about["span"], self.about["span"], _STEPS).tolist()
            for i, (name, strip) in enumerate(self.strips.items()):
                labels = [f"{step:+.1f} {name}" if j == 0 else f"{step:+.1f}" for j, step in enumerate(steps)]
                write_image(
                    folder / f"strip-{i:02d}.png", image_grid(strip.flatten(0, 1), _STEPS, column_labels=labels)
                )
        return [folder]


@check_types
@check_arguments
def directions(
    source: str | Any,
    data: str | None = None,
    *,
    method: Literal["means", "probe"] = "means",
    classes: Sequence[str] = (),
    span: Annotated[float, Range(0, closed="neither", most=1000)] = 1.5,
    strips: Size = 4,
    max_samples: Annotated[int, Range(8, most=2**40)] = 1000,
    num_inference_steps: Size | None = None,
    batch_size: Size = 100,
    seed: Seed = 0,
    revision: str | None = None,
    **settings: Any,
) -> Directions:
    """Find what differs between the classes of data in the latents of a pipeline, and show it on images.

    Half of the images fit the directions, the other half score them; strips start from images of the second half.

    Args:
        source: a saved pipeline that can encode and decode (folder or Hub id). In Python also a pipeline.
        data: images with classes: digits, emoji, a folder, parquet, or a data set on the Hub. If not given, the images
            that the source was trained on, read as its run read them.
        method: "means", the difference of the mean latents; or "probe", the weights of a logistic regression, as long
            as that difference along them.
        classes: names of the classes; all if not given.
        span: strips reach from -span to span times the direction.
        strips: images that each direction is shown on.
        max_samples: use at most so many, spread evenly.
        num_inference_steps: of pipelines that take several.
        batch_size: images encoded at a time.
        seed: of the halves.
        revision: branch, tag or commit on the Hub.
        **settings: how the images are read, as for `latentia evaluate`.

    Returns:
        Directions, their scores and strips.

    Raises:
        UsageError: a pipeline without continuous latents, a class that the data have not, or one class only.
        DataError: data without classes, or too few images of one.

    Example:
        >>> from latentia import Autoencoder, AutoencoderPipeline
        >>> pipe = AutoencoderPipeline(Autoencoder(sample_size=8, latent_dim=5))
        >>> found = directions(pipe, "digits", classes=["0", "1"], max_samples=200)
        >>> found.directions["0"].shape, found.strips["0"].shape
        (torch.Size([5]), torch.Size([4, 7, 1, 8, 8]))
    """
    pipe = load_pipeline(source, revision) if isinstance(source, str | Path) else source
    able = capabilities(pipe)
    if able.latents != "continuous" or not {"encode", "decode"} <= {*able.words}:
        raise UsageError(f"source must be a pipeline with continuous latents; {type(pipe).__name__} has none.")
    reference = find_reference(data, [source], {**settings, "max_train_samples": max_samples}).images
    if reference.labels is None or reference.label_names is None:
        raise DataError("data must have classes, between which directions are found; this data set has none.")
    names = list(reference.label_names)
    for name in classes:
        if name not in names:
            raise UsageError(f'classes must be among {", ".join(names)}; got "{name}".')
    chosen = list(classes) or names
    pipe.set_progress_bar_config(disable=True)
    pipe.to(PartialState().device)
    options = {} if num_inference_steps is None else {"num_inference_steps": num_inference_steps}
    order = torch.randperm(len(reference), generator=torch.Generator().manual_seed(seed))
    labels, images = reference.labels[order], from_uint8(reference.images[order])
    if missing := [name for name in chosen if min((half == names.index(name)).sum() for half in labels.chunk(2)) < 2]:
        raise DataError(f"Each class needs at least 4 images; {missing[0]} has fewer. Give more with max_samples.")
    z = torch.cat([pipe.encode(part, **options).float().cpu() for part in images.split(batch_size)])
    half = (len(z) + 1) // 2
    found, scores, shown = {}, {}, {}
    for name in chosen:
        of_class = labels == names.index(name)
        if of_class.all():
            raise UsageError(f"data must have at least two classes; all images are of {name}.")
        rows = z.flatten(1).double()
        direction, middle = fit_direction(rows[:half], of_class[:half], method)
        found[name] = direction.float().reshape(z.shape[1:])
        scores[name] = balanced_accuracy((rows[half:] - middle) @ direction > 0, of_class[half:])
        start = z[half:][~of_class[half:]][:strips]
        path = torch.linspace(-span, span, _STEPS).view(1, -1, *[1] * (z.ndim - 1))
        moved = (start[:, None] + path * found[name]).flatten(0, 1)
        made = [pipe.decode(part, output_type="latent", **options) for part in moved.split(batch_size)]
        shown[name] = torch.cat(made).float().cpu().clamp(-1, 1).unflatten(0, (-1, _STEPS))
    text = str(source) if isinstance(source, str | Path) else type(source).__name__
    where = str(reference.source.get("name", reference.source["kind"]))
    about = {"source": text, "data": where, "method": method, "span": span, "images": len(z), "seed": seed}
    return Directions(found, scores, shown, about)


def options(words: Sequence[str]) -> dict[str, Option]:
    """The flags of the data, those of the training scripts, for the command line."""
    return data_options()


def fit_direction(rows: Tensor, of_class: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """The direction (D,) from the mean of the other rows to that of a class, and the point halfway.

    Args:
        rows: (N, D), float64.
        of_class: bool (N,).
        method: "means", or "probe": along the weights of a logistic regression.

    Example:
        >>> rows = torch.tensor([[0.0, 0.0], [2.0, 0.0]]).double()
        >>> fit_direction(rows, torch.tensor([False, True]), "means")[0].tolist()
        [2.0, 0.0]
    """
    means = [rows[mask].mean(0) for mask in (~of_class, of_class)]
    difference, middle = means[1] - means[0], (means[0] + means[1]) / 2
    if method == "probe":
        from sklearn.linear_model import LogisticRegression

        scale = rows.std(0).clamp(min=1e-12)
        fitted = LogisticRegression(class_weight="balanced", max_iter=1000).fit(
            (rows / scale).numpy(), of_class.numpy()
        )
        weights = torch.from_numpy(fitted.coef_[0]) / scale
        unit = weights / weights.norm().clamp(min=1e-12)
        middle = middle - ((middle * weights).sum() + float(fitted.intercept_[0])) / weights.norm() * unit
        difference = (difference @ unit) * unit
    return difference, middle


def balanced_accuracy(found: Tensor, truth: Tensor) -> float:
    """The mean of the shares of both classes that are found."""
    return float(((found & truth).sum() / truth.sum() + (~found & ~truth).sum() / (~truth).sum()) / 2)
