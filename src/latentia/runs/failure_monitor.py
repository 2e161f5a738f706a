"""Failure monitor of a run: hooks that check its log and its samples for failure modes and warn of them."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from latentia.evaluation.failure_modes import WINDOW, Finding, SampleMonitor, check_discriminator, check_log
from latentia.evaluation.features.base import FeatureExtractor
from latentia.files.reading import open_file
from latentia.training.loop import Hook, Progress
from latentia.training.progress import read_log

_CHECKS = 3  # checks of samples in a row that must show a failure mode: early samples show many for a moment
_ROWS = 200  # last lines of the log that are held


class FailureMonitor:
    """Warns when a failure mode of adversarial training begins, and clears the warning when it is over.

    A warning stands above the progress bar, as "warning" in `metrics.jsonl`, and in the model card. The monitor changes
    nothing: no rule that steers training by its losses has been found to be better than leaving them alone.

    Args:
        folder: of the run, where its `metrics.jsonl` is.
        real: images (n, C, H, W) in [-1, 1] or points (n, D), n >= 16.
        sample: (n, seed) -> as many samples of that shape.
        extractor: classifies images; `None` (default): the histogram of classes is not checked.

    Example:
        >>> import torch
        >>> monitor = FailureMonitor("outputs/run", torch.randn(64, 2), lambda n, seed: torch.zeros(n, 2))
        >>> [hook.every for hook in monitor.hooks(log_every=10, samples_every=200)]
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
        self.seen: list[set[str]] = []  # failure modes of each of the last checks
        self.active: dict[str, dict[str, Finding]] = {"log": {}, "samples": {}}

    def hooks(self, log_every: int, samples_every: int) -> list[Hook]:
        """Check the log every `log_every` steps, and samples every `samples_every` (0: only at the end)."""
        return [Hook(log_every, self.check_log), Hook(samples_every, self.check_samples)]

    def check_log(self, progress: Progress) -> dict[str, str]:
        """A hook: warnings from the last lines of the log."""
        return self._warn("log", {finding.failure_mode: finding for finding in check_log(self._recent())})

    def check_samples(self, progress: Progress) -> dict[str, float | str]:
        """A hook: numbers of fresh samples, under "monitor/", and warnings."""
        values, found = self.samples.check(self.sample(self.count, 0))
        rows = [row for row in self._recent() if "discriminator/accuracy_fake" in row][-WINDOW:]
        if rows and "distance" in values:
            parts = ("discriminator/accuracy_real", "discriminator/accuracy_fake")
            accuracy = sum(row[key] for row in rows for key in parts) / 2 / len(rows)
            weak = check_discriminator(accuracy, values["distance"])
            found += [weak] if weak else []
        self.seen = [*self.seen, {finding.failure_mode for finding in found}][-_CHECKS:]
        lasting = set.intersection(*self.seen) if len(self.seen) == _CHECKS else set()
        lasting |= self.active["samples"].keys() & self.seen[-1]
        now = {finding.failure_mode: finding for finding in found if finding.failure_mode in lasting}
        numbers: dict[str, float | str] = {f"monitor/{key}": float(f"{value:.4g}") for key, value in values.items()}
        return numbers | self._warn("samples", now)

    def sentences(self, most: int = 5) -> list[str]:
        """The last `most` warnings of the run, for its card."""
        warned = [row for row in self._lines()[0] if row.get("warning")]
        return [f"Failure monitor at step {row['step']}: {row['warning']}" for row in warned[-most:]]

    def _warn(self, source: str, now: dict[str, Finding]) -> dict[str, str]:
        """A warning when a failure mode begins, and an empty one when none is left."""
        before, self.active[source] = self.active[source], now
        fresh = [str(finding) for failure_mode, finding in now.items() if failure_mode not in before]
        if fresh:
            return {"warning": " ".join(fresh)}
        return {"warning": ""} if before and not any(self.active.values()) else {}

    def _lines(self, start: int = 0) -> tuple[list[dict], int]:
        """The rows of the log from a byte on, and the byte at which its last whole line ends."""
        if not self.path.exists():
            return [], start
        with open_file(self.path) as file:
            file.seek(start)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        return read_log(whole), start + len(whole)

    def _recent(self) -> list[dict]:
        fresh, self.read_to = self._lines(self.read_to)
        self.rows = [*self.rows, *fresh][-_ROWS:]
        return self.rows
