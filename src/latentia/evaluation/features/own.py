"""An extractor made from a data set itself: a small network trained on its images without labels, then cached.

Two tasks train it. It finds the other view of an image among those of other images (InfoNCE, Representation Learning
with Contrastive Predictive Coding, van den Oord et al., 2018, 1807.03748), which gives content. And it estimates how an
image was corrupted, and how much, which gives quality. Noise and mixtures of images are among the corruptions, so they
lie far from real images in its features.
"""

import hashlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentia.errors import UsageError
from latentia.evaluation.features.base import Predictions, check_images, in_batches
from latentia.files.cache import cached_tensors
from latentia.functional.pixels import from_uint8
from latentia.rng import seed_from

FORMAT = "2"  # raise it when the same images and seed would give other weights
FEATURES = 64
STEPS, BATCH, SIDE = 300, 48, 64  # optimizer steps, images of each, longest side that the network sees
_LEAST = 16  # images without which there is nothing to contrast
_TEMPERATURE = 0.2
_SHIFT = 8  # views are moved by at most one part in so many of the side


class OwnNetwork(nn.Module):
    """Features (B, 64) of images (B, C, H, W) in [-1, 1], and estimates of their corruption.

    Args:
        channels: of the images.
        side: the longer one, in pixels; above 32 the first layer takes every other pixel.
    """

    def __init__(self, channels: int, side: int):
        super().__init__()
        widths = (24, 48, 64)
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, stride=1 + (side > 32), padding=1), nn.SiLU()]
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        layers += [nn.Conv2d(widths[-1], widths[-1], 3, padding=1), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        self.features = nn.Linear(2 * widths[-1], FEATURES)
        self.project = nn.Sequential(nn.SiLU(), nn.Linear(FEATURES, FEATURES))
        self.corruption = nn.Linear(FEATURES, len(CORRUPTIONS))
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("deviation", torch.ones(FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        maps = self.body(_shrunk(x))
        pooled = torch.cat([maps.mean((2, 3)), maps.var((2, 3), correction=0).add(1e-4).sqrt()], 1)
        return (self.features(pooled) - self.mean) / self.deviation


class OwnExtractor:
    """A `FeatureExtractor` that was trained on the images that it measures; see `own_extractor`.

    Args:
        network: the trained network.
        image_shape: (C, H, W) of the images that it was trained on.
        sha256: of its weights.
        batch_size: images per forward pass; it bounds memory and does not change the numbers.
    """

    name = "own"
    class_names: list[str] | None = None
    preprocessing = f"antialiased to at most {SIDE} pixels"

    def __init__(self, network: OwnNetwork, image_shape: tuple[int, int, int], sha256: str, batch_size: int = 250):
        self.model = network.eval().requires_grad_(False)
        self.image_shape: tuple[int, int, int] | None = image_shape
        self.sha256, self.batch_size = sha256, batch_size

    def __call__(self, images: Tensor) -> Predictions:
        """Features (N, 64) on the CPU, and no logits.

        Raises:
            UsageError: `images` is not a float tensor (N, *image_shape) in [-1, 1].
            DataError: `images` holds NaN or infinity.
        """
        check_images(images, self.image_shape)
        device = next(self.model.parameters()).device
        return in_batches(lambda x: (self.model(x), None), images, device, self.batch_size)

    def __repr__(self) -> str:
        return f"OwnExtractor({self.image_shape}, sha256={self.sha256[:12]}...)"


def own_extractor(
    data: Any, *, seed: int = 0, steps: int = STEPS, cache_dir: str | Path | None = None, device: Any = "cpu"
) -> OwnExtractor:
    """Train an extractor on the images of a data set, without labels; about a minute on two cores, once per data set.

    Its features compare images of this one data set: their distances compare only between results of equal `sha256`,
    never with those of other data or of published papers. Images that it was trained on lie a little nearer to each
    other than unseen ones.

    Args:
        data: an `ImageData` of at least 16 images.
        seed: of weights, batches and corruptions. Equal images, seed and machine give equal weights.
        steps: optimizer steps.
        cache_dir: the weights lie in `extractors` in it, under a name made of the data's fingerprint. Default:
            $LATENTIA_CACHE, $HF_HOME/latentia or ~/.cache/latentia.
        device: where it runs; it is trained on the CPU.

    Raises:
        UsageError: fewer than 16 images.

    Example:
        >>> import tempfile
        >>> from latentia.data import load_images
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     extractor = own_extractor(load_images("digits"), steps=2, cache_dir=folder)
        >>> extractor.name, extractor(torch.zeros(3, 1, 8, 8)).features.shape
        ('own', torch.Size([3, 64]))
    """
    if len(data) < _LEAST:
        raise UsageError(f"data must hold at least {_LEAST} images to train an extractor on; got {len(data)}.")
    made_of = {
        "format": FORMAT, "fingerprint": data.fingerprint, "seed": str(seed), "steps": str(steps),
    }  # fmt: skip
    weights = cached_tensors(lambda: _train(data.images, seed, steps), made_of, "extractors", cache_dir=cache_dir)
    with torch.device("meta"):  # no random weights, which would move the caller's random numbers on
        network = OwnNetwork(data.shape[0], max(data.shape[1:]))
    network.load_state_dict(weights, assign=True)
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return OwnExtractor(network.to(device), tuple(data.shape), digest.hexdigest())


def _train(images: Tensor, seed: int, steps: int) -> dict[str, Tensor]:
    """The weights of an `OwnNetwork` trained on uint8 images (N, C, H, W)."""
    generator = torch.Generator().manual_seed(seed_from(seed, "own extractor"))
    with torch.random.fork_rng([]):
        torch.manual_seed(seed_from(seed, "own extractor weights"))
        network = OwnNetwork(images.shape[1], max(images.shape[2:]))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=max(steps, 2))
    size = min(BATCH, len(images) // 2)
    for _ in range(steps):
        rows = torch.randint(len(images), (size,), generator=generator)
        x = _shrunk(from_uint8(images[rows]))
        corrupted, strength = _corrupt(x, generator)
        features = network(torch.cat([_view(x, generator), _view(x, generator), corrupted]))
        first, second = F.normalize(network.project(features[: 2 * size]), dim=1).chunk(2)
        logits = first @ second.T / _TEMPERATURE
        same = torch.arange(size)
        contrast = (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2
        wanted = torch.cat([torch.zeros(2 * size, len(CORRUPTIONS)), strength])
        quality = (network.corruption(features) - wanted).square().sum(1).mean()
        optimizer.zero_grad()
        (contrast + 10 * quality).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        chosen = images[torch.linspace(0, len(images) - 1, min(len(images), 2000)).long()]
        features = torch.cat([network(from_uint8(part)) for part in chosen.split(250)])
        network.mean.copy_(features.mean(0))
        network.deviation.copy_(features.std(0).clamp(min=1e-6))
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def _shrunk(x: Tensor) -> Tensor:
    side = max(x.shape[-2:])
    if side <= SIDE:
        return x
    size = [max(1, round(length * SIDE / side)) for length in x.shape[-2:]]
    return F.interpolate(x, size=size, mode="bilinear", antialias=True).clamp(-1, 1)


def _view(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by some pixels and with another brightness and contrast; no pixel is interpolated."""
    count, _, height, width = x.shape
    room = [max(1, height // _SHIFT), max(1, width // _SHIFT)]
    padded = F.pad(x, (room[1], room[1], room[0], room[0]), mode="replicate")
    top, left = (torch.randint(2 * r + 1, (count, 1), generator=generator) for r in room)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    moved = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    contrast = 0.8 + 0.4 * torch.rand(count, 1, 1, 1, generator=generator)
    brightness = 0.2 * (torch.rand(count, x.shape[1], 1, 1, generator=generator) - 0.5)
    return (moved * contrast + brightness).clamp(-1, 1)


# ------------------------------------------------------------ corruptions: (images, strength (B, 1, 1, 1), generator)


def _blur(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    coarse = F.interpolate(F.avg_pool2d(x, 4, ceil_mode=True), size=x.shape[-2:], mode="bilinear")
    fine = F.interpolate(F.avg_pool2d(x, 2, ceil_mode=True), size=x.shape[-2:], mode="bilinear")
    return torch.where(strength < 0.5, x.lerp(fine, 2 * strength), fine.lerp(coarse, 2 * strength - 1))


def _noise(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    return x + strength * torch.randn(x.shape, generator=generator)


def _replaced(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    random = 2 * torch.rand(x.shape, generator=generator) - 1
    return torch.where(_mask(x, strength, 1, generator), random, x)


def _other_pixels(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Pixels at the same place of other images: what a prior of independent positions makes."""
    order = torch.rand(x.shape[0], 1, *x.shape[2:], generator=generator).argsort(0).expand_as(x)
    return torch.where(_mask(x, strength, 1, generator), x.gather(0, order), x)


def _other_patches(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    return torch.where(_mask(x, strength, 4, generator), x.roll(1, 0), x)


def _shuffled(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    order = torch.rand(x.shape[0], 1, x.shape[2] * x.shape[3], generator=generator).argsort(2)
    mixed = x.flatten(2).gather(2, order.expand(-1, x.shape[1], -1)).view_as(x)
    return torch.where(_mask(x, strength, 1, generator), mixed, x)


def _faded(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    return x.lerp(x.roll(1, 0), strength / 2)


def _fog(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    return x.lerp(x.mean((2, 3), keepdim=True), strength)


def _gaussian(x: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Replaced by a sample of the Gaussian with the mean and the covariance of the batch: smooth, without shapes."""
    centred = x - x.mean(0)
    weights = torch.randn(len(x), len(x), generator=generator) / max(1, len(x) - 1) ** 0.5
    random = (weights @ centred.flatten(1)).view_as(x)
    return x.mean(0) + (1 - strength.square()).sqrt() * centred + strength * random


CORRUPTIONS: tuple[Callable[[Tensor, Tensor, torch.Generator], Tensor], ...] = (
    _blur, _noise, _replaced, _other_pixels, _other_patches, _shuffled, _faded, _fog, _gaussian,
)  # fmt: skip


def _mask(x: Tensor, strength: Tensor, patch: int, generator: torch.Generator) -> Tensor:
    """Where an image is changed, in patches of that side: each place with the probability `strength`."""
    height, width = (-(-side // patch) for side in x.shape[-2:])
    draws = torch.rand(x.shape[0], 1, height, width, generator=generator) < strength
    return draws.repeat_interleave(patch, 2).repeat_interleave(patch, 3)[..., : x.shape[2], : x.shape[3]]


def _corrupt(x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each image corrupted in one way, and the strength of each way (B, 9)."""
    kind = torch.randint(len(CORRUPTIONS), (len(x),), generator=generator)
    strength = torch.rand(len(x), 1, 1, 1, generator=generator).square()  # weak ones are the harder to see
    changed = x
    for i, corruption in enumerate(CORRUPTIONS):
        changed = torch.where((kind == i)[:, None, None, None], corruption(x, strength, generator), changed)
    wanted = torch.zeros(len(x), len(CORRUPTIONS)).scatter(1, kind[:, None], strength.flatten(1))
    return changed.clamp(-1, 1), wanted
