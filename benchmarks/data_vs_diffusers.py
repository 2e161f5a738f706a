"""Images per second of the data room beside the loader of diffusers' unconditional training example, in one run.

python benchmarks/data_vs_diffusers.py --train_data_dir <folder with MNIST as train*.parquet>

The peer is what examples/unconditional_image_generation/train_unconditional.py of diffusers does: load_dataset,
set_transform, torch's DataLoader with shuffle and no workers; in each epoch each image is decoded and goes through
convert, resize, crop, flip, to-tensor and normalise. torchvision's transforms are written out in PIL and torch, and the
images stay grey (the example converts to RGB, which would cost the peer more). Both sides deliver float32 batches in
[-1, 1], shuffled and randomly mirrored.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image


def peer_batches(folder: Path, resolution: int, batch: int, cache: str) -> Iterator[torch.Tensor]:
    """The loader of the diffusers example."""
    import datasets

    files = sorted(str(file) for file in folder.glob("train*.parquet"))
    data = datasets.load_dataset("parquet", data_files={"train": files}, split="train", cache_dir=cache)

    def augment(image: Image.Image) -> torch.Tensor:
        image = image.convert("L").resize((resolution, resolution), Image.Resampling.BILINEAR)
        image = image.crop((0, 0, resolution, resolution))
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image))[None].float().div(255)
        return (pixels - 0.5) / 0.5

    data.set_transform(lambda examples: {"input": [augment(image) for image in examples["image"]]})
    loader = torch.utils.data.DataLoader(data, batch_size=batch, shuffle=True, num_workers=0)
    while True:
        for examples in loader:
            yield examples["input"]


def our_batches(folder: Path, resolution: int, batch: int, cache: str) -> Iterator[torch.Tensor]:
    from latentia.data import load_images

    data = load_images(folder, resolution=resolution, random_flip=True, cache_dir=cache)
    start = 0
    while True:
        yield data.batch(start, start + batch)["x"]
        start += batch


def rate(batches: Iterator[torch.Tensor], seconds: float) -> float:
    """Images per second over at least `seconds`."""
    images, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        images += len(next(batches))
    return images / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--train_data_dir", required=True)
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--train_batch_size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each of the measurements")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results/data_vs_diffusers.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        result = measured(options, cache)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def measured(options: argparse.Namespace, cache: str) -> dict[str, Any]:
    """Both loaders in turns."""
    folder = Path(options.train_data_dir)
    begin = time.perf_counter()
    ours = our_batches(folder, options.resolution, options.train_batch_size, cache)
    shape = list(next(ours).shape)
    decoding = time.perf_counter() - begin
    begin = time.perf_counter()
    next(our_batches(folder, options.resolution, options.train_batch_size, cache))
    opening = time.perf_counter() - begin
    begin = time.perf_counter()
    peer = peer_batches(folder, options.resolution, options.train_batch_size, cache)
    assert list(next(peer).shape) == shape
    preparing = time.perf_counter() - begin

    rates: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(options.repeats):  # in turns, so that other work on the machine meets both
        for name, batches in (("peer", peer), ("ours", ours)):
            rates[name].append(rate(batches, options.seconds))
    median = {name: statistics.median(values) for name, values in rates.items()}
    arguments = " ".join(sys.argv[1:])
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    return {
        "what": "images per second of shuffled, mirrored float32 batches",
        "command": f"python benchmarks/data_vs_diffusers.py {arguments}",
        "commit": git.stdout.strip() if git.returncode == 0 else None,
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in ("torch", "datasets", "pillow", "diffusers", "latentia")},
        "batch_shape": shape,
        "images_per_second": {name: round(value) for name, value in median.items()},
        "images_per_second_range": {name: [round(min(v)), round(max(v))] for name, v in rates.items()},
        "ratio": round(median["ours"] / median["peer"], 1),
        "seconds_before_the_first_batch": {
            "ours, first time (decodes all images)": round(decoding, 2),
            "ours, later": round(opening, 2),
            "peer, first time (converts the parquet file)": round(preparing, 2),
        },
    }


def cpu_name() -> str:
    """The processor as the system names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


if __name__ == "__main__":
    main()
