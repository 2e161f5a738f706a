"""Perceptual path length: how fast the features of an image change while its latent moves."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch

from latentia.errors import NumericsError, UsageError, did_you_mean
from latentia.evaluation.features.base import FeatureExtractor, check_features
from latentia.functional.interpolation import lerp, slerp
from latentia.rng import seed_from

_CHUNK = 500  # pairs that are decoded at once


class PathLength(NamedTuple):
    """Mean over n paths and its standard error, squared feature distance per squared unit of t; low is smooth."""

    mean: float
    standard_error: float
    n: int


def perceptual_path_length(
    decode: Callable[[torch.Tensor], torch.Tensor],
    latents_a: torch.Tensor,
    latents_b: torch.Tensor,
    extractor: FeatureExtractor,
    *,
    mode: Literal["lerp", "slerp"] = "lerp",
    epsilon: float = 1e-2,
    seed: int = 0,
) -> PathLength:
    """`E 1/epsilon^2 |f(g(z_t)) - f(g(z_{t + epsilon}))|^2`, z_t between a and b, t ~ U[0, 1 - epsilon).

    f are the features of a classifier here, the weighted ones of VGG16 in the paper, so values compare only for one
    extractor. They grow with the distance between a and b: take both from what the family samples its latents from.
    With latents that are images and `decode` the identity, it is the length of a plain cross-fade.

    Args:
        decode: latents (B, ...), at least float32, to images (B, C, H, W) in [-1, 1].
        latents_a, latents_b: the ends of n >= 2 paths, (n, ...), finite floats.
        extractor: from `load_extractor` or your own.
        mode: "lerp" for straight paths; "slerp" along the great circle, for latents drawn from N(0, I), whose straight
            paths leave the sphere where almost all latents lie.
        epsilon: step in t, in (0, 0.5]. The paper's 1e-4 leaves few digits of features in float32.
        seed: of t.

    Raises:
        UsageError: an argument of a wrong shape or range; with "slerp" also a latent of length 0, or opposite ones.
        NumericsError: latents are NaN or infinite.

    References:
        "A Style-Based Generator Architecture for Generative Adversarial Networks", Karras et al. 2018,
        arXiv:1812.04948, section 4.1, equations 2 and 3.

    Example:
        >>> from latentia.evaluation import load_extractor
        >>> a, b = torch.rand(2, 20, 1, 8, 8) * 2 - 1
        >>> fade = perceptual_path_length(lambda images: images, a, b, load_extractor("digits"))
        >>> fade.mean > 0, fade.n
        (True, 20)
    """
    if mode not in ("lerp", "slerp"):
        raise UsageError(f"`mode` must be lerp or slerp. Got {mode!r}.{did_you_mean(str(mode), ('lerp', 'slerp'))}")
    if not 0 < epsilon <= 0.5:
        raise UsageError(f"`epsilon` must be in (0, 0.5]. Got {epsilon}.")
    if latents_a.shape != latents_b.shape or latents_a.ndim < 2 or len(latents_a) < 2:
        raise UsageError(
            "`latents_a` and `latents_b` must have one shape (n, ...), n >= 2. Got "
            f"{tuple(latents_a.shape)} and {tuple(latents_b.shape)}."
        )
    if not (latents_a.is_floating_point() and latents_b.is_floating_point()):
        raise UsageError(f"Latents must be floats. Got {latents_a.dtype} and {latents_b.dtype}.")
    if not (latents_a.isfinite().all() and latents_b.isfinite().all()):
        raise NumericsError("Latents must be finite. Some are NaN or infinite.")
    generator = torch.Generator().manual_seed(seed_from(seed, "path length"))
    t = torch.rand(len(latents_a), generator=generator, dtype=torch.float64) * (1 - epsilon)
    precision = torch.promote_types(latents_a.dtype, torch.float32)  # half precision has no room for epsilon
    between = slerp if mode == "slerp" else lerp
    parts = []
    for a, b, part in zip(latents_a.split(_CHUNK), latents_b.split(_CHUNK), t.split(_CHUNK)):
        ends = []
        for at in (part, part + epsilon):
            z = between(a.flatten(1).double(), b.flatten(1).double(), at[:, None].to(a.device))
            with torch.no_grad():
                features = extractor(decode(z.view_as(a).to(precision)))[0]
            check_features(features)
            ends.append(features.cpu().double())
        parts.append((ends[1] - ends[0]).square().sum(1) / epsilon**2)
    lengths = torch.cat(parts)
    return PathLength(float(lengths.mean()), float(lengths.std() / len(lengths) ** 0.5), len(lengths))
