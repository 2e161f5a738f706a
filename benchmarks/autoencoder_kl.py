"""The autoencoder of latent diffusion, trained from nothing: what distances and critics add, on pictures not seen.

    python benchmarks/autoencoder_kl.py --train_data_dir emoji/train.parquet --test_data_dir emoji/test.parquet

Three objectives on the same network, data, seed and processor time: absolute differences alone; and the distance in
a classifier's layers; and a critic of patches in the second half. The classifier that gives the distance has seen the
same kind of pictures at half the size, and judges the last column too, so that column favours those that trained on it.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from lecture_diffusion import environment

from latentia import AutoencoderKLPipeline, PatchDiscriminator
from latentia.data import load_images
from latentia.evaluation import extractor_for, frechet_distance, image_grid, perceptual_loss, psnr, sharpness, ssim
from latentia.losses.perceptual_compression import patch_discriminator_loss, perceptual_compression_loss
from latentia.models.autoencoder_kl import GaussianAutoencoder, autoencoder_kl, latent_statistics
from latentia.training.ema import EMA
from latentia.training.loop import Hook, Phase, train

HERE = Path(__file__).resolve().parent
WAYS = {
    "differences": {"perceptual": 0.0, "adversarial": 0.0},
    "and distance": {"perceptual": 0.1, "adversarial": 0.0},
    "and critic": {"perceptual": 0.1, "adversarial": 0.02},
}


class Clock:
    """Training stops when the processor time is used up: `share` of it is gone."""

    def __init__(self, minutes: float):
        self.seconds, self.started = 60 * minutes, time.process_time()

    @property
    def share(self) -> float:
        return (time.process_time() - self.started) / self.seconds


def trained(args, data, way: dict[str, float]) -> tuple[torch.nn.Module, dict]:
    torch.manual_seed(args.seed)
    size, channels = data.shape[1], data.shape[0]
    vae = autoencoder_kl(size, channels, tuple(args.block_out_channels), 1, args.latent_channels)
    side = size // 2 ** (len(args.block_out_channels) - 1)
    shape = (args.latent_channels, side, side)
    plain, critic = GaussianAutoencoder(vae).to(args.device), PatchDiscriminator(channels).to(args.device)
    accelerator = Accelerator(cpu=args.device == "cpu", mixed_precision=args.mixed_precision)
    ema = EMA(plain, 0.995)
    network, optimizer = accelerator.prepare(
        plain, torch.optim.AdamW(plain.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    )
    judge, judge_optimizer = accelerator.prepare(
        critic, torch.optim.Adam(critic.parameters(), lr=4e-4, betas=(0.5, 0.99))
    )
    classifier = extractor_for((channels, 32, 32)).model.to(args.device).requires_grad_(False)
    clock = Clock(args.minutes)

    def loss(batch, rng):
        playing = way["adversarial"] > 0 and clock.share > 0.5
        return perceptual_compression_loss(
            network, batch, rng, latent_shape=shape, perceptual_weight=way["perceptual"],
            perceptual=(lambda a, b: perceptual_loss(a, b, classifier)) if way["perceptual"] else None,
            discriminator=judge if playing else None, adversarial_weight=way["adversarial"],
        )  # fmt: skip

    def judge_loss(batch, rng):
        if clock.share <= 0.5:
            return {"loss": sum(0 * p.sum() for p in judge.parameters())}
        return patch_discriminator_loss(judge, network, batch, rng, latent_shape=shape)

    def rate(step: int) -> float:  # up over 50 steps, level, then down to nothing in the last third of the time
        return min((step + 1) / 50, 1.0, max(3 * (1 - clock.share), 0.0))

    phases = [Phase("autoencoder", loss, network, optimizer, rate, max_grad_norm=1.0, ema=ema)]
    if way["adversarial"]:
        phases.append(Phase("discriminator", judge_loss, judge, judge_optimizer, rate, max_grad_norm=1.0))
    reached: dict = {}

    class Over(Exception):
        pass

    def stop(progress):
        reached.update(steps=progress.step, images=progress.images, seconds=progress.seconds)
        if clock.share >= 1:
            raise Over

    with tempfile.TemporaryDirectory() as folder:
        try:
            train(
                accelerator, phases, data, output_dir=folder, max_steps=10**7, batch_size=args.batch_size,
                checkpoint_every=None, resume="none", seed=args.seed, hooks=[Hook(1, stop)],
            )  # fmt: skip
        except Over:
            pass
    return ema.module.vae.eval(), reached


def scores(args, vae, real: torch.Tensor, train_images: torch.Tensor) -> tuple[dict, torch.Tensor]:
    raw = latent_statistics(vae, train_images)
    pipe = AutoencoderKLPipeline(vae)
    pipe.calibrate(train_images)
    latents = pipe.encode(real)
    again = pipe.decode(latents, output_type="latent").clamp(-1, 1).cpu()
    small = [torch.nn.functional.interpolate(x, (32, 32), mode="area") for x in (real, again)]
    extractor = extractor_for((real.shape[1], 32, 32))
    features = [extractor(x).features for x in small]
    half = len(real) // 2
    return {
        "PSNR, dB": float(psnr(again, real).mean()), "SSIM": float(ssim(again, real).mean()),
        "sharpness over that of the data": float(sharpness(again).mean() / sharpness(real).mean()),
        "Frechet distance at half the size": float(frechet_distance(features[1], features[0])),
        "the same of two halves of the data": float(frechet_distance(features[0][:half], features[0][half:])),
        "perceptual distance": float(perceptual_loss(again, real, extractor.model).mean()),
        "latent mean": raw[0], "latent standard deviation": raw[1],
        "scaled standard deviation, new pictures": float(latents.std()),
    }, again  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train_data_dir", required=True, help="a folder or parquet")
    parser.add_argument("--test_data_dir", required=True, help="pictures that are not trained on")
    parser.add_argument("--image_column", default="noto")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the processor for each objective")
    parser.add_argument("--block_out_channels", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--latent_channels", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--mixed_precision", default="no", choices=["no", "bf16", "fp16"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=Path, default=HERE.parent / "docs" / "images")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "autoencoder_kl.json")
    args = parser.parse_args()
    data = load_images(args.train_data_dir, image_column=args.image_column)
    test = load_images(args.test_data_dir, image_column=args.image_column)
    real, seen = test.images.float() / 127.5 - 1, data.images[:1000].float() / 127.5 - 1
    rows, shown = [], {"data": real[100:112]}
    for name in args.ways:
        vae, reached = trained(args, data, WAYS[name])
        found, again = scores(args, vae, real, seen)
        shown[name] = again[100:112]
        parameters = sum(p.numel() for p in vae.parameters())
        rows.append({"objective": name, **WAYS[name], "parameters": parameters, **reached, **found})
        print(name, {key: round(value, 4) for key, value in rows[-1].items() if isinstance(value, float)}, flush=True)
        args.pictures.mkdir(parents=True, exist_ok=True)
        image_grid(torch.cat([*shown.values()]), 12, row_labels=[*shown]).save(args.pictures / "autoencoder-kl.png")
        result = {
            "what": "AutoencoderKL trained from nothing by three objectives, on pictures that were not trained on",
            "command": f"python benchmarks/autoencoder_kl.py --minutes {args.minutes:g} --block_out_channels "
            + " ".join(map(str, args.block_out_channels))
            + f" --latent_channels {args.latent_channels} --batch_size {args.batch_size}"
            + " --train_data_dir TRAIN --test_data_dir TEST",
            "data": f"{len(data)} pictures to train on, {len(real)} new ones, {tuple(data.shape)}",
            **environment(), "rows": rows,
        }  # fmt: skip
        args.output.parent.mkdir(exist_ok=True)
        args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
