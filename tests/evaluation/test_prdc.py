"""Nearest neighbours, Vendi score and fresh classifiers: brute force, closed forms, and sets that are known copies."""

import doctest
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits
from sklearn.neighbors import NearestNeighbors

import latentia.evaluation.diversity
import latentia.evaluation.prdc
import latentia.evaluation.two_sample
from latentia.errors import DataError, NumericsError, UsageError
from latentia.evaluation import (
    augment_with_synthetic,
    authenticity,
    memorisation,
    nearest,
    precision_recall,
    train_on_synthetic,
    two_sample_test,
    vendi_score,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks so small that every kind of block and group is met."""
    for name, value in (("_ROWS", 13), ("_COLUMNS", 50), ("_SQUARE", 17), ("_GROUP", 4)):
        monkeypatch.setattr(latentia.evaluation.prdc, name, value)


# ---------------------------------------------------------------------------------------------------- neighbours


@pytest.mark.parametrize("n, m, k", [(1, 1, 1), (5, 300, 7), (200, 60, 1), (130, 133, 3), (20, 8, 8)])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_neighbours_are_those_of_brute_force(small_blocks, n, m, k, offset):
    queries, points = randn(n, 4, seed=1) + offset, randn(m, 4, seed=2) + offset
    distances, indices = nearest(queries, points, k)
    whole = cdist(queries.numpy(), points.numpy())
    assert np.array_equal(indices.numpy(), np.argsort(whole, axis=1, kind="stable")[:, :k])
    assert np.allclose(distances.numpy(), np.sort(whole, axis=1)[:, :k], rtol=1e-12)
    assert distances.dtype == torch.float64


@pytest.mark.parametrize("n, k", [(2, 1), (60, 59), (150, 2), (151, 5)])
def test_self_is_excluded_but_a_duplicate_is_not(small_blocks, n, k):
    points = randn(n, 3, seed=1)
    distances, indices = nearest(points, points, k, exclude_self=True)
    expected = NearestNeighbors(n_neighbors=k).fit(points.numpy()).kneighbors()
    assert np.allclose(distances.numpy(), expected[0], rtol=1e-12) and np.array_equal(indices.numpy(), expected[1])
    points[-1] = points[0]
    distances, indices = nearest(points, points, 1, exclude_self=True)
    assert distances[0, 0] == 0 and indices[0, 0] == n - 1 and indices[-1, 0] == 0


def test_whole_blocks_and_groups_are_searched():
    points = randn(2500, 3, seed=1)
    distances, indices = nearest(points, points, 4, exclude_self=True)
    expected = NearestNeighbors(n_neighbors=4).fit(points.numpy()).kneighbors()
    assert np.allclose(distances.numpy(), expected[0], rtol=1e-12) and np.array_equal(indices.numpy(), expected[1])
    there, where = nearest(points[:700] + 0.01, points, 4)
    expected = NearestNeighbors(n_neighbors=4).fit(points.numpy()).kneighbors(points[:700].numpy() + 0.01)
    assert np.allclose(there.numpy(), expected[0], rtol=1e-12) and np.array_equal(where.numpy(), expected[1])


def test_float32_features_are_compared_in_float64():
    points = (1000 + randn(400, 5, seed=1)).float()
    distances, indices = nearest(points, points.flip(0))
    assert (distances == 0).all() and torch.equal(indices[:, 0], torch.arange(399, -1, -1))


# ---------------------------------------------------------------- precision, recall, density and coverage


def brute_force(real, fake, k, density_k):
    """The definitions, ball by ball."""
    real_own, fake_own, cross = cdist(real, real), cdist(fake, fake), cdist(real, fake)
    for own in (real_own, fake_own):
        np.fill_diagonal(own, np.inf)
    real_ball, dense_ball = np.sort(real_own)[:, k - 1], np.sort(real_own)[:, density_k - 1]
    fake_ball = np.sort(fake_own)[:, k - 1]
    precise = sum(any(cross[i, j] <= real_ball[i] for i in range(len(real))) for j in range(len(fake)))
    recalled = sum(any(cross[i, j] <= fake_ball[j] for j in range(len(fake))) for i in range(len(real)))
    inside = sum(cross[i, j] <= dense_ball[i] for i in range(len(real)) for j in range(len(fake)))
    covered = sum(min(cross[i]) <= dense_ball[i] for i in range(len(real)))
    return precise / len(fake), recalled / len(real), inside / (density_k * len(fake)), covered / len(real)


@pytest.mark.parametrize("n, m, k, density_k", [(60, 60, 3, 5), (40, 90, 1, 2), (90, 37, 4, 1), (20, 19, 18, 19)])
def test_prdc_density_and_coverage_are_those_of_brute_force(small_blocks, n, m, k, density_k):
    real, fake = randn(n, 3, seed=1), 0.8 * randn(m, 3, seed=2) + 0.4
    found = precision_recall(real=real, fake=fake, k=k, density_k=density_k)
    assert found == pytest.approx(brute_force(real.numpy(), fake.numpy(), k, density_k), abs=1e-12)


def test_precision_is_not_recall():
    real = randn(400, 4, seed=1)
    narrow = precision_recall(real=real, fake=0.2 * randn(400, 4, seed=2))
    assert narrow.precision > 0.99 and narrow.recall < 0.2 and narrow.density > 0.9 and narrow.coverage < 0.5
    wide = precision_recall(real=real, fake=4 * randn(400, 4, seed=2))
    assert wide.precision < 0.4 and wide.recall > 0.8 and wide.density < 0.3
    with pytest.raises(TypeError):
        precision_recall(real, real)
    backwards = precision_recall(real=0.2 * randn(400, 4, seed=2), fake=real)
    assert (backwards.precision, backwards.recall) == (narrow.recall, narrow.precision)


def test_a_dropped_mode_lowers_recall_and_coverage_alone():
    def blobs(counts, seed):
        return torch.cat([randn(n, 2, seed=seed + i) + 20 * i for i, n in enumerate(counts)])

    found = precision_recall(real=blobs([100, 100, 100], 1), fake=blobs([150, 150], 9))
    assert found.precision > 0.9 and found.density > 0.8
    assert 0.5 < found.recall < 0.67 and 0.5 < found.coverage < 0.67


def test_copies_and_repeated_images_lie_in_their_balls():
    real = randn(100, 3, seed=1) * 1e3
    assert precision_recall(real=real, fake=real.flip(0))[:2] == (1, 1)
    itself = precision_recall(real=real, fake=real)  # each closed ball holds its own image and five others
    assert itself.coverage == 1 and itself.density == pytest.approx(6 / 5, abs=1e-12)
    single = real[:1].expand(50, 3)  # radius 0 around each fake image: it recalls itself alone
    found = precision_recall(real=real, fake=single)
    assert found.precision == 1 and found.recall == pytest.approx(0.01)
    assert precision_recall(real=single, fake=single) == (1, 1, 50 / 5, 1)


# ---------------------------------------------------------------- what a float32 first pass must not change


def shell(n, d, seed, spread=1e-9):
    """n points at distances 1 + spread * (0, 1, ...) from the origin, shuffled: in float32 all are equally far."""
    direction = randn(n, d, seed=seed)
    direction /= direction.norm(dim=1, keepdim=True)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).double()
    return direction * (1 + spread * order)[:, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-140, 1.0, 1e140])
@pytest.mark.parametrize("case", ["near", "apart", "outlier", "duplicates", "many dimensions"])
def test_the_bounds_hold(case, scale, dtype):
    d = 3000 if case == "many dimensions" else 20
    x, y = randn(60, d, seed=1), randn(50, d, seed=2)
    if case == "apart":
        y += 1e4
    elif case == "outlier":
        x[7] *= 1e6
    elif case == "duplicates":
        y[:30] = x[:30]
    for a, b in ((x * scale, y * scale), (x * scale,) * 2):
        bounds = latentia.evaluation.prdc._Bounds(a, b, dtype)
        # float64 is too coarse to check its own roundings, so the truth is taken in numpy's 80 bits
        u, v = (z.numpy().astype(np.longdouble) * bounds.unit for z in (a, b))
        exact = np.square(u[:, None] - v[None]).sum(2)
        slack = bounds.e * (bounds.norm_x[:, None] + bounds.norm_y).numpy()
        for rows, columns, low in bounds.blocks(25, 25):
            low, true = low.numpy().astype(np.longdouble), exact[rows, columns]
            assert (low <= true).all() and (true <= low + 2 * slack[rows, columns]).all()
        assert bounds.e < (3 + d) * 2e-7


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_neighbours_that_are_equal_in_float32(offset):
    points = torch.cat([shell(3000, 24, seed) + offset + 50 * seed for seed in (0, 1)])
    queries = torch.stack([torch.full((24,), offset + 50 * seed, dtype=torch.float64) for seed in (0, 1)])
    distances, indices = nearest(queries, points, 4)
    whole = cdist(queries.numpy(), points.numpy())
    assert np.array_equal(indices.numpy(), np.argsort(whole, axis=1)[:, :4])
    assert np.allclose(distances.numpy(), np.sort(whole, axis=1)[:, :4], rtol=1e-13)


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_images_at_the_edge_of_a_ball(small_blocks, offset):
    """Fake images on the very rims of real balls, and 1e-10 of the radius to either side of them."""
    real = 10 * randn(90, 12, seed=1)
    radius = np.sort(cdist(real, real))[:, 3]  # of the third neighbour, after the point itself
    away = randn(90, 12, seed=2)
    away /= away.norm(dim=1, keepdim=True)
    shift = torch.tensor([-1e-10, 1e-10, 0.1]).double().repeat(30)
    fake = real + away * (torch.from_numpy(radius) * (1 + shift))[:, None]
    real, fake = real + offset, fake + offset
    found = precision_recall(real=real, fake=fake, k=3, density_k=3)
    assert found == pytest.approx(brute_force(real.numpy(), fake.numpy(), 3, 3), abs=1e-12)
    swapped = precision_recall(real=fake, fake=real, k=3, density_k=2)
    assert swapped == pytest.approx(brute_force(fake.numpy(), real.numpy(), 3, 2), abs=1e-12)


def test_distant_sets_of_different_scale_match_brute_force(small_blocks):
    real = torch.cat([randn(60, 5, seed=1), 1e5 * randn(3, 5, seed=2), randn(40, 5, seed=3) + 1e4])
    for fake in (real[30:90] + 1e-7 * randn(60, 5, seed=4), real.flip(0)[:50] * 1.001, real[:1].repeat(20, 1)):
        found = precision_recall(real=real, fake=fake, k=3, density_k=5)
        assert found == pytest.approx(brute_force(real.numpy(), fake.numpy(), 3, 5), abs=1e-12)


def test_a_product_with_fewer_digits_than_float32_is_not_trusted():
    first_pass = latentia.evaluation.prdc._first_pass
    assert first_pass() == torch.float32
    torch.set_float32_matmul_precision("medium")
    try:
        assert first_pass() == torch.float64
        points = shell(200, 4, 1)
        assert np.allclose(nearest(points[:5], points, 3)[0], np.sort(cdist(points[:5], points))[:, :3], atol=1e-15)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_balls_refuse_what_they_cannot_measure():
    good = randn(8, 3)
    for k, density_k, name in ((0, 5, "k"), (8, 5, "k"), (3, 0, "density_k"), (3, 8, "density_k")):
        with pytest.raises(
            UsageError, match=f"`{name}` must be between 1 and .* 7. Got {k if name == 'k' else density_k}"
        ):
            precision_recall(real=good, fake=good, k=k, density_k=density_k)
    with pytest.raises(UsageError, match=r"`k`.* 2. Got 3"):
        precision_recall(real=good, fake=good[:3])
    with pytest.raises(UsageError, match=r"`real` and `fake`.*3 and 2"):
        precision_recall(real=good, fake=good[:, :2])
    with pytest.raises(NumericsError, match="1 of 8"):
        precision_recall(real=good, fake=torch.where(good == good[0, 0], math.nan, good))
    for k, exclude in ((0, False), (9, False), (8, True)):
        with pytest.raises(UsageError, match=f"`k`.*Got {k}"):
            nearest(good, good, k, exclude_self=exclude)
    with pytest.raises(UsageError, match="8 and 7"):
        nearest(good, good[:7], exclude_self=True)


# -------------------------------------------------------------------------------------------------- memorisation


def test_authenticity_is_its_definition(small_blocks):
    fake, train = randn(80, 3, seed=1), randn(120, 3, seed=2)
    own, cross = cdist(train, train), cdist(fake, train)
    np.fill_diagonal(own, np.inf)
    expected = np.mean([row.min() > own[row.argmin()].min() for row in cross])
    assert authenticity(fake=fake, train=train) == pytest.approx(expected, abs=1e-12)


def test_copies_are_found_and_held_out_images_are_none():
    train, held_out, fresh = randn(1500, 6, seed=1).split(500)
    assert authenticity(fake=train[:200], train=train) == 0
    assert memorisation(fake=train[:200], train=train, held_out=held_out) == (0, 1)
    neutral = memorisation(fake=fresh, train=train, held_out=held_out)
    assert neutral.ratio == pytest.approx(1, abs=0.08) and neutral.copied < 0.04
    near_copies = train + 1e-3 * randn(500, 6, seed=9)
    assert authenticity(fake=near_copies, train=train) == 0
    assert memorisation(fake=near_copies, train=train, held_out=held_out).copied == 1
    tenth = torch.cat([train[:50], fresh[:450]])  # too few copies for a median
    mixed = memorisation(fake=tenth, train=train, held_out=held_out)
    assert mixed.ratio > 0.85 and 0.1 <= mixed.copied < 0.14
    leaked = torch.cat([held_out[:490], train[:10]])  # the nearest 1 % of these are at distance 0
    assert memorisation(fake=train, train=train, held_out=leaked).copied == 1
    far = memorisation(fake=5 * fresh, train=train, held_out=held_out)
    assert far.ratio > 2 and far.copied < 0.01


def test_the_ratio_is_one_of_medians():
    train = torch.tensor([[0.0], [100.0]])
    found = memorisation(fake=torch.tensor([[1.0], [3.0], [80.0]]), train=train, held_out=torch.tensor([[6.0]] * 3))
    assert found.ratio == pytest.approx(0.5) and found.copied == pytest.approx(2 / 3)


def test_memorisation_refuses_what_it_cannot_measure():
    train = randn(50, 3)
    with pytest.raises(DataError, match=r"`held_out`.*not in `train`"):
        memorisation(fake=train, train=train, held_out=train[:30])
    with pytest.raises(UsageError, match=r"at least 2.*Got 1"):
        authenticity(fake=train, train=train[:1])
    with pytest.raises(UsageError, match="3 and 2"):
        authenticity(fake=train, train=train[:, :2])


# --------------------------------------------------------------------------------------------------------- Vendi


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_vendi_score_is_the_entropy_of_the_similarity_matrix(n, dimension, seed):
    features = 10 * randn(n, dimension, seed=seed)
    unit = features / features.norm(dim=1, keepdim=True)
    values = np.linalg.eigvalsh((unit @ unit.T / n).numpy()).clip(1e-300)
    value = vendi_score(features)
    assert value == pytest.approx(np.exp(-(values * np.log(values)).sum()), rel=1e-9)
    assert 1 - 1e-9 <= value <= min(n, dimension) + 1e-9
    assert vendi_score(features.repeat(3, 1) * 1e3) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("n, dimension", [(7, 7), (5, 9), (40, 5)])
def test_vendi_score_counts_orthogonal_images(n, dimension):
    assert vendi_score(torch.ones(n, dimension)) == pytest.approx(1, abs=1e-12)
    features = torch.eye(dimension)[torch.arange(n) % dimension] * torch.arange(1, n + 1)[:, None]
    assert vendi_score(features) == pytest.approx(min(n, dimension), rel=1e-12)
    # two directions, one with a share of 3/4
    skewed = torch.eye(dimension)[[0, 0, 0, 1]]
    assert vendi_score(skewed) == pytest.approx(0.75**-0.75 * 0.25**-0.25, rel=1e-12)


def test_vendi_score_does_not_depend_on_chunks_or_scale(monkeypatch):
    features = randn(100, 6, seed=1)
    whole = vendi_score(features)
    monkeypatch.setattr(latentia.evaluation.diversity, "_CHUNK", 7)
    assert vendi_score(features) == pytest.approx(whole, rel=1e-12)
    assert vendi_score(features * 1e-200) == pytest.approx(whole, rel=1e-9)
    with pytest.raises(UsageError, match="1 of 100"):
        vendi_score(torch.cat([features[1:], torch.zeros(1, 6)]))
    with pytest.raises(NumericsError, match="100 of 100"):
        vendi_score(features * math.nan)


# -------------------------------------------------------------------------------------------- fresh classifiers


def test_two_sample_test_of_equal_and_of_other_distributions():
    real, fake = randn(400, 5, seed=1), randn(300, 5, seed=2)
    same = two_sample_test(real=real, fake=fake)
    assert same.n_test == 300 and same.low < 0.5 < same.high and same.low < same.accuracy < same.high
    shifted = two_sample_test(real=real, fake=fake + 1)
    # Bayes accuracy of two unit Gaussians at distance sqrt(5) is Phi(sqrt(5) / 2) = 0.868
    assert shifted.low < 0.868 < shifted.high
    assert two_sample_test(real=real, fake=fake + 1, seed=1) != shifted
    assert two_sample_test(real=real, fake=fake + 1) == shifted
    images = two_sample_test(real=real[:, :4].reshape(400, 1, 2, 2), fake=fake[:, :4].reshape(300, 1, 2, 2) + 9)
    assert images.accuracy == 1 and images.high == 1 and images.low > 0.98


def test_the_test_halves_are_not_trained_on():
    """60 noise images in 50 dimensions are separable by heart; only unseen ones show that nothing was learned."""
    accuracies = [
        two_sample_test(real=randn(60, 50, seed=i), fake=randn(60, 50, seed=100 + i)).accuracy for i in range(10)
    ]
    assert 0.4 < sum(accuracies) / 10 < 0.6


def test_the_interval_is_that_of_clopper_and_pearson():
    from scipy.stats import beta

    result = two_sample_test(real=randn(100, 2, seed=1), fake=randn(100, 2, seed=2) + 1, confidence_level=0.9)
    right = round(result.accuracy * 100)
    assert result.low == pytest.approx(beta.ppf(0.05, right, 100 - right + 1))
    assert result.high == pytest.approx(beta.ppf(0.95, right + 1, 100 - right))


@pytest.fixture(scope="module")
def digits():
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(pixels).float()[order] / 8 - 1, torch.from_numpy(labels)[order]


def test_train_on_synthetic_of_real_and_of_mislabelled_digits(digits):
    pixels, labels = digits
    parts = dict(zip(("synthetic", "real", "test"), pixels.split([600, 700, 497])))
    classes = dict(zip(("synthetic_labels", "real_labels", "test_labels"), labels.split([600, 700, 497])))
    good = train_on_synthetic(**parts, **classes)
    assert good.n_train == 600 and good.real > 0.9 and good.synthetic > 0.98 * good.real
    more = augment_with_synthetic(**parts, **classes)
    assert (more.n_real, more.n_synthetic) == (100, 600) and more.augmented > more.real + 0.03
    wrong = {**classes, "synthetic_labels": (classes["synthetic_labels"] + 1) % 10}
    bad = train_on_synthetic(**parts, **wrong)
    assert bad.synthetic < 0.1 and bad.real == good.real
    assert augment_with_synthetic(**parts, **wrong).augmented < 0.3


def test_classifiers_refuse_what_they_cannot_learn(digits):
    good, labels = randn(40, 3), torch.arange(40) % 2
    with pytest.raises(UsageError, match=r"at least 20.*Got 18"):
        two_sample_test(real=good, fake=good[:19])
    with pytest.raises(UsageError, match=r"`real`, `fake`.*equal shape"):
        two_sample_test(real=good, fake=good[:, :2])
    with pytest.raises(UsageError, match="Got 95"):
        two_sample_test(real=good, fake=good, confidence_level=95)
    with pytest.raises(NumericsError, match="40 of 40"):
        two_sample_test(real=good, fake=good * math.nan)
    named = {"synthetic": good, "real": good, "test": good}
    classes = {"synthetic_labels": labels, "real_labels": labels, "test_labels": labels}
    for measure in (train_on_synthetic, augment_with_synthetic):
        extra = {"n_real": 10} if measure is augment_with_synthetic else {}
        with pytest.raises(UsageError, match=r"`real_labels`.*\(40,\)"):
            measure(**named, **{**classes, "real_labels": labels[:9]}, **extra)
        with pytest.raises(UsageError, match=r"`test_labels`.*float"):
            measure(**named, **{**classes, "test_labels": labels.float()}, **extra)
        with pytest.raises(DataError, match="Got 1"):
            measure(**named, **{**classes, "real_labels": labels * 0}, **extra)
    for n_real in (1, 41):
        with pytest.raises(UsageError, match=f"`n_real`.*40. Got {n_real}"):
            augment_with_synthetic(**named, **classes, n_real=n_real)


# ------------------------------------------------------------------------------------------------------ examples


@pytest.mark.parametrize(
    "module", [latentia.evaluation.prdc, latentia.evaluation.diversity, latentia.evaluation.two_sample]
)
def test_documented_examples_run(module):
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize("scale", [1.0, 0.0, 1e-20, 1e20])
def test_balls_of_radius_0_hold_what_is_equal(scale):
    """Closed balls, as in equations 1 and 2 of arXiv 1904.06991: of one image, many times, too."""
    same = torch.full((40, 4), scale)
    assert precision_recall(real=same, fake=same) == (1.0, 1.0, 40 / 5, 1.0)
    pairs = torch.cat([same, -same - 1])
    assert precision_recall(real=pairs, fake=same)[:2] == (1.0, 0.5)
    assert precision_recall(real=same, fake=2 * same + 1) == (0.0, 0.0, 0.0, 0.0)
