"""Training and sampling on a GPU, in one call of at most seven minutes: how far the card is used, beside diffusers.

    python benchmarks/gpu.py --output $OUT/gpu.json --commit $(git rev-parse HEAD)
    python benchmarks/gpu.py --tiny --output outputs/gpu.json    # the same parts in seconds, on a CPU

`peak`: a large matrix product. `networks`: a training step (forward, backward, fused AdamW, bfloat16 autocast) of our
UNet2D and of diffusers' UNet2DModel with as many parameters at 28, 32 and 64 pixels, with its share of the peak by
counted operations; with group norms in float32 as well, as autocast has them. `loop`: our training loop over the same
steps in a bare one. `sampling`: our pipeline and DDIMPipeline. `compiled`: the networks again, with the seconds to the
first step. The result is written after each row; what `--seconds` leave no time for is listed in it.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from latentia import DDIMScheduler, DDPMScheduler, UnconditionalDiffusionPipeline, UNet2D
from latentia.data import ImageData
from latentia.losses.diffusion import diffusion_loss
from latentia.models.layers.norm import GroupNorm
from latentia.rng import Rng
from latentia.runs.compilation import compile_network
from latentia.training.ema import EMA
from latentia.training.loop import Phase, train

HERE = Path(__file__).resolve().parent
# Side and channels of the images, channels of the stages, batch.
SIZES = {28: (1, (64, 128), 256), 32: (3, (64, 128, 256), 256), 64: (3, (128, 256, 384), 64)}
TINY = {8: (1, (8,), 4)}
COMPILING = 75.0  # seconds that a compilation may take: none is begun with less


class Benchmark:
    """The parts of a run, which share the device, the time that is left and the result."""

    def __init__(self, args: argparse.Namespace):
        self.tiny, self.output, self.started, self.seconds = args.tiny, args.output, time.monotonic(), args.seconds
        self.device = torch.device("cpu" if args.tiny else "cuda")
        self.sizes, self.steps, self.rounds = (TINY, 2, 1) if args.tiny else (SIZES, 20, 3)
        card = platform.processor() or platform.machine() if args.tiny else torch.cuda.get_device_name()
        libraries = {name: version(name) for name in ("latentia", "torch", "diffusers", "accelerate")}
        command = " ".join(["python", *sys.argv])
        about = {"command": command, "commit": args.commit or head(), "card": card, "versions": libraries}
        self.result: dict[str, Any] = {**about, "tiny": args.tiny, "rows": {}, "left_out": []}

    def has_time(self, seconds: float, name: str) -> bool:
        left = self.seconds - (time.monotonic() - self.started)
        if left < seconds:
            self.result["left_out"].append(name)
        return left >= seconds

    def row(self, name: str, values: dict[str, Any]) -> None:
        rounded = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in values.items()}
        self.result["rows"][name] = rounded
        self.result["seconds"] = round(time.monotonic() - self.started, 1)
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self.output.write_text(json.dumps(self.result, indent=1) + "\n")
        print(name, rounded, flush=True)

    def wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def time(self, step: Callable[[], Any], steps: int) -> float:
        """Seconds of a step: the median over rounds, after a warm-up."""
        for _ in range(3):
            step()
        found = []
        for _ in range(self.rounds):
            self.wait()
            began = time.perf_counter()
            for _ in range(steps):
                step()
            self.wait()
            found.append((time.perf_counter() - began) / steps)
        return statistics.median(found)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16)


def head() -> str:
    found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE)
    return found.stdout.strip() or "unknown"


@contextmanager
def float32_norms() -> Iterator[None]:
    """Group norms as autocast has them on GPUs: in float32, whatever their input."""
    real = GroupNorm.forward
    GroupNorm.forward = lambda self, x: nn.GroupNorm.forward(self, x.to(self.weight.dtype))  # type: ignore[method-assign]
    try:
        yield
    finally:
        GroupNorm.forward = real  # type: ignore[method-assign]


def ours(side: int, channels: int, stages: tuple[int, ...]) -> UNet2D:
    torch.manual_seed(0)
    head_dim = 32 if stages[-1] % 32 == 0 else 8
    return UNet2D(side, channels, block_out_channels=stages, attention_head_dim=head_dim)


def theirs(side: int, channels: int, stages: tuple[int, ...], parameters: int) -> diffusers.UNet2DModel:
    """Of the same stages, with attention at the last, and the width whose number of parameters is nearest."""
    kinds = {
        "down_block_types": (*["DownBlock2D"] * (len(stages) - 1), "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", *["UpBlock2D"] * (len(stages) - 1)),
    }

    def build(width: int) -> diffusers.UNet2DModel:
        widths = tuple(width * stage // stages[0] for stage in stages)
        return diffusers.UNet2DModel(
            side, channels, channels, block_out_channels=widths, norm_num_groups=8, attention_head_dim=8, **kinds
        )

    def gap(width: int) -> int:
        with torch.device("meta"):
            return abs(sum(p.numel() for p in build(width).parameters()) - parameters)

    torch.manual_seed(0)
    return build(min(range(8, 2 * stages[0] + 1, 8), key=gap))


def count_operations(network: nn.Module, x: torch.Tensor, t: torch.Tensor) -> int:
    """Floating-point operations of forward and backward for one image."""
    with FlopCounterMode(display=False) as counter:
        network(x[:2].float(), t[:2]).sample.sum().backward()
    network.zero_grad(set_to_none=True)
    return counter.get_total_flops() // 2


def peak(bench: Benchmark) -> float:
    """Operations per second of a matrix product of bfloat16."""
    n = 128 if bench.tiny else 8192
    a, b = torch.randn(2, n, n, device=bench.device, dtype=torch.bfloat16)
    found = 2 * n**3 / bench.time(lambda: a @ b, bench.steps)
    bench.row("peak", {"tflops": found / 1e12})
    return found


def training_step(bench: Benchmark, network: nn.Module, x: torch.Tensor, t: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with bench.autocast():
            prediction = network(x, t).sample
        F.mse_loss(prediction.float(), x).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def networks(bench: Benchmark, most: float, compiled: bool) -> None:
    """A training step of each network at each size."""
    for side, (channels, stages, batch) in bench.sizes.items():
        x = torch.randn(batch, channels, side, side, device=bench.device)
        t = torch.randint(0, 1000, (batch,), device=bench.device)
        parameters = sum(p.numel() for p in ours(side, channels, stages).parameters())
        made = {"latentia": lambda: ours(side, channels, stages)}  # noqa: B023 (called in this turn of the loop)
        if not compiled:
            made["latentia, float32 norms"] = made["latentia"]
            made["latentia, channels last"] = made["latentia"]
        made["diffusers"] = lambda: theirs(side, channels, stages, parameters)  # noqa: B023
        for kind, build in made.items():
            name = f"{kind}, {side} x {side}{', compiled' * compiled}"
            if not bench.has_time(COMPILING if compiled and not bench.tiny else 5.0, name):
                continue
            network = build().to(bench.device)
            operations = batch * count_operations(network, x, t)
            if "channels last" in kind or (compiled and kind == "latentia"):
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in its types
            values: dict[str, Any] = {"parameters": sum(p.numel() for p in network.parameters()), "batch": batch}
            if compiled:
                if bench.tiny:
                    network.compile(backend="eager")
                elif kind == "latentia":
                    compile_network(network)
                else:
                    network.compile()
            step, began = training_step(bench, network, x, t), time.perf_counter()
            with float32_norms() if "float32" in kind else nullcontext():
                step()
                bench.wait()
                values["first_step_seconds"] = time.perf_counter() - began
                seconds = bench.time(step, bench.steps)
            rate = {"ms_per_step": 1000 * seconds, "images_per_second": batch / seconds}
            bench.row(name, {**values, **rate, "share_of_peak": operations / seconds / most})
            del network, step


def loop(bench: Benchmark, side: int, channels: int, stages: tuple[int, ...], batch: int) -> None:
    """The training loop with average, clipping and log over the same steps in a bare loop."""
    pixels = np.random.default_rng(0).integers(0, 256, (4 * batch, channels, side, side), dtype=np.uint8)
    data = ImageData(torch.from_numpy(pixels))
    few, many = (2, 6) if bench.tiny else (20, 120)

    def parts() -> tuple[Accelerator, Phase]:
        AcceleratorState._reset_state(True)
        accelerator = Accelerator(cpu=bench.tiny, mixed_precision="bf16")
        network = ours(side, channels, stages).to(bench.device)
        average = EMA(network)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
        unet, prepared = accelerator.prepare(network, optimizer)
        noise = DDPMScheduler().to(bench.device)
        loss = lambda batch, rng: diffusion_loss(unet, noise, batch, rng)  # noqa: E731
        return accelerator, Phase("unet", loss, unet, prepared, max_grad_norm=1.0, ema=average)

    def bare() -> float:
        _, phase = parts()
        network, average, optimizer = phase.trains, phase.ema, phase.optimizer.optimizer
        assert average is not None
        parameters, position = list(network.parameters()), 0
        network.train()

        def step() -> None:
            nonlocal position
            images = data.batch(position, position + batch, device=bench.device)
            phase.loss(images, Rng(0, position, batch, 0, batch, bench.device))["loss"].backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            average.update(network)
            position += batch

        return bench.time(step, many - few)

    def looped(steps: int) -> float:
        accelerator, phase = parts()
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            options: dict[str, Any] = {"max_steps": steps, "batch_size": batch, "checkpoint_every": None}
            train(accelerator, [phase], data, output_dir=folder, resume="none", **options)
            bench.wait()
            return time.perf_counter() - began

    looped(few)
    times = {"bare_ms": 1000 * bare(), "loop_ms": 1000 * (looped(many) - looped(few)) / (many - few)}
    bench.row(f"loop, {side} x {side}", {**times, "overhead": times["loop_ms"] / times["bare_ms"] - 1})


def sampling(bench: Benchmark) -> None:
    """Images per second of each library's pipeline with its own network, both in bfloat16 by autocast."""
    side, count, steps = (8, 4, 2) if bench.tiny else (32, 512, 20)
    channels, stages, _ = bench.sizes[side]
    mine = ours(side, channels, stages)
    other = theirs(side, channels, stages, sum(p.numel() for p in mine.parameters()))
    pipes: dict[str, Any] = {
        "latentia": UnconditionalDiffusionPipeline(mine, DDIMScheduler()),
        "diffusers": diffusers.DDIMPipeline(other, diffusers.DDIMScheduler()),
    }
    for name, pipe in pipes.items():
        if not bench.has_time(15.0, f"sampling, {name}"):
            continue
        pipe.set_progress_bar_config(disable=True)
        pipe.to(bench.device)
        for _ in range(2):  # the first to warm up
            bench.wait()
            began = time.perf_counter()
            with bench.autocast():
                pipe(batch_size=count, num_inference_steps=steps, output_type="np")
            bench.wait()
            rate = {"images_per_second": count / (time.perf_counter() - began)}
        bench.row(f"sampling, {name}", {"side": side, "images": count, "steps": steps, **rate})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="small networks on the CPU: a test of this script")
    parser.add_argument("--seconds", type=float, default=400.0, help="no part is begun that would end after them")
    parser.add_argument("--commit", help="not given: what git says")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "gpu.json")
    args = parser.parse_args()
    bench = Benchmark(args)
    most = peak(bench)
    networks(bench, most, compiled=False)
    for side, (channels, stages, batch) in bench.sizes.items():
        if bench.has_time(20.0, f"loop, {side} x {side}"):
            loop(bench, side, channels, stages, batch)
    sampling(bench)
    networks(bench, most, compiled=True)
    bench.output.write_text(json.dumps(bench.result, indent=1) + "\n")


if __name__ == "__main__":
    main()
