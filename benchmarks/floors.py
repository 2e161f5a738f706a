"""What real images get from each metric at each n: the floors of the shipped extractors, for docs/evaluation.md.

    python benchmarks/floors.py --mnist_dir <folder with MNIST as parquet>

For every extractor and n: `score` with the data's own images, of which only the floor is kept (n held-out real images
against the rest, mean and 1.96 standard deviations over 5 splits). Digits and emoji have fewer than 2000 images, so
their table ends at what half of them allow.
"""

import argparse
import json
import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

import torch

from latentia.commands.measurement import measure_data
from latentia.data import load_images
from latentia.evaluation import load_extractor, score

HERE = Path(__file__).resolve().parent
METRICS = (
    "fd",
    "fd_infinity",
    "kid",
    "precision",
    "recall",
    "density",
    "coverage",
    "vendi",
    "two_sample",
    "authenticity",
)
METRICS += ("inception_score",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mnist_dir", required=True)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "floors.json")
    args = parser.parse_args()
    plans = (
        ("digits", "digits", (250, 500, 898)),
        ("emoji", "emoji", (250, 500, 800)),
        ("mnist", args.mnist_dir, (1000, 2000, 5000, 10_000)),
    )
    rows = []
    for name, source, sizes in plans:
        data, extractor = load_images(source), load_extractor(name)
        real = measure_data(data, extractor)
        for n in sizes:
            if 2 * n > len(data):
                continue
            started = time.perf_counter()
            report = score(real[torch.arange(n)], real, extractor, metrics=METRICS)
            floors = {key: [s.real, s.real_high - s.real] for key, s in report.scores.items()}
            seconds = round(time.perf_counter() - started, 1)
            rows.append(
                {
                    "extractor": name,
                    "sha256": extractor.sha256,
                    "n": n,
                    "n_real": len(data),
                    "seconds": seconds,
                    "floors": floors,
                }
            )
            print(
                f"{name:8} n={n:6} {seconds:6.1f} s  "
                + "  ".join(f"{k} {v:.3g} ± {d:.2g}" for k, (v, d) in floors.items()),
                flush=True,
            )
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout.strip()
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line), "")
    about = {
        "command": "python benchmarks/floors.py --mnist_dir data/mnist", "commit": commit,
        "machine": f"{os.cpu_count()} cores, {model}, {platform.machine()}", "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "scikit-learn", "latentia")},
    }  # fmt: skip
    args.output.write_text(json.dumps({"rows": rows, **about}, indent=1) + "\n")


if __name__ == "__main__":
    main()
