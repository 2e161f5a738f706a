"""VAEs of several stochastic layers: against exact linear-Gaussian ones, brute force, and the network of one layer."""

import json

import pytest
import torch
from helpers import load_example, seeded
from tiny_vae import DOUBLE, arguments, binary, draws, gradients, pictures, tiny
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from latentia import DiffusionPipeline, LatentMixture, VAEPipeline
from latentia.errors import UsageError
from latentia.functional.bounds import hierarchical_kl
from latentia.functional.distributions import gaussian_kl, log_likelihood
from latentia.losses.variational import elbo_loss, iwae_loss
from latentia.pipelines.arguments import image_generators

SIZES, LOSSES = (4, 3, 2), ("standard", "doubly_reparameterised")


def tall(**config):
    """Three levels, with priors that are far from N(0, I)."""
    vae = tiny(**{"latent_dim": SIZES, "hidden_sizes": ((8,), (6,), ())} | config)
    with torch.no_grad():
        for parameter in vae.hierarchy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return vae


def linear_gaussian(offset=0.0):
    """z_2 ~ N(0, I), z_1 = a z_2 + t noise, x = W z_1 + b + s noise, all of which stays diagonal; q is exact.

    `offset` moves the means of both levels of q off it. Returns the network and the exact p(x).
    """
    vae = tiny(latent_dim=(2, 2), hidden_sizes=((), ()), likelihood="gaussian", observation_std=0.4)
    w = torch.linalg.qr(torch.randn(16, 2, **DOUBLE)).Q * torch.tensor([0.8, 0.3], **DOUBLE)
    b, s2 = torch.randn(16, **DOUBLE) * 0.1, 0.4**2
    a, t2 = torch.tensor([0.9, -0.6], **DOUBLE), torch.tensor([0.5, 0.2], **DOUBLE)
    prior = a.square() + t2  # variance of z_1
    precision = 1 / prior + w.square().sum(0) / s2
    zeros = torch.zeros(2, 2, **DOUBLE)
    above = 1 + a.square() / t2  # precision of q(z_2|z_1)
    with torch.no_grad():
        vae.decoder_mlp[-1].weight.copy_(w), vae.decoder_mlp[-1].bias.copy_(b)
        mean = (w / s2 / precision).T
        vae.posterior.weight.copy_(torch.cat([mean, torch.zeros(2, 16, **DOUBLE)]))
        vae.posterior.bias.copy_(torch.cat([-mean @ b + offset, -precision.log()]))
        for network, slope, shift, variance in (
            (vae.hierarchy.priors[0], a, torch.zeros(2), t2),
            (vae.hierarchy.posteriors[0], a / t2 / above, torch.full((2,), offset), 1 / above),
        ):
            network[-1].weight.copy_(torch.cat([slope.diag(), zeros]))
            network[-1].bias.copy_(torch.cat([shift, variance.log()]))
    return vae, MultivariateNormal(b, (w * prior) @ w.T + s2 * torch.eye(16, **DOUBLE))


# ------------------------------------------------------------ bounds


def test_with_the_true_posterior_every_bound_is_log_p_of_x():
    vae, exact = linear_gaussian()
    x = exact.sample((6,)).view(6, 1, 4, 4).clamp(-1, 1)
    expected = exact.log_prob(x.flatten(1))
    for samples in (1, 9):
        values = iwae_loss(vae, {"x": x}, draws(6), samples=samples)
        torch.testing.assert_close(values["nats"], -expected.mean())
        torch.testing.assert_close(values["effective_samples"], torch.tensor(float(samples), **DOUBLE))
    torch.testing.assert_close(VAEPipeline(vae).log_likelihood(x, samples=2), expected)
    same = x[:1].expand(20_000, -1, -1, -1)
    assert abs(elbo_loss(vae, {"x": same}, draws(20_000))["nats"] + expected[0]) < 0.05


def test_bounds_rise_with_k_from_the_elbo_towards_log_p():
    vae, exact = linear_gaussian(offset=0.3)
    x = exact.sample((1,)).view(1, 1, 4, 4).clamp(-1, 1)
    top = exact.log_prob(x.flatten(1)).item()
    same = x.expand(4000, -1, -1, -1)
    elbo = -elbo_loss(vae, {"x": same}, draws(4000))["nats"].item()
    bounds = [-iwae_loss(vae, {"x": same}, draws(4000), samples=k)["nats"].item() for k in (1, 5, 50)]
    assert elbo < bounds[1] < bounds[2] < top and abs(elbo - bounds[0]) < 0.1
    assert top - elbo > 0.3 and top - bounds[2] < 0.05
    pipe = VAEPipeline(vae)
    found = [pipe.log_likelihood(same[:20], samples=k, generator=seeded(0)).mean().item() for k in (1, 5000)]
    assert found[0] < top and abs(found[1] - top) < 0.03


def test_the_bound_of_one_sample_is_the_elbo():
    vae, x = tall(), binary(5)
    noise = draws(5).normal("posterior", (1, 9)).double()
    out = vae(x, noise)
    log_w = log_likelihood("bernoulli", x, out.location)
    priors = [
        vae.hierarchy.priors[0](out.layers[1].z),
        vae.hierarchy.priors[1](out.layers[2].z),
        torch.zeros(4, **DOUBLE),
    ]
    for level, found in zip(out.layers, priors):
        for sign, (mean, log_variance) in ((1, found.chunk(2, -1)), (-1, level[:2])):
            mean, log_variance = (p if p.ndim != 2 else p[:, None] for p in (mean, log_variance))
            log_w = log_w + sign * Normal(mean, (0.5 * log_variance).exp()).log_prob(level.z).sum(2)
    torch.testing.assert_close(iwae_loss(vae, {"x": x}, draws(5), samples=1)["loss"], -log_w.mean())


def test_the_kl_of_each_level_has_the_mean_of_its_closed_form():
    vae, exact = linear_gaussian(offset=0.5)
    x, n = exact.sample((1,)).view(1, 1, 4, 4).clamp(-1, 1), 200_000
    out = vae(x, torch.randn(1, n, 4, **DOUBLE))
    first, slope = out.layers[0], vae.hierarchy.posteriors[0][-1].weight[:2].diag()
    a, shift = vae.hierarchy.priors[0][-1].weight[:2].diag(), vae.hierarchy.posteriors[0][-1].bias[:2]
    (m, v), t2 = (first.mean[0], first.log_variance[0].exp()), vae.hierarchy.priors[0][-1].bias[2:].exp()
    u = vae.hierarchy.posteriors[0][-1].bias[2:].exp()
    # z_2 = slope z_1 + shift + sqrt(u) noise, so E(z_1 - a z_2)^2 is:
    apart = (m - a * (slope * m + shift)).square() + (1 - a * slope).square() * v + a.square() * u
    lower = 0.5 * (apart / t2 + t2.log() - v.log() - 1)
    upper = gaussian_kl(slope * m + shift, u.log().expand(2)) + 0.5 * slope.square() * v
    found = hierarchical_kl(out.z, out.mean, out.log_variance, (2, 2))[0]
    assert ((found - torch.cat([lower, upper])).abs() < 0.01).all()
    # What the KL of two Gaussians would say of the lower level, the sample of the upper one given, is another number.
    q, p = (Normal(mean, variance.sqrt()) for mean, variance in ((m, v), (a * out.layers[1].z, t2)))
    assert ((kl_divergence(q, p).mean((0, 1)) - lower).abs() > 0.05).any()


@pytest.mark.parametrize("options", [{}, {"free_bits": 0.1, "beta": 2.0}, {"capacity": 0.3}])
def test_a_split_into_micro_batches_changes_nothing(options):
    vae, x = tall(), pictures(8)
    whole = elbo_loss(vae, {"x": x}, draws(8), **options)
    parts = [elbo_loss(vae, {"x": x[i : i + 4]}, draws(4, 0, i, 8), **options)["loss"] for i in (0, 4)]
    torch.testing.assert_close(whole["loss"], sum(parts) / 2)
    torch.testing.assert_close(whole["kl"], sum(whole[f"kl_{i}"] for i in (1, 2, 3)))
    assert whole["active_units"] == sum(whole[f"active_units_{i}"] for i in (1, 2, 3))


# ------------------------------------------------------------ gradients


def test_the_doubly_reparameterised_gradient_is_its_formula():
    vae, x, k = tall(), binary(3), 4
    values = iwae_loss(vae, {"x": x}, draws(3), samples=k, gradient="doubly_reparameterised")
    standard = iwae_loss(vae, {"x": x}, draws(3), samples=k)
    for name in values:
        torch.testing.assert_close(values[name], standard[name])
    found, other = gradients(values, vae), gradients(standard, vae)

    # log w as a function of the samples alone: of a second network, whose weights do not count for q.
    constant = tall()
    levels = vae.hierarchy.infer(*vae.encode_first(x), draws(3).normal("posterior", (k, 9)).double())
    leaves = [level.z.detach().requires_grad_() for level in levels]
    location = constant._location(leaves[0].flatten(0, 1), None).unflatten(0, (3, k))
    log_w = log_likelihood("bernoulli", x, location)
    q = [
        [p[:, None] for p in constant.encode_first(x)],
        *(f(z).chunk(2, -1) for f, z in zip(constant.hierarchy.posteriors, leaves)),
    ]
    p = [*(f(z).chunk(2, -1) for f, z in zip(constant.hierarchy.priors, leaves[1:])), [torch.zeros(1, **DOUBLE)] * 2]
    for z, below, above in zip(leaves, q, p):
        for sign, (mean, log_variance) in ((1, above), (-1, below)):
            log_w = log_w + sign * Normal(mean, (0.5 * log_variance).exp()).log_prob(z).sum(2)
    w = log_w.detach().softmax(1)
    slopes = torch.autograd.grad(log_w.sum(), leaves)
    vae.zero_grad()
    (-sum((w.square()[..., None] * slope * level.z).sum() for slope, level in zip(slopes, levels)) / 3).backward()
    encoder = {name for name in found if name.startswith(("encoder_mlp", "posterior", "hierarchy.posteriors"))}
    for name, parameter in vae.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad if name in encoder else other[name])
    assert len(encoder) == 4 + 4 + 2
    assert all(
        not torch.allclose(found[name], other[name]) for name in ("posterior.weight", "hierarchy.posteriors.1.0.weight")
    )


def test_both_gradients_agree_and_the_second_varies_less():
    vae, n = linear_gaussian(offset=0.4)[0], 200
    x = torch.full((50, 1, 4, 4), 0.2, **DOUBLE)

    def biases(gradient, seed):
        found = gradients(iwae_loss(vae, {"x": x}, draws(50, seed), samples=6, gradient=gradient), vae)
        return torch.cat(
            [found["posterior.bias"], found["hierarchy.posteriors.0.0.bias"], found["hierarchy.priors.0.0.bias"]]
        )

    standard, double = (torch.stack([biases(g, s) for s in range(n)]) for g in LOSSES)
    error = ((standard.var(0) + double.var(0)) / n).sqrt()
    assert ((standard.mean(0) - double.mean(0)).abs() <= 4 * error).all()
    assert (double.var(0)[:8] < 0.8 * standard.var(0)[:8]).all()
    torch.testing.assert_close(standard[:, 8:], double[:, 8:])  # the prior's is the bound's own


def test_doubly_reparameterised_rests_at_the_true_posterior():
    vae, exact = linear_gaussian()
    x = exact.sample((6,)).view(6, 1, 4, 4).clamp(-1, 1)
    for gradient, rests in (("doubly_reparameterised", True), ("standard", False)):
        found = gradients(iwae_loss(vae, {"x": x}, draws(6), samples=4, gradient=gradient), vae)
        for name in ("posterior.weight", "hierarchy.posteriors.0.0.weight"):
            assert (found[name].abs().max() < 1e-10) == rests


@pytest.mark.parametrize("gradient", LOSSES)
def test_no_log_variance_breaks_anything(gradient):
    for which in range(3):
        for bias in (-1e4, -30.0, 20.0, 1e4):
            vae = tall().float()
            head = (vae.posterior, vae.hierarchy.posteriors[0][-1], vae.hierarchy.priors[0][-1])[which]
            with torch.no_grad():
                head.bias[len(head.bias) // 2 :] = bias
            values = iwae_loss(vae, {"x": pictures(4).float()}, draws(4), samples=2, gradient=gradient)
            assert all(value.isfinite() for value in values.values())
            assert all(g.isfinite().all() for g in gradients(values, vae).values())


# ------------------------------------------------------------ the network


def test_a_code_is_the_noise_of_which_the_priors_make_the_levels():
    vae, x = tall(), pictures(3)
    out = vae(x, torch.randn(3, 9, **DOUBLE))
    torch.testing.assert_close(vae.hierarchy.generate(out.z), out.layers[0].z)
    torch.testing.assert_close(vae.decode(out.z), out.location)
    assert torch.equal(out.z[:, 7:], out.layers[2].z)
    code = torch.randn(5, 9, **DOUBLE)
    z = code[:, 7:]
    for prior, part in zip((vae.hierarchy.priors[1], vae.hierarchy.priors[0]), (code[:, 4:7], code[:, :4])):
        mean, log_variance = prior(z).chunk(2, 1)
        z = mean + (0.5 * log_variance).exp() * part
    torch.testing.assert_close(vae.hierarchy.generate(code), z)


def test_several_samples_are_each_what_one_would_be():
    vae, x, noise = tall(num_class_embeds=2), pictures(3), torch.randn(3, 4, 9, **DOUBLE)
    labels = torch.tensor([0, 1, 0])
    out = vae(x, noise, labels)
    for k in range(4):
        one = vae(x, noise[:, k], labels)
        for name in ("reconstruction", "z", "mean", "log_variance"):
            torch.testing.assert_close(out[name][:, k], one[name])
        torch.testing.assert_close(one.mean, vae.encode(x, labels, noise[:, k])[0])


def test_a_tuple_of_one_level_is_the_network_of_one_level():
    x, noise = pictures(3), torch.randn(3, 2, 3, **DOUBLE)
    one, same = tiny(), tiny(latent_dim=(3,), hidden_sizes=((8,),))
    assert one.state_dict().keys() == same.state_dict().keys() and not any(
        "hierarchy" in key for key in one.state_dict()
    )
    for a, b in zip(one(x, noise).to_tuple()[:5], same(x, noise).to_tuple()[:5]):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "config, words",
    [
        ({"latent_dim": (3, 2), "hidden_sizes": (8,)}, ["hidden_sizes", "(8,)", "(3, 2)", "((200, 200), (100, 100))"]),
        ({"latent_dim": (3, 2), "hidden_sizes": ((8,),)}, ["hidden_sizes", "((8,),)", "(3, 2)"]),
        ({"latent_dim": 3, "hidden_sizes": ((8,),)}, ["hidden_sizes", "((8,),)", "latent_dim=3"]),
        ({"latent_dim": (), "hidden_sizes": ()}, ["latent_dim=()"]),
        ({"latent_dim": (3, 0), "hidden_sizes": ((8,), (8,))}, ["latent_dim", "(3, 0)"]),
        ({"latent_dim": (3, 2), "hidden_sizes": ((8,), (0,))}, ["hidden_sizes must each be at least 1", "(8, 0)"]),
    ],
)
def test_levels_that_cannot_be_say_why(config, words):
    with pytest.raises(UsageError) as error:
        tiny(**config)
    assert all(word in str(error.value) for word in words)


# ------------------------------------------------------------ the pipeline and the example


@pytest.fixture(scope="module")
def example():
    return load_example("train_vae")


def test_every_word_means_the_same_as_for_one_level(tmp_path):
    pipe, x = VAEPipeline(tall().float().eval()), pictures(3).float()
    codes = pipe.encode(x)
    assert codes.shape == (3, 9)
    torch.testing.assert_close(pipe.decode(codes, output_type="latent"), pipe.vae(x).reconstruction)
    own = image_generators([seeded(s) for s in (4, 5, 6)], 3)
    noise = torch.stack([torch.randn(9, generator=g) for g in own])
    sampled = pipe.encode(x, sample_posterior=True, generator=[seeded(s) for s in (4, 5, 6)])
    torch.testing.assert_close(sampled, pipe.vae(x, noise).z)
    ends = pipe.interpolate(x[0], x[1], 4, output_type="latent")[[0, -1]]
    torch.testing.assert_close(ends, pipe.reconstruct(x[:2], output_type="latent"))
    walk = pipe.traversals(x[0], dimensions=[8], steps=3, span=2.0, output_type="latent")[0]
    codes[0, 8] = -2.0
    torch.testing.assert_close(walk[:1], pipe.decode(codes[:1], output_type="latent"))
    drawn = [pipe(n, generator=seeded(0), output_type="latent").images for n in (70, 2)]
    assert torch.equal(drawn[0][:2], drawn[1])
    bounds = [pipe.log_likelihood(x[:n], samples=3, generator=seeded(0)) for n in (3, 2)]
    assert torch.equal(bounds[0][:2], bounds[1]) and torch.equal(
        -bounds[0], pipe.anomaly_score(x, samples=3, generator=seeded(0))
    )
    with pytest.raises(UsageError, match=r"latents must have shape \(B, 9\)"):
        pipe(latents=torch.zeros(2, 4))
    prior = LatentMixture.fit(pipe.encode(pictures(50).float()), num_components=2)
    full = VAEPipeline(pipe.vae, prior=prior)
    assert full.log_likelihood(x).isfinite().all()
    full.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    a, b = (p(3, generator=seeded(1), output_type="latent").images for p in (full, loaded))
    assert torch.equal(a, b)


def test_a_fitted_prior_that_is_standard_normal_changes_nothing():
    vae, x = tall(likelihood="gaussian"), pictures(2)
    priors = (None, LatentMixture(9, num_components=1))
    torch.testing.assert_close(*(VAEPipeline(vae, prior=p).log_likelihood(x, generator=seeded(0)) for p in priors))


@pytest.mark.parametrize("flags", [[], ["--importance_samples", "3", "--gradient", "doubly_reparameterised"]])
def test_the_example_trains_several_levels(example, tmp_path, flags):
    flags = ["--output_dir", tmp_path, "--latent_dim", 6, 2, "--hidden_sizes", 16, "--upper_hidden_sizes", 8, 4, *flags]
    assert example.main(arguments(example, *flags)) == 0
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    assert list(pipe.vae.config.latent_dim) == [6, 2] and pipe.encode(pictures(1, 1, 8, 8).float()).shape == (1, 8)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {"vae/active_units_1", "vae/active_units_2", "vae/kl_2"} <= rows[-2].keys() | rows[-1].keys()
