"""Metrics of time series: closed forms of AR(2), known differences, masks, and small networks."""

import math

import numpy as np
import pytest
import torch

from latentia.data.shipped_series import simulate_ar2, sines_ar2
from latentia.errors import UsageError
from latentia.evaluation.series_metrics import (
    SERIES_METRICS,
    SeriesPair,
    SeriesSet,
    autocorrelation,
    autocorrelation_error,
    check_series_metrics,
    prediction_error,
    spectrum,
    spectrum_error,
)
from latentia.evaluation.small_networks import separability
from latentia.functional.autoregression import ar2_spectrum, fit_ar2

A, B = 0.9, -0.6


def ar2(count=1, steps=20_000, seed=0, a=A, b=B):
    values = simulate_ar2(np.full(count, a), np.full(count, b), steps, np.random.default_rng(seed))[:, None]
    return SeriesSet(values, np.full(count, steps))


def test_yule_walker_finds_the_coefficients():
    rho1 = A / (1 - B)
    exact = torch.tensor([rho1, A * rho1 + B], dtype=torch.float64)
    a1, a2, noise = fit_ar2(exact).tolist()
    assert math.isclose(a1, A) and math.isclose(a2, B)
    assert math.isclose(noise, (1 + B) * ((1 - B) ** 2 - A**2) / (1 - B))  # of variance 1
    found = fit_ar2(torch.from_numpy(autocorrelation(ar2(), 2)[:, 1:]))[0]
    assert abs(found[0] - A) < 0.03 and abs(found[1] - B) < 0.03
    with pytest.raises(UsageError, match="must be below 1 at lag 1"):
        fit_ar2(torch.tensor([1.0, 1.0]))


def test_the_spectrum_of_ar2_is_its_closed_form():
    rho1 = A / (1 - B)
    a1, a2, noise = fit_ar2(torch.tensor([rho1, A * rho1 + B], dtype=torch.float64))
    frequencies = torch.linspace(-0.5, 0.5, 4001, dtype=torch.float64)
    density = ar2_spectrum(a1, a2, noise, frequencies)
    assert abs(torch.trapezoid(density, frequencies) - 1) < 1e-6  # the variance
    peak = frequencies[density.argmax()].abs()
    assert abs(math.cos(2 * math.pi * peak) - A * (B - 1) / (4 * B)) < 1e-3  # Box and Jenkins, section 3.2
    found = spectrum(ar2(400, 256))[0]
    closed = ar2_spectrum(a1, a2, noise, torch.linspace(0, 0.5, 129, dtype=torch.float64))
    assert np.abs(found - (closed / closed.sum()).numpy()).sum() < 0.1


def test_errors_are_0_of_equal_series_and_1_of_disjoint_spectra():
    series = ar2(50, 64)
    assert autocorrelation_error(series, series) == spectrum_error(series, series) == 0
    slow, fast = (SeriesSet(np.cos(w * np.pi * np.arange(64))[None, None], np.array([64])) for w in (0.125, 0.5))
    assert abs(spectrum_error(slow, fast) - 1) < 1e-9
    assert abs(autocorrelation_error(slow, SeriesSet(-slow.values, slow.lengths))) < 1e-12
    assert autocorrelation_error(ar2(200, 64), ar2(200, 64, seed=1, b=-0.2)) > 5 * autocorrelation_error(
        ar2(200, 64), ar2(200, 64, seed=1)
    )


def test_padding_counts_for_nothing():
    series = ar2(6, 40)
    lengths = np.array([40, 30, 20, 40, 10, 25])
    spoilt = SeriesSet(np.where(np.arange(40) < lengths[:, None, None], series.values, 1e6), lengths)
    clean = SeriesSet(np.where(np.arange(40) < lengths[:, None, None], series.values, 0), lengths)
    scale = clean.centres()
    assert np.array_equal(spoilt.centres(), scale)
    assert np.array_equal(autocorrelation(spoilt.scaled(*scale)), autocorrelation(clean.scaled(*scale)))
    assert np.array_equal(spectrum(spoilt.scaled(*scale)), spectrum(clean.scaled(*scale)))
    assert torch.equal(spoilt.scaled(*scale).tensor(), clean.scaled(*scale).tensor())


def test_networks_tell_other_series_and_not_the_same():
    real, same, other = ar2(120, 32), ar2(120, 32, seed=1), ar2(120, 32, seed=2, a=0.0, b=0.5)
    assert separability(real.tensor(), other.tensor(), steps=60) > 0.85
    assert abs(separability(real.tensor(), same.tensor(), steps=60) - 0.5) < 0.15
    assert prediction_error(same, real) < 0.8 * prediction_error(other, real)
    noise = (1 + B) * ((1 - B) ** 2 - A**2) / (1 - B)
    best = math.sqrt(noise * 2 / math.pi)  # mean absolute value of e_t
    assert 0.97 * best < prediction_error(ar2(200, 40, seed=3), real) < 1.1 * best


def test_a_pair_is_standardised_by_the_series_trained_on():
    values, _ = sines_ar2(40, 16)
    shifted = SeriesSet(5 + 3 * values, np.full(40, 16))
    pair = SeriesPair(shifted.take(20), shifted, shifted, shifted)
    assert abs(pair.train.values.mean()) < 1e-12 and abs(pair.train.values.std() - 1) < 1e-12
    assert SERIES_METRICS["spectrum"].value(pair) < 0.2
    with pytest.raises(UsageError, match=r"metrics of series are autocorrelation.*Did you mean"):
        check_series_metrics(["spectrm"])
