"""Training speed, quality after equal time and the value of the ELBO, beside pythae's VAE, in one run.

    pip install --no-deps pythae==0.1.2
    python benchmarks/vae_vs_pythae.py --train_data_dir <folder with MNIST as parquet>

All sides train the same modules, 784-400-400-20 and back with a Bernoulli decoder, with torch.optim.Adam, one batch
size and images in memory. pythae gets the network as its encoder and decoder; the decoder ends in the sigmoid that its
cross entropy on probabilities asks for. Speed: images per second from step 10 to the last of a round, the sides in
turn, medians over the rounds; of processor seconds, which other programs of the machine take less part in, and of the
wall beside them. With OMP_NUM_THREADS=1 the two are equal on an idle machine.

"ours" is `latentia.training.loop.train` with `elbo_loss`: it shuffles, binarises anew at each step, checks the range of
the pixels and that loss and gradient are finite, logs, and keeps an average of the weights where "with an average" says
so. "pythae" is `BaseTrainer.train_step` on grey pixels, which are its convention and less work. "bare" is a loop in
plain PyTorch that shuffles and binarises as ours does, and no more. Both libraries run with what they come with: ours
with torch's fused Adam, as `runs.run.adamw` does, pythae with the plain one; "plain Adam" and "pythae, fused"
show what that makes.

Quality: pythae trains for about `--seconds` of the processor, in whole epochs, and ours for the time that it took, both
at a constant rate; the same function takes -ELBO on the test images, binarised once. There pythae binarises at each
access there, so that the objective is one. The weights are those at the end.

Equality: pythae's terms and ours of the same weights (200 steps of training), images and noise, in float64. Both sum
over pixels and over dimensions and take the mean over images for a Bernoulli decoder; ours binarises grey pixels, so
the images are binary. "saturated": a fresh network with all weights tripled, some of whose logits are beyond 37, where
1 - sigmoid is 0 in float64. There pythae's cross entropy counts 100 nats for a wrong pixel, and ours its logit.
"""

import argparse
import copy
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

import latentia
from latentia import VAE
from latentia.data import load_images
from latentia.functional.distributions import gaussian_kl, log_likelihood
from latentia.losses.variational import elbo_loss
from latentia.rng import Rng
from latentia.training.ema import EMA
from latentia.training.loop import Phase, learning_rate_schedule, train

os.environ["TQDM_DISABLE"] = "1"  # before pythae makes its bars: ours is off too
from pythae.data.datasets import BaseDataset, DatasetOutput
from pythae.models import VAE as PythaeVAE
from pythae.models import VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig

logging.disable(logging.INFO)
HERE = Path(__file__).resolve().parent
LATENT, RATE = 20, 1e-3


class Clock:
    """Notes when each step began, in processor seconds of the whole process and in those of the wall."""

    def __init__(self):
        self.times: list[tuple[float, float]] = []

    def tick(self) -> None:
        self.times.append((time.process_time(), time.perf_counter()))

    def seconds(self, skip: int = 0, kind: int = 0) -> float:
        return self.times[-1][kind] - self.times[skip][kind]

    def rate(self, batch: int, kind: int = 0) -> float:
        return batch * (len(self.times) - 11) / self.seconds(10, kind)


def network() -> VAE:
    torch.manual_seed(0)
    return VAE(hidden_sizes=(400, 400), latent_dim=LATENT, activation="relu")


class Encode(BaseEncoder):
    def __init__(self, vae: VAE, clock: Clock, centred: bool):
        super().__init__()
        self.mlp, self.posterior, self.clock, self.centred = vae.encoder_mlp, vae.posterior, clock, centred

    def forward(self, x: Tensor) -> ModelOutput:
        self.clock.tick()
        mean, log_variance = self.posterior(self.mlp(2 * x - 1 if self.centred else x)).chunk(2, 1)
        return ModelOutput(embedding=mean, log_covariance=log_variance)


class Decode(BaseDecoder):
    def __init__(self, vae: VAE):
        super().__init__()
        self.mlp = vae.decoder_mlp

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.mlp(z).unflatten(1, (1, 28, 28)).sigmoid())


def pythae_of(vae: VAE, clock: Clock, centred: bool = False) -> PythaeVAE:
    """pythae's VAE with our layers. Pixels in [0, 1] go in as they are, or brought to [-1, 1] as for ours."""
    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=LATENT, reconstruction_loss="bce")
    return PythaeVAE(config, Encode(vae, clock, centred), Decode(vae))


class Binarised(BaseDataset):
    """pythae's data set, each access black and white anew."""

    def __getitem__(self, index):
        return DatasetOutput(data=torch.bernoulli(self.data[index]), labels=self.labels[index])


class Sides:
    """Each method trains for some steps; returns the clock and the trained network."""

    def __init__(self, data, batch: int):
        self.data, self.batch = data, batch
        self.grey = data.images.float() / 255

    def ours(self, steps: int, compiled=False, average=False, fused=True):
        clock, vae, accelerator = Clock(), network(), Accelerator(cpu=True)
        optimizer = torch.optim.Adam(vae.parameters(), lr=RATE, fused=fused or None)
        prepared, optimizer = accelerator.prepare(torch.compile(vae) if compiled else vae, optimizer)

        def loss(batch, rng):
            clock.tick()
            return elbo_loss(prepared, batch, rng)

        rate = learning_rate_schedule("constant", 0, steps)
        phase = Phase("vae", loss, prepared, optimizer, rate, ema=EMA(vae) if average else None)
        with tempfile.TemporaryDirectory() as folder:
            train(
                accelerator, [phase], self.data, output_dir=folder, max_steps=steps, batch_size=self.batch,
                checkpoint_every=None, resume="none",
            )  # fmt: skip
        return clock, vae.eval()

    def pythae(self, steps: int, dynamic=False, fused=False):
        """Whole epochs; fewer steps than one has are an epoch of fewer images."""
        clock, vae = Clock(), network()
        n = len(self.grey)
        images = self.grey[: steps * self.batch]
        epochs = max(1, round(steps * self.batch / n))
        kind = Binarised if dynamic else BaseDataset
        options = {"optimizer_params": {"fused": True}} if fused else {}
        with tempfile.TemporaryDirectory() as folder:
            config = BaseTrainerConfig(
                output_dir=folder, per_device_train_batch_size=self.batch, num_epochs=epochs, learning_rate=RATE,
                no_cuda=True, seed=0, **options,
            )  # fmt: skip
            trainer = BaseTrainer(pythae_of(vae, clock, dynamic), kind(images, torch.zeros(len(images))), None, config)
            clock.times.clear()  # the trainer tries the model once
            trainer.prepare_training()
            trainer.callback_handler.on_train_begin(training_config=config, model_config=trainer.model_config)
            for epoch in range(1, epochs + 1):
                trainer.callback_handler.on_epoch_begin(
                    training_config=config, epoch=epoch, train_loader=trainer.train_loader, eval_loader=None
                )
                loss = trainer.train_step(epoch)
                trainer._schedulers_step(loss)
        return clock, vae.eval()

    def bare(self, steps: int):
        clock, vae = Clock(), network()
        optimizer, images = torch.optim.Adam(vae.parameters(), lr=RATE), self.data.images
        order = torch.randperm(len(images))
        for k in range(steps):
            clock.tick()
            x = images[order[k * self.batch : (k + 1) * self.batch]].float() / 255
            x = (torch.rand_like(x) < x).float()
            mean, log_variance = vae.posterior(vae.encoder_mlp(2 * x - 1)).chunk(2, 1)
            z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
            logits = vae.decoder_mlp(z)
            error = F.binary_cross_entropy_with_logits(logits, x.flatten(1), reduction="sum")
            kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum()
            loss = (error + kl) / len(x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
        return clock, vae


def speed(sides: Sides, rounds: int, steps: int) -> dict:
    ways = {
        "ours": sides.ours,
        "ours, plain Adam": partial(sides.ours, fused=False),
        "ours, compiled": partial(sides.ours, compiled=True),
        "ours, with an average": partial(sides.ours, average=True),
        "pythae": sides.pythae,
        "pythae, fused": partial(sides.pythae, fused=True),
        "bare": sides.bare,
    }
    sides.ours(20, compiled=True)  # compiles
    clocks: dict[str, list[Clock]] = {name: [] for name in ways}
    for k in range(rounds):
        for name, way in ways.items():
            clocks[name].append(way(steps)[0])
        print(f"round {k + 1}:", {n: round(c[-1].rate(sides.batch)) for n, c in clocks.items()}, flush=True)
    found = {name: [clock.rate(sides.batch) for clock in each] for name, each in clocks.items()}
    wall = {name: statistics.median(c.rate(sides.batch, 1) for c in each) for name, each in clocks.items()}

    def ratio(a: str, b: str) -> float:
        return statistics.median(x / y for x, y in zip(found[a], found[b]))

    pairs = [("ours", "pythae"), ("ours", "pythae, fused"), ("ours, plain Adam", "pythae"),
             ("ours, compiled", "pythae"), ("ours, with an average", "pythae"), ("ours", "bare")]  # fmt: skip
    eager, compiled = ratio("ours", "pythae"), ratio("ours, compiled", "pythae")
    return {
        "images per processor second": {n: {"median": statistics.median(r), "rounds": r} for n, r in found.items()},
        "images per second of the wall": wall, "ratios": {f"{a} / {b}": ratio(a, b) for a, b in pairs},
        "threshold, eager": 1.15, "eager holds": eager >= 1.15, "threshold, compiled": 1.3,
        "compiled holds": compiled >= 1.3, "batch": sides.batch, "steps of a round": steps,
    }  # fmt: skip


@torch.no_grad()
def negative_elbo(vae: VAE, x: Tensor) -> float:
    noise = torch.randn(len(x), LATENT, generator=torch.Generator().manual_seed(0))
    out = vae(x, noise)
    return float((gaussian_kl(out.mean, out.log_variance).sum(1) - log_likelihood("bernoulli", x, out.location)).mean())


def quality(sides: Sides, test: Tensor, seconds: float) -> dict:
    """pythae first, since it trains whole epochs; ours gets the time that it took, at the pace of a trial."""
    epoch = -(-len(sides.grey) // sides.batch)
    pace = sides.pythae(150, dynamic=True)[0].rate(sides.batch)
    theirs = sides.pythae(max(1, round(seconds * pace / len(sides.grey))) * epoch, dynamic=True)
    steps = int(theirs[0].seconds() * sides.ours(150)[0].rate(sides.batch) / sides.batch)
    result: dict = {}
    for name, (clock, vae) in {"pythae": theirs, "ours": sides.ours(steps)}.items():
        result[name] = {
            "-elbo": negative_elbo(vae, test), "steps": len(clock.times), "processor seconds": clock.seconds()
        }  # fmt: skip
        print(name, result[name], flush=True)
    return {**result, "holds": result["ours"]["-elbo"] <= result["pythae"]["-elbo"]}


@torch.no_grad()
def equality(sides: Sides, batches: int = 10) -> dict:
    """Beside it what another noise makes of it, so that it is seen that the comparison can fail."""
    with torch.enable_grad():
        vae = sides.ours(200)[1].double()
    tripled = network().double()
    for weight in tripled.parameters():
        weight.mul_(3)
    found = _differences(vae, sides, batches)
    holds = max(found[name] for name in ("reconstruction", "kl", "loss")) <= 1e-5
    saturated = _differences(tripled, sides, 1)
    return {"largest relative difference": found, "threshold": 1e-5, "holds": holds, "saturated": saturated}


def _differences(vae: VAE, sides: Sides, batches: int) -> dict[str, float]:
    batch, names = sides.batch, {"reconstruction": "recon_loss", "kl": "reg_loss", "loss": "loss"}
    worst = dict.fromkeys([*names, "loss, another noise", "largest logit"], 0.0)
    for k in range(batches):
        rng = Rng(0, k, batch, 0, batch)
        grey = sides.data.images[k * batch : (k + 1) * batch].double() / 127.5 - 1
        x = torch.where(rng.uniform("binarise", grey.shape[1:]) < (grey + 1) / 2, 1.0, -1.0).double()
        ours, noise = elbo_loss(vae, {"x": x}, rng), rng.normal("posterior", (LATENT,)).double()
        theirs, other = (_theirs(vae, x, eps) for eps in (noise, rng.normal("another", (LATENT,)).double()))
        pairs = {name: (ours[name], theirs[key]) for name, key in names.items()}
        pairs["loss, another noise"] = (ours["loss"], other["loss"])
        for name, (a, b) in pairs.items():
            worst[name] = max(worst[name], abs(float(a) / float(b) - 1))
        worst["largest logit"] = max(worst["largest logit"], float(vae(x, noise).location.abs().max()))
    return worst


def _theirs(vae: VAE, x: Tensor, noise: Tensor) -> ModelOutput:
    peer = pythae_of(copy.deepcopy(vae), Clock(), centred=True)
    peer._sample_gauss = lambda mean, std: (mean + noise * std, noise)
    return peer(DatasetOutput(data=(x + 1) / 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train_data_dir", required=True, help="MNIST as parquet, with a test split")
    parser.add_argument("--parts", nargs="+", choices=("equality", "speed", "quality"),
                        default=["equality", "speed", "quality"])  # fmt: skip
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=200, help="of each side in a round")
    parser.add_argument("--seconds", type=float, default=60.0, help="of training for the quality of each side")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "vae_vs_pythae.json")
    args = parser.parse_args()
    data = load_images(args.train_data_dir, split="train")
    sides = Sides(data, args.batch_size)
    parts = {
        "equality": lambda: equality(sides),
        "speed": lambda: speed(sides, args.rounds, args.steps),
        "quality": lambda: quality(sides, binary_test(args.train_data_dir), args.seconds),
    }
    git = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    about = {
        "command": " ".join(["python", "benchmarks/" + Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip(),
        "latentia": latentia.__version__, "version of pythae": version("pythae"), "torch": torch.__version__,
        "machine": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
    }  # fmt: skip
    result = json.loads(args.output.read_text()) if args.output.exists() else {}
    result["what"] = "VAE beside pythae's on MNIST"
    for part in args.parts:
        result[part] = {**parts[part](), **about, "load": os.getloadavg()[0]}
        print(part, json.dumps(result[part]), flush=True)
        args.output.parent.mkdir(exist_ok=True)
        args.output.write_text(json.dumps(result, indent=1) + "\n")


def binary_test(folder: str) -> Tensor:
    x = load_images(folder, split="test").images.float() / 127.5 - 1
    return torch.where(Rng(0, 0, len(x), 0, len(x)).uniform("test", x.shape[1:]) < (x + 1) / 2, 1.0, -1.0)


if __name__ == "__main__":
    main()
