"""Image-to-image translation: pix2pix on two emoji styles, colourisation, enlargement, denoising, CycleGAN on digits.

    python benchmarks/translation.py --mnist data/mnist --emoji data/emoji

Emoji of 32 x 32 pixels come with the package; `--emoji` is a folder of parquet files of the same set at 64 x 64, with
the columns noto and twemoji, and `--mnist` one of MNIST. Each task trains by the training script itself and is scored
on the test part as `latentia evaluate` scores it, beside the baselines of the task. Weights of the objective and
numbers of steps can be chosen with `--validate`, which holds the last tenth of the training part out and scores on it.
The perceptual distance is of the classifier whose layers pix2pix is trained with here, so it is no independent score.
`--tasks` runs some tasks and adds them to the results that are there. `throughput` trains the networks of the published
pix2pix for 256 x 256 pixels, in this library's loop and in a bare one that was written independently, in turns.
"""

import argparse
import io
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from lecture_diffusion import environment
from lecture_vae import rounded
from PIL import Image
from torch import Tensor, nn

from latentia import DiffusionPipeline, ImageTranslator, PatchDiscriminator
from latentia.data import Degradation, ImageData, PairedImages, load_images, load_pairs
from latentia.evaluation import image_grid, load_extractor, translation_baselines, translation_scores
from latentia.functional.degradation import luminance
from latentia.functional.pixels import from_uint8, to_uint8
from latentia.losses.translation import StepImages, translation_discriminator_loss, translation_loss
from latentia.runs.arguments import check_ranges
from latentia.runs.command_line import with_values
from latentia.training.loop import Phase, train

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "examples"))
import train_cycle  # noqa: E402
import train_translation  # noqa: E402

PLAIN = {"adversarial_weight": 0.0}
STYLES = {"image_column": "noto", "target_column": "twemoji"}
CYCLE = {"architecture": "unet", "block_out_channels": (16, 32), "norm": "none", "discriminator_channels": (8, 16),
         "pool_size": 64, "cycle_weight": 20.0, "learning_rate": 1e-3}  # fmt: skip
DENOISE = {"degrade": "noised", "strength": 1.5, "block_out_channels": (16, 32, 64), "l1_weight": 0.0, **PLAIN,
           "mse_weight": 100.0, "max_train_samples": 20_000, "max_train_steps": 500}  # fmt: skip
# Task -> model -> flags of the training script. The data are added to them.
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "enlarge_digits": {
        "L1": {"degrade": "smaller", "strength": 2.0, "block_out_channels": (16, 32, 64), **PLAIN,
               "max_train_samples": 20_000, "max_train_steps": 1200},
    },
    "styles": {
        "L1": {**STYLES, **PLAIN, "max_train_steps": 1200},
        "pix2pix": {**STYLES, "feature_weight": 10.0, "perceptual_weight": 10.0, "max_train_steps": 1200},
    },
    "colour": {"L1": {"image_column": "noto", "degrade": "grey", **PLAIN, "max_train_steps": 1200}},
    "noised": {
        name: {**DENOISE, "perceptual_weight": weight} for name, weight in
        (("MSE", 0.0), ("MSE and perceptual, 10", 10.0), ("MSE and perceptual, 50", 50.0))
    },
    "inverted": {"CycleGAN": {**CYCLE, "max_train_steps": 700}},
    "coloured": {"CycleGAN": {**CYCLE, "max_train_steps": 700}},
    "enlarge_emoji": {
        "L1": {"degrade": "smaller", "strength": 4.0, "image_column": "noto", "block_out_channels": (16, 32, 64, 64),
               **PLAIN, "max_train_steps": 400},
    },
}  # fmt: skip
TASKS = (*RECIPES, "throughput")
OF_DIGITS = ("enlarge_digits", "noised")
INK, PAPER = (1.0, 0.4, -0.6), (-0.9, -0.6, 0.1)  # of coloured digits: orange on dark blue


# ------------------------------------------------------------ training and scores


def trained(script: Any, flags: dict[str, Any], folder: Path) -> tuple[Any, float]:
    """The pipeline that a training script leaves, and its seconds of training."""
    fixed = {"output_dir": str(folder), "eval_num_samples": 0, "checkpointing_steps": 100_000, "seed": 0}
    args = with_values(script.Arguments(), {**fixed, **flags}, "benchmark")
    check_ranges(args)
    began = time.perf_counter()
    assert script.main(args) == 0
    seconds = time.perf_counter() - began
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe, seconds


def translate(pipe: Any, inputs: Tensor, **options: Any) -> Tensor:
    generators = [torch.Generator().manual_seed(i) for i in range(len(inputs))]
    return pipe.translate(inputs, generators, **options).float().clamp(-1, 1)


def pairs_of(task: str, args: argparse.Namespace, split: str) -> tuple[PairedImages, dict[str, Any]]:
    """The pairs of a task, and the flags that name them."""
    flags = next(iter(RECIPES[task].values()))
    if task in OF_DIGITS:
        data = {"train_data_dir": str(args.mnist)}
    elif task == "enlarge_emoji":
        data = {"train_data_dir": str(args.emoji)}
    else:
        data = {"dataset_name": "emoji"}
    names = ("image_column", "target_column", "degrade", "strength")
    options = {name: flags[name] for name in names if name in flags}
    limit = 20_000 if task in OF_DIGITS and split.startswith("train") else None
    source = data.get("dataset_name") or Path(data["train_data_dir"])
    return load_pairs(source, **options, split=split, max_samples=limit), data


def paired(task: str, args: argparse.Namespace) -> dict[str, Any]:
    """Scores of each model of a task on pairs, and of the baselines."""
    fitted, tested = ("train[:90%]", "train[90%:]") if args.validate else ("train", "test")
    known, data = pairs_of(task, args, fitted)
    test, _ = pairs_of(task, args, tested)
    chosen = torch.linspace(0, len(test) - 1, min(1000, len(test))).long()
    inputs, targets = test.conditions(chosen), test.images[chosen]
    made = test.inputs if isinstance(test.inputs, Degradation) else None
    outputs, seconds, steps, parameters = {}, {}, {}, {}
    for name, flags in RECIPES[task].items():
        flags = {**flags, **({"max_train_steps": args.steps} if args.steps else {})}
        with tempfile.TemporaryDirectory() as folder:
            pipe, seconds[name] = trained(train_translation, {**data, **flags, "split": fitted}, Path(folder))
        outputs[name], steps[name] = translate(pipe, inputs), flags["max_train_steps"]
        parameters[name] = sum(weight.numel() for weight in pipe.translator.parameters())
    models = [*outputs]
    rows = torch.linspace(0, len(known) - 1, min(2000, len(known))).long()
    scale = 1 if made is None else made.scale
    baselines = translation_baselines(
        known.conditions(rows), from_uint8(known.images[rows]), task=None if made is None else made.name, scale=scale
    )
    outputs |= {name: baseline(inputs) for name, baseline in baselines.items()}
    shape = tuple(targets.shape[1:])
    extractor = load_extractor({(1, 28, 28): "mnist", (3, 32, 32): "emoji"}[shape]) if shape[1] < 64 else None
    scores = translation_scores(outputs, targets, extractor, about=f"{tested} images")
    found = {"scores": scores.scores, "n": scores.n, "ssim_window": scores.ssim_window,
             "ms_ssim_scales": scores.ms_ssim_scales, "seconds": seconds, "steps": steps,
             "generator_parameters": parameters, "train": len(known)}  # fmt: skip
    if task == "colour":  # of the bytes that are saved
        grey = to_uint8(inputs).float()
        found["grey_error_levels"] = {
            name: float((luminance(to_uint8(outputs[name]).float()) - grey).abs().max()) for name in models
        }
    if task == "enlarge_digits" and extractor is not None:
        found["read"] = {name: read(made, test.labels[chosen], extractor) for name, made in outputs.items()}
        found["read"]["real"] = read(from_uint8(targets), test.labels[chosen], extractor)
    draw(args, task, inputs, outputs, models, from_uint8(targets))
    return found


def read(images: Tensor, labels: Tensor, extractor: Any) -> float:
    """Share of digits that the shipped classifier reads right."""
    found = torch.cat([extractor(part.clamp(-1, 1))[1].argmax(1) for part in images.split(200)])
    return float((found.cpu() == labels).double().mean())


def draw(args: argparse.Namespace, task: str, inputs: Tensor, outputs: dict, models: list[str], truth: Tensor) -> None:
    """A grid of eight test images: input, each model, the best baseline of pixels, and the truth."""
    shown = torch.linspace(0, len(inputs) - 1, 10).long()
    beside = {"input": inputs, **{name: outputs[name] for name in models}, "truth": truth}
    tiles = [x[shown].expand(-1, truth.shape[1], -1, -1) for x in beside.values()]
    folder = Path(args.images)
    folder.mkdir(parents=True, exist_ok=True)
    image_grid(torch.cat(tiles), 10, row_labels=[*beside]).save(folder / f"translation-{task}.png")


# ------------------------------------------------------------ without pairs


def coloured(grey: Tensor) -> Tensor:
    """Digits (B, 1, H, W) in orange on dark blue."""
    ink, paper = (torch.tensor(color).view(1, 3, 1, 1) for color in (INK, PAPER))
    share = (grey + 1) / 2
    return paper + share * (ink - paper)


def uncoloured(images: Tensor) -> Tensor:
    """The grey digit whose coloured one is nearest."""
    ink, paper = (torch.tensor(color).view(1, 3, 1, 1) for color in (INK, PAPER))
    share = ((images - paper) * (ink - paper)).sum(1, keepdim=True) / (ink - paper).square().sum()
    return (2 * share - 1).clamp(-1, 1)


DOMAINS = {"inverted": (torch.neg, torch.neg), "coloured": (coloured, uncoloured)}


def write_images(images: Tensor, path: Path) -> Path:
    """A parquet file of PNG images."""
    rows = []
    for one in to_uint8(images).permute(0, 2, 3, 1).numpy():
        buffer = io.BytesIO()
        Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    pq.write_table(pa.table({"image": rows}), path)
    return path


def unpaired(task: str, args: argparse.Namespace) -> dict[str, Any]:
    """CycleGAN between digits and changed digits: one half of the training images each, so that no digit is in both."""
    there, back = DOMAINS[task]
    fitted, tested = ("train[:90%]", "train[90%:]") if args.validate else ("train", "test")
    known = load_images(Path(args.mnist), split=fitted, max_samples=20_000)
    test = load_images(Path(args.mnist), split=tested, max_samples=1000)
    images, inputs = from_uint8(known.images), from_uint8(test.images)
    name, flags = next(iter(RECIPES[task].items()))
    flags = {**flags, **({"max_train_steps": args.steps} if args.steps else {})}
    with tempfile.TemporaryDirectory() as folder:
        first = write_images(images[0::2], Path(folder) / "a.parquet")
        second = write_images(there(images[1::2]), Path(folder) / "b.parquet")
        data = {"train_data_dir": str(first), "target_data_dir": str(second), "cache_dir": f"{folder}/cache"}
        pipe, seconds = trained(train_cycle, {**data, **flags}, Path(folder) / "run")
    outputs, extractor = translate(pipe, inputs), load_extractor("mnist")
    cycled = translate(pipe, outputs, direction="backward")
    truth = there(inputs)
    from_truth = translate(pipe, truth, direction="backward")
    draw(args, task, inputs, {name: outputs, "there and back": cycled}, [name, "there and back"], truth)
    assert test.labels is not None
    return {
        "label_kept": {"forward": read(back(outputs), test.labels, extractor),
                       "backward": read(from_truth, test.labels, extractor),
                       "real": read(inputs, test.labels, extractor)},
        "cycle_l1": float((cycled - inputs).abs().mean()),
        "l1_to_truth": float((outputs - truth).abs().mean()),
        "l1_of_identity": float((inputs - truth).abs().mean()),
        "seconds": seconds, "steps": flags["max_train_steps"], "n": len(inputs), "train": len(images),
    }  # fmt: skip


# ------------------------------------------------------------ throughput


class BareUNet(nn.Module):
    """The generator of the published pix2pix for 256 x 256 pixels: eight stages, batch norm, dropout in three."""

    def __init__(self, widths=(64, 128, 256, 512, 512, 512, 512, 512)):
        super().__init__()
        self.encoders, self.decoders = nn.ModuleList(), nn.ModuleList()
        for i, width in enumerate(widths):
            block: list[nn.Module] = [] if i == 0 else [nn.LeakyReLU(0.2)]
            inner = 0 < i < len(widths) - 1
            block.append(nn.Conv2d(3 if i == 0 else widths[i - 1], width, 4, 2, 1, bias=not inner))
            self.encoders.append(nn.Sequential(*block, *([nn.BatchNorm2d(width)] if inner else [])))
        for i in reversed(range(len(widths))):
            taken = widths[i] if i == len(widths) - 1 else 2 * widths[i]
            if i == 0:
                self.decoders.append(nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(taken, 3, 4, 2, 1), nn.Tanh()))
                continue
            block = [nn.ReLU(), nn.ConvTranspose2d(taken, widths[i - 1], 4, 2, 1, bias=False)]
            block.append(nn.BatchNorm2d(widths[i - 1]))
            self.decoders.append(nn.Sequential(*block, *([nn.Dropout(0.5)] if 3 < i < len(widths) - 1 else [])))

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for encoder in self.encoders:
            x = encoder(x)
            kept.append(x)
        x = kept.pop()
        for i, decoder in enumerate(self.decoders):
            x = decoder(x if i == 0 else torch.cat([x, kept.pop()], 1))
        return x


def bare_discriminator() -> nn.Module:
    """The 70 x 70 PatchGAN of pairs."""
    layers: list[nn.Module] = [nn.Conv2d(6, 64, 4, 2, 1), nn.LeakyReLU(0.2)]
    for a, b, stride in ((64, 128, 2), (128, 256, 2), (256, 512, 1)):
        layers += [nn.Conv2d(a, b, 4, stride, 1, bias=False), nn.BatchNorm2d(b), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(512, 1, 4, 1, 1))


def bare_steps(data: PairedImages, steps: int) -> float:
    """Seconds of a step of a bare loop, of one image each."""
    g, d = BareUNet(), bare_discriminator()
    g_adam, d_adam = (torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999)) for net in (g, d))
    entropy = nn.BCEWithLogitsLoss()
    began = 0.0
    for step in range(steps + 2):
        began = time.perf_counter() if step == 2 else began
        batch = data.batch(step, step + 1)
        x, y = batch["condition"], batch["x"]
        fake = g(x)
        d_adam.zero_grad()
        on_fake, on_real = d(torch.cat([x, fake.detach()], 1)), d(torch.cat([x, y], 1))
        loss = entropy(on_fake, torch.zeros_like(on_fake)) + entropy(on_real, torch.ones_like(on_real))
        (loss / 2).backward()
        d_adam.step()
        for weight in d.parameters():
            weight.requires_grad_(False)
        g_adam.zero_grad()
        on_fake = d(torch.cat([x, fake], 1))
        (entropy(on_fake, torch.ones_like(on_fake)) + 100 * (fake - y).abs().mean()).backward()
        g_adam.step()
        for weight in d.parameters():
            weight.requires_grad_(True)
    return (time.perf_counter() - began) / steps


def our_steps(data: PairedImages, steps: int) -> float:
    """Seconds of a step of this library's loop with its own networks of these shapes, of one image each."""
    accelerator, made = Accelerator(cpu=True), StepImages()
    g = ImageTranslator(block_out_channels=(64, 128, 256, 512, 512, 512, 512, 512), dropout=0.5)
    d = PatchDiscriminator(6, (64, 128, 256, 512))
    adam = [torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999)) for net in (g, d)]
    g, d, g_adam, d_adam = accelerator.prepare(g, d, *adam)
    stamps = []

    def loss(batch, rng):
        stamps.append(time.perf_counter())
        return translation_loss(g, batch, rng, discriminator=d, made=made)

    def discriminator_loss(batch, rng):
        return translation_discriminator_loss(d, batch, rng, made=made)

    phases = [Phase("g", loss, g, g_adam), Phase("d", discriminator_loss, d, d_adam)]
    with tempfile.TemporaryDirectory() as folder:
        train(accelerator, phases, data, output_dir=folder, max_steps=steps + 3, batch_size=1, checkpoint_every=None,
              resume="none", log_every=10**6)  # fmt: skip
    return (stamps[-1] - stamps[2]) / steps


def throughput(args: argparse.Namespace) -> dict[str, Any]:
    images = [ImageData(torch.randint(256, (8, 3, 256, 256), dtype=torch.uint8)) for _ in range(2)]
    data, steps = PairedImages(*images), args.steps or 6
    rounds = [(our_steps(data, steps), bare_steps(data, steps)) for _ in range(2)]
    ours, bare = (min(one) for one in zip(*rounds))
    return {"seconds_per_step": {"latentia": ours, "bare loop": bare}, "speed_ratio": bare / ours, "rounds": rounds,
            "steps": steps, "threads": torch.get_num_threads()}  # fmt: skip


# ------------------------------------------------------------ targets


def verdicts(results: dict[str, Any]) -> dict[str, bool]:
    """Which of the numbers that were aimed at are reached, of the tasks that were run."""
    found = {}
    if "styles" in results:
        scores = results["styles"]["scores"]
        ours, plain = scores["pix2pix"], scores["L1"]
        found["styles: L1 below nearest neighbour"] = ours["l1"] < scores["nearest neighbour"]["l1"]
        found["styles: perceptual distance below L1 alone"] = ours["perceptual"] < plain["perceptual"]
        near = [abs(1 - one["sharpness_ratio"]) for one in (ours, plain)]
        found["styles: gradient energy nearer 1 than L1 alone"] = near[0] < near[1]
    if "colour" in results:
        scores, (model,) = results["colour"]["scores"], results["colour"]["steps"]
        for name in ("mean colour", "best hue"):
            found[f"colour: CIEDE2000 below {name}"] = scores[model]["ciede2000"] < scores[name]["ciede2000"]
        found["colour: grey kept within one level"] = results["colour"]["grey_error_levels"][model] <= 1
    for task in ("enlarge_digits", "enlarge_emoji"):
        if task in results:
            scores = results[task]["scores"]
            for key in ("psnr", "ssim"):
                found[f"{task}: {key} above regression"] = scores["L1"][key] > scores["bicubic and regression"][key]
    if "noised" in results:
        scores = results["noised"]["scores"]
        plain = scores["MSE"]
        near = [one for name, one in scores.items() if "and perceptual" in name and one["psnr"] >= plain["psnr"] - 1]
        sharper = [abs(1 - one["sharpness_ratio"]) < abs(1 - plain["sharpness_ratio"]) for one in near]
        found["noised: sharper than MSE alone, PSNR within 1 dB"] = any(sharper)
    if "enlarge_digits" in results:
        seen = results["enlarge_digits"]["read"]
        found["enlarge_digits: read 2 points better than bicubic, or as real"] = (
            seen["L1"] >= seen["bicubic"] + 0.02 or seen["L1"] >= seen["real"] - 0.002
        )
    for task in DOMAINS:
        if task in results:
            found[f"{task}: label kept in at least 0.9"] = results[task]["label_kept"]["forward"] >= 0.9
            found[f"{task}: L1 there and back at most 0.05"] = results[task]["cycle_l1"] <= 0.05
    if "throughput" in results:
        found["throughput: at least that of the bare loop"] = results["throughput"]["speed_ratio"] >= 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mnist", type=Path, help="folder of MNIST in parquet")
    parser.add_argument("--emoji", type=Path, help="folder of the emoji at 64 x 64 in parquet")
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=TASKS)
    parser.add_argument("--validate", action="store_true", help="score on the last tenth of the training part")
    parser.add_argument("--steps", type=int, help="of each training, in place of the recipe's")
    parser.add_argument("--images", default="outputs/translation", help="folder of the grids")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "translation.json")
    args = parser.parse_args()
    found = json.loads(args.output.read_text()) if args.output.is_file() and not args.validate else {}
    results = found.get("results", {})
    for task in args.tasks:
        if task == "throughput":
            results[task] = throughput(args)
        else:
            results[task] = (unpaired if task in DOMAINS else paired)(task, args)
        results[task]["commit"] = environment()["commit"]
        print(task, json.dumps(rounded(results[task]), indent=1), flush=True)
        report = {"environment": environment(), "results": results, "reached": verdicts(results)}
        if not args.validate:
            args.output.write_text(json.dumps(rounded(report), indent=1) + "\n")
    print(json.dumps(verdicts(results), indent=1))


if __name__ == "__main__":
    main()
