"""The drawn factors: an independent drawing, areas and centres by integration, distinctness, and `load_images`."""

import doctest
import hashlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

import latentia.data.factors
from latentia.commands.main import main
from latentia.data import Factors, load_images
from latentia.data.builtin import _factors
from latentia.data.factors import COLOURS, GROUND, SHAPES
from latentia.errors import DataError, UsageError

SQUARE, ELLIPSE, HEART, TRIANGLE = range(4)
MIDDLE = 8


def cover(indices, resolution=64):
    """How much of each pixel the shape covers, (N, H, W) in [0, 1], read back from the channel that differs most."""
    indices = torch.tensor(indices)
    images = Factors(resolution).render(indices).double()
    ink = torch.tensor([*COLOURS.values()], dtype=torch.float64)[indices[:, 1]]
    ground = torch.tensor(GROUND, dtype=torch.float64)
    channel = (ink - ground).abs().argmax(1)
    rows = torch.arange(len(indices))
    values = images[rows, channel] - ground[channel][:, None, None]
    return values / (ink - ground)[rows, channel][:, None, None]


def inside(shape, u, v, r):
    """Whether points (u right, v down) lie in the shape of radius r, from its corners and discs. Written anew."""
    if shape == ELLIPSE:
        return (u / (r * 2**0.5)) ** 2 + (v / (r / 2**0.5)) ** 2 <= 1
    if shape == SQUARE:
        half = math.sqrt(math.pi * r**2) / 2
        return (abs(u) <= half) & (abs(v) <= half)
    if shape == TRIANGLE:
        edge = math.sqrt(4 * math.pi * r**2 / math.sqrt(3))
        height = edge * math.sqrt(3) / 2
        top = -2 * height / 3
        return (v <= height / 3) & (v >= top + 2 * height / edge * abs(u))
    # A square with the side s, standing on its tip, whose upper edges each carry a half disc.
    s = math.sqrt(math.pi * r**2 / (1 + math.pi / 4))
    reach = s / math.sqrt(2)
    # The centre of mass above the square's middle: two half discs, each s/2 + 2 s / (3 pi) along its edge's normal.
    discs = math.pi * s**2 / 8
    rise = 2 * discs * (s / 2 + 2 * s / (3 * math.pi)) / math.sqrt(2) / (math.pi * r**2)
    w = v - rise
    tip = abs(u) + abs(w) <= reach
    lobes = [(u - sign * reach / 2) ** 2 + (w + reach / 2) ** 2 <= (s / 2) ** 2 for sign in (-1, 1)]
    return tip | lobes[0] | lobes[1]


@pytest.mark.parametrize("shape", range(4), ids=SHAPES)
@pytest.mark.parametrize("resolution", [32, 64])
def test_pixels_agree_with_an_independent_drawing_by_many_points(shape, resolution):
    factors, fine = Factors(resolution), 8
    indices = [[shape, 0, 0, 0, 8, 8], [shape, 4, 5, 3, 2, 14], [shape, 2, 3, 9, 15, 0], [shape, 3, 2, 5, 5, 7]]
    points = (np.arange(resolution * fine) + 0.5) * 2 / (resolution * fine) - 1
    for index, got in zip(indices, cover(indices, resolution).numpy()):
        facts = factors.describe(torch.tensor(index))
        angle = math.radians(facts["rotation"])
        right, down = np.meshgrid(points - facts["x"], points - facts["y"])
        u = math.cos(angle) * right + math.sin(angle) * down
        v = math.cos(angle) * down - math.sin(angle) * right
        wanted = inside(shape, u, v, facts["scale"]).reshape(resolution, fine, resolution, fine).mean((1, 3))
        # A straight edge at 45 degrees crosses a pixel's corners, where 1/2 - d is off by 1/8; corners of shapes more.
        assert np.abs(got - wanted).mean() < 0.004
        assert (np.abs(got - wanted) > 0.15).mean() < 0.004


@pytest.mark.parametrize("scale", range(6))
def test_all_shapes_of_a_scale_cover_the_same_area(scale):
    indices = [[shape, 1, scale, rotation, 11, 3] for shape in range(4) for rotation in (0, 4, 7)]
    pixels = cover(indices)
    facts = Factors(64).describe(torch.tensor(indices[0]))
    area = pixels.sum((1, 2)) * (2 / 64) ** 2
    torch.testing.assert_close(area, torch.full_like(area, math.pi * facts["scale"] ** 2), rtol=0.02, atol=0)
    centres = (torch.arange(64, dtype=torch.float64) + 0.5) / 32 - 1
    total = pixels.sum((1, 2))
    assert ((pixels.sum(1) @ centres) / total - facts["x"]).abs().max() < 0.004
    assert ((pixels.sum(2) @ centres) / total - facts["y"]).abs().max() < 0.004


def test_the_ellipse_turns_clockwise_by_the_stated_angle():
    pixels = cover([[ELLIPSE, 5, 5, rotation, MIDDLE, MIDDLE] for rotation in range(10)]).numpy()
    y, x = np.mgrid[:64, :64]
    for rotation, image in enumerate(pixels):
        dx, dy = (a - (a * image).sum() / image.sum() for a in (x, y))
        xx, yy, xy = ((a * image).sum() for a in (dx * dx, dy * dy, dx * dy))
        angle = math.degrees(math.atan2(2 * xy, xx - yy) / 2)  # y runs down, so clockwise is positive
        assert angle == pytest.approx(9 * rotation, abs=0.5)


def test_the_heart_stands_on_its_tip_and_the_triangle_points_up():
    heart, triangle = cover([[HEART, 0, 5, 0, MIDDLE, MIDDLE], [TRIANGLE, 0, 5, 0, MIDDLE, MIDDLE]])
    for image, wide_at_top in ((heart, True), (triangle, False)):
        widths = image.sum(1)[image.sum(1) > 0.5]
        assert (widths[4] > widths[-4]) == wide_at_top
        torch.testing.assert_close(image[:, 20:46], image[:, 20:46].clone())
    assert heart.sum(1).argmax() < 34 < triangle.sum(1).argmax()


@pytest.mark.parametrize("resolution", [32, 64])
def test_nothing_is_cut_off_at_the_edge(resolution):
    """The tip of the largest triangle ends in the outermost pixels; everything else stays away from them."""
    indices = [[s, 0, 5, r, x, y] for s in range(4) for r in range(10) for x in (0, 15) for y in (0, 15)]
    pixels = cover(indices, resolution)
    border = torch.cat([pixels[..., 0, :], pixels[..., -1, :], pixels[..., :, 0], pixels[..., :, -1]], 1)
    assert border.max() < 0.5 and (border[:120] == 0).all()
    facts = Factors(resolution).describe(torch.tensor(indices[0]))
    area = pixels.sum((1, 2)) * (2 / resolution) ** 2
    torch.testing.assert_close(area, torch.full_like(area, math.pi * facts["scale"] ** 2), rtol=0.02, atol=0)


def test_both_sizes_show_the_same_image():
    indices = Factors().sample(40, seed=5)
    small, large = (cover(indices.tolist(), side) for side in (32, 64))
    halved = large.view(40, 32, 2, 32, 2).mean((2, 4))
    assert (halved - small).abs().max() < 0.4 and (halved - small).abs().mean() < 0.002


@pytest.mark.parametrize("resolution, step", [(32, 1), (64, 5)])
def test_different_factors_give_different_images(resolution, step):
    """Where images are most alike: every place and turn of the smallest shapes, and all shapes, colours and sizes."""
    smallest = torch.cartesian_prod(*(torch.arange(size) for size in (4, 1, 1, 10, 16, 16)))[::step]
    others = torch.cartesian_prod(*(torch.arange(size) for size in (4, 6, 6, 10, 1, 1)))[1:]
    indices = torch.cat([smallest, others]).unique(dim=0)
    images = Factors(resolution).render(indices)
    hashes = {hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in images}
    assert len(hashes) == len(indices)


@pytest.mark.parametrize("factor", range(6), ids=Factors.names)
def test_one_step_of_any_factor_can_be_seen(factor):
    indices = Factors().sample(200, seed=factor)
    indices[:, 2] = 0  # where steps are smallest
    indices[:, factor] = indices[:, factor].clamp(max=Factors.sizes[factor] - 2)
    stepped = indices.clone()
    stepped[:, factor] += 1
    before, after = (Factors().render(i).int() for i in (indices, stepped))
    assert (before - after).abs().amax((1, 2, 3)).min() >= 12


def test_a_square_looks_the_same_only_after_a_quarter_turn():
    squares = Factors().render(torch.tensor([[SQUARE, 0, 0, r, MIDDLE, MIDDLE] for r in range(10)])).int()
    apart = (squares[:, None] - squares[None]).abs().amax((2, 3, 4)) + 255 * torch.eye(10, dtype=torch.int)
    assert apart.min() > 12


def test_equal_indices_give_equal_bytes():
    factors = Factors()
    indices = factors.sample(700, seed=2)
    images = factors.render(indices)
    again = torch.cat([Factors().render(part) for part in indices.split(33)])
    assert images.dtype == torch.uint8 and images.shape == (700, 3, 32, 32)
    assert (images == again).all()
    image, found = factors[123_456]
    assert (factors.indices_of(torch.tensor([123_456]))[0] == found).all()
    assert (image == factors.render(found[None])[0]).all()
    assert len(factors) == 368_640 == math.prod(factors.sizes)
    strides = torch.tensor([math.prod(factors.sizes[k + 1 :]) for k in range(6)])
    assert (
        (factors.indices_of(torch.tensor([0, 99, 368_639])) * strides).sum(1) == torch.tensor([0, 99, 368_639])
    ).all()
    assert factors.render(indices[:0]).shape == (0, 3, 32, 32)


def test_the_images_never_change():
    """Anybody's numbers on these images depend on it: raise the version in `builtin` if it must change."""
    positions = torch.arange(0, 368_640, 3_001)
    digests = [
        hashlib.sha256(Factors(side).render(Factors().indices_of(positions)).numpy().tobytes()).hexdigest()[:16]
        for side in (32, 64)
    ]
    assert digests == ["d6971518b24d0eaa", "b34f811549c888b3"]


def test_samples_are_uniform_and_independent():
    factors = Factors()
    indices = factors.sample(20_000, seed=1)
    assert (indices == factors.sample(20_000, seed=1)).all() and (indices != factors.sample(20_000, seed=2)).any()
    for column, size in zip(indices.T, factors.sizes):
        assert chisquare(torch.bincount(column, minlength=size).numpy()).pvalue > 1e-4
    assert torch.corrcoef(indices.T.double()).sub(torch.eye(6)).abs().max() < 0.03
    held = factors.sample(50, seed=1, fixed={"rotation": 9, "shape": 0})
    assert (held[:, [0, 3]] == torch.tensor([0, 9])).all() and len(held[:, 5].unique()) > 5


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*(st.integers(-1, size) for size in Factors.sizes)), min_size=1, max_size=3))
def test_indices_out_of_range_are_refused_and_others_drawn(rows):
    indices = torch.tensor(rows)
    if (indices >= 0).all() and (indices < torch.tensor(Factors.sizes)).all():
        assert Factors().render(indices).shape == (len(rows), 3, 32, 32)
    else:
        with pytest.raises(UsageError, match=r"`indices` of the factor '\w+' must be in \[0, \d+\)"):
            Factors().render(indices)


def test_wrong_arguments_are_named():
    factors = Factors()
    with pytest.raises(UsageError, match=r"`resolution` must be one of 32, 64\. Got 48"):
        Factors(48)
    with pytest.raises(UsageError, match='Did you mean "colour"'):
        factors.sample(3, fixed={"color": 1})
    with pytest.raises(UsageError, match=r"`fixed\['shape'\]` must be in \[0, 4\)\. Got 4"):
        factors.sample(3, fixed={"shape": 4})
    with pytest.raises(UsageError, match="`n` must be at least 1"):
        factors.sample(0)
    for wrong in (torch.zeros(6, dtype=torch.long), torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, 6)):
        with pytest.raises(UsageError, match=r"`indices` must be integers \(N, 6\)"):
            factors.render(wrong)
    for wrong in (torch.tensor([368_640]), torch.tensor([-1]), torch.tensor([0.5]), torch.tensor(3)):
        with pytest.raises(UsageError, match="`positions` must be integers"):
            factors.indices_of(wrong)
    with pytest.raises(IndexError):
        factors[368_640]


def test_load_images_draws_two_disjoint_splits():
    data = load_images("factors", split="test")
    assert data.shape == (3, 32, 32) and len(data) == 2000 and data.label_names == list(SHAPES)
    tables = {split: _factors(split) for split in ("train", "test")}
    rows = {
        split: [values for _, values in table.rows(["shape", "colour", "scale", "rotation", "x", "y"])]
        for split, table in tables.items()
    }
    assert (len(rows["train"]), len(rows["test"])) == (tables["train"].count, tables["test"].count) == (10_000, 2_000)
    assert len({*rows["train"], *rows["test"]}) == 12_000
    assert (data.images == Factors().render(torch.tensor(rows["test"]))).all()
    assert data.labels.tolist() == [row[0] for row in rows["test"]]
    assert data.captions[0] == f"a {list(COLOURS)[rows['test'][0][1]]} {SHAPES[rows['test'][0][0]]}"
    assert all((np.bincount([row[0] for row in part]) > 0.23 * len(part)).all() for part in rows.values())
    with pytest.raises(DataError, match=r'"factors" has no split "tests"\. Did you mean "test"'):
        load_images("factors", split="tests")


def test_the_command_line_describes_them(capsys):
    main(["data", "factors", "--split", "test", "--label_column", "colour"])
    out = capsys.readouterr().out
    assert "factors: 2000 images of shape (3, 32, 32)" in out and "magenta" in out and "apache-2.0" in out


def test_docstrings():
    assert doctest.testmod(latentia.data.factors).failed == 0
