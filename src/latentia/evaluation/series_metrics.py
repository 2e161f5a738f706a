r"""Metrics of time series: each of generated series and of held-out real ones, against those that were trained on.

Series are standardised by mean and deviation of those trained on, so that values of channels are alike.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from latentia.errors import UsageError, did_you_mean
from latentia.evaluation.metrics import Metric
from latentia.evaluation.small_networks import fit_network, in_parts, separability

LAGS = 32  # of the autocorrelation curve, at most
_ORDER = 8  # steps from which the next one is predicted
_MOST = 4000  # series of a side that networks take, and windows


class SeriesSet:
    """Series as metrics take them.

    Args:
        values: float64 (N, C, L); what lies beyond the end of a series is not looked at.
        lengths: int64 (N,).

    Example:
        >>> SeriesSet(np.ones((3, 1, 4)), np.array([4, 4, 2])).there.sum()
        np.int64(10)
    """

    def __init__(self, values: np.ndarray, lengths: np.ndarray):
        self.values, self.lengths = values, lengths

    def __len__(self) -> int:
        return len(self.values)

    @property
    def there(self) -> np.ndarray:
        """True for steps that are there, (N, L)."""
        return np.arange(self.values.shape[2]) < self.lengths[:, None]

    def take(self, count: int) -> "SeriesSet":
        """The first so many."""
        return SeriesSet(self.values[:count], self.lengths[:count])

    def centres(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of each channel, (C, 1) each."""
        known = self.values.transpose(0, 2, 1)[self.there]
        deviation = known.std(0)
        return known.mean(0)[:, None], np.where(deviation > 0, deviation, 1)[:, None]

    def scaled(self, mean: np.ndarray, deviation: np.ndarray) -> "SeriesSet":
        """Standardised values, 0 beyond the ends."""
        values = np.where(self.there[:, None], (self.values - mean) / deviation, 0)
        return SeriesSet(values, self.lengths)

    def tensor(self, most: int = _MOST) -> torch.Tensor:
        """Values and, as one more channel, which steps are there: float32 (N, C + 1, L)."""
        part = self.take(most)
        return torch.from_numpy(np.concatenate([part.values, part.there[:, None]], 1)).float()


class SeriesPair:
    """Series and what they are compared with, standardised.

    Args:
        series: n generated series, or as many held-out ones for a real-data score.
        train: the series that were trained on.
        held_out: series that were not.
        many: more generated series, to train predictors on; those trained on for the real-data score.
        seed: of networks.
    """

    def __init__(self, series: SeriesSet, train: SeriesSet, held_out: SeriesSet, many: SeriesSet, seed: int = 0):
        scale = train.centres()
        self.series, self.train = series.scaled(*scale), train.scaled(*scale)
        self.held_out, self.many = held_out.scaled(*scale), many.scaled(*scale)
        self.seed = seed

    @cached_property
    def accuracy(self) -> float:
        """Of a classifier of the series and of real ones."""
        length = max(side.values.shape[2] for side in (self.series, self.train))
        real, made = (_padded(side.tensor(), length) for side in (self.train, self.series))
        return separability(real, made, seed=self.seed)


def autocorrelation(series: SeriesSet, lags: int = LAGS) -> np.ndarray:
    r"""\(\rho_k = \gamma_k / \gamma_0\) of standardised series, for k = 0 to `lags`, (C, lags + 1).

    \(\gamma_k\) is the mean of \(x_t x_{t+k}\) over all series and steps.

    Example:
        >>> wave = np.sin(np.pi / 2 * np.arange(400))[None, None]
        >>> np.round(autocorrelation(SeriesSet(wave, np.array([400])), 4), 1).tolist()
        [[1.0, 0.0, -1.0, 0.0, 1.0]]
    """
    x, there = series.values, series.there
    lags = min(lags, x.shape[2] - 1)
    found = np.empty((x.shape[1], lags + 1))
    for k in range(lags + 1):
        both = (there[:, k:] & there[:, : x.shape[2] - k])[:, None]
        products = np.where(both, x[:, :, k:] * x[:, :, : x.shape[2] - k], 0)
        found[:, k] = products.sum((0, 2)) / max(int(both.sum()), 1)
    return found / np.maximum(found[:, :1], 1e-12) + 0.0


def spectrum(series: SeriesSet) -> np.ndarray:
    """Mean periodogram of standardised series, divided by its sum: (C, L // 2 + 1). Ends are filled up with zeros."""
    power = np.abs(np.fft.rfft(series.values, axis=2)) ** 2 / series.lengths[:, None, None]
    mean = power.mean(0)
    return mean / np.maximum(mean.sum(1, keepdims=True), 1e-12)


def autocorrelation_error(series: SeriesSet, reference: SeriesSet) -> float:
    """Mean absolute difference of the autocorrelations at lags 1 to 32, over channels."""
    one, other = (autocorrelation(side)[:, 1:] for side in (series, reference))
    lags = min(one.shape[1], other.shape[1])
    return float(np.abs(one[:, :lags] - other[:, :lags]).mean())


def spectrum_error(series: SeriesSet, reference: SeriesSet) -> float:
    """Half the sum of the absolute differences of the normalised spectra, in [0, 1], mean over channels."""
    length = max(side.values.shape[2] for side in (series, reference))
    sides = []
    for side in (series, reference):
        missing = length - side.values.shape[2]
        sides.append(spectrum(SeriesSet(np.pad(side.values, ((0, 0), (0, 0), (0, missing))), side.lengths)))
    return float(0.5 * np.abs(sides[0] - sides[1]).sum(1).mean())


def prediction_error(train: SeriesSet, test: SeriesSet, seed: int = 0) -> float:
    """Mean absolute error at real series of a small network, trained on others, that predicts the next step.

    It predicts all channels from the 8 steps before, or as many as the series have.

    Args:
        train: series that it is trained on.
        test: real series.
        seed: of the network.
    """
    order = min(_ORDER, train.values.shape[2] - 1, test.values.shape[2] - 1)
    (x, y), (test_x, test_y) = (_next_steps(side, order, seed) for side in (train, test))

    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 64), nn.SiLU(), nn.Linear(64, y.shape[1]))

    network = fit_network(build, x, y, F.l1_loss, steps=600, seed=seed)
    return float((in_parts(network, test_x) - test_y).abs().mean())


def _next_steps(series: SeriesSet, order: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows of steps (M, C, order) and the step that follows, (M, C), spread evenly over series and steps."""
    starts = series.values.shape[2] - order
    rows, begins = np.nonzero(series.there[:, order:][:, :starts])
    chosen = np.random.default_rng(seed).permutation(len(rows))[: 5 * _MOST]
    rows, begins = rows[chosen], begins[chosen]
    steps = begins[:, None] + np.arange(order + 1)
    windows = torch.from_numpy(series.values[rows[:, None], :, steps].transpose(0, 2, 1)).float()
    return windows[:, :, :-1], windows[:, :, -1]


def _padded(x: torch.Tensor, length: int) -> torch.Tensor:
    return F.pad(x, (0, length - x.shape[2]))


def _metric(title: str, better: Any, value: Any, group: str, meaning: str, **more: Any) -> Metric:
    """A `Metric` whose value is a function of a `SeriesPair`."""
    return Metric(title, better, value, group=group, meaning=meaning, **more)


SERIES_METRICS: dict[str, Metric] = {
    "autocorrelation": _metric(
        "Autocorrelation error",
        "lower",
        lambda pair: autocorrelation_error(pair.series, pair.train),
        "Second order",
        "Mean absolute difference of the autocorrelation curves of all series, lags 1 to 32.",
        headline=True,
    ),
    "spectrum": _metric(
        "Spectrum error",
        "lower",
        lambda pair: spectrum_error(pair.series, pair.train),
        "Second order",
        "Half the sum of the absolute differences of the mean periodograms, each of sum 1: 0 is equal, 1 is disjoint.",
        headline=True,
    ),
    "discriminative": _metric(
        "Discriminative score",
        "lower",
        lambda pair: abs(pair.accuracy - 0.5),
        "Networks",
        "Distance from .5 of the accuracy of a small convolutional network that tells the series from real ones.",
        headline=True,
    ),
    "predictive": _metric(
        "Predictive score",
        "lower",
        lambda pair: prediction_error(pair.many, pair.held_out, pair.seed),
        "Networks",
        "Mean absolute error at held-out series of a network, trained on the series, that predicts the next step.",
        headline=True,
    ),
}


def check_series_metrics(metrics: Sequence[str] | None) -> dict[str, Metric]:
    """The metrics of these keys; all of None.

    Raises:
        UsageError: an unknown key.

    Example:
        >>> [*check_series_metrics(["spectrum"])]
        ['spectrum']
    """
    for key in metrics or ():
        if key not in SERIES_METRICS:
            near = did_you_mean(key, SERIES_METRICS)
            raise UsageError(f'metrics of series are {", ".join(SERIES_METRICS)}; got "{key}".{near}')
    return {key: SERIES_METRICS[key] for key in metrics or SERIES_METRICS}
