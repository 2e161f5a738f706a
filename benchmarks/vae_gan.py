"""VAE-GAN beside a plain VAE of the same network and steps: sharpness of reconstructions, and attribute vectors.

    python benchmarks/vae_gan.py --train_data_dir data/mnist

Both have the network that `examples/train_vae_gan.py` builds and see the same batches. Sharpness is gradient energy, of
reconstructions over that of the images. Attributes are thickness (mean of the pixels) and slant (covariance of the two
coordinates over the variance of the vertical one); a vector is the mean latent of the quarter of the training images
that has most of it minus that of the quarter that has least, and is added to test images of the lowest quarter. What
was chosen (gamma, layer, objective) was chosen on the last 5000 training images (`--validate`), which are not trained
on; the results are of the test images.
"""

import argparse
import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from lecture_diffusion import environment
from lecture_vae import Rows, rounded, seeded
from torch import Tensor

from latentia import VAE, DCGANDiscriminator, VAEPipeline
from latentia.data import ImageData, load_images
from latentia.evaluation import extractor_for, frechet_distance, image_grid
from latentia.evaluation.pairs import sharpness_ratio
from latentia.losses.vae_gan import vae_gan_discriminator_loss, vae_gan_loss
from latentia.losses.variational import elbo_loss
from latentia.training.ema import EMA
from latentia.training.loop import Phase, learning_rate_schedule, train

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "examples"))
from train_vae_gan import Arguments  # noqa: E402

DEFAULTS = Arguments()  # of the example: what is measured
HELD_OUT = 5000


def fit(data, steps: int, hybrid: bool, args: argparse.Namespace) -> VAE:
    """Either network, averaged and in evaluation mode."""
    torch.manual_seed(0)
    channels, *size = data.shape
    image = {"sample_size": tuple(size), "in_channels": channels}
    likelihood = "none" if hybrid else "gaussian"
    channels_of = {"block_out_channels": tuple(args.channels)}
    vae = VAE(**image, **dict(DEFAULTS.model) | channels_of, hidden_sizes=(), likelihood=likelihood)
    accelerator, ema = Accelerator(cpu=True), EMA(vae, 0.998)
    options, common = DEFAULTS.optimization, {"learning_rate": learning_rate_schedule("cosine", 50, steps)}
    adam = partial(torch.optim.Adam, lr=options.learning_rate, betas=(options.adam_beta1, options.adam_beta2))
    network, optimizer = accelerator.prepare(vae, adam(vae.parameters()))
    if hybrid:
        critic = DCGANDiscriminator(**image, **channels_of, norm=args.norm)
        d, d_optimizer = accelerator.prepare(critic, adam(critic.parameters(), lr=args.discriminator_rate))
        settings = {"gamma": args.gamma, "feature_layer": args.layer, "objective": args.objective}
        judge = partial(vae_gan_discriminator_loss, d, network, objective=args.objective)
        phases = [
            Phase("discriminator", judge, d, d_optimizer, **common),
            Phase("vae", partial(vae_gan_loss, network, d, **settings), network, optimizer, ema=ema, **common),
        ]
    else:
        phases = [Phase("vae", partial(elbo_loss, network), network, optimizer, ema=ema, **common)]
    with tempfile.TemporaryDirectory() as folder:
        train(
            accelerator, phases, data, output_dir=folder, max_steps=steps, batch_size=64, checkpoint_every=None,
            resume="none", log_every=steps,
        )  # fmt: skip
        print((Path(folder) / "metrics.jsonl").read_text().splitlines()[-1], flush=True)
    return ema.module.eval()


def thickness(images: Tensor) -> Tensor:
    return images.double().mean((1, 2, 3))


def slant(images: Tensor) -> Tensor:
    """Covariance of x and y of the ink over the variance of y: positive for digits that lean to the right."""
    ink = ((images.double().clamp(-1, 1) + 1) / 2).mean(1)
    ink = ink / ink.sum((1, 2), keepdim=True).clamp(min=1e-6)
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in ink.shape[1:]), indexing="ij")
    y, x = (c - (ink * c).sum((1, 2), keepdim=True) for c in (y, x))
    return -(ink * x * y).sum((1, 2)) / (ink * y * y).sum((1, 2)).clamp(min=1e-6)


def attribute(pipe: VAEPipeline, images: Tensor, test: Tensor, measure) -> tuple[float, float, Tensor]:
    """Share of test images of the lowest quarter that end above the median, with the vector and without; examples."""
    found = measure(images)
    quarter, median, three = (found.quantile(q) for q in (0.25, 0.5, 0.75))
    vector = pipe.attribute_vector(images[found > three], images[found < quarter])
    few = test[measure(test) < quarter]
    more = pipe.add_attribute(few, vector, output_type="latent")
    same = pipe.reconstruct(few, output_type="latent")
    shares = [float((measure(part) > median).double().mean()) for part in (more, same)]
    return shares[0], shares[1], torch.cat([few[:12], same[:12], more[:12]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train_data_dir", required=True, help="MNIST or a set like it, with a test split")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument(
        "--validate", action="store_true", help="measure on the last training images, not the test ones"
    )
    parser.add_argument("--gamma", type=float, default=DEFAULTS.hybrid.gamma)
    parser.add_argument("--layer", default=DEFAULTS.hybrid.discriminator_layer or "down_blocks.1")
    parser.add_argument("--norm", default=DEFAULTS.discriminator.discriminator_norm)
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32], help="of both networks, for a CPU")
    parser.add_argument("--objective", default=DEFAULTS.hybrid.objective)
    parser.add_argument(
        "--discriminator_rate", type=float,
        default=DEFAULTS.hybrid.discriminator_learning_rate or DEFAULTS.optimization.learning_rate,
    )  # fmt: skip
    parser.add_argument("--pictures", type=Path, default=HERE.parent / "docs" / "images")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "vae_gan.json")
    args = parser.parse_args()
    started, worked, rows = time.perf_counter(), time.process_time(), Rows()
    whole = load_images(args.train_data_dir, split="train")
    cut = len(whole) - HELD_OUT
    data = ImageData(whole.images[:cut])
    test = whole.images[cut:] if args.validate else load_images(args.train_data_dir, split="test").images
    x, test = (part.float() / 127.5 - 1 for part in (data.images[:HELD_OUT], test[:HELD_OUT]))
    pipes = {name: VAEPipeline(fit(data, args.steps, name == "VAE-GAN", args)) for name in ("VAE", "VAE-GAN")}
    extractor = extractor_for(data.shape)
    again = {name: pipe.reconstruct(test, output_type="latent").clamp(-1, 1) for name, pipe in pipes.items()}
    ratio = {name: sharpness_ratio(part, test) for name, part in again.items()}
    errors = {name: float((part - test).square().mean()) for name, part in again.items()}
    rows.put(
        "H9", "gradient energy of reconstructions over that of the images", ratio["VAE-GAN"],
        {"VAE": ratio["VAE"], "squared error": errors["VAE-GAN"], "squared error, VAE": errors["VAE"]},
        "nearer to 1 than the VAE's", abs(ratio["VAE-GAN"] - 1) < abs(ratio["VAE"] - 1),
    )  # fmt: skip
    drawn = {name: pipe(2000, generator=seeded(0), output_type="latent").images for name, pipe in pipes.items()}
    if extractor is not None:
        features = extractor(test).features
        fd = {name: frechet_distance(extractor(part.clamp(-1, 1)).features, features) for name, part in drawn.items()}
        same = {name: frechet_distance(extractor(part).features, features) for name, part in again.items()}
        rows.put(
            "H9", "FD of 2000 samples", fd["VAE-GAN"],
            {"VAE": fd["VAE"], "of reconstructions": same["VAE-GAN"], "of reconstructions, VAE": same["VAE"]},
            "below the VAE's", fd["VAE-GAN"] < fd["VAE"],
        )  # fmt: skip
    shown = []
    for name, measure in (("thickness", thickness), ("slant", slant)):
        share, without, examples = attribute(pipes["VAE-GAN"], x, test, measure)
        plain, _, _ = attribute(pipes["VAE"], x, test, measure)
        rows.put(
            "C15", f"images of the lowest quarter that are above the median with the vector of {name} added", share,
            {"without it": without, "VAE": plain}, ">= 0.8", share >= 0.8,
        )  # fmt: skip
        shown.append(examples)
    args.pictures.mkdir(parents=True, exist_ok=True)
    pairs = torch.cat([test[:12], *(part[:12] for part in again.values()), *(part[:12] for part in drawn.values())])
    labels = ["data", "VAE", "VAE-GAN", "VAE, sampled", "VAE-GAN, sampled"]
    image_grid(pairs, 12, row_labels=labels).save(args.pictures / "vae-gan.png")
    labels = ["data", "decoded", "+ thickness", "data", "decoded", "+ slant"]
    image_grid(torch.cat(shown), 12, row_labels=labels).save(args.pictures / "vae-gan-attributes.png")
    name = Path(args.train_data_dir).name
    about = {
        "what": "a VAE-GAN beside a VAE of the same network and steps",
        "command": f"python benchmarks/vae_gan.py --train_data_dir {name} --steps {args.steps}",
        "gamma": args.gamma, "layer": args.layer, "objective": args.objective, "norm": args.norm,
        "channels": args.channels, "discriminator_rate": args.discriminator_rate,
        "minutes": (time.perf_counter() - started) / 60,
        "processor_minutes": (time.process_time() - worked) / 60, "threads": torch.get_num_threads(), **environment(),
    }  # fmt: skip
    args.output.write_text(json.dumps({**rounded(about), "rows": list(rows)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
