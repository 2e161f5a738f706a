"""Learned priors and ladders of a VAE: densities against torch, products against their formula, KLs against samples."""

import pytest
import torch
from helpers import load_example
from tiny_vae import DOUBLE, arguments, binary, draws, gradients, tiny
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

from latentia import DiffusionPipeline, LatentVAE, NormalizingFlow, VAEPipeline
from latentia.errors import UsageError
from latentia.functional.bounds import hierarchical_kl
from latentia.functional.distributions import log_mixture, log_normal
from latentia.losses.aggregate_posterior import beta_tc_loss, info_vae_loss, swae_loss, wae_loss
from latentia.losses.importance_groups import piwae_loss
from latentia.losses.variational import elbo_loss, iwae_loss

LADDER = {"latent_dim": (3, 2), "hidden_sizes": ((8,), (5,)), "inference": "top_down"}
TWO = {"latent_dim": (3, 2), "hidden_sizes": ((8,), (5,))}


def test_the_mixture_is_that_of_torch():
    mean, log_variance, z = torch.randn(4, 3, **DOUBLE), torch.randn(4, 3, **DOUBLE), torch.randn(5, 2, 3, **DOUBLE)
    parts = Independent(Normal(mean, (log_variance / 2).exp()), 1)
    expected = MixtureSameFamily(Categorical(torch.ones(4, **DOUBLE)), parts).log_prob(z)
    torch.testing.assert_close(log_mixture(z, mean, log_variance), expected)


def test_pseudo_inputs_are_encoded_as_images_are():
    vae = tiny(prior="vamp", prior_components=4)
    mean, log_variance = vae.prior_parameters()
    torch.testing.assert_close((mean, log_variance), vae.encode(vae.pseudo_inputs.tanh()))
    vae = tiny(prior="vamp", prior_components=4, **TWO)  # of the topmost layer; those below keep N(0, I)
    mean, log_variance = vae.prior_parameters()
    assert mean[:, :3].abs().max() == log_variance[:, :3].abs().max() == 0
    first, _ = vae.encode_first(vae.pseudo_inputs.tanh())
    torch.testing.assert_close(mean[:, 3:], vae.hierarchy.posteriors[0](first)[:, :2])


@pytest.mark.parametrize("config", [{}, TWO, LADDER])
def test_one_standard_component_is_the_standard_prior(config):
    vae, plain = tiny(prior="mixture", prior_components=1, **config), tiny(**config)
    plain.load_state_dict({key: value for key, value in vae.state_dict().items() if not key.startswith("prior_")})
    with torch.no_grad():
        vae.prior_mean.zero_()
    batch = {"x": binary(5)}
    for samples in (1, 3):
        found, expected = (iwae_loss(network, batch, draws(5), samples=samples) for network in (vae, plain))
        torch.testing.assert_close(found["loss"], expected["loss"])
    found, expected = elbo_loss(vae, batch, draws(5)), iwae_loss(plain, batch, draws(5), samples=1)
    torch.testing.assert_close(found["nats"], expected["nats"])


@pytest.mark.parametrize("config", [{"prior": "mixture"}, {"prior": "vamp"}, {"prior": "vamp"} | LADDER])
def test_a_learned_prior_is_drawn_from_and_counted(config, tmp_path):
    vae = tiny(prior_components=3, **config).float().eval()
    pipe = VAEPipeline(vae)
    z = pipe.encode(binary(4).float())
    mean, log_variance = vae.prior_parameters()
    torch.testing.assert_close(pipe.prior.log_prob(z).float(), log_mixture(z, mean, log_variance))
    x = binary(4).float()
    found = pipe.log_likelihood(x, samples=200, generator=torch.Generator().manual_seed(0)).mean()
    expected = -iwae_loss(vae, {"x": x}, draws(4), samples=200)["nats"]
    assert abs(found - expected) < 0.15
    pipe.save_pretrained(tmp_path)
    again = DiffusionPipeline.from_pretrained(tmp_path)
    images = [p(2, generator=torch.Generator().manual_seed(0), output_type="latent").images for p in (pipe, again)]
    torch.testing.assert_close(*images)


@pytest.mark.parametrize("prior", ["mixture", "vamp"])
def test_the_prior_is_trained_by_the_bound(prior):
    vae = tiny(prior=prior, prior_components=3)
    found = gradients(elbo_loss(vae, {"x": binary(5)}, draws(5)), vae)
    for name in ("prior_mean", "prior_log_variance") if prior == "mixture" else ("pseudo_inputs",):
        assert found[name].abs().sum() > 0
    out = vae(binary(5), draws(5).normal("posterior", (3,)).double())
    values = elbo_loss(vae, {"x": binary(5)}, draws(5))
    kl = (log_normal(out.z, out.mean, out.log_variance) - out.log_prior).mean()
    assert out.log_prior.shape == (5,) and kl.isfinite() and values["kl"].isfinite()


# ------------------------------------------------------------ ladders


def test_a_rung_is_the_product_of_both_densities():
    vae = tiny(**LADDER)
    noise = torch.randn(5, 5, **DOUBLE)
    first = vae.encode_first(binary(5))
    below, top = vae.hierarchy.infer(*first, noise)
    up = vae.hierarchy.posteriors[0](first[0])
    torch.testing.assert_close((top.mean, top.log_variance), tuple(up.chunk(2, 1)))
    m, lv = vae.hierarchy.priors[0](top.z).chunk(2, 1)
    z = torch.linspace(-3, 3, 7, **DOUBLE)[:, None, None]  # log densities differ by a constant in z
    product = Normal(first[0], (first[1] / 2).exp()).log_prob(z) + Normal(m, (lv / 2).exp()).log_prob(z)
    gap = product - Normal(below.mean, (below.log_variance / 2).exp()).log_prob(z)
    torch.testing.assert_close(gap, gap[:1].expand_as(gap))


def test_the_kl_of_each_rung_is_exact_given_the_one_above():
    vae, x = tiny(**LADDER), binary(1).expand(20_000, -1, -1, -1)
    out = vae(x, draws(20_000).normal("posterior", (5,)).double())
    exact = hierarchical_kl(out.z, out.mean, out.log_variance, (5,)).mean(0)
    sampled = (log_normal(out.z[..., None], out.mean[..., None], out.log_variance[..., None]) - log_normal(
        out.z[..., None])).mean(0)  # fmt: skip
    assert (exact - sampled).abs().max() < 0.05
    values = elbo_loss(vae, {"x": x}, draws(20_000))
    torch.testing.assert_close(values["kl_1"] + values["kl_2"], exact.sum())
    assert values["kl_1"] > 0 and values["kl_2"] > 0


def test_a_ladder_takes_samples_and_decodes_its_latents():
    vae, x = tiny(**LADDER), binary(4)
    out = vae(x, torch.randn(4, 6, 5, **DOUBLE))
    assert out.z.shape == out.mean.shape == (4, 6, 5)
    torch.testing.assert_close(vae.decode(out.z.flatten(0, 1)), out.location.flatten(0, 1))
    same = {"x": binary(1).expand(3000, -1, -1, -1)}
    bounds = [iwae_loss(vae, same, draws(3000), samples=k)["nats"] for k in (1, 9)]
    assert bounds[1] < bounds[0]


def test_the_example_trains_a_ladder_with_pseudo_inputs(tmp_path):
    example = load_example("train_vae")
    flags = ["--latent_dim", "3", "2", "--inference", "top_down", "--prior", "vamp", "--prior_components", "4"]
    flags += ["--kl_warmup", "0.5", "--hidden_sizes", "8", "--upper_hidden_sizes", "8", "--output_dir", tmp_path]
    assert example.main(arguments(example, *flags)) == 0
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    assert pipe.prior.config.num_components == 4 and pipe(2).images[0].size == (8, 8)


# ------------------------------------------------------------ a second VAE, an autoregressive flow


CORRELATED = MultivariateNormal(torch.tensor([3.0, -20.0]), torch.tensor([[4.0, 5.7], [5.7, 9.0]]))  # by .95


def correlated(n):
    torch.manual_seed(3)
    return CORRELATED.sample((n,))


def test_a_second_vae_learns_the_distribution_of_latents(tmp_path):
    prior = LatentVAE.fit(correlated(2000), steps=300, hidden_sizes=(32,), samples=200)
    made = prior.sample(1000, [torch.Generator().manual_seed(i) for i in range(1000)])
    # Independent normal dimensions would cost 9 nats.
    assert CORRELATED.log_prob(made).mean() > CORRELATED.log_prob(correlated(1000)).mean() - 2.0
    torch.testing.assert_close(torch.cov(made.T), CORRELATED.covariance_matrix, rtol=0.3, atol=0)
    gap = CORRELATED.log_prob(correlated(500)) - prior.log_prob(correlated(500))
    assert -0.02 < gap.mean() < 0.3  # a lower bound
    pipe = VAEPipeline(tiny(latent_dim=2).float().eval(), prior)
    pipe.save_pretrained(tmp_path)
    images = [p(2, generator=torch.Generator().manual_seed(0), output_type="latent").images for p in (
        pipe, DiffusionPipeline.from_pretrained(tmp_path))]  # fmt: skip
    torch.testing.assert_close(*images)
    assert pipe.log_likelihood(images[0].clamp(-1, 1), samples=3).isfinite().all()


def test_an_autoregressive_flow_is_a_prior_too():
    prior = NormalizingFlow.fit(correlated(500), steps=60, architecture="maf", hidden_sizes=(16,))
    pipe = VAEPipeline(tiny(latent_dim=2).float().eval(), prior)
    assert pipe(2, output_type="latent").images.shape == (2, 1, 4, 4)


# ------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: tiny(prior="vamp", num_class_embeds=3), ["prior", "num_class_embeds", "vamp"]),
        (lambda: LatentVAE.fit(torch.ones(40, 2)), ["latents must differ"]),
        (lambda: LatentVAE.fit(torch.randn(7, 2)), ["at least 20", "7"]),
        (lambda: LatentVAE.fit(torch.randn(40, 2), steps=0), ["steps", "0"]),
        (lambda: LatentVAE(3)(torch.zeros(2, 4)), ["(B, 3)", "(2, 4)"]),
        (lambda: LatentVAE(3).sample(2, [torch.Generator()]), ["generators", "n=2"]),
        (lambda: tiny(prior="vampire"), ["prior", 'Did you mean "vamp"']),
        (lambda: tiny(inference="top_down"), ["inference", "latent_dim=3"]),
        (lambda: tiny(prior="vamp", prior_components=0), ["prior_components", "at least 1", "0"]),
        (lambda: elbo_loss(tiny(prior="vamp"), {"x": binary(4)}, draws(4), free_bits=0.1), ["free_bits", "0.1"]),
        (
            lambda: iwae_loss(tiny(**LADDER), {"x": binary(4)}, draws(4), gradient="doubly_reparameterised"),
            ["gradient", "top_down"],
        ),
        *(
            (
                lambda loss=loss, more=more: loss(tiny(prior="vamp"), {"x": binary(4)}, draws(4), **more),
                ["prior", "vamp"],
            )
            for loss, more in (
                (wae_loss, {}),
                (swae_loss, {}),
                (info_vae_loss, {}),
                (beta_tc_loss, {"dataset_size": 40}),
                (piwae_loss, {}),
            )
        ),
    ],
)
def test_what_does_not_fit_a_learned_prior_is_refused(call, words):
    with pytest.raises(UsageError) as error:
        call()
    assert all(word in str(error.value) for word in words), error.value


def test_components_of_the_standard_prior_are_refused(tmp_path):
    example = load_example("train_vae")
    with pytest.raises(UsageError, match="--prior_components is not used by --prior normal; got 7"):
        example.main(arguments(example, "--output_dir", tmp_path, "--prior_components", "7"))
