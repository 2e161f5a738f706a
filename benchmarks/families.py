"""VAE, GAN, VAE-GAN, flow, diffusion and latent diffusion as maps between images and latents: a figure and a table.

    python benchmarks/families.py --picture docs/images/families.png

Each family is trained on the digits by its `latentia train` command, for steps that take about as long, with its own
defaults otherwise. Then, with the same calls of all pipelines: images of random latents z, `encode` of held-out images
x, `decode` of that, the error of the way there and back, the time of 100 samples on one thread, the Frechet distance of
1000 samples to the training images, and what the family says of the likelihood of held-out images. The time of 100
samples is measured of DDIM with 20 steps and of DDPM with all 1000 too.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from latentia import DDPMScheduler, DiffusionPipeline
from latentia.data import load_images
from latentia.evaluation import bits_per_dimension, dequantise, frechet_distance, load_extractor, predict
from latentia.functional.pixels import from_uint8, to_uint8

HERE = Path(__file__).resolve().parent
DIGITS = ("--dataset_name", "digits", "--split", "train[:80%]", "--eval_num_samples", "0")
FAMILIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "VAE": ("vae", ("--max_train_steps", "6000", "--likelihood", "gaussian")),
    "GAN": ("gan", ("--max_train_steps", "1500", "--block_out_channels", "32", "64")),
    "VAE-GAN": ("vae_gan", ("--max_train_steps", "1500", "--block_out_channels", "32", "64")),
    "flow": ("flow", ("--max_train_steps", "800", "--architecture", "spline", "--num_layers", "4")),
    "diffusion": ("ddpm", ("--max_train_steps", "500", "--block_out_channels", "32", "64")),
    "latent diffusion": ("latent_diffusion", ("--max_train_steps", "1000", "--block_out_channels", "32", "64")),
}
AUTOENCODER = (
    *("--max_train_steps", "600", "--train_batch_size", "32"),
    *("--block_out_channels", "16", "32", "--discriminator_channels", "16", "32"),
)


def run(kind: str, folder: Path, *flags: str) -> None:
    command = [sys.executable, "-m", "latentia", "train", kind, "--output_dir", str(folder), *DIGITS, *flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def trained(name: str, folder: Path) -> tuple[Any, float]:
    """The pipeline of a family, and the processor seconds of its training."""
    kind, flags = FAMILIES[name]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    if kind == "latent_diffusion":
        autoencoder = folder.with_name("autoencoder")
        run("autoencoder_kl", autoencoder, *AUTOENCODER)
        flags = (*flags, "--autoencoder", str(autoencoder))
    run(kind, folder, *flags)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def seconds_of(pipe: Any, count: int = 100, **options: Any) -> tuple[float, torch.Tensor]:
    """Processor seconds of `count` samples, and the samples."""
    started = time.process_time()
    samples = pipe(count, generator=torch.Generator().manual_seed(0), output_type="pt", **options).images * 2 - 1
    return time.process_time() - started, samples


def likelihood(pipe: Any, images: torch.Tensor) -> str:
    """Bits per dimension of images, with what they are of; a density is taken of dequantised pixels."""
    if pipe.likelihood is None:
        return "none"
    if pipe.likelihood.of == "density":
        pixels = dequantise(images, seed=0)
        bits = bits_per_dimension(pipe.log_likelihood(pixels.values).double().mean(), images[0].numel())
    else:
        nats = pipe.log_likelihood(from_uint8(images), generator=torch.Generator().manual_seed(0)).double().mean()
        bits = bits_per_dimension(nats, images[0].numel(), span=None)
    return f"{float(bits):.2f} ({pipe.likelihood})"


def draw(rows: dict[str, dict[str, torch.Tensor]], path: Path) -> None:
    """Each family in a row: images, their latents, the images decoded from them, and samples of random latents."""
    from matplotlib.figure import Figure

    titles = ("x", "z = encode(x)", "decode(z)", "decode(random z)")
    figure = Figure(figsize=(11, 2.1 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), 4)
    for line, (name, found) in zip(panels, rows.items()):
        for panel, title in zip(line, titles):
            values = found[title].float()
            if title.startswith("z"):  # as one strip of values for each image
                flat = values.flatten(1)
                panel.imshow(flat, cmap="RdBu", vmin=-3, vmax=3, aspect="auto", interpolation="nearest")
                panel.set_xlabel(f"{flat.shape[1]} values", fontsize=8)
            else:
                panel.imshow(torch.cat(list(values[:, 0]), 1), cmap="gray", vmin=-1, vmax=1)
            panel.set(xticks=[], yticks=[])
            if name == next(iter(rows)):
                panel.set_title(title, fontsize=10)
        line[0].set_ylabel(name, fontsize=11)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("outputs/families"))
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "families.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    train, test = (load_images("digits", split=split) for split in ("train[:80%]", "train[80%:]"))
    extractor, held_out = load_extractor("digits"), test.images[:200]
    real = predict(from_uint8(train.images).split(500), extractor).features
    table, shown = {}, {}
    for name in FAMILIES:
        pipe, seconds = trained(name, args.folder / name)
        x = from_uint8(test.images[:6])
        z = pipe.encode(x)
        back = pipe.decode(z, output_type="pt") * 2 - 1
        every = pipe.decode(pipe.encode(from_uint8(held_out[:100])), output_type="pt") * 2 - 1
        error = (every - from_uint8(held_out[:100])).square().mean().sqrt()
        per_100, samples = seconds_of(pipe)
        rest = pipe(900, generator=torch.Generator().manual_seed(1), output_type="pt").images * 2 - 1
        made = from_uint8(to_uint8(torch.cat([samples, rest])))
        distance = frechet_distance(predict(made.split(500), extractor).features, real)
        table[name] = {
            "values of z": z[0].numel(),
            "error of decode(encode(x)), in units of [-1, 1]": round(float(error), 5),
            "seconds per 100 samples": round(per_100, 3),
            "Frechet distance": round(float(distance), 2),
            "bits per dimension": likelihood(pipe, held_out),
            "processor seconds of training": round(seconds),
            "weights": sum(p.numel() for m in pipe.components.values() if isinstance(m, torch.nn.Module)
                           for p in m.parameters()),
        }  # fmt: skip
        if name == "diffusion":
            table[name]["seconds per 100 samples, DDIM of 20 steps"] = round(
                seconds_of(pipe, num_inference_steps=20)[0], 3
            )
            chain, pipe.scheduler = pipe.scheduler, DDPMScheduler.from_config(pipe.scheduler.config)
            seconds, _ = seconds_of(pipe, num_inference_steps=1000)
            table[name]["seconds per 100 samples, DDPM of 1000 steps"] = round(seconds, 3)
            pipe.scheduler = chain
        shown[name] = dict(zip(("x", "z = encode(x)", "decode(z)", "decode(random z)"), (x, z, back, samples[:6])))
        print(name, table[name], flush=True)
    if args.picture:
        draw({name: {key: value.cpu() for key, value in row.items()} for name, row in shown.items()}, args.picture)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=HERE).stdout.strip()
    found = {
        "rows": table,
        "command": "python benchmarks/families.py --picture docs/images/families.png",
        "commit": commit,
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
        "threads": 1,
        "versions": {"torch": torch.__version__, "latentia": version("latentia")},
    }
    args.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
