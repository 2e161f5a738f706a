"""Whether a code that was learned without labels is worth more than pixels, sums of them, or an untrained network.

    python benchmarks/learned_codes.py --train_data_dir data/mnist

Digits (A1, A2): a denoising autoencoder and a VAE with a code of 16, a quarter of the pixels and as many as there are
sums of rows and columns, learn from four fifths without labels; logistic regression on their codes is judged by the
other fifth. MNIST (A3): a denoising autoencoder and a VAE learn from all 60 000 images, logistic regression from the
codes of 100; each seed has its own network and its own choice of labels. All are trained by the library's losses and
loop; the probes are `linear_probe` and `few_label_probe`, which give every dimension mean 0 and variance 1.
Noise, width, layers and beta are chosen on a validation part of the training images, one network for each candidate: a
fifth of the digits, 10 000 images of MNIST. The best is then trained on all training images.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from representation import digits, environment
from scipy import stats
from torch import Tensor

from latentia import VAE, Autoencoder
from latentia.data import ImageData, load_images
from latentia.evaluation import few_label_probe, linear_probe, pixel_sums, untrained_like
from latentia.losses.reconstruction import autoencoder_loss
from latentia.losses.variational import elbo_loss
from latentia.training.loop import Phase, learning_rate_schedule, train

HERE = Path(__file__).resolve().parent
RATE, BATCH = 2e-3, 128


def noise(strength: float) -> dict:
    """The objective of a denoising autoencoder; half of the range of a pixel is 1."""
    return {"corruption": "gaussian", "corruption_strength": strength}


WIDE = {"hidden_sizes": (400,)}
CONVOLUTIONAL = {**WIDE, "block_out_channels": (8, 16)}
# Name: candidates, each a network, its settings, and those of its objective. Chosen among on a validation part.
DIGITS = {
    "denoising autoencoder": [
        (Autoencoder, {"latent_dim": 16, "hidden_sizes": (width,)}, noise(strength))
        for width in (128, 256)
        for strength in (0.25, 0.5, 1.0)
    ],
    "VAE": [
        (VAE, {"latent_dim": 16, "hidden_sizes": (width,)}, {"beta": beta})
        for width in (128, 256)
        for beta in (0.25, 1.0)
    ],
}
MNIST = {
    "denoising autoencoder": [
        (Autoencoder, {"latent_dim": 128, **WIDE, "latent_activation": "relu"}, noise(1.0)),
        (Autoencoder, {"latent_dim": 128, **CONVOLUTIONAL}, noise(1.0)),
        (Autoencoder, {"latent_dim": 128, **CONVOLUTIONAL, "latent_activation": "relu"}, noise(0.5)),
        (Autoencoder, {"latent_dim": 128, **CONVOLUTIONAL, "latent_activation": "relu"}, noise(1.0)),
    ],
    "VAE": [
        (VAE, {"latent_dim": latent_dim, **WIDE}, {"beta": beta}) for latent_dim in (16, 32) for beta in (0.5, 1.0)
    ],
}


def fitted(candidate: tuple, images: Tensor, steps: int, seed: int):
    """A network trained on bytes (N, C, H, W) for so many steps of Adam, its rate falling linearly to zero."""
    kind, settings, objective = candidate
    torch.manual_seed(seed)
    network = kind(sample_size=images.shape[-1], activation="relu", **settings)
    accelerator = Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(network, torch.optim.Adam(network.parameters(), lr=RATE))
    of = elbo_loss if kind is VAE else autoencoder_loss

    def loss(batch, rng):
        return of(prepared, {"x": batch["x"]}, rng, **objective)

    phase = Phase("network", loss, prepared, optimizer, learning_rate_schedule("linear", 0, steps))
    with tempfile.TemporaryDirectory() as folder:
        options = {"max_steps": steps, "batch_size": BATCH, "seed": seed, "checkpoint_every": None}
        train(accelerator, [phase], ImageData(images), output_dir=folder, **options)
    return network.eval()


def chosen(candidates: list, images: Tensor, steps: int, judge: Callable[[Any], float]) -> tuple[tuple, list[dict]]:
    """The candidate that is judged best after training, and what each got."""
    scores = [judge(fitted(candidate, images, steps, seed=0)) for candidate in candidates]
    table = [
        {"settings": settings, "objective": objective, "validation": round(score, 4)}
        for (_, settings, objective), score in zip(candidates, scores)
    ]
    for row in table:
        print(row, flush=True)
    return candidates[scores.index(max(scores))], table


@torch.no_grad()
def codes(network, images: Tensor) -> Tensor:
    """(N, D); of a VAE the mean."""
    found = [network.encode(part) for part in images.split(1000)]
    return torch.cat([code[0] if isinstance(code, tuple) else code for code in found])


class Rows:
    """What was found, row by row."""

    def __init__(self):
        self.rows: list[dict] = []

    def put(self, row: str, what: str, value: float, beside: dict, threshold: str, passed: bool, **more) -> None:
        beside = {name: round(number, 4) for name, number in beside.items()}
        print(f"{row} {'pass' if passed else 'MISS'}  {what}: {value:.4f} {beside} ({threshold})", flush=True)
        self.rows.append(
            {"row": row, "what": what, "value": round(value, 4), "beside": beside, "threshold": threshold,
             "passed": bool(passed), **more}
        )  # fmt: skip


def on_digits(rows: Rows, steps: int, seeds: int) -> None:
    x, y, new, new_labels = digits()
    pixels = ((x + 1) * 127.5).round().to(torch.uint8)

    part = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    kept, held = part[: len(x) * 4 // 5], part[len(x) * 4 // 5 :]

    def accuracy(learnt: Tensor, judged: Tensor) -> float:
        return linear_probe(learnt, y, test=(judged, new_labels)).mean

    def validation(network) -> float:
        return linear_probe(codes(network, x[kept]), y[kept], test=(codes(network, x[held]), y[held])).mean

    raw = accuracy(x.flatten(1), new.flatten(1))
    sums = accuracy(pixel_sums(x), pixel_sums(new))
    for name, candidates in DIGITS.items():
        best, table = chosen(candidates, pixels[kept], steps, validation)
        found, fresh = [], []
        for seed in range(seeds):
            network = fitted(best, pixels, steps, seed)
            found.append(accuracy(codes(network, x), codes(network, new)))
            other = untrained_like(network, seed)
            fresh.append(accuracy(codes(other, x), codes(other, new)))
        value, untrained = sum(found) / seeds, sum(fresh) / seeds
        spread = {"of each network": [round(v, 4) for v in found], "untrained": [round(v, 4) for v in fresh]}
        spread["candidates"] = table
        rows.put(
            "A1", f"digits, linear probe of the code of 16, {name}", value, {"64 pixels": raw, "untrained": untrained},
            ">= pixels - 0.02 and >= untrained + 0.05", value >= raw - 0.02 and value >= untrained + 0.05, **spread,
        )  # fmt: skip
        rows.put(
            "A2", f"digits, linear probe of the code of 16, {name}", value, {"16 sums of rows and columns": sums},
            ">= sums + 0.05", value >= sums + 0.05,
        )  # fmt: skip


def on_mnist(rows: Rows, folder: Path, steps: int, seeds: int) -> None:
    data, test = load_images(folder, split="train"), load_images(folder, split="test")
    x, new = (part.images.float() / 127.5 - 1 for part in (data, test))

    def accuracy(learnt: Tensor, judged: Tensor, seed: int) -> float:
        return few_label_probe(learnt, data.labels, test=(judged, test.labels), seeds=1, seed=seed).mean

    def validation(network) -> float:
        learnt = codes(network, x[:-10_000]), data.labels[:-10_000]
        return few_label_probe(*learnt, test=(codes(network, x[-10_000:]), data.labels[-10_000:]), seeds=5).mean

    raw = [accuracy(x.flatten(1), new.flatten(1), seed) for seed in range(seeds)]
    for name, candidates in MNIST.items():
        best, table = chosen(candidates, data.images[:-10_000], steps, validation)
        found = []
        for seed in range(seeds):
            begin = time.process_time()
            network = fitted(best, data.images, steps, seed)
            found.append(accuracy(codes(network, x), codes(network, new), seed))
            print(f"{name}, seed {seed}: {found[-1]:.4f}, pixels {raw[seed]:.4f}; {time.process_time() - begin:.0f} s")
        gain = torch.tensor(found).double() - torch.tensor(raw).double()  # of the same 100 labels
        each = {"of each seed": [round(g, 4) for g in gain.tolist()]}
        half = float(stats.t.ppf(0.975, seeds - 1) * gain.std() / seeds**0.5) if seeds > 1 else 0.0
        value = float(gain.mean())
        rows.put(
            "A3", f"MNIST, 100 labels, {name}: gain over the pixels", value,
            {"code": sum(found) / seeds, "pixels": sum(raw) / seeds}, ">= 0.05", value >= 0.05,
            interval=[round(value - half, 4), round(value + half, 4)], candidates=table, **each,
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train_data_dir", type=Path, help="folder with MNIST as train*.parquet and test*.parquet")
    parser.add_argument("--digits_steps", type=int, default=2000)
    parser.add_argument("--mnist_steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "learned_codes.json")
    args = parser.parse_args()
    begin, cpu, rows = time.perf_counter(), time.process_time(), Rows()
    on_digits(rows, args.digits_steps, args.seeds)
    if args.train_data_dir is not None:
        on_mnist(rows, args.train_data_dir, args.mnist_steps, args.seeds)
    seconds = {"seconds": round(time.perf_counter() - begin), "cpu_seconds": round(time.process_time() - cpu)}
    result = {"what": "probes of codes learned without labels", "rows": rows.rows} | environment() | seconds
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
