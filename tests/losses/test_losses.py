"""The objective: which times, which weights, which target, and where the gradients of the hybrid loss go."""

import math

import pytest
import torch

from latentia import DDPMScheduler
from latentia.errors import UsageError
from latentia.functional.diffusion import snr_weight
from latentia.losses.diffusion import bound_term, diffusion_loss
from latentia.losses.times import sample_timesteps
from latentia.rng import Rng


class Output:
    def __init__(self, sample):
        self.sample = sample


class Fixed:
    """Stands for a network: returns `function(x_t, t, class_labels)`, and remembers what it was asked."""

    def __init__(self, function, classes=None):
        self.function, self.calls = function, []
        self.config = type("Config", (), {"num_class_embeds": classes})()

    def __call__(self, x, t, class_labels=None):
        self.calls.append((x, t, class_labels))
        return Output(self.function(x, t))


def draws(n=64, position=0, seed=0):
    return Rng(seed, position, n, 0, n)


def test_uniform_times_fill_every_part_of_the_axis_evenly():
    # Chi-squared over 20 bins of 10 000 draws in 100 steps, though stratification makes it far smaller than chance.
    times = torch.cat([sample_timesteps(draws(100, 100 * i), 1000) for i in range(100)])
    counts = torch.bincount(times // 50, minlength=20).double()
    assert times.min() >= 0 and times.max() <= 999 and len(counts) == 20
    assert ((counts - 500) ** 2 / 500).sum() < 43.8  # 0.1 % quantile with 19 degrees of freedom
    assert len(times.unique()) > 950  # and not the same times each step


def test_logit_normal_times_have_the_quantiles_of_the_density():
    t = sample_timesteps(draws(20_000), 1000, "logit_normal", loc=-0.5, scale=1.2).double() / 1000
    for q in (0.1, 0.5, 0.9):
        z = math.sqrt(2) * torch.erfinv(torch.tensor(2 * q - 1, dtype=torch.float64))
        assert abs(t.quantile(q) - torch.sigmoid(-0.5 + 1.2 * z)) < 2e-3


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_a_network_equal_to_the_target_has_no_loss(kind):
    scheduler, x0 = DDPMScheduler(prediction_type=kind), torch.rand(64, 1, 4, 4) * 2 - 1
    eps = draws().normal("noise", (1, 4, 4))
    t = sample_timesteps(draws(), 1000)
    a = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1).float()
    target = {"epsilon": eps, "sample": x0, "v_prediction": a.sqrt() * eps - (1 - a).sqrt() * x0}[kind]
    network = Fixed(lambda x, t: target)
    assert diffusion_loss(network, scheduler, {"x": x0}, draws())["loss"] < 1e-10
    x_t, asked, _ = network.calls[0]
    assert torch.equal(asked, t)
    torch.testing.assert_close(x_t, a.sqrt() * x0 + (1 - a).sqrt() * eps)


def test_a_network_that_predicts_no_noise_has_loss_one():
    loss = diffusion_loss(Fixed(lambda x, t: 0 * x), DDPMScheduler(), {"x": torch.zeros(64, 1, 16, 16)}, draws())
    assert abs(loss["loss"] - 1) < 0.05


def test_min_snr_is_one_weight_of_the_clean_image_everywhere():
    t = torch.arange(0, 1000, 37)
    a = DDPMScheduler().alphas_cumprod[t].double()
    weights = {k: snr_weight(a, k, "min_snr", 5.0).double() for k in ("sample", "epsilon", "v_prediction")}
    snr = a / (1 - a)
    torch.testing.assert_close(weights["sample"], snr.clamp(max=5), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        weights["epsilon"] * snr, weights["sample"], rtol=1e-6, atol=0
    )  # |eps err|^2 = snr |x0 err|^2
    torch.testing.assert_close(weights["v_prediction"] * (snr + 1), weights["sample"], rtol=1e-6, atol=0)


def test_labels_are_hidden_as_often_as_asked_for():
    labels = torch.randint(0, 10, (4000,))
    batch = {"x": torch.zeros(4000, 1, 1, 1), "labels": labels}
    for rate in (0.0, 0.25, 1.0):
        network = Fixed(lambda x, t: x, classes=10)
        diffusion_loss(network, DDPMScheduler(), batch, draws(4000), class_dropout=rate)
        given = network.calls[0][2]
        hidden = given == 10
        assert abs(hidden.float().mean() - rate) < 0.03 and torch.equal(given[~hidden], labels[~hidden])


def test_the_hybrid_loss_separates_means_and_variances():
    scheduler, x0 = DDPMScheduler(variance_type="learned_range"), torch.rand(16, 1, 4, 4) * 2 - 1
    prediction = torch.randn(16, 2, 4, 4, requires_grad=True)
    values = diffusion_loss(Fixed(lambda x, t: prediction), scheduler, {"x": x0}, draws(16))
    (mean_of_vlb,) = torch.autograd.grad(values["vlb"], prediction, retain_graph=True)
    assert not mean_of_vlb[:, 0].any() and mean_of_vlb[:, 1].any()
    (of_simple,) = torch.autograd.grad(values["simple"], prediction, retain_graph=True)
    assert of_simple[:, 0].any() and not of_simple[:, 1].any()
    torch.testing.assert_close(values["loss"], values["simple"] + 1e-3 * 1000 * values["vlb"])


def test_a_bound_term_is_the_kl_and_zero_for_the_true_posterior():
    scheduler = DDPMScheduler(variance_type="fixed_small")
    x0 = torch.rand(3, 1, 2, 2, dtype=torch.float64) * 2 - 1
    eps, t, not_last = torch.randn_like(x0), torch.tensor([10, 500, 900]), torch.zeros(3, dtype=torch.bool)
    x_t = scheduler.add_noise(x0, eps, t)
    torch.testing.assert_close(bound_term(scheduler, eps, x0, x_t, t, not_last), torch.zeros(3), atol=1e-5, rtol=0)
    other = eps + 0.3
    mean, log_variance, _ = scheduler.reverse(other, t, x_t)
    true_mean, true_log_variance = scheduler.posterior(x0, t, x_t)
    p = torch.distributions.Normal(mean, (0.5 * log_variance).exp().expand_as(mean))
    q = torch.distributions.Normal(true_mean, (0.5 * true_log_variance).exp().expand_as(mean))
    expected = torch.distributions.kl_divergence(q, p).flatten(1).sum(1).float()
    torch.testing.assert_close(bound_term(scheduler, other, x0, x_t, t, not_last), expected)


def test_the_last_term_is_a_distribution_over_256_levels():
    scheduler, last = DDPMScheduler(variance_type="fixed_large"), torch.tensor(True)
    levels = (torch.arange(256) / 127.5 - 1).view(256, 1, 1, 1)
    x_t = torch.full((256, 1, 1, 1), 0.2)
    nats = bound_term(scheduler, torch.zeros_like(x_t), levels, x_t, torch.tensor(0), last)
    assert abs(torch.exp(-nats).sum() - 1) < 1e-4


@pytest.mark.parametrize(
    ("kwargs", "nearest"), [({"time_sampling": "logit-normal"}, "logit_normal"), ({"weighting": "min-snr"}, "min_snr")]
)
def test_unknown_choices_name_the_nearest(kwargs, nearest):
    with pytest.raises(UsageError, match=f'Did you mean "{nearest}"'):
        diffusion_loss(Fixed(lambda x, t: x), DDPMScheduler(), {"x": torch.zeros(2, 1, 2, 2)}, draws(2), **kwargs)
