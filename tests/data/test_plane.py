"""Toys of the plane and Stacked MNIST as data, and the distances between sets of points: closed forms and oracles."""

import doctest
import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import datasets

import latentia.data.plane
import latentia.data.stacked
import latentia.evaluation.plane
from latentia.data import PLANES, ImageData, PlaneData, gaussian_mixture, load_images, stacked_images
from latentia.errors import NumericsError, UsageError
from latentia.evaluation import (
    energy_distance,
    frechet_distance_of_gaussians,
    grid_divergences,
    sliced_wasserstein2,
    wasserstein2,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------------------------------------- toys as data


@pytest.mark.parametrize("name", PLANES)
def test_every_plane_is_a_function_of_seed_and_position(name):
    plane = PLANES[name]
    points = plane.sample(300, seed=3)
    assert plane.name == name and points.shape == (300, 2) and points.dtype == torch.float32
    assert points.isfinite().all() and points.std(0).min() > 0.02 and len(points.unique(dim=0)) == 300
    assert torch.equal(plane.sample(40, seed=3), points[:40])
    assert not torch.equal(plane.sample(300, seed=4), points)


@pytest.mark.parametrize("name", PLANES)
def test_batches_do_not_depend_on_the_cut_and_hold_no_sample(name):
    data = PlaneData(name)
    whole = data.batch(1000, 1100, seed=2)
    parts = [data.batch(a, b, seed=2)["x"] for a, b in ((1000, 1007), (1007, 1064), (1064, 1100))]
    assert torch.equal(torch.cat(parts), whole["x"])
    assert whole["x"].shape == (100, *data.shape)
    sampled = data.plane.sample(1100, seed=2)
    assert torch.cdist(sampled.double(), whole["x"].double()).min() > 0
    assert len({PlaneData(other).fingerprint for other in PLANES}) == len(PLANES)


@pytest.mark.parametrize("name, count, radius, sigma", [("ring", 8, 1.0, 0.01), ("grid", 25, None, 0.05)])
def test_mode_toys_follow_the_published_protocol(name, count, radius, sigma):
    plane = PLANES[name]
    assert len(plane.centres) == count and torch.all(plane.sigma == sigma)
    if radius:
        assert torch.allclose(plane.centres.norm(dim=1), torch.full((count,), radius).double())
    else:
        assert set(plane.centres.flatten().tolist()) == {-4.0, -2.0, 0.0, 2.0, 4.0}
        assert len(plane.centres.unique(dim=0)) == 25
    points = plane.sample(20_000, seed=0).double()
    distance, mode = torch.cdist(points, plane.centres).min(1)
    assert scipy.stats.chisquare(torch.bincount(mode, minlength=count)).pvalue > 1e-3
    assert float(distance.square().mean()) == pytest.approx(2 * sigma**2, rel=0.03)
    # each coordinate of a point about its centre is normal, and the two are independent of each other
    offset = (points - plane.centres[mode]) / sigma
    assert (
        scipy.stats.kstest(offset[:, 0], "norm").pvalue > 1e-3
        and scipy.stats.kstest(offset[:, 1], "norm").pvalue > 1e-3
    )
    assert abs(np.corrcoef(offset.T.numpy())[0, 1]) < 0.03


@pytest.mark.parametrize(
    "name, peer",
    [
        ("moons", lambda n: datasets.make_moons(n, noise=0.1, random_state=1)[0] * 2 + [-1, -0.2]),
        ("circles", lambda n: datasets.make_circles(n, factor=0.5, noise=0.08, random_state=1)[0] * 3),
        ("swissroll", lambda n: datasets.make_swiss_roll(n, noise=1.0, random_state=1)[0][:, [0, 2]] / 5),
    ],
)
def test_toys_that_scikit_learn_has_are_distributed_alike(name, peer):
    n = 2000
    real = torch.from_numpy(peer(n))
    assert abs(energy_distance(PLANES[name].sample(n, 0), real)) < 0.004
    assert energy_distance(PLANES[name].sample(n, 0) + 0.2, real) > 0.01  # what the bound would still see


def test_gan_lab_shapes_lie_where_gan_lab_draws_them():
    n = 4000
    line, oval = (PLANES[name].sample(n, 0).double() for name in ("lab_line", "lab_ring"))
    # the line runs from (0.8, 0.6) to (0.05, 0.9); across it sigma is 0.01
    across = (line - torch.tensor([0.8, 0.6])) @ (torch.tensor([0.3, 0.75]).double() / math.hypot(0.3, 0.75))
    assert abs(float(across.mean())) < 1e-3 and float(across.std()) == pytest.approx(0.01, rel=0.05)
    assert line.mean(0).tolist() == pytest.approx([0.425, 0.75], abs=0.01)
    radius = ((oval - torch.tensor([0.5, 0.45])) / torch.tensor([0.3, 0.25])).norm(dim=1)
    assert float(radius.mean()) == pytest.approx(1, abs=0.01) and float(radius.std()) < 0.12
    assert (
        PLANES["lab_gaussians"].sigma.tolist() == [[0.1, 0.1], [0.05, 0.2]] and len(PLANES["lab_disjoint"].centres) == 3
    )


def test_shapes_of_rings_spirals_pinwheel_and_checkerboard():
    n = 4000
    rings = PLANES["rings"].sample(n, 0).norm(dim=1)
    assert float((rings[:, None] - torch.tensor([0.75, 1.5, 2.25, 3.0])).abs().amin(1).max()) < 0.35
    assert torch.bincount((rings / 0.75).round().long(), minlength=5)[1:5].min() > n / 4 * 0.9
    board = PLANES["checkerboard"].sample(n, 0)
    assert board.abs().max() <= 4 and len(((board / 2).floor() @ torch.tensor([10.0, 1.0])).unique()) == 8
    assert ((board / 2).floor().sum(1) % 2 == 0).all()  # squares of one colour only
    pinwheel, spirals = PLANES["pinwheel"].sample(n, 0), PLANES["2spirals"].sample(n, 0)
    fifth = 2 * math.pi / 5
    turn = torch.tensor([[math.cos(fifth), -math.sin(fifth)], [math.sin(fifth), math.cos(fifth)]])
    assert abs(energy_distance(pinwheel @ turn, PLANES["pinwheel"].sample(n, 1))) < 0.003
    assert abs(energy_distance(-spirals, PLANES["2spirals"].sample(n, 1))) < 0.003
    assert spirals.norm(dim=1).max() < 4.2  # an arm has radius at most pi, and a little more by its two noises


def test_a_mixture_of_ones_own():
    plane = gaussian_mixture([[0, 0], [1, 1], [2, 0]], [[0.1], [0.2], [0.3]])
    assert plane.sigma.tolist() == [[0.1, 0.1], [0.2, 0.2], [0.3, 0.3]]
    other = PlaneData(gaussian_mixture([[0, 0], [1, 1], [2, 0]], 0.1))
    assert PlaneData(plane).fingerprint != other.fingerprint
    assert other.describe()["kind"] == "plane" and other.require(10**9) is None


def test_bad_planes_are_refused():
    for centres, sigma, named in [
        ([[0.0]], 0.1, "centres"),
        ([], 0.1, "centres"),
        ([[0, math.nan]], 0.1, "centres"),
        ([[0, 0]], 0, "sigma"),
        ([[0, 0]], [0.1, 0.2], "sigma"),
        ([[0, 0], [1, 1], [2, 2]], [[0.1], [0.2]], "sigma"),
    ]:
        with pytest.raises(UsageError, match=named):
            gaussian_mixture(centres, sigma)
    with pytest.raises(UsageError, match='Did you mean "moons"'):
        PlaneData("moon")
    with pytest.raises(UsageError, match="length"):
        len(PlaneData("moons"))
    with pytest.raises(UsageError, match="start"):
        PlaneData("moons").batch(3, 2)
    with pytest.raises(UsageError, match="`n`"):
        PLANES["moons"].sample(-1, 0)


def test_stacked_images_are_made_of_the_source():
    source = load_images("digits")
    data = stacked_images(source, n=200, seed=5)
    assert data.images.shape == (200, 3, 8, 8) and data.images.dtype == torch.uint8 and len(data.label_names) == 1000
    pixels = source.images.flatten(1).long()
    for i in range(0, 200, 40):
        digits = [
            int(source.labels[(pixels == data.images[i, c].flatten().long()).all(1).nonzero()[0, 0]]) for c in range(3)
        ]
        assert data.label_names[data.labels[i]] == "-".join(map(str, digits))
        assert int(data.labels[i]) == 100 * digits[0] + 10 * digits[1] + digits[2]
    again, other = stacked_images(source, n=200, seed=5), stacked_images(source, n=200, seed=6)
    assert again.fingerprint == data.fingerprint != other.fingerprint
    assert len(data.labels.unique()) > 150 and data.describe()["seed"] == 5
    # the three channels are drawn apart from each other
    assert int((data.images[:, 0] == data.images[:, 1]).flatten(1).all(1).sum()) <= 2


def test_stacking_refuses_what_has_no_grey_or_no_labels():
    grey, colour = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    for bad in (ImageData(grey), ImageData(colour, labels=[0, 1, 2, 3])):
        with pytest.raises(UsageError, match="source"):
            stacked_images(bad, n=2)
    with pytest.raises(UsageError, match="`n`"):
        stacked_images(ImageData(grey, labels=[0, 1, 2, 3]), n=0)


# ------------------------------------------------------------------------------------------------- transport


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 6), st.integers(1, 3), st.integers(0, 10**6))
def test_exact_transport_is_the_best_of_all_permutations(n, dimension, seed):
    from itertools import permutations

    a, b = randn(n, dimension, seed=seed), randn(n, dimension, seed=seed + 1) + 1
    best = min(float((a - b[list(order)]).square().sum(1).mean()) for order in permutations(range(n)))
    assert wasserstein2(a, b) == pytest.approx(best**0.5, rel=1e-12)
    assert wasserstein2(b, a) == pytest.approx(best**0.5, rel=1e-12)


def test_transport_of_an_affine_image_is_known():
    """x -> Sx + m with positive definite S is an optimal map (Brenier), so W2^2 is the mean of its squared lengths."""
    x, root, shift = randn(300, 3), randn(3, 3, seed=1), torch.tensor([1.0, -2.0, 0.5])
    y = x @ (root @ root.T + 0.1 * torch.eye(3)) + shift
    shuffled = y[torch.randperm(300)]
    assert wasserstein2(x, shuffled) == pytest.approx(float((y - x).square().sum(1).mean().sqrt()), rel=1e-12)
    assert wasserstein2(x, x.flip(0)) == 0


def test_transport_of_gaussians_approaches_their_closed_form():
    scale, shift = torch.tensor([2.0, 0.5]).double(), torch.tensor([3.0, 0.0]).double()
    a, b = randn(1000, 2), randn(1000, 2, seed=1) * scale + shift
    expected = frechet_distance_of_gaussians(torch.zeros(2), torch.eye(2), shift, torch.diag(scale**2))
    assert expected == pytest.approx(9 + 1 + 0.25)
    assert wasserstein2(a, b) ** 2 == pytest.approx(expected, rel=0.06)


def test_sliced_transport_against_its_closed_form():
    a, b = randn(500, 4), randn(500, 4, seed=1) * 2
    shift = torch.tensor([3.0, 0.0, 0.0, 0.0])
    assert sliced_wasserstein2(a, a + shift, projections=4000) == pytest.approx(3 / 4**0.5, rel=0.03)
    assert sliced_wasserstein2(a, b) <= wasserstein2(a, b)
    assert sliced_wasserstein2(a, b) == sliced_wasserstein2(b, a) == sliced_wasserstein2(a, b, seed=0)
    assert sliced_wasserstein2(a, b, seed=1) != sliced_wasserstein2(a, b)
    one = a[:, :1], b[:, :1]
    assert sliced_wasserstein2(*one) == pytest.approx(wasserstein2(*one), rel=1e-12)  # one dimension has one direction


# ------------------------------------------------------------------------------------------------- energy distance


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 10**6))
def test_energy_distance_agrees_with_scipy_up_to_its_bias(n, m, seed):
    """scipy prints the root of half the biased form."""
    a, b = randn(n, 1, seed=seed), randn(m, 1, seed=seed + 1) + 0.5
    bias = float(torch.cdist(a, a).sum()) / (n * n * (n - 1)) + float(torch.cdist(b, b).sum()) / (m * m * (m - 1))
    biased = scipy.stats.energy_distance(a.flatten(), b.flatten()) ** 2
    assert energy_distance(a, b) == pytest.approx(biased - bias, abs=1e-9)


def test_energy_distance_in_blocks_is_that_of_the_definition(monkeypatch):
    a, b = randn(70, 3), randn(50, 3, seed=1) + 1

    def total(x, y):
        return float((x[:, None] - y).square().sum(2).sqrt().sum())

    expected = 2 * total(a, b) / 3500 - total(a, a) / (70 * 69) - total(b, b) / (50 * 49)
    assert energy_distance(a, b) == pytest.approx(expected, rel=1e-10)
    monkeypatch.setattr(latentia.evaluation.plane, "_CHUNK", 16)
    assert energy_distance(a, b) == pytest.approx(expected, rel=1e-10)
    assert energy_distance(b, a) == pytest.approx(expected, rel=1e-10)


def test_energy_distance_of_equal_distributions_is_unbiased():
    values = [energy_distance(randn(20, 2, seed=2 * i), randn(30, 2, seed=2 * i + 1)) for i in range(300)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 300**0.5
    assert min(values) < 0 and np.std(values) < 0.1


# ------------------------------------------------------------------------------------------------- GAN Lab's grid


def test_grid_divergences_against_a_plain_loop():
    points, real, cells, s = torch.rand(50, 2) * 1.2 - 0.1, torch.rand(80, 2), 4, 1e-4
    p, q = np.zeros(cells**2 + 1), np.zeros(cells**2 + 1)
    for part, share in ((real, p), (points, q)):
        for x, y in part.tolist():
            inside = 0 <= x < 1 and 0 <= y < 1
            share[int(x * cells) + cells * int(y * cells) if inside else -1] += 1 / len(part)
    kl = sum((a + s) * math.log2((a + s) / (b + s)) for a, b in zip(p, q))
    js = sum(
        (a + s) * math.log2((a + s) / ((a + b) / 2 + s)) + (b + s) * math.log2((b + s) / ((a + b) / 2 + s))
        for a, b in zip(p, q)
    )
    found = grid_divergences(points, real, cells=cells)
    assert q[-1] > 0
    assert found.kl == pytest.approx(kl, abs=1e-6) and found.js == pytest.approx(js / 2, abs=1e-6)


def test_grid_divergences_count_points_outside_the_square():
    real, points = PLANES["lab_ring"].sample(3000, 0), PLANES["lab_gaussians"].sample(3000, 0)
    forth, back = grid_divergences(points, real), grid_divergences(real, points)
    assert forth.js == pytest.approx(back.js, rel=1e-12) and abs(forth.kl - back.kl) > 0.1
    assert grid_divergences(real, real) == (0, 0)
    assert grid_divergences(real + 5, real).js == pytest.approx(1.0, abs=0.05)


FLOORS = {  # of a perfect generator to 12 000 points, in bits, with 150, 450, 1500 and 12 000 points
    "lab_line": (0.083, 0.027, 0.009, 0.002),
    "lab_gaussians": (0.343, 0.167, 0.059, 0.013),
    "lab_ring": (0.258, 0.099, 0.033, 0.007),
    "lab_disjoint": (0.071, 0.028, 0.010, 0.0025),
}


@pytest.mark.parametrize("name", FLOORS)
def test_gan_labs_floors_are_met(name):
    plane = PLANES[name]
    for n, expected in zip((150, 450, 1500, 12_000), FLOORS[name]):
        pairs = [(plane.sample(n, 1 + seed), plane.sample(12_000, 100 + seed)) for seed in range(20)]
        values = [grid_divergences(*pair).js for pair in pairs]
        assert np.mean(values) == pytest.approx(expected, rel=0.15, abs=6e-4), n


def test_bad_sets_of_points_are_refused():
    a = torch.rand(5, 2)
    for call in (wasserstein2, sliced_wasserstein2, energy_distance, grid_divergences):
        with pytest.raises(UsageError, match="dimension"):
            call(a, torch.rand(5, 3))
        with pytest.raises(NumericsError, match="finite"):
            call(a, torch.full((5, 2), math.nan))
    for call in (wasserstein2, sliced_wasserstein2):
        with pytest.raises(UsageError, match="equally many"):
            call(a, torch.rand(4, 2))
    with pytest.raises(UsageError, match="sliced_wasserstein2"):
        wasserstein2(torch.zeros(2001, 2), torch.zeros(2001, 2))
    with pytest.raises(UsageError, match="projections"):
        sliced_wasserstein2(a, a, projections=0)
    with pytest.raises(UsageError, match="n >= 2"):
        energy_distance(a, a[:1])
    with pytest.raises(UsageError, match=r"\(n, 2\)"):
        grid_divergences(torch.rand(5, 3), torch.rand(5, 3))
    with pytest.raises(UsageError, match="cells"):
        grid_divergences(a, a, cells=0)


@pytest.mark.parametrize("module", [latentia.data.plane, latentia.data.stacked, latentia.evaluation.plane])
def test_examples_in_the_docstrings_run(module):
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0
