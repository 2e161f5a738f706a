"""Probes and path length: brute force, scikit-learn and scipy as oracles, real digits, closed forms."""

import doctest
import json
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, t
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn

import latentia.evaluation.representation.latent_space
import latentia.evaluation.representation.path_length
import latentia.evaluation.representation.probe_report
import latentia.evaluation.representation.probes
from latentia import DigitClassifier
from latentia.errors import DataError, NumericsError, UsageError
from latentia.evaluation import (
    Predictions,
    few_label_probe,
    knn_probe,
    linear_probe,
    load_extractor,
    perceptual_path_length,
    pixel_sums,
    probe_report,
    untrained_like,
)
from latentia.evaluation.representation.probes import _fit_linear, _interval, _probe

PROBES = (linear_probe, knn_probe, few_label_probe)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits():
    """All digits, (1797, 1, 8, 8) in [-1, 1], and their labels."""
    pixels, labels = load_digits(return_X_y=True)
    return torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 8 - 1, torch.from_numpy(labels)


def clouds(n=60, classes=3, apart=8.0, dimension=4, seed=0):
    labels = torch.arange(classes).repeat(n // classes)
    centres = apart * torch.randn(classes, dimension, generator=generator(seed + 1))
    return torch.randn(n, dimension, generator=generator(seed)) + centres[labels], labels


# -------------------------------------------------------------------------------------------------------- single probes


@pytest.mark.parametrize("probe", PROBES)
def test_labels_that_can_be_read_are_read_and_others_are_not(probe):
    few = {"n_few": 30} if probe is few_label_probe else {}
    codes, labels = clouds(300)
    assert probe(codes, labels, **few).mean == 1
    codes, labels = clouds(1500, apart=0.0)
    blind = probe(codes, labels, seeds=3, **few)
    assert blind.mean == pytest.approx(1 / 3, abs=0.06) and blind.low < 1 / 3 + 0.05


def test_linear_probe_is_the_stated_regression():
    """Few images in many dimensions, where the strength of the penalty matters."""
    codes, labels = clouds(30, apart=0.4, dimension=20)
    test_codes, test_labels = clouds(900, apart=0.4, dimension=20)
    scale = 10.0 ** torch.linspace(-3, 2, 20)
    codes, test_codes = codes * scale + 7, test_codes * scale + 7
    found = linear_probe(codes, labels, test=(test_codes, test_labels))
    mean, deviation = codes.double().mean(0).numpy(), codes.double().std(0, correction=0).numpy()

    def score(c):
        expected = LogisticRegression(C=c, max_iter=1000).fit((codes.double().numpy() - mean) / deviation, labels)
        return expected.score((test_codes.double().numpy() - mean) / deviation, test_labels)

    assert found.mean == pytest.approx(score(0.1), abs=0.0015) and 0.4 < found.mean < 0.95
    assert all(abs(found.mean - score(c)) > 0.003 for c in (0.01, 1.0))
    assert (found.n_train, found.n_test, len(found.values)) == (30, 900, 1)


def test_linear_probe_is_invariant_to_scale_and_shift():
    codes, labels = clouds(150, apart=0.8)
    moved = torch.cat([codes * torch.tensor([1e-4, 3.0, -200.0, 1.0]) - 5, torch.full((150, 1), 2.5)], 1)
    plain, other = linear_probe(codes, labels), linear_probe(moved, labels)
    assert plain.values == pytest.approx(other.values, abs=0.04)


def test_knn_probe_agrees_with_brute_force():
    codes, labels = clouds(90, apart=0.7)
    test_codes, test_labels = clouds(60, apart=0.7)
    test_codes = test_codes + 0.3 * torch.randn(60, 4, generator=generator(5))
    for k in (1, 3, 7):
        nearest = torch.cdist(test_codes.double(), codes.double()).argsort(1)[:, :k]
        votes = torch.nn.functional.one_hot(labels[nearest], 3).sum(1)
        clear = votes.amax(1) > votes.topk(2).values[:, 1]  # a tie may be broken either way
        right = votes.argmax(1) == test_labels
        found = knn_probe(codes, labels, k=k, test=(test_codes, test_labels)).mean * 60
        assert int((right & clear).sum()) <= round(found) <= int((right & clear).sum() + (~clear).sum())


def test_splits_are_stratified_and_disjoint():
    labels = torch.tensor([0] * 50 + [4] * 25)
    codes = torch.arange(75.0)[:, None]
    seen = []

    def fit(x, y, everything):
        def score(x_test, y_test):
            seen.append((x[:, 0], y, everything[:, 0], x_test[:, 0], y_test))
            return 0.5

        return score, ""

    _probe(fit, codes, labels, None, 3, 7)
    _probe(fit, codes, labels, None, 1, 7, 9)
    for x, y, everything, x_test, y_test in seen:
        assert not {*x} & {*x_test} and {*x} <= {*everything}
        assert np.bincount(y_test).tolist() == [10, 0, 0, 0, 5]
        assert (labels[x.astype(int)].numpy() == y).all() and (labels[x_test.astype(int)].numpy() == y_test).all()
    assert {*seen[0][3]} != {*seen[1][3]}
    assert np.bincount(seen[0][1]).tolist() == [40, 0, 0, 0, 20]
    assert np.bincount(seen[3][1]).tolist() == [5, 0, 0, 0, 4]  # nine labels, as many of each class as can be
    assert {*seen[3][3]} == {*seen[0][3]} and len(seen[3][2]) == 60  # same split; all codes give the scale


def test_few_labels_use_the_scale_of_all_codes():
    """A dimension that is narrow among the labelled few but wide elsewhere must not be blown up."""
    labels = torch.arange(2).repeat(500)
    codes = torch.randn(1000, 6, generator=generator()) * 0.1 + labels[:, None]
    codes[::20, 3] += 100.0  # of the first class
    assert few_label_probe(codes, labels, n_few=4).mean > 0.98


def test_few_label_probe_runs_each_seed_on_a_test_set():
    codes, labels = clouds(200, classes=2, apart=0.6)
    test = clouds(300, classes=2, apart=0.6)
    found = few_label_probe(codes, labels, n_few=6, test=test, seeds=6)
    assert len(found.values) == 6 and len({*found.values}) > 1 and found.n_test == 300 and found.n_train == 6


def test_the_same_seed_gives_the_same_numbers():
    codes, labels = clouds(150, apart=0.7)
    for probe in PROBES:
        few = {"n_few": 12} if probe is few_label_probe else {}
        assert probe(codes, labels, seed=3, **few) == probe(codes, labels, seed=3, **few)
    assert linear_probe(codes, labels, seed=3).values != linear_probe(codes, labels, seed=4).values


def test_intervals_agree_with_scipy():
    values = [0.8, 0.84, 0.79, 0.9]
    mean, low, high = _interval(values, 10**6)
    expected = t.interval(0.95, 3, np.mean(values), np.std(values, ddof=1) / 2)
    assert mean == pytest.approx(np.mean(values)) and (low, high) == pytest.approx(expected)
    # Runs that happen to agree do not make a small test set certain.
    assert _interval([0.5, 0.5, 0.5], 20) == _interval([0.5], 20)
    for k in (0, 3, 50):
        wilson = binomtest(k, 50).proportion_ci(method="wilson")
        mean, low, high = _interval([k / 50], 50)
        assert (mean, low, high) == pytest.approx((k / 50, wilson.low, wilson.high), abs=1e-7)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.integers(1, 10_000))
def test_intervals_hold_the_mean_and_stay_in_range(values, n):
    mean, low, high = _interval(values, n)
    assert 0 <= low <= mean + 1e-12 and mean - 1e-12 <= high <= 1


def test_a_regression_that_does_not_converge_is_noted(monkeypatch):
    codes, labels = clouds(150, apart=0.7)
    monkeypatch.setattr(latentia.evaluation.representation.probes, "MAX_ITER", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = linear_probe(codes, labels, seeds=2)
    assert found.note == "logistic regression had not converged after 2 iterations, so this is a lower bound"
    assert found.note in str(found)
    report = probe_report(lambda x: x, codes.clamp(-1, 1).view(-1, 1, 2, 2), labels, n_few=9, seeds=1)
    assert "raw pixels, linear: logistic regression had not converged" in report.text()
    monkeypatch.undo()
    assert linear_probe(codes, labels, seeds=2).note == ""


def test_real_digits_reach_what_is_known_of_them(digits):
    """Rows of the lecture: raw pixels reach about 0.96, sums of rows and columns less, kNN 0.98 to 0.99."""
    images, labels = digits
    raw = linear_probe(images.flatten(1), labels)
    assert 0.955 < raw.mean < 0.975 and raw.low < raw.mean < raw.high
    assert linear_probe(pixel_sums(images), labels).mean < raw.mean - 0.05
    assert 0.975 < knn_probe(images.flatten(1), labels, seeds=2).mean < 0.995
    few = few_label_probe(images.flatten(1), labels)
    assert 0.82 < few.mean < 0.92 and few.n_train == 100


# ----------------------------------------------------------------------------------------------------------- the report


def test_all_codes_of_a_report_meet_the_same_splits(digits):
    images, labels = digits[0][:300], digits[1][:300]
    report = probe_report(lambda x: x.flatten(1), images, labels, untrained=pixel_sums, seeds=2, n_few=20)
    assert report.codes["code"] == report.codes["raw pixels"]
    assert report.codes["untrained"] == report.codes["pixel sums"]
    assert report.dimensions == {"code": 64, "untrained": 16, "raw pixels": 64, "pixel sums": 16}
    assert report.codes["code"]["linear"] == linear_probe(images.flatten(1), labels, seeds=2)
    as_bytes = ((images + 1) * 127.5).round().byte()
    other = probe_report(lambda x: x.flatten(1), as_bytes, labels, seeds=2, n_few=20)
    assert other.codes["code"]["knn"].mean == pytest.approx(report.codes["code"]["knn"].mean, abs=0.02)


def test_a_trained_code_beats_its_baselines(digits):
    """The shipped extractor has seen these digits; its own held-out ones are too few for a test of this kind."""
    extractor = load_extractor("digits")
    images, labels = digits[0][:600], digits[1][:600]
    report = probe_report(
        lambda x: extractor(x)[0],
        images,
        labels,
        untrained=lambda x: untrained_like(extractor.model)(x).features,
        seeds=2,
    )
    best = report.codes["code"]["few labels"].mean
    assert all(
        best > report.codes[name]["few labels"].mean + 0.05 for name in ("untrained", "raw pixels", "pixel sums")
    )
    lines = report.text().splitlines()
    assert len(lines) == 5 and "100 labels" in lines[0] and lines[1].startswith("code ")
    assert f"{best:.3f} [" in lines[1]
    again = json.loads(json.dumps(report.to_dict()))
    assert again["codes"]["code"]["few labels"]["mean"] == best and again["seeds"] == 2


class Flat(DigitClassifier):
    """A network whose output is a code."""

    def forward(self, images):
        return super().forward(images).features


def test_a_network_is_compared_with_itself_untrained(digits):
    torch.manual_seed(3)
    model = Flat(sample_size=8, block_out_channels=(4,), feature_dim=7).eval()
    report = probe_report(model, digits[0][:200], digits[1][:200], seeds=1, n_few=20)
    assert report.dimensions["code"] == report.dimensions["untrained"] == 7
    with pytest.raises(UsageError, match=r"Call \.eval\(\)"):
        probe_report(model.train(), digits[0][:200], digits[1][:200])


def test_untrained_weights_are_fresh_and_reproducible():
    torch.manual_seed(3)
    model = DigitClassifier(sample_size=8, block_out_channels=(4,), feature_dim=7)
    state = torch.get_rng_state()
    first, again, other = untrained_like(model), untrained_like(model), untrained_like(model, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    weights = [network.to_logits.weight for network in (model, first, again, other)]
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[3])
    assert not first.training and first.config == model.config
    with pytest.raises(UsageError, match="pass it as `untrained`"):
        untrained_like(nn.Linear(2, 2))


def test_pixel_sums_are_rows_then_columns_of_each_channel():
    images = torch.arange(12.0).view(1, 2, 2, 3)
    assert pixel_sums(images).tolist() == [[3, 12, 3, 5, 7, 21, 30, 15, 17, 19]]


def test_wrong_arguments_of_probes_are_named(digits):
    codes, labels = clouds(60)
    for probe in PROBES:
        with pytest.raises(UsageError, match="an integer for each of the 60 codes"):
            probe(codes, labels[:-1])
        with pytest.raises(UsageError, match="an integer for each"):
            probe(codes, labels.float())
        with pytest.raises(UsageError, match=r"\(n, D\)"):
            probe(codes[:, 0], labels)
        with pytest.raises(UsageError, match=r"at least two classes. Got only 0"):
            probe(codes, torch.zeros(60, dtype=torch.long))
        with pytest.raises(UsageError, match="Class 7 has 2"):
            probe(codes, torch.where(torch.arange(60) < 2, 7, labels))
        with pytest.raises(NumericsError, match="finite"):
            probe(codes / 0, labels)
        with pytest.raises(UsageError, match="`seeds` must be at least 1"):
            probe(codes, labels, seeds=0)
        with pytest.raises(UsageError, match=r"dimension 4. Got 3"):
            probe(codes, labels, test=(codes[:, :3], labels))
        with pytest.raises(UsageError, match=r"only classes of `labels`. Got \[3\]"):
            probe(codes, labels, test=(codes, labels + 1))
    with pytest.raises(UsageError, match=r"`k` must be between 1 and .* 48. Got 49"):
        knn_probe(codes, labels, k=49)
    with pytest.raises(UsageError, match=r"`n_few` must be at least one of each of the 3 classes. Got 2"):
        few_label_probe(codes, labels, n_few=2)
    with pytest.raises(UsageError, match="at least 20 images of each class"):
        few_label_probe(codes, labels, n_few=60)
    images, labels = digits[0][:100], digits[1][:100]
    with pytest.raises(UsageError, match=r"`encode` must return a tensor .*tuple.*lambda"):
        probe_report(lambda x: (x,), images, labels)
    with pytest.raises(UsageError, match="`untrained` must return a tensor"):
        probe_report(pixel_sums, images, labels, untrained=lambda x: x[0], n_few=10)
    with pytest.raises(UsageError, match=r"\[-1, 1\]"):
        probe_report(pixel_sums, images * 8, labels)
    with pytest.raises(DataError, match="NaN"):
        probe_report(pixel_sums, images * math.nan, labels)
    assert callable(_fit_linear(codes.numpy(), np.arange(60) % 3, codes.numpy())[0])


# ---------------------------------------------------------------------------------------------------------- path length


class LinearFeatures:
    """Features that are a linear map of the pixels, in float64."""

    name, sha256, image_shape = "linear", "", (1, 2, 3)

    def __init__(self, matrix):
        self.matrix = matrix

    def __call__(self, images):
        features = images.double().flatten(1) @ self.matrix
        return Predictions(features, features)


def linear_decoder(matrix):
    return lambda z: (z.flatten(1) @ matrix).view(-1, 1, 2, 3)


def test_a_linear_path_through_linear_maps_has_its_closed_form():
    """g(z) = z A, f(x) = x B: the path is (b - a) A B per unit of t, whatever t and epsilon."""
    a, b = torch.randn(2, 700, 2, 2, generator=generator(), dtype=torch.float64)
    first, second = (
        torch.randn(4, 6, generator=generator(1)).double(),
        torch.randn(6, 5, generator=generator(2)).double(),
    )
    squares = ((b - a).flatten(1) @ first @ second).square().sum(1)
    for epsilon in (1e-4, 1e-2, 0.5):
        found = perceptual_path_length(linear_decoder(first), a, b, LinearFeatures(second), epsilon=epsilon)
        assert found.mean == pytest.approx(float(squares.mean()), rel=1e-7)
        assert found.standard_error == pytest.approx(float(squares.std() / 700**0.5), rel=1e-7)
        assert found.n == 700


def test_a_great_circle_is_passed_at_constant_speed():
    """Between unit vectors at the angle w a step is the chord 2 sin(w epsilon / 2), about w epsilon."""
    identity = torch.eye(6, dtype=torch.float64)
    for angle in (1e-3, 0.3, math.pi / 2, 3.0):
        a = torch.eye(6, dtype=torch.float64)[:1].repeat(50, 1)
        b = torch.zeros(50, 6, dtype=torch.float64)
        b[:, 0], b[:, 3] = math.cos(angle), math.sin(angle)
        found = perceptual_path_length(
            linear_decoder(identity), a, b, LinearFeatures(identity), mode="slerp", epsilon=0.1
        )
        assert found.mean == pytest.approx((2 * math.sin(angle * 0.05) / 0.1) ** 2, rel=1e-9)
        assert found.standard_error < 1e-8


def test_t_is_uniform_and_the_step_stays_on_the_path():
    """f(g(z)) = z^2 on the line from 0 to 1: the mean of (2 t + e)^2 over t in [0, 1 - e] is 1 + (1 - e)^2 / 3."""
    seen = []

    def decode(z):
        seen.append(z.flatten())
        return (z**2).view(-1, 1, 1, 1)

    class Pixel:
        def __call__(self, images):
            return Predictions(images.flatten(1), images.flatten(1))

    n, epsilon = 20_000, 0.1
    a = torch.zeros(n, 1, dtype=torch.float64)
    found = perceptual_path_length(decode, a, a + 1, Pixel(), epsilon=epsilon)
    assert found.mean == pytest.approx(1 + (1 - epsilon) ** 2 / 3, abs=4 * found.standard_error)
    assert 0 < found.standard_error < 0.01
    t_values = torch.cat(seen)
    assert 0 <= t_values.min() < 0.01 and 0.99 < t_values.max() <= 1


def test_a_cross_fade_between_distant_images_is_longer(digits):
    extractor = load_extractor("digits")
    images, labels = digits
    zeros, ones = images[labels == 0][:100], images[labels == 1][:100]
    within = perceptual_path_length(lambda x: x, zeros, zeros.flip(0), extractor)
    between = perceptual_path_length(lambda x: x, zeros, ones, extractor)
    assert between.mean > 2 * within.mean > 0
    assert between == perceptual_path_length(lambda x: x, zeros, ones, extractor)
    assert between != perceptual_path_length(lambda x: x, zeros, ones, extractor, seed=1)
    coarse = perceptual_path_length(lambda x: x, zeros, ones, extractor, epsilon=3e-3)
    assert coarse.mean == pytest.approx(between.mean, rel=0.1)


def test_wrong_arguments_of_path_length_are_named():
    extractor = load_extractor("digits")
    a, b = torch.rand(2, 4, 1, 8, 8, generator=generator()) - 0.5

    def length(a=a, b=b, **options):
        return perceptual_path_length(lambda x: x, a, b, extractor, **options)

    with pytest.raises(UsageError, match=r'`mode` must be lerp or slerp.*Did you mean "slerp"'):
        length(mode="slrp")
    with pytest.raises(UsageError, match=r"`epsilon` must be in \(0, 0.5\]. Got 0"):
        length(epsilon=0)
    with pytest.raises(UsageError, match="one shape"):
        length(b=b[:3])
    with pytest.raises(UsageError, match="n >= 2"):
        length(a=a[:1], b=b[:1])
    with pytest.raises(UsageError, match="Latents must be floats"):
        length(a=a.long())
    with pytest.raises(NumericsError, match="finite"):
        length(a=a / 0)
    with pytest.raises(UsageError, match="no direction"):
        length(a=a * 0, mode="slerp")
    with pytest.raises(UsageError, match="opposite"):
        length(b=-a, mode="slerp")
    with pytest.raises(UsageError, match=r"\[-1, 1\]"):
        length(a=a * 9)


@pytest.mark.parametrize(
    "module",
    [
        latentia.evaluation.representation.probes,
        latentia.evaluation.representation.latent_space,
        latentia.evaluation.representation.probe_report,
        latentia.evaluation.representation.path_length,
    ],
)
def test_docstrings(module):
    assert doctest.testmod(module).failed == 0
