"""LogMel: sounds as sequences of standardised log-mel frames, and back by Griffin-Lim."""

from dataclasses import dataclass
from typing import Annotated

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor

from latentia.errors import Range, Size, UsageError, check_arguments
from latentia.functional.chunks import in_chunks
from latentia.functional.spectrograms import FLOOR, griffin_lim, log_mel, mel_filters
from latentia.models.modeling import ModelMixin

_CHUNK = 16  # clips at once


@dataclass
class LogMelOutput(BaseOutput):
    """`sequences`: standardised frames, (B, num_mels, L)."""

    sequences: Tensor


class LogMel(ModelMixin, ConfigMixin):
    r"""Clips of sound as sequences of log-mel frames of mean 0 and variance 1 in each band, and back.

    The phases are lost: `decode` finds magnitudes by the pseudo-inverse of the mel filters, clipped at 0, and waves by
    Griffin-Lim. Its parameters are not trained. They are kept as the bits of float64.

    Args:
        sampling_rate: samples per second. Default 8000.
        samples: T, of a clip. Default 4096.
        num_mels: bands, from 0 Hz to half the sampling rate. Default 80.
        n_fft: samples of a frame. Default 1024.
        hop_length: samples from a frame to the next, at most half of n_fft. Default 256.

    Raises:
        UsageError: a hop or a clip that does not fit a frame, more bands than frequencies, or clips of another length.

    Example:
        >>> codec = LogMel.fit(0.1 * torch.randn(4, 4096))
        >>> x = codec.encode(torch.sin(0.5 * torch.arange(4096.0))[None])
        >>> x.shape, codec.decode(x).shape
        (torch.Size([1, 80, 17]), torch.Size([1, 4096]))
    """

    modality = "sound"  # what a pipeline with it makes
    scale: Tensor
    unit: Tensor

    @register_to_config
    @check_arguments
    def __init__(
        self,
        sampling_rate: Size = 8000,
        samples: Size = 4096,
        num_mels: Annotated[int, Range(1, most=512)] = 80,
        n_fft: Annotated[int, Range(1, most=2**13)] = 1024,
        hop_length: Size = 256,
    ):
        super().__init__()
        if samples < n_fft:
            raise UsageError(
                f"n_fft must be at most the samples of a clip, {samples}; got {n_fft}. Take longer clips, or such as "
                f"n_fft={samples // 2 * 2} and hop_length={samples // 4}, with fewer num_mels."
            )
        if 2 * hop_length > n_fft or n_fft % 2:
            raise UsageError(
                f"hop_length must be at most half of n_fft, which must be even; got hop_length={hop_length} and "
                f"n_fft={n_fft}."
            )
        self._filters = mel_filters(num_mels, n_fft, sampling_rate)
        self._inverse = torch.linalg.pinv(self._filters.double()).float()
        scale = torch.tensor([[0.0], [1.0]], dtype=torch.float64).repeat(1, num_mels)
        self.register_buffer("scale", scale.view(torch.int64))  # means and deviations of the bands
        self.register_buffer("unit", torch.ones(()))  # of frames; its dtype is theirs

    @classmethod
    def fit(
        cls, waves: Tensor, sampling_rate: int = 8000, num_mels: int = 80, n_fft: int = 1024, hop_length: int = 256
    ) -> "LogMel":
        """The encoding fitted to clips (N, T): mean and deviation of each band."""
        codec = cls(sampling_rate, waves.shape[1], num_mels, n_fft, hop_length)
        frames = torch.cat([codec._frames(part) for part in waves.split(256)]).double()
        deviation = frames.std((0, 2), correction=0).clamp(min=1e-3)
        codec.scale.copy_(torch.stack([frames.mean((0, 2)), deviation]).view(torch.int64))
        return codec.eval()

    @property
    def shape(self) -> tuple[int, int]:
        """(num_mels, L) of a sequence."""
        return self.config.num_mels, self.config.samples // self.config.hop_length + 1

    def encode(self, waves: Tensor) -> Tensor:
        """Standardised frames (B, num_mels, L), float32, of waves (B, T) in [-1, 1]."""
        if waves.ndim != 2 or waves.shape[1] != self.config.samples or not waves.is_floating_point():
            raise UsageError(
                f"waves must be floats (B, {self.config.samples}), clips of {self.config.samples} samples; got "
                f"{waves.dtype} {tuple(waves.shape)}."
            )
        mean, deviation = self._scale()
        return (in_chunks(self._frames, waves.to(self.unit.device).float(), size=_CHUNK) - mean) / deviation

    def decode(self, sequences: Tensor, iterations: int = 60) -> Tensor:
        """Waves (B, T), float32 in [-1, 1], of standardised frames (B, num_mels, L).

        Args:
            sequences: as `encode` gives them.
            iterations: of Griffin-Lim. Default 60.
        """
        if sequences.ndim != 3 or tuple(sequences.shape[1:]) != self.shape:
            raise UsageError(f"sequences must be (B, {self.shape[0]}, {self.shape[1]}); got {tuple(sequences.shape)}.")
        mean, deviation = self._scale()

        def waves(part: Tensor) -> Tensor:
            amplitudes = (part * deviation + mean).clamp(max=5.0).exp()  # a sine of amplitude 1 has about e^4
            kept = torch.where(amplitudes > 1.5 * FLOOR, amplitudes, 0)
            found = (self._inverse.to(part.device) @ kept).clamp(min=0)
            return griffin_lim(found, self.config.hop_length, self.config.samples, iterations).clamp(-1, 1)

        return in_chunks(waves, sequences.to(self.unit.device).float(), size=_CHUNK)

    def forward(self, waves: Tensor, return_dict: bool = True) -> LogMelOutput | tuple[Tensor]:
        """`encode` in the dtype of the network."""
        sequences = self.encode(waves).to(self.unit.dtype) * self.unit
        return LogMelOutput(sequences) if return_dict else (sequences,)

    def _frames(self, waves: Tensor) -> Tensor:
        return log_mel(waves, self._filters.to(waves.device), self.config.hop_length)

    def _scale(self) -> tuple[Tensor, Tensor]:
        mean, deviation = self.scale.view(torch.float64).clone().float()[:, :, None]
        return mean, deviation
