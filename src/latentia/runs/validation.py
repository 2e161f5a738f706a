"""Validation: sample grids and scores while a network trains."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from latentia.data.order import Numbers, class_shares, in_proportion
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
from latentia.functional.pixels import from_uint8
from latentia.training.loop import Hook, Progress

Sampler = Callable[[int, int], Tensor]  # (batch size, seed) -> images (B, C, H, W) in [-1, 1]


@dataclass(frozen=True)
class Labelled:
    """A `Sampler` that knows texts for its images.

    Args:
        sample: the sampler.
        labels: batch size -> a class, prompt or the like for each image; None if there are none.
    """

    sample: Sampler
    labels: Callable[[int], Sequence[str] | None]

    def __call__(self, batch_size: int, seed: int) -> Tensor:
        return self.sample(batch_size, seed)


def sampler(pipeline: Callable[[Any], Any], network: nn.Module, data: Any = None, **options: Any) -> Sampler:
    """Make a function that samples from a pipeline around a network in training, its classes as often as in the data.

    Args:
        pipeline: network -> pipeline. Called anew for each sample, as what it fits to the weights changes with them.
        network: put in evaluation mode meanwhile.
        data: the data set that it is trained on; `None` (default), or one without labels: each class in turn.
        **options: of the pipeline's call.

    Returns:
        (batch size, seed) -> images (B, C, H, W) in [-1, 1], on the CPU.

    Example:
        >>> from latentia import VAE, VAEPipeline
        >>> sampler(VAEPipeline, VAE(sample_size=8, latent_dim=2))(3, 0).shape
        torch.Size([3, 1, 8, 8])
    """

    def classes(pipe: Any) -> Numbers:
        known = getattr(data, "labels", None) is not None and len(data.label_names) == pipe.num_classes
        return in_proportion(class_shares(data) if known else [1 / pipe.num_classes] * pipe.num_classes)

    def sample(batch_size: int, seed: int) -> Tensor:
        with _evaluating(network):
            pipe = pipeline(network)
            pipe.set_progress_bar_config(disable=True)
            labels = {"class_labels": classes(pipe)(0, batch_size)} if pipe.num_classes else {}
            asked = {"generator": torch.Generator().manual_seed(seed), "output_type": "latent"}
            count = () if "prompt" in options else (batch_size,)  # else as many as there are prompts
            return pipe(*count, **labels, **asked, **options).images.clamp(-1, 1).cpu()

    def labels(batch_size: int) -> Sequence[str] | None:
        if prompts := options.get("prompt"):
            return [prompts] if isinstance(prompts, str) else prompts
        pipe = pipeline(network)
        names = pipe.config.get("label_names") or {}
        return [str(names.get(str(i), i)) for i in classes(pipe)(0, batch_size)] if pipe.num_classes else None

    return Labelled(sample, labels)


def reconstructor(pipeline: Callable[[Any], Any], network: Any, data: Any) -> Sampler:
    """As `sampler`, but training images, each followed by its reconstruction; the pipeline has `reconstruct`."""

    def reconstruct(batch_size: int, seed: int) -> Tensor:
        images = data.batch(0, batch_size // 2, seed=seed, device=network.device)["x"]
        with _evaluating(network):
            again = pipeline(network).reconstruct(images, output_type="latent")
        return torch.stack([images, again], dim=1).flatten(0, 1).clamp(-1, 1).cpu()

    return Labelled(reconstruct, lambda batch_size: ["original", "decoded"] * (batch_size // 2))


def draw_grid(sample: Sampler, batch_size: int, seed: int) -> Image.Image:
    """A grid of samples, each with its label if the sampler is `Labelled`."""
    images = sample(batch_size, seed)
    labels = sample.labels(batch_size) if isinstance(sample, Labelled) else None
    return image_grid(images) if labels is None else image_grid(images, tile_labels=labels)


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
        pipelines: name -> (batch size, seed) -> images (B, C, H, W) in [-1, 1]; the first is the one that is scored.
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
        images = [sample(8, self.args.optimization.seed) for sample in self.pipelines.values()]
        for drawn in images:
            image_grid(drawn)
        extractor = extractor_for(images[0].shape[1:]) if self.args.evaluation.eval_num_samples > 1 else None
        if extractor is not None:
            extractor(images[0])

    @staticmethod
    def grid_name(step: int, name: str = "ema") -> str:
        """The file of a grid of samples, in the folder `samples`."""
        return f"step-{step:06d}{'' if name == 'ema' else '-' + name}.png"

    def draw(self, progress: Progress) -> None:
        """Save a grid of samples from each set of weights, and show it to the tracker."""
        for name, sample in self.pipelines.items():
            path = self.folder / "samples" / self.grid_name(progress.step, name)
            path.parent.mkdir(exist_ok=True)
            grid = draw_grid(sample, 64, self.args.optimization.seed)
            grid.save(path)
            for tracker in self.trackers:
                _track(tracker, f"samples/{name}", grid, progress.step)

    def score(self, progress: Progress) -> dict[str, float]:
        """The metrics of `--eval_metrics`, each with its real-data score, if a feature extractor fits the images."""
        n = min(self.args.evaluation.eval_num_samples, 0 if self.data.endless else len(self.data) // 2)
        shipped = extractor_for(self.data.shape)
        if shipped is None or n < 2:
            return {}
        extractor, warning = fitting_extractor(shipped, self.data.label_names)
        sample = next(iter(self.pipelines.values()))
        started, first = time.perf_counter(), min(n, 100)
        images = [sample(first, 1)]
        cost = (time.perf_counter() - started) / first * n
        if cost > 20:
            print(f"Sampling {n} images for the score takes about {cost:.0f} s.")
        images += [sample(min(100, n - k), 1 + k) for k in range(first, n, 100)]
        with known_range():  # early samples may all be bright
            if self._real is None:
                self._real = measure(_all_images(self.data), extractor)
            metrics = self.args.evaluation.eval_metrics
            if warning is not None:  # metrics of classes do not apply
                metrics = [key for key in metrics if "logits" not in METRICS[key].needs]
            report = score(torch.cat(images), self._real, extractor, metrics=metrics)
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
