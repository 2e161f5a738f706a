"""VAEs: every term against its closed form, the bounds against an exact log p(x), gradients against brute force."""

import math

import pytest
import torch
from helpers import load_example, seeded
from numpy.polynomial.hermite_e import hermegauss
from tiny_vae import DOUBLE, arguments, binary, draws, gradients, pictures, tiny
from torch.distributions import Bernoulli, MultivariateNormal, Normal, kl_divergence

from latentia import VAE, DiffusionPipeline, LatentMixture, VAEPipeline
from latentia.errors import UsageError
from latentia.functional.bounds import beta_of_mse_weight
from latentia.functional.distributions import gaussian_kl, log_likelihood, log_normal, reparameterize
from latentia.losses.variational import elbo_loss, iwae_loss
from latentia.pipelines.arguments import image_generators
from latentia.pipelines.capabilities import Likelihood
from latentia.rng import Rng


def linear_gaussian(offset=0.0):
    """x = W z + b + noise, W with orthogonal columns, so that the true posterior is diagonal; and that as the encoder.

    `offset` moves the encoder's mean off it. Returns the network and the exact p(x).
    """
    vae = tiny(hidden_sizes=(), likelihood="gaussian", observation_std=0.4, latent_dim=2)
    w = torch.linalg.qr(torch.randn(16, 2, **DOUBLE)).Q * torch.tensor([0.8, 0.3], **DOUBLE)
    b, s2 = torch.randn(16, **DOUBLE) * 0.1, 0.4**2
    precision = 1 + w.square().sum(0) / s2
    with torch.no_grad():
        vae.decoder_mlp[-1].weight.copy_(w), vae.decoder_mlp[-1].bias.copy_(b)
        mean = (w / s2 / precision).T  # of q: mean (x - b)
        vae.posterior.weight.copy_(torch.cat([mean, torch.zeros(2, 16, **DOUBLE)]))
        vae.posterior.bias.copy_(torch.cat([-mean @ b + offset, -precision.log()]))
    return vae, MultivariateNormal(b, w @ w.T + s2 * torch.eye(16, **DOUBLE))


# ------------------------------------------------------------ closed forms


@pytest.mark.parametrize("mean, std, nats", [(1, 1, 0.5), (0, 0.5, 0.31815), (2, 0.1, 3.80759), (0, 1, 0)])
def test_the_kl_has_its_known_values(mean, std, nats):
    kl = gaussian_kl(torch.tensor(float(mean), **DOUBLE), torch.tensor(2 * math.log(std), **DOUBLE))
    assert abs(kl.item() - nats) < 1e-5


def test_the_kl_is_that_of_torch_without_rounding_near_zero():
    mean, log_variance = torch.randn(100, **DOUBLE), torch.randn(100, **DOUBLE)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(gaussian_kl(mean, log_variance), expected)
    tiny_kl = gaussian_kl(torch.zeros(3), torch.tensor([1e-3, -1e-3, 0.0]))  # float32: (lv)^2 / 4
    torch.testing.assert_close(tiny_kl, torch.tensor([2.5e-7, 2.5e-7, 0.0]), rtol=1e-2, atol=1e-12)


@pytest.mark.parametrize("phi, value, slope", [(0.5, 2.7659334, 5.7281641), (-0.1, 0.8180677, None)])
def test_a_reparameterised_sample_has_the_exact_gradient(phi, value, slope):
    # E[x^2 + sin x], x ~ N(phi^3, e^(2 phi)), the noise being the nodes of a Gauss-Hermite rule.
    nodes, weights = (torch.from_numpy(a) for a in hermegauss(60))
    phi = torch.tensor(phi, **DOUBLE, requires_grad=True)
    x = reparameterize(phi**3, 2 * phi, nodes)
    mean = ((x.square() + x.sin()) * weights).sum() / weights.sum()
    assert abs(mean.item() - value) < 1e-6
    (found,) = torch.autograd.grad(mean, phi)
    if slope is not None:
        assert abs(found.item() - slope) < 1e-6


def test_the_reparameterised_gradient_varies_less():
    eps, mean = torch.randn(20_000, **DOUBLE), torch.zeros(20_000, **DOUBLE, requires_grad=True)
    x = reparameterize(mean, torch.zeros(20_000, **DOUBLE), eps)
    (path,) = torch.autograd.grad((x.square() + x.sin()).sum(), mean)
    score = (eps.square() + eps.sin()) * eps  # f(x) dlog N(x; mean, 1) / dmean
    assert abs(path.mean() - score.mean()) < 0.1 and path.var() < 0.5 * score.var()


def test_bernoulli_is_that_of_torch_and_adds_to_one():
    logits = torch.randn(1, 1, 2, 2, **DOUBLE)
    every = torch.tensor([[i >> k & 1 for k in range(4)] for i in range(16)]).double().view(16, 1, 2, 2)
    found = log_likelihood("bernoulli", 2 * every - 1, logits.expand(16, -1, -1, -1))
    torch.testing.assert_close(found, Bernoulli(logits=logits).log_prob(every).flatten(1).sum(1))
    assert abs(found.exp().sum().item() - 1) < 1e-12


def test_gaussian_pictures_are_torchs_for_one_or_several_samples():
    x, mean, log_scale = pictures(3), torch.randn(3, 5, 1, 4, 4, **DOUBLE), torch.tensor(-0.7, **DOUBLE)
    expected = Normal(mean, log_scale.exp()).log_prob(x[:, None]).flatten(2).sum(2)
    torch.testing.assert_close(log_likelihood("gaussian", x, mean, log_scale), expected)


@pytest.mark.parametrize("log_scale", [-7.0, -3.0, 0.0, 3.0])
@pytest.mark.parametrize("mean", [-1.4, -1.0, 0.013, 0.9])
def test_the_256_levels_have_the_right_probabilities(mean, log_scale):
    levels = torch.arange(256, **DOUBLE).div(127.5).sub(1).view(256, 1, 1, 1)
    location = torch.full((256, 1, 1, 1), mean, **DOUBLE, requires_grad=True)
    scale = torch.tensor(log_scale, **DOUBLE, requires_grad=True)
    found = log_likelihood("discretized_logistic", levels, location, scale)
    assert abs(found.exp().sum().item() - 1) < 1e-9 and found.isfinite().all()
    edges = torch.arange(255, **DOUBLE).add(0.5).div(127.5).sub(1)
    cdf = torch.cat([torch.zeros(1), torch.sigmoid((edges - mean) / math.exp(log_scale)), torch.ones(1)])
    torch.testing.assert_close(found.exp(), cdf.diff().to(found.dtype), rtol=1e-6, atol=1e-14)
    found.sum().backward()
    assert location.grad.isfinite().all() and scale.grad.isfinite()


# ------------------------------------------------------------ bounds


def test_with_the_true_posterior_every_bound_is_log_p_of_x():
    vae, exact = linear_gaussian()
    x = exact.sample((6,)).view(6, 1, 4, 4).clamp(-1, 1)
    expected = -exact.log_prob(x.flatten(1)).mean()
    one = iwae_loss(vae, {"x": x}, draws(6), samples=1)["nats"]
    many = iwae_loss(vae, {"x": x}, draws(6), samples=9)
    torch.testing.assert_close(one, expected)
    torch.testing.assert_close(many["nats"], expected)
    torch.testing.assert_close(many["effective_samples"], torch.tensor(9.0, **DOUBLE))
    same = x[:1].expand(20_000, -1, -1, -1)  # the ELBO's reconstruction is a sample's
    values = elbo_loss(vae, {"x": same}, draws(20_000))
    assert abs(values["nats"] + exact.log_prob(x[:1].flatten(1)).item()) < 0.03


def test_bounds_rise_with_k_from_the_elbo_towards_log_p():
    vae, exact = linear_gaussian(offset=0.7)
    x = torch.zeros(4000, 1, 4, 4, **DOUBLE)
    batch, top = {"x": x}, exact.log_prob(x[0].flatten()).item()
    bounds = [-iwae_loss(vae, batch, draws(4000), samples=k)["nats"].item() for k in (1, 2, 8, 64)]
    assert bounds == sorted(bounds) and bounds[-1] < top and top - bounds[-1] < 0.1 * (top - bounds[0])
    assert abs(bounds[0] + elbo_loss(vae, batch, draws(4000))["nats"].item()) < 0.1
    assert top - bounds[0] > 0.5


def test_the_elbo_is_its_two_parts_and_beta_weighs_one_of_them():
    vae, batch = tiny(), {"x": binary(5)}
    by_beta = {beta: elbo_loss(vae, batch, draws(5), beta=beta) for beta in (0.0, 1.0, 4.0)}
    for beta, values in by_beta.items():
        torch.testing.assert_close(values["loss"].detach(), values["reconstruction"] + beta * values["kl"])
        torch.testing.assert_close(values["nats"], by_beta[1.0]["loss"].detach())
    out = vae(batch["x"])
    torch.testing.assert_close(by_beta[1.0]["bits_per_dim"], by_beta[1.0]["nats"] / 16 / math.log(2))
    assert by_beta[1.0]["active_units"] == (out.mean.var(0, correction=0) > 0.01).sum()


def test_bits_of_a_density_count_the_width_of_a_level():
    vae = tiny(likelihood="gaussian", observation_std=1.0)
    values = elbo_loss(vae, {"x": pictures(5)}, draws(5))
    torch.testing.assert_close(values["bits_per_dim"], values["nats"] / 16 / math.log(2) + 7)


def test_below_the_floor_of_free_bits_the_loss_is_flat_in_the_kl():
    vae, batch = tiny(), {"x": binary(5)}
    kl = gaussian_kl(*vae.encode(batch["x"]))
    floor = 2 * kl.max().item()
    below, plain = (elbo_loss(vae, batch, draws(5), **o) for o in ({"free_bits": floor}, {"beta": 0.0}))
    torch.testing.assert_close(below["loss"], plain["loss"] + 3 * floor)  # 3 dimensions
    for a, b in zip(gradients(below, vae).values(), gradients(plain, vae).values()):
        torch.testing.assert_close(a, b)
    above, elbo = (elbo_loss(vae, batch, draws(5), **o) for o in ({"free_bits": kl.min().item() / 2}, {}))
    torch.testing.assert_close(above["loss"], elbo["loss"])
    middle = elbo_loss(vae, batch, draws(5), free_bits=kl.median().item(), beta=2.0)
    torch.testing.assert_close(
        middle["loss"].detach(), plain["loss"].detach() + 2 * kl.clamp(min=kl.median()).sum(1).mean().detach()
    )


def test_capacity_pulls_the_kl_of_each_image_from_both_sides():
    vae, batch = tiny(), {"x": binary(5)}
    kl = gaussian_kl(*vae.encode(batch["x"])).sum(1).detach()
    values = elbo_loss(vae, batch, draws(5), capacity=kl.median().item(), capacity_weight=3.0)
    expected = values["reconstruction"] + 3 * (kl - kl.median()).abs().mean()
    torch.testing.assert_close(values["loss"].detach(), expected)


def test_training_at_a_capacity_holds_the_kl_there():
    torch.manual_seed(0)
    vae = VAE(sample_size=4, latent_dim=4, hidden_sizes=(32,))
    optimizer = torch.optim.Adam(vae.parameters(), 1e-2)
    x = torch.where(torch.rand(64, 1, 4, 4) < 0.5, 1.0, -1.0)
    kls = []
    for step in range(250):
        values = elbo_loss(vae, {"x": x}, Rng(0, 64 * step, 64, 0, 64), capacity=2.0)
        optimizer.zero_grad()
        values["loss"].backward()
        optimizer.step()
        kls.append(values["kl"])
    assert abs(torch.stack(kls[-50:]).mean() - 2) < 0.2


def test_the_weight_on_a_mean_squared_error_is_this_beta():
    sigma, weight = 0.3, 0.02
    vae, x = tiny(likelihood="gaussian", observation_std=sigma), pictures(5)
    out = vae(x, draws(5).normal("posterior", (3,)).double())
    simple = (out.reconstruction - x).square().mean() + weight * gaussian_kl(out.mean, out.log_variance).sum(1).mean()
    theirs = gradients({"loss": simple}, vae)
    ours = gradients(elbo_loss(vae, {"x": x}, draws(5), beta=beta_of_mse_weight(weight, 16, sigma)), vae)
    for name, gradient in theirs.items():
        torch.testing.assert_close(gradient, 2 * sigma**2 / 16 * ours[name])
    # Equally it is the plain ELBO of pixels whose variance is weight * D / 2.
    assert beta_of_mse_weight(weight, 16, math.sqrt(weight * 16 / 2)) == pytest.approx(1)


def test_a_learned_variance_rests_at_the_mean_squared_error():
    vae, x = tiny(likelihood="gaussian"), pictures(7)
    out = vae(x, draws(7).normal("posterior", (3,)).double())
    error = (out.reconstruction - x).square().mean().detach()
    for factor, sign in ((1.0, 0), (2.0, 1), (0.5, -1)):
        with torch.no_grad():
            vae.log_scale.fill_(0.5 * math.log(factor * error))
        slope = gradients(elbo_loss(vae, {"x": x}, draws(7)), vae)["log_scale"]
        assert abs(slope) < 1e-9 if sign == 0 else slope * sign > 0


@pytest.mark.parametrize("options", [{}, {"free_bits": 0.1, "beta": 2.0}, {"capacity": 0.3}])
def test_a_split_into_micro_batches_changes_nothing(options):
    vae, x = tiny(), pictures(8)
    whole = elbo_loss(vae, {"x": x}, draws(8), **options)["loss"]
    parts = [elbo_loss(vae, {"x": x[i : i + 4]}, draws(4, 0, i, 8), **options)["loss"] for i in (0, 4)]
    torch.testing.assert_close(whole, sum(parts) / 2)


# ------------------------------------------------------------ gradients of the importance weighted bound


def test_the_standard_gradient_is_that_of_the_bound():
    vae, x, k = tiny(), binary(4), 5
    values = iwae_loss(vae, {"x": x}, draws(4), samples=k)
    found = gradients(values, vae)
    out = vae(x, draws(4).normal("posterior", (k, 3)).double())
    q = Normal(out.mean[:, None], (0.5 * out.log_variance).exp()[:, None])
    log_p = log_likelihood("bernoulli", x, out.location) + Normal(0.0, 1.0).log_prob(out.z).sum(2)
    loss = -(log_p - q.log_prob(out.z).sum(2)).exp().mean(1).log().mean()
    torch.testing.assert_close(values["loss"], loss)
    for name, gradient in gradients({"loss": loss}, vae).items():
        torch.testing.assert_close(found[name], gradient)


def test_the_doubly_reparameterised_gradient_is_its_formula():
    vae, x, k = tiny(), binary(3), 4
    values = iwae_loss(vae, {"x": x}, draws(3), samples=k, gradient="doubly_reparameterised")
    standard = iwae_loss(vae, {"x": x}, draws(3), samples=k)
    torch.testing.assert_close(values["loss"], standard["loss"])
    found, other = gradients(values, vae), gradients(standard, vae)
    noise = draws(3).normal("posterior", (k, 3)).double()
    mean, log_variance = vae.encode(x)
    z = reparameterize(mean[:, None], log_variance[:, None], noise)
    leaf = z.detach().requires_grad_()
    location = vae.decode(leaf.flatten(0, 1)).unflatten(0, (3, k))
    fixed = log_normal(leaf, mean.detach()[:, None], log_variance.detach()[:, None])
    log_w = log_likelihood("bernoulli", x, location) + log_normal(leaf) - fixed
    w = log_w.detach().softmax(1)
    (slope,) = torch.autograd.grad(log_w.sum(), leaf)
    vae.zero_grad()
    (-(w.square()[..., None] * slope * z).sum((1, 2)).mean()).backward()
    encoder = {name for name in found if name.startswith(("encoder_mlp", "posterior"))}
    for name in found:
        expected = dict(vae.named_parameters())[name].grad if name in encoder else other[name]
        torch.testing.assert_close(found[name], expected)
    assert encoder and not torch.allclose(found["posterior.weight"], other["posterior.weight"])


def test_both_gradients_agree_and_the_second_varies_less():
    vae, n = linear_gaussian(offset=0.4)[0], 200
    x = torch.full((50, 1, 4, 4), 0.2, **DOUBLE)

    def bias(gradient, seed):
        return gradients(iwae_loss(vae, {"x": x}, draws(50, seed), samples=6, gradient=gradient), vae)["posterior.bias"]

    standard, double = (torch.stack([bias(g, s) for s in range(n)]) for g in ("standard", "doubly_reparameterised"))
    error = ((standard.var(0) + double.var(0)) / n).sqrt()
    assert ((standard.mean(0) - double.mean(0)).abs() < 4 * error).all()
    assert (double.var(0) < 0.7 * standard.var(0)).all()


def test_doubly_reparameterised_rests_at_the_true_posterior():
    vae, exact = linear_gaussian()
    x = exact.sample((6,)).view(6, 1, 4, 4).clamp(-1, 1)
    for gradient, rests in (("doubly_reparameterised", True), ("standard", False)):
        found = gradients(iwae_loss(vae, {"x": x}, draws(6), samples=4, gradient=gradient), vae)
        assert (found["posterior.weight"].abs().max() < 1e-10) == rests


# ------------------------------------------------------------ the network


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "discretized_logistic"])
@pytest.mark.parametrize("bias", [-1e4, -30.0, 20.0, 1e4])
def test_no_log_variance_breaks_anything(likelihood, bias):
    vae = tiny(likelihood=likelihood).float()
    with torch.no_grad():
        vae.posterior.bias[3:] = bias
    for loss in (elbo_loss, iwae_loss):
        values = loss(vae, {"x": pictures(4).float()}, draws(4))
        assert all(value.isfinite() for value in values.values())
        assert all(g.isfinite().all() for g in gradients(values, vae).values())
    assert -30 <= vae.encode(pictures(4).float())[1].min() <= vae.encode(pictures(4).float())[1].max() <= 20


def test_several_samples_are_each_decoded_as_one_would_be():
    vae, x, noise = tiny(num_class_embeds=2), pictures(3), torch.randn(3, 4, 3, **DOUBLE)
    labels = torch.tensor([0, 1, 0])
    out = vae(x, noise, labels)
    for k in range(4):
        one = vae(x, noise[:, k], labels)
        torch.testing.assert_close(out.reconstruction[:, k], one.reconstruction)
        torch.testing.assert_close(out.z[:, k], one.z)


def test_encoder_and_decoder_are_both_told_the_label():
    vae, x = tiny(num_class_embeds=3), pictures(1)
    a, b = torch.tensor([0]), torch.tensor([2])
    assert not torch.allclose(vae.encode(x, a)[0], vae.encode(x, b)[0])
    z = vae.encode(x, a)[0]
    assert not torch.allclose(vae.decode(z, a), vae.decode(z, b))


def test_grey_pixels_are_binarised_with_their_probability():
    seen = []

    class Recorder(VAE):
        def forward(self, x, *args, **kwargs):
            seen.append(x)
            return super().forward(x, *args, **kwargs)

    vae = Recorder(sample_size=4, latent_dim=2, hidden_sizes=(4,))
    grey = torch.tensor([-1.0, -0.5, 0.5, 1.0]).view(1, 1, 1, 4).expand(5000, 1, 4, 4)
    for seed in (0, 1):
        elbo_loss(vae, {"x": grey}, draws(5000, seed))
    assert set(seen[0].unique().tolist()) == {-1.0, 1.0} and not torch.equal(*seen)
    share = (seen[0] > 0).float().mean((0, 1, 2))
    assert share[0] == 0 and share[3] == 1 and abs(share[1] - 0.25) < 0.02 and abs(share[2] - 0.75) < 0.02
    seen.clear()
    gaussian = Recorder(sample_size=4, latent_dim=2, hidden_sizes=(4,), likelihood="gaussian")
    elbo_loss(gaussian, {"x": grey}, draws(5000))
    assert torch.equal(seen[0], grey)


@pytest.mark.parametrize(
    "config, words",
    [
        ({"latent_dim": 17}, ["latent_dim", "1 to 16", "17"]),
        ({"latent_dim": 0}, ["latent_dim", "0"]),
        ({"hidden_sizes": (8, 0)}, ["hidden_sizes", "(8, 0)"]),
        ({"block_out_channels": (8, 8, 8)}, ["sample_size", "8", "4"]),
        ({"likelihood": "gausian"}, ["likelihood", "gausian", "gaussian"]),
        ({"observation_std": 0.1}, ["observation_std", "bernoulli"]),
        ({"likelihood": "gaussian", "observation_std": 0.0}, ["observation_std", "0.0"]),
        ({"num_class_embeds": -1}, ["num_class_embeds", "-1"]),
    ],
)
def test_a_network_that_cannot_be_says_why(config, words):
    with pytest.raises(UsageError) as error:
        tiny(**config)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    "loss, options, batch, words",
    [
        (elbo_loss, {"beta": -1.0}, {}, ["beta", "-1"]),
        (elbo_loss, {"free_bits": math.nan}, {}, ["free_bits", "nan"]),
        (elbo_loss, {"capacity": -2.0}, {}, ["capacity", "-2"]),
        (elbo_loss, {"capacity": 5.0, "beta": 2.0}, {}, ["capacity", "beta=2"]),
        (iwae_loss, {"samples": 0}, {}, ["samples", "0"]),
        (iwae_loss, {"gradient": "doubly"}, {}, ["gradient", "doubly_reparameterised"]),
        (elbo_loss, {}, {"x": 255 * torch.rand(2, 1, 4, 4)}, ["images must be in [-1, 1]", "values from", "127.5"]),
        (elbo_loss, {}, {"x": torch.full((2, 1, 4, 4), math.nan)}, ["[-1, 1]", "nan"]),
        (elbo_loss, {}, {"labels": torch.tensor([0, 3])}, ["labels", "0 to 2", "3"]),
    ],
)
def test_a_loss_that_cannot_be_says_why(loss, options, batch, words):
    vae = tiny(num_class_embeds=3).float()
    batch = {"x": pictures(2).float(), "labels": torch.tensor([0, 1])} | batch
    with pytest.raises(UsageError) as error:
        loss(vae, batch, draws(2), **options)
    assert all(word in str(error.value) for word in words)


# ------------------------------------------------------------ the pipeline


def pipe_of(**config):
    return VAEPipeline(tiny(**config).float().eval())


def test_encoding_is_random_only_if_asked_for():
    pipe, x = pipe_of(), pictures(3).float()
    first, again, other = (pipe.encode(x, sample_posterior=True, generator=seeded(s)) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.allclose(first, other)
    assert torch.equal(pipe.encode(x), pipe.encode(x)) and torch.equal(pipe.encode(x), pipe.vae.encode(x)[0])


def test_a_picture_does_not_depend_on_its_neighbours():
    pipe = pipe_of(num_class_embeds=3)
    many = pipe(70, class_labels=[i % 3 for i in range(70)], generator=seeded(0), output_type="latent").images
    few = pipe(2, class_labels=[0, 1], generator=seeded(0), output_type="latent").images
    assert torch.equal(many[:2], few)
    x = pictures(70).float()
    labels = torch.arange(70) % 3
    bounds = [pipe.log_likelihood(x[:n], class_labels=labels[:n], generator=seeded(0)) for n in (70, 2)]
    assert torch.equal(bounds[0][:2], bounds[1])


def test_temperature_zero_is_the_centre_and_latents_can_be_given():
    pipe, z = pipe_of(), torch.randn(2, 3)
    centre = pipe(2, temperature=0.0, output_type="latent").images
    assert torch.equal(centre, pipe.decode(torch.zeros(2, 3), output_type="latent"))
    assert torch.equal(pipe(latents=z, output_type="latent").images, pipe.decode(z, output_type="latent"))
    assert pipe(2).images[0].size == (4, 4)


def test_interpolation_begins_and_ends_at_the_reconstructions():
    pipe, x = pipe_of(), pictures(2).float()
    ends = pipe.reconstruct(x, output_type="latent")
    for mode in ("lerp", "slerp"):
        way = pipe.interpolate(x[0], x[1], 5, mode=mode, output_type="latent")
        assert way.shape == (5, 1, 4, 4)
        torch.testing.assert_close(way[[0, -1]], ends)
    middle = pipe.decode(pipe.encode(x).mean(0, keepdim=True), output_type="latent")
    torch.testing.assert_close(pipe.interpolate(x[0], x[1], 3, output_type="latent")[1:2], middle)


def test_traversals_move_one_dimension_a_row():
    pipe, x = pipe_of(), pictures(1).float()
    rows = pipe.traversals(x, dimensions=[2, 0], steps=5, span=2.0, output_type="latent")
    z = pipe.encode(x).clone()
    z[0, 0] = 1.0
    torch.testing.assert_close(rows[1, 3], pipe.decode(z, output_type="latent")[0])
    assert rows.shape == (2, 5, 1, 4, 4) and pipe.traversals(x).size == (9 * 4, 3 * 4)


def test_the_manifold_lies_at_the_quantiles():
    pipe = pipe_of(latent_dim=2)
    rows = pipe.manifold(4, output_type="latent")
    at = Normal(0.0, 1.0).icdf(torch.tensor([1 / 8, 3 / 8, 5 / 8, 7 / 8]))
    expected = pipe.decode(torch.tensor([[at[1], at[3]]]), output_type="latent")[0]
    torch.testing.assert_close(rows[0, 1], expected)
    picture = pipe.manifold(4, output_type="pt")
    torch.testing.assert_close(picture[:, :4, 4:8], ((expected + 1) / 2).clamp(0, 1))
    assert pipe.manifold().size == (80, 80)


def test_an_attribute_is_the_difference_of_mean_codes():
    pipe, having, lacking = pipe_of(), pictures(4).float(), pictures(6).float()
    vector = pipe.attribute_vector(having, lacking)
    torch.testing.assert_close(vector, pipe.encode(having).mean(0) - pipe.encode(lacking).mean(0))
    moved = pipe.add_attribute(lacking, vector, strength=2.0, output_type="latent")
    torch.testing.assert_close(moved, pipe.decode(pipe.encode(lacking) + 2 * vector, output_type="latent"))


def test_the_likelihood_is_exact_where_the_posterior_is():
    vae, exact = linear_gaussian()
    pipe = VAEPipeline(vae)
    x = exact.sample((3,)).view(3, 1, 4, 4).clamp(-1, 1)
    expected = exact.log_prob(x.flatten(1))
    torch.testing.assert_close(pipe.log_likelihood(x), expected)
    torch.testing.assert_close(pipe.anomaly_score(x, samples=5), -expected)
    assert pipe.likelihood == Likelihood("lower bound", "density")
    loose = VAEPipeline(linear_gaussian(offset=0.7)[0])
    bounds = [loose.log_likelihood(x, samples=k, generator=seeded(0)).mean() for k in (1, 300)]
    assert bounds[0] < bounds[1] < expected.mean() and expected.mean() - bounds[1] < 0.1


def test_without_a_label_the_likelihood_is_the_mean_over_classes():
    pipe, x = VAEPipeline(tiny(num_class_embeds=2, likelihood="gaussian").eval()), pictures(2)
    found = pipe.log_likelihood(x, samples=3, generator=[seeded(5), seeded(6)])
    generators = image_generators([seeded(5), seeded(6)], 2)
    each = [pipe._bound(pipe._input(x), c, 3, generators) for c in (0, 1)]
    torch.testing.assert_close(found, torch.stack(each).exp().mean(0).log())
    assert "binarisation" in str(pipe_of().likelihood)


def test_a_fitted_prior_is_sampled_counted_and_saved(tmp_path):
    pipe = pipe_of()
    codes = torch.randn(200, 3) * 0.1 + 4
    full = VAEPipeline(pipe.vae, prior=LatentMixture.fit(codes, num_components=1), label_names=None)
    drawn = full(20, generator=seeded(0), output_type="latent").images
    near = pipe.decode(codes, output_type="latent")
    assert (drawn.mean(0) - near.mean(0)).abs().max() < 0.1 and not torch.allclose(drawn[0], drawn[1], atol=1e-6)
    with pytest.raises(UsageError, match="temperature"):
        full(2, temperature=0.5)
    x = binary(2).float()
    assert not torch.allclose(*(p.log_likelihood(x, generator=seeded(0)) for p in (pipe, full)))
    for name, one in (("with", full), ("without", pipe)):
        one.save_pretrained(tmp_path / name)
        loaded = DiffusionPipeline.from_pretrained(tmp_path / name)
        assert type(loaded) is VAEPipeline and (loaded.prior is None) == (name == "without")
        pair = [p(3, generator=seeded(1), output_type="latent").images for p in (one, loaded)]
        assert torch.equal(*pair)


def test_names_of_classes_work_and_are_saved(tmp_path):
    pipe = VAEPipeline(tiny(num_class_embeds=3).float().eval(), label_names=["cat", "dog", "owl"])
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    a = loaded(class_labels=["owl", "cat"], generator=seeded(0), output_type="latent").images
    assert torch.equal(a, pipe(class_labels=[2, 0], generator=seeded(0), output_type="latent").images)
    assert loaded.num_classes == 3 and len(a) == 2


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda p, x: p(), ["class_labels", "missing", "2"]),
        (lambda p, x: p(class_labels=2), ["class_labels", "0 to 1", "2"]),
        (lambda p, x: p(class_labels="catt"), ["catt", "cat"]),
        (lambda p, x: p(3, class_labels=[0, 1]), ["class_labels", "3", "2"]),
        (lambda p, x: p(0, class_labels=0), ["batch_size", "0"]),
        (lambda p, x: p(class_labels=0, temperature=-1.0), ["temperature", "-1"]),
        (lambda p, x: p(class_labels=0, latents=torch.zeros(2, 5)), ["latents", "(B, 3)", "(2, 5)"]),
        (lambda p, x: p.interpolate(x[0], x[1], 1, class_labels=0), ["steps", "1"]),
        (lambda p, x: p.interpolate(x[0], x[1], 3, class_labels=0, mode="slurp"), ["mode", "slurp", "slerp"]),
        (lambda p, x: p.interpolate(x, x, 3, class_labels=0), ["one image", "2"]),
        (lambda p, x: p.traversals(x[0], dimensions=[3], class_labels=0), ["dimensions", "[3]"]),
        (lambda p, x: p.manifold(class_labels=0), ["latent_dim=2", "latent_dim=3"]),
        (lambda p, x: p.log_likelihood(x, class_labels=0, samples=0), ["samples", "0"]),
        (lambda p, x: p.encode(x[..., :2], class_labels=0), ["4 high", "2"]),
    ],
)
def test_a_call_that_cannot_be_says_why(call, words):
    pipe = VAEPipeline(tiny(num_class_embeds=2).float().eval(), label_names=["cat", "dog"])
    with pytest.raises(UsageError) as error:
        call(pipe, pictures(2).float())
    assert all(word in str(error.value) for word in words)
    with pytest.raises(UsageError, match="without classes"):
        pipe_of()(class_labels=0)


# ------------------------------------------------------------ the example


@pytest.fixture(scope="module")
def example():
    return load_example("train_vae")


@pytest.mark.parametrize(
    "flags",
    [
        ["--class_conditional", "--likelihood", "gaussian", "--capacity", "5"],
        ["--importance_samples", "3", "--gradient", "doubly_reparameterised"],
    ],
)
def test_the_example_leaves_a_pipeline_and_goes_on(example, tmp_path, flags):
    flags = ["--output_dir", tmp_path, "--hidden_sizes", "16", *flags]
    assert example.main(arguments(example, *flags)) == 0
    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    labels = {"class_labels": [3, 4]} if pipe.num_classes else {}
    assert pipe(batch_size=2, **labels).images[0].size == (8, 8)
    assert example.main(arguments(example, *flags, "--max_train_steps", 14)) == 0
    assert (tmp_path / "checkpoints").exists() and '"steps": 14' in (tmp_path / "run_summary.json").read_text()


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--importance_samples", "5", "--beta", "4"], ["--importance_samples 5", "--beta", "4"]),
        (["--gradient", "doubly_reparameterised"], ["--gradient", "--importance_samples"]),
        (["--capacity_ramp", "2"], ["capacity_ramp", "2"]),
    ],
)
def test_flags_that_contradict_each_other_are_refused(example, tmp_path, flags, words):
    with pytest.raises(UsageError) as error:
        example.main(arguments(example, "--output_dir", tmp_path, *flags))
    assert all(word in str(error.value) for word in words)
