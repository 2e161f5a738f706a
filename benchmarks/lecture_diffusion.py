"""What an introductory lecture says of diffusion models and only trained networks can show, in a few minutes on a CPU.

    python benchmarks/lecture_diffusion.py

Two multilayer perceptrons learn a 1-D mixture and a 2-D ring (as pictures of one pixel), five small UNet2D learn
scikit-learn's 8 x 8 digits, all through `latentia.training.loop.train`. Each row of the table has its value, what it is
compared with, and the threshold that was set before; a row that misses it says so. Distances W1 are between n = 10,000
samples and as many new points of the data (in 2-D 1000 and 1000, matched exactly), averaged over ten such sets; the
floor is what true samples get.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import diffusers
import numpy as np
import torch
from accelerate import Accelerator
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config
from scipy.optimize import linear_sum_assignment
from scipy.stats import chisquare, linregress
from torch import Tensor, nn

import latentia
from latentia.data import load_images
from latentia.evaluation import load_extractor
from latentia.losses.diffusion import diffusion_loss
from latentia.losses.times import sample_timesteps
from latentia.models.classifier import DigitClassifier
from latentia.models.layers.conditioning import sinusoidal_embedding
from latentia.models.unet import UNet2DOutput
from latentia.rng import Rng
from latentia.training.ema import EMA
from latentia.training.loop import Hook, Phase, learning_rate_schedule, train

HERE = Path(__file__).resolve().parent
TOY_NOISE = {"beta_schedule": "linear", "clip_sample": False}
DIGIT_NOISE = {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing"}
SOLVERS = ("DPMSolverMultistep", "UniPCMultistep", "EulerDiscrete")
SOLVER_STEPS = (20, 50, 100)  # the last is judged
GUIDANCE = (0.0, 0.5, 1.0, 2.0, 4.0)
PARTS = ("toys", "digits", "guidance", "noise_level")


# ------------------------------------------------------------ data


class Mixture:
    """An endless stream of points of a mixture of Gaussians, each as a picture of one pixel with D channels."""

    def __init__(self, name: str, weight: list[float], mean: list[list[float]], deviation: list[float]):
        self.fingerprint = name
        self.weight, self.mean, self.deviation = torch.tensor(weight), torch.tensor(mean), torch.tensor(deviation)
        self.edges = self.weight.cumsum(0)

    def batch(self, start: int, stop: int, *, seed: int = 0, device="cpu") -> dict[str, Tensor]:
        rng = Rng(seed, start, stop - start, 0, stop - start, device)
        component = torch.searchsorted(self.edges, rng.uniform("component")).clamp(max=len(self.edges) - 1)
        spread = self.deviation[component, None] * rng.normal("spread", self.mean.shape[1:])
        return {"x": (self.mean[component] + spread)[..., None, None]}

    def points(self, n: int, seed: int) -> Tensor:
        """n points (n, D) that no training sees."""
        return self.batch(0, n, seed=10_000 + seed)["x"].flatten(1)

    def noise(self, x: Tensor, alpha_bar: Tensor) -> Tensor:
        """E[eps | x_t], what a perfect network predicts: eps = -sqrt(1 - alpha_bar) d/dx log q(x_t)."""
        z = x.flatten(1)[:, None] - alpha_bar.sqrt() * self.mean  # (B, K, D)
        variance = alpha_bar * self.deviation**2 + 1 - alpha_bar
        log_density = self.weight.log() - (z.square().sum(2) / variance + z.shape[2] * variance.log()) / 2
        eps = (log_density.softmax(1)[..., None] * z / variance[:, None]).sum(1)
        return ((1 - alpha_bar).sqrt() * eps).view_as(x)


LINE = Mixture("line", [0.2, 0.3, 0.35, 0.15], [[1.5], [-0.216], [0.45], [-1.875]], [0.3, 0.15, 0.525, 0.075])
ANGLES = [2 * math.pi * k / 8 for k in range(8)]
RING = Mixture("ring", [1 / 8] * 8, [[1.5 * math.cos(a), 1.5 * math.sin(a)] for a in ANGLES], [0.1] * 8)


def wasserstein(a: Tensor, b: Tensor) -> float:
    """W1 of two samples of equal size, exactly: by sorting in 1-D, by the best assignment of 1000 points else."""
    if a.shape[1] == 1:
        return float((a.flatten().sort().values - b.flatten().sort().values).abs().mean())
    cost = torch.cdist(a[:1000].double(), b[:1000].double()).numpy()
    return float(cost[linear_sum_assignment(cost)].mean())


def distance(samples: Tensor, data: Mixture, sets: int = 10) -> float:
    """The mean W1 to ten new data sets; for D > 1 each is compared with another thousand of the samples."""
    n, values = len(samples), []
    for i in range(sets):
        part = samples if samples.shape[1] == 1 else samples.roll(-1000 * i, 0)
        values.append(wasserstein(part, data.points(n, i)))
    return float(np.mean(values))


def floor(data: Mixture, n: int) -> tuple[float, float]:
    """Mean and largest W1 of ten pairs of true samples."""
    values = [wasserstein(data.points(n, 100 + i), data.points(n, i)) for i in range(10)]
    return float(np.mean(values)), max(values)


# ------------------------------------------------------------ networks and their training


class PointNetwork(latentia.ModelMixin, ConfigMixin):
    """A multilayer perceptron with the interface of UNet2D, for pictures of one pixel (B, in_channels, 1, 1)."""

    @register_to_config
    def __init__(self, in_channels: int, width: int = 96, sample_size: int = 1):
        super().__init__()
        self.point = nn.Linear(in_channels, width)
        self.time = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.hidden = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.out = nn.Linear(width, in_channels)

    def forward(self, sample: Tensor, timestep: Tensor) -> UNet2DOutput:
        x, t = sample.flatten(1), torch.as_tensor(timestep).reshape(-1)
        x = self.out(self.hidden(self.point(x) + self.time(sinusoidal_embedding(t, 32))))
        return UNet2DOutput(sample=x.view_as(sample))


def point_network(dimension: int) -> PointNetwork:
    torch.manual_seed(0)
    return PointNetwork(dimension)


def digit_network(**config) -> latentia.UNet2D:
    torch.manual_seed(0)
    network = latentia.UNet2D(
        sample_size=8,
        in_channels=1,
        patch_size=2,
        block_out_channels=(32, 64),
        layers_per_block=1,
        attention_stages=(False, False),
        **config,
    )
    return network.to(memory_format=torch.channels_last)


def fit(
    unet, noise: dict, data, steps: int, batch_size: int, rate: float, view: Callable = lambda unet: unet, hook=None
) -> latentia.UNet2D:
    """Train with `train`; the loss sees the network through `view`. Returns the average of the weights."""
    accelerator, scheduler = Accelerator(cpu=True), latentia.DDPMScheduler(**noise)
    ema = EMA(unet)
    network, optimizer = accelerator.prepare(unet, torch.optim.AdamW(unet.parameters(), lr=rate, betas=(0.9, 0.99)))
    phase = Phase(
        name="unet",
        loss=lambda batch, rng: diffusion_loss(view(network), scheduler, batch, rng),
        trains=network,
        optimizer=optimizer,
        learning_rate=learning_rate_schedule("cosine", 50, steps),
        max_grad_norm=1.0,
        ema=ema,
    )
    hooks = [Hook(max(steps // 5, 1), lambda progress: hook(progress, ema.module))] if hook else []
    with tempfile.TemporaryDirectory() as folder:
        train(
            accelerator, [phase], data, output_dir=folder, max_steps=steps, batch_size=batch_size, hooks=hooks,
            checkpoint_every=None, resume="none",
        )  # fmt: skip
    return ema.module


class Timeless:
    """A network that is always told the same time."""

    def __init__(self, unet):
        self.unet, self.config = unet, unet.config

    def __call__(self, x: Tensor, t: Tensor, **condition):
        return self.unet(x, torch.zeros_like(t), **condition)


@contextlib.contextmanager
def without_skips(unet):
    """Zeros in place of what the way up concatenates from the way down."""
    skips = [stage.residual.conv1.out_channels for stages in unet.down for stage in stages]

    def cut(channels, stage, args):
        kept = args[0].shape[1] - channels
        return torch.cat([args[0][:, :kept], torch.zeros_like(args[0][:, kept:])], 1), *args[1:]

    with contextlib.ExitStack() as stack:
        for stages in unet.up:
            for stage in stages:
                handle = stage.register_forward_pre_hook(partial(cut, skips.pop()))
                stack.callback(handle.remove)
        yield unet


# ------------------------------------------------------------ measuring


def pipeline(unet, scheduler) -> latentia.UnconditionalDiffusionPipeline:
    pipe = latentia.UnconditionalDiffusionPipeline(unet.eval(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def ancestral(unet, noise: dict, x: Tensor) -> Tensor:
    """All 1000 steps of DDPM. The pipeline draws the noise of each image apart, which costs more than a toy network."""
    scheduler, generator = latentia.DDPMScheduler(**noise), torch.Generator().manual_seed(1)
    scheduler.set_timesteps(1000)
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t).sample, t, x, generator).prev_sample
    return x.flatten(1)


def exactly(data: Mixture, scheduler, x: Tensor, steps: int) -> Tensor:
    """The scheduler with a perfect network: what is wrong then is the number of steps."""
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(data.noise(x, scheduler.alphas_cumprod[t].float()), t, x).prev_sample
    return x.flatten(1)


def solved(unet, scheduler, x: Tensor, steps: int) -> Tensor:
    """Any scheduler, in our pipeline."""
    return pipeline(unet, scheduler)(latents=x, num_inference_steps=steps, output_type="latent").images.flatten(1)


@torch.no_grad()
def errors(network, noise: dict, x0: Tensor, repeats: int = 4) -> Tensor:
    """Squared error of the prediction, (repeats * N,), at times spread evenly over 0 ... 999; always the same noise."""
    scheduler, x0 = latentia.DDPMScheduler(**noise), x0.repeat(repeats, 1, 1, 1)
    shuffled = torch.randperm(len(x0), generator=torch.Generator().manual_seed(2))
    t = torch.linspace(0, 999, len(x0)).round().long()[shuffled]
    eps = gaussian(*x0.shape, seed=3)
    x_t, target = scheduler.add_noise(x0, eps, t), scheduler.target(x0, eps, t)
    got = torch.cat([network(x, s).sample for x, s in zip(x_t.split(240), t.split(240))])
    order = t.argsort()
    return (got - target).square().flatten(1).mean(1)[order]


def paired(worse: Tensor, better: Tensor) -> dict[str, float]:
    """The mean of differences on equal pictures and noise, and its standard error."""
    gap = worse - better
    return {"difference": float(gap.mean()), "standard_error": float(gap.std() / len(gap) ** 0.5)}


def of_variance(unet, v: float) -> latentia.UNet2D:
    """The network's mean with a fixed variance: v = -1 is beta_tilde_t, v = 1 is beta_t (learned_range)."""
    twin, state = digit_network(out_channels=2), dict(unet.state_dict())
    pixels = unet.config.patch_size**2  # of a patch; its prediction comes first
    weight, bias = state["conv_out.weight"][:pixels], state["conv_out.bias"][:pixels]
    state["conv_out.weight"] = torch.cat([weight, torch.zeros_like(weight)])
    state["conv_out.bias"] = torch.cat([bias, torch.full_like(bias, v)])
    twin.load_state_dict(state)
    return twin


def bits(unet, x0: Tensor, steps: int) -> float:
    """The variational bound in bits per pixel, of a chain of that many steps."""
    pipe = pipeline(unet, latentia.DDPMScheduler(**DIGIT_NOISE))
    nats = pipe.log_likelihood(x0, num_inference_steps=steps, generator=torch.Generator().manual_seed(0))
    return float(-nats.mean() / x0[0].numel() / math.log(2))


# ------------------------------------------------------------ rows


class Rows(list):
    """The table. A row: which, what, its value, what it is compared with, the threshold, whether it holds."""

    def put(self, row: str, what: str, value: float, baseline: dict, threshold: str, passed: bool, **details) -> None:
        self.append(
            {"row": row, "what": what, "value": rounded(value), "baseline": rounded(baseline), "threshold": threshold,
             "passed": bool(passed), **rounded(details)}
        )  # fmt: skip
        print(self.line(self[-1]), flush=True)

    @staticmethod
    def line(entry: dict) -> str:
        baseline = ", ".join(f"{key} {value}" for key, value in entry["baseline"].items())
        verdict = "holds" if entry["passed"] else "MISSED"
        return f"{entry['row']:<8}{verdict:<8}{entry['what']}: {entry['value']} ({entry['threshold']}; {baseline})"


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def toys(rows: Rows, steps: int) -> None:
    n = 10_000
    line = fit(point_network(1), TOY_NOISE, LINE, steps, 512, 2e-3)
    x = gaussian(n, 1, 1, 1)
    ddpm = distance(ancestral(line, TOY_NOISE, x), LINE)
    lowest, highest = floor(LINE, n)
    points = LINE.points(n, 50)
    single = distance(points.mean() + points.std() * gaussian(n, 1), LINE)
    rows.put(
        "F2", "1-D mixture, W1 of 1000 DDPM steps, n = 1e4", ddpm,
        {"floor": lowest, "largest floor of 10": highest, "single Gaussian": single}, "<= 0.04", ddpm <= 0.04,
    )  # fmt: skip

    ring = fit(point_network(2), TOY_NOISE, RING, steps, 512, 2e-3)
    x2 = gaussian(4000, 2, 1, 1)
    slow = distance(ancestral(ring, TOY_NOISE, x2), RING)
    config = latentia.DDPMScheduler(**TOY_NOISE).config
    ddim = latentia.DDIMScheduler.from_config(config, timestep_spacing="trailing")
    fast = distance(solved(ring, ddim, x2, 20), RING)
    rows.put(
        "F13", "2-D ring, W1 of 20 DDIM steps over that of 1000 DDPM steps", fast / slow,
        {"DDIM-20": fast, "of a perfect network": distance(exactly(RING, ddim, x2, 20), RING), "DDPM-1000": slow,
         "floor": floor(RING, n)[0]}, "<= 1.5", fast / slow <= 1.5,
    )  # fmt: skip
    fast = distance(solved(line, ddim, x, 20), LINE)
    rows.put(
        "F13", "1-D mixture, W1 of 20 DDIM steps over that of 1000 DDPM steps", fast / ddpm,
        {"DDIM-20": fast, "of a perfect network": distance(exactly(LINE, ddim, x, 20), LINE), "DDPM-1000": ddpm,
         "floor": lowest}, "<= 1.5", fast / ddpm <= 1.5,
    )  # fmt: skip
    for name in SOLVERS:
        stock = getattr(diffusers, f"{name}Scheduler").from_config(config)
        by_steps = {str(k): distance(solved(line, stock, x, k), LINE) for k in SOLVER_STEPS}
        value = by_steps[str(SOLVER_STEPS[-1])]
        rows.put(
            "J28b", f"1-D mixture, W1 of {SOLVER_STEPS[-1]} steps of diffusers' {name} over that of 1000 DDPM steps",
            value / ddpm, {name: value, "DDPM-1000": ddpm, "floor": lowest}, "<= 1.5", value / ddpm <= 1.5,
            by_steps=by_steps,
        )  # fmt: skip


def digits(rows: Rows, steps: int, data, held_out: Tensor) -> None:
    curve: dict[int, float] = {}

    def validation(progress, unet) -> dict[str, float]:
        curve[progress.step] = float(errors(unet, DIGIT_NOISE, held_out).mean())
        return {"held_out": curve[progress.step]}

    start = digit_network()
    curve[0] = float(errors(start, DIGIT_NOISE, held_out).mean())  # its last layer is zero: the zero predictor
    unet = fit(start, DIGIT_NOISE, data, steps, 64, 2e-3, hook=validation)
    ours = errors(unet, DIGIT_NOISE, held_out)
    values = list(curve.values())
    falls = values == sorted(values, reverse=True)
    rows.put(
        "F9", "digits, held-out mean squared error of the predicted noise", values[-1],
        {"zero predictor": values[0]}, "< 1 and falling at each of 5 looks", values[-1] < 1 and falls, curve=curve,
    )  # fmt: skip

    by_time = [float(part.mean()) for part in ours.chunk(10)]
    times = torch.cat([sample_timesteps(Rng(0, 64 * k, 64, 0, 64), 1000) for k in range(steps)])
    chance = chisquare(torch.bincount(times // 50, minlength=20).numpy())
    rows.put(
        "F10", "training times: p of chi squared, 20 bins", float(chance.pvalue),
        {"loss at t < 100": by_time[0], "loss at t >= 900": by_time[-1]},
        "p >= 0.01, and the logged loss falls with t",
        chance.pvalue >= 0.01 and by_time == sorted(by_time, reverse=True),
        loss_by_tenth_of_t=by_time, chi_squared=float(chance.statistic), draws=len(times),
    )  # fmt: skip

    with without_skips(unet):
        cut = errors(unet, DIGIT_NOISE, held_out)
    with without_skips(digit_network()) as other:
        skipless = errors(fit(other, DIGIT_NOISE, data, steps, 64, 2e-3), DIGIT_NOISE, held_out)
    rows.put(
        "F11", "digits, loss with the skips set to zero", float(cut.mean()), {"with them": float(ours.mean())},
        "higher by > 3 standard errors", significant(paired(cut, ours)), **paired(cut, ours),
    )  # fmt: skip
    rows.put(
        "F11", "digits, loss of a network trained without skips", float(skipless.mean()),
        {"with them": float(ours.mean())}, "higher by > 3 standard errors", significant(paired(skipless, ours)),
        **paired(skipless, ours),
    )  # fmt: skip

    blind = fit(digit_network(), DIGIT_NOISE, data, steps, 64, 2e-3, view=Timeless)
    timeless = errors(Timeless(blind), DIGIT_NOISE, held_out)
    rows.put(
        "F12", "digits, loss of a network trained without the time", float(timeless.mean()),
        {"with it": float(ours.mean())}, "higher by > 3 standard errors", significant(paired(timeless, ours)),
        **paired(timeless, ours),
    )  # fmt: skip

    speed(rows, unet)
    noise = DIGIT_NOISE | {"variance_type": "learned_range"}
    learned = fit(digit_network(out_channels=2), noise, data, steps, 64, 2e-3)
    some = held_out[:192]
    for length in (50, 10):
        fixed = {
            f"{which}, {kind}": bits(of_variance(network, v), some, length)
            for which, network in (("L_simple", unet), ("same network", learned))
            for kind, v in (("beta_tilde", -1.0), ("beta", 1.0))
        }
        value = bits(learned, some, length)
        rows.put(
            "F3", f"digits, variational bound of {length} steps with learned variances, bits per pixel", value, fixed,
            "below each fixed variance", value < min(fixed.values()),
        )  # fmt: skip


def significant(gap: dict[str, float]) -> bool:
    return gap["difference"] > 3 * gap["standard_error"]


def speed(rows: Rows, unet) -> None:
    pipe, counts, x = pipeline(unet, latentia.DDIMScheduler(**DIGIT_NOISE)), (10, 20, 40, 80), gaussian(64, 1, 8, 8)
    best = dict.fromkeys(counts, math.inf)
    pipe(latents=x, num_inference_steps=5, output_type="latent")
    for _ in range(8):  # the best of these, as others may use the machine
        for steps in counts:
            started = time.perf_counter()
            pipe(latents=x, num_inference_steps=steps, output_type="latent")
            best[steps] = min(best[steps], time.perf_counter() - started)
    line = linregress(list(best), list(best.values()))
    rows.put(
        "F13", "digits, seconds against steps: R^2 of a line", float(line.rvalue**2),
        {"ms per step": 1e3 * float(line.slope), "ms at 0 steps": 1e3 * float(line.intercept)},
        ">= 0.99, and at 0 steps at most 5 % of the longest run",
        line.rvalue**2 >= 0.99 and abs(line.intercept) <= 0.05 * max(best.values()),
        seconds={str(steps): seconds for steps, seconds in best.items()},
    )  # fmt: skip


def guidance(rows: Rows, steps: int, data) -> None:
    noise = DIGIT_NOISE | {"prediction_type": "v_prediction"}
    unet = fit(digit_network(num_class_embeds=10), noise, data, steps, 64, 2e-3).eval()
    n, length, extractor = 300, 25, load_extractor("digits")
    labels, x = torch.arange(n) % 10, gaussian(n, 1, 8, 8)
    ddim, ddpm = latentia.DDIMScheduler(**noise), latentia.DDPMScheduler(**noise)

    def sample(scheduler, w: float) -> Tensor:
        call = {"latents": x, "class_labels": labels, "guidance_scale": w, "num_inference_steps": length}
        generator = torch.Generator().manual_seed(0)
        return pipeline(unet, scheduler)(**call, generator=generator, output_type="latent").images.clamp(-1, 1)

    ddim.set_timesteps(length)
    alone = x
    with torch.no_grad():
        for t in ddim.timesteps:
            prediction = unet(alone, t, class_labels=labels).sample
            alone = ddim.step(prediction, t, alone, use_clipped_model_output=True).prev_sample
    one, zero = (float((sample(ddim, w) - alone.clamp(-1, 1)).abs().max()) for w in (1.0, 0.0))
    rows.put(
        "J28c", "digits, guidance 1 against the conditional network alone, largest difference", one,
        {"guidance 0 instead": zero}, "<= 1e-3", one <= 1e-3,
    )  # fmt: skip

    hits = (extractor(data.images.float() / 127.5 - 1).logits.argmax(1) == data.labels).double()
    for name, scheduler in {"DDPM": ddpm, "DDIM": ddim}.items():
        accuracy, spread = {}, {}
        for w in GUIDANCE:
            features, logits = extractor(sample(scheduler, w))
            accuracy[f"w = {w:g}"] = float((logits.argmax(1) == labels).double().mean())
            spread[f"w = {w:g}"] = float(np.mean([features[labels == c].std(0).mean() for c in range(10)]))
        curve = list(accuracy.values())
        zero, one, most = (accuracy[f"w = {w:g}"] for w in (0.0, 1.0, GUIDANCE[-1]))
        rows.put(
            "J28c", f"digits, {length} steps of {name}, class accuracy of samples at guidance {GUIDANCE[-1]:g}", most,
            accuracy | {"real images": float(hits.mean())},
            "never falls with w, and rises from 0 to 1 and from 1 to 4",
            curve == sorted(curve) and zero < one < most, spread_of_features_within_classes=spread, n=n,
        )  # fmt: skip


def noise_level(rows: Rows, steps: int, data, held_out: Tensor) -> None:
    """J29b: a classifier of the thousand times of training sees one noisy digit and says at which it was made."""
    torch.manual_seed(0)
    scheduler, T = latentia.DDPMScheduler(**DIGIT_NOISE), 1000
    accelerator, plain = Accelerator(cpu=True), DigitClassifier(8, 1, T, (32, 64, 64), 128)
    network, optimizer = accelerator.prepare(plain, torch.optim.AdamW(plain.parameters(), lr=2e-3))

    def noised(images: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        t = (rng.uniform("t") * T).long()
        return scheduler.add_noise(images, rng.normal("noise", tuple(images.shape[1:])), t), t

    def loss(batch, rng):
        x, t = noised(batch["x"], rng)
        return {"loss": nn.functional.cross_entropy(network(x).logits, t)}

    rate = learning_rate_schedule("cosine", 50, steps)
    with tempfile.TemporaryDirectory() as folder:
        train(
            accelerator, [Phase("classifier", loss, network, optimizer, learning_rate=rate)], data, output_dir=folder,
            max_steps=steps, batch_size=256, checkpoint_every=None, resume="none",
        )  # fmt: skip
    n = 20 * len(held_out)
    x, t = noised(held_out.repeat(20, 1, 1, 1), Rng(1, 0, n, 0, n))
    with torch.no_grad():
        logits = plain.eval()(x).logits
    entropy = float(nn.functional.cross_entropy(logits, t))
    guess = logits.softmax(1) @ torch.arange(T).float()
    error = float((guess - t).square().mean().sqrt())
    mean = float((t - t.float().mean()).square().mean().sqrt())
    rows.put("J29b", "digits, cross-entropy of the time of noise, nats", entropy,
             {"any of 1000": math.log(T)}, "below that of any", entropy < math.log(T))  # fmt: skip
    rows.put("J29b", "digits, error of the time of noise, root of the mean square", error,
             {"always the mean": mean}, "<= half of it", error <= mean / 2, n=n)  # fmt: skip


def environment() -> dict:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout.strip()
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line), "")
    names = ("torch", "diffusers", "accelerate", "latentia")
    return {
        "commit": commit,
        "machine": f"{os.cpu_count()} cores, {cpu}, {platform.machine()}",
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in names},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400, help="training steps of each network for digits")
    parser.add_argument("--toy_steps", type=int, default=4000, help="of the networks for the mixture and the ring")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=Path, default=HERE / "results" / "lecture_diffusion.json")
    args = parser.parse_args()
    started, rows = time.perf_counter(), Rows()
    data = load_images("digits", split="train[:80%]", label_column="")
    held_out = load_images("digits", split="train[80%:]").images.float() / 127.5 - 1
    if "toys" in args.parts:
        toys(rows, args.toy_steps)
    if "digits" in args.parts:
        digits(rows, args.steps, data, held_out)
    if "guidance" in args.parts:
        guidance(rows, args.steps, load_images("digits", split="train[:80%]"))
    if "noise_level" in args.parts:
        noise_level(rows, args.steps, data, held_out)
    seconds = time.perf_counter() - started
    passed, worked = sum(row["passed"] for row in rows), time.process_time()
    print(f"\n{passed} of {len(rows)} rows hold; {seconds:.0f} s, of the processor {worked:.0f} s")
    for row in rows:
        print(Rows.line(row))
    options = f"--parts {' '.join(args.parts)} --steps {args.steps} --toy_steps {args.toy_steps}"
    fresh = [{**row, "command": f"python benchmarks/lecture_diffusion.py {options}", **environment()} for row in rows]
    old = json.loads(args.output.read_text())["rows"] if args.output.exists() else []
    kept = [row for row in old if row["row"] not in {new["row"] for new in fresh}]
    result = {"what": "rows of a lecture on diffusion that need training", "rows": kept + fresh}
    args.output.parent.mkdir(exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
