"""Disentanglement scores: cases done by hand, scikit-learn as oracle, and codes whose scores are known beforehand."""

import doctest
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score

import latentia.evaluation.representation.disentanglement
import latentia.evaluation.representation.factor_scores
from latentia.data import Factors
from latentia.errors import NumericsError, UsageError
from latentia.evaluation import (
    attribute_predictability_gap,
    beta_vae_score,
    dci,
    disentanglement_scores,
    factor_vae_score,
    interventional_robustness,
    mutual_information,
    mutual_information_gap,
    off_diagonal_correlation,
)
from latentia.evaluation.representation.factor_scores import _disentanglement_completeness

SIZES = (3, 5, 4, 6)
ORDERED = (False, True, True, True)
PERMUTATION = [2, 0, 3, 1]


def generator(seed):
    return torch.Generator().manual_seed(seed)


class Bare:
    """Factors whose images are the factors themselves: one pixel per factor, its byte the index."""

    names, sizes, ordered = ("kind", "a", "b", "c"), SIZES, ORDERED

    def render(self, indices):
        return indices.to(torch.uint8)[:, None, None]


def indices_of(images):
    """(n, K) float64, read back from images in [-1, 1]."""
    return (images[:, 0, 0].double() + 1) * 127.5


def perfect(images):
    return indices_of(images)[:, PERMUTATION] * torch.tensor([1.0, -3.0, 0.2, 7.0])


def standard(images):
    sizes = torch.tensor(SIZES, dtype=torch.float64)
    return (indices_of(images) - (sizes - 1) / 2) / ((sizes**2 - 1) / 12).sqrt()


def mixed(images):
    turn = torch.linalg.qr(torch.randn(4, 4, generator=generator(3), dtype=torch.float64))[0]
    return standard(images) @ turn


class Noise:
    """Another draw at each call, blind to the images."""

    def __init__(self, dimension=4):
        self.dimension, self.generator = dimension, generator(0)

    def __call__(self, images):
        return torch.randn(len(images), self.dimension, generator=self.generator)


def scores(represent, **options):
    return disentanglement_scores(represent, Bare(), **{"n": 2000, "groups": 120, **options})


@pytest.fixture(scope="module")
def sample():
    """Indices (3000, 4) and a code of each kind."""
    indices = torch.stack([torch.randint(size, (3000,), generator=generator(k)) for k, size in enumerate(SIZES)], 1)
    images = Bare().render(indices).float() / 127.5 - 1
    return indices, {"perfect": perfect(images), "mixed": mixed(images), "noise": Noise()(images)}


# --------------------------------------------------------------------------------------------------- mutual information


def test_the_gap_of_two_dimensions_by_hand():
    """v is known wholly from the first; I(z_2; v) = H(v) + H(z_2) - H(z_2, v)."""
    v = torch.tensor([[0], [0], [1], [1]])
    z = torch.tensor([[0.0, 0.0], [0.0, 5.0], [2.0, 5.0], [2.0, 5.0]])
    known = math.log(2) + entropy([1 / 4, 3 / 4]) - entropy([1 / 4, 1 / 4, 1 / 2])
    assert known == pytest.approx(0.215762, abs=1e-6)
    np.testing.assert_allclose(mutual_information(z, v).flatten(), [math.log(2), known], atol=1e-12)
    assert mutual_information_gap(z, v) == pytest.approx(1 - known / math.log(2), abs=1e-12)
    assert mutual_information_gap(z[:, :1], v) == pytest.approx(1)
    assert mutual_information_gap(z[:, 1:], v) == pytest.approx(known / math.log(2))


def test_the_gap_divides_by_the_entropy_of_each_factor():
    """A second factor of which z_1 knows a part: its entropy, not the first factor's, is the unit."""
    v = torch.tensor([[0, 0], [0, 1], [1, 2], [1, 2]])
    z = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    first, second = math.log(2) / math.log(2), math.log(2) / entropy([1 / 4, 1 / 4, 1 / 2])
    assert mutual_information_gap(z, v) == pytest.approx((first + second) / 2)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 300), st.integers(2, 25), st.floats(0.01, 1e4))
def test_mutual_information_agrees_with_scikit_learn(seed, n, bins, scale):
    random = np.random.default_rng(seed)
    v = random.integers(0, 5, (n, 2))
    v[:2] = [[0, 0], [1, 1]]
    z = scale * (random.standard_normal((n, 3)) + v[:, [0, 1, 0]])
    found = mutual_information(torch.from_numpy(z), torch.from_numpy(v), bins)
    for j in range(3):
        edges = np.linspace(z[:, j].min(), z[:, j].max(), bins + 1)[1:-1]
        # A code on an edge may fall to either side by rounding.
        clear = np.abs(z[:, j, None] - edges).min(1).min() > 1e-9 * scale
        for k in range(2):
            if clear:
                assert found[j, k] == pytest.approx(mutual_info_score(v[:, k], np.digitize(z[:, j], edges)), abs=1e-9)


def test_bins_have_equal_width():
    z = torch.arange(20.0)[:, None]
    assert mutual_information(z, torch.arange(20)[:, None]).item() == pytest.approx(math.log(20))
    z[-1] = 1000  # all others now share the first of 20 bins
    assert mutual_information(z, torch.arange(20)[:, None]).item() == pytest.approx(entropy([0.95, 0.05]))
    assert mutual_information(torch.ones(20, 1), torch.arange(20)[:, None]).item() == 0


# ------------------------------------------------------------------------------------------------------- predictability


def test_predictability_of_a_scale_is_the_squared_correlation():
    """v = 0 0 1 1, z_2 = 0 1 1 1: covariance 1/8, variances 1/4 and 3/16, so r^2 = 1/3."""
    v = torch.tensor([[0], [0], [1], [1]])
    z = torch.tensor([[0.0, 0.0], [0.0, 1.0], [-2.0, 1.0], [-2.0, 1.0]])
    assert attribute_predictability_gap(z, v, [True]) == pytest.approx(1 - 1 / 3)
    assert attribute_predictability_gap(z[:, 1:], v, [True]) == pytest.approx(1 / 3)


def test_predictability_of_kinds_is_balanced_accuracy():
    """z_2 tells class 0 from the others, and must call all others by one name: recalls 1, 1, 0 of 3 classes."""
    v = torch.arange(3).repeat(400)[:, None]
    z = torch.cat([v.double() * 5, (v > 0).double()], 1)
    assert attribute_predictability_gap(z, v, [False]) == pytest.approx(1 - (2 / 3 * 3 - 1) / 2)
    # Classes of unequal size count alike: the best threshold is midway and scores 2 Phi(0.75) - 1 = 0.547. Without
    # weights it would lie where one class is ten times as likely as the other, and score 0.207.
    v = torch.tensor([0] * 4000 + [1] * 400)[:, None]
    z = torch.randn(4400, 1, generator=generator(1)) + 1.5 * v
    assert attribute_predictability_gap(z, v, [False]) == pytest.approx(0.547, abs=0.08)


def test_kinds_need_no_order():
    v = torch.arange(4).repeat(200)[:, None]
    z = torch.tensor([2.0, 0.0, 3.0, 1.0])[v]  # in another order than the classes
    assert attribute_predictability_gap(z, v, [False]) == pytest.approx(1)
    assert attribute_predictability_gap(z, v, [True]) < 0.3


# ------------------------------------------------------------------------------------------------------------------ DCI


def test_disentanglement_and_completeness_by_hand():
    """Importances (3 dimensions, 2 factors): entropies to base 2 of the rows, to base 3 of the columns."""
    importances = torch.tensor([[0.6, 0.0], [0.3, 0.3], [0.1, 0.7]], dtype=torch.float64)
    rows = [1 - entropy([1, 0], base=2), 1 - entropy([1, 1], base=2), 1 - entropy([0.1, 0.7], base=2)]
    columns = [1 - entropy([0.6, 0.3, 0.1], base=3), 1 - entropy([0.3, 0.7], base=3)]
    disentangled, complete = _disentanglement_completeness(importances)
    assert disentangled == pytest.approx(np.average(rows, weights=[0.6, 0.6, 0.8]))
    assert complete == pytest.approx(np.mean(columns))
    assert _disentanglement_completeness(torch.eye(3, dtype=torch.float64)) == (1.0, 1.0)
    assert _disentanglement_completeness(torch.zeros(3, 2)) == (0.0, 0.0)
    assert _disentanglement_completeness(torch.ones(3, 2).double()) == pytest.approx((0.0, 0.0))


def test_repeated_and_shared_dimensions_lower_their_score(sample):
    indices, codes = sample
    twice = dci(torch.cat([codes["perfect"], codes["perfect"]], 1), indices, ORDERED)
    assert twice.disentanglement > 0.95 and twice.completeness < 0.9 and twice.informativeness > 0.98
    # One dimension that holds two factors in full, as digits of one number.
    merged = torch.stack([indices[:, 0] * 10 + indices[:, 1], indices[:, 2], indices[:, 3]], 1).double()
    shared = dci(merged, indices, ORDERED)
    assert shared.disentanglement < 0.8 and shared.completeness > 0.95 and shared.informativeness > 0.95


def test_informativeness_is_measured_on_held_out_images(sample):
    indices, codes = sample
    assert dci(codes["noise"], indices, ORDERED).informativeness < 0.03
    halved = indices.clone()
    halved[:, 1] = torch.randint(5, (3000,), generator=generator(9))
    assert dci(halved.double(), indices, ORDERED).informativeness == pytest.approx(0.75, abs=0.02)


# ---------------------------------------------------------------------------------------------------- other code scores


def test_robustness_against_a_plain_loop(sample):
    indices, codes = sample
    z, n = codes["mixed"].numpy(), len(indices)

    def largest(part):
        return np.quantile(np.abs(part - part.mean(0)), 0.99, axis=0, method="higher")

    overall = largest(z)
    within = np.stack(
        [np.mean([largest(z[indices[:, k] == value]) for value in range(size)], 0) for k, size in enumerate(SIZES)]
    )
    expected = np.average(1 - within.min(0) / overall, weights=overall)
    assert len(z) == n and interventional_robustness(codes["mixed"], indices) == pytest.approx(expected, abs=1e-12)
    assert 0.1 < expected < 0.9


def test_robustness_weighs_dimensions_by_their_reach(sample):
    indices, codes = sample
    joined = torch.cat([codes["perfect"][:, :1], codes["noise"][:, :1]], 1)
    small, large = (interventional_robustness(joined * torch.tensor([1.0, s]), indices) for s in (0.01, 100.0))
    assert small > 0.98 and large < 0.05
    assert interventional_robustness(torch.ones(3000, 2), indices) == 0


def test_correlation_of_dimensions_agrees_with_numpy(sample):
    codes = torch.cat([sample[1]["mixed"], sample[1]["noise"][:, :2]], 1)
    codes[:, 4] += codes[:, 0]
    matrix = np.abs(np.corrcoef(codes.numpy().T))[np.triu_indices(6, 1)]
    assert off_diagonal_correlation(codes) == pytest.approx((matrix.mean(), matrix.max()))
    assert off_diagonal_correlation(codes[:, :1]) == (0.0, 0.0)
    constant = torch.cat([codes[:, :1], torch.ones(3000, 1)], 1)
    assert off_diagonal_correlation(constant) == pytest.approx((0.0, 0.0), abs=1e-12)


@pytest.mark.parametrize("name", ["perfect", "mixed", "noise"])
def test_scores_are_invariant_to_order_scale_sign_and_shift(sample, name):
    indices, codes = sample
    z, order = codes[name].double(), [3, 1, 0, 2]
    other = z[:, order] * 4.0 * torch.tensor([1, -1, -1, 1]) + 3.0
    assert mutual_information_gap(other, indices) == pytest.approx(mutual_information_gap(z, indices), abs=0.01)
    sap = [attribute_predictability_gap(codes, indices, ORDERED) for codes in (z, other)]
    assert sap[0] == pytest.approx(sap[1], abs=0.01)
    assert dci(other, indices, ORDERED) == pytest.approx(dci(z, indices, ORDERED), abs=0.03)
    irs = [interventional_robustness(codes, indices) for codes in (z, other)]
    assert irs[0] == pytest.approx(irs[1], abs=1e-9)


# --------------------------------------------------------------------------------------------------------- all together


def test_the_true_factors_permuted_and_scaled_are_perfect():
    found = scores(perfect)
    for name in ("mig", "sap", "dci_disentanglement", "dci_completeness", "dci_informativeness", "irs"):
        assert getattr(found, name) > 0.98, name
    assert found.beta_vae > 0.98 and found.factor_vae == 1
    assert found.correlation < 0.05 and found.chance == 1 / 4
    assert (found.active, found.dimension) == (4, 4)


def test_rotated_factors_are_informative_but_not_disentangled():
    found = scores(mixed)
    assert found.mig < 0.3 and found.sap < 0.35 and found.irs < 0.5
    assert found.dci_disentanglement < 0.5 and found.dci_completeness < 0.5 and found.dci_informativeness > 0.8
    assert found.factor_vae < 0.85

    def even(images):  # each dimension holds an equal part of every factor
        turn = [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
        return standard(images) @ torch.tensor(turn, dtype=torch.float64) / 2

    found = scores(even)
    assert found.mig < 0.05 and found.sap < 0.1 and found.dci_disentanglement < 0.2 and found.dci_completeness < 0.2


def test_noise_scores_nothing():
    found = scores(Noise())
    for name in ("mig", "sap", "dci_disentanglement", "dci_completeness", "dci_informativeness", "irs"):
        assert getattr(found, name) < 0.04, name
    # 60 test points: three standard errors around the blind guess.
    for value in (found.beta_vae, found.factor_vae):
        assert abs(value - found.chance) < 3 * math.sqrt(0.25 * 0.75 / 60)


def test_dimensions_that_hardly_vary_are_left_out():
    noise = Noise(3)

    def with_dead_ones(images):
        dead = [1e-3 * noise(images), torch.full((len(images), 1), 0.3)]
        return torch.cat([standard(images), *dead], 1)

    found, without = scores(with_dead_ones), scores(standard)
    assert (found.active, found.dimension) == (4, 8)
    for name, value in without.to_dict().items():
        if name != "dimension":
            assert getattr(found, name) == pytest.approx(value, abs=1e-9), name


def test_a_factor_that_no_dimension_knows_costs_its_share():
    def three(images):
        return standard(images)[:, :3]

    found = scores(three)
    assert found.mig == pytest.approx(0.75, abs=0.02) and found.sap == pytest.approx(0.75, abs=0.02)
    assert found.factor_vae < 0.9


def test_the_same_seed_gives_the_same_scores_and_json():
    first, again, other = scores(mixed, seed=1), scores(mixed, seed=1), scores(mixed, seed=2)
    assert first == again != other
    assert first.mig == pytest.approx(other.mig, abs=0.05)
    assert first.to_dict()["seed"] == 1 and "MIG" in first.text() and "chance 0.250" in first.text()


def test_groups_hold_what_they_say():
    """Within a group exactly one factor is constant; within pairs one agrees, and differs between pairs."""
    seen = []

    def spy(images):
        seen.append(indices_of(images).round().long())
        return standard(images)

    factor_vae_score(spy, Bare(), torch.ones(4), groups=40)
    groups = torch.cat(seen).view(60, 64, 4)
    held = (groups == groups[:, :1]).all(1)
    assert (held.sum(1) == 1).all() and (held.sum(0) > 5).all()
    seen.clear()
    beta_vae_score(spy, Bare(), groups=40)
    first, second = torch.cat(seen).view(60, 2, 64, 4).unbind(1)
    agree = (first == second).all(1)
    assert (agree.sum(1) == 1).all() and (agree.sum(0) > 5).all()
    assert not (first == first[:, :1]).all(1).any()


def test_votes_weigh_each_dimension_by_its_own_spread():
    """The widest dimension varies most even while its factor is held; it must win its votes all the same."""
    scale = torch.tensor([100.0, 1.0, 1.0, 1.0], dtype=torch.float64)

    def uneven(images):
        return (standard(images) + 0.2 * torch.randn(len(images), 4, generator=generator(len(images)))) * scale

    assert factor_vae_score(uneven, Bare(), scale, groups=40) > 0.95
    assert factor_vae_score(uneven, Bare(), torch.ones(4), groups=40) < 0.9


def test_batches_are_bounded():
    sizes = []

    def spy(images):
        assert images.dtype == torch.float32 and -1 <= images.min() and images.max() <= 1 and not images.requires_grad
        sizes.append(len(images))
        return standard(images)

    scores(spy, n=5000)
    assert max(sizes) <= 2048 and sum(sizes) == 5000 + 180 * 64 * 3


def test_pixels_of_the_factors_are_informative_of_colour_alone():
    found = disentanglement_scores(lambda images: images.amax((2, 3)), Factors(), n=400, groups=60)
    assert found.active == 3 and found.mig < 0.4 and found.dci_informativeness < 0.4
    assert found.factor_vae < 0.7 and found.chance == pytest.approx(1 / 6)


# ------------------------------------------------------------------------------------------------------------ bad input


def test_wrong_arguments_are_named(sample):
    indices, codes = sample
    z = codes["perfect"]
    for score in (mutual_information_gap, interventional_robustness):
        with pytest.raises(UsageError, match=r"`factors` must be integers \(n, K\) >= 0"):
            score(z, indices.double())
        with pytest.raises(UsageError, match="3000 codes"):
            score(z, indices[:-1])
        with pytest.raises(UsageError, match="Factor 2 takes one"):
            score(z, indices * torch.tensor([1, 1, 0, 1]))
        with pytest.raises(NumericsError, match="finite"):
            score(torch.full_like(z, math.nan), indices)
    for score in (attribute_predictability_gap, dci):
        with pytest.raises(UsageError, match=r"`ordered` must say of each of the 4 factors. Got 3"):
            score(z, indices, ORDERED[:3])
    with pytest.raises(UsageError, match=r"at least 10 per value of the largest factor, 60. Got 59"):
        scores(perfect, n=59)
    with pytest.raises(UsageError, match=r"`groups` must be at least 10 per factor, 40. Got 39"):
        scores(perfect, groups=39)
    with pytest.raises(UsageError, match=r"`represent` must return a tensor \(B, D\).*shape \(2000, 1, 1, 4\)"):
        scores(lambda images: images)
    with pytest.raises(UsageError, match="Got tuple"):
        scores(lambda images: (images,))
    with pytest.raises(NumericsError, match="collapsed"):
        scores(lambda images: torch.full((len(images), 3), 0.1))
    with pytest.raises(NumericsError, match="NaN"):
        scores(lambda images: images[:, 0, 0] * math.nan)
    with pytest.raises(UsageError, match="`deviation` must be above 0"):
        factor_vae_score(perfect, Bare(), torch.tensor([1.0, 1.0, 0.0, 1.0]), groups=40)

    class Lame(Bare):
        sizes = (3, 5, 1, 6)

    with pytest.raises(UsageError, match=r"at least two values each.*\(3, 5, 1, 6\)"):
        beta_vae_score(perfect, Lame(), groups=40)


@pytest.mark.parametrize(
    "module", [latentia.evaluation.representation.disentanglement, latentia.evaluation.representation.factor_scores]
)
def test_docstrings(module):
    assert doctest.testmod(module).failed == 0
