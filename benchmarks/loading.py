"""Seconds that loading a pipeline takes without and with the trial of its tokenizer in a child process.

python benchmarks/loading.py

Every kind of pipeline in the tests' list, tiny, and two with small random networks and a tokenizer of 20 000 words:
text to image with a CLIP text encoder, and Stable Diffusion with an image processor. Each is loaded in a fresh process
after all imports: without the trial, as before it existed; with it for the first time; and again, when its content is
remembered. Seconds on the clock and of the processors, those of the child included, medians of `--repeats` processes.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import diffusers
import torch
import transformers

import latentia
from latentia.hub import load, trial
from latentia.models.clip import clip_towers, train_tokenizer
from latentia.runs.program import lineage


def tokenizer_of(words: int):
    draw = random.Random(0)
    texts = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randrange(3, 9))) for _ in range(2 * words)]
    return train_tokenizer(texts, words, 77)


def text_to_image(folder: Path, words: int) -> None:
    tokenizer = tokenizer_of(words)
    encoder = clip_towers(tokenizer, 16, width=32, text_layers=1, image_layers=1)[0].eval()
    unet = latentia.UNet2D(sample_size=16, in_channels=3, block_out_channels=(32,), cross_attention_dim=32)
    latentia.TextToImagePipeline(tokenizer, encoder, unet, latentia.DDIMScheduler(), None).save_pretrained(folder)


def stable_diffusion(folder: Path, words: int) -> None:
    tokenizer = tokenizer_of(words)
    encoder = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
        )
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, cross_attention_dim=32,
        attention_head_dim=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    diffusers.StableDiffusionPipeline(
        diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4), encoder, tokenizer, unet,
        diffusers.PNDMScheduler(), None, transformers.CLIPImageProcessor(), requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip


PIPELINES: dict[str, Callable[[Path, int], None]] = {
    "text to image, large tokenizer": text_to_image,
    "Stable Diffusion": stable_diffusion,
}


def listed() -> dict[str, Callable[[Path, int], None]]:
    """The tiny pipelines of the tests."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from pipeline_list import PIPELINES as entries

    return {entry.name: lambda folder, words, build=entry.build: build().save_pretrained(folder) for entry in entries}


def seconds_of(folder: Path) -> list[float]:
    clock, processors = time.perf_counter(), sum(os.times()[:4])
    latentia.DiffusionPipeline.from_pretrained(folder)
    return [time.perf_counter() - clock, sum(os.times()[:4]) - processors]


def measure(folder: Path) -> dict[str, list[float]]:
    """In this process, with a cache that is empty: [seconds on the clock, of the processors] of each way."""
    load.try_parts = lambda parts: None
    seconds_of(folder)  # which imports what is left
    without = min(seconds_of(folder) for _ in range(3))
    load.try_parts = trial.try_parts
    return {"without": without, "first": seconds_of(folder), "second": min(seconds_of(folder) for _ in range(3))}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--words", type=int, default=20_000, help="of the tokenizers")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each pipeline")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "loading.json")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of a pipeline that this process loads
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.folder:
        print(json.dumps(measure(args.folder)))
        return
    rows = {}
    with tempfile.TemporaryDirectory() as place:
        for name, make in {**PIPELINES, **listed()}.items():
            folder = Path(place, name.replace("/", " "))
            torch.manual_seed(0)
            make(folder, args.words)
            found = []
            for i in range(args.repeats):
                environment = {**os.environ, "LATENTIA_CACHE": str(Path(place, f"{folder.name} {i}"))}
                command = [sys.executable, "-W", "ignore", __file__, "--folder", str(folder)]
                done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
                found.append(json.loads(done.stdout.splitlines()[-1]))
            rows[name] = {
                way: {
                    what: round(statistics.median(one[way][i] for one in found), 3)
                    for i, what in enumerate(("clock", "processors"))
                }
                for way in found[0]
            }
    answer = {
        "command": " ".join(["python benchmarks/loading.py", *sys.argv[1:]]),
        **lineage(),
        "transformers": transformers.__version__,
        "hardware": f"{os.cpu_count()} x {platform.processor() or platform.machine()}",
        "words": args.words,
        "repeats": args.repeats,
        "seconds": rows,
    }
    args.output.write_text(json.dumps(answer, indent=1) + "\n")
    print(json.dumps(answer, indent=1))


if __name__ == "__main__":
    main()
