"""Where the time of a training run goes: a trace of a few steps, the ten largest operators, and what bounds the run."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from latentia.files.writing import write_text
from latentia.training.loop import Batches
from latentia.training.ownership import disk_errors

FOLDER, TRACE, TABLE = "profile", "trace.json", "operators.txt"
WARM_UP, STEPS, LARGEST = 5, 5, 10
_DATA = "latentia: data"
_ARITHMETIC = re.compile(r"gemm|conv|\b\w*mm\b|matmul|linear|attention|flash|fmha|cutlass|xmma", re.IGNORECASE)
_ADVICE = {
    "input": "Data are made more slowly than they are used: raise dataloader_num_workers, or lower resolution.",
    "launches": "The work comes in pieces that are too small: raise train_batch_size, or compile.",
    "memory": "Most time goes into element-wise operations, norms and copies: compile, or mixed_precision bf16.",
    "arithmetic": "Most time goes into matrix products and convolutions: mixed_precision bf16, or a smaller network.",
}


@dataclass(frozen=True)
class Operator:
    """All calls of one operator in the steps of a trace, without those that it calls itself.

    Args:
        name: as torch calls it; of a GPU the name of the kernel.
        calls: how many.
        seconds: of all calls.
    """

    name: str
    calls: int
    seconds: float


def bound(seconds: float, data: float, operators: Sequence[Operator], on_device: bool) -> tuple[str, float]:
    """What bounds a run, "input", "launches", "memory" or "arithmetic", and the share of time in which is computed.

    Args:
        seconds: of all steps.
        data: of them, in which batches were made.
        operators: on the processor, or on the device if there is one.
        on_device: whether they run beside the program, which then waits for data or launches work in the rest.

    Example:
        >>> bound(1.0, 0.1, [Operator("aten::convolution", 10, 0.8)], on_device=False)
        ('arithmetic', 0.8)
        >>> bound(1.0, 0.1, [Operator("gemm", 10, 0.3)], on_device=True)
        ('launches', 0.3)
    """
    computing = sum(operator.seconds for operator in operators)
    heavy = sum(operator.seconds for operator in operators if _ARITHMETIC.search(operator.name))
    busy, calls = computing / seconds, sum(operator.calls for operator in operators)
    small = not on_device and computing < 1e-5 * calls  # on a processor launches are a part of each operator
    if busy < (0.7 if on_device else 0.9) and data >= 0.3 * seconds:
        return "input", busy
    if busy < (0.7 if on_device else 0.5) or small:
        return "launches", busy
    return ("arithmetic" if heavy >= 0.5 * computing else "memory"), busy


class ProfiledData:
    """A data set that traces the steps for which it gives batches; a training loop takes it in place of the data.

    Args:
        data: the data set.
        batches: how many a step asks for.
        folder: gets `trace.json`, for chrome://tracing or Perfetto, and `operators.txt`.
        device: of the run.
        say: takes what is to be printed.
    """

    def __init__(
        self, data: Batches, batches: int, folder: Path, device: torch.device, say: Callable[[str], Any] = print
    ):
        self.source, self.batches, self.folder, self.device, self.say = data, batches, folder, device, say
        self.calls, self.started = 0, 0.0
        self.profiler: profile | None = None

    @property
    def fingerprint(self) -> str:
        return self.source.fingerprint

    def batch(self, start: int, stop: int, *, seed: int, device: torch.device) -> dict[str, Any]:
        """As of the data set."""
        step, micro = divmod(self.calls, self.batches)
        self.calls += 1
        if micro == 0 and step == WARM_UP:
            self._start()
        elif micro == 0 and step == WARM_UP + STEPS:
            self._stop()
        with record_function(_DATA):
            return self.source.batch(start, stop, seed=seed, device=device)

    def close(self) -> None:
        """At the end of the run: say it if that was too short."""
        if self.profiler is not None:
            self.profiler.stop()
            self.profiler = None
        if self.calls <= self.batches * (WARM_UP + STEPS):
            self.say(f"--profile needs at least {WARM_UP + STEPS + 1} steps, and this start had fewer: no profile.")

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def _start(self) -> None:
        gpu = {"cuda": [ProfilerActivity.CUDA], "xpu": [ProfilerActivity.XPU]}.get(self.device.type, [])
        self.profiler = profile(activities=[ProfilerActivity.CPU, *gpu])
        self._wait()
        self.profiler.start()
        self.started = time.perf_counter()

    def _stop(self) -> None:
        assert self.profiler is not None
        self._wait()
        seconds = time.perf_counter() - self.started
        self.profiler.stop()
        rows, on_device = self.profiler.key_averages(), self.device.type in ("cuda", "xpu")
        data = sum(row.cpu_time_total for row in rows if row.key == _DATA and row.device_type == DeviceType.CPU) / 1e6
        operators = [
            Operator(row.key, row.count, (row.self_device_time_total if on_device else row.self_cpu_time_total) / 1e6)
            for row in rows
            if row.key != _DATA and not row.is_user_annotation and (row.device_type == DeviceType.CPU) != on_device
        ]
        text = report(seconds, data, operators, on_device, self.device)
        with disk_errors(self.folder):
            self.folder.mkdir(exist_ok=True)
            self.profiler.export_chrome_trace(str(self.folder / TRACE))
            write_text(self.folder / TABLE, text)
        self.profiler = None
        self.say(f"{text.partition(chr(10) * 2)[0]}\nOperators and trace: {self.folder}")


def report(seconds: float, data: float, operators: Sequence[Operator], on_device: bool, device: torch.device) -> str:
    """What bounds a run in two sentences, and a table of its largest operators.

    Args:
        seconds, data, operators, on_device: as of `bound`.
        device: of the run.
    """
    word, busy = bound(seconds, data, operators, on_device)
    lines = [
        f"A step takes {1000 * seconds / STEPS:.1f} ms on {device}: {busy:.0%} in operators, {data / seconds:.0%} for "
        f"data. It is bound by {word}.",
        _ADVICE[word],
        "",
        f"{'share':>6} {'ms/step':>9} {'calls/step':>11}  operator",
    ]
    for operator in sorted(operators, key=lambda operator: -operator.seconds)[:LARGEST]:
        lines.append(
            f"{operator.seconds / seconds:6.1%} {1000 * operator.seconds / STEPS:9.3f} {operator.calls / STEPS:11.1f}  "
            f"{operator.name[:100]}"
        )
    return "\n".join(lines) + "\n"
