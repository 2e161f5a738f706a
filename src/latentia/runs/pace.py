"""Training for so many minutes: how many steps fit, found by timing a few of them."""

import dataclasses
import gc
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast

from latentia.errors import UsageError
from latentia.rng import Rng
from latentia.training.checkpoint import numbered, read_own
from latentia.training.loop import Phase

_WARM_UP, _MOST, _ENOUGH = 4, 100, 8.0  # steps that do not count, steps at most, seconds that suffice


class Measured(Exception):
    """The seconds that a step takes: ends a run that only measures, see `fitting`."""


def fitting(args: Any, main: Callable[[Any], Any]) -> Any:
    """The arguments of a run with as many steps as fit into `--minutes`; others come back as they are.

    A run that is continued keeps the steps that were found at its start. Otherwise `main` is started in a temporary
    folder with `minutes` and without `max_train_steps`, by which a `Run` knows that it is to end as `Measured`.

    Args:
        args: filled `RunArguments`.
        main: of the training script.

    Raises:
        UsageError: `minutes` and `max_train_steps` contradict each other.
    """
    options = getattr(args, "optimization", None)
    if options is None or options.minutes is None:
        return args
    default_steps = type(args)().optimization.max_train_steps
    found = _found_before(Path(args.output.output_dir), options.minutes)
    if options.max_train_steps not in (None, default_steps, found):
        raise UsageError(
            "minutes and max_train_steps exclude each other: the one follows from the other. Leave one out."
        )
    if found is None or args.output.overwrite_output_dir:
        with tempfile.TemporaryDirectory() as folder:
            output = {"output_dir": folder, "resume_from_checkpoint": "none", "report_to": None}
            trial = dataclasses.replace(
                args,
                output=dataclasses.replace(args.output, **output, overwrite_output_dir=False),
                optimization=dataclasses.replace(options, max_train_steps=None),
            )
            logger = logging.getLogger("latentia.data")  # what is not taken is said by the run itself
            level = logger.level
            logger.setLevel(logging.ERROR)
            try:
                main(trial)
                raise RuntimeError("A training script must train by `Run.fit` or `Run.train` to take minutes.")
            except Measured as measured:
                found = max(1, int(60 * options.minutes / measured.args[0]))
            finally:
                logger.setLevel(level)
            gc.collect()  # the networks and optimizers of the trial, which hold each other
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
    return dataclasses.replace(args, optimization=dataclasses.replace(options, max_train_steps=found))


def only_measures(args: Any) -> bool:
    """Whether a run with these arguments is to end as `Measured`."""
    return args.optimization.minutes is not None and args.optimization.max_train_steps is None


def timed(phases: Sequence[Phase], device: torch.device) -> list[Phase]:
    """The phases, all of them from the first step on, which end as `Measured` on all processes at once."""
    started: dict[int, float] = {}  # position of a step -> when it began
    loss = phases[0].loss

    def clocked(batch: dict[str, Any], rng: Rng) -> dict[str, torch.Tensor]:
        if rng.position not in started:  # else another micro-batch of the step
            started[rng.position] = time.perf_counter()
            times = [*started.values()][_WARM_UP:]
            steps = len(times) - 1
            if steps >= 4:
                seconds = float(broadcast(torch.tensor(times[-1] - times[0], device=device)))  # of the main process
                if seconds > _ENOUGH or steps >= _MOST:
                    raise Measured(seconds / steps)
        return loss(batch, rng)

    first = dataclasses.replace(phases[0], loss=clocked)
    return [dataclasses.replace(phase, after=0) for phase in (first, *phases[1:])]


def expected_end(args: Any) -> str:
    """Say when a run by minutes ends, with the day if it is another one; "" if all of its steps are done.

    A run that goes on from a checkpoint takes the share of the minutes that is left.
    """
    before = numbered(Path(args.output.output_dir) / "checkpoints")
    done = before[-1][0] if before and args.output.resume_from_checkpoint != "none" else 0
    minutes = args.optimization.minutes * (1 - done / args.optimization.max_train_steps)
    if minutes <= 0:
        return ""
    now = datetime.now()
    end = now + timedelta(minutes=minutes)
    clock = end.strftime("%H:%M" if end.date() == now.date() else "%A %H:%M")
    return f", about {minutes:.3g} minute{'s' * (minutes != 1)}, until {clock}, then images and a score"


def _found_before(folder: Path, minutes: float) -> int | None:
    """The steps of a run in this folder that was given as many minutes."""
    before = read_own(folder / "training_config.json")
    same = before.get("minutes") == minutes and numbered(folder / "checkpoints")
    found = before.get("max_train_steps")
    return found if same and isinstance(found, int) else None
