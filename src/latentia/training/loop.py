"""One loop for every family: phases over batches until enough images were seen."""

import json
import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from latentia.errors import NumericsError, UsageError, check_range
from latentia.files.writing import write_json
from latentia.rng import Rng, seed_from, seed_global
from latentia.training import checkpoint as ckpt
from latentia.training.ema import EMA
from latentia.training.ownership import FILES, LONGEST, RUN, claim, clean, disk_errors, probe
from latentia.training.progress import Log, Progress, peak_memory
from latentia.training.sharding import joined, shard, whole
from latentia.training.signals import Signals, Stopped
from latentia.training.skips import Skips
from latentia.training.state import (
    changed_versions,
    check_config,
    lock,
    plain_optimizer,
    restore,
    stateful_parts,
    versions,
)


@runtime_checkable
class Batches(Protocol):
    """What the loop asks of a data set: the elements at positions [start, stop) of its endless stream.

    It is the smallest part of `latentia.data.Dataset`, which every data set of latentia fulfils.
    """

    @property
    def fingerprint(self) -> str: ...

    def batch(self, start: int, stop: int, *, seed: int, device: torch.device) -> dict[str, Any]: ...


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


@dataclass
class Hook:
    """Something to do on the main process after every n-th step (0: never) and the last: sample grids, warnings."""

    every: int
    call: Callable[[Progress], Mapping[str, float | str] | None]


@dataclass
class Result:
    """How a call of `train` ended: `status` is "finished", "interrupted" or "nothing to do"."""

    status: str
    progress: Progress
    resumed_from: str | None
    images_per_second: float
    peak_memory_mb: float


def learning_rate_schedule(name: str, warmup_steps: int, total_steps: int) -> Callable[[int], float]:
    """step -> factor: linear warm-up, then "constant", "linear" or "cosine" decay to zero at `total_steps`.

    Example:
        >>> rate = learning_rate_schedule("cosine", 10, 110)
        >>> rate(0), rate(10), round(rate(60), 6), rate(110)
        (0.1, 1.0, 0.5, 0.0)
    """
    decay = {
        "constant": lambda progress: 1.0,
        "linear": lambda progress: 1.0 - progress,
        "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    }
    if name not in decay:
        raise UsageError(f'lr_scheduler must be one of {tuple(decay)}; got "{name}".')

    def rate(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return decay[name](min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0))

    return rate


def train(
    accelerator: Accelerator,
    phases: Sequence[Phase],
    data: Batches,
    *,
    output_dir: str | Path,
    max_steps: int,
    batch_size: int,
    accumulate: int = 1,
    seed: int = 0,
    hooks: Sequence[Hook] = (),
    checkpoint_every: int | None = 500,
    checkpoints_limit: int | None = 3,
    resume: str | None = "auto",
    config: Mapping[str, Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
    log_every: int = 10,
    max_skips: int = 0,
) -> Result:
    """Run the phases until `max_steps`, and be able to go on from any moment at which the process is killed.

    Randomness is a function of (seed, images seen), the order of the data too; so a checkpoint needs to hold only
    weights, averages, optimizers and the position, and a run that was killed and started again with the same call
    ends with the weights of one that was not, to the last bit (same versions and machine, deterministic kernels).

    Args:
        accelerator: launches, wraps, casts and synchronises.
        phases: what one step is made of, in order.
        data: gives the batch for a range of positions; each process asks for its own part of the global batch.
        output_dir: gets `checkpoints/` and `metrics.jsonl`.
        max_steps: optimizer steps at which the run is finished.
        batch_size: images of one micro-batch on one process.
        accumulate: micro-batches of one step on one process. Default 1.
        seed: of everything. Default 0.
        hooks: what else to do on the way, on the main process.
        checkpoint_every: steps between checkpoints; `None`: only at the end.
        checkpoints_limit: how many checkpoints of this run to keep (at least 2); `None`: all.
        resume: "auto", "latest", "none" or a folder; see `resolve_resume`.
        config: what must be equal for a checkpoint to be continued; it is stored in each.
        arguments: all flags, written to `training_config.json` once it is clear that the run may start.
        log_every: steps between lines of `metrics.jsonl`.
        max_skips: steps of the run that may be passed over because a loss or gradient is not finite, see `Skips`;
            0 (default): the first one ends it.

    Returns:
        A `Result`. SIGTERM, SIGUSR1, SIGHUP and the first Ctrl-C end with a checkpoint and the status "interrupted",
        also amid the sample grids and scores of a hook.

    Raises:
        CheckpointError: nothing to resume, a damaged checkpoint, or one of another configuration.
        NumericsError: a loss or gradient that is not finite, once more than `max_skips` allows; nothing was updated or
            saved with it.
    """
    _check_call(phases, max_skips, max_steps=max_steps, batch_size=batch_size, accumulate=accumulate)
    check_range("checkpoints_limit", checkpoints_limit, 2, integer=True)
    folder = Path(output_dir)
    root = folder / "checkpoints"
    world, rank, device = accelerator.num_processes, accelerator.process_index, accelerator.device
    local_batch = batch_size * accumulate
    global_batch = local_batch * world
    config = json.loads(
        json.dumps({**(config or {}), "global_batch": global_batch, "seed": seed, "data": data.fingerprint})
    )
    averages = [phase.ema.module for phase in phases if phase.ema is not None]
    for network in averages:
        shard(accelerator, network)
    stateful = stateful_parts(accelerator, phases)
    parameters = {phase.name: [p for p in phase.trains.parameters() if p.requires_grad] for phase in phases}
    plain = {phase.name: accelerator.unwrap_model(phase.trains) for phase in phases}
    base_rates = {p.name: [g["lr"] for g in p.optimizer.param_groups] for p in phases if p.optimizer is not None}

    with ExitStack() as stack:
        if accelerator.is_main_process:
            stack.enter_context(lock(folder))
            claim(folder, RUN, files=FILES, folders=["checkpoints"])
            probe(folder, LONGEST)
            clean(folder)
        accelerator.wait_for_everyone()
        if world > 1:
            # gloo's threads need Python's lock to drop the tensors of the last collective. A group that is destroyed
            # before they have waits for them with that lock held, for ever; so give them a moment.
            stack.callback(time.sleep, 0.2)
        progress, run_id = Progress(), uuid.uuid4().hex[:12]
        found = ckpt.resolve_resume(resume, root)
        if found is not None:
            state, manifest = ckpt.load_checkpoint(found)
            check_config(found, manifest.get("config"), config)
            restore(stateful, state, found)
            progress, run_id = Progress.of(manifest, found), manifest["run_id"]
            progress.restarts += 1
            accelerator.print(f"Resumed from {found}: step {progress.step} of {max_steps}")
            if changed := changed_versions(manifest.get("versions")):
                accelerator.print(changed)
        if accelerator.is_main_process:
            with disk_errors(folder):
                write_json(folder / "training_config.json", arguments or {})
        stack.callback(_put_back, phases, base_rates, parameters)
        stop = stack.enter_context(Signals())
        log = stack.enter_context(Log(accelerator, folder, progress, max_steps))
        resumed_from = str(found) if found else None
        if progress.step >= max_steps:
            return Result("nothing to do", progress, resumed_from, 0.0, peak_memory(device))

        def save() -> None:
            main = accelerator.is_main_process
            trees = {name: joined(thing.state_dict(), main) for name, thing in stateful.items()}
            if main:
                log.flush()
                info = {"progress": asdict(progress), "config": config, "world_size": world, "versions": versions()}
                path = ckpt.save_checkpoint(root, progress.step, trees, info, run_id)
                ckpt.rotate(root, checkpoints_limit, run_id, keep=frozenset({path, *([found] if found else [])}))
            accelerator.wait_for_everyone()

        for phase in phases:
            phase.trains.train()
        skips = Skips(accelerator, phases, max_skips)
        first_images, train_seconds, started = progress.images, 0.0, time.perf_counter()
        while progress.step < max_steps:
            # Fetch the step's micro-batches, then let each due phase run through all of them and step once.
            micros = []
            for k in range(accumulate):
                offset = rank * local_batch + k * batch_size
                position = progress.images + offset
                batch = data.batch(position, position + batch_size, seed=seed, device=device)
                micros.append((batch, Rng(seed, progress.images, global_batch, offset, batch_size, device)))
            step, metrics = progress.step, {}
            with skips.skip_nonfinite(progress):
                for phase in phases:
                    if step % phase.every or step < phase.after:
                        continue
                    if phase.optimizer is not None:
                        factor = phase.learning_rate(step)
                        for group, rate in zip(phase.optimizer.param_groups, base_rates[phase.name]):
                            group["lr"] = rate * factor
                        metrics[f"{phase.name}/lr"] = phase.optimizer.param_groups[0]["lr"]
                    _only_trains(phase, phases, parameters)
                    values = _take(accelerator, phase, phases, micros, seed, progress, parameters[phase.name])
                    metrics |= {f"{phase.name}/{key}": value for key, value in values.items()}
                    if phase.optimizer is not None and phase.ema is not None:
                        phase.ema.update(plain[phase.name])
                progress.step += 1
            progress.images += global_batch
            taken = time.perf_counter() - started
            progress.seconds, train_seconds = progress.seconds + taken, train_seconds + taken
            stepped, last = progress.step > step, progress.step == max_steps
            if stepped:
                log.add(metrics)
                log.step(log_every)
            else:
                log.write({"skipped": progress.skipped})
            due = [hook for hook in hooks if last or (stepped and hook.every and progress.step % hook.every == 0)]
            saved = last or bool(stepped and checkpoint_every and progress.step % checkpoint_every == 0)
            if saved:  # before images and scores, whose failure must not cost the weights
                save()
            try:
                with whole(accelerator, [*plain.values(), *averages] if due else []), stop.polled():
                    log.describe("validate" if due else "train")
                    for hook in due:
                        if accelerator.is_main_process and not stop.raised:
                            with disk_errors(folder):
                                found_by_hook = hook.call(progress)
                            log.write(found_by_hook or {})
            except Stopped:
                pass  # what the hook was about to make can be made again from the checkpoint
            interrupted = stop.agreed(accelerator)
            if interrupted and not saved:
                save()
            if interrupted:
                return Result("interrupted", progress, resumed_from, log.rate, peak_memory(device))
            started = time.perf_counter()  # hooks and saves are not training time
    rate = (progress.images - first_images) / max(train_seconds, 1e-9)
    return Result("finished", progress, resumed_from, rate, peak_memory(device))


def _take(accelerator, phase: Phase, phases, micros, seed: int, progress: Progress, parameters) -> dict[str, Tensor]:
    """One phase: all micro-batches and one update. On fp16 overflow the scaler lowers its factor and it is repeated."""
    for _ in range(128):
        values = _run(accelerator, phase, phases, micros, seed, progress)
        if phase.optimizer is None:
            return values
        norm = _step(accelerator, phase, parameters, progress)
        if not getattr(phase.optimizer, "step_was_skipped", False):
            return {**values, "grad_norm": norm}
    raise NumericsError(
        f'The gradient of phase "{phase.name}" overflows at step {progress.step + 1} ({progress.images} images) at any '
        "scale. Nothing was updated with it; the last checkpoint is good. Use mixed_precision bf16 or no."
    )


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


def _run(accelerator, phase: Phase, phases, micros, seed: int, progress: Progress) -> dict[str, Tensor]:
    """All micro-batches of one phase: losses averaged, gradients accumulated, synchronised with the last one."""
    totals: dict[str, Tensor] = {}
    for k, (batch, rng) in enumerate(micros):
        # Whatever draws from the global generators (dropout) is a function of the position too.
        phase_seed = seed_from(seed, "global", phase.name, progress.images, accelerator.process_index, k)
        seed_global(phase_seed, accelerator.device)
        with ExitStack() as unsynced:
            for other in phases:
                if other.trains is not phase.trains or k < len(micros) - 1:
                    unsynced.enter_context(accelerator.no_sync(other.trains))
            if phase.optimizer is None:
                with torch.no_grad():
                    values = _check_values(phase, phase.loss(batch, rng))
            else:
                values = _check_values(phase, phase.loss(batch, rng))
                accelerator.backward(values["loss"] / len(micros))
        for key, value in values.items():
            number = torch.as_tensor(value, device=accelerator.device)
            totals[key] = totals.get(key, 0) + number.detach().float() / len(micros)
    finite = torch.isfinite(totals["loss"]).float() if "loss" in totals else torch.ones((), device=accelerator.device)
    if accelerator.num_processes > 1:
        finite = accelerator.reduce(finite, "sum") / accelerator.num_processes
    if finite.item() < 1:
        raise NumericsError(
            f'The loss of phase "{phase.name}" is not finite at step {progress.step + 1} ({progress.images} images). '
            "Nothing was updated with it; the last checkpoint is good. Lower learning_rate, or train without fp16."
        )
    return totals


def _step(accelerator, phase: Phase, parameters, progress: Progress) -> Tensor:
    # accelerate's clip_grad_norm_ divides by fp16's scale once for every optimizer, and several may share parameters.
    accelerator.unscale_gradients(phase.optimizer)
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if phase.max_grad_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, phase.max_grad_norm, norm)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    if accelerator.scaler is None and not math.isfinite(float(norm)):
        raise NumericsError(
            f'The gradient of phase "{phase.name}" is not finite at step {progress.step + 1} ({progress.images} '
            "images). Nothing was updated with it; the last checkpoint is good. Lower learning_rate."
        )
    # The wrapper is for the scaler; without one it only looks for a package on the disk at every step.
    optimizer = phase.optimizer if accelerator.scaler is not None else plain_optimizer(phase.optimizer)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def _only_trains(phase: Phase, phases: Sequence[Phase], parameters: Mapping[str, list[nn.Parameter]]) -> None:
    if len(phases) > 1:
        own = {id(p) for p in parameters[phase.name]}
        for parameter in (p for group in parameters.values() for p in group):
            parameter.requires_grad_(id(parameter) in own)


def _put_back(phases: Sequence[Phase], base_rates, parameters) -> None:
    """Leave the networks and optimizers as they were given, so that `train` can be called with them again."""
    for phase in phases:
        for parameter in parameters[phase.name]:
            parameter.requires_grad_(True)
        if phase.optimizer is not None:
            for group, rate in zip(phase.optimizer.param_groups, base_rates[phase.name]):
                group["lr"] = rate


def _check_call(phases: Sequence[Phase], max_skips: int, **at_least_one: int) -> None:
    names = [phase.name for phase in phases]
    if not names or len({*names}) < len(names):
        raise UsageError(f"phases must be at least one, each with a name of its own; got {names}.")
    for name, value in {**at_least_one, **{f"every of {p.name}": p.every for p in phases}}.items():
        check_range(name, value, 1, integer=True)
    for name, value in {"max_skips": max_skips, **{f"after of {p.name}": p.after for p in phases}}.items():
        check_range(name, value, 0, integer=True)
