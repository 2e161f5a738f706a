"""Whether the extractor of one's own images measures quality: damage in rising strength, noise, good and bad models.

    python benchmarks/own_extractor.py --mnist_dir <folder with MNIST as parquet>

For emoji and for 2000 images of MNIST: Frechet distance, precision and density of test images, of the same ones
blurred, with noise or without some of their classes, of noise, and of two baselines (Gaussian kernels on the training
images, and a Gaussian in their principal components), by the extractor `own` and by the shipped classifier.
"""

import argparse
import json
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from latentia.data import ImageData, load_images
from latentia.evaluation import (
    KernelDensitySampler,
    PCASampler,
    frechet_distance,
    load_extractor,
    noise_images,
    own_extractor,
    precision_recall,
    predict,
)
from latentia.evaluation.features.base import known_range
from latentia.evaluation.noise_floor import NOISE
from latentia.functional.pixels import from_uint8, to_uint8

HERE = Path(__file__).resolve().parent


def blurred(x: Tensor, amount: float) -> Tensor:
    """A mixture of images and their means over 2 x 2 pixels."""
    return x.lerp(interpolate(avg_pool2d(x, 2), size=x.shape[2:], mode="bilinear"), amount)


def stages(train: ImageData, test: ImageData) -> dict[str, Tensor]:
    """Name to images in [-1, 1] of all that is measured."""
    x, n = from_uint8(test.images), len(test)
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(x.shape, generator=generator)
    found = {"test images": x}
    found |= {f"blur {amount}": blurred(x, amount) for amount in (0.25, 0.5, 1.0)}
    found |= {f"noise {sigma}": (x + sigma * normal).clamp(-1, 1) for sigma in (0.2, 0.4, 0.8)}
    assert test.labels is not None
    for first in (3, 6, 8):  # as many images, of the other classes only
        rows = (test.labels >= first).nonzero().flatten()
        found[f"without classes 0 to {first - 1}"] = x[rows[torch.randint(len(rows), (n,), generator=generator)]]
    for name, kind in (("kernels", KernelDensitySampler), ("Gaussian", PCASampler)):
        found[f"model: {name}"] = kind(train.images).sample(n, seed=0).cpu()
    found |= {kind: from_uint8(torch.cat([*noise_images(kind, train.images, n)])) for kind in NOISE}
    return {name: from_uint8(to_uint8(images)) for name, images in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mnist_dir", required=True)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "own_extractor.json")
    args = parser.parse_args()
    results = []
    for name, source, most in (("emoji", "emoji", None), ("mnist", args.mnist_dir, 2000)):
        train = load_images(source, max_samples=most)
        test = load_images(source, split="test", max_samples=most and most // 2)
        own = own_extractor(train)
        images = stages(train, test)
        for extractor in (own, load_extractor(name)):
            rows = {}
            with known_range():
                real = predict(from_uint8(train.images).split(500), extractor).features
                for stage, x in images.items():
                    made = predict(x.split(500), extractor).features
                    equal = real[torch.linspace(0, len(real) - 1, len(made)).long()]  # of all classes
                    found = precision_recall(real=equal, fake=made)
                    rows[stage] = {
                        "fd": round(float(frechet_distance(made, real)), 3),
                        "precision": round(float(found.precision), 3),
                        "density": round(float(found.density), 3),
                    }
                    print(f"{name:6} {extractor.name:6} {stage:24}", rows[stage], flush=True)
                order = torch.randperm(len(real), generator=torch.Generator().manual_seed(0)).split(len(test))
                seen, rest = real[order[0]], real[torch.cat(order[1:])]
                unseen = predict(images["test images"].split(500), extractor).features
                # As many images that it was trained on, and test images, from the other training images.
                distances = {"seen": frechet_distance(seen, rest), "unseen": frechet_distance(unseen, rest)}
            about = {"data": name, "extractor": extractor.name, "sha256": extractor.sha256}
            results.append({**about, "fd_of": {key: round(float(d), 3) for key, d in distances.items()}, "rows": rows})
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout.strip()
    about = {
        "command": "python benchmarks/own_extractor.py --mnist_dir data/mnist",
        "commit": commit,
        "versions": {"torch": torch.__version__, "latentia": version("latentia")},
        "threads": torch.get_num_threads(),
    }
    args.output.write_text(json.dumps({"results": results, "about": about}, indent=1) + "\n")


if __name__ == "__main__":
    main()
