"""Transforms of flows: against normflows' splines, finite differences, and bytes that are dequantised and come back."""

import pytest
import torch
from normflows.utils.splines import unconstrained_rational_quadratic_spline

from latentia.evaluation import dequantise
from latentia.functional.flows import affine, dequantize, logit, quantize, rational_quadratic_spline, soft_clip
from latentia.functional.pixels import from_uint8, to_uint8


@pytest.fixture
def parameters():
    torch.manual_seed(0)
    return [torch.randn(200, bins, 3, dtype=torch.float64) * 2 for bins in (8, 8, 7)]


@pytest.mark.parametrize("inverse", [False, True])
def test_a_spline_is_that_of_normflows(parameters, inverse):
    x = torch.randn(200, 3, dtype=torch.float64) * 2  # some outside of the bound
    ours = rational_quadratic_spline(x, *parameters, 3.0, inverse)
    theirs = unconstrained_rational_quadratic_spline(
        x, *(part.movedim(1, -1) for part in parameters), inverse=inverse, tail_bound=3.0
    )
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def test_a_spline_and_its_inverse_undo_each_other(parameters):
    x = torch.linspace(-4, 4, 600, dtype=torch.float64).view(200, 3)
    y, log_derivative = rational_quadratic_spline(x, *parameters, 3.0)
    back, log_back = rational_quadratic_spline(y, *parameters, 3.0, inverse=True)
    torch.testing.assert_close(back, x, atol=1e-10, rtol=0)
    torch.testing.assert_close(log_back, -log_derivative, atol=1e-8, rtol=0)


@pytest.mark.parametrize("bound", [3.0, 1.0])
def test_log_derivatives_are_those_of_autograd(parameters, bound):
    x = torch.randn(200, 3, dtype=torch.float64, requires_grad=True)
    transforms = {
        "spline": lambda x: rational_quadratic_spline(x, *parameters, bound),
        "affine": lambda x: affine(x, *torch.tensor([2.0, -0.7], dtype=torch.float64)),
        "logit": lambda x: logit(x.tanh(), 0.05),
        "logit, inverse": lambda x: logit(x, 0.05, inverse=True),
    }
    for name, transform in transforms.items():
        y, log_derivative = transform(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
        if name == "logit":
            slope = slope / (1 - x.tanh().square())
        torch.testing.assert_close(log_derivative, slope.log(), atol=1e-9, rtol=1e-9, msg=name)


def test_a_spline_is_the_identity_outside_and_continuous():
    torch.manual_seed(1)
    shapes = [torch.randn(1, bins, 1, dtype=torch.float64) * 3 for bins in (5, 5, 4)]
    x = torch.tensor([[-3 - 1e-9], [-3 + 1e-9], [3 - 1e-9], [3 + 1e-9]], dtype=torch.float64)
    y, log_derivative = rational_quadratic_spline(x, *(part.expand(4, -1, -1) for part in shapes), 3.0)
    torch.testing.assert_close(y, x, atol=1e-7, rtol=0)
    assert log_derivative.abs().max() < 1e-4


def test_a_soft_clip_is_bounded_and_near_the_identity():
    x = torch.linspace(-1e4, 1e4, 1001, dtype=torch.float64)
    assert soft_clip(x, 3.0).abs().max() < 3
    small = torch.linspace(-1e-4, 1e-4, 11, dtype=torch.float64)
    torch.testing.assert_close(soft_clip(small, 3.0), small, atol=1e-8, rtol=0)


def test_dequantised_bytes_are_those_of_evaluation_and_come_back():
    bytes_ = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    images = from_uint8(bytes_)
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(3)) * (1 - 1e-5)
    values = dequantize(images, noise)
    assert torch.equal(((values + 1) * 128).floor().to(torch.uint8), bytes_)
    expected = dequantise(bytes_).values
    width = 2 / 256
    assert (dequantize(images) - expected).abs().max() <= width / 2 + 1e-6  # within the same interval
    assert torch.equal(to_uint8(quantize(dequantize(images))), bytes_)
    assert torch.equal(to_uint8(quantize(values)), bytes_)
