"""Latent diffusion beside diffusion in pixels: time, distance, samplers, and what keeping the latents saves.

    python benchmarks/latent_diffusion.py --train_data_dir mnist/train.parquet --test_data_dir mnist/test.parquet

Everything is trained by the example scripts, as a user would. Parts: `train`, an autoencoder, then networks of as many
weights over its latents (v and flow matching) and over pixels, for as many steps of as many pictures; `steps`, distance
over evaluations of the network for five samplers, with the picture `latent-steps.png`; `cache`, training from kept
latents against encoding in each step; `seconds`, what 100 samples take in each family. Distances are of features of the
classifier to test images, and beside each stands what real test images get.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from lecture_diffusion import environment
from lecture_gan import Rows, rounded, seeded

import latentia
from latentia import DDIMScheduler, DDPMScheduler, DiffusionPipeline, UNet2D
from latentia.data import cached_latents, load_images
from latentia.evaluation import extractor_for, frechet_distance, image_grid, inception_score, psnr
from latentia.losses.diffusion import diffusion_loss
from latentia.pipelines.latents import decode_latents, fingerprint, load_autoencoder, posterior
from latentia.training.loop import Phase, train

HERE = Path(__file__).resolve().parent
SAMPLERS = {
    "DDPM": DDPMScheduler, "DDIM": DDIMScheduler, "DPM-Solver++": DPMSolverMultistepScheduler,
    "UniPC": UniPCMultistepScheduler,
}  # fmt: skip
NETWORK = {  # as many weights, within a twentieth
    "pixel": ["--block_out_channels", "32", "64", "64"],
    "latent": ["--block_out_channels", "72", "--attention_head_dim", "24"],
}


class Judge:
    """The Frechet distance of samples to one half of the test images; `floor` is that of as many of the other."""

    def __init__(self, args):
        self.real = load_images(args.test_data_dir).images.float() / 127.5 - 1
        self.extractor, self.n = extractor_for(self.real.shape[1:]), args.samples
        self.features = self.extractor(self.real).features
        self.floor = frechet_distance(self.features[: self.n], self.features[self.n :])

    def __call__(self, images: torch.Tensor) -> tuple[float, float]:
        out = self.extractor(images.clamp(-1, 1))
        return frechet_distance(out.features, self.features[self.n :]), inception_score(out.logits)[0]


def example(script: str, folder: Path, *flags: str) -> dict:
    """Run an example script, or go on with what it left, and give back its summary."""
    command = [sys.executable, str(HERE.parent / "examples" / script), "--output_dir", str(folder), *flags]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return json.loads((folder / "run_summary.json").read_text())


def trained(args) -> dict[str, dict]:
    """The four runs, by name."""
    data = ["--train_data_dir", args.train_data_dir, "--eval_num_samples", "0", "--logging_steps", "50"]
    common = [*data, "--max_train_steps", str(args.steps), "--train_batch_size", "64", "--learning_rate", "1e-3"]
    folders = {name: args.folder / name for name in ("autoencoder", "latent", "flow", "pixel")}
    latent = [*common, *NETWORK["latent"], "--autoencoder", str(folders["autoencoder"])]
    return {
        "autoencoder": example(
            "train_autoencoder_kl.py", folders["autoencoder"], *data, "--block_out_channels", "16", "32", "32",
            "--max_train_steps", str(args.autoencoder_steps), "--train_batch_size", "32",
        ),
        "latent": example("train_latent_diffusion.py", folders["latent"], *latent),
        "flow": example("train_latent_diffusion.py", folders["flow"], *latent, "--prediction_type", "flow"),
        "pixel": example("train_ddpm.py", folders["pixel"], *common, *NETWORK["pixel"]),
    }  # fmt: skip


def sampled(pipe, n: int, steps: int) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        return pipe(n, num_inference_steps=steps, generator=seeded(0), output_type="latent").images


def loaded(args, name: str, scheduler=None):
    pipe = DiffusionPipeline.from_pretrained(args.folder / name)
    if scheduler is not None:
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    return pipe


def compare(rows: Rows, args) -> None:
    runs, judge = trained(args), Judge(args)
    vae = load_autoencoder(str(args.folder / "autoencoder"))
    with torch.no_grad():
        some = judge.real[: judge.n]
        mean, std = (torch.cat(part) for part in zip(*(posterior(vae, x) for x in some.split(500))))
        again = torch.cat([decode_latents(vae, z) for z in mean.split(500)]).clamp(-1, 1)
        spread = float((mean + std * torch.randn(std.shape, generator=seeded(0))).std())
    rebuilt = judge(again)[0]
    found = {name: judge(sampled(loaded(args, name), judge.n, 25)) for name in ("pixel", "latent", "flow")}
    weights = {name: sum(p.numel() for p in loaded(args, name).unet.parameters()) for name in ("pixel", "latent")}
    step = {name: runs[name]["training_seconds"] / args.steps for name in ("pixel", "latent", "flow")}
    rows.put(
        "F15", "seconds of a training step in pixels over that in latents", step["pixel"] / step["latent"],
        {"pixel": step["pixel"], "latent": step["latent"], **{f"weights, {k}": v for k, v in weights.items()}},
        ">= 3", step["pixel"] >= 3 * step["latent"],
    )  # fmt: skip
    for name in ("latent", "flow"):
        rows.put(
            "F15", f"FD in latents ({name}) over that in pixels, 25 evaluations, equal steps",
            found[name][0] / found["pixel"][0],
            {"latents": found[name][0], "pixels": found["pixel"][0], "real": judge.floor, "Inception score, latents":
             found[name][1], "Inception score, pixels": found["pixel"][1], "steps": args.steps, "n": judge.n},
            "<= 1.5", found[name][0] <= 1.5 * found["pixel"][0],
        )  # fmt: skip
    rows.put(
        "F15", "standard deviation of the scaled latents of new pictures", spread, {}, "0.9 to 1.1",
        0.9 <= spread <= 1.1,
    )  # fmt: skip
    rows.put(
        "F16", "FD of reconstructions over that of samples", rebuilt / found["latent"][0],
        {"reconstructions": rebuilt, "samples": found["latent"][0], "real": judge.floor}, "<= 0.5",
        rebuilt <= 0.5 * found["latent"][0],
    )  # fmt: skip
    quality = float(psnr(again, some).mean())
    rows.put("F16", "PSNR of reconstructions, dB", quality, {"values of a latent over those of a picture":
             mean[0].numel() / some[0].numel()}, ">= 25", quality >= 25)  # fmt: skip
    shown = torch.cat([some[:10], again[:10], *(sampled(loaded(args, k), 10, 25) for k in ("pixel", "latent", "flow"))])
    labels = ["data", "rebuilt", "pixels", "latents", "flow"]
    image_grid(shown, 10, row_labels=labels).save(args.pictures / "latent-diffusion.png")


def steps(rows: Rows, args) -> None:
    trained(args)
    judge = Judge(args)
    curves: dict[str, dict[int, float]] = {}
    for name in (*SAMPLERS, "flow matching"):
        pipe = loaded(args, "flow") if name == "flow matching" else loaded(args, "latent", SAMPLERS[name])
        for count in (1, 2, 5, 10, 20, 50, *([1000] if name in args.to_thousand else [])):
            curves.setdefault(name, {})[count] = judge(sampled(pipe, judge.n, count))[0]
            print(name, count, round(curves[name][count], 2), flush=True)
    best = min(curves, key=lambda name: curves[name][20])
    long = curves["DDPM"].get(1000, min(curves["DDPM"].values()))
    rows.put(
        "J28b", f"FD of the best sampler ({best}) at 20 evaluations over that of DDPM at 1000",
        curves[best][20] / long, {"at 20": curves[best][20], "DDPM at 1000": long, "real": judge.floor, "n": judge.n},
        "<= 1.2", curves[best][20] <= 1.2 * long, curves={k: {str(n): v for n, v in c.items()} for k, c in
                                                          curves.items()},
    )  # fmt: skip
    draw(curves, judge.floor, args.pictures / "latent-steps.png")


def draw(curves: dict[str, dict[int, float]], floor: float, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot([*curve], [*curve.values()], marker="o", markersize=4, label=name)
    axes.axhline(floor, color="grey", linestyle=":", label="real images")
    axes.set(xscale="log", yscale="log", xlabel="evaluations of the network", ylabel="Fréchet distance")
    axes.set_xticks([1, 2, 5, 10, 20, 50, 1000], ["1", "2", "5", "10", "20", "50", "1000"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def cache(rows: Rows, args) -> None:
    """The same network and objective, from kept latents and from pictures that are encoded in each step, in turns."""
    trained(args)
    data = load_images(args.train_data_dir, max_samples=5000)
    vae = load_autoencoder(str(args.folder / "autoencoder")).requires_grad_(False)
    kept = cached_latents(data, partial(posterior, vae), fingerprint(vae), file=args.folder / "kept.safetensors")
    rates: dict[str, list[float]] = {"kept": [], "encoded": []}
    for _ in range(args.rounds):
        for name, source in (("kept", kept), ("encoded", data)):
            rates[name].append(one_run(source, vae if name == "encoded" else None, kept.shape, args.cache_steps))
    ratio = statistics.median(a / b for a, b in zip(rates["kept"], rates["encoded"]))
    bytes_of = {"kept, MB": kept.mean.nbytes * 2 / 2**20, "pictures, MB": data.images.nbytes / 2**20}
    rows.put(
        "-", "training images per second from kept latents over encoding in each step", ratio,
        {**{f"{k}, images/s": statistics.median(v) for k, v in rates.items()}, **bytes_of, "rounds": args.rounds},
        "> 1", ratio > 1,
    )  # fmt: skip


def one_run(data, vae, shape, count: int) -> float:
    torch.manual_seed(0)
    accelerator, scheduler = Accelerator(cpu=True), DDPMScheduler(prediction_type="v_prediction", clip_sample=False)
    unet = UNet2D(shape[1:], shape[0], block_out_channels=(72,), layers_per_block=1, attention_head_dim=24)
    network, optimizer = accelerator.prepare(unet, torch.optim.AdamW(unet.parameters(), 1e-3, fused=True))

    def loss(batch, rng):
        images = batch["x"]
        if vae is not None:
            with torch.no_grad():
                mean, std = posterior(vae, images)
            images = mean + std * rng.normal("posterior", tuple(mean.shape[1:]))
        return diffusion_loss(network, scheduler, {"x": images}, rng)

    with tempfile.TemporaryDirectory() as folder:
        result = train(
            accelerator, [Phase("unet", loss, network, optimizer)], data, output_dir=folder, max_steps=count,
            batch_size=64, checkpoint_every=None, resume="none",
        )  # fmt: skip
    return result.images_per_second


def seconds(rows: Rows, args) -> None:
    """F24: what 100 samples take, the best of three; the time does not depend on what a network has learned."""
    trained(args)
    vae = latentia.VAEPipeline(latentia.VAE(sample_size=28, latent_dim=16, hidden_sizes=(400,)))
    gan = latentia.GANPipeline(latentia.DCGANGenerator(28, block_out_channels=(32, 64, 128)))
    latent = loaded(args, "latent", DDIMScheduler)
    calls = {
        "VAE": lambda: vae(100), "GAN": lambda: gan(100),
        "latent diffusion, DDIM 20": lambda: sampled(latent, 100, 20),
        "diffusion in pixels, DDIM 20": lambda: sampled(loaded(args, "pixel", DDIMScheduler), 100, 20),
        "diffusion in pixels, DDPM 1000": lambda: sampled(loaded(args, "pixel", DDPMScheduler), 100, 1000),
    }  # fmt: skip
    found = {}
    for name, call in calls.items():
        times = []
        for _ in range(1 if "1000" in name else 3):
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
        found[name] = min(times)
    rows.put(
        "F24", "seconds of 100 samples, diffusion in pixels with DDPM over a GAN",
        found["diffusion in pixels, DDPM 1000"] / found["GAN"], found, "told only", True,
    )  # fmt: skip


PARTS = {"train": compare, "steps": steps, "cache": cache, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train_data_dir", required=True, help="MNIST's training images, a folder or parquet")
    parser.add_argument("--test_data_dir", required=True, help="its test images")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--steps", type=int, default=1500, help="of each diffusion network, 64 pictures each")
    parser.add_argument("--autoencoder_steps", type=int, default=1500, help="of 32 pictures")
    parser.add_argument("--samples", type=int, default=1000, help="for each distance")
    parser.add_argument("--to_thousand", nargs="*", default=["DDPM"], help="samplers to run with 1000 evaluations too")
    parser.add_argument("--cache_steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("outputs/latent-diffusion"), help="of the runs")
    parser.add_argument("--pictures", type=Path, default=HERE.parent / "docs" / "images")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "latent_diffusion.json")
    args = parser.parse_args()
    rows = Rows()
    told = " ".join(word if "/" not in word else Path(word).name for word in sys.argv[1:])
    for part in args.parts:
        before = len(rows)
        PARTS[part](rows, args)
        for row in rows[before:]:
            row["part"] = part
        old = json.loads(args.output.read_text())["rows"] if args.output.exists() else []
        about = {"command": f"python benchmarks/latent_diffusion.py {told}", **environment()}
        new = [rounded({**row, **about}) for row in rows if row["part"] == part]
        text = {"what": "latent diffusion beside diffusion in pixels, MNIST", "rows": [
            row for row in old if row["part"] != part] + new}  # fmt: skip
        args.output.parent.mkdir(exist_ok=True)
        args.output.write_text(json.dumps(text, indent=1) + "\n")
    print(f"{sum(row['passed'] for row in rows)} of {len(rows)} rows hold")


if __name__ == "__main__":
    main()
