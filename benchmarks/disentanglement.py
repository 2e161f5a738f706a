"""beta-VAE above VAE on images whose causes are known: MIG, DCI and the other scores, over several seeds.

    python benchmarks/disentanglement.py

The data: the drawn factor set, 32 x 32, in grey, with shape, scale, x and y free and colour and rotation fixed: 6144
images. The network: dense, 1024-256-128-10, Bernoulli decoder; Adam at 1e-3, batch 64, no average of the weights. A
fixed rotation is no loss to the test: an ellipse at 45 degrees needs two dimensions for what is one factor.

beta is chosen by MIG on `--tuning_seeds`, which are not reported; then beta = 1 and the beta chosen are trained on each
of `--seeds`. The gain is paired by seed, with its standard error; it holds if it is above two of them. No score without
labels could have chosen beta (Locatello et al., 2019, 1811.12359).
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

import latentia
from latentia import VAE, VAEPipeline
from latentia.data import Factors, ImageData
from latentia.evaluation import disentanglement_scores, image_grid
from latentia.losses.variational import elbo_loss
from latentia.training.loop import Phase, train

HERE = Path(__file__).resolve().parent
FREE = ("shape", "scale", "x", "y")
SCORES = ("mig", "sap", "dci_disentanglement", "dci_completeness", "dci_informativeness", "beta_vae", "factor_vae",
          "irs", "correlation")  # fmt: skip


class Grey:
    """The factor set with some factors free, the others at 0, red on dark brought to white on black. All in memory."""

    def __init__(self):
        whole = Factors(32)
        columns = [whole.names.index(name) for name in FREE]
        self.names, self.sizes = FREE, tuple(whole.sizes[c] for c in columns)
        self.ordered = tuple(whole.ordered[c] for c in columns)
        free = torch.cartesian_prod(*(torch.arange(size) for size in self.sizes))
        indices = torch.zeros(len(free), len(whole.sizes), dtype=torch.int64)
        indices[:, columns] = free
        red = whole.render(indices)[:, :1].float()
        self.images = ((red - red.min()) / (red.max() - red.min()) * 255).round().to(torch.uint8)
        self.steps = torch.tensor([math.prod(self.sizes[k + 1 :]) for k in range(len(self.sizes))])

    def render(self, indices: Tensor) -> Tensor:
        return self.images[(indices * self.steps).sum(1)]


def fit(data: ImageData, beta: float, seed: int, steps: int) -> VAE:
    torch.manual_seed(seed)
    vae = VAE(sample_size=32, latent_dim=10, hidden_sizes=(256, 128), activation="relu")
    accelerator = Accelerator(cpu=True)
    network, optimizer = accelerator.prepare(vae, torch.optim.Adam(vae.parameters(), lr=1e-3))
    phase = Phase("vae", partial(elbo_loss, network, beta=beta), network, optimizer)
    with tempfile.TemporaryDirectory() as folder:
        train(
            accelerator, [phase], data, output_dir=folder, max_steps=steps, batch_size=64, seed=seed,
            checkpoint_every=None, resume="none",
        )  # fmt: skip
    return vae.eval()


def scored(factors: Grey, data: ImageData, beta: float, seed: int, args) -> tuple[dict, VAE]:
    started = time.perf_counter()
    vae = fit(data, beta, seed, args.steps)
    seconds = time.perf_counter() - started
    with torch.no_grad():
        scores = disentanglement_scores(lambda x: vae.encode(x)[0], factors, n=args.n, groups=args.groups).to_dict()
    row = {**scores, "beta": beta, "seed": seed, "seconds of training": round(seconds, 1)}
    row = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}
    print(row, flush=True)
    return row, vae


def gains(rows: list[dict], beta: float) -> dict:
    """Of each score: the means, the paired gain and its standard error."""
    by = {(row["beta"], row["seed"]): row for row in rows}
    seeds = [seed for b, seed in by if b == beta and (1.0, seed) in by]
    found = {}
    for name in SCORES:
        each = [by[beta, seed][name] - by[1.0, seed][name] for seed in seeds]
        error = statistics.stdev(each) / len(each) ** 0.5 if len(each) > 1 else None
        gain = statistics.mean(each)
        found[name] = {
            "beta = 1": statistics.mean(by[1.0, seed][name] for seed in seeds),
            "beta chosen": statistics.mean(by[beta, seed][name] for seed in seeds), "gain": gain,
            "its standard error": error,
        }  # fmt: skip
        if name in ("mig", "dci_disentanglement"):
            found[name]["holds"] = error is not None and gain > 2 * error
    return {"seeds": len(seeds), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--betas", nargs="+", type=float, default=[4.0, 8.0, 16.0])
    parser.add_argument("--tuning_seeds", nargs="+", type=int, default=[100])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--n", type=int, default=5000, help="images of all scores but the two of groups")
    parser.add_argument("--groups", type=int, default=800)
    parser.add_argument("--picture", type=Path, default=HERE.parent / "docs" / "images" / "vae-factors.png")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "disentanglement.json")
    args = parser.parse_args()
    if {*args.seeds} & {*args.tuning_seeds}:
        parser.error("--tuning_seeds must not be among --seeds: beta would be chosen on what is reported.")
    factors = Grey()
    data = ImageData(factors.images)
    tuning = [scored(factors, data, beta, seed, args)[0] for beta in args.betas for seed in args.tuning_seeds]
    means = {b: statistics.mean(row["mig"] for row in tuning if row["beta"] == b) for b in args.betas}
    best = max(means, key=means.__getitem__)
    git = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    result = {
        "what": "beta-VAE above VAE on drawn factors", "factors": FREE, "beta chosen": best,
        "command": " ".join(["python", "benchmarks/disentanglement.py", *sys.argv[1:]]),
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip(),
        "latentia": latentia.__version__, "torch": torch.__version__, "machine": platform.machine(),
        "cores": os.cpu_count(), "threads": torch.get_num_threads(), "steps": args.steps, "tuning": tuning,
    }  # fmt: skip
    rows: list[dict] = []
    for seed in args.seeds:
        for beta in (1.0, best):
            row, vae = scored(factors, data, beta, seed, args)
            rows.append(row)
        if seed == args.seeds[0]:
            draw(factors, vae, args.picture)
        result |= {"gains": gains(rows, best), "rows": rows}
        args.output.parent.mkdir(exist_ok=True)
        args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["gains"], indent=1))


def draw(factors: Grey, vae: VAE, path: Path) -> None:
    """Traversals of the dimensions, those that vary most first."""
    x = factors.images.float() / 127.5 - 1
    with torch.no_grad():
        order = vae.encode(x)[0].var(0).argsort(descending=True).tolist()
    middle = factors.render(torch.tensor([[1, 3, 8, 8]])).float() / 127.5 - 1
    sheet = VAEPipeline(vae).traversals(middle, dimensions=order, steps=9, span=2.0, output_type="latent")
    path.parent.mkdir(parents=True, exist_ok=True)
    image_grid(sheet.flatten(0, 1), 9, row_labels=[f"z{j}" for j in order]).save(path)


if __name__ == "__main__":
    main()
