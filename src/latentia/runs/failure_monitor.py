"""The failure monitor of a run: hooks that read its log and look at its samples, and say what is wrong with them."""

import json
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from latentia.evaluation.failure_modes import WINDOW, Finding, SampleMonitor, generator_won, read_log
from latentia.evaluation.features.base import FeatureExtractor
from latentia.training.loop import Hook, Progress

_LOOKS = 3  # looks at samples in a row that must show a disease: young generators show many for a moment
_KEPT = 200  # lines of the log


class FailureMonitor:
    """Names a disease of a game of two players when it begins, and says when it is over.

    What it says stands above the progress bar, as "warning" in `metrics.jsonl`, and in the model card. It changes
    nothing: no rule that steers training by its losses has been found to be better than leaving them alone.

    Args:
        folder: of the run, where its `metrics.jsonl` is.
        real: images (n, C, H, W) in [-1, 1] or points (n, D), n >= 16.
        sample: (n, seed) -> as many samples of that shape.
        extractor: tells the classes; `None` (default): the histogram of classes is not looked at.

    Example:
        >>> import torch
        >>> monitor = Monitor("outputs/run", torch.randn(64, 2), lambda n, seed: torch.zeros(n, 2))
        >>> [hook.every for hook in monitor.hooks(read_every=10, look_every=200)]
        [10, 200]
    """

    def __init__(
        self,
        folder: str | Path,
        real: Tensor,
        sample: Callable[[int, int], Tensor],
        extractor: FeatureExtractor | None = None,
    ):
        self.path, self.sample, self.count = Path(folder) / "metrics.jsonl", sample, len(real)
        self.samples = SampleMonitor(real, extractor)
        self.rows: list[dict] = []
        self.read_to = 0
        self.seen: list[set[str]] = []  # what each of the last looks showed
        self.active: dict[str, dict[str, Finding]] = {"log": {}, "samples": {}}

    def hooks(self, read_every: int, look_every: int) -> list[Hook]:
        """Read the log every so many steps, and look at samples every so many (0: only at the end)."""
        return [Hook(read_every, self.read), Hook(look_every, self.look)]

    def read(self, progress: Progress) -> dict[str, str]:
        """A hook: what the last lines of the log say."""
        return self._tell("log", {finding.disease: finding for finding in read_log(self._recent())})

    def look(self, progress: Progress) -> dict[str, float | str]:
        """A hook: numbers of fresh samples, under "monitor/"."""
        values, found = self.samples.look(self.sample(self.count, 0))
        told = [row for row in self._recent() if "discriminator/accuracy_fake" in row][-WINDOW:]
        if told and "distance" in values:
            parts = ("discriminator/accuracy_real", "discriminator/accuracy_fake")
            won = generator_won(sum(row[key] for row in told for key in parts) / 2 / len(told), values["distance"])
            found += [won] if won else []
        self.seen = [*self.seen, {finding.disease for finding in found}][-_LOOKS:]
        lasting = set.intersection(*self.seen) if len(self.seen) == _LOOKS else set()
        lasting |= self.active["samples"].keys() & self.seen[-1]
        now = {finding.disease: finding for finding in found if finding.disease in lasting}
        return {f"monitor/{key}": float(f"{value:.4g}") for key, value in values.items()} | self._tell("samples", now)

    def sentences(self, most: int = 5) -> list[str]:
        """What was said during the run, for its card: the last `most`."""
        said = [row for row in self._lines()[0] if row.get("warning")]
        return [f"Failure monitor at step {row['step']}: {row['warning']}" for row in said[-most:]]

    def _tell(self, source: str, now: dict[str, Finding]) -> dict[str, str]:
        """A warning when something begins, and an empty one when nothing is left."""
        before, self.active[source] = self.active[source], now
        fresh = [str(finding) for disease, finding in now.items() if disease not in before]
        if fresh:
            return {"warning": " ".join(fresh)}
        return {"warning": ""} if before and not any(self.active.values()) else {}

    def _lines(self, start: int = 0) -> tuple[list[dict], int]:
        """The rows of the log from a byte on, and the byte at which its last whole line ends."""
        if not self.path.exists():
            return [], start
        with open(self.path, "rb") as file:
            file.seek(start)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        return [json.loads(line) for line in whole.splitlines()], start + len(whole)

    def _recent(self) -> list[dict]:
        fresh, self.read_to = self._lines(self.read_to)
        self.rows = [*self.rows, *fresh][-_KEPT:]
        return self.rows
