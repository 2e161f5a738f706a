"""Losses and gradients that are not finite: noticed before a weight changes, and their steps passed over."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.tensor import DTensor

from latentia.errors import NumericsError
from latentia.functional.checks import unread_values
from latentia.training.progress import Progress
from latentia.training.state import plain_optimizer

FLAGGED = ("cuda", "xpu")  # devices on which reading a value waits for all that was computed before
MOST_UNREAD = 100  # steps after which flags are read, however rarely the run logs


@dataclass
class _Mark:
    """Where a run stood before a step, and how many updates its averages had."""

    progress: Progress
    averages: list[int]


@dataclass
class _Check:
    """One value that was checked: of which step, phase and kind."""

    mark: _Mark
    phase: str
    kind: str
    flag: Tensor


def has_flags(accelerator: Accelerator) -> bool:
    """Whether fused optimizers spare the device of a run a wait in each step."""
    return accelerator.device.type in FLAGGED and accelerator.scaler is None


def reads_late(accelerator: Accelerator, phases: Sequence[Any]) -> bool:
    """Whether a run can notice values on its device alone: all of its optimizers are fused, so that a flag of the
    device holds their updates back. Otherwise one number is read in each phase of each step.
    """
    optimizers = [plain_optimizer(phase.optimizer) for phase in phases if phase.optimizer is not None]
    return (
        has_flags(accelerator)
        and not any(isinstance(parameter, DTensor) for phase in phases for parameter in phase.trains.parameters())
        and all(
            getattr(optimizer, "_step_supports_amp_scaling", False)
            and all(group.get("fused") for group in optimizer.param_groups)
            for optimizer in optimizers
        )
    )


class Nonfinite:
    """Notices losses and gradient norms that are not finite, before they reach weights, moments or averages.

    On a CPU each value is read at once. On an accelerator a read would make it wait, so a flag of the device, once it
    is up, holds back all updates of that and all later steps, until the loop reads the flags; then the run stands where
    the bad step left it, with the steps after it still to come.

    Up to `limit` such steps of a run are passed over: their images count as seen, the step does not count, weights,
    moments, averages and learning rates stay, and buffers and the scale of fp16 are restored. Phases that the step had
    already completed keep their update. The next one ends the run.

    Args:
        accelerator: of the run.
        phases: of the run.
        limit: number of steps that may be passed over, in all; 0: none.
    """

    def __init__(self, accelerator: Accelerator, phases: Sequence[Any], limit: int):
        self.accelerator, self.phases, self.limit = accelerator, phases, limit
        self.late = False
        self.found = torch.zeros((), device=accelerator.device)  # 1: some value was not finite
        self.one = torch.ones((), device=accelerator.device)
        self.checks: list[_Check] = []
        networks = {id(phase.trains): phase.trains for phase in phases}.values()
        self.buffers = [buffer for network in networks for buffer in network.buffers()] if limit else []
        self.before: list[Tensor] = []
        self.steps = 0

    @property
    def flag(self) -> Tensor | None:
        """1 where updates are held back, a number of the device; None where a bad value has raised an error."""
        return self.found if self.late else None

    def __enter__(self) -> "Nonfinite":
        self.late = reads_late(self.accelerator, self.phases)  # a checkpoint may have changed the optimizers
        if self.late:
            for phase in self.phases:
                if phase.optimizer is not None:
                    plain_optimizer(phase.optimizer).found_inf = self.found
        return self

    def __exit__(self, *_: Any) -> None:
        for phase in self.phases if self.late else ():
            if phase.optimizer is not None:
                vars(plain_optimizer(phase.optimizer)).pop("found_inf", None)

    @contextmanager
    def step(self, progress: Progress, global_batch: int) -> Iterator[None]:
        """Around the phases of one step. A value that is read at once and not finite raises no error, up to the limit.

        Args:
            progress: of the run; stands after the step if it was passed over.
            global_batch: images of a step.
        """
        averages = [int(phase.ema.steps) for phase in self.phases if phase.ema is not None]
        self.mark, self.global_batch = _Mark(replace(progress), averages), global_batch
        if self.late and self.before:  # of the step that was bad, if one was
            bad = self.found > 0
            self.before = [torch.where(bad, old, now) for old, now in zip(self.before, self.buffers)]
        else:
            self.before = [buffer.clone() for buffer in self.buffers]
        scaler = self.accelerator.scaler
        scale = scaler.state_dict() if self.limit and scaler is not None else None
        self.steps += 1
        try:
            # Values of batches are checked in the first step of a start, where the device may wait.
            with unread_values(self.late and self.steps > 1):
                yield
        except NumericsError as error:
            self._pass_over(self.mark, progress, error)
            if scale is not None:
                scaler.load_state_dict(scale)

    def check(self, kind: str, phase: Any, value: Tensor) -> None:
        """Notice a value that is not finite: the "loss" or "gradient" norm of a phase, float, ().

        Raises:
            NumericsError: it is not, and values are read at once.
        """
        several = kind == "loss" and self.accelerator.num_processes > 1  # the gradient is that of all processes
        if self.late:
            torch._amp_foreach_non_finite_check_and_unscale_([value], self.found, self.one)  # as a GradScaler does
            if several:
                dist.all_reduce(self.found, dist.ReduceOp.MAX)
            self.checks.append(_Check(self.mark, phase.name, kind, self.found.clone()))
        elif several:
            finite = self.accelerator.reduce(torch.isfinite(value).float(), "sum") / self.accelerator.num_processes
            if finite.item() < 1:
                raise self._error(_Check(self.mark, phase.name, kind, value))
        elif not math.isfinite(value):
            raise self._error(_Check(self.mark, phase.name, kind, value))

    def is_due(self, step: int, log_every: int) -> bool:
        """Whether flags are to be read after so many steps: before each line of the log, at the latest."""
        return not self.late or any(every and step % every == 0 for every in (log_every, MOST_UNREAD))

    def read(self, progress: Progress) -> None:
        """Read the flags. If a value was not finite, the run stands after its step again, which was passed over.

        Raises:
            NumericsError: no more steps may be passed over.
        """
        checks, self.checks = self.checks, []
        if not checks:
            return
        flags = torch.stack([check.flag for check in checks]).tolist()  # the one wait
        bad = next((check for check, flag in zip(checks, flags) if flag), None)
        if bad is None:
            return
        self.found.zero_()
        progress.step = bad.mark.progress.step
        progress.images = bad.mark.progress.images + self.global_batch
        averages = (phase.ema for phase in self.phases if phase.ema is not None)
        for average, steps in zip(averages, bad.mark.averages):
            average.steps.fill_(steps)
        self._pass_over(bad.mark, progress, self._error(bad))

    def _error(self, check: _Check) -> NumericsError:
        stood, what = check.mark.progress, f'The {check.kind} of phase "{check.phase}"'
        advice = "Lower learning_rate, or train without fp16." if check.kind == "loss" else "Lower learning_rate."
        return NumericsError(
            f"{what} is not finite at step {stood.step + 1} ({stood.images} images). "
            f"Nothing was updated with it; the last checkpoint is good. {advice}"
        )

    def _pass_over(self, mark: _Mark, progress: Progress, error: NumericsError) -> None:
        """Count a bad step and undo what it did to buffers and gradients, or raise its error."""
        if not self.limit:
            raise error
        if mark.progress.skipped == self.limit:
            raise NumericsError(f"{error} {self.limit} steps were skipped before, as many as max_skips.") from error
        progress.skipped += 1
        with torch.no_grad():
            for buffer, value in zip(self.buffers, self.before):
                buffer.copy_(value)
        for phase in self.phases:
            if phase.optimizer is not None:
                phase.optimizer.zero_grad(set_to_none=True)
