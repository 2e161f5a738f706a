"""The mixture over latents: its density against scikit-learn's, its samples against its parameters."""

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from latentia import LatentMixture
from latentia.errors import NumericsError, UsageError


def clusters(scale: float = 1.0, n: int = 150) -> torch.Tensor:
    """Two lengthy clouds of unequal size in four dimensions, far from the origin."""
    generator = torch.Generator().manual_seed(3)
    stretch = torch.tensor([3.0, 1.0, 0.3, 1.0])
    a = torch.randn(n, 4, generator=generator) * stretch + 20
    b = torch.randn(n // 3, 4, generator=generator) * stretch.flip(0) - 20
    mix = torch.tensor([[1, 0, 0, 0], [0.8, 1, 0, 0], [0, 0.5, 1, 0], [0.3, 0, 0.7, 1]])  # so that they correlate
    return torch.cat([a, b]) @ mix.T * scale


def generators(n: int, start: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(start + i) for i in range(n)]


def test_the_density_is_that_of_scikit_learn():
    z = clusters().double()
    mixture = LatentMixture.fit(z, num_components=3)
    oracle = GaussianMixture(3)
    oracle.weights_, oracle.means_ = mixture.weights.numpy(), mixture.means.numpy()
    oracle.covariances_ = (mixture.scale_tril @ mixture.scale_tril.mT).numpy()
    oracle.precisions_cholesky_ = np.linalg.inv(mixture.scale_tril.numpy()).swapaxes(1, 2)
    points = torch.cat([z[::7], 100 * torch.randn(5, 4).double()])
    expected = torch.from_numpy(oracle.score_samples(points.numpy()))
    torch.testing.assert_close(mixture.log_prob(points), expected, rtol=1e-10, atol=1e-8)
    expected = torch.from_numpy(oracle.predict_proba(points.numpy()))
    torch.testing.assert_close(mixture(points).responsibilities, expected, rtol=1e-6, atol=1e-9)


def test_the_fit_is_that_of_scikit_learn():
    z = clusters()
    expected = GaussianMixture(2, random_state=0).fit(z.double().numpy())
    mean = LatentMixture.fit(z, num_components=2).log_prob(z).mean()
    assert mean.item() == pytest.approx(expected.score(z.double().numpy()), abs=1e-4)


def test_a_step_of_expectation_maximisation_by_hand():
    """The bound touches the log-likelihood at the posterior, and a step never lowers it (Dempster et al., 1977).

    From means that are off, as a fit that has converged would move by nothing.
    """
    z = clusters().double()
    mixture = LatentMixture.fit(z, num_components=2)
    mixture.means += 0.5
    likelihoods = []
    for _ in range(5):
        found = mixture(z)
        r = found.responsibilities
        joint = torch.stack(
            [
                torch.distributions.MultivariateNormal(m, scale_tril=tril).log_prob(z) + w.log()
                for m, tril, w in zip(mixture.means, mixture.scale_tril, mixture.weights)
            ],
            dim=1,
        )
        bound = (r * (joint - r.clamp(min=1e-300).log())).sum(1)
        torch.testing.assert_close(bound, found.log_prob.double(), rtol=1e-8, atol=1e-8)
        other = r.flip(1) * 0.5 + 0.25  # any other distribution over the components lies below
        assert (((other * (joint - other.log())).sum(1)) < found.log_prob).all()
        likelihoods.append(float(found.log_prob.mean()))
        n = r.sum(0)
        mixture.means = r.T @ z / n[:, None]
        centred = z[:, None] - mixture.means
        covariance = torch.einsum("nk,nki,nkj->kij", r, centred, centred) / n[:, None, None]
        mixture.weights, mixture.scale_tril = n / len(z), torch.linalg.cholesky(covariance)
    assert likelihoods == sorted(likelihoods) and likelihoods[1] > likelihoods[0] + 0.01
    assert likelihoods[-1] == pytest.approx(float(LatentMixture.fit(z, num_components=2).log_prob(z).mean()), abs=1e-3)


def test_one_component_has_the_closed_form():
    z = clusters()[:150].double()  # one cloud
    mixture = LatentMixture.fit(z, num_components=1)
    normal = torch.distributions.MultivariateNormal(z.mean(0), torch.cov(z.T, correction=0))
    torch.testing.assert_close(mixture.log_prob(z), normal.log_prob(z), rtol=1e-3, atol=1e-3)
    assert mixture(z.float()).log_prob.dtype == torch.float32


def test_the_density_integrates_to_one():
    torch.manual_seed(1)
    mixture = LatentMixture.fit(torch.randn(600, 2) * torch.tensor([1.0, 0.4]), num_components=4)
    axis = torch.linspace(-8, 8, 401, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    assert float(mixture.log_prob(points).exp().sum() * (16 / 400) ** 2) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_the_scale_of_the_latents_does_not_matter(scale):
    base, other = (LatentMixture.fit(clusters(s), num_components=2) for s in (1.0, scale))
    z = clusters().double()
    shift = 4 * torch.tensor(scale).double().log()
    torch.testing.assert_close(other.log_prob(z * scale), base.log_prob(z) - shift, rtol=1e-4, atol=1e-3)


def test_samples_have_the_moments_and_shares_of_the_components():
    mixture = LatentMixture.fit(clusters(), num_components=2)
    z = mixture.sample(3000, generators(3000)).double()
    assert z.shape == (3000, 4)
    taken = mixture(z).responsibilities.argmax(1)
    for k in range(2):
        part = z[taken == k]
        assert len(part) / 3000 == pytest.approx(mixture.weights[k].item(), abs=0.03)
        covariance = mixture.scale_tril[k] @ mixture.scale_tril[k].T
        torch.testing.assert_close(part.mean(0), mixture.means[k], atol=0.4, rtol=0)
        torch.testing.assert_close(torch.cov(part.T), covariance, atol=0.7, rtol=0.15)


def test_a_sample_does_not_depend_on_its_neighbours():
    mixture = LatentMixture.fit(clusters(), num_components=3)
    many = mixture.sample(20, generators(20))
    assert torch.equal(many[7:9], mixture.sample(2, generators(2, start=7))) and len(many.unique(dim=0)) == 20
    assert mixture.sample(0, []).shape == (0, 4)
    with pytest.raises(UsageError, match="generators must be one for each of n=3 samples; got 2"):
        mixture.sample(3, generators(2))


def test_save_load_and_cast(tmp_path):
    mixture = LatentMixture.fit(clusters(), num_components=3, seed=4)
    mixture.save_pretrained(tmp_path)
    loaded, z = LatentMixture.from_pretrained(tmp_path), clusters()
    assert all(torch.equal(a, b) and a.dtype == torch.float64 for a, b in zip(mixture.buffers(), loaded.buffers()))
    assert torch.equal(mixture.log_prob(z), loaded.log_prob(z))
    assert torch.equal(mixture.sample(4, generators(4)), loaded.sample(4, generators(4)))
    again = LatentMixture.fit(clusters(), num_components=3, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(mixture.buffers(), again.buffers()))
    half = loaded.to(torch.bfloat16)  # as a pipeline in half precision does
    assert half.sample(4, generators(4)).isfinite().all() and half.log_prob(z).isfinite().all()


def test_a_direction_without_variance_and_latents_of_a_map():
    flat = torch.cat([clusters()[:, :3], torch.ones(200, 1)], 1)
    assert LatentMixture.fit(flat, num_components=2).log_prob(flat).isfinite().all()
    assert LatentMixture.fit(torch.randn(30, 2, 3, 3), num_components=2).config.latent_dim == 18


@pytest.mark.parametrize(
    "latents, count, error, text",
    [
        (torch.randn(5, 2), 6, UsageError, "from 1 to the number of latents, 5; got 6"),
        (torch.randn(5, 2), 0, UsageError, "got 0"),
        (torch.full((9, 2), torch.nan), 2, NumericsError, "must be finite"),
        (torch.ones(9, 2), 2, UsageError, "all of them are equal"),
    ],
)
def test_latents_that_no_mixture_fits(latents, count, error, text):
    with pytest.raises(error, match=text):
        LatentMixture.fit(latents, num_components=count)


def test_calls_that_make_no_sense():
    with pytest.raises(UsageError, match="latent_dim must be at least 1; got 0"):
        LatentMixture(0)
    with pytest.raises(UsageError, match=r"\(B, 3\); got \(2, 4\)"):
        LatentMixture(3, 2)(torch.zeros(2, 4))
