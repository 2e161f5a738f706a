"""Codebook indices of images and images of indices, for the pipelines that work with a quantised autoencoder."""

from typing import Any

import torch
from torch import Tensor

from latentia.errors import UsageError, check_range
from latentia.functional.chunks import in_chunks
from latentia.functional.interpolation import interpolate
from latentia.models.layers.convolution import sample_shape


def is_quantised(network: Any) -> bool:
    """Whether an autoencoder has latents that are indices of a codebook, as `VQVAE` has."""
    return all(hasattr(network, key) for key in ("encode", "decode", "quantize", "lookup", "code_shape"))


def codebook_size(vqvae: Any) -> int:
    """K, the number of rows."""
    return vqvae.quantize.codebook_size


def input_shape(vqvae: Any) -> tuple[int, ...]:
    """(C, H, W) of the images or (C, L) of the sequences of a `VQVAE`."""
    return vqvae.config.in_channels, *sample_shape(vqvae.config.sample_size)


@torch.no_grad()
def encode_tensors(vqvae: Any, x: Tensor, continuous: bool = False) -> Tensor:
    """Codes, int64 (B, h, w) or (B, l), in [0, K); or the latents before quantisation, (B, D, ...).

    Args:
        vqvae: a `VQVAE`.
        x: images or sequences as the network takes them.
        continuous: whether to give the latents before quantisation. Default False.
    """
    return in_chunks(vqvae.encode if continuous else lambda part: vqvae.quantize(vqvae.encode(part))[1], x)


@torch.no_grad()
def decode_codes(vqvae: Any, codes: Tensor, device: torch.device) -> Tensor:
    """Images (B, C, H, W) of codes (B, h, w), integers; or of latents (B, D, h, w), which are quantised first.

    Sequences (B, C, L) of codes (B, l) or of latents (B, D, l).

    Raises:
        UsageError: codes of another shape, or that the codebook does not have.
    """
    codes, shape = codes.to(device), tuple(vqvae.code_shape)
    if codes.is_floating_point():
        channels = vqvae.quantize.latent_channels
        if codes.ndim != len(shape) + 2 or codes.shape[1] != channels or not len(codes):
            sides = ", ".join("hw" if len(shape) == 2 else "l")
            raise UsageError(f"latents must have shape (B, {channels}, {sides}), B >= 1; got {tuple(codes.shape)}.")
        codes = in_chunks(lambda z: vqvae.quantize(z)[1], codes.to(vqvae.dtype))
    size = codebook_size(vqvae)
    if tuple(codes.shape[1:]) != shape or not len(codes):
        sides = ", ".join(map(str, shape))
        raise UsageError(f"codes must have shape (B, {sides}), B >= 1; got {tuple(codes.shape)}.")
    if codes.min() < 0 or codes.max() >= size:
        raise UsageError(f"codes must lie in [0, {size}), the codebook; got {int(codes.min())} to {int(codes.max())}.")
    return in_chunks(lambda part: vqvae.decode(vqvae.lookup(part)), codes.long())


def interpolate_tensors(vqvae: Any, a: Tensor, b: Tensor, steps: int, mode: str, device: torch.device) -> Tensor:
    """Images (steps, C, H, W) or sequences on the way from one, (1, ...), to another one, both ends included.

    The way goes through the latents before quantisation, as between integers there is none; each point on it is then
    quantised.

    Raises:
        UsageError: fewer than two steps, an unknown mode, or several at an end.
    """
    check_range("steps", steps, 2)
    for name, end in zip("ab", (a, b)):
        if len(end) != 1:
            raise UsageError(f"{name} must be one image; got {len(end)}. Interpolate pair by pair.")
    ends = [encode_tensors(vqvae, end, continuous=True) for end in (a, b)]
    return decode_codes(vqvae, interpolate(ends[0], ends[1], steps, mode), device)
