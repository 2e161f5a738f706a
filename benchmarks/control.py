"""Diffusion that is conditioned on images: edges, holes, colours and enlargement, beside the baselines of each task.

    python benchmarks/control.py

Digits of 8 x 8 and emoji, here of 16 x 16 pixels, come with the package; with `--mnist`, a folder of parquet files, the
digits are those of MNIST. Each network trains by the training script itself. Settings of sampling, of this library's
networks and of the replacement method alike, are chosen on training images that no network is trained on, and scores
are of test images.

`edges`: an unconditional network of digits, a control branch on it, and a network that sees the edges as one more
channel; intersection over union of the edges of the result and of the control. `inpainting`: a network that was trained
with holes, the replacement method with the unconditional network, and mean fill; PSNR inside of the hole. `colour`:
CIEDE2000 of emoji coloured from grey. `enlarge`: digits to twice their sides. `editing`: inversion of test emoji by
the text-to-image pipeline of the repository, and swaps of the colour word in captions of training emoji, the weight
chosen on half of the captions and scored on the other; the background is what is white before. `--parts` runs some and
adds them to the results that are there.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lecture_diffusion import environment
from lecture_vae import rounded
from torch import Tensor

from latentia import DiffusionPipeline
from latentia.data import load_images, load_pairs
from latentia.evaluation import (
    color_word_accuracy,
    image_grid,
    load_extractor,
    palette,
    translation_baselines,
    translation_scores,
)
from latentia.evaluation.color import color_word
from latentia.functional.degradation import edges, luminance
from latentia.functional.pixels import from_uint8, to_uint8
from latentia.pipelines.editing import edit_images
from latentia.pipelines.inversion import invert
from latentia.runs.arguments import check_ranges
from latentia.runs.command_line import with_values

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "examples"))
import train_ddpm  # noqa: E402

SMALL = {"block_out_channels": (32, 64), "train_batch_size": 32}
# Name of a run -> flags of the training script and whether it is of digits.
RUNS: dict[str, tuple[dict[str, Any], bool]] = {
    "unconditional": ({**SMALL, "max_train_steps": 1200}, True),
    "branch": ({"train_batch_size": 32, "degrade": "edges", "max_train_steps": 600}, True),
    "edges": ({**SMALL, "degrade": "edges", "max_train_steps": 600}, True),
    "holes": ({**SMALL, "degrade": "masked", "max_train_steps": 1000}, True),
    "enlarge": ({**SMALL, "degrade": "smaller", "max_train_steps": 600}, True),
    "colour": ({**SMALL, "degrade": "grey", "max_train_steps": 800, "resolution": 16}, False),
}
PARTS = ("edges", "inpainting", "enlarge", "colour", "editing")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "brown")
OTHER_THINGS = ("person", "man", "hair", "dragon", "woman", "salad")  # the word is not of the whole image
WEIGHTS = (0.01, 0.02, 0.03, 0.05)
LINE = 0.0  # above it a pixel is of an edge, half of the strongest
STEPS = (5, 10, 25)
HELD_OUT = 500


def source_of(args: argparse.Namespace, digits: bool) -> Any:
    """What data are read from."""
    return (Path(args.mnist) if args.mnist else "digits") if digits else "emoji"


def splits_of(args: argparse.Namespace, digits: bool) -> tuple[str, str, str]:
    """The parts to train on, to choose settings on and to score on."""
    if not digits:
        return "train[:90%]", "train[90%:]", "test"
    return (
        ("train[:59500]", "train[59500:]", "test") if args.mnist else ("train[:70%]", "train[70%:85%]", "train[85%:]")
    )


def trained(name: str, args: argparse.Namespace) -> tuple[Any, float]:
    """The pipeline of a run, trained unless its folder is there, and its seconds of training."""
    folder = Path(args.runs) / name
    if not (folder / "model_index.json").is_file():
        flags, digits = RUNS[name]
        source = source_of(args, digits)
        data = {"train_data_dir": str(source)} if isinstance(source, Path) else {"dataset_name": source}
        split = {"split": splits_of(args, digits)[0]}
        fixed = {"output_dir": str(folder), "eval_num_samples": 0, "checkpointing_steps": 100_000, "seed": 0}
        base = {"control_from": str(Path(args.runs) / "unconditional")} if name == "branch" else {}
        steps = {"max_train_steps": args.steps} if args.steps else {}
        filled = with_values(train_ddpm.Arguments(), {**fixed, **data, **split, **flags, **base, **steps}, "benchmark")
        check_ranges(filled)
        assert train_ddpm.main(filled) == 0
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe, json.loads((folder / "run_summary.json").read_text())["training_seconds"]


def sample(pipe: Any, count: int, **options: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe(count, generator=generator, output_type="latent", **options).images.clamp(-1, 1)


def pairs_of(degrade: str | None, args: argparse.Namespace, split: str, digits: bool = True) -> tuple[Tensor, Tensor]:
    """Conditioning images and targets of a split, at most `--n`; without a degradation the targets twice."""
    source, options = source_of(args, digits), {"split": split, "resolution": None if digits else 16}
    data: Any = load_images(source, **options) if degrade is None else load_pairs(source, degrade=degrade, **options)
    rows = torch.linspace(0, len(data) - 1, min(args.n, len(data))).long()
    targets = from_uint8(data.images[rows])
    return (targets if degrade is None else data.conditions(rows)), targets


def draw(args: argparse.Namespace, name: str, rows: dict[str, Tensor]) -> None:
    """A grid of ten test images: a row for each of what is given."""
    shown = torch.linspace(0, len(next(iter(rows.values()))) - 1, 10).long()
    channels = max(x.shape[1] for x in rows.values())
    tiles = [x[shown].expand(-1, channels, -1, -1) for x in rows.values()]
    folder = Path(args.images)
    folder.mkdir(parents=True, exist_ok=True)
    image_grid(torch.cat(tiles), 10, row_labels=[*rows]).save(folder / f"control-{name}.png")


# ------------------------------------------------------------ parts


def iou(images: Tensor, control: Tensor) -> float:
    """Mean intersection over union of the edges of images and of control images."""
    a, b = edges(images) > LINE, control > LINE
    both, either = (a & b).flatten(1).sum(1), (a | b).flatten(1).sum(1)
    return float((both / either.clamp(min=1)).mean())


def edge_control(args: argparse.Namespace) -> dict[str, Any]:
    (known, _), (control, truth) = (pairs_of("edges", args, split) for split in splits_of(args, True)[1:])
    found: dict[str, Any] = {"n": len(control), "iou": {}, "seconds": {}, "steps": {}}
    rows = {"control": control}
    for name in ("unconditional", "branch", "edges"):
        pipe, found["seconds"][name] = trained(name, args)
        options = [{"num_inference_steps": count} for count in STEPS]
        given = [{} if name == "unconditional" else {"control_image": part} for part in (known, control)]
        best = max(options, key=lambda one: iou(sample(pipe, len(known), **given[0], **one), known))
        made = sample(pipe, len(control), **given[1], **best)
        found["iou"][name], found["steps"][name] = iou(made, control), best["num_inference_steps"]
        rows[name] = made
    found["iou"]["other real image"] = iou(truth.roll(1, 0), control)
    found["iou"]["truth"] = iou(truth, control)
    draw(args, "edges", {**rows, "truth": truth})
    return found


def psnr_inside(images: Tensor, truth: Tensor, mask: Tensor) -> float:
    """Mean PSNR in dB over the pixels of each hole."""
    error = ((images - truth).square() * mask).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)
    return float((10 * torch.log10(4 / error.clamp(min=1e-8))).mean())


def inpainting(args: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {"psnr_inside_db": {}, "chosen": {}, "outside_changed": {}, "seconds": {}}
    (known, known_truth), (condition, truth) = (pairs_of("masked", args, split) for split in splits_of(args, True)[1:])
    masks = [(x[:, -1:] > 0).float() for x in (known, condition)]
    rows = {"input": condition[:, :-1]}
    for name, run in (("replacement", "unconditional"), ("trained with holes", "holes")):
        pipe, found["seconds"][name] = trained(run, args)

        def fill(images: Tensor, mask: Tensor, options: dict[str, Any], pipe: Any = pipe) -> Tensor:
            return sample(pipe, len(images), image=images, mask=mask, **options)

        tried = [{"num_inference_steps": count, "eta": eta} for count in STEPS for eta in (0.0, 1.0)]
        scores = [psnr_inside(fill(known_truth, masks[0], one), known_truth, masks[0]) for one in tried]
        best = tried[int(torch.tensor(scores).argmax())]
        made = fill(truth, masks[1], best)
        found["psnr_inside_db"][name], found["chosen"][name] = psnr_inside(made, truth, masks[1]), best
        found["outside_changed"][name] = int(((made != truth) & (masks[1] == 0)).sum())
        rows[name] = made
    task = translation_baselines(known, known_truth, task="masked", scale=1)
    for name, baseline in task.items():
        found["psnr_inside_db"][name] = psnr_inside(baseline(condition), truth, masks[1])
    draw(args, "inpainting", {**rows, "truth": truth})
    return {**found, "n": len(truth)}


def restored(args: argparse.Namespace, run: str, degrade: str, digits: bool) -> dict[str, Any]:
    """Scores of colours or enlarged images, and of the baselines of the task."""
    pipe, seconds = trained(run, args)
    known, test = (pairs_of(degrade, args, split, digits) for split in splits_of(args, digits)[1:])
    fitted = pairs_of(degrade, argparse.Namespace(**{**vars(args), "n": 2000}), splits_of(args, digits)[0], digits)

    def restore(inputs: Tensor, targets: Tensor, count: int) -> Tensor:
        if degrade == "smaller":  # the small images are exact in the targets
            small = torch.nn.functional.avg_pool2d(targets, 2)
            return sample(pipe, len(targets), low_resolution=small, num_inference_steps=count)
        return sample(pipe, len(inputs), control_image=inputs, num_inference_steps=count)

    extractor = load_extractor("mnist" if args.mnist else "digits") if digits else None
    key = "psnr" if degrade == "smaller" else "ciede2000"

    def score(outputs: dict[str, Tensor], targets: Tensor) -> Any:
        return translation_scores(outputs, to_uint8(targets), extractor, about="test images")

    tried = {f"{count} steps": restore(*known, count) for count in STEPS}
    chosen = score(tried, known[1]).scores
    values = {name: chosen[name][key] for name in tried}
    best = (max if degrade == "smaller" else min)(values, key=lambda name: values[name])
    made = restore(*test, int(best.split()[0]))
    task = translation_baselines(*fitted, task=degrade, scale=2 if degrade == "smaller" else 1)
    outputs = {"diffusion": made, **{name: baseline(test[0]) for name, baseline in task.items()}}
    found: dict[str, Any] = {
        "scores": score(outputs, test[1]).scores,
        "chosen": best,
        "n": len(made),
        "seconds": seconds,
    }
    if degrade == "grey":
        grey = to_uint8(test[0]).float()
        found["grey_error_levels"] = float((luminance(to_uint8(made).float()) - grey).abs().max())
    else:
        means = (torch.nn.functional.avg_pool2d(x, 2) for x in (made, test[1]))
        found["block_mean_error"] = float((next(means) - next(means)).abs().max())
    draw(args, run, {"input": test[0], "diffusion": made, "truth": test[1]})
    return found


# ------------------------------------------------------------ editing


def swaps(args: argparse.Namespace) -> list[tuple[int, str, str, str]]:
    """(row, caption, colour, other colour) of training emoji, two others for each caption."""
    captions = load_images("emoji").captions or []
    rows = [(i, text, color_word(text)) for i, text in enumerate(captions) if not any(x in text for x in OTHER_THINGS)]
    found = []
    for n, (i, text, color) in enumerate(row for row in rows if row[2] in COLORS):
        others = [other for other in COLORS if other != color]
        found += [(i, text, str(color), others[(n + shift) % len(others)]) for shift in (0, 3)]
    return found[: args.n]


def editing(args: argparse.Namespace) -> dict[str, Any]:
    pipe = DiffusionPipeline.from_pretrained(HERE.parent / "pretrained" / "emoji", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    train, test = load_images("emoji"), load_images("emoji", split="test")
    rows = torch.linspace(0, len(test) - 1, min(48, args.n, len(test))).long()
    held, captions = from_uint8(test.images[rows]), [(test.captions or [])[i] for i in rows.tolist()]
    inversion: dict[str, Any] = {}
    for method in ("ddim", "fixed_point", "coupled"):
        found = invert(pipe, held, method=method, prompt=captions, num_inference_steps=25)
        inversion[method] = float(found.psnr.mean())
        inversion["autoencoder alone"] = float(found.autoencoder_psnr.mean())
    images, jobs = from_uint8(train.images), swaps(args)
    every = palette(images, train.captions or [])
    colors = {word: every[word] for word in COLORS}

    def score(part: list[tuple[int, str, str, str]], weight: float) -> tuple[dict[str, float], Tensor, Tensor]:
        before, (_, texts, words, others) = images[[i for i, *_ in part]], zip(*part)
        options = {"attention_weight": weight, "num_inference_steps": 25}
        after = edit_images(pipe, before, list(texts), list(words), list(others), **options).images
        background = (before.amin(1, keepdim=True) > 0.9).float()
        change = (after - before).abs().mean(1, keepdim=True) * background
        l1 = change.flatten(1).sum(1) / background.flatten(1).sum(1).clamp(min=1)
        asked = [f"{other} thing" for *_, other in part]
        values = {"color": color_word_accuracy(after, asked, colors), "background_l1": float(l1.mean())}
        return values, before, after

    known, part = jobs[0::4] + jobs[1::4], jobs[2::4] + jobs[3::4]  # two swaps of a caption stay together
    tried = {weight: score(known, weight)[0] for weight in WEIGHTS}
    right = [weight for weight in WEIGHTS if tried[weight]["color"] >= 0.75] or [WEIGHTS[0]]
    best = min(right, key=lambda weight: tried[weight]["background_l1"])
    edited, before, after = score(part, best)
    plain, _, swapped = score(part, 0.0)
    draw(args, "editing", {"before": before, "plain swap": swapped, "edited": after})
    return {
        "inversion_psnr_db": inversion, "attention_weight": best, "edited": edited, "plain_swap": plain,
        "n": len(part), "chosen_on": len(known), "inverted": len(held),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", help="folder of parquet files of MNIST, for its digits")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--n", type=int, default=500, help="test images, and images that settings are chosen on")
    parser.add_argument("--steps", type=int, help="of every training, in place of the recipe's")
    parser.add_argument("--runs", default="outputs/control", help="where trained pipelines are, or are put")
    parser.add_argument("--images", default="outputs/control-images")
    parser.add_argument("--output", default=str(HERE / "results" / "control.json"))
    args = parser.parse_args()
    path = Path(args.output)
    results = json.loads(path.read_text()) if path.is_file() else {}
    for part in args.parts:
        began = time.perf_counter()
        if part == "edges":
            found = edge_control(args)
        elif part == "inpainting":
            found = inpainting(args)
        elif part == "editing":
            found = editing(args)
        else:
            found = restored(args, part, {"enlarge": "smaller", "colour": "grey"}[part], part == "enlarge")
        data = str(source_of(args, part not in ("colour", "editing")))
        results[part] = {
            "data": Path(data).name,
            **rounded(found),
            "wall_seconds": round(time.perf_counter() - began),
            **environment(),
        }
        print(json.dumps({part: results[part]}, indent=1))
        path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
