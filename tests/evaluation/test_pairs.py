"""Image pairs: closed forms, a second computation in plain NumPy, torchmetrics where it is there, published tables."""

import doctest
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import convolve2d
from torch import nn

import latentia.evaluation.color
import latentia.evaluation.pairs
from latentia.errors import DataError, UsageError
from latentia.evaluation import (
    ciede2000,
    color_difference,
    load_extractor,
    ms_ssim,
    perceptual_distance,
    perceptual_loss,
    psnr,
    sharpness,
    sharpness_ratio,
    srgb_to_lab,
    ssim,
)
from latentia.evaluation.pairs import MS_SSIM_WEIGHTS
from latentia.models.classifier import DigitClassifier


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def pair(*shape, noise=0.3, seed=0):
    """Smooth images and noisy copies of them."""
    waves = torch.linspace(0, 6, shape[-1]).sin() * torch.linspace(0, 4, shape[-2]).cos()[:, None]
    clean = (0.8 * waves * rand(shape[0], shape[1], 1, 1, seed=seed)).float()
    return clean, (clean + noise * rand(*shape, seed=seed + 1)).clamp(-1, 1)


@pytest.fixture(scope="module")
def extractor():
    return load_extractor("digits")


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    return torch.from_numpy(load_digits().data[:64]).float().reshape(-1, 1, 8, 8) / 8 - 1


PAIRED = {
    "psnr": psnr,
    "ssim": lambda a, b: ssim(a, b, window=5),
    "ms_ssim": lambda a, b: ms_ssim(a, b, scales=2, window=3),
    "color_difference": color_difference,
    "perceptual_distance": lambda a, b: perceptual_distance(a, b, load_extractor("digits")),
}
OF_EQUAL_IMAGES = {"psnr": math.inf, "ssim": 1, "ms_ssim": 1, "color_difference": 0, "perceptual_distance": 0}


# ------------------------------------------------------------------------------------------- what all have in common


@pytest.mark.parametrize("name", PAIRED)
def test_equal_images_score_best_and_scores_are_symmetric(name, digits):
    assert PAIRED[name](digits[:6], digits[:6]).tolist() == [OF_EQUAL_IMAGES[name]] * 6
    a, b = digits[:6], digits[6:12]
    forth, back = PAIRED[name](a, b), PAIRED[name](b, a)
    assert forth.shape == (6,) and forth.dtype == torch.float64
    assert torch.allclose(forth, back, rtol=1e-12)
    worse = forth > OF_EQUAL_IMAGES[name] if OF_EQUAL_IMAGES[name] == 0 else forth < OF_EQUAL_IMAGES[name]
    assert worse.all()


@pytest.mark.parametrize("name", PAIRED)
def test_each_number_belongs_to_its_image(name, digits, monkeypatch):
    a, b = digits[:9], digits[9:18]
    whole = PAIRED[name](a, b)
    one_by_one = torch.cat([PAIRED[name](a[i : i + 1], b[i : i + 1]) for i in range(9)])
    monkeypatch.setattr(latentia.evaluation.pairs, "_VALUES", 4 * 64)
    tolerance = {"rtol": 1e-4} if name == "perceptual_distance" else {"rtol": 1e-12}
    assert torch.allclose(whole, one_by_one, **tolerance)
    assert torch.allclose(whole, PAIRED[name](a, b), **tolerance)
    assert len(set(whole.tolist())) > 6


@pytest.mark.parametrize("name", PAIRED)
def test_more_noise_is_further_away(name, digits):
    noise = rand(64, 1, 8, 8, seed=3)
    steps = [PAIRED[name](digits, (digits + s * noise).clamp(-1, 1)).mean().item() for s in (0.1, 0.3, 0.9)]
    assert steps == sorted(steps, reverse=OF_EQUAL_IMAGES[name] != 0)


GOOD = rand(8, 1, 8, 8, seed=9)
BAD = {
    "bytes": (((GOOD + 1) * 127.5).to(torch.uint8), UsageError, "floats"),
    "[0, 1]": ((GOOD + 1) / 2, UsageError, "looks like"),
    "[0, 255]": ((GOOD + 1) * 127.5, UsageError, "127.5"),
    "NaN": (torch.where(GOOD > 0.9, math.nan, GOOD), DataError, "finite"),
    "array": (GOOD.numpy(), UsageError, "ndarray"),
    "no batch axis": (GOOD[0], UsageError, "at least one"),
}


@pytest.mark.parametrize("name", PAIRED)
@pytest.mark.parametrize("kind", BAD)
def test_unfit_images_are_refused_by_the_name_of_their_side(name, kind):
    bad, error, text = BAD[kind]
    with pytest.raises(error, match=f"^`a` must.*{text}"):
        PAIRED[name](bad, GOOD)
    with pytest.raises(error, match=f"^`b` must.*{text}"):
        PAIRED[name](GOOD, bad)


@pytest.mark.parametrize("name", PAIRED)
def test_unequal_shapes_are_refused(name):
    for other in (GOOD[:3], GOOD.expand(-1, 3, -1, -1), GOOD[..., :7]):
        with pytest.raises(UsageError, match=r"`a` and `b` must have the same shape.*\(8, 1, 8, 8\)"):
            PAIRED[name](GOOD, other)


# -------------------------------------------------------------------------------------------------------------- PSNR


@pytest.mark.parametrize("shift", [2.0, 0.2, 1e-4])
def test_psnr_of_a_constant_difference_has_its_closed_form(shift):
    a = torch.full((1, 3, 5, 7), -1.0, dtype=torch.float64)
    assert psnr(a, a + shift).item() == pytest.approx(20 * math.log10(2 / shift), rel=1e-10)


def test_psnr_agrees_with_torchmetrics():
    reference = pytest.importorskip("torchmetrics.functional.image").peak_signal_noise_ratio
    a, b = pair(4, 3, 9, 12)
    expected = reference(b.double(), a.double(), data_range=2.0, dim=(1, 2, 3), reduction="none")
    assert torch.allclose(psnr(a, b), expected, rtol=1e-7)  # it takes the logarithm's base in single precision


# ----------------------------------------------------------------------------------------------------- SSIM, MS-SSIM


def ssim_maps(x, y, window):
    """SSIM and contrast-structure maps of two channels, from the definition: a 2-d window, centred moments."""
    line = np.exp(-0.5 * ((np.arange(window) - (window - 1) / 2) / 1.5) ** 2)
    weights = np.outer(line, line) / line.sum() ** 2
    rows, columns = x.shape[0] - window + 1, x.shape[1] - window + 1
    full, contrast = np.empty((rows, columns)), np.empty((rows, columns))
    for i in range(rows):
        for j in range(columns):
            p, q = x[i : i + window, j : j + window], y[i : i + window, j : j + window]
            m, n = (weights * p).sum(), (weights * q).sum()
            v, w = (weights * (p - m) ** 2).sum(), (weights * (q - n) ** 2).sum()
            c = (weights * (p - m) * (q - n)).sum()
            contrast[i, j] = (2 * c + 0.0036) / (v + w + 0.0036)
            full[i, j] = (2 * m * n + 0.0004) / (m * m + n * n + 0.0004) * contrast[i, j]
    return full, contrast


@pytest.mark.parametrize("shape, window", [((2, 3, 13, 17), 11), ((2, 1, 8, 8), 7), ((1, 1, 11, 11), 11)])
def test_ssim_follows_its_definition_window_by_window(shape, window):
    a, b = (images.double() for images in pair(*shape))
    expected = [np.mean([ssim_maps(x, y, window)[0] for x, y in zip(*two)]) for two in zip(a.numpy(), b.numpy())]
    assert ssim(a, b, window=window).tolist() == pytest.approx(expected, rel=1e-12)


def test_ssim_agrees_with_torchmetrics_inside_the_border():
    reference = pytest.importorskip("torchmetrics.functional.image").structural_similarity_index_measure
    a, b = (images.double() for images in pair(3, 3, 24, 31))
    _, full = reference(a, b, data_range=2.0, reduction="none", return_full_image=True)
    inside = full[..., 5:-5, 5:-5].flatten(1).mean(1)  # it mirrors images at their border, the paper does not
    assert torch.allclose(ssim(a, b), inside, rtol=1e-12)


def test_ssim_of_constant_images_is_the_luminance_term():
    a, b = torch.full((1, 1, 12, 12), 0.5).double(), torch.full((1, 1, 12, 12), -0.25).double()
    expected = (2 * 0.5 * -0.25 + 0.0004) / (0.25 + 0.0625 + 0.0004)
    assert ssim(a, b).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("scales", [1, 2, 3, 5])
def test_ms_ssim_follows_its_definition(scales):
    a, b = (images.double().numpy() for images in pair(2, 2, 49, 55, seed=4))
    expected = []
    for x, y in zip(a, b):
        product, total = 1.0, sum(MS_SSIM_WEIGHTS[:scales]) if scales < 5 else 1  # all five as printed
        for scale in range(scales):
            full, contrast = (np.mean(part) for part in zip(*(ssim_maps(p, q, 3) for p, q in zip(x, y))))
            product *= (full if scale == scales - 1 else contrast) ** (MS_SSIM_WEIGHTS[scale] / total)
            mean = np.full((2, 2), 0.25)
            x, y = (np.stack([convolve2d(p, mean, "valid")[::2, ::2] for p in part]) for part in (x, y))
        expected.append(product)
    actual = ms_ssim(torch.from_numpy(a), torch.from_numpy(b), scales=scales, window=3)
    assert actual.tolist() == pytest.approx(expected, rel=1e-12)


def test_ms_ssim_is_near_torchmetrics():
    reference = pytest.importorskip("torchmetrics.functional.image").multiscale_structural_similarity_index_measure
    a, b = (images.double() for images in pair(1, 1, 192, 192))
    assert ms_ssim(a, b).item() == pytest.approx(reference(a, b, data_range=2.0).item(), abs=2e-3)


def test_the_weights_are_those_of_the_paper():
    assert sum(MS_SSIM_WEIGHTS) == pytest.approx(1.0001, abs=1e-9) and len(MS_SSIM_WEIGHTS) == 5


def test_an_inverted_structure_scores_at_most_zero():
    a = rand(2, 1, 16, 16)
    a -= a.mean((2, 3), keepdim=True)
    a /= a.abs().amax() * 1.01
    assert (ssim(a, -a) < 1).all() and (ms_ssim(a, -a, scales=2, window=5) == 0).all()


@pytest.mark.parametrize("side, fit", [(8, 7), (10, 9), (3, 3), (4, 3), (7, 7)])
def test_images_below_the_window_are_told_which_window_fits(side, fit):
    a = rand(2, 1, side, side + 3)
    with pytest.raises(UsageError, match=f"Got 11; pass window={fit},"):
        ssim(a, a)
    assert ssim(a, a, window=fit).tolist() == [1, 1]


def test_windows_and_scales_out_of_range_are_refused():
    a = rand(1, 1, 40, 50)
    for window in (-1, 1, 4, 41):
        with pytest.raises(UsageError, match=f"Got {window}; pass window=11"):
            ssim(a, a, window=window)
    with pytest.raises(UsageError, match="at least 3 x 3"):
        ssim(a[..., :2], a[..., :2])
    for scales in (0, 6):
        with pytest.raises(UsageError, match=f"between 1 and 5. Got {scales}"):
            ms_ssim(a, a, scales=scales)
    with pytest.raises(UsageError, match=r"at least 176 pixels.*\(40, 50\); pass scales=2"):
        ms_ssim(a, a)
    with pytest.raises(UsageError, match="pass scales=2"):
        ms_ssim(a, a, scales=3)
    assert ms_ssim(a, a, scales=2).item() == 1
    with pytest.raises(UsageError, match="pass window=7"):
        ms_ssim(a[..., :8], a[..., :8])
    smallest = rand(1, 1, 176, 176)
    assert ms_ssim(smallest, smallest).item() == 1
    with pytest.raises(UsageError, match="pass scales=4"):
        ms_ssim(smallest[..., 1:], smallest[..., 1:])


def test_similarities_have_right_gradients():
    a, b = pair(1, 1, 7, 7)
    a, b = a.double().requires_grad_(), b.double()
    assert torch.autograd.gradcheck(lambda x: ssim(x, b, window=5), a)
    assert torch.autograd.gradcheck(lambda x: psnr(x, b), a)


# ------------------------------------------------------------------------------------------------------------ colour

# Table 1 of Sharma, Wu and Dalal 2005: L*, a*, b* of two colours and their difference.
SHARMA = """
50 2.6772 -79.7751 50 0 -82.7485 2.0425
50 3.1571 -77.2803 50 0 -82.7485 2.8615
50 2.8361 -74.0200 50 0 -82.7485 3.4412
50 -1.3802 -84.2814 50 0 -82.7485 1.0000
50 -1.1848 -84.8006 50 0 -82.7485 1.0000
50 -0.9009 -85.5211 50 0 -82.7485 1.0000
50 0 0 50 -1 2 2.3669
50 -1 2 50 0 0 2.3669
50 2.4900 -0.0010 50 -2.4900 0.0009 7.1792
50 2.4900 -0.0010 50 -2.4900 0.0010 7.1792
50 2.4900 -0.0010 50 -2.4900 0.0011 7.2195
50 2.4900 -0.0010 50 -2.4900 0.0012 7.2195
50 -0.0010 2.4900 50 0.0009 -2.4900 4.8045
50 -0.0010 2.4900 50 0.0010 -2.4900 4.8045
50 -0.0010 2.4900 50 0.0011 -2.4900 4.7461
50 2.5 0 50 0 -2.5 4.3065
50 2.5 0 73 25 -18 27.1492
50 2.5 0 61 -5 29 22.8977
50 2.5 0 56 -27 -3 31.9030
50 2.5 0 58 24 15 19.4535
50 2.5 0 50 3.1736 0.5854 1.0000
50 2.5 0 50 3.2972 0 1.0000
50 2.5 0 50 1.8634 0.5757 1.0000
50 2.5 0 50 3.2592 0.3350 1.0000
60.2574 -34.0099 36.2677 60.4626 -34.1751 39.4387 1.2644
63.0109 -31.0961 -5.8663 62.8187 -29.7946 -4.0864 1.2630
61.2901 3.7196 -5.3901 61.4292 2.2480 -4.9620 1.8731
35.0831 -44.1164 3.7933 35.0232 -40.0716 1.5901 1.8645
22.7233 20.0904 -46.6940 23.0331 14.9730 -42.5619 2.0373
36.4612 47.8580 18.3852 36.2715 50.5065 21.2231 1.4146
90.8027 -2.0831 1.4410 91.1528 -1.6435 0.0447 1.4441
90.9257 -0.5406 -0.9208 88.6381 -0.8985 -0.7239 1.5381
6.7747 -0.2908 -2.4247 5.8714 -0.0985 -2.2286 0.6377
2.0776 0.0795 -1.1350 0.9033 -0.0636 -0.5514 0.9082
"""


def test_ciede2000_gives_the_published_differences_both_ways():
    table = torch.tensor([[float(word) for word in line.split()] for line in SHARMA.split("\n") if line]).double()
    assert table.shape == (34, 7)
    for first, second in ((table[:, :3], table[:, 3:6]), (table[:, 3:6], table[:, :3])):
        assert (ciede2000(first, second) - table[:, 6]).abs().max() < 5e-5 + 1e-9


def test_ciede2000_of_equal_colours_is_zero():
    lab = torch.stack([rand(2, 5, 4) * 50 + 50, rand(2, 5, 4, seed=1) * 90, rand(2, 5, 4, seed=2) * 90], 1)
    assert (ciede2000(lab, lab) == 0).all()
    other = lab.flip(0)
    assert ciede2000(lab, other)[1, 3, 2].item() == pytest.approx(
        ciede2000(lab[1, :, 3, 2][None], other[1, :, 3, 2][None]).item(), rel=1e-12
    )
    with pytest.raises(UsageError, match="lab_a"):
        ciede2000(lab, lab[:, :2])


LAB = {  # of 8-bit sRGB under D65, 2 degrees
    (255, 255, 255): (100, 0, 0),
    (0, 0, 0): (0, 0, 0),
    (255, 0, 0): (53.24, 80.09, 67.20),
    (0, 255, 0): (87.73, -86.18, 83.18),
    (0, 0, 255): (32.30, 79.19, -107.86),
    (128, 128, 128): (53.585, 0, 0),
    (64, 64, 64): (27.093, 0, 0),
    (5, 5, 5): (1.371, 0, 0),  # in the linear part of both curves
}


def test_srgb_is_converted_to_its_known_lab_values():
    colours = torch.tensor(list(LAB), dtype=torch.float64)[:, :, None, None] / 127.5 - 1
    lab = srgb_to_lab(colours).flatten(1)
    assert torch.allclose(lab, torch.tensor(list(LAB.values()), dtype=torch.float64), atol=6e-3)


def test_every_grey_has_no_colour_and_one_channel_means_grey():
    grey = torch.linspace(-1, 1, 64, dtype=torch.float64).view(1, 1, 8, 8)
    lab = srgb_to_lab(grey)
    assert lab[:, 1:].abs().max() < 1e-10
    assert (lab[:, 0].flatten().diff() > 0).all() and lab[0, 0, 0, 0] == pytest.approx(0, abs=1e-12)
    assert torch.equal(lab, srgb_to_lab(grey.expand(-1, 3, -1, -1)))


def test_color_difference_is_the_mean_over_pixels():
    a, b = rand(2, 3, 4, 5), rand(2, 3, 4, 5, seed=1)
    pixels = [
        color_difference(a[1:, :, i : i + 1, j : j + 1], b[1:, :, i : i + 1, j : j + 1]).item()
        for i in range(4)
        for j in range(5)
    ]
    assert color_difference(a, b)[1].item() == pytest.approx(np.mean(pixels), rel=1e-12)
    with pytest.raises(UsageError, match="Got 2"):
        color_difference(a[:, :2], b[:, :2])


def test_many_bright_images_in_one_part_are_accepted(monkeypatch):
    monkeypatch.setattr(latentia.evaluation.pairs, "_VALUES", 10 * 3 * 16)
    a = torch.cat([rand(10, 3, 4, 4).abs(), rand(10, 3, 4, 4)])
    assert (color_difference(a, a) == 0).all() and len(sharpness(a)) == 20


# --------------------------------------------------------------------------------------------- perceptual distance


def test_perceptual_distance_is_its_definition(extractor, digits):
    a, b = digits[:4], digits[4:8]
    total, layers, x, y = 0.0, 0, a, b
    for layer in extractor.model.body:
        if isinstance(layer, nn.MaxPool2d):
            u, v = (z.double() / z.double().norm(dim=1, keepdim=True) for z in (x, y))
            total, layers = total + ((u - v) ** 2).sum(1).mean((1, 2)), layers + 1
        x, y = layer(x), layer(y)
    assert layers == 2
    assert torch.allclose(perceptual_distance(a, b, extractor), total / 2, rtol=1e-4)
    assert torch.equal(perceptual_distance(a, b, extractor.model), perceptual_distance(a, b, extractor))


def test_perceptual_distance_grows_with_blur(extractor, digits):
    def blur(images, times):
        for _ in range(times):
            images = nn.functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
        return images

    steps = [perceptual_distance(digits, blur(digits, times), extractor).mean().item() for times in (1, 2, 4)]
    assert 0 < steps[0] < steps[1] < steps[2] < 4


def test_perceptual_loss_pulls_an_image_towards_another(extractor, digits):
    target, x = digits[:3], rand(3, 1, 8, 8, seed=5).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.05)
    losses = []
    for _ in range(60):
        loss = perceptual_loss(x, target, extractor.model).mean()
        optimizer.zero_grad()
        loss.backward()
        assert x.grad.isfinite().all()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert (x.detach() - target).square().mean() < (rand(3, 1, 8, 8, seed=5) - target).square().mean()


def test_perceptual_loss_has_the_right_gradients():
    model = DigitClassifier(sample_size=4, block_out_channels=(3,)).double().eval()
    x, y = (rand(1, 1, 4, 4, seed=i).double() for i in range(2))
    assert torch.autograd.gradcheck(lambda z: perceptual_loss(z, y, model), x.requires_grad_())
    with torch.no_grad():
        model.body[0].weight.zero_()
    perceptual_loss(x, y, model).sum().backward()
    assert x.grad.isfinite().all()


def test_perceptual_distance_is_outside_of_autocast_and_graphs(extractor, digits):
    a, b = digits[:4].clone().requires_grad_(), digits[4:8]
    expected = perceptual_distance(a, b, extractor)
    assert not expected.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(perceptual_distance(a, b, extractor), expected)


def test_perceptual_distance_refuses_what_it_cannot_use(extractor, digits):
    with pytest.raises(UsageError, match=r"\(1, 8, 8\). Got \(1, 28, 28\)"):
        perceptual_distance(rand(2, 1, 28, 28), rand(2, 1, 28, 28), extractor)
    with pytest.raises(UsageError, match="Got Linear"):
        perceptual_distance(digits, digits, nn.Linear(2, 2))
    with pytest.raises(UsageError, match="Got str"):
        perceptual_distance(digits, digits, "digits")
    training = DigitClassifier(sample_size=8).train()
    with pytest.raises(UsageError, match=r"model.eval\(\)"):
        perceptual_loss(digits, digits, training)
    with pytest.raises(UsageError, match="same shape"):
        perceptual_loss(digits, digits[:1], extractor.model)


# --------------------------------------------------------------------------------------------------------- sharpness


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 9),
    st.integers(2, 9),
    st.floats(-0.1, 0.1),
    st.floats(-0.1, 0.1),
    st.floats(-0.2, 0.2),
)
def test_sharpness_of_a_ramp_is_the_squared_slope(height, width, down, right, constant):
    rows, columns = torch.arange(height).double()[:, None] - 4, torch.arange(width).double() - 4
    ramp = (down * rows + right * columns + constant)[None, None]
    if ramp.abs().max() <= 1:
        assert sharpness(ramp).item() == pytest.approx(down**2 + right**2, abs=1e-14)


def test_sharpness_is_the_mean_of_squared_differences():
    x = rand(2, 3, 4, 6).double()
    expected = [
        np.mean([(x[i, c, h, w + 1] - x[i, c, h, w]) ** 2 for c in range(3) for h in range(4) for w in range(5)])
        + np.mean([(x[i, c, h + 1, w] - x[i, c, h, w]) ** 2 for c in range(3) for h in range(3) for w in range(6)])
        for i in range(2)
    ]
    assert sharpness(x).tolist() == pytest.approx(expected, rel=1e-12)


def test_the_ratio_tells_blur_from_noise(digits):
    blurred = nn.functional.avg_pool2d(digits, 3, stride=1, padding=1, count_include_pad=False)
    noisy = (blurred + 0.5 * rand(64, 1, 8, 8)).clamp(-1, 1)
    assert sharpness_ratio(digits[:20], digits[:20]) == 1
    assert sharpness_ratio(blurred[:30], digits) < 0.4 < 1.5 < sharpness_ratio(noisy, blurred)
    assert sharpness_ratio(digits / 3, digits) == pytest.approx(1 / 9, rel=1e-6)


def test_sharpness_refuses_what_has_no_gradient():
    with pytest.raises(UsageError, match="2 x 2"):
        sharpness(rand(3, 1, 1, 8))
    with pytest.raises(UsageError, match="constant"):
        sharpness_ratio(rand(3, 1, 8, 8), torch.zeros(3, 1, 8, 8))
    with pytest.raises(UsageError, match="`generated` and `real`"):
        sharpness_ratio(rand(3, 1, 8, 8), rand(3, 3, 8, 8))
    with pytest.raises(DataError, match="`generated`"):
        sharpness_ratio(rand(3, 1, 8, 8) * math.nan, rand(3, 1, 8, 8))
    with pytest.raises(UsageError, match="`real`"):
        sharpness_ratio(rand(3, 1, 8, 8), (rand(3, 1, 8, 8) + 1).to(torch.uint8))


@pytest.mark.parametrize("module", [latentia.evaluation.pairs, latentia.evaluation.color])
def test_the_examples_in_the_docstrings_run(module):
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.failed == 0 and result.attempted > 3
