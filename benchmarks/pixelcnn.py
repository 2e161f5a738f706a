"""Gated PixelCNN of binarised MNIST: exact nats of the test images after training for some processor minutes.

    python benchmarks/pixelcnn.py --train_data_dir <folder with MNIST as parquet>

`latentia train pixelcnn --levels 2` with `--flags` for `--steps`, on one thread; grey pixels are binarised anew at each
step, each white with the probability of its brightness. Then the log-likelihood of all test images and of 2000 training
images, binarised likewise with a fixed seed, and what a model of independent pixels gets. Samples and completions of
the upper halves of test images are drawn into docs/images. Settings were chosen by short runs on training images alone.
"""

import argparse
import json
import math
import platform
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from latentia import AutoregressivePipeline
from latentia.data import load_images
from latentia.evaluation import image_grid
from latentia.functional.pixels import from_uint8

HERE = Path(__file__).resolve().parent
FLAGS = (
    "--hidden_channels 32 --layers 6 --train_batch_size 16 --learning_rate 2e-3 --mixed_precision bf16 "
    "--eval_num_samples 0 --checkpointing_steps 100000 --adam_weight_decay 0"
)


def head() -> str:
    return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout.strip()


def nats(pipe: AutoregressivePipeline, images: torch.Tensor, name: str) -> dict[str, float]:
    """The mean log-likelihood of uint8 images, binarised with a fixed seed, negated, and its standard error."""
    generator = torch.Generator().manual_seed(0)
    found = -pipe.log_likelihood(from_uint8(images), generator=generator)
    return {
        f"nats, {name}": round(found.mean().item(), 3),
        f"error, {name}": round(found.std().item() / len(found) ** 0.5, 3),
    }


def independent(training: torch.Tensor, test: torch.Tensor) -> float:
    """Nats of the test images under independent pixels of the frequencies of training."""
    p = training.float().mean(0).div(255).clamp(1e-5, 1 - 1e-5)
    q = test.float().mean(0).div(255)
    return -(q * p.log() + (1 - q) * (1 - p).log()).sum().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train_data_dir", required=True)
    parser.add_argument("--flags", default=FLAGS)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, default=Path("outputs/benchmark-pixelcnn"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    command = [
        sys.executable, "-m", "latentia", "train", "pixelcnn", "--train_data_dir", args.train_data_dir, "--levels", "2",
        *args.flags.split(), "--max_train_steps", str(args.steps), "--output_dir", str(args.folder),
        "--overwrite_output_dir",
    ]  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    training, test = (load_images(args.train_data_dir, split=split).images for split in ("train", "test"))
    pipe = AutoregressivePipeline.from_pretrained(args.folder)
    pipe.set_progress_bar_config(disable=True)
    row = nats(pipe, test, "test") | nats(pipe, training[:2000], "2000 training images")
    row |= {
        "bits per dimension, test": round(row["nats, test"] / math.log(2) / 784, 4),
        "nats, independent pixels": round(independent(training, test), 2),
        "processor minutes": round(seconds / 60, 2), "steps": args.steps, "flags": args.flags, "threads": 1,
        "parameters": sum(p.numel() for p in pipe.network.parameters()), "commit": head(),
        "machine": {"machine": platform.machine(), "torch": torch.__version__, "latentia": version("latentia")},
    }  # fmt: skip
    (HERE / "results" / "pixelcnn.json").write_text(json.dumps({"binarised MNIST": row}, indent=1) + "\n")
    print(json.dumps(row, indent=1), flush=True)
    samples = pipe(32, generator=torch.Generator().manual_seed(0), output_type="latent").images
    halves = from_uint8(test[:16])
    completed = pipe(16, image=halves, generator=torch.Generator().manual_seed(0), output_type="latent").images
    pictures = HERE.parent / "docs" / "images"
    image_grid(samples, columns=16).save(pictures / "pixelcnn-samples.png")
    image_grid(torch.cat([halves, completed]), columns=16).save(pictures / "pixelcnn-completions.png")


if __name__ == "__main__":
    main()
