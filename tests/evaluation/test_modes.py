"""Mode coverage, stacked classes and the birthday test: closed forms, brute force, and what true samples score."""

import doctest
import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import latentia.evaluation.modes
from latentia.data import PLANES, load_images, stacked_images
from latentia.errors import NumericsError, UsageError
from latentia.evaluation import (
    birthday_test,
    load_extractor,
    mode_coverage,
    stacked_logits,
    stacked_modes,
    uint8_batches,
)
from latentia.evaluation.modes import PLANE_SAMPLES, STACKED_SAMPLES

RING, GRID = PLANES["ring"], PLANES["grid"]


def coverage(plane, points):
    return mode_coverage(points, plane.centres, plane.sigma)


def test_protocols_are_the_published_ones():
    assert (PLANE_SAMPLES, STACKED_SAMPLES) == (2500, 26_000)


@pytest.mark.parametrize("plane", [RING, GRID], ids=lambda plane: plane.name)
def test_true_samples_score_what_is_stated_of_them(plane):
    found = [coverage(plane, plane.sample(PLANE_SAMPLES, seed)) for seed in range(40)]
    total = len(plane.centres)
    assert all(modes.covered == modes.total == total and modes.n == 2500 for modes in found)
    assert found[0].real_high_quality == pytest.approx(1 - math.exp(-4.5), abs=1e-12)
    assert round(found[0].real_high_quality, 4) == 0.9889
    assert np.mean([modes.high_quality for modes in found]) == pytest.approx(0.9889, abs=0.0015)
    # to first order, what KL to the truth n true samples have
    for value, real in (("reverse_kl", "real_reverse_kl"), ("off_mode_kl", "real_off_mode_kl")):
        values = np.array([getattr(modes, value) for modes in found])
        assert values.mean() == pytest.approx(getattr(found[0], real), abs=4 * values.std() / 40**0.5)
    # the distance to the centre is Rayleigh's
    assert np.mean([modes.median_distance for modes in found]) == pytest.approx(
        float(plane.sigma[0, 0]) * math.sqrt(2 * math.log(2)), rel=0.01
    )


@pytest.mark.parametrize("dimension", [1, 2, 3, 16])
def test_high_quality_of_true_samples_follows_chi(dimension):
    centres = torch.zeros(1, dimension)
    points = torch.randn(4000, dimension, generator=torch.Generator().manual_seed(0))
    modes = mode_coverage(points, centres, 1.0, within=2.5)
    assert modes.real_high_quality == pytest.approx(scipy.stats.chi.cdf(2.5, dimension), rel=1e-9)
    assert modes.high_quality == pytest.approx(modes.real_high_quality, abs=0.03)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 30), st.integers(0, 10**6), st.booleans())
def test_coverage_against_a_plain_loop(total, dimension, n, seed, each):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(total, dimension, generator=generator, dtype=torch.float64)
    sigma = torch.rand(total, dimension, generator=generator, dtype=torch.float64) + 0.1 if each else torch.tensor(0.3)
    weights = torch.rand(total, generator=generator, dtype=torch.float64) + 0.1
    points = torch.randn(n, dimension, generator=generator, dtype=torch.float64)
    counts, missed, plain = [0] * total, 0, []
    for x in points.numpy():
        gaps = [(x - c) / s for c, s in zip(centres.numpy(), sigma.expand(total, dimension).numpy())]
        k = min(range(total), key=lambda k: np.linalg.norm(gaps[k]))
        plain.append(np.linalg.norm(x - centres[k].numpy()))
        if np.linalg.norm(gaps[k]) <= 2:
            counts[k] += 1
        else:
            missed += 1
    modes = mode_coverage(points, centres, sigma, weights=weights, within=2.0)
    hits, true = sum(counts), (weights / weights.sum()).numpy()
    assert modes.counts == counts and modes.covered == sum(c > 0 for c in counts)
    assert modes.high_quality == pytest.approx(hits / n)
    inside = scipy.stats.chi.cdf(2, dimension)
    expected = scipy.stats.entropy(np.array(counts) / hits, true) if hits else math.inf
    assert modes.reverse_kl == pytest.approx(expected, abs=1e-9)
    strict = scipy.stats.entropy(np.array([*counts, missed]) / n, np.array([*(inside * true), 1 - inside]))
    assert modes.off_mode_kl == pytest.approx(strict, abs=1e-9)
    assert modes.median_distance == pytest.approx(sorted(plain)[(n - 1) // 2])


def test_collapsed_blurred_and_missing_generators():
    collapsed = coverage(RING, RING.centres[[2]] + 0.001 * torch.randn(500, 2))
    assert (collapsed.covered, collapsed.high_quality) == (1, 1.0)
    assert collapsed.reverse_kl == pytest.approx(math.log(8))
    assert collapsed.counts == [0, 0, 500, 0, 0, 0, 0, 0]
    # Every mode is reached, evenly, by a tenth of the points: only the bin off all modes shows it.
    blurred = coverage(GRID, torch.cat([GRID.sample(1000, 0), GRID.sample(9000, 1) + 1.0]))
    assert blurred.covered == 25 and blurred.reverse_kl < 0.05 and blurred.high_quality == pytest.approx(0.1, abs=0.01)
    assert blurred.off_mode_kl > 3 and blurred.median_distance > 1
    nowhere = coverage(RING, torch.full((10, 2), 5.0))
    assert (nowhere.covered, nowhere.high_quality, nowhere.reverse_kl) == (0, 0.0, math.inf)
    assert nowhere.off_mode_kl == pytest.approx(math.log(1 / math.exp(-4.5)))


def test_unequal_modes_are_measured_by_their_shares():
    centres = torch.tensor([[0.0], [10.0]])
    points = torch.cat([torch.zeros(90, 1), torch.full((10, 1), 10.0)])
    assert mode_coverage(points, centres, 0.1, weights=torch.tensor([9.0, 1.0])).reverse_kl == pytest.approx(0)
    assert mode_coverage(points, centres, 0.1, weights=torch.tensor([1.0, 9.0])).reverse_kl > 1
    assert mode_coverage(points, centres, 0.1, weights=torch.tensor([1.0, 0.0])).reverse_kl == math.inf


def test_chunks_do_not_change_the_coverage(monkeypatch):
    points = GRID.sample(100, 0)
    whole = coverage(GRID, points)
    monkeypatch.setattr(latentia.evaluation.modes, "_CHUNK", 7)
    assert coverage(GRID, points) == whole


def test_bad_input_of_coverage_is_refused():
    centres, points = torch.zeros(2, 2), torch.zeros(5, 2)
    for arguments, named in [
        ((torch.zeros(5, 3), centres, 0.1), "points"),
        ((points, centres, 0.0), "sigma"),
        ((points, centres, torch.ones(2)), "sigma"),
        ((points, centres, torch.ones(3, 1)), "sigma"),
        ((points, centres, math.nan), "sigma"),
    ]:
        with pytest.raises(UsageError, match=named):
            mode_coverage(*arguments)
    with pytest.raises(UsageError, match="within"):
        mode_coverage(points, centres, 0.1, within=0)
    for weights in (torch.ones(3), -torch.ones(2), torch.zeros(2)):
        with pytest.raises(UsageError, match="weights"):
            mode_coverage(points, centres, 0.1, weights=weights)
    with pytest.raises(NumericsError, match="finite"):
        mode_coverage(points * math.nan, centres, 0.1)


# ------------------------------------------------------------------------------------------------- stacked classes


def one_hot(rows, classes=10):
    return torch.eye(classes)[torch.tensor(rows)]


def test_combinations_are_counted_first_channel_first():
    modes = stacked_modes(one_hot([[1, 2, 3], [1, 2, 3], [3, 2, 1], [0, 0, 0]]))
    assert (modes.covered, modes.total, modes.n) == (3, 1000, 4)
    assert {k: c for k, c in enumerate(modes.counts) if c} == {123: 2, 321: 1, 0: 1}
    assert modes.kl == pytest.approx(math.log(1000) - 1.5 * math.log(2), abs=1e-9)


def test_divergence_of_stacked_classes():
    every = torch.cartesian_prod(*[torch.arange(4)] * 3)
    assert stacked_modes(torch.eye(4)[every]).kl == 0
    assert stacked_modes(one_hot([[5, 5, 5]] * 30)).kl == pytest.approx(math.log(1000))
    draws = torch.randint(10, (STACKED_SAMPLES, 3), generator=torch.Generator().manual_seed(0))
    modes = stacked_modes(torch.eye(10)[draws])
    assert modes.covered == 1000 and modes.real_kl == pytest.approx(0.01921, abs=1e-5)
    assert modes.kl == pytest.approx(modes.real_kl, rel=0.2)
    assert stacked_modes(torch.eye(10)[draws], weights=torch.tensor(modes.counts)).kl == pytest.approx(0, abs=1e-12)


def test_stacked_digits_are_recognised_channel_by_channel():
    extractor = load_extractor("digits")
    data = stacked_images(load_images("digits"), n=300, seed=1)
    logits = stacked_logits(uint8_batches(data.images, 77), extractor)
    assert logits.shape == (300, 3, 10)
    place = torch.tensor([100, 10, 1])
    assert (((logits.argmax(2) * place).sum(1)) == data.labels).float().mean() > 0.95
    assert torch.equal(logits[:, 1], extractor(next(uint8_batches(data.images[:, 1:2]))).logits)
    assert stacked_modes(logits).covered > 200


def test_bad_input_of_stacked_modes_is_refused():
    for logits in (torch.zeros(5, 10), torch.zeros(0, 3, 10)):
        with pytest.raises(UsageError, match="logits"):
            stacked_modes(logits)
    with pytest.raises(NumericsError, match="finite"):
        stacked_modes(torch.full((2, 3, 10), math.nan))
    with pytest.raises(UsageError, match="weights"):
        stacked_modes(one_hot([[1, 2, 3]]), weights=torch.ones(10))
    extractor = load_extractor("digits")
    with pytest.raises(UsageError, match="images"):
        stacked_logits(torch.zeros(3, 8, 8), extractor)
    with pytest.raises(UsageError, match="empty"):
        stacked_logits([], extractor)
    with pytest.raises(UsageError, match="floats"):
        stacked_logits(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), extractor)


# ------------------------------------------------------------------------------------------------- birthdays


def test_the_birthday_test_finds_the_size_of_a_finite_support(monkeypatch):
    codes = torch.randn(400, 5, generator=torch.Generator().manual_seed(1))
    chosen = torch.randint(400, (1500,), generator=torch.Generator().manual_seed(2))
    test = birthday_test(codes[chosen], threshold=1e-6)
    counts = torch.bincount(chosen)
    assert test.duplicates == int((counts * (counts - 1) // 2).sum())
    assert test.support == pytest.approx(400, rel=0.1)
    assert test.batch == pytest.approx(1.1774 * 400**0.5, rel=0.05)
    # among that many draws two are equal about every other time
    draws = torch.randint(400, (2000, round(test.batch)), generator=torch.Generator().manual_seed(3)).sort(1).values
    assert float((draws.diff(dim=1) == 0).any(1).float().mean()) == pytest.approx(0.5, abs=0.06)
    monkeypatch.setattr(latentia.evaluation.modes, "_CHUNK", 64)
    assert birthday_test(codes[chosen], threshold=1e-6) == test


def test_the_birthday_test_without_duplicates_and_with_bad_input():
    assert birthday_test(torch.randn(50, 3), threshold=1e-9) == (0, math.inf, math.inf)
    assert birthday_test(torch.zeros(4, 3), threshold=1e-9).support == 1
    for features, threshold in ((torch.zeros(1, 3), 0.1), (torch.zeros(5, 3), 0.0), (torch.zeros(5, 3), math.nan)):
        with pytest.raises(UsageError, match="threshold"):
            birthday_test(features, threshold)


def test_examples_in_the_docstrings_run():
    result = doctest.testmod(latentia.evaluation.modes)
    assert result.attempted > 0 and result.failed == 0
