"""The baselines: densities against SciPy and by adding up probabilities, samples against their own density."""

import doctest
import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

import latentia.evaluation.baselines
from latentia.errors import DataError, UsageError
from latentia.evaluation import KernelDensitySampler, PCASampler

D = 12


def correlated(n, seed=0, spread=14.0):
    """Bytes (n, 1, 3, 4) around 120, of which a few directions explain most."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(D, D, generator=torch.Generator().manual_seed(99)) * torch.logspace(0, -1.2, D)[:, None]
    y = 120 + spread * torch.randn(n, D, generator=generator) @ mixing
    return y.round().clamp(0, 255).to(torch.uint8).view(n, 1, 3, 4)


def flat(images):
    return images.flatten(1).double().numpy()


@pytest.fixture(scope="module")
def digits():
    return torch.from_numpy(load_digits().data * 15).round().to(torch.uint8).view(-1, 1, 8, 8)


# ------------------------------------------------------------------------------------------------- the two densities


@pytest.mark.parametrize("components", [1, 3, 11, 12, 0.8, 1.0])
def test_the_gaussian_has_the_density_of_its_covariance(components):
    images, new = correlated(300), correlated(20, seed=1)
    sampler = PCASampler(images, components)
    values, vectors = np.linalg.eigh(np.cov(flat(images).T, bias=True) + np.eye(D) / 12)
    values, vectors = values[::-1].copy(), vectors[:, ::-1]
    k = sampler.basis.dimension
    if k < D:
        values[k:] = values[k:].mean()
    covariance = vectors @ np.diag(values) @ vectors.T
    # E (d + u)' P (d + u) = d' P d + tr P / 12
    at_centre = multivariate_normal(flat(images).mean(0), covariance).logpdf(flat(new))
    expected = at_centre - np.trace(np.linalg.inv(covariance)) / 24
    assert sampler.log_likelihood(new).tolist() == pytest.approx(expected.tolist(), rel=1e-10)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.99, 1.0])
def test_components_by_their_share_of_the_variance(digits, share):
    ratios = PCA(svd_solver="full").fit(digits.flatten(1).numpy()).explained_variance_ratio_.cumsum()
    assert PCASampler(digits, share).basis.dimension == int((ratios < share - 1e-12).sum()) + 1
    assert PCASampler(digits, 1).basis.dimension == 1


def brute_force(images, new, h):
    """The bound kernel by kernel, exponents averaged over u."""
    squares = ((flat(new)[:, None] - flat(images)) ** 2).sum(2) + D / 12
    return logsumexp(-squares / (2 * h * h), axis=1) - math.log(len(images)) - D / 2 * math.log(2 * math.pi * h * h)


@pytest.mark.parametrize("h", [1.5, 6.0, 40.0])
def test_the_kernel_density_is_its_definition(h, monkeypatch):
    images, new = correlated(70), correlated(11, seed=1)
    expected = brute_force(images, new, h)
    sampler = KernelDensitySampler(images, h / 127.5)
    assert sampler.log_likelihood(new).tolist() == pytest.approx(expected.tolist(), rel=1e-10)
    monkeypatch.setattr(latentia.evaluation.baselines, "_ROWS", 8)
    assert sampler.log_likelihood(new).tolist() == pytest.approx(expected.tolist(), rel=1e-10)
    everything = KernelDensitySampler(images, h / 127.5, components=D)  # a rotation changes no distance
    assert everything.log_likelihood(new).tolist() == pytest.approx(expected.tolist(), rel=1e-8)


def test_kernel_density_of_principal_components():
    images, new, k, h = correlated(80), correlated(9, seed=1), 3, 5.0
    pca = PCASampler(images, k)
    z, log_rest = pca.basis.project(new.flatten(1).double())
    centres = pca.basis.project(images.flatten(1).double())[0]
    squares = ((z[:, None] - centres) ** 2).sum(2) + k / 12
    kernels = torch.logsumexp(-squares / (2 * h * h), 1) - math.log(80) - k / 2 * math.log(2 * math.pi * h * h)
    actual = KernelDensitySampler(images, h / 127.5, components=k).log_likelihood(new)
    assert torch.allclose(actual, kernels + log_rest, rtol=1e-10)


@pytest.mark.parametrize("kind", ["gaussian", "one component", "kernels", "kernels of one component"])
def test_probabilities_of_all_two_pixel_images_sum_to_below_one(kind):
    generator = torch.Generator().manual_seed(0)
    data = 128 + torch.randn(60, 2, generator=generator) @ torch.tensor([[20.0, 12.0], [0.0, 6.0]])
    images = data.round().to(torch.uint8).view(60, 1, 1, 2)
    sampler = {
        "gaussian": lambda: PCASampler(images, 2),
        "one component": lambda: PCASampler(images, 1),
        "kernels": lambda: KernelDensitySampler(images, 6 / 127.5),
        "kernels of one component": lambda: KernelDensitySampler(images, 4 / 127.5, components=1),
    }[kind]()
    every = torch.cartesian_prod(torch.arange(256), torch.arange(256)).to(torch.uint8).view(-1, 1, 1, 2)
    assert 0.98 < sampler.log_likelihood(every).exp().sum().item() <= 1 + 1e-9


@pytest.mark.parametrize("kind", ["gaussian", "kernels"])
def test_the_mean_over_dequantisation_noise_is_the_stated_bound(kind):
    images, new = correlated(50), correlated(3, seed=1)
    u = torch.rand(4000, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.5
    sampler = PCASampler(images, 4) if kind == "gaussian" else KernelDensitySampler(images, 6 / 127.5)
    for image in new:
        noisy = ((image.flatten().double() + u) / 127.5 - 1).view(-1, 1, 3, 4)
        # the bound adds a fixed amount for the noise, which is already in `noisy`
        trace = (
            (1 / sampler.basis.variances).sum().item() + (D - 4) / sampler.basis.rest if kind == "gaussian" else D / 36
        )
        draws = sampler.log_likelihood(noisy) + trace / 24
        gap = draws.mean().item() - sampler.log_likelihood(image[None]).item()
        tolerance = 4 * draws.std().item() / math.sqrt(4000)
        assert abs(gap) < tolerance if kind == "gaussian" else -tolerance < gap < 0.05


def test_bytes_and_floats_are_the_same_images():
    images, new = correlated(60), correlated(5, seed=1)
    for make in (lambda x: PCASampler(x, 0.9), KernelDensitySampler):
        one, other = make(images), make(images.double() / 127.5 - 1)
        assert torch.allclose(one.log_likelihood(new), other.log_likelihood(new.double() / 127.5 - 1), rtol=1e-6)
        assert torch.allclose(one.sample(5), other.sample(5), atol=1e-6)


# ----------------------------------------------------------------------------------------------------- the bandwidth


@pytest.mark.parametrize("components", [None, 4])
def test_the_bandwidth_maximises_the_leave_one_out_likelihood(components):
    images = correlated(150)
    chosen = KernelDensitySampler(images, components=components).bandwidth

    def leave_one_out(h):
        total = 0.0
        for i in range(150):
            others = torch.cat([images[:i], images[i + 1 :]])
            sampler = KernelDensitySampler(others, h, components=components)
            if components:
                sampler.basis = KernelDensitySampler(images, h, components=components).basis
            total += sampler.log_likelihood(images[i : i + 1]).item()
        return total

    best = leave_one_out(chosen)
    assert best > leave_one_out(0.9 * chosen) and best > leave_one_out(1.1 * chosen)
    assert best >= leave_one_out(0.995 * chosen) - 0.05 and best >= leave_one_out(1.005 * chosen) - 0.05


def test_the_bandwidth_beats_the_rule_of_thumb(digits):
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    train, test = digits[order[:1400]], digits[order[1400:]]
    chosen = KernelDensitySampler(train)
    likelihood = chosen.log_likelihood(test).mean()
    for other in ("silverman", 0.7 * chosen.bandwidth, 1.4 * chosen.bandwidth):
        assert likelihood > KernelDensitySampler(train, other).log_likelihood(test).mean()


def test_silvermans_rule_has_its_closed_form():
    images = correlated(40)
    variance = flat(images).var(0, ddof=1).mean() + 1 / 12
    expected = math.sqrt(variance) * (4 / ((D + 2) * 40)) ** (1 / (D + 4)) / 127.5
    assert KernelDensitySampler(images, "silverman").bandwidth == pytest.approx(expected, rel=1e-6)


def test_repeated_and_equal_images_leave_a_bandwidth():
    images = correlated(30)
    assert KernelDensitySampler(images.repeat(2, 1, 1, 1)).bandwidth >= 0.28 / 127.5
    equal = images[:1].repeat(5, 1, 1, 1)
    for sampler in (KernelDensitySampler(equal), PCASampler(equal), KernelDensitySampler(equal, components=2)):
        assert sampler.log_likelihood(equal).isfinite().all()
        assert (sampler.sample(3) - (equal[:3].float() / 127.5 - 1)).abs().max() < 5 / 127.5


# ------------------------------------------------------------------------------------------------------- the samples


@pytest.fixture(scope="module", params=["gaussian", "kernels", "kernels of components"])
def sampler(request, digits):
    return {
        "gaussian": lambda: PCASampler(digits, 0.8),
        "kernels": lambda: KernelDensitySampler(digits, 0.2),
        "kernels of components": lambda: KernelDensitySampler(digits, 0.2, components=20),
    }[request.param]()


def test_an_image_depends_on_seed_and_position_alone(sampler):
    whole = sampler.sample(200, seed=5)
    assert whole.shape == (200, 1, 8, 8) and whole.dtype == torch.float32
    assert -1 <= whole.min() and whole.max() <= 1
    for first, last in ((0, 1), (37, 50), (63, 65), (64, 128), (199, 200), (10, 200)):
        assert torch.equal(sampler.sample(last - first, seed=5, start=first), whole[first:last])
    assert len({tuple(image.flatten().tolist()) for image in whole}) == 200
    assert not torch.equal(sampler.sample(5, seed=6), whole[:5])
    torch.manual_seed(1)
    assert torch.equal(sampler.sample(5, seed=5), whole[:5])


@pytest.mark.parametrize("components", [2, D])
def test_samples_have_the_mean_and_covariance_of_their_density(components):
    images = correlated(500, spread=6.0)
    sampler = PCASampler(images, components)
    samples = (sampler.sample(20000).flatten(1).double() + 1) * 127.5
    assert samples.min() > 0 and samples.max() < 255  # none is clamped
    basis = sampler.basis
    covariance = basis.directions @ basis.variances.diag() @ basis.directions.T
    covariance += basis.rest * (torch.eye(D) - basis.directions @ basis.directions.T)
    assert torch.allclose(samples.mean(0), basis.mean, atol=4 * math.sqrt(covariance.diag().max() / 20000))
    scale = covariance.diag().sqrt()
    difference = (samples.T.cov() - covariance) / torch.outer(scale, scale)
    assert difference.abs().max() < 4 * math.sqrt(2 / 20000)
    # and so they are as likely as the density says: E log p = -entropy
    bytes_ = samples.view(-1, 1, 3, 4) / 127.5 - 1
    entropy = 0.5 * torch.logdet(2 * math.pi * math.e * covariance)
    noise = float(torch.linalg.inv(covariance).trace() / 24)
    assert sampler.log_likelihood(bytes_).mean().item() == pytest.approx(-float(entropy) - noise, abs=0.08)


def test_kernel_samples_are_training_images_with_noise():
    images = torch.tensor([60, 120, 190], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 4, 4).contiguous()
    samples = (KernelDensitySampler(images, 2 / 127.5).sample(6000) + 1) * 127.5
    means = samples.flatten(1).mean(1)
    nearest = (means[:, None] - torch.tensor([60.0, 120.0, 190.0])).abs().argmin(1)
    counts = torch.bincount(nearest, minlength=3)
    assert (counts - 2000).abs().max() < 4 * math.sqrt(6000 * 2 / 9)
    noise = samples.flatten(1) - torch.tensor([60.0, 120.0, 190.0])[nearest][:, None]
    assert noise.std().item() == pytest.approx(2, rel=0.02) and abs(noise.mean().item()) < 0.05


def test_bright_and_dark_images_are_clamped():
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 4, 4).contiguous()
    samples = KernelDensitySampler(images, 0.5).sample(50)
    assert samples.min() == -1 and samples.max() == 1


# ---------------------------------------------------------------------------------------------------------- bad input


def test_unfit_arguments_are_refused(digits):
    for components in (0, 65, -1, 1.5, 0.0, math.nan, True, "all"):
        with pytest.raises(UsageError, match="`components` must be an int from 1 to 64"):
            PCASampler(digits[:20], components)
    for bandwidth in (0, -0.1, math.nan, math.inf, "scott"):
        with pytest.raises(UsageError, match="`bandwidth` must be a positive number"):
            KernelDensitySampler(digits[:20], bandwidth)
    floats = digits[:20].float() / 127.5 - 1
    for make in (PCASampler, KernelDensitySampler):
        with pytest.raises(UsageError, match=r"at least 2 images. Got 1"):
            make(digits[:1])
        with pytest.raises(UsageError, match="floats in"):
            make(digits[:20].int())
        with pytest.raises(UsageError, match="looks like"):
            make((floats + 1) / 2)
        with pytest.raises(UsageError, match="at least one"):
            make(digits[0])
        with pytest.raises(DataError, match="finite"):
            make(floats * math.nan)
        sampler = make(digits[:20])
        with pytest.raises(UsageError, match=r"\(1, 8, 8\). Got \(1, 4, 8\)"):
            sampler.log_likelihood(digits[:2, :, :4])
        with pytest.raises(DataError, match="finite"):
            sampler.log_likelihood(floats * math.nan)
        for n, start in ((0, 0), (1, -1)):
            with pytest.raises(UsageError, match=f"n={n}, start={start}"):
                sampler.sample(n, start=start)


def test_the_examples_in_the_docstrings_run():
    result = doctest.testmod(latentia.evaluation.baselines, extraglobs={"torch": torch})
    assert result.failed == 0 and result.attempted == 4
