"""Linear-Gaussian models, Gaussian variational inference, amortisation and alternating EM against closed forms."""

import math
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from sklearn.decomposition import PCA, FactorAnalysis

from latentia import VAE
from latentia.errors import DataError, NumericsError, UsageError
from latentia.inference.amortisation import amortisation_gap, infer_latents
from latentia.inference.gaussian import Gaussians, fit_gaussians, fit_mean_field
from latentia.inference.linear_gaussian import LinearGaussian, fit_linear_gaussian, fit_ppca
from latentia.losses.variational import elbo_loss
from latentia.rng import Rng
from latentia.training.alternating import alternating_phases
from latentia.training.loop import train

DOUBLE = {"dtype": torch.float64}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **DOUBLE)


def example(n=400):
    """Rows of 8 values whose covariance is exactly that of two latents: its best likelihood is known."""
    rows = randn(n, 8)
    rows = rows - rows.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(rows.T @ rows / n), rows.T, upper=False).T
    eigenvalues = torch.tensor([4.0, 9.702144 / 4, *[0.2494] * 6], **DOUBLE)
    return white * eigenvalues.sqrt() @ torch.linalg.qr(randn(8, 8, seed=1)).Q


def test_ppca_reaches_its_closed_form():
    x = example()
    model = fit_ppca(x, 2)
    assert abs(model.log_prob(x).mean() + 8.32159) < 2e-5 and abs(model.noise[0] - 0.2494) < 1e-9
    n = len(x)
    reference = PCA(2).fit(x.numpy())  # whose covariance has the divisor n - 1
    assert abs(reference.noise_variance_ * (n - 1) / n - model.noise[0]) < 1e-9
    normal = torch.distributions.MultivariateNormal(model.mean, model.covariance)
    assert (model.log_prob(x) - normal.log_prob(x)).abs().max() < 1e-9
    samples, _ = model.sample(40000, torch.Generator().manual_seed(0))
    assert (torch.cov(samples.T) - model.covariance).abs().max() < 0.1


def test_em_reaches_ppca_and_never_falls():
    x = example()
    fit = fit_linear_gaussian(x, 2, noise="isotropic", tolerance=1e-12)
    assert fit.iterations > 10 and fit.bounds.diff().min() > -1e-9
    assert abs(fit.bounds[-1] - fit_ppca(x, 2).log_prob(x).mean()) < 1e-8
    assert abs(fit.bounds[-1] - fit.model.log_prob(x).mean()) < 1e-9


@pytest.mark.filterwarnings("ignore")  # scikit-learn says that it did not converge
def test_factor_analysis_equals_scikit_learn():
    x = randn(300, 1) + randn(300, 6, seed=2) * torch.linspace(0.5, 1.5, 6, **DOUBLE)
    fit = fit_linear_gaussian(x, 1, tolerance=1e-12)
    reference = FactorAnalysis(1, tol=1e-9, max_iter=1000, svd_method="lapack").fit(x.numpy())
    assert fit.bounds.diff().min() > -1e-9 and abs(fit.bounds[-1] - reference.score(x.numpy())) < 1e-6
    assert (fit.model.noise - torch.from_numpy(reference.noise_variance_)).abs().max() < 1e-3


def test_log_p_is_the_bound_plus_the_divergence():
    """For any Gaussian q, to 1e-8; and the bound of the exact posterior is log p itself, gradient included."""
    model = LinearGaussian(randn(5), randn(5, 3, seed=1), randn(5, seed=2).exp())
    x = randn(7, 5, seed=3)
    means, root = randn(7, 3, seed=4), randn(7, 3, 3, seed=5)
    covariances = root @ root.mT + 0.1 * torch.eye(3, **DOUBLE)
    exact_means, exact = model.posterior(x)
    normal = torch.distributions.MultivariateNormal
    kl = torch.distributions.kl_divergence(normal(means, covariances), normal(exact_means, exact))
    assert kl.min() > 0 and (model.bound(x, means, covariances) + kl - model.log_prob(x)).abs().max() < 1e-8
    assert (model.bound(x, exact_means, exact) - model.log_prob(x)).abs().max() < 1e-8
    loadings = model.loadings.clone().requires_grad_()
    moved = LinearGaussian(model.mean, loadings, model.noise)
    values = moved.log_prob(x).sum(), moved.bound(x, exact_means.detach(), exact.detach()).sum()
    gradients = [torch.autograd.grad(value, loadings)[0] for value in values]
    assert gradients[0].abs().max() > 0.1 and (gradients[0] - gradients[1]).abs().max() < 1e-8


@pytest.mark.parametrize(("rho", "kl"), [(0.5, 0.14384), (0.9, 0.83037)])
def test_mean_field_shrinks_variances(rho, kl):
    covariance = torch.tensor([[1.0, rho], [rho, 1.0]], **DOUBLE)
    mean, precision = torch.tensor([1.0, -2.0], **DOUBLE), covariance.inverse()
    fit = fit_mean_field(mean, precision)
    assert fit.iterations > 3 and fit.bounds.diff().min() > -1e-9
    assert abs(fit.bounds[-1] + kl) < 5e-6 and abs(fit.bounds[-1] - 0.5 * math.log(1 - rho**2)) < 1e-9
    assert (fit.model.scales.square() - (1 - rho**2)).abs().max() < 1e-9 and (fit.model.means - mean).abs().max() < 1e-5
    normal = torch.distributions.MultivariateNormal(mean, covariance)
    start = Gaussians(torch.zeros(1, 2, **DOUBLE), torch.ones(1, 2, **DOUBLE))
    for form, wanted in (("diag", kl), ("full", 0.0)):  # by optimisation: the same, and nothing lost
        found = fit_gaussians(normal.log_prob, start, covariance=form, steps=300, samples=4, learning_rate=0.2).model
        exact = torch.distributions.MultivariateNormal(found.means, found.covariances)
        assert abs(torch.distributions.kl_divergence(exact, normal) - wanted) < 1e-5


def test_per_datum_inference_reaches_the_exact_posterior():
    model = LinearGaussian(randn(6), 0.7 * randn(6, 2, seed=1), torch.full((6,), 0.5))
    x = randn(4, 6, seed=2)
    start = Gaussians(torch.zeros(4, 2, **DOUBLE), torch.ones(4, 2, **DOUBLE))
    fit = fit_gaussians(lambda z: model.log_joint(x, z), start, steps=400)
    means, covariance = model.posterior(x)
    assert (fit.model.means - means).abs().max() < 1e-3 and (fit.model.covariances - covariance).abs().max() < 1e-3
    assert abs(fit.bounds[-1] - model.log_prob(x).mean()) < 1e-4 and fit.bounds[0] < fit.bounds[-1] - 0.1
    z = fit.model.sample(randn(3, 4, 2))
    exact = torch.distributions.MultivariateNormal(fit.model.means, fit.model.covariances)
    assert (fit.model.log_prob(z) - exact.log_prob(z)).abs().max() < 1e-9
    normal = torch.distributions.MultivariateNormal(torch.zeros(2, **DOUBLE), torch.eye(2, **DOUBLE))
    kl = torch.distributions.kl_divergence(exact, normal)
    assert (fit.model.kl_from_standard_normal() - kl).abs().max() < 1e-9


class Rows:
    """Rows as images of one line, the whole set in each batch."""

    fingerprint = "rows"

    def __init__(self, x):
        self.x = x[:, None, None]

    def batch(self, start, stop, *, seed, device):
        return {"x": self.x[torch.arange(start, stop) % len(self.x)]}


def linear_vae(x, steps, tmp_path, *, alternate):
    """A VAE without hidden layers, trained on rows: as a whole, or encoder and decoder in turn."""
    torch.manual_seed(0)
    vae = VAE(sample_size=(1, x.shape[1]), latent_dim=2, hidden_sizes=(), likelihood="gaussian").double()

    def loss(batch, rng):
        return elbo_loss(vae, batch, rng)

    def rate(step):
        return 0.5 * (1 + math.cos(math.pi * step / steps))

    def optimizer(parameters):
        return torch.optim.Adam(parameters, 0.1)

    if alternate:
        phases = alternating_phases(vae, loss, optimizer, learning_rate=rate)
        train(
            Accelerator(cpu=True), phases, Rows(x), output_dir=tmp_path, max_steps=steps, batch_size=len(x),
            checkpoint_every=None,
        )  # fmt: skip
        return vae
    chosen = optimizer(vae.parameters())
    for step in range(steps):
        chosen.param_groups[0]["lr"] = 0.1 * rate(step)
        chosen.zero_grad()
        loss(Rows(x).batch(0, len(x), seed=0, device=None), Rng(0, step * len(x), len(x), 0, len(x)))["loss"].backward()
        chosen.step()
    return vae


def marginal(vae):
    """The linear-Gaussian model that the decoder of a VAE without hidden layers is."""
    layer = vae.decoder_mlp[-1]
    return LinearGaussian(layer.bias.data, layer.weight.data, (2 * vae.log_scale.data).exp().expand(len(layer.bias)))


def test_a_linear_vae_is_ppca_and_its_encoder_exact(tmp_path):
    """Trained as a whole, and its encoder and decoder in turn."""
    rows = example()
    scale = float(rows.abs().max())
    x, volume = rows / scale, 8 * math.log(scale)  # nats that the unit changes
    best = fit_ppca(x, 2).log_prob(x).mean() - volume
    assert abs(best + 8.32159) < 2e-5
    for alternate in (False, True):
        vae = linear_vae(x, 300, tmp_path, alternate=alternate)
        reached = marginal(vae).log_prob(x).mean() - volume
        assert reached < best + 1e-9 and reached > 1.01 * best
        images = x[:100, None, None]
        gap = amortisation_gap(vae, images, steps=150, learning_rate=0.01)
        assert -1e-6 < gap.nats < 0.01
        assert (gap.optimised - marginal(vae).log_prob(x[:100])).max() < 0.05
    broken = vae
    with torch.no_grad():
        broken.posterior.bias[:2] += 1.0
    assert 0.5 < amortisation_gap(broken, images, steps=150, learning_rate=0.05).nats
    fit = infer_latents(broken, images, covariance="full", steps=300, learning_rate=0.05)  # without the encoder
    assert (fit.model.means - marginal(vae).posterior(x[:100])[0]).abs().max() < 0.02


def test_a_learned_prior_counts_in_the_gap():
    """Of one image value by value: with the encoder's own posterior the bound is that of the objective."""
    torch.manual_seed(0)
    vae = VAE(sample_size=4, latent_dim=2, hidden_sizes=(8,), prior="mixture", prior_components=3).double()
    with torch.no_grad():
        vae.prior_mean[:] += 3.0  # so that N(0, I) would be far off
    x = torch.where(randn(6, 1, 4, 4) > 0, 1.0, -1.0).double()
    gap = amortisation_gap(vae, x, steps=100, learning_rate=0.1, evaluation_samples=256)
    nats = torch.stack([elbo_loss(vae, {"x": x}, Rng(seed, 0, 6, 0, 6))["nats"] for seed in range(40)])
    assert abs(gap.encoder.mean() + nats.mean()) < 0.3 and gap.nats > 1.0
    fit = infer_latents(vae, x, steps=100, learning_rate=0.1)
    assert (fit.model.means.mean(0) > 1.0).all()  # under the prior, which N(0, I) is not


def test_phases_alternate_over_all_parameters_once():
    vae = VAE(sample_size=4, latent_dim=(3, 2), hidden_sizes=((8,), (6,)), num_class_embeds=2)
    encoder, decoder = alternating_phases(vae, lambda batch, rng: {}, torch.optim.Adam, decoder_every=3)
    names = {id(parameter): name for name, parameter in vae.named_parameters()}
    parts = [{names[id(parameter)] for parameter in phase.trains.parameters()} for phase in (encoder, decoder)]
    assert not parts[0] & parts[1] and parts[0] | parts[1] == {*names.values()}
    assert {"posterior.weight", "hierarchy.posteriors.0.0.weight", "encoder_class_embedding.weight"} <= parts[0]
    assert {"decoder_class_embedding.weight", "hierarchy.priors.0.0.weight"} <= parts[1]
    assert (encoder.every, decoder.every) == (1, 3)
    with pytest.raises(UsageError, match="encoder of VAE has no parameters"):
        alternating_phases(vae, lambda batch, rng: {}, torch.optim.Adam, encoder_parts=("coder",))


X = example(20)
REFUSED = {
    "latent_dim must be below the 8 columns": (lambda: fit_ppca(X, 8), UsageError),
    "x must have at least 2 rows; got 1": (lambda: fit_ppca(X[:1], 2), UsageError),
    "rows hold NaN": (lambda: fit_ppca(X.log(), 2), DataError),
    "2 latents explain x wholly": (lambda: fit_ppca(X[:, :2] @ X[:2], 2), NumericsError),
    "column 8 of x is constant": (
        lambda: fit_linear_gaussian(torch.cat([X, torch.ones(20, 1)], 1), 2),
        NumericsError,
    ),
    "noise must be one of diagonal, isotropic": (lambda: fit_linear_gaussian(X, 2, noise="full"), UsageError),
    "start must have loadings of shape": (lambda: fit_linear_gaussian(X, 2, start=fit_ppca(X, 1)), UsageError),
    "noise must be positive": (
        lambda: LinearGaussian(torch.zeros(2), torch.ones(2, 1), torch.tensor([1.0, 0.0])),
        NumericsError,
    ),
    "mean, loadings and noise must have shapes": (
        lambda: LinearGaussian(torch.zeros(2), torch.ones(3, 1), torch.ones(2)),
        UsageError,
    ),
    "precision must be positive definite": (lambda: fit_mean_field(torch.zeros(2), torch.ones(2, 2)), NumericsError),
    r"precision must have shape \(D, D\) = \(2, 2\)": (
        lambda: fit_mean_field(torch.zeros(2), torch.eye(3)),
        UsageError,
    ),
    "samples must be at least 1": (
        lambda: fit_gaussians(torch.sum, Gaussians(torch.zeros(1, 1), torch.ones(1, 1)), samples=0),
        UsageError,
    ),
    "log-density is not finite at step 0 of 500": (
        lambda: fit_gaussians(lambda z: (z * math.nan).sum(-1), Gaussians(torch.zeros(1, 1), torch.ones(1, 1))),
        NumericsError,
    ),
    "vae must have a density of pixels": (
        lambda: infer_latents(SimpleNamespace(config=SimpleNamespace(likelihood="none")), torch.zeros(1, 1, 1, 1)),
        UsageError,
    ),
    "vae must have latents that a Gaussian can describe": (
        lambda: infer_latents(VAE(sample_size=4, latent_dim=2, categories=(3,)), torch.ones(1, 1, 4, 4)),
        UsageError,
    ),
    "vae must have one stochastic layer": (
        lambda: amortisation_gap(
            VAE(sample_size=4, latent_dim=(3, 2), hidden_sizes=((8,), (6,))), torch.ones(1, 1, 4, 4)
        ),
        UsageError,
    ),
}


@pytest.mark.parametrize("words", REFUSED)
def test_bad_inference_input_is_refused_by_name(words):
    call, error = REFUSED[words]
    with pytest.raises(error, match=words):
        call()
