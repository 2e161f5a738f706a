"""What true samples of the plane toys score: the floor of every toy metric, and what plainly bad generators get.

    python benchmarks/plane_floors.py

GAN Lab's divergences are those of n points to 12 000 others, averaged over repetitions, beside floors that were taken
from its program; the mode metrics follow the protocols of the papers (2500 samples; 10 000 for the stricter bin);
transport is exact between 2000 and 2000 points, energy distance between 5000 and 5000.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from latentia.data import PLANES, load_images, stacked_images
from latentia.evaluation import (
    energy_distance,
    grid_divergences,
    load_extractor,
    mode_coverage,
    sliced_wasserstein2,
    stacked_logits,
    stacked_modes,
    uint8_batches,
    wasserstein2,
)
from latentia.evaluation.modes import STACKED_SAMPLES
from latentia.evaluation.plane import LAB_SAMPLES

HERE = Path(__file__).resolve().parent
SIZES = (150, 450, 1500, 12_000)
# Jensen-Shannon divergence in bits of a perfect generator, by SIZES, and of bad ones at 12 000 points.
LAB_FLOORS = {
    "lab_line": (0.083, 0.027, 0.009, 0.002),
    "lab_gaussians": (0.343, 0.167, 0.059, 0.013),
    "lab_ring": (0.258, 0.099, 0.033, 0.007),
    "lab_disjoint": (0.071, 0.028, 0.010, 0.0025),
}
LAB_BAD = {
    "uniform": {"lab_line": 0.714, "lab_gaussians": 0.347, "lab_ring": 0.487, "lab_disjoint": 0.715},
    "one Gaussian": {"lab_line": 0.059, "lab_gaussians": 0.217, "lab_ring": 0.406, "lab_disjoint": 0.669},
    "one mode": {"lab_disjoint": 0.447},
}


def spread(values: list[float]) -> dict[str, float]:
    return {"mean": rounded(statistics.mean(values)), "sd": rounded(statistics.stdev(values))}


def rounded(value: float) -> float:
    return float(f"{value:.4g}")


def bad_generators(name: str) -> dict[str, Callable[[int], torch.Tensor]]:
    """Seed -> 12 000 points: uniform on the unit square, a Gaussian of the right moments, one mode of three."""
    plane = PLANES[name]

    def draw(kind: Callable, seed: int) -> torch.Tensor:
        return kind(LAB_SAMPLES, 2, generator=torch.Generator().manual_seed(seed))

    def gaussian(seed: int) -> torch.Tensor:
        real = plane.sample(LAB_SAMPLES, 5000 + seed)
        return real.mean(0) + draw(torch.randn, seed) @ torch.linalg.cholesky(real.T.cov()).T

    found = {"uniform": lambda seed: draw(torch.rand, seed), "one Gaussian": gaussian}
    if name == "lab_disjoint":
        found["one mode"] = lambda seed: (plane.centres[0] + plane.sigma[0] * draw(torch.randn, seed)).float()
    return found


def lab(repeats: int) -> dict:
    rows = {}
    for name, published in LAB_FLOORS.items():
        plane = PLANES[name]
        real = [plane.sample(LAB_SAMPLES, 1000 + i) for i in range(repeats)]
        rows[name] = {"floor": {}, "bad": {}}
        for n, expected in zip(SIZES, published):
            found = [grid_divergences(plane.sample(n, i), real[i]) for i in range(repeats)]
            rows[name]["floor"][str(n)] = {
                "js_bits": spread([pair.js for pair in found]),
                "js_bits_expected": expected,
                "kl_bits": spread([pair.kl for pair in found]),
            }
        for kind, generate in bad_generators(name).items():
            found = [grid_divergences(generate(i), real[i]).js for i in range(min(repeats, 10))]
            rows[name]["bad"][kind] = {"js_bits": spread(found), "js_bits_expected": LAB_BAD[kind][name]}
        line = ", ".join(
            f"n={n} {v['js_bits']['mean']} ({v['js_bits_expected']})" for n, v in rows[name]["floor"].items()
        )
        print(f"{name}: JS in bits {line}", flush=True)
    return rows


def modes(repeats: int) -> dict:
    rows = {}
    for name in ("ring", "grid"):
        plane = PLANES[name]
        for n in (2500, 10_000):
            found = [mode_coverage(plane.sample(n, i), plane.centres, plane.sigma) for i in range(repeats)]
            keys = ("covered", "high_quality", "reverse_kl", "off_mode_kl", "median_distance")
            rows[f"{name}, n={n}"] = {key: spread([getattr(m, key) for m in found]) for key in keys} | {
                "real_high_quality": rounded(found[0].real_high_quality),
                "real_reverse_kl": rounded(found[0].real_reverse_kl),
                "real_off_mode_kl": rounded(found[0].real_off_mode_kl),
            }
            print(f"{name}, n={n}: {rows[f'{name}, n={n}']}", flush=True)
    return rows


def distances(repeats: int) -> dict:
    rows = {}
    for name, plane in PLANES.items():
        pairs = [(plane.sample(5000, 2 * i), plane.sample(5000, 2 * i + 1)) for i in range(repeats)]
        rows[name] = {
            "w2, n=2000": spread([wasserstein2(a[:2000], b[:2000]) for a, b in pairs]),
            "sliced w2, n=5000": spread([sliced_wasserstein2(a, b) for a, b in pairs]),
            "energy, n=5000": spread([energy_distance(a, b) for a, b in pairs]),
        }
        print(f"{name}: {rows[name]}", flush=True)
    return rows


def stacked(folder: Path) -> dict:
    """26 000 stacks of real test digits: how many modes the classifier sees in them."""
    data = stacked_images(load_images(folder, split="test"), n=STACKED_SAMPLES, seed=0)
    found = stacked_modes(stacked_logits(uint8_batches(data.images, 500), load_extractor("mnist")))
    labels = torch.bincount(data.labels, minlength=1000)
    row = {"covered": found.covered, "total": found.total, "n": found.n}
    row |= {"kl": rounded(found.kl), "real_kl": rounded(found.real_kl)}
    row["kl_of_the_labels"] = rounded(stacked_modes(torch.eye(10)[_digits(data.labels)]).kl)
    row["modes_of_the_labels"] = int((labels > 0).sum())
    print(f"Stacked MNIST: {row}", flush=True)
    return row


def _digits(labels: torch.Tensor) -> torch.Tensor:
    return torch.stack([labels // 100, labels // 10 % 10, labels % 10], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=50, help="of GAN Lab's divergences and the mode metrics")
    parser.add_argument("--distance_repeats", type=int, default=5, help="of the distances between sets of points")
    parser.add_argument("--mnist", type=Path, default=None, help="folder with MNIST as parquet, for Stacked MNIST")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "plane_floors.json")
    args = parser.parse_args()
    started = time.perf_counter()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout.strip()
    options = [f"--repeats {args.repeats}", f"--distance_repeats {args.distance_repeats}"]
    options += ["--mnist <folder>"] if args.mnist else []
    result = {
        "what": "what true samples of the plane toys score, and bad generators",
        "command": " ".join(["python benchmarks/plane_floors.py", *options]),
        "commit": commit,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("torch", "scipy", "latentia")},
        "gan_lab": lab(args.repeats),
        "modes": modes(args.repeats),
        "distances": distances(args.distance_repeats),
    }
    if args.mnist:
        result["stacked_mnist"] = stacked(args.mnist)
    result["seconds"] = round(time.perf_counter() - started)
    args.output.parent.mkdir(exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
