"""Paths between latents: ends, angles and lengths."""

import pytest
import torch

from latentia.errors import UsageError
from latentia.functional.interpolation import interpolate, lerp, slerp


@pytest.mark.parametrize("mode", ["lerp", "slerp"])
def test_both_ends_are_exact(mode):
    a, b = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    path = interpolate(a, b, 5, mode)
    assert path.shape == (5, 3, 4, 4)
    assert torch.equal(path[:1], a) and torch.equal(path[-1:], b)


def test_slerp_keeps_the_norm_and_splits_the_angle():
    a, b = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    path = interpolate(a, b, 4, "slerp")
    angles = torch.tensor([0.0, 30.0, 60.0, 90.0]).deg2rad()
    torch.testing.assert_close(path, 3 * torch.stack([angles.cos(), angles.sin()], 1))


def test_slerp_of_rows_is_that_of_each_row():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    t = torch.rand(6, 1, generator=generator, dtype=torch.float64)
    rows = torch.cat([slerp(a[i : i + 1], b[i : i + 1], t[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(slerp(a, b, t), rows)


def test_slerp_of_nearly_equal_directions_is_the_line():
    a = torch.randn(4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for b in (a, a * (1 + 1e-13)):
        torch.testing.assert_close(slerp(a, b, torch.full((4, 1), 0.3)), lerp(a, b, torch.tensor(0.3)))


def test_slerp_has_the_right_ends_and_keeps_the_length():
    a, b = torch.randn(2, 20, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(slerp(a, b, torch.zeros(20, 1)), a)
    torch.testing.assert_close(slerp(a, b, torch.ones(20, 1)), b)
    b = b / b.norm(dim=1, keepdim=True) * a.norm(dim=1, keepdim=True)
    middle = slerp(a, b, torch.full((20, 1), 0.3))
    torch.testing.assert_close(middle.norm(dim=1), a.norm(dim=1))
    torch.testing.assert_close(slerp(a, a, torch.full((20, 1), 0.3)), a)
    nearly = a + 1e-12
    torch.testing.assert_close(slerp(a, nearly, torch.full((20, 1), 0.3)), a)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: interpolate(a, a, 1), "steps must be at least 2; got 1"),
        (lambda a: interpolate(a, a, 3, "slrp"), 'mode must be one of lerp, slerp.*Did you mean "slerp"'),
        (lambda a: interpolate(a, -a, 3, "slerp"), "must not be opposite"),
        (lambda a: interpolate(a, 0 * a, 3, "slerp"), "must not be 0"),
    ],
)
def test_paths_that_do_not_exist_are_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call(torch.ones(1, 3))
