"""Where a run stands, and what it tells of itself on the way."""

import json
import resource
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from latentia.errors import CheckpointError
from latentia.files.reading import MAX_LOG, read_bytes
from latentia.files.writing import write_text
from latentia.training.ownership import disk_errors


@dataclass
class Progress:
    """Where a run stands. All of its state but the networks, averages and optimizers."""

    step: int = 0
    images: int = 0
    seconds: float = 0.0
    restarts: int = 0
    skipped: int = 0  # steps that were passed over; their images are in `images`

    @classmethod
    def of(cls, manifest: Mapping[str, Any], path: Path) -> Self:
        """What the manifest of the checkpoint at `path` says."""
        found = manifest.get("progress")
        known = {field.name: type(field.default) for field in fields(cls)}
        if (
            not isinstance(found, Mapping)
            or not {"step", "images"} <= found.keys()  # what came later has a default
            or any(type(value) is not known.get(key) for key, value in found.items())
        ):
            raise CheckpointError(f"{path} is not a checkpoint of a run: its manifest does not say where that stood.")
        return cls(**found)


def peak_memory(device: torch.device) -> float:
    """Peak memory in MB: of the GPU's allocator, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def read_log(data: bytes) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; lines that are torn, or that no run writes, are left out.

    Args:
        data: of the file, or a part of it that begins with a line.

    Example:
        >>> read_log(b'{"step": 1, "images": 8, "net/loss": 0.5}\\n{"step": 2, "ima')
        [{'step': 1, 'images': 8, 'net/loss': 0.5}]
    """
    rows = []
    for line in data.split(b"\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and all(map(_is_logged, row, row.values())) and {"step", "images"} <= row.keys():
            rows.append(row)
    return rows


def _is_logged(key: str, value: Any) -> bool:
    if key in ("step", "images"):
        return type(value) is int
    return isinstance(value, int | float) or (isinstance(value, str) and "/" not in key)  # metrics of phases have one


class Log:
    """The progress bar, `metrics.jsonl` and the trackers. Each line is the mean since the one before."""

    def __init__(self, accelerator: Accelerator, output_dir: Path, progress: Progress, max_steps: int):
        self.accelerator, self.progress, self.path = accelerator, progress, output_dir / "metrics.jsonl"
        self.main, self.max_steps = accelerator.is_main_process, max_steps
        self.sums: dict[str, tuple[Tensor | float, int]] = {}
        self.rate, self.mark, self.warning, self.doing = 0.0, (progress.images, progress.seconds), "", "train"

    def __enter__(self):
        if self.main:
            with disk_errors(self.path):
                self._keep_up_to(self.progress.images)
                self.file = open(self.path, "a", encoding="utf-8")
            self.bar = tqdm(
                total=self.max_steps,
                initial=self.progress.step,
                unit=" steps",
                desc="train",
                smoothing=0.1,
                dynamic_ncols=True,
                mininterval=0.1 if sys.stderr.isatty() else 30,  # seconds; a log file gets few lines
            )
        return self

    def __exit__(self, *_):
        if self.main:
            self.bar.close()
            with suppress(OSError):  # of lines that `write` has raised an error for
                self.file.close()

    def _keep_up_to(self, images: int) -> None:
        """Lines of steps that will be run again are dropped, so each step stands in the file once."""
        if self.path.exists():
            data = read_bytes(self.path, MAX_LOG)
            rows = read_log(data)
            unreadable = sum(1 for line in data.splitlines() if line.strip()) - len(rows)
            if unreadable:
                print(f"{self.path}: {unreadable} lines that no run wrote whole are left out.")
            write_text(self.path, "".join(f"{json.dumps(row)}\n" for row in rows if row["images"] <= images))

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        for key, value in values.items():
            total, count = self.sums.get(key, (0.0, 0))
            self.sums[key] = (total + (value.detach() if isinstance(value, Tensor) else value), count + 1)

    def step(self, every: int) -> None:
        if self.main:
            self.bar.update(self.progress.step - self.bar.n)
        last = self.progress.step == self.max_steps
        if not self.sums or not (last or (every and self.progress.step % every == 0)):
            return
        means = {key: torch.as_tensor(total / count, dtype=torch.float32) for key, (total, count) in self.sums.items()}
        self.sums = {}
        if self.accelerator.num_processes > 1:
            stacked = torch.stack([value.to(self.accelerator.device) for value in means.values()])
            means = dict(zip(means, self.accelerator.reduce(stacked, "mean")))
        images, seconds = self.mark
        self.rate = (self.progress.images - images) / max(self.progress.seconds - seconds, 1e-9)
        self.mark = (self.progress.images, self.progress.seconds)
        rounded = {key: float(f"{float(value):.6g}") for key, value in means.items()}
        self.write({**rounded, "images_per_second": round(self.rate, 2), "seconds": round(self.progress.seconds, 2)})
        if self.main:
            losses = {key.removesuffix("/loss"): f"{v:.4g}" for key, v in rounded.items() if key.endswith("/loss")}
            losses = {"loss": "".join(losses.values())} if len(losses) == 1 else losses
            warning = {"warning": self.warning.partition(":")[0]} if self.warning else {}
            self.bar.set_postfix({**warning, **losses}, refresh=False)

    def describe(self, what: str) -> None:
        """Say at the bar what is done now, "train" or "validate"."""
        if self.main and what != self.doing:
            self.doing = what
            self.bar.set_description(what)

    def write(self, values: Mapping[str, float | str]) -> None:
        """A line of values. A "warning" is shown above the bar as well, and in it until another or an empty one."""
        if self.main and "warning" in values:
            self.warning = str(values["warning"])
            self.bar.write(
                f"warning: {self.warning}" if self.warning else "The last warning has passed.", file=sys.stderr
            )
        if self.main and values:
            with disk_errors(self.path):
                self.file.write(
                    json.dumps({"step": self.progress.step, "images": self.progress.images, **values}) + "\n"
                )
                self.file.flush()
        if values:
            self.accelerator.log(dict(values), step=self.progress.step)

    def flush(self) -> None:
        with disk_errors(self.path):
            self.file.flush()
