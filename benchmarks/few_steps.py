"""Few-step sampling: mean flow, shortcut models and reflow beside DDIM, DPM-Solver++ and flow matching.

    python benchmarks/few_steps.py --picture docs/images/few-steps.png
    python benchmarks/few_steps.py --train_data_dir <folder with MNIST as parquet> --extractor mnist --steps 1500

All are class-conditional and trained by `latentia train`: a diffusion model, which samples by DDIM and by DPM-Solver++,
and a flow-matching model for `--steps` each; three students of the diffusion model, which learn its guidance, for twice
as many, but reflow for as many, as each of its steps solves the teacher's ODE; the student by shortcut for as many
more against a discriminator; and a mean flow from scratch for twice as many. `--only` names those that are trained and
measured anew, beside the results that are there. The Frechet distance is of 2000 samples to the training images, at
each number of network evaluations; a guided evaluation counts as one.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
import torch

from latentia import DiffusionPipeline
from latentia.data import load_images
from latentia.evaluation import frechet_distance, load_extractor, predict
from latentia.functional.pixels import from_uint8, to_uint8

HERE = Path(__file__).resolve().parent
EVALUATIONS = (1, 2, 4, 8, 16, 50)
GUIDANCE = 1.5
# Name of a method -> the run that samples it and whether it samples with guidance.
METHODS = {
    "DDIM": ("diffusion", True),
    "DPM-Solver++": ("diffusion", True),
    "flow matching": ("flow", True),
    "mean flow, distilled": ("mean_flow", False),
    "shortcut, distilled": ("shortcut", False),
    "reflow, distilled": ("reflow", False),
    "shortcut, adversarial finish": ("finish", False),
    "mean flow, from scratch": ("scratch", True),
}
SAMPLES = 2000


def train(kind: str, folder: Path, *flags: str) -> float:
    """Run a training command and return the processor seconds that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "latentia", "train", kind, "--class_conditional", "--eval_num_samples", "0"]
    subprocess.run([*command, "--output_dir", str(folder), *flags], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def load(folder: Path) -> Any:
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(shown: dict[str, list[torch.Tensor]], path: Path) -> None:
    """Ten classes of each method in a row, a column for each number of evaluations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 1.1 * len(shown)), layout="constrained")
    panels = figure.subplots(len(shown), len(EVALUATIONS), squeeze=False)
    for line, (name, images) in zip(panels, shown.items()):
        for panel, count, x in zip(line, EVALUATIONS, images):
            rows = torch.cat([torch.cat(list(x[k : k + 5, 0]), 1) for k in (0, 5)])
            panel.imshow(rows, cmap="gray", vmin=-1, vmax=1)
            panel.set(xticks=[], yticks=[])
            if name == next(iter(shown)):
                panel.set_title(f"{count} evaluation{'s' * (count > 1)}", fontsize=9)
        line[0].set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train_data_dir", help="not given: the digits of scikit-learn")
    parser.add_argument("--extractor", default="digits")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--block_out_channels", nargs="+", default=["32", "64"])
    parser.add_argument("--folder", type=Path, default=Path("outputs/few-steps"))
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--only", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--output", type=Path, default=HERE / "results" / "few_steps.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    name = args.train_data_dir or "digits"
    data, extractor = load_images(name), load_extractor(args.extractor)
    real = predict(from_uint8(data.images[:10_000]).split(500), extractor).features
    source = ("--train_data_dir", name) if args.train_data_dir else ("--dataset_name", name)
    once, twice = (("--max_train_steps", str(k * args.steps)) for k in (1, 2))
    network = ("--block_out_channels", *args.block_out_channels)
    flow, teacher = ("--prediction_type", "flow"), args.folder / "diffusion"
    guided = (*source, "--teacher", str(teacher), "--guidance_scale", str(GUIDANCE))
    student, straight = (*guided, *twice), (*guided, *once, "--method", "reflow", "--teacher_steps", "4")
    finish = ("--init_from", str(args.folder / "shortcut"), "--adversarial_weight", "0.1", "--learning_rate", "1e-4")
    runs = {
        "diffusion": ("ddpm", *source, *once, *network),
        "flow": ("ddpm", *source, *once, *network, *flow),
        "scratch": ("ddpm", *source, *twice, *network, *flow, "--few_steps", "mean_flow"),
        "mean_flow": ("distillation", *student, "--method", "mean_flow"),
        "shortcut": ("distillation", *student),
        "reflow": ("distillation", *straight),
        "finish": ("distillation", *guided, *once, *finish),
    }
    wanted = {METHODS[name][0] for name in args.only}
    seconds = {run: train(kind, args.folder / run, *flags) for run, (kind, *flags) in runs.items() if run in wanted}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout.strip()
    found = json.loads(args.output.read_text()) if args.output.exists() else {}
    rows = found.get(args.extractor, {}).get("rows", {})
    shown = {}
    for name, (run, guides) in METHODS.items():
        if not (args.folder / run / "model_index.json").is_file():
            continue
        pipe = load(args.folder / run)
        if name == "DPM-Solver++":
            pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
        row: dict[str, Any] = {}
        shown[name] = []
        for count in EVALUATIONS:
            x = pipe(
                class_labels=[i % 10 for i in range(SAMPLES if name in args.only else 10)],
                guidance_scale=GUIDANCE if guides else 1.0, num_inference_steps=count,
                generator=torch.Generator().manual_seed(0), output_type="pt",
            ).images * 2 - 1  # fmt: skip
            shown[name].append(x[:10])
            if name in args.only:
                features = predict(from_uint8(to_uint8(x)).split(500), extractor).features
                row[str(count)] = round(float(frechet_distance(features, real)), 2)
        if name in args.only:
            rows[name] = row | {"processor seconds of training": round(seconds[run]), "commit": commit}
            print(name, rows[name], flush=True)
    if args.picture:
        draw(shown, args.picture)
    given = f" --train_data_dir {Path(args.train_data_dir).name}" if args.train_data_dir else ""
    found[args.extractor] = {
        "rows": rows,
        "teacher at 50 evaluations": rows["DDIM"]["50"],
        "command": f"python benchmarks/few_steps.py --extractor {args.extractor} --steps {args.steps}{given}",
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
        "threads": 1,
        "versions": {"torch": torch.__version__, "latentia": version("latentia"), "diffusers": diffusers.__version__},
    }
    args.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
