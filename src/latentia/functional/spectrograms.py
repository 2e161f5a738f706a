"""Spectrograms: mel filters, logarithmic mel spectrograms of waves, and waves of them by Griffin-Lim."""

import math

import torch
from torch import Tensor

from latentia.errors import UsageError
from latentia.functional.precision import full_precision

FLOOR = 1e-4  # amplitude below which all is silence: -80 dB


def mel_filters(num_mels: int, n_fft: int, sampling_rate: int) -> Tensor:
    r"""Triangular filters that are equally wide on the mel scale, (num_mels, n_fft // 2 + 1), each of sum 1.

    \(m = 2595 \log_{10}(1 + f / 700)\), from 0 Hz to half the sampling rate. float32, on the CPU.

    Args:
        num_mels: filters.
        n_fft: length of a frame in samples.
        sampling_rate: samples per second.

    Raises:
        UsageError: a filter that is narrower than a frequency of the frame.

    Stevens, Volkmann and Newman, 1937, doi:10.1121/1.1915893.

    Example:
        >>> mel_filters(8, 256, 8000).sum(1).round(decimals=3).tolist() == [1.0] * 8
        True
    """
    filters = _triangles(num_mels, n_fft, sampling_rate)
    if bool((filters.sum(1) == 0).any()):
        fewer = (n for n in range(num_mels - 1, 0, -1) if bool(_triangles(n, n_fft, sampling_rate).any(1).all()))
        raise UsageError(
            f"num_mels must be so few that each filter covers a frequency of n_fft={n_fft}; got {num_mels}. Take a "
            f"larger n_fft or at most {next(fewer, 1)} num_mels at {sampling_rate} samples per second."
        )
    return (filters / filters.sum(1, keepdim=True)).float()


def _triangles(num_mels: int, n_fft: int, sampling_rate: int) -> Tensor:
    """The filters before they are scaled, float64."""
    top = 2595 * math.log10(1 + sampling_rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, num_mels + 2, dtype=torch.float64, device="cpu") / 2595) - 1)
    frequencies = torch.linspace(0, sampling_rate / 2, n_fft // 2 + 1, dtype=torch.float64, device="cpu")
    rise = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rise, fall).clamp(min=0)


def magnitudes(waves: Tensor, n_fft: int, hop_length: int) -> Tensor:
    """Magnitudes of the short-time Fourier transform with a Hann window, (B, n_fft // 2 + 1, T // hop_length + 1).

    Args:
        waves: (B, T), float32.
        n_fft: length of a frame.
        hop_length: samples from a frame to the next.
    """
    return _stft(waves, n_fft, hop_length).abs()


def log_mel(waves: Tensor, filters: Tensor, hop_length: int) -> Tensor:
    """Natural logarithm of the mel amplitudes of waves (B, T): (B, num_mels, frames), at least log(1e-4).

    Args:
        waves: float32 in [-1, 1].
        filters: of `mel_filters`.
        hop_length: samples from a frame to the next.

    Example:
        >>> log_mel(torch.zeros(2, 512), mel_filters(8, 256, 8000), 128).shape
        torch.Size([2, 8, 5])
    """
    found = magnitudes(waves, 2 * (filters.shape[1] - 1), hop_length)
    with full_precision(waves.device.type):
        return (filters @ found).clamp(min=FLOOR).log()


def griffin_lim(found: Tensor, hop_length: int, samples: int, iterations: int = 60, momentum: float = 0.99) -> Tensor:
    """Waves (B, samples) with magnitudes near those given, by alternating projections with momentum.

    Args:
        found: magnitudes (B, n_fft // 2 + 1, frames).
        hop_length: samples from a frame to the next.
        samples: T.
        iterations: default 60.
        momentum: in [0, 1); 0 is the plain algorithm. Default .99.

    The first phases are the same random ones for all clips, so that a clip always gives the same wave.

    Griffin and Lim, 1984, doi:10.1109/TASSP.1984.1164317; Perraudin, Balazs and Sondergaard, 2013,
    doi:10.1109/WASPAA.2013.6701851.

    Example:
        >>> wave = torch.sin(0.3 * torch.arange(1024.0))[None]
        >>> again = griffin_lim(magnitudes(wave, 256, 64), 64, 1024)
        >>> error = (magnitudes(again, 256, 64) - magnitudes(wave, 256, 64)).norm() / magnitudes(wave, 256, 64).norm()
        >>> bool(error < 0.1)
        True
    """
    n_fft = 2 * (found.shape[1] - 1)
    random = torch.Generator().manual_seed(0)
    angles = 2 * math.pi * torch.rand(found.shape[1:], generator=random, dtype=torch.float32)
    phases = torch.polar(torch.ones_like(angles), angles).to(found.device).expand(found.shape)
    before = torch.zeros_like(phases)
    for _ in range(iterations):
        rebuilt = _stft(_istft(found * phases, n_fft, hop_length, samples), n_fft, hop_length)
        moved = rebuilt - momentum / (1 + momentum) * before
        phases, before = moved / moved.abs().clamp(min=1e-12), rebuilt
    return _istft(found * phases, n_fft, hop_length, samples)


def _stft(waves: Tensor, n_fft: int, hop_length: int) -> Tensor:
    window = torch.hann_window(n_fft, device=waves.device)
    return torch.stft(waves.float(), n_fft, hop_length, window=window, pad_mode="constant", return_complex=True)


def _istft(found: Tensor, n_fft: int, hop_length: int, samples: int) -> Tensor:
    window = torch.hann_window(n_fft, device=found.device)
    return torch.istft(found, n_fft, hop_length, window=window, length=samples)
