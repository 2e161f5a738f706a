"""Validation of a run on time series or sounds: figures and scores while a network trains."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from latentia.data.order import class_labels_like
from latentia.evaluation.report.signal_report import SignalReport
from latentia.files.writing import make_folder, write_image
from latentia.pipelines.threads import evaluating
from latentia.training.loop import Hook
from latentia.training.progress import Progress

FEWEST = 12  # signals of a part that are scored
_DRAWN = 10  # signals of a figure


class SignalValidation:
    """Figures and scores of a run on time series or sounds, from its pipeline; what `Validation` is for images.

    Args:
        args: has the groups `output`, `optimization` and `evaluation`, and `condition` of a model of classes.
        train, held_out: the signals that are trained on, and those that are not.
        pipeline: weights -> pipeline.
        weights: the network that is sampled, put in evaluation mode meanwhile.
        steps: network evaluations per sample; `None` (default): of a pipeline that samples in one pass.
        draw: (real, made) -> figure.
        score: (made, train, held_out, metrics=) -> report.
    """

    trackers: Sequence[Any] = ()
    pipelines: tuple[str, ...] = ()  # samplers of images: none

    def __init__(
        self,
        args: Any,
        train: Any,
        held_out: Any,
        pipeline: Callable[[Any], Any],
        weights: Any,
        steps: int | None = None,
        *,
        draw: Callable[[Any, Any], Any],
        score: Callable[..., SignalReport],
    ):
        self.args, self.train, self.held_out = args, train, held_out
        self.pipeline, self.weights, self.steps = pipeline, weights, steps
        self.folder = Path(args.output.output_dir)
        self.report: SignalReport | None = None
        self._draw, self._score = draw, score

    def hooks(self) -> list[Hook]:
        return [
            Hook(self.args.evaluation.validation_steps, self.draw),
            Hook(self.args.evaluation.eval_steps, self.score),
        ]

    def check(self) -> None:
        """Sample a few signals: a setting that fails there does so before training."""
        self.sample(2, 0)

    def sample(self, count: int, seed: int) -> Any:
        """Signals of the pipeline as it is now, classes as often as in the data."""
        condition = getattr(self.args, "condition", None)
        conditional = condition is not None and condition.class_conditional
        labels = class_labels_like(self.train.labels if conditional else None, count)
        with evaluating(self.weights):
            pipe = self.pipeline(self.weights).to(self.weights.device)
            pipe.set_progress_bar_config(disable=True)
            generator = torch.Generator().manual_seed(seed)
            options: dict[str, Any] = {"generator": generator, "output_type": pipe.modality}
            options |= {} if labels is None else {"class_labels": labels}
            options |= {} if self.steps is None else {"num_inference_steps": self.steps}
            return getattr(pipe(count, **options), pipe.modality)

    def draw(self, progress: Progress) -> None:
        """Save a figure of samples beside real signals."""
        make_folder(self.folder / "samples")
        write_image(self.folder / "samples" / f"step-{progress.step:06d}.png", self._figure())

    def finish(self, step: int) -> dict[str, Any]:
        """Write the last figure as grid.png, which the model card shows."""
        make_folder(self.folder / "samples")
        write_image(self.folder / "samples" / "grid.png", self._figure())
        return {}

    def score(self, progress: Progress) -> dict[str, float]:
        """The metrics of `--eval_metrics`, each with that of held-out signals."""
        count = self.args.evaluation.eval_num_samples
        if min(count, len(self.train), len(self.held_out)) < FEWEST:
            return {}
        made = self.sample(count, 1)
        self.report = self._score(made, self.train, self.held_out, metrics=self.args.evaluation.eval_metrics)
        values = {f"eval/{key}": found.value for key, found in self.report.scores.items()}
        return values | {f"eval/{key}_real": found.real for key, found in self.report.scores.items()}

    def _figure(self) -> Any:
        return self._draw(self.train, self.sample(_DRAWN, self.args.optimization.seed))
