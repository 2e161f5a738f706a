"""What images of noise get from an extractor: scores that a model has to beat before its own mean anything.

Precision and density count the samples within reach of real images in feature space. Noise often maps to one point
there, and if an extractor was trained on other images that point may lie among the real ones: noise then wins both.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from latentia.errors import UsageError
from latentia.evaluation.features.base import FeatureExtractor, predict, uint8_batches
from latentia.evaluation.frechet import frechet_distance
from latentia.evaluation.prdc import precision_recall
from latentia.evaluation.report.report import Report
from latentia.evaluation.samples import Sample
from latentia.functional.pixels import from_uint8, to_uint8
from latentia.rng import seed_from

_MOST = 1000  # images of each kind
_SPANNED = 500  # images of whose covariance the Gaussian is
_HIGHER = ("precision", "density")


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
        for key in ("fd", *_HIGHER):
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


def noise_images(images: Tensor, n: int, seed: int = 0) -> dict[str, Tensor]:
    """Images without content, with the shape of real ones.

    Args:
        images: real ones, uint8 (N, C, H, W).
        n: of each kind, at most N.
        seed: of the noise.

    Returns:
        Name to uint8 (n, C, H, W) on the CPU: "uniform noise"; "shuffled pixels", those of one image at other places;
        "positions at random", each pixel that of another image at the same place, as a prior of independent positions
        gives; "Gaussian", with the mean and the covariance of at most 500 of the images, smooth and without shapes.

    Raises:
        UsageError: not 1 <= n <= N.

    Example:
        >>> [*noise_images(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), 3)]
        ['uniform noise', 'shuffled pixels', 'positions at random', 'Gaussian']
    """
    if not 1 <= n <= len(images):
        raise UsageError(f"n must be from 1 to {len(images)}, the number of images; got {n}.")
    generator = torch.Generator().manual_seed(seed_from(seed, "noise floor"))
    x = images.cpu()[torch.randperm(len(images), generator=generator)[:n]]
    uniform = torch.randint(256, x.shape, generator=generator, dtype=torch.uint8)
    flat = x.flatten(2)
    places = torch.rand(n, 1, flat.shape[2], generator=generator)
    shuffled = flat.gather(2, places.argsort(2).expand_as(flat)).view_as(x)
    mixed = flat.gather(0, places.argsort(0).expand_as(flat)).view_as(x)
    some = from_uint8(flat[:_SPANNED].flatten(1))
    weights = torch.randn(n, len(some), generator=generator) / max(1, len(some) - 1) ** 0.5
    gaussian = to_uint8((some.mean(0) + weights @ (some - some.mean(0))).clamp(-1, 1)).view_as(x)
    return {
        "uniform noise": uniform, "shuffled pixels": shuffled, "positions at random": mixed, "Gaussian": gaussian,
    }  # fmt: skip


def noise_floor(
    images: Tensor, real: Sample, extractor: FeatureExtractor, n: int, *, seed: int = 0
) -> NoiseFloor | None:
    """Frechet distance, precision and density of noise.

    Args:
        images: real ones, uint8 (N, C, H, W), from which the noise is made.
        real: what was measured of them.
        extractor: of `real`.
        n: images of noise of each kind, as many as are sampled; at most 1000 are taken.
        seed: of the noise.

    Returns:
        The scores; None for fewer than 6 images, of which precision cannot be taken.

    Example:
        >>> from latentia.evaluation import load_extractor, measure
        >>> images, extractor = torch.randint(256, (40, 1, 8, 8), dtype=torch.uint8), load_extractor("digits")
        >>> found = noise_floor(images, measure(uint8_batches(images), extractor), extractor, 20)
        >>> found.scores["uniform noise"]["precision"] > 0.5  # the real ones are noise here
        True
    """
    n = min(n, len(images), _MOST)
    if n < 6:
        return None
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed_from(seed, "noise reference")))
    equal, scores = real.features[order[:n]], {}
    for kind, made in noise_images(images, n, seed).items():
        features = predict(uint8_batches(made), extractor).features
        found = precision_recall(real=equal, fake=features)
        scores[kind] = {
            "fd": frechet_distance(features, real.features), "precision": found.precision, "density": found.density,
        }  # fmt: skip
    return NoiseFloor(scores, n)
