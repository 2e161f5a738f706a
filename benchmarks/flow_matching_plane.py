"""Flow matching in the plane with independent and optimal-transport couplings: W2, path energy and likelihood.

    python benchmarks/flow_matching_plane.py

Four pairs of distributions, two couplings, three seeds. Published values are those of table 4 of ExFM (Ryzhakov et al.,
2024, 2402.03232) for I-CFM and OT-CFM. The points of 8gaussians and moons have the scale of the torchcfm package; those
of 2spirals are the house's own, so only the order of their rows compares. W2 is exact, between 2000 generated and 2000
true points; that of two sets of true points stands beside it. The path energy is E int |v|^2 dt along the learnt ODE;
normalised, |energy - W2^2| / W2^2 with W2 between 2000 points of the source and of the target.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import tempfile
import time
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from latentia.data.plane import PLANES, Plane, PlaneData, gaussian_mixture
from latentia.evaluation import wasserstein2
from latentia.functional.continuous_flow import flow_log_density
from latentia.functional.ode import solve_fixed
from latentia.losses.flow_matching import flow_matching_loss
from latentia.training.ema import EMA
from latentia.training.loop import Phase, learning_rate_schedule, train

HERE = Path(__file__).resolve().parent
POINTS = 2000
CIRCLE = [[math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)] for k in range(8)]


def moons(u, e):
    import numpy as np

    a, inner = math.pi * u[:, 1], u[:, 0] < 0.5
    x, y = np.where(inner, 1 - np.cos(a), np.cos(a)), np.where(inner, 0.5 - np.sin(a), np.sin(a))
    return 3 * (np.stack([x, y], 1) + 0.2 * u[:, 2:3]) - 1


SHAPES = {
    "N": gaussian_mixture([[0.0, 0.0]], 1.0, "N"),
    "8gaussians": gaussian_mixture([[5 * x, 5 * y] for x, y in CIRCLE], 0.1**0.5, "8gaussians of radius 5"),
    "moons": Plane("moons of width 9", moons),
    "2spirals": PLANES["2spirals"],
}
# (source, target): W2 of I-CFM and OT-CFM and its error, normalised path energy of both.
PUBLISHED = {
    ("N", "moons"): ((0.522, 0.015), (0.427, 0.038), 0.328, 0.065),
    ("N", "8gaussians"): ((0.647, 0.078), (0.528, 0.053), 0.209, 0.031),
    ("moons", "8gaussians"): ((0.966, 0.21), (0.569, 0.018), 0.945, 0.074),
    ("N", "2spirals"): ((1.662, 0.067), (1.322, 0.052), 0.098, 0.031),
}


class Pairs(PlaneData):
    """Points of the target, and of the source if that is not N(0, I), which the loss draws itself."""

    def __init__(self, source: str, target: str):
        super().__init__(SHAPES[target])
        self.source = None if source == "N" else SHAPES[source]
        self.fingerprint = f"{self.fingerprint}-{source}"

    def batch(self, start: int, stop: int, *, seed: int = 0, device: Any = "cpu") -> dict[str, Any]:
        found = super().batch(start, stop, seed=seed, device=device)
        if self.source is not None:
            found["source"] = self.source.points(start, stop, seed, "source").to(device)
        return found


class Velocity(nn.Module):
    """A perceptron of a point and its time; called as the loss calls a UNet2D, with `num_train_timesteps=1`."""

    def __init__(self, width: int = 64):
        super().__init__()
        sizes, layers = (3, width, width, width), []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.SELU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, x: Tensor, t: Tensor) -> Any:
        return argparse.Namespace(sample=self.velocity(t, x))

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        return self.layers(torch.cat([x, t[:, None]], 1))


def trained(source: str, target: str, coupled: bool, seed: int, args: argparse.Namespace) -> Velocity:
    torch.manual_seed(seed)
    accelerator, network = Accelerator(cpu=True), Velocity()
    ema = EMA(network, decay=0.999)
    network, optimizer = accelerator.prepare(network, torch.optim.Adam(network.parameters(), lr=args.learning_rate))

    def loss(batch, rng):
        options = {"num_train_timesteps": 1, "time_sampling": "uniform"}
        return flow_matching_loss(network, batch, rng, coupling_size=args.batch if coupled else None, **options)

    schedule = learning_rate_schedule("cosine", 100, args.steps)
    phase = Phase("velocity", loss, network, optimizer, schedule, ema=ema)
    with tempfile.TemporaryDirectory() as folder:
        train(
            accelerator, [phase], Pairs(source, target), output_dir=folder, max_steps=args.steps, batch_size=args.batch,
            seed=seed, checkpoint_every=None, resume="none", log_every=args.steps,
        )  # fmt: skip
    return ema.module


def ends(source: str, target: str, seed: int) -> tuple[Tensor, Tensor]:
    """Held-out points of both distributions."""
    return SHAPES[source].sample(POINTS, 100 + seed), SHAPES[target].sample(POINTS, 200 + seed)


@cache
def least_energy(source: str, target: str, seed: int) -> float:
    """W2^2 of the two distributions: the energy of the shortest paths between them."""
    return wasserstein2(*ends(source, target, seed)) ** 2


@torch.no_grad()
def measured(network: Velocity, source: str, target: str, seed: int) -> dict[str, float]:
    start, real = ends(source, target, seed)

    def field(t: Tensor, states: Tensor) -> Tensor:  # a point, and the energy of its path so far
        v = network.velocity(t, states[:, :2])
        return torch.cat([v, -v.square().sum(1, keepdim=True)], 1)

    states = solve_fixed(field, torch.cat([start, torch.zeros(POINTS, 1)], 1), 1.0, 0.0, 100)
    energy, least = float(states[:, 2].mean()), least_energy(source, target, seed)
    found = {"w2": wasserstein2(states[:, :2], real), "path_energy": energy, "w2_squared_of_ends": least}
    found["normalised_path_energy"] = abs(energy - least) / least
    plane = SHAPES[target]
    if source == "N" and plane.centres is not None:
        each = flow_log_density(network.velocity, real, tolerance=1e-5).log_density
        normal = torch.distributions.Normal(plane.centres, plane.sigma)
        true = normal.log_prob(real[:, None].double()).sum(2).logsumexp(1) - math.log(len(plane.centres))
        found |= {"nats": float(each.mean()), "true_nats": float(true.mean())}
    return found


def spread(values: list[float]) -> dict[str, float]:
    return {"mean": float(f"{statistics.mean(values):.4g}"), "sd": float(f"{statistics.stdev(values):.2g}")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=128, help="points of a step, which are coupled with each other")
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--pairs", nargs="+", default=["-".join(pair) for pair in PUBLISHED], help="not given: all")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "flow_matching_plane.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    wall, cpu = time.perf_counter(), time.process_time()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout.strip()
    rows = {}
    for pair, (independent, optimal, energy, least) in PUBLISHED.items():
        source, target = pair
        if "-".join(pair) not in args.pairs:
            continue
        real = [
            wasserstein2(*(SHAPES[target].sample(POINTS, 300 + 2 * i + k) for k in (0, 1))) for i in range(args.seeds)
        ]
        row = {"w2_of_true_points": spread(real)}
        for coupled, (w2, error), npe in ((False, independent, energy), (True, optimal, least)):
            began = time.process_time()
            found = [measured(trained(*pair, coupled, seed, args), *pair, seed) for seed in range(args.seeds)]
            values = {key: spread([one[key] for one in found]) for key in found[0]}
            published = {"w2": w2, "w2_error": error, "normalised_path_energy": npe}
            seconds = round((time.process_time() - began) / args.seeds, 1)
            name = "optimal transport" if coupled else "independent"
            row[name] = {**values, "published": published, "cpu_seconds_of_a_run": seconds}
            text = ", ".join(f"{key} {one['mean']} ± {one['sd']}" for key, one in values.items())
            print(f"{source} -> {target}, {name}: {text} (published {w2} ± {error}, {npe}; {seconds} s)", flush=True)
        rows[f"{source} -> {target}"] = row
    result = {
        "what": "flow matching in the plane with independent and optimal-transport couplings",
        "command": f"python benchmarks/flow_matching_plane.py --steps {args.steps} --batch {args.batch}",
        "commit": commit,
        "machine": f"one of {os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("torch", "scipy", "latentia")},
        "pairs": rows,
        "cpu_seconds": round(time.process_time() - cpu),
        "wall_seconds": round(time.perf_counter() - wall),
    }
    args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
