"""Codebooks that are used, latents that are sampled from, and maps of latents, in minutes on a CPU.

    python benchmarks/lecture_vqvae.py
    python benchmarks/lecture_vqvae.py --parts codebook --train_data_dir MNIST --block_out_channels 32 64

codebook: the same VQ-VAE with four ways to a code: the first paper's codebook loss ("plain"), running means, running
means with restarts, and finite scalar quantisation. Perplexity and errors are those of images that were not trained on.
mixture: a plain autoencoder samples from one Gaussian, then from ten, fitted to its latents. map: row B7, a 32-d code,
then t-SNE. Each row of the table has the threshold that was set before; a row that misses it says so.
"""

import argparse
import json
import math
import os
import subprocess
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

import latentia
from latentia.commands.embed import embed
from latentia.data import load_images
from latentia.evaluation import image_grid
from latentia.functional.quantisation import perplexity
from latentia.losses.quantisation import CodebookUpdate, vqvae_loss
from latentia.losses.reconstruction import autoencoder_loss
from latentia.training.loop import Phase, learning_rate_schedule, train

HERE = Path(__file__).resolve().parent
PARTS = ("codebook", "mixture", "map")
WAYS = {
    "plain": {"codebook_update": "gradient"},
    "running means": {"restart_below": 0.0},
    "running means, restarts": {},
    "finite scalars": {"quantizer": "fsq", "levels": (8, 8, 8)},  # 512 codes as well
}


class Rows(list):
    def put(self, row: str, what: str, value: float, compared: dict, rule: str, passed: bool, **more) -> None:
        first = {"row": row, "what": what, "value": value, "compared": compared, "rule": rule}
        self.append(first | {"passed": bool(passed)} | more)
        print(self.line(self[-1]), flush=True)

    @staticmethod
    def line(row: dict) -> str:
        compared = ", ".join(f"{key} {value:.4g}" for key, value in row["compared"].items())
        verdict = "ok  " if row["passed"] else "MISS"
        return f"{verdict} {row['row']:12} {row['what']}: {row['value']:.4g} ({compared}); {row['rule']}"


def fit(network: nn.Module, loss, data, steps: int, seed: int, others=(), batch_size: int = 64) -> nn.Module:
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, betas=(0.9, 0.99))
    rate = learning_rate_schedule("cosine", 50, steps)
    phases = [Phase("network", loss, network, optimizer, rate, max_grad_norm=1.0), *others]
    options = {"max_steps": steps, "batch_size": batch_size, "seed": seed, "checkpoint_every": None}
    with tempfile.TemporaryDirectory() as folder:
        train(Accelerator(cpu=True), phases, data, output_dir=folder, **options)
    return network.eval()


def codebook(rows: Rows, args, data, held_out: torch.Tensor, name: str) -> None:
    found: dict[str, dict[str, list[float]]] = {}
    shown = {"data": held_out[:12]}
    for seed in range(args.seeds):
        for way, options in WAYS.items():
            options = dict(options)
            restart_below = options.pop("restart_below", 0.1)
            torch.manual_seed(seed)
            vqvae = latentia.VQVAE(
                sample_size=data.shape[1:],
                in_channels=data.shape[0],
                block_out_channels=tuple(args.block_out_channels),
                codebook_size=512,
                latent_channels=args.latent_channels,
                **options,
            )
            counting = hasattr(vqvae.quantize, "counts")
            update = CodebookUpdate(vqvae, restart_below=restart_below) if counting else None
            others = [Phase("codebook", update, vqvae)] if update else []

            def loss(batch, draw, vqvae=vqvae, update=update):
                return vqvae_loss(vqvae, batch, draw, collect=update and update.collect)

            started = time.process_time()
            fit(vqvae, loss, data, args.steps, seed, others)
            seconds = time.process_time() - started
            pipe = latentia.VQVAEPipeline(vqvae)
            codes = pipe.encode(held_out)
            again = pipe.decode(codes, output_type="latent").clamp(-1, 1)
            shown |= {way: again[:12]}
            error = float((again - held_out).square().mean())
            prior = pipe.fit_prior(data.images[:10_000])
            with torch.no_grad():
                bits = float(-prior.log_prob(codes).mean()) / math.log(2)
            values = {
                "perplexity": float(perplexity(codes, 512)), "error": error, "PSNR": 10 * math.log10(4 / error),
                "rows in use": codes.unique().numel(), "bits per image": bits, "seconds": seconds,
            }  # fmt: skip
            print(seed, way, {key: round(value, 4) for key, value in values.items()}, flush=True)
            for key, value in values.items():
                found.setdefault(key, {}).setdefault(way, []).append(value)
    pictures = torch.cat([*shown.values()])
    image_grid(pictures, 12, row_labels=[*shown]).save(args.pictures / f"vqvae-{name}.png")
    mean = {key: {way: sum(v) / len(v) for way, v in ways.items()} for key, ways in found.items()}
    ours = "running means, restarts"
    for plain in ("plain", "running means"):
        value = mean["perplexity"][ours]
        rows.put(
            "J17", f"{name}, perplexity of 512 rows by {ours} against {plain}", value,
            {plain: mean["perplexity"][plain], "error": mean["error"][ours], f"error of {plain}": mean["error"][plain]},
            "at least 4 times, at equal or smaller error",
            value >= 4 * mean["perplexity"][plain] and mean["error"][ours] <= mean["error"][plain],
            runs=found, n=len(held_out), steps=args.steps,
        )  # fmt: skip


def autoencoder(data, latent_dim: int, steps: int, seed: int = 0) -> latentia.Autoencoder:
    torch.manual_seed(seed)
    network = latentia.Autoencoder(
        sample_size=data.shape[1:], in_channels=data.shape[0], latent_dim=latent_dim, hidden_sizes=(128, 64)
    )
    return fit(network, lambda batch, draw: autoencoder_loss(network, batch, draw), data, steps, seed)


def mixture(rows: Rows, args, data, name: str) -> None:
    network = autoencoder(data, 16, args.steps)
    pipe, distance, floor = latentia.AutoencoderPipeline(network), {}, math.nan
    latents = pipe.encode(data.images)
    for count in (1, 10):
        pipe.register_modules(prior=latentia.LatentMixture.fit(latents, count))
        score = latentia.evaluate(pipe, data, n=min(len(data) // 2, 1000), metrics=["fd"]).report.scores["fd"]
        distance[count], floor = float(score.value), float(score.real)
    rows.put(
        "papers 3.3", f"{name}, Frechet distance of an autoencoder's samples from 10 Gaussians", distance[10],
        {"1 Gaussian": distance[1], "real images": floor}, "at most half of that from one",
        2 * distance[10] <= distance[1],
    )  # fmt: skip


def plane(rows: Rows, args, data, source: str, name: str) -> None:
    pipe = latentia.AutoencoderPipeline(autoencoder(data, 32, args.steps))
    compared = {}
    for what in (pipe, "pixels", "pca"):
        found = embed(what, source, split=args.split, max_samples=args.max_samples, components=32)
        compared[found.about["source"]] = found.scores["t-SNE"]
    ours = compared.pop("AutoencoderPipeline")
    for key, least in (("trustworthiness", 0.95), ("1-NN accuracy", 0.9)):
        rows.put(
            "B7", f"{name}, {key} of t-SNE of a 32-d code", ours[key], {k: v[key] for k, v in compared.items()},
            f">= {least}", ours[key] >= least,
        )  # fmt: skip


def environment() -> dict:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout.strip()
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line), "")
    names = ("torch", "diffusers", "accelerate", "latentia")
    return {
        "commit": commit,
        "machine": f"{os.cpu_count()} cores, {cpu}",
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in names},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset_name", default="digits")
    parser.add_argument("--train_data_dir", help="a folder or parquet instead, with splits train and test")
    parser.add_argument("--max_samples", type=int)
    parser.add_argument("--steps", type=int, default=600, help="training steps of each network")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each way to a code")
    parser.add_argument("--block_out_channels", type=int, nargs="+", default=[32])
    parser.add_argument("--latent_channels", type=int, default=16)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--pictures", type=Path, default=HERE.parent / "docs" / "images")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "lecture_vqvae.json")
    args = parser.parse_args()
    source = args.train_data_dir or args.dataset_name
    name, whole = Path(source).name, source == "digits"
    args.split = "train"
    data = load_images(source, split="train[:80%]" if whole else "train", max_samples=args.max_samples)
    test = load_images(source, split="train[80%:]" if whole else "test", max_samples=2000)
    rows = Rows()
    if "codebook" in args.parts:
        codebook(rows, args, data, test.images.float() / 127.5 - 1, name)
    if "mixture" in args.parts:
        mixture(rows, args, load_images(source, max_samples=args.max_samples), name)
    if "map" in args.parts:
        plane(rows, args, data, source, name)
    print(
        f"\n{sum(row['passed'] for row in rows)} of {len(rows)} rows hold; {time.process_time():.0f} s of the processor"
    )
    for row in rows:
        print(Rows.line(row))
    shown = f"--train_data_dir {name}" if args.train_data_dir else f"--dataset_name {name}"
    channels = " ".join(map(str, args.block_out_channels))
    command = (
        f"python benchmarks/lecture_vqvae.py {shown} --parts {' '.join(args.parts)} --steps {args.steps} "
        f"--seeds {args.seeds} --block_out_channels {channels} --latent_channels {args.latent_channels}"
        + (f" --max_samples {args.max_samples}" if args.max_samples else "")
    )
    fresh = [{**row, "data": name, "command": command, **environment()} for row in rows]
    old = json.loads(args.output.read_text())["rows"] if args.output.exists() else []
    new = {(row["row"], row["data"]) for row in fresh}
    kept = [row for row in old if (row["row"], row["data"]) not in new]
    args.output.parent.mkdir(exist_ok=True)
    what = "rows of a lecture on autoencoders that concern discrete codes, mixtures over codes and maps of codes"
    args.output.write_text(json.dumps({"what": what, "rows": kept + fresh}, indent=1) + "\n")


if __name__ == "__main__":
    main()
