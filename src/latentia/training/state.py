"""What a run is made of for a checkpoint: its stateful parts, its configuration, and the folder that is its own."""

import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout
from torch import Tensor

from latentia.errors import CheckpointError, UsageError
from latentia.training.checkpoint import read_own
from latentia.training.sharding import spread


def stateful_parts(accelerator: Accelerator, phases: Sequence[Any]) -> dict[str, Any]:
    """Everything that a checkpoint holds, by name. Two phases may train the same network."""
    things: dict[str, Any] = {}
    seen: set[int] = set()
    for phase in phases:
        if id(phase.trains) not in seen:
            seen.add(id(phase.trains))
            things[f"{phase.name}.model"] = accelerator.unwrap_model(phase.trains)
        if phase.ema is not None:
            things[f"{phase.name}.ema"] = phase.ema
        if phase.optimizer is not None:
            things[f"{phase.name}.optimizer"] = plain_optimizer(phase.optimizer)
    if accelerator.scaler is not None:
        things["scaler"] = accelerator.scaler
    return things


def restore(stateful: Mapping[str, Any], state: Mapping[str, Any], path: Path) -> None:
    if set(stateful) != set(state):
        raise CheckpointError(f"{path} holds {sorted(state)}, but this run needs {sorted(stateful)}.")
    for name, thing in stateful.items():
        try:
            like = thing.state_dict()
            if isinstance(thing, torch.optim.Optimizer):
                parameters = [parameter for group in thing.param_groups for parameter in group["params"]]
                moments = state[name]["state"].items()
                like = {"state": {index: dict.fromkeys(values, parameters[index]) for index, values in moments}}
            saved = spread(state[name], like)
            thing.load_state_dict(saved)
            if isinstance(thing, torch.optim.Optimizer):
                _put_moments(thing, saved["state"])
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path}: {name} does not fit this run: {error}") from error


def _put_moments(optimizer: torch.optim.Optimizer, state: Mapping[int, Mapping[str, Any]]) -> None:
    """torch casts moments to the parameters' dtype: they get their own back, and the parameters' memory format."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in state.items():
        parameter, loaded = parameters[index], optimizer.state[parameters[index]]
        for key, value in values.items():
            if isinstance(value, Tensor):
                like = parameter if value.shape == parameter.shape else value
                target = torch.empty_like(like, dtype=value.dtype, device=loaded[key].device)
                loaded[key] = target.copy_(value)


def check_config(path: Path, saved: Any, config: Mapping[str, Any]) -> None:
    if not isinstance(saved, Mapping):
        raise CheckpointError(f"{path} is not a checkpoint of a run: its manifest holds no configuration.")
    keys = sorted(key for key in {*saved, *config} if saved.get(key) != config.get(key))
    if keys:
        batch = "train_batch_size x gradient_accumulation_steps x processes must be {}.\n"
        hint = batch.format(saved.get("global_batch")) if "global_batch" in keys else ""
        rows = "\n".join(f"  {key}: {saved.get(key)} in the checkpoint, {config.get(key)} now" for key in keys)
        raise CheckpointError(
            f"{path} was written by a run of another configuration:\n{rows}\n{hint}"
            "Give the same values to go on with it, or use another output_dir or resume_from_checkpoint none."
        )


@contextmanager
def lock(output_dir: Path) -> Iterator[None]:
    """One run per folder. The system frees the lock when its process ends, however it ends; its text says whose.

    Raises:
        UsageError: another run has it, or the file system has no locks.
    """
    path = output_dir / ".lock"
    held = {"host": socket.gethostname(), "pid": os.getpid(), "since": f"{datetime.now(UTC):%F %T}"}
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(path).acquire(timeout=0))
            path.write_text(json.dumps(held))
        except Timeout:
            raise UsageError(
                f"output_dir {output_dir} is in use by another run{_owner(path)}; choose another."
            ) from None
        except (OSError, NotImplementedError) as error:
            raise UsageError(f"output_dir {output_dir} cannot be locked: {error}. Give another.") from error
        yield


def _owner(path: Path) -> str:
    """What a lock says of the run that has it."""
    held = read_own(path)
    known = {"pid", "host", "since"} <= held.keys()
    return f" (process {held['pid']} on {held['host']} since {held['since']} UTC)" if known else ""


def plain_optimizer(optimizer):
    return getattr(optimizer, "optimizer", optimizer)


def versions() -> dict[str, str]:
    """What the bits of a run depend on beside its configuration: versions of libraries, and the number of threads."""
    libraries = {name: version(name) for name in ("latentia", "torch", "diffusers", "accelerate")}
    return libraries | {"threads": str(torch.get_num_threads())}


def changed_versions(saved: Any) -> str:
    """What of `versions` differs from that of a checkpoint, as a sentence; empty if nothing does."""
    now, before = versions(), saved if isinstance(saved, Mapping) else {}
    changed = [f"{name} {before[name]} -> {now[name]}" for name in now if before.get(name, now[name]) != now[name]]
    return f"It was saved under others, so that bits may differ from there on: {', '.join(changed)}" if changed else ""
