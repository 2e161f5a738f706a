"""Train a normalizing flow on points of the plane and draw its density: spline, RealNVP, NICE, MAF or IAF.

    python examples/train_flow_plane.py --plane moons --output_dir outputs/flow-moons

The folder it leaves is a pipeline, with `density.png`: points, the learned density, and samples. Shapes: the names of
`latentia.data.plane.PLANES`, among others "moons", "ring", "grid", "checkerboard" and "2spirals".
"""

import io
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from latentia import FlowPipeline, NormalizingFlow
from latentia.data.plane import Plane, PlaneData
from latentia.errors import UsageError
from latentia.files.writing import write_image, write_json
from latentia.losses.likelihood import flow_loss
from latentia.runs.arguments import (
    EMAArguments,
    NetworkArguments,
    OptimizationArguments,
    OutputArguments,
    check_unused,
    network_arguments,
)
from latentia.runs.command_line import run_script
from latentia.runs.export import component_names, export
from latentia.runs.run import INTERRUPTED, Run
from latentia.training.ownership import disk_errors

INITIAL_POINTS, HELD_OUT_POINTS, DRAWN_POINTS = 1000, 10_000, 2000


@dataclass(frozen=True)
class PlaneArguments:
    """The points."""

    plane: str = "moons"
    """Distribution of the points, a name of `latentia.data.plane.PLANES`."""


@dataclass(frozen=True)
class Arguments:
    plane: PlaneArguments = PlaneArguments()
    model: NetworkArguments = network_arguments(
        NormalizingFlow,
        "architecture num_layers hidden_sizes activation bins tail_bound",
        architecture="spline",
        activation="silu",
    )
    optimization: OptimizationArguments = OptimizationArguments(
        train_batch_size=256, max_train_steps=3000, adam_weight_decay=0.0, max_grad_norm=10.0
    )
    ema: EMAArguments = EMAArguments(ema_decay=0.999)
    output: OutputArguments = OutputArguments()


def draw(flow: NormalizingFlow, plane: Plane) -> Image.Image:
    """Points of the data, the log-density on a grid of 200 x 200, and samples, side by side."""
    from matplotlib.figure import Figure

    real = plane.sample(DRAWN_POINTS, 1)
    generators = [torch.Generator().manual_seed(seed) for seed in range(DRAWN_POINTS)]
    samples = flow.sample(DRAWN_POINTS, generators)
    low, high = real.amin(0), real.amax(0)
    low, high = low - 0.1 * (high - low), high + 0.1 * (high - low)
    x, y = (torch.linspace(float(low[k]), float(high[k]), 200) for k in (0, 1))
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)
    log_density = flow.log_prob(places).view(200, 200)
    box = [float(v) for pair in zip(low, high) for v in pair]
    width, height = (float(v) for v in high - low)
    figure = Figure(figsize=(10.5, 0.7 + 3.2 * height / width), layout="constrained")
    panels = figure.subplots(1, 3)
    for panel, points, title in ((panels[0], real, "data"), (panels[2], samples, "samples")):
        panel.scatter(*points.T.numpy(), s=2, color="#1f4e79", linewidths=0)
        panel.set(title=title)
    panels[1].imshow(log_density.exp().numpy() ** 0.5, extent=box, origin="lower", cmap="viridis", aspect="auto")
    panels[1].set(title="density (square root)")
    for panel in panels:
        panel.set(xlim=box[:2], ylim=box[2:], aspect="equal")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    return Image.open(buffer).convert("RGB")


@torch.no_grad()
def finish(folder: Path, flow: NormalizingFlow, plane: Plane) -> None:
    """Save the pipeline and the picture, and print the log-likelihood of points that were not trained on."""
    flow = flow.cpu().eval()
    points = plane.sample(HELD_OUT_POINTS, 0)
    result = {"log_likelihood": flow.log_prob(points).mean().item(), "points": HELD_OUT_POINTS}
    print(f"log p(x) = {result['log_likelihood']:.3f} nats, the mean over {HELD_OUT_POINTS} new points")
    if plane.centres is not None:
        result["true_log_likelihood"] = plane.log_prob(points).mean().item()
        print(f"the density of the data itself gives {result['true_log_likelihood']:.3f} nats")
    write_image(folder / "density.png", draw(flow, plane))
    export(FlowPipeline(flow), folder)
    write_json(folder / "run_summary.json", result)
    print(f"Pipeline and density.png: {folder}")


def main(args: Arguments) -> int:
    if args.optimization.max_train_steps is None and args.optimization.minutes is None:
        raise UsageError("--max_train_steps must be given: points of the plane are endless and have no epochs.")
    if "spline" not in args.model.architecture:
        unused = "is of --architecture spline or spline_maf; leave it out"
        check_unused(args.model, Arguments().model, unused, ["bins", "tail_bound"])
    data = PlaneData(args.plane.plane)
    run = Run(args, family="flow", data=data)
    run.claim(component_names(FlowPipeline), ["density.png"])
    network = NormalizingFlow(None, 2, **args.model)
    network.initialize(data.batch(0, INITIAL_POINTS, seed=args.optimization.seed)["x"])
    flow = run.prepare("flow", network)
    result = run.fit([flow.phase(lambda batch, rng: flow_loss(flow.network, batch, rng))])
    if result.status == "interrupted":
        return INTERRUPTED
    if run.accelerator.is_main_process and not (result.status == "nothing to do" and _is_finished(run.folder)):
        with disk_errors(run.folder):
            finish(run.folder, flow.final, data.plane)
    return 0


def _is_finished(folder: Path) -> bool:
    return (folder / "run_summary.json").exists() and (folder / "density.png").exists()


if __name__ == "__main__":
    run_script(Arguments, main, __doc__.splitlines()[0])
