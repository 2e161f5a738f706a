"""Categorical latents: samples and gradients against exact values, capacities, likelihoods, misuse."""

import math

import pytest
import torch
from helpers import load_example
from tiny_vae import DOUBLE, arguments, binary, draws, gradients, tiny
from torch.distributions import Bernoulli, Categorical, kl_divergence

from latentia import DiffusionPipeline, LatentMixture, VAEPipeline
from latentia.errors import UsageError
from latentia.functional.categorical import categorical_kl, categorical_log_prob, gumbel_softmax
from latentia.inference.amortisation import amortisation_gap
from latentia.losses.vae_objectives import OBJECTIVES
from latentia.losses.variational import elbo_loss, iwae_loss
from latentia.models.layers.categorical import MixedLatents

JOINT = {"latent_dim": 2, "categories": (3, 4)}
DISCRETE = {"latent_dim": None, "categories": (3, 4)}


def test_samples_have_the_probabilities_of_the_logits():
    logits = torch.tensor([0.3, -1.0, 1.2, 0.0], **DOUBLE)
    found = gumbel_softmax(logits, torch.randn(40_000, 4, **DOUBLE), 0.0)
    assert torch.equal(found.sum(1), torch.ones(40_000, **DOUBLE)) and set(found.unique().tolist()) == {0.0, 1.0}
    assert (found.mean(0) - logits.softmax(0)).abs().max() < 0.01
    relaxed = gumbel_softmax(logits, torch.randn(40_000, 4, **DOUBLE), 1e-3)  # its largest value is the sample
    assert (relaxed.max(1).values > 0.99).double().mean() > 0.98
    counts = torch.bincount(relaxed.argmax(1), minlength=4).double() / 40_000
    assert (counts - logits.softmax(0)).abs().max() < 0.01


def test_relaxed_gradients_are_finite_differences_and_near_exact():
    logits = torch.tensor([0.3, -1.0, 1.2], **DOUBLE, requires_grad=True)
    noise, value = torch.randn(200_000, 3, **DOUBLE), torch.tensor([1.0, -2.0, 0.5], **DOUBLE)

    def mean(at, temperature):
        return (gumbel_softmax(at, noise, temperature) @ value).mean()

    (found,) = torch.autograd.grad(mean(logits, 0.7), logits)
    for k in range(3):
        step = torch.zeros(3, **DOUBLE)
        step[k] = 1e-4
        slope = (mean(logits + step, 0.7) - mean(logits - step, 0.7)) / 2e-4
        assert abs(found[k] - slope) < 1e-6
    (exact,) = torch.autograd.grad(logits.softmax(0) @ value, logits)
    (biased, near) = (torch.autograd.grad(mean(logits, t), logits)[0] for t in (5.0, 0.2))
    assert (near - exact).abs().max() < 0.02 < (biased - exact).abs().max()


def test_extreme_noise_stays_finite():
    noise = torch.tensor([-6.6, 0.0, 6.6])  # the ends of the generator of a run
    found = gumbel_softmax(torch.zeros(3), noise, 0.1)
    assert found.isfinite().all() and abs(found.sum() - 1) < 1e-6


def test_the_kl_and_log_probability_are_those_of_torch():
    logits = torch.randn(5, 4, **DOUBLE)
    expected = kl_divergence(Categorical(logits=logits), Categorical(logits=torch.zeros(5, 4, **DOUBLE)))
    torch.testing.assert_close(categorical_kl(logits), expected)
    index = torch.tensor([0, 3, 1, 2, 2])
    one_hot = torch.nn.functional.one_hot(index, 4).double()
    torch.testing.assert_close(categorical_log_prob(one_hot, logits), Categorical(logits=logits).log_prob(index))


@pytest.mark.parametrize("config", [JOINT, DISCRETE])
def test_normal_latents_are_uniform_categories(config):
    latents = MixedLatents(config["latent_dim"] or 0, config["categories"])
    size = latents.sizes[0]
    made = latents.generate(torch.randn(30_000, size, **DOUBLE))[:, -7:]
    expected = torch.tensor([1 / 3] * 3 + [1 / 4] * 4, **DOUBLE)
    assert (made.mean(0) - expected).abs().max() < 0.02


@pytest.mark.parametrize("config", [JOINT, DISCRETE])
def test_the_bound_is_its_parts(config):
    vae, x = tiny(**config), binary(5)
    values = elbo_loss(vae, {"x": x}, draws(5), temperature=0.7)
    out = vae(x, draws(5).normal("posterior", vae.hierarchy.sizes).double(), temperature=0.7)
    error = -Bernoulli(logits=out.location).log_prob((x + 1) / 2).flatten(1).sum(1)
    d = config["latent_dim"] or 0
    mu, a, b = out.mean.split((d, 3, 4), 1)
    kl = sum(categorical_kl(each) for each in (a, b))
    torch.testing.assert_close(values["kl_categories"], kl.mean().detach())
    kl = kl + 0.5 * (mu.square() + out.log_variance[:, :d].exp() - 1 - out.log_variance[:, :d]).sum(1)
    torch.testing.assert_close(values["loss"], (error + kl).mean())
    assert 1 <= values["perplexity"] <= 3.5
    assert all(gradient.isfinite().all() for gradient in gradients(values, vae).values())


def test_two_capacities_hold_two_kls():
    vae, x = tiny(**JOINT), binary(5)
    values = elbo_loss(vae, {"x": x}, draws(5), capacity=0.4, category_capacity=0.2, capacity_weight=3.0)
    out = vae(x, temperature=1.0)
    discrete = sum(categorical_kl(each) for each in out.mean[:, 2:].split((3, 4), 1))
    continuous = elbo_loss(vae, {"x": x}, draws(5))["kl"] - discrete.mean()
    parts = (values["loss"] - values["reconstruction"]).detach()
    lv = out.log_variance[:, :2]
    each = 0.5 * (out.mean[:, :2].square() + lv.exp() - 1 - lv).sum(1)
    torch.testing.assert_close(each.mean(), continuous)
    torch.testing.assert_close(parts, 3 * ((each - 0.4).abs() + (discrete - 0.2).abs()).mean().detach())


@pytest.mark.parametrize("config", [JOINT, DISCRETE])
def test_the_likelihood_of_few_states_is_the_sum_over_them(config):
    vae = tiny(**config).float().eval()
    if config["latent_dim"]:
        with torch.no_grad():  # z is out of use: its posterior is the prior, and the decoder does not see it
            vae.posterior.weight[[0, 1, 9, 10]] = 0
            vae.posterior.bias[[0, 1, 9, 10]] = 0
            vae.decoder_mlp[0].weight[:, :2] = 0
    x = binary(4).float()
    d = config["latent_dim"] or 0
    states = torch.cat([torch.eye(3).repeat_interleave(4, 0), torch.eye(4).repeat(3, 1)], 1)
    locations = vae.decode(torch.cat([torch.zeros(12, d), states], 1))
    each = Bernoulli(logits=locations[None]).log_prob((x[:, None] + 1) / 2).flatten(2).sum(2)
    exact = each.logsumexp(1) - math.log(12)
    pipe = VAEPipeline(vae)
    found = pipe.log_likelihood(x, samples=1000, generator=torch.Generator().manual_seed(0))
    assert (found - exact).abs().max() < 0.06


def test_the_pipeline_encodes_the_likeliest_categories():
    pipe = VAEPipeline(tiny(**JOINT).float().eval())
    z = pipe.encode(binary(3).float())
    assert (
        z.shape == (3, 9) and torch.equal(z[:, 2:5].sum(1), torch.ones(3)) and set(z[:, 2:].unique().tolist()) == {0, 1}
    )
    torch.testing.assert_close(pipe.encode(binary(3).float(), sample_posterior=True)[:, 5:].sum(1), torch.ones(3))
    pipe = VAEPipeline(pipe.vae, prior=LatentMixture.fit(torch.randn(40, 9), 2))
    with pytest.raises(UsageError, match=r"prior must be None for a likelihood with categories.*got LatentMixture"):
        pipe.log_likelihood(binary(2).float())


def test_the_example_trains_both_kinds_of_latents(tmp_path):
    example = load_example("train_vae")
    flags = ["--latent_dim", "3", "--categories", "10", "--capacity", "5", "--category_capacity", "1"]
    flags += ["--final_temperature", "0.3", "--hidden_sizes", "8", "--output_dir", tmp_path]
    assert example.main(arguments(example, *flags)) == 0
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    assert pipe(2).images[0].size == (8, 8) and pipe.vae.config.categories in ((10,), [10])


def joint(**options):
    return elbo_loss(tiny(**JOINT), {"x": binary(4)}, draws(4), **options)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: tiny(categories=(1,)), ["categories", "at least 2", "(1,)"]),
        (lambda: tiny(latent_dim=None), ["latent_dim", "None", "categories"]),
        (lambda: tiny(latent_dim=(3, 2), hidden_sizes=((8,), ()), categories=(3,)), ["latent_dim", "(3, 2)"]),
        (lambda: tiny(prior="vamp", categories=(3,)), ["prior", "vamp"]),
        (lambda: tiny()(binary(2), temperature=0.5), ["temperature", "0.5"]),
        (
            lambda: elbo_loss(tiny(**JOINT), {"x": binary(4)}, draws(4), temperature=0.0),
            ["temperature", "positive", "0"],
        ),
        (lambda: elbo_loss(tiny(**JOINT), {"x": binary(4)}, draws(4), temperature=-1.0), ["temperature", "-1"]),
        (lambda: gumbel_softmax(torch.zeros(2), torch.zeros(2), -0.1), ["temperature", "-0.1"]),
        (
            lambda: elbo_loss(tiny(**JOINT), {"x": binary(4)}, draws(4), category_capacity=1.0),
            ["category_capacity", "1"],
        ),
        (
            lambda: elbo_loss(tiny(), {"x": binary(4)}, draws(4), capacity=1.0, category_capacity=1.0),
            ["category_capacity", "categories"],
        ),
        (lambda: iwae_loss(tiny(**JOINT), {"x": binary(4)}, draws(4)), ["categories", "elbo"]),
        (lambda: amortisation_gap(tiny(**JOINT), binary(4)), ["Gaussian can describe", "categories=(3, 4)"]),
        (lambda: amortisation_gap(tiny(posterior="gamma"), binary(4)), ["Gaussian can describe", "gamma"]),
        (lambda: OBJECTIVES["wae_imq"].loss(tiny(**JOINT), {"x": binary(4)}, draws(4)), ["categories", "elbo"]),
    ],
)
def test_what_does_not_fit_categories_is_refused(call, words):
    with pytest.raises(UsageError) as error:
        call()
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
    "flags", [["--temperature", "2"], ["--final_temperature", "0.1"], ["--category_capacity", "3"]]
)
def test_flags_of_categories_without_any_are_refused(flags, tmp_path):
    example = load_example("train_vae")
    with pytest.raises(UsageError, match=f"{flags[0]} is of --categories"):
        example.main(arguments(example, "--output_dir", tmp_path, *flags))
