"""Validation of a run on texts: samples and bits per character of a held-out part while a network trains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from latentia.errors import DataError
from latentia.evaluation.texts import TextReport, score_texts
from latentia.files.writing import make_folder, write_text
from latentia.pipelines.threads import evaluating
from latentia.training.loop import Hook, Progress

_TEXTS, _LENGTH = 4, 500  # samples and their characters


class TextValidation:
    """Samples and scores of a run on texts, from its pipeline.

    Args:
        args: has the groups `output`, `optimization` and `evaluation`, with `validation_steps`, `eval_steps` and
            `eval_characters`.
        training: the text that is trained on.
        held_out: () -> the text that is scored, or a `DataError` that says why there is none.
        pipeline: network -> pipeline.
        network: that is sampled from.
    """

    trackers: Any = ()

    def __init__(
        self, args: Any, training: str, held_out: Callable[[], str], pipeline: Callable[[Any], Any], network: Any
    ):
        self.args, self.training, self.pipeline, self.network = args, training, pipeline, network
        self.folder = Path(args.output.output_dir)
        self.report: TextReport | None = None
        self.held_out = ""
        if args.evaluation.eval_characters:
            try:
                self.held_out = held_out()[: args.evaluation.eval_characters]
            except DataError as error:
                print(f"No scores while training: {error}")

    def hooks(self) -> list[Hook]:
        return [
            Hook(self.args.evaluation.validation_steps, self.draw),
            Hook(self.args.evaluation.eval_steps, self.score),
        ]

    def check(self) -> None:
        """Sample a few characters: a setting that fails there does so before training."""
        self._sample(1, 2)

    def draw(self, progress: Progress) -> None:
        """Save a few samples as text."""
        make_folder(self.folder / "samples")
        write_text(self.folder / "samples" / f"step-{progress.step:06d}.txt", _joined(self._sample(_TEXTS, _LENGTH)))

    def score(self, progress: Progress) -> dict[str, float]:
        """Bits per character of the held-out text, and scores of samples."""
        if len(self.held_out) < 2:
            return {}
        with evaluating(self.network):
            bits = self.pipeline(self.network).bits_per_character(self.held_out).item()
        samples = self._sample(_TEXTS, _LENGTH)
        real = [self.held_out[i : i + _LENGTH] for i in range(0, _TEXTS * _LENGTH, _LENGTH)]
        self.report = score_texts(samples, self.training, [text for text in real if text], bits)
        found: dict[str, float] = {}
        for key, score in self.report.scores.items():
            found[f"eval/{key}"] = score.value
            if score.real is not None:
                found[f"eval/{key}_real"] = score.real
        return found

    def finish(self, step: int) -> dict[str, Any]:
        """Write the last samples, and return what the model card shows of them."""
        samples = self._sample(_TEXTS, _LENGTH)
        make_folder(self.folder / "samples")
        write_text(self.folder / "samples" / "samples.txt", _joined(samples))
        return {"grid": None, "excerpt": samples[0]}

    def _sample(self, count: int, length: int) -> list[str]:
        generator = torch.Generator().manual_seed(self.args.optimization.seed)
        with evaluating(self.network):
            return self.pipeline(self.network)(count, length=length, generator=generator).texts


def _joined(samples: list[str]) -> str:
    return "\n\n----------\n\n".join(samples) + "\n"
