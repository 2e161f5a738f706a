"""The main job from end to end: train, save, load in a new process, sample three ways, score, and show it.

python examples/demo.py --output_dir outputs/demo
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Arguments:
    """Train a small diffusion model on the embedded digits and show what it can do."""

    output_dir: Path = Path("outputs/demo")
    """Where everything goes."""
    max_train_steps: int = 1000
    """Optimizer steps; 1000 take about three minutes on two cores."""
    num_samples: int = 200
    """Images per score."""
    stage: Literal["all", "show"] = "all"
    """"show" leaves the training out and only samples and scores what is in output_dir."""


def train(args: Arguments) -> None:
    """One command, as a user would type it."""
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", str(HERE / "train_ddpm.py")),
        *("--dataset_name", "digits", "--class_conditional", "--output_dir", str(args.output_dir)),
        *("--max_train_steps", str(args.max_train_steps), "--eval_num_samples", str(args.num_samples)),
    ]
    shown = command[command.index(str(HERE / "train_ddpm.py")) + 1 :]
    print("accelerate launch examples/train_ddpm.py " + " ".join(shown), flush=True)
    code = subprocess.run(command).returncode
    if code:
        sys.exit(code)


def show(args: Arguments) -> None:
    """Load the saved pipeline in this new process, sample with DDPM and DDIM, and score each."""
    import torch
    from tqdm.auto import tqdm

    import latentia
    from latentia.data import load_images
    from latentia.evaluation import image_grid, image_strip, load_extractor, measure, score, uint8_batches

    pipe = latentia.DiffusionPipeline.from_pretrained(args.output_dir)
    pipe.set_progress_bar_config(disable=True)
    extractor = load_extractor("digits")
    digits = load_images("digits")
    real = measure(uint8_batches(digits.images), extractor, digits.labels)
    config, samples = pipe.scheduler.config, args.output_dir / "samples"
    ddpm, ddim = latentia.DDPMScheduler.from_config(config), latentia.DDIMScheduler.from_config(config)
    n, rows = args.num_samples, []
    labels = [i % 10 for i in range(n)]
    for name, scheduler, steps in (("DDPM", ddpm, 1000), ("DDIM", ddim, 50), ("DDIM", ddim, 20)):
        pipe.scheduler = scheduler
        with tqdm(total=steps, desc=f"{name}, {steps} steps, {n} images") as bar:
            started = time.perf_counter()
            images = pipe(
                n, class_labels=labels, num_inference_steps=steps, generator=torch.Generator().manual_seed(0),
                output_type="latent", callback_on_step_end=lambda *_: bar.update() and None,
            ).images  # fmt: skip
            seconds = time.perf_counter() - started
        report = score(images, real, extractor, labels=labels, metrics=["fd", "inception_score", "label_agreement"])
        rows.append({"sampler": name, "steps": steps, "seconds": seconds, **report.to_dict()})
        image_grid(images[:100], columns=10, column_labels=[str(i) for i in range(10)]).save(
            samples / f"{name.lower()}-{steps}.png"
        )

    seen, times = [], [999, 900, 800, 700, 600, 500, 400, 300, 200, 100]
    pipe.scheduler = ddim
    pipe(
        10, class_labels=list(range(10)), num_inference_steps=50, generator=torch.Generator().manual_seed(1),
        callback_on_step_end=lambda pipeline, i, t, values: seen.append((int(t), values["latents"])) and None,
    )  # fmt: skip
    chosen = [min(seen, key=lambda item: abs(item[0] - t)) for t in times] + [seen[-1]]
    image_strip([x for _, x in chosen], [t for t, _ in chosen[:-1]] + ["image"]).save(samples / "denoising.png")
    (args.output_dir / "scores.json").write_text(json.dumps(rows, indent=1) + "\n")
    farewell(args, rows)


def farewell(args: Arguments, rows: list[dict]) -> None:
    summary = json.loads((args.output_dir / "run_summary.json").read_text())
    folder, first = args.output_dir, rows[0]
    images, seconds = summary["data"]["images"], summary["training_seconds"]
    print(f"\nTrained on {images} digits, {summary['epochs']:g} epochs, in {seconds:.0f} s.\n")
    print(f"{'sampler':16}{'Fréchet distance':>18}{'Inception score':>17}{'right class':>13}{'s / 100 images':>16}")
    for row in rows:
        name = f"{row['sampler']}, {row['steps']} steps"
        speed = 100 * row["seconds"] / row["n"]
        fd, inception, right = (row["scores"][key]["value"] for key in ("fd", "inception_score", "label_agreement"))
        print(f"{name:16}{fd:18.2f}{inception:17.2f}{right:13.1%}{speed:16.2f}")
    fd, inception, right = (first["scores"][key]["real"] for key in ("fd", "inception_score", "label_agreement"))
    print(f"{'real digits':16}{fd:18.2f}{inception:17.2f}{right:13.1%}")
    print(
        f"(n = {first['n']}; lower is better for the distance, higher for the score; features: {first['extractor']}.\n"
        "The network has seen the digits it is compared with, so it can get below what other real ones get.)\n"
    )
    things = {
        "samples/ddpm-1000.png": "digits, one column per class (also ddim-50.png, ddim-20.png)",
        "samples/denoising.png": "how a digit comes out of noise",
        "loss.png": "the loss curve; the numbers are in metrics.jsonl",
        "README.md": "the model card, ready for the Hub",
        "training_config.json": "every setting; use it again with --config",
    }
    for name, what in things.items():
        print(f"  {folder / name!s:40} {what}")
    activate = Path(sys.prefix, "bin", "activate")
    here = Path(os.path.relpath(activate)) if activate.is_relative_to(Path.cwd()) else activate
    inside = os.environ.get("VIRTUAL_ENV") == sys.prefix or not activate.exists()
    environment = "" if inside else f"  . {here}    # first: it holds the commands\n"
    print(
        f"""
Next:
{environment}  latentia compare {folder} pca kde --num_inference_steps 25                   # a minute
  latentia generate {folder} --class_labels 3 8 --output_dir outputs/threes    # seconds
  latentia train ddpm --dataset_name emoji --minutes 30 --output_dir outputs/emoji
  latentia train ddpm --train_data_dir path/to/images --resolution 32 --minutes 30 --output_dir outputs/mine
  latentia train ddpm --help
"""
    )


if __name__ == "__main__":
    arguments = tyro.cli(Arguments, use_underscores=True)
    if arguments.stage == "all":
        train(arguments)
        again = [sys.executable, str(Path(__file__).resolve()), "--stage", "show"]
        again += ["--output_dir", str(arguments.output_dir), "--num_samples", str(arguments.num_samples)]
        sys.exit(subprocess.run(again).returncode)
    show(arguments)
