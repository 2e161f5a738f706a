"""Functions and small objects that several test files use."""

import importlib.util
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import yaml
from children import EXAMPLES
from torch import nn

import latentia
from latentia.data.order import indices
from latentia.training.ema import EMA
from latentia.training.loop import Phase, Progress

# ------------------------------------------------------------ networks and pipelines


def perturbed(network: nn.Module) -> nn.Module:
    """Zero-initialised ends hide gradients and differences; move every weight off its start."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def quiet(pipe):
    """Switch the progress bar off."""
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(n: int) -> torch.Generator:
    return torch.Generator().manual_seed(n)


def pixels(images) -> list[bytes]:
    """The bytes of PIL images."""
    return [np.asarray(image).tobytes() for image in images]


def load_example(name: str) -> ModuleType:
    """Import `examples/name.py` afresh; tyro reads its source through `sys.modules`."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ------------------------------------------------------------ training


class Points:
    """Ten points of y = W x + b. Remembers which positions it was asked for."""

    def __init__(self, n: int = 10, fingerprint: str = "points"):
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        self.y = self.x @ torch.tensor([[2.0, -1.0], [0.5, 3.0]], dtype=torch.float64).T + 1.0
        self.fingerprint, self.asked, self.rows = fingerprint, [], []

    def batch(self, start, stop, *, seed, device):
        rows = indices(start, stop, len(self.x), seed)
        self.asked += range(start, stop)
        self.rows += rows.tolist()
        return {"x": self.x[rows], "y": self.y[rows]}


def linear(seed: int, inputs: int = 2, outputs: int = 2, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(inputs, outputs, dtype=torch.float64))


def regression(noise: float = 0.1, dropout: float = 0.2, lr: float = 0.05, **options) -> list[Phase]:
    """One phase whose loss uses every source of chance: the order, the rng of the step and the global generator."""
    net = linear(1, dropout=dropout)

    def loss(batch, rng):
        eps = rng.normal("noise", (2,)).double()
        return {"loss": ((net(batch["x"] + noise * eps) - batch["y"]) ** 2).mean(), "eps": eps.mean()}

    optimizer = torch.optim.AdamW(net.parameters(), lr=lr)
    return [Phase("net", loss, net, optimizer, ema=EMA(net, 0.9), **options)]


def held(folder: Path, step: int) -> dict[str, bytes]:
    """Everything that a checkpoint holds but its manifest."""
    path = folder / "checkpoints" / f"checkpoint-{step}"
    return {file.name: file.read_bytes() for file in sorted(path.iterdir()) if file.name != "manifest.json"}


def part_of(folder: Path, step: int, target: Path) -> Path:
    """The run as it stood after `step`."""
    shutil.copytree(folder / "checkpoints" / f"checkpoint-{step}", target / "checkpoints" / f"checkpoint-{step}")
    return target


def differences(a, b, path="run") -> list[str]:
    """Where two object graphs of a run differ: networks with all buffers, optimizers, averages, phases."""
    if isinstance(a, torch.Tensor):
        return [] if a.shape == b.shape and bool((a == b).all()) else [path]
    if isinstance(a, nn.Module):
        tensors = [{**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (a, b)]
        plain = [{k: v for k, v in vars(m).items() if isinstance(v, bool | int | float | str | list)} for m in (a, b)]
        return differences(*tensors, path) + differences(*plain, path)
    if isinstance(a, torch.optim.Optimizer):
        return differences(a.state_dict(), b.state_dict(), path)
    if isinstance(a, dict):
        if set(a) != set(b):
            return [f"{path}: {set(a) ^ set(b)}"]
        return [d for key in a for d in differences(a[key], b[key], f"{path}.{key}")]
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return [path]
        return [d for i, (x, y) in enumerate(zip(a, b)) for d in differences(x, y, f"{path}.{i}")]
    if isinstance(a, Phase | EMA | Progress):
        return differences(vars(a), vars(b), path)
    if callable(a):
        return []
    return [] if a == b else [path]


# ------------------------------------------------------------ model cards


NASTY = (
    "x\n---\nlicense: evil\n# H | `c` <img src=x onerror=alert(1)> [a](http://b) ![p](/etc/passwd) *b* & --- {{7*7}}"
)
SHA = "ab" * 32


def card(**changes):
    """A complete model card, some of its fields changed."""
    plain = {
        "name": "digits-ddpm",
        "pipeline_class": "DDPMPipeline",
        "family": "diffusion",
        "pipeline_tag": "unconditional-image-generation",
        "dataset": "someone/digits",
        "license": "apache-2.0",
        "recipe": {"learning_rate": 2e-4, "optim": {"name": "adam"}},
        "metrics": [
            {"name": "FID", "value": np.float64(3.25), "real": 1.5, "n": 1000, "extractor": "digits",
             "extractor_sha256": SHA, "split": "test"},
            {"name": "KID", "value": 0.01, "n": 1000},
        ],
        "hardware": "2 CPU cores",
        "minutes": 12.0,
        "seed": 7,
    }  # fmt: skip
    return latentia.model_card(**{**plain, **changes})


def front_matter(text: str) -> dict:
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)[1])
