"""SeriesScaler: time series as sequences of mean 0 and variance 1, and back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor

from latentia.errors import DataError, Size, UsageError, check_arguments
from latentia.functional.masks import length_mask
from latentia.models.modeling import ModelMixin

_MAX_DECIMALS = 15


@dataclass
class SeriesScalerOutput(BaseOutput):
    """`sequences`: scaled series, (B, C, L)."""

    sequences: Tensor


class SeriesScaler(ModelMixin, ConfigMixin):
    r"""The scaling of time series, fitted to those to train on: \((x - \mu_c) / \sigma_c\) of each channel c.

    Decoding rounds a channel whose values have finitely many decimals to them, so these come back exactly; others to
    the last bits of float64. Its parameters are not trained. They are kept as the bits of float64, which no cast of the
    pipeline to another type changes.

    Args:
        channels: of each channel {"name": text, "decimals": digits after the point of all values, or None}.
        length: L, steps of the longest series. Default 64.

    Raises:
        UsageError: descriptions that are none, or series of other shapes.

    Example:
        >>> values = torch.tensor([[[0.1, 0.5, 0.9]]], dtype=torch.float64)
        >>> scaler = SeriesScaler.fit([{"name": "x", "decimals": 1}], values, torch.tensor([3]))
        >>> bool((scaler.decode(scaler.encode(values)) == values).all())
        True
    """

    modality = "series"  # what a pipeline with it makes
    scale: Tensor
    counts: Tensor
    unit: Tensor

    @register_to_config
    @check_arguments
    def __init__(self, channels: Sequence[dict], length: Size = 64):
        super().__init__()
        for channel in channels:
            decimals = channel.get("decimals") if isinstance(channel, Mapping) else "none"
            whole = decimals is None or (type(decimals) is int and 0 <= decimals <= _MAX_DECIMALS)
            if not whole or not isinstance(channel.get("name"), str):
                raise UsageError(f"channels must each have a name and decimals; got {str(channel)[:200]}.")
        if not len(channels):
            raise UsageError("channels must be at least one; got none.")
        scale = torch.tensor([[0.0], [1.0]], dtype=torch.float64).repeat(1, len(channels))
        self.register_buffer("scale", _bits(scale))  # means and deviations
        counts = torch.zeros(length, dtype=torch.int64)
        counts[-1] = 1
        self.register_buffer("counts", counts)  # series of 1, 2, ... L steps
        self.register_buffer("unit", torch.ones(()))  # of scaled series; its dtype is theirs

    @classmethod
    def fit(cls, channels: Sequence[Mapping[str, Any]], values: Any, lengths: Any) -> "SeriesScaler":
        """The scaling fitted to series: mean and standard deviation of each channel, and how many have each length.

        Args:
            channels: of the constructor.
            values: (N, C, L), float64.
            lengths: steps of each series, int64 (N,).

        Raises:
            DataError: a channel that is constant.
        """
        x, steps = torch.as_tensor(values).double(), torch.as_tensor(lengths)
        scaler = cls([dict(channel) for channel in channels], length=x.shape[2])
        there = length_mask(steps, x.shape[2])
        known = x.transpose(1, 2)[there]  # (steps of all series, C)
        deviations = known.std(0, correction=0)
        for channel, deviation in zip(channels, deviations.tolist()):
            if not deviation > 0:
                raise DataError(
                    f'channel "{channel["name"]}" is constant in the series to train on, so there is nothing to learn; '
                    "leave it out with drop_columns."
                )
        scaler.scale.copy_(_bits(torch.stack([known.mean(0), deviations])))
        scaler.counts.copy_(steps.bincount(minlength=x.shape[2] + 1)[1:])
        return scaler.eval()

    @property
    def shape(self) -> tuple[int, int]:
        """(C, L) of a sequence."""
        return len(self.config.channels), self.config.length

    @property
    def equal_lengths(self) -> bool:
        """Whether all series that it was fitted to have L steps."""
        return bool(self.counts[:-1].sum() == 0)

    def sample_lengths(self, u: Tensor) -> Tensor:
        """Lengths with the frequencies of the series that it was fitted to, int64 (B,), of u in [0, 1), (B,)."""
        ends = self.counts.cumsum(0)
        places = (u.double().to(ends.device) * ends[-1]).long().clamp(max=ends[-1] - 1)
        return torch.searchsorted(ends, places, right=True) + 1

    def encode(self, values: Tensor) -> Tensor:
        """Scaled series (B, C, L), float64, of series (B, C, L)."""
        mean, deviation = self._scale_of(values)
        return (values.to(self.scale.device).double() - mean) / deviation

    def decode(self, sequences: Tensor) -> Tensor:
        """Series (B, C, L), float64, of scaled ones: the inverse of `encode`."""
        mean, deviation = self._scale_of(sequences)
        x = sequences.to(self.scale.device).double() * deviation + mean
        rounded = [
            row
            if channel["decimals"] is None
            else (row * 10 ** channel["decimals"]).round() / 10 ** channel["decimals"]
            for row, channel in zip(x.unbind(1), self.config.channels)
        ]
        return torch.stack(rounded, 1)

    def forward(self, values: Tensor, return_dict: bool = True) -> SeriesScalerOutput | tuple[Tensor]:
        """`encode` in the dtype of the network."""
        sequences = self.encode(values).to(self.unit.dtype) * self.unit
        return SeriesScalerOutput(sequences) if return_dict else (sequences,)

    def _scale_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.ndim != 3 or x.shape[1] != len(self.config.channels) or not x.is_floating_point():
            raise UsageError(
                f"series must be floats (B, {len(self.config.channels)}, L); got {x.dtype} {tuple(x.shape)}."
            )
        mean, deviation = self.scale.view(torch.float64).clone()[:, :, None]
        return mean, deviation


def _bits(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.int64)
