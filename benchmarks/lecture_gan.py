"""What an introductory lecture says of GANs and only trained networks can show.

    python benchmarks/lecture_gan.py --parts ring grid ganlab
    python benchmarks/lecture_gan.py --parts mnist conditional stacked --train_data_dir data/mnist

Each row of the table has its value, what it is compared with, and the threshold that was set before; a row that misses
it says so. "default" is the relativistic game with both penalties (R1, R2), "vanilla" the non-saturating game without
any, on the same networks with the same optimizers for as many steps. Parts: `ring` and `grid` by the protocol of PacGAN
(2500 samples), whose own numbers stand beside; `ganlab`, its four shapes; `n_critic`; `mnist`; `conditional`, with what
the samples are worth as training data; `arithmetic`, sums of latents and the middle of two;
`stacked`, the 1000 modes of Stacked MNIST; `captions`, a discriminator that is told the caption against one that is
not; `overhead`, our loop against a plain one. A part that is run again takes the place of its old rows in the JSON.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

import latentia
from latentia import (
    DCGANDiscriminator,
    DCGANGenerator,
    GANPipeline,
    HashedWords,
    MLPDiscriminator,
    MLPGenerator,
)
from latentia.data import ImageData, load_images
from latentia.data.stacked import stacked_images
from latentia.evaluation import (
    augment_with_synthetic,
    extractor_for,
    frechet_distance,
    grid_divergences,
    image_grid,
    inception_score,
    load_extractor,
    mode_coverage,
    stacked_logits,
    stacked_modes,
    train_on_synthetic,
    two_sample_test,
)
from latentia.evaluation.modes import PLANE_SAMPLES, STACKED_SAMPLES
from latentia.evaluation.plane import LAB_SAMPLES
from latentia.functional.interpolation import lerp, slerp
from latentia.losses.adversarial import gan_discriminator_loss, gan_generator_loss, gan_penalty_loss
from latentia.training.ema import EMA
from latentia.training.loop import Phase, learning_rate_schedule, train

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "examples"))
from train_gan import Arguments  # noqa: E402
from train_gan_plane import Scaled  # noqa: E402

DEFAULTS = Arguments()  # of the example: what is measured
GAME, GENERATOR, DISCRIMINATOR = DEFAULTS.adversarial, DEFAULTS.generator, DEFAULTS.discriminator
VANILLA = {"objective": "non_saturating", "r1": 0.0, "r2": 0.0}
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
# modes, share of high quality, reverse KL: Lin et al., 2017, arXiv:1712.04086, table 1, means of 10 trials
PACGAN = {"ring": (7.8, 0.959, 0.07), "grid": (24.8, 0.936, 0.04)}


class Rows(list):
    """The table. A row: which, what, its value, what it is compared with, the threshold, whether it holds."""

    def put(self, row: str, what: str, value: float, baseline: dict, threshold: str, passed: bool, **details) -> None:
        self.append(
            {"row": row, "what": what, "value": rounded(value), "baseline": rounded(baseline), "threshold": threshold,
             "passed": bool(passed), **rounded(details)}
        )  # fmt: skip
        beside = ", ".join(f"{key} {value}" for key, value in self[-1]["baseline"].items())
        verdict = "holds" if passed else "MISSED"
        print(f"{row:<6}{verdict:<8}{what}: {self[-1]['value']} ({threshold}; {beside})", flush=True)


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def play(
    generator, discriminator, data, steps: int, *, objective: str = GAME.objective, r1: float = GAME.r1,
    r2: float = GAME.r2, every: int = GAME.regularise_every, rate: float = 2e-3, batch_size: int = 64,
    average: float = 0.998, seed: int = 0, text_encoder=None, n_critic: int = 1, **options,
):  # fmt: skip
    """Train both with `train`, as the examples do; returns the averaged generator in evaluation mode."""
    accelerator, ema = Accelerator(cpu=True), EMA(generator, average)
    adam = partial(torch.optim.Adam, lr=rate, betas=(0.0, 0.99))
    g, g_optimizer = accelerator.prepare(generator, adam(generator.parameters()))
    d, d_optimizer = accelerator.prepare(discriminator, adam(discriminator.parameters()))
    shared = {"objective": objective, "text_encoder": text_encoder}
    penalties, lazy = {"r1": r1, "r2": r2}, every > 1 and r1 + r2 > 0
    judge = partial(gan_discriminator_loss, d, g, **(dict.fromkeys(penalties, 0.0) if lazy else penalties), **shared)
    make = partial(gan_generator_loss, d, g, **shared)
    common = {"learning_rate": learning_rate_schedule("cosine", 50, steps)}
    phases = [Phase("discriminator", partial(judge, **options), d, d_optimizer, **common)]
    if lazy:
        penalty = partial(gan_penalty_loss, d, g, interval=every, text_encoder=text_encoder, **penalties)
        phases.append(Phase("penalty", penalty, d, d_optimizer, every=every, **common))
    phases.append(Phase("generator", make, g, g_optimizer, every=n_critic, ema=ema, **common))
    with tempfile.TemporaryDirectory() as folder:
        train(
            accelerator, phases, data, output_dir=folder, max_steps=steps, batch_size=batch_size, seed=seed,
            checkpoint_every=None, resume="none",
        )  # fmt: skip
    return ema.module.eval()


# ------------------------------------------------------------ points of the plane


def plane(name: str, args, seed: int, **game) -> Tensor:
    """Points that the example's networks draw after its training: 12 000 of them."""
    torch.manual_seed(seed)
    shape = {"hidden_sizes": (128,) * 3, "activation": "relu"}
    data = Scaled(name, 3.0)
    options = {"r1": 1.0, "r2": 1.0, "every": 1, "rate": 2e-3, "batch_size": 128, "average": 0.999} | game
    g = play(MLPGenerator(**shape), MLPDiscriminator(**shape), data, args.plane_steps, seed=seed, **options)
    with torch.no_grad():
        return data.unscale(g(torch.randn(LAB_SAMPLES, 2, generator=seeded(seed))).sample)


def modes(name: str, rows: Rows, args) -> None:
    found = {"default": [], "vanilla": []}
    turns = [("default", {}, args.seeds), ("vanilla", VANILLA, args.vanilla_seeds)]
    for kind, game, seed in ((kind, game, seed) for kind, game, seeds in turns for seed in range(seeds)):
        about = Scaled(name, 3.0).plane
        found[kind].append(mode_coverage(plane(name, args, seed, **game)[:PLANE_SAMPLES], about.centres, about.sigma))
    total = found["default"][0].total
    mean = {
        kind: {
            key: statistics.mean(getattr(one, key) for one in each)
            for key in ("covered", "high_quality", "reverse_kl", "off_mode_kl")
        }
        for kind, each in found.items()
    }
    published = dict(zip(("PacGAN4 modes", "PacGAN4 high quality", "PacGAN4 reverse KL"), PACGAN[name]))
    ours, least = mean["default"], min(one.covered for one in found["default"])
    rows.put(
        "D24", f"{name}, modes of {total}, mean of {args.seeds} seeds", ours["covered"],
        {"fewest": least, "vanilla": mean["vanilla"]["covered"], **published, "steps": args.plane_steps},
        f"all {total}" if total == 8 else ">= 23 with every seed", least >= (8 if total == 8 else 23),
        seeds={kind: [one.covered for one in each] for kind, each in found.items()},
    )  # fmt: skip
    rows.put(
        "D24", f"{name}, share within 3 sigma", ours["high_quality"],
        {"vanilla": mean["vanilla"]["high_quality"], "real": found["default"][0].real_high_quality}, ">= 0.9",
        ours["high_quality"] >= 0.9,
        seeds={kind: [one.high_quality for one in each] for kind, each in found.items()},
    )  # fmt: skip
    rows.put(
        "D24", f"{name}, reverse KL", ours["reverse_kl"],
        {"vanilla": mean["vanilla"]["reverse_kl"], "real": found["default"][0].real_reverse_kl,
         "with a bin off the modes": ours["off_mode_kl"]}, "below vanilla's",
        ours["reverse_kl"] < mean["vanilla"]["reverse_kl"],
    )  # fmt: skip


def ganlab(rows: Rows, args) -> None:
    for name in ("lab_line", "lab_gaussians", "lab_ring", "lab_disjoint"):
        about = Scaled(name, 3.0).plane
        real = about.sample(LAB_SAMPLES, 0)
        floor = grid_divergences(about.sample(LAB_SAMPLES, 1), real).js
        found = [grid_divergences(plane(name, args, seed), real).js for seed in range(args.lab_seeds)]
        held = sum(js <= floor + 0.15 for js in found)
        rows.put(
            "P1", f"{name}, JS in bits, median of {len(found)} seeds", statistics.median(found),
            {"real": floor, "seeds that hold": held, "steps": args.plane_steps}, "<= real + 0.15 with 4 of 5 seeds",
            held >= 0.8 * len(found), seeds=found,
        )  # fmt: skip


def critic_steps(rows: Rows, args) -> None:
    """D10: there is no best number of steps of the discriminator for one of the generator; told, not judged."""
    about, found = Scaled("ring", 3.0).plane, {}
    real = about.sample(LAB_SAMPLES, 0)
    low, high = real.amin(0) - 0.5, real.amax(0) + 0.5
    for k in (1, 2, 5):
        points = [plane("ring", args, seed, n_critic=k) for seed in range(args.lab_seeds)]
        each = [mode_coverage(x[:PLANE_SAMPLES], about.centres, about.sigma) for x in points]
        js = [grid_divergences(*((part - low) / (high - low) for part in (x, real))).js for x in points]
        found[k] = {"modes": statistics.mean(one.covered for one in each), "js": statistics.mean(js),
                    "high quality": statistics.mean(one.high_quality for one in each)}  # fmt: skip
    best = min(found, key=lambda k: found[k]["js"])
    rows.put(
        "D10", "ring, n_critic with the least JS, steps of the discriminator being equal", best,
        {f"{key} at {k}": value for k, values in found.items() for key, value in values.items()}, "told only", True,
    )  # fmt: skip


# ------------------------------------------------------------ pictures


def players(shape, channels, **told):
    torch.manual_seed(0)
    g = DCGANGenerator(shape[1:], shape[0], block_out_channels=channels, **told)
    shown = {"norm": DISCRIMINATOR.discriminator_norm, "minibatch_std": DISCRIMINATOR.minibatch_std}
    return g, DCGANDiscriminator(shape[1:], shape[0], block_out_channels=channels, **shown, **told)


def as_floats(data: ImageData) -> Tensor:
    return data.images.float() / 127.5 - 1


def sampled(g, n: int, d=None, text_encoder=None, **options) -> Tensor:
    pipe = GANPipeline(g, d, text_encoder)
    return pipe(n, generator=seeded(0), output_type="latent", **options).images.clamp(-1, 1)


def sets(args) -> tuple[ImageData, ImageData]:
    """MNIST where it was named, else 80 % and 20 % of the digits."""
    if args.train_data_dir:
        return tuple(load_images(args.train_data_dir, split=split) for split in ("train", "test"))
    return load_images("digits", split="train[:80%]"), load_images("digits", split="train[80%:]")


def mnist(rows: Rows, args) -> None:
    data, test = sets(args)
    real, extractor = as_floats(test), extractor_for(data.shape)
    real = real[torch.randperm(len(real), generator=seeded(0))]  # MNIST's two halves are of different writers
    g, d = players(data.shape, tuple(args.channels))
    started, worked = time.perf_counter(), time.process_time()
    g = play(g, d, data, args.steps)
    minutes, worked = (time.perf_counter() - started) / 60, (time.process_time() - worked) / 60
    if args.folder:
        GANPipeline(g, d).save_pretrained(args.folder / "mnist")
    n = min(2000, len(real) // 2)
    images = sampled(g, n)
    out, features = extractor(images), extractor(real).features
    distance, floor = frechet_distance(out.features, features[n:]), frechet_distance(features[:n], features[n:])
    cost = {"steps": args.steps, "minutes": minutes, "processor minutes": worked, "channels": str(args.channels)}
    rows.put(
        "D19", f"FD of {n} samples", distance, {"real": floor, **cost}, "<= 3 times real", distance <= 3 * floor,
    )  # fmt: skip
    score, best = inception_score(out.logits)[0], inception_score(extractor(real[:n]).logits)[0]
    rows.put("D19", "Inception score", score, {"real": best}, ">= 9, or 95 % of real", score >= min(9, 0.95 * best))
    shares = torch.bincount(out.logits.argmax(1), minlength=10) / n
    rows.put(
        "D19", "share of the rarest class", float(shares.min()), {"classes": int((shares > 0).sum())}, ">= 0.03",
        shares.min() >= 0.03,
    )  # fmt: skip
    told = two_sample_test(real=real[:n], fake=images)
    rows.put(
        "A8", "accuracy of a fresh classifier of real and generated", told.accuracy, {"low": told.low},
        "<= 0.75", told.accuracy <= 0.75,
    )  # fmt: skip
    spread = [float(sampled(g, 200, truncation=psi).std(0).mean()) for psi in (0.2, 0.5, 0.8, 1.0)]
    rows.put("J22e", "diversity at truncation 0.2 over that at 1", spread[0] / spread[-1],
             {"of 0.2, 0.5, 0.8, 1": spread}, "rises", spread == sorted(spread))  # fmt: skip
    directions(g, d, extractor, rows)
    image_grid(images[:100], 10, padding=1, tile=28).save(
        args.pictures / f"gan-{'mnist' if args.train_data_dir else 'digits'}.png"
    )


def directions(g, d, extractor, rows: Rows, size: int = 3) -> None:
    """D20: (a, bold) - (a, thin) + (b, thin) is a bold b? D22: how much of boldness is linear in z, and in found z."""
    pipe = GANPipeline(g, d)
    z = torch.randn(6000, g.config.latent_dim, generator=seeded(1))
    images = pipe.decode(z, output_type="latent")
    classes, ink = extractor(images).logits.argmax(1), images.mean((1, 2, 3))
    kinds, middle = {}, torch.zeros(10)
    for k in range(10):
        of = (classes == k).nonzero().flatten()
        order = of[ink[of].argsort()]
        kinds[k] = (order[: len(of) // 5], order[len(of) - len(of) // 5 :])  # thin, bold
        middle[k] = ink[of].median()
    draw, made, asked = seeded(2), [], []
    for a, b in itertools.permutations([k for k in kinds if len(kinds[k][0]) >= size], 2):
        mean = [z[of[torch.randperm(len(of), generator=draw)[:size]]].mean(0) for of in (*kinds[a], kinds[b][0])]
        made.append(mean[1] - mean[0] + mean[2]), asked.append(b)
    if not made:
        return rows.put("D20", "vector arithmetic", 0.0, {"classes": len(classes.unique())}, ">= 0.7", False)
    images, asked = pipe.decode(torch.stack(made), output_type="latent"), torch.tensor(asked)
    is_b = extractor(images).logits.argmax(1) == asked
    is_bold = images.mean((1, 2, 3)) > middle[asked]
    right = float((is_b & is_bold).double().mean())
    rows.put(
        "D20", f"(a, bold) - (a, thin) + (b, thin), means of {size}: a bold b", right,
        {"is b": float(is_b.double().mean()), "is bold": float(is_bold.double().mean()), "trials": len(asked)},
        ">= 0.7", right >= 0.7,
    )  # fmt: skip
    found = pipe.encode(pipe.decode(z[:500], output_type="latent"), steps=100, starts=2)
    rows.put(
        "D22", "R2 of a linear probe from z to boldness", held_out_r2(z[:4000], ink[:4000]),
        {"from z found again by optimisation": held_out_r2(found, ink[:500])}, "told only", True,
    )  # fmt: skip


def held_out_r2(x: Tensor, y: Tensor) -> float:
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import cross_val_score

    return float(cross_val_score(RidgeCV(torch.logspace(-2, 4, 7).numpy()), x.numpy(), y.numpy(), cv=5).mean())


def conditional(rows: Rows, args) -> None:
    data, test = sets(args)
    extractor = extractor_for(data.shape)
    g, d = players(data.shape, tuple(args.channels), num_class_embeds=10)
    g = play(g, d, data, args.steps, mismatched=True)
    if args.folder:
        GANPipeline(g, d, label_names=list("0123456789")).save_pretrained(args.folder / "conditional")
    asked = torch.arange(2000) % 10
    images = sampled(g, 2000, class_labels=asked)
    right = float((extractor(images).logits.argmax(1) == asked).double().mean())
    held = float((extractor(as_floats(test)).logits.argmax(1) == test.labels).double().mean())
    rows.put("E1", "class accuracy", right, {"real": held, "steps": args.steps}, ">= 0.95", right >= 0.95)
    some = torch.linspace(0, len(data) - 1, min(len(data), 2000)).long()
    few = torch.linspace(0, len(test) - 1, min(len(test), 2000)).long()
    parts = {
        "synthetic": images, "synthetic_labels": asked, "real": as_floats(data)[some],
        "real_labels": data.labels[some], "test": as_floats(test)[few], "test_labels": test.labels[few],
    }  # fmt: skip
    trained = train_on_synthetic(**parts)
    rows.put(
        "A9", "accuracy of a classifier of samples, over that of one of as many real images",
        trained.synthetic / trained.real, {"synthetic": trained.synthetic, "real": trained.real}, ">= 0.9",
        trained.synthetic >= 0.9 * trained.real,
    )  # fmt: skip
    more = augment_with_synthetic(**parts, n_real=100)
    rows.put(
        "A9", "gain of 2000 samples beside 100 real images", more.augmented - more.real, {"100 real": more.real},
        ">= -0.01", more.augmented - more.real >= -0.01,
    )  # fmt: skip


def small_gan(name: str, args, data: ImageData, **conditions):
    """Networks of the part arithmetic, trained unless `--folder` has them."""
    path = args.folder / f"arithmetic-{name}" if args.folder else None
    if path and (path / "model_index.json").is_file():
        pipe = GANPipeline.from_pretrained(path)
    else:
        g, d = players(data.shape, tuple(args.channels), **conditions)
        pipe = GANPipeline(play(g, d, data, args.steps, mismatched="num_class_embeds" in conditions), d)
        if path:
            pipe.save_pretrained(path)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def slant(images: Tensor) -> Tensor:
    """Shear of each digit to the right, of the second moments of its ink: columns per row going up."""
    ink = (images[:, 0] + 1) / 2
    y, x = torch.meshgrid(torch.arange(ink.shape[1]).flip(0), torch.arange(ink.shape[2]), indexing="ij")
    total = ink.sum((1, 2)).clamp(min=1e-6)
    mean_x, mean_y = (((ink * at).sum((1, 2)) / total).view(-1, 1, 1) for at in (x, y))
    return (ink * (x - mean_x) * (y - mean_y)).sum((1, 2)) / (ink * (y - mean_y).square()).sum((1, 2)).clamp(min=1e-6)


ATTRIBUTES = {"bold": lambda images: images.mean((1, 2, 3)), "slanted": slant}


def sums(pipe, extractor, attribute: str, size: int) -> dict[str, float]:
    """(a, with) - (a, without) + (b, without), means of so many latents: is it a b with the attribute?

    With and without are the fifths of a class with the most and the least of it; a sum has it above the class's median.
    A network with classes is asked for a and for b by their labels.
    """
    count, conditional = 6000, pipe.generator.config.num_class_embeds is not None
    z = torch.randn(count, pipe.generator.config.latent_dim, generator=seeded(1))
    asked = {"class_labels": (torch.arange(count) % 10).tolist()} if conditional else {}
    images = pipe.decode(z, output_type="latent", **asked)
    classes = torch.arange(count) % 10 if conditional else extractor(images).logits.argmax(1)
    value, ends, median = ATTRIBUTES[attribute](images), {}, torch.zeros(10)
    for k in classes.unique().tolist():
        of = (classes == k).nonzero().flatten()
        order, fifth = of[value[of].argsort()], len(of) // 5
        ends[k], median[k] = (order[:fifth], order[len(of) - fifth :]), value[of].median()
    draw, made, wanted = seeded(2), [], []
    for a, b in itertools.permutations([k for k in ends if len(ends[k][0]) >= size], 2):
        for _ in range(4):
            parts = (ends[a][1], ends[a][0], ends[b][0])
            mean = [z[of[torch.randperm(len(of), generator=draw)[:size]]].mean(0) for of in parts]
            made.append(mean[0] - mean[1] + mean[2]), wanted.append(b)
    if not made:  # after a few steps of training
        return {"right": 0.0, "trials": 0}
    asked = {"class_labels": wanted} if conditional else {}
    images, target = pipe.decode(torch.stack(made), output_type="latent", **asked), torch.tensor(wanted)
    is_b = extractor(images).logits.argmax(1) == target
    has = ATTRIBUTES[attribute](images) > median[target]
    shares = {"right": is_b & has, "is b": is_b, f"is {attribute}": has}
    return {name: float(share.double().mean()) for name, share in shares.items()} | {"trials": len(made)}


def midpoints(pipe, extractor, real: Tensor, count: int = 1000) -> dict[str, dict[str, float]]:
    """Images halfway between two latents, by both paths, beside the means of the two images."""
    ends = torch.randn(2, count, pipe.generator.config.latent_dim, generator=seeded(3))
    half = torch.full((count, 1), 0.5)
    halfway = {"slerp": slerp(*ends, half), "lerp": lerp(*ends, half)}
    a, b = (pipe.decode(z, output_type="latent").clamp(-1, 1) for z in ends)
    images = {name: pipe.decode(z, output_type="latent").clamp(-1, 1) for name, z in halfway.items()}
    images |= {"pixel mix": (a + b) / 2, "ends": a}
    features, found = extractor(real).features, {}
    for name, made in images.items():
        out = extractor(made)
        found[name] = {"confidence": float(out.logits.softmax(1).amax(1).mean()),
                       "FD": frechet_distance(out.features, features),
                       "distance to the pixel mix": float((made - (a + b) / 2).square().mean().sqrt())}  # fmt: skip
    for name, z in halfway.items():
        found[name]["norm over that of the ends"] = float((z.norm(dim=1) / ends.norm(dim=2).mean(0)).mean())
    return found


def arithmetic(rows: Rows, args) -> None:
    """D20 by attribute, with and without classes and with more latents; D21, the middle of two latents."""
    data, test = sets(args)
    extractor = extractor_for(data.shape)
    plain = small_gan("plain", args, data)
    classes = small_gan("classes", args, data, num_class_embeds=10)
    for attribute in ATTRIBUTES:
        found = {
            f"{name}, means of {size}": sums(pipe, extractor, attribute, size)
            for name, pipe in (("with classes", classes), ("without", plain)) for size in (3, 30)
        }  # fmt: skip
        right = found["with classes, means of 3"]["right"]
        rows.put(
            "D20", f"(a, {attribute}) - (a, not) + (b, not), means of 3, classes by label: a {attribute} b", right,
            {name: one["right"] for name, one in found.items()} | {"steps": args.steps}, ">= 0.7", right >= 0.7,
            shares=found,
        )  # fmt: skip
    found = midpoints(plain, extractor, as_floats(test)[:2000])
    mix = found["pixel mix"]
    better = all(found[m]["confidence"] > mix["confidence"] and found[m]["FD"] < mix["FD"] for m in ("slerp", "lerp"))
    rows.put(
        "D21", "confidence of the classifier in the middle of two latents, slerp", found["slerp"]["confidence"],
        {"lerp": found["lerp"]["confidence"], "pixel mix": mix["confidence"],
         **{f"FD, {name}": one["FD"] for name, one in found.items()}}, "both paths above the mix, FD below its",
        better, scores=found,
    )  # fmt: skip
    draw_arithmetic(plain, classes, args)


def draw_arithmetic(plain, classes, args) -> None:
    """Rows: means of 3 thin digits of each class, the same with bold and less thin 8 added, and two ways halfway."""
    z, ends = torch.randn(300, classes.generator.config.latent_dim, generator=seeded(1)), {}
    for k in range(10):
        ink = ATTRIBUTES["bold"](classes.decode(z, class_labels=[k] * len(z), output_type="latent")).argsort()
        ends[k] = z[ink[:60]][:3].mean(0), z[ink[-60:]][:3].mean(0)  # of the lightest and of the heaviest fifth
    labels, thin = list(range(10)), torch.stack([ends[k][0] for k in range(10)])
    summed = thin + ends[8][1] - ends[8][0]
    shown = [classes.decode(at, class_labels=labels, output_type="latent") for at in (thin, summed)]
    between = torch.randn(2, 1, z.shape[1], generator=seeded(7))
    shown += [plain.interpolate(*between, 10, mode=mode, output_type="latent") for mode in ("slerp", "lerp")]
    rows = ["thin", "+ bold 8 - thin 8", "slerp", "lerp"]
    image_grid(torch.cat(shown).clamp(-1, 1), 10, row_labels=rows).save(args.pictures / "gan-arithmetic.png")


def stacked(rows: Rows, args) -> None:
    data, extractor = stacked_images(load_images(args.train_data_dir), n=128_000), load_extractor("mnist")
    g = play(*players(data.shape, tuple(args.channels)), data, args.steps)
    found = stacked_modes(stacked_logits(sampled(g, STACKED_SAMPLES).split(1000), extractor))
    rows.put(
        "D24", "Stacked MNIST, modes of 1000", found.covered,
        {"KL": found.kl, "KL of real images": found.real_kl, "PacDCGAN2": 1000, "VEEGAN": 150, "steps": args.steps},
        ">= 900", found.covered >= 900,
    )  # fmt: skip


def captions(rows: Rows, args) -> None:
    """Discriminators of type 1 see the picture, of type 2 picture and caption; digits with their names."""
    source, words = load_images("digits"), HashedWords(dim=64)
    order = torch.randperm(len(source), generator=seeded(0))
    kept, held = order[:-360], order[-360:]
    data = ImageData(source.images[kept], captions=[f"a {WORDS[label]}" for label in source.labels[kept].tolist()])
    extractor, asked = load_extractor("digits"), torch.arange(1000) % 10
    accuracy, game = {}, {}
    for kind, told, options in (
        ("picture alone", None, {}),
        ("picture and caption, no mismatched pairs", 64, {}),
        ("picture and caption", 64, {"mismatched": True}),
    ):
        torch.manual_seed(0)
        g = DCGANGenerator(8, block_out_channels=tuple(args.channels), text_embed_dim=64)
        d = DCGANDiscriminator(
            8, block_out_channels=tuple(args.channels), norm="none", minibatch_std=4, text_embed_dim=told
        )
        g = play(g, d, data, args.small_steps, text_encoder=words, **options)
        images = sampled(g, 1000, text_encoder=words, prompt=[f"a {WORDS[k]}" for k in asked.tolist()])
        accuracy[kind] = float((extractor(images).logits.argmax(1) == asked).double().mean())
        game[kind] = (g, d)
    rows.put(
        "E2", "accuracy of the digit asked for, discriminator of type 1", accuracy["picture alone"],
        {"chance": 0.1}, "<= 0.2", accuracy["picture alone"] <= 0.2,
    )  # fmt: skip
    best = accuracy["picture and caption"]
    rows.put("E1", "the same of type 2 with mismatched pairs", best, {**accuracy, "steps": args.small_steps},
             ">= 0.9", best >= 0.9)  # fmt: skip
    g, d = game["picture and caption"]
    with torch.no_grad():
        x, labels = as_floats(source)[held], source.labels[held]
        right, wrong = (
            d(x, text_embeds=words([f"a {WORDS[k]}" for k in of.tolist()])).logits
            for of in (labels, (labels + 1 + torch.arange(len(held)) % 9) % 10)
        )
    gap = float((right - wrong).mean())
    rows.put("E3", "logit of matched less that of mismatched pairs, held-out images", gap, {}, ">= 0.5", gap >= 0.5)
    shown = sampled(g, 100, text_encoder=words, prompt=[f"a {WORDS[k // 10]}" for k in range(100)])
    image_grid(shown, 10, row_labels=WORDS).save(args.pictures / "gan-captions.png")


def overhead(rows: Rows, args) -> None:
    """The same networks, game and optimizers: our loop, its start and end included, and one written out, in turns.

    Processor time, as other work on the machine is not in it; run it on one thread.
    """
    data, steps = sets(args)[0], args.overhead_steps
    images = as_floats(data)
    times = {"ours": [], "plain": []}
    for _ in range(args.rounds):
        g, d = players(data.shape, tuple(args.channels))
        started = time.process_time()
        play(g, d, data, steps, **VANILLA)
        times["ours"].append(time.process_time() - started)
        g, d = players(data.shape, tuple(args.channels))
        ema = EMA(g, 0.998)
        optimizers = [torch.optim.Adam(net.parameters(), 1e-3, betas=(0.0, 0.99)) for net in (g, d)]
        loader = torch.utils.data.DataLoader(images, 64, shuffle=True, drop_last=True)
        endless = itertools.chain.from_iterable(itertools.repeat(loader))
        started = time.process_time()
        for x in itertools.islice(endless, steps):
            with torch.no_grad():
                fake = g(torch.randn(64, 100)).sample
            logits = d(torch.cat([x, fake])).logits
            loss = F.softplus(-logits[:64]).mean() + F.softplus(logits[64:]).mean()
            optimizers[1].zero_grad()
            loss.backward()
            optimizers[1].step()
            d.requires_grad_(False)
            loss = F.softplus(-d(g(torch.randn(64, 100)).sample).logits).mean()
            optimizers[0].zero_grad()
            loss.backward()
            optimizers[0].step()
            d.requires_grad_(True)
            ema.update(g)
        times["plain"].append(time.process_time() - started)
    ratios = [ours / plain for ours, plain in zip(times["ours"], times["plain"])]
    ours = statistics.median(ratios)
    rows.put(
        "-", "processor time of our loop over that of a plain one, median of rounds", ours,
        {"images per processor second": 64 * steps / statistics.median(times["ours"]), "rounds": args.rounds,
         "steps": steps, "side": data.shape[1]}, "<= 1.03", ours <= 1.03, rounds=ratios,
    )  # fmt: skip


PARTS = {
    "ring": partial(modes, "ring"), "grid": partial(modes, "grid"), "ganlab": ganlab, "n_critic": critic_steps,
    "mnist": mnist,
    "conditional": conditional, "arithmetic": arithmetic, "stacked": stacked, "captions": captions,
    "overhead": overhead,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["ring", "grid", "ganlab"])
    parser.add_argument("--seeds", type=int, default=10, help="of ring and grid, default game")
    parser.add_argument("--vanilla_seeds", type=int, default=3, help="of the same, without penalties")
    parser.add_argument("--lab_seeds", type=int, default=5, help="of GAN Lab's shapes")
    parser.add_argument("--plane_steps", type=int, default=6000, help="of 128 points")
    parser.add_argument("--train_data_dir", help="MNIST with a test split; not given: the embedded digits")
    parser.add_argument(
        "--steps", type=int, default=8000, help="of 64 pictures: mnist, conditional, arithmetic, stacked"
    )
    parser.add_argument("--small_steps", type=int, default=2000, help="the same: captions, on 8 x 8 digits")
    parser.add_argument(
        "--channels", type=int, nargs="+", default=[*GENERATOR.block_out_channels], help="of both networks"
    )
    parser.add_argument("--overhead_steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=9, help="of overhead")
    parser.add_argument("--folder", type=Path, help="to keep the pipelines of mnist, conditional and arithmetic in")
    parser.add_argument("--pictures", type=Path, default=HERE.parent / "docs" / "images")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "lecture_gan.json")
    args = parser.parse_args()
    if "stacked" in args.parts and not args.train_data_dir:
        parser.error("--parts stacked needs --train_data_dir, MNIST.")
    rows = Rows()
    for part in args.parts:
        started, worked, before = time.perf_counter(), time.process_time(), len(rows)
        commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=HERE, text=True).strip()
        PARTS[part](rows, args)
        cost = {"seconds": time.perf_counter() - started, "processor_seconds": time.process_time() - worked}
        about = {
            "part": part, "command": f"python benchmarks/lecture_gan.py {' '.join(sys.argv[1:])}", **rounded(cost),
            "commit": commit,
            "latentia": latentia.__version__, "torch": torch.__version__, "threads": torch.get_num_threads(),
            "cores": os.cpu_count(), "machine": platform.machine(),
        }  # fmt: skip
        for row in rows[before:]:
            row |= about
        save(args.output, rows)
    print(f"\n{sum(row['passed'] for row in rows)} of {len(rows)} rows hold")


def save(path: Path, rows: Rows) -> None:
    """Rows of the parts that ran take the place of their old ones."""
    old = json.loads(path.read_text())["rows"] if path.exists() else []
    ran = {row["part"] for row in rows}
    kept = [row for row in old if row["part"] not in ran]
    path.parent.mkdir(exist_ok=True)
    text = {"what": "rows of a lecture on GANs that need training", "rows": kept + rows}
    path.write_text(json.dumps(text, indent=1) + "\n")


if __name__ == "__main__":
    main()
