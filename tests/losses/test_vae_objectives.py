"""Objectives of a VAE: reductions to each other, kernels and estimates against brute force, bad input."""

import itertools
import math
import re
import typing
from types import SimpleNamespace

import pytest
import torch
from helpers import load_example
from tiny_vae import DOUBLE, arguments, binary, draws, gradients, pictures, tiny

from latentia import MLPDiscriminator
from latentia.errors import UsageError
from latentia.evaluation import ms_ssim
from latentia.functional.discrepancy import SCALES, kernel_matrix, maximum_mean_discrepancy, sliced_wasserstein
from latentia.functional.distributions import log_normal
from latentia.functional.total_correlation import kl_terms
from latentia.losses.aggregate_posterior import (
    beta_tc_loss,
    dip_vae_loss,
    factor_discriminator_loss,
    factor_vae_loss,
    info_vae_loss,
    swae_loss,
    wae_loss,
)
from latentia.losses.importance_groups import ciwae_loss, miwae_loss, piwae_loss
from latentia.losses.vae_objectives import OBJECTIVES, Objective, log_cosh_cost, similarity_cost
from latentia.losses.variational import elbo_loss, iwae_loss
from latentia.rng import Rng
from latentia.runs.costs import reconstruction_cost

ENCODER = ("encoder_mlp", "posterior")


def batch(n=5):
    torch.manual_seed(1)
    return {"x": binary(n)}


def same(found, expected, names=None):
    assert found.keys() == expected.keys()
    for name in found if names is None else [name for name in found if name.startswith(names)]:
        torch.testing.assert_close(found[name], expected[name])


# ------------------------------------------------------------ kernels and distances


@pytest.mark.parametrize("kernel", ["rbf", "imq"])
def test_kernels_and_discrepancy_against_loops(kernel):
    torch.manual_seed(0)
    a, b = torch.randn(4, 3, **DOUBLE), torch.randn(5, 3, **DOUBLE)

    def k(x, y):
        squared, total = sum((x - y) ** 2 for x, y in zip(x.tolist(), y.tolist())), 0.0
        for scale in SCALES:
            width = 2 * 3 * scale
            total += math.exp(-squared / width) if kernel == "rbf" else width / (width + squared)
        return total / len(SCALES)

    for (i, x), (j, y) in itertools.product(enumerate(a), enumerate(b)):
        assert kernel_matrix(a, b, kernel)[i, j].item() == pytest.approx(k(x, y), rel=1e-12)
    within = [sum(k(x, y) for x, y in itertools.permutations(z, 2)) / (len(z) * (len(z) - 1)) for z in (a, b)]
    expected = sum(within) - 2 * sum(k(x, y) for x in a for y in b) / 20
    assert maximum_mean_discrepancy(a, b, kernel).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kernel", ["rbf", "imq"])
def test_discrepancy_vanishes_for_equal_distributions_alone(kernel):
    torch.manual_seed(0)
    draws = [torch.randn(2, 64, 4, **DOUBLE) for _ in range(50)]
    none = torch.stack([maximum_mean_discrepancy(a, b, kernel) for a, b in draws])
    some = torch.stack([maximum_mean_discrepancy(a, b + 0.7, kernel) for a, b in draws])
    assert none.mean().abs() < 3 * none.std() / 50**0.5 and (none < 0).any()  # unbiased
    assert some.mean() > 10 * none.std()


def test_sliced_wasserstein_is_the_distance_on_each_line():
    torch.manual_seed(0)
    a, shift, directions = (
        torch.randn(6, 3, **DOUBLE),
        torch.tensor([1.0, -2.0, 0.5], **DOUBLE),
        torch.randn(9, 3, **DOUBLE),
    )
    assert sliced_wasserstein(a, a.flip(0), directions) < 1e-24
    unit = directions / directions.norm(dim=1, keepdim=True)
    torch.testing.assert_close(sliced_wasserstein(a, a.flip(0) + shift, directions), (unit @ shift).square().mean())
    x, y = torch.randn(5, 1, **DOUBLE), torch.randn(5, 1, **DOUBLE)  # of all pairings the order's is the best
    best = min((x[:, 0] - y[list(order), 0]).square().mean() for order in itertools.permutations(range(5)))
    torch.testing.assert_close(sliced_wasserstein(x, y, torch.full((1, 1), -3.0, **DOUBLE)), best)


# ------------------------------------------------------------ total correlation


@pytest.mark.parametrize("sampling", ["weighted", "stratified"])
def test_three_terms_add_up_to_the_kl(sampling):
    torch.manual_seed(0)
    mean, log_variance, noise = torch.randn(3, 7, 4, **DOUBLE)
    z = mean + (log_variance / 2).exp() * noise
    terms = kl_terms(z, mean, log_variance, 50, sampling)
    torch.testing.assert_close(sum(terms), log_normal(z, mean, log_variance) - log_normal(z), rtol=1e-12, atol=1e-12)


def test_stratified_estimate_is_unbiased_for_the_aggregate():
    """Over all batches that hold one image: the mean of the estimates of q(z) is q(z)."""
    torch.manual_seed(0)
    mean, log_variance = torch.randn(5, 2, **DOUBLE), torch.randn(5, 2, **DOUBLE)
    z = torch.randn(1, 2, **DOUBLE)
    exact = log_normal(z, mean, log_variance).exp().mean()
    found = []
    for others in itertools.permutations(range(1, 5), 2):
        rows = [0, *others]
        points = z.expand(3, 2)
        mutual = kl_terms(points, mean[rows], log_variance[rows], 5).mutual_information[0]
        found.append((log_normal(z, mean[:1], log_variance[:1])[0] - mutual).exp())
    torch.testing.assert_close(torch.stack(found).mean(), exact)


def test_terms_of_independent_latents_are_zero():
    zero = torch.zeros(6, 3, **DOUBLE)
    for term in kl_terms(torch.randn(6, 3, **DOUBLE), zero, zero, 50):
        torch.testing.assert_close(term, torch.zeros(6, **DOUBLE), atol=1e-12, rtol=0)


def test_equal_weights_of_the_terms_are_the_elbo_of_a_sample():
    vae = tiny()
    found = beta_tc_loss(vae, batch(), draws(5), dataset_size=40, regulariser_weight=1.0)
    expected = iwae_loss(vae, batch(), draws(5), samples=1)
    torch.testing.assert_close(found["loss"], expected["loss"])
    same(gradients(found, vae), gradients(expected, vae))
    more = beta_tc_loss(vae, batch(), draws(5), dataset_size=40, regulariser_weight=3.0, information_weight=0.5)
    extra = 2 * found["total_correlation"] - 0.5 * found["mutual_information"]
    torch.testing.assert_close(more["loss"].detach(), found["loss"].detach() + extra)


class Correlated:
    """Called as a VAE whose latents are normal with a correlation of rho, given images of noise."""

    def __init__(self, rho):
        self.rho = rho
        plain = {"inference": "bottom_up", "categories": (), "posterior": "gaussian"}
        self.config = SimpleNamespace(latent_dim=2, num_class_embeds=None, likelihood="gaussian", **plain)

    def __call__(self, x, noise, class_labels=None):
        z = torch.stack([noise[..., 0], self.rho * noise[..., 0] + (1 - self.rho**2) ** 0.5 * noise[..., 1]], -1)
        zero = torch.zeros(len(x), 2)
        location = x if z.ndim == 2 else x[:, None].expand(-1, z.shape[1], -1, -1, -1)
        return SimpleNamespace(
            z=z,
            mean=zero,
            log_variance=zero,
            location=location,
            log_scale=torch.zeros(()),
            layers=(),
            log_prior=None,
            correction=None,
        )


@pytest.mark.parametrize("rho, nats", [(0.0, 0.0), (0.9, 0.83037)])
def test_a_discriminator_finds_the_correlation_of_latents(rho, nats):
    torch.manual_seed(0)
    network, vae = MLPDiscriminator(2, (32, 32)), Correlated(rho)
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for step in range(200):
        values = factor_discriminator_loss(
            network, vae, {"x": torch.zeros(256, 1, 1, 1)}, Rng(0, 256 * step, 256, 0, 256)
        )
        optimizer.zero_grad()
        values["loss"].backward()
        optimizer.step()
    z = vae(torch.zeros(20_000, 1, 1, 1), torch.randn(20_000, 2)).z
    assert abs(network(z).logits.mean().item() - nats) < 0.12
    assert abs(values["accuracy"] - 0.5) < 0.08 if rho == 0 else values["accuracy"] > 0.65


def test_factor_adds_the_mean_logit_to_the_elbo():
    vae, network = tiny(), MLPDiscriminator(3, (4,)).double()
    found, elbo = (
        factor_vae_loss(vae, network, batch(), draws(5), regulariser_weight=7.0),
        elbo_loss(vae, batch(), draws(5)),
    )
    torch.testing.assert_close(found["loss"].detach(), elbo["loss"].detach() + 7 * found["total_correlation"])
    values = factor_discriminator_loss(network, vae, batch(), draws(5))
    values["loss"].backward()
    assert all(p.grad is None for p in vae.parameters())


# ------------------------------------------------------------ discrepancies and covariances in the loss


def test_info_vae_is_the_elbo_at_zero_and_one():
    vae = tiny()
    found, elbo = info_vae_loss(vae, batch(), draws(5), regulariser_weight=1.0), elbo_loss(vae, batch(), draws(5))
    assert found["loss"] == elbo["loss"]
    same(gradients(found, vae), gradients(elbo, vae))
    free = info_vae_loss(vae, batch(), draws(5), alpha=1.0, regulariser_weight=20.0)
    torch.testing.assert_close(free["loss"].detach(), free["reconstruction"] + 20 * free["discrepancy"])


@pytest.mark.parametrize("loss", [wae_loss, swae_loss])
def test_deterministic_objectives_decode_the_mean(loss):
    vae = tiny(likelihood="gaussian", observation_std=0.5)
    x = pictures(6)
    values = loss(vae, {"x": x}, draws(6), regulariser_weight=3.0)
    error = -torch.distributions.Normal(vae(x).location, 0.5).log_prob(x).flatten(1).sum(1).mean()
    torch.testing.assert_close(values["loss"], error + 3 * values["discrepancy"])
    with torch.no_grad():
        vae.posterior.bias[3:] = 2.0  # of the deviations
    torch.testing.assert_close(loss(vae, {"x": x}, draws(6), regulariser_weight=3.0)["loss"], values["loss"])


@pytest.mark.parametrize("kind", ["i", "ii"])
def test_dip_penalises_the_covariance_of_torch(kind):
    vae = tiny()
    out = vae(batch()["x"])
    covariance = torch.cov(out.mean.T, correction=0)
    if kind == "ii":
        covariance = covariance + out.log_variance.exp().mean(0).diag()
    off, on = covariance - covariance.diagonal().diag(), covariance.diagonal()
    values = dip_vae_loss(vae, batch(), draws(5), kind=kind, regulariser_weight=2.0, diagonal_weight=3.0)
    expected = elbo_loss(vae, batch(), draws(5))["loss"] + 2 * off.square().sum() + 3 * (on - 1).square().sum()
    torch.testing.assert_close(values["loss"], expected)


# ------------------------------------------------------------ bounds


def test_one_group_is_the_importance_weighted_bound():
    vae = tiny()
    expected = iwae_loss(vae, batch(), draws(5), samples=6)
    for loss in (miwae_loss, piwae_loss):
        found = loss(vae, batch(), draws(5), groups=1, samples=6)
        torch.testing.assert_close(found["loss"], expected["loss"])
        same(gradients(found, vae), gradients(iwae_loss(vae, batch(), draws(5), samples=6), vae))


def test_groups_are_a_mean_of_bounds():
    vae = tiny()
    found = miwae_loss(vae, batch(), draws(5), groups=2, samples=3)
    torch.manual_seed(0)
    out = vae(batch()["x"], draws(5).normal("posterior", (6, 3)).double())
    normal = torch.distributions.Normal
    log_w = (
        torch.distributions.Bernoulli(logits=out.location).log_prob((batch()["x"][:, None] + 1) / 2).flatten(2).sum(2)
    )
    q = normal(out.mean[:, None], (out.log_variance / 2).exp()[:, None])
    log_w = log_w + (normal(0.0, 1.0).log_prob(out.z) - q.log_prob(out.z)).sum(2)
    expected = -log_w.view(5, 2, 3).exp().mean(2).log().mean()
    torch.testing.assert_close(found["loss"], expected)
    same(gradients(found, vae), gradients({"loss": expected}, vae))


def test_partial_weights_train_encoder_and_decoder_apart():
    vae = tiny()
    found = gradients(piwae_loss(vae, batch(), draws(5), groups=2, samples=3), vae)
    encoder = gradients(miwae_loss(vae, batch(), draws(5), groups=2, samples=3), vae)
    decoder = gradients(iwae_loss(vae, batch(), draws(5), samples=6), vae)
    same(found, encoder, ENCODER)
    same(found, decoder, "decoder_mlp")
    assert not torch.allclose(encoder["posterior.weight"], decoder["posterior.weight"])


def test_partial_weights_stay_finite_far_from_the_data():
    vae = tiny(likelihood="gaussian", observation_std=0.01).float()
    values = piwae_loss(vae, {"x": pictures(4).float()}, draws(4), groups=4, samples=2)
    assert all(gradient.isfinite().all() for gradient in gradients(values, vae).values())


def test_the_combined_bound_is_the_mean_of_two():
    vae, share = tiny(), 0.3
    found = ciwae_loss(vae, batch(), draws(5), samples=4, elbo_share=share)
    parts = [miwae_loss(vae, batch(), draws(5), groups=4, samples=1), iwae_loss(vae, batch(), draws(5), samples=4)]
    torch.testing.assert_close(found["loss"], share * parts[0]["loss"] + (1 - share) * parts[1]["loss"])
    one, other = (gradients(part, vae) for part in parts)
    same(gradients(found, vae), {name: share * one[name] + (1 - share) * other[name] for name in one})


# ------------------------------------------------------------ costs


def test_a_cost_takes_the_place_of_the_likelihood():
    vae, x = tiny(likelihood="gaussian"), pictures(5)
    plain, found = (elbo_loss(vae, {"x": x}, draws(5), cost=cost) for cost in (None, log_cosh_cost))
    assert found["nats"] == plain["nats"]
    reconstruction = vae(x, draws(5).normal("posterior", (3,)).double()).reconstruction
    cost = (x - reconstruction).cosh().log().flatten(1).sum(1).mean()
    torch.testing.assert_close(found["loss"].detach(), (cost + found["kl"]).detach())


@pytest.mark.parametrize("name, shape", [("ms_ssim", (1, 8, 8)), ("perceptual", (1, 28, 28)), ("log_cosh", (1, 8, 8))])
def test_costs_vanish_for_equal_images_and_have_slopes(name, shape):
    cost = reconstruction_cost(name, shape)
    x = torch.rand(2, *shape) * 2 - 1
    y = (0.9 * x).requires_grad_()
    assert cost(x, x).abs().max() < 1e-4 < cost(x, y).min()
    cost(x, y).sum().backward()
    assert y.grad.isfinite().all() and y.grad.abs().sum() > 0
    assert reconstruction_cost("likelihood", shape) is None


def test_similarity_is_per_value_and_log_cosh_forgives_outliers():
    x, y = torch.rand(2, 2, 1, 28, 28) * 2 - 1
    expected = 784 * (1 - ms_ssim(x, y, scales=2)).float()
    torch.testing.assert_close(similarity_cost(x, y, lambda a, b: ms_ssim(a, b, scales=2)), expected)
    gap = torch.tensor([0.1, 50.0]).view(2, 1, 1, 1)
    small, large = log_cosh_cost(gap, torch.zeros_like(gap))
    assert large / small < 0.1 * (50 / 0.1) ** 2  # a squared error would weigh the outlier 250000 times


# ------------------------------------------------------------ the table, the script, bad input


def test_the_table_names_each_objective_once_with_its_paper():
    assert set(typing.get_args(Objective)) == set(OBJECTIVES)
    for name, one in OBJECTIVES.items():
        assert re.fullmatch(r".*, 20\d\d, \d{4}\.\d{4,5}", one.paper)
        assert len(f"{name}: {one.title} ({one.paper})") < 120


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_script_gives_each_loss_its_options(name):
    example = load_example("train_vae")
    flags = arguments(example, "--output_dir", "unused", "--objective", name)
    example.check(flags)
    one = OBJECTIVES[name]
    options = example.options_of(one, flags.variational, 100, None)
    vae, second = tiny(), [MLPDiscriminator(3, (4,)).double()] if one.second else []
    assert one.loss(vae, *second, batch(), draws(5), **options)["loss"].isfinite()
    plain = {"dataset_size": 100} if "dataset_size" in one.options else {}
    defaults = one.loss(vae, *second, batch(), draws(5), **plain, **one.fixed)["loss"]
    assert name == "iwae" or one.loss(vae, *second, batch(), draws(5), **options)["loss"] == defaults


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--objective", "swae", "--beta", "4"], ["--beta", "--objective swae", "it is of elbo", "4.0"]),
        (["--objective", "miwae", "--reconstruction", "ms_ssim"], ["--reconstruction", "miwae"]),
        (["--objective", "elbo", "--importance_samples", "5"], ["--importance_samples", "iwae", "5"]),
        (["--discriminator_hidden_sizes", "8"], ["--discriminator_hidden_sizes", "factor", "elbo"]),
        (["--objective", "piwae", "--compile"], ["--objective piwae", "--compile"]),
        (["--objective", "swae", "--categories", "3"], ["--categories", "swae", "(3,)", "elbo"]),
        (["--importance_samples", "2", "--posterior", "gamma"], ["--posterior", "iwae", "gamma", "elbo"]),
    ],
)
def test_flags_of_another_objective_are_refused(flags, words, tmp_path):
    example = load_example("train_vae")
    with pytest.raises(UsageError) as error:
        example.main(arguments(example, "--output_dir", tmp_path, *flags))
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    "loss, options, config, n, words",
    [
        (wae_loss, {}, {}, 1, ["at least 2 points", "1"]),
        (wae_loss, {"regulariser_weight": -1.0}, {}, 4, ["regulariser_weight", "-1"]),
        (wae_loss, {"kernel": "imp"}, {}, 4, ["kernel", 'Did you mean "imq"']),
        (swae_loss, {"projections": 0}, {}, 4, ["projections", "0"]),
        (info_vae_loss, {"alpha": 1.5}, {}, 4, ["alpha", "1.5"]),
        (info_vae_loss, {"alpha": -2.0, "regulariser_weight": 1.0}, {}, 4, ["regulariser_weight", "3"]),
        (beta_tc_loss, {"dataset_size": 40}, {}, 1, ["total correlation", "at least 2", "got 1"]),
        (beta_tc_loss, {"dataset_size": 3}, {}, 4, ["dataset_size", "4", "3"]),
        (beta_tc_loss, {"dataset_size": 40, "sampling": "strat"}, {}, 4, ["sampling", "stratified"]),
        (beta_tc_loss, {"dataset_size": 40, "information_weight": math.nan}, {}, 4, ["information_weight", "nan"]),
        (beta_tc_loss, {"dataset_size": 40}, {"latent_dim": (3, 2), "hidden_sizes": ((8,), ())}, 4, ["latent_dim"]),
        (dip_vae_loss, {}, {}, 1, ["dip", "at least 2"]),
        (dip_vae_loss, {"kind": "iii"}, {}, 4, ["kind", "iii"]),
        (dip_vae_loss, {"diagonal_weight": -1.0}, {}, 4, ["diagonal_weight", "-1"]),
        (miwae_loss, {"groups": 0}, {}, 4, ["groups", "0"]),
        (ciwae_loss, {"elbo_share": 1.2}, {}, 4, ["elbo_share", "1.2"]),
        (piwae_loss, {}, {"latent_dim": (3, 2), "hidden_sizes": ((8,), ())}, 4, ["latent_dim", "(3, 2)"]),
        (lambda vae, *rest: factor_vae_loss(vae, None, *rest), {}, {}, 4, ["discriminator", "MLPDiscriminator"]),
        (
            lambda vae, *rest: factor_discriminator_loss(MLPDiscriminator(3).double(), vae, *rest),
            {},
            {},
            1,
            ["at least 2"],
        ),
    ],
)
def test_bad_input_is_named(loss, options, config, n, words):
    with pytest.raises(UsageError) as error:
        loss(tiny(**config), batch(n), draws(n), **options)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("name", ["wae_imq", "beta_tc", "dip_ii"])
def test_images_that_are_not_numbers_are_refused(name):
    one = OBJECTIVES[name]
    options = {"dataset_size": 100} if "dataset_size" in one.options else {}
    with pytest.raises(UsageError, match="images"):
        one.loss(tiny(), {"x": torch.full((4, 1, 4, 4), math.nan, **DOUBLE)}, draws(4), **options, **one.fixed)


def test_sliced_wasserstein_needs_pairs():
    with pytest.raises(UsageError, match="as many points"):
        sliced_wasserstein(torch.zeros(3, 2), torch.zeros(2, 2), torch.ones(1, 2))


def test_costs_refuse_images_that_they_do_not_fit():
    with pytest.raises(UsageError, match="at least 3 x 3"):
        reconstruction_cost("ms_ssim", (1, 2, 2))
    with pytest.raises(UsageError, match="5 x 7 x 7"):
        reconstruction_cost("perceptual", (5, 7, 7))
