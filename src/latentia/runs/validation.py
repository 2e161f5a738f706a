"""Validation: sample grids and scores while a network trains."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentia.errors import UsageError
from latentia.evaluation import Report, check_metrics, extractor_for, image_grid, measure, score
from latentia.evaluation.features.base import known_range
from latentia.evaluation.metrics import Sample
from latentia.functional.pixels import from_uint8
from latentia.training.loop import Hook, Progress

Sampler = Callable[[int, int], Tensor]  # (batch size, seed) -> images (B, C, H, W) in [-1, 1]


def sampler(pipeline: Callable[[Any], Any], network: nn.Module, **options: Any) -> Sampler:
    """Make a function that samples from a pipeline around a network in training, each class in turn.

    Args:
        pipeline: network -> pipeline. Called anew for each sample, as what it fits to the weights changes with them.
        network: put in evaluation mode meanwhile.
        **options: of the pipeline's call.

    Returns:
        (batch size, seed) -> images (B, C, H, W) in [-1, 1], on the CPU.

    Example:
        >>> from latentia import VAE, VAEPipeline
        >>> sampler(VAEPipeline, VAE(sample_size=8, latent_dim=2))(3, 0).shape
        torch.Size([3, 1, 8, 8])
    """

    def sample(batch_size: int, seed: int) -> Tensor:
        with _evaluating(network):
            pipe = pipeline(network)
            pipe.set_progress_bar_config(disable=True)
            classes = pipe.num_classes
            labels = {"class_labels": [i % classes for i in range(batch_size)]} if classes else {}
            asked = {"generator": torch.Generator().manual_seed(seed), "output_type": "latent"}
            count = () if "prompt" in options else (batch_size,)  # else as many as there are prompts
            return pipe(*count, **labels, **asked, **options).images.clamp(-1, 1).cpu()

    return sample


def reconstructor(pipeline: Callable[[Any], Any], network: Any, data: Any) -> Sampler:
    """As `sampler`, but training images, each followed by its reconstruction; the pipeline has `reconstruct`."""

    def reconstruct(batch_size: int, seed: int) -> Tensor:
        images = data.batch(0, batch_size // 2, seed=seed, device=network.device)["x"]
        with _evaluating(network):
            again = pipeline(network).reconstruct(images, output_type="latent")
        return torch.stack([images, again], dim=1).flatten(0, 1).clamp(-1, 1).cpu()

    return reconstruct


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

    def draw(self, progress: Progress) -> None:
        """Save a grid of samples from each set of weights."""
        for name, sample in self.pipelines.items():
            path = self.folder / "samples" / f"step-{progress.step:06d}{'' if name == 'ema' else '-' + name}.png"
            path.parent.mkdir(exist_ok=True)
            image_grid(sample(64, self.args.optimization.seed)).save(path)

    def score(self, progress: Progress) -> dict[str, float]:
        """The metrics of `--eval_metrics`, each with its real-data score, if a feature extractor fits the images."""
        n = min(self.args.evaluation.eval_num_samples, 0 if self.data.endless else len(self.data) // 2)
        extractor = extractor_for(self.data.shape)
        if extractor is None or n < 2:
            return {}
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
            self.report = score(torch.cat(images), self._real, extractor, metrics=self.args.evaluation.eval_metrics)
        scores = self.report.scores
        values = {f"eval/{key}": found.value for key, found in scores.items()}
        return values | {f"eval/{key}_real": found.real for key, found in scores.items()}


def _all_images(data: Any):
    """The images of a data set in order, at most 10 000 of them, spread evenly, in chunks."""
    chosen = data.images[torch.linspace(0, len(data) - 1, min(len(data), 10_000)).long()]
    for chunk in chosen.split(1000):
        yield from_uint8(chunk)
