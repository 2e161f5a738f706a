"""Inference in numbers: speed of EM, bias of hard EM, amortisation, alternating training, recurrent autoencoders.

    python benchmarks/inference.py --train_data_dir data/mnist

"speed": Gaussian mixtures by EM on 50 000 rows of 64 values drawn from 10 Gaussians, full covariances, beside
scikit-learn, from the same start with equally many iterations, in one thread and in two; seconds are the least of the
rounds. "apart": means of variance 1 a value; "overlapping": .04, so that most rows belong to several components.
"hard": variances and seconds of EM and hard EM on two overlapping Gaussians of variance 1.
"amortised": a VAE of 16 latents on MNIST, binarised once; seconds of the encoder for test images against an
optimisation of each posterior, and the amortisation gap of images that were and were not trained on.
"alternating": the same network trained as a whole and its encoder and decoder in turn; negative ELBO of test images.
"recurrent": a recurrent autoencoder on rows of MNIST, images cut at random in training; squared error of a pixel in
[-1, 1] of test images, of the mean image, and of an untrained network.
"patterns": recurrent autoencoders of 2 latents on arithmetic sequences of 10 numbers and on shuffled ones; squared
error of a number of new sequences.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from sklearn.mixture import GaussianMixture as Reference
from threadpoolctl import threadpool_limits
from torch import Tensor

from latentia import VAE, RecurrentAutoencoder, RecurrentAutoencoderPipeline
from latentia.data import load_images
from latentia.functional.masks import length_mask
from latentia.functional.rows import rows_of_images
from latentia.inference.amortisation import amortisation_gap, infer_latents
from latentia.inference.mixture import GaussianMixture, fit_mixture
from latentia.losses.reconstruction import autoencoder_loss
from latentia.losses.variational import elbo_loss
from latentia.rng import Rng
from latentia.training.alternating import alternating_phases
from latentia.training.loop import Phase, learning_rate_schedule, train

HERE = Path(__file__).resolve().parent
PARTS = ("speed", "hard", "amortised", "alternating", "recurrent", "patterns")
ROWS, VALUES, COMPONENTS = 50_000, 64, 10


def gaussians(spread: float, seed: int = 0) -> Tensor:
    """Rows of 10 Gaussians with random covariances, whose means have the standard deviation `spread` a value."""
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    means = spread * torch.randn(COMPONENTS, VALUES, **options)
    eye = torch.eye(VALUES, dtype=torch.float64)
    roots = 0.15 * torch.randn(COMPONENTS, VALUES, VALUES, **options) + 0.6 * eye
    parts = [torch.randn(ROWS // COMPONENTS, VALUES, **options) @ root.T + mean for root, mean in zip(roots, means)]
    x = torch.cat(parts)
    return x[torch.randperm(len(x), generator=generator)]


def timed(function: Callable, *args: Any, **options: Any) -> tuple[Any, float, float]:
    """The result, and seconds of the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    result = function(*args, **options)
    return result, time.perf_counter() - clock, time.process_time() - processor


def scikit_learn(x: Tensor, start: GaussianMixture, iterations: int) -> Any:
    """The mixture that scikit-learn reaches from the same start."""
    added = 1e-6 * float(x.var(0, correction=0).mean())  # as `fit_mixture` adds to each variance
    model = Reference(
        COMPONENTS, tol=0, reg_covar=added, max_iter=iterations, init_params="random_from_data",
        weights_init=start.weights.numpy(), means_init=start.means.numpy(),
        precisions_init=start.covariances.inverse().numpy(),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it did not converge
        return model.fit(x.numpy())


def speed(args: argparse.Namespace) -> dict:
    found: dict = {"rows": ROWS, "values": VALUES, "components": COMPONENTS, "iterations": args.iterations}
    for name, spread in (("apart", 1.0), ("overlapping", 0.2)):
        x = gaussians(spread)
        start = fit_mixture(x, COMPONENTS, max_iterations=1).model
        options = {"start": start, "tolerance": 0, "max_iterations": args.iterations}
        for threads in (1, 2):
            torch.set_num_threads(threads)
            times: dict[str, list] = {"ours": [], "scikit_learn": []}
            with threadpool_limits(threads):
                for _ in range(args.rounds):
                    fit, *taken = timed(fit_mixture, x, COMPONENTS, **options)
                    times["ours"].append(taken)
                    reference, *taken = timed(scikit_learn, x, start, fit.iterations)
                    times["scikit_learn"].append(taken)
            clock, processor = ({who: min(pair[i] for pair in pairs) for who, pairs in times.items()} for i in (0, 1))
            found[f"{name}, {threads} threads"] = {
                "iterations": fit.iterations,
                "log_likelihood": float(fit.bounds[-1]),
                "log_likelihood_scikit_learn": float(reference.score(x.numpy())),
                "seconds": {who: round(value, 3) for who, value in clock.items()},
                "times_faster": round(clock["scikit_learn"] / clock["ours"], 2),
                "processor_seconds": {who: round(value, 3) for who, value in processor.items()},
                "times_less_processor": round(processor["scikit_learn"] / processor["ours"], 2),
            }
            print(name, threads, found[f"{name}, {threads} threads"], flush=True)
    return found


def hard(args: argparse.Namespace) -> dict:
    generator = torch.Generator().manual_seed(0)
    shift = torch.tensor([[-1.2, 0.0], [1.2, 0.0]], dtype=torch.float64).repeat_interleave(10_000, 0)
    x = torch.randn(20_000, 2, generator=generator, dtype=torch.float64) + shift
    half, means = torch.full((2,), 0.5), torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    start = GaussianMixture(half, means, torch.ones(2, 1), "spherical")
    options = {"covariance": "spherical", "start": start, "tolerance": 1e-9, "max_iterations": 500}
    found = {}
    for method in ("em", "hard"):
        fit, clock, _ = timed(fit_mixture, x, 2, method=method, **options)
        found[method] = {
            "variance": round(float(fit.model.covariances.mean()), 4),
            "distance_of_means": round(float(fit.model.means[:, 0].diff().abs()), 4),
            "iterations": fit.iterations, "seconds": round(clock, 3),
        }  # fmt: skip
    return {"true": {"variance": 1.0, "distance_of_means": 2.4}, **found}


class Binarised:
    """Training images, binarised once, as the batches of a loop."""

    fingerprint = "binarised"

    def __init__(self, images: Tensor):
        self.x = images

    def batch(self, start: int, stop: int, *, seed: int, device) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed + start)
        return {"x": self.x[torch.randint(len(self.x), (stop - start,), generator=generator)]}


def binarised(folder: str, split: str, count: int) -> Tensor:
    x = load_images(folder, split=split, max_samples=count).images.float() / 127.5 - 1
    uniform = Rng(0, 0, len(x), 0, len(x)).uniform(split, x.shape[1:])
    return torch.where(uniform < (x + 1) / 2, 1.0, -1.0)


def trained(images: Tensor, steps: int, *, alternate: bool = False) -> VAE:
    torch.manual_seed(0)
    vae = VAE(latent_dim=16, hidden_sizes=(200,))

    def loss(batch, rng):
        return elbo_loss(vae, batch, rng)

    def optimizer(parameters):
        return torch.optim.Adam(parameters, 2e-3)

    options = {"learning_rate": learning_rate_schedule("cosine", 0, steps)}
    if alternate:
        phases = alternating_phases(vae, loss, optimizer, **options)
    else:
        phases = [Phase("vae", loss, vae, optimizer(vae.parameters()), **options)]
    with tempfile.TemporaryDirectory() as folder:
        train(
            Accelerator(cpu=True), phases, Binarised(images), output_dir=folder, max_steps=steps, batch_size=128,
            checkpoint_every=None,
        )  # fmt: skip
    return vae.eval()


@torch.no_grad()
def negative_elbo(vae: VAE, x: Tensor) -> float:
    parts = [
        elbo_loss(vae, {"x": part}, Rng(1, i, len(part), 0, len(part)))["nats"] for i, part in enumerate(x.split(1000))
    ]
    return round(float(torch.stack(parts).mean()), 3)


def amortised(args: argparse.Namespace) -> dict:
    images, test = binarised(args.train_data_dir, "train", 20_000), binarised(args.train_data_dir, "test", 1000)
    vae = trained(images, args.steps)
    found: dict = {"steps": args.steps, "negative_elbo": negative_elbo(vae, test)}
    n = args.images
    with torch.no_grad():
        vae.encode(test[:n])
        encoder = min(timed(vae.encode, test[:n])[1] for _ in range(5))
    _, optimised, _ = timed(infer_latents, vae, test[:n], steps=300)
    found |= {
        "images": n, "seconds_of_the_encoder": round(encoder, 5), "seconds_of_optimisations": round(optimised, 2),
        "times_faster": round(optimised / encoder),
    }  # fmt: skip
    for name, x in (("training images", images[:n]), ("test images", test[:n])):
        for covariance in ("diag", "full"):
            gap = amortisation_gap(vae, x, covariance=covariance, steps=300)
            error = gap.standard_error
            found[f"gap of {name}, {covariance}"] = [round(gap.nats, 3), None if error is None else round(error, 3)]
    return found


def alternating(args: argparse.Namespace) -> dict:
    images, test = binarised(args.train_data_dir, "train", 20_000), binarised(args.train_data_dir, "test", 5000)
    found = {}
    for name, alternate, steps in (
        ("joint", False, args.steps),
        ("alternating, equally many steps of each", True, args.steps),
        ("alternating, equally many passes", True, args.steps // 2),
    ):
        vae, took, _ = timed(trained, images, steps, alternate=alternate)
        found[name] = {"steps": steps, "negative_elbo": negative_elbo(vae, test), "seconds": round(took, 1)}
        print(name, found[name], flush=True)
    return found


def fit_sequences(network: RecurrentAutoencoder, batch: Callable[[int, Rng], dict], steps: int) -> None:
    """Train by Adam on batches of 128 sequences."""
    optimizer, rate = torch.optim.Adam(network.parameters(), 2e-3), learning_rate_schedule("cosine", 100, steps)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * rate(step)
        rng = Rng(0, 128 * step, 128, 0, 128)
        optimizer.zero_grad()
        autoencoder_loss(network, batch(128 * step, rng), rng)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 20.0)
        optimizer.step()


def recurrent(args: argparse.Namespace) -> dict:
    torch.manual_seed(0)
    data = load_images(args.train_data_dir, max_samples=20_000)
    test = load_images(args.train_data_dir, split="test", max_samples=2000).images.float() / 127.5 - 1
    seen = data.images[:2000].float() / 127.5 - 1
    mean = (data.images.float() / 127.5 - 1).mean(0)
    network = RecurrentAutoencoder(in_features=28, latent_dim=32, hidden_size=128)
    pipe = RecurrentAutoencoderPipeline(network)

    def error(images: Tensor, rows: int) -> float:
        """Over the rows that were read."""
        again = pipe.reconstruct(images, lengths=[rows] * len(images), output_type="latent")
        return round(float((again - images)[:, :, :rows].square().mean()), 4)

    def batch(position: int, rng: Rng) -> dict[str, Tensor]:
        images = data.batch(position, position + 128, seed=0)["x"]
        lengths = 7 + (rng.uniform("rows") * 22).long()  # 7 to 28
        return {"x": rows_of_images(images), "mask": length_mask(lengths, 28)}

    untrained = error(test, 28)
    _, took, _ = timed(fit_sequences, network, batch, args.recurrent_steps)
    found: dict = {"steps": args.recurrent_steps, "seconds": round(took, 1), "untrained": untrained}
    for rows in (28, 14, 7):
        best = float((test - mean)[:, :, :rows].square().mean())
        found[f"{rows} rows"] = {"error": error(test, rows), "of_the_mean_image": round(best, 4)}
    return {**found, "test_error_over_training_error": round(error(test, 28) / error(seen, 28), 3)}


def patterns(args: argparse.Namespace) -> dict:
    """Sequences that have a short description, and the same values in random order, through two latents."""

    def sequences(rng: Rng, shuffled: bool) -> dict[str, Tensor]:
        ends = rng.uniform("ends", (2,)) * 2 - 1
        x = ends[:, :1] + (ends[:, 1:] - ends[:, :1]) * torch.linspace(0, 1, 10)
        order = rng.uniform("order", (10,)).argsort(1)
        return {"x": (x.gather(1, order) if shuffled else x)[..., None]}

    found = {}
    for name, shuffled in (("arithmetic", False), ("shuffled", True)):
        torch.manual_seed(0)
        network = RecurrentAutoencoder(in_features=1, latent_dim=2, hidden_size=64)
        fit_sequences(network, lambda position, rng, shuffled=shuffled: sequences(rng, shuffled), args.recurrent_steps)
        with torch.no_grad():
            values = autoencoder_loss(network, sequences(Rng(1, 0, 2000, 0, 2000), shuffled), Rng(1, 0, 2000, 0, 2000))
        found[name] = float(f"{float(values['per_value']):.3g}")
    return {**found, "ratio": round(found["shuffled"] / found["arithmetic"], 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_data_dir", default="data/mnist", help="MNIST as parquet")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--rounds", type=int, default=3, help="of the timings of mixtures")
    parser.add_argument("--iterations", type=int, default=8, help="of EM")
    parser.add_argument("--steps", type=int, default=3000, help="of each VAE")
    parser.add_argument("--recurrent_steps", type=int, default=1500)
    parser.add_argument("--images", type=int, default=200, help="whose posteriors are optimised")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "inference.json")
    args = parser.parse_args()
    git = ["git", "-C", str(HERE), "rev-parse", "HEAD"]
    machine = {
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip(),
        "command": shlex.join(["python", "benchmarks/inference.py", *sys.argv[1:]]),
        "machine": platform.processor() or platform.machine(), "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("torch", "scikit-learn", "numpy")},
    }  # fmt: skip
    results = json.loads(args.output.read_text()) if args.output.exists() else {}
    for part in args.parts:
        started = time.perf_counter()
        threads = torch.get_num_threads()
        found = globals()[part](args)
        torch.set_num_threads(threads)
        results[part] = {**machine, "part_seconds": round(time.perf_counter() - started, 1), "results": found}
        print(json.dumps({part: found}, indent=1), flush=True)
        args.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
