"""Likelihoods of VAEs on dynamically binarised MNIST: a recipe for a CPU, and the table of the IWAE paper.

    python benchmarks/vae_likelihood.py --train_data_dir <folder with MNIST as parquet> --parts recipe --minutes 10
    python benchmarks/vae_likelihood.py --train_data_dir <folder with MNIST as parquet> --parts iwae --k 1 5 50 \
        --epochs 3280 --batch_size 20 --seeds 0 --device cuda

"recipe": a dense network 784-400-400-40 with a Bernoulli decoder, and the bound that it reaches in so many minutes.
"iwae": the network of Burda et al. (2015, 1509.00519), 784-200-200-50, tanh, one stochastic layer, trained on the bound
of k samples. Both: Adam, cosine decay to zero, an average of the weights, pixels binarised anew at each step; the bias
of the output starts at the logit of the mean pixel. Minutes are of training alone: a trial of 200 steps tells the pace,
and the steps that fit are then made. The paper trained 3280 epochs of batches of 20.

The test set is binarised once. -ELBO (one sample) is of all its images. -log p(x), with `--importance_samples`, is of
`--likelihood_images` of them, evenly spread; the estimate for all is the -ELBO of all less the mean gap of those. That
has the standard error of the gap, which is an order smaller than that of the likelihood itself.
"""

import argparse
import json
import math
import os
import platform
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
from latentia import VAE
from latentia.data import load_images
from latentia.functional.distributions import gaussian_kl, log_likelihood, log_normal
from latentia.losses.variational import ACTIVE, elbo_loss, iwae_loss
from latentia.rng import Rng
from latentia.training.ema import EMA
from latentia.training.loop import Hook, Phase, learning_rate_schedule, train

HERE = Path(__file__).resolve().parent
PUBLISHED = {1: 86.76, 5: 85.54, 50: 84.78}  # table 1, one stochastic layer
ACTIVE_UNITS = {1: 19, 5: 22, 50: 25}
NETWORKS = {
    "recipe": {"hidden_sizes": (400, 400), "latent_dim": 40, "activation": "silu"},
    "iwae": {"hidden_sizes": (200, 200), "latent_dim": 50, "activation": "tanh"},
}
CODES = 2000  # decoded at once
TRIAL = 200


class Test:
    """The test images, binarised once, and what a network makes of them."""

    def __init__(self, folder: str, images: int, device: str):
        x = load_images(folder, split="test").images.float() / 127.5 - 1
        uniform = Rng(0, 0, len(x), 0, len(x)).uniform("test", x.shape[1:])
        self.x = torch.where(uniform < (x + 1) / 2, 1.0, -1.0).to(device)
        self.few = torch.linspace(0, len(x) - 1, images).long().to(device)

    @torch.no_grad()
    def elbo(self, vae: VAE, draws: int = 1) -> tuple[Tensor, int, float]:
        """The negative ELBO of each image, the active units, and the KL."""
        parts, means = [], []
        generator = torch.Generator(self.x.device).manual_seed(0)
        for x in self.x.split(1000):
            noise = torch.randn(len(x), draws, vae.config.latent_dim, generator=generator, device=x.device)
            out = vae(x, noise)
            kl = gaussian_kl(out.mean, out.log_variance).sum(1)
            parts.append(torch.stack([kl - log_likelihood("bernoulli", x, out.location).mean(1), kl]))
            means.append(out.mean)
        nats, kl = torch.cat(parts, 1).double()
        return nats, int((torch.cat(means).var(0) > ACTIVE).sum()), float(kl.mean())

    @torch.no_grad()
    def likelihood(self, vae: VAE, samples: int, images: Tensor) -> Tensor:
        """-log p(x) of some images, (n,), with so many samples of q(z|x) each."""
        found, generator = [], torch.Generator(self.x.device).manual_seed(1)
        for x in self.x[images].split(1):
            mean, log_variance = vae.encode(x)
            weights = []
            for start in range(0, samples, CODES):
                shape = (min(CODES, samples - start), mean.shape[1])
                noise = torch.randn(shape, generator=generator, device=x.device)
                z = mean + (0.5 * log_variance).exp() * noise
                likelihood = log_likelihood("bernoulli", x, vae.decode(z))
                weights.append(likelihood + log_normal(z) - log_normal(z, mean, log_variance))
            found.append(math.log(samples) - torch.cat(weights).double().logsumexp(0))
        return torch.stack(found)


def new_network(kind: str, data, seed: int, device: str) -> VAE:
    torch.manual_seed(seed)
    vae = VAE(**NETWORKS[kind])
    mean = (data.images.float().mean(0) / 255).clamp(1e-3, 1 - 1e-3)
    with torch.no_grad():
        vae.decoder_mlp[-1].bias.copy_(torch.logit(mean).flatten())
    return vae.to(device)


def fit(vae: VAE, loss, data, steps: int, args, seed: int, hooks=()):
    """Train with the library's loop. Returns its result, the average of the weights and processor seconds."""
    accelerator, ema = Accelerator(cpu=args.device == "cpu"), EMA(vae)
    for hook in hooks:
        hook.call = partial(hook.call, ema.module)
    optimizer = torch.optim.Adam(vae.parameters(), lr=args.learning_rate)
    network, optimizer = accelerator.prepare(vae, optimizer)
    rate = learning_rate_schedule("cosine", min(200, steps // 10), steps)
    phase = Phase("vae", partial(loss, network), network, optimizer, rate, ema=ema)
    worked = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        result = train(
            accelerator, [phase], data, output_dir=folder, max_steps=steps, batch_size=args.batch_size, seed=seed,
            hooks=hooks, checkpoint_every=None, resume="none", log_every=100,
        )  # fmt: skip
    if result.status == "interrupted":
        raise SystemExit("interrupted")
    return result, ema.module.eval(), time.process_time() - worked


def run(kind: str, k: int, seed: int, data, test: Test, args) -> dict:
    loss = elbo_loss if k == 1 else partial(iwae_loss, samples=k)
    steps = args.epochs and round(args.epochs * len(data) / args.batch_size)
    if not steps:
        trial = fit(new_network(kind, data, seed, args.device), loss, data, TRIAL, args, seed)[0]
        steps = int(args.minutes * 60 * trial.images_per_second / args.batch_size)
    few, curve = test.few[:: max(1, len(test.few) // 250)], []

    def look(average: VAE, progress) -> dict[str, float]:
        average.eval()
        nats = float(test.elbo(average)[0].mean())
        bound = float(test.likelihood(average, 100, few).mean())
        epochs = progress.images / len(data)
        curve.append({"epochs": epochs, "minutes": progress.seconds / 60, "-elbo": nats, "-log p, k = 100, few": bound})
        print(f"{kind}, k = {k}, seed {seed}: {epochs:.1f} epochs, {progress.seconds:.0f} s, {nats:.2f}", flush=True)
        return {}

    hooks = [Hook(-(-steps // args.looks), look)]
    result, vae, worked = fit(new_network(kind, data, seed, args.device), loss, data, steps, args, seed, hooks)
    each, active, kl = test.elbo(vae)
    exact = test.elbo(vae, 20)[0]
    several = test.likelihood(vae, args.importance_samples, test.few)
    gap = exact[test.few] - several
    row = {
        "part": kind, "k": k, "seed": seed, "-elbo": float(each.mean()), "-elbo of 20 draws": float(exact.mean()),
        "kl": kl, "active units": active,
        "-log p": float(exact.mean() - gap.mean()), "its standard error": float(gap.std() / len(gap) ** 0.5),
        "-log p of the images alone": float(several.mean()), "importance samples": args.importance_samples,
        "images": len(several), "epochs": result.progress.images / len(data),
        "minutes": result.progress.seconds / 60, "processor minutes, looks included": worked / 60,
        "images per second": result.images_per_second, "batch": args.batch_size, "rate": args.learning_rate,
        "threads": torch.get_num_threads(), "device": args.device, "curve": curve,
    }  # fmt: skip
    if kind == "iwae":
        row |= {"published -log p": PUBLISHED.get(k), "published active units": ACTIVE_UNITS.get(k)}
    else:
        below = [point["minutes"] for point in curve if point["-elbo"] <= 105]
        row |= {
            "threshold": 105,
            "passed": row["-elbo"] <= 105,
            "minutes at the first look below": min(below, default=None),
        }
    return rounded(row)


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def about() -> dict:
    git = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "command": " ".join(["python", "benchmarks/" + Path(sys.argv[0]).name, *sys.argv[1:]]), "commit": commit,
        "latentia": latentia.__version__, "torch": torch.__version__, "machine": platform.machine(),
        "cores": os.cpu_count(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train_data_dir", required=True, help="MNIST as parquet, with a test split")
    parser.add_argument("--parts", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--k", nargs="+", type=int, default=[1, 5, 50], help="samples of the bound, part iwae")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="of training for each network")
    parser.add_argument("--epochs", type=float, help="instead of minutes")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--looks", type=int, default=12, help="points of the curve")
    parser.add_argument("--importance_samples", type=int, default=5000)
    parser.add_argument("--likelihood_images", type=int, default=10_000, help="test images that get them")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "vae_likelihood.json")
    args = parser.parse_args()
    data = load_images(args.train_data_dir, split="train")
    test = Test(args.train_data_dir, args.likelihood_images, args.device)
    for kind in args.parts:
        for k in args.k if kind == "iwae" else [1]:
            for seed in args.seeds:
                row = {**run(kind, k, seed, data, test, args), "about": about()}
                print(json.dumps({key: v for key, v in row.items() if key not in ("curve", "about")}), flush=True)
                keep(args.output, row)


def keep(path: Path, row: dict) -> None:
    """Put a row into the JSON, in place of the one of the same network, k, seed and device."""

    def key(row: dict) -> tuple:
        return row["part"], row["k"], row["seed"], row["device"], row["threads"]

    old = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [*(r for r in old if key(r) != key(row)), row]
    what = "likelihoods of VAEs on dynamically binarised MNIST, nats per image"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"what": what, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
