"""Phases: what a training step is made of, and how the phases of one step are run."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from latentia.errors import NumericsError, UsageError
from latentia.rng import Rng, seed_from, seed_global
from latentia.training.ema import EMA
from latentia.training.nonfinite import Nonfinite
from latentia.training.progress import Progress
from latentia.training.state import plain_optimizer

Micros = Sequence[tuple[dict[str, Any], Rng]]  # the micro-batches of a step, each with its random numbers


@dataclass
class Phase:
    """One phase of a training step.

    Args:
        name: used in logs and checkpoints, such as "unet" or "discriminator".
        loss: (batch, rng) -> {"loss": scalar to minimise, **metrics}; it closes over the prepared networks.
        trains: the only network whose parameters get gradients in this phase, as `accelerator.prepare` returned it.
        optimizer: over its parameters, prepared; `None` for an update rule without gradients.
        learning_rate: step -> factor of the optimizer's initial rate; a function, so there is no state to save.
        every: run in every n-th step. Default 1.
        after: steps before the first in which it runs. Default 0.
        max_grad_norm: clip the gradient to this Euclidean norm; `None` (default): no clipping.
        ema: the average to update after each step of this phase.
    """

    name: str
    loss: Callable[[dict[str, Any], Rng], dict[str, Tensor]]
    trains: nn.Module
    optimizer: Any = None
    learning_rate: Callable[[int], float] = field(default=lambda step: 1.0)
    every: int = 1
    after: int = 0
    max_grad_norm: float | None = None
    ema: EMA | None = None


class Steps:
    """Runs the phases of each step of a run.

    Args:
        accelerator: of the run.
        phases: of the run, in order.
        guard: notices values that are not finite.
        seed: of the run.
        batch_size: images of one micro-batch on one process.
        accumulate: micro-batches of one step on one process.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        phases: Sequence[Phase],
        guard: Nonfinite,
        seed: int,
        batch_size: int,
        accumulate: int,
    ):
        self.accelerator, self.phases, self.guard, self.seed = accelerator, phases, guard, seed
        self.batch_size, self.accumulate = batch_size, accumulate
        self.local_batch = batch_size * accumulate  # of a step
        self.global_batch = self.local_batch * accelerator.num_processes
        self.parameters = {phase.name: [p for p in phase.trains.parameters() if p.requires_grad] for phase in phases}
        self.plain = {phase.name: accelerator.unwrap_model(phase.trains) for phase in phases}
        self.rates = {p.name: [g["lr"] for g in p.optimizer.param_groups] for p in phases if p.optimizer is not None}

    def run(self, data: Any, progress: Progress) -> dict[str, Any]:
        """Fetch the micro-batches; each due phase runs through all of them and makes one update. Returns all metrics.

        Nothing here waits for an accelerator, as to read a value does, unless `guard` reads values at once: the waits
        are counted by a test.

        Raises:
            NumericsError: a value that is not finite, where values are read at once.
        """
        micros, device = [], self.accelerator.device
        for k in range(self.accumulate):
            offset = self.accelerator.process_index * self.local_batch + k * self.batch_size
            position = progress.images + offset
            batch = data.batch(position, position + self.batch_size, seed=self.seed, device=device)
            micros.append((batch, Rng(self.seed, progress.images, self.global_batch, offset, self.batch_size, device)))
        metrics: dict[str, Any] = {}
        for phase in self.phases:
            if progress.step % phase.every or progress.step < phase.after:
                continue
            if phase.optimizer is not None:
                factor = phase.learning_rate(progress.step)
                for group, rate in zip(phase.optimizer.param_groups, self.rates[phase.name]):
                    group["lr"] = rate * factor
                metrics[f"{phase.name}/lr"] = phase.optimizer.param_groups[0]["lr"]
            self._only_trains(phase)
            values = self._take(phase, micros, progress)
            metrics |= {f"{phase.name}/{key}": value for key, value in values.items()}
            if phase.optimizer is not None and phase.ema is not None:
                held_back = {} if self.guard.flag is None else {"held_back": self.guard.flag}
                phase.ema.update(self.plain[phase.name], **held_back)
        return metrics

    def put_back(self) -> None:
        """Leave the networks and optimizers as they were given, so that `train` can be called with them again."""
        for phase in self.phases:
            for parameter in self.parameters[phase.name]:
                parameter.requires_grad_(True)
            if phase.optimizer is not None:
                for group, rate in zip(phase.optimizer.param_groups, self.rates[phase.name]):
                    group["lr"] = rate

    def _only_trains(self, phase: Phase) -> None:
        if len(self.phases) > 1:
            own = {id(p) for p in self.parameters[phase.name]}
            for parameter in (p for group in self.parameters.values() for p in group):
                parameter.requires_grad_(id(parameter) in own)

    def _take(self, phase: Phase, micros: Micros, progress: Progress) -> dict[str, Any]:
        """One phase: all micro-batches and one update. On fp16 overflow the scaler lowers its factor, and again."""
        for _ in range(128):
            values = self._losses(phase, micros, progress)
            if phase.optimizer is None:
                return values
            norm = self._update(phase)
            if not getattr(phase.optimizer, "step_was_skipped", False):
                return {**values, "grad_norm": norm}
        raise NumericsError(
            f'The gradient of phase "{phase.name}" overflows at step {progress.step + 1} ({progress.images} images) at '
            "any scale. Nothing was updated with it; the last checkpoint is good. Use mixed_precision bf16 or no."
        )

    def _losses(self, phase: Phase, micros: Micros, progress: Progress) -> dict[str, Any]:
        """All micro-batches of one phase: losses averaged, gradients accumulated, synchronised with the last one."""
        accelerator = self.accelerator
        totals: dict[str, Any] = {}
        for k, (batch, rng) in enumerate(micros):
            # Whatever draws from the global generators (dropout) is a function of the position too.
            phase_seed = seed_from(self.seed, "global", phase.name, progress.images, accelerator.process_index, k)
            seed_global(phase_seed, accelerator.device)
            with ExitStack() as unsynced:
                for other in self.phases:
                    if other.trains is not phase.trains or k < len(micros) - 1:
                        unsynced.enter_context(accelerator.no_sync(other.trains))
                if phase.optimizer is None:
                    with torch.no_grad():
                        values = _check_values(phase, phase.loss(batch, rng))
                else:
                    values = _check_values(phase, phase.loss(batch, rng))
                    accelerator.backward(values["loss"] / len(micros))
            for key, value in values.items():
                # A number of Python stays on the host: the device would wait for its copy.
                number = value if isinstance(value, Tensor) else torch.as_tensor(value)
                totals[key] = totals.get(key, 0) + number.detach().float() / len(micros)
        if "loss" in totals:
            self.guard.check("loss", phase, totals["loss"])
        return totals

    def _update(self, phase: Phase) -> Tensor:
        accelerator, parameters = self.accelerator, self.parameters[phase.name]
        # accelerate's clip_grad_norm_ divides by fp16's scale once for every optimizer, and several may share
        # parameters.
        accelerator.unscale_gradients(phase.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if phase.max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, phase.max_grad_norm, norm)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        if accelerator.scaler is None:
            self.guard.check("gradient", phase, norm)
        # The wrapper is for the scaler; without one it only looks for a package on the disk at every step.
        optimizer = phase.optimizer if accelerator.scaler is not None else plain_optimizer(phase.optimizer)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm


def _check_values(phase: Phase, values: Any) -> dict[str, Any]:
    """What the loss of a phase returned: a dict, with a scalar "loss" to minimise if the phase has an optimizer."""
    where = f'loss of phase "{phase.name}" must'
    if not isinstance(values, Mapping):
        raise UsageError(f'{where} return a dict, {{"loss": scalar, ...}}; got {type(values).__name__}.')
    loss = values.get("loss")
    if phase.optimizer is not None and (not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad):
        given = f"only {', '.join(map(str, values))}" if loss is None else type(loss).__name__
        if isinstance(loss, Tensor):
            given = f"shape {tuple(loss.shape)}" if loss.ndim else "a tensor without gradient"
        raise UsageError(f'{where} hold "loss", a tensor of one number that depends on the network; got {given}.')
    return dict(values)
