"""One loop for every family: phases over batches until enough images were seen."""

import json
import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate import Accelerator

from latentia.errors import UsageError, check_range
from latentia.files.writing import write_json
from latentia.training import checkpoint as ckpt
from latentia.training.nonfinite import Nonfinite
from latentia.training.ownership import FILES, LONGEST, RUN, claim, clean, disk_errors, probe
from latentia.training.phases import Phase, Steps
from latentia.training.progress import Log, Progress, peak_memory
from latentia.training.sharding import joined, shard, whole
from latentia.training.signals import Signals, Stopped
from latentia.training.state import (
    changed_versions,
    check_config,
    lock,
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
        max_skips: steps of the run that may be passed over because a loss or gradient is not finite, see `Nonfinite`;
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
    world, device = accelerator.num_processes, accelerator.device
    global_batch = batch_size * accumulate * world
    config = json.loads(
        json.dumps({**(config or {}), "global_batch": global_batch, "seed": seed, "data": data.fingerprint})
    )
    averages = [phase.ema.module for phase in phases if phase.ema is not None]
    for network in averages:
        shard(accelerator, network)
    stateful = stateful_parts(accelerator, phases)
    guard = Nonfinite(accelerator, phases, max_skips)
    steps = Steps(accelerator, phases, guard, seed, batch_size, accumulate)

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
        stack.callback(steps.put_back)
        stack.enter_context(guard)
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
        unread: list[tuple[int, dict[str, Any]]] = []  # metrics of steps whose values were not read yet
        first_images, train_seconds, started = progress.images, 0.0, time.perf_counter()
        while progress.step < max_steps:
            step = progress.step
            with guard.step(progress, global_batch):
                unread.append((step, steps.run(data, progress)))
                progress.step += 1
            progress.images += global_batch
            stepped, last = progress.step > step, progress.step == max_steps
            due = [hook for hook in hooks if last or (stepped and hook.every and progress.step % hook.every == 0)]
            saved = last or bool(stepped and checkpoint_every and progress.step % checkpoint_every == 0)
            asked = stop.raised and world == 1  # several processes agree on it where they read
            if reading := guard.is_due(progress.step, log_every) or last or saved or asked or bool(due):
                guard.read(progress)
                if stepped and progress.step <= step:  # a step was passed over, so what was due comes later
                    stepped, last, saved, due = False, False, False, []
            taken = time.perf_counter() - started
            progress.seconds, train_seconds = progress.seconds + taken, train_seconds + taken
            if reading:
                for at, metrics in unread:
                    if at < progress.step:  # else it is made again
                        log.add(metrics)
                unread.clear()
            if stepped:
                log.step(log_every)
            else:
                log.write({"skipped": progress.skipped})
            if saved:  # before images and scores, whose failure must not cost the weights
                save()
            log.describe("validate" if due else "train")
            if due:
                # What a hook leaves unmade when the run is asked to stop can be made again from the checkpoint.
                with suppress(Stopped), whole(accelerator, [*steps.plain.values(), *averages]), stop.polled():
                    for hook in due:
                        if accelerator.is_main_process and not stop.raised:
                            with disk_errors(folder):
                                found_by_hook = hook.call(progress)
                            log.write(found_by_hook or {})
            interrupted = reading and stop.agreed(accelerator)
            if interrupted and not saved:
                save()
            if interrupted:
                return Result("interrupted", progress, resumed_from, log.rate, peak_memory(device))
            started = time.perf_counter()  # hooks and saves are not training time
    rate = (progress.images - first_images) / max(train_seconds, 1e-9)
    return Result("finished", progress, resumed_from, rate, peak_memory(device))


def _check_call(phases: Sequence[Phase], max_skips: int, **at_least_one: int) -> None:
    names = [phase.name for phase in phases]
    if not names or len({*names}) < len(names):
        raise UsageError(f"phases must be at least one, each with a name of its own; got {names}.")
    for name, value in {**at_least_one, **{f"every of {p.name}": p.every for p in phases}}.items():
        check_range(name, value, 1, integer=True)
    for name, value in {"max_skips": max_skips, **{f"after of {p.name}": p.after for p in phases}}.items():
        check_range(name, value, 0, integer=True)
