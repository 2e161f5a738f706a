"""Sampling with an optimizer beside DDPM and DDIM: Inception score of digits by the shipped classifier.

    python benchmarks/sampling_optimizer.py

One network of 8 x 8 digits, trained by the training script itself unless `--run` has it, makes images with as many
evaluations by each way. The rate of the optimizer was chosen with the seed 0; scores are of another seed. Target: the
optimizer within 20 % of DDPM.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from control import RUNS, train_ddpm
from lecture_diffusion import environment
from lecture_vae import rounded

from latentia import DDIMScheduler, DDPMScheduler, DiffusionPipeline
from latentia.data import load_images
from latentia.evaluation import frechet_distance, image_grid, inception_score, load_extractor
from latentia.functional.pixels import from_uint8
from latentia.pipelines.optimizer import sample_by_optimizer
from latentia.runs.command_line import with_values

HERE = Path(__file__).resolve().parent
RATES = (0.2, 0.5, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=500, help="images of each way")
    parser.add_argument("--evaluations", type=int, default=50, help="of the network, for each image")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--run", type=Path, default=Path("outputs/sampling-optimizer"), help="where the pipeline is")
    parser.add_argument("--images", type=Path, default=HERE.parent / "docs" / "images")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "sampling_optimizer.json")
    args = parser.parse_args()
    if not (args.run / "model_index.json").is_file():
        fixed = {"output_dir": str(args.run), "dataset_name": "digits", "split": "train[:70%]", "eval_num_samples": 0}
        flags = {**RUNS["unconditional"][0], **fixed, "checkpointing_steps": 100_000, "seed": 0}
        assert train_ddpm.main(with_values(train_ddpm.Arguments(), flags, "benchmark")) == 0
    pipe = DiffusionPipeline.from_pretrained(args.run)
    pipe.set_progress_bar_config(disable=True)
    extractor = load_extractor("digits")
    real = from_uint8(load_images("digits", split="train[70%:]").images)
    features = extractor(real).features
    options = {"num_inference_steps": args.evaluations, "output_type": "latent"}

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(args.seed)

    made, seconds = {}, {}
    for name, kind in (("DDPM", DDPMScheduler), ("DDIM", DDIMScheduler)):
        began = time.process_time()
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
        made[name] = pipe(args.n, generator=generator(), **options).images.clamp(-1, 1)
        seconds[name] = time.process_time() - began
    for rate in RATES:
        began, name = time.process_time(), f"optimizer, rate {rate:g}"
        made[name] = sample_by_optimizer(pipe, args.n, learning_rate=rate, generator=generator(), **options)
        made[name], seconds[name] = made[name].clamp(-1, 1), time.process_time() - began

    scores = {}
    for name, images in {**made, "real, held out": real[: args.n]}.items():
        out = extractor(images)
        scores[name] = {
            "inception_score": inception_score(out.logits)[0],
            "frechet_distance": frechet_distance(out.features, features),
            "rarest_class": float((torch.bincount(out.logits.argmax(1), minlength=10) / len(images)).min()),
            "processor_seconds": seconds.get(name),
        }  # fmt: skip
    ratio = scores["optimizer, rate 0.5"]["inception_score"] / scores["DDPM"]["inception_score"]
    result = {
        "what": "sampling with an optimizer, digits of 8 x 8 pixels", "n": args.n, "evaluations": args.evaluations,
        "command": "python benchmarks/sampling_optimizer.py", "scores": scores, "ratio_to_ddpm": ratio,
        "target": "at least 0.8", "reached": ratio >= 0.8, **environment(),
    }  # fmt: skip
    shown = [made[name][:12] for name in ("DDPM", "optimizer, rate 0.5")]
    image_grid(torch.cat(shown), 12, row_labels=["DDPM", "optimizer"]).save(args.images / "sampling-optimizer.png")
    args.output.write_text(json.dumps(rounded(result), indent=1) + "\n")
    print(json.dumps(rounded(result), indent=1))


if __name__ == "__main__":
    main()
