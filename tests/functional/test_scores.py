"""Normal scores and multinomial diffusion against closed forms and enumeration."""

import math

import pytest
import torch
from scipy.stats import kstest, norm

from latentia.functional.multinomial import multinomial_bound_term, noisy_probabilities, posterior_probabilities
from latentia.functional.scores import (
    categories_of_scores,
    category_scores,
    mixture_log_density,
    mixture_scores,
    mixture_values,
)
from latentia.functional.tabular import draw_row, row_log_likelihood

# A narrow mode, two wide ones, and a very wide one of little weight, as an encoder has it, in the gap.
PARTS = ([0.199, 0.5, 0.3, 0.001], [-40.0, 0.0, 9.0, -10.0], [1e-2, 2.0, 5.0, 60.0])
MIXTURE = [torch.tensor([row]).double() for row in PARTS]


def test_one_gaussian_is_standardised():
    one = [torch.tensor([[value]]).double() for value in (1.0, 3.0, 2.0)]
    x = torch.linspace(-50, 50, 101).double()[:, None]
    torch.testing.assert_close(mixture_scores(x, *one), (x - 3) / 2, atol=1e-9, rtol=1e-9)


def test_scores_equal_those_of_scipy_in_both_tails():
    x = torch.tensor([-60.0, -40.0, -39.99, -5.0, 0.0, 20.0, 45.0]).double()
    w, m, s = (part[0].numpy() for part in MIXTURE)
    below = (w * norm.cdf((x.numpy()[:, None] - m) / s)).sum(1)
    above = (w * norm.sf((x.numpy()[:, None] - m) / s)).sum(1)
    expected = [norm.ppf(b) if b < 0.5 else norm.isf(a) for b, a in zip(below, above)]
    torch.testing.assert_close(mixture_scores(x[:, None], *MIXTURE)[:, 0], torch.tensor(expected).double())


def test_samples_of_the_mixture_become_standard_normal():
    torch.manual_seed(0)
    k = torch.multinomial(MIXTURE[0][0], 4000, replacement=True)
    x = MIXTURE[1][0, k] + MIXTURE[2][0, k] * torch.randn(4000).double()
    assert kstest(mixture_scores(x[:, None], *MIXTURE)[:, 0].numpy(), "norm").pvalue > 0.01


def test_values_invert_scores_through_narrow_modes_and_wide_gaps():
    x = torch.cat([torch.linspace(-80, 40, 400), torch.linspace(-40.02, -39.98, 100)]).double()[:, None]
    z = mixture_scores(x, *MIXTURE)
    kept = z.abs() < 8  # beyond it neighbours share a score
    assert kept.sum() > 300
    torch.testing.assert_close(mixture_values(z, *MIXTURE)[kept], x[kept], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(mixture_scores(mixture_values(z, *MIXTURE), *MIXTURE)[kept], z[kept])


def test_the_slope_of_scores_is_the_ratio_of_densities():
    x = torch.linspace(-10, 30, 50).double()[:, None].requires_grad_()
    z = mixture_scores(x, *MIXTURE)
    (slope,) = torch.autograd.grad(z.sum(), x)
    normal = -0.5 * z.square() - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(slope.log(), mixture_log_density(x, *MIXTURE) - normal)


def test_categories_come_back_and_are_standard_normal():
    shares = torch.tensor([0.6, 1e-4, 0.3999]).double()
    generator = torch.Generator().manual_seed(1)
    k = torch.multinomial(shares, 5000, replacement=True, generator=generator)
    for u in (torch.zeros(5000), torch.ones(5000), torch.rand(5000, generator=generator)):
        assert torch.equal(categories_of_scores(category_scores(k, shares, u.double()), shares), k)
    assert kstest(category_scores(k, shares, u.double()).numpy(), "norm").pvalue > 0.01


@pytest.mark.parametrize("k", [2, 5])
def test_the_posterior_of_categories_is_that_of_bayes(k):
    """Enumerated over all x_{t-1}, of a chain of two steps."""
    alpha, before = torch.tensor([0.7]).double(), torch.tensor([0.8]).double()
    eye = torch.eye(k).double()
    for clean in range(k):
        for noisy in range(k):
            prior = noisy_probabilities(eye[clean : clean + 1], before)[0]
            likelihood = torch.stack([noisy_probabilities(eye[i : i + 1], alpha)[0, noisy] for i in range(k)])
            expected = prior * likelihood / (prior * likelihood).sum()
            found = posterior_probabilities(eye[clean : clean + 1], eye[noisy : noisy + 1], alpha, before)[0]
            torch.testing.assert_close(found, expected)
            # The two steps in one are a step of alpha times before.
            torch.testing.assert_close(
                (prior * likelihood).sum(), noisy_probabilities(eye[clean : clean + 1], alpha * before)[0, noisy]
            )


def test_the_last_term_of_the_bound_is_a_cross_entropy():
    logits = torch.tensor([[0.3, -1.0, 2.0]]).double()
    clean, noisy = torch.eye(3).double()[:1], torch.eye(3).double()[2:]
    found = multinomial_bound_term(clean, noisy, logits, torch.tensor([0.9]).double(), torch.ones(1).double())
    predicted = posterior_probabilities(logits.softmax(1), noisy, torch.tensor([0.9]).double(), torch.ones(1).double())
    torch.testing.assert_close(found, -predicted[:, 0].log())


def test_rows_are_drawn_with_the_probabilities_of_their_logits():
    u = (torch.arange(1000)[:, None] + 0.5) / 1000
    rows = draw_row(torch.tensor([[7.0, 0.0, math.log(3.0)]]).expand(1000, -1), u, (2,))
    torch.testing.assert_close(rows.mean(0), torch.tensor([7.0, 0.25, 0.75]))


def test_the_likelihood_of_a_row_sums_to_one_over_categories():
    location, log_scale = torch.randn(1, 6), torch.zeros(1)
    rows = [torch.cat([torch.zeros(1), torch.eye(2)[i], torch.eye(3)[j]])[None] for i in range(2) for j in range(3)]
    total = torch.stack([row_log_likelihood(x, location, log_scale, (2, 3)).exp() for x in rows]).sum()
    density = torch.distributions.Normal(location[:, 0], 1.0).log_prob(torch.zeros(1)).exp()
    torch.testing.assert_close(total, density[0])
