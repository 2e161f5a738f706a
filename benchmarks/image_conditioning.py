"""Images of images: sharpening against interpolation, and what strength and masks do.

    python benchmarks/image_conditioning.py --pixels outputs/latent-diffusion/pixel --test_data_dir mnist/test.parquet
        --emoji pretrained/emoji

`--pixels` is diffusion over MNIST's pixels, such as benchmarks/latent_diffusion.py leaves; its sharpening of test
images is compared with repeating pixels and with bicubic interpolation: PSNR, and whether our classifier still reads
the digit. `--emoji` draws the picture `image-conditioning.png`.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from lecture_diffusion import environment
from lecture_gan import rounded, seeded

from latentia import DiffusionPipeline
from latentia.data import load_images
from latentia.evaluation import extractor_for, image_grid, psnr

HERE = Path(__file__).resolve().parent


def sharpening(args) -> list[dict]:
    pipe = DiffusionPipeline.from_pretrained(args.pixels)
    pipe.set_progress_bar_config(disable=True)
    test = load_images(args.test_data_dir, max_samples=args.samples)
    real, extractor = test.images.float() / 127.5 - 1, extractor_for(test.shape)
    rows, shown = [], [real[:10]]
    for factor in (2, 4):
        small = F.avg_pool2d(real, factor)
        sharp = pipe(
            low_resolution=small, num_inference_steps=args.num_inference_steps, generator=seeded(0),
            output_type="latent",
        ).images  # fmt: skip
        gap = float((F.avg_pool2d(sharp, factor) - small).abs().max())
        ways = {
            "repeated": F.interpolate(small, scale_factor=float(factor), mode="nearest"),
            "bicubic": F.interpolate(small, scale_factor=float(factor), mode="bicubic", align_corners=False),
            "diffusion": sharp,
        }
        for name, images in ways.items():
            images = images.clamp(-1, 1)
            right = (extractor(images).logits.argmax(1) == test.labels).double().mean()
            rows.append({"factor": factor, "way": name, "PSNR, dB": float(psnr(images, real).mean()),
                         "digits read": float(right)})  # fmt: skip
            if name == "diffusion":
                rows[-1]["largest difference of means"] = gap
            print(rounded(rows[-1]), flush=True)
            shown.append(images[:10])
    rows.append({"factor": 1, "way": "real", "digits read": float(
        (extractor(real).logits.argmax(1) == test.labels).double().mean())})  # fmt: skip
    labels = ["data", *(f"{factor}: {way}" for factor in (2, 4) for way in ("repeated", "bicubic", "diffusion"))]
    image_grid(torch.cat(shown), 10, row_labels=labels).save(args.pictures / "sharpening.png")
    return rows


def drawings(args) -> None:
    """A red heart towards other things, by strength; and halves of pictures made anew."""
    pipe = DiffusionPipeline.from_pretrained(args.emoji)
    pipe.set_progress_bar_config(disable=True)
    data = load_images("emoji")
    asked = {"guidance_scale": 3.0, "num_inference_steps": 50, "generator": seeded(1), "output_type": "latent"}
    texts, rows, labels = ["green apple", "panda face"], [], []
    for start, text in (("red apple", texts[0]), ("dog face", texts[1])):
        picture = data.images[[data.captions.index(start)]].float() / 127.5 - 1
        for strength in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
            rows.append(pipe(text, image=picture, strength=strength, **asked | {"generator": seeded(1)}).images)
        labels.append(f"{start} to {text}, strength 0 to 1")
    size = data.shape[1]
    mask = torch.zeros(size, size)
    mask[size // 2 :] = 1
    for caption in ("cat face", "red apple"):
        picture = (
            data.images[[data.captions.index(caption)]].float() / 127.5 - 1 if caption in data.captions else rows[0]
        )
        rows.append(picture)
        holes = picture.clone()
        holes[:, :, size // 2 :] = 0
        rows.append(holes)
        for seed in range(4):
            rows.append(pipe(caption, image=picture, mask=mask, **asked | {"generator": seeded(seed)}).images)
        labels.append(f"{caption}: picture, what is kept, four halves made anew")
    image_grid(torch.cat(rows).clamp(-1, 1), 6, row_labels=labels).save(args.pictures / "image-conditioning.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pixels", help="a pipeline of diffusion over MNIST's pixels")
    parser.add_argument("--test_data_dir", help="MNIST's test images")
    parser.add_argument("--emoji", help="a text-to-image pipeline of emoji")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--pictures", type=Path, default=HERE.parent / "docs" / "images")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "image_conditioning.json")
    args = parser.parse_args()
    if args.emoji:
        drawings(args)
    if args.pixels:
        told = " ".join(word if "/" not in word else Path(word).name for word in sys.argv[1:])
        result = {
            "what": "small MNIST images made large again", "command": f"python benchmarks/image_conditioning.py {told}",
            **environment(), "samples": args.samples, "rows": sharpening(args),
        }  # fmt: skip
        args.output.write_text(json.dumps(rounded(result), indent=1) + "\n")


if __name__ == "__main__":
    main()
