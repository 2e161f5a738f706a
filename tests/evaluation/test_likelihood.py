"""Likelihoods against a model whose likelihood is known: a linear map of Gaussian latents (probabilistic PCA)."""

import doctest
import math

import pytest
import scipy.stats
import torch
from torch.distributions import Independent, MultivariateNormal, Normal

import latentia.evaluation.likelihood.annealing
import latentia.evaluation.likelihood.bounds
import latentia.evaluation.likelihood.pixels
from latentia.errors import NumericsError, UsageError
from latentia.evaluation import (
    Pixels,
    annealed_importance_sampling,
    binarise,
    bits_per_dimension,
    dequantise,
    elbo,
    exact_likelihood,
    importance_bound,
    importance_weights,
    log_mean_exp,
    sigmoid_temperatures,
)

D, LATENT, NOISE = 6, 2, 0.5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


W = randn(D, LATENT, seed=1)  # x = W z + NOISE * e
X = randn(8, LATENT, seed=2) @ W.T + NOISE * randn(8, D, seed=3)
EXACT = MultivariateNormal(torch.zeros(D).double(), W @ W.T + NOISE**2 * torch.eye(D)).log_prob(X)
PRECISION = torch.eye(LATENT) + W.T @ W / NOISE**2
COVARIANCE = torch.linalg.inv(PRECISION)
MEAN = X @ W / NOISE**2 @ COVARIANCE  # of the posterior
PIXELS = Pixels(X.view(8, 1, 2, 3), "none", 256, 2.0)


def log_prior(z):
    return Normal(0.0, 1.0).log_prob(z).sum(1)


def log_likelihood(x, z):
    return Normal(z @ W.T, NOISE).log_prob(x).sum(1)


def log_joint(x, z):
    return log_prior(z) + log_likelihood(x, z)


def posterior(x):
    return MultivariateNormal(MEAN, COVARIANCE)


def rough(x):
    """The best factorised posterior, twice as wide: its bound is loose."""
    return Normal(x @ W / NOISE**2 @ COVARIANCE, 2 * PRECISION.diagonal().rsqrt())


def many_weights(k, at_once=100):
    """(8, k), drawn for `at_once` copies of the images together."""
    weights = importance_weights(rough, log_joint, X.repeat_interleave(at_once, 0), k=k // at_once)
    return weights.view(8, k)


# ------------------------------------------------------------------------------------------------- bounds


def test_the_true_posterior_makes_every_bound_exact():
    weights = importance_weights(posterior, log_joint, X, k=5)
    assert weights.shape == (8, 5) and weights.dtype == torch.float64
    assert torch.allclose(weights, EXACT[:, None].expand(8, 5), rtol=1e-10)
    for result in (elbo(weights, PIXELS), importance_bound(weights, PIXELS)):
        assert result.nats == pytest.approx(float(EXACT.mean()), rel=1e-10)
        assert result.standard_error == pytest.approx(float(EXACT.std()) / 8**0.5, rel=1e-10)
        assert result.sampling_error < 1e-8 and result.effective_samples == pytest.approx(5)
        assert (result.n, result.dimensions, result.pixels) == (8, D, "none")


def test_the_gap_of_the_elbo_is_the_divergence_of_posteriors():
    q = rough(X)
    wide = torch.diag_embed(q.stddev.square())
    trace = (PRECISION @ wide).diagonal(dim1=1, dim2=2).sum(1)
    gap = (trace - LATENT - wide.logdet() + COVARIANCE.logdet()) / 2  # KL(q || posterior); the means are equal
    result = elbo(many_weights(20_000), PIXELS)
    expected = float((EXACT - gap).mean())
    assert result.nats == pytest.approx(expected, abs=4 * result.sampling_error)
    assert 0.001 < result.sampling_error < 0.01 and float(gap.mean()) > 0.5 and result.kind == "lower bound"


def test_the_importance_bound_grows_with_k_to_the_exact_value():
    weights = many_weights(20_000)
    bounds = [float(log_mean_exp(weights.view(8, -1, k), 2).mean()) for k in (1, 2, 5, 20, 100, 1000)]
    assert bounds[0] == pytest.approx(elbo(weights, PIXELS).nats)
    assert bounds == sorted(bounds) and bounds[1] - bounds[0] > 0.1
    result = importance_bound(weights, PIXELS)
    assert result.nats == pytest.approx(float(EXACT.mean()), abs=4 * result.sampling_error)
    assert 1e-4 < result.sampling_error < 0.01 and result.kind == "importance bound, k = 20000"
    assert 1000 < result.effective_samples < 20_000


def test_the_sampling_error_is_the_spread_over_repetitions():
    weights = many_weights(200 * 200).view(8, 200, 200)
    for bound in (elbo, importance_bound):
        found = [bound(weights[:, i], PIXELS) for i in range(200)]
        spread = torch.tensor([result.nats for result in found]).std()
        stated = torch.tensor([result.sampling_error for result in found]).mean()
        assert float(stated) == pytest.approx(float(spread), rel=0.2)


def test_a_factorised_posterior_may_be_summed_by_either_side():
    independent = importance_weights(lambda x: Independent(rough(x), 1), log_joint, X, k=3)
    assert torch.equal(independent, importance_weights(rough, log_joint, X, k=3))


def test_samples_depend_on_the_seed_alone():
    torch.manual_seed(5)
    first = torch.rand(3)
    torch.manual_seed(5)
    weights = importance_weights(rough, log_joint, X, k=3, seed=1)
    assert torch.equal(torch.rand(3), first)
    assert torch.equal(importance_weights(rough, log_joint, X, k=3, seed=1), weights)
    assert not torch.equal(importance_weights(rough, log_joint, X, k=3, seed=2), weights)


def test_log_mean_exp_neither_overflows_nor_forgets_the_size():
    x = torch.tensor([[-2000.0, -2001.0], [900.0, 901.0]]).double()
    expected = (
        x[:, 0] + math.log(1 / 2) + torch.tensor([math.log1p(math.exp(-1)), math.log1p(math.e)], dtype=torch.float64)
    )
    assert torch.allclose(log_mean_exp(x, 1), expected, rtol=1e-12)


# ------------------------------------------------------------------------------------------------- annealing


def anneal(temperatures, chains=24, x=X, latent=LATENT, prior=log_prior, likelihood=log_likelihood, **options):
    z = randn(chains, len(x), latent, seed=11)
    return annealed_importance_sampling(prior, likelihood, x, z, temperatures, **options)


@pytest.fixture(scope="module")
def annealed():
    return anneal(sigmoid_temperatures(60), chains=64)


def test_annealing_meets_the_exact_likelihood_within_its_error(annealed):
    result = importance_bound(annealed.log_weights, PIXELS, annealed.kind)
    assert result.sampling_error < 0.05
    assert result.nats == pytest.approx(float(EXACT.mean()), abs=4 * result.sampling_error)
    per_image = log_mean_exp(annealed.log_weights, 1)
    assert (per_image - EXACT).abs().max() < 0.5  # image by image: weights and images are not mixed up
    assert result.kind == "annealed importance sampling, 64 chains, 60 temperatures"
    assert annealed.acceptance == pytest.approx(0.65, abs=0.12)
    assert result.effective_samples > 20


def test_annealing_meets_the_exact_likelihood_with_many_latents():
    """32 latents behind 64 values: log p(x) spreads over tens of nats, and plain sampling from the prior is lost."""
    d, latent, n, noise = 64, 32, 3, 0.7
    w = randn(d, latent, seed=21) / latent**0.5
    x = randn(n, latent, seed=22) @ w.T + noise * randn(n, d, seed=23)
    exact = MultivariateNormal(torch.zeros(d).double(), w @ w.T + noise**2 * torch.eye(d)).log_prob(x)

    def likelihood(x, z):
        return Normal(z @ w.T, noise).log_prob(x).sum(1)

    z = randn(64, n, latent, seed=24)
    found = annealed_importance_sampling(log_prior, likelihood, x, z, sigmoid_temperatures(200))
    result = importance_bound(found.log_weights, Pixels(x.view(n, 1, 8, 8), "none", 256, 2.0), found.kind)
    assert result.sampling_error < 0.25
    assert result.nats == pytest.approx(float(exact.mean()), abs=4 * result.sampling_error)
    assert (log_mean_exp(found.log_weights, 1) - exact).abs().max() < 1
    plain = log_mean_exp(torch.stack([likelihood(x, part) for part in z], 1), 1)
    assert (exact - plain).min() > 5  # so the transitions are what brings it there
    precision = torch.eye(latent) + w.T @ w / noise**2
    mean = torch.linalg.solve(precision, (x @ w / noise**2).T).T
    offset = (found.z - mean) @ torch.linalg.cholesky(precision)  # N(0, I) in the posterior
    assert float(offset.square().mean()) == pytest.approx(1, abs=0.12)


def test_annealing_ends_in_the_posterior(annealed):
    assert annealed.z.shape == (64, 8, LATENT)
    offset = torch.linalg.solve_triangular(
        torch.linalg.cholesky(COVARIANCE), (annealed.z - MEAN).reshape(-1, LATENT).T, upper=False
    )
    assert scipy.stats.kstest(offset.flatten(), "norm").pvalue > 1e-3


def test_more_temperatures_make_the_bound_tighter():
    """Of a single chain, E log w is an ELBO; the exact value is its limit."""
    found = [anneal(sigmoid_temperatures(n)).log_weights for n in (1, 5, 40)]
    bounds = [elbo(weights, PIXELS).nats for weights in found]
    assert bounds[0] + 3 < bounds[1] < bounds[2] - 0.3 and bounds[2] < float(EXACT.mean()) < bounds[2] + 0.5
    effective = [importance_bound(weights, PIXELS).effective_samples for weights in found]
    assert effective[0] + 1 < effective[1] < effective[2] - 4


def test_two_temperatures_are_importance_sampling():
    z = randn(24, 8, LATENT, seed=11)
    expected = torch.stack([log_likelihood(X, part) for part in z], 1)
    assert torch.allclose(anneal(torch.tensor([0.0, 1.0])).log_weights, expected, rtol=1e-12)


def test_weights_are_unbiased_even_with_few_temperatures():
    """One dimension, 4000 chains: the mean weight is p(x), although each single weight is far off."""
    x = torch.tensor([[1.5]]).double()
    found = anneal(
        torch.linspace(0, 1, 4), chains=4000, x=x, latent=1, likelihood=lambda x, z: Normal(z, 0.3).log_prob(x).sum(1)
    )
    exact = float(Normal(0.0, (1 + 0.3**2) ** 0.5).log_prob(torch.tensor(1.5)))
    result = importance_bound(found.log_weights, Pixels(x.view(1, 1, 1, 1), "none", 256, 2.0))
    assert result.nats == pytest.approx(exact, abs=4 * result.sampling_error) and result.sampling_error < 0.05


def test_annealing_is_repeatable_for_any_shape():
    steps = sigmoid_temperatures(3)
    assert torch.equal(anneal(steps, seed=4).log_weights, anneal(steps, seed=4).log_weights)
    assert not torch.equal(anneal(steps, seed=4).log_weights, anneal(steps, seed=5).log_weights)
    folded = annealed_importance_sampling(
        lambda z: log_prior(z.flatten(1)),
        lambda x, z: log_likelihood(x.flatten(1), z.flatten(1)),
        X.view(8, 1, 2, 3),
        randn(24, 8, LATENT, seed=11).unsqueeze(-1),
        steps,
        seed=4,
    )
    assert torch.equal(folded.log_weights, anneal(steps, seed=4).log_weights)


def test_step_sizes_are_adapted_to_each_image_apart():
    """A posterior that is twenty times narrower than another needs shorter steps; with its own, no chain is lost."""
    x = torch.tensor([[0.03], [1.0]]).double()
    found = anneal(
        sigmoid_temperatures(100),
        x=x,
        latent=1,
        likelihood=lambda x, z: Normal(0.0, x).log_prob(z).sum(1),
        target_acceptance=0.8,
    )
    assert found.log_weights.std(1).max() < 3  # over chains; with the other image's steps it is 4 to 18
    assert found.acceptance == pytest.approx(0.8, abs=0.045)


def test_a_proposal_that_diverges_is_refused():
    """Normal raises on NaN, so this also shows that the callables are never asked about one."""
    found = anneal(sigmoid_temperatures(3), chains=4, step_size=1e30)
    assert found.log_weights.isfinite().all() and found.acceptance < 0.01


def test_temperatures_run_from_zero_to_one():
    betas = sigmoid_temperatures(50)
    assert betas[0] == 0 and betas[-1] == 1 and len(betas) == 51 and (betas.diff() > 0).all()
    assert torch.allclose(betas + betas.flip(0), torch.ones(51).double()) and betas.diff()[25] > 5 * betas.diff()[0]


def test_bad_input_of_annealing_is_refused():
    good, z = torch.tensor([0.0, 1.0]), torch.zeros(2, 8, LATENT).double()
    for temperatures in ([0.0], [0.1, 1.0], [0.0, 0.9], [0.0, 0.5, 0.5, 1.0], [[0.0, 1.0]]):
        with pytest.raises(UsageError, match="temperatures"):
            anneal(torch.tensor(temperatures))
    for bad in (z[0], z[:, :3], z.long()):
        with pytest.raises(UsageError, match="`z`"):
            annealed_importance_sampling(log_prior, log_likelihood, X, bad, good)
    for options in ({"leapfrog": 0}, {"step_size": 0.0}, {"target_acceptance": 1.0}):
        with pytest.raises(UsageError, match=next(iter(options))):
            anneal(good, **options)
    with pytest.raises(UsageError, match="log_prior"):
        anneal(good, prior=lambda z: -z.square())
    with pytest.raises(UsageError, match="log_likelihood"):
        anneal(good, likelihood=lambda x, z: log_likelihood(x, z).sum())
    with pytest.raises(NumericsError, match="finite"):
        anneal(good, likelihood=lambda x, z: z.sum(1) * math.nan)
    with pytest.raises(UsageError, match="`n`"):
        sigmoid_temperatures(0)


# ------------------------------------------------------------------------------------------------- pixels and bits


def test_uniform_noise_costs_eight_bits_whatever_the_space():
    """The density of uniform noise is 2^-D on [-1, 1]^D and 1 on [0, 1]^D; the 256 bins have probability 256^-D."""
    for dimensions in (1, 784):
        for nats, span in ((-dimensions * math.log(2), 2.0), (0.0, 1.0), (-dimensions * math.log(256), None)):
            assert bits_per_dimension(nats, dimensions, span=span) == pytest.approx(8, abs=1e-12)
    assert bits_per_dimension(torch.tensor([0.0, -math.log(2)]), 1, span=1.0).tolist() == pytest.approx([8, 9])
    # as papers write it: (nll / D + ln 256) / ln 2 of a density on [0, 1]
    assert bits_per_dimension(-100.0, 784, span=1.0) == pytest.approx((100 / 784 + math.log(256)) / math.log(2))


def test_dequantised_bytes_fill_their_level_evenly():
    images = torch.arange(256, dtype=torch.uint8).repeat(40).view(10, 1, 32, 32)
    pixels = dequantise(images, seed=3)
    assert pixels.values.dtype == torch.float32 and pixels.values.min() >= -1 and pixels.values.max() <= 1
    within = (pixels.values.double() + 1) * 128 - images
    assert within.min() > -1e-4 and within.max() < 1 + 1e-4
    assert scipy.stats.kstest(within.flatten(), "uniform").pvalue > 1e-3
    assert torch.equal(dequantise(images, seed=3).values, pixels.values)
    assert not torch.equal(dequantise(images, seed=4).values, pixels.values)
    assert (pixels.bins, pixels.span) == (256, 2.0)


def test_dequantised_density_bounds_the_probability_of_the_bytes():
    """A piecewise constant density makes it tight: then bits of the density are bits of the histogram."""
    probability = torch.rand(256, generator=generator()).double()
    probability /= probability.sum()
    drawn = torch.multinomial(probability, 6400, replacement=True, generator=generator(1))
    pixels = dequantise(drawn.to(torch.uint8).view(100, 1, 8, 8))
    level = ((pixels.values.double() + 1) * 128).floor().long().clamp(max=255)
    density = (probability * 128).log()[level].flatten(1).sum(1)
    mass = probability.log()[drawn].view(100, 64).sum(1)
    of_density = exact_likelihood(density, pixels)
    of_levels = exact_likelihood(mass, Pixels(pixels.values, "none", 256, None))
    assert of_density.bits_per_dimension == pytest.approx(of_levels.bits_per_dimension, rel=1e-3)
    assert of_density.nats != pytest.approx(of_levels.nats, rel=0.1)


@pytest.mark.parametrize("how", ["static", "dynamic", "threshold"])
def test_binarisation_is_stated_repeatable_and_of_the_right_mean(how):
    images = torch.arange(256, dtype=torch.uint8).repeat(400, 1).view(400, 1, 16, 16)
    pixels = binarise(images, seed=1, how=how)
    assert how in pixels.about and (pixels.bins, pixels.span) == (2, None)
    assert set(pixels.values.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(binarise(images, seed=1, how=how).values, pixels.values)
    assert torch.equal(binarise(images[:7], seed=1, how=how).values, pixels.values[:7])
    mean = pixels.values.flatten(1).mean(0)
    if how == "threshold":
        assert torch.equal(mean, (torch.arange(256) >= 128).float())
        assert torch.equal(binarise(images, seed=2, how=how).values, pixels.values)
    else:
        assert mean[0] == 0 and mean[255] == 1
        assert (mean - torch.arange(256) / 255).abs().max() < 5 * 0.5 / 400**0.5
        assert not torch.equal(binarise(images, seed=2, how=how).values, pixels.values)


def test_a_likelihood_states_what_it_is_of():
    images = torch.randint(256, (30, 1, 4, 4), generator=generator(), dtype=torch.uint8)
    pixels = binarise(images, seed=0, how="static")
    coins = exact_likelihood(Normal(0, 1).sample((30,)) * 0 - 16 * math.log(2), pixels)
    assert coins.bits_per_dimension == pytest.approx(1) and coins.standard_error == pytest.approx(0, abs=1e-6)
    assert coins.kind == "exact" and coins.effective_samples is None and coins.sampling_error == 0
    assert "static binarisation, seed 0" in coins.text() and "nats" in coins.text() and "bits/dim" in coins.text()
    assert coins.to_dict()["pixels"] == "static binarisation, seed 0"
    one = Pixels(torch.zeros(1, 1, 1, 1), "", 2, None)
    assert exact_likelihood(torch.tensor([1.0]), one).standard_error is None
    single = importance_bound(torch.tensor([[-1.0]]), one)
    assert single.sampling_error is None and single.effective_samples == 1 and "1.0 effective" in single.text()


def test_bad_input_of_likelihoods_is_refused():
    images = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    pixels = binarise(images)
    for bad in (images.float(), images[0], images[:0], None):
        for call in (dequantise, binarise):
            with pytest.raises(UsageError, match="uint8"):
                call(bad)
    with pytest.raises(UsageError, match='Did you mean "static"'):
        binarise(images, how="statick")
    with pytest.raises(UsageError, match="one number per image"):
        exact_likelihood(torch.zeros(2), pixels)
    with pytest.raises(NumericsError, match="1 of 3"):
        exact_likelihood(torch.tensor([0.0, -math.inf, 0.0]), pixels)
    for call in (elbo, importance_bound):
        with pytest.raises(UsageError, match="log_weights"):
            call(torch.zeros(3), pixels)
    with pytest.raises(UsageError, match="`k`"):
        importance_weights(rough, log_joint, X, k=0)
    with pytest.raises(UsageError, match="log_joint"):
        importance_weights(rough, lambda x, z: Normal(z, 1.0).log_prob(z), X, k=1)
    for arguments in ((0.0, 0), (0.0, 1, 1), (0.0, 1, 256, 0.0)):
        with pytest.raises(UsageError, match="dimensions"):
            bits_per_dimension(*arguments)


@pytest.mark.parametrize(
    "module", [getattr(latentia.evaluation.likelihood, n) for n in ("annealing", "bounds", "pixels")]
)
def test_examples_in_the_docstrings_run(module):
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0
