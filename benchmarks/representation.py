"""What codes that cost little are worth: the numbers that a learned representation has to beat.

    python benchmarks/representation.py --train_data_dir data/mnist

On scikit-learn's digits and on MNIST (10 000 training images; its own test set): raw pixels, sums of rows and columns,
principal components, an untrained network, and, as a ceiling, the shipped classifier, which has seen the labels; each
read by logistic regression, by five nearest neighbours, and by logistic regression from 100 labels (mean of 5 choices).
The path length of cross-fades, of principal components, and of noise. On the drawn factors: every disentanglement
score of the true factors, of their rotation, of noise, of principal components and of an untrained network.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split
from torch import Tensor

from latentia import DigitClassifier
from latentia.data import Factors, load_images
from latentia.evaluation import (
    disentanglement_scores,
    few_label_probe,
    knn_probe,
    linear_probe,
    load_extractor,
    perceptual_path_length,
    probe_report,
    uint8_batches,
    untrained_like,
)

HERE = Path(__file__).resolve().parent
PARTS = ("digits", "mnist", "factors")
TRAIN = 10_000  # MNIST images that are learned from
COMPONENTS = {"digits": (2, 10, 16), "mnist": (2, 32, 56), "factors": (6, 10)}


class Components:
    """The first k principal components of images (N, C, H, W): codes are projections on them, not whitened."""

    def __init__(self, images: Tensor, k: int):
        self.shape = images.shape[1:]
        self.pca = PCA(k, svd_solver="covariance_eigh").fit(images.flatten(1).double().numpy())

    def __call__(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.pca.transform(images.flatten(1).double().numpy()))

    def decode(self, codes: Tensor) -> Tensor:
        """Images, cut to [-1, 1]."""
        pixels = torch.from_numpy(self.pca.inverse_transform(codes.double().numpy()))
        return pixels.float().view(-1, *self.shape).clamp(-1, 1)

    def sample(self, n: int, seed: int) -> Tensor:
        """Codes from the Gaussian fitted to the codes: (n, k)."""
        z = torch.randn(n, self.pca.n_components_, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return z * torch.from_numpy(self.pca.explained_variance_).sqrt()


class Bare:
    """The factors themselves, as images of one pixel per factor."""

    names, sizes, ordered = Factors.names, Factors.sizes, Factors.ordered

    def render(self, indices: Tensor) -> Tensor:
        """(N, 1, 1, 6), uint8: the indices."""
        return indices.to(torch.uint8)[:, None, None]


def true_factors(images: Tensor) -> Tensor:
    """Each factor with mean 0 and variance 1, from the images of `Bare`."""
    sizes = torch.tensor(Factors.sizes, dtype=torch.float64)
    return ((images[:, 0, 0].double() + 1) * 127.5 - (sizes - 1) / 2) / ((sizes**2 - 1) / 12).sqrt()


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, test images and labels: the split that the shipped classifier was trained on."""
    data = load_images("digits")
    images = torch.cat([*uint8_batches(data.images)])
    learn, judged = train_test_split(range(len(data)), test_size=360, stratify=data.labels, random_state=0)
    return images[learn], data.labels[learn], images[judged], data.labels[judged]


def mnist(folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same of MNIST: 10 000 training images spread evenly over the set, and its own test set."""
    parts = [load_images(folder, split="train", max_samples=TRAIN), load_images(folder, split="test")]
    return tuple(x for part in parts for x in (torch.cat([*uint8_batches(part.images)]), part.labels))  # type: ignore


def probes(name: str, data: tuple[Tensor, Tensor, Tensor, Tensor], seeds: int) -> dict:
    """Every probe of every code."""
    images, labels, test_images, test_labels = data
    extractor = load_extractor(name)
    fresh = untrained_like(extractor.model)
    report = probe_report(
        lambda x: extractor(x)[0],
        images,
        labels,
        untrained=lambda x: fresh(x).features,
        test=(test_images, test_labels),
        seeds=seeds,
    )
    rows = {"shipped classifier (saw the labels)" if k == "code" else k: dict(v) for k, v in report.codes.items()}
    dimensions = dict(zip(rows, report.dimensions.values()))
    for k in COMPONENTS[name]:
        components = Components(images, k)
        codes, judged = components(images), (components(test_images), test_labels)
        rows[f"PCA {k}"] = {
            "linear": linear_probe(codes, labels, test=judged),
            "knn": knn_probe(codes, labels, test=judged),
            "few labels": few_label_probe(codes, labels, test=judged, seeds=seeds),
        }
        dimensions[f"PCA {k}"] = k
    out = {}
    for row, found in rows.items():
        print(f"{name:8} {row:36} {dimensions[row]:5}  " + "  ".join(f"{kind} {p}" for kind, p in found.items()))
        out[row] = {"dimensions": dimensions[row]} | {
            kind: {"mean": round(p.mean, 4), "interval": [round(p.low, 4), round(p.high, 4)], "note": p.note}
            for kind, p in found.items()
        }
    return {"train": len(images), "test": len(test_images), "few labels": report.n_few, "seeds": seeds, "codes": out}


def path_lengths(name: str, data: tuple[Tensor, Tensor, Tensor, Tensor]) -> dict:
    """Paths between random test images, in pixels and in principal components, and between samples of the latter."""
    images, _, test_images, _ = data
    n, extractor = len(test_images) // 2, load_extractor(name)
    order = torch.randperm(len(test_images), generator=torch.Generator().manual_seed(0))
    a, b = test_images[order[:n]], test_images[order[n : 2 * n]]
    noise = torch.rand(2, n, *a.shape[1:], generator=torch.Generator().manual_seed(0)) * 2 - 1
    components = Components(images, COMPONENTS[name][-1])
    drawn = [components.sample(n, seed) for seed in (1, 2)]
    k = f"PCA {COMPONENTS[name][-1]}"
    found = {
        "pixels of test images, lerp": perceptual_path_length(lambda x: x, a, b, extractor),
        "pixels of noise, lerp": perceptual_path_length(lambda x: x, *noise, extractor),
        f"{k} of test images, lerp": perceptual_path_length(components.decode, components(a), components(b), extractor),
        f"{k} samples, lerp": perceptual_path_length(components.decode, *drawn, extractor),
        f"{k} samples, slerp": perceptual_path_length(components.decode, *drawn, extractor, mode="slerp"),
    }
    for row, value in found.items():
        print(f"{name:8} path length, {row:36} {value.mean:.1f} ± {value.standard_error:.1f} (n={value.n})")
    return {row: {"mean": v.mean, "standard_error": v.standard_error, "n": v.n} for row, v in found.items()}


def disentanglement(n: int, groups: int) -> dict:
    """Every score of every code of the drawn factors."""
    factors, bare = Factors(), Bare()
    images = factors.render(factors.sample(5000, seed=1)).float() / 127.5 - 1
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    noise = torch.Generator().manual_seed(0)
    shape = {"sample_size": 32, "in_channels": 3, "block_out_channels": (16, 32, 64), "feature_dim": 10}
    fresh = untrained_like(DigitClassifier(**shape))
    codes: dict[str, tuple[Callable[[Tensor], Tensor], object]] = {
        "true factors": (true_factors, bare),
        "true factors, rotated": (lambda x: true_factors(x) @ turn, bare),
        "noise": (lambda x: torch.randn(len(x), 10, generator=noise), bare),
        "untrained network": (lambda x: fresh(x).features, factors),
    }
    codes |= {f"PCA {k}": (Components(images, k), factors) for k in COMPONENTS["factors"]}
    out = {}
    for name, (represent, drawn) in codes.items():
        found = disentanglement_scores(represent, drawn, n=n, groups=groups)  # type: ignore[arg-type]
        print(f"factors  {name:24} {found.text()}")
        out[name] = {key: round(value, 4) for key, value in found.to_dict().items()}
    return out


def environment() -> dict:
    """Where and with what the numbers were made."""
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line), "")
    git = ["git", "-C", str(HERE)]
    return {
        "command": "python " + shlex.join([f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "commit": subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip(),
        "machine": f"{os.cpu_count()} cores, {cpu}, {platform.machine()}",
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "scikit-learn", "numpy", "latentia")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train_data_dir", type=Path, help="folder with MNIST as train*.parquet and test*.parquet")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=int, default=5, help="choices of 100 labels")
    parser.add_argument("--n", type=int, default=10_000, help="images of the drawn factors")
    parser.add_argument("--groups", type=int, default=800, help="points of the BetaVAE and FactorVAE scores")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "representation.json")
    args = parser.parse_args()
    if "mnist" in args.parts and args.train_data_dir is None:
        parser.error("the part mnist needs --train_data_dir; without it give --parts digits factors")
    start, results = (
        time.perf_counter(),
        {"what": "probes, path lengths and disentanglement scores of codes that cost little"},
    )
    for part in args.parts:
        if part == "factors":
            results["disentanglement"] = disentanglement(args.n, args.groups)
        else:
            data = digits() if part == "digits" else mnist(args.train_data_dir)
            results[part] = {"probes": probes(part, data, args.seeds), "path length": path_lengths(part, data)}
    results |= environment() | {"seconds": round(time.perf_counter() - start)}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{args.output}: written after {results['seconds']} s")


if __name__ == "__main__":
    main()
