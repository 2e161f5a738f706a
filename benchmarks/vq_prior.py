"""The first DALL-E's way, small: a transformer over the codes of a VQ-VAE, told a text or a class.

    python benchmarks/vq_prior.py --train_data_dir mnist/train.parquet --test_data_dir mnist/test.parquet

Everything is trained by the example scripts, as a user would: `mnist`, whose captions are made of its labels ("a
handwritten seven", "the digit seven"), and `digits`, which come with the package, told their class. Measured on images
that were not trained on: bits per code of the transformer, of independent positions, of one distribution for all codes,
and log2 K. Of 1000 samples: how many show what was asked for by the shipped classifier, beside what it says of real
images through the same VQ-VAE, and the Frechet distance of its features.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lecture_diffusion import environment
from lecture_gan import Rows, rounded, seeded

from latentia import DiffusionPipeline, PositionPrior
from latentia.data import load_images
from latentia.evaluation import frechet_distance, image_grid, load_extractor

HERE = Path(__file__).resolve().parent
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PHRASES = ("a handwritten {}", "the digit {}")


def example(script: str, folder: Path, *flags: str) -> dict:
    """Run an example script, or go on with what it left, and give back its summary."""
    command = [sys.executable, str(HERE.parent / "examples" / script), "--output_dir", str(folder), *flags]
    subprocess.run([*command, "--eval_num_samples", "0"], check=True, stderr=subprocess.DEVNULL)
    return json.loads((folder / "run_summary.json").read_text())


def captioned(source: str, file: Path) -> Path:
    """The images of a parquet file with a caption of each label, the two phrases in turn."""
    table = pq.read_table(source)
    captions = [PHRASES[i % 2].format(WORDS[label]) for i, label in enumerate(table["label"].to_pylist())]
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.append_column("caption", pa.array(captions)), file)
    return file


def mnist(rows: Rows, args) -> None:
    folder = args.folder / "mnist"
    data = ["--train_data_dir", str(captioned(args.train_data_dir, folder / "train.parquet"))]
    seconds = example(
        "train_vqvae.py", folder / "vqvae", *data, "--block_out_channels", "16", "32", "--codebook_size", "256",
        "--max_train_steps", str(args.vqvae_steps),
    )["training_seconds"]  # fmt: skip
    seconds += example(
        "train_vq_prior.py", folder / "prior", *data, "--vqvae", str(folder / "vqvae"), "--caption", "--max_tokens",
        "8", "--layers", "3", "--dropout", "0", "--max_train_steps", str(args.steps),
    )["training_seconds"]  # fmt: skip
    test = load_images(captioned(args.test_data_dir, folder / "test.parquet"))
    asked = [PHRASES[0].format(word) for word in WORDS]
    measured(
        rows, args, "mnist", folder, load_images(args.train_data_dir), test, seconds,
        known=lambda part: {"prompt": test.captions[part]}, asked=lambda labels: {"prompt": [asked[i] for i in labels]},
    )  # fmt: skip


def digits(rows: Rows, args) -> None:
    folder, data = args.folder / "digits", ["--dataset_name", "digits", "--split", "train[:80%]"]
    seconds = example(
        "train_vqvae.py", folder / "vqvae", *data, "--block_out_channels", "32", "--codebook_size", "64",
        "--max_train_steps", "600",
    )["training_seconds"]  # fmt: skip
    seconds += example(
        "train_vq_prior.py", folder / "prior", *data, "--vqvae", str(folder / "vqvae"), "--class_conditional",
        "--width", "96", "--layers", "2", "--dropout", "0.2", "--max_train_steps", "400",
    )["training_seconds"]  # fmt: skip
    train, test = (load_images("digits", split=f"train[{part}]") for part in (":80%", "80%:"))
    measured(
        rows, args, "digits", folder, train, test, seconds,
        known=lambda part: {"class_labels": test.labels[part]}, asked=lambda labels: {"class_labels": labels},
    )  # fmt: skip


def measured(rows: Rows, args, name: str, folder: Path, train, test, seconds: float, *, known, asked) -> None:
    """Rows and a picture of the pipeline in `folder`; `known` tells it of test images, `asked` of labels."""
    pipe = DiffusionPipeline.from_pretrained(folder / "prior")
    pipe.set_progress_bar_config(disable=True)
    size, n = pipe.vqvae.quantize.codebook_size, math.prod(pipe.vqvae.code_shape)
    pixels = [(data.images.float() / 127.5 - 1)[:10_000] for data in (train, test)]
    codes, held_out = (torch.cat([pipe.encode(part) for part in images.split(1000)]) for images in pixels)

    parts = [slice(i, min(i + 500, len(test))) for i in range(0, len(test), 500)]
    nats = torch.cat([pipe.log_likelihood(pixels[1][part], **known(part)) for part in parts])
    shares = torch.bincount(codes.flatten(), minlength=size).double() + 1 / size
    bits = {
        "transformer": -float(nats.double().mean()) / n / math.log(2),
        "independent positions": -float(PositionPrior.fit(codes, size).log_prob(held_out).detach().mean())
        / n
        / math.log(2),
        "one distribution": -float((shares / shares.sum()).log2()[held_out].mean()),
        "log2 K": math.log2(size),
    }
    holds = [*bits.values()] == sorted(bits.values())
    rows.put("F20, J20e, P12", f"{name}, bits per code", bits.pop("transformer"), bits, "least of all", holds,
             training_seconds=seconds)  # fmt: skip

    extractor, labels = load_extractor(name), [i // (args.samples // 10) for i in range(args.samples)]
    started = time.perf_counter()
    drawn = {
        key: torch.cat([
            pipe(generator=seeded(i), output_type="latent", **asked(labels[i : i + 100]), **options).images
            for i in range(0, args.samples, 100)
        ]).clamp(-1, 1)
        for key, options in (("all", {}), ("top_p 0.9", {"top_p": 0.9}), ("temperature 0.8", {"temperature": 0.8}))
    }  # fmt: skip
    took = (time.perf_counter() - started) / len(drawn)
    prior = PositionPrior.fit(codes, size)
    apart = prior.sample(args.samples, [seeded(i) for i in range(args.samples)])
    others = {
        "independent positions": pipe.decode(apart, output_type="latent").clamp(-1, 1),
        "real, through the VQ-VAE": pipe.decode(held_out[: args.samples], output_type="latent").clamp(-1, 1),
    }
    out = {key: extractor(images) for key, images in {**drawn, **others}.items()}
    right = {key: float((out[key].logits.argmax(1) == torch.tensor(labels)).double().mean()) for key in drawn}
    truth = torch.as_tensor(test.labels[: len(others["real, through the VQ-VAE"])])
    real = float((out["real, through the VQ-VAE"].logits.argmax(1) == truth).double().mean())
    share = right.pop("all")
    rows.put("F20", f"{name}, share of samples that show what was asked for", share,
             {**right, "real, through the VQ-VAE": real, "chance": 0.1}, "at least 0.8", share >= 0.8,
             seconds_of_the_samples=took)  # fmt: skip
    reference = extractor(pixels[1]).features
    distance = {key: frechet_distance(found.features, reference) for key, found in out.items()}
    first = distance.pop("all")
    rows.put("J20e", f"{name}, Frechet distance of samples to held-out images", first, distance,
             "less than half of independent positions", first < distance["independent positions"] / 2)  # fmt: skip

    if name == "mnist":  # the digits are too small to be looked at
        shown = drawn["all"].unflatten(0, (10, -1))[:, :10].flatten(0, 1)
        args.pictures.mkdir(parents=True, exist_ok=True)
        image_grid(shown, 10, tile=28, row_labels=list(WORDS)).save(args.pictures / "vq-prior-mnist.png")


PARTS = {"mnist": mnist, "digits": digits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train_data_dir", help="MNIST's training images, parquet")
    parser.add_argument("--test_data_dir", help="its test images")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--vqvae_steps", type=int, default=800, help="of MNIST, 64 pictures each")
    parser.add_argument("--steps", type=int, default=700, help="of MNIST's transformer, 64 pictures each")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--folder", type=Path, default=Path("outputs/vq-prior"), help="of the runs")
    parser.add_argument("--pictures", type=Path, default=HERE.parent / "docs" / "images")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "vq_prior.json")
    args = parser.parse_args()
    told = [str(Path(*Path(word).parts[-2:])) if "/" in word else word for word in sys.argv[1:]]
    about = {"command": " ".join(["python benchmarks/vq_prior.py", *told]), **environment()}
    rows = Rows()
    for part in args.parts:
        before = len(rows)
        PARTS[part](rows, args)
        for row in rows[before:]:
            row |= {"part": part, **about}
    old = json.loads(args.output.read_text())["rows"] if args.output.exists() else []
    kept = [row for row in old if row["part"] not in args.parts]
    text = {"what": "a transformer over the codes of a VQ-VAE", "rows": rounded([*kept, *rows])}
    args.output.parent.mkdir(exist_ok=True)
    args.output.write_text(json.dumps(text, indent=1) + "\n")
    print(f"{sum(row['passed'] for row in rows)} of {len(rows)} rows hold")


if __name__ == "__main__":
    main()
