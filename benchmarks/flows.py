"""Normalizing flows: densities of the plane, bits per dimension of MNIST, speed beside zuko and normflows, Flow-GAN.

    pip install --no-deps zuko==1.6.0 normflows==1.7.3
    python benchmarks/flows.py --parts plane speed stability
    python benchmarks/flows.py --parts images flow_gan --train_data_dir <folder with MNIST as parquet>

`plane`: mean log-density of 10 000 new points under the recipe of `latentia train flow_plane`, beside one Gaussian, a
mixture of ten, and the density of the data where it has a closed form. `images`: `latentia train flow` for `--steps`
of each architecture, then the density of all test images under uniform dequantisation. `speed`: log_prob and samples of
1024 points, ours over the faster of the two libraries, with networks of equal sizes, each the best of several rounds in
turn. `stability`: ten seeds of Glow on the digits at the default rate and at three times it. `flow_gan`: one network
trained by likelihood, adversarially and by both, on MNIST; `flow_gan_weights`: the weights of the likelihood that were
tried on a held-out fifth of the digits. `overhead`: processor time of the training loop, its start and end included,
over that of a bare one, in turns: the same RealNVP of the digits, batches and optimizer. Each part replaces its own
rows of the result alone.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from sklearn.mixture import GaussianMixture
from torch import Tensor

from latentia import FlowPipeline, NormalizingFlow
from latentia.data import load_images
from latentia.data.plane import PLANES
from latentia.evaluation import bits_per_dimension, dequantise, load_extractor, predict
from latentia.functional.flows import dequantize
from latentia.functional.pixels import from_uint8
from latentia.losses.likelihood import flow_loss
from latentia.rng import Rng
from latentia.training.loop import Phase
from latentia.training.loop import train as fit

HERE = Path(__file__).resolve().parent
SHAPES = ["moons", "circles", "2spirals", "checkerboard", "8gaussians", "ring", "grid"]
PARTS = ("plane", "images", "speed", "stability", "flow_gan", "flow_gan_weights", "overhead")


def head() -> str:
    return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout.strip()


def train(kind: str, folder: Path, *flags: str) -> float:
    """Run a training command and return the processor seconds that it took, start and export included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "latentia", "train", kind, "--output_dir", str(folder), *flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def plane(args: argparse.Namespace) -> dict[str, Any]:
    rows: dict[str, dict[str, Any]] = {}
    for name in args.planes:
        shape = PLANES[name]
        points = shape.sample(10_000, 0).double()
        fit = shape.sample(10_000, 1).double().numpy()
        row = {
            f"mixture of {k}": float(GaussianMixture(k, random_state=0, n_init=3).fit(fit).score(points.numpy()))
            for k in (1, 10)
        }
        for architecture in ("spline", "realnvp", "maf"):
            folder = args.folder / f"plane-{name}-{architecture}"
            seconds = train("flow_plane", folder, "--plane", name, "--architecture", architecture)
            found = json.loads((folder / "run_summary.json").read_text())
            row[architecture] = found["log_likelihood"]
            row[f"{architecture}, processor seconds"] = round(seconds, 1)
        if shape.centres is not None:
            row["density of the data"] = float(shape.log_prob(points).mean())
        rows[name] = {key: round(value, 4) for key, value in row.items()} | {"commit": head()}
        print(name, rows[name], flush=True)
    return rows


def test_bits(pipe: FlowPipeline, folder: str) -> tuple[float, float]:
    """Bits per dimension of all test images, and the standard error over images."""
    pixels = dequantise(load_images(folder, split="test").images, seed=0)
    nats = torch.cat([pipe.log_likelihood(part) for part in pixels.values.split(500)])
    bits = bits_per_dimension(nats, pixels.values[0].numel())
    return float(bits.mean()), float(bits.std() / len(bits) ** 0.5)


def images(args: argparse.Namespace) -> dict[str, Any]:
    rows = {}
    for architecture, steps in zip(args.architectures, args.steps):
        folder = args.folder / f"images-{architecture}"
        flags = ["--architecture", architecture, "--max_train_steps", str(steps), "--train_data_dir"]
        seconds = train("flow", folder, *flags, args.train_data_dir, "--eval_num_samples", "0")
        pipe = FlowPipeline.from_pretrained(folder)
        bits, error = test_bits(pipe, args.train_data_dir)
        parameters = sum(p.numel() for p in pipe.flow.parameters())
        rows[architecture] = {
            "bits per dimension": round(bits, 4), "standard error": round(error, 4), "steps": steps,
            "processor minutes": round(seconds / 60, 1), "parameters": parameters,
            "commit": head(),
        }  # fmt: skip
        print(architecture, rows[architecture], flush=True)
    return rows


def speed(args: argparse.Namespace) -> dict[str, Any]:
    """Ratios of times: theirs over ours, of the faster of the two."""
    import normflows
    import zuko

    dim, layers, hidden, bins, n = 2, 8, (64, 64), 8, 1024
    x = torch.randn(n, dim)
    rows = {}
    for name, architecture in (("spline", "spline"), ("realnvp", "realnvp")):
        flow = NormalizingFlow(None, dim, architecture, num_layers=layers, hidden_sizes=hidden, bins=bins).eval()
        options = {"features": dim, "transforms": layers, "hidden_features": hidden}
        if name == "spline":
            theirs = zuko.flows.NSF(**options, bins=bins, passes=2)
            blocks = [
                part
                for _ in range(layers)
                for part in (
                    normflows.flows.CoupledRationalQuadraticSpline(dim, len(hidden), hidden[0], num_bins=bins),
                    normflows.flows.LULinearPermute(dim),
                )
            ]
        else:
            theirs = zuko.flows.NICE(**options)
            blocks = []
            for _ in range(layers):
                net = normflows.nets.MLP([dim // 2, *hidden, dim], init_zeros=True)
                blocks += [normflows.flows.AffineCouplingBlock(net), normflows.flows.LULinearPermute(dim)]
        other = normflows.NormalizingFlow(normflows.distributions.DiagGaussian(dim, trainable=False), blocks)
        z = torch.randn(n, dim)
        calls: dict[str, dict[str, Callable[[], Any]]] = {
            "log_prob": {
                "latentia": lambda flow=flow: flow.log_prob(x),
                "zuko": lambda theirs=theirs: theirs().log_prob(x),
                "normflows": lambda other=other: other.log_prob(x),
            },
            "sample": {
                "latentia": lambda flow=flow, z=z: flow.decode(z),
                "zuko": lambda theirs=theirs: theirs().sample((n,)),
                "normflows": lambda other=other: other.sample(n),
            },
            "training step": {
                "latentia": lambda flow=flow: step(flow, flow.log_prob),
                "zuko": lambda theirs=theirs: step(theirs, lambda x: theirs().log_prob(x)),
                "normflows": lambda other=other: step(other, other.log_prob),
            },
        }

        def step(module: torch.nn.Module, log_prob: Callable[[Tensor], Tensor]) -> None:
            module.zero_grad()
            with torch.enable_grad():
                (-log_prob(x).mean()).backward()

        for what, each in calls.items():
            best = dict.fromkeys(each, float("inf"))
            with torch.no_grad():
                for _ in range(args.rounds):
                    for library, call in each.items():
                        started = time.perf_counter()
                        call()
                        best[library] = min(best[library], time.perf_counter() - started)
            faster = min(best["zuko"], best["normflows"])
            row = {f"{library} ms": round(1000 * seconds, 3) for library, seconds in best.items()}
            rows[f"{name}, {what}"] = row | {"faster of the two over ours": round(faster / best["latentia"], 2)}
            print(f"{name}, {what}", rows[f"{name}, {what}"], flush=True)
    return rows


def stability(args: argparse.Namespace) -> dict[str, Any]:
    rows = {}
    for factor in (1, 3):
        finals = []
        for seed in range(10):
            folder = args.folder / f"glow-{factor}-{seed}"
            flags = ["--seed", str(seed), "--learning_rate", str(2e-3 * factor), "--max_train_steps", "300"]
            train("flow", folder, "--dataset_name", "digits", "--eval_num_samples", "0", *flags)
            lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            finals.append(next(line["flow/bits_per_dim"] for line in reversed(lines) if "flow/bits_per_dim" in line))
        rows[f"learning rate x {factor}"] = {"finished": len(finals), "bits per dimension": finals}
        print(factor, finals, flush=True)
    return rows


def scores_of(folder: Path, images: Tensor, name: str) -> dict[str, Any]:
    """Negative log-likelihood of images, dequantised, and Inception scores of 2000 samples and of 2000 of them."""
    pipe = FlowPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    nats = -torch.cat([pipe.log_likelihood(x) for x in dequantise(images, seed=0).values.split(500)])
    samples = pipe(2000, generator=torch.Generator().manual_seed(0), output_type="latent").images.clamp(-1, 1)
    scores = {}
    for key, x in (("", samples), (" of real", from_uint8(images[:2000]))):
        p = predict(x.split(500), load_extractor(name)).logits.double().softmax(1)
        divergence = (p * (p.log() - p.mean(0, keepdim=True).log())).sum(1)
        scores[f"inception score{key}"] = round(float(divergence.mean().exp()), 3)
    return {"nats per image": round(nats.mean().item(), 2), **scores, "commit": head()}


def weighted(args: argparse.Namespace, weights: list[str], images: Tensor, name: str, *data: str) -> dict[str, Any]:
    """A row for each weight of the likelihood; "none": by likelihood alone."""
    rows = {}
    for weight in weights:
        folder = args.folder / f"{name}-weight-{weight}"
        flags = [] if weight == "none" else ["--likelihood_weight", weight]
        options = ["--architecture", args.flow_gan_architecture, "--eval_num_samples", "0"]
        seconds = train("flow", folder, *options, *data, *flags)
        row = {"none": "likelihood", "0": "adversarial"}.get(weight, f"weight {weight}")
        rows[row] = scores_of(folder, images, name) | {"processor minutes": round(seconds / 60, 1)}
        print(row, rows[row], flush=True)
    return rows


def flow_gan_weights(args: argparse.Namespace) -> dict[str, Any]:
    held_out = load_images("digits", split="train[80%:]").images
    data = ("--dataset_name", "digits", "--split", "train[:80%]", "--max_train_steps", "400")
    return weighted(args, ["none", "3", "10", "30"], held_out, "digits", *data)


def flow_gan(args: argparse.Namespace) -> dict[str, Any]:
    test = load_images(args.train_data_dir, split="test").images
    data = ("--train_data_dir", args.train_data_dir, "--max_train_steps", str(args.flow_gan_steps))
    return weighted(args, args.flow_gan_weights, test, "mnist", *data)


def overhead(args: argparse.Namespace) -> dict[str, Any]:
    """Medians over rounds, of processor time, which other work on the machine does not enter."""
    steps, batch = 100, 64
    data = load_images("digits")

    def phase() -> Phase:
        torch.manual_seed(0)
        flow = NormalizingFlow(sample_size=8, num_layers=8, hidden_sizes=(64, 64), num_stages=2)
        flow.initialize(dequantize(data.batch(0, 256)["x"]))
        optimizer = torch.optim.Adam(flow.parameters(), 1e-3)
        return Phase("flow", lambda x, rng: flow_loss(flow, x, rng), flow, optimizer, max_grad_norm=50.0)

    def bare() -> float:
        made = phase()
        parameters = list(made.trains.parameters())
        made.trains.train()
        started = time.process_time()
        for k in range(0, steps * batch, batch):
            made.loss(data.batch(k, k + batch), Rng(0, k, batch, 0, batch))["loss"].backward()
            torch.nn.utils.clip_grad_norm_(parameters, 50.0)
            made.optimizer.step()
            made.optimizer.zero_grad()
        return (time.process_time() - started) / steps

    def ours() -> float:
        made, accelerator = phase(), Accelerator(cpu=True)
        folder = args.folder / "overhead"
        folder.mkdir(parents=True, exist_ok=True)
        options = {"output_dir": folder, "max_steps": steps, "batch_size": batch, "checkpoint_every": None}
        started = time.process_time()
        fit(accelerator, [made], data, resume="none", **options)
        return (time.process_time() - started) / steps

    times: dict[str, list[float]] = {"bare": [], "latentia": []}
    for k in range(args.overhead_rounds):
        for name, run in (("bare", bare), ("latentia", ours))[:: 1 if k % 2 else -1]:
            times[name].append(1000 * run())
    middle = {name: statistics.median(values) for name, values in times.items()}
    rows = {f"{name} ms per step": round(value, 2) for name, value in middle.items()}
    rows["overhead"] = round(middle["latentia"] / middle["bare"] - 1, 4)
    print(rows, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["plane", "speed", "stability"])
    parser.add_argument("--train_data_dir", help="MNIST as parquet, with a test split")
    parser.add_argument("--planes", nargs="+", choices=PLANES, default=SHAPES, help="of the part plane")
    parser.add_argument("--architectures", nargs="+", default=["realnvp", "glow", "spline"])
    parser.add_argument("--steps", nargs="+", type=int, default=[4000, 3500, 2000], help="of each architecture")
    parser.add_argument("--flow_gan_architecture", default="nice")
    parser.add_argument("--flow_gan_steps", type=int, default=1500)
    parser.add_argument("--flow_gan_weights", nargs="+", default=["none", "0", "1", "30"], help="of the likelihood")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--overhead_rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, default=Path("outputs/flows"))
    parser.add_argument("--output", type=Path, default=HERE / "results" / "flows.json")
    args = parser.parse_args()
    if {"images", "flow_gan"} & {*args.parts} and not args.train_data_dir:
        parser.error("the parts images and flow_gan need --train_data_dir.")
    found = json.loads(args.output.read_text()) if args.output.exists() else {}
    for part in args.parts:
        rows = globals()[part](args)
        given = f" --train_data_dir {Path(args.train_data_dir).name}" if args.train_data_dir else ""
        found[part] = {
            "rows": found.get(part, {}).get("rows", {}) | rows if part in ("plane", "images", "flow_gan") else rows,
            "command": f"python benchmarks/flows.py --parts {part}{given}",
            "commit": head(),
            "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
            "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in ("torch", "latentia", "zuko", "normflows")},
        }
        args.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
