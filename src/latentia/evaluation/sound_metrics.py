"""Metrics of sounds: each of generated clips and of held-out real ones, against those that were trained on.

Clips are seen as 40 log-mel bands of frames of 512 samples, 128 apart. A small network is trained to tell the classes
of the real clips; the classes that it gives to others are the class accuracy, and its last hidden layer is the feature
of a Frechet distance.
"""

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from latentia.errors import UsageError, did_you_mean
from latentia.evaluation.frechet import frechet_distance
from latentia.evaluation.metrics import Metric
from latentia.evaluation.small_networks import SequenceClassifier, fit_network, in_parts
from latentia.functional.spectrograms import log_mel, magnitudes, mel_filters

_FRAME, _HOP, _BANDS = 512, 128, 40
_STEPS = 400  # of the classifier
_DECIBELS = 20 / np.log(10)  # of a natural logarithm of an amplitude


class SoundSet:
    """Clips as metrics take them.

    Args:
        waves: float32 (N, T).
        sampling_rate: samples per second.
        labels: int64 (N,), or None.

    Example:
        >>> SoundSet(np.zeros((2, 1024), dtype=np.float32), 8000).frames.shape
        torch.Size([2, 40, 9])
    """

    def __init__(self, waves: np.ndarray, sampling_rate: int, labels: np.ndarray | None = None):
        self.waves, self.sampling_rate, self.labels = waves, sampling_rate, labels

    def __len__(self) -> int:
        return len(self.waves)

    @cached_property
    def frames(self) -> Tensor:
        """Log-mel frames, (N, 40, L)."""
        filters = mel_filters(_BANDS, _FRAME, self.sampling_rate)
        return in_parts(partial(log_mel, filters=filters, hop_length=_HOP), torch.from_numpy(self.waves).float())

    @cached_property
    def spectrum(self) -> Tensor:
        """Mean power of each frequency over all frames and clips in decibels, float64 (257,)."""
        power = in_parts(
            lambda waves: magnitudes(waves, _FRAME, _HOP).square().mean(2), torch.from_numpy(self.waves).float()
        )
        return 10 * power.double().mean(0).clamp(min=1e-8).log10()


class SoundClassifier:
    """A small network that tells the classes of real clips, and its features.

    Args:
        real: clips with labels that it is trained on.
        classes: how many there are.
        seed: of its weights and batches.
    """

    def __init__(self, real: SoundSet, classes: int, seed: int = 0):
        frames = real.frames
        self.mean, self.deviation = frames.mean((0, 2))[:, None], frames.std((0, 2))[:, None].clamp(min=1e-3)
        y = torch.as_tensor(real.labels).long()
        build = partial(SequenceClassifier, frames.shape[1], classes)
        self.network: Any = fit_network(build, self._scaled(frames), y, F.cross_entropy, steps=_STEPS, seed=seed)

    def _scaled(self, frames: Tensor) -> Tensor:
        return (frames - self.mean) / self.deviation

    def accuracy(self, sounds: SoundSet) -> float:
        """Share of clips whose label it gives."""
        found = in_parts(self.network, self._scaled(sounds.frames)).argmax(1)
        return float((found == torch.as_tensor(sounds.labels)).double().mean())

    def features(self, sounds: SoundSet) -> Tensor:
        """(N, 32), float64."""
        return in_parts(self.network.features, self._scaled(sounds.frames)).double()


class SoundPair:
    """Clips and what they are compared with.

    Args:
        sounds: n generated clips, or as many held-out ones for a real-data score.
        train: the clips that were trained on.
        classifier: of the classes of `train`; None without labels.
    """

    def __init__(self, sounds: SoundSet, train: SoundSet, classifier: SoundClassifier | None):
        self.sounds, self.train, self._classifier = sounds, train, classifier

    @property
    def classifier(self) -> SoundClassifier:
        if self._classifier is None:
            raise UsageError("clips must have labels for a classifier of them; leave such metrics out.")
        return self._classifier


def log_spectral_distance(a: SoundSet, b: SoundSet) -> float:
    """Root mean square difference over frequencies of the mean power spectra of two sets, in decibels.

    Example:
        >>> quiet = SoundSet(np.full((1, 1024), 0.1, dtype=np.float32), 8000)
        >>> round(log_spectral_distance(quiet, quiet), 6)
        0.0
    """
    return float((a.spectrum - b.spectrum).square().mean().sqrt())


def _metric(title: str, better: Any, value: Any, group: str, meaning: str, **more: Any) -> Metric:
    """A `Metric` whose value is a function of a `SoundPair`."""
    return Metric(title, better, value, group=group, meaning=meaning, **more)


SOUND_METRICS: dict[str, Metric] = {
    "log_spectral": _metric(
        "Log-spectral distance, dB",
        "lower",
        lambda pair: log_spectral_distance(pair.sounds, pair.train),
        "Spectrum",
        "Root mean square difference of the mean power spectra of all clips, over frequencies, in decibels.",
        headline=True,
    ),
    "class_accuracy": _metric(
        "Class accuracy",
        "higher",
        lambda pair: pair.classifier.accuracy(pair.sounds),
        "Classes",
        "Share of clips whose class a small network finds that was trained on the real clips.",
        needs=("labels",),
        headline=True,
    ),
    "sound_frechet": _metric(
        "Frechet distance of sounds",
        "lower",
        lambda pair: frechet_distance(*(pair.classifier.features(side) for side in (pair.sounds, pair.train))),
        "Features",
        "Of the 32 features of that network, between the clips and those that were trained on.",
        needs=("labels",),
        headline=True,
    ),
}


def check_sound_metrics(metrics: Sequence[str] | None, labels: bool = True) -> dict[str, Metric]:
    """The metrics of these keys; of None all that apply.

    Args:
        metrics: keys.
        labels: whether clips have labels.

    Raises:
        UsageError: an unknown key, or a metric that needs labels where there are none.

    Example:
        >>> [*check_sound_metrics(None, labels=False)]
        ['log_spectral']
    """
    for key in metrics or ():
        if key not in SOUND_METRICS:
            near = did_you_mean(key, SOUND_METRICS)
            raise UsageError(f'metrics of sounds are {", ".join(SOUND_METRICS)}; got "{key}".{near}')
        if not labels and SOUND_METRICS[key].needs:
            raise UsageError(f'The metric "{key}" needs labels, and these clips have none; leave it out.')
    return {key: SOUND_METRICS[key] for key in metrics or SOUND_METRICS if labels or not SOUND_METRICS[key].needs}
