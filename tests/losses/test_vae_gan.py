"""VAE-GAN: which network learns from which loss, against autograd of the losses as they are written."""

import pytest
import torch
import torch.nn.functional as F
from tiny_vae import draws

from latentia import VAE, DCGANDiscriminator, VAEPipeline
from latentia.errors import UsageError
from latentia.functional.distributions import gaussian_kl
from latentia.losses.vae_gan import vae_gan_discriminator_loss, vae_gan_loss
from latentia.losses.variational import elbo_loss
from latentia.pipelines.capabilities import capabilities

B, D, GAMMA, LAYER = 6, 3, 0.05, "down_blocks.0"


def networks(classes=None):
    torch.manual_seed(0)
    config = {"sample_size": 8, "num_class_embeds": classes}
    vae = VAE(**config, latent_dim=D, hidden_sizes=(), block_out_channels=(4, 8), likelihood="none").double()
    critic = DCGANDiscriminator(**config, block_out_channels=(4, 8), norm="none").double()
    batch = {"x": torch.rand(B, 1, 8, 8, dtype=torch.float64) * 2 - 1}
    return vae, critic, batch | ({"labels": torch.arange(B) % classes} if classes else {})


def gradients(loss, network):
    found = torch.autograd.grad(loss, [*network.parameters()], allow_unused=True, retain_graph=True)
    return {name: grad for (name, _), grad in zip(network.named_parameters(), found)}


def parts(vae, critic, batch):
    """The losses of the paper, written out, with everything connected to everything."""
    labels = {"class_labels": batch["labels"]} if "labels" in batch else {}
    noise, prior = (draws(B).normal(name, (D,)).double() for name in ("posterior", "prior"))
    mean, log_variance = vae.encode(batch["x"], **labels)
    again = vae.mean_of(vae.decode(mean + (log_variance / 2).exp() * noise, **labels))
    sampled = vae.mean_of(vae.decode(prior, **labels))
    seen = [critic(x, **labels, feature_layer=LAYER) for x in (batch["x"], again, sampled)]
    likelihood = (seen[0].features - seen[1].features).square().sum(1).mean() / 2
    real, *fakes = (each.logits for each in seen)
    return {
        "prior": gaussian_kl(mean, log_variance).sum(1).mean(),
        "likelihood": likelihood,
        # log D(x) + (log(1 - D(x~)) + log(1 - D(x_p))) / 2, to be maximised by the discriminator
        "gan": F.logsigmoid(real).mean() + sum(F.logsigmoid(-fake).mean() / 2 for fake in fakes),
        "non_saturating": sum(F.softplus(-fake).mean() / 2 for fake in fakes),
    }


def is_of_the_encoder(name: str) -> bool:
    return name.startswith(("encoder", "posterior"))


def found_gradients(vae, critic, batch, **options):
    values = vae_gan_loss(vae, critic, batch, draws(B), gamma=GAMMA, feature_layer=LAYER, **options)
    return gradients(values["loss"], vae)


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("objective", ["minimax", "non_saturating"])
def test_the_encoder_learns_from_prior_and_likelihood_alone(objective, classes):
    vae, critic, batch = networks(classes)
    found, written = found_gradients(vae, critic, batch, objective=objective), parts(vae, critic, batch)
    expected = gradients(written["prior"] + written["likelihood"], vae)
    names = [name for name in found if is_of_the_encoder(name)]
    assert len(names) >= 6 and all(found[name].abs().sum() > 0 for name in names)
    for name in names:
        torch.testing.assert_close(found[name], expected[name], msg=name)


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("objective", ["minimax", "non_saturating"])
def test_the_decoder_learns_from_gamma_likelihood_minus_gan(objective, classes):
    vae, critic, batch = networks(classes)
    found, written = found_gradients(vae, critic, batch, objective=objective), parts(vae, critic, batch)
    adversarial = written["gan"] if objective == "minimax" else written["non_saturating"]
    expected = gradients(GAMMA * written["likelihood"] + adversarial, vae)
    names = [name for name in found if not is_of_the_encoder(name)]
    assert len(names) >= 6 and all(found[name].abs().sum() > 0 for name in names)
    for name in names:
        torch.testing.assert_close(found[name], expected[name], msg=name)


@pytest.mark.parametrize("classes", [None, 3])
def test_the_discriminator_learns_from_gan_alone(classes):
    vae, critic, batch = networks(classes)
    values = vae_gan_discriminator_loss(critic, vae, batch, draws(B), objective="minimax")
    written = parts(vae, critic, batch)
    torch.testing.assert_close(values["loss"], -written["gan"])
    expected = gradients(-written["gan"], critic)
    for name, grad in gradients(values["loss"], critic).items():
        assert grad.abs().sum() > 0
        torch.testing.assert_close(grad, expected[name], msg=name)
    assert all(grad is None for grad in gradients(values["loss"], vae).values())


def test_gamma_is_of_the_decoder_alone():
    vae, critic, batch = networks()
    small, large = (
        gradients(vae_gan_loss(vae, critic, batch, draws(B), gamma=gamma)["loss"], vae) for gamma in (1e-3, 10.0)
    )
    for name in small:
        if is_of_the_encoder(name):
            torch.testing.assert_close(small[name], large[name], msg=name)
        else:
            assert not torch.allclose(small[name], large[name]), name


def test_the_values_are_those_of_the_paper():
    vae, critic, batch = networks()
    values, written = vae_gan_loss(vae, critic, batch, draws(B), feature_layer=LAYER), parts(vae, critic, batch)
    torch.testing.assert_close(values["kl"], written["prior"].detach())
    torch.testing.assert_close(values["likelihood"], written["likelihood"].detach())
    torch.testing.assert_close(values["adversarial"], written["non_saturating"].detach())


def test_a_decoder_without_density_has_no_elbo():
    vae, _, batch = networks()
    with pytest.raises(UsageError, match=r"likelihood must be one of .* got 'none'"):
        elbo_loss(vae, batch, draws(B))


def test_relativistic_compares_with_real_images():
    vae, critic, batch = networks()
    values = vae_gan_loss(vae, critic, batch, draws(B), objective="relativistic")
    again = vae_gan_loss(vae, critic, {"x": -batch["x"]}, draws(B), objective="relativistic")
    assert values["adversarial"] != again["adversarial"]


def test_a_layer_is_the_one_that_was_asked_for():
    _, critic, batch = networks()
    seen = {"down_blocks.0": [], "down_blocks.1": []}
    hooks = [
        critic.get_submodule(name).register_forward_hook(lambda m, i, out, name=name: seen[name].append(out))
        for name in seen
    ]
    assert critic.feature_layers == tuple(seen)
    for name in seen:
        out = critic(batch["x"], feature_layer=name)
        assert torch.equal(out.features, seen[name][-1].flatten(1))
        assert torch.equal(out.logits, critic(batch["x"]).logits)
    for hook in hooks:
        hook.remove()
    with pytest.raises(UsageError, match=r"feature_layer must be one of down_blocks\.0, .*head"):
        critic(batch["x"], feature_layer="head")


def test_a_factor_of_the_gradient_changes_no_value():
    vae, _, batch = networks()
    noise = torch.randn(B, D, dtype=torch.float64)
    plain, scaled = vae(batch["x"], noise), vae(batch["x"], noise, decoder_gradient=1e3)
    assert torch.equal(plain.location, scaled.location)
    a, b = (gradients(out.location.square().sum(), vae) for out in (plain, scaled))
    for name in a:
        torch.testing.assert_close(a[name] * (1e3 if is_of_the_encoder(name) else 1), b[name], msg=name)


def test_decoding_through_forward_is_decode():
    vae, _, batch = networks()
    z = torch.randn(B, D, dtype=torch.float64)
    assert torch.equal(vae(None, latents=z).location, vae.decode(z))
    for given in ({"x": batch["x"], "latents": z}, {"x": None}):
        with pytest.raises(UsageError, match="got"):
            vae(**given)


def test_the_pipeline_claims_no_likelihood():
    able = capabilities(VAEPipeline(networks()[0].float()))
    assert able.likelihood is None and able.words == ("encode", "decode", "interpolate")


@pytest.mark.parametrize("gamma", [0.0, -1.0, float("nan")])
def test_gamma_must_be_positive(gamma):
    vae, critic, batch = networks()
    with pytest.raises(UsageError, match="gamma"):
        vae_gan_loss(vae, critic, batch, draws(B), gamma=gamma)
