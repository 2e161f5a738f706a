"""Gamma latents: samples against the distribution, gradients against exact derivatives, likelihoods against a sum."""

import pytest
import torch
from helpers import load_example
from tiny_vae import DOUBLE, arguments, binary, draws, gradients, tiny
from torch.distributions import Bernoulli, Gamma, kl_divergence

from latentia import VAE, DiffusionPipeline, LatentMixture, VAEPipeline
from latentia.errors import UsageError
from latentia.functional.gamma import (
    NOISE,
    exponential_scores,
    from_exponential_scores,
    gamma_kl,
    gamma_log_prob,
    gamma_parameters,
    gamma_sample,
)
from latentia.losses.variational import elbo_loss, iwae_loss

N = 100_000


def sampled(shape):
    torch.manual_seed(0)
    alpha = torch.full((N, 1), shape, **DOUBLE, requires_grad=True)
    return alpha, *gamma_sample(alpha, torch.randn(N, NOISE, 1, **DOUBLE))


@pytest.mark.parametrize("shape", [0.1, 0.5, 1.0, 3.0, 20.0])
def test_samples_are_gamma_distributed(shape):
    _, z, _ = sampled(shape)
    for quantile in (0.1, 0.5, 0.9):
        at = torch.quantile(z.detach(), quantile)
        assert abs(torch.special.gammainc(torch.tensor(shape, **DOUBLE), at) - quantile) < 0.006


@pytest.mark.parametrize("shape", [0.3, 1.0, 4.0])
def test_gradients_are_the_derivatives_of_exact_means(shape):
    alpha, z, correction = sampled(shape)
    trigamma = torch.special.polygamma(1, torch.tensor(shape, **DOUBLE))
    for f, slope in ((lambda z: z, 1.0), (torch.square, 2 * shape + 1), (torch.log, trigamma)):
        surrogate = f(z) + f(z).detach() * correction
        (each,) = torch.autograd.grad(surrogate.sum(), alpha, retain_graph=True)
        assert abs(each.mean() - slope) < 4 * each.std() / N**0.5


def test_the_path_is_that_of_finite_differences():
    noise = torch.randn(500, NOISE, 1, **DOUBLE)
    alpha = torch.full((500, 1), 1.3, **DOUBLE, requires_grad=True)
    (found,) = torch.autograd.grad(gamma_sample(alpha, noise)[0].sum(), alpha)
    step = 1e-6
    up, down = (gamma_sample(alpha.detach() + sign * step, noise)[0] for sign in (1, -1))
    same = ((up - down).abs() < 1e-3).squeeze(1)  # the same proposal was accepted at both
    assert same.double().mean() > 0.99
    torch.testing.assert_close(found[same], ((up - down) / (2 * step))[same], rtol=1e-5, atol=1e-7)


def test_densities_and_divergences_are_those_of_torch():
    shape, rate, z = torch.rand(3, 6, **DOUBLE) * 3 + 0.1
    torch.testing.assert_close(gamma_log_prob(z, shape, rate), Gamma(shape, rate).log_prob(z))
    one = torch.ones(6, **DOUBLE)
    torch.testing.assert_close(gamma_kl(shape, rate), kl_divergence(Gamma(shape, rate), Gamma(one, one)))


def test_scores_of_the_prior_are_normal():
    z = torch.empty(50_000, **DOUBLE).exponential_()
    scores = exponential_scores(z)
    assert abs(scores.mean()) < 0.02 and abs(scores.std() - 1) < 0.02
    torch.testing.assert_close(from_exponential_scores(scores), z, rtol=1e-6, atol=1e-12)


def expected_error(vae, x, grid):
    """E_q of -log p(x|z) for one latent, by the trapezoid rule."""
    shape, rate = gamma_parameters(*vae.encode_first(x))
    logits = vae._location(grid[:, None], None)
    error = -Bernoulli(logits=logits).log_prob((x + 1) / 2).flatten(1).sum(1)
    return torch.trapezoid(gamma_log_prob(grid, shape[0], rate[0]).exp() * error, grid)


def test_the_gradient_of_the_bound_is_exact_in_the_mean():
    vae = tiny(latent_dim=1, posterior="gamma")
    with torch.no_grad():
        vae.posterior.bias.copy_(torch.tensor([1.5, 0.2]))
    x = binary(1)
    grid = torch.linspace(1e-6, 60, 200_001, **DOUBLE)
    exact = expected_error(vae, x, grid) + gamma_kl(*gamma_parameters(*vae.encode_first(x))).sum()
    (slope,) = torch.autograd.grad(exact, vae.posterior.bias)
    many = {"x": x.expand(30_000, -1, -1, -1)}
    values = elbo_loss(vae, many, draws(30_000))
    assert abs(values["nats"] - exact) < 0.02
    found = gradients(values, vae)["posterior.bias"]
    assert (found - slope).abs().max() < 0.05 * slope.abs().max()


def test_the_likelihood_is_the_integral_over_the_prior():
    vae = tiny(latent_dim=1, posterior="gamma").float().eval()
    x = binary(3).float()
    grid = torch.linspace(1e-6, 40, 20_001)
    logits = vae.decode(exponential_scores(grid)[:, None])
    log_p = Bernoulli(logits=logits).log_prob((x[:, None] + 1) / 2).flatten(2).sum(2)
    exact = torch.trapezoid((log_p - grid).exp(), grid, dim=1).log()
    found = VAEPipeline(vae).log_likelihood(x, samples=300, generator=torch.Generator().manual_seed(0))
    assert (found - exact).abs().max() < 0.05


def test_the_example_trains_gamma_latents(tmp_path):
    example = load_example("train_vae")
    flags = ["--latent_dim", "3", "--posterior", "gamma", "--hidden_sizes", "8", "--output_dir", tmp_path]
    assert example.main(arguments(example, *flags)) == 0
    assert DiffusionPipeline.from_pretrained(tmp_path)(2).images[0].size == (8, 8)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: tiny(posterior="gama"), ["posterior", 'Did you mean "gamma"']),
        (lambda: tiny(posterior="gamma", categories=(3,)), ["posterior", "categories=(3,)"]),
        (lambda: tiny(posterior="gamma", prior="vamp"), ["posterior", "vamp"]),
        (lambda: tiny(posterior="gamma", latent_dim=(3, 2), hidden_sizes=((8,), ())), ["posterior", "(3, 2)"]),
        (lambda: iwae_loss(tiny(posterior="gamma"), {"x": binary(4)}, draws(4)), ["posterior", "gamma", "elbo"]),
        (
            lambda: VAEPipeline(tiny(posterior="gamma").float(), LatentMixture.fit(torch.randn(40, 3), 2))
            .log_likelihood(binary(2).float()),
            ["prior must be None", "LatentMixture"],
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_gamma_latents_is_refused(call, words):
    with pytest.raises(UsageError) as error:
        call()
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("latents", [{"posterior": "gamma"}, {"categories": (3,)}], ids=["gamma", "categories"])
def test_a_constant_posterior_is_of_gaussian_latents(latents):
    with pytest.raises(UsageError, match="constant_posterior must be False"):
        VAE(sample_size=8, latent_dim=2, **latents)(torch.zeros(2, 1, 8, 8), constant_posterior=True)
