"""Anomaly detection on MNIST: ten splits, nine digits normal, the tenth anomalous; AUROC of autoencoder and VAE.

    python benchmarks/anomalies.py --train_data_dir <folder with MNIST as parquet>

Each model is trained by `latentia train` on the training images of nine digits and scores the 10 000 test images by
`latentia anomalies`. Baselines that learn nothing or are linear: the distance to the fifth nearest training image, and
the reconstruction error of PCA, both of pixels. With `--validation` the last 5000 training images take the place of the
test images, and are not trained on: the flags below were chosen by it.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.decomposition import PCA

from latentia.commands import anomalies
from latentia.data import ImageData, load_images
from latentia.evaluation.anomalies import ranking_scores

HERE = Path(__file__).resolve().parent
COMMON = "--eval_num_samples 0 --checkpointing_steps 100000 --train_batch_size 128"
FLAGS = {
    "autoencoder": ("autoencoder", f"{COMMON} --max_train_steps 1500 --latent_dim 16 --learning_rate 1e-3"),
    "vae": ("vae", f"{COMMON} --max_train_steps 1500 --latent_dim 8 --learning_rate 1e-3"),
}
_ERRORS = ("reconstruction", "relative_reconstruction")
SCORES = {"autoencoder": _ERRORS, "vae": (*_ERRORS, "likelihood")}


def without(table: pa.Table, labels: torch.Tensor, digit: int, folder: Path) -> Path:
    """The rows of all other digits as a file, for a training command."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"without-{digit}.parquet"
    pq.write_table(table.filter(pa.array((labels != digit).numpy())), path)
    return path


def baselines(train: torch.Tensor, test: torch.Tensor) -> dict[str, torch.Tensor]:
    """Anomaly scores of test images by pixels alone."""
    x, y = train.flatten(1).float() / 255, test.flatten(1).float() / 255
    nearest = torch.cat([torch.cdist(part, x).topk(5, 1, largest=False).values[:, -1] for part in y.split(500)])
    found = {"5th nearest training image": nearest}
    for count in (8, 16, 32):
        pca = PCA(count, svd_solver="covariance_eigh").fit(x.numpy())
        again = torch.from_numpy(pca.inverse_transform(pca.transform(y.numpy())))
        found[f"PCA of {count} components"] = (again - y).square().sum(1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train_data_dir", required=True)
    parser.add_argument("--validation", action="store_true")
    parser.add_argument("--digits", nargs="+", type=int, default=[*range(10)])
    parser.add_argument("--models", nargs="*", choices=[*FLAGS], default=[*FLAGS])
    parser.add_argument("--flags", default="", help="more flags of the training commands, for choosing")
    parser.add_argument("--folder", type=Path, default=Path("outputs/benchmark-anomalies"))
    parser.add_argument("--output", type=Path, default=HERE / "results" / "anomalies.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = pq.read_table(Path(args.train_data_dir) / "train.parquet")
    train = load_images(args.train_data_dir)
    assert train.labels is not None
    images, labels = train.images, train.labels
    if args.validation:
        test = ImageData(images[-5000:], labels[-5000:], train.label_names)
        images, labels, table = images[:-5000], labels[:-5000], table.slice(0, len(table) - 5000)
    else:
        found = load_images(args.train_data_dir, split="test")
        test = ImageData(found.images, found.labels, found.label_names)
    assert test.labels is not None and train.label_names is not None
    auroc: dict[str, dict[int, float]] = {}
    seconds = dict.fromkeys(args.models, 0.0)
    for digit in args.digits:
        file = without(table, labels, digit, args.folder)
        normal = [name for name in train.label_names if name != train.label_names[digit]]
        for model in args.models:
            family, flags = FLAGS[model]
            out = args.folder / f"{model}-{digit}"
            command = [sys.executable, "-m", "latentia", "train", family, "--train_data_dir", str(file)]
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(
                [*command, "--output_dir", str(out), *flags.split(), *args.flags.split(), "--overwrite_output_dir"],
                check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds[model] += after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            for score in SCORES[model]:
                scored = anomalies(str(out), test, score=score, normal_classes=normal)
                auroc.setdefault(f"{model}, {score}", {})[digit] = scored.ranking["AUROC"]
        if not args.validation:
            for name, values in baselines(images[labels != digit], test.images).items():
                auroc.setdefault(name, {})[digit] = ranking_scores(values, test.labels == digit)["AUROC"]
        print(digit, {name: round(values[digit], 3) for name, values in auroc.items()}, flush=True)
    means = {name: round(float(np.mean([*values.values()])), 4) for name, values in auroc.items()}
    print(means)
    if args.validation:
        return
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout.strip()
    result = {
        "command": " ".join(["python", *sys.argv]),
        "commit": head,
        "machine": f"{platform.machine()}, one thread",
        "versions": {name: version(name) for name in ("latentia", "torch", "scikit-learn")},
        "flags": {name: f"latentia train {family} {flags}" for name, (family, flags) in FLAGS.items()},
        "mean AUROC": means,
        "AUROC": {name: {k: round(v, 4) for k, v in values.items()} for name, values in auroc.items()},
        "processor seconds of training, all ten": {name: round(value, 1) for name, value in seconds.items()},
    }
    args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
