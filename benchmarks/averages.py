"""Post-hoc EMA and autoguidance: Frechet distance by the length of the average, and by the scale of the guidance.

    python benchmarks/averages.py --train_data_dir <folder with MNIST as parquet> --extractor mnist

An unconditional diffusion model is trained by `latentia train ddpm` with short running averages in fifty checkpoints.
`latentia average` makes averages of six lengths, and one of an early checkpoint, a fifth of the way, is the guide. The
length, then the scale, are those of the least distance of samples to half of the real images with one seed; what is
reported is the distance of samples of three other seeds to the other half, beside the average of the run and the best
length without a guide. `floor`: of the first half to the other.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from latentia import DiffusionPipeline
from latentia.commands.average import average
from latentia.data import load_images
from latentia.errors import UsageError
from latentia.evaluation import frechet_distance, load_extractor, predict
from latentia.functional.pixels import from_uint8, to_uint8

HERE = Path(__file__).resolve().parent
LENGTHS = (0.03, 0.05, 0.1, 0.15, 0.2, 0.28)
SCALES = (1.0, 1.25, 1.5, 2.0, 3.0)
CHECKPOINTS, GUIDE = 50, 10


def train(folder: Path, steps: int, *flags: str) -> None:
    """Run the training command, unless its pipeline is there."""
    if not (folder / "model_index.json").is_file():
        kept = ("--checkpointing_steps", str(steps // CHECKPOINTS), "--checkpoints_total_limit", str(CHECKPOINTS))
        decay = ("--ema_decay", str(round(1 - 50 / steps, 4)))
        command = [sys.executable, "-m", "latentia", "train", "ddpm", "--eval_num_samples", "0", *kept, *decay, *flags]
        command += ["--max_train_steps", str(steps), "--output_dir", str(folder)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train_data_dir", help="not given: the digits of scikit-learn")
    parser.add_argument("--extractor", default="digits")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--num_inference_steps", type=int, default=25)
    parser.add_argument("--block_out_channels", nargs="+", default=["32", "64"])
    parser.add_argument("--folder", type=Path, default=Path("outputs/averages"))
    parser.add_argument("--output", type=Path, default=HERE / "results" / "averages.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    name = args.train_data_dir or "digits"
    data, extractor = load_images(name), load_extractor(args.extractor)
    features = predict(from_uint8(data.images[:20_000]).split(500), extractor).features
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    chosen_on, reported = features[order[::2]], features[order[1::2]]
    source = ("--train_data_dir", name) if args.train_data_dir else ("--dataset_name", name)
    run = args.folder / args.extractor
    train(run, args.steps, *source, "--block_out_channels", *args.block_out_channels)

    def distance(pipe: Any, real: torch.Tensor, seed: int, scale: float = 1.0) -> float:
        x = pipe(
            args.samples, num_inference_steps=args.num_inference_steps, autoguidance_scale=scale,
            generator=torch.Generator().manual_seed(seed), output_type="pt",
        ).images * 2 - 1  # fmt: skip
        return float(frechet_distance(predict(from_uint8(to_uint8(x)).split(500), extractor).features, real))

    def score(pipe: Any, scale: float = 1.0) -> dict[str, float]:
        found = [distance(pipe, reported, seed, scale) for seed in (1, 2, 3)]
        return {"mean": round(mean(found), 3), "standard deviation": round(stdev(found), 3)}

    own = DiffusionPipeline.from_pretrained(run)
    own.set_progress_bar_config(disable=True)
    pipes: dict[str, Any] = {}
    by_length: dict[str, float | str] = {}
    for length in LENGTHS:
        try:
            pipe = average(run, length=length).pipeline
        except UsageError as error:
            by_length[str(length)] = str(error)
            continue
        pipe.set_progress_bar_config(disable=True)
        pipes[str(length)], by_length[str(length)] = pipe, round(distance(pipe, chosen_on, 0), 3)
        print("length", length, by_length[str(length)], flush=True)
    best = min(pipes, key=lambda length: float(by_length[length]))
    guide = average(run, length=0.1, step=args.steps // CHECKPOINTS * GUIDE).pipeline.unet
    guided = pipes[best]
    guided.register_modules(guide=guide)
    by_scale = {str(scale): round(distance(guided, chosen_on, 0, scale), 3) for scale in SCALES}
    print("scale", by_scale, flush=True)
    scale = float(min(by_scale, key=lambda scale: by_scale[scale]))
    found = json.loads(args.output.read_text()) if args.output.exists() else {}
    given = f" --train_data_dir {Path(args.train_data_dir).name}" if args.train_data_dir else ""
    found[args.extractor] = {
        "Frechet distance": {
            "average of the run": score(own),
            f"average of length {best}": score(guided),
            f"and autoguidance {scale:g}": score(guided, scale),
            "floor": round(float(frechet_distance(chosen_on, reported)), 3),
        },
        "on the half for choices": {
            "by length": by_length,
            "by scale": by_scale,
            "run": round(distance(own, chosen_on, 0), 3),
        },
        "command": f"python benchmarks/averages.py --extractor {args.extractor} --steps {args.steps}{given}",
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout.strip(),
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
        "threads": 1,
        "versions": {"torch": torch.__version__, "latentia": version("latentia")},
    }
    args.output.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found[args.extractor], indent=1))


if __name__ == "__main__":
    main()
