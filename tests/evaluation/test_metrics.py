"""Distances, scores and counts: closed forms, brute force and independent oracles."""

import doctest
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import latentia.evaluation.classes
import latentia.evaluation.frechet
import latentia.evaluation.frechet_uncertainty
import latentia.evaluation.kernel
from latentia.errors import NumericsError, UsageError
from latentia.evaluation import (
    Moments,
    class_counts,
    class_divergence,
    class_entropies,
    frechet_distance,
    frechet_distance_infinity,
    frechet_distance_of_gaussians,
    frechet_interval,
    inception_score,
    kernel_distance,
    kernel_distance_with_error,
    missing_classes,
    moments_of,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def spd(dimension, seed):
    root = randn(dimension, dimension, seed=seed)
    return root @ root.T / dimension


def rotation(dimension, seed=7):
    return torch.linalg.qr(randn(dimension, dimension, seed=seed))[0]


# ------------------------------------------------------------------------------------------------- Frechet distance


@pytest.mark.parametrize("dimension, shift, sigma", [(1, 0.5, 2.0), (3, -1.0, 0.25), (16, 0.1, 1.0), (64, 2.0, 0.0)])
def test_isotropic_gaussians_have_their_closed_form(dimension, shift, sigma):
    mean, identity = torch.full((dimension,), shift, dtype=torch.float64), torch.eye(dimension, dtype=torch.float64)
    value = frechet_distance_of_gaussians(torch.zeros_like(mean), identity, mean, sigma**2 * identity)
    assert value == pytest.approx(dimension * (shift**2 + (1 - sigma) ** 2), abs=1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_general_gaussians_agree_with_the_matrix_square_root(seed):
    mean_a, mean_b, a, b = randn(12, seed=seed), randn(12, seed=seed + 10), spd(12, seed), spd(12, seed + 20)
    cross = scipy.linalg.sqrtm((a @ b).numpy()).real
    expected = float((mean_a - mean_b).square().sum() + a.trace() + b.trace()) - 2 * np.trace(cross)
    assert frechet_distance_of_gaussians(mean_a, a, mean_b, b) == pytest.approx(expected, abs=1e-8)


def test_rank_deficient_covariances():
    """tr (S_a^1/2 S_b S_a^1/2)^1/2 is the sum of the singular values of A^T B for any A A^T = S_a, B B^T = S_b."""
    a, b = randn(12, 5, seed=1), randn(12, 8, seed=2)
    expected = float(a.square().sum() + b.square().sum() - 2 * torch.linalg.svdvals(a.T @ b).sum())
    value = frechet_distance_of_gaussians(torch.zeros(12), a @ a.T, torch.zeros(12), b @ b.T)
    assert value == pytest.approx(expected, rel=1e-7)


def test_frechet_distance_is_symmetric_and_invariant_to_rotation():
    a, b, turn = randn(200, 10, seed=1), 2 * randn(300, 10, seed=2) + 0.3, rotation(10)
    distance = frechet_distance(a, b)
    assert distance > 1
    assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-10)
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(distance, rel=1e-10)
    assert 0 <= frechet_distance(a, a.flip(0)) < 1e-10
    assert 0 <= frechet_distance(a[:3], a[:3]) < 1e-10  # n < D: the covariance has rank 2


def test_chunks_give_the_moments_of_the_whole():
    features = 1e6 + randn(1000, 6, seed=3) @ spd(6, 4)
    streamed = Moments()
    for chunk in features.split(37):
        streamed.update(chunk)
    assert streamed.n == 1000
    assert torch.allclose(streamed.mean, features.mean(0), rtol=1e-14)
    assert torch.allclose(streamed.covariance, features.T.cov(), rtol=1e-8, atol=1e-9)
    other = randn(50, 6, seed=5)
    assert frechet_distance(streamed, other) == pytest.approx(frechet_distance(features, other), rel=1e-12)


def test_moments_of_two_processes_merge():
    features, parts = randn(90, 4), [Moments(), Moments()]
    parts[0].update(features[:31])
    parts[1].update(features[31:])
    parts[0].merge(parts[1].n, parts[1].mean, parts[1].scatter)
    assert parts[0].n == 90
    assert torch.allclose(parts[0].covariance, features.T.cov(), rtol=1e-12)


@pytest.mark.parametrize("n, chunk", [(5, 5), (5, 2), (11, 4), (12, 12), (12, 5), (13, 5), (40, 7), (40, 40)])
def test_moments_from_rows_and_from_a_scatter_matrix(n, chunk):
    features = randn(n, 12, seed=n) + 3
    moments = Moments()
    for part in features.split(chunk):
        moments.update(part)
    assert moments.n == n and bool(moments._rows) is (n <= 12)
    assert torch.allclose(moments.mean, features.mean(0), rtol=1e-13)
    assert torch.allclose(moments.covariance, features.T.cov(), rtol=1e-12, atol=1e-13)
    assert torch.allclose(moments.factor @ moments.factor.T, features.T.cov(), rtol=1e-11, atol=1e-12)
    assert moments.factor.shape[1] <= min(n - 1, 12)
    features.zero_()  # what is kept is no view of it
    assert moments.mean.min() > 1


def test_moments_keep_counting_after_they_were_read(monkeypatch):
    features, moments = randn(700, 5, seed=1), Moments()
    monkeypatch.setattr(latentia.evaluation.frechet, "_BLOCK", 2)
    for part in features.split([3, 1, 200, 496]):
        moments.update(part)
        if moments.n > 1:
            assert torch.allclose(moments.factor @ moments.factor.T, features[: moments.n].T.cov(), atol=1e-12)
    assert torch.allclose(moments.scatter, features.T.cov() * 699, rtol=1e-12, atol=1e-9)
    merged = moments_of(features[:2])
    merged.merge(0, torch.zeros(5), torch.zeros(5, 5))
    rest = moments_of(features[2:])
    merged.merge(rest.n, rest.mean, rest.scatter)
    assert merged.n == 700 and torch.allclose(merged.covariance, features.T.cov(), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("n_a, n_b", [(2, 2), (2, 50), (7, 9), (9, 7), (19, 20), (20, 21), (60, 8), (200, 30)])
def test_fewer_images_than_dimensions_need_no_covariance(n_a, n_b, monkeypatch):
    a, b = randn(n_a, 20, seed=n_a), 1.5 * randn(n_b, 20, seed=100 + n_b) + 0.2
    expected = frechet_distance_of_gaussians(a.mean(0), a.T.cov(), b.mean(0), b.T.cov())
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)
    if max(n_a, n_b) <= 20:
        monkeypatch.setattr(Moments, "scatter", property(lambda self: pytest.fail("a D x D matrix was formed")))
        frechet_distance(a, b)


@pytest.mark.parametrize("apart", [1e-2, 1e-4, 1e-6, 1e-7])
@pytest.mark.parametrize("condition", [1.0, 1e4])
def test_nearly_equal_gaussians_lose_no_digits(apart, condition):
    """Covariances with common eigenvectors: the distance is the sum of (sqrt a_i - sqrt b_i)^2."""
    turn = rotation(24)
    a = torch.logspace(0, -math.log10(condition), 24, dtype=torch.float64)
    b = a * (1 + apart * randn(24, seed=3)) ** 2
    covariances = [(turn * values) @ turn.T for values in (a, b)]
    covariances = [(matrix + matrix.T) / 2 for matrix in covariances]
    zero = torch.zeros(24)
    exact = float((a.sqrt() - b.sqrt()).square().sum())
    value = frechet_distance_of_gaussians(zero, covariances[0], zero, covariances[1])
    assert value == pytest.approx(exact, rel=max(1e-10, 1e-13 * condition**0.5 / apart))
    assert 0 <= frechet_distance_of_gaussians(zero, covariances[0], zero, covariances[0]) < 1e-13


@pytest.mark.parametrize("kind", ["falling", "rising", "two levels", "one large"])
@pytest.mark.parametrize("decades", [0, 2, 4, 6])
def test_ill_conditioned_covariances_keep_nine_digits(kind, decades):
    """Against the singular values of the data's own triangular factors, which never square a small number."""
    dimension = 40
    scales = {
        "falling": torch.logspace(0, -decades, dimension, dtype=torch.float64),
        "rising": torch.logspace(-decades, 0, dimension, dtype=torch.float64),
        "two levels": torch.tensor([1.0, 10.0**-decades], dtype=torch.float64).repeat_interleave(dimension // 2),
        "one large": torch.tensor([10.0**-decades] * 20 + [1.0] + [10.0**-decades] * 19, dtype=torch.float64),
    }[kind]
    a, b = randn(160, dimension, seed=1) * scales, 1.2 * randn(200, dimension, seed=2) * scales
    factors = [torch.linalg.qr((x - x.mean(0)) / math.sqrt(len(x) - 1))[1] for x in (a, b)]
    left, _, right = torch.linalg.svd(factors[0] @ factors[1].T)
    apart = (factors[0] - (left @ right) @ factors[1]).square().sum()
    exact = float((a.mean(0) - b.mean(0)).square().sum() + apart)
    assert frechet_distance(a, b) == pytest.approx(exact, rel=1e-9)


def test_both_forms_of_the_distance_are_taken_and_agree(monkeypatch):
    decompose, calls = torch.linalg.svd, []
    monkeypatch.setattr(torch.linalg, "svd", lambda *args, **rest: calls.append(1) or decompose(*args, **rest))
    a, b = randn(300, 10, seed=1), 1.3 * randn(300, 10, seed=2)
    quick = frechet_distance(a, b)
    assert not calls
    monkeypatch.setattr(latentia.evaluation.frechet, "_TOLERANCE", 0.0)
    assert frechet_distance(a, b) == pytest.approx(quick, rel=1e-12) and len(calls) == 1
    assert frechet_distance(a[:6], b[:9]) == pytest.approx(frechet_distance(b[:9], a[:6]), rel=1e-12)
    few = [(x - x.mean(0)).T / math.sqrt(len(x) - 1) for x in (a[:6], b[:9])]
    nuclear = torch.linalg.svdvals(few[0].T @ few[1]).sum()
    exact = (a[:6].mean(0) - b[:9].mean(0)).square().sum() + sum(x.square().sum() for x in few) - 2 * nuclear
    assert frechet_distance(a[:6], b[:9]) == pytest.approx(float(exact), rel=1e-12)


@given(
    st.integers(2, 12), st.integers(2, 12), st.integers(1, 6), st.integers(0, 1000), st.sampled_from([1e-6, 1.0, 1e6])
)
@settings(max_examples=40, deadline=None)
def test_frechet_distance_is_a_squared_metric(n, m, dimension, seed, scale):
    a, b, c = (scale * randn(rows, dimension, seed=seed + i) for i, rows in enumerate((n, m, n + m)))
    ab, ba, bc, ac = (frechet_distance(*pair) for pair in ((a, b), (b, a), (b, c), (a, c)))
    assert min(ab, bc, ac) >= 0 and ab == pytest.approx(ba, rel=1e-8, abs=1e-20 * scale**2)
    assert math.sqrt(ac) <= (math.sqrt(ab) + math.sqrt(bc)) * (1 + 1e-8)
    assert frechet_distance(a, a) <= 1e-20 * scale**2
    assert frechet_distance(a, a + scale) == pytest.approx(dimension * scale**2, rel=1e-9)


@pytest.mark.parametrize("n", [2, 30])
def test_constant_features_have_a_distance(n):
    constant, spread = torch.ones(n, 4), randn(50, 4)
    assert frechet_distance(constant, 3 * constant) == 16
    expected = (1 - spread.mean(0)).square().sum() + spread.T.cov().trace()
    assert frechet_distance(constant, spread) == pytest.approx(float(expected), rel=1e-12)


def test_agreement_with_torchmetrics_given_the_same_module():
    fid = pytest.importorskip("torchmetrics.image.fid")

    class Pixels(torch.nn.Module):
        num_features = 12

        def forward(self, images):
            return images.flatten(1)

    a, b = randn(150, 3, 2, 2, seed=1), 1.1 * randn(260, 3, 2, 2, seed=2) + 0.1
    metric = fid.FrechetInceptionDistance(feature=Pixels()).set_dtype(torch.float64)
    metric.update(a, real=True)
    for part in b.split(100):
        metric.update(part, real=False)
    assert frechet_distance(a.flatten(1), b.flatten(1)) == pytest.approx(float(metric.compute()), rel=1e-6)


# ----------------------------------------------------------------------------------------- how sure a distance is


def exact_reference(covariance):
    """Moments of a Gaussian about 0 that is known exactly."""
    reference = Moments()
    reference.merge(10**12, torch.zeros(len(covariance), dtype=torch.float64), covariance * (10**12 - 1))
    return reference


@pytest.mark.parametrize("points", [2, 3, 5])
def test_the_extrapolated_distance_is_nearly_unbiased(points):
    reference, true = exact_reference(torch.eye(16, dtype=torch.float64)), 16 * (0.2**2 + 0.2**2)
    samples = [1.2 * randn(800, 16, seed=i) + 0.2 for i in range(30)]
    plain = torch.tensor([frechet_distance(x, reference) for x in samples])
    infinite = torch.tensor([frechet_distance_infinity(x, reference, points=points, seed=1) for x in samples])
    assert plain.mean() > true + 0.08
    assert abs(infinite.mean() - true) < 0.02 + 3 * infinite.std() / math.sqrt(30)
    assert infinite.std() < 1.3 * plain.std()
    assert frechet_distance_infinity(samples[0], reference, seed=1) == frechet_distance_infinity(
        samples[0], reference, seed=1
    )


def test_a_line_through_two_points_is_the_distance_less_its_bias():
    """points = 2: FD of all, and the mean of the two halves; the line is read off at 2 FD - mean of halves."""
    features, real = randn(60, 3, seed=1) + 1, randn(90, 3, seed=2)
    order = torch.randperm(
        60, generator=generator(latentia.evaluation.frechet_uncertainty.seed_from(5, "frechet distance infinity"))
    )
    halves = [frechet_distance(features[half], real) for half in order.split(30)]
    expected = 2 * frechet_distance(features, real) - sum(halves) / 2
    assert frechet_distance_infinity(features, real, points=2, seed=5) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n, dimension", [(50, 7), (6, 9)])
def test_resamples_are_counted_as_often_as_they_were_drawn(n, dimension):
    features, real = randn(n, dimension, seed=1) + 2, randn(80, dimension, seed=2)
    distance = latentia.evaluation.frechet_uncertainty._weighted_distance(features, real)
    drawn = torch.randint(n, (n,), generator=generator())
    value = distance(torch.bincount(drawn, minlength=n).double())
    assert value == pytest.approx(frechet_distance(features[drawn], real), rel=1e-7)


@pytest.mark.parametrize("shift, scale", [(1.0, 1.0), (0.4, 1.3)])
def test_the_interval_covers_the_expected_distance(shift, scale):
    """The expected FD at this n, known from fresh draws; the raw resamples' own range lies too high and misses it."""
    reference, n, trials = moments_of(randn(3000, 3, seed=999)), 60, 60
    fresh = [frechet_distance(scale * randn(n, 3, seed=5000 + i) + shift, reference) for i in range(400)]
    expected = sum(fresh) / len(fresh)
    intervals = [
        frechet_interval(scale * randn(n, 3, seed=i) + shift, reference, resamples=50, confidence_level=0.9, seed=i)
        for i in range(trials)
    ]
    hits = sum(low <= expected <= high for low, high in intervals)
    assert 0.78 <= hits / trials <= 0.98
    width = sum(high - low for low, high in intervals) / trials
    assert width == pytest.approx(2 * 1.645 * torch.tensor(fresh).std().item(), rel=0.2)
    middle = sum(low + high for low, high in intervals) / trials / 2
    assert middle == pytest.approx(expected, abs=0.35 * torch.tensor(fresh).std().item())


@pytest.mark.parametrize(
    "covariance", [-torch.eye(3), torch.eye(3) + torch.ones(3, 3).triu(1), math.nan * torch.eye(3)]
)
def test_what_is_no_covariance_is_refused(covariance):
    with pytest.raises(NumericsError, match="covariance_b"):
        frechet_distance_of_gaussians(torch.zeros(3), torch.eye(3), torch.zeros(3), covariance)


# --------------------------------------------------------------------------------- kernel distance, inception score


def test_kernel_distance_equals_its_definition_term_by_term():
    a, b = randn(7, 3, seed=1), randn(5, 3, seed=2) + 1

    def k(x, y):
        return float(x @ y / 3 + 1) ** 3

    within = [
        sum(k(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j) / len(s) / (len(s) - 1)
        for s in (a, b)
    ]
    expected = sum(within) - 2 * sum(k(x, y) for x in a for y in b) / 35
    assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_kernel_distance_is_unbiased_where_frechet_is_not():
    pairs = [(randn(30, 8, seed=2 * i), randn(30, 8, seed=2 * i + 1)) for i in range(200)]
    kernel = torch.tensor([kernel_distance(*pair) for pair in pairs])
    assert abs(kernel.mean()) < 4 * kernel.std() / math.sqrt(200)
    assert min(frechet_distance(*pair) for pair in pairs) > 0.3


def test_kernel_distance_does_not_depend_on_blocks(monkeypatch):
    a, b = randn(40, 3, seed=1), randn(25, 3, seed=2) + 1
    whole, equal = kernel_distance_with_error(a, b), kernel_distance(a, a)
    # A set and itself are two samples with every image in common: the diagonal counts between them, not within.
    kernel = (a @ a.T / 3 + 1) ** 3
    off = (kernel.sum() - kernel.trace()) / (40 * 39)
    assert equal == pytest.approx(float(2 * off - 2 * kernel.mean()), rel=1e-10)
    monkeypatch.setattr(latentia.evaluation.kernel, "_BLOCK", 7)
    assert kernel_distance_with_error(a, b) == pytest.approx(whole, rel=1e-12)
    assert whole.value == pytest.approx(kernel_distance(a, b), rel=1e-12)


@pytest.mark.parametrize("n, m, shift, scale", [(60, 60, 0, 1), (100, 40, 0, 1), (80, 80, 0.7, 1), (50, 100, 0.3, 1.3)])
def test_the_error_of_a_kernel_distance_is_its_spread(n, m, shift, scale):
    draws = [
        kernel_distance_with_error(scale * randn(n, 6, seed=2 * i) + shift, randn(m, 6, seed=2 * i + 1))
        for i in range(250)
    ]
    values, errors = torch.tensor(draws, dtype=torch.float64).unbind(1)
    assert float(errors.square().mean().sqrt()) == pytest.approx(float(values.std()), rel=0.2)
    assert errors.min() > 0


def test_a_common_offset_of_features_keeps_the_error():
    """As features after a rectifier have it: the terms of both samples nearly cancel, and a wrong factor shows.

    Where the distributions agree the error is about a fifth too large, as the larger of two estimates is taken.
    """
    draws = [kernel_distance_with_error(*(randn(100, 6, seed=2 * i + k) + 4 for k in (0, 1))) for i in range(250)]
    values, errors = torch.tensor(draws, dtype=torch.float64).unbind(1)
    assert 1 < float(errors.square().mean().sqrt() / values.std()) < 1.4


def test_inception_score_of_constant_and_balanced_predictions():
    assert inception_score(randn(1, 10).expand(200, 10))[0] == pytest.approx(1, abs=1e-12)
    certain = 1e4 * torch.eye(10).repeat(20, 1)
    assert inception_score(certain, splits=1)[0] == pytest.approx(10, abs=1e-9)
    mean, deviation = inception_score(certain, splits=10)
    assert 6 < mean < 10 and 0 < deviation < 1.5  # tenths of 20 images are not balanced


def test_inception_score_of_two_classes_by_hand():
    # p(c|x) = (.9, .1) and (.1, .9), p(c) = (.5, .5): KL = .9 ln 1.8 + .1 ln .2 for either image
    logits = torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64).log()
    expected = math.exp(0.9 * math.log(1.8) + 0.1 * math.log(0.2))
    assert inception_score(logits, splits=1)[0] == pytest.approx(expected, rel=1e-12)


def test_inception_score_does_not_depend_on_the_order():
    sorted_by_class = 1e4 * torch.eye(10).repeat_interleave(100, 0)
    cycling = 1e4 * torch.eye(10).repeat(100, 1)
    assert inception_score(sorted_by_class)[0] > 9
    assert inception_score(cycling)[0] > 9


def test_entropies_have_their_closed_forms():
    balanced, single = class_entropies(1e4 * torch.eye(10)), class_entropies(1e4 * torch.eye(10)[:1].repeat(5, 1))
    assert balanced["marginal_entropy"] == pytest.approx(math.log(10), abs=1e-12)
    assert single["marginal_entropy"] == 0
    unsure = class_entropies(torch.zeros(4, 10))
    assert unsure["entropy"] == pytest.approx(math.log(10), abs=1e-12)
    assert unsure["confidence"] == pytest.approx(0.1, abs=1e-12)
    assert balanced["entropy"] == 0 and balanced["confidence"] == 1


# -------------------------------------------------------------------------------------------------------- bad input


def test_distances_refuse_what_they_cannot_measure():
    good, nan = randn(5, 3), randn(5, 3)
    nan[1, 1] = math.nan
    for distance in (frechet_distance, kernel_distance):
        with pytest.raises(NumericsError, match="1 of 5"):
            distance(good, nan)
        with pytest.raises(UsageError, match="Got 1"):
            distance(good, good[:1])
        with pytest.raises(UsageError, match="3 and 2"):
            distance(good, good[:, :2])
        with pytest.raises(UsageError, match="shape"):
            distance(good, good[0])
    with pytest.raises(UsageError, match="n >= 2"):
        frechet_distance(Moments(), good)
    for splits in (0, 6):
        with pytest.raises(UsageError, match=f"Got {splits}"):
            inception_score(good, splits)
    with pytest.raises(UsageError, match="Got 2"):
        moments = Moments()
        moments.update(good)
        moments.update(good[:, :2])


def test_uncertainty_refuses_what_it_cannot_measure():
    good = randn(40, 3)
    with pytest.raises(UsageError, match=r"`points`.*Got 1"):
        frechet_distance_infinity(good, good, points=1)
    with pytest.raises(UsageError, match=r"2 \* points = 42.*Got 40"):
        frechet_distance_infinity(good, good, points=21)
    for level in (0, 1, 95):
        with pytest.raises(UsageError, match=f"`confidence_level`.*Got {level}"):
            frechet_interval(good, good, confidence_level=level)
    with pytest.raises(UsageError, match=r"`resamples`.*Got 2"):
        frechet_interval(good, good, resamples=2)
    with pytest.raises(UsageError, match="Got 3"):
        kernel_distance_with_error(good, good[:3])
    for measure in (frechet_distance_infinity, frechet_interval):
        with pytest.raises(UsageError, match="3 and 2"):
            measure(good, good[:, :2])
        with pytest.raises(UsageError, match="Got 1"):
            measure(good, good[:1])
        with pytest.raises(UsageError, match="Got 1"):
            measure(good[:1], good)
        with pytest.raises(NumericsError, match="40 of 40"):
            measure(good * math.nan, good)


# ---------------------------------------------------------------------------------------------------------- classes


def test_class_counts_count_every_class():
    assert class_counts(torch.eye(4)[[1, 1, 3]]) == [0, 2, 0, 1]


def test_class_divergence_has_its_closed_forms_and_its_direction():
    def logits(*counts):
        return torch.eye(len(counts)).repeat_interleave(torch.tensor(counts), 0)

    a, b = logits(6, 2, 2), logits(2, 2, 1)
    p, q = torch.tensor([0.6, 0.2, 0.2]).double(), torch.tensor([0.4, 0.4, 0.2]).double()
    assert class_divergence(a, b) == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-6)
    assert class_divergence(b, a) == pytest.approx(float((q * (q / p).log()).sum()), rel=1e-6)
    assert class_divergence(a, logits(12, 4, 4)) == 0
    # Half of the classes at random is ln 2, and finite; classes that real images lack count half an image.
    assert class_divergence(logits(5, 5, 0, 0), logits(9, 9, 9, 9)) == pytest.approx(math.log(2), rel=1e-12)
    assert class_divergence(logits(0, 4), logits(3, 0)) == pytest.approx(math.log(3.5 / 0.5), rel=1e-12)
    assert missing_classes(logits(5, 0, 0, 1), logits(1, 2, 0, 0)) == [1]
    assert missing_classes(logits(1, 1), logits(5, 5)) == []
    for measure in (class_divergence, missing_classes):
        with pytest.raises(UsageError, match="2 and 3"):
            measure(logits(1, 1), logits(1, 1, 1))
        with pytest.raises(NumericsError, match="1 of 2"):
            measure(torch.tensor([[math.nan, 1], [0, 1]]), logits(1, 1))


# --------------------------------------------------------------------------------------------------------- examples


@pytest.mark.parametrize(
    "module",
    [
        latentia.evaluation.classes,
        latentia.evaluation.frechet,
        latentia.evaluation.frechet_uncertainty,
        latentia.evaluation.kernel,
    ],
)
def test_documented_examples_run(module):
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0
