"""Skipping non-finite steps: batches whose loss or gradient is not finite leave the training state unchanged."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator

from latentia.errors import NumericsError
from latentia.training.progress import Progress


class Skips:
    """Skips up to `limit` steps of a run whose loss or gradient norm is not finite.

    A skipped step leaves the training state unchanged: its images count as seen, the step does not count, weights,
    moments, averages and learning rates stay, and buffers and the scale of fp16 are restored. Phases that the step
    had already completed keep their update.

    Args:
        accelerator: of the run.
        phases: of the run.
        limit: number of steps that may be skipped, in all; 0: none.
    """

    def __init__(self, accelerator: Accelerator, phases: Sequence[Any], limit: int):
        self.scaler, self.phases, self.limit = accelerator.scaler, phases, limit

    @contextmanager
    def skip_nonfinite(self, progress: Progress) -> Iterator[None]:
        """Around one step. A NumericsError in it is counted in `progress` and goes no further, up to the limit."""
        if not self.limit:
            yield
            return
        buffers = [buffer for phase in self.phases for buffer in phase.trains.buffers()]
        before = [buffer.clone() for buffer in buffers]
        scale = self.scaler.state_dict() if self.scaler is not None else None
        try:
            yield
        except NumericsError as error:
            if progress.skipped == self.limit:
                raise NumericsError(f"{error} {self.limit} steps were skipped before, as many as max_skips.") from error
            progress.skipped += 1
        else:
            return
        with torch.no_grad():
            for buffer, value in zip(buffers, before):
                buffer.copy_(value)
        if self.scaler is not None:
            self.scaler.load_state_dict(scale)
        for phase in self.phases:
            if phase.optimizer is not None:
                phase.optimizer.zero_grad(set_to_none=True)
