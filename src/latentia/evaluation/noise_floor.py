"""What images of noise get from an extractor: scores that a model has to beat before its own mean anything.

Precision and density count the samples within reach of real images in feature space. Noise often maps to one point
there, and if an extractor was trained on other images that point may lie among the real ones: noise then wins both.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from latentia.errors import UsageError, did_you_mean
from latentia.evaluation.features.base import FeatureExtractor, predict
from latentia.evaluation.frechet import frechet_distance
from latentia.evaluation.prdc import precision_recall
from latentia.evaluation.report.report import Report
from latentia.evaluation.samples import Sample
from latentia.functional.pixels import from_uint8, to_uint8
from latentia.rng import seed_from

_CHUNK = 100  # images of noise that are made at a time
_SPANNED = 500  # images that positions at random and the Gaussian are made of
_HIGHER = ("precision", "density")
NOISE_METRICS = ("fd", *_HIGHER)


@dataclass(frozen=True)
class NoiseFloor:
    """Scores of images of noise.

    Args:
        scores: kind of noise -> metric ("fd", "precision", "density") -> value.
        n: images of each kind.
    """

    scores: Mapping[str, Mapping[str, float]]
    n: int

    def notes(self, report: Report) -> list[str]:
        """Warnings, for each metric in which some noise gets as much as the images that were measured."""
        found = []
        for key in NOISE_METRICS:
            if key not in report.scores:
                continue
            value, higher = report.scores[key].value, key in _HIGHER
            beaten = {
                kind: scores[key]
                for kind, scores in self.scores.items()
                if (scores[key] >= value if higher else scores[key] <= value)
            }
            if beaten:
                listed = ", ".join(f"{kind} {score:.3g}" for kind, score in beaten.items())
                found.append(
                    f"NOISE DOES AS WELL in {report.scores[key].title} ({listed}; these images {value:.3g}), which "
                    "says nothing good of them"
                )
        return found


def noise_images(kind: str, images: Tensor, n: int, seed: int = 0) -> Iterator[Tensor]:
    """Images without content, with the shape of real ones, at most 100 at a time.

    Args:
        kind: "uniform noise"; "shuffled pixels", those of one image at other places; "positions at random", each pixel
            that of another image at the same place, as a prior of independent positions gives; or "Gaussian", with the
            mean and the covariance of at most 500 of the images, smooth and without shapes.
        images: real ones, uint8 (N, C, H, W).
        n: how many, at most N.
        seed: of the noise.

    Yields:
        uint8 (at most 100, C, H, W) on the CPU.

    Raises:
        UsageError: an unknown kind, or not 1 <= n <= N.

    Example:
        >>> images = torch.zeros(150, 1, 8, 8, dtype=torch.uint8)
        >>> [len(part) for part in noise_images("uniform noise", images, 120)]
        [100, 20]
    """
    if kind not in NOISE:
        raise UsageError(f'kind must be one of {", ".join(NOISE)}; got "{kind}".{did_you_mean(kind, NOISE)}')
    if not 1 <= n <= len(images):
        raise UsageError(f"n must be from 1 to {len(images)}, the number of images; got {n}.")
    return _noise_chunks(kind, images, n, seed)


def _noise_chunks(kind: str, images: Tensor, n: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed_from(seed, "noise floor", kind))
    order = torch.randperm(len(images), generator=generator).to(images.device)
    some = images[order[:_SPANNED]].cpu()
    for rows in order[:n].split(_CHUNK):
        yield NOISE[kind](images[rows].cpu(), some, generator)


def _uniform(x: Tensor, some: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(256, x.shape, generator=generator, dtype=torch.uint8)


def _shuffled(x: Tensor, some: Tensor, generator: torch.Generator) -> Tensor:
    flat = x.flatten(2)
    places = torch.rand(len(flat), 1, flat.shape[2], generator=generator).argsort(2)
    return flat.gather(2, places.expand_as(flat)).view_as(x)


def _independent(x: Tensor, some: Tensor, generator: torch.Generator) -> Tensor:
    flat = some.flatten(2)
    rows = torch.randint(len(flat), (len(x), 1, flat.shape[2]), generator=generator)
    return flat.gather(0, rows.expand(-1, flat.shape[1], -1)).view_as(x)


def _gaussian(x: Tensor, some: Tensor, generator: torch.Generator) -> Tensor:
    flat = from_uint8(some.flatten(1))
    mean = flat.mean(0)
    weights = torch.randn(len(x), len(flat), generator=generator) / max(1, len(flat) - 1) ** 0.5
    return to_uint8((mean + weights @ (flat - mean)).clamp(-1, 1)).view_as(x)


NOISE = {
    "uniform noise": _uniform,
    "shuffled pixels": _shuffled,
    "positions at random": _independent,
    "Gaussian": _gaussian,
}


def noise_floor(
    images: Tensor, real: Sample, extractor: FeatureExtractor, n: int, *, seed: int = 0
) -> NoiseFloor | None:
    """Frechet distance, precision and density of noise.

    Args:
        images: real ones, uint8 (N, C, H, W), from which the noise is made.
        real: what was measured of them.
        extractor: of `real`.
        n: images of noise of each kind: as many as are sampled, since the scores depend on it; at most N.
        seed: of the noise.

    Returns:
        The scores; None for fewer than 6 images, of which precision cannot be taken.

    Example:
        >>> from latentia.evaluation import load_extractor, measure, uint8_batches
        >>> images, extractor = torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8), load_extractor("digits")
        >>> found = noise_floor(images, measure(uint8_batches(images), extractor), extractor, 20)
        >>> found.scores["uniform noise"]["precision"] > 0.5  # the real ones are noise here
        True
    """
    n = min(n, len(images))
    if n < 6:
        return None
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed_from(seed, "noise reference")))
    equal, scores = real.features[order[:n]], {}
    for kind in NOISE:
        features = predict(map(from_uint8, noise_images(kind, images, n, seed)), extractor).features
        found = precision_recall(real=equal, fake=features)
        scores[kind] = {
            "fd": frechet_distance(features, real.features), "precision": found.precision, "density": found.density,
        }  # fmt: skip
    return NoiseFloor(scores, n)
