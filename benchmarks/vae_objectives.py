"""Every objective, prior and kind of latents of the VAE with one network and equal steps: nats, samples, factors.

    python benchmarks/vae_objectives.py --train_data_dir mnist

MNIST: 784-256-256-20 and its mirror, SiLU, Bernoulli pixels binarised anew, Adam 1e-3 with a cosine to 0, batches of
128. Measured on test images, binarised once: the negative ELBO of one sample (all 10 000) and -log p by importance
sampling (`--images` of them), nats; active units; the Frechet distance of 2000 samples of the prior, and of a mixture
of 10 Gaussians fitted to 5000 training latents; logistic regression on the posterior means of 2000 test images, tested
on the others; seconds of training on the processor; of one categorical latent the accuracy of its categories as digits.

Factors: the drawn set of benchmarks/disentanglement.py, 1024-256-128-10, batches of 64, Adam 1e-3.

Weights are chosen by `--tune`, on seed 100, after fewer steps: on MNIST by the distance of samples to 5000 training
images that were held out, on the factors by MIG; no reported seed and no test image is looked at. Rows are written as
they are done, seed by seed, and rows that are there are not done again, so a run may be cut.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from disentanglement import Grey
from lecture_diffusion import environment
from torch import Tensor

from latentia import VAE, LatentMixture, LatentVAE, MLPDiscriminator, NormalizingFlow, VAEPipeline
from latentia.data import ImageData, load_images
from latentia.evaluation import disentanglement_scores, extractor_for, frechet_distance, linear_probe
from latentia.losses.vae_objectives import OBJECTIVES
from latentia.losses.variational import ACTIVE, elbo_loss
from latentia.rng import Rng
from latentia.runs.costs import reconstruction_cost
from latentia.training.loop import Phase, learning_rate_schedule, train

HERE = Path(__file__).resolve().parent
BATCH = {"mnist": 128, "factors": 64}
NETWORK = {
    "mnist": {"sample_size": 28, "latent_dim": 20, "hidden_sizes": (256, 256)},
    "factors": {"sample_size": 32, "latent_dim": 10, "hidden_sizes": (256, 128), "activation": "relu"},
}
LEVELS = {"latent_dim": (20, 10), "hidden_sizes": ((256, 256), (128,))}
FITTED = ("autoencoder", 0)  # row and seed whose latents get every prior that is fitted afterwards


def row(objective: str, network: dict[str, Any] | None = None, warmup: float = 0.0, cost: str = "", **options: Any):
    return {"objective": objective, "network": network or {}, "warmup": warmup, "cost": cost, "options": options}


ROWS = {
    "elbo": row("elbo"),
    "autoencoder": row("wae_imq", regulariser_weight=0.0),
    "beta": row("elbo", beta=4.0),
    "free_bits": row("elbo", free_bits=0.1),
    "capacity": row("elbo", capacity=25.0),
    "iwae": row("iwae", samples=5),
    "miwae": row("miwae", groups=2, samples=5),
    "ciwae": row("ciwae", samples=5),
    "piwae": row("piwae", groups=2, samples=5),
    "wae_rbf": row("wae_rbf"),
    "wae_imq": row("wae_imq"),
    "swae": row("swae"),
    "info_vae": row("info_vae"),
    "beta_tc": row("beta_tc"),
    "factor": row("factor"),
    "dip_i": row("dip_i"),
    "dip_ii": row("dip_ii"),
    "mixture": row("elbo", {"prior": "mixture", "prior_components": 100}),
    "vamp": row("elbo", {"prior": "vamp", "prior_components": 100}),
    "hierarchy": row("elbo", LEVELS, 0.3),
    "ladder": row("elbo", {**LEVELS, "inference": "top_down"}, 0.3),
    "ladder_vamp": row("elbo", {**LEVELS, "inference": "top_down", "prior": "vamp"}, 0.3),
    "log_cosh": row("elbo", cost="log_cosh"),
    "perceptual": row("elbo", cost="perceptual"),
    "ms_ssim": row("elbo", cost="ms_ssim"),
    "categorical": row("elbo", {"latent_dim": None, "categories": (10,) * 20}),
    "joint": row("elbo", {"latent_dim": 10, "categories": (10,)}, capacity=20.0, category_capacity=2.3),
    "gamma": row("elbo", {"posterior": "gamma"}),
    "iwae_50": row("iwae", samples=50),
}  # in the order in which they are done
ON_FACTORS = [
    *("elbo", "beta", "beta_tc", "factor", "dip_i", "dip_ii", "info_vae", "wae_rbf", "wae_imq", "swae"),
    *("iwae", "miwae", "ciwae", "piwae"),
]
WEIGHTS = {  # tried by --tune; the first is taken without it
    "mnist": {
        "wae_rbf": (300.0, 1000.0, 3000.0), "wae_imq": (300.0, 1000.0, 3000.0), "swae": (10.0, 30.0, 100.0),
        "info_vae": (100.0, 1000.0), "beta_tc": (2.0, 6.0), "factor": (2.0, 10.0), "dip_i": (1.0, 10.0),
        "dip_ii": (1.0, 10.0),
    },
    "factors": {
        "beta": (2.0, 4.0), "beta_tc": (4.0, 8.0), "factor": (10.0, 30.0), "dip_i": (10.0, 50.0),
        "dip_ii": (10.0, 50.0), "info_vae": (100.0,), "wae_rbf": (1000.0,), "wae_imq": (1000.0,), "swae": (30.0,),
    },
}  # fmt: skip


def fit(what: str, name: str, data: Any, seed: int, steps: int, weight: float | None) -> tuple[VAE, float]:
    """Train one row; the network, and processor seconds."""
    spec = ROWS[name]
    one, options = OBJECTIVES[spec["objective"]], {**OBJECTIVES[spec["objective"]].fixed, **spec["options"]}
    if weight is not None:
        options["beta" if "beta" in one.options else "regulariser_weight"] = weight
    if "dataset_size" in one.options:
        options["dataset_size"] = len(data)
    if spec["cost"]:
        options["cost"] = reconstruction_cost(spec["cost"], data.shape)
    torch.manual_seed(seed)
    accelerator = Accelerator(cpu=True)
    schedule = learning_rate_schedule("cosine" if what == "mnist" else "constant", 50, steps)
    network = VAE(**{**NETWORK[what], **spec["network"]})
    vae, optimizer = accelerator.prepare(network, torch.optim.Adam(network.parameters(), lr=1e-3))
    networks, phases = [vae], []
    if one.second is not None:
        judge = MLPDiscriminator(in_dim=NETWORK[what]["latent_dim"], hidden_sizes=(256, 256, 256))
        judge, its = accelerator.prepare(judge, torch.optim.Adam(judge.parameters(), lr=1e-4, betas=(0.5, 0.9)))
        phases.append(Phase("discriminator", partial(one.second, judge, vae), judge, its))
        networks.append(judge)

    def loss(batch: Any, rng: Rng) -> dict[str, Tensor]:
        now = dict(options)
        if spec["warmup"]:
            now["beta"] = min(1.0, rng.position / (spec["warmup"] * steps * BATCH[what]))
        done = rng.position / (steps * BATCH[what])
        if "category_capacity" in now:  # both grow over half of the run
            now |= {name: min(1.0, 2 * done) * now[name] for name in ("capacity", "category_capacity")}
        if network.config.categories:
            now["temperature"] = 0.5**done
        return one.loss(*networks, batch, rng, **now)

    phases.append(Phase("vae", loss, vae, optimizer, schedule, max_grad_norm=200.0))
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        result = train(
            accelerator, phases, data, output_dir=folder, max_steps=steps, batch_size=BATCH[what], seed=seed,
            checkpoint_every=None, resume="none",
        )  # fmt: skip
    if result.status == "interrupted":
        raise SystemExit("Interrupted; rows that were done are in the file.")
    return network.eval(), time.process_time() - started


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Digits:
    """MNIST: training images but for a validation part, test images, and what the classifier sees of both."""

    def __init__(self, folder: str, images: int, samples: int):
        whole, test = load_images(folder, split="train"), load_images(folder, split="test")
        self.data, self.images, self.samples = ImageData(whole.images[:55_000]), images, samples
        self.extractor = extractor_for((1, 28, 28))
        self.grey, self.labels = test.images.float() / 127.5 - 1, test.labels
        self.test = torch.where(torch.rand(self.grey.shape, generator=seeded(1)) < (self.grey + 1) / 2, 1.0, -1.0)
        self.references = {
            "validation": self.extractor(whole.images[55_000:].float() / 127.5 - 1).features,
            "test": self.extractor(self.grey).features,
        }

    def distance(self, pipe: VAEPipeline, reference: str = "test", n: int = 2000) -> float:
        images = pipe(n, generator=seeded(0), output_type="latent").images.clamp(-1, 1)
        return frechet_distance(self.extractor(images).features, self.references[reference])

    def scores(self, vae: VAE, every_prior: bool) -> dict[str, float]:
        pipe = VAEPipeline(vae)
        elbo = pipe.log_likelihood(self.test, generator=seeded(0))
        few = self.test[:: len(self.test) // self.images][: self.images]
        tight = pipe.log_likelihood(few, samples=self.samples, generator=seeded(0))
        codes = pipe.encode(self.grey)
        train_codes = pipe.encode(self.data.images[:5000].float() / 127.5 - 1)
        probe = linear_probe(codes[:2000], self.labels[:2000], test=(codes[2000:], self.labels[2000:]))
        fitted = {"mixture": LatentMixture.fit(train_codes, 10)}
        if every_prior:
            fitted |= {
                "flow": NormalizingFlow.fit(train_codes, steps=500),
                "autoregressive": NormalizingFlow.fit(train_codes, steps=500, architecture="maf"),
                "two-stage": LatentVAE.fit(train_codes, steps=1000),
            }
        return {
            "-ELBO": -float(elbo.mean()), "-log p": -float(tight.mean()), "active units": active_units(codes),
            "FD prior": self.distance(pipe),
            **{f"FD {name}": self.distance(VAEPipeline(vae, prior)) for name, prior in fitted.items()},
            "probe": probe.mean, **layers_of(vae, self.test[:2000]), **self.clusters(vae, codes),
        }  # fmt: skip

    def clusters(self, vae: VAE, codes: Tensor) -> dict[str, float]:
        """Of one categorical latent: accuracy of each category's commonest digit in one half, on the other half."""
        if len(vae.config.categories) != 1:
            return {}
        found = codes[:, -vae.config.categories[0] :].argmax(1)
        half = len(found) // 2
        votes = [self.labels[:half][found[:half] == k] for k in range(vae.config.categories[0])]
        digit = torch.tensor([int(torch.mode(vote).values) if len(vote) else -1 for vote in votes])
        return {"cluster accuracy": float((digit[found[half:]] == self.labels[half:]).double().mean())}


def active_units(codes: Tensor) -> int:
    return int((codes.var(0) > ACTIVE).sum())


@torch.no_grad()
def layers_of(vae: VAE, x: Tensor) -> dict[str, float]:
    """KL of each stochastic layer where there are several."""
    values = elbo_loss(vae, {"x": x}, Rng(1, 0, len(x), 0, len(x)))
    return {name: float(values[name]) for name in ("kl_1", "kl_2") if name in values}


class Drawn:
    """The factor set and its scores."""

    def __init__(self, n: int, groups: int):
        self.factors, self.n, self.groups = Grey(), n, groups
        self.data = ImageData(self.factors.images)

    def scores(self, vae: VAE) -> dict[str, float]:
        found = disentanglement_scores(
            lambda x: vae.encode(x)[0].detach(), self.factors, n=self.n, groups=self.groups
        ).to_dict()
        with torch.no_grad():
            x = self.factors.images[::8].float() / 127.5 - 1
            bound = elbo_loss(vae, {"x": x}, Rng(1, 0, len(x), 0, len(x)))
        names = {"mig": "MIG", "sap": "SAP", "dci_disentanglement": "DCI", "factor_vae": "FactorVAE score"}
        parts = {"reconstruction": float(bound["reconstruction"]), "kl": float(bound["kl"])}
        return {**{names[key]: value for key, value in found.items() if key in names}, **parts}


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in values.items()}


def summary(rows: list[dict]) -> dict:
    """Mean and standard error over seeds, and the gain over `elbo` paired by seed."""
    found: dict = {}
    for part in ("mnist", "factors"):
        by = {(r["row"], r["seed"]): r["scores"] for r in rows if r["part"] == part}
        for name in dict.fromkeys(row for row, _ in by):
            seeds = [seed for row, seed in by if row == name]
            for score in by[name, seeds[0]]:
                each = [by[name, seed][score] for seed in seeds]
                both = [seed for seed in seeds if score in by.get(("elbo", seed), {})]
                gains = [by[name, seed][score] - by["elbo", seed][score] for seed in both]
                cell = {"mean": statistics.mean(each), "error": spread(each), "seeds": len(each)}
                if name != "elbo" and gains:
                    cell |= {"gain over elbo": statistics.mean(gains), "its error": spread(gains)}
                found.setdefault(part, {}).setdefault(name, {})[score] = {
                    key: None if value is None else float(f"{value:.4g}") for key, value in cell.items()
                }
    return found


def spread(values: list[float]) -> float | None:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


class Store:
    """The file of results, written after each row."""

    def __init__(self, path: Path, about: dict):
        self.path, self.about = path, about
        self.content = json.loads(path.read_text()) if path.exists() else {"what": __doc__, "tuning": [], "rows": []}

    def has(self, kind: str, **keys: Any) -> bool:
        return any(all(entry.get(key) == value for key, value in keys.items()) for entry in self.content[kind])

    def add(self, kind: str, entry: dict) -> None:
        self.content[kind].append({**entry, **self.about})
        self.content["means"] = summary(self.content["rows"])
        self.path.write_text(json.dumps(self.content, indent=1) + "\n")
        print({key: value for key, value in entry.items() if key != "settings"}, flush=True)

    def weight(self, part: str, name: str) -> float | None:
        """That which was best in tuning, or the first."""
        if name not in WEIGHTS[part]:
            return None
        tried = [entry for entry in self.content["tuning"] if (entry["part"], entry["row"]) == (part, name)]
        best: Callable = max if part == "factors" else min
        return best(tried, key=lambda entry: entry["score"])["weight"] if tried else WEIGHTS[part][name][0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train_data_dir", help="MNIST in parquet; not given: the drawn factors alone")
    parser.add_argument("--parts", nargs="+", choices=("mnist", "factors"), default=["mnist", "factors"])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=[name for name in ROWS if name != "iwae_50"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tune", action="store_true", help="choose the weights first")
    parser.add_argument("--steps", type=int, default=1500, help="on MNIST")
    parser.add_argument("--factor_steps", type=int, default=3000)
    parser.add_argument("--tuning_steps", type=int, default=600, help="on MNIST; on the factors half of factor_steps")
    parser.add_argument("--images", type=int, default=200, help="test images of -log p")
    parser.add_argument("--samples", type=int, default=500, help="importance samples of -log p")
    parser.add_argument("--groups", type=int, default=200, help="of the FactorVAE score")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "vae_objectives.json")
    args = parser.parse_args()
    given = vars(args) | {"output": None, "train_data_dir": args.train_data_dir and Path(args.train_data_dir).name}
    store = Store(args.output, environment() | {"settings": {key: value for key, value in given.items() if value}})
    parts = [part for part in args.parts if part == "factors" or args.train_data_dir]
    digits = Digits(args.train_data_dir, args.images, args.samples) if "mnist" in parts else None
    drawn = Drawn(5000, args.groups) if "factors" in parts else None

    def tune(part: str, name: str) -> None:
        for weight in WEIGHTS[part][name] if len(WEIGHTS[part][name]) > 1 else ():
            if not store.has("tuning", part=part, row=name, weight=weight):
                if part == "mnist":
                    vae, _ = fit(part, name, digits.data, 100, args.tuning_steps, weight)
                    score = digits.distance(VAEPipeline(vae), "validation", 1000)
                else:
                    vae, _ = fit(part, name, drawn.data, 100, args.factor_steps // 2, weight)
                    score = drawn.scores(vae)["MIG"]
                store.add("tuning", {"part": part, "row": name, "weight": weight, "score": float(f"{score:.4g}")})

    for seed in args.seeds:
        for part in parts:
            for name in args.rows:
                if store.has("rows", part=part, row=name, seed=seed) or (part == "factors" and name not in ON_FACTORS):
                    continue
                if args.tune and name in WEIGHTS[part]:
                    tune(part, name)
                weight = store.weight(part, name)
                data, steps = (digits.data, args.steps) if part == "mnist" else (drawn.data, args.factor_steps)
                vae, seconds = fit(part, name, data, seed, steps, weight)
                scores = digits.scores(vae, (name, seed) == FITTED) if part == "mnist" else drawn.scores(vae)
                entry = {"part": part, "row": name, "seed": seed, "weight": weight}
                store.add("rows", {**entry, "scores": rounded({**scores, "seconds": seconds})})


if __name__ == "__main__":
    main()
