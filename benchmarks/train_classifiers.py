"""Train the three classifiers that latentia ships as feature extractors.

    OMP_NUM_THREADS=1 python benchmarks/train_classifiers.py --data digits
    OMP_NUM_THREADS=1 python benchmarks/train_classifiers.py --data emoji
    OMP_NUM_THREADS=1 python benchmarks/train_classifiers.py --data mnist --train_data_dir data/mnist

`--train_data_dir` holds `train*.parquet` and `test*.parquet` with the columns `image` and `label`, as the Hub's
`ylecun/mnist` has them. Each run writes `config.json`, `diffusion_pytorch_model.safetensors` and `evaluation.json`
(accuracies, command, sha256).
"""

import argparse
import hashlib
import io
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from latentia.evaluation.features.classifier import WEIGHTS
from latentia.models.classifier import DigitClassifier

RECIPES = {
    "digits": {
        "config": {"sample_size": 8, "block_out_channels": (32, 64)},
        "epochs": 60,
        "batch": 64,
        "pad": 1,
        "split": "scikit-learn digits; train_test_split(test_size=360, stratify=labels, random_state=0)",
    },
    "mnist": {
        "config": {"sample_size": 28, "block_out_channels": (32, 64, 64)},
        "epochs": 8,
        "batch": 128,
        "pad": 2,
        "split": "MNIST: its own 60000 train and 10000 test images",
    },
    "emoji": {
        "config": {"sample_size": 32, "in_channels": 3, "block_out_channels": (32, 64, 64, 96)},
        "epochs": 40,
        "batch": 64,
        "pad": 4,
        "background": 1.0,
        "mirror": True,
        "split": "embedded emoji, category: its own 1717 train and 194 test emoji, each as noto and as twemoji",
    },
}


def digits_split() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(images (N, 1, 8, 8) in [-1, 1], labels (N,)) of 1437 training and 360 test digits, always the same ones."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8) / 8 - 1
    parts = train_test_split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=0)
    return [(images[part], torch.from_numpy(labels)[part]) for part in parts]


def read_parquet(folder: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 1, 28, 28) in [-1, 1] and labels (N,) of one split."""
    import pyarrow.parquet as parquet
    from PIL import Image

    files = sorted(folder.glob(f"{split}*.parquet"))
    if not files:
        raise SystemExit(f"--train_data_dir must hold {split}*.parquet. Got {folder}, which has none.")
    rows = [row for file in files for row in parquet.read_table(file).to_pylist()]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("L")) for row in rows])
    return torch.from_numpy(pixels)[:, None] / 127.5 - 1, torch.tensor([row["label"] for row in rows])


def emoji_split() -> tuple[list[tuple[torch.Tensor, torch.Tensor]], list[str]]:
    """Images (N, 3, 32, 32) in [-1, 1] and categories (N,) of both splits, noto before twemoji; the categories."""
    from latentia.data import load_images

    parts: list[tuple[torch.Tensor, torch.Tensor]] = []
    for split in ("train", "test"):
        styles = [load_images("emoji", split=split, image_column=style) for style in ("noto", "twemoji")]
        batches = [data.batch(0, len(data)) for data in styles]
        parts.append((torch.cat([b["x"] for b in batches]), torch.cat([b["labels"] for b in batches])))
    return parts, styles[0].label_names


def shift(images: torch.Tensor, pad: int, background: float, generator: torch.Generator) -> torch.Tensor:
    """Each image moved by its own whole number of pixels in [-pad, pad], the border filled with `background`."""
    count, channels, height, width = images.shape
    padded = F.pad(images, (pad,) * 4, value=background)
    top, left = torch.randint(0, 2 * pad + 1, (2, count), generator=generator)
    rows = (top[:, None] + torch.arange(height))[:, None, :, None]  # (B, 1, H, 1)
    columns = (left[:, None] + torch.arange(width))[:, None, None, :]  # (B, 1, 1, W)
    batch, plane = torch.arange(count)[:, None, None, None], torch.arange(channels)[None, :, None, None]
    return padded[batch, plane, rows, columns]


def mirror(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each image flipped left-right with probability 1/2."""
    flipped = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(flipped[:, None, None, None], images.flip(-1), images)


@torch.no_grad()
def accuracy(model: DigitClassifier, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of images whose most likely class is the label."""
    model.eval()
    hits = sum(int((model(x).logits.argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500)))
    return hits / len(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(RECIPES), required=True)
    parser.add_argument("--train_data_dir", type=Path, help="folder of parquet files; only for --data mnist")
    parser.add_argument("--output_dir", type=Path, help="default: the folder that the package ships")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    recipe, started = RECIPES[args.data], time.monotonic()
    output_dir = args.output_dir or WEIGHTS / args.data

    class_names = [str(digit) for digit in range(10)]
    if args.data == "digits":
        train, test = digits_split()
    elif args.data == "emoji":
        (train, test), class_names = emoji_split()
    elif args.train_data_dir is None:
        parser.error("--data mnist needs --train_data_dir, a folder with train*.parquet and test*.parquet")
    else:
        train, test = read_parquet(args.train_data_dir, "train"), read_parquet(args.train_data_dir, "test")
    images, labels = train

    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    model = DigitClassifier(**recipe["config"])
    steps_per_epoch = len(images) // recipe["batch"]
    steps = steps_per_epoch * recipe["epochs"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    # Linear warm-up over 5 % of the run, then half a cosine down to 0.
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda k: min(1.0, (k + 1) / (0.05 * steps)) * 0.5 * (1 + math.cos(math.pi * k / steps))
    )
    for epoch in range(recipe["epochs"]):
        model.train()
        order = torch.randperm(len(images), generator=generator)
        for index in order[: steps_per_epoch * recipe["batch"]].split(recipe["batch"]):
            batch = shift(images[index], recipe["pad"], recipe.get("background", -1.0), generator)
            if recipe.get("mirror"):
                batch = mirror(batch, generator)
            logits = model(batch).logits
            loss = F.cross_entropy(logits, labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(
            f"epoch {epoch + 1}/{recipe['epochs']}  loss {loss.item():.4f}  {time.monotonic() - started:.0f} s",
            flush=True,
        )

    model.eval().save_pretrained(output_dir)
    weights = output_dir / "diffusion_pytorch_model.safetensors"
    folder = " --train_data_dir data/mnist" if args.data == "mnist" else ""
    statement = {
        "name": args.data,
        "train_accuracy": accuracy(model, *train),
        "test_accuracy": accuracy(model, *test),
        "train_images": len(train[0]),
        "test_images": len(test[0]),
        "split": recipe["split"],
        "class_names": class_names,
        "command": f"python benchmarks/train_classifiers.py --data {args.data}{folder} --seed {args.seed}",
        "machine": f"CPU, {torch.get_num_threads()} thread(s), torch {torch.__version__}",
        "minutes": round((time.monotonic() - started) / 60, 1),
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    (output_dir / "evaluation.json").write_text(json.dumps(statement, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(statement, indent=2))


if __name__ == "__main__":
    main()
