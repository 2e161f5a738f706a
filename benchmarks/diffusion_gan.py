"""Diffusion-GAN on the ring and the grid of Gaussians: modes found and share within 3 sigma, with and without it.

    python benchmarks/diffusion_gan.py

Each of five seeds trains the networks of `examples/train_gan_plane.py` with the default objective (relativistic, R1 and
R2) and with the vanilla one (non-saturating, no penalties), as the example does but with fewer steps, with
`--augment diffusion` and without; the average of the weights is shorter. 2500 samples, the protocol of PacGAN. The
options of the diffusion were chosen on the seeds 100 and 101 of the grid. A plane that is run again takes the place of
its old rows in the JSON.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from lecture_diffusion import environment
from lecture_gan import VANILLA, rounded, seeded

from latentia import MLPDiscriminator, MLPGenerator
from latentia.evaluation import mode_coverage
from latentia.evaluation.modes import PLANE_SAMPLES
from latentia.losses.adversarial import gan_discriminator_loss, gan_generator_loss
from latentia.losses.augmentation import AdaptiveAugmentation
from latentia.losses.diffusion_augmentation import DiffusionAugmentation
from latentia.training.ema import EMA
from latentia.training.loop import Phase, learning_rate_schedule, train

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "examples"))
from train_gan_plane import ADAPTED_IN, Arguments, Scaled  # noqa: E402

DEFAULTS = Arguments()  # of the example
GAMES = {"default": {"objective": "relativistic", "r1": 1.0, "r2": 1.0}, "vanilla": VANILLA}


def fit(data: Scaled, steps: int, seed: int, diffuses: bool, game: dict, options: dict, adapted_in: int):
    """The averaged generator, and the length of the chain at the end."""
    torch.manual_seed(seed)
    shape = {"hidden_sizes": DEFAULTS.model.hidden_sizes, "activation": DEFAULTS.model.activation}
    longest = options["max_steps"] if diffuses else None
    generator, discriminator = MLPGenerator(**shape), MLPDiscriminator(**shape, num_timesteps=longest)
    accelerator, ema = Accelerator(cpu=True), EMA(generator, 0.99)
    adam = partial(torch.optim.Adam, lr=2e-3, betas=(0.0, 0.99))
    g, g_optimizer = accelerator.prepare(generator, adam(generator.parameters()))
    d, d_optimizer = accelerator.prepare(discriminator, adam(discriminator.parameters()))
    ada = AdaptiveAugmentation(DiffusionAugmentation(**options), images=adapted_in, most=1.0) if diffuses else None
    shared = {"objective": game["objective"], "augment": ada}
    penalties = {key: game[key] for key in ("r1", "r2")}
    common = {"learning_rate": learning_rate_schedule("cosine", 50, steps)}
    discriminate = partial(gan_discriminator_loss, d, g, collect=ada and ada.collect, **shared, **penalties)
    phases = [
        Phase("discriminator", discriminate, d, d_optimizer, **common),
        Phase("generator", partial(gan_generator_loss, d, g, **shared), g, g_optimizer, ema=ema, **common),
    ]
    phases += [Phase("augmentation", ada.update, ada)] if ada is not None else []
    with tempfile.TemporaryDirectory() as folder:
        train(
            accelerator, phases, data, output_dir=folder, max_steps=steps, batch_size=128, seed=seed,
            checkpoint_every=None, resume="none", log_every=steps,
        )  # fmt: skip
    length = None if ada is None else int(ada.operation.length(ada.p))
    return ema.module.eval(), length


def measured(plane: str, steps: int, seed: int, *details) -> dict:
    data = Scaled(plane, DEFAULTS.plane.spread)
    generator, length = fit(data, steps, seed, *details)
    with torch.no_grad():
        points = data.unscale(generator(torch.randn(PLANE_SAMPLES, 2, generator=seeded(seed))).sample)
    found = mode_coverage(points, data.plane.centres, data.plane.sigma)
    return {"seed": seed, "modes": found.covered, "share": found.high_quality, "reverse_kl": found.reverse_kl,
            "length": length, "total": found.total, "real_share": found.real_high_quality}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--planes", nargs="+", default=["ring", "grid"])
    parser.add_argument("--games", nargs="+", choices=GAMES, default=list(GAMES))
    parser.add_argument("--kinds", nargs="+", choices=("without", "with"), default=["without", "with"])
    parser.add_argument("--sigma", type=float, default=DEFAULTS.diffusion.diffusion_sigma)
    parser.add_argument("--min_steps", type=int, default=DEFAULTS.diffusion.diffusion_min_steps)
    parser.add_argument("--times", default=DEFAULTS.diffusion.diffusion_times)
    parser.add_argument("--adapted_in", type=int, default=ADAPTED_IN)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "diffusion_gan.json")
    args = parser.parse_args()
    started, worked, rows = time.perf_counter(), time.process_time(), []
    options = {"sigma": args.sigma, "min_steps": args.min_steps, "times": args.times, "max_steps": 1000}
    for plane in args.planes:
        for name in args.games:
            runs = {
                kind: [
                    measured(plane, args.steps, seed, kind == "with", GAMES[name], options, args.adapted_in)
                    for seed in args.seeds
                ]
                for kind in args.kinds
            }
            means = {
                kind: {key: statistics.mean(run[key] for run in each) for key in ("modes", "share", "reverse_kl")}
                for kind, each in runs.items()
            }
            row = {"plane": plane, "game": name, **means, "runs": runs}
            if len(means) == 2:
                row["passed"] = all(means["with"][key] >= means["without"][key] for key in ("modes", "share"))
            rows.append(rounded(row))
            print(plane, name, rounded(means), "lengths", [run["length"] for run in runs.get("with", [])], flush=True)
    command = f"python benchmarks/diffusion_gan.py --steps {args.steps} --planes {' '.join(args.planes)}"
    about = {
        "command": command, "diffusion": options, "adapted_in": args.adapted_in,
        "minutes": (time.perf_counter() - started) / 60, "processor_minutes": (time.process_time() - worked) / 60,
        **environment(),
    }  # fmt: skip
    fresh = [{**row, **rounded(about)} for row in rows]
    old = json.loads(args.output.read_text())["rows"] if args.output.exists() else []
    kept = [row for row in old if row["plane"] not in args.planes]
    what = "modes and share within 3 sigma with and without diffusion of the discriminator's input"
    args.output.write_text(json.dumps({"what": what, "rows": kept + fresh}, indent=1) + "\n")


if __name__ == "__main__":
    main()
