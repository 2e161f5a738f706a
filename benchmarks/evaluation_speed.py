"""Seconds and memory of the Frechet distance and of precision, recall, density and coverage, beside the usual ways.

python benchmarks/evaluation_speed.py

Frechet distance: statistics of 50 000 x 2048 features by `Moments` beside numpy's mean and cov, then the distance
beside scipy's general matrix square root (pytorch-fid) and the eigenvalues of the plain product by numpy
(torch-fidelity 0.4).
Precision, recall, density and coverage of 10 000 x 10 000 features beside whole distance matrices from scikit-learn and
numpy's partition, as the papers' code has them. All ways of one comparison run in turns in one process on the same
features; the peaks of memory are of processes of their own.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentia.evaluation import Moments, frechet_distance, frechet_distance_of_gaussians, moments_of, precision_recall

BATCH = 2000  # features that an extractor would deliver at once


def features(n: int, dimension: int, seed: int, steepness: float, batch: int = BATCH) -> Iterator[torch.Tensor]:
    """Batches of float32 features, whose i-th principal variance is i^-steepness, in a random basis."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(dimension, dimension, generator=generator))[0]
    scale = torch.arange(1, dimension + 1, dtype=torch.float64).pow(-steepness / 2).float()
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, n, batch):
        noise = torch.randn(min(batch, n - start), dimension, generator=generator)
        yield (noise * scale * (1 + 0.1 * seed) + 0.02 * seed) @ basis


def ours_statistics(batches: Iterator[torch.Tensor]) -> Moments:
    moments = Moments()
    for batch in batches:
        moments.update(batch)
    return moments


def numpy_statistics(batches: Iterator[torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """As pytorch-fid and torch-fidelity do: all features at once."""
    whole = np.concatenate([batch.numpy() for batch in batches])
    return whole.mean(0), np.cov(whole, rowvar=False)


def distance_by_sqrtm(mean_a: np.ndarray, a: np.ndarray, mean_b: np.ndarray, b: np.ndarray) -> float:
    import scipy.linalg

    root = scipy.linalg.sqrtm(a @ b)
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * np.trace(root).real)


def distance_by_eigenvalues(mean_a: np.ndarray, a: np.ndarray, mean_b: np.ndarray, b: np.ndarray) -> float:
    roots = np.sqrt(np.linalg.eigvals(a @ b).astype(complex))
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * roots.sum().real)


def reference_prdc(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float, float, float]:
    """Whole matrices of distances, each row partitioned."""
    from sklearn.metrics import pairwise_distances

    real_radius = np.partition(pairwise_distances(real), k, axis=1)[:, k]
    fake_radius = np.partition(pairwise_distances(fake), k, axis=1)[:, k]
    distances = pairwise_distances(real, fake)
    return (
        float((distances <= real_radius[:, None]).any(0).mean()),
        float((distances <= fake_radius).any(1).mean()),
        float((distances <= real_radius[:, None]).sum(0).mean() / k),
        float((distances.min(1) <= real_radius).mean()),
    )


def in_turns(ways: dict[str, tuple[Callable[[], Any], int]]) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each way, run so many times, and what it returned; in turns, so that other work meets all."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results = {}
    for turn in range(max(repeats for _, repeats in ways.values())):
        for name, (run, repeats) in ways.items():
            if turn < repeats:
                begin = time.perf_counter()
                results[name] = run()
                seconds[name].append(time.perf_counter() - begin)
    return seconds, results


def summary(seconds: dict[str, list[float]], ours: str) -> dict[str, Any]:
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "seconds": {name: round(value, 3) for name, value in median.items()},
        "seconds_range": {name: [round(min(v), 3), round(max(v), 3)] for name, v in seconds.items()},
        "times_faster": {name: round(value / median[ours], 1) for name, value in median.items() if name != ours},
    }


def statistics_part(n: int, dimension: int, repeats: int) -> dict[str, Any]:
    batches = list(features(n, dimension, 1, 1.0))
    seconds, results = in_turns(
        {
            "ours": (lambda: ours_statistics(iter(batches)), repeats),
            "numpy mean and cov": (lambda: numpy_statistics(iter(batches)), 1),
        }
    )
    covariance, expected = results["ours"].covariance, torch.from_numpy(results["numpy mean and cov"][1])
    error = float((covariance - expected).abs().max() / expected.abs().max())
    return {"n": n, "dimension": dimension} | summary(seconds, "ours") | {"largest_relative_difference": error}


def distance_part(n: int, dimension: int, steepness: float, repeats: int, with_sqrtm: bool) -> dict[str, Any]:
    """Of given means and covariances, as the peers take them."""
    a, b = (ours_statistics(features(n, dimension, seed, steepness)) for seed in (1, 2))
    tensors = (a.mean, a.covariance, b.mean, b.covariance)
    arrays = [part.numpy() for part in tensors]
    ways: dict[str, tuple[Callable[[], Any], int]] = {
        "ours": (lambda: frechet_distance_of_gaussians(*tensors), repeats),
        "eigenvalues of the product (numpy)": (lambda: distance_by_eigenvalues(*arrays), max(1, repeats // 2)),
    }
    if with_sqrtm:
        ways["matrix square root (scipy)"] = (lambda: distance_by_sqrtm(*arrays), 1)
    seconds, values = in_turns(ways)
    eigenvalues = torch.linalg.eigvalsh(tensors[1])
    return (
        {"dimension": dimension, "condition_of_the_covariance": float(f"{eigenvalues[-1] / eigenvalues[0]:.3g}")}
        | summary(seconds, "ours")
        | {
            "value": values["ours"],
            "relative_difference": {
                name: abs(value / values["ours"] - 1) for name, value in values.items() if name != "ours"
            },
        }
    )


def few_part(n: int, n_reference: int, dimension: int, repeats: int) -> dict[str, Any]:
    """n < D: statistics and distance together, from features to a number, beside the same through a D x D matrix."""
    a, b = (next(features(n, dimension, seed, 1.0, n)) for seed in (1, 2))
    reference = ours_statistics(features(n_reference, dimension, 2, 1.0))
    _ = reference.factor  # known beforehand, as that of real images is

    def through_covariances() -> float:
        parts = [(x.double().mean(0), x.double().T.cov()) for x in (a, b)]
        return frechet_distance_of_gaussians(*parts[0], *parts[1])

    seconds, values = in_turns(
        {
            f"ours, {n} against {n}": (lambda: frechet_distance(a, b), repeats),
            f"ours, {n} against {n_reference}": (lambda: frechet_distance(moments_of(a), reference), repeats),
            f"ours, {n} against {n}, by covariances": (through_covariances, 1),
        }
    )
    small, _, plain = values.values()
    return (
        {"n": n, "dimension": dimension}
        | summary(seconds, f"ours, {n} against {n}")
        | {"relative_difference": abs(plain / small - 1)}
    )


def prdc_part(n: int, dimension: int, repeats: int) -> dict[str, Any]:
    real, fake = (next(features(n, dimension, seed, 0.5, n)) for seed in (1, 2))
    seconds, values = in_turns(
        {
            "ours": (lambda: precision_recall(real=real, fake=fake, k=5, density_k=5), repeats),
            "reference": (lambda: reference_prdc(real.double().numpy(), fake.double().numpy(), 5), max(1, repeats - 1)),
        }
    )
    return (
        {"n": n, "dimension": dimension}
        | summary(seconds, "ours")
        | {
            "precision, recall, density, coverage": list(values["ours"]),
            "largest_difference": max(abs(x - y) for x, y in zip(values["ours"], values["reference"])),
        }
    )


MEMORY = {
    "statistics, ours": lambda n, d, m: ours_statistics(features(n, d, 1, 1.0)),
    "statistics, numpy": lambda n, d, m: numpy_statistics(features(n, d, 1, 1.0)),
    "precision and recall, ours": lambda n, d, m: precision_recall(
        real=next(features(m, 512, 1, 0.5, m)), fake=next(features(m, 512, 2, 0.5, m))
    ),
    "precision and recall, reference": lambda n, d, m: reference_prdc(
        next(features(m, 512, 1, 0.5, m)).double().numpy(), next(features(m, 512, 2, 0.5, m)).double().numpy(), 3
    ),
}


def peak_above(name: str, n: int, dimension: int, points: int) -> float:
    """MiB that this process took at most above what it held with one batch of features (or both sets) made."""
    if name.startswith("statistics"):
        _held = next(features(BATCH, dimension, 1, 1.0))
    else:
        _held = [next(features(points, 512, seed, 0.5, points)) for seed in (1, 2)]
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far was one of imports; Linux forgets it at this
    before = memory("VmRSS")
    MEMORY[name](n, dimension, points)
    return memory("VmHWM") - before


def memory(key: str) -> float:
    """MiB that Linux states for this process: VmRSS is held now, VmHWM was held at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--n", type=int, default=50_000)
    parser.add_argument("--dimension", type=int, default=2048)
    parser.add_argument("--points", type=int, default=10_000, help="of either set for precision and recall")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results/evaluation_speed.json")
    parser.add_argument("--peak_of", choices=MEMORY, help="only print the memory of one way, in MiB")
    options = parser.parse_args()
    if options.peak_of:
        print(peak_above(options.peak_of, options.n, options.dimension, options.points))
        return
    result = measured(options)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def measured(options: argparse.Namespace) -> dict[str, Any]:
    from threadpoolctl import threadpool_info

    begin = time.perf_counter()
    n, dimension, points, repeats = options.n, options.dimension, options.points, options.repeats
    few = min(1000, dimension // 2)
    parts = {
        "frechet_statistics": statistics_part(n, dimension, repeats),
        "frechet_distance": distance_part(n, dimension, 1.0, repeats, with_sqrtm=True),
        "frechet_distance_ill_conditioned": distance_part(n // 5, dimension, 3.0, 1, with_sqrtm=False),
        "frechet_distance_few_images": few_part(few, n // 5, dimension, repeats),
        "precision_recall_density_coverage": [prdc_part(points, width, repeats) for width in (64, 512)],
        "peak_MiB_above_one_batch": {name: round(in_a_process(name, options)) for name in MEMORY},
    }
    arguments = " ".join(sys.argv[1:])
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    return {
        "what": "seconds (median) and peak memory of evaluation, ours beside the usual ways, on the same features",
        "command": f"python benchmarks/evaluation_speed.py {arguments}".strip(),
        "commit": git.stdout.strip() if git.returncode == 0 else None,
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "numpy_and_scipy_threads": sorted({pool["num_threads"] for pool in threadpool_info()}),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in ("torch", "numpy", "scipy", "scikit-learn", "latentia")},
        "took_seconds": round(time.perf_counter() - begin),
        **parts,
    }


def in_a_process(name: str, options: argparse.Namespace) -> float:
    sizes = [f"--n={options.n}", f"--dimension={options.dimension}", f"--points={options.points}"]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, __file__, "--peak_of", name, *sizes],
            capture_output=True,
            text=True,
            check=True,
            cwd=folder,
        )
    return float(done.stdout)


def cpu_name() -> str:
    """The processor as the system names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


if __name__ == "__main__":
    main()
