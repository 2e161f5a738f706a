"""Validation: sample grids and scores while a network trains."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from latentia.data.base import Dataset
from latentia.errors import UsageError
from latentia.evaluation import (
    METRICS,
    Report,
    check_metrics,
    extractor_for,
    fitting_extractor,
    image_grid,
    measure,
    score,
)  # fmt: skip
from latentia.evaluation.features.base import known_range
from latentia.evaluation.samples import Sample
from latentia.files.writing import make_folder, write_image, write_text
from latentia.functional.pixels import from_uint8
from latentia.pipelines.capabilities import capabilities
from latentia.runs.classes import classes_of
from latentia.training.loop import Hook, Progress

_CHUNK = 100  # images at a time
_SETS = 24  # samples in a grid that shows others beside them
_RECONSTRUCTION = "reconstruction"  # name of the sampler that draws images beside their reconstructions


class Samples(NamedTuple):
    """What a `Sampler` gives.

    Args:
        images: (B, C, H, W) in [-1, 1], on the CPU.
        labels: the class, prompt or the like of each image; None if there are none.
        beside: what is shown beside each image of a grid: name -> (B, C, H, W), in the order of the columns, the images
            themselves included; None: the images alone are shown.
    """

    images: Tensor
    labels: Sequence[str] | None = None
    beside: Mapping[str, Tensor] | None = None


class Sampler(Protocol):
    """A series of samples of a network in training, of which any part can be drawn."""

    def __call__(self, count: int, seed: int, start: int = 0) -> Samples:
        """`count` samples of the series of this seed, from number `start` on, a multiple of 100."""


def sampler(pipeline: Callable[[Any], Any], network: nn.Module, data: Dataset, **options: Any) -> Sampler:
    """Make a function that samples from a pipeline around a network in training, conditioned as the data are.

    A pipeline conditioned on text gets captions of the data; one with classes each as often as the data have it, or
    each in turn where the data have no such classes.

    Args:
        pipeline: network -> pipeline. Called anew for each call, as what it fits to the weights changes with them.
        network: put in evaluation mode meanwhile.
        data: the data set that it is trained on.
        **options: of the pipeline's call.

    Example:
        >>> from latentia import VAE, VAEPipeline
        >>> from latentia.data import load_images
        >>> sampler(VAEPipeline, VAE(sample_size=8, latent_dim=2), load_images("digits"))(3, seed=0).images.shape
        torch.Size([3, 1, 8, 8])
    """

    def sample(count: int, seed: int, start: int = 0) -> Samples:
        with _evaluating(network):
            pipe = pipeline(network)
            pipe.set_progress_bar_config(disable=True)
            texts = "prompt" in capabilities(pipe).conditions
            classes, _, _ = classes_of(pipe, pipe.num_classes, data)
            names = [*(pipe.config.get("label_names") or {}).values()]
            images: list[Tensor] = []
            labels: list[str] = []
            for first in range(start, start + count, _CHUNK):
                last = min(first + _CHUNK, start + count)
                given: dict[str, Any] = {"batch_size": last - first}
                if texts:
                    given = {"prompt": data.batch(first, last, seed=seed)["captions"]}
                    labels += given["prompt"]
                elif classes is not None:
                    given["class_labels"] = classes(first, last)
                    labels += [names[i] if names else str(i) for i in given["class_labels"]]
                generator = torch.Generator().manual_seed(seed + first)
                found = pipe(generator=generator, output_type="latent", **given, **options).images
                images.append(found.clamp(-1, 1).cpu())
        return Samples(torch.cat(images), labels or None)

    return sample


def reconstructor(pipeline: Callable[[Any], Any], network: Any, data: Dataset) -> Sampler:
    """As `sampler`, but training images, each followed by its reconstruction; the pipeline has `reconstruct`."""

    def reconstruct(count: int, seed: int, start: int = 0) -> Samples:
        images = data.batch(start // 2, (start + count) // 2, seed=seed, device=network.device)["x"]
        with _evaluating(network):
            again = pipeline(network).reconstruct(images, output_type="latent")
        pairs = torch.stack([images, again], dim=1).flatten(0, 1)
        return Samples(pairs.clamp(-1, 1).cpu(), ["original", "decoded"] * len(images))

    return reconstruct


def draw_grid(samples: Samples) -> Image.Image:
    """A grid of samples, each with its label if there are any, or with what is shown beside it."""
    if samples.beside is None:
        return image_grid(samples.images, tile_labels=samples.labels)
    channels = max(x.shape[1] for x in samples.beside.values())
    shown = [x[:_SETS].expand(-1, channels, -1, -1) for x in samples.beside.values()]
    repeated = min(3, len(shown[0]))
    titles = [*samples.beside] * repeated
    tiles = torch.stack(shown, 1).flatten(0, 1)
    blank = tiles.new_ones(-len(tiles) % len(titles), *tiles.shape[1:])
    return image_grid(torch.cat([tiles, blank]), len(titles), column_labels=titles)


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


class Validation:
    """Sample grids and scores of a run, from its pipeline.

    Args:
        args: has the groups `output`, `optimization` and `evaluation`.
        data: the training images.
        pipelines: name -> its `Sampler`; the first is the one that is scored.
    """

    trackers: Sequence[Any] = ()  # accelerate's, which get the grids too

    def __init__(self, args: Any, data: Any, pipelines: Mapping[str, Sampler]):
        self.args, self.data, self.pipelines = args, data, pipelines
        self.folder = Path(args.output.output_dir)
        self.report: Report | None = None
        self._real: Sample | None = None
        for key, metric in check_metrics(args.evaluation.eval_metrics).items():  # before hours of training
            if "labels" in metric.needs:
                raise UsageError(f"eval_metrics {key} needs labels, which only `latentia evaluate` asks for.")

    def hooks(self) -> list[Hook]:
        return [
            Hook(self.args.evaluation.validation_steps, self.draw),
            Hook(self.args.evaluation.eval_steps, self.score),
        ]

    def check(self) -> None:
        """Draw a few images the whole way to a grid and a score: a setting that fails there does so before training."""
        drawn = [sample(8, self.args.optimization.seed) for sample in self.pipelines.values()]
        for samples in drawn:
            draw_grid(samples)
        if self.args.evaluation.eval_num_samples == 0:
            return
        if reason := self._unscored():
            print(f"No scores while training: {reason}")
        elif extractor := extractor_for(drawn[0].images.shape[1:]):
            extractor(drawn[0].images)

    def _unscored(self) -> str | None:
        """Why there are no scores; None if there are."""
        if self.data.endless:
            return "a stream has no length, so that no real images can be held out."
        if extractor_for(self.data.shape) is None:
            shape = " x ".join(map(str, self.data.shape))
            return f"no shipped extractor fits images of {shape}. Afterwards: latentia evaluate {self.folder}"
        if len(self.data) < 4 or self.args.evaluation.eval_num_samples < 2:
            return "they need at least 4 images, and eval_num_samples of at least 2."
        return None

    @staticmethod
    def grid_name(step: int, name: str = "ema") -> str:
        """The file of a grid of samples, in the folder `samples`."""
        return f"step-{step:06d}{'' if name == 'ema' else '-' + name}.png"

    def draw(self, progress: Progress) -> None:
        """Save a grid of samples from each set of weights with their labels, and show it to the tracker."""
        folder = self.folder / "samples"
        make_folder(folder)
        for name, sample in self.pipelines.items():
            samples = sample(64, self.args.optimization.seed)
            grid = draw_grid(samples)
            write_image(folder / self.grid_name(progress.step, name), grid)
            if samples.labels is not None:  # whole, as those in a grid are cut
                write_text(folder / f"{name}-labels.txt", "".join(f"{label}\n" for label in samples.labels))
            for tracker in self.trackers:
                _track(tracker, f"samples/{name}", grid, progress.step)

    def finish(self, step: int) -> dict[str, Any]:
        """Write the final grids, and return what the model card shows of them."""
        samples = self.folder / "samples"
        make_folder(samples)
        first = next(iter(self.pipelines))
        for name, target in ((first, "grid.png"), (_RECONSTRUCTION, "reconstructions.png")):
            drawn = samples / self.grid_name(step, name)
            if drawn.exists():
                shutil.copyfile(drawn, samples / target)
            elif name in self.pipelines:  # the run was finished before, but killed while it drew
                write_image(samples / target, draw_grid(self.pipelines[name](64, self.args.optimization.seed)))
        return {"reconstructions": "samples/reconstructions.png" if _RECONSTRUCTION in self.pipelines else None}

    def score(self, progress: Progress) -> dict[str, float]:
        """The metrics of `--eval_metrics`, each with its real-data score, if a feature extractor fits the images."""
        shipped = extractor_for(self.data.shape)
        if shipped is None or self._unscored() is not None:
            return {}
        n = min(self.args.evaluation.eval_num_samples, len(self.data) // 2)
        extractor, warning = fitting_extractor(shipped, self.data.label_names)
        sample = next(iter(self.pipelines.values()))
        started, first = time.perf_counter(), min(n, _CHUNK)
        images = sample(first, 1).images
        cost = (time.perf_counter() - started) / first * n
        if cost > 20:
            print(f"Sampling {n} images for the score takes about {cost:.0f} s.")
        if n > first:
            images = torch.cat([images, sample(n - first, 1, first).images])
        with known_range():  # early samples may all be bright
            if self._real is None:
                self._real = measure(_all_images(self.data), extractor)
            metrics = self.args.evaluation.eval_metrics
            if warning is not None:  # metrics of classes do not apply
                metrics = [key for key in metrics if "logits" not in METRICS[key].needs]
            report = score(images, self._real, extractor, metrics=metrics)
        self.report = report if warning is None else replace(report, notes=[warning, *report.notes])
        scores = self.report.scores
        values = {f"eval/{key}": found.value for key, found in scores.items()}
        return values | {f"eval/{key}_real": found.real for key, found in scores.items()}


def _track(tracker: Any, key: str, image: Image.Image, step: int) -> None:
    """Give an image to a tracker of accelerate that takes some; each takes them in a form of its own."""
    if tracker.name == "tensorboard":
        tracker.log_images({key: np.asarray(image.convert("RGB"))[None]}, step=step, dataformats="NHWC")
    elif tracker.name in ("wandb", "swanlab"):
        tracker.log_images({key: [image]}, step=step)
    elif tracker.name == "aim":
        tracker.log_images({key: image}, step=step)


def _all_images(data: Any):
    """The images of a data set in order, at most 10 000 of them, spread evenly, in chunks."""
    chosen = data.images[torch.linspace(0, len(data) - 1, min(len(data), 10_000)).long()]
    for chunk in chosen.split(1000):
        yield from_uint8(chunk)
