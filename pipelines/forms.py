"""What a pipeline takes and gives: images, or with a codec time series or sounds; conversions from and to tensors."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils import BaseOutput
from torch import Tensor

from latentia.data.series import Series
from latentia.data.sounds import Sounds, wav_bytes
from latentia.errors import UsageError, check_choice
from latentia.functional.masks import length_mask
from latentia.models.log_mel import LogMel
from latentia.models.series_scaler import SeriesScaler
from latentia.pipelines.images import check_output_type, from_input, to_output

SERIES_TYPES = ("series", "pandas", "np", "latent")
SOUND_TYPES = ("sound", "wav", "np", "latent")


@dataclass
class SeriesOutput(BaseOutput):
    """`series`: what `output_type` asks for; `lengths`: steps of each series, int64 (B,)."""

    series: Any
    lengths: Any


@dataclass
class SoundOutput(BaseOutput):
    """`sound`: what `output_type` asks for; `sampling_rate`: samples per second."""

    sound: Any
    sampling_rate: int


@dataclass(frozen=True)
class ImageForm:
    """Images in [-1, 1].

    Args:
        shape: (C, H, W) of an image.
    """

    shape: tuple[int, ...]
    modality = "image"
    default = "pil"

    def check(self, output_type: str | None) -> str:
        """The output type, "pil" if none is given."""
        check_output_type(output_type or self.default, self.shape)
        return output_type or self.default

    def tensors(self, images: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Tensors (B, C, H, W) of images, as `from_input` takes them."""
        size = (self.shape[1], self.shape[2])
        return from_input(images, channels=self.shape[0], size=size, device=device, dtype=dtype)

    def output(self, x: Tensor, output_type: str, labels: Tensor | None = None) -> Any:
        """Images of tensors (B, C, H, W), as `to_output` gives them."""
        return to_output(x, output_type)

    def answer(self, x: Tensor, output_type: str, labels: Tensor | None, return_dict: bool) -> Any:
        """What a call of a pipeline returns."""
        images = self.output(x, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)


@dataclass(frozen=True)
class SeriesForm:
    """Time series, scaled.

    Args:
        scaler: their `SeriesScaler`.
        names: of the classes.
        unequal: whether the network takes series of unequal lengths, up to that of the longest in training.
    """

    scaler: Any
    names: tuple[str, ...] = ()
    unequal: bool = False
    modality = "series"
    default = "pandas"

    @property
    def shape(self) -> tuple[int, int]:
        """(C, L) of a series."""
        return self.scaler.shape

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels."""
        return tuple(channel["name"] for channel in self.scaler.config.channels)

    def check(self, output_type: str | None) -> str:
        """The output type, "pandas" if none is given."""
        check_choice("output_type", output_type or self.default, SERIES_TYPES)
        return output_type or self.default

    def read(self, series: Any) -> tuple[Tensor, Tensor]:
        """Scaled sequences (B, C, L), float64, 0 beyond the ends, and lengths of a `Series` or of values (B, C, L)."""
        values = series.values if isinstance(series, Series) else series
        x = torch.as_tensor(values, dtype=torch.float64)
        if x.ndim != 3 or x.shape[1] != self.shape[0] or not x.numel() or not bool(x.isfinite().all()):
            raise UsageError(
                f"series must be finite values (B, {self.shape[0]}, L), or a latentia.data.Series; got "
                f"{tuple(x.shape)}."
            )
        lengths = torch.from_numpy(series.lengths) if isinstance(series, Series) else torch.full((len(x),), x.shape[2])
        scaled = self.scaler.encode(x)
        there = length_mask(lengths, x.shape[2]).to(scaled.device)
        return torch.where(there[:, None], scaled, 0), lengths

    def tensors(self, series: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Scaled sequences (B, C, L) of series that are as long as in training, or filled up with zeros to be so."""
        x, lengths = self.read(series)
        steps, most = self.shape[1], int(lengths.max())
        if most > steps or (not self.unequal and bool((lengths != steps).any())):
            raise UsageError(
                f"series must have {'at most ' * self.unequal}{steps} steps each, as in training; got "
                f"{int(lengths.min())} to {most}. Cut them with window={steps}."
            )
        return F.pad(x[:, :, :steps], (0, steps - x[:, :, :steps].shape[2])).to(device, dtype)

    def output(self, x: Tensor, output_type: str, labels: Tensor | None = None, lengths: Tensor | None = None) -> Any:
        """Series of scaled sequences (B, C, L); `lengths` (B,), all L by default."""
        if output_type == "latent":
            return x
        lengths = torch.full((len(x),), x.shape[2]) if lengths is None else lengths
        values = self.scaler.decode(x.float()).cpu().numpy()
        there = length_mask(lengths, x.shape[2]).numpy()[:, None]
        if output_type == "np":
            return np.where(there, values, np.nan)
        known = None if labels is None else labels.cpu().numpy()
        names = None if labels is None else [*self.names]
        found = Series(np.where(there, values, 0), lengths.numpy(), self.channels, known, names)
        return found.frame() if output_type == "pandas" else found

    def answer(
        self,
        x: Tensor,
        output_type: str,
        labels: Tensor | None,
        return_dict: bool,
        lengths: Tensor | None = None,
    ) -> Any:
        """What a call of a pipeline returns."""
        lengths = torch.full((len(x),), x.shape[2]) if lengths is None else lengths
        found = self.output(x, output_type, labels, lengths)
        return SeriesOutput(found, lengths) if return_dict else (found, lengths)


@dataclass(frozen=True)
class SoundForm:
    """Sounds, as standardised log-mel frames.

    Args:
        log_mel: their `LogMel`.
        names: of the classes.
    """

    log_mel: Any
    names: tuple[str, ...] = ()
    modality = "sound"
    default = "np"

    @property
    def shape(self) -> tuple[int, int]:
        """(num_mels, L) of a clip."""
        return self.log_mel.shape

    @property
    def sampling_rate(self) -> int:
        """Samples per second."""
        return self.log_mel.config.sampling_rate

    def check(self, output_type: str | None) -> str:
        """The output type, "np" if none is given."""
        check_choice("output_type", output_type or self.default, SOUND_TYPES)
        return output_type or self.default

    def waves(self, sounds: Any) -> Tensor:
        """Waves (B, T) of `Sounds` or of waves, checked."""
        if isinstance(sounds, Sounds) and sounds.sampling_rate != self.sampling_rate:
            raise UsageError(
                f"sounds must have {self.sampling_rate} samples per second, as in training; got "
                f"{sounds.sampling_rate}. Read them with that sampling_rate."
            )
        waves = torch.as_tensor(sounds.waves if isinstance(sounds, Sounds) else sounds)
        if waves.is_floating_point() and not bool((waves.isfinite() & (waves.abs() <= 1)).all()):
            raise UsageError("sounds must be waves in [-1, 1]; got values beyond or that are not finite.")
        return waves

    def tensors(self, sounds: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Standardised frames (B, num_mels, L) of sounds."""
        return self.log_mel.encode(self.waves(sounds)).to(device, dtype)

    def output(self, x: Tensor, output_type: str, labels: Tensor | None = None, iterations: int = 60) -> Any:
        """Sounds of frames (B, num_mels, L), by `iterations` of Griffin-Lim."""
        if output_type == "latent":
            return x
        waves = self.log_mel.decode(x.float(), iterations).cpu().numpy()
        if output_type == "np":
            return waves
        if output_type == "wav":
            return [wav_bytes(one, self.sampling_rate) for one in waves]
        known = None if labels is None else np.asarray(labels.cpu().numpy())
        return Sounds(waves, self.sampling_rate, known, None if labels is None else [*self.names])

    def answer(
        self, x: Tensor, output_type: str, labels: Tensor | None, return_dict: bool, iterations: int = 60
    ) -> Any:
        """What a call of a pipeline returns."""
        found = self.output(x, output_type, labels, iterations)
        return SoundOutput(found, self.sampling_rate) if return_dict else (found, self.sampling_rate)


def form_of(
    codec: Any, shape: tuple[int, ...], pipe: Any = None, *, unequal: bool = False
) -> ImageForm | SeriesForm | SoundForm:
    """What a network of inputs of a shape is of: time series or sounds by their codec, or images without one.

    Args:
        codec: a `SeriesScaler`, a `LogMel` or None.
        shape: (C, H, W) of images, (C, L) of sequences.
        pipe: the pipeline, whose classes have names; `None` (default): no classes.
        unequal: whether the network takes series of unequal lengths. Default False.

    Raises:
        UsageError: another codec, or inputs of another shape than its own.

    Example:
        >>> form_of(None, (1, 8, 8)).modality, form_of(LogMel(samples=1024), (80, 5)).modality
        ('image', 'sound')
    """
    if codec is None:
        if len(shape) != 3:
            raise UsageError("codec must be a SeriesScaler or a LogMel for a network of sequences; got None.")
        return ImageForm(shape)
    if not isinstance(codec, SeriesScaler | LogMel):
        raise UsageError(f"codec must be a SeriesScaler, a LogMel or None; got {type(codec).__name__}.")
    names = class_names(pipe)
    form = SeriesForm(codec, names, unequal) if isinstance(codec, SeriesScaler) else SoundForm(codec, names)
    if tuple(shape) != tuple(form.shape):
        raise UsageError(f"codec must be of sequences of the shape {tuple(shape)} of the network; got {form.shape}.")
    return form


def class_names(pipe: Any) -> tuple[str, ...]:
    """Names of the classes of a pipeline: those that it was given, or their indices.

    Example:
        >>> class_names(None)
        ()
    """
    named = None if pipe is None else pipe.config.get("label_names")
    count = 0 if pipe is None else pipe.num_classes or 0
    return tuple(named[str(i)] if named else str(i) for i in range(count))
