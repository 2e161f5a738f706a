"""Structure of a latent space: path length between the latents of real images, and a linear probe of them."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from latentia.errors import UsageError
from latentia.evaluation.features.base import FeatureExtractor, check_images
from latentia.evaluation.representation.path_length import PathLength, perceptual_path_length
from latentia.evaluation.representation.probes import Probe, linear_probe
from latentia.rng import seed_from

Encode = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class LatentStructure:
    """How smooth the way between the latents of real images is, and how much of their class a latent shows.

    Args:
        path_length: between the latents of pairs of images.
        fade_length: the same of plain cross-fades of these pairs, for comparison.
        probe: linear probe of the latents; None without labels or with fewer than five images of a class.
        pixels_probe: the same of the raw pixels.
        dimensions: of a latent.
        n: images.
        images: which, in words.
    """

    path_length: PathLength
    fade_length: PathLength
    probe: Probe | None
    pixels_probe: Probe | None
    dimensions: int
    n: int
    images: str = "images"

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts, for JSON."""
        plain = {"path_length": self.path_length._asdict(), "fade_length": self.fade_length._asdict()}
        return asdict(self) | plain

    def text(self) -> str:
        """One line for the terminal."""
        mean, error, pairs = self.path_length
        line = (
            f"latents of {self.n} {self.images}, {self.dimensions} wide: path length {mean:.4g} ± {1.96 * error:.2g} "
        )
        line += f"over {pairs} pairs (cross-fades {self.fade_length.mean:.4g})"
        if self.probe is None:
            return f"{line}; no linear probe, which needs labels and five images of each class"
        return f"{line}, linear probe {self.probe} (pixels {self.pixels_probe})"


def latent_structure(
    encode: Encode,
    decode: Encode,
    images: torch.Tensor,
    labels: torch.Tensor | None,
    extractor: FeatureExtractor,
    *,
    mode: Literal["lerp", "slerp"] = "lerp",
    about: str = "images",
    seed: int = 0,
) -> LatentStructure:
    """Path length and linear probe of the latents of real images.

    A path leads from the latent of one real image to that of another, so that its ends are defined alike for every
    family, whatever it samples from: all paths lead between the same images. See `perceptual_path_length` and
    `linear_probe`.

    Args:
        encode: images (B, C, H, W) to latents (B, ...), floats.
        decode: latents to images in [-1, 1].
        images: (n, C, H, W) in [-1, 1], n >= 4, best ones that the model was not trained on.
        labels: integers (n,), or None.
        extractor: whose features the path length is measured in.
        mode: "slerp" for latents that are noise, else "lerp".
        about: which images these are, in words.
        seed: of the pairs, the places on the paths, and the probe's splits.

    Raises:
        UsageError: fewer than 4 images, or those of a wrong shape or range.
        NumericsError: latents are NaN or infinite.

    Example:
        >>> from latentia.evaluation import load_extractor
        >>> images = torch.rand(20, 1, 8, 8) * 2 - 1
        >>> found = latent_structure(lambda x: x, lambda z: z, images, None, load_extractor("digits"))
        >>> found.path_length == found.fade_length, found.path_length.n, found.probe
        (True, 10, None)
    """
    if len(images) < 4:
        raise UsageError(f"`images` must hold at least 4, for two pairs. Got {len(images)}.")
    check_images(images)
    codes = encode(images)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed_from(seed, "pairs")))
    first, second = order[: len(order) // 2 * 2].chunk(2)

    def length(decode: Encode, ends: torch.Tensor, mode: Literal["lerp", "slerp"]) -> PathLength:
        return perceptual_path_length(decode, ends[first], ends[second], extractor, mode=mode, seed=seed)

    def probe(x: torch.Tensor) -> Probe | None:
        if labels is None or len(labels.unique()) < 2 or int(labels.unique(return_counts=True)[1].min()) < 5:
            return None
        return linear_probe(x.flatten(1), labels, seed=seed)

    return LatentStructure(
        path_length=length(decode, codes, mode),
        fade_length=length(lambda x: x, images, "lerp"),
        probe=probe(codes),
        pixels_probe=probe(images),
        dimensions=codes[0].numel(),
        n=len(images),
        images=about,
    )
