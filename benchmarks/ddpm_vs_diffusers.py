"""Time to quality, loop overhead and sampling speed beside diffusers' own parts, on MNIST, in one run.

    python benchmarks/ddpm_vs_diffusers.py --train_data_dir <folder with MNIST as parquet>

Time to quality. The peer is what a careful user builds from diffusers: UNet2DModel (32, 64, 128; 3.9 M parameters),
DDPMScheduler (linear), epsilon, AdamW at 1e-3 with 100 steps of warm-up and cosine decay, batch 64, EMAModel, clip 1,
trained for `--seconds`. Both sides read the same uint8 images from memory, use the same threads, and stop when their
training seconds are used up, evaluation not counted. Ours is the default of examples/train_ddpm.py but for the flags in
`FLAGS`, through our loop, once for a tenth of the peer's time and once for all of it. Each side is sampled with 25
network evaluations of DDIM, of DPM-Solver++ and of DDPM, and given the best of the three. The score is the Frechet
distance of n = 1000 samples on the features of the shipped MNIST classifier, beside what 1000 real images get. The peer
runs in float32: with bfloat16 autocast its step takes as long (part "precision").

A trained network is kept in `--work_dir` with its seconds, and scored again from there; delete it to train anew.
`--parts` chooses what to run; results are merged into the JSON, each with its command.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import diffusers
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.training_utils import EMAModel

import latentia
from latentia.data import load_images
from latentia.evaluation import image_grid, load_extractor, measure, score, uint8_batches
from latentia.losses.diffusion import diffusion_loss
from latentia.rng import Rng
from latentia.runs.command_line import parse_arguments
from latentia.training.ema import EMA
from latentia.training.loop import Phase, learning_rate_schedule, train

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from train_ddpm import Arguments  # the default recipe is the one that users get

HERE = Path(__file__).resolve().parent
FLAGS = "--patch_size 2 --block_out_channels 48 96 --train_batch_size 32 --mixed_precision bf16".split()
RECIPE = parse_arguments(Arguments, FLAGS, description="")
BATCH = 64
ABLATION = {  # one ingredient of the recipe put back to what diffusers' example does
    "all of the recipe": "",
    "uniform times instead of logit-normal": "--time_sampling uniform",
    "epsilon instead of v": "--prediction_type epsilon",
    "linear schedule instead of cosine": "--beta_schedule linear",
    "no average of the weights": "--ema_decay 0.0 --no_ema_warmup",
    "rate 1e-4 instead of 2e-3": "--learning_rate 1e-4",
    "batch 64, half the steps": "--train_batch_size 64",
}


def peer_network() -> diffusers.UNet2DModel:
    return diffusers.UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )


def our_network() -> latentia.UNet2D:
    model = RECIPE.model
    return latentia.UNet2D(
        sample_size=28,
        in_channels=1,
        block_out_channels=model.block_out_channels,
        patch_size=model.patch_size,
        layers_per_block=model.layers_per_block,
    ).to(memory_format=torch.channels_last)


def noise_config() -> dict:
    return {
        "beta_schedule": RECIPE.diffusion.beta_schedule,
        "prediction_type": RECIPE.diffusion.prediction_type,
        "timestep_spacing": "trailing",
    }


def train_peer(data, seconds: float | None, steps: int | None, rate: float, warmup: int):
    """diffusers' parts in the loop that its example has, less what does not concern the result."""
    torch.manual_seed(0)
    unet, scheduler = peer_network(), diffusers.DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=rate, betas=(0.95, 0.999), weight_decay=1e-6)
    ema = EMAModel(unet.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)

    def step(k: int) -> float:
        started = time.perf_counter()
        images = data.batch(k * BATCH, (k + 1) * BATCH)["x"]
        noise, t = torch.randn_like(images), torch.randint(0, 1000, (BATCH,))
        loss = torch.nn.functional.mse_loss(unet(scheduler.add_noise(images, noise, t), t).sample, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        lr_scheduler.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
        loss.item()
        return time.perf_counter() - started

    if steps is None:  # the decay has to end with the time: measure the pace on throw-away steps first
        lr_scheduler = diffusers.optimization.get_scheduler("constant", optimizer)
        steps = int(seconds / sorted(step(k) for k in range(8))[4])
        return train_peer(data, seconds, steps, rate, warmup)
    horizon = {"num_warmup_steps": warmup, "num_training_steps": steps}
    lr_scheduler = diffusers.optimization.get_scheduler("cosine", optimizer, **horizon)
    used, done = 0.0, 0
    while done < steps and (seconds is None or used < seconds):
        used += step(done)
        done += 1
        if done % 50 == 0:
            print(f"peer {rate}: step {done}/{steps}, {used:.0f} s", flush=True)
    ema.copy_to(unet.parameters())
    return unet.eval(), diffusers.DDPMScheduler(num_train_timesteps=1000), used, done


def our_phase(accelerator, unet, steps: int, with_ema: bool = True):
    options, scheduler = RECIPE.optimization, latentia.DDPMScheduler(**noise_config())
    ema = EMA(unet, RECIPE.ema.ema_decay, RECIPE.ema.ema_warmup) if with_ema else None
    optimizer = torch.optim.AdamW(
        unet.parameters(),
        lr=options.learning_rate,
        betas=(options.adam_beta1, options.adam_beta2),
        weight_decay=options.adam_weight_decay,
    )
    network, optimizer = accelerator.prepare(unet, optimizer)
    choice = RECIPE.diffusion

    def loss(batch, rng):
        return diffusion_loss(
            network,
            scheduler,
            {"x": batch["x"]},
            rng,
            time_sampling=choice.time_sampling,
            time_loc=choice.time_loc,
            time_scale=choice.time_scale,
            weighting=choice.loss_weighting,
            snr_gamma=choice.snr_gamma,
        )

    rate = learning_rate_schedule(options.lr_scheduler, options.lr_warmup_steps, steps)
    return Phase("unet", loss, network, optimizer, rate, max_grad_norm=options.max_grad_norm, ema=ema)


def train_ours(data, seconds: float | None, folder: Path, steps: int | None = None):
    """For some seconds, or for some steps."""
    batch_size = RECIPE.optimization.train_batch_size

    def run(steps: int, name: str):
        torch.manual_seed(0)
        AcceleratorState._reset_state(reset_partial_state=True)  # the precision may differ from the run's before
        accelerator = Accelerator(cpu=True, mixed_precision=RECIPE.optimization.mixed_precision)
        phase = our_phase(accelerator, our_network(), steps)
        (folder / name).mkdir(parents=True, exist_ok=True)
        result = train(
            accelerator, [phase], data, output_dir=folder / name, max_steps=steps, batch_size=batch_size,
            checkpoint_every=None, resume="none",
        )  # fmt: skip
        return phase.ema.module, result

    scheduler = latentia.DDIMScheduler(**noise_config())
    if steps is not None:
        unet, result = run(steps, f"steps-{steps}")
        return unet, scheduler, result.progress.seconds, steps
    _, trial = run(12, f"trial-{seconds:.0f}")
    steps = int(seconds * trial.images_per_second / batch_size)
    while True:
        unet, result = run(steps, f"run-{seconds:.0f}")
        if result.progress.seconds <= seconds * 1.01:
            return unet, scheduler, result.progress.seconds, steps
        print(f"{result.progress.seconds:.1f} s is over the budget of {seconds} s; again with fewer steps", flush=True)
        steps = int(steps * seconds / result.progress.seconds * 0.98)


@torch.no_grad()
def sample(unet, scheduler, n: int, evaluations: int) -> torch.Tensor:
    scheduler.set_timesteps(evaluations)
    x = torch.randn(n, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        output = torch.cat([unet(part, t).sample for part in x.split(200)])
        x = scheduler.step(output, t, x).prev_sample
    return x


def measure_network(name: str, unet, scheduler, real, extractor, pictures: Path) -> dict:
    """The best of three ways to spend 25 evaluations."""
    rows = {}
    for solver in (diffusers.DDIMScheduler, diffusers.DPMSolverMultistepScheduler, diffusers.DDPMScheduler):
        chosen = solver.from_config(scheduler.config)
        images = sample(unet, chosen, 1000, 25).clamp(-1, 1)
        label = solver.__name__.removesuffix("Scheduler")
        report = score(images, real, extractor, metrics=["fd", "kid", "inception_score"])
        found = report.scores
        rows[label] = {
            "fd": found["fd"].value, "floor": found["fd"].real, "kid": found["kid"].value,
            "kid_floor": found["kid"].real, "inception_score": found["inception_score"].value,
            "real_inception_score": found["inception_score"].real, "n": report.n,
            "extractor_sha256": report.extractor_sha256,
        }  # fmt: skip
        image_grid(images[:64]).save(pictures / f"{name}-{label}.png")
        print(f"{name}, {label}: {report.text()}", flush=True)
    best = min(rows, key=lambda label: rows[label]["fd"])
    return {"sampler": best, **rows[best], "fd_by_sampler": {label: row["fd"] for label, row in rows.items()}}


def ablate(data, folder: Path, steps: int, real, extractor) -> dict:
    """Distance after equally many images, with one ingredient put back; DDIM, 25 evaluations, n = 1000."""
    global RECIPE
    kept, rows = RECIPE, {}
    for name, flags in ABLATION.items():
        RECIPE = parse_arguments(Arguments, [*FLAGS, *flags.split()], description="")
        count = steps * kept.optimization.train_batch_size // RECIPE.optimization.train_batch_size
        unet, scheduler, seconds, _ = train_ours(data, None, folder, count)
        fd = score(sample(unet, scheduler, 1000, 25).clamp(-1, 1), real, extractor, metrics=["fd"])["fd"].value
        rows[name] = {"flags": flags, "fd": fd, "seconds": round(seconds, 1), "steps": count}
        print(f"{name}: FD {fd:.1f}", flush=True)
    RECIPE = kept
    return {"rows": rows}


def loop_overhead(data, folder: Path, steps: int = 50, rounds: int = 15) -> dict:
    """Our loop against a bare one with the same network, batch, draws and optimizer; in turns, medians of each."""

    def bare() -> float:
        phase = our_phase(Accelerator(cpu=True), our_network(), steps, with_ema=False)
        optimizer, parameters = phase.optimizer.optimizer, list(phase.trains.parameters())
        phase.trains.train()
        started = time.perf_counter()
        for k in range(steps):
            batch = data.batch(k * BATCH, (k + 1) * BATCH)
            loss = phase.loss(batch, Rng(0, k * BATCH, BATCH, 0, BATCH))["loss"]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return (time.perf_counter() - started) / steps

    def ours() -> float:
        accelerator = Accelerator(cpu=True)
        phase = our_phase(accelerator, our_network(), steps, with_ema=False)
        folder.mkdir(parents=True, exist_ok=True)
        options = {"output_dir": folder, "max_steps": steps, "batch_size": BATCH, "checkpoint_every": None}
        return train(accelerator, [phase], data, resume="none", **options).progress.seconds / steps

    times: dict[str, list[float]] = {"bare": [], "latentia": []}
    for k in range(rounds):
        for name, run in (("bare", bare), ("latentia", ours))[:: 1 if k % 2 else -1]:
            torch.manual_seed(0)
            times[name].append(run())
    middle = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    return {"ms_per_step": middle, "overhead": middle["latentia"] / middle["bare"] - 1, "all_seconds": times}


def precision(rounds: int = 4) -> dict:
    """Milliseconds of one training step of batch 64 in float32 and under bfloat16 autocast; interleaved, the best."""
    networks = {"diffusers": peer_network(), "latentia": our_network()}
    best: dict[str, float] = {}
    for _ in range(rounds):
        for name, unet in networks.items():
            for kind in ("float32", "bfloat16"):
                x, t = torch.randn(BATCH, 1, 28, 28), torch.randint(0, 1000, (BATCH,))
                started = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bfloat16"):
                    loss = (unet(x, t).sample.float() - x).square().mean()
                loss.backward()
                key = f"{name}, {kind}"
                best[key] = min(best.get(key, 1e9), 1e3 * (time.perf_counter() - started))
                unet.zero_grad()
    return {"ms_per_step": best}


def sampling_speed(rounds: int = 5) -> dict:
    """Images per second of one network: bare DDIM loops with each scheduler, and each library's pipeline."""
    torch.manual_seed(0)
    unet, config = our_network().eval(), noise_config()
    ours, theirs = latentia.DDIMScheduler(**config), diffusers.DDIMScheduler(**config)
    pipes = {
        "pipeline, latentia": latentia.UnconditionalDiffusionPipeline(unet, ours),
        "pipeline, diffusers": diffusers.DDIMPipeline(unet, theirs),
    }
    best: dict[str, float] = {}
    for _ in range(rounds):
        for name, scheduler in {"loop, latentia": ours, "loop, diffusers": theirs}.items():
            started = time.perf_counter()
            sample(unet, scheduler, 64, 10)
            best[name] = min(best.get(name, 1e9), time.perf_counter() - started)
        for name, pipe in pipes.items():
            pipe.set_progress_bar_config(disable=True)
            started = time.perf_counter()
            pipe(batch_size=64, num_inference_steps=10, generator=torch.Generator().manual_seed(0))
            best[name] = min(best.get(name, 1e9), time.perf_counter() - started)
    rates = {name: 64 / seconds for name, seconds in best.items()}
    return {
        "steps": 10,
        "images_per_second": rates,
        "ratio_loop": rates["loop, latentia"] / rates["loop, diffusers"],
        "ratio_pipeline": rates["pipeline, latentia"] / rates["pipeline, diffusers"],
    }


def environment() -> dict:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout.strip()
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line), "")
    names = ("torch", "diffusers", "accelerate", "latentia")
    return {
        "commit": commit,
        "machine": f"{os.cpu_count()} cores, {model}, {platform.machine()}",
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in names},
    }


PARTS = ("peer", "ours-tenth", "ours", "peer-1e-4", "overhead", "sampling", "precision", "ablation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train_data_dir", required=True)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=Path, default=HERE / "results" / "ddpm_vs_diffusers.json")
    parser.add_argument("--work_dir", type=Path, default=Path("outputs/benchmark"))
    args = parser.parse_args()
    data = load_images(args.train_data_dir, split="train")
    results = json.loads(args.output.read_text()) if args.output.exists() else {}
    pictures = args.work_dir / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    extractor = load_extractor("mnist")
    training = set(args.parts) & {"peer", "peer-1e-4", "ours", "ours-tenth", "ablation"}
    real = measure(uint8_batches(data.images[:20_000]), extractor) if training else None

    def trained(name: str) -> dict:
        return json.loads((args.work_dir / name / "trained.json").read_text())

    def entry_of(name: str, training) -> dict:
        folder = args.work_dir / name
        kind = diffusers.UNet2DModel if name.startswith("peer") else latentia.UNet2D
        if not (folder / "trained.json").exists():
            unet, scheduler, seconds, steps = training()
            unet.save_pretrained(folder)
            scheduler.save_pretrained(folder / "scheduler")
            (folder / "trained.json").write_text(json.dumps({"seconds": round(seconds, 1), "steps": steps}))
            print(f"{name}: {steps} steps in {seconds:.1f} s", flush=True)
        unet, scheduler = (
            kind.from_pretrained(folder).eval(),
            diffusers.DDPMScheduler.from_pretrained(folder / "scheduler"),
        )
        parameters = sum(p.numel() for p in unet.parameters())
        return {
            **trained(name),
            "parameters": parameters,
            **measure_network(name, unet, scheduler, real, extractor, pictures),
        }

    with_parts = {
        "peer": lambda: entry_of("peer", lambda: train_peer(data, args.seconds, None, 1e-3, 100)),
        "ours-tenth": lambda: entry_of(
            "ours-tenth", lambda: train_ours(data, trained("peer")["seconds"] / 10, args.work_dir)
        ),
        "ours": lambda: entry_of("ours", lambda: train_ours(data, trained("peer")["seconds"], args.work_dir)),
        # As many steps as the tuned peer made in the time, which is the same work.
        "peer-1e-4": lambda: entry_of("peer-1e-4", lambda: train_peer(data, None, trained("peer")["steps"], 1e-4, 500)),
        "overhead": lambda: loop_overhead(data, args.work_dir / "overhead"),
        "sampling": sampling_speed,
        "precision": precision,
        "ablation": lambda: ablate(data, args.work_dir, trained("ours-tenth")["steps"] // 2, real, extractor),
    }
    for name in PARTS:
        if name in args.parts:
            command = f"python benchmarks/ddpm_vs_diffusers.py --train_data_dir {args.train_data_dir} --parts {name}"
            results[name] = with_parts[name]() | {"command": f"{command} --seconds {args.seconds:g}", **environment()}
            args.output.parent.mkdir(exist_ok=True)
            args.output.write_text(json.dumps(results, indent=1) + "\n")
    if {"peer", "ours", "ours-tenth"} <= results.keys():
        peer, tenth, whole = (results[name]["fd"] for name in ("peer", "ours-tenth", "ours"))
        print(f"FD: peer {peer:.1f}; ours after a tenth of the time {tenth:.1f}; ours after all of it {whole:.2f}")


if __name__ == "__main__":
    main()
