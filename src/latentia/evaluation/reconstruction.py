"""Quality of reconstructions: PSNR, SSIM and the Frechet distance of what an autoencoder gives back."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from latentia.evaluation.features.base import FeatureExtractor, predict
from latentia.evaluation.frechet import frechet_distance
from latentia.evaluation.pairs import SSIM_WINDOW, psnr, ssim
from latentia.evaluation.samples import Sample
from latentia.functional.pixels import from_uint8, to_uint8


@dataclass(frozen=True)
class Reconstruction:
    """Quality of the reconstructions of n images.

    Args:
        psnr: mean over the images, in decibels; higher is nearer.
        ssim: mean structural similarity, at most 1, under a window of `ssim_window` pixels.
        ssim_window: the published 11, or the largest odd number that fits smaller images.
        frechet_distance: of the reconstructions to the real images ("rFID" in the literature).
        original_distance: of the n images themselves to the real images, which no reconstruction need go below.
        n: images.
        images: what they are, "test images" or "training images".
    """

    psnr: float
    ssim: float
    ssim_window: int
    frechet_distance: float
    original_distance: float
    n: int
    images: str

    def text(self) -> str:
        """One line for the terminal."""
        return (
            f"reconstruction of {self.n} {self.images}: PSNR {self.psnr:.2f} dB, SSIM {self.ssim:.4f}, "
            f"Frechet distance {self.frechet_distance:.4g} (the images themselves {self.original_distance:.4g})"
        )


def reconstruction(
    reconstruct: Callable[[Tensor], Tensor], images: Tensor, about: str, real: Sample, extractor: FeatureExtractor
) -> Reconstruction:
    """Measure the reconstructions of images.

    Args:
        reconstruct: images (B, C, H, W) in [-1, 1] -> the same, encoded and decoded.
        images: uint8 (N, C, H, W), N >= 2; best such that the autoencoder was not trained on.
        about: what they are.
        real: what was measured of real images.
        extractor: of `real`.

    Example:
        >>> import torch
        >>> from latentia.evaluation import load_extractor, measure, uint8_batches
        >>> images, extractor = torch.randint(256, (20, 1, 8, 8), dtype=torch.uint8), load_extractor("digits")
        >>> real = measure(uint8_batches(images), extractor)
        >>> found = reconstruction(lambda x: 0.9 * x, images, "noise", real, extractor)
        >>> round(found.psnr), found.ssim_window
        (31, 7)
    """
    parts = [from_uint8(to_uint8(reconstruct(from_uint8(part)).clamp(-1, 1))).cpu() for part in images.split(100)]
    window = min(SSIM_WINDOW, *(side - 1 + side % 2 for side in images.shape[2:]))
    pairs = [(from_uint8(part.cpu()), made) for part, made in zip(images.split(100), parts)]
    originals = predict((part for part, _ in pairs), extractor).features
    return Reconstruction(
        psnr=sum(float(psnr(a, b).sum()) for a, b in pairs) / len(images),
        ssim=sum(float(ssim(a, b, window=window).sum()) for a, b in pairs) / len(images),
        ssim_window=window,
        frechet_distance=frechet_distance(predict(parts, extractor).features, real.features),
        original_distance=frechet_distance(originals, real.features),
        n=len(images),
        images=about,
    )
