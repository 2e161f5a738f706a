"""Codebook indices of images and images of indices, for the pipelines that work with a quantised autoencoder."""

from typing import Any

import torch
from torch import Tensor

from latentia.errors import UsageError, check_range
from latentia.functional.chunks import in_chunks
from latentia.functional.interpolation import interpolate
from latentia.pipelines.images import Images, from_input


def is_quantised(network: Any) -> bool:
    """Whether an autoencoder has latents that are indices of a codebook, as `VQVAE` has."""
    return all(hasattr(network, key) for key in ("encode", "decode", "quantize", "lookup", "code_shape"))


def codebook_size(vqvae: Any) -> int:
    """K, the number of rows."""
    return vqvae.quantize.codebook_size


@torch.no_grad()
def encode_images(vqvae: Any, images: Images, device: torch.device, continuous: bool = False) -> Tensor:
    """Codes of images, int64 (B, h, w) in [0, K); or the latents before quantisation, (B, D, h, w).

    Args:
        vqvae: a `VQVAE`.
        images: images, or what `from_input` takes.
        device: of the network.
        continuous: whether to give the latents before quantisation. Default False.
    """
    config = vqvae.config
    x = from_input(images, channels=config.in_channels, size=config.sample_size, device=device, dtype=vqvae.dtype)
    return in_chunks(vqvae.encode if continuous else lambda part: vqvae.quantize(vqvae.encode(part))[1], x)


@torch.no_grad()
def decode_codes(vqvae: Any, codes: Tensor, device: torch.device) -> Tensor:
    """Images (B, C, H, W) of codes (B, h, w), integers; or of latents (B, D, h, w), which are quantised first.

    Raises:
        UsageError: codes of another shape, or that the codebook does not have.
    """
    codes = codes.to(device)
    if codes.is_floating_point():
        channels = vqvae.quantize.latent_channels
        if codes.ndim != 4 or codes.shape[1] != channels or not len(codes):
            raise UsageError(f"latents must have shape (B, {channels}, h, w), B >= 1; got {tuple(codes.shape)}.")
        codes = in_chunks(lambda z: vqvae.quantize(z)[1], codes.to(vqvae.dtype))
    size, shape = codebook_size(vqvae), vqvae.code_shape
    if tuple(codes.shape[1:]) != shape or not len(codes):
        raise UsageError(f"codes must have shape (B, {shape[0]}, {shape[1]}), B >= 1; got {tuple(codes.shape)}.")
    if codes.min() < 0 or codes.max() >= size:
        raise UsageError(f"codes must lie in [0, {size}), the codebook; got {int(codes.min())} to {int(codes.max())}.")
    return in_chunks(lambda part: vqvae.decode(vqvae.lookup(part)), codes.long())


def interpolate_images(vqvae: Any, a: Images, b: Images, steps: int, mode: str, device: torch.device) -> Tensor:
    """Images on the way from one image to another, both ends included, (steps, C, H, W).

    The way goes through the latents before quantisation, as between integers there is none; each point on it is then
    quantised.

    Raises:
        UsageError: fewer than two steps, an unknown mode, or several images at an end.
    """
    check_range("steps", steps, 2)
    ends = [encode_images(vqvae, image, device, continuous=True) for image in (a, b)]
    for name, latents in zip("ab", ends):
        if len(latents) != 1:
            raise UsageError(f"{name} must be one image; got {len(latents)}. Interpolate pair by pair.")
    return decode_codes(vqvae, interpolate(ends[0], ends[1], steps, mode), device)
