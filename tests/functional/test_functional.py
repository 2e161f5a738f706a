"""Pixels, chunks, checks and small schedules."""

import pytest
import torch

from latentia.errors import UsageError, check_choice, check_range
from latentia.functional.bounds import diffusion_bound_term
from latentia.functional.checks import check_indices, check_values, is_false
from latentia.functional.chunks import in_chunks
from latentia.functional.distributions import gaussian_kl, gaussian_kl_between, log_normal
from latentia.functional.pixels import from_uint8, to_uint8


def test_bytes_come_back_as_they_were():
    pixels = torch.arange(256, dtype=torch.uint8)
    images = from_uint8(pixels)
    assert images.dtype == torch.float32 and images.min() == -1 and images.max() == 1
    assert torch.equal(to_uint8(images), pixels)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_bytes_of_other_precisions_are_those_of_float32(dtype):
    images = torch.linspace(-1.1, 1.1, 4001).to(dtype)
    assert torch.equal(to_uint8(images), to_uint8(images.float()))


def test_from_uint8_leaves_its_input_alone():
    pixels = torch.tensor([0.0, 255.0])
    assert from_uint8(pixels).tolist() == [-1, 1] and pixels.tolist() == [0, 255]


@pytest.mark.parametrize("n", [0, 1, 3, 4, 9])
def test_chunks_have_one_size_and_join_to_all_rows(n):
    sizes = []

    def function(x, y, nothing):
        sizes.append((len(x), len(y)))
        assert nothing is None
        return 2 * x, x + y

    x = torch.arange(n, dtype=torch.float32)
    double, total = in_chunks(function, x, x[:, None].expand(-1, 2).sum(1), None, size=4)
    assert {*sizes} == {(4, 4)} or n == 0
    assert torch.equal(double, 2 * x) and torch.equal(total, 3 * x)


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        (((0.5, 0, 1), {"closed": "neither"}), None),
        (((0, 0, 1), {"closed": "neither"}), r"must be in \(0, 1\); got 0\."),
        (((1.0, 0, 1), {"closed": "left"}), r"must be in \[0, 1\); got 1.0\."),
        (((-1, 0), {}), r"must be at least 0; got -1\."),
        (((0, 0), {"closed": "neither"}), r"must be positive; got 0\."),
        (((float("nan"), 0), {}), r"must be at least 0 and finite; got nan\."),
        (((float("inf"),), {}), r"must be finite; got inf\."),
        ((((3, 0), 1), {}), r"must each be at least 1; got \(3, 0\)\."),
        ((((), 1), {}), None),
        (((None, 1), {}), None),
        (((2, 3), {"advice": "Use 3."}), r"must be at least 3; got 2\. Use 3\."),
    ],
)
def test_ranges(given, rule):
    values, options = given
    if rule is None:
        check_range("size", *values, **options)
        return
    with pytest.raises(UsageError, match=f"^size {rule}$"):
        check_range("size", *values, **options)


def test_choices_name_what_is_known_and_what_is_near():
    with pytest.raises(UsageError, match=r"^norm must be one of batch, group; got .bach.\. Did you mean .batch.\?"):
        check_choice("norm", "bach", ("batch", "group"))
    with pytest.raises(UsageError, match="got 3"):
        check_choice("norm", 3, ("batch", "group"))


def test_checks_of_values():
    check_values("x", torch.tensor([-1.0, 1.0]), -1, 1)
    check_indices("labels", torch.tensor([0, 9]), 10)
    for call, message in (
        (
            lambda: check_values("x", torch.tensor([0.0, 1.5]), -1, 1),
            r"x must be in \[-1, 1\]; got values from 0 to 1.5",
        ),
        (lambda: check_values("x", torch.tensor([0.0, float("nan")]), -1, 1), "got values from nan to nan"),
        (lambda: check_indices("labels", torch.tensor([-1]), 10), "labels must be from 0 to 9; got -1 to -1"),
        (lambda: check_indices("labels", torch.tensor([0.5]), 10), "labels must be integers"),
    ):
        with pytest.raises(UsageError, match=message):
            call()


def test_checks_of_values_pass_where_there_are_none():
    check_values("x", torch.full((2,), 9.0, device="meta"), -1, 1)
    check_indices("labels", torch.full((2,), 99, device="meta"), 10)
    assert not is_false(torch.zeros((), dtype=torch.bool, device="meta")) and is_false(torch.tensor(False))
    torch.compile(lambda x: check_values("x", x, -1, 1), backend="eager", fullgraph=True)(torch.full((2,), 9.0))


def test_divergences_agree_with_samples():
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = torch.tensor([0.5, -1.0]), torch.tensor([-0.5, 0.3])
    other_mean, other_log_variance = torch.tensor([0.1, 0.2]), torch.tensor([0.4, -0.2])
    z = mean + (0.5 * log_variance).exp() * torch.randn(400_000, 2, generator=generator)
    estimate = (log_normal(z, mean, log_variance) - log_normal(z, other_mean, other_log_variance)).mean()
    exact = gaussian_kl_between(mean, log_variance, other_mean, other_log_variance).sum()
    assert abs(estimate - exact) < 0.01
    zero = torch.zeros(2)
    torch.testing.assert_close(gaussian_kl_between(mean, log_variance, zero, zero), gaussian_kl(mean, log_variance))


def test_the_last_bound_term_is_a_likelihood():
    x, zero = torch.zeros(2, 1, 2, 2), torch.zeros(1, 1, 1, 1)
    kl, nll = diffusion_bound_term(x, x, zero, x, zero, torch.tensor([False, True]))
    assert kl == 0 and nll > 0
