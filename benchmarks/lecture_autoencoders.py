"""What an introductory lecture says of autoencoders and only trained networks can show, in minutes on one core.

    python benchmarks/lecture_autoencoders.py
    python benchmarks/lecture_autoencoders.py --train_data_dir mnist/train --test_data_dir mnist/test --steps 20000

Without a folder the pictures are scikit-learn's 8 x 8 digits, four fifths to learn from and one fifth, held out, for
every error in the table (but where a row says otherwise; of a large set about 2500 are held out). Each row has its
value, what it is compared with, and the threshold that was set before; a row that misses it says so. Errors are
squared, in units of half of the range [-1, 1], summed over the pixels of an image. All networks train by Adam with a
linearly falling rate, as `fit` says.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lecture_diffusion import Rows, environment
from scipy import ndimage, stats
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE, trustworthiness
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from latentia import Autoencoder, AutoencoderPipeline, LatentMixture, RecurrentAutoencoder
from latentia.data import load_images
from latentia.evaluation import extractor_for, frechet_distance, image_grid, knn_probe, psnr
from latentia.functional.interpolation import interpolate
from latentia.functional.masks import length_mask
from latentia.losses.reconstruction import autoencoder_loss, corrupt
from latentia.models.autoencoder import outer_layers
from latentia.rng import Rng

HERE = Path(__file__).resolve().parent


class Data:
    """Pictures to learn from and pictures that are held out, in [-1, 1], with their labels."""

    def __init__(self, train, test):
        self.x, self.labels = train.images.float() / 127.5 - 1, train.labels
        every = max(1, len(test) // 2500)
        self.new, self.new_labels = test.images[::every].float() / 127.5 - 1, test.labels[::every]
        self.shape = tuple(self.x.shape[1:])
        self.size, self.values = self.shape[1:], self.x[0].numel()
        self.extractor = extractor_for(self.shape)
        self.pictures: Path | None = None


# ------------------------------------------------------------ training and baselines


def fit(network, x: Tensor, steps: int, rate: float = 3e-3, parameters=None, seed: int = 0, **objective):
    """`steps` of Adam on batches of 128 (or all), drawn anew each step; the rate falls linearly to zero."""
    optimizer = torch.optim.Adam(parameters or network.parameters(), lr=rate)
    generator, size = torch.Generator().manual_seed(seed), min(128, len(x))
    extra = {"mask": objective.pop("mask")} if "mask" in objective else {}
    network.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        chosen = torch.randint(len(x), (size,), generator=generator)
        batch = {"x": x[chosen], **{name: value[chosen] for name, value in extra.items()}}
        values = autoencoder_loss(network, batch, Rng(seed, step * size, size, 0, size), **objective)
        optimizer.zero_grad()
        values["loss"].backward()
        optimizer.step()
    return network.eval()


def build(data: Data, latent_dim: int, hidden: tuple[int, ...] = (), seed: int = 0, **config) -> Autoencoder:
    torch.manual_seed(seed)
    channels = data.shape[0]
    return Autoencoder(
        sample_size=data.size, in_channels=channels, latent_dim=latent_dim, hidden_sizes=hidden, **config
    )


@torch.no_grad()
def error(network, x: Tensor) -> float:
    return float((network(x).reconstruction - x).square().flatten(1).sum(1).double().mean())


def pca_of(data: Data, components: int) -> PCA:
    return PCA(components, svd_solver="covariance_eigh").fit(data.x.flatten(1).double().numpy())


def projected(pca: PCA, x: Tensor) -> Tensor:
    flat = x.flatten(1).double().numpy()
    return torch.from_numpy(pca.inverse_transform(pca.transform(flat))).float().view_as(x)


def pca_error(data: Data, components: int, x: Tensor) -> float:
    return float((projected(pca_of(data, components), x) - x).square().flatten(1).sum(1).double().mean())


def interval(values: list[float]) -> tuple[float, float]:
    """95 % by Student's t."""
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


# ------------------------------------------------------------ rows


def linear(rows: Rows, data: Data, steps: int) -> None:
    explained = pca_of(data, 32).explained_variance_ratio_.cumsum()
    some = {f"{k} components": float(explained[k - 1]) for k in (2, 10, 20, 32)}
    known = 0.738 if data.values == 64 else 0.488  # digits, MNIST
    rows.put(
        "B1", "variance explained by 10 principal components", float(explained[9]), some,
        "0.738 on digits, 0.488 on MNIST, to 0.01", abs(explained[9] - known) <= 0.01,
    )  # fmt: skip
    m = 10
    network = fit(build(data, m), data.x, max(steps, 4000), 1e-2)
    ours, best = error(network, data.x), pca_error(data, m, data.x)
    basis = torch.linalg.qr(network.decoder_weights[0].detach().double()).Q
    cosines = torch.linalg.svdvals(torch.from_numpy(pca_of(data, m).components_) @ basis)
    rows.put(
        "B2", f"linear autoencoder of {m} over PCA, training error", ours / best, {"autoencoder": ours, "PCA": best},
        "<= 1.01", ours <= 1.01 * best,
    )  # fmt: skip
    rows.put(
        "B2", "smallest cosine of the angles between its decoder's columns and PCA's loadings", float(cosines.min()),
        {"mean": float(cosines.mean())}, ">= 0.99", bool(cosines.min() >= 0.99),
    )  # fmt: skip


def nonlinear(rows: Rows, data: Data, steps: int) -> None:
    for m, hidden in ((2, (256, 128)), (8, (256, 128)), (32, (512, 256))):
        network = fit(build(data, m, hidden, activation="gelu"), data.x, 2 * steps, 2e-3)
        ours, best = error(network, data.new), pca_error(data, m, data.new)
        rows.put(
            "B3", f"nonlinear autoencoder of {m} over PCA, held-out error", ours / best,
            {"autoencoder": ours, "PCA": best, "on training images": error(network, data.x)}, "<= 0.8",
            ours <= 0.8 * best, hidden=list(hidden),
        )  # fmt: skip
        if m == 2:
            codes = [network.encode(x).detach() for x in (data.x, data.new)]
            flat = [torch.from_numpy(pca_of(data, 2).transform(x.flatten(1).double())) for x in (data.x, data.new)]
            accuracy, other = (
                knn_probe(a.float(), data.labels, k=1, test=(b.float(), data.new_labels)).mean for a, b in (codes, flat)
            )
            rows.put(
                "A5", "accuracy of the nearest neighbour by codes of 2", accuracy, {"PCA-2": other}, "above PCA-2",
                accuracy > other,
            )  # fmt: skip

    m, hidden = 8, (100, 30)
    joint = error(fit(build(data, m, hidden), data.x, steps), data.new)
    network = build(data, m, hidden)
    for depth in range(1, 4):
        outer = outer_layers(network, depth)
        fit(
            outer,
            data.x,
            steps // 3,
            parameters=[*outer.encoder_mlp[-1].parameters(), *outer.decoder_mlp[0].parameters()],
        )
    greedy = error(network, data.new)
    both = error(fit(network, data.x, steps), data.new)
    best = pca_error(data, m, data.new)
    rows.put(
        "B4", "stacked 100-30-8 trained jointly over PCA-8, held-out error", joint / best,
        {"joint": joint, "PCA": best, "layer by layer": greedy, "then jointly": both}, "< 1", joint < best,
    )  # fmt: skip
    tied = fit(build(data, m, hidden, tie_weights=True), data.x, steps)
    count = [sum(p.numel() for p in n.parameters() if p.ndim > 1) for n in (tied, network)]
    rows.put(
        "B6", "weights of the tied network over those of the free one", count[0] / count[1],
        {"held-out error tied": error(tied, data.new), "free": joint}, "= 0.5", count[0] * 2 == count[1],
    )  # fmt: skip


def memory(rows: Rows, data: Data, steps: int) -> None:
    few = data.x[:16]
    found = AutoencoderPipeline(fit(build(data, 1, (512, 256), activation="relu"), few, steps)).memorisation(
        few, data.new
    )
    plain = AutoencoderPipeline(fit(build(data, 8, (64,)), data.x, steps)).memorisation(data.x, data.new)
    rows.put(
        "B5", "held-out over training error, codes of 1, a large network, 16 images", found.ratio,
        {"training": found.train_error, "held-out": found.held_out_error, "a plain network's ratio": plain.ratio},
        ">= 10, detected, and not for the plain network", found.memorises and not plain.memorises,
    )  # fmt: skip
    mixed = torch.stack([x.flatten()[torch.randperm(data.values)].view_as(x) for x in data.new])
    pipe = AutoencoderPipeline(fit(build(data, 8, (256, 128)), data.x, steps))
    real, strange = pipe.anomaly_score(data.new), pipe.anomaly_score(mixed)
    ratio = float(strange.mean() / real.mean())
    told = float((real[:, None] < strange[None]).double().mean())
    rows.put(
        "A21", "error on images with shuffled pixels over that on images", ratio,
        {"area under ROC of the anomaly score": told}, ">= 5", ratio >= 5,
    )  # fmt: skip


def convolutional(rows: Rows, data: Data, steps: int) -> None:
    def flops(network) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(data.x[:1])
        return counter.get_total_flops()

    def size(network) -> int:
        return sum(p.numel() for p in network.parameters())

    pyramid = build(data, 8, block_out_channels=(16, 32))
    flat = min(
        (build(data, 8, block_out_channels=(c, c)) for c in range(8, 33)), key=lambda n: abs(flops(n) - flops(pyramid))
    )
    dense = min((build(data, 8, (h, h // 2)) for h in range(8, 400, 4)), key=lambda n: abs(size(n) - size(pyramid)))
    errors = {}
    for name, network in {"pyramid": pyramid, "flat": flat, "dense": dense}.items():
        errors[name] = error(fit(network, data.x, steps), data.new)
    rows.put(
        "B8", "convolutional autoencoder of 8, held-out error", errors["pyramid"],
        {"dense of equal size": errors["dense"], "parameters": size(pyramid), "dense parameters": size(dense)},
        "below dense", errors["pyramid"] < errors["dense"],
    )  # fmt: skip
    rows.put(
        "B9", "pyramid (16, 32), held-out error", errors["pyramid"],
        {f"flat {tuple(flat.config.block_out_channels)}": errors["flat"], "operations": flops(pyramid),
         "flat operations": flops(flat)}, "reported, no threshold", True,
    )  # fmt: skip


def recurrent(rows: Rows, data: Data, steps: int) -> None:
    x, new = (part[:, 0] for part in (data.x, data.new))  # rows of a picture as elements
    torch.manual_seed(0)
    lengths = torch.randint(x.shape[1] // 2, x.shape[1] + 1, (len(x),))
    network = RecurrentAutoencoder(x.shape[2], 8, 64)
    fit(network, x, steps, mask=length_mask(lengths, x.shape[1]))
    ours = error(network, new)
    mean = float((new - x.mean(0)).square().flatten(1).sum(1).mean())
    rows.put(
        "B10", "rows as sequences, code of 8, lengths from half to all rows; held-out error of whole pictures", ours,
        {"mean image": mean}, "below the mean image", ours < mean,
    )  # fmt: skip

    rng, n, t = Rng(0, 0, 3000, 0, 3000), 3000, 8
    start, slope = rng.uniform("start", (1,)) * 2 - 1, rng.uniform("slope", (1,)) * 0.5 - 0.25
    ordered = start + slope * torch.arange(t)
    shuffled = torch.gather(ordered, 1, rng.uniform("order", (t,)).argsort(1))
    found = {}
    for name, sequences in {"arithmetic": ordered, "shuffled": shuffled}.items():
        torch.manual_seed(0)
        sequences = (sequences / ordered.std())[..., None]
        network = fit(RecurrentAutoencoder(1, 3, 48), sequences[: n - 500], steps)
        found[name] = error(network, sequences[n - 500 :]) / t
    ratio = found["shuffled"] / found["arithmetic"]
    rows.put(
        "A20", "recurrent autoencoder, code of 3, 8 numbers: error on shuffled over arithmetic sequences, held-out",
        ratio, found, ">= 10", ratio >= 10,
    )  # fmt: skip


def denoising(rows: Rows, data: Data, steps: int) -> None:
    hidden, m = (256, 128), min(48, data.values // 2)
    for sigma in (0.3, 0.5):  # of images in [0, 1]
        level = 2 * sigma
        network = build(data, m, hidden)
        fit(network, data.x, 2 * steps, 2e-3, corruption="gaussian", corruption_strength=level)
        noisy = corrupt(data.new, Rng(1, 0, len(data.new), 0, len(data.new)), "gaussian", level)

        def quality(images: Tensor) -> float:
            return float(psnr(images.clamp(-1, 1), data.new).mean())

        clean = AutoencoderPipeline(network).denoise(noisy, output_type="latent")
        shown = [data.new[:12], noisy[:12].clamp(-1, 1), clean[:12]]
        array = noisy.numpy()
        others = {
            "Gaussian filter": max(
                quality(torch.from_numpy(ndimage.gaussian_filter(array, (0, 0, s, s)))) for s in np.arange(0.3, 2, 0.1)
            ),
            "median filter": max(
                quality(torch.from_numpy(ndimage.median_filter(array, (1, 1, k, k)))) for k in (2, 3, 5)
            ),
            "PCA": max(
                quality(projected(pca_of(data, k), noisy))
                for k in (4, 8, 16, 32, 48, 64, 96, 128, 192)
                if k < min(data.x.shape[0], data.new[0].numel())
            ),
        }
        ours, before = quality(clean), quality(noisy)
        rows.put(
            "B11", f"denoising, sigma {sigma} of [0, 1]: decibels gained over the noisy image", ours - before,
            {"denoised": ours, "noisy": before, **others}, ">= 5, and above each filter at its best setting",
            ours - before >= 5 and ours > max(others.values()),
        )  # fmt: skip

    network = fit(build(data, m, hidden), data.x, 2 * steps, 2e-3, corruption="masking", corruption_strength=0.5)
    hole = Rng(1, 0, len(data.new), 0, len(data.new)).uniform("corruption", (1, *data.size)) < 0.5
    holed = corrupt(data.new, Rng(1, 0, len(data.new), 0, len(data.new)), "masking", 0.5)
    assert torch.equal(holed, torch.where(hole, -1.0, data.new))
    seen = (~hole).float().flatten(1)
    x, new = data.x.flatten(1), data.new.flatten(1)
    distance = (new.square() * seen).sum(1, True) - 2 * (new * seen) @ x.T + seen @ x.square().T
    filled = {k: x[distance.topk(k, largest=False).indices].mean(1).view_as(data.new) for k in (1, 5, 10)}

    def missed(images: Tensor) -> float:
        return float(((images - data.new).square() * hole).sum() / hole.sum())

    with torch.no_grad():
        whole = network(holed).reconstruction
    ours = missed(whole)
    if data.pictures:
        rows_of = ["data", "noise", "denoised", "holes", "filled"]
        shown = torch.cat([*shown, holed[:12], whole[:12].clamp(-1, 1)])
        image_grid(shown, 12, row_labels=rows_of).save(data.pictures / f"autoencoder-denoising-{data.size[0]}.png")
    others = {f"{k} nearest neighbours": missed(images) for k, images in filled.items()}
    others["mean image"] = missed(data.x.mean(0).expand_as(data.new))
    rows.put(
        "B12", "half of the pixels off: mean squared error per missing pixel", ours, others, "below each",
        ours < min(others.values()),
    )  # fmt: skip


def sparse(rows: Rows, data: Data, steps: int) -> None:
    large = data.values > 300
    units, rate = (300, 1e-3) if large else (100, 2e-2)
    config = {"latent_activation": "sigmoid", "overcomplete": True}

    def trained(m: int = units, **objective):
        network = fit(build(data, m, **config), data.x, steps, rate, **objective)
        with torch.no_grad():
            return network, network.encode(data.x)

    plain, codes = trained()
    base, quiet = error(plain, data.new), float((codes.mean(0) < 0.05).double().mean())
    network, codes = trained(sparsity="l1", sparsity_weight=0.05 if large else 0.003)
    value, now = error(network, data.new), float((codes.mean(0) < 0.05).double().mean())
    rows.put(
        "B13", "L1: share of units with mean activation below 0.05", now,
        {"without": quiet, "held-out error": value, "without L1": base, "rise": value / base - 1},
        "rises, error by at most 20 %, codes in [0, 1]",
        now > quiet and value <= 1.2 * base and 0 <= codes.min() and codes.max() <= 1,
    )  # fmt: skip
    squares, tiny = {}, {}
    for weight in (0.0, 0.01, 0.03, 0.1):
        codes = trained(sparsity="l2", sparsity_weight=weight)[1]
        squares[f"lambda {weight}"] = float(codes.square().mean())
        tiny[f"l2 {weight}"] = float((codes < 0.01).double().mean())
        if weight:
            tiny[f"l1 {weight}"] = float((trained(sparsity="l1", sparsity_weight=weight)[1] < 0.01).double().mean())
    values = list(squares.values())
    rows.put(
        "B14", "L2: mean squared code at the largest weight", values[-1], squares, "falls at each step",
        values == sorted(values, reverse=True),
    )  # fmt: skip
    fewer = all(tiny[f"l2 {w}"] < tiny[f"l1 {w}"] for w in (0.01, 0.03, 0.1))
    rows.put(
        "B14", "share of codes below 0.01 with L2 0.1", tiny["l2 0.1"], tiny, "below that with L1, at each weight",
        fewer,
    )  # fmt: skip
    network, codes = trained(300, sparsity="kl", sparsity_weight=3.0 if large else 1.0)
    off = float((codes.mean(0) - 0.1).abs().max())
    rows.put(
        "B15", "KL to 0.1: largest distance of a mean activation from it, 300 units", off,
        {"held-out error": error(network, data.new), "error without": base}, "<= 0.03", off <= 0.03,
    )  # fmt: skip


def few_labels(rows: Rows, data: Data, steps: int, count: int = 100, epochs: int = 150) -> None:
    def start(seed: int, pretrained: bool) -> Autoencoder:
        network = build(data, 32, (256, 128), seed)
        if pretrained:
            fit(network, data.x, steps, seed=seed, corruption="masking", corruption_strength=0.3)
        return network

    def curve(network, chosen: Tensor, seed: int) -> list[float]:
        torch.manual_seed(1000 + seed)
        head = nn.Linear(32, 10)
        optimizer = torch.optim.Adam([*network.encoder_mlp.parameters(), *head.parameters()], lr=1e-3)
        found = []
        for _ in range(epochs):
            logits = head(network.encode(data.x[chosen]))
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, data.labels[chosen]).backward()
            optimizer.step()
            with torch.no_grad():
                guess = head(network.encode(data.new)).argmax(1)
            found.append(float((guess == data.new_labels).double().mean()))
        return found

    curves: dict[bool, list[list[float]]] = {True: [], False: []}
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(data.x), generator=generator)
        chosen = torch.cat([order[data.labels[order] == c][: count // 10] for c in range(10)])
        for pretrained in (False, True):
            curves[pretrained].append(curve(start(seed, pretrained), chosen, seed))
    last = {pretrained: [accuracy[-1] for accuracy in found] for pretrained, found in curves.items()}
    level = min(last[True] + last[False])  # the best accuracy that every run reaches
    reach = {
        pretrained: [next(i + 1 for i, a in enumerate(accuracy) if a >= level) for accuracy in found]
        for pretrained, found in curves.items()
    }
    gains, saved = (np.subtract(a[True], a[False]).tolist() for a in (last, reach))
    saved = [-epochs for epochs in saved]
    low, high = interval(gains)
    rows.put(
        "A6", f"accuracy gained by pretraining at {count} labels, mean of 5 seeds", float(np.mean(gains)),
        {"pretrained": float(np.mean(last[True])), "from scratch": float(np.mean(last[False])), "low": low,
         "high": high}, "interval above 0", low > 0, gains=gains,
    )  # fmt: skip
    low, high = interval(saved)
    rows.put(
        "A6", f"epochs saved until {level:.3f}, the accuracy that every run reaches, mean of 5 seeds",
        float(np.mean(saved)),
        {"pretrained": float(np.mean(reach[True])), "from scratch": float(np.mean(reach[False])), "low": low,
         "high": high}, "interval above 0", low > 0, saved=saved,
    )  # fmt: skip


def codes(rows: Rows, data: Data, steps: int) -> None:
    """Visualisation in two stages, sampling with a density, interpolation."""
    everything = torch.cat([data.x, data.new])[:10_000]
    labels = torch.cat([data.labels, data.new_labels])[:10_000]
    started = time.process_time()
    network = fit(build(data, 32, (256, 128)), data.x, steps)
    training = time.process_time() - started
    plane, seconds = {}, {}
    with torch.no_grad():
        for name, features in {"codes of 32": network.encode(everything), "pixels": everything.flatten(1)}.items():
            started = time.process_time()
            plane[name] = TSNE(random_state=0, init="pca").fit_transform(features.numpy())
            seconds[name] = time.process_time() - started
    trust = {k: float(trustworthiness(everything.flatten(1).numpy(), p, n_neighbors=10)) for k, p in plane.items()}
    near = {k: knn_probe(torch.from_numpy(p), labels, k=1).mean for k, p in plane.items()}
    first, second = plane
    rows.put(
        "B7", "autoencoder to 32, then t-SNE to 2: trustworthiness, k = 10", trust[first],
        {"t-SNE of pixels": trust[second], "1-NN accuracy": near[first], "of pixels": near[second],
         "CPU seconds": seconds[first], "of pixels, CPU seconds": seconds[second], "images": len(everything)},
        ">= 0.95, and 1-NN accuracy >= 0.9", trust[first] >= 0.95 and near[first] >= 0.9,
    )  # fmt: skip
    if len(everything) == 10_000:
        rows.put(
            "B7", "autoencoder to 32 and t-SNE of 10 000 images, CPU seconds over those of t-SNE of pixels",
            (training + seconds[first]) / seconds[second],
            {"training": training, "t-SNE of codes": seconds[first], "t-SNE of pixels": seconds[second]},
            "below 1", training + seconds[first] < seconds[second],
        )  # fmt: skip
    if data.extractor is None:
        return
    network = fit(build(data, 8, (256, 128)), data.x, 2 * steps, 2e-3)
    pipe, features = AutoencoderPipeline(network), data.extractor
    n, real = len(data.x), features(data.x).features
    z = pipe.encode(data.x)
    pipe.register_modules(prior=LatentMixture.fit(z))
    normal = torch.randn(n, 8, generator=torch.Generator().manual_seed(0))

    def fd(images: Tensor) -> float:
        return float(frechet_distance(features(images.clamp(-1, 1)).features, real))

    fitted = fd(pipe(n, generator=torch.Generator().manual_seed(0), output_type="latent").images)
    blind, one = (fd(pipe.decode(c, output_type="latent")) for c in (normal, z.mean(0) + z.std(0) * normal))
    rows.put(
        "A7", "Frechet distance of samples from a mixture fitted on the codes", fitted,
        {"codes from N(0, I)": blind, "codes from one fitted Gaussian per unit": one,
         "reconstructions": fd(pipe.reconstruct(data.x, output_type="latent")), "held-out images": fd(data.new)},
        "below codes from N(0, I)", fitted < blind,
    )  # fmt: skip

    generator = torch.Generator().manual_seed(0)
    pairs = torch.randint(len(data.new), (2, 2000), generator=generator)
    pairs = pairs[:, data.new_labels[pairs[0]] != data.new_labels[pairs[1]]]
    a, b = data.new[pairs[0]], data.new[pairs[1]]
    za, zb = pipe.encode(a), pipe.encode(b)
    middles = {"pixels": (a + b) / 2}
    for mode in ("lerp", "slerp"):
        mixed = torch.cat([interpolate(p[None], q[None], 3, mode)[1:2] for p, q in zip(za, zb)])
        middles[mode] = pipe.decode(mixed, output_type="latent").clamp(-1, 1)
    sure = {k: float(features(m).logits.softmax(1).amax(1).mean()) for k, m in middles.items()}
    far = {k: fd(m) for k, m in middles.items()}
    ghost = {k: float((m - (a + b) / 2).square().flatten(1).sum(1).sqrt().mean()) for k, m in middles.items()}
    for what, found, better in (
        ("mean largest class probability", sure, lambda p, q: p > q),
        ("Frechet distance", far, lambda p, q: p < q),
        ("mean distance from the pixel mix", ghost, lambda p, q: p > q),
    ):
        compare_middles(rows, what, found, better)


def compare_middles(rows: Rows, what: str, found: dict[str, float], better: Callable[[float, float], bool]) -> None:
    rows.put(
        "C14", f"images halfway between two of different classes, by codes: {what}", found["lerp"],
        {"slerp": found["slerp"], "pixel mix": found["pixels"]}, "better than the pixel mix, both ways",
        better(found["lerp"], found["pixels"]) and better(found["slerp"], found["pixels"]),
    )  # fmt: skip


PARTS = {
    "linear": linear, "nonlinear": nonlinear, "memory": memory, "convolutional": convolutional, "recurrent": recurrent,
    "denoising": denoising, "sparse": sparse, "few_labels": few_labels, "codes": codes,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train_data_dir", help="a folder or parquet of labelled pictures instead of digits")
    parser.add_argument("--test_data_dir", help="held-out pictures; without it the last fifth is held out")
    parser.add_argument("--steps", type=int, default=3000, help="training steps of most networks")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--pictures", type=Path, default=HERE.parent / "docs" / "images")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "lecture_autoencoders.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    source = args.train_data_dir or "digits"
    if args.test_data_dir:
        data = Data(load_images(source), load_images(args.test_data_dir))
    else:
        data = Data(load_images(source, split="train[:80%]"), load_images(source, split="train[80%:]"))
    data.pictures = args.pictures
    args.pictures.mkdir(parents=True, exist_ok=True)
    name = Path(source).parent.name if args.train_data_dir else "digits"
    given = {"train_data_dir": args.train_data_dir, "test_data_dir": args.test_data_dir}
    where = "".join(f" --{flag} {name}/{Path(path).name}" for flag, path in given.items() if path)
    old = json.loads(args.output.read_text())["rows"] if args.output.exists() else []
    for part in args.parts:
        started, rows = time.process_time(), Rows()
        PARTS[part](rows, data, args.steps)
        facts = {
            "data": name, "n": len(data.x), "held_out": len(data.new),
            "cpu_seconds_of_part": round(time.process_time() - started, 1),
            "command": f"python benchmarks/lecture_autoencoders.py --parts {part} --steps {args.steps}" + where,
            **environment(),
        }  # fmt: skip
        fresh = {(row["row"], name) for row in rows}
        old = [row for row in old if (row["row"], row["data"]) not in fresh] + [{**row, **facts} for row in rows]
        result = {"what": "rows of a lecture on autoencoders that need training", "rows": old}
        args.output.parent.mkdir(exist_ok=True)
        args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{sum(row['passed'] for row in old)} of {len(old)} rows hold")


if __name__ == "__main__":
    main()
