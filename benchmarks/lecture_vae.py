"""What an introductory lecture says of VAEs and only trained networks can show, in a few minutes on a CPU.

    python benchmarks/lecture_vae.py

Small dense networks learn 80 % of scikit-learn's 8 x 8 digits; what is held out is the rest. Each row of the table has
its value, what it is compared with, and the threshold that was set before; a row that misses it says so. Frechet
distances are on the features of the shipped classifier, beside the floor of held-out images. With --train_data_dir a
larger set, such as MNIST in parquet, is trained on too, and its test images are scored.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from lecture_diffusion import environment
from torch import Tensor

from latentia import VAE, VAEPipeline
from latentia.data import load_images
from latentia.evaluation import (
    extractor_for,
    frechet_distance,
    image_grid,
    knn_probe,
    load_extractor,
    memorisation,
    off_diagonal_correlation,
)
from latentia.functional.distributions import gaussian_kl
from latentia.functional.interpolation import interpolate
from latentia.losses.variational import ACTIVE, elbo_loss, iwae_loss
from latentia.rng import Rng
from latentia.training.ema import EMA
from latentia.training.loop import Phase, learning_rate_schedule, train

HERE = Path(__file__).resolve().parent
BETAS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 100.0)
PARTS = ("bernoulli", "plane", "gaussian", "objectives")


def fit(vae: VAE, data, steps: int, loss: Callable, batch_size: int = 64, rate: float = 2e-3, seed: int = 0) -> VAE:
    """Train with `train`, 2000 steps by default; returns the average of the weights, in evaluation mode."""
    accelerator, ema = Accelerator(cpu=True), EMA(vae)
    network, optimizer = accelerator.prepare(vae, torch.optim.Adam(vae.parameters(), lr=rate, betas=(0.9, 0.99)))
    phase = Phase(
        name="vae",
        loss=partial(loss, network),
        trains=network,
        optimizer=optimizer,
        learning_rate=learning_rate_schedule("cosine", 50, steps),
        ema=ema,
    )
    with tempfile.TemporaryDirectory() as folder:
        train(
            accelerator, [phase], data, output_dir=folder, max_steps=steps, batch_size=batch_size,
            seed=seed, checkpoint_every=None, resume="none",
        )  # fmt: skip
    return ema.module.eval()


def digits_vae(**config) -> VAE:
    torch.manual_seed(0)
    return VAE(**{"sample_size": 8, "latent_dim": 10, "hidden_sizes": (256,)} | config)


def plain_loss(vae, batch, rng) -> dict[str, Tensor]:
    """A plain autoencoder: the code without noise, the squared error alone."""
    return {"loss": (vae(batch["x"]).location - batch["x"]).square().flatten(1).sum(1).mean()}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Rows(list):
    """The table. A row: which, what, its value, what it is compared with, the threshold, whether it holds."""

    def put(self, row: str, what: str, value: float, baseline: dict, threshold: str, passed: bool, **details) -> None:
        self.append(
            {"row": row, "what": what, "value": rounded(value), "baseline": rounded(baseline), "threshold": threshold,
             "passed": bool(passed), **rounded(details)}
        )  # fmt: skip
        print(self.line(self[-1]), flush=True)

    @staticmethod
    def line(entry: dict) -> str:
        baseline = ", ".join(f"{key} {value}" for key, value in entry["baseline"].items())
        verdict = "holds" if entry["passed"] else "MISSED"
        return f"{entry['row']:<8}{verdict:<8}{entry['what']}: {entry['value']} ({entry['threshold']}; {baseline})"


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


class Digits:
    """The data, the classifier's features of both parts, and the distance of samples to the held-out part."""

    def __init__(self):
        self.train = load_images("digits", split="train[:80%]")
        rest = load_images("digits", split="train[80%:]")
        self.images, self.labels = self.train.images.float() / 127.5 - 1, self.train.labels
        self.held_out, self.held_out_labels = rest.images.float() / 127.5 - 1, rest.labels
        self.extractor = load_extractor("digits")
        self.features, self.real = self.extractor(self.images).features, self.extractor(self.held_out).features
        self.floor = frechet_distance(self.features, self.real)

    def distance(self, images: Tensor) -> float:
        return frechet_distance(self.extractor(images.clamp(-1, 1)).features, self.real)

    def predicted(self, images: Tensor) -> Tensor:
        return self.extractor(images.clamp(-1, 1)).logits.argmax(1)

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        return float((self.predicted(images) == labels).double().mean())


def sampled(vae: VAE, n: int = 1000, **options) -> Tensor:
    return VAEPipeline(vae)(n, generator=seeded(0), output_type="latent", **options).images


@torch.no_grad()
def terms(vae: VAE, images: Tensor) -> dict[str, float]:
    """Reconstruction and KL in nats per image over 8 draws, and the mean posterior standard deviation."""
    parts = [elbo_loss(vae, {"x": images}, Rng(1, k, len(images), 0, len(images))) for k in range(8)]
    log_variance = vae.encode(images)[1]
    return {
        "reconstruction": float(torch.stack([part["reconstruction"] for part in parts]).mean()),
        "kl": float(parts[0]["kl"]),
        "sigma": float((0.5 * log_variance).exp().mean()),
        "distance to the mean image": float((vae(images).reconstruction - images.mean(0)).square().mean().sqrt()),
    }


def bernoulli(rows: Rows, digits: Digits, steps: int, pictures: Path) -> None:
    x = digits.held_out
    networks = {beta: fit(digits_vae(), digits.train, steps, partial(elbo_loss, beta=beta)) for beta in BETAS}
    vae = networks[1.0]
    pipe = VAEPipeline(vae)
    first, again, other = (pipe.encode(x, sample_posterior=True, generator=seeded(s)) for s in (0, 0, 1))
    same, mean = float((first - again).abs().max()), bool(torch.equal(pipe.encode(x), vae.encode(x)[0]))
    rows.put(
        "C3", "largest difference of two encodings with different seeds", float((first - other).abs().max()),
        {"with equal seeds": same}, "> 0.1, and 0; without sampling the mean",
        (first - other).abs().max() > 0.1 and same == 0 and mean,
    )  # fmt: skip

    mean, log_variance = pipe.encode(x), vae.encode(x)[1]
    active = int((mean.var(0) > ACTIVE).sum())
    by_dimension = gaussian_kl(mean, log_variance).mean(0).sort(descending=True).values.tolist()
    wide = fit(digits_vae(latent_dim=32), digits.train, steps, elbo_loss)
    wide_active = int((wide.encode(x)[0].var(0) > ACTIVE).sum())
    rows.put(
        "C8", "active units of 32", wide_active, {"of 10": active}, "> 0 and < 32", 0 < wide_active < 32,
        kl_by_dimension_of_10=by_dimension,
    )  # fmt: skip

    curve = {f"beta = {beta:g}": terms(network, x) for beta, network in networks.items()}
    distances = {beta: digits.distance(sampled(network)) for beta, network in networks.items()}
    cheat, fair = curve["beta = 0"]["sigma"], curve["beta = 1"]["sigma"]
    rows.put(
        "C10", "beta = 0, mean posterior standard deviation", cheat,
        {"beta = 1": fair, "FD of samples": distances[0.0], "FD at beta = 1": distances[1.0], "floor": digits.floor},
        "<= 0.05, and FD at least twice that of beta = 1", cheat <= 0.05 and distances[0.0] >= 2 * distances[1.0],
    )  # fmt: skip
    last = curve["beta = 100"]
    rows.put(
        "C11", "beta = 100, KL in nats per image", last["kl"],
        {"beta = 1": curve["beta = 1"]["kl"], "RMS from the mean image": last["distance to the mean image"],
         "at beta = 1": curve["beta = 1"]["distance to the mean image"]},
        "<= 0.1, and all pictures within 0.1 of the mean image",
        last["kl"] <= 0.1 and last["distance to the mean image"] <= 0.1,
    )  # fmt: skip
    kls = [curve[f"beta = {beta:g}"]["kl"] for beta in BETAS]
    errors = [curve[f"beta = {beta:g}"]["reconstruction"] for beta in BETAS]
    rows.put(
        "C12", "KL falls and reconstruction error rises with beta, share of the 6 steps",
        sum((a > b) + (c < d) for a, b, c, d in zip(kls, kls[1:], errors, errors[1:])) / 12, {}, "all",
        kls == sorted(kls, reverse=True) and errors == sorted(errors),
        curve=curve, frechet_distance={f"{beta:g}": value for beta, value in distances.items()},
    )  # fmt: skip
    shown = [x[:12]] + [networks[b](x[:12]).reconstruction.detach() for b in BETAS]
    image_grid(torch.cat(shown), 12, row_labels=["data", *(f"beta {b:g}" for b in BETAS)]).save(
        pictures / "vae-beta.png"
    )

    bounds = {k: float(pipe.log_likelihood(x, samples=k, generator=seeded(0)).mean()) for k in (1, 5, 50, 500)}
    elbo = -curve["beta = 1"]["reconstruction"] - curve["beta = 1"]["kl"]
    values = list(bounds.values())
    rows.put(
        "J8", "bound on log p(x) with 500 samples, nats per image", values[-1],
        {**{f"k = {k}": value for k, value in list(bounds.items())[:-1]}, "ELBO": elbo},
        "rises with k, and k = 1 within 1 nat of the ELBO", values == sorted(values) and abs(values[0] - elbo) < 1,
    )  # fmt: skip


def plane(rows: Rows, digits: Digits, steps: int, pictures: Path) -> None:
    vae = fit(digits_vae(latent_dim=2, likelihood="gaussian"), digits.train, steps, elbo_loss)
    pipe = VAEPipeline(vae)
    images = pipe.manifold(20, output_type="latent").flatten(0, 1)
    classes = int(digits.predicted(images).unique().numel())
    codes = [pipe.encode(part) for part in (digits.images, digits.held_out)]
    probe = knn_probe(codes[0], digits.labels, k=1, test=(codes[1], digits.held_out_labels), seeds=1)
    rows.put(
        "C9", "classes on the 20 x 20 manifold of 2 dimensions", classes, {"1-NN accuracy of codes": probe.mean},
        ">= 8, and 1-NN >= 0.6", classes >= 8 and probe.mean >= 0.6,
    )  # fmt: skip
    image_grid(images, 20, padding=1, tile=24).save(pictures / "vae-manifold.png")


def gaussian(rows: Rows, digits: Digits, steps: int, pictures: Path) -> None:
    x, labels = digits.held_out, digits.held_out_labels
    vae = fit(digits_vae(latent_dim=16, likelihood="gaussian"), digits.train, steps, elbo_loss)
    plain = fit(digits_vae(latent_dim=16, likelihood="gaussian", observation_std=1.0), digits.train, steps, plain_loss)
    pipe, autoencoder = VAEPipeline(vae), VAEPipeline(plain)
    samples = sampled(vae)
    ours, theirs = digits.distance(samples), digits.distance(sampled(plain))
    features = digits.extractor(samples.clamp(-1, 1)).features
    copied = memorisation(fake=features, train=digits.features, held_out=digits.real)
    rows.put(
        "C4", "FD of 1000 samples", ours,
        {"plain autoencoder, codes from N(0, I)": theirs, "floor": digits.floor, "distance ratio to training images":
         copied.ratio}, "below the autoencoder's, and ratio >= 0.5 (no copies)", ours < theirs and copied.ratio >= 0.5,
    )  # fmt: skip
    image_grid(samples[:100], 10).save(pictures / "vae-samples.png")

    with torch.no_grad():
        noise = [vae(digits.images, torch.randn(len(digits.images), 16, generator=seeded(s))) for s in range(8)]
        error = float(torch.stack([(out.reconstruction - digits.images).square().mean() for out in noise]).mean())
    variance = float((2 * vae.log_scale).exp())
    rows.put(
        "J20d", "learned variance over mean squared error", variance / error, {"variance": variance, "error": error},
        "within 5 % of 1", abs(variance / error - 1) <= 0.05,
    )  # fmt: skip

    pairs = torch.randperm(len(x), generator=seeded(0))[:200].view(2, 100)
    found = {}
    for name, one in (("VAE", pipe), ("autoencoder", autoencoder)):
        ends = [one.encode(x[index]) for index in pairs]
        ways = torch.stack([one.decode(torch.lerp(*ends, t), output_type="latent") for t in torch.linspace(0, 1, 21)])
        named = torch.stack([digits.predicted(way) for way in ways])
        found[name] = float((named[1:] != named[:-1]).sum(0).double().mean())
        if name == "VAE":
            middles = {"lerp": ways[10]}
            slerped = [one.interpolate(a, b, 3, mode="slerp", output_type="latent")[1] for a, b in zip(*x[pairs])]
            middles["slerp"] = torch.stack(slerped)
            image_grid(ways[::2, :8].transpose(0, 1).flatten(0, 1), 11).save(pictures / "vae-interpolation.png")
    rows.put(
        "C5", "changes of the class on the way between two codes", found["VAE"], {"autoencoder": found["autoencoder"]},
        "<= 3, and at most the autoencoder's + 0.2", found["VAE"] <= min(3, found["autoencoder"] + 0.2),
    )  # fmt: skip
    smooth = {name: slopes(one, x) for name, one in (("VAE", pipe), ("autoencoder", autoencoder))}
    steep = {name: float(found.quantile(0.99)) for name, found in smooth.items()}
    edges = [0.0, *(2.0**k for k in range(-6, 6)), float("inf")]
    counts = {name: torch.histogram(found, torch.tensor(edges)).hist.int().tolist() for name, found in smooth.items()}
    rows.put(
        "C5", "change of the decoded image for a small change of the code, 99th percentile", steep["VAE"],
        {"autoencoder": steep["autoencoder"], **{f"median, {name}": float(s.median()) for name, s in smooth.items()}},
        "at most the autoencoder's", steep["VAE"] <= steep["autoencoder"],
        histogram={"edges": [*edges[:-1], "inf"], **counts},
    )  # fmt: skip
    middle(rows, "digits", digits.extractor, x, {**middles, "pixel mix": (x[pairs[0]] + x[pairs[1]]) / 2})

    ink = digits.images.mean((1, 2, 3))
    thick, thin = digits.images[ink > ink.quantile(0.75)], digits.images[ink < ink.quantile(0.25)]
    vector = pipe.attribute_vector(thick, thin)
    light = x[x.mean((1, 2, 3)) < ink.quantile(0.25)]
    heavier = pipe.add_attribute(light, vector, output_type="latent")
    flipped = float((heavier.mean((1, 2, 3)) > ink.median()).double().mean())
    before = pipe.reconstruct(light, output_type="latent")
    rows.put(
        "C15", "thin digits that are thicker than the median with the attribute vector added", flipped,
        {"without it": float((before.mean((1, 2, 3)) > ink.median()).double().mean())}, ">= 0.8", flipped >= 0.8,
    )  # fmt: skip
    shown = torch.cat([light[:12], before[:12], heavier[:12]])
    image_grid(shown, 12, row_labels=["data", "code", "+ ink"]).save(pictures / "vae-attribute.png")

    told = fit(digits_vae(likelihood="gaussian", num_class_embeds=10), digits.train, steps, elbo_loss)
    asked = torch.arange(1000) % 10
    right = digits.accuracy(sampled(told, class_labels=asked), asked)
    rows.put(
        "J2", "class accuracy of conditional samples", right, {"real images": digits.accuracy(x, labels)},
        ">= 0.95", right >= 0.95,
    )  # fmt: skip


def slopes(pipe: VAEPipeline, x: Tensor, draws: int = 10, size: float = 0.1) -> Tensor:
    """||dec(z + d) - dec(z)|| / ||d|| around the codes z of images, for random d.

    Codes are in units of their own standard deviation, so that two networks compare: d ~ N(0, (size s)^2), where s is
    the root mean square deviation of the codes from their mean.
    """
    z = pipe.encode(x)
    scale = (z - z.mean(0)).square().mean().sqrt()
    before, found = pipe.decode(z, output_type="latent"), []
    for seed in range(draws):
        step = size * scale * torch.randn(z.shape, generator=seeded(seed))
        moved = pipe.decode(z + step, output_type="latent") - before
        found.append(moved.flatten(1).norm(dim=1) / (step.norm(dim=1) / scale))
    return torch.cat(found)


def middle(rows: Rows, name: str, extractor, real: Tensor, images: dict[str, Tensor]) -> None:
    """Row C14: what lies halfway between two codes against what lies halfway between two pictures."""
    features, scores = extractor(real).features, {}
    for kind, halfway in images.items():
        found = extractor(halfway.clamp(-1, 1))
        scores[kind] = {
            "confidence": float(found.logits.softmax(1).amax(1).mean()),
            "FD": frechet_distance(found.features, features),
            "distance to the pixel mix": float((halfway - images["pixel mix"]).square().mean().sqrt()),
        }
    mix = scores["pixel mix"]
    better = all(s["confidence"] > mix["confidence"] and s["FD"] < mix["FD"] for s in scores.values() if s is not mix)
    rows.put(
        "C14", f"{name}, confidence of the classifier in the middle of two codes", scores["lerp"]["confidence"],
        {"slerp": scores["slerp"]["confidence"], "pixel mix": mix["confidence"], "FD": scores["lerp"]["FD"],
         "FD, slerp": scores["slerp"]["FD"], "FD of pixel mixes": mix["FD"]},
        "both modes above the mix, FD below its", better, scores=scores,
    )  # fmt: skip


def objectives(rows: Rows, digits: Digits, steps: int, pictures: Path) -> None:
    x = digits.held_out
    values = {}
    for capacity in (5.0, 15.0):

        def loss(vae, batch, rng, capacity=capacity):
            at = capacity * min(1.0, rng.position / (32 * steps))  # half of the run
            return elbo_loss(vae, batch, rng, capacity=at, capacity_weight=10.0)

        values[capacity] = terms(fit(digits_vae(), digits.train, steps, loss), digits.images)["kl"]
    worst = max(abs(kl / capacity - 1) for capacity, kl in values.items())
    rows.put(
        "J6", "KL against the capacity, largest relative gap", worst, {f"C = {c:g}": kl for c, kl in values.items()},
        "within 10 %", worst <= 0.1,
    )  # fmt: skip
    free = terms(fit(digits_vae(latent_dim=32), digits.train, steps, partial(elbo_loss, free_bits=0.3)), digits.images)
    floor = 32 * 0.3
    rows.put(
        "J20c", "KL with 0.3 free nats for each of 32 dimensions", free["kl"], {"floor": floor},
        "at least 95 % of the floor", free["kl"] >= 0.95 * floor,
    )  # fmt: skip
    bounds = {}
    for name, objective in {
        "ELBO": elbo_loss,
        "IWAE, k = 20": partial(iwae_loss, samples=20),
        "IWAE, k = 20, doubly reparameterised": partial(iwae_loss, samples=20, gradient="doubly_reparameterised"),
    }.items():
        pipe = VAEPipeline(fit(digits_vae(), digits.train, steps, objective))
        bounds[name] = [float(pipe.log_likelihood(x, samples=k, generator=seeded(0)).mean()) for k in (1, 500)]
    best = max(bounds["IWAE, k = 20"][1], bounds["IWAE, k = 20, doubly reparameterised"][1])
    rows.put(
        "J8", "log p(x) with 500 samples after training on the bound with 20", best,
        {f"{name}: {what}": v for name, pair in bounds.items() for what, v in zip(("k = 1", "k = 500"), pair)},
        "above that of ELBO training", best > bounds["ELBO"][1],
    )  # fmt: skip
    correlation = {
        f"beta = {beta:g}": off_diagonal_correlation(
            fit(digits_vae(likelihood="gaussian"), digits.train, steps, partial(elbo_loss, beta=beta))
            .encode(x)[0]
            .detach()
        )[0]
        for beta in (1.0, 4.0)
    }
    rows.put(
        "C13", "mean |correlation| between dimensions of the aggregated posterior, beta = 4", correlation["beta = 4"],
        {"beta = 1": correlation["beta = 1"]}, "<= 0.1 (no guarantee of disentanglement)",
        correlation["beta = 4"] <= 0.1,
    )  # fmt: skip


def large(rows: Rows, folder: str, steps: int, samples: int, pictures: Path) -> None:
    """A dense VAE on a larger set, and its bound on the test images."""
    data = load_images(folder, split="train")
    test = load_images(folder, split="test").images.float() / 127.5 - 1
    torch.manual_seed(0)
    vae = VAE(sample_size=tuple(data.shape[1:]), in_channels=data.shape[0], latent_dim=50, hidden_sizes=(400, 400))
    started, worked = time.perf_counter(), time.process_time()
    vae = fit(vae, data, steps, elbo_loss, 128)
    seconds, worked = time.perf_counter() - started, time.process_time() - worked
    found = terms(vae, test)
    nats, pipe = found["reconstruction"] + found["kl"], VAEPipeline(vae)
    few = test[torch.linspace(0, len(test) - 1, 200).long()]
    bound = -float(pipe.log_likelihood(few, samples=samples, generator=seeded(0)).mean())
    active = int((vae.encode(test)[0].var(0) > ACTIVE).sum())
    extractor, distances = extractor_for(data.shape), {}
    if extractor is not None:
        real = extractor(test).features
        made = extractor(sampled(vae, 2000).clamp(-1, 1)).features
        distances = {"FD of 2000 samples": frechet_distance(made, real[2000:]),
                     "floor": frechet_distance(real[:2000], real[2000:])}  # fmt: skip
    rows.put(
        "C7", "dynamically binarised MNIST, negative ELBO of the test images, nats per image", nats,
        {f"k = {samples}, 200 images": bound, "kl": found["kl"], "active units of 50": active,
         "epochs": steps * 128 / len(data), "minutes": seconds / 60, "processor minutes": worked / 60, **distances},
        "<= 105", nats <= 105,
    )  # fmt: skip
    image_grid(sampled(vae, 100), 10, tile=28).save(pictures / "vae-mnist.png")

    if extractor is not None:
        pairs = torch.randperm(len(test), generator=seeded(0))[:1000].view(2, 500)
        ends, kinds = [pipe.encode(test[index]) for index in pairs], {}
        kinds["lerp"] = pipe.decode(torch.lerp(*ends, 0.5), output_type="latent")
        halves = [interpolate(a[None], b[None], 3, "slerp")[1] for a, b in zip(*ends)]
        kinds["slerp"] = pipe.decode(torch.stack(halves), output_type="latent")
        middle(rows, "MNIST", extractor, test, {**kinds, "pixel mix": (test[pairs[0]] + test[pairs[1]]) / 2})

        torch.manual_seed(0)
        flat = VAE(sample_size=tuple(data.shape[1:]), in_channels=data.shape[0], latent_dim=2, hidden_sizes=(400, 400))
        pipe = VAEPipeline(fit(flat, data, steps, elbo_loss, 128))
        images = pipe.manifold(20, output_type="latent").flatten(0, 1)
        classes = int(extractor(images.clamp(-1, 1)).logits.argmax(1).unique().numel())
        labels, codes = load_images(folder, split="test").labels, pipe.encode(test)
        probe = knn_probe(codes[:5000], labels[:5000], k=1, test=(codes[5000:], labels[5000:]), seeds=1)
        rows.put(
            "C9", "MNIST, classes on the 20 x 20 manifold of 2 dimensions", classes,
            {"1-NN accuracy of codes": probe.mean}, ">= 8, and 1-NN >= 0.6", classes >= 8 and probe.mean >= 0.6,
        )  # fmt: skip
        image_grid(images, 20, tile=28, padding=0).save(pictures / "vae-manifold-mnist.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000, help="training steps of each network for digits")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--train_data_dir", help="MNIST or a set like it, with a test split; not given: digits alone")
    parser.add_argument("--large_steps", type=int, default=10_000, help="training steps on it, of 128 images")
    parser.add_argument("--importance_samples", type=int, default=500, help="of its likelihood")
    parser.add_argument("--pictures", type=Path, default=HERE.parent / "docs" / "images")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "lecture_vae.json")
    args = parser.parse_args()
    started, rows, threads = time.perf_counter(), Rows(), torch.get_num_threads()
    args.pictures.mkdir(parents=True, exist_ok=True)
    digits = Digits() if args.parts else None
    for part in args.parts:
        parts = {"bernoulli": bernoulli, "plane": plane, "gaussian": gaussian, "objectives": objectives}
        parts[part](rows, digits, args.steps, args.pictures)
    if args.train_data_dir:
        large(rows, args.train_data_dir, args.large_steps, args.importance_samples, args.pictures)
    seconds = time.perf_counter() - started
    print(f"\n{sum(row['passed'] for row in rows)} of {len(rows)} rows hold; {seconds:.0f} s")
    name = Path(args.train_data_dir).name if args.train_data_dir else ""
    flags = f"--steps {args.steps} --parts {' '.join(args.parts)}"
    flags += f" --train_data_dir {name} --large_steps {args.large_steps}" if name else ""
    about = {"command": f"python benchmarks/lecture_vae.py {flags}", "threads": threads, **environment()}
    fresh = [{**row, **about} for row in rows]
    old = json.loads(args.output.read_text())["rows"] if args.output.exists() else []
    new = {(row["row"], row["what"]) for row in fresh}
    kept = [row for row in old if (row["row"], row["what"]) not in new]
    result = {"what": "rows of a lecture on VAEs that need training"}
    args.output.parent.mkdir(exist_ok=True)
    args.output.write_text(json.dumps({**result, "rows": kept + fresh}, indent=1) + "\n")


if __name__ == "__main__":
    main()
